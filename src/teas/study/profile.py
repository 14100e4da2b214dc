"""Activity and vulnerability of every layer, and whether they go together (Fig. 3 of the paper)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from teas.adapt.activity import measure_activity
from teas.adapt.vulnerability import Noise, accuracy_under_noise
from teas.errors import TeasError
from teas.files import write_atomically
from teas.spiking.network import SpikingNetwork
from teas.spiking.time_windows import TimeWindows
from teas.study import data as datasets
from teas.study import figures
from teas.study.conversion import fast
from teas.study.hooks import Hooks
from teas.study.metrics import spread
from teas.study.statistics import Correlation, accuracy_interval, mean_interval, rank_correlation
from teas.study.subject import Cache, Subject, content_of, fingerprint, locate, open_subject

BATCH = 250


def _batches(subject: Subject, images: int) -> list[tuple[Tensor, Tensor]]:
    """The first test images."""
    count = min(images, len(subject.data.test))
    found = list(itertools.islice(datasets.loader(subject.data.test, min(BATCH, count)), -(-count // min(BATCH, count))))
    inputs, labels = (torch.cat(part)[:count] for part in zip(*found, strict=True))
    return list(zip(torch.split(inputs, BATCH), torch.split(labels, BATCH), strict=True))


@torch.no_grad()
def _accuracy(network: SpikingNetwork, batches: list[tuple[Tensor, Tensor]]) -> float:
    run = fast(network)
    right = sum(int((run(inputs).logits.argmax(1) == labels).sum()) for inputs, labels in batches)
    return 100 * right / sum(len(labels) for _, labels in batches)


def run(
    path: Path, data_folder: Path | None, windows: str | None, noises: Sequence[str], *, images: int, seeds: Sequence[int], shorten: int,
    out: Path | None = None, hooks: Hooks,
) -> tuple[dict[str, Any], Path]:  # fmt: skip
    """Profile the network of a run folder or a conversion's TOML file into profile.json; returns its content, and the folder.

    noises: `kind` or `kind=u`. Raises `TeasError` for bad input before any work.
    """
    parsed = [_noise(text) for text in noises]
    folder = locate(path, data_folder, out)[1]
    cache = Cache(folder / "cache", fingerprint(path, data_folder))
    settings = {"windows": content_of(windows), "noises": [asdict(noise) for noise in parsed], "images": images, "seeds": list(seeds), "shorten": shorten}

    def measure() -> dict[str, Any]:
        subject = open_subject(path, data_folder, out)
        return profile(subject, cache, subject.windows(windows), parsed, images=images, seeds=seeds, shorten=shorten, hooks=hooks)

    found: dict[str, Any] = cache.get("profile", settings, measure)
    write_atomically(folder / "profile.json", json.dumps(found, indent=1))
    return found, folder


def _noise(text: str) -> Noise:
    kind, _, magnitude = text.partition("=")
    try:
        return Noise(kind, float(magnitude or 0.1))
    except ValueError as error:
        if isinstance(error, TeasError):
            raise
        raise TeasError(f"--noise {text!r}: write a kind and its magnitude, for example flip=0.1") from None


def profile(
    subject: Subject, cache: Cache, windows: TimeWindows, noises: Sequence[Noise], *, images: int, seeds: Sequence[int], shorten: int, hooks: Hooks
) -> dict[str, Any]:
    """Everything measured of each layer at `windows`, on the first test images; the content of profile.json.

    Vulnerability is the accuracy lost, in points, when one layer alone is under noise (per kind and seed), or runs `shorten` steps.
    Thresholds of a conversion are fitted to the short window. What is in the cache is not measured again.
    """
    batches = _batches(subject, images)
    at = {"windows": dict(windows), "images": images}
    network = subject.make(windows)

    def undisturbed() -> dict[str, Any]:
        hooks.say("activity and accuracy, undisturbed")
        found = measure_activity(network, batches)
        return {"clean": _accuracy(network, batches), "layers": {layer: asdict(row) for layer, row in found.items()}}

    base = cache.get("activity", at, undisturbed)

    def lost(noise: Noise, seed: int) -> list[float]:
        def measure() -> dict[str, float]:
            hooks.say(f"{noise.kind} noise of {noise.magnitude:g} on one layer at a time, seed {seed}")
            return accuracy_under_noise(network, noise, hooks.progress(batches, noise.kind), seed)

        under = cache.get(noise.kind, {**at, "magnitude": noise.magnitude, "seed": seed}, measure)
        return [base["clean"] - under[layer] for layer in windows]

    def lost_shortened(layer: str) -> float:
        changed = windows.replace({layer: min(shorten, windows[layer])})

        def measure() -> float:
            hooks.say(f"{layer} at {changed[layer]} steps")
            return _accuracy(subject.make(changed), batches)

        return float(base["clean"] - cache.get("shortened", {**at, "layer": layer, "steps": changed[layer]}, measure))

    damage = {noise.kind: [lost(noise, seed) for seed in seeds] for noise in noises}
    damage["shortened"] = [[lost_shortened(layer) for layer in windows]]
    return _summary(subject, base, damage, {**at, "seeds": list(seeds), "shorten": shorten, "noises": [asdict(noise) for noise in noises]})


def _summary(subject: Subject, base: dict[str, Any], damage: dict[str, list[list[float]]], settings: dict[str, Any]) -> dict[str, Any]:
    layers = list(base["layers"])
    activity = [base["layers"][layer]["activity"] for layer in layers]
    samples = min(settings["images"], len(subject.data.test))
    vulnerability = {}
    for kind, by_seed in damage.items():
        mean = [spread(values)[0] for values in zip(*by_seed, strict=True)]
        vulnerability[kind] = {
            "damage": mean,
            "accuracy": [base["clean"] - lost for lost in mean],
            "interval": [accuracy_interval(base["clean"] - lost, samples) for lost in mean],
            "over_seeds": [mean_interval(values) for values in zip(*by_seed, strict=True)],
            "correlation": asdict(rank_correlation(activity, mean)),
            "rho_by_seed": [rank_correlation(activity, values).rho for values in by_seed],
            "with_size": asdict(rank_correlation([base["layers"][layer]["neurons"] for layer in layers], mean)),
            "with_depth": asdict(rank_correlation(range(len(layers)), mean)),
        }
    semantics = asdict(subject.make(subject.full).semantics)
    return {
        "name": subject.experiment.name, "semantics": semantics, "samples": samples, "clean": base["clean"],
        "clean_interval": accuracy_interval(base["clean"], samples), **settings, "layers": base["layers"], "vulnerability": vulnerability,
    }  # fmt: skip


def table(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, one a layer: activity, shares, and the accuracy with that layer alone disturbed, with its 95 % interval over images."""
    kinds = list(found["vulnerability"])
    names = {noise["kind"]: f"{noise['kind']} {noise['magnitude']:g}" for noise in found["noises"]} | {"shortened": f"{found['shorten']} steps"}
    header = ["layer", "window", "neurons", "activity", "silent %", "saturated %", *(f"% with {names[kind]}" for kind in kinds)]
    rows = []
    for index, (layer, row) in enumerate(found["layers"].items()):
        cells = [
            layer,
            str(found["windows"][layer]),
            str(row["neurons"]),
            f"{row['activity']:.4f}",
            f"{100 * row['silent']:.1f}",
            f"{100 * row['saturated']:.2f}",
        ]
        for kind in kinds:
            accuracy, (low, high) = (found["vulnerability"][kind][key][index] for key in ("accuracy", "interval"))
            cells.append(f"{accuracy:.2f} [{low:.1f}, {high:.1f}]")
        rows.append(cells)
    return header, rows


def findings(found: dict[str, Any]) -> list[str]:
    """In words: whether active layers are the vulnerable ones, as the paper says, and what else goes with damage."""
    lines = [
        f"Clean accuracy {found['clean']:.2f} % on {found['samples']} test images; {found['semantics']['firing']} firing, {found['semantics']['code']} code."
    ]
    for kind, measured in found["vulnerability"].items():
        activity, size, depth = (Correlation(**measured[key]) for key in ("correlation", "with_size", "with_depth"))
        what = f"one layer at {found['shorten']} steps" if kind == "shortened" else f"{kind} noise on one layer"
        by_seed = measured["rho_by_seed"]
        over = f"; over {len(by_seed)} seeds {min(by_seed):+.2f} to {max(by_seed):+.2f}" if len(by_seed) > 1 else ""
        lines.append(
            f"Damage by {what}: Spearman correlation with activity {activity}{over}. {_verdict(activity)} With size {size.rho:+.2f}, depth {depth.rho:+.2f}."
        )
    return lines


def _verdict(found: Correlation) -> str:
    if found.p_value >= 0.05:
        return "No significant relation."
    return "Active layers are the vulnerable ones, as the paper says." if found.rho > 0 else "AGAINST the paper: the quiet layers are the vulnerable ones."


def pictures(found: dict[str, Any], folder: Path) -> list[Path]:
    """Draw Fig. 3 for every kind of disturbance; returns the files."""
    files = []
    for kind in found["vulnerability"]:
        files.append(folder / f"vulnerability_{kind}.png")
        write_atomically(files[-1], figures.to_png(figures.activity_and_accuracy(found, kind)))
    return files
