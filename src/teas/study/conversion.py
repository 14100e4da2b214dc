"""Conversion without retraining: allocators compared at equal mean windows, on the same images, with a paired test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from teas.adapt import allocation
from teas.adapt.activity import measure_activity
from teas.adapt.vulnerability import measure_damage
from teas.ann.convert import convert
from teas.ann.resnet import CifarResNet
from teas.engine import choose_engine
from teas.exchange.weights import load_weights
from teas.spiking.network import Output, SpikingNetwork
from teas.spiking.time_windows import TimeWindows
from teas.study import data as datasets
from teas.study.config import ConversionConfig, Experiment
from teas.study.energy import count_operations, total
from teas.study.metrics import latency

BATCH = 250
PROBES = (2, 4, 8, 16, 32)
FULL = 64  # window of the undisturbed layers while one is shortened
LIMIT = 255  # counts up to 255 fit a byte


def _fast(network: SpikingNetwork) -> Callable[[Tensor], Output]:
    """The network on the fastest engine that counts exactly as it does."""
    device = next(network.parameters()).device
    return choose_engine(network, device).prepare(network, keep="nothing")


@torch.no_grad()
def _correct(model: Callable[[Tensor], Tensor | Output], images: datasets.Images) -> Tensor:
    """Whether each image is classified right."""
    found = []
    for inputs, labels in datasets.loader(images, BATCH):
        output = model(inputs)
        found.append((output if isinstance(output, Tensor) else output.logits).argmax(1) == labels)
    return torch.cat(found)


def paired_p_value(ours: Tensor, theirs: Tensor) -> float:
    """McNemar's exact test: how likely a difference this large is, were both classifiers equally good on these images."""
    gained, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def convert_and_compare(
    experiment: Experiment, config: ConversionConfig, data: datasets.Data, data_folder: Path | None, device: torch.device, say: Callable[[str], None]
) -> dict[str, Any]:
    """Convert the experiment's ANN, allocate windows in every way asked for, and measure each on the test set; the content of metrics.json.

    Thresholds, activity and damage come from training images; test labels are used for the final figures alone.
    """
    ann = CifarResNet(data.classes)
    load_weights(ann, (data_folder or Path()) / config.weights)
    ann.to(device).eval()
    ann_correct = _correct(ann, data.test)
    say(f"ANN: {100 * ann_correct.float().mean():.2f} % of {len(ann_correct)} test images")
    order = datasets.loader(data.train, 100, shuffle_seed=experiment.seeds[0])
    batches = [inputs.to(device) for (inputs, _), _ in zip(order, range((config.calibration + config.probe) // 100), strict=False)]
    calibration, probe = batches[: config.calibration // 100], batches[config.calibration // 100 :]
    conversion = convert(ann, calibration, threshold=config.threshold, per_channel=config.per_channel, v0=config.v0)
    semantics = {"firing": config.firing, "layout": config.layout, "transform": config.transform}

    def make(windows: TimeWindows) -> SpikingNetwork:
        return conversion.at(windows, **semantics)

    say("measuring activity and damage per layer on training images")
    labelled = [(inputs, inputs) for inputs in probe]
    activity = {name: found.activity for name, found in measure_activity(make(TimeWindows.uniform(conversion.layers, FULL)), labelled).items()}
    wanted = "damage" in config.allocators
    damage = measure_damage(lambda w: _fast(make(w)), TimeWindows.uniform(conversion.layers, FULL), PROBES, probe) if wanted else {}
    rows = []
    for mean in config.means:
        base: Tensor | None = None
        for allocator in sorted(config.allocators, key=lambda name: name != "uniform"):
            windows = _allocated(allocator, mean, activity, damage, experiment.seeds[0])
            network = make(windows)
            correct = _correct(_fast(network), data.test)
            base = correct if allocator == "uniform" else base
            operations = count_operations(network, batches[0])
            row = {
                "allocator": allocator, "target": mean, "accuracy": 100 * float(correct.float().mean()), "windows": dict(windows),
                "p_value": None if base is None or allocator == "uniform" else paired_p_value(correct, base),
                "synaptic_operations": total(operations).synaptic, **asdict(latency(network, operations)),
            }  # fmt: skip
            rows.append(row)
            say(f"mean {row['mean']:5.2f}  {allocator:13s}  {row['accuracy']:.2f} %")
    met = all(any(r["allocator"] == "damage" and r["mean"] <= mean and r["accuracy"] >= least for r in rows) for mean, least in experiment.expect.points)
    return {
        "name": experiment.name, "kind": "conversion", "expectation_met": met, "ann_accuracy": 100 * float(ann_correct.float().mean()),
        "samples": len(ann_correct), "semantics": semantics, "activity": activity, "damage": damage, "rows": rows,
    }  # fmt: skip


def _allocated(allocator: str, mean: float, activity: dict[str, float], damage: dict[str, dict[int, float]], seed: int) -> TimeWindows:
    limits = dict.fromkeys(activity, LIMIT)
    if allocator == "uniform":
        return allocation.allocate(dict.fromkeys(activity, 1.0), allocation.budget_for(mean, len(activity)), limits)
    if allocator == "damage":
        return allocation.by_damage(damage, mean, LIMIT)
    exponent = 0.5 if allocator == "activity_root" else 1.0
    windows = allocation.by_activity(activity, limits, mean, exponent)
    return allocation.shuffled(windows, seed) if allocator == "shuffled" else windows
