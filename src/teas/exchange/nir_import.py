"""From NIR: a graph of nodes as a network. Everything in the file is checked; none of it is trusted."""

from __future__ import annotations

import graphlib
import json
import operator
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from teas.errors import TeasError
from teas.exchange.imported import Windows, spiking
from teas.exchange.native import checked_header
from teas.exchange.nir_file import Tree, read_tree
from teas.exchange.nir_nodes import array, number, synapse
from teas.spiking.network import SpikingNetwork
from teas.spiking.neuron import IF, RESETS
from teas.spiking.surrogate import SURROGATES

DT = 1e-4
_NAME = re.compile(r"[A-Za-z_0-9]+(\.[A-Za-z_0-9]+)*")
_NODES, _SIZE = 10_000, 2**26


def from_nir(source: Path | str | Any, windows: Windows = None, *, dt: float = DT, **semantics: str) -> SpikingNetwork:
    """The network of a NIR file, or of a `nir.NIRGraph`.

    A file that `teas.to_nir` wrote gives the windows, semantics and spikes of the network that was written; `windows` replaces its windows.
    Of other files `windows` must say how many steps to run, and `dt` how long a step is, in seconds: `IF` becomes `V <- V + R·dt·I`, `LIF`
    `V <- V + dt/τ·(V_leak - V + R·I)`, both reset to `v_reset`; `V > θ` fires and a tie does not, as NIR's equations say.

    Raises `TeasError` for a file that is missing or damaged, shapes that do not fit together, recurrent connections and nodes that have no
    equal here (synaptic currents, delays, one leak per neuron).
    """
    if isinstance(source, (str, Path)):
        return network_of(read_tree(Path(source)), str(source), windows, dt=dt, **semantics)
    return network_of(source.to_dict(), "the NIR graph", windows, dt=dt, **semantics)


def network_of(tree: Tree, name: str, windows: Windows = None, *, dt: float = DT, **semantics: str) -> SpikingNetwork:
    """The network of a graph that was read; see `from_nir`."""
    nodes, edges = _nodes_and_edges(tree, name)
    header = _header(tree, name)
    module, neurons = _module(nodes, edges, header, header["dt"] if header else dt, name)
    if header:
        faults = sorted(set(header["windows"]) ^ set(neurons))
        if faults:
            raise TeasError(f"{name}: its teas metadata and its neurons differ at {', '.join(faults[:5])}; the file is damaged")
        semantics, windows = {**header["semantics"], **semantics}, header["windows"] if windows is None else windows
    if windows is None:
        raise TeasError(f"{name} was not written by teas, so it does not say how many steps to run; give windows=8, or a mapping from layer name to steps")
    network = SpikingNetwork(module, windows, **semantics)
    network.check_finite()
    return network.eval()


def _nodes_and_edges(tree: Tree, name: str) -> tuple[dict[str, dict[str, Any]], list[tuple[str, str]]]:
    nodes = tree.get("nodes")
    try:
        found = np.asarray(tree.get("edges", []))
    except ValueError:
        found = np.zeros(0)
    if not isinstance(nodes, dict) or not nodes or len(nodes) > _NODES or found.size > 8 * _NODES:
        raise TeasError(f"{name} has no nodes, or too many; it is not a NIR graph")
    if found.ndim != 2 or found.shape[1] != 2 or found.dtype.kind != "U":
        raise TeasError(f"{name} has no edges between names; it is not a NIR graph")
    edges = [(start, end) for start, end in found.tolist()]
    for key, node in nodes.items():
        if not isinstance(node, dict) or not isinstance(node.get("type"), str):
            raise TeasError(f"{name}: node {key!r} has no type; the file is damaged")
        if not _NAME.fullmatch(key) or len(key) > 200:
            raise TeasError(f"{name}: node name {key!r} can't be the name of a layer; use letters, digits, underscores and dots")
    if unknown := sorted({end for edge in edges for end in edge} - set(nodes)):
        raise TeasError(f"{name} has edges to nodes that are not there: {', '.join(unknown[:5])}")
    return nodes, list(dict.fromkeys(edges))


def _header(tree: Tree, name: str) -> dict[str, Any] | None:
    """The teas metadata of a graph, checked; None where there is none."""
    metadata = tree.get("metadata")
    text = metadata.get("teas") if isinstance(metadata, dict) else None
    if text is None:
        return None
    try:
        header = checked_header(json.loads(text), name)
    except (ValueError, TypeError, RecursionError) as error:
        raise error if isinstance(error, TeasError) else TeasError(f"{name}: its teas metadata is not JSON: {error}") from None
    if not isinstance(header.get("neurons"), dict) or not all(isinstance(options, dict) for options in header["neurons"].values()):
        raise TeasError(f"{name}: its teas metadata says nothing about its neurons; the file is damaged")
    header["dt"] = number(header.get("dt"), f"{name}: dt", above=0)
    return header


def _module(nodes: dict[str, Any], edges: list[tuple[str, str]], header: dict[str, Any] | None, dt: float, name: str) -> tuple[nn.Module, list[str]]:
    """The graph as a module, and the names of its spiking layers; node names become those of submodules."""
    ends = {kind: [key for key, node in nodes.items() if node["type"] == kind] for kind in ("Input", "Output")}
    if len(ends["Input"]) != 1 or len(ends["Output"]) != 1:
        raise TeasError(f"{name} has {len(ends['Input'])} inputs and {len(ends['Output'])} outputs; a spiking network has one of each")
    before: dict[str, list[str]] = {key: [] for key in nodes}
    for start, end in edges:
        before[end].append(start)
    try:
        order = list(graphlib.TopologicalSorter(before).static_order())
    except graphlib.CycleError as error:
        raise TeasError(f"{name} has recurrent connections ({' -> '.join(error.args[1][:6])}), which are not handled") from None
    root: dict[str, nn.Module] = {}
    graph, values, shapes = fx.Graph(), {}, {}
    neurons = []
    for key in order:
        node, kind, sources = nodes[key], nodes[key]["type"], before[key]
        if kind == "Input":
            shape = array(node.get("shape", node.get("input_type")), f"{key}.shape", 1).tolist()
            if not all(float(size).is_integer() and size >= 1 for size in shape) or not 1 <= len(shape) <= 4 or np.prod(shape, dtype=float) > _SIZE:
                raise TeasError(f"{name}: the input has shape {shape[:6]}; expected up to four sizes of at least 1, {_SIZE} values in all")
            values[key], shapes[key] = graph.placeholder("input"), torch.empty(1, *map(int, shape), device="meta")
            continue
        if not sources:
            raise TeasError(f"{name}: nothing leads to node {key!r}")
        current, seen = values[sources[0]], shapes[sources[0]]
        for other in sources[1:]:
            if shapes[other].shape != seen.shape:
                raise TeasError(f"{name}: {key!r} adds {tuple(seen.shape[1:])} and {tuple(shapes[other].shape[1:])}")
            current = graph.call_function(operator.add, (current, values[other]))
        if kind == "Output":
            graph.output(current)
            continue
        _check_free(key, root, name)
        root[key] = _neurons(key, node, header, dt, seen) if kind in ("IF", "LIF") else synapse(key, node, seen)
        neurons += [key] if kind in ("IF", "LIF") else []
        values[key], shapes[key] = graph.call_module(key, (current,)), _shape_after(root[key], seen, key)
    return fx.GraphModule(root, graph, "NIRGraph"), neurons


def _check_free(key: str, root: dict[str, nn.Module], name: str) -> None:
    """A node may not take the name of something that every module has, nor lie inside a node."""
    parts = key.split(".")
    if any(hasattr(fx.GraphModule, part) or hasattr(nn.Module(), part) for part in parts):
        raise TeasError(f"{name}: node {key!r} has the name of a part of every module; rename it")
    if any(".".join(parts[:n]) in root for n in range(1, len(parts))) or any(other.startswith(f"{key}.") for other in root):
        raise TeasError(f"{name}: node {key!r} lies inside another node; rename it")


def _shape_after(module: nn.Module, value: Tensor, key: str) -> Tensor:
    if isinstance(module, IF):
        return value
    try:
        result: Tensor = module.to("meta")(value) if not list(module.state_dict()) else _on_meta(module)(value)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise TeasError(f"node {key!r} can't read a value of shape {tuple(value.shape[1:])}: {str(error).splitlines()[0]}") from None
    if result.numel() > _SIZE or result.numel() == 0:
        raise TeasError(f"node {key!r} makes a value of shape {tuple(result.shape[1:])}, which is empty or beyond any use")
    return result


def _on_meta(module: nn.Module) -> Any:
    shadow = {key: torch.empty_like(value, device="meta") for key, value in module.state_dict().items()}
    return lambda value: torch.func.functional_call(module, shadow, (value.to(next(iter(shadow.values())).dtype),))


def _neurons(key: str, node: dict[str, Any], header: dict[str, Any] | None, dt: float, before: Tensor) -> IF:
    shape = tuple(before.shape[1:])
    theta = array(node.get("v_threshold"), f"{key}.v_threshold", shape=shape)
    v_reset = number(array(node.get("v_reset", np.zeros(shape)), f"{key}.v_reset", shape=shape), f"{key}.v_reset")
    threshold, per_channel = _per_channel(theta, key)
    if header is not None:
        return _our_neurons(key, header["neurons"].get(key), threshold, per_channel, v_reset)
    r = number(array(node.get("r"), f"{key}.r", shape=shape), f"{key}.r", above=0)
    if node["type"] == "IF":
        return spiking(threshold, gain=r * dt, strict=True, dtype=theta.dtype, v_reset=v_reset / (r * dt))
    tau = number(array(node.get("tau"), f"{key}.tau", shape=shape), f"{key}.tau", above=0)
    rest = number(array(node.get("v_leak"), f"{key}.v_leak", shape=shape), f"{key}.v_leak")
    if not dt < tau:
        raise TeasError(f"{key}: tau is {tau:g} s, which is not longer than a step of {dt:g} s; give another dt")
    gain = r * dt / tau
    return spiking(threshold - rest, leak=1 - dt / tau, gain=gain, strict=True, dtype=theta.dtype, v_reset=(v_reset - rest) / gain)


def _per_channel(theta: Tensor, key: str) -> tuple[Tensor, bool]:
    """Thresholds of all neurons as one number, or one per channel."""
    flat = theta.flatten(1) if theta.dim() > 1 else theta.unsqueeze(1)
    if not bool((flat == flat[:, :1]).all()):
        raise TeasError(f"{key} has a threshold per neuron; here it is a number, or one per channel")
    channel = flat[:, 0].clone()
    same = bool((channel == channel[0]).all())
    return (channel[0] if same else channel), not same


def _our_neurons(key: str, options: Any, threshold: Tensor, per_channel: bool, v_reset: float) -> IF:
    """Neurons as the metadata says, their thresholds from the graph."""
    if not isinstance(options, dict) or options.get("reset") not in RESETS or options.get("surrogate") not in tuple(SURROGATES):
        raise TeasError(f"the teas metadata about {key!r} is damaged: {str(options)[:200]}")
    numbers: dict[str, Any] = {name: number(options.get(name, plain), f"{key}.{name}") for name, plain in (("leak", 1.0), ("v0", 0.0), ("reset_by", 1.0))}
    leak = numbers.pop("leak")
    if not 0 < leak <= 1:
        raise TeasError(f"the teas metadata about {key!r} is damaged: its leak is {leak:g}")
    return spiking(threshold, leak=leak, dtype=threshold.dtype, reset=options["reset"], surrogate=options["surrogate"], v_reset=v_reset, **numbers)
