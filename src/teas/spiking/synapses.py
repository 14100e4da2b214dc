"""Run the synapses between spiking layers: per time step, or once on the counts of a whole window."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teas.spiking.neuron import Amplitude
from teas.spiking.trace import Layer, Operation, Ref, map_refs

_Conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_Dropout = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
# Operations with op(a·x) = a·op(x) for a > 0, exactly where a·x is exact.
_HOMOGENEOUS_MODULES = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool2d, nn.Flatten, nn.Unflatten, nn.Identity, nn.ReLU,
    nn.PixelShuffle, nn.ZeroPad2d, nn.ChannelShuffle, Amplitude, nn.Upsample, *_Dropout,
)  # fmt: skip
_HOMOGENEOUS_NAMES = {
    "add", "iadd", "sub", "cat", "concat", "stack", "flatten", "view", "reshape", "permute", "transpose", "contiguous", "squeeze", "unsqueeze",
    "mean", "sum", "getitem", "relu", "avg_pool2d", "adaptive_avg_pool2d", "max_pool2d", "_max_pool2d", "boolean_dispatch", "chunk", "split", "dropout",
    "max_pool2d_with_indices", "fn",
}  # fmt: skip


def run_synapses(layer: Layer, sources: Mapping[str, Tensor], module: nn.Module, *, scale: float = 1, steps: int = 1) -> Tensor:
    """The current that charges a layer, from what its sources send.

    With `scale` T' the sources are counts re-scaled to T' steps and the result is `T'·f(x / T')`, the charge of the whole window: weights
    see the counts themselves, so that integers stay exact, and biases act T' times. `steps` says how many steps are folded into the batch.
    """
    values: dict[str, Any] = dict(sources)
    carriers = set(sources)  # the values that scale with the counts, unlike parameters and sizes
    for operation in layer.synapses:
        args, kwargs = operation.filled(values)
        child = operation.child(module)
        if getattr(child, "inplace", False):
            args = (args[0].clone(), *args[1:])  # a train may have other readers
        scaled = [name for name in operation.inputs if name in carriers]
        if not scaled:
            values[operation.name] = _call(operation, module)(*args, **kwargs)
            continue
        if isinstance(child, _Dropout) and steps > 1:
            values[operation.name] = _dropout_through_time(child, args[0], steps)
        elif scale == 1 or _is_homogeneous(operation, child, len(scaled)):
            values[operation.name] = _call(operation, module)(*args, **kwargs)
        elif isinstance(child, nn.Linear):
            values[operation.name] = F.linear(args[0], child.weight, None if child.bias is None else scale * child.bias)
        elif isinstance(child, _Conv):
            values[operation.name] = child._conv_forward(args[0], child.weight, None if child.bias is None else scale * child.bias)
        else:
            small = map_refs((operation.args, operation.kwargs), Ref, lambda ref: _unscaled(values[ref.name], ref.name in carriers, scale))
            values[operation.name] = scale * _call(operation, module)(*small[0], **small[1])
        if isinstance(values[operation.name], (Tensor, list, tuple)) and not isinstance(values[operation.name], torch.Size):
            carriers.add(operation.name)
    current: Tensor = values[layer.current]
    return current


def call_operation(operation: Operation, values: Mapping[str, Any], module: nn.Module) -> Any:
    """The result of one operation on the values it reads."""
    args, kwargs = operation.filled(values)
    return _call(operation, module)(*args, **kwargs)


def _call(operation: Operation, module: nn.Module) -> Callable[..., Any]:
    """What the operation does, as a callable of its arguments."""
    if operation.kind == "call_function":
        assert callable(operation.target)
        return operation.target
    child, target = operation.child(module), str(operation.target)
    if child is not None:
        return child
    if operation.kind == "call_method":
        return lambda value, *args, **kwargs: getattr(value, target)(*args, **kwargs)
    path, _, name = target.rpartition(".")
    return lambda: getattr(module.get_submodule(path), name)


def _is_homogeneous(operation: Operation, child: nn.Module | None, scaled: int) -> bool:
    if child is not None:
        return isinstance(child, _HOMOGENEOUS_MODULES)
    target = operation.target
    name = (target if isinstance(target, str) else getattr(target, "__name__", "")).rstrip("_")
    if name == "getattr":  # shapes and the like
        return True
    if name in ("add", "iadd", "sub") and scaled < 2:  # adding a constant is a bias
        return False
    if name == "pad":  # with zeros
        options = operation.args[2:] + tuple(operation.kwargs.get(key) for key in ("mode", "value"))
        return all(option in (None, "constant", 0) for option in options)
    return name in _HOMOGENEOUS_NAMES or name in ("size", "dim")


def _unscaled(value: Any, carries: bool, scale: float) -> Any:
    return value / scale if carries and isinstance(value, Tensor) else value


def _dropout_through_time(dropout: nn.Module, value: Tensor, steps: int) -> Tensor:
    """One mask for all steps: a neuron that is dropped is dropped for its whole window."""
    unfolded = value.view(steps, value.shape[0] // steps, *value.shape[1:])
    masked: Tensor = unfolded * dropout(torch.ones_like(unfolded[0]))
    return masked.flatten(0, 1)
