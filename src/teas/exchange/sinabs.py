"""Sinabs: its networks as ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from teas.errors import TeasError
from teas.exchange.imported import Neurons, Windows, import_network, refuse_foreign, spiking
from teas.exchange.optional import library
from teas.spiking.network import SpikingNetwork
from teas.spiking.neuron import IF

HANDLED = "IAF, IAFSqueeze, LIF and LIFSqueeze with spike_fn=SingleSpike, without synaptic current and lower bound of the potential"


def from_sinabs(net: nn.Module, windows: Windows, **semantics: str) -> SpikingNetwork:
    """A Sinabs network of squeezed layers as a `SpikingNetwork`: at one window for all layers it sends the same spikes. Weights are copied.

    `V <- α·V + (1 - α)·X` (norm_input) is run with the threshold `θ/(1 - α)`, `α = exp(-1/τ)`.
    Raises `TeasError` for several spikes in one step (Sinabs's default, `MultiSpike`), a lower bound of the potential, synaptic currents, and
    layers that have no equal here.
    """
    library("sinabs", "sinabs.layers")
    net = getattr(net, "spiking_model", net)
    dtype = next((p.dtype for p in net.parameters()), torch.float32)
    return import_network(net, lambda module, path: _replaced(module, path, dtype), windows, time_axis=False, **semantics)


def _replaced(module: Any, path: str, dtype: torch.dtype) -> nn.Module | None:
    from sinabs import layers

    if type(module) in (layers.IAF, layers.IAFSqueeze, layers.LIF, layers.LIFSqueeze):
        return Neurons(_neurons(module, path, dtype))
    refuse_foreign(module, path, "sinabs", HANDLED)
    return None


def _neurons(layer: Any, path: str, dtype: torch.dtype) -> IF:
    from sinabs import activation

    reset = layer.reset_fn
    subtracts = isinstance(reset, activation.MembraneSubtract)
    faults = [
        (layer.spike_fn is not activation.SingleSpike, f"spike_fn {getattr(layer.spike_fn, '__name__', layer.spike_fn)}: a neuron sends one spike a step here"),
        (layer.min_v_mem is not None, "min_v_mem: potentials have no lower bound here"),
        (layer.tau_syn_calculated is not None, "tau_syn: there are no synaptic currents here"),
        (not subtracts and not (isinstance(reset, activation.MembraneReset) and reset.reset_value == 0), f"reset_fn {reset}"),
        (layer.spike_threshold.numel() > 1, "one threshold per neuron"),
    ]
    if found := [text for fault, text in faults if fault]:
        raise TeasError(f"{path} is a Sinabs {type(layer).__name__} with {'; '.join(found)}. Handled are {HANDLED}")
    leak = float(layer.alpha_mem_calculated.detach().double())
    theta = float(layer.spike_threshold)
    taken = theta if not subtracts or reset.subtract_value is None else float(reset.subtract_value)
    gain = 1 - leak if layer.norm_input and leak < 1 else 1.0
    return spiking(theta, leak=leak, gain=gain, dtype=dtype, reset="subtract" if subtracts else "zero", reset_by=taken / theta)
