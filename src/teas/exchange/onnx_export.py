"""To ONNX: a two-phase network is an integer-quantised network, so it becomes one: 8-bit counts and weights, integer sums, a closed form per layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from teas.errors import TeasError
from teas.exchange.onnx_graph import Graph, Value, per_channel
from teas.exchange.optional import library
from teas.files import write_atomically
from teas.spiking.network import SpikingNetwork
from teas.spiking.neuron import Amplitude
from teas.spiking.synapses import call_operation
from teas.spiking.trace import INPUT, Layer, Operation

MAX_BYTE, MAX_WEIGHT = 255, 127
EXACT = 2**24  # float32 holds every integer below
_SKIPPED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_SIZES = ("size", "getattr", "dim")


def to_onnx(network: SpikingNetwork, path: Path | str, shape: tuple[int, ...], *, counts: bool = False) -> dict[str, str]:
    """Write a two-phase network to an ONNX file, atomically: inputs `[batch, *shape]` float32 in, logits `[batch, class]` out.

    Spike counts travel between layers as 8-bit integers and are dequantised where they are read (QDQ). Convolutions and linear maps of counts whose
    weights are 8-bit integers times a power of two per channel (`teas.engine.quantise` makes them so) keep 8-bit weights, and their sums are exact
    in any order; a layer then fires `n = clip(floor((v0·θ + Σz)/θ), 0, T')`. The readout is computed in float64 and rounded once.
    counts: also give the counts of every layer, as outputs of the layers' names.

    Returns, for each synapse whose sums may be rounded, in an order of the runtime's own, why: there a count may differ by one.
    Raises `TeasError` with all reasons for immediate firing, windows beyond 255, encodings other than direct, and operations without an ONNX form.
    """
    onnx = library("onnx")
    if faults := _unsayable(network):
        raise TeasError(f"this network can't become an integer ONNX graph: {'; '.join(faults)}")
    network.check_finite()
    writer = _Writer(network)
    with torch.no_grad():
        writer.write(torch.zeros(1, *shape))
    if writer.graph.faults:
        raise TeasError(f"no ONNX form is known for {'; '.join(writer.graph.faults[:8])}")
    outputs = {"logits": (writer.logits, onnx.TensorProto.FLOAT, writer.shapes[network.layers[-1].name].shape)}
    if counts:
        outputs |= {name: (f"count/{name}", onnx.TensorProto.UINT8, writer.shapes[name].shape) for name in network.spiking_layers}
    write_atomically(Path(path), writer.graph.model(shape, outputs).SerializeToString())
    return writer.rounded


def _unsayable(network: SpikingNetwork) -> list[str]:
    semantics, faults = network.semantics, []
    if semantics.firing != "two_phase":
        faults.append(f"it has firing {semantics.firing!r}, not 'two_phase'")
    if semantics.encoding != "direct":
        faults.append(f"it has encoding {semantics.encoding!r}, not 'direct'")
    faults += [f"layer {name!r} has counts up to {largest}, more than 8 bits hold" for name, largest in network.levels.items() if largest > MAX_BYTE]
    if any(parameter.dtype != torch.float32 for parameter in network.parameters()):
        faults.append("its weights are not float32: network.float()")
    if any("#" in name for name in network.spiking_layers):
        faults.append("it uses neurons twice")
    return faults


class _Writer:
    """Walks the layers in order; operations run once on zeros, for their shapes."""

    def __init__(self, network: SpikingNetwork):
        self.network = network
        self.graph = Graph()
        self.rounded: dict[str, str] = {}
        self.logits = ""
        self.shapes: dict[str, Any] = {}

    def write(self, inputs: Tensor) -> None:
        shapes = self.shapes = {INPUT: inputs}
        counts: dict[str, Value] = {}
        for layer in self.network.layers:
            values: dict[str, Value] = {name: counts[name] for name in layer.sources if name != INPUT}
            readout = layer.neurons is None
            levels = 1 if readout else self.network.levels[layer.name]
            if INPUT in layer.sources:
                scaled = self.graph.op("Cast", "input", to="double") if readout else self.graph.op("Mul", "input", self.graph.constant(np.float32(levels)))
                values[INPUT] = Value(scaled)
            for operation in layer.synapses:
                shapes[operation.name] = call_operation(operation, shapes, self.network.module)
                self._operation(layer, operation, values, shapes, levels)
            self.shapes[layer.name] = shapes[layer.current]
            charge = self._charge(values[layer.current], levels, readout)
            if readout:
                self.logits = self.graph.op("Cast", charge, to="float")
                return
            counts[layer.name] = self._fire(layer, charge, levels, shapes[layer.current])
        rates = self.graph.op("Cast", counts[self.network.layers[-1].name].name, to="double")
        self.logits = self.graph.op("Cast", self.graph.op("Div", rates, self.graph.constant(np.float64(levels))), to="float")

    def _charge(self, value: Value, levels: int, readout: bool) -> str:
        """A value in charge of the receiver's levels, float32; in a readout rates, float64."""
        if value.counted is None:
            return value.name
        if readout:
            return self.graph.op("Div", self.graph.op("Cast", value.name, to="double"), self.graph.constant(np.float64(value.counted)))
        return self.graph.op("DequantizeLinear", value.name, self.graph.constant(np.float32(levels / value.counted)))

    def _fire(self, layer: Layer, charge: str, levels: int, shape: Tensor) -> Value:
        """`n = clip(floor((v0·θ + charge)/θ), 0, T')`, in the order of the reference's own operations."""
        neurons, graph = self.network.neurons(layer.name), self.graph
        theta = neurons.threshold_for(shape).detach()
        theta = theta.unsqueeze(0) if theta.dim() else theta
        potential = graph.op("Add", graph.constant((neurons.v0 * theta).numpy()), charge) if neurons.v0 else charge
        ratio = graph.op("Floor", graph.op("Div", potential, graph.constant(theta.numpy())))
        clipped = graph.op("Clip", ratio, graph.constant(np.float32(0)), graph.constant(np.float32(levels)))
        return Value(graph.op("Cast", clipped, to="uint8", output=f"count/{layer.name}"), levels)

    def _operation(self, layer: Layer, operation: Operation, values: dict[str, Value], shapes: dict[str, Any], levels: int) -> None:
        carriers = [name for name in operation.inputs if name in values]
        target: Any = operation.target
        child = self.network.module.get_submodule(target) if operation.kind == "call_module" else None
        plain = (target if isinstance(target, str) else getattr(target, "__name__", "")).rstrip("_")
        if not carriers or plain in _SIZES:
            return
        readout, where = layer.neurons is None, f"{layer.name}/{operation.name}"
        first = values[carriers[0]]
        before, after = shapes[carriers[0]], shapes[operation.name]
        if isinstance(child, _SKIPPED):
            values[operation.name] = first
        elif isinstance(child, (nn.Linear, nn.Conv2d, nn.Conv1d)):
            values[operation.name] = Value(self._weighted(child, first, levels, readout, where))
        elif moved := self.graph.moved(child, plain, operation, first, before, after):
            values[operation.name] = moved
        elif child is None and plain in ("add", "iadd") and len(carriers) == 2:
            terms = [self._charge(values[name], levels, readout) for name in carriers]
            values[operation.name] = Value(self.graph.op("Add", *terms))
        elif isinstance(child, Amplitude):
            factor = per_channel(child.value.detach(), before.dim())
            values[operation.name] = self._scaled(first, factor.double() if readout else factor, levels, readout)
        elif isinstance(child, (nn.AvgPool2d, nn.AdaptiveAvgPool2d)) or plain in ("avg_pool2d", "adaptive_avg_pool2d", "mean"):
            values[operation.name] = self._averaged(child, plain, operation, first, levels, readout, before, after)
        elif isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)) and child.running_mean is not None and child.running_var is not None:
            values[operation.name] = self._normed(child, first, levels, readout, before.dim())
        else:
            self.graph.faults.append(f"{where} ({type(child).__name__ if child is not None else plain})")
            values[operation.name] = first

    def _scaled(self, value: Value, factor: Tensor, levels: int, readout: bool) -> Value:
        return Value(self.graph.op("Mul", self._charge(value, levels, readout), self.graph.constant(factor.numpy())))

    def _averaged(self, child: Any, plain: str, operation: Operation, value: Value, levels: int, readout: bool, before: Tensor, after: Tensor) -> Value:
        charge, graph = self._charge(value, levels, readout), self.graph
        if before.dim() == 4 and after[0, 0].numel() == 1 and (after.dim() == 2 or after.dim() == 4):
            axes = graph.constant(np.array([2, 3], np.int64))
            return Value(graph.op("ReduceMean", charge, axes, keepdims=int(after.dim() == 4)))
        if isinstance(child, nn.AvgPool2d) and not child.ceil_mode and child.divisor_override is None and not readout:
            return Value(graph.pool("AveragePool", child, charge, count_include_pad=int(child.count_include_pad)))
        graph.faults.append(f"{operation.name} ({type(child).__name__ if child is not None else plain})")
        return value

    def _normed(self, norm: Any, value: Value, levels: int, readout: bool, dims: int) -> Value:
        """A batch norm in evaluation mode that nothing folds: `scale·x + T'·shift`."""
        scale = (norm.running_var.double() + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight.double())
        shift = levels * ((0 if norm.bias is None else norm.bias.double()) - norm.running_mean.double() * scale)
        kind = torch.float64 if readout else torch.float32
        scaled = self._scaled(value, per_channel(scale, dims).to(kind), levels, readout)
        return Value(self.graph.op("Add", scaled.name, self.graph.constant(per_channel(shift, dims).to(kind).numpy())))

    def _weighted(self, child: Any, value: Value, levels: int, readout: bool, where: str) -> str:
        """A convolution or linear map of dequantised counts and weights; in floating point where that would not be exact."""
        weight, kind = child.weight.detach(), torch.float64 if readout else torch.float32
        bias = None if child.bias is None else (levels * child.bias.detach()).to(kind)
        if not readout and (reason := self._why_float(child, weight, value, levels)):
            self.rounded[where] = reason
        if readout or not _is_8_bit(weight):
            stored = self.graph.constant(_oriented(child, weight.to(kind)))
        else:
            step = _step(weight)
            integers = (weight / step.view(-1, *[1] * (weight.dim() - 1))).to(torch.int8)
            names = self.graph.constant(_oriented(child, integers)), self.graph.constant(step.numpy())
            if isinstance(child, nn.Linear):  # a dequantised MatMul would be fused to kernels that saturate, or round their input to 8 bits
                stored = self.graph.op("Mul", self.graph.op("Cast", names[0], to="float"), names[1])
            else:
                stored = self.graph.op("DequantizeLinear", *names, axis=0)
        charge = self._charge(value, levels, readout)
        if isinstance(child, nn.Linear) and value.counted is not None and not readout:
            charge = self.graph.op("Mul", self.graph.op("Cast", value.name, to="float"), self.graph.constant(np.float32(levels / value.counted)))
        return self.graph.weighted(child, charge, stored, bias)

    def _why_float(self, child: Any, weight: Tensor, value: Value, levels: int) -> str:
        if value.counted is None:
            return "it reads the analog input, or sums of counts"
        if value.counted & (value.counted - 1) and levels % value.counted:
            return f"counts up to {value.counted} become charge of counts up to {levels} by a factor that float32 rounds; windows that are powers of two do not"
        integers = weight / _step(weight).view(-1, *[1] * (weight.dim() - 1))
        if not _is_8_bit(weight):
            return "its weights are not 8-bit integers times a power of two (teas.engine.quantise)"
        largest = value.counted * integers.abs().flatten(1).sum(1).max().item()
        return "" if largest < EXACT else f"sums up to {largest:.0f} exceed the integers that float32 holds"


def _is_8_bit(weight: Tensor) -> bool:
    integers = weight / _step(weight).view(-1, *[1] * (weight.dim() - 1))
    return torch.equal(integers, integers.round())


def _oriented(child: Any, weight: Tensor) -> np.ndarray:
    """Weights as ONNX takes them: `MatMul` wants `[in, out]`."""
    return np.ascontiguousarray((weight.T if isinstance(child, nn.Linear) else weight).numpy())


def _step(weight: Tensor) -> Tensor:
    """The smallest power of two per output channel whose multiples up to 127 reach the largest weight."""
    largest = weight.flatten(1).abs().amax(1)
    return torch.where(largest > 0, torch.exp2((largest / MAX_WEIGHT).log2().ceil()), 1.0)
