"""SpikingJelly: its networks as ours, and ours at one window as its own."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from teas.errors import TeasError
from teas.exchange.imported import Neurons, Windows, first_type, import_network, refuse_foreign, spiking, without_state
from teas.exchange.optional import library
from teas.spiking.network import SpikingNetwork
from teas.spiking.neuron import IF

HANDLED = "IFNode, LIFNode, ParametricLIFNode, the layers of torch with a step mode, Dropout, VotingLayer and the containers of layers"


def from_spikingjelly(net: nn.Module, windows: Windows = None, **semantics: str) -> SpikingNetwork:
    """A SpikingJelly network as a `SpikingNetwork`: at one window for all layers it sends the same spikes.

    net: single-step or multi-step; an input `[batch, *shape]` that it repeats over time, or that is repeated for it, is given once. A loop over
    steps in its forward pass and a mean over time at its end are recognised. Weights are copied; time constants become fixed numbers.
    windows: steps; where the forward pass repeats its input or loops, that number by default.
    `V <- V + (X - (V - V_reset))/τ` is run as `U <- (1 - 1/τ)·U + X` with `U = τ·(V - V_reset)` and the threshold `τ·(θ - V_reset)`.

    Raises `TeasError` for neurons and layers that have no equal here, and for a forward pass that can't be reduced to one step.
    """
    library("spikingjelly", "spikingjelly.activation_based.neuron")
    multi = any(getattr(module, "step_mode", "s") == "m" for module in net.modules())
    dtype = next((p.dtype for p in net.parameters()), torch.float32)
    return import_network(net, lambda module, path: _replaced(module, path, dtype), windows, multi, **semantics)


def _replaced(module: Any, path: str, dtype: torch.dtype) -> nn.Module | None:
    from spikingjelly.activation_based import layer, neuron

    if type(module) in (neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode):
        return Neurons(_neurons(module, dtype))
    if type(module) in (layer.SeqToANNContainer, layer.MultiStepContainer, layer.StepModeContainer):
        return without_state(module, nn.Sequential)
    if type(module) in (layer.Dropout, layer.Dropout2d):
        return (nn.Dropout if type(module) is layer.Dropout else nn.Dropout2d)(module.p)
    if type(module) is layer.VotingLayer:
        return nn.Sequential(nn.Unflatten(1, (1, -1)), nn.AvgPool1d(module.voting_size), nn.Flatten())
    if first_type(module, "spikingjelly"):
        base = type(module).__bases__[0]
        if base.__module__.startswith("torch.nn") and base is not nn.Module:
            return without_state(module, base)
    if isinstance(module, neuron.BaseNode):
        raise TeasError(f"{path} is a {type(module).__name__}, which has no equal here; handled are {HANDLED}")
    refuse_foreign(module, path, "spikingjelly", HANDLED)
    return None


def _neurons(node: Any, dtype: torch.dtype) -> IF:
    rest = node.v_reset if node.v_reset is not None else 0.0
    leak, gain = 1.0, 1.0
    if hasattr(node, "w") or hasattr(node, "tau"):
        inverse = float(node.w.detach().double().sigmoid()) if hasattr(node, "w") else 1 / float(node.tau)
        leak, gain = 1 - inverse, inverse if node.decay_input else 1.0
    reset = "subtract" if node.v_reset is None else "zero"
    return spiking(node.v_threshold - rest, leak=leak, gain=gain, dtype=dtype, reset=reset)


def to_spikingjelly(network: SpikingNetwork) -> nn.Module:
    """A single-step module of SpikingJelly neurons that sends the same spikes, on copies of the weights; run it once a step on the same input.

    Raises `TeasError` where SpikingJelly can't say it: unequal windows, two-phase firing, first-spike codes, thresholds per channel, an
    initial potential, or what a neuron takes away at a spike. All reasons are listed.
    """
    library("spikingjelly", "spikingjelly.activation_based.neuron")
    if faults := _unsayable(network):
        raise TeasError(f"SpikingJelly can't run this network: {'; '.join(faults)}")
    module = copy.deepcopy(network.module)
    for name in network.spiking_layers:
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, _node(network.neurons(name)))
    return module


def _node(neurons: IF) -> Any:
    from spikingjelly.activation_based import neuron, surrogate

    options = {
        "v_threshold": float(neurons.threshold), "v_reset": None if neurons.reset == "subtract" else 0.0, "surrogate_function": surrogate.ATan(),
    }  # fmt: skip
    if neurons.leak == 1:
        return neuron.IFNode(**options)
    return neuron.LIFNode(tau=1 / (1 - neurons.leak), decay_input=False, **options)


def _unsayable(network: SpikingNetwork) -> list[str]:
    semantics, faults = network.semantics, []
    if len(set(network.windows.values())) > 1:
        faults.append(f"its layers run unequal windows ({dict(network.windows)}); with_windows(T) gives all of them one")
    if semantics.firing != "immediate" or semantics.code != "rate" or semantics.encoding not in ("direct", "train"):
        faults.append(f"it has firing {semantics.firing!r}, code {semantics.code!r} and encoding {semantics.encoding!r}, not 'immediate', 'rate', 'direct'")
    for name in network.spiking_layers:
        neurons = network.neurons(name)
        if neurons.threshold.dim():
            faults.append(f"layer {name!r} has one threshold per channel")
        if neurons.v0 or neurons.v_reset or neurons.reset_by != 1:
            faults.append(f"layer {name!r} has v0 {neurons.v0:g}, v_reset {neurons.v_reset:g}, reset_by {neurons.reset_by:g}, not 0, 0, 1")
        if "#" in name:
            faults.append(f"layer {name!r} uses its neurons a second time")
    return faults
