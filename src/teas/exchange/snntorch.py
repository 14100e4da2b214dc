"""snnTorch: its networks as ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from teas.errors import TeasError
from teas.exchange.imported import Neurons, Windows, import_network, refuse_foreign, spiking
from teas.exchange.optional import library
from teas.spiking.network import SpikingNetwork
from teas.spiking.neuron import IF

HANDLED = "Leaky with reset by subtraction or to zero"
_STATES = ("reset_mem", "init_leaky")


def from_snntorch(net: nn.Module, windows: Windows = None, **semantics: str) -> SpikingNetwork:
    """An snnTorch network as a `SpikingNetwork`: at one window for all layers it sends the same spikes.

    net: the module of one step (`init_hidden`, or membrane potentials as optional inputs), or one whose forward pass loops over steps and
    returns the recorded spikes first. Weights are copied; leaks `β` become fixed numbers.
    windows: steps; where the forward pass loops, its number of steps by default.
    Its order is kept: `U(t) = β·U(t-1) + X(t) - θ·S(t-1)` subtracts after the leak, which is `reset_by = 1/β` here; `U > θ` fires and a tie does
    not, which is the next larger threshold here.

    Raises `TeasError` for neurons that have no equal here, and for a forward pass that can't be reduced to one step.
    """
    library("snntorch")
    dtype = next((p.dtype for p in net.parameters()), torch.float32)
    return import_network(net, lambda module, path: _replaced(module, path, dtype), windows, time_axis=False, **semantics)


def _replaced(module: Any, path: str, dtype: torch.dtype) -> nn.Module | None:
    import snntorch

    if type(module) is snntorch.Leaky:
        return Neurons(_neurons(module, path, dtype), states=_STATES)
    if isinstance(module, snntorch.SpikingNeuron):
        raise TeasError(f"{path} is a {type(module).__name__}, which has no equal here; handled are {HANDLED}")
    refuse_foreign(module, path, "snntorch", HANDLED)
    return None


def _neurons(leaky: Any, path: str, dtype: torch.dtype) -> IF:
    reset = leaky.reset_mechanism
    faults = [
        (leaky.inhibition, "inhibition"),
        (leaky.state_quant, "state_quant"),
        (bool((leaky.graded_spikes_factor != 1).any()), "graded spikes"),
        (reset == "none", "no reset"),
        (reset == "subtract" and not leaky.reset_delay, "reset_delay=False with reset by subtraction, whose second reset has no equal"),
        (leaky.beta.numel() > 1 and bool((leaky.beta != leaky.beta.flatten()[0]).any()), "one beta per neuron"),
    ]
    if found := [text for fault, text in faults if fault]:
        raise TeasError(f"{path} is a Leaky with {', '.join(found)}, which has no equal here; handled are {HANDLED}")
    leak = float(leaky.beta.detach().double().flatten()[0].clamp(0, 1))
    if leak == 0:
        raise TeasError(f"{path} has beta 0: a neuron without memory; give it a leak above 0")
    learn = isinstance(leaky.threshold, nn.Parameter) and leaky.threshold.requires_grad
    options = {"reset": reset, "reset_by": 1 / leak if reset == "subtract" else 1.0, "learn": learn}
    return spiking(leaky.threshold, leak=leak, strict=True, dtype=dtype, **options)
