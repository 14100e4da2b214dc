"""Read a layer's synapses as terms: a source's train, max-pooled perhaps, through one convolution or linear map; nothing else adds to the current."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teas.engine.plan import ADDITIONS, IDENTITIES, affine, is_affine, simplified
from teas.spiking.neuron import Amplitude
from teas.spiking.trace import INPUT, Layer, Operation, Ref

Shape = tuple[int, ...]


class Dense(Exception):
    """Why a layer is no sum of terms, and runs step by step on dense currents."""


@dataclass(frozen=True)
class Piece:
    """Part of a value between a source and the weights: channels of the source from `start` on, times `scale`, pooled."""

    source: str
    shape: Shape  # of the source's neurons after max pooling: (channel, row, column), or (neuron, 1, 1)
    start: int = 0
    pools: tuple[nn.MaxPool2d, ...] = ()
    scale: Tensor | None = None
    average: tuple[int, int] = (1, 1)  # average pooling, in blocks
    stride: tuple[int, int] = (1, 1)  # of a slice


@dataclass(frozen=True)
class Value:
    """What several pieces make together: their sum, side by side where they start at different channels."""

    pieces: tuple[Piece, ...]
    shape: Shape
    flat: bool = False


@dataclass(frozen=True)
class Term:
    """`weight [out, in, row, column]` of a convolution of one source's train; `flat` takes the whole map at once, to one place."""

    source: str
    pools: tuple[nn.MaxPool2d, ...]
    shape: Shape  # of the map that it reads
    weight: Tensor
    stride: tuple[int, int]
    padding: tuple[int, int]
    flat: bool = False

    def is_diagonal(self) -> bool:
        """Whether every neuron of the source reaches one neuron, that at its own place, with a weight of its channel's."""
        outs, ins, rows, columns = self.weight.shape
        if self.flat or outs != ins or rows * columns > 1 or self.stride != (1, 1) or self.padding != (0, 0):
            return False
        square = self.weight.view(outs, ins)
        return bool((square == square.diag().diag()).all())


Current = tuple[list[Term], Tensor | None]


def terms_of(layer: Layer, module: nn.Module, shapes: dict[str, Shape]) -> Current:
    """Terms and bias `[out]` (None for none) of a layer's current; raises `Dense` where it is not made of terms.

    shapes: of the neurons of every layer. Terms of the analog input are left out: they are the same at every step.
    """
    reader = _Reader(simplified(layer, module), module, shapes)
    terms, bias = reader.current(reader.layer.current)
    return [term for term in terms if term.source != INPUT], bias


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


@dataclass
class _Reader:
    layer: Layer
    module: nn.Module
    shapes: dict[str, Shape]

    def __post_init__(self) -> None:
        self.operations = {operation.name: operation for operation in self.layer.synapses}

    def child(self, operation: Operation) -> nn.Module | None:
        return operation.child(self.module)

    def current(self, name: str) -> Current:
        """Terms and bias of a value in charge."""
        operation = self.operations.get(name)
        if operation is None:
            return self._passed(self.value(name)), None
        child = self.child(operation)
        if isinstance(child, nn.Conv2d):
            return self._convolved(child, self.value(operation.inputs[0])), _detached(child.bias)
        if isinstance(child, nn.Linear):
            return self._mapped(child, self.value(operation.inputs[0])), _detached(child.bias)
        if is_affine(child):
            scale, shift = affine(child)
            terms, bias = self.current(operation.inputs[0])
            if not isinstance(self.child(self.operations.get(operation.inputs[0], operation)), (nn.Conv2d, nn.Linear)):
                raise Dense("a batch norm that follows no convolution")
            scaled = [replace(term, weight=term.weight * scale.view(-1, 1, 1, 1)) for term in terms]
            return scaled, shift if bias is None else bias * scale + shift
        if operation.target in ADDITIONS and not operation.kwargs and all(isinstance(argument, Ref) for argument in operation.args):
            (first, bias), (second, other) = (self.current(argument.name) for argument in operation.args)
            return first + second, other if bias is None else bias if other is None else bias + other
        return self._passed(self.value(name)), None

    def value(self, name: str) -> Value:
        """What a value is before any weights."""
        if name in self.shapes:
            shape = self.shapes[name]
            if len(shape) not in (1, 3):
                raise Dense(f"neurons of shape {shape}")
            return Value((Piece(name, shape if len(shape) == 3 else (*shape, 1, 1)),), shape)
        operation = self.operations[name]
        child, target = self.child(operation), getattr(operation.target, "__name__", operation.target)
        if not operation.inputs:
            raise Dense(f"{operation.name}, a constant")
        if target in ("cat", "concat"):
            return self._side_by_side([self.value(ref.name) for ref in operation.args[0]], operation)
        if operation.target in ADDITIONS and not operation.kwargs and len(operation.inputs) == 2:
            first, second = (self.value(argument) for argument in operation.inputs)
            if first.shape != second.shape:
                raise Dense("a sum of values of different shapes")
            return replace(first, pieces=first.pieces + second.pieces)
        value = self.value(operation.inputs[0])
        if isinstance(child, IDENTITIES):
            return value
        if isinstance(child, Amplitude):
            return self._scaled(value, child.value.detach())
        if isinstance(child, nn.MaxPool2d):
            return self._max_pooled(value, child)
        if isinstance(child, nn.AvgPool2d) and _pair(child.kernel_size) == _pair(child.stride) and _plain(child):
            return self._averaged(value, _pair(child.kernel_size))
        if (isinstance(child, nn.Flatten) and child.start_dim == 1) or (target == "flatten" and operation.args[1:] == (1,)):
            pieces = tuple(replace(piece, start=piece.start * math.prod(value.shape[1:])) for piece in value.pieces)
            return Value(pieces, (math.prod(value.shape),), True)
        if target == "getitem":
            return self._sliced(value, operation.args[1])
        if target == "pad" and len(value.pieces) == 1:
            return self._padded(value, operation)
        raise Dense(f"{type(child).__name__ if child is not None else target} is no convolution, linear map or sum")

    def _scaled(self, value: Value, amplitude: Tensor) -> Value:
        if len(value.pieces) != 1 or value.flat:
            raise Dense("an amplitude of several sources")
        piece = value.pieces[0]
        scale = amplitude.expand(piece.shape[0])
        return replace(value, pieces=(replace(piece, scale=scale if piece.scale is None else piece.scale * scale),))

    def _side_by_side(self, values: list[Value], operation: Operation) -> Value:
        dim = operation.args[1] if len(operation.args) > 1 else operation.kwargs.get("dim", 0)
        if dim != 1 or len({value.shape[1:] for value in values}) != 1 or len({value.flat for value in values}) != 1:
            raise Dense("a concatenation along another axis than the channels")
        pieces, start = [], 0
        for value in values:
            pieces += [replace(piece, start=piece.start + start) for piece in value.pieces]
            start += value.shape[0]
        return Value(tuple(pieces), (start, *values[0].shape[1:]), values[0].flat)

    def _max_pooled(self, value: Value, pool: nn.MaxPool2d) -> Value:
        sums = len({piece.start for piece in value.pieces}) != len(value.pieces)
        if sums or value.flat or pool.ceil_mode or pool.return_indices or any(p.average != (1, 1) or p.stride != (1, 1) for p in value.pieces):
            raise Dense("max pooling of sums or averages, or one that rounds sizes up")
        size, stride, padding, dilation = (_pair(v) for v in (pool.kernel_size, pool.stride, pool.padding, pool.dilation))
        after = [(value.shape[1 + i] + 2 * padding[i] - dilation[i] * (size[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)]
        pieces = tuple(replace(p, pools=(*p.pools, pool), shape=(p.shape[0], *after)) for p in value.pieces)
        return Value(pieces, (value.shape[0], *after))

    def _averaged(self, value: Value, size: tuple[int, int]) -> Value:
        if value.flat or any(p.average != (1, 1) or p.stride != (1, 1) for p in value.pieces):
            raise Dense("average pooling of slices or averages")
        pieces = tuple(replace(piece, average=size) for piece in value.pieces)
        return Value(pieces, (value.shape[0], value.shape[1] // size[0], value.shape[2] // size[1]))

    def _sliced(self, value: Value, index: Any) -> Value:
        parts = index if isinstance(index, tuple) else (index,)
        steps = [part.step or 1 for part in parts if isinstance(part, slice) and part.start is None and part.stop is None and isinstance(part.step, int | None)]
        if len(steps) != len(parts) or len(parts) != 4 or steps[:2] != [1, 1] or len(value.shape) != 3 or min(steps) < 1:
            raise Dense("a slice that picks more than every n-th row and column")
        if any(p.average != (1, 1) or p.stride != (1, 1) for p in value.pieces):
            raise Dense("a slice of a slice or of an average")
        pieces = tuple(replace(piece, stride=(steps[2], steps[3])) for piece in value.pieces)
        return Value(pieces, (value.shape[0], *(-(-size // step) for size, step in zip(value.shape[1:], steps[2:], strict=True))))

    def _padded(self, value: Value, operation: Operation) -> Value:
        around, *options = (*operation.args[1:], *operation.kwargs.values())
        if len(value.shape) != 3 or len(around) != 6 or any(around[:4]) or min(around) < 0 or any(o not in (None, "constant", 0) for o in options):
            raise Dense("padding of anything but channels")
        return Value((replace(value.pieces[0], start=value.pieces[0].start + around[4]),), (value.shape[0] + around[4] + around[5], *value.shape[1:]))

    def _passed(self, value: Value) -> list[Term]:
        """A value without weights: 1 from every channel to itself."""
        weight = torch.eye(value.shape[0]).view(value.shape[0], -1, 1, 1)
        if value.flat:
            raise Dense("a flattened map without weights")
        return [self._term(piece, weight, (1, 1), (0, 0)) for piece in value.pieces]

    def _convolved(self, conv: nn.Conv2d, value: Value) -> list[Term]:
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str) or len(value.shape) != 3 or value.flat:
            raise Dense(f"a convolution with padding {conv.padding_mode if conv.padding_mode != 'zeros' else conv.padding!r} or on other than images")
        if any(piece.stride != (1, 1) for piece in value.pieces):
            raise Dense("a convolution of a slice")
        weight = _ungrouped(conv.weight.detach(), conv.groups)
        dilation, size = _pair(conv.dilation), weight.shape[2:]
        if dilation != (1, 1):
            spread = weight.new_zeros(*weight.shape[:2], *(d * (k - 1) + 1 for d, k in zip(dilation, size, strict=True)))
            spread[:, :, :: dilation[0], :: dilation[1]] = weight
            weight = spread
        return [self._term(piece, weight, _pair(conv.stride), _pair(conv.padding)) for piece in value.pieces]

    def _term(self, piece: Piece, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Term:
        weight = weight[:, piece.start : piece.start + piece.shape[0]]
        if piece.scale is not None:
            weight = weight * piece.scale.view(1, -1, 1, 1)
        a = piece.average
        if piece.shape[1] % a[0] or piece.shape[2] % a[1]:
            raise Dense("a convolution of averages that leave rows or columns over")
        if a != (1, 1):
            weight = weight.repeat_interleave(a[0], 2).repeat_interleave(a[1], 3) / (a[0] * a[1])
        steps = (stride[0] * a[0] * piece.stride[0], stride[1] * a[1] * piece.stride[1])
        return Term(piece.source, piece.pools, piece.shape, weight, steps, (padding[0] * a[0], padding[1] * a[1]))

    def _mapped(self, linear: nn.Linear, value: Value) -> list[Term]:
        if len(value.shape) != 1:
            raise Dense("a linear map of the last axis of a map")
        terms = []
        for piece in value.pieces:
            channels, rows, columns = piece.shape
            a = piece.average
            inner = (rows // a[0], columns // a[1])
            size = channels * inner[0] * inner[1]
            weight = linear.weight.detach()[:, piece.start : piece.start + size].reshape(-1, channels, *inner)
            if piece.scale is not None:
                weight = weight * piece.scale.view(1, -1, 1, 1)
            weight = weight.repeat_interleave(a[0], 2).repeat_interleave(a[1], 3) / (a[0] * a[1])
            weight = F.pad(weight, (0, columns - weight.shape[3], 0, rows - weight.shape[2]))
            terms.append(Term(piece.source, piece.pools, piece.shape, weight, (1, 1), (0, 0), flat=True))
        return terms


def _detached(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach()


def _plain(pool: nn.AvgPool2d) -> bool:
    return _pair(pool.padding) == (0, 0) and not pool.ceil_mode and pool.divisor_override is None


def _ungrouped(weight: Tensor, groups: int) -> Tensor:
    """The weights of a grouped convolution among all channels, zero between groups."""
    if groups == 1:
        return weight
    outs, ins = weight.shape[0] // groups, weight.shape[1]
    full = weight.new_zeros(weight.shape[0], ins * groups, *weight.shape[2:])
    for group in range(groups):
        full[group * outs : (group + 1) * outs, group * ins : (group + 1) * ins] = weight[group * outs : (group + 1) * outs]
    return full
