"""Accuracy and latency of a network, reported so that no single favourable number stands alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from teas.errors import TeasError
from teas.spiking.network import SpikingNetwork
from teas.study.energy import REGIMES, Operations, ann_energy, count_operations, total


@dataclass(frozen=True)
class Latency:
    """Steps of one inference. mean: over the spiking layers (the paper's). weighted: by MACs. max: a pipeline's interval between results.
    sum: along the longest path, because a count-based transform waits for the whole source train."""

    mean: float
    weighted: float
    max: int
    sum: int


@dataclass(frozen=True)
class Metrics:
    """A network on a data set: accuracy in percent, latency in steps, spikes per image, energy in nJ per image (without memory), by regime."""

    accuracy: float
    samples: int
    windows: dict[str, int]
    latency: Latency
    spikes: float
    energy: dict[str, float]
    ann_energy: dict[str, float]
    activity: dict[str, float]


def latency(network: SpikingNetwork, operations: Mapping[str, Operations]) -> Latency:
    """Latency of a network at its windows."""
    windows = network.windows
    finished: dict[str, int] = {}
    for layer in network.layers:
        finished[layer.name] = max(finished.get(name, 0) for name in layer.sources) + windows.get(layer.name, 0)
    work = {name: operations[name].dense for name in windows}
    weighted = sum(work[name] * windows[name] for name in windows) / max(1, sum(work.values()))
    return Latency(windows.mean, weighted, windows.max, max(finished.values()))


@torch.no_grad()
def evaluate(network: SpikingNetwork, batches: Iterable[tuple[Tensor, Tensor]], seed: int = 0) -> Metrics:
    """Accuracy over all batches, operations over the first; a stochastic input encoding is seeded. Raises `TeasError` for no data."""
    training = network.training
    network.eval()
    device = next(network.parameters()).device
    right = samples = 0
    spikes = dict.fromkeys(network.spiking_layers, 0.0)
    neurons = dict.fromkeys(network.spiking_layers, 0)
    operations: dict[str, Operations] | None = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for inputs, labels in batches:
            inputs, labels = inputs.to(device), labels.to(device)
            operations = operations or count_operations(network, inputs)
            output = network(inputs)
            right += int((output.logits.argmax(1) == labels).sum())
            samples += len(labels)
            for layer, record in output.record.items():
                spikes[layer] += float(record.count.sum(dtype=torch.float64))
                neurons[layer] = record.count[0].numel()
    network.train(training)
    if operations is None:
        raise TeasError("evaluation needs at least one sample; the data is empty")
    whole = total(operations)
    return Metrics(
        accuracy=100 * right / samples,
        samples=samples,
        windows=dict(network.windows),
        latency=latency(network, operations),
        spikes=sum(spikes.values()) / samples,
        energy={regime: whole.energy(regime) / 1000 for regime in REGIMES},
        ann_energy={regime: ann_energy(operations, regime) / 1000 for regime in REGIMES},
        activity={layer: spikes[layer] / (samples * neurons[layer] * network.windows[layer]) for layer in spikes},
    )


def spread(values: Iterable[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    values = list(values)
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
