"""Compile one layer's synapses for two-phase firing: everything that depends on weights and windows alone is done once."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teas.spiking.network import SpikingNetwork
from teas.spiking.synapses import call_operation, run_synapses
from teas.spiking.trace import Layer, Operation, Ref, map_refs

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# Operations that pick or move counts and compute none: they commute with the change of windows, so that integers stay integers.
_POOLINGS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_SELECTING_MODULES = (*_POOLINGS, nn.Flatten)
IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_SELECTING_NAMES = {"flatten", "view", "reshape", "permute", "transpose", "contiguous", "cat", "concat", "getitem"}
SIZE_NAMES = {"size", "dim", "getattr"}
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
Values = dict[str, Any]
Kernel = Callable[[Values], Any]


@dataclass
class Step:
    """One operation on the values of a layer; `frees` names the values that nobody reads after it."""

    name: str
    run: Kernel
    frees: tuple[str, ...] = ()


@dataclass
class Compiler:
    """What is known about a layer while its operations are compiled.

    counts: values that hold raw spike counts, with the largest that each can be. charges: values in charge of the receiver's window.
    fresh: charges that no other value shares memory with, and that may therefore be overwritten.
    exports: charges that later layers read as they are (see `share_currents`).
    levels: the largest count of the receiver, `T'` under the rate code; 1 for a readout, whose sources are rates. reorder: see `CountEngine`.
    contiguous: undo the channels-last layout of counts, so that sums are rounded in the reference's order.
    """

    layer: Layer
    network: SpikingNetwork
    levels: int
    reorder: bool = False
    contiguous: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    charges: set[str] = field(default_factory=set)
    fresh: set[str] = field(default_factory=set)
    exports: set[str] = field(default_factory=set)
    offset: Tensor | None = None  # v0·θ where the neurons leave it to the synapses
    divisor: Tensor | None = None  # θ where the neurons leave the division to the synapses
    absorber: str | None = None  # the operation that takes these two over

    def __post_init__(self) -> None:
        self.operations = {operation.name: operation for operation in self.layer.synapses}
        self.last_reader = {name: operation.name for operation in self.layer.synapses for name in operation.inputs}

    def child(self, operation: Operation) -> nn.Module | None:
        return operation.child(self.network.module)

    def last_of(self, name: str, operation: Operation) -> bool:
        """Whether nobody reads the value after this operation."""
        return self.last_reader[name] == operation.name and name != self.layer.current and name not in self.exports

    def may_overwrite(self, name: str, operation: Operation) -> bool:
        """Whether the operation may put its result where the value lies."""
        return name in self.fresh and self.last_of(name, operation)

    def charge(self, values: Mapping[str, Any], name: str, any_layout: bool = False) -> Any:
        """A value in charge of the receiver's window: counts up to T times T'/T; for a readout, rates. any_layout: no sum will follow it."""
        value = values[name]
        if name not in self.counts:
            return value
        value = value.to(torch.float32)
        if self.contiguous and not any_layout:
            value = value.contiguous()
        if self.layer.neurons is None:
            return value / self.counts[name]
        return value if self.counts[name] == self.levels else value * (self.levels / self.counts[name])

    def is_addition(self, operation: Operation) -> bool:
        """A plain sum of two values that carry charge."""
        carriers = [name for name in operation.inputs if name in self.counts or name in self.charges]
        return operation.kind in ("call_function", "call_method") and operation.target in ADDITIONS and not operation.kwargs and len(carriers) == 2

    def norm_after(self, operation: Operation) -> Operation | None:
        """The batch norm to fold into a convolution: it alone reads the convolution's result."""
        readers = [other for other in self.layer.synapses if operation.name in other.inputs] if operation.name not in self.exports else []
        if self.reorder and len(readers) == 1 and is_affine(self.child(readers[0])) and isinstance(self.child(operation), CONVOLUTIONS):
            return readers[0]
        return None

    def weight_and_bias(self, operation: Operation) -> tuple[Tensor, Tensor | None]:
        """Weights and `T'`-fold bias of a convolution or linear map, with what is folded into them: batch norm, `v0·θ`, `1/θ`."""
        child = self.child(operation)
        assert isinstance(child, (*CONVOLUTIONS, nn.Linear))
        weight, bias, norm = child.weight.detach(), child.bias, self.norm_after(operation)
        bias = None if bias is None else bias.detach()
        if norm is not None:
            scale, shift = affine(self.child(norm))
            weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
            bias = shift if bias is None else bias * scale + shift
        bias = None if bias is None else self.levels * bias
        if operation.name == self.absorber and self.offset is not None:
            offset = self.offset.expand(len(weight)).contiguous()  # kernels read it as it lies
            bias = offset if bias is None else bias + offset
        if operation.name == self.absorber and self.divisor is not None:
            divisor = self.divisor.expand(len(weight))
            weight = weight / divisor.view(-1, *[1] * (weight.dim() - 1))
            bias = None if bias is None else bias / divisor
        return weight, bias

    def may_absorb(self, name: str, threshold: Tensor) -> bool:
        """Whether a convolution or linear map may take over `v0·θ`: rounding may change, and its features are what thresholds belong to."""
        return self.reorder and not (threshold.dim() and isinstance(self.child(self.operations[name]), nn.Linear))

    def weighted(self, operation: Operation, source: str) -> Kernel:
        """A convolution or linear map as a kernel from a value to a charge."""
        child = self.child(operation)
        weight, bias = self.weight_and_bias(operation)
        if isinstance(child, nn.Linear):
            return lambda values: F.linear(self.charge(values, source), weight, bias)
        assert isinstance(child, CONVOLUTIONS)
        if weight.dim() == 4 and self.reorder:
            weight = weight.contiguous(memory_format=torch.channels_last)
        return lambda values: child._conv_forward(self.charge(values, source), weight, bias)

    def absorbing(self, name: str, through_sums: bool) -> str | None:
        """The convolution or linear map whose result reaches the neurons, and nothing else, unchanged but for sums with other charges."""
        operation = self.operations.get(name)
        if operation is None or name in self.exports or sum(name in other.inputs for other in self.layer.synapses) > (name != self.layer.current):
            return None
        if isinstance(self.child(operation), (*CONVOLUTIONS, nn.Linear)):
            return name
        if is_affine(self.child(operation)):
            before = self.operations.get(operation.inputs[0])
            return before.name if before is not None and self.norm_after(before) is operation else None
        if through_sums and operation.target in ADDITIONS and not operation.kwargs and len(set(operation.inputs)) == 2:
            found = (self.absorbing(before, through_sums) for before in operation.inputs)
            return next((before for before in found if before), None)
        return None


def simplified(layer: Layer, module: nn.Module) -> Layer:
    """The layer without what does nothing in evaluation: identities, as folded norms leave them, and dropout. Views may copy."""
    same: dict[str, str] = {}
    kept = []
    for operation in layer.synapses:
        args, kwargs = map_refs((operation.args, operation.kwargs), Ref, lambda ref: Ref(same.get(ref.name, ref.name)))
        if isinstance(operation.child(module), IDENTITIES):
            same[operation.name] = args[0].name
        elif operation.kind == "call_method" and operation.target == "view":
            kept.append(replace(operation, target="reshape", args=args, kwargs=kwargs))  # channels may lie last
        else:
            kept.append(replace(operation, args=args, kwargs=kwargs))
    return replace(layer, synapses=tuple(kept), current=same.get(layer.current, layer.current))


def is_affine(child: nn.Module | None) -> bool:
    return isinstance(child, _NORMS) and child.running_mean is not None


def affine(child: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Batch norm in evaluation mode as `y = scale·x + shift`, per channel."""
    assert isinstance(child, _NORMS)
    assert child.running_mean is not None
    assert child.running_var is not None
    scale = (child.running_var + child.eps).rsqrt()
    if child.weight is not None:
        scale = scale * child.weight.detach()
    shift = -child.running_mean * scale
    return scale, shift if child.bias is None else shift + child.bias.detach()


def compile_step(compiler: Compiler, operation: Operation) -> Step:
    """One operation as a step, and what is known about its result noted in the compiler."""
    child, name = compiler.child(operation), operation.name
    carriers = [n for n in operation.inputs if n in compiler.counts or n in compiler.charges]
    plain = name_of(operation) in SIZE_NAMES or not carriers
    if plain:
        kernel: Kernel = lambda values: call_operation(operation, values, compiler.network.module)  # noqa: E731
    elif _selects(operation, child) and len({compiler.counts.get(n) for n in carriers}) == 1 and carriers[0] in compiler.counts:
        compiler.counts[name] = compiler.counts[carriers[0]]
        kernel = _selecting(compiler, operation)
    else:
        kernel = _charging(compiler, operation, child, carriers)
        compiler.charges.add(name)
    return Step(name, kernel, tuple(n for n in dict.fromkeys(operation.inputs) if compiler.last_of(n, operation)))


def _selecting(compiler: Compiler, operation: Operation) -> Kernel:
    """A kernel from counts to counts, in the type that they come in."""

    child = compiler.child(operation)

    def kernel(values: Values) -> Any:
        value = values[operation.inputs[0]]
        if not isinstance(child, _POOLINGS) or value.is_floating_point():
            return call_operation(operation, values, compiler.network.module)
        if isinstance(child, nn.MaxPool2d) and not child.ceil_mode and not child.return_indices:
            return _pool_bytes(child, value)
        return child(value.to(torch.float32)).to(torch.uint8)

    return kernel


def _pool_bytes(pool: nn.MaxPool2d, count: Tensor) -> Tensor:
    """Max pooling of counts in 8 bits, which torch lacks: the maximum of shifted views, rows first. Counts are >= 0, so padding is 0."""

    def pair(value: int | tuple[int, ...]) -> tuple[int, int]:
        return (value, value) if isinstance(value, int) else (value[0], value[1])

    size, stride, padding, dilation = pair(pool.kernel_size), pair(pool.stride), pair(pool.padding), pair(pool.dilation)
    count = F.pad(count, (padding[1], padding[1], padding[0], padding[0])) if any(padding) else count
    for axis in (2, 3):
        reach = dilation[axis - 2] * (size[axis - 2] - 1)
        steps = (count.shape[axis] - reach - 1) // stride[axis - 2] + 1
        first = range(0, reach + 1, dilation[axis - 2])
        views = [count.narrow(axis, at, count.shape[axis] - at)[(slice(None),) * axis + (slice(None, None, stride[axis - 2]),)] for at in first]
        count = functools.reduce(torch.maximum, [view.narrow(axis, 0, steps) for view in views])
    return count


def _charging(compiler: Compiler, operation: Operation, child: nn.Module | None, carriers: list[str]) -> Kernel:
    """A kernel whose result is a charge."""
    source = carriers[0]
    if isinstance(child, (*CONVOLUTIONS, nn.Linear)):
        compiler.fresh.add(operation.name)
        return compiler.weighted(operation, source)
    if is_affine(child) and compiler.reorder:
        if source in compiler.operations and compiler.norm_after(compiler.operations[source]) is operation:
            compiler.fresh.add(operation.name)
            return lambda values: values[source]  # folded into the convolution
        return _normed(compiler, operation, child, source)
    if compiler.is_addition(operation):
        return _added(compiler, operation, carriers)
    return _generic(compiler, operation, carriers)


def _normed(compiler: Compiler, operation: Operation, child: nn.Module | None, source: str) -> Kernel:
    scale, shift = affine(child)
    compiler.fresh.add(operation.name)

    def kernel(values: Values) -> Tensor:
        charge = compiler.charge(values, source)
        shape = (-1, *[1] * (charge.dim() - 2))
        return torch.addcmul((compiler.levels * shift).view(shape), charge, scale.view(shape))

    return kernel


def _added(compiler: Compiler, operation: Operation, carriers: list[str]) -> Kernel:
    first, second = carriers
    last = compiler.layer.neurons is not None and operation.name == compiler.layer.current
    charge = functools.partial(compiler.charge, any_layout=last)
    spare = [n for n in carriers if compiler.may_overwrite(n, operation) and first != second]
    compiler.fresh.add(operation.name)
    if spare:
        other = second if spare[0] == first else first
        return lambda values: _add_into(values[spare[0]], charge(values, other))
    return lambda values: charge(values, first) + charge(values, second)


def _add_into(target: Tensor, other: Tensor) -> Tensor:
    return target.add_(other) if target.shape == other.shape else target + other


def _generic(compiler: Compiler, operation: Operation, carriers: list[str]) -> Kernel:
    """Any other operation exactly as the reference runs it."""
    compiler.fresh -= set(carriers)  # the result may be a view of them
    child = compiler.child(operation)
    overwrites = getattr(child, "inplace", False) or operation.kwargs.get("inplace") or name_of(operation).startswith("i") or name_of(operation).endswith("_")

    def kernel(values: Values) -> Any:
        known = map_refs((operation.args, operation.kwargs), Ref, lambda ref: ref if ref.name in carriers else values[ref.name])
        alone = replace(operation, args=known[0], kwargs=known[1])
        sources = {name: compiler.charge(values, name) for name in carriers}
        if overwrites:
            sources = {name: value.clone() if isinstance(value, Tensor) else value for name, value in sources.items()}
        layer = Layer(compiler.layer.name, None, tuple(carriers), (alone,), operation.name)
        return run_synapses(layer, sources, compiler.network.module, scale=compiler.levels)

    return kernel


def _selects(operation: Operation, child: nn.Module | None) -> bool:
    if child is not None:
        return isinstance(child, _SELECTING_MODULES)
    name, padding = name_of(operation), operation.args[2:] + tuple(operation.kwargs.get(key) for key in ("mode", "value"))
    return name in _SELECTING_NAMES or (name == "pad" and all(option in (None, "constant", 0) for option in padding))


def name_of(operation: Operation) -> str:
    """Name of the function or method that an operation calls; none for a module."""
    target = operation.target
    return "" if operation.kind == "call_module" else (target if isinstance(target, str) else getattr(target, "__name__", ""))
