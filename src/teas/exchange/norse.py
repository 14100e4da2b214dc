"""Norse: its networks as ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from teas.errors import TeasError
from teas.exchange.imported import Neurons, Windows, import_network, refuse_foreign, spiking, without_state
from teas.exchange.optional import library
from teas.spiking.network import SpikingNetwork
from teas.spiking.neuron import IF

HANDLED = "IAFCell, LIFBoxCell, IAF, LIFBox in a SequentialState, and Lift of layers"


def from_norse(net: nn.Module, windows: Windows, **semantics: str) -> SpikingNetwork:
    """A Norse network as a `SpikingNetwork`: at one window for all layers it sends the same spikes. Weights are copied.

    `V <- V + dt/τ·(V_leak - V + X)` is run as `U <- (1 - dt/τ)·U + X` with `U = (V - V_leak)·τ/dt`; `V > θ` fires and a tie does not.
    Raises `TeasError` for neurons with a synaptic current (`LIFCell`: a spike acts one step later and over many steps), recurrent ones, and
    layers that have no equal here.
    """
    library("norse", "norse.torch")
    dtype = next((p.dtype for p in net.parameters()), torch.float32)
    return import_network(net, lambda module, path: _replaced(module, path, dtype), windows, time_axis=False, **semantics)


def _replaced(module: Any, path: str, dtype: torch.dtype) -> nn.Module | None:
    import norse.torch as norse
    from norse.torch.module.iaf import IAF, IAFCell

    boxes = tuple(getattr(norse, name) for name in ("LIFBoxCell", "LIFBox") if hasattr(norse, name))
    if type(module) in (IAF, IAFCell):
        rest = float(module.p.v_reset)
        return Neurons(spiking(float(module.p.v_th) - rest, strict=True, dtype=dtype))
    if type(module) in boxes:
        return Neurons(_leaky(module, path, dtype))
    if type(module) is norse.SequentialState:
        return without_state(module, nn.Sequential)
    if type(module) is norse.Lift:
        return nn.Sequential(module.lifted_module)
    refuse_foreign(module, path, "norse", HANDLED)
    return None


def _leaky(cell: Any, path: str, dtype: torch.dtype) -> IF:
    p, gain = cell.p, float(cell.dt) * float(cell.p.tau_mem_inv)
    name = getattr(p.reset_method, "__name__", str(p.reset_method))
    if name not in ("reset_value", "reset_subtract") or not 0 < gain < 1:
        raise TeasError(f"{path} has reset method {name} and dt/tau {gain:g}; handled are reset_value and reset_subtract with dt/tau between 0 and 1")
    theta, rest = float(p.v_th) - float(p.v_leak), float(p.v_leak)
    options: dict[str, Any] = {"reset": "zero", "v_reset": (float(p.v_reset) - rest) / gain}
    if name == "reset_subtract":
        options = {"reset": "subtract", "reset_by": float(p.v_th) / theta}
    return spiking(theta, leak=1 - gain, gain=gain, strict=True, dtype=dtype, **options)
