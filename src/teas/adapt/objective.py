"""The training objective: cross entropy on firing rates or first spike times, plus the activity regulariser (Eqs. 6-8)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teas.spiking.network import SpikingNetwork

REGULARISERS = ("none", "sound", "literal")
LOSSES = ("rate", "per_step")
_EPSILON = 1e-6


def parameters_per_layer(network: SpikingNetwork) -> dict[str, int]:
    """`#Para(l)`: parameters of the synapses that feed each spiking layer, and of its neurons."""
    counts = {}
    for layer in network.layers:
        if layer.neurons is None:
            continue
        owned: dict[int, Tensor] = {}
        for operation in layer.synapses:
            path = str(operation.target)
            if operation.kind == "call_module":
                owned |= {id(p): p for p in network.module.get_submodule(path).parameters()}
            elif operation.kind == "get_attr" and isinstance(value := _attribute(network.module, path), nn.Parameter):
                owned[id(value)] = value
        counts[layer.name] = sum(p.numel() for p in owned.values()) + sum(p.numel() for p in network.neurons(layer.name).parameters())
    return counts


def _attribute(module: nn.Module, path: str) -> object:
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)


def regulariser(activity: Mapping[str, Tensor], observed: Tensor, parameters: Mapping[str, int], kind: str) -> Tensor:
    """`ℓ_r` over the layers of one batch, a scalar.

    `sound`: `Σ_l stop(w_l)·Act(l)` with `w_l = (params_l / Σ params)·(mean Act / (Act_l + ε))`: weaker on active, vulnerable layers.
    `literal`: `Σ_l (Σ_k Act_k·params_k) / Act_l` (Eq. 6 as printed), divided by `Σ params` and the number of layers.
    `observed` is the activity that the weights `w_l` are computed from, over all processes; one entry per layer.
    """
    rates = torch.stack(list(activity.values()))
    sizes = torch.tensor(list(parameters.values()), dtype=rates.dtype, device=rates.device)
    if kind == "literal":
        return ((rates * sizes).sum() / (rates + _EPSILON)).sum() / (sizes.sum() * len(rates))
    weights = (sizes / sizes.sum()) * (observed.mean() / (observed + _EPSILON))
    return (weights.detach() * rates).sum()


def cross_entropy(logits: Tensor, labels: Tensor, scale: float) -> Tensor:
    """Eq. 7 on `scale·u`, `u` the firing rates in [0, 1] or negative first spike times; scale 1 is the paper."""
    return F.cross_entropy(scale * logits, labels)


def per_step_cross_entropy(outputs: Tensor, labels: Tensor, scale: float) -> Tensor:
    """Temporal efficient training: `1/T Σ_t CE(scale·o(t), y)` on what the output says at each step, `outputs [time, batch, class]`.

    Every step must be right by itself, not only their mean. Source: TET (Deng et al., ICLR 2022), without its second, regularising term.
    """
    steps = len(outputs)
    return F.cross_entropy(scale * outputs.flatten(0, 1), labels.repeat(steps))
