"""From counts to binary digits: a two-phase network of the rate code, run in fewer steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from teas.errors import TeasError
from teas.spiking.network import SpikingNetwork
from teas.spiking.time_windows import TimeWindows


def to_radix(network: SpikingNetwork, windows: TimeWindows | Mapping[str, int] | int | None = None) -> SpikingNetwork:
    """The same network, sharing its weights, with its counts in binary digits: `ceil(log2(T + 1))` steps for a window of `T`, the fewest that say its levels.

    Where `T` is 1, 3, 7, 15, ... it answers as before; elsewhere its levels are finer (`2^T' - 1 > T`), as at a longer window.
    windows: other ones, in steps of the radix code.
    Raises `TeasError` for a network that does not count spikes under two-phase firing, or reads anything but an analog input.
    """
    semantics = network.semantics
    if semantics.code != "rate" or semantics.firing != "two_phase":
        raise TeasError(f"binary digits take the place of counts under two-phase firing; this network has code {semantics.code!r}, firing {semantics.firing!r}")
    steps = {layer: window.bit_length() for layer, window in network.windows.items()} if windows is None else windows
    return SpikingNetwork(network.module, steps, **{**asdict(semantics), "code": "radix"}).train(network.training)
