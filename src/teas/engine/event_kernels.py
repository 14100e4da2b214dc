"""Event-driven layers for one image: sparse additions of weights, and neurons that integrate, fire and are reset in one pass.

A map of neurons lies in memory as `[row, column, channel]`, channels padded to multiples of 16; a train as one bit per neuron and step,
`[row, time, column, channel / 16]` of 16-bit words. An event is one number: where its run of additions begins, in vectors, times 2^16,
plus its row of the weights. Every function releases the interpreter's lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from teas.engine.lanes import LANES, adder, adder_where, count_bits, firing, ones, unpack, unpack_counts

SPIKES, FIRST, CHANGES = 0, 1, 2  # what the events of a term are: spikes; on at step 0 and off at step n; on and off at any step
# Columns of the integers that describe a term, a source with its connections.
AT, ROWS, COLUMNS, WORDS, KIND, ROW_KERNEL, KERNEL, ROW_STRIDE, STRIDE, ROW_PAD, PAD, ROW_RUN, RUN, TABLE, WEIGHTS, EVENTS, STARTS, BASES, DIAGONAL = range(19)

_compiled: Callable[..., Any] = njit(nogil=True, cache=True, boundscheck=False, error_model="numpy")
_u = np.uint64


def _scatterer(subtract: bool) -> tuple[Callable[..., None], Callable[..., None]]:
    """Add (or subtract) the weights of events to one row of currents, or to three; two events at a time, so that none waits for the other's sums.

    A vector is never wider than a column of the currents: an event of the next column then loads what was stored, whole, and need not wait for it.
    """
    add1, add3, wide2, wide3, wide6 = (adder(vectors, lanes, subtract) for vectors, lanes in ((1, 16), (3, 16), (2, 32), (3, 32), (6, 32)))

    def scatter(current, offset, weights, row0, run, events, low, high):  # type: ignore[no-untyped-def]
        half = (high - low) // _u(2)
        middle = low + half
        if run == _u(48):
            for i in range(half):
                e, f = _u(events[low + i]), _u(events[middle + i])
                add3(current, (e >> _u(16)) * _u(16) + offset, weights, (e & _u(0xFFFF)) * _u(48) + row0)
                add3(current, (f >> _u(16)) * _u(16) + offset, weights, (f & _u(0xFFFF)) * _u(48) + row0)
            low = middle + half
        elif run == _u(96):
            for i in range(half):
                e, f = _u(events[low + i]), _u(events[middle + i])
                wide3(current, (e >> _u(16)) * _u(16) + offset, weights, (e & _u(0xFFFF)) * _u(96) + row0)
                wide3(current, (f >> _u(16)) * _u(16) + offset, weights, (f & _u(0xFFFF)) * _u(96) + row0)
            low = middle + half
        elif run == _u(192):
            for i in range(half):
                e, f = _u(events[low + i]), _u(events[middle + i])
                wide6(current, (e >> _u(16)) * _u(16) + offset, weights, (e & _u(0xFFFF)) * _u(192) + row0)
                wide6(current, (f >> _u(16)) * _u(16) + offset, weights, (f & _u(0xFFFF)) * _u(192) + row0)
            low = middle + half
        elif run % _u(64) == _u(0):
            for v in range(_u(0), run, _u(64)):
                for i in range(half):
                    e, f = _u(events[low + i]), _u(events[middle + i])
                    wide2(current, (e >> _u(16)) * _u(16) + offset + v, weights, (e & _u(0xFFFF)) * run + row0 + v)
                    wide2(current, (f >> _u(16)) * _u(16) + offset + v, weights, (f & _u(0xFFFF)) * run + row0 + v)
            low = middle + half
        for i in range(low, high):
            e = _u(events[i])
            for v in range(_u(0), run, _u(16)):
                add1(current, (e >> _u(16)) * _u(16) + offset + v, weights, (e & _u(0xFFFF)) * run + row0 + v)

    def scatter3(current, first, second, third, weights, row0, table, run, events, low, high):  # type: ignore[no-untyped-def]
        half = (high - low) // _u(2)
        middle, row1 = low + half, row0 + table
        row2 = row1 + table
        if run == _u(48):
            for i in range(half):
                e, f = _u(events[low + i]), _u(events[middle + i])
                at, row = (e >> _u(16)) * _u(16), (e & _u(0xFFFF)) * _u(48)
                add3(current, at + first, weights, row + row0)
                add3(current, at + second, weights, row + row1)
                add3(current, at + third, weights, row + row2)
                at, row = (f >> _u(16)) * _u(16), (f & _u(0xFFFF)) * _u(48)
                add3(current, at + first, weights, row + row0)
                add3(current, at + second, weights, row + row1)
                add3(current, at + third, weights, row + row2)
            low = middle + half
        else:
            for i in range(half):
                e, f = _u(events[low + i]), _u(events[middle + i])
                at, row = (e >> _u(16)) * _u(16), (e & _u(0xFFFF)) * _u(96)
                wide3(current, at + first, weights, row + row0)
                wide3(current, at + second, weights, row + row1)
                wide3(current, at + third, weights, row + row2)
                at, row = (f >> _u(16)) * _u(16), (f & _u(0xFFFF)) * _u(96)
                wide3(current, at + first, weights, row + row0)
                wide3(current, at + second, weights, row + row1)
                wide3(current, at + third, weights, row + row2)
            low = middle + half
        for i in range(low, high):
            e = _u(events[i])
            at, row = (e >> _u(16)) * _u(16), (e & _u(0xFFFF)) * run
            for v in range(_u(0), run, _u(16)):
                add1(current, at + first + v, weights, row + row0 + v)
                add1(current, at + second + v, weights, row + row1 + v)
                add1(current, at + third + v, weights, row + row2 + v)

    return _compiled(scatter), _compiled(scatter3)


(_add_events, _add_to_three), (_subtract_events, _subtract_from_three) = _scatterer(False), _scatterer(True)


@_compiled
def _phase(term, row):  # type: ignore[no-untyped-def]
    return (row + term[ROW_PAD]) % term[ROW_STRIDE]


@_compiled
def _row_events(arena, term, row, begin, end, steps, row_vectors, bases, reads, events, off):  # type: ignore[no-untyped-def]
    """Events of one row of a source at steps `begin` to `end`; `off` asks for the neurons that stop firing instead of those that begin.

    The currents of the next step lie a row further. Returns the end of the events.
    """
    words = _u(term[COLUMNS] * term[WORDS])
    table, phase = _u(term[BASES]), _u(_phase(term, row) * term[STRIDE] * term[WORDS] * LANES)
    n = _u(term[EVENTS])
    changes = term[KIND] == CHANGES
    for step in range(begin, end):
        at, more = _u(term[AT]) + _u(row * steps + step) * words, phase + (_u((step - begin) * row_vectors) << _u(16))
        for i in range(words):
            word = _u(arena[at + i])
            if changes:
                before = _u(arena[at + i - words]) if step > 0 else _u(0)
                word = before & ~word if off else word & ~before
            n = unpack(word & _u(reads[table + i]), _u(bases[table + i]) + more, events, n)
    return n


@_compiled
def _send_row(arena, term, row, begin, end, steps, at_once, rows, vectors, weights, current, row_vectors, ring, bases, reads, events, starts):  # type: ignore[no-untyped-def]
    """Add what one row of a source sends at steps `begin` to `end` to the rows of neurons that it reaches."""
    phase = _phase(term, row)
    top = (row + term[ROW_PAD]) // term[ROW_STRIDE] - (term[ROW_RUN] - 1)
    low, high = max(0, -top, term[ROW_RUN] - 1 - (term[ROW_KERNEL] - 1 - phase) // term[ROW_STRIDE]), min(term[ROW_RUN], rows - top)
    if phase >= term[ROW_KERNEL] or low >= high:
        return
    run, slot = _u(term[RUN] * vectors * LANES), _u(at_once * row_vectors * LANES)
    on_low = on_high = off_low = off_high = _u(term[EVENTS])
    if term[KIND] == FIRST:
        bucket = _u(term[STARTS] + row * parts(steps, at_once) + begin // at_once)
        off_low, off_high = _u(starts[bucket + _u(1)]), _u(starts[bucket + _u(2)])
        if begin == 0:
            on_low, on_high = _u(starts[bucket]), off_low
    else:
        on_high = _row_events(arena, term, row, begin, end, steps, row_vectors, bases, reads, events, False)
    three = (run == _u(48) or run == _u(96)) and high - low == 3
    if three:
        _add_to_three(current, _u((top + low) % ring) * slot, _u((top + low + 1) % ring) * slot, _u((top + low + 2) % ring) * slot, weights, _u(term[WEIGHTS] + low * term[TABLE]), _u(term[TABLE]), run, events, on_low, on_high)
    else:
        for r in range(low, high):
            offset, row0 = _u((top + r) % ring) * slot, _u(term[WEIGHTS] + r * term[TABLE])
            _add_events(current, offset, weights, row0, run, events, on_low, on_high)
    if term[KIND] == CHANGES:
        off_high = _row_events(arena, term, row, begin, end, steps, row_vectors, bases, reads, events, True)
    if off_low < off_high:
        if three:
            _subtract_from_three(current, _u((top + low) % ring) * slot, _u((top + low + 1) % ring) * slot, _u((top + low + 2) % ring) * slot, weights, _u(term[WEIGHTS] + low * term[TABLE]), _u(term[TABLE]), run, events, off_low, off_high)
        else:
            for r in range(low, high):
                offset, row0 = _u((top + r) % ring) * slot, _u(term[WEIGHTS] + r * term[TABLE])
                _subtract_events(current, offset, weights, row0, run, events, off_low, off_high)


_add_where, _subtract_where = adder_where(False), adder_where(True)


@_compiled
def _send_alike(arena, term, row, begin, end, steps, vectors, weights, current, from_, pitch):  # type: ignore[no-untyped-def]
    """Add what one row of a source of the same shape sends to the same neurons, each with a weight of its channel's."""
    words, changes = _u(term[WORDS] * term[COLUMNS]), term[KIND] == CHANGES
    for step in range(begin, end):
        at, to = _u(term[AT]) + _u(row * steps + step) * words, from_ + _u(step - begin) * pitch
        for i in range(_u(0), words, vectors):
            for v in range(vectors):
                word, place, weight = _u(arena[at + i + v]), to + (i + v) * _u(LANES), _u(term[WEIGHTS]) + v * _u(LANES)
                if changes:
                    before = _u(arena[at + i + v - words]) if step > 0 else _u(0)
                    _subtract_where(current, place, weights, weight, before & ~word)
                    word &= ~before
                _add_where(current, place, weights, weight, word)


@_compiled
def parts(steps, at_once):  # type: ignore[no-untyped-def]
    """Places in `starts` that a row of a source takes: its neurons go on, off during each `at_once` steps, or last."""
    return (steps + at_once - 1) // at_once + 2


def _runner(rule: str) -> Callable[..., None]:
    """All steps of one layer, `at_once` of them at a time, row by row; its train goes to `arena[to:]`, its potentials are left in place.

    shape: rows, columns, vectors of channels. halo: columns on the left and on the right where runs of additions may end outside of the map.
    keeps: whether currents last until an event changes them (all terms are FIRST or CHANGES), or are those of one step (SPIKES).
    current: `at_once` steps of each row that source rows read so far may reach, a ring of rows. drive: the constant part of the current,
    `drive_row` apart from row to row. neurons: potential, current that lasts, threshold, shift, sum of firing potentials, who may fire, and the
    rule, as `firing` takes them.
    """
    fire_changes, fire_spikes = firing(rule, True), firing(rule, False)

    def run(  # type: ignore[no-untyped-def]
        arena, to, steps, shape, ring, at_once, halo, terms, weights, keeps, current, drive, drive_row, neurons, bases, reads, events, starts
    ):
        rows, columns, vectors = shape
        potential, held, theta, shift, fired, may, how = neurons
        line = _u(columns * vectors)
        row_vectors = (columns + halo[0] + halo[1]) * vectors
        current[:] = 0
        sent = np.zeros(len(terms), np.int64)
        for begin in range(0, steps, at_once):
            end = min(begin + at_once, steps)
            sent[:] = 0
            for row in range(rows):
                at, from_, driven = _u(row) * line * _u(LANES), _u((row % ring * at_once * row_vectors + halo[0] * vectors) * LANES), _u(row * drive_row)
                out, count = _u(to) + _u(row * steps + begin) * line, _u(end - begin)
                pitch = _u(row_vectors * LANES)
                for k in range(len(terms)):
                    term = terms[k]
                    if term[DIAGONAL]:
                        _send_alike(arena, term, row, begin, end, steps, _u(vectors), weights, current, from_, pitch)
                        continue
                    last = min(term[ROWS], row * term[ROW_STRIDE] - term[ROW_PAD] + term[ROW_KERNEL])
                    for source in range(sent[k], last):
                        _send_row(
                            arena, term, source, begin, end, steps, at_once, rows, vectors, weights, current, row_vectors, ring, bases, reads, events, starts
                        )  # fmt: skip
                    sent[k] = max(sent[k], last)
                if keeps:
                    fire_changes(potential, at, current, from_, pitch, held, drive, driven, theta, shift, fired, may, how, arena, out, line, line, count)
                else:
                    fire_spikes(potential, at, current, from_, pitch, held, drive, driven, theta, shift, fired, may, how, arena, out, line, line, count)

    return _compiled(run)  # type: ignore[no-any-return]


run_plain, run_sums, run_any = _runner("subtract"), _runner("sums"), _runner("any")
_fire_even, _fire_steps = firing("subtract", True), firing("any", False)


@_compiled
def sort_first(counts, steps, at_once, row_vectors, term, bases, reads, events, starts, kept):  # type: ignore[no-untyped-def]
    """Events of a train that fires in the first n steps: each row's on at step 0, then off at n, sorted by `at_once` steps, as `starts` tells."""
    words, rooms = _u(term[COLUMNS] * term[WORDS]), _u(parts(steps, at_once))
    table, n = _u(term[BASES]), _u(term[EVENTS])
    # Four places a room, taken in turn, so that an event need not wait until the last one's place is known.
    places, room_of, later = np.zeros(_u(4) * rooms, np.uint32), np.zeros(steps + 1, np.uint32), np.zeros(steps + 1, np.uint32)
    for count in range(steps):
        room_of[count], later[count] = 4 * (1 + count // at_once), count % at_once * row_vectors << 16
    room_of[steps] = _u(4) * (rooms - _u(1))
    for row in range(term[ROWS]):
        phase = _u(_phase(term, row) * term[STRIDE] * term[WORDS] * LANES)
        begin, bucket = n, _u(term[STARTS]) + _u(row) * rooms
        for i in range(words):
            if reads[table + i]:
                n += unpack_counts(counts, (_u(row) * words + i) * _u(LANES), _u(bases[table + i]) + phase, events, n, kept, n - begin)
        active = n - begin
        places[:] = 0
        for i in range(active):
            places[_u(room_of[kept[i]]) + (i & _u(3))] += 1
        starts[bucket] = begin
        for room in range(_u(1), rooms):
            starts[bucket + room] = n
            for place in range(_u(4) * room, _u(4) * room + _u(4)):
                size = _u(places[place])
                places[place] = n
                n += size
        for i in range(active):
            place = _u(room_of[kept[i]]) + (i & _u(3))
            events[places[place]] = events[begin + i] + later[kept[i]]
            places[place] += 1


@_compiled
def count_train(arena, at, rows, steps, line, counts):  # type: ignore[no-untyped-def]
    """Spikes of every neuron of a train, and of all; `counts` has room for 48 neurons more, and so has the arena."""
    counts[:] = 0
    for row in range(rows):
        for word in range(0, line, 4):
            to = _u((row * line + word) * LANES)
            for begin in range(0, steps, 255):
                count_bits(arena, _u(at + (row * steps + begin) * line + word), _u(line), _u(min(255, steps - begin)), counts, to)
            if line - word < 4:  # what follows the row is not ours
                for i in range((line - word) * LANES, 4 * LANES):
                    counts[to + _u(i)] = 0
    total = 0
    for i in range(rows * line * LANES):
        total += counts[_u(i)]
    return total


@_compiled
def count_changes(arena, at, rows, steps, line):  # type: ignore[no-untyped-def]
    """Number of steps, summed over neurons, at which one begins or stops firing."""
    total = _u(0)
    for row in range(rows):
        for step in range(steps):
            for word in range(line):
                i = _u(at + (row * steps + step) * line + word)
                before = _u(arena[i - _u(line)]) if step > 0 else _u(0)
                total += ones(_u(arena[i]) ^ before)
    return total


@_compiled
def retimed(counts, fired, residual, theta, by_residual, by_potential, window, steps, out):  # type: ignore[no-untyped-def]
    """`n' = clip(floor(T'/T·x̃ + 1/2), 0, T')`, operation by operation as the reference computes it (Eq. 3); 0 for a silent padding."""
    real = theta.dtype.type
    for i in range(len(counts)):
        n = real(counts[i])
        numerator, denominator = n, real(1)
        if by_potential:
            numerator = (n + real(1)) * fired[i] - n * theta[i] if n > 0 else real(0)
            denominator = fired[i] if n > 0 else real(1)
        elif by_residual:
            numerator, denominator = n * theta[i] + residual[i], theta[i]
        half = real(window) * denominator
        found = np.floor((real(2 * steps) * numerator + half) / (real(2) * half))
        out[i] = np.uint16(min(max(found, real(0)), real(steps)))


@_compiled
def write_first(counts, rows, line, steps, arena, to):  # type: ignore[no-untyped-def]
    """A train that fires in the first n steps, as bits."""
    for row in range(rows):
        for step in range(steps):
            for word in range(line):
                bits = _u(0)
                for lane in range(LANES):
                    bits |= _u(counts[_u((row * line + word) * LANES + lane)] > step) << _u(lane)
                arena[_u(to + (row * steps + step) * line + word)] = np.uint16(bits)


@_compiled
def write_even(counts, rows, line, steps, arena, to):  # type: ignore[no-untyped-def]
    """A train of n evenly spaced spikes, as bits: that of neurons with a constant current n and a threshold T.

    `s(t) = 1 if floor((t+1)·n/T) > floor(t·n/T)`.
    """
    width = line * LANES
    drive, potential = counts[: rows * width].astype(np.int32), np.zeros(width, np.int32)
    theta, shift, none, may, how = np.full(width, steps, np.int32), np.zeros(width, np.int32), np.zeros(width, np.int16), arena[:1], np.zeros(4, np.float32)
    for row in range(rows):
        potential[:] = 0
        driven, out = _u(row * width), _u(to + row * steps * line)
        _fire_even(potential, _u(0), none, _u(0), _u(0), none, drive, driven, theta, shift, drive, may, how, arena, out, _u(line), _u(line), _u(steps))


@_compiled
def pool_train(arena, at, rows, columns, words, steps, kernel, stride, padding, dilation, out_rows, out_columns, to):  # type: ignore[no-untyped-def]
    """Max pooling of a train: a bit is set where any bit in its window is."""
    for row in range(out_rows):
        for step in range(steps):
            for x in range(out_columns):
                for q in range(words):
                    bits = np.uint16(0)
                    for i in range(kernel[0]):
                        y = row * stride[0] - padding[0] + i * dilation[0]
                        for j in range(kernel[1]):
                            u = x * stride[1] - padding[1] + j * dilation[1]
                            if 0 <= y < rows and 0 <= u < columns:
                                bits |= arena[_u(at + ((y * steps + step) * columns + u) * words + q)]
                    arena[_u(to + ((row * steps + step) * out_columns + x) * words + q)] = bits


@_compiled
def fire_steps(currents, begin, count, steps, rows, line, drive, neurons, arena, to):  # type: ignore[no-untyped-def]
    """Neurons on currents `[step, neuron]` of `count` steps computed elsewhere, from step `begin` of their window on."""
    potential, held, theta, shift, fired, may, how = neurons
    width = _u(line * LANES)
    for row in range(_u(rows)):
        at, out = row * width, _u(to + begin * line) + row * _u(steps * line)
        _fire_steps(
            potential, at, currents, at, _u(rows) * width, held, drive, _u(0), theta, shift, fired, may, how, arena, out, _u(line), _u(line), _u(count)
        )  # fmt: skip
