"""Spiking activity per layer (Eq. 2): how busy each layer is on data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from teas.errors import TeasError
from teas.spiking.network import SpikingNetwork


@dataclass(frozen=True)
class LayerActivity:
    """What a layer did over a data set.

    activity: `Act(l)`, mean over samples and neurons of `count / T_l`, in [0, 1]. spikes: per sample, summed over the layer.
    silent, saturated: share of neurons and samples with no spike, and with one at every step. neurons: size of the layer.
    """

    activity: float
    spikes: float
    silent: float
    saturated: float
    neurons: int


@torch.no_grad()
def measure_activity(network: SpikingNetwork, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, LayerActivity]:
    """Activity of every spiking layer over batches of `(inputs, labels)`, in evaluation mode; raises `TeasError` for no data."""
    training = network.training
    network.eval()
    totals = {layer: torch.zeros(3, dtype=torch.float64) for layer in network.spiking_layers}
    neurons: dict[str, int] = {}
    samples = 0
    for inputs, _ in batches:
        samples += len(inputs)
        for layer, record in network(inputs).record.items():
            count = record.count
            neurons[layer] = count[0].numel()
            # Sums of whole numbers in float64 are exact, whatever the batch size.
            totals[layer] += torch.stack([count.sum(dtype=torch.float64), (count == 0).sum(), (count == record.window).sum()]).cpu()
    network.train(training)
    if samples == 0:
        raise TeasError("measuring activity needs at least one sample; the data is empty")
    result = {}
    for layer, (spikes, silent, saturated) in totals.items():
        trains = samples * neurons[layer]
        result[layer] = LayerActivity(
            activity=float(spikes) / (trains * network.windows[layer]),
            spikes=float(spikes) / samples,
            silent=float(silent) / trains,
            saturated=float(saturated) / trains,
            neurons=neurons[layer],
        )
    return result
