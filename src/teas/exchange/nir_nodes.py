"""The synapses among NIR's nodes, and numbers and arrays of a file checked before use."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from teas.errors import TeasError
from teas.spiking.neuron import Amplitude

_REACH = 1024  # pixels that a kernel may span: no sensible one comes near
HANDLED = "Affine, Linear, Conv1d, Conv2d, AvgPool2d, SumPool2d, Flatten, Scale, IF and LIF"


def array(value: Any, what: str, dims: int | None = None, shape: tuple[int, ...] | None = None) -> Tensor:
    """An array of numbers as a float tensor of its own memory; raises `TeasError` for anything else."""
    if not isinstance(value, (np.ndarray, np.generic, int, float, list, tuple)):
        raise TeasError(f"{what} is missing or not an array; the file is damaged")
    try:
        found = np.asarray(value)
    except ValueError:
        raise TeasError(f"{what} is not an array of numbers; the file is damaged") from None
    if found.dtype.kind not in "fiu":
        raise TeasError(f"{what} has values of type {found.dtype}, not numbers; the file is damaged")
    if shape is not None and found.shape != shape:
        if found.size != 1:
            raise TeasError(f"{what} has shape {found.shape}; the values that reach it have {shape}")
        found = np.broadcast_to(found.reshape(()), shape)
    if dims is not None and found.ndim != dims:
        raise TeasError(f"{what} has {found.ndim} dimensions, not {dims}; the file is damaged")
    return torch.from_numpy(found.astype(found.dtype if found.dtype in (np.float32, np.float64) else np.float32))


def number(value: Any, what: str, above: float = -math.inf) -> float:
    """A finite number, or an array that holds one number everywhere; raises `TeasError` for anything else."""
    if isinstance(value, Tensor):
        if value.numel() == 0 or not bool((value == value.flatten()[0]).all()):
            raise TeasError(f"{what} differs from neuron to neuron; here it is one number per layer")
        value = value.flatten()[0].item()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300 or not value > above:
        raise TeasError(f"{what} is {str(value)[:60]!r}; expected a finite number" + (f" above {above:g}" if above > -math.inf else ""))
    return float(value)


def _sizes(value: Any, what: str, count: int, least: int) -> Any:
    """That many whole numbers, as a tuple; one number stands for all."""
    found = array(value, what).flatten().tolist()
    found = found * count if len(found) == 1 else found
    if len(found) != count or not all(float(size).is_integer() and least <= size <= _REACH for size in found):
        raise TeasError(f"{what} is {found[:6]}; expected {count} whole numbers from {least} to {_REACH}")
    return tuple(int(size) for size in found)


def synapse(key: str, node: dict[str, Any], before: Tensor) -> nn.Module:
    """The module of a node that is not a neuron; raises `TeasError` where there is none."""
    kind = node["type"]
    if kind in ("Affine", "Linear"):
        return _linear(key, node)
    if kind in ("Conv1d", "Conv2d"):
        return _convolution(key, node, 1 if kind == "Conv1d" else 2)
    if kind in ("AvgPool2d", "SumPool2d"):
        size, stride = _sizes(node.get("kernel_size"), f"{key}.kernel_size", 2, 1), _sizes(node.get("stride"), f"{key}.stride", 2, 1)
        padding = _sizes(node.get("padding"), f"{key}.padding", 2, 0)
        if any(2 * pad > reach for pad, reach in zip(padding, size, strict=True)):
            raise TeasError(f"{key}: a padding of {padding} is more than half of the kernel {size}")
        return nn.AvgPool2d(size, stride, padding, divisor_override=1 if kind == "SumPool2d" else None)
    if kind == "Flatten":
        return _flatten(key, node, before)
    if kind == "Scale":
        scale = array(node.get("scale"), f"{key}.scale", shape=tuple(before.shape[1:]))
        flat = scale.flatten(1) if scale.dim() > 1 else scale.unsqueeze(1)
        if not bool((flat == flat[:, :1]).all()):
            raise TeasError(f"{key} scales every neuron by its own factor; here it is one factor per channel")
        return Amplitude(flat[:, 0].clone())
    raise TeasError(f"node {key!r} is a {kind[:60]}, which has no equal here; handled are {HANDLED}")


def _linear(key: str, node: dict[str, Any]) -> nn.Module:
    weight = array(node.get("weight"), f"{key}.weight", 2)
    if 0 in weight.shape:
        raise TeasError(f"{key}.weight is empty: {tuple(weight.shape)}")
    bias = None if node["type"] == "Linear" else array(node.get("bias"), f"{key}.bias", shape=(len(weight),))
    return _filled(nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta"), weight, bias)


def _convolution(key: str, node: dict[str, Any], dims: int) -> nn.Module:
    weight = array(node.get("weight"), f"{key}.weight", dims + 2)
    bias = array(node.get("bias"), f"{key}.bias", shape=(len(weight),))
    stride, dilation = _sizes(node.get("stride"), f"{key}.stride", dims, 1), _sizes(node.get("dilation"), f"{key}.dilation", dims, 1)
    (groups,) = _sizes(node.get("groups"), f"{key}.groups", 1, 1)
    padding = node.get("padding")
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise TeasError(f"{key}.padding is {padding[:60]!r}; choose 'same', 'valid' or numbers")
    else:
        padding = _sizes(padding, f"{key}.padding", dims, 0)
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if max(spans) > _REACH or len(weight) % groups or 0 in weight.shape:
        raise TeasError(f"{key}: a kernel {tuple(weight.shape)} with dilation {dilation} in {groups} groups is not possible")
    kind = nn.Conv1d if dims == 1 else nn.Conv2d
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "device": "meta"}
    size: Any = tuple(weight.shape[2:])
    return _filled(kind(weight.shape[1] * groups, len(weight), size, **options), weight, bias)


def _filled(module: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    module.weight = nn.Parameter(weight)
    if bias is not None:
        module.bias = nn.Parameter(bias.to(weight.dtype))
    result: nn.Module = module
    return result


def _flatten(key: str, node: dict[str, Any], before: Tensor) -> nn.Module:
    """Axes are counted without the batch; tools disagree whether a whole flattening starts at 0 or at 1."""
    start, end = (number(array(node.get(name), f"{key}.{name}"), f"{key}.{name}") for name in ("start_dim", "end_dim"))
    dims = before.dim() - 1
    if start not in (0, 1) or end not in (-1, dims - 1):
        raise TeasError(f"{key} flattens axes {start:g} to {end:g} of {dims}; handled is flattening everything")
    return nn.Flatten()
