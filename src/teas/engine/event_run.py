"""Some images through all layers of a network, event by event: what a worker thread does."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teas.engine import event_kernels as kernels
from teas.engine.event_layout import LANES, Floats, Layout, aligned, pooled_map
from teas.engine.event_sources import AT, CHANGES, COLUMNS, FIRST, ROWS, SPIKES, TABLED, TABLES, WORDS, row_room
from teas.engine.event_trains import add_up, choose_kinds, count_trains, pool_trains, retimed, write_even, write_first
from teas.spiking.neuron import Emission
from teas.spiking.semantics import Semantics
from teas.spiking.synapses import run_synapses
from teas.spiking.temporal_transform import retime
from teas.spiking.trace import INPUT

_CHUNK = 8  # steps that a dense layer computes at once, so that its memory does not grow with the window
_TABLED = 0.5  # spikes a place and step from which looking words up is faster than adding each spike's weights
_IMAGES, _TRAINS = 8, 3 * 2**20  # most images that a worker takes through a layer at once, and bytes that their trains may take


@dataclass
class Plan:
    """What is known before any image comes: a layout per spiking layer, and where each train lies in a worker's memory."""

    layouts: dict[str, Layout]
    dense: dict[str, str]  # layers that run on dense currents, each with the reason
    semantics: Semantics
    module: torch.nn.Module
    sums: set[str]  # layers whose sum of firing potentials is asked for
    residuals: set[str]  # and those whose potentials after the last step are
    bare: set[str] = field(default_factory=set)  # and those whose spikes nobody reads one by one, for every reader has another window and wants their number
    trains: dict[str, int] = field(default_factory=dict)
    copies: dict[tuple[str, int], int] = field(default_factory=dict)  # of re-timed or pooled trains, by layer and number of the term
    size: int = 0
    images: int = 1  # that a worker takes through a layer at once
    idle: list[Worker] = field(default_factory=list)  # workers of earlier batches, to be used again

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

        unequal = {name: all(other.steps != self.layouts[name].steps for other in self.layouts.values() if name in other.layer.sources) for name in order}
        self.bare = {name for name in order if unequal[name] and name not in self.dense and self.semantics.code == "rate"}
        for index, name in enumerate(order):
            layout = self.layouts[name]
            words = 0 if name in self.bare else layout.map.rows * layout.steps * layout.map.line
            self.trains[name] = allocate(words, index, last[name])
            for number, source in enumerate(self.read(name)):
                self.copies[name, number] = allocate(self._copied_words(name, number, source), index, index)
        self.size = max(end for _, end, _ in taken)
        self.images = max(1, min(_IMAGES, _TRAINS // max(1, 2 * self.size)))

    def _copied_words(self, name: str, number: int, source: str) -> int:
        """Words of the trains that a layer reads instead of its source's own, one behind the other: in another window, and after each pooling."""
        layout, before = self.layouts[name], self.layouts[source].map
        if name not in self.dense and layout.sorted[number]:
            return 0  # it reads counts
        maps = [before] if layout.steps != self.layouts[source].steps else []
        for pool in () if name in self.dense else layout.terms[number].pools:
            before = pooled_map(before, pool)
            maps.append(before)
        return layout.steps * sum(place.rows * place.line for place in maps)

    def read(self, name: str) -> list[str]:
        """Sources of a layer's terms (of the layer itself where it is dense)."""
        layout = self.layouts[name]
        if name in self.dense:
            return [source for source in layout.layer.sources if source != INPUT]
        return [term.source for term in layout.terms]


class Worker:
    """Memory for some images, and the way through the layers. Trains take one bit a step, all else does not depend on the windows.

    A layer takes all images in one call that holds no lock of the interpreter's, so that workers do not wait for each other.
    """

    def __init__(self, plan: Plan):
        self.plan, images = plan, plan.images
        self.arena = np.zeros((images, plan.size + 64), np.uint16)
        self.counts = {name: np.zeros((images, layout.map.size + 64), np.uint16) for name, layout in plan.layouts.items()}
        self.totals = {name: np.zeros(images, np.int64) for name in plan.layouts}
        self.potential = {name: self._rows(layout, layout.map.size, name in plan.residuals) for name, layout in plan.layouts.items()}
        self.rule = {name: _rule(layout, plan.semantics) for name, layout in plan.layouts.items()}
        self.plain = {name: bool(rule[0] == 1 and rule[1] == 1 and rule[3] == 0) for name, rule in self.rule.items()}
        self.fired = {
            name: self._rows(layout, layout.map.size if name in plan.sums or not self.plain[name] or name in plan.dense else LANES, name in plan.sums)
            for name, layout in plan.layouts.items()
        }
        self.may = {name: np.zeros(layout.map.size // LANES, np.uint16) for name, layout in plan.layouts.items()}
        self.held = {name: aligned(np.zeros(layout.map.size, layout.weights.dtype)) for name, layout in plan.layouts.items()}
        self.rows = {name: layout.rows.copy() for name, layout in plan.layouts.items()}
        self.current = {name: _currents(layout) for name, layout in plan.layouts.items()}
        room = max(_event_room(layout) for layout in plan.layouts.values())
        self.events, self.starts = np.zeros(room, np.uint32), np.zeros(max(_start_room(layout) for layout in plan.layouts.values()), np.uint32)
        largest, terms = max(layout.map.size for layout in plan.layouts.values()), max(len(layout.terms) for layout in plan.layouts.values())
        self.retimed = np.zeros((max(1, terms), images, largest), np.uint16)

    def _rows(self, layout: Layout, size: int, each: bool) -> NDArray[np.generic]:
        """A row for each image, or one for all."""
        return aligned(np.zeros((self.plan.images if each else 1, size), layout.start.dtype))

    def run(self, inputs: Tensor, encoded: dict[str, Tensor], constant: dict[str, Tensor]) -> None:
        """All layers for images `[image, *shape]`; constant: the current from an analog input by layer; encoded: the input's trains by layer."""
        for name, layout in self.plan.layouts.items():
            if name in self.plan.dense:
                self._run_dense(name, inputs, encoded.get(name))
            else:
                self._run_events(name, len(inputs), constant.get(name))
            place, at = layout.map, self.plan.trains[name]
            if name in self.plan.bare:
                add_up(self.counts[name], len(inputs), self.totals[name])
            else:
                count_trains(self.arena, len(inputs), at, place.rows, layout.steps, place.line, self.counts[name], self.totals[name])

    def real(self, name: str, values: NDArray[np.generic]) -> Floats:
        """Potentials of a layer as they are in the reference, whatever numbers it computes with."""
        layout = self.plan.layouts[name]
        kept = values.astype(layout.real, copy=False)
        return kept * layout.unit if layout.numbers.integer else kept

    def train(self, name: str, image: int, begin: int = 0, end: int | None = None, *, at: int | None = None, steps: int | None = None) -> Tensor:
        """Steps `begin` to `end` of a train as a tensor `[time, 1, *neuron]`: a layer's own, or its copy of so many steps at another place."""
        layout = self.plan.layouts[name]
        place, steps, at = layout.map, layout.steps if steps is None else steps, self.plan.trains[name] if at is None else at
        words = self.arena[image, at : at + place.rows * steps * place.line].reshape(place.rows, steps, place.columns, place.vectors)[:, begin:end]
        bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")[..., : place.channels]
        return torch.from_numpy(bits.transpose(1, 3, 0, 2).astype(layout.real, order="C")).reshape(bits.shape[1], 1, *place.shape)

    def _run_events(self, name: str, n: int, constant: Tensor | None) -> None:
        layout, rows = self.plan.layouts[name], self.rows[name]
        kinds = np.zeros((n, len(rows)), np.int64)
        for number, row in enumerate(rows):
            row[AT] = self._send(name, number, row, n, kinds[:, number])
        first, changes, tabled = kinds == FIRST, kinds == CHANGES, kinds == TABLED
        keeps = first.any(1) | changes.all(1)
        one_step = np.where(tabled, TABLED, SPIKES)
        kinds = np.where(first, FIRST, np.where(keeps[:, None], CHANGES, one_step))
        drive, drive_row = (layout.drive_row[None], 0) if constant is None else (layout.map.spread_all(constant), layout.map.line * LANES)
        rule = "any" if not self.plain[name] else "sums" if name in self.plan.sums else "narrow" if layout.numbers.narrow else "subtract"
        shape = (layout.map.rows, layout.map.columns, layout.map.vectors)
        out = self.arena, n, self.plan.trains[name], name in self.plan.bare, self.counts[name], layout.steps, shape
        if not layout.terms:
            kernels.LONE_RUNNERS[rule](*out, drive, drive_row, layout.start, self._neurons(name))
            return
        kernels.RUNNERS[rule](
            *out, layout.ring, layout.at_once, layout.halo, rows, kinds, keeps, layout.weights, layout.tables, self.current[name], drive, drive_row,
            layout.start, self._neurons(name), layout.bases, layout.reads, self.events, self.starts, self.retimed,
        )  # fmt: skip

    def _neurons(self, name: str) -> tuple[NDArray[np.generic], ...]:
        layout = self.plan.layouts[name]
        return self.potential[name], self.held[name], layout.theta, layout.shift, self.fired[name], self.may[name], self.rule[name]

    def _send(self, name: str, number: int, row: NDArray[np.int64], n: int, kinds: NDArray[np.int64]) -> int:
        """Where a term's trains lie, in the window of the layer that reads them; what their events are is written to `kinds`, by image."""
        layout = self.plan.layouts[name]
        term = layout.terms[number]
        source, to = self.plan.layouts[term.source], self.plan.copies[name, number]
        place, at = source.map, to
        kinds[:] = SPIKES
        if source.steps == layout.steps:
            at = self.plan.trains[term.source]
            if not term.pools:
                choose_kinds(self.arena, n, at, place.rows, layout.steps, place.line, place.neurons, self.totals[term.source], kinds)
        elif layout.sorted[number]:
            self._retime(term.source, layout.steps, self.retimed[number, :n])
            kinds[:] = FIRST
        else:
            self._copy(term.source, n, layout.steps, to)
            to += layout.steps * place.rows * place.line
        for pool in term.pools:
            pooled = pooled_map(place, pool)
            options = [(v, v) if isinstance(v, int) else tuple(v) for v in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)]
            pool_trains(self.arena, n, at, place.rows, place.columns, place.vectors, layout.steps, *options, pooled.rows, pooled.columns, to)
            place, at = pooled, to
            to += layout.steps * place.rows * place.line
        if row[TABLES] >= 0 and not layout.sorted[number]:
            often = self.totals[term.source][:n] > _TABLED * term.shape[1] * term.shape[2] * layout.steps
            kinds[often] = TABLED
        return at

    def _retime(self, source: str, steps: int, out: NDArray[np.uint16]) -> None:
        """Spikes of a source's neurons in another window, `[image, neuron]`."""
        layout, transform = self.plan.layouts[source], self.plan.semantics.transform
        counts, residual, fired = self.counts[source], self.potential[source], self.fired[source]
        unit, theta = layout.unit, layout.theta_real
        retimed(len(out), counts, fired, residual, unit, theta, transform == "residual", transform == "firing_potential", layout.steps, steps, out)

    def _copy(self, source: str, n: int, steps: int, to: int) -> None:
        """Write a source's trains in another window as bits."""
        layout, semantics = self.plan.layouts[source], self.plan.semantics
        place = layout.map
        if semantics.code == "rate":
            self._retime(source, steps, self.retimed[0, :n])
            write = write_first if semantics.layout == "first" else write_even
            write(n, self.retimed[0], place.rows, place.line, steps, self.arena, to)
            return
        for image in range(n):
            values = (self.counts[source][image], self.real(source, self.fired[source][image]), self.real(source, self.potential[source][image]))
            count, fired, residual = (place.gather(found)[None] for found in values)
            emission = Emission(layout.steps, layout.neurons.threshold_for(count).detach(), count, fired, residual, self.train(source, image))
            how = {"code": semantics.code, "transform": semantics.transform, "layout": semantics.layout, "rounding": semantics.rounding}
            train = retime(emission, steps, **how)
            bits = np.zeros((place.rows, steps, place.columns, place.vectors * LANES), np.uint8)
            bits[..., : place.channels] = train.reshape(steps, place.channels, place.rows, place.columns).numpy().transpose(2, 0, 3, 1)
            words = np.packbits(bits, axis=-1, bitorder="little").view(np.uint16).reshape(-1)
            self.arena[image, to : to + len(words)] = words

    def _run_dense(self, name: str, inputs: Tensor, encoded: Tensor | None) -> None:
        layout = self.plan.layouts[name]
        sources = [source for source in layout.layer.sources if source != INPUT]
        at = {source: self.plan.trains[source] for source in sources}
        for number, source in enumerate(sources):
            if self.plan.layouts[source].steps != layout.steps:
                at[source] = self.plan.copies[name, number]
                self._copy(source, len(inputs), layout.steps, at[source])
        potential, held, theta, shift, fired, may, rule = self._neurons(name)
        for image in range(len(inputs)):
            here = potential[image % len(potential)], held, theta, shift, fired[image % len(fired)], may, rule
            here[0][:], here[4][:], may[:] = layout.start, 0, 0xFFFF
            for begin in range(0, layout.steps, _CHUNK):
                end = min(begin + _CHUNK, layout.steps)
                trains = {source: self.train(source, image, begin, end, at=at[source], steps=layout.steps).flatten(0, 1) for source in sources}
                if INPUT in layout.layer.sources:
                    analog = inputs[image].expand(end - begin, *inputs.shape[1:])
                    trains[INPUT] = analog if encoded is None else encoded[begin:end, image]
                current = run_synapses(layout.layer, trains, self.plan.module, steps=end - begin)
                flat = layout.map.spread_all(current).reshape(-1)
                drive = np.zeros(layout.map.line * LANES, layout.real)
                rows, line, to = layout.map.rows, layout.map.line, self.plan.trains[name]
                kernels.fire_steps(flat, begin, len(current), layout.steps, rows, line, drive, here, self.arena[image], to)


def _rule(layout: Layout, semantics: Semantics) -> Floats:
    neurons = layout.neurons
    return np.array([neurons.leak, neurons.reset == "subtract", neurons.v_reset, semantics.code == "first_spike"], layout.real)


def _currents(layout: Layout) -> NDArray[np.generic]:
    return aligned(np.zeros((layout.ring * layout.at_once + 1) * layout.row_vectors * LANES, layout.weights.dtype))


def _event_room(layout: Layout) -> int:
    row_neurons = [int(row[COLUMNS] * row[WORDS]) * LANES for row in layout.rows]
    return 2 * sum(int(row[ROWS]) * size for row, size in zip(layout.rows, row_neurons, strict=True)) + layout.at_once * max([0, *row_neurons]) + 64


def _start_room(layout: Layout) -> int:
    return 1 + sum(int(layout.rows[k, ROWS]) * int(row_room(layout.rows, k, layout.steps, layout.at_once)) for k in range(len(layout.rows)))
