"""Spiking activity per layer (Eq. 2): how busy each layer is on data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from teas.errors import TeasError
from teas.spiking.checks import inputs_of
from teas.spiking.coding import spikes_of
from teas.spiking.network import SpikingNetwork


@dataclass(frozen=True)
class LayerActivity:
    """What a layer did over a data set.

    activity: `Act(l)`, mean over samples and neurons of spikes a step (Eq. 2), in [0, 1]. spikes: per sample, summed over the layer.
    silent, saturated: share of neurons and samples with no spike, and with one at every step. neurons: size of the layer.
    histogram: share of neurons and samples with each count, from 0 to `T_l` (radix code: `2^T_l - 1`).
    """

    activity: float
    spikes: float
    silent: float
    saturated: float
    neurons: int
    histogram: tuple[float, ...]


@torch.no_grad()
def measure_activity(network: SpikingNetwork, batches: Iterable[Tensor | Sequence[Tensor]]) -> dict[str, LayerActivity]:
    """Activity of every spiking layer over batches of inputs, in evaluation mode; raises `TeasError` for no data.

    batches: inputs `[batch, *shape]`, or tuples that begin with them.
    """
    training = network.training
    network.eval()
    histograms = {layer: torch.zeros(network.levels[layer] + 1, dtype=torch.int64) for layer in network.spiking_layers}
    neurons: dict[str, int] = {}
    samples = 0
    for inputs in inputs_of(batches):
        samples += len(inputs)
        for layer, record in network(inputs).record.items():
            neurons[layer] = record.count[0].numel()
            histograms[layer] += torch.bincount(record.count.flatten().long(), minlength=network.levels[layer] + 1).cpu()
    network.train(training)
    if samples == 0:
        raise TeasError("measuring activity needs at least one sample; the data is empty")
    result = {}
    for layer, histogram in histograms.items():
        trains, window = samples * neurons[layer], network.windows[layer]
        spikes = int((histogram * spikes_of(torch.arange(len(histogram)), window, network.semantics.code)).sum())
        result[layer] = LayerActivity(
            activity=spikes / (trains * window),
            spikes=spikes / samples,
            silent=int(histogram[0]) / trains,
            saturated=int(histogram[-1]) / trains,
            neurons=neurons[layer],
            histogram=tuple((histogram.double() / trains).tolist()),
        )
    return result
