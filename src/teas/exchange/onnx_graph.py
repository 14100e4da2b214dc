"""Nodes and constants of an ONNX graph in the making."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from teas.exchange.optional import library
from teas.spiking.trace import Operation

OPSET = 18
_TYPES = {"float": 1, "uint8": 2, "double": 11}
_FLAT = ("flatten", "view", "reshape")


@dataclass(frozen=True)
class Value:
    """A tensor of the graph; `counted` is the window of raw spike counts (uint8), None for a charge."""

    name: str
    counted: int | None = None


def per_channel(value: Tensor, dims: int) -> Tensor:
    """A value per channel, shaped to broadcast against `[batch, channel, *position]`."""
    return value if value.dim() == 0 else value.view(1, -1, *[1] * (dims - 2))


@dataclass
class Graph:
    """Nodes in order, constants by name, and what could not be written."""

    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def constant(self, value: Any) -> str:
        """The name of a constant."""
        name = f"constant{len(self.constants)}"
        self.constants.append(library("onnx.numpy_helper").from_array(np.ascontiguousarray(value), name))
        return name

    def op(self, kind: str, *inputs: str, to: str = "", output: str = "", **options: Any) -> str:
        """Add a node; returns the name of its result."""
        name = output or f"value{len(self.nodes)}"
        options |= {"to": _TYPES[to]} if to else {}
        self.nodes.append(library("onnx.helper").make_node(kind, list(inputs), [name], **options))
        return name

    def geometry(self, child: Any) -> dict[str, Any]:
        """Attributes of a convolution."""
        reach = [d * (k - 1) for d, k in zip(child.dilation, child.kernel_size, strict=True)]
        if child.padding == "same":
            pads = [r // 2 for r in reach] + [r - r // 2 for r in reach]
        else:
            pads = list((0,) * len(reach) if child.padding == "valid" else child.padding) * 2
        return {"strides": list(child.stride), "pads": pads, "dilations": list(child.dilation), "group": child.groups}

    def weighted(self, child: Any, value: str, weight: str, bias: Tensor | None) -> str:
        """A convolution or linear map."""
        shift = [] if bias is None else [self.constant(bias.numpy())]
        if isinstance(child, nn.Linear):
            product = self.op("MatMul", value, weight)
            return self.op("Add", product, *shift) if shift else product
        return self.op("Conv", value, weight, *shift, **self.geometry(child))

    def pool(self, kind: str, child: Any, value: str, **options: Any) -> str:
        """A pooling."""
        size, stride, padding = (list(pair) if isinstance(pair, (tuple, list)) else [pair] * 2 for pair in (child.kernel_size, child.stride, child.padding))
        return self.op(kind, value, kernel_shape=size, strides=stride, pads=padding * 2, **options)

    def moved(self, child: Any, plain: str, operation: Operation, value: Value, before: Tensor, after: Tensor) -> Value | None:
        """Operations that pick or move values and compute none, on counts as on charges; None for any other."""
        if isinstance(child, nn.Flatten) or (plain in _FLAT and child is None):
            if after.dim() == 2 and after.shape[1] == before[0].numel():
                return Value(self.op("Flatten", value.name, axis=1), value.counted)
        elif isinstance(child, nn.MaxPool2d) and not child.ceil_mode and child.dilation in (1, (1, 1)):
            return Value(self.pool("MaxPool", child, value.name), value.counted)
        elif plain == "getitem" and isinstance(operation.args[1], tuple) and all(isinstance(part, slice) for part in operation.args[1]):
            return Value(self._sliced(value.name, operation.args[1], before), value.counted)
        elif plain == "pad" and all(option in (None, "constant", 0) for option in (*operation.args[2:], *operation.kwargs.values())):
            given: Any = operation.args[1]
            pairs = [given[i : i + 2] for i in range(0, len(given), 2)] + [(0, 0)] * (before.dim() - len(given) // 2)
            amounts = np.array([pair[0] for pair in reversed(pairs)] + [pair[1] for pair in reversed(pairs)], np.int64)
            return Value(self.op("Pad", value.name, self.constant(amounts)), value.counted)
        return None

    def _sliced(self, value: str, parts: tuple[slice, ...], before: Tensor) -> str:
        chosen = [(axis, part.indices(size)) for axis, (part, size) in enumerate(zip(parts, before.shape, strict=False)) if part != slice(None)]
        columns = [
            [start for _, (start, _, _) in chosen],
            [stop for _, (_, stop, _) in chosen],
            [axis for axis, _ in chosen],
            [step for *_, (_, _, step) in chosen],
        ]
        return self.op("Slice", value, *(self.constant(np.array(column, np.int64)) for column in columns))

    def model(self, shape: tuple[int, ...], outputs: dict[str, tuple[str, int, torch.Size]]) -> Any:
        """The checked model, its input called `input`; outputs by name, each a value, its type and shape."""
        onnx, helper = library("onnx"), library("onnx.helper")
        renamed = [helper.make_node("Identity", [value], [name]) for name, (value, *_) in outputs.items()]
        given = [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["batch", *shape])]
        results = [helper.make_tensor_value_info(name, kind, ["batch", *sizes[1:]]) for name, (_, kind, sizes) in outputs.items()]
        graph = helper.make_graph(self.nodes + renamed, "teas", given, results, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="teas", ir_version=8)
        onnx.checker.check_model(model)
        return model
