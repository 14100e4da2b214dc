"""ANN to spiking network: trace, fold batch norms, put neurons where the activations are, and fit their thresholds on calibration data."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from teas.ann.activations import Activation, find_activations, refuse_unconvertible, traced, with_modules
from teas.ann.bias import channel_means, correct_biases
from teas.ann.calibration import Recorder, first_of, peeked, record_all
from teas.ann.histogram import Histogram
from teas.ann.quantised import SMALLEST, QuantisedReLU, set_windows
from teas.ann.thresholds import METHODS, OUTPUT, Samples, fit, fits
from teas.ann.tuning import tune
from teas.ann.unfolding import unfold
from teas.errors import TeasError, check_choice
from teas.spiking.checks import inputs_of
from teas.spiking.coding import levels_of
from teas.spiking.network import SpikingNetwork
from teas.spiking.neuron import IF, Amplitude
from teas.spiking.time_windows import TimeWindows

TRAINABLE = ("rate", "radix")  # codes of quantised activations
_PROBE, _SUSPICIOUS = 64, 0.25
_HELD_OUT = 16  # inputs to choose thresholds on, where those are chosen by the output


@dataclass(frozen=True)
class LayerReport:
    """What became of one activation: kind it was, neurons, threshold (mean over channels), window, activity, and the error of its rates.

    error: `‖θ·n/T - a‖ / ‖a‖` on the first calibration inputs, `a` the ANN's activation; errors of earlier layers are included.
    """

    layer: str
    kind: str
    neurons: int
    threshold: float
    window: int
    activity: float
    error: float


class Conversion:
    """A converted ANN before its windows are chosen: `at(windows)` fits the thresholds to them and returns the spiking network."""

    def __init__(
        self,
        ann: nn.Module,
        graph: fx.GraphModule,
        activations: list[Activation],
        samples: dict[str, Samples],
        batches: tuple[Tensor, ...],
        held_out: tuple[Tensor, ...],
        method: str,
        options: dict[str, Any],
    ):
        self._ann, self._graph, self._activations, self._samples, self._batches = ann, graph, activations, samples, batches
        self._held_out = held_out
        self._fitted: dict[tuple[str, int], Tensor] = {}
        self._answers: list[Tensor] = []
        self._mean: dict[str, Tensor] = {}
        self._method, self._options, self._v0 = method, options, float(options["v0"])

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, those of the ANN's activations."""
        return tuple(activation.name for activation in self._activations)

    def at(self, windows: Mapping[str, int] | int, *, bias_correction: bool = False, **semantics: Any) -> SpikingNetwork:
        """The spiking network at these windows; synaptic weights are shared between all networks of a conversion.

        Two-phase firing by default, so that each layer is a uniform quantiser of its activation: `θ/T · clip(floor(v0 + T·a/θ), 0, T)`, under the radix
        code (`code="radix"`) with `2^T - 1` for `T`. A network of quantised activations has the code that it was trained for.
        bias_correction: copy the weights, and shift biases by what the rates miss of the ANN's mean activations on calibration inputs.
        """
        steps = TimeWindows.of(windows, self.layers)
        code = semantics.setdefault("code", self._code)
        neurons: dict[str, nn.Module] = {}
        for activation in self._activations:
            v0 = self._v0 if activation.quantised is None else activation.quantised.v0
            fire = IF(self._threshold(activation, levels_of(steps[activation.name], code)), reset="subtract", v0=v0)
            neurons |= {activation.name: fire, f"{activation.name}_amplitude": Amplitude(fire.threshold)}
        module = with_modules(self._graph, neurons).to(self._batches[0].device).eval()
        network = SpikingNetwork(module, steps, **{"firing": "two_phase", **semantics}).eval()
        return correct_biases(network, self._means(), self._batches) if bias_correction else network

    def trainable(self, windows: Mapping[str, int] | int, *, start: SpikingNetwork | None = None, code: str = "rate") -> nn.Module:
        """A copy of the ANN for any training loop, its activations quantised as these windows make them, with thresholds that learn.

        Batch norms are kept, to be folded when the trained copy is converted in its turn: `convert(copy, calibration).at(windows)` spikes
        exactly as often as the copy's activations say, and one step of training costs one pass whatever the windows are.
        start: a converted network of the same architecture, trained before, whose weights and thresholds the copy takes instead (see `unfold`).
        code: `rate`, or `radix`.
        """
        check_choice("code", code, TRAINABLE)
        steps = TimeWindows.of(windows, self.layers)
        student = self._student(steps, code, fold=False)
        if start:
            unfold(student, start, self._batches)
            set_windows(student, steps)
        return student

    def tuned(
        self,
        windows: Mapping[str, int] | int,
        calibration: Iterable[Tensor | tuple[Tensor, ...]],
        *,
        epochs: int = 20,
        rate: float = 1e-2,
        code: str = "rate",
    ) -> Conversion:
        """This conversion with thresholds and biases fitted by gradient to the ANN's logits, for these windows: take `.at(windows)` of it.

        calibration: batches as for `convert`, of 8 to 32 inputs, a few hundred in all, without labels; an epoch takes about four times as long as
        one pass of the ANN. rate: of the logarithm of thresholds, under Adam. code: `rate`, or `radix`. Synaptic weights stay.
        `teas.ann.tuning.tune` has the equation. Raises `TeasError` for windows or calibration that do not fit.
        """
        check_choice("code", code, TRAINABLE)
        steps = TimeWindows.of(windows, self.layers)
        batches = [inputs.to(self._batches[0].device) for inputs in inputs_of(calibration)]
        student = self._student(steps, code, fold=True).eval()
        tune(student, copy.deepcopy(self._ann).eval(), batches, epochs, rate)
        return convert(student, batches, v0=self._v0)

    def _student(self, windows: TimeWindows, code: str, fold: bool) -> fx.GraphModule:
        """A copy of the ANN, its activations quantised as these windows make them."""
        graph = traced(self._ann, self._batches[0], fold=fold)
        activations = {found.name: found for found in find_activations(graph, amplitudes=False)}
        graph.delete_all_unused_submodules()
        quantisers = {
            name: QuantisedReLU(self._threshold(found, levels_of(windows[name], code)), windows[name], self._v0, code) for name, found in activations.items()
        }
        return with_modules(graph, quantisers).to(self._batches[0].device)

    @property
    def _code(self) -> str:
        """What quantised activations were trained for."""
        return next((activation.quantised.code for activation in self._activations if activation.quantised), "rate")

    def _threshold(self, activation: Activation, levels: int) -> Tensor:
        """The threshold of a layer with so many levels: the one that was learned, or else fitted to the samples."""
        if activation.quantised is not None:
            return activation.quantised.threshold.detach().clamp_min(SMALLEST)
        key = (activation.name, levels)
        if key not in self._fitted:
            samples, options = self._samples[activation.name], {**self._options, "ceiling": activation.ceiling}
            found = fits(samples, levels, **options) if self._method == OUTPUT else [fit(samples, levels, self._method, **options)]
            self._fitted[key] = found[0] if len(found) == 1 else min(found, key=lambda threshold: self._output_error(activation, threshold, levels))
        return self._fitted[key]

    @torch.no_grad()
    def _output_error(self, activation: Activation, threshold: Tensor, levels: int) -> float:
        """The squared error of the ANN's output on inputs that no threshold was fitted to, when this layer alone is quantised."""
        exact: dict[str, nn.Module] = {a.name: a.quantised or nn.Hardtanh(0.0, a.ceiling) for a in self._activations}
        if not self._answers:
            self._answers = [with_modules(self._graph, exact).eval()(inputs) for inputs in self._held_out]
        changed = with_modules(self._graph, exact | {activation.name: QuantisedReLU(threshold, levels, self._v0)}).eval()
        return sum(float((changed(inputs) - answer).square().sum()) for inputs, answer in zip(self._held_out, self._answers, strict=True))

    @torch.no_grad()
    def report(self, network: SpikingNetwork) -> list[LayerReport]:
        """Layer by layer: what it became and how far its rates are from the ANN's activations on the calibration inputs."""
        record = network(self._batches[0]).record
        activations = self._wanted(self._batches[0])
        rows = []
        for activation in self._activations:
            name, found, wanted = activation.name, record[activation.name], activations[activation.name]
            threshold = network.neurons(name).threshold_for(found.count)
            error = (threshold * found.rate - wanted).norm() / wanted.norm().clamp_min(1e-12)
            mean_threshold = float(network.neurons(name).threshold.mean())
            rows.append(LayerReport(name, activation.kind, wanted[0].numel(), mean_threshold, found.window, float(found.activity), float(error)))
        return rows

    @torch.no_grad()
    def _wanted(self, inputs: Tensor) -> dict[str, Tensor]:
        """The ANN's activations by layer."""
        recorders = {a.name: Recorder(a, Samples()) for a in self._activations}
        with_modules(self._graph, recorders).eval()(inputs)
        return {name: recorder.last for name, recorder in recorders.items()}

    def _means(self) -> dict[str, Tensor]:
        """The ANN's mean activation per layer and channel on the kept calibration inputs."""
        if not self._mean:
            found = [{name: len(inputs) * channel_means(values) for name, values in self._wanted(inputs).items()} for inputs in self._batches]
            samples = sum(len(inputs) for inputs in self._batches)
            self._mean = {name: torch.stack([means[name] for means in found]).sum(0) / samples for name in self.layers}
        return self._mean


def check_margin(margin: float, threshold: str) -> None:
    """Raise `TeasError` for a margin of thresholds that is none, or that the method leaves no room for."""
    if not 1 <= margin < math.inf:
        raise TeasError(f"margin is {margin}; it is how many times the largest activation seen a threshold is, at least 1")
    if margin != 1 and threshold not in ("maximum", OUTPUT):
        raise TeasError(
            f"margin {margin:g} goes with thresholds by maximum, not by {threshold}; set threshold to 'maximum' or {OUTPUT!r}, or leave the margin out"
        )


@torch.no_grad()
def convert(
    ann: nn.Module,
    calibration: Iterable[Tensor | tuple[Tensor, ...]],
    *,
    threshold: str = "mse",
    per_channel: bool = True,
    v0: float = 0.5,
    margin: float = 1.0,
) -> Conversion:
    """Convert a trained ANN whose activations are ReLUs (clipped ones too) to a spiking network of integrate-and-fire neurons.

    calibration: batches of inputs `[batch, *shape]`, or of tuples that begin with them; a few hundred training samples are enough.
    threshold: `mse` (least squared error at the layer's window), `percentile` (99.9th), or `maximum`; for each channel, or each layer. `output`: in each
    layer whichever of these (`mse` of all activations, not a sample; it and `maximum` with and without the margin) changes the ANN's output least with
    this layer alone quantised, on the first batches of the calibration (16 inputs or more), which none is fitted to. That takes three to five passes
    over these for every layer and window.
    v0: potential at the start of a window, in thresholds; 0.5 makes the neurons round to nearest.
    margin: with `maximum` (or `output`), how many times the largest activation seen the threshold is; above 1 where inputs to come may go beyond
    the calibration's.

    Raises `TeasError`, before any other work, with a list of every operation that can't be converted, its source line and a way out; and for
    a network without ReLU, one that can't be traced, or calibration data that is empty or not finite.
    """
    check_choice("threshold", threshold, (*METHODS, OUTPUT))
    check_margin(margin, threshold)
    first, batches = peeked(inputs_of(calibration))
    graph = traced(ann, first)
    refuse_unconvertible(graph)
    activations = find_activations(graph)
    if not activations:
        raise TeasError(f"{type(ann).__name__} has no ReLU at all, so it would become no spiking layer; only ReLU networks can be converted")
    samples = {activation.name: Samples(histogram=Histogram() if threshold == OUTPUT else None) for activation in activations}
    recorders: dict[str, nn.Module] = {a.name: Recorder(a, samples[a.name]) for a in activations}
    graph.delete_all_unused_submodules()
    kept, held_out = record_all(with_modules(graph, recorders).eval(), batches, _HELD_OUT if threshold == OUTPUT else 0)
    if any(sample.maximum is None for sample in samples.values()):
        raise TeasError(
            f"threshold {OUTPUT!r} chooses on the first {_HELD_OUT} inputs or more, whole batches, and fits to the others; got {sum(map(len, held_out))} "
            "in all: give more batches"
        )
    conversion = Conversion(
        ann, graph, activations, samples, first_of(kept), tuple(held_out), threshold, {"v0": v0, "per_channel": per_channel, "margin": margin}
    )
    _warn_of_suspicious(conversion, {a.name: a.quantised.window if a.quantised else _PROBE for a in activations})
    return conversion


def _warn_of_suspicious(conversion: Conversion, windows: dict[str, int]) -> None:
    probed = conversion.at(windows)
    suspicious = [f"{row.layer} ({100 * row.error:.0f} %)" for row in conversion.report(probed) if row.error > _SUSPICIOUS]
    if suspicious:
        more = f" and {len(suspicious) - 5} more" if len(suspicious) > 5 else ""
        warnings.warn(
            f"at {probed.windows.max} steps these layers are more than {100 * _SUSPICIOUS:.0f} % away from the ANN's activations: "
            f"{', '.join(suspicious[:5])}{more}. Give them more steps, calibrate on more data, try another threshold "
            "method, or fine-tune the network with clipped activations.",
            stacklevel=4,
        )
