"""Immediate firing on a CPU: weights are added where a neuron fires, and nowhere else."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from teas.engine.contract import Run, check_runnable, why_not_on_cpu
from teas.engine.event_layout import Layout, Map, Numbers
from teas.engine.event_plan import Dense, Shape, terms_of
from teas.engine.reference import ReferenceEngine
from teas.spiking.checks import check_inputs
from teas.spiking.coding import encode, first_spike_time
from teas.spiking.network import SpikingNetwork
from teas.spiking.record import LayerRecord, Output
from teas.spiking.synapses import run_synapses
from teas.spiking.trace import INPUT, Layer

if TYPE_CHECKING:
    from teas.engine.event_run import Plan, Worker


@dataclass(frozen=True)
class EventEngine:
    """Immediate firing at a cost that follows the spikes: one sparse addition per spike, or per neuron that begins or stops firing where these are fewer.

    Trains re-timed with layout `first` need one dense step and one subtraction per neuron, whatever the window is. A thread takes a few images at a
    time through all layers; meanwhile torch is kept to one thread, whose others would wait busily where ours run. Sums are rounded in another order
    than the reference's, unless integers hold them exactly (see `quantise`); then nothing flips. A network in float64 (`network.double()`) runs in
    float64.
    integers: use integers where they are exact.
    """

    name: str = "event"
    integers: bool = True

    def why_not(self, network: SpikingNetwork, device: torch.device) -> list[str]:
        """Reasons: two-phase firing, resets by other than a threshold, trains as input, numba is missing, training mode, not float32 or float64 on a CPU."""
        reasons = why_not_on_cpu(network, device, (torch.float32, torch.float64))
        if network.semantics.firing != "immediate":
            reasons.insert(0, f"it needs firing 'immediate', the network has {network.semantics.firing!r}")
        unusual = [layer for layer in network.spiking_layers if network.neurons(layer).reset_by != 1]
        if unusual:
            reasons.append(f"it resets by one threshold; layer {unusual[0]!r} has reset_by {network.neurons(unusual[0]).reset_by:g}")
        if network.semantics.encoding == "train":
            reasons.append("it encodes its input itself, the network has encoding 'train'")
        if importlib.util.find_spec("numba") is None:
            reasons.append("it needs the package numba: pip install 'teas[event]'")
        if network.windows.max > 32_767:
            reasons.append(f"it counts to 32767, the longest window is {network.windows.max}")
        return reasons

    def prepare(self, network: SpikingNetwork, keep: str = "potentials") -> Run:
        """See `Engine.prepare`; raises `TeasError` with all reasons where the engine can't run the network."""
        check_runnable(self, network, torch.device("cpu"), keep)
        network = network.with_windows(network.windows)
        plans: dict[Shape, Plan] = {}

        @torch.no_grad()
        def run(inputs: Tensor) -> Output:
            with _one_torch_thread() as threads:
                check_inputs(inputs)
                if len(inputs) == 0:
                    return ReferenceEngine().prepare(network, keep)(inputs)
                shape = tuple(inputs.shape[1:])
                if shape not in plans:
                    plans[shape] = self.plan(network, inputs[:1], keep)
                return _run(plans[shape], network, inputs, keep, threads)

        return run

    @torch.no_grad()
    def plan(self, network: SpikingNetwork, example: Tensor, keep: str) -> Plan:
        """Everything that depends on weights, windows and the input's shape alone; `Plan.dense` says what runs on dense currents, and why."""
        from teas.engine.event_run import Plan

        shapes: dict[str, Shape] = {INPUT: tuple(example.shape[1:])}
        shapes |= {name: tuple(record.count.shape[1:]) for name, record in network.with_windows(1)(torch.zeros_like(example)).record.items()}
        layouts, dense = {}, {}
        sums, residuals = _wanted(network, keep)
        for layer in network.layers:
            if layer.neurons is not None:
                try:
                    layouts[layer.name] = self._layout(layer, network, shapes, layer.name in sums)
                except (Dense, OverflowError) as reason:
                    dense[layer.name] = str(reason)
                    layouts[layer.name] = _dense_layout(layer, network, shapes[layer.name])
        return Plan(layouts, dense, network.semantics, network.module, sums, residuals)

    def _layout(self, layer: Layer, network: SpikingNetwork, shapes: dict[str, Shape], summed: bool) -> Layout:
        if INPUT in layer.sources and network.semantics.encoding != "direct":
            raise Dense("it reads an encoded input")
        terms, bias = terms_of(layer, network.module, shapes)
        neurons, place, steps = network.neurons(layer.name), Map.of(shapes[layer.name]), network.windows[layer.name]
        analog = INPUT in layer.sources
        bias = torch.zeros(place.channels) if bias is None or analog else bias
        theta = neurons.threshold.detach().expand(place.channels)
        plain = neurons.reset == "subtract" and neurons.leak == 1 and network.semantics.code == "rate"
        numbers = Numbers.choose(terms, bias, theta, neurons.v0, steps, self.integers and plain and not analog, summed)
        first = network.semantics.code == "rate" and network.semantics.layout == "first"
        sorts = tuple(first and not term.pools and network.windows[term.source] != steps for term in terms)
        return Layout(layer, neurons, place, steps, terms, numbers, None if analog else bias, sorts)


def _dense_layout(layer: Layer, network: SpikingNetwork, shape: Shape) -> Layout:
    place, neurons = Map.of(shape), network.neurons(layer.name)
    zeros = torch.zeros(place.channels)
    numbers = Numbers(False, zeros.long(), zeros.long())
    return Layout(layer, neurons, place, network.windows[layer.name], [], numbers, zeros)


def _wanted(network: SpikingNetwork, keep: str) -> tuple[set[str], set[str]]:
    """Layers whose sums of firing potentials and whose residuals are reported, or needed to re-time their trains (Eq. 3)."""
    if keep == "potentials" or network.semantics.code == "first_spike":
        return set(network.spiking_layers), set(network.spiking_layers)
    edges = ((source, layer.name) for layer in network.layers if layer.neurons is not None for source in layer.sources if source != INPUT)
    changing = {source for source, reader in edges if network.windows[source] != network.windows[reader]}
    transform = network.semantics.transform
    return changing if transform == "firing_potential" else set(), changing if transform == "residual" else set()


@contextmanager
def _one_torch_thread() -> Iterator[int]:
    """Keep torch to one thread, and say how many it had: the others would wait busily, where our workers run, for some time after each of its steps.

    The number is torch's own, for the whole process: what another thread runs in torch meanwhile may be slower, and is the same.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


def _run(plan: Plan, network: SpikingNetwork, inputs: Tensor, keep: str, threads: int) -> Output:
    from teas.engine.event_run import Worker

    encoded, constant = _from_input(plan, network, inputs)
    last, rate = network.layers[-1], network.semantics.code == "rate"
    kept = set(network.spiking_layers) if keep != "nothing" else set(last.sources) - {INPUT} if last.neurons is None else {last.name}
    counts = {name: torch.empty(len(inputs), *plan.layouts[name].map.shape, dtype=plan.layouts[name].kind) for name in plan.layouts if name in kept}
    sums = {name: (torch.empty_like(found), torch.empty_like(found)) for name, found in counts.items()} if keep == "potentials" else {}
    times = None if rate else torch.empty_like(counts[last.name])
    threads = min(threads, len(inputs))
    each = -(-len(inputs) // threads)
    at_once = -(-each // -(-each // plan.images))  # parts as alike as they can be, and as few
    begins = iter(range(0, len(inputs), at_once))  # each worker takes the next images; the interpreter's lock keeps two from taking the same

    def collect(worker: Worker, part: slice, n: int) -> None:
        for name, found in counts.items():
            place = plan.layouts[name].map
            found[part] = place.gather(worker.counts[name][:n])
            if name in sums:
                sums[name][0][part] = place.gather(worker.real(name, worker.fired[name][:n]))
                sums[name][1][part] = place.gather(worker.real(name, worker.potential[name][:n]))
        if times is not None:
            times[part] = torch.cat([first_spike_time(worker.train(last.name, image)) for image in range(n)])

    @torch.no_grad()
    def work(_: int) -> None:
        worker = plan.idle.pop() if plan.idle else Worker(plan)
        for begin in begins:
            part = slice(begin, begin + at_once)
            here = {name: train[:, part] for name, train in encoded.items()}
            worker.run(inputs[part], here, {name: current[part] for name, current in constant.items()})
            collect(worker, part, len(inputs[part]))
        plan.idle.append(worker)

    if threads == 1:
        work(0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
    record = {} if keep == "nothing" else {name: _recorded(network, name, found, sums.get(name)) for name, found in counts.items()}
    if times is not None:
        return Output(-times, record)
    if last.neurons is not None:
        return Output(counts[last.name] / network.windows[last.name], record)
    rates = {name: inputs if name == INPUT else counts[name] / network.windows[name] for name in last.sources}
    return Output(run_synapses(last, rates, network.module), record)


def _from_input(plan: Plan, network: SpikingNetwork, inputs: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What reaches layers from the input: trains `[time, batch, *shape]` of an encoded one, the constant current of an analog one."""
    encoded, constant = {}, {}
    for layer in network.layers:
        if INPUT not in layer.sources or layer.neurons is None:
            continue
        if network.semantics.encoding != "direct":
            encoded[layer.name] = encode(inputs, network.windows[layer.name], network.semantics.encoding)
        elif layer.name not in plan.dense:
            silent = {name: torch.zeros(len(inputs), *plan.layouts[name].map.shape, dtype=inputs.dtype) for name in layer.sources if name != INPUT}
            constant[layer.name] = run_synapses(layer, {INPUT: inputs, **silent}, network.module)
    return encoded, constant


def _recorded(network: SpikingNetwork, name: str, count: Tensor, sums: tuple[Tensor, Tensor] | None) -> LayerRecord:
    if sums is None:
        empty = count.new_empty(0)
        return LayerRecord(network.windows[name], count, empty, empty)
    return LayerRecord(network.windows[name], count, *sums)
