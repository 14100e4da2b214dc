"""ANN to spiking network: trace, fold batch norms, put neurons where the activations are, and fit their thresholds on calibration data."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from teas.ann.activations import Activation, find_activations, refuse_unconvertible, traced
from teas.ann.thresholds import METHODS, Samples, fit
from teas.errors import TeasError, check_choice
from teas.spiking.network import SpikingNetwork
from teas.spiking.neuron import IF, Amplitude
from teas.spiking.time_windows import TimeWindows

_PROBE, _SUSPICIOUS = 64, 0.25


@dataclass(frozen=True)
class LayerReport:
    """What became of one activation: kind it was, neurons, threshold (mean over channels), window, activity, and the error of its rates.

    error: `‖θ·n/T - a‖ / ‖a‖` on the calibration inputs, `a` the ANN's activation; errors of earlier layers are included.
    """

    layer: str
    kind: str
    neurons: int
    threshold: float
    window: int
    activity: float
    error: float


class _Recorder(nn.Module):
    """An activation that keeps samples of what it returns."""

    def __init__(self, ceiling: float, samples: Samples):
        super().__init__()
        self.ceiling, self.samples, self.last = ceiling, samples, torch.empty(0)

    def forward(self, current: Tensor) -> Tensor:
        self.last = current.clamp(0, self.ceiling)
        self.samples.add(self.last)
        return self.last


class Conversion:
    """A converted ANN before its windows are chosen: `at(windows)` fits the thresholds to them and returns the spiking network."""

    def __init__(self, graph: fx.GraphModule, activations: list[Activation], samples: dict[str, Samples], inputs: Tensor, options: dict[str, object]):
        self._graph, self._activations, self._samples, self._inputs = graph, activations, samples, inputs
        self._fitted: dict[tuple[str, int], Tensor] = {}
        self._method, self._v0, self._per_channel = str(options["threshold"]), float(str(options["v0"])), bool(options["per_channel"])

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, those of the ANN's activations."""
        return tuple(activation.name for activation in self._activations)

    def at(self, windows: TimeWindows | Mapping[str, int] | int, **semantics: str) -> SpikingNetwork:
        """The spiking network at these windows; synaptic weights are shared between all networks of a conversion.

        Two-phase firing by default, so that each layer is a uniform quantiser of its activation: `θ/T · clip(floor(v0 + T·a/θ), 0, T)`.
        """
        steps = TimeWindows.uniform(self.layers, windows) if isinstance(windows, int) else TimeWindows(dict(windows))
        steps.validate(self.layers)
        neurons: dict[str, nn.Module] = {}
        for activation in self._activations:
            name = activation.name
            key = (name, steps[name])
            if key not in self._fitted:
                self._fitted[key] = fit(self._samples[name], steps[name], self._method, self._v0, activation.ceiling, self._per_channel)
            fire = IF(self._fitted[key], reset="subtract", v0=self._v0)
            neurons |= {name: fire, f"{name}_amplitude": Amplitude(fire.threshold)}
        module = _with_modules(self._graph, neurons).to(self._inputs.device)
        return SpikingNetwork(module, steps, **{"firing": "two_phase", **semantics}).eval()

    @torch.no_grad()
    def report(self, network: SpikingNetwork) -> list[LayerReport]:
        """Layer by layer: what it became and how far its rates are from the ANN's activations on the calibration inputs."""
        recorders: dict[str, nn.Module] = {a.name: _Recorder(a.ceiling, Samples()) for a in self._activations}
        _with_modules(self._graph, recorders)(self._inputs)
        record = network(self._inputs).record
        rows = []
        for activation in self._activations:
            name, found = activation.name, record[activation.name]
            wanted = recorders[name].last
            assert isinstance(wanted, Tensor)
            threshold = network.neurons(name).threshold_for(found.count)
            error = (threshold * found.count / found.window - wanted).norm() / wanted.norm().clamp_min(1e-12)
            mean_threshold = float(network.neurons(name).threshold.mean())
            rows.append(LayerReport(name, activation.kind, wanted[0].numel(), mean_threshold, found.window, float(found.activity), float(error)))
        return rows


def _with_modules(graph: fx.GraphModule, modules: Mapping[str, nn.Module]) -> fx.GraphModule:
    """The graph with these submodules in place; all others are shared. An amplitude that is not given passes values on."""
    root: dict[str, object] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            target = str(node.target)
            root[target] = modules.get(target) or (nn.Identity() if target.endswith("_amplitude") else graph.get_submodule(target))
        elif node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            root[str(node.target)] = getattr(graph.get_submodule(owner), name)
    return fx.GraphModule(root, graph.graph, type(graph).__name__).eval()


@torch.no_grad()
def convert(
    ann: nn.Module, calibration: Iterable[Tensor | tuple[Tensor, ...]], *, threshold: str = "mse", per_channel: bool = True, v0: float = 0.5
) -> Conversion:
    """Convert a trained ANN whose activations are ReLUs (clipped ones too) to a spiking network of integrate-and-fire neurons.

    calibration: batches of inputs `[batch, *shape]`, or of tuples that begin with them; a few hundred training samples are enough.
    threshold: `mse` (least squared error at the layer's window), `percentile` (99.9th), or `maximum`; for each channel, or each layer.
    v0: potential at the start of a window, in thresholds; 0.5 makes the neurons round to nearest.

    Raises `TeasError`, before any other work, with a list of every operation that can't be converted, its source line and a way out; and for
    a network without ReLU, one that can't be traced, or calibration data that is empty or not finite.
    """
    check_choice("threshold", threshold, METHODS)
    graph = traced(ann)
    refuse_unconvertible(graph)
    activations = find_activations(graph)
    if not activations:
        raise TeasError(f"{type(ann).__name__} has no ReLU at all, so it would become no spiking layer; only ReLU networks can be converted")
    samples = {activation.name: Samples() for activation in activations}
    recorders: dict[str, nn.Module] = {a.name: _Recorder(a.ceiling, samples[a.name]) for a in activations}
    graph.delete_all_unused_submodules()
    recording = _with_modules(graph, recorders)
    first = None
    for batch in calibration:
        inputs = batch if isinstance(batch, Tensor) else batch[0]
        if not inputs.isfinite().all():
            raise TeasError("the calibration inputs have NaN or infinite values; clean the data first")
        recording(inputs)
        first = inputs if first is None else first
    if first is None or len(first) == 0:
        raise TeasError("calibration needs at least one batch of inputs; the data is empty")
    conversion = Conversion(graph, activations, samples, first[:64], {"threshold": threshold, "per_channel": per_channel, "v0": v0})
    suspicious = [f"{row.layer} ({100 * row.error:.0f} %)" for row in conversion.report(conversion.at(_PROBE)) if row.error > _SUSPICIOUS]
    if suspicious:
        more = f" and {len(suspicious) - 5} more" if len(suspicious) > 5 else ""
        warnings.warn(
            f"at {_PROBE} steps these layers are more than {100 * _SUSPICIOUS:.0f} % away from the ANN's activations: "
            f"{', '.join(suspicious[:5])}{more}. Give them more steps, calibrate on more data, try another threshold "
            "method, or fine-tune the network with clipped activations.",
            stacklevel=2,
        )
    return conversion
