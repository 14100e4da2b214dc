"""SpikingNetwork: any traceable module, cut at its spiking layers, each with its own time window. Its forward pass is the definition."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace

import torch
from torch import Tensor, nn

from teas.errors import TeasError
from teas.spiking.checks import check_call, check_inputs, shape_noted
from teas.spiking.coding import BINARY, RADIX_LONGEST, count_to_train, encode, first_spike_time, levels_of, radix_train, spikes_of
from teas.spiking.neuron import IF, Emission, run_immediate, run_two_phase
from teas.spiking.recompute import kept_as_bits, recomputed
from teas.spiking.record import LayerRecord, Output, Record
from teas.spiking.semantics import Semantics
from teas.spiking.synapses import run_synapses
from teas.spiking.temporal_transform import retime
from teas.spiking.time_windows import TimeWindows
from teas.spiking.trace import INPUT, Layer, cut, part_of
from teas.spiking.window import Norm, joins_window


class SpikingNetwork(nn.Module):
    """A spiking neural network in which every layer runs its own time window.

    module: any `nn.Module` that torch.fx can trace, whose activations are `IF` or `LIF` layers. It is shared, not copied.
    windows: steps per layer (`TimeWindows` or a mapping), or one integer for all of them.
    semantics: keyword options, see `Semantics`.

    The input `[batch, *shape]` is encoded over the window of each layer that reads it. A train that crosses to a layer with another window
    is re-timed on that edge (Eq. 3); branches that meet are each re-timed to the window of the layer that receives them. Logits are firing
    rates (radix code: counts over the largest) or negative first spike times (first-spike code) of a spiking output layer (Eq. 7), or else the mean
    current of a readout.
    Training under immediate firing keeps trains as bits and the sums of synapses, and computes potentials again on its way back; with the attribute
    `recompute` set it keeps the trains alone, and runs each layer's synapses again too.

    Raises `TeasError` for a module that can't be traced or has no spiking layer, windows that don't fit, or options that exclude each other.
    """

    def __init__(self, module: nn.Module, windows: Mapping[str, int] | int, **semantics: str):
        super().__init__()
        unknown = set(semantics) - set(Semantics.__dataclass_fields__)
        if unknown:
            raise TeasError(f"unknown option {sorted(unknown)[0]!r}; the options are {', '.join(Semantics.__dataclass_fields__)}")
        self.semantics = Semantics(**semantics)
        self.module = module
        self.layers = cut(module)
        self._paths = {layer.name: layer.neurons for layer in self.layers if layer.neurons is not None}
        self.spiking_layers = tuple(self._paths)
        self._check_neurons()
        if self.semantics.code == "first_spike" and self.layers[-1].neurons is None:
            raise TeasError("code 'first_spike' reads the first spike times of the output: end the module with teas.IF()")
        if self.semantics.encoding == "train" and self.layers[-1].neurons is None and INPUT in self.layers[-1].sources:
            raise TeasError("the output reads the input itself, which encoding 'train' gives in steps; let spiking layers read the train")
        self.windows = windows
        self.recompute = False

    @property
    def windows(self) -> TimeWindows:
        """Time windows of the spiking layers; assigning others swaps them without touching the weights."""
        return self._windows

    @windows.setter
    def windows(self, windows: Mapping[str, int] | int) -> None:
        value = TimeWindows.of(windows, self.spiking_layers)
        if self.semantics.code == "radix" and value.max > RADIX_LONGEST:
            raise TeasError(f"code 'radix' says 2^T - 1 levels in T steps, and windows are at most {RADIX_LONGEST}; the longest here is {value.max}")
        self._windows = value

    @property
    def levels(self) -> dict[str, int]:
        """The largest count of each spiking layer: its window `T`, or `2^T - 1` under the radix code."""
        return {layer: levels_of(steps, self.semantics.code) for layer, steps in self.windows.items()}

    def with_windows(self, windows: Mapping[str, int] | int) -> SpikingNetwork:
        """The same network, sharing its weights, at other windows."""
        twin = copy.copy(self)
        twin.windows = windows
        return twin

    def neurons(self, layer: str) -> IF:
        """The `IF` or `LIF` module of a spiking layer."""
        module = part_of(self.module, self._paths[layer])
        assert isinstance(module, IF)
        return module

    def _check_neurons(self) -> None:
        for name in self.spiking_layers:
            neurons = self.neurons(name)
            neurons.check_threshold(f"of layer {name!r}")
            if self.semantics.firing == "two_phase" and (neurons.reset != "subtract" or neurons.leak != 1 or neurons.reset_by != 1):
                seen = f"reset {neurons.reset!r}, leak {neurons.leak:g}, reset_by {neurons.reset_by:g}"
                raise TeasError(f"two_phase firing needs reset 'subtract' by one threshold and no leak; layer {name!r} has {seen}")

    def check_finite(self) -> None:
        """Raise `TeasError` that names the first parameter or buffer with a NaN or infinite value, or a threshold that is not positive."""
        for name, value in [*self.module.named_parameters(), *self.module.named_buffers()]:
            if not value.isfinite().all():
                raise TeasError(f"{name} has a NaN or infinite value; the weights are damaged or the training diverged (lower the learning rate)")
        self._check_neurons()

    def forward(self, inputs: Tensor, keep_spikes: bool = False, given: Mapping[str, Emission] | None = None) -> Output:
        """Logits and a record per layer for inputs `[batch, *shape]`; `keep_spikes` keeps every train in the record.

        given: what some layers emit, taken as it is instead of being computed.
        Raises `TeasError` for weights in 16 bits, where torch.export runs it, and for inputs that are not finite: before any work, but on a GPU that
        trains once its step is under way, and never while a step is captured as a CUDA graph.
        """
        check_call(self.module, inputs)
        run, check = self._run, check_inputs(inputs)
        if torch.compiler.is_compiling():  # it can't be traced; what takes time in it is compiled already
            run = torch.compiler.disable(run)  # type: ignore[no-untyped-call]
        output = run(inputs, keep_spikes, given)
        check()
        return output

    def _run(self, inputs: Tensor, keep_spikes: bool, given: Mapping[str, Emission] | None) -> Output:
        with shape_noted(inputs):
            return self._pass(inputs, keep_spikes, given)

    def _pass(self, inputs: Tensor, keep_spikes: bool, given: Mapping[str, Emission] | None) -> Output:
        emissions: dict[str, Emission] = {}
        record: Record = {}
        for layer in self.layers:
            if layer.neurons is None:
                return Output(self._readout(layer, inputs, emissions), record)
            emission = given[layer.name] if given and layer.name in given else self.emission(layer, inputs, emissions)
            emissions[layer.name] = emission
            record[layer.name] = self._recorded(emission, layer.name == self.spiking_layers[-1])
            if keep_spikes:
                record[layer.name] = self._with_spikes(record[layer.name], layer, inputs, emissions)
            self._release(layer, emissions)
        if self.semantics.code != "first_spike":
            return Output(emission.rate, record)
        assert emission.spikes is not None
        return Output(-first_spike_time(emission.spikes), record)

    def emission(self, layer: Layer, inputs: Tensor, emissions: Mapping[str, Emission], disturb: Callable[[Tensor], Tensor] | None = None) -> Emission:
        """What a spiking layer emits, given what its sources emit.

        disturb: changes what charges the neurons: the currents `[time, batch, *neuron]`, or their sum `[batch, *neuron]` under two-phase firing.
        """
        window, neurons, code = self.windows[layer.name], self.neurons(layer.name), self.semantics.code
        if self.semantics.firing == "two_phase":
            levels = levels_of(window, code)
            charge = run_synapses(layer, self._counts(layer, inputs, emissions, levels), self.module, scale=levels)
            charge = charge.float() if charge.dtype == torch.bfloat16 else charge
            return run_two_phase(disturb(charge) if disturb else charge, window, neurons, code)
        trains = self._trains(layer, inputs, emissions, window)
        if disturb or not torch.is_grad_enabled():
            sums = self._sums(layer, trains)
            current = disturb(sums.expand(window, *sums.shape[1:])) if disturb else sums
            return run_immediate(current, neurons, code == "first_spike", window)
        return self._learning(layer, trains, window, neurons)

    def _learning(self, layer: Layer, trains: dict[str, Tensor], window: int, neurons: IF) -> Emission:
        """What a layer emits under immediate firing, to be learned from: kept are its trains, as bits, and, unless `recompute` is set, its sums."""
        names, once = tuple(trains), self.semantics.code == "first_spike"
        binary = [train for name, train in trains.items() if name != INPUT or self.semantics.encoding in BINARY]
        before, norm = self._without_norm(layer)

        def run(*values: Tensor) -> Emission:
            return run_immediate(self._sums(before, dict(zip(names, values, strict=True))), neurons, once, window, norm)

        if self.recompute:
            called = [child for operation in layer.synapses if (child := operation.child(self.module))]
            return recomputed(run, list(trains.values()), binary, called)
        with kept_as_bits(binary):
            sums = self._sums(before, trains)
        return run_immediate(sums, neurons, once, window, norm)

    def _without_norm(self, layer: Layer) -> tuple[Layer, Norm | None]:
        """The layer's synapses up to a batch norm right before its neurons, and that norm, where it can be part of their window."""
        if layer.without_last is None:
            return layer, None
        before, last = layer.without_last
        norm = last.child(self.module)
        return (before, norm) if joins_window(norm) else (layer, None)

    def _release(self, layer: Layer, emissions: dict[str, Emission]) -> None:
        """Forget the trains that no later layer reads."""
        later = self.layers[self.layers.index(layer) + 1 :]
        for name in layer.sources:
            if name != INPUT and not any(name in other.sources for other in later):
                emissions[name] = replace(emissions[name], spikes=None)

    def _trains(self, layer: Layer, inputs: Tensor, emissions: Mapping[str, Emission], window: int) -> dict[str, Tensor]:
        """What reaches a layer from each source, `[time, batch, *neuron]`; an analog input is the same at every step and has one."""
        semantics = self.semantics
        how = {"code": semantics.code, "transform": semantics.transform, "layout": semantics.layout, "rounding": semantics.rounding}
        return {name: encode(inputs, window, semantics.encoding) if name == INPUT else retime(emissions[name], window, **how) for name in layer.sources}

    def _sums(self, layer: Layer, trains: dict[str, Tensor]) -> Tensor:
        """What the synapses make of the trains, `[time, batch, *neuron]`, all steps in one pass; of analog inputs alone, which are alike, one step."""
        steps = max(train.shape[0] for train in trains.values())
        folded = {name: train.expand(steps, *train.shape[1:]).flatten(0, 1) for name, train in trains.items()}
        sums = run_synapses(layer, folded, self.module, steps=steps)
        return sums.view(steps, sums.shape[0] // steps, *sums.shape[1:])

    def _counts(self, layer: Layer, inputs: Tensor, emissions: Mapping[str, Emission], levels: int) -> dict[str, Tensor]:
        """The counts of the sources, re-scaled to the receiver's largest."""
        counts = {}
        for name in layer.sources:
            if name != INPUT:
                source = emissions[name]
                largest = levels_of(source.window, source.code)
                counts[name] = source.count if largest == levels else source.count * (levels / largest)
            elif self.semantics.encoding == "direct":
                counts[name] = inputs * levels
            else:
                counts[name] = encode(inputs, levels, self.semantics.encoding).sum(0)
        return counts

    def _readout(self, layer: Layer, inputs: Tensor, emissions: Mapping[str, Emission]) -> Tensor:
        """Mean current of an output without neurons: its synapses applied to the firing rates."""
        rates = {name: inputs if name == INPUT else emissions[name].rate for name in layer.sources}
        return run_synapses(layer, rates, self.module)

    def outputs_by_step(self, record: Record) -> Tensor:
        """What the output says at each step, `[time, batch, class]`: the spikes of the last layer, through a readout's synapses where there is one.

        Raises `TeasError` under two-phase firing or the first-spike code, and for a readout of several layers, whose steps differ.
        """
        last, train = self.layers[-1], record[self.spiking_layers[-1]].spikes
        if train is None or self.semantics.code != "rate" or (last.neurons is None and last.sources != (self.spiking_layers[-1],)):
            raise TeasError("an output step by step needs immediate firing, the rate code and one last spiking layer; use loss 'rate'")
        if last.neurons is not None:
            return train
        current = run_synapses(last, {last.sources[0]: train.flatten(0, 1)}, self.module, steps=len(train))
        return current.view(*train.shape[:2], *current.shape[1:])

    def _recorded(self, emission: Emission, is_last: bool) -> LayerRecord:
        spikes = emission.spikes if is_last else None
        return LayerRecord(emission.window, emission.count, emission.fired, emission.residual.detach(), spikes, code=emission.code)

    def _with_spikes(self, record: LayerRecord, layer: Layer, inputs: Tensor, emissions: Mapping[str, Emission]) -> LayerRecord:
        emission = emissions[layer.name]
        others = [name for name in layer.sources if name != INPUT]
        if self.semantics.firing == "two_phase":
            train = radix_train if self.semantics.code == "radix" else count_to_train
            received = {name: spikes_of(emissions[name].count, emissions[name].window, self.semantics.code) for name in others}
            return replace(record, spikes=train(emission.count, emission.window), received=received)
        trains = self._trains(replace(layer, sources=tuple(others)), inputs, emissions, emission.window)
        return replace(record, spikes=emission.spikes, received={name: train.sum(0) for name, train in trains.items()})

    def extra_repr(self) -> str:
        return f"windows={dict(self.windows)}, " + ", ".join(f"{key}={value}" for key, value in asdict(self.semantics).items())
