"""Trace any module with torch.fx and cut it at its spiking layers."""

from __future__ import annotations

import functools
import inspect
import linecache
import operator
import os
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from teas.errors import TeasError
from teas.spiking.neuron import IF, Amplitude

INPUT = "input"
READOUT = "readout"
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Ref:
    """A value computed earlier: the input, a spiking layer's output, or an operation's result."""

    name: str


def map_refs(arguments: Any, kind: type, replace: Callable[[Any], Any]) -> Any:
    """Nested arguments with every item of one kind replaced."""
    return fx.node.map_aggregate(arguments, lambda item: replace(item) if isinstance(item, kind) else item)


def part_of(module: nn.Module, path: str) -> nn.Module:
    """`module.get_submodule(path)` without its checks: a training step asks often."""
    for name in path.split(".") if path else ():
        found = module._modules[name]
        assert found is not None
        module = found
    return module


@dataclass(frozen=True)
class Operation:
    """One synaptic operation of a layer: a call of a module, a function, a method, or a look-up of an attribute."""

    name: str
    kind: str  # torch.fx opcode
    target: str | Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @functools.cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values that this operation reads."""
        found: list[str] = []
        map_refs((self.args, self.kwargs), Ref, lambda ref: found.append(ref.name))
        return tuple(found)

    def filled(self, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Its arguments, with the values that it reads."""
        if self._reads_one:
            return (values[self.inputs[0]],), {}
        filled: tuple[tuple[Any, ...], dict[str, Any]] = map_refs((self.args, self.kwargs), Ref, lambda ref: values[ref.name])
        return filled

    @functools.cached_property
    def _reads_one(self) -> bool:
        return len(self.args) == 1 and isinstance(self.args[0], Ref) and not self.kwargs

    def child(self, module: nn.Module) -> nn.Module | None:
        """The part of `module` that it calls; None where it calls something else."""
        return part_of(module, str(self.target)) if self.kind == "call_module" else None


@dataclass(frozen=True)
class Layer:
    """One population of spiking neurons with the synapses that feed it; `neurons` is None for a readout."""

    name: str
    neurons: str | None  # path of the IF or LIF inside the module
    sources: tuple[str, ...]  # INPUT or layer names, whose trains are re-timed to this layer's window
    synapses: tuple[Operation, ...]
    current: str  # the value that charges the neurons

    @functools.cached_property
    def without_last(self) -> tuple[Layer, Operation] | None:
        """The layer up to its last operation, and that one, where it is a module's that makes the current of one value alone."""
        last = self.synapses[-1] if self.synapses else None
        if last is None or last.kind != "call_module" or last.name != self.current or len(last.inputs) != 1 or last.kwargs:
            return None
        return replace(self, synapses=self.synapses[:-1], current=last.inputs[0]), last


class OneInputTracer(fx.Tracer):
    """A tracer for modules that are called with their input alone: further arguments have their defaults."""

    def create_args_for_root(self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        arguments = list(inspect.signature(root_fn).parameters.values())[1:]
        if len(arguments) > 1 and all(argument.default is not argument.empty or argument.kind in _VARIADIC for argument in arguments[1:]):
            return super().create_args_for_root(lambda module, inputs: root_fn(module, inputs), is_module, concrete_args)
        return super().create_args_for_root(root_fn, is_module, concrete_args)


class _Tracer(OneInputTracer):
    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return isinstance(module, (IF, Amplitude)) or super().is_leaf_module(module, path)


def untraceable(module: nn.Module, error: Exception) -> TeasError:
    """The line of the user's own code that breaks tracing, and what to do about it."""
    library = tuple(f"{folder}{os.sep}" for folder in (torch.__path__[0], Path(__file__).parents[1]))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(library)]
    where = ""
    if frames:
        frame = frames[-1]
        line = frame.line or linecache.getline(frame.filename, frame.lineno or 0).strip()
        where = f' at {frame.filename}:{frame.lineno} in {frame.name}: "{line}"'
    return TeasError(
        f"cannot trace {type(module).__name__}{where}. The forward pass must not depend on the values or sizes of tensors ({error}). "
        "Decide such branches by a constant set in __init__, or move that code out of the module."
    )


_OUT_OF_PLACE = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul, operator.itruediv: operator.truediv,
    F.relu_: F.relu, torch.relu_: torch.relu,
}  # fmt: skip


def without_side_effects(graph: fx.Graph, module: nn.Module) -> None:
    """Turn operations in place into ordinary ones: what reads their first argument afterwards reads their result instead.

    Trains are shared between layers, so nothing may overwrite them. (Writing into a part of a tensor can't be traced at all.)
    """
    for node in list(graph.nodes):
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        method = node.op == "call_method" and name.endswith("_") and not name.endswith("__")
        function = node.op == "call_function" and (node.target in _OUT_OF_PLACE or bool(node.kwargs.get("inplace", False)))
        child = node.op == "call_module" and bool(getattr(module.get_submodule(name), "inplace", False))
        if not (method or function or child):
            continue
        place = node.args[0]
        seen = False
        for other in graph.nodes:
            seen = seen or other is node
            if seen and other is not node:
                other.replace_input_with(place, node)
        if method:
            node.target = name.rstrip("_")
        elif function:
            node.target = _OUT_OF_PLACE.get(node.target, node.target)
            node.kwargs = {key: value for key, value in node.kwargs.items() if key != "inplace"}


def check_one_tensor(graph: fx.Graph, module: nn.Module) -> None:
    """Raise `TeasError` for a forward pass that takes more than one input or returns something else than one tensor."""
    inputs = [node for node in graph.nodes if node.op == "placeholder" and not node.args]
    if len(inputs) != 1:
        raise TeasError(f"{type(module).__name__}.forward takes {len(inputs)} inputs; a spiking network has exactly one")
    result = graph.output_node().args[0]
    if not isinstance(result, fx.Node):
        kind = next((kind.__name__ for kind in (dict, list, tuple) if isinstance(result, kind)), type(result).__name__)
        raise TeasError(f"{type(module).__name__}.forward returns a {kind}; it must return one tensor: wrap it in a module that returns the logits alone")


def cut(module: nn.Module) -> tuple[Layer, ...]:
    """The layers of a module, in order of execution; the last is a readout unless the output is itself a spiking layer.

    Raises `TeasError` where the module can't be traced (naming the line), has no spiking layer, takes more than one input
    or returns more than one tensor.
    """
    try:
        graph = _Tracer().trace(module)
    except TeasError:
        raise
    except Exception as error:  # the module's own code runs here and may raise anything
        raise untraceable(module, error) from error
    without_side_effects(graph, module)
    check_one_tensor(graph, module)
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    neurons = {name for name, child in module.named_modules() if isinstance(child, IF)}
    layers: list[Layer] = []
    layer_of: dict[fx.Node, str] = {inputs[0]: INPUT}
    uses: Counter[str] = Counter()
    for node in graph.nodes:
        if node.op == "call_module" and node.target in neurons:
            uses[node.target] += 1
            name = node.target if uses[node.target] == 1 else f"{node.target}#{uses[node.target]}"
            layers.append(_layer(name or "neurons", node.target, node.all_input_nodes[0], layer_of))
            layer_of[node] = layers[-1].name
        elif node.op == "output":
            result: Any = node.args[0]
            if not layers:
                raise TeasError(f"{type(module).__name__} has no spiking layer; put teas.IF() or teas.LIF() where its activations are")
            if layer_of.get(result) != layers[-1].name:
                layers.append(_layer(READOUT, None, result, layer_of))
    return tuple(layers)


def _layer(name: str, neurons: str | None, current: fx.Node, layer_of: dict[fx.Node, str]) -> Layer:
    """Everything between the nearest spiking layers upstream and `current`."""
    wanted, pending = set(), [current]
    while pending:
        node = pending.pop()
        if node not in wanted:
            wanted.add(node)
            pending += [] if node in layer_of else node.all_input_nodes
    graph_order = [node for node in current.graph.nodes if node in wanted]
    sources = {node: layer_of[node] for node in graph_order if node in layer_of}
    if not sources:
        raise TeasError(f"layer {name!r} does not depend on the network's input")

    def renamed(value: Any) -> Any:
        return map_refs(value, fx.Node, lambda node: Ref(sources.get(node, node.name)))

    synapses = tuple(Operation(node.name, node.op, node.target, renamed(node.args), renamed(node.kwargs)) for node in graph_order if node not in layer_of)
    return Layer(name, neurons, tuple(sources.values()), synapses, sources.get(current, current.name))
