"""Amplitudes into weights: a network whose layers send bare spikes, so that convolutions read whole numbers."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from teas.engine.plan import ADDITIONS, CONVOLUTIONS, IDENTITIES, is_affine
from teas.spiking.network import SpikingNetwork
from teas.spiking.neuron import Amplitude
from teas.spiking.trace import Layer, Operation

_BY_CHANNEL = (
    *IDENTITIES, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
)  # fmt: skip
_BY_CHANNEL_NAMES = {"max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "boolean_dispatch", "fn", "dropout", "contiguous"}
_ONE = torch.ones(())


class _Unfoldable(Exception):
    """Why an amplitude stays where it is."""


@dataclass
class _Value:
    """A value is `unit` times what is sent, per channel; where weights make it, they can be divided by any unit that is wanted."""

    unit: Tensor
    divide: list[Callable[[Tensor], None]] = field(default_factory=list)
    flat: bool = False  # features are channels times places

    @property
    def plain(self) -> bool:
        return bool((self.unit == 1).all())


@torch.no_grad()
def fold_amplitudes(network: SpikingNetwork) -> tuple[SpikingNetwork, dict[str, str]]:
    """A copy that computes the same, with the amplitudes of converted layers in the weights that read them, and why some are left.

    A shortcut without weights keeps its unit: the weights that are added to it, and the threshold, are divided by it. What is left, by layer.
    """
    left: dict[str, str] = {}
    while True:
        twin = copy.deepcopy(network)
        edits: list[Callable[[], None]] = []
        scaled: set[str] = set()
        failed = None
        for layer in twin.layers:
            try:
                _Folder(twin, layer, left, edits, scaled).fold()
            except _Unfoldable as reason:
                failed = {source: str(reason) for source in _amplified(twin, layer) if source not in left}
                break
        if not failed:
            break
        left |= failed
    for edit in edits:
        edit()
    for layer in twin.layers:
        for operation in layer.synapses:
            if operation.inputs and operation.inputs[0] in layer.sources and operation.inputs[0] not in left and _is_amplitude(twin, operation):
                _replace(twin.module, str(operation.target), nn.Identity().train(network.training))
    return twin, left


def _is_amplitude(network: SpikingNetwork, operation: Operation) -> bool:
    return isinstance(operation.child(network.module), Amplitude)


def _amplified(network: SpikingNetwork, layer: Layer) -> list[str]:
    return [operation.inputs[0] for operation in layer.synapses if _is_amplitude(network, operation)]


def _replace(module: nn.Module, path: str, child: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, child)


@dataclass
class _Folder:
    network: SpikingNetwork
    layer: Layer
    left: dict[str, str]
    edits: list[Callable[[], None]]
    scaled: set[str]  # operations whose weights an edit already scales, noted in this layer or, where several read their current, in another

    def __post_init__(self) -> None:
        self.operations = {operation.name: operation for operation in self.layer.synapses}
        every = [operation for layer in self.network.layers for operation in layer.synapses if operation.kind == "call_module"]
        self.uses = Counter(target for _, target in {(operation.name, str(operation.target)) for operation in every})
        self.readers = Counter(operation.name for operation in every)
        self.values: dict[str, _Value] = {}

    def fold(self) -> None:
        """Note every edit of this layer's weights and threshold; raises `_Unfoldable`."""
        value = self.value(self.layer.current)
        if value.plain:
            return
        if self.layer.neurons is None:
            raise _Unfoldable("the output is the layer's own activation, with no weights after it")
        if value.flat:
            raise _Unfoldable("its train is flattened before it reaches neurons")
        if sum(other.neurons == self.layer.neurons for other in self.network.layers) > 1:
            raise _Unfoldable(f"the neurons {self.layer.neurons} are those of several layers")
        neurons = self.network.neurons(self.layer.name)
        lower = (neurons.threshold / value.unit).detach()

        def edit() -> None:
            if isinstance(neurons.threshold, nn.Parameter):
                neurons.threshold = nn.Parameter(lower)
            else:
                neurons.threshold = lower

        self.edits.append(edit)

    def value(self, name: str) -> _Value:
        """The unit of a value."""
        if name not in self.values:
            self.values[name] = self._value(name)
        return self.values[name]

    def _value(self, name: str) -> _Value:
        if name not in self.operations:
            return _Value(_ONE)
        operation = self.operations[name]
        child = operation.child(self.network.module)
        values = [self.value(source) for source in operation.inputs]
        target = getattr(operation.target, "__name__", operation.target)
        if isinstance(child, Amplitude):
            folds = operation.inputs[0] in self.layer.sources and operation.inputs[0] not in self.left
            return _Value(child.value.detach() * values[0].unit if folds else values[0].unit)
        if isinstance(child, (*CONVOLUTIONS, nn.Linear)):
            return self._weighted(operation, child, values[0])
        if is_affine(child) and values[0].plain:
            return _Value(_ONE, [lambda unit: self._divide(operation, child, unit)])
        if operation.target in ADDITIONS and not operation.kwargs and len(values) == 2:
            return self._sum(*values)
        if target in ("cat", "concat") and not any(value.flat for value in values):
            if len({value.unit.dim() for value in values}) == 1 and values[0].unit.dim() == 1:
                return _Value(torch.cat([value.unit for value in values]))
        elif isinstance(child, _BY_CHANNEL) or target in _BY_CHANNEL_NAMES or (target == "mean" and str(operation.args[1:]) in ("((2, 3),)", "([2, 3],)")):
            return values[0]
        elif isinstance(child, nn.Flatten) or target == "flatten":
            return _Value(values[0].unit, flat=True)
        elif target == "getitem" and isinstance(operation.args[1], tuple) and operation.args[1][:2] == (slice(None), slice(None)):
            return values[0]
        elif target == "pad" and not values[0].flat:
            return self._padded(operation, values[0])
        if all(value.plain for value in values):
            return _Value(_ONE)
        raise _Unfoldable(f"{target if child is None else type(child).__name__} in layer {self.layer.name!r} mixes channels of different amplitudes")

    def _sum(self, first: _Value, second: _Value) -> _Value:
        """Two branches in one unit: that of a branch without weights, where there is one."""
        if first.divide and second.divide:
            return _Value(_ONE, first.divide + second.divide)
        if not first.divide and not second.divide:
            if first.flat != second.flat or bool((first.unit != second.unit).any()):
                raise _Unfoldable(f"layer {self.layer.name!r} adds trains of different amplitudes without weights")
            return first
        free, fixed = (first, second) if first.divide else (second, first)
        if not fixed.plain:
            if fixed.flat:
                raise _Unfoldable(f"layer {self.layer.name!r} adds a flattened train without weights")
            for divide in free.divide:
                divide(fixed.unit)
        return _Value(fixed.unit)

    def _padded(self, operation: Operation, value: _Value) -> _Value:
        around: tuple[int, ...] = tuple(operation.args[1]) if len(operation.args) > 1 else ()
        if value.unit.dim() == 0 or len(around) < 6:
            return _Value(value.unit)
        return _Value(torch.cat([torch.ones(around[4]), value.unit, torch.ones(around[5])]))  # zeros, in any unit

    def _weighted(self, operation: Operation, child: nn.Module, value: _Value) -> _Value:
        assert isinstance(child, (*CONVOLUTIONS, nn.Linear))
        if not value.plain:
            self._once(operation)
            if isinstance(child, nn.Linear):
                factor = value.unit if value.unit.dim() == 0 else value.unit.repeat_interleave(child.in_features // len(value.unit))
            else:
                groups = value.unit.expand(child.in_channels).view(child.groups, -1)
                factor = groups.repeat_interleave(child.out_channels // child.groups, 0)
                factor = factor.view(*factor.shape, *[1] * (child.weight.dim() - 2))
            if operation.name not in self.scaled:
                self.scaled.add(operation.name)
                self.edits.append(lambda: _scale(child.weight, factor))
        return _Value(_ONE, [lambda unit: self._divide(operation, child, unit)])

    def _divide(self, operation: Operation, child: nn.Module | None, unit: Tensor) -> None:
        """Note that an operation's result is to be divided by a unit per channel."""
        self._once(operation)
        if self.readers[operation.name] > 1:
            raise _Unfoldable(f"the current of {operation.target} charges several layers")
        assert isinstance(child, nn.Module)
        weight, bias = child.weight, child.bias
        if not isinstance(weight, Tensor):
            raise _Unfoldable(f"the batch norm {operation.target} has no weights of its own")
        rows = unit if unit.dim() == 0 else unit.view(-1, *[1] * (weight.dim() - 1))
        self.edits.append(lambda: _scale(weight, 1 / rows))
        if isinstance(bias, Tensor):
            self.edits.append(lambda: _scale(bias, 1 / unit))

    def _once(self, operation: Operation) -> None:
        if self.uses[str(operation.target)] > 1:
            raise _Unfoldable(f"the weights of {operation.target} are used at several places")


def _scale(values: Tensor, factor: Tensor) -> None:
    values.detach().mul_(factor)
