"""To NIR: the network as a graph of nodes that other tools and chips read."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from teas.errors import TeasError
from teas.exchange.native import FORMAT, neuron_options
from teas.exchange.nir_file import write_graph
from teas.exchange.optional import library
from teas.spiking.network import SpikingNetwork
from teas.spiking.neuron import IF, Amplitude
from teas.spiking.synapses import call_operation
from teas.spiking.trace import INPUT, READOUT, Operation

DT = 1e-4  # seconds a step, what tools that read NIR take by default
_SKIPPED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def unsayable(network: SpikingNetwork) -> list[str]:
    """What NIR's own equations do not say about a network: it would be lost on a reader that does not know the metadata."""
    semantics, faults = network.semantics, []
    if len(set(network.windows.values())) > 1:
        faults.append("unequal windows")
    faults += [f"{what} {value!r}" for what, value, plain in [
        ("firing", semantics.firing, "immediate"), ("code", semantics.code, "rate"), ("encoding", semantics.encoding, "direct"),
    ] if value != plain]  # fmt: skip
    for name in network.spiking_layers:
        neurons = network.neurons(name)
        if neurons.reset == "subtract":
            faults.append(f"reset by subtraction of layer {name!r}")
        if neurons.v0:
            faults.append(f"initial potential of layer {name!r}")
    return faults


def to_nir(network: SpikingNetwork, path: Path | str, shape: tuple[int, ...], *, strict: bool = True, dt: float = DT) -> None:
    """Write a network to a NIR file, atomically; `teas.from_nir` reads it back with the same windows, semantics and spikes.

    shape: of one input. dt: seconds a step; a neuron is `τ dV/dt = -V + R·I` with `τ = dt/(1 - leak)`, or `dV/dt = I/dt`.
    strict: refuse what NIR's own equations do not say (unequal windows, two-phase firing, first spikes, reset by subtraction, initial
    potentials); with False it is written as metadata, which other tools ignore: they then run another network.

    Batch norms are folded into the synapses before them. Raises `TeasError` with all reasons where something can't be written.
    """
    nir = library("nir")
    if strict and (faults := unsayable(network)):
        more = f" and {len(faults) - 6} more" if len(faults) > 6 else ""
        raise TeasError(
            f"NIR has no words for {'; '.join(faults[:6])}{more}. strict=False writes them as metadata, which teas reads and other tools ignore, "
            "so that they run another network"
        )
    network.check_finite()
    writer = _Writer(network, nir, dt)
    writer.write(torch.zeros(1, *shape, dtype=next((p.dtype for p in network.parameters()), torch.float32)))
    options = {
        name: {**given, "leak": network.neurons(name).leak, "threshold": "channel" if network.neurons(name).threshold.dim() else "number"}
        for name, given in neuron_options(network).items()
    }
    header = {"format": FORMAT, "dt": dt, "windows": dict(network.windows), "semantics": asdict(network.semantics), "neurons": options}
    write_graph(nir.NIRGraph(writer.nodes, writer.edges, metadata={"teas": json.dumps(header)}, type_check=False), Path(path))


class _Writer:
    """Collects nodes and edges while the operations run once on zeros, for their shapes."""

    def __init__(self, network: SpikingNetwork, nir: Any, dt: float):
        self.network, self.nir, self.dt = network, nir, dt
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.sources: dict[str, tuple[str, ...]] = {}  # value -> the nodes whose sum it is
        self.faults: list[str] = []

    def write(self, inputs: Tensor) -> None:
        module = self.network.module
        training = module.training
        module.eval()
        self._add("input", self.nir.Input(input_type={"input": np.array(inputs.shape[1:])}), ())
        values: dict[str, Any] = {INPUT: inputs}
        with torch.no_grad():
            for layer in self.network.layers:
                uses = Counter(name for operation in layer.synapses for name in operation.inputs)
                for operation in layer.synapses:
                    values[operation.name] = self._run(operation, values)
                    self._operation(operation, values, uses)
                values[layer.name] = values[layer.current]
                if layer.neurons is not None:
                    self._add(layer.name, self._neurons(self.network.neurons(layer.name), values[layer.current].shape[1:]), self.sources[layer.current])
                else:
                    self.sources[READOUT] = self.sources[layer.current]
        module.train(training)
        if "#" in "".join(self.network.spiking_layers):
            self.faults.append("neurons that are used twice")
        if self.faults:
            raise TeasError("NIR has no node for " + "; ".join(self.faults[:8]))
        last = self.network.layers[-1].name
        self._add("output", self.nir.Output(output_type={"output": np.array(values[last].shape[1:])}), self.sources[last])

    def _run(self, operation: Operation, values: dict[str, Any]) -> Any:
        try:
            return call_operation(operation, values, self.network.module)
        except RuntimeError as error:
            shape = tuple(values[INPUT].shape[1:])
            raise TeasError(f"the network does not take inputs of the shape {shape} that was given: {str(error).splitlines()[0]}") from None

    def _add(self, name: str, node: Any, sources: tuple[str, ...]) -> None:
        if len(set(sources)) < len(sources):
            self.faults.append(f"a value that is added to itself before {name}")
        self.nodes[name] = node
        self.edges += [(source, name) for source in sources]
        self.sources[INPUT if name == "input" else name] = (name,)

    def _operation(self, operation: Operation, values: dict[str, Any], uses: Counter[str]) -> None:
        carriers = [name for name in operation.inputs if name in self.sources]
        target: Any = operation.target
        child = self.network.module.get_submodule(target) if operation.kind == "call_module" else None
        plain = (target if isinstance(target, str) else getattr(target, "__name__", "")).rstrip("_")
        if not carriers or plain in ("size", "getattr", "dim"):
            return
        before, after = values[carriers[0]], values[operation.name]
        name = str(target) if child is not None and str(target) not in self.nodes else operation.name
        if isinstance(child, _SKIPPED):
            self.sources[operation.name] = self.sources[carriers[0]]
        elif child is None and plain in ("add", "iadd") and len(carriers) == 2 and before.shape == values[carriers[1]].shape:
            self.sources[operation.name] = self.sources[carriers[0]] + self.sources[carriers[1]]
        elif isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
            self._fold(child, carriers[0], operation.name, uses)
        elif (node := self._node(child, plain, before, after)) is None:
            self.faults.append(f"{name} ({type(child).__name__ if child is not None else plain})")
            self.sources[operation.name] = ("?",)
        else:
            self._add(name, node, self.sources[carriers[0]])
            self.sources[operation.name] = (name,)

    def _node(self, child: Any, plain: str, before: Tensor, after: Tensor) -> Any:
        """The NIR node of an operation, None where there is none."""
        nir = self.nir
        if isinstance(child, nn.Linear) and before.dim() == 2:
            weight = _array(child.weight)
            return nir.Linear(weight) if child.bias is None else nir.Affine(weight, _array(child.bias))
        if isinstance(child, (nn.Conv1d, nn.Conv2d)) and child.padding_mode == "zeros":
            bias = np.zeros(child.out_channels, _array(child.weight).dtype) if child.bias is None else _array(child.bias)
            if isinstance(child, nn.Conv1d):
                return nir.Conv1d(before.shape[2], _array(child.weight), child.stride[0], _one(child.padding), child.dilation[0], child.groups, bias)
            return nir.Conv2d(tuple(before.shape[2:]), _array(child.weight), child.stride, child.padding, child.dilation, child.groups, bias)
        if isinstance(child, nn.AvgPool2d) and not child.ceil_mode and child.count_include_pad and child.divisor_override is None:
            return nir.AvgPool2d(*(np.array(_pair(size)) for size in (child.kernel_size, child.stride, child.padding)))
        if isinstance(child, nn.AdaptiveAvgPool2d) and all(a % b == 0 for a, b in zip(before.shape[2:], after.shape[2:], strict=True)):
            size = np.array([a // b for a, b in zip(before.shape[2:], after.shape[2:], strict=True)])
            return nir.AvgPool2d(size, size, np.array([0, 0]))
        if isinstance(child, Amplitude):
            factor = child.value if child.value.dim() == 0 else child.value.view(-1, *[1] * (before.dim() - 2))
            return nir.Scale(np.ascontiguousarray(np.broadcast_to(_array(factor), before.shape[1:])))
        if (isinstance(child, nn.Flatten) or plain in ("flatten", "view", "reshape")) and after.dim() == 2 and after.shape[1] == before[0].numel():
            return nir.Flatten({"input": np.array(before.shape[1:])}, 0, -1)
        return None

    def _fold(self, norm: Any, source: str, name: str, uses: Counter[str]) -> None:
        """Fold a batch norm in evaluation mode into the only synapse before it: `w <- w·s`, `b <- b·s + shift`."""
        before = self.nodes.get(self.sources[source][0]) if len(self.sources[source]) == 1 else None
        self.sources[name] = self.sources[source]
        if not isinstance(before, (self.nir.Conv1d, self.nir.Conv2d, self.nir.Affine, self.nir.Linear)) or uses[source] != 1 or norm.running_mean is None:
            self.faults.append(f"{name} (a batch norm without a synapse of its own before it)")
            return
        scale = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
        shift = (0 if norm.bias is None else norm.bias) - norm.running_mean * scale
        weight = before.weight * _array(scale).reshape(-1, *[1] * (before.weight.ndim - 1))
        if isinstance(before, self.nir.Linear):
            self.nodes[self.sources[source][0]] = self.nir.Affine(weight, _array(shift))
        else:
            before.weight, before.bias = weight, before.bias * _array(scale) + _array(shift)

    def _neurons(self, neurons: IF, shape: torch.Size) -> Any:
        theta = neurons.threshold_for(torch.empty(1, *shape, device=neurons.threshold.device))
        threshold = np.ascontiguousarray(np.broadcast_to(_array(theta), shape))

        def full(value: float) -> np.ndarray:
            return np.full(shape, value, threshold.dtype)

        if neurons.leak == 1:
            return self.nir.IF(r=full(1 / self.dt), v_threshold=threshold, v_reset=full(neurons.v_reset))
        rest = 1 - neurons.leak
        return self.nir.LIF(tau=full(self.dt / rest), r=full(1 / rest), v_leak=full(0.0), v_threshold=threshold, v_reset=full(neurons.v_reset))


def _array(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()


def _one(padding: Any) -> Any:
    return padding if isinstance(padding, str) else padding[0]


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)
