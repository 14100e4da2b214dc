"""Time per sample, measured: window sets of one network as a cascade, calibrated on images of three kinds and judged on test images that chose nothing."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from teas.adapt.policy import calibrate_policy, decide, error_bound, fit_temperature
from teas.errors import TeasError
from teas.files import write_atomically
from teas.spiking.time_windows import TimeWindows
from teas.study import data as datasets
from teas.study.conversion import BATCH, batch_for, fast, paired_p_value
from teas.study.explore import candidates
from teas.study.hooks import Hooks
from teas.study.subject import Cache, Subject, fingerprint, locate, open_subject

TEST, FINAL, HELD_OUT, AUGMENTED, TEST_HALF = "test", "final", "held out", "held out, augmented", "half of the test set"
AUGMENTATION = "crop_flip_cutout"


def run(
    path: Path, data_folder: Path | None, *, means: Sequence[float], risk: float, confidence: float, out: Path | None = None, hooks: Hooks
) -> tuple[dict[str, Any], Path]:
    """A cascade over windows by measured damage at these mean windows, into the folder `cascade`; returns what was found, and that folder.

    risk: of an extra error against the last stage, in percentage points. Raises `TeasError` for means that do not rise.
    """
    if not means or list(means) != sorted(set(means)):
        raise TeasError(f"a cascade takes mean windows that rise from stage to stage; got {', '.join(f'{mean:g}' for mean in means) or 'none'}")
    folder = locate(path, data_folder, out)[1]
    cache = Cache(folder / "cache", fingerprint(path, data_folder))
    subject = open_subject(path, data_folder, out)
    found = measure(subject, cache, means, risk / 100, confidence, hooks)
    folder = folder / "cascade"
    write_atomically(folder / "cascade.json", json.dumps(found, indent=1))
    return found, folder


def measure(subject: Subject, cache: Cache, means: Sequence[float], risk: float, confidence: float, hooks: Hooks) -> dict[str, Any]:
    """The cascade calibrated on each kind of images, all judged on the same half of the test set, beside its controls.

    Half of the test images, drawn at random, calibrate one of the three policies and are in no other figure. Temperatures come from augmented
    held-out images. On these, which a pre-trained network may have been trained on, labels mean little: there an error is another answer than the last stage's.
    """
    chosen = [by_damage(subject, cache, mean, hooks) for mean in means]
    half, final = halves(subject)
    test = [logits_of(subject, cache, windows, TEST, hooks) for windows in chosen]
    plain = [logits_of(subject, cache, windows, HELD_OUT, hooks) for windows in chosen]
    changed = [logits_of(subject, cache, windows, AUGMENTED, hooks) for windows in chosen]
    labels, held_labels = subject.data.test.labels, subject.data.validation.labels
    scale = [fit_temperature(found, held_labels) for found in changed[:-1]]
    steps = list(accumulate(windows.mean for windows in chosen))
    alone = test[-1][final].argmax(1) == labels[final]
    rows = []
    for name, logits, truth in (
        (HELD_OUT, plain, held_labels),
        (AUGMENTED, changed, None),
        (TEST_HALF, [found[half] for found in test], labels[half]),
    ):
        known = calibrate_policy(logits, risk, labels=truth, temperatures=scale, confidence=confidence)
        decided = decide(known.policy, [found[final] for found in test])
        answers = decided.logits.argmax(1)
        right = answers == labels[final]
        share = decided.stage.bincount(minlength=len(chosen)).double() / len(final)
        spent = float(share @ torch.tensor(steps, dtype=torch.float64))
        same = by_damage(subject, cache, min(spent, subject.full.mean), hooks)
        single = logits_of(subject, cache, same, FINAL, hooks).argmax(1) == labels[final]
        worse, other = int((alone & ~right).sum()), int((answers != test[-1][final].argmax(1)).sum())
        by_chance = sum(float(share[i]) * _percent(found[final].argmax(1) == labels[final]) for i, found in enumerate(test))
        rows.append({
            "calibrated_on": name, "calibration": asdict(known), "accuracy": _percent(right), "stopped": share.tolist(), "steps": spent,
            "ratio": spent / chosen[-1].mean, "extra_errors": worse, "risk_found": 100 * worse / len(final), "other_answers": other,
            "risk_held": held(worse, len(final), risk), "random": by_chance, "single": _percent(single), "single_mean": same.mean,
            "p_against_last": paired_p_value(right, alone), "p_against_single": paired_p_value(right, single),
        })  # fmt: skip
    return {
        "name": subject.experiment.name, "risk": risk, "confidence": confidence, "final": len(final), "windows": [dict(windows) for windows in chosen],
        "means": [windows.mean for windows in chosen], "alone": [_percent(found[final].argmax(1) == labels[final]) for found in test], "rows": rows,
    }  # fmt: skip


def by_damage(subject: Subject, cache: Cache, mean: float, hooks: Hooks) -> TimeWindows:
    """Windows by measured damage at a mean; raises `TeasError` above the full windows."""
    found = [windows for allocator, _, windows in candidates(subject, cache, ("damage",), [mean], hooks) if allocator == "damage"]
    if not found:
        raise TeasError(f"a mean window of {mean:g} is above the {subject.full.mean:g} steps of the full windows; take smaller ones")
    return found[0]


def held(errors: int, samples: int, risk: float) -> str:
    """Whether a share of errors is within the risk: `yes`; above it by no more than chance would have it once in twenty: `within chance`; or `no`."""
    if errors <= risk * samples:
        return "yes"
    return "within chance" if 1 - error_bound(samples - errors, samples) <= risk else "no"


def halves(subject: Subject) -> tuple[Tensor, Tensor]:
    """The test images in two halves drawn at random: to calibrate on, and for final figures."""
    count = len(subject.data.test)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(subject.experiment.seeds[0]))
    return order[: count // 2], order[count // 2 :]


def logits_of(subject: Subject, cache: Cache, windows: TimeWindows, images: str, hooks: Hooks) -> Tensor:
    """Logits `[image, class]` at these windows: of `test` images, of those for `final` figures, or of images held out of training, plain or `augmented`."""

    def compute() -> list[list[float]]:
        hooks.say(f"  {images}: mean window {windows.mean:.2f}")
        whole = copy.copy(subject.data.test if images in (TEST, FINAL) else subject.data.validation)
        whole.augmentation = AUGMENTATION if images == AUGMENTED else "none"
        shown: Any = Subset(whole, halves(subject)[1].tolist()) if images == FINAL else whole
        run = fast(subject.make(windows))
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(subject.experiment.seeds[0])
            found: list[list[float]] = torch.cat([run(inputs).logits for inputs, _ in datasets.loader(shown, batch_for(whole, BATCH))]).tolist()
        return found

    return torch.tensor(cache.get("logits", {"windows": dict(windows), "images": images}, compute))


def _percent(right: Tensor) -> float:
    return 100 * int(right.sum()) / len(right)


def table(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: each policy by what it was calibrated on, with its controls, on the final images."""
    header = ["calibrated on", "stop early %", "mean steps", "of the last", "accuracy %", "extra errors", "risk held", "random stops %", "one network %"]
    rows = [["last stage alone", "", f"{found['means'][-1]:.2f}", "1.00", f"{found['alone'][-1]:.2f}", "", "", "", ""]]
    for row in found["rows"]:
        rows.append([
            row["calibrated_on"], f"{100 * (1 - row['stopped'][-1]):.1f}", f"{row['steps']:.2f}", f"{row['ratio']:.2f}", f"{row['accuracy']:.2f}",
            f"{row['extra_errors']} ({row['risk_found']:.2f} %)", row["risk_held"],
            f"{row['random']:.2f}", f"{row['single']:.2f} ({row['p_against_single']:.2g})",
        ])  # fmt: skip
    return header, rows


def findings(found: dict[str, Any]) -> list[str]:
    """What was promised and by what, and the stages by themselves."""
    stages = ", ".join(f"{accuracy:.2f} % at {mean:.2f}" for accuracy, mean in zip(found["alone"], found["means"], strict=True))
    return [
        f"Each stage alone on the {found['final']} final test images: {stages} steps a layer.",
        f"Promised: at most {100 * found['risk']:g} % extra errors against the last stage, with probability {found['confidence']:g} over the draw of the "
        "calibration images. Steps of all stages that a sample ran are added up. One network: at the same mean steps for every sample (McNemar's p).",
    ]
