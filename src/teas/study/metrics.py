"""Accuracy and latency of a network, reported so that no single favourable number stands alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from teas.engine import choose_engine
from teas.errors import TeasError
from teas.spiking.network import SpikingNetwork
from teas.study.energy import Operations, costs, count_operations


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
    """A network on a data set: accuracy in percent, latency in steps, spikes per image, energy in nJ per image by regime (see `costs`)."""

    accuracy: float
    samples: int
    windows: dict[str, int]
    latency: Latency
    spikes: float
    activity: dict[str, float]
    energy: dict[str, float]
    memory: dict[str, float]
    ann_energy: dict[str, float]
    ann_memory: dict[str, float]
    quantised_ann_energy: dict[str, float]


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
def evaluate(network: SpikingNetwork, batches: Iterable[tuple[Tensor, Tensor]], seed: int = 0, accelerator: Accelerator | None = None) -> Metrics:
    """Accuracy over all batches, operations over the first; a stochastic input encoding is seeded. Raises `TeasError` for no data.

    accelerator: of several processes, each runs its share of every batch, and all return the same.
    """
    training = network.training
    network.eval()
    device = next(network.parameters()).device
    index, processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    totals = torch.zeros(2 + len(network.spiking_layers), dtype=torch.float64, device=device)  # right answers, samples, spikes per layer
    neurons = dict.fromkeys(network.spiking_layers, 0)
    operations: dict[str, Operations] | None = None
    run = choose_engine(network, device).prepare(network, keep="counts")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1_000_003 * index)
        for inputs, labels in batches:
            inputs, labels = inputs.to(device), labels.to(device)
            operations = operations or count_operations(network, inputs)
            inputs, labels = inputs[index::processes], labels[index::processes]
            output = run(inputs)
            sent = [output.record[layer].sent for layer in neurons]
            right = (output.logits.argmax(1) == labels).sum(dtype=torch.float64)
            totals += torch.stack([right, torch.full_like(right, len(labels)), *(spikes.sum(dtype=torch.float64) for spikes in sent)])
            neurons = {layer: spikes[0].numel() if len(spikes) else neurons[layer] for layer, spikes in zip(neurons, sent, strict=True)}
    network.train(training)
    if operations is None:
        raise TeasError("evaluation needs at least one sample; the data is empty")
    right, samples, *found = (accelerator.reduce(totals, "sum") if accelerator else totals).tolist()
    spikes = dict(zip(network.spiking_layers, found, strict=True))
    return Metrics(
        accuracy=100 * right / samples,
        samples=int(samples),
        windows=dict(network.windows),
        latency=latency(network, operations),
        spikes=sum(spikes.values()) / samples,
        activity={layer: spikes[layer] / (samples * neurons[layer] * network.windows[layer]) for layer in spikes},
        **costs(network, operations),
    )


def spread(values: Iterable[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    values = list(values)
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
