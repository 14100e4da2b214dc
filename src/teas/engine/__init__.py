"""What executes a spiking network: the same spikes, faster."""

from __future__ import annotations

import torch

from teas.engine.contract import Engine, choose
from teas.engine.count import CountEngine
from teas.engine.event import EventEngine
from teas.engine.int8 import quantise
from teas.engine.reference import ReferenceEngine
from teas.spiking.network import SpikingNetwork

__all__ = ["ENGINES", "CountEngine", "Engine", "EventEngine", "ReferenceEngine", "choose", "choose_engine", "quantise"]
ENGINES: tuple[Engine, ...] = (
    CountEngine("count_int8", int8=True),
    CountEngine(),
    CountEngine("count_reordered", reorder=True),
    EventEngine(),
    ReferenceEngine(),
)  # in the order of `auto`


def choose_engine(network: SpikingNetwork, device: torch.device | str = "cpu", name: str = "auto") -> Engine:
    """The engine of that name, or the first of `ENGINES` that can run the network on the device: `choose` over all engines."""
    return choose(network, device, name, ENGINES)
