"""Event recordings (Tonic) as spike trains of the first layer's window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from teas.errors import TeasError
from teas.exchange.optional import library
from teas.spiking.network import SpikingNetwork
from teas.spiking.trace import INPUT


def bin_events(network: SpikingNetwork, sensor_size: tuple[int, int, int]) -> Callable[[Any], Tensor]:
    """A transform for a Tonic data set: a recording becomes a train `[time, polarity, height, width]`, as long as the first layer's window.

    sensor_size: `(width, height, polarities)`, as Tonic's data sets say. A pixel spikes in a step where it had at least one event; steps divide
    the recording evenly. The network needs `encoding="train"`. Make the transform again after changing the windows.

    Raises `TeasError` for a network that does not read trains, or whose layers at the input have different windows.
    """
    transforms = library("tonic", "tonic.transforms")
    if network.semantics.encoding != "train":
        raise TeasError(f"the network has encoding {network.semantics.encoding!r}; build it with encoding='train' to read recorded events")
    first = {layer.name: network.windows[layer.name] for layer in network.layers if INPUT in layer.sources}
    if len(set(first.values())) > 1:
        raise TeasError(f"the layers that read the input have different windows ({first}); a recording is binned to one of them: give them the same")
    frames = transforms.ToFrame(sensor_size=sensor_size, n_time_bins=next(iter(first.values())))

    def binned(events: Any) -> Tensor:
        if len(events) == 0:
            raise TeasError("the recording has no events; leave it out of the data set")
        return (torch.from_numpy(frames(events)) > 0).float()

    return binned
