"""Does deciding per image save time on the clock? Cascades of a converted ResNet-20 through the engines, beside their last stage alone, in one process.

    OMP_NUM_THREADS=1 python benchmarks/cascade.py --data data [--cascade windows precision event] [--calibration 5000] [--risk 0.1] [--rounds 5] [--images 256]

`windows`: mean windows 8, then 45, on engine `count`. `precision`: windows of mean 45 on 8-bit weights and engine `count_int8`, then in float32 on `count`.
`event`: immediate firing, 16 steps, then 64, on engine `event`. The threshold comes from the first images of one half of the test set, at a risk in points of
extra errors against the last stage; accuracy and time are of the other half. Every batch is timed in turn by every contender;
a rate is of the best round of each batch.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from teas.adapt.policy import Cascade, calibrate_policy, decide
from teas.engine import ENGINES, quantise
from teas.study.cascade import by_damage, halves
from teas.study.hooks import Hooks
from teas.study.subject import Cache, fingerprint, open_subject

EXPERIMENT = Path(__file__).parents[1] / "experiments/cifar10_resnet20_cascade.toml"
ENGINE = {engine.name: engine for engine in ENGINES}
Run = Callable[[Tensor], Any]


def stages(name: str, data: Path) -> tuple[list[Run], Any]:
    """The functions of a cascade's stages, cheapest first, and its subject."""
    subject = open_subject(EXPERIMENT, data)
    cache = Cache(subject.folder / "cache", fingerprint(EXPERIMENT, data))
    if name == "event":
        found, _ = subject.converted
        networks = [found.at(steps, firing="immediate", layout="even", transform="residual") for steps in (16, 64)]
        return [ENGINE["event"].prepare(network, keep="nothing") for network in networks], subject
    windows = [by_damage(subject, cache, mean, Hooks(say=print)) for mean in (8, 45)]
    last = subject.make(windows[1])
    if name == "windows":
        return [ENGINE["count"].prepare(network, keep="nothing") for network in (subject.make(windows[0]), last)], subject
    return [ENGINE["count_int8"].prepare(quantise(last), keep="nothing"), ENGINE["count"].prepare(last, keep="nothing")], subject


def answered(run: Run, subject: Any, indices: Tensor) -> Tensor:
    """Logits of test images, 100 at a time."""
    return torch.cat([run(subject.data.test.__getitems__(part.tolist())[0]).logits for part in indices.split(100)])


def timed(contenders: dict[str, Run], inputs: Tensor, batch: int, rounds: int) -> dict[str, float]:
    """Images a second of each, from the best of the rounds for every batch; each batch is run by every contender in turn."""
    parts = inputs.split(batch)
    best = {name: [float("inf")] * len(parts) for name in contenders}
    for _ in range(rounds):
        for number, part in enumerate(parts):
            for name, run in contenders.items():
                start = time.perf_counter()
                run(part)
                best[name][number] = min(best[name][number], time.perf_counter() - start)
    return {name: len(inputs) / sum(seconds) for name, seconds in best.items()}


def percent(right: Tensor) -> float:
    return 100 * float(right.double().mean())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--cascade", nargs="+", default=["windows", "precision", "event"])
    options.add_argument("--calibration", type=int, default=5000)
    options.add_argument("--risk", type=float, default=0.1)
    options.add_argument("--final", type=int, default=5000)
    options.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    options.add_argument("--images", type=int, default=256)
    options.add_argument("--rounds", type=int, default=5)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    for name in chosen.cascade:
        with torch.no_grad():
            runs, subject = stages(name, chosen.data)
            half, final = halves(subject)
            half, final, labels = half[: chosen.calibration], final[: chosen.final], subject.data.test.labels
            found = calibrate_policy([answered(run, subject, half) for run in runs], chosen.risk / 100, labels=labels[half])
            logits = [answered(run, subject, final) for run in runs]
            decided = decide(found.policy, logits)
            right, alone = decided.logits.argmax(1) == labels[final], [rows.argmax(1) == labels[final] for rows in logits]
            print(f"{name}: risk {chosen.risk:g} points on {len(half)} images ({found.errors} errors); on {len(final)} others {percent(right):.2f} % "
                  f"(stages alone {', '.join(f'{percent(each):.2f}' for each in alone)}), {int((alone[-1] & ~right).sum())} extra errors, "
                  f"{percent(decided.stage == 0):.1f} % stop early", flush=True)  # fmt: skip
            inputs = subject.data.test.__getitems__(final[: chosen.images].tolist())[0]
            contenders = {"first": runs[0], "last": runs[-1], "cascade": Cascade(runs, found.policy)}
            for batch in chosen.batch:
                rates = timed(contenders, inputs[: chosen.images if batch > 1 else chosen.images // 4], batch, chosen.rounds)
                print(f"  batch {batch}: " + ", ".join(f"{who} {rate:.0f} images/s" for who, rate in rates.items())
                      + f"; the cascade is {rates['cascade'] / rates['last']:.2f} times as fast as its last stage", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
