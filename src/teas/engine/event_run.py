"""One image through all layers of a network, event by event: what a worker thread does."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teas.engine import event_kernels as kernels
from teas.engine.event_layout import LANES, Floats, Layout, Map, aligned, max_pooled_shape
from teas.spiking.network import Semantics
from teas.spiking.neuron import Emission
from teas.spiking.synapses import run_synapses
from teas.spiking.temporal_transform import retime
from teas.spiking.trace import INPUT

_CHUNK = 8  # steps that a dense layer computes at once, so that its memory does not grow with the window


@dataclass
class Plan:
    """What is known before any image comes: a layout per spiking layer, and where each train lies in a worker's memory."""

    layouts: dict[str, Layout]
    dense: dict[str, str]  # layers that run on dense currents, each with the reason
    semantics: Semantics
    module: torch.nn.Module
    sums: set[str]  # layers whose sum of firing potentials is asked for
    trains: dict[str, int] = field(default_factory=dict)
    copies: dict[tuple[str, int], int] = field(default_factory=dict)  # of re-timed or pooled trains, by layer and number of the term
    size: int = 0

    def __post_init__(self) -> None:
        """Lay trains out so that one takes the place of others that nobody reads any more."""
        order = list(self.layouts)
        last = {source: index for index, name in enumerate(order) for source in (*self.layouts[name].layer.sources, name)}
        taken: list[tuple[int, int, int]] = []  # begin, end, and the layer after which it is free

        def allocate(words: int, now: int, until: int) -> int:
            begin = 0
            for other in sorted(other for other in taken if other[2] >= now):
                if begin + words <= other[0]:
                    break
                begin = max(begin, other[1])
            taken.append((begin, begin + words, until))
            return begin

        for index, name in enumerate(order):
            layout = self.layouts[name]
            self.trains[name] = allocate(layout.map.rows * layout.steps * layout.map.line, index, last[name])
            for number, (source, shape) in enumerate(self.read(name)):
                place = Map.of(shape)
                unpooled = self.layouts[source].map
                words = layout.steps * (place.rows * place.line + unpooled.rows * unpooled.line)
                self.copies[name, number] = allocate(words, index, index)
        self.size = max(end for _, end, _ in taken)

    def read(self, name: str) -> list[tuple[str, tuple[int, ...]]]:
        """Sources of a layer's terms (of the layer itself where it is dense), and the shapes of the maps they send."""
        layout = self.layouts[name]
        if name in self.dense:
            return [(source, self.layouts[source].map.shape) for source in layout.layer.sources if source != INPUT]
        return [(term.source, term.shape) for term in layout.terms]


class Worker:
    """Memory for one image, and the way through the layers. Trains take one bit a step, all else does not depend on the windows."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.arena = np.zeros(plan.size + 64, np.uint16)
        self.counts = {name: np.zeros(layout.map.size + 64, np.uint16) for name, layout in plan.layouts.items()}
        self.totals = dict.fromkeys(plan.layouts, 0)
        self.potential = {name: aligned(layout.start) for name, layout in plan.layouts.items()}
        self.fired = {name: aligned(np.zeros_like(values)) for name, values in self.potential.items()}
        self.may = {name: np.zeros(layout.map.size // LANES, np.uint16) for name, layout in plan.layouts.items()}
        self.held = {name: aligned(np.zeros(layout.map.size, layout.weights.dtype)) for name, layout in plan.layouts.items()}
        self.rule = {name: _rule(layout, plan.semantics) for name, layout in plan.layouts.items()}
        self.plain = {name: bool(rule[0] == 1 and rule[1] == 1 and rule[3] == 0) for name, rule in self.rule.items()}
        self.rows = {name: layout.rows.copy() for name, layout in plan.layouts.items()}
        self.current = {name: _currents(layout) for name, layout in plan.layouts.items()}
        room = max(_event_room(layout) for layout in plan.layouts.values())
        self.events, self.starts = np.zeros(room, np.uint32), np.zeros(max(_start_room(layout) for layout in plan.layouts.values()), np.uint32)
        largest = max(layout.map.size for layout in plan.layouts.values())
        self.retimed, self.kept = np.zeros(largest, np.uint16), np.zeros(largest + LANES, np.uint32)

    def run(self, inputs: Tensor, encoded: dict[str, Tensor], constant: dict[str, Tensor]) -> None:
        """All layers for one image `[1, *shape]`; constant: the current from an analog input by layer; encoded: the input's trains by layer."""
        for name, layout in self.plan.layouts.items():
            self.potential[name][:] = layout.start
            self.fired[name][:] = self.held[name][:] = 0
            self.may[name][:] = 0xFFFF
            if name in self.plan.dense:
                self._run_dense(name, inputs, encoded.get(name))
            else:
                self._run_events(name, constant.get(name))
            place = layout.map
            self.totals[name] = kernels.count_train(self.arena, self.plan.trains[name], place.rows, layout.steps, place.line, self.counts[name])

    def real(self, name: str, values: NDArray[np.generic]) -> Floats:
        """Potentials of a layer as they are in the reference, whatever numbers it computes with."""
        layout = self.plan.layouts[name]
        kept = values.astype(layout.real, copy=False)
        return kept * layout.unit if layout.numbers.integer else kept

    def train(self, name: str, begin: int = 0, end: int | None = None, *, at: int | None = None, source: str | None = None, steps: int | None = None) -> Tensor:
        """Steps `begin` to `end` of a train as a tensor `[time, 1, *neuron]`: a layer's own, or its copy in another window."""
        place = self.plan.layouts[source or name].map
        steps = self.plan.layouts[name].steps if steps is None else steps
        at = self.plan.trains[name] if at is None else at
        words = self.arena[at : at + place.rows * steps * place.line].reshape(place.rows, steps, place.columns, place.vectors)[:, begin:end]
        bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")[..., : place.channels]
        return torch.from_numpy(bits.transpose(1, 3, 0, 2).astype(self.plan.layouts[name].real, order="C")).reshape(bits.shape[1], 1, *place.shape)

    def _run_events(self, name: str, constant: Tensor | None) -> None:
        layout, rows = self.plan.layouts[name], self.rows[name]
        events = starts = 0
        kinds = []
        for number, row in enumerate(rows):
            row[kernels.EVENTS], row[kernels.STARTS] = events, starts
            row[kernels.AT], kind = self._send(name, number, row)
            kinds.append(kind)
            if kind == kernels.FIRST:
                events += 2 * row[kernels.ROWS] * row[kernels.COLUMNS] * row[kernels.WORDS] * LANES
                starts += row[kernels.ROWS] * kernels.parts(layout.steps, layout.at_once)
        keeps = not kinds or kernels.FIRST in kinds or kernels.SPIKES not in kinds
        for row, kind in zip(rows, kinds, strict=True):
            row[kernels.KIND] = kind if kind == kernels.FIRST else kernels.CHANGES if keeps else kernels.SPIKES
            if kind != kernels.FIRST:
                row[kernels.EVENTS] = events
        drive, drive_row = (layout.drive_row, 0) if constant is None else (layout.map.spread(constant, 0.0), layout.map.line * LANES)
        run = kernels.run_any if not self.plain[name] else kernels.run_sums if name in self.plan.sums else kernels.run_plain
        shape = (layout.map.rows, layout.map.columns, layout.map.vectors)
        run(
            self.arena, self.plan.trains[name], layout.steps, shape, layout.ring, layout.at_once, layout.halo, rows, layout.weights, keeps, self.current[name],
            drive, drive_row, self._neurons(name), layout.bases, layout.reads, self.events, self.starts,
        )  # fmt: skip

    def _neurons(self, name: str) -> tuple[NDArray[np.generic], ...]:
        layout = self.plan.layouts[name]
        return self.potential[name], self.held[name], layout.theta, layout.shift, self.fired[name], self.may[name], self.rule[name]

    def _send(self, name: str, number: int, row: NDArray[np.int64]) -> tuple[int, int]:
        """Where a term's train lies, in the window of the layer that reads it, and what its events are."""
        layout = self.plan.layouts[name]
        term = layout.terms[number]
        source, at = self.plan.layouts[term.source], self.plan.copies[name, number]
        if source.steps == layout.steps:
            at, kind = self.plan.trains[term.source], kernels.SPIKES
            if not term.pools and self._changes_are_fewer(term.source):
                kind = kernels.CHANGES
        elif layout.sorted[number]:
            self._retime(term.source, layout.steps)
            kernels.sort_first(
                self.retimed, layout.steps, layout.at_once, layout.row_vectors, row, layout.bases, layout.reads, self.events, self.starts, self.kept
            )
            return at, kernels.FIRST
        else:
            self._copy(term.source, layout.steps, at)
            kind = kernels.SPIKES
        shape = source.map.shape
        for pool in term.pools:
            place = Map.of(shape if len(shape) == 3 else (*shape, 1, 1))
            shape = max_pooled_shape((place.channels, place.rows, place.columns), pool)
            to = self.plan.copies[name, number]
            to = to if at != to else to + layout.steps * place.rows * place.line
            options = [(v, v) if isinstance(v, int) else tuple(v) for v in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)]
            kernels.pool_train(self.arena, at, place.rows, place.columns, place.vectors, layout.steps, *options, shape[1], shape[2], to)
            at = to
        return at, kind

    def _changes_are_fewer(self, name: str) -> bool:
        """Whether a train's neurons begin and stop firing less often than they fire; where a quarter of the steps have no spike it is not counted."""
        layout = self.plan.layouts[name]
        place = layout.map
        if 4 * self.totals[name] < place.neurons * layout.steps:
            return False
        return bool(kernels.count_changes(self.arena, self.plan.trains[name], place.rows, layout.steps, place.line) < self.totals[name])

    def _retime(self, source: str, steps: int) -> None:
        layout, transform = self.plan.layouts[source], self.plan.semantics.transform
        residual = self.real(source, self.potential[source]) if transform == "residual" else layout.theta_real
        fired = self.real(source, self.fired[source]) if transform == "firing_potential" else layout.theta_real
        out = self.retimed[: layout.map.size]
        counts = self.counts[source][: layout.map.size]
        kernels.retimed(counts, fired, residual, layout.theta_real, transform == "residual", transform == "firing_potential", layout.steps, steps, out)

    def _copy(self, source: str, steps: int, to: int) -> None:
        """Write a source's train in another window as bits."""
        layout, semantics = self.plan.layouts[source], self.plan.semantics
        if semantics.code == "rate":
            self._retime(source, steps)
            write = kernels.write_first if semantics.layout == "first" else kernels.write_even
            write(self.retimed, layout.map.rows, layout.map.line, steps, self.arena, to)
            return
        place = layout.map
        values = (self.counts[source], self.real(source, self.fired[source]), self.real(source, self.potential[source]))
        count, fired, residual = (place.gather(found)[None] for found in values)
        emission = Emission(layout.steps, layout.neurons.threshold_for(count).detach(), count, fired, residual, self.train(source))
        how = {"code": semantics.code, "transform": semantics.transform, "layout": semantics.layout, "rounding": semantics.rounding}
        train = retime(emission, steps, **how)
        bits = np.zeros((place.rows, steps, place.columns, place.vectors * LANES), np.uint8)
        bits[..., : place.channels] = train.reshape(steps, place.channels, place.rows, place.columns).numpy().transpose(2, 0, 3, 1)
        words = np.packbits(bits, axis=-1, bitorder="little").view(np.uint16).reshape(-1)
        self.arena[to : to + len(words)] = words

    def _run_dense(self, name: str, inputs: Tensor, encoded: Tensor | None) -> None:
        layout = self.plan.layouts[name]
        place, sources = layout.map, [source for source in layout.layer.sources if source != INPUT]
        at = {}
        for number, source in enumerate(sources):
            at[source] = self.plan.trains[source]
            if self.plan.layouts[source].steps != layout.steps:
                at[source] = self.plan.copies[name, number]
                self._copy(source, layout.steps, at[source])
        for begin in range(0, layout.steps, _CHUNK):
            end = min(begin + _CHUNK, layout.steps)
            trains = {source: self.train(source, begin, end, at=at[source], steps=layout.steps).flatten(0, 1) for source in sources}
            if INPUT in layout.layer.sources:
                trains[INPUT] = inputs.expand(end - begin, *inputs.shape[1:]) if encoded is None else encoded[begin:end].flatten(0, 1)
            current = run_synapses(layout.layer, trains, self.plan.module, steps=end - begin)
            flat = np.concatenate([place.spread(step, 0.0) for step in current])
            drive = np.zeros(place.line * LANES, layout.real)
            to = self.plan.trains[name]
            kernels.fire_steps(flat, begin, len(current), layout.steps, place.rows, place.line, drive, self._neurons(name), self.arena, to)


def _rule(layout: Layout, semantics: Semantics) -> Floats:
    neurons = layout.neurons
    return np.array([neurons.leak, neurons.reset == "subtract", neurons.v_reset, semantics.code == "first_spike"], layout.real)


def _currents(layout: Layout) -> NDArray[np.generic]:
    return aligned(np.zeros(layout.ring * layout.at_once * layout.row_vectors * LANES, layout.weights.dtype))


def _event_room(layout: Layout) -> int:
    row_neurons = [int(row[kernels.COLUMNS] * row[kernels.WORDS]) * LANES for row in layout.rows]
    return 2 * sum(int(row[kernels.ROWS]) * size for row, size in zip(layout.rows, row_neurons, strict=True)) + layout.at_once * max([0, *row_neurons]) + 64


def _start_room(layout: Layout) -> int:
    return 1 + sum(int(row[kernels.ROWS]) * int(kernels.parts(layout.steps, layout.at_once)) for row in layout.rows)
