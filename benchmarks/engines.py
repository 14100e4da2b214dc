"""Engines side by side: a ResNet-20 for CIFAR-sized images as an ANN, by the reference, and by the count engines, in one process.

    python benchmarks/engines.py [--windows 4 8 45 255 256] [--batch 32] [--rounds 9] [--threads 1] [--json]

Weights are random and the thresholds are the 99.9th percentile of each layer's potentials, as in a conversion; one round times every
contender once, in turn, and a figure is the median over rounds. No figure is printed unless every count equals the reference's first.
Only `count_reordered` may differ, and the share that does is printed with it; that of the reference against itself in another memory layout
is printed beside it (`reference, channels last`), because random weights amplify a flip as no trained network does.
`count_int8` runs weights rounded by `quantise`, checked against the reference on the same weights.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import teas
from teas.engine import ENGINES, quantise

CONTENDERS = ("ann", "reference", "count", "count_reordered", "count_int8")
ENGINE = {engine.name: engine for engine in ENGINES}


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.norm2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.fire1, self.fire2 = nn.ReLU(), nn.ReLU()
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fire1(self.norm1(self.conv1(x)))
        return self.fire2(self.norm2(self.conv2(hidden)) + self.shortcut(x))


class ResNet20(nn.Module):
    """He et al. 2016 (CIFAR): three stages of three blocks, 16, 32 and 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        shapes = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)] + [(64, 64, 1)] * 2
        self.conv, self.norm, self.fire = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        self.blocks = nn.Sequential(*[Block(*shape) for shape in shapes])
        self.pool, self.flatten, self.head = nn.AvgPool2d(8), nn.Flatten(), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.flatten(self.pool(self.blocks(self.fire(self.norm(self.conv(x)))))))


@torch.no_grad()
def fold_norms(ann: ResNet20) -> ResNet20:
    """Batch norms into the convolutions before them."""
    for owner, conv, norm in [(ann, "conv", "norm"), *[(block, f"conv{i}", f"norm{i}") for block in ann.blocks for i in (1, 2)]]:
        setattr(owner, conv, fuse_conv_bn_eval(getattr(owner, conv), getattr(owner, norm)))
        setattr(owner, norm, nn.Identity())
    return ann


@torch.no_grad()
def build(window: int) -> tuple[nn.Module, teas.SpikingNetwork]:
    """An ANN with its norms folded, and the two-phase network with thresholds at the 99.9th percentile of its potentials."""
    torch.manual_seed(0)
    ann = ResNet20().train()
    for _ in range(20):  # running statistics
        ann(images(32))
    fold_norms(ann.eval())
    module = ResNet20().eval()
    fold_norms(module)
    module.load_state_dict(ann.state_dict())
    thresholds: dict[str, Tensor] = {}
    hooks = []
    for name, child in ann.named_modules():
        if isinstance(child, nn.ReLU):

            def keep(_: nn.Module, before: tuple[Tensor], __: Tensor, name: str = name) -> None:
                thresholds[name] = before[0].flatten()[::7].quantile(0.999)

            hooks.append(child.register_forward_hook(keep))
    ann(images(32))
    for hook in hooks:
        hook.remove()
    for name, threshold in thresholds.items():
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, teas.IF(threshold, reset="subtract", v0=0.5))
    return ann, teas.SpikingNetwork(module.eval(), window, firing="two_phase").eval()


def images(batch: int) -> Tensor:
    """Smooth random images: neighbouring pixels are alike, as in photographs."""
    return nn.functional.interpolate(torch.randn(batch, 3, 8, 8), size=32, mode="bilinear") + 0.2 * torch.randn(batch, 3, 32, 32)


def contenders(window: int, batch: Tensor) -> tuple[dict[str, list[Callable[[], Any]]], dict[str, float]]:
    """What is timed, by name (the fastest of a list counts), and the share of counts that differ from the reference's."""
    ann, network = build(window)
    ann_last = build(window)[0].to(memory_format=torch.channels_last)
    last = batch.contiguous(memory_format=torch.channels_last)
    runs: dict[str, list[Callable[[], Any]]] = {"ann": [lambda: ann(batch), lambda: ann_last(last)], "reference": [lambda: network(batch)]}
    flips = {"reference, channels last": flip_rate(network(last), network(batch))}
    for name in CONTENDERS[2:]:
        weights = quantise(network) if name == "count_int8" else network
        engine = ENGINE[name]
        if reasons := engine.why_not(weights, torch.device("cpu")):
            print(f"{name} is left out: {'; '.join(reasons)}", file=sys.stderr)
            continue
        flips[name] = flip_rate(engine.prepare(weights, "counts")(batch), weights(batch))
        run = engine.prepare(weights, "nothing")
        if not torch.equal(run(batch).logits, engine.prepare(weights, "counts")(batch).logits) or (flips[name] and name != "count_reordered"):
            sys.exit(f"{name}: a share of {flips[name]:.2g} of the counts differs from the reference at T = {window}; no figures are printed")
        runs[name] = [lambda run=run: run(batch)]  # type: ignore[misc]
    return runs, flips


def flip_rate(found: teas.Output, wanted: teas.Output) -> float:
    wrong = sum((found.record[layer].count != record.count).sum().item() for layer, record in wanted.record.items())
    return wrong / sum(record.count.numel() for record in wanted.record.values())


@torch.no_grad()
def measure(window: int, batch: int, rounds: int) -> dict[str, Any]:
    """Median images/s, spread, and time relative to the ANN's in the same rounds."""
    torch.manual_seed(1)
    runs, flips = contenders(window, images(batch))
    times: dict[str, list[list[float]]] = {name: [[] for _ in variants] for name, variants in runs.items()}
    for _ in range(rounds + 2):  # the first two warm up
        for name, variants in runs.items():
            for variant, run in enumerate(variants):
                start = time.perf_counter()
                run()
                times[name][variant].append(time.perf_counter() - start)
    best = {name: min((spent[2:] for spent in variants), key=statistics.median) for name, variants in times.items()}
    ann = statistics.median(best["ann"])
    rows = {
        name: {
            "images_per_second": batch / statistics.median(spent),
            "slowest": batch / max(spent),
            "fastest": batch / min(spent),
            "time_over_ann": statistics.median(spent) / ann,
        }
        for name, spent in best.items()
    }
    return {"rows": rows, "flips": flips}


def memory(name: str, window: int, batch: int) -> None:
    """Print by how many MiB running one contender raises the peak of this process (a process of its own: see `peaks`)."""
    torch.manual_seed(1)
    ann, network = build(window)
    inputs = images(batch)
    network = quantise(network) if name == "count_int8" else network
    run = {"ann": ann, "reference": network}.get(name) or ENGINE[name].prepare(network, "nothing")
    with torch.no_grad():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(3):
            run(inputs)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def peaks(windows: tuple[int, int], batch: int) -> dict[str, dict[int, float]]:
    """MiB that each contender adds to the peak at two windows; a large batch, so that it shows above what building takes."""
    found: dict[str, dict[int, float]] = {}
    for name in CONTENDERS:
        for window in windows:
            command = [sys.executable, __file__, "--memory-of", name, "--windows", str(window), "--batch", str(batch)]
            found.setdefault(name, {})[window] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def show(results: dict[int, dict[str, Any]], grown: dict[str, dict[int, float]]) -> None:
    print(f"{'T':>5} {'engine':<11} {'images/s':>9} {'(spread)':>15} {'time/ANN':>9}")
    for window, result in results.items():
        for name, row in result["rows"].items():
            spread = f"({row['slowest']:.0f}-{row['fastest']:.0f})"
            print(f"{window:>5} {name:<11} {row['images_per_second']:>9.0f} {spread:>15} {row['time_over_ann']:>9.2f}")
    for window, result in results.items():
        print(f"share of counts unlike the reference's at T = {window}: " + ", ".join(f"{name} {share:.2g}" for name, share in result["flips"].items()))
    for name, by_window in grown.items():
        print(f"peak memory of {name}: " + ", ".join(f"{added:.0f} MiB at T = {window}" for window, added in by_window.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description="Engines side by side on a ResNet-20, in one process.")
    parser.add_argument("--windows", type=int, nargs="+", default=[4, 8, 45, 255, 256])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory-of", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        memory(options.memory_of, options.windows[0], options.batch)
        return
    grown = peaks((8, 255), 16 * options.batch)  # first: a child's peak counts from its parent's size
    results = {window: measure(window, options.batch, options.rounds) for window in options.windows}
    if options.json:
        print(json.dumps({"results": results, "peak_memory_mib": grown, "threads": options.threads, "batch": options.batch}, indent=2))
    else:
        show(results, grown)


if __name__ == "__main__":
    main()
