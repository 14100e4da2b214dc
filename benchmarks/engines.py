"""Engines side by side: a ResNet-20 for CIFAR-sized images as an ANN, by the reference, and by the count engines, in one process.

    python benchmarks/engines.py [--windows 4 8 45 255 256] [--batch 32] [--rounds 9] [--threads 1] [--json]
        [--weights resnet20-12fca82f.th --data cifar-10-batches-bin --accuracy 2000]

Without files weights and images are random. Thresholds are the 99.9th percentile of each layer's potentials on training images; one round times every
contender once, in turn, and a figure is the median over rounds. No figure is printed unless every count equals the reference's first.
Only `count_reordered` may differ, and the share that does is printed with it; so may the reference from itself, when its input is
laid out channels last: one sum rounded differently flips a count, and the layers after it flip more.
`count_int8` runs weights rounded by `quantise`, checked against the reference on the same weights; `--accuracy` prints what the rounding costs.
The event engine is compared with the reference under immediate firing, all trains passed unchanged: in float32, in float64, and on weights of 16, 12 and
8 bits, whose sums float32 holds; and the reference with itself in another layout and in float64, which says what a flip in float32 means.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import teas
from teas.engine import ENGINES, quantise

CONTENDERS = ("ann", "reference", "count", "count_reordered", "count_int8")
ENGINE = {engine.name: engine for engine in ENGINES}


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: where the shape changes, every second pixel, and zeros for the new channels."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.conv1, self.bn1, self.fire1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
        self.conv2, self.bn2, self.fire2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
        self.stride, self.new = stride, (after - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.stride == 1 else nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.new, self.new))
        return self.fire2(self.bn2(self.conv2(self.fire1(self.bn1(self.conv1(x))))) + shortcut)


class ResNet20(nn.Module):
    """He et al. 2016 (CIFAR): three stages of three blocks, 16, 32 and 64 channels; names as in the public weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.fire = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        self.layer1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1), Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.pool, self.flatten, self.linear = nn.AvgPool2d(8), nn.Flatten(), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.fire(self.bn1(self.conv1(x))))))
        return self.linear(self.flatten(self.pool(x)))


def fold_norms(ann: ResNet20) -> ResNet20:
    """Batch norms into the convolutions before them."""
    for owner in [ann, *[child for child in ann.modules() if isinstance(child, Block)]]:
        for number in ("1", "2") if isinstance(owner, Block) else ("1",):
            setattr(owner, f"conv{number}", fuse_conv_bn_eval(getattr(owner, f"conv{number}"), getattr(owner, f"bn{number}")))
            setattr(owner, f"bn{number}", nn.Identity())
    return ann


@dataclass
class Setting:
    """Where weights and images come from; without files both are random."""

    weights: Path | None
    data: Path | None
    calibration: int = 256

    def images(self, number: int, part: str = "test_batch.bin") -> tuple[Tensor, Tensor]:
        """The first images of a part of CIFAR-10 and their labels; without data, smooth noise: neighbouring pixels are alike."""
        if self.data is None:
            torch.manual_seed(len(part))
            coarse = nn.functional.interpolate(torch.randn(number, 3, 8, 8), size=32, mode="bilinear")
            return coarse + 0.2 * torch.randn(number, 3, 32, 32), torch.zeros(number)
        rows = torch.from_numpy(np.fromfile(self.data / part, np.uint8, count=number * 3073)).view(-1, 3073)
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        return (rows[:, 1:].reshape(-1, 3, 32, 32) / 255 - mean) / std, rows[:, 0]

    @torch.no_grad()
    def build(self, window: int) -> tuple[nn.Module, teas.SpikingNetwork]:
        """An ANN with its norms folded, and the two-phase network with thresholds at the 99.9th percentile of potentials on training images."""
        torch.manual_seed(0)
        ann, (calibration, _) = ResNet20().train(), self.images(self.calibration, "data_batch_1.bin")
        if self.weights is None:
            for _ in range(10):  # running statistics
                ann(calibration[:64])
        else:
            state = torch.load(self.weights, map_location="cpu", weights_only=True)["state_dict"]
            ann.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
        fold_norms(ann.eval())
        largest: dict[str, Tensor] = {}
        for name, child in ann.named_modules():
            if isinstance(child, nn.ReLU):

                def measure(_: nn.Module, potential: tuple[Tensor], __: Tensor, name: str = name) -> None:
                    largest[name] = potential[0].flatten().kthvalue(int(0.999 * potential[0].numel())).values

                child.register_forward_hook(measure)
        ann(calibration)
        for child in ann.modules():
            child._forward_hooks.clear()
        return ann, teas.SpikingNetwork(converted(ann, largest), window, firing="two_phase").eval()


@torch.no_grad()
def converted(ann: ResNet20, largest: dict[str, Tensor]) -> nn.Module:
    """A copy with spiking neurons: a train of T spikes stands for the layer's largest value, and the weights that read it are scaled by that.

    A shortcut has no weights, so a block's sum is counted in the units of its input: its weights, bias and threshold are divided by them.
    """
    module = copy.deepcopy(ann)
    worth = largest["fire"]
    module.fire = neurons(worth)
    for name, block in module.named_modules():
        if isinstance(block, Block):
            hidden, out = largest[f"{name}.fire1"], largest[f"{name}.fire2"]
            block.conv1.weight *= worth
            block.conv2.weight *= hidden / worth
            block.conv2.bias /= worth
            block.fire1, block.fire2 = neurons(hidden), neurons(out / worth)
            worth = out
    module.linear.weight *= worth
    return module


def neurons(threshold: Tensor) -> teas.IF:
    return teas.IF(threshold, reset="subtract", v0=0.5)


def contenders(setting: Setting, window: int, batch: Tensor) -> tuple[dict[str, list[Callable[[], Any]]], dict[str, float]]:
    """What is timed, by name (the fastest of a list counts), and the share of counts that differ from the reference's."""
    ann, network = setting.build(window)
    ann_last = copy.deepcopy(ann).to(memory_format=torch.channels_last)
    last = batch.contiguous(memory_format=torch.channels_last)
    runs: dict[str, list[Callable[[], Any]]] = {"ann": [lambda: ann(batch), lambda: ann_last(last)], "reference": [lambda: network(batch)]}
    flips = {"reference, channels last": flip_rate(network(last), network(batch))}
    flips |= immediate_flips(teas.SpikingNetwork(network.module, window).eval(), batch)
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


def immediate_flips(network: teas.SpikingNetwork, batch: Tensor) -> dict[str, float]:
    """Of the event engine, on the weights as they are and on rounded ones; and of the reference itself, in another layout and in float64."""
    if ENGINE["event"].why_not(network, torch.device("cpu")):
        return {}
    in64 = teas.SpikingNetwork(copy.deepcopy(network.module).double(), network.windows).eval()
    wanted, exact = network(batch), in64(batch.double())
    found = {
        "reference, immediate, channels last": flip_rate(network(batch.contiguous(memory_format=torch.channels_last)), wanted),
        "reference, immediate, from that in float64": flip_rate(exact, wanted),
        "event in float64, from the reference in float64": flip_rate(ENGINE["event"].prepare(in64, "counts")(batch.double()), exact),
        "event in float32": flip_rate(ENGINE["event"].prepare(network, "counts")(batch), wanted),
    }
    for bits in (16, 12, 8):
        rounded = quantise(network, bits)
        found[f"event on {bits}-bit weights"] = flip_rate(ENGINE["event"].prepare(rounded, "counts")(batch), rounded(batch))
    return found


def flip_rate(found: teas.Output, wanted: teas.Output) -> float:
    wrong = sum((found.record[layer].count != record.count).sum().item() for layer, record in wanted.record.items())
    return wrong / sum(record.count.numel() for record in wanted.record.values())


@torch.no_grad()
def measure(setting: Setting, window: int, batch: int, rounds: int) -> dict[str, Any]:
    """Median images/s, spread, and time relative to the ANN's in the same rounds."""
    runs, flips = contenders(setting, window, setting.images(batch)[0])
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


def memory(setting: Setting, name: str, window: int, batch: int) -> None:
    """Print by how many MiB running one contender raises the peak of this process (a process of its own: see `peaks`)."""
    ann, network = setting.build(window)
    inputs, _ = setting.images(batch)
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


@torch.no_grad()
def accuracy(setting: Setting, window: int, number: int) -> dict[str, float]:
    """Per cent right of the ANN, of the network, and of the network with weights in 16, 12 and 8 bits: the cost of `quantise`."""
    ann, network = setting.build(window)
    inputs, labels = setting.images(number)
    runs = {
        "ann": ann,
        "count": ENGINE["count"].prepare(network, "nothing"),
        **{f"count on {bits}-bit weights": ENGINE["count"].prepare(quantise(network, bits), "nothing") for bits in (16, 12, 8)},
    }

    def right(run: Callable[[Tensor], Any]) -> float:
        answers = [run(part) for part in inputs.split(250)]
        logits = torch.cat([answer if isinstance(answer, Tensor) else answer.logits for answer in answers])
        return 100 * (logits.argmax(1) == labels).float().mean().item()

    return {name: right(run) for name, run in runs.items()}


def show(results: dict[int, dict[str, Any]], grown: dict[str, dict[int, float]]) -> None:
    print(f"{'T':>5} {'engine':<11} {'images/s':>9} {'(spread)':>15} {'time/ANN':>9}")
    for window, result in results.items():
        for name, row in result["rows"].items():
            spread = f"({row['slowest']:.0f}-{row['fastest']:.0f})"
            print(f"{window:>5} {name:<11} {row['images_per_second']:>9.0f} {spread:>15} {row['time_over_ann']:>9.2f}")
    for window, result in results.items():
        print(f"share of counts unlike the reference's at T = {window}: " + ", ".join(f"{name} {share:.2g}" for name, share in result["flips"].items()))
        if "accuracy" in result:
            print(f"per cent right at T = {window}: " + ", ".join(f"{name} {share:.2f}" for name, share in result["accuracy"].items()))
    for name, by_window in grown.items():
        print(f"peak memory of {name}: " + ", ".join(f"{added:.0f} MiB at T = {window}" for window, added in by_window.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description="Engines side by side on a ResNet-20, in one process.")
    parser.add_argument("--windows", type=int, nargs="+", default=[4, 8, 45, 255, 256])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--weights", type=Path, help="public weights, resnet20-12fca82f.th of akamaster/pytorch_resnet_cifar10; random without")
    parser.add_argument("--data", type=Path, help="folder cifar-10-batches-bin; smooth noise without")
    parser.add_argument("--accuracy", type=int, default=0, help="test images to count right answers on, at every window")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory, measured in a process per contender")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory-of", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    setting = Setting(options.weights, options.data)
    torch.set_num_threads(options.threads)
    if options.memory_of:
        memory(Setting(None, None, calibration=32), options.memory_of, options.windows[0], options.batch)
        return
    grown = {} if options.no_memory else peaks((8, 255), 16 * options.batch)  # first: a child's peak counts from its parent's size
    results = {window: measure(setting, window, options.batch, options.rounds) for window in options.windows}
    if options.accuracy:
        for window, result in results.items():
            result["accuracy"] = accuracy(setting, window, options.accuracy)
    if options.json:
        print(json.dumps({"results": results, "peak_memory_mib": grown, "threads": options.threads, "batch": options.batch}, indent=2))
    else:
        show(results, grown)


if __name__ == "__main__":
    main()
