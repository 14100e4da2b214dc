"""Operations and energy of one inference, counted on true fan-out: padding, stride, groups and dilation included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from teas.engine import choose_engine
from teas.engine.sharing import Share, currents, without
from teas.errors import TeasError
from teas.spiking.network import SpikingNetwork
from teas.spiking.neuron import Amplitude
from teas.spiking.synapses import call_operation
from teas.spiking.trace import INPUT, Layer, Operation

# Energy of one operation in pJ: 45 nm, M. Horowitz, "Computing's energy problem", ISSCC 2014. A MAC is a multiplication and an addition.
REGIMES: dict[str, dict[str, float]] = {
    "FP32": {"mac": 4.6, "add": 0.9},
    "FP16": {"mac": 1.5, "add": 0.4},
    "INT32": {"mac": 3.2, "add": 0.1},
    "INT8": {"mac": 0.23, "add": 0.03},
}
# One access to a small on-chip SRAM in pJ: 5 for a word of 32 bits (half of Horowitz's 10 for 64 bits of an 8 KB cache), in proportion to the bits.
ACCESS = {"FP32": 5.0, "FP16": 2.5, "INT32": 5.0, "INT8": 1.25}
MULTIPLY = {"FP32": (3.7, 32), "FP16": (1.1, 16), "INT32": (3.1, 32), "INT8": (0.2, 8)}  # pJ, and bits of a factor
_INTEGER = ("INT32", "INT8")  # where the energy of a multiplier goes with the product of its factors' bits
PIXEL_BITS = 8


@dataclass(frozen=True)
class Operations:
    """Operations of one layer for one image.

    dense: MACs of the same synapses in an ANN. analog: MACs on analog input, computed once per image. synaptic: additions, one for each
    spike and synapse it reaches. updates: neuron updates, one addition a neuron and step, and
    one more under the radix code, whose potentials double at each step. transform: neurons re-timed on the way in, one MAC each.
    A current that an earlier layer was charged with too is not computed again: it costs one addition a neuron, among the updates. Only where trains are
    re-timed to each layer's own window (immediate firing) its spikes are added anew.
    """

    dense: float
    analog: float
    synaptic: float
    updates: float
    transform: float

    def energy(self, regime: str) -> float:
        """Energy in pJ without memory: `E_MAC·(analog + transform) + E_add·(synaptic + updates)`."""
        price = REGIMES[regime]
        return price["mac"] * (self.analog + self.transform) + price["add"] * (self.synaptic + self.updates)

    def memory(self, regime: str) -> float:
        """Energy in pJ of memory accesses where nothing is reused: `E_access·(3·synaptic + 2·(updates + analog + transform))`.

        An addition reads a weight, reads a potential and writes it back; an update reads and writes a potential; a MAC reads its two factors.
        """
        return ACCESS[regime] * (3 * self.synaptic + 2 * (self.updates + self.analog + self.transform))


def total(operations: Mapping[str, Operations]) -> Operations:
    """Sum over the layers."""
    return Operations(*(sum(getattr(item, field.name) for item in operations.values()) for field in fields(Operations)))


@torch.no_grad()
def count_operations(network: SpikingNetwork, inputs: Tensor) -> dict[str, Operations]:
    """Operations per layer, mean over the images of a batch `[batch, *shape]`; a readout is listed under its own name."""
    training = network.training
    network.eval()
    # Under two-phase firing the counts that a layer emits are those that the next receives, and no train is needed.
    two_phase = network.semantics.firing == "two_phase"
    record = (choose_engine(network, inputs.device).prepare(network, keep="counts")(inputs) if two_phase else network(inputs, keep_spikes=True)).record
    result, shares = {}, _shares(network)
    for layer in network.layers:
        share = shares[layer.name]
        given = inputs.sum(1) if network.semantics.encoding == "train" else inputs
        received = {name: given if name == INPUT else record[name].sent for name in layer.sources}
        if layer.neurons is not None:
            received |= record[layer.name].received or {}
        analog = {INPUT} if network.semantics.encoding == "direct" else set()
        dense, macs, additions = _synaptic_operations(layer, received, analog, network.module, share, two_phase)
        window = network.windows[layer.name] if layer.neurons is not None else 0
        # Under two-phase firing the factor T'/T folds into the threshold: re-timing costs nothing.
        moved = [] if two_phase or layer.neurons is None else [n for n in layer.sources if n != INPUT]
        transform = sum(record[name].count[0].numel() for name in moved if network.windows[name] != window)
        neurons = record[layer.name].count[0].numel() if layer.neurons is not None else 0
        updates = window * neurons * (2 if network.semantics.code == "radix" else 1) + neurons * len(share.imports)
        result[layer.name] = Operations(dense, macs, additions, float(updates), float(transform))
    network.train(training)
    return result


def _shares(network: SpikingNetwork) -> dict[str, Share]:
    """By layer, in order, what it computes itself, where it imports the currents that an earlier layer computed."""
    result: dict[str, Share] = {}
    known: set[str] = set()
    for layer in network.layers:
        result[layer.name] = without(layer, known)
        known |= currents(result[layer.name], network)
    return result


def _synaptic_operations(
    layer: Layer, received: Mapping[str, Tensor], analog: set[str], module: nn.Module, share: Share, two_phase: bool
) -> tuple[float, float, float]:
    """Dense MACs, MACs on analog values, and additions per spike, per image: spikes are followed through pooling, sums and reshapes."""
    values: dict[str, object] = dict(received)
    own = {operation.name for operation in share.layer.synapses}
    kinds = {name: "analog" if name in analog else "spikes" for name in received}  # of each value; "current" after a synapse
    dense = macs = additions = 0.0
    for operation in layer.synapses:
        value = values[operation.name] = call_operation(operation, values, module)
        sources = [name for name in operation.inputs if name in kinds]
        if not sources or not isinstance(value, Tensor):
            continue
        kind = next((kind for kind in ("current", "analog", "spikes") if kind in {kinds[name] for name in sources}), "spikes")
        child = operation.child(module)
        if _name(operation, child) in _UNCOUNTED:
            raise TeasError(f"the operations of {operation.name} ({_name(operation, child)}) can't be counted; use nn.Linear or nn.Conv1d, 2d, 3d for synapses")
        fan_out = _fan_out(child, values[sources[0]]) if child is not None else None
        if fan_out is not None:
            events = values[sources[0]]
            assert isinstance(events, Tensor)
            batch = max(1, len(events))
            is_own = operation.name in own
            reached = float(fan_out.expand_as(events[:1]).sum()) if is_own else 0.0
            dense += reached
            if kind == "spikes" and (is_own or not two_phase):
                additions += float((events * fan_out).sum(dtype=torch.float64)) / batch
            elif kind != "spikes":
                macs += reached
            kind = "current"
        elif kind == "spikes":
            values[operation.name] = _passed_on(operation, child, values[sources[0]], value)
        kinds[operation.name] = kind
    return dense, macs, additions


def _fan_out(child: nn.Module | None, value: object) -> Tensor | None:
    """Synapses that leave each input position, `[1, *neuron]`; None where the module has no weights."""
    assert isinstance(value, Tensor)
    if isinstance(child, nn.Linear):
        return torch.full_like(value[:1], child.out_features)
    if isinstance(child, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        with torch.enable_grad():
            one = torch.ones_like(value[:1]).requires_grad_()
            output = child._conv_forward(one, torch.ones_like(child.weight), None)
            return torch.autograd.grad(output.sum(), one)[0]
    return None  # a batch norm folds into the synapses beside it


def _name(operation: Operation, child: nn.Module | None) -> str:
    return type(child).__name__ if child is not None else str(getattr(operation.target, "__name__", operation.target)).rstrip("_")


def _passed_on(operation: Operation, child: nn.Module | None, before: object, after: Tensor) -> Tensor:
    """Spikes after an operation without synapses of its own: each passes through pooling whole, and a factor folds into the weights behind it."""
    assert isinstance(before, Tensor)
    name = _name(operation, child)
    if isinstance(child, (Amplitude, nn.modules.batchnorm._BatchNorm)) or name in ("mul", "imul", "truediv", "div"):
        return before
    if name in ("AvgPool2d", "avg_pool2d"):
        size = child.kernel_size if isinstance(child, nn.AvgPool2d) else operation.kwargs.get("kernel_size", (*operation.args, None)[1])
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        return after * (int(height) * int(width))
    if name in ("AdaptiveAvgPool2d", "adaptive_avg_pool2d", "mean"):
        return after * (before[:1].numel() / max(1, after[:1].numel()))
    return after


_UNCOUNTED = {"linear", "conv1d", "conv2d", "conv3d", "matmul", "bmm", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Bilinear"}


def ann_energy(operations: Mapping[str, Operations], regime: str) -> float:
    """Energy in pJ of an ANN with the same synapses, one MAC each, without memory."""
    return REGIMES[regime]["mac"] * total(operations).dense


def ann_memory(operations: Mapping[str, Operations], regime: str) -> float:
    """Energy in pJ of that ANN's memory accesses where nothing is reused: each MAC reads its two factors."""
    return 2 * ACCESS[regime] * total(operations).dense


def quantised_ann_energy(network: SpikingNetwork, operations: Mapping[str, Operations], regime: str) -> float:
    """Energy in pJ, without memory, of an ANN that knows no more than the spiking network: activations of `ceil(log2(T + 1))` bits (radix code: `T`).

    `Σ_l dense_l·(E_mul·bits_l/bits + E_add)` with the regime's weights; pixels have 8 bits. Only in integer regimes, where bits have a price.
    """
    multiply, bits = MULTIPLY[regime]
    result, shares = 0.0, _shares(network)
    for layer in network.layers:
        levels = max((PIXEL_BITS if name == INPUT else network.levels[name].bit_length() for name in shares[layer.name].layer.sources), default=0)
        result += operations[layer.name].dense * (multiply * levels / bits + REGIMES[regime]["add"])
    return result


def costs(network: SpikingNetwork, operations: Mapping[str, Operations]) -> dict[str, dict[str, float]]:
    """Energy per image in nJ by regime: of the network without memory and its memory's, the same of the ANN, and of the quantised ANN."""
    whole = total(operations)
    return {
        "energy": {regime: whole.energy(regime) / 1000 for regime in REGIMES},
        "memory": {regime: whole.memory(regime) / 1000 for regime in REGIMES},
        "ann_energy": {regime: ann_energy(operations, regime) / 1000 for regime in REGIMES},
        "ann_memory": {regime: ann_memory(operations, regime) / 1000 for regime in REGIMES},
        "quantised_ann_energy": {regime: quantised_ann_energy(network, operations, regime) / 1000 for regime in _INTEGER},
    }
