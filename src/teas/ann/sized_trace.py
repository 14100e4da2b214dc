"""Trace a network whose forward pass looks at the sizes of tensors, for inputs of one size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from teas.spiking.trace import OneInputTracer

_EXAMPLES = "examples"
_BATCHES = (2, 3)  # what differs between them depends on the batch, and stays in the graph


class _SizedProxy(fx.Proxy):
    """A value whose sizes are known, but for those that depend on the batch."""

    @property
    def shape(self) -> Any:
        sizes = [value.shape for value in self.node.meta[_EXAMPLES]]
        asked: Any = fx.Proxy.__getattr__(self, "shape")
        return tuple(size if size == other else asked[axis] for axis, (size, other) in enumerate(zip(*sizes, strict=True)))

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    @property
    def ndim(self) -> int:
        return int(self.node.meta[_EXAMPLES][0].dim())

    def dim(self) -> int:
        return self.ndim


class SizedTracer(OneInputTracer):
    """A tracer that runs every operation on two example batches as well, and so answers when the forward pass asks for a size.

    A size that both batches share becomes a constant of the graph, which then fits inputs of the example's size alone; one that differs is asked for
    at run time, as by any tracer. tracer: says which modules are leaves. inputs: `[batch, *shape]`, of which the first is used.
    """

    record_stack_traces = True

    def __init__(self, tracer: fx.Tracer, inputs: Tensor):
        super().__init__()
        self._leaves, self._inputs = tracer, [inputs[:1].expand(size, *inputs.shape[1:]) for size in _BATCHES]
        self._running = False  # an operation, whose modules and parameters are then no business of the trace

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._leaves.is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return forward(*args, **kwargs) if self._running else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _SizedProxy(node, self)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: dict[str, Any], name: str | None = None, type_expr: Any = None) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        self._running = True
        try:
            node.meta[_EXAMPLES] = [self._run(node, batch) for batch in range(len(_BATCHES))]
        finally:
            self._running = False
        return node

    @torch.no_grad()
    def _run(self, node: fx.Node, batch: int) -> Any:
        args, kwargs = fx.node.map_aggregate((node.args, node.kwargs), lambda item: item.meta[_EXAMPLES][batch] if isinstance(item, fx.Node) else item)
        target: Any = node.target
        if node.op == "output":
            return args[0]
        if node.op == "placeholder":
            return args[0] if args else self._inputs[batch]
        if node.op == "get_attr":
            owner, _, name = target.rpartition(".")
            return getattr(self.root.get_submodule(owner), name)
        if node.op == "call_module":
            return self.root.get_submodule(target)(*args, **kwargs)
        return getattr(args[0], target)(*args[1:], **kwargs) if node.op == "call_method" else target(*args, **kwargs)
