"""Does deciding per image save time on the clock? Cascades of a converted ResNet-20 through the engines, beside their last stage alone, in one process.

    OMP_NUM_THREADS=1 python benchmarks/cascade.py --data data [--cascade both windows precision networks event] [--calibration 5000] [--risk 0.1]
        [--rounds 5] [--images 256]

`both`: windows of mean 16 on 8-bit weights and engine `count_int8`, then of mean 45 in float32 on `count`. `windows`: means 8, then 45, on `count`.
`precision`: mean 45 on `count_int8`, then on `count`. `networks`: `zoo/cifar10_resnet20_learned`, retrained at a mean of 3, on `count_int8`, then the
converted network at a mean of 16 on `count`; `zoo/cifar10_resnet20_retrained` alone is its control. `event`: immediate firing, 16 steps, then 64.

The threshold comes from the first images of one half of the test set, at a risk in points of extra errors against the last stage; accuracy and time
are of the other half. Every batch is timed in turn by every contender; a rate is of the best round of each batch.
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
from teas.spiking.network import SpikingNetwork
from teas.study.cascade import by_damage, halves
from teas.study.conversion import paired_p_value
from teas.study.hooks import Hooks
from teas.study.run_folder import load_run
from teas.study.subject import Cache, fingerprint, open_subject

ROOT = Path(__file__).parents[1]
EXPERIMENT = ROOT / "experiments/cifar10_resnet20_cascade.toml"
ENGINE = {engine.name: engine for engine in ENGINES}
Run = Callable[[Tensor], Any]


def stages(name: str, data: Path) -> tuple[list[Run], list[float], Any]:
    """The functions of a cascade's stages, cheapest first, their mean windows, and its subject."""
    subject = open_subject(EXPERIMENT, data)
    cache = Cache(subject.folder / "cache", fingerprint(EXPERIMENT, data))

    def at(mean: float) -> SpikingNetwork:
        return subject.make(by_damage(subject, cache, mean, Hooks(say=print)))

    if name == "event":
        found, _ = subject.converted
        networks = [found.at(steps, firing="immediate", layout="even", transform="residual") for steps in (16, 64)]
    elif name == "networks":
        networks = [kept("learned", data), at(16)]
    else:
        networks = [at({"both": 16, "windows": 8, "precision": 45}[name]), at(45)]
    engines = {"event": ("event", "event"), "windows": ("count", "count")}.get(name, ("count_int8", "count"))
    runs = [prepared(network, engine) for network, engine in zip(networks, engines, strict=True)]
    return runs, [network.windows.mean for network in networks], subject


def kept(name: str, data: Path) -> SpikingNetwork:
    """A network of the zoo."""
    return load_run(ROOT / f"zoo/cifar10_resnet20_{name}", data)[0].eval()


def prepared(network: SpikingNetwork, engine: str) -> Run:
    """The network on an engine, its weights in 8 bits where the engine needs that."""
    return ENGINE[engine].prepare(quantise(network) if engine == "count_int8" else network, keep="nothing")


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
    options.add_argument("--cascade", nargs="+", default=["both", "windows", "precision", "networks", "event"])
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
            runs, means, subject = stages(name, chosen.data)
            half, final = halves(subject)
            half, final, labels = half[: chosen.calibration], final[: chosen.final], subject.data.test.labels
            found = calibrate_policy([answered(run, subject, half) for run in runs], chosen.risk / 100, labels=labels[half])
            logits = [answered(run, subject, final) for run in runs]
            decided = decide(found.policy, logits)
            right, alone = decided.logits.argmax(1) == labels[final], [rows.argmax(1) == labels[final] for rows in logits]
            wrong = int((alone[-1] & ~right).sum())
            print(f"{name}: risk {chosen.risk:g} points on {len(half)} images ({found.errors} errors); on {len(final)} others {percent(right):.2f} % "
                  f"(stages alone {', '.join(f'{percent(each):.2f}' for each in alone)}), {wrong} extra errors, "
                  f"{percent(decided.stage == 0):.1f} % stop early", flush=True)  # fmt: skip
            late = float((decided.stage == 1).double().mean())
            steps = means[0] + late * means[1]
            print(f"  mean steps {steps:.2f}, {steps / means[1]:.2f} of the {means[1]:.2f} of its last stage; extra errors {100 * wrong / len(final):.3f} %, "
                  f"p against the last stage {paired_p_value(right, alone[-1]):.2g}", flush=True)  # fmt: skip
            if name == "networks":
                control = kept("retrained", chosen.data)
                single = answered(prepared(control, "count_int8"), subject, final).argmax(1) == labels[final]
                print(f"  one network retrained at a mean of {control.windows.mean:.2f}: {percent(single):.2f} % "
                      f"(p {paired_p_value(right, single):.2g})", flush=True)  # fmt: skip
            inputs = subject.data.test.__getitems__(final[: chosen.images].tolist())[0]
            contenders = {"first": runs[0], "last": runs[-1], "cascade": Cascade(runs, found.policy)}
            for batch in chosen.batch:
                rates = timed(contenders, inputs[: chosen.images if batch > 1 else chosen.images // 4], batch, chosen.rounds)
                print(f"  batch {batch}: " + ", ".join(f"{who} {rate:.0f} images/s" for who, rate in rates.items())
                      + f"; the cascade is {rates['cascade'] / rates['last']:.2f} times as fast as its last stage", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
