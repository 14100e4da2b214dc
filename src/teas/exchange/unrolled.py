"""Find the one step that a forward pass repeats: a time axis `[time, batch, *neuron]`, or a loop over steps that tracing unrolled."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from teas.errors import TeasError

_ADD = (operator.add, operator.iadd, torch.add, "add", "add_")
_POINTWISE = (*_ADD, operator.sub, torch.sub, "contiguous")


def one_step(graph: fx.Graph, neurons: set[str], time_axis: bool) -> tuple[int | None, bool]:
    """Rewrite the graph to a single step; returns the number of steps where the graph says it, and whether the input has a time axis.

    Raises `TeasError` where steps differ from one another, or the time axis is used in another way than repeating and averaging.
    """
    steps = _drop_time_axis(graph, neurons) if time_axis else None
    calls = _calls(graph, neurons)
    if not calls:
        raise TeasError("no spiking layer of the network is ever called")
    counts = {len(found) for found in calls.values()}
    if len(counts) > 1:
        uneven = ", ".join(f"{name} {len(found)}" for name, found in calls.items())
        raise TeasError(f"the forward pass calls its spiking layers unequally often ({uneven}); give every use a module of its own")
    loop = counts.pop()
    result = _strip(_first(graph)) if loop > 1 else _first(graph)
    expressions = _Expressions(calls)
    outputs = _per_step(result, loop)
    texts = {expressions.of(node, step) for step, node in enumerate(outputs)}
    for found in calls.values():
        if len({expressions.of(node.args[0], step) for step, node in enumerate(found)}) > 1:
            raise TeasError("the steps of the loop differ from one another; hand over the network of a single step instead")
    if len(texts) > 1:
        raise TeasError("what the steps of the loop return differs from step to step; hand over the network of a single step instead")
    _keep(graph, calls, outputs[0])
    return (loop if loop > 1 else steps), expressions.reads_steps


def _calls(graph: fx.Graph, neurons: set[str]) -> dict[str, list[fx.Node]]:
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module" and node.target in neurons:
            calls.setdefault(str(node.target), []).append(node)
    return calls


def _first(graph: fx.Graph) -> Any:
    """What the network returns; of several things, the first."""
    result = next(node for node in graph.nodes if node.op == "output").args[0]
    return result[0] if isinstance(result, tuple) else result


def _name(node: Any) -> str:
    return (node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")) if node.op != "call_module" else ""


def _axis(node: Any) -> Any:
    return node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis"))


def _strip(node: Any) -> Any:
    """The value before the mean over steps and the division by their number."""
    while isinstance(node, fx.Node):
        if (_name(node) == "mean" and _axis(node) == 0) or (_name(node) in ("truediv", "div") and isinstance(node.args[1], (int, float))):
            node = node.args[0]
        else:
            break
    return node


def _per_step(result: Any, loop: int) -> list[fx.Node]:
    """The output of each step: items of a stack, or terms of a sum."""
    if isinstance(result, fx.Node) and _name(result) in ("stack", "cat"):
        result = result.args[0]
    if isinstance(result, (list, tuple)):
        found = list(result)
    else:
        found, node = [], result
        while loop > 1 and isinstance(node, fx.Node) and node.target in _ADD and len(found) < loop - 1:
            found.insert(0, node.args[1])
            node = node.args[0]
        found.insert(0, node)
    found = [item for item in found if isinstance(item, fx.Node)]
    if len(found) != loop:
        raise TeasError(f"the loop runs its spiking layers {loop} times but returns {len(found)} values; return the stack, the mean or the sum of every step")
    return found


class _Expressions:
    """Each value as text in which the k-th call of a spiking layer is that layer, so that equal steps read alike."""

    def __init__(self, calls: dict[str, list[fx.Node]]):
        self.step_of = {node: step for found in calls.values() for step, node in enumerate(found)}
        self.known: dict[tuple[fx.Node, int], str] = {}
        self.reads_steps = False

    def of(self, value: Any, step: int) -> str:
        if isinstance(value, (list, tuple)):
            return "(" + ",".join(self.of(item, step) for item in value) + ")"
        if not isinstance(value, fx.Node):
            return repr(value)
        if (value, step) not in self.known:
            self.known[value, step] = self._text(value, step)
        return self.known[value, step]

    def _text(self, node: Any, step: int) -> str:
        if node in self.step_of:
            if self.step_of[node] != step:
                raise TeasError(f"{node.target} feeds another step of the loop: recurrent connections are not handled")
            return str(node.target)
        if node.op == "placeholder":
            return "input"
        if node.target is operator.getitem and node.args[0].op == "placeholder" and node.args[1] == step:
            self.reads_steps = True
            return "input[step]"
        if node.target is operator.getitem and node.args[0] in self.step_of:
            if node.args[1] != 0:
                raise TeasError("the network returns or passes on membrane potentials; only spikes travel between layers here: return the spikes")
            return self.of(node.args[0], step)
        keywords = ",".join(f"{key}={self.of(item, step)}" for key, item in node.kwargs.items())
        return f"{node.op}:{node.target}{self.of(node.args, step)}{keywords}"


def _keep(graph: fx.Graph, calls: dict[str, list[fx.Node]], result: fx.Node) -> None:
    """Reduce the graph to the first step; states that travel from step to step go."""
    output = next(node for node in graph.nodes if node.op == "output")
    output.args = (result,)
    for found in calls.values():
        found[0].args = found[0].args[:1]
        found[0].kwargs = {}
    node: Any
    for node in graph.nodes:
        picks = node.target is operator.getitem
        spikes = picks and node.args[0] in {found[0] for found in calls.values()} and node.args[1] == 0
        if spikes or (picks and node.args[0].op == "placeholder" and node.args[1] == 0):
            node.replace_all_uses_with(node.args[0])
    for node in list(graph.nodes):  # optional inputs, initial states among them
        if node.op == "placeholder" and node.args:
            node.replace_all_uses_with(None)
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("output", "placeholder"):
            graph.erase_node(node)
    for node in list(graph.nodes):
        if node.op == "placeholder" and not node.users:
            graph.erase_node(node)


def _drop_time_axis(graph: fx.Graph, neurons: set[str]) -> int | None:
    """Turn operations on `[time, batch, *neuron]` into those of one step; returns the steps of a repeat where there is one."""
    steps = None
    node: Any
    for node in list(graph.nodes):
        name = _name(node)
        if node.op not in ("call_function", "call_method") or name in ("getattr", "size") or node.target in _POINTWISE:
            continue
        sizes = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], (list, tuple)) else node.args[1:]
        if name in ("unsqueeze", "unsqueeze_") and _axis(node) == 0:
            node.replace_all_uses_with(node.args[0])
        elif name in ("repeat", "expand") and sizes and isinstance(sizes[0], int) and all(size in (1, -1) for size in sizes[1:]):
            steps = int(sizes[0])
            node.replace_all_uses_with(node.args[0])
        elif name == "mean" and _axis(node) == 0 and set(node.users) <= {next(n for n in graph.nodes if n.op == "output")}:
            node.replace_all_uses_with(node.args[0])
        elif name in ("flatten", "cat") and isinstance(_axis(node), int) and abs(_axis(node)) >= 2:
            axis = _axis(node)
            node.args, node.kwargs = (node.args[0], axis - 1 if axis > 0 else axis), {}
        else:
            raise TeasError(
                f"{name} on a tensor [time, batch, *neuron] can't be told apart from one step of it; move it into a layer of the network, "
                "set the network to single steps, or hand over the part that runs each step"
            )
    return steps
