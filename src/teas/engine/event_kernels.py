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

from teas.engine.lanes import LANES, adder, count_bits, fire_any, firing, ones, unpack

SPIKES, FIRST, CHANGES = 0, 1, 2  # what the events of a term are: spikes; on at step 0 and off at step n; on and off at any step
# Columns of the integers that describe a term, a source with its connections.
AT, ROWS, COLUMNS, WORDS, KIND, ROW_KERNEL, KERNEL, ROW_STRIDE, STRIDE, ROW_PAD, PAD, ROW_RUN, RUN, TABLE, WEIGHTS, EVENTS, STARTS = range(17)
TERM_FIELDS = 17

_compiled: Callable[..., Any] = njit(nogil=True, cache=True, boundscheck=False, error_model="numpy")
_u = np.uint64


def _scatterer(subtract: bool) -> Callable[..., None]:
    """Add (or subtract) the weights of events to the currents; two events at a time, so that none waits for the other's sums."""
    add1, add3, add4, add6 = (adder(vectors, subtract) for vectors in (1, 3, 4, 6))

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
                add6(current, (e >> _u(16)) * _u(16) + offset, weights, (e & _u(0xFFFF)) * _u(96) + row0)
                add6(current, (f >> _u(16)) * _u(16) + offset, weights, (f & _u(0xFFFF)) * _u(96) + row0)
            low = middle + half
        elif run % _u(64) == _u(0):
            for v in range(_u(0), run, _u(64)):
                for i in range(half):
                    e, f = _u(events[low + i]), _u(events[middle + i])
                    add4(current, (e >> _u(16)) * _u(16) + offset + v, weights, (e & _u(0xFFFF)) * run + row0 + v)
                    add4(current, (f >> _u(16)) * _u(16) + offset + v, weights, (f & _u(0xFFFF)) * run + row0 + v)
            low = middle + half
        for i in range(low, high):
            e = _u(events[i])
            for v in range(_u(0), run, _u(16)):
                add1(current, (e >> _u(16)) * _u(16) + offset + v, weights, (e & _u(0xFFFF)) * run + row0 + v)

    return _compiled(scatter)  # type: ignore[no-any-return]


_add_events, _subtract_events = _scatterer(False), _scatterer(True)
_fire, _fire_reset, _fire_sum, _fire_sum_reset = firing(False, False), firing(False, True), firing(True, False), firing(True, True)


@_compiled
def _row_events(arena, term, row, step, steps, halo, vectors, events, off):  # type: ignore[no-untyped-def]
    """Events of one row of a source at one step; `off` asks for the neurons that stop firing instead of those that begin. Returns their end."""
    words = term[WORDS]
    line = _u(term[COLUMNS] * words)
    at = _u(term[AT]) + _u(row * steps + step) * line
    n = _u(term[EVENTS])
    phase0 = ((row + term[ROW_PAD]) % term[ROW_STRIDE]) * term[STRIDE]
    changes = term[KIND] == CHANGES
    for x in range(term[COLUMNS]):
        phase = (x + term[PAD]) % term[STRIDE]
        if phase >= term[KERNEL]:
            continue
        column = (x + term[PAD] - phase) // term[STRIDE] - (term[RUN] - 1) + halo
        base = _u(column * vectors) << _u(16) | _u((phase0 + phase) * words * LANES)
        for q in range(words):
            i = at + _u(x * words + q)
            word = _u(arena[i])
            if changes:
                before = _u(arena[i - line]) if step > 0 else _u(0)
                word = before & ~word if off else word & ~before
            n = unpack(word, base + _u(q * LANES), events, n)
    return n


@_compiled
def _charge(arena, terms, weights, current, row_length, first, rows, step, steps, halo, vectors, events, starts):  # type: ignore[no-untyped-def]
    """Add what all terms send at one step to the currents of `rows` rows of neurons from `first` on."""
    for k in range(len(terms)):
        term = terms[k]
        run = _u(term[RUN] * vectors * LANES)
        low = max(0, first * term[ROW_STRIDE] - term[ROW_PAD])
        high = min(term[ROWS], (first + rows - 1) * term[ROW_STRIDE] - term[ROW_PAD] + term[ROW_KERNEL])
        for row in range(low, high):
            phase = (row + term[ROW_PAD]) % term[ROW_STRIDE]
            top = (row + term[ROW_PAD] - phase) // term[ROW_STRIDE] - (term[ROW_RUN] - 1) - first
            begin, end = max(0, -top), min(term[ROW_RUN], rows - top)
            if phase >= term[ROW_KERNEL] or begin >= end:
                continue
            if term[KIND] == FIRST:
                bucket = term[STARTS] + row * (steps + 1) + step
                on_low, on_high, off_high = _u(starts[bucket]), _u(starts[bucket + 1]), _u(0)
            else:
                on_low, on_high = _u(term[EVENTS]), _row_events(arena, term, row, step, steps, halo, vectors, events, False)
                off_high = _u(0)
            for r in range(begin, end):
                offset, row0 = _u(top + r) * row_length, _u(term[WEIGHTS]) + _u(r * term[TABLE])
                if term[KIND] == FIRST and step > 0:
                    _subtract_events(current, offset, weights, row0, run, events, on_low, on_high)
                else:
                    _add_events(current, offset, weights, row0, run, events, on_low, on_high)
            if term[KIND] == CHANGES:
                off_high = _row_events(arena, term, row, step, steps, halo, vectors, events, True)
                for r in range(begin, end):
                    offset, row0 = _u(top + r) * row_length, _u(term[WEIGHTS]) + _u(r * term[TABLE])
                    _subtract_events(current, offset, weights, row0, run, events, on_low, off_high)


def _runner(fire_row: Callable[..., None]) -> Callable[..., None]:
    """All steps of one layer, `block` rows of neurons at a time; its train goes to `arena[to:]`, its potentials are left in place.

    shape: rows, columns, vectors of channels. halo: columns on the left and on the right where runs of additions may end outside of the map.
    keeps: whether currents last until an event changes them (all terms are FIRST or CHANGES), or are those of one step (SPIKES).
    drive: the constant part of the current, `drive_row` apart from row to row. neurons: potential, threshold, shift, sum of firing
    potentials, who may fire, and the rule, as `fire_row` takes them.
    """

    def run(arena, to, steps, shape, block, halo, terms, weights, keeps, current, drive, drive_row, neurons, events, starts):  # type: ignore[no-untyped-def]
        rows, columns, vectors = shape
        line = _u(columns * vectors)
        row_length = _u((columns + halo[0] + halo[1]) * vectors * LANES)
        inside = _u(halo[0] * vectors * LANES)
        for first in range(0, rows, block):
            here = min(block, rows - first)
            current[:] = 0
            for step in range(steps):
                _charge(arena, terms, weights, current, row_length, first, here, step, steps, halo[0], vectors, events, starts)
                for b in range(here):
                    at, driven = _u(first + b) * line * _u(LANES), _u((first + b) * drive_row)
                    out = _u(to) + _u((first + b) * steps + step) * line
                    fire_row(neurons, at, current, _u(b) * row_length + inside, drive, driven, arena, out, line, keeps)

    return _compiled(run)  # type: ignore[no-any-return]


@_compiled
def _fire_row(neurons, at, current, from_, drive, driven, arena, out, line, keeps):  # type: ignore[no-untyped-def]
    potential, theta, shift, fired, _, _ = neurons
    if keeps:
        _fire(potential, at, current, from_, drive, driven, theta, shift, fired, arena, out, line)
    else:
        _fire_reset(potential, at, current, from_, drive, driven, theta, shift, fired, arena, out, line)


@_compiled
def _fire_row_sum(neurons, at, current, from_, drive, driven, arena, out, line, keeps):  # type: ignore[no-untyped-def]
    potential, theta, shift, fired, _, _ = neurons
    if keeps:
        _fire_sum(potential, at, current, from_, drive, driven, theta, shift, fired, arena, out, line)
    else:
        _fire_sum_reset(potential, at, current, from_, drive, driven, theta, shift, fired, arena, out, line)


@_compiled
def _fire_row_any(neurons, at, current, from_, drive, driven, arena, out, line, keeps):  # type: ignore[no-untyped-def]
    potential, theta, _, fired, may, rule = neurons
    fire_any(potential, at, current, from_, drive, driven, theta, fired, arena, out, line, may, rule)
    if not keeps:
        current[from_ : from_ + line * _u(LANES)] = 0


run_plain, run_sums, run_any = _runner(_fire_row), _runner(_fire_row_sum), _runner(_fire_row_any)


@_compiled
def sort_first(counts, channels, steps, term, halo, vectors, events, starts):  # type: ignore[no-untyped-def]
    """Events of a train that fires in the first n steps: each row's sorted by step, on at 0 and off at n, as `starts` tells."""
    width = term[COLUMNS] * channels
    words = term[WORDS]
    places = np.zeros(steps + 1, np.int64)
    n = term[EVENTS]
    for row in range(term[ROWS]):
        places[:] = 0
        on = n
        for x in range(term[COLUMNS]):
            if (x + term[PAD]) % term[STRIDE] < term[KERNEL]:
                for c in range(channels):
                    count = counts[_u(row * width + x * channels + c)]
                    places[count] += 1
                    n += count > 0
        bucket = term[STARTS] + row * (steps + 1)
        starts[bucket] = on
        for step in range(1, steps + 1):
            starts[bucket + step] = n
            size = places[step]
            places[step] = n
            if step < steps:
                n += size
        phase0 = ((row + term[ROW_PAD]) % term[ROW_STRIDE]) * term[STRIDE]
        for x in range(term[COLUMNS]):
            phase = (x + term[PAD]) % term[STRIDE]
            if phase >= term[KERNEL]:
                continue
            column = (x + term[PAD] - phase) // term[STRIDE] - (term[RUN] - 1) + halo
            base = _u(column * vectors) << _u(16) | _u((phase0 + phase) * words * LANES)
            for c in range(channels):
                count = counts[_u(row * width + x * channels + c)]
                if count > 0:
                    events[_u(on)] = base + _u(c)
                    on += 1
                    if count < steps:
                        events[_u(places[count])] = base + _u(c)
                        places[count] += 1


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
    """`n' = clip(floor(T'/T·x̃ + 1/2), 0, T')` in float32, operation by operation as the reference computes it (Eq. 3); 0 for a silent padding."""
    for i in range(len(counts)):
        n = np.float32(counts[i])
        numerator, denominator = n, np.float32(1)
        if by_potential:
            numerator = (n + np.float32(1)) * fired[i] - n * theta[i] if n > 0 else np.float32(0)
            denominator = fired[i] if n > 0 else np.float32(1)
        elif by_residual:
            numerator, denominator = n * theta[i] + residual[i], theta[i]
        half = np.float32(window) * denominator
        found = np.floor((np.float32(2 * steps) * numerator + half) / (np.float32(2) * half))
        out[i] = np.uint16(min(max(found, np.float32(0)), np.float32(steps)))


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
    theta, shift, current = np.full(width, steps, np.int32), np.zeros(width, np.int32), np.zeros(width, np.int16)
    for row in range(rows):
        potential[:] = 0
        for step in range(steps):
            out = _u(to + (row * steps + step) * line)
            _fire(potential, _u(0), current, _u(0), drive, _u(row * width), theta, shift, potential, arena, out, _u(line))


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
def fire_steps(currents, begin, steps, rows, line, drive, neurons, arena, to):  # type: ignore[no-untyped-def]
    """Neurons on currents `[step, neuron]` computed elsewhere, from step `begin` of their window on."""
    potential, theta, _, fired, may, rule = neurons
    for k in range(len(currents)):
        for row in range(rows):
            at = _u(row * line * LANES)
            out = _u(to + (row * steps + begin + k) * line)
            fire_any(potential, at, currents[k], at, drive, _u(0), theta, fired, arena, out, _u(line), may, rule)
