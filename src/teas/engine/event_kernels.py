"""Event-driven layers: sparse additions of weights, and neurons that integrate, fire and are reset in one pass.

A map of neurons lies in memory as `[row, column, channel]`, channels padded to multiples of 16. Every function releases the interpreter's lock.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from teas.engine.event_sending import send_alike, send_row, send_words
from teas.engine.event_sources import (
    AT,
    COLUMNS,
    DIAGONAL,
    EVENTS,
    FIRST,
    KIND,
    ROW_KERNEL,
    ROW_PAD,
    ROW_STRIDE,
    ROWS,
    STARTS,
    TABLED,
    WORDS,
    compiled,
    inner,
    put_off,
    row_room,
    sort_first,
    u,
)
from teas.engine.firing import TOGETHER, firing
from teas.engine.lanes import LANES

_LONG = 64  # steps from which on it is worth knowing when nothing changes any more


@inner
def prepare(potential, start, fired, may):  # type: ignore[no-untyped-def]
    """What neurons keep, before the first step."""
    for i in range(len(start)):  # numba's own assignment takes one number at a time
        potential[u(i)] = start[u(i)]
    fired[:], may[:] = 0, 0xFFFF


def _runner(rule: str, narrow: bool = False) -> Callable[..., None]:
    """One layer for `n` images: all steps, `at_once` of them at a time, row by row; its trains go to `arena[image, to:]`, potentials are left in place.

    bare: nobody reads the trains, and their counts go to `counts[image]` instead; of sorted events it is known when the last one comes.

    shape: rows, columns, vectors of channels. halo: columns on the left and on the right where runs of additions may end outside of the map.
    kinds: what the events of each term are, by image. keeps: whether currents last until an event changes them (all terms are FIRST or CHANGES), or
    are those of one step (SPIKES or TABLED), by image. tables: what `look_up` reads. current: `at_once` steps of each row that source rows read so far
    may reach, a ring of rows, and one more that is not read; 0 inside of the map, before and after, for neurons leave 0 where they read.
    drive: the constant part of the current, by image or for all, `drive_row` apart from row to row. start: potentials before the first step.
    neurons: potential, current that lasts, threshold, shift, sum of firing potentials, who may fire, and the rule, as `firing` takes them; of
    potentials and sums one row an image, or one for all where nobody asks for them later. sorted_counts: of each FIRST term, by image.
    """
    fire_changes, fire_spikes = firing(rule, True, False), firing(rule, False, False)
    count_changes, count_spikes = firing(rule, True, True, narrow), firing(rule, False, True, narrow)

    def run_image(  # type: ignore[no-untyped-def]
        arena, to, bare, counts, steps, shape, ring, at_once, halo, terms, weights, tables, keeps, current, drive, drive_row, neurons, bases, reads,
        events, starts, sent, quiet,
    ):  # fmt: skip
        rows, columns, vectors = shape
        potential, held, theta, shift, fired, may, how = neurons
        line = u(columns * vectors)
        row_vectors = (columns + halo[0] + halo[1]) * vectors
        for begin in range(0, steps, at_once):
            end = min(begin + at_once, steps)
            sent[:] = 0
            for row in range(rows):
                at, from_, driven = u(row) * line * u(LANES), u((row % ring * at_once * row_vectors + halo[0] * vectors) * LANES), u(row * drive_row)
                out, count = u(to) + u(row * steps + begin) * line, u(end - begin)
                pitch = u(row_vectors * LANES)
                for k in range(len(terms)):
                    if terms[k, DIAGONAL]:
                        send_alike(arena, terms, k, row, begin, end, steps, u(vectors), weights, current, from_, pitch)
                        continue
                    last = min(terms[k, ROWS], row * terms[k, ROW_STRIDE] - terms[k, ROW_PAD] + terms[k, ROW_KERNEL])
                    for source in range(sent[k], last):
                        if terms[k, KIND] == TABLED:
                            for step in range(begin, end):
                                words = terms[k, AT] + (source * steps + step) * terms[k, COLUMNS]
                                send_words(arena, words, terms, k, source, step - begin, at_once, rows, tables, current, row_vectors, ring, bases)
                            continue
                        send_row(
                            arena, terms, k, source, begin, end, steps, at_once, rows, vectors, weights, tables, current, row_vectors, ring, bases, reads,
                            events, starts,
                        )  # fmt: skip
                    sent[k] = max(sent[k], last)
                group = u(row) * (line // u(TOGETHER))
                if bare and keeps:
                    count_changes(
                        potential, at, current, from_, pitch, held, drive, driven, theta, shift, fired, may, how, counts, at, line, line, count, quiet, group,
                        u(begin), u(steps),
                    )  # fmt: skip
                elif bare:
                    count_spikes(
                        potential, at, current, from_, pitch, held, drive, driven, theta, shift, fired, may, how, counts, at, line, line, count, quiet, group,
                        u(begin), u(steps),
                    )  # fmt: skip
                elif keeps:
                    fire_changes(potential, at, current, from_, pitch, held, drive, driven, theta, shift, fired, may, how, arena, out, line, line, count)
                else:
                    fire_spikes(potential, at, current, from_, pitch, held, drive, driven, theta, shift, fired, may, how, arena, out, line, line, count)

    image_runner = inner(run_image)

    def run(  # type: ignore[no-untyped-def]
        arena, n, to, bare, counts, steps, shape, ring, at_once, halo, terms, kinds, keeps, weights, tables, current, drive, drive_row, start, neurons,
        bases, reads, events, starts, sorted_counts,
    ):  # fmt: skip
        potentials, held, theta, shift, sums, may, how = neurons
        sent, latest = np.zeros(len(terms), np.int64), np.zeros(max(1, sorted_counts.shape[2] // LANES), np.uint32)
        quiet = np.zeros(shape[0] * (shape[1] * shape[2] // TOGETHER), np.uint32)
        row_vectors = (shape[1] + halo[0] + halo[1]) * shape[2]
        for image in range(n):
            potential, fired = potentials[image % len(potentials)], sums[image % len(sums)]
            prepare(potential, start, fired, may)
            held[:] = 0
            counts[image] = 0
            end = starts_end = 0
            quiet[:] = 1
            for k in range(len(terms)):
                terms[k, KIND] = kinds[image, k]
                if terms[k, KIND] == FIRST:
                    terms[k, EVENTS], terms[k, STARTS] = end, starts_end
                    sort_first(sorted_counts[k, image], steps, at_once, row_vectors, terms, k, bases, reads, events, starts)
                    if bare and steps >= _LONG:
                        put_off(quiet, sorted_counts[k, image], steps, shape, terms, k, latest)
                    end += 2 * terms[k, ROWS] * terms[k, COLUMNS] * terms[k, WORDS] * LANES
                    starts_end += terms[k, ROWS] * row_room(terms, k, steps, at_once)
            for k in range(len(terms)):
                if terms[k, KIND] != FIRST:
                    terms[k, EVENTS] = end
                if terms[k, KIND] != FIRST or steps < _LONG:
                    quiet[:] = steps + 1  # it may change at any step
            here = (potential, held, theta, shift, fired, may, how)
            image_runner(
                arena[image], to, bare, counts[image], steps, shape, ring, at_once, halo, terms, weights, tables, keeps[image], current,
                drive[image % len(drive)], drive_row, here, bases, reads, events, starts, sent, quiet,
            )  # fmt: skip

    return compiled(run)  # type: ignore[no-any-return]


RUNNERS = {rule: _runner(rule) for rule in ("subtract", "sums", "any")} | {"narrow": _runner("subtract", narrow=True)}
_fire_steps = firing("any", False, False)


def _lone_runner(rule: str) -> Callable[..., None]:
    """A layer that no other's spikes reach, for `n` images: all steps at once, row by row, on its drive; arguments as those of `_runner`."""
    fire, count_ = firing(rule, False, False, alone=True), firing(rule, False, True, alone=True)

    def run(arena, n, to, bare, counts, steps, shape, drive, drive_row, start, neurons):  # type: ignore[no-untyped-def]
        potentials, held, theta, shift, sums, may, how = neurons
        rows, line, zero = shape[0], u(shape[1] * shape[2]), u(0)
        for image in range(n):
            potential, fired, driven = potentials[image % len(potentials)], sums[image % len(sums)], drive[image % len(drive)]
            prepare(potential, start, fired, may)
            counts[image] = 0
            for row in range(u(rows)):
                at, from_, out = row * line * u(LANES), row * u(drive_row), u(to) + row * u(steps) * line
                if bare:
                    count_(
                        potential, at, held, zero, zero, held, driven, from_, theta, shift, fired, may, how, counts[image], at, line, line, u(steps), may,
                        zero, zero, zero,
                    )  # fmt: skip
                else:
                    fire(potential, at, held, zero, zero, held, driven, from_, theta, shift, fired, may, how, arena[image], out, line, line, u(steps))

    return compiled(run)  # type: ignore[no-any-return]


LONE_RUNNERS = {rule: _lone_runner(rule) for rule in ("subtract", "sums", "any")}
LONE_RUNNERS["narrow"] = LONE_RUNNERS["subtract"]


@compiled
def fire_steps(currents, begin, count, steps, rows, line, drive, neurons, arena, to):  # type: ignore[no-untyped-def]
    """Neurons on currents `[step, neuron]` of `count` steps computed elsewhere, from step `begin` of their window on."""
    potential, held, theta, shift, fired, may, how = neurons
    width = u(line * LANES)
    for row in range(u(rows)):
        at, out = row * width, u(to + begin * line) + row * u(steps * line)
        _fire_steps(
            potential, at, currents, at, u(rows) * width, held, drive, u(0), theta, shift, fired, may, how, arena, out, u(line), u(line), u(count)
        )  # fmt: skip
