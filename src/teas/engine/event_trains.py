"""Trains as bits and as counts: counted, re-timed, written, pooled."""

from __future__ import annotations

import numpy as np

from teas.engine.event_sources import CHANGES, SPIKES, compiled, inner, u
from teas.engine.lanes import LANES, count_bits, ones, spacer


@compiled
def count_trains(arena, n, at, rows, steps, line, counts, totals):  # type: ignore[no-untyped-def]
    """Spikes of every neuron of a train by image, and of all; `counts` has room for 48 neurons more, and so has the arena."""
    for image in range(n):
        totals[image] = _count_train(arena[image], at, rows, steps, line, counts[image])


@compiled
def add_up(counts, n, totals):  # type: ignore[no-untyped-def]
    """Spikes of all neurons by image, from their counts."""
    for image in range(n):
        total = 0
        for i in range(counts.shape[1]):
            total += counts[image, i]
        totals[image] = total


@inner
def _count_train(arena, at, rows, steps, line, counts):  # type: ignore[no-untyped-def]
    counts[:] = 0
    for row in range(rows):
        for word in range(0, line, 4):
            to = u((row * line + word) * LANES)
            for begin in range(0, steps, 255):
                count_bits(arena, u(at + (row * steps + begin) * line + word), u(line), u(min(255, steps - begin)), counts, to)
            if line - word < 4:  # what follows the row is not ours
                for i in range((line - word) * LANES, 4 * LANES):
                    counts[to + u(i)] = 0
    total = 0
    for i in range(rows * line * LANES):
        total += counts[u(i)]
    return total


@compiled
def choose_kinds(arena, n, at, rows, steps, line, neurons, totals, kinds):  # type: ignore[no-untyped-def]
    """CHANGES for images whose neurons begin and stop firing less often than they fire, else SPIKES, as where three quarters of the steps are silent."""
    for image in range(n):
        often = 4 * totals[image] >= neurons * steps
        kinds[image] = CHANGES if often and _count_changes(arena[image], at, rows, steps, line) < totals[image] else SPIKES


@inner
def _count_changes(arena, at, rows, steps, line):  # type: ignore[no-untyped-def]
    """Number of steps, summed over neurons, at which one begins or stops firing."""
    total = u(0)
    for row in range(rows):
        for step in range(steps):
            for word in range(line):
                i = u(at + (row * steps + step) * line + word)
                before = u(arena[i - u(line)]) if step > 0 else u(0)
                total += ones(u(arena[i]) ^ before)
    return total


@compiled
def retimed(n, counts, fired, residual, unit, theta, by_residual, by_potential, window, steps, out):  # type: ignore[no-untyped-def]
    """`n' = clip(floor(T'/T·x̃ + 1/2), 0, T')`, operation by operation as the reference computes it (Eq. 3), by image; 0 for a silent padding."""
    real = theta.dtype.type
    for image in range(n):
        for i in range(len(theta)):
            count = real(counts[image, i])
            numerator, denominator = count, real(1)
            if by_potential:
                potential = real(fired[image, i]) * unit[i]
                numerator = (count + real(1)) * potential - count * theta[i] if count > 0 else real(0)
                denominator = potential if count > 0 else real(1)
            elif by_residual:
                numerator, denominator = count * theta[i] + real(residual[image, i]) * unit[i], theta[i]
            half = real(window) * denominator
            found = np.floor((real(2 * steps) * numerator + half) / (real(2) * half))
            out[image, i] = np.uint16(min(max(found, real(0)), real(steps)))


@compiled
def write_first(n, counts, rows, line, steps, arena, to):  # type: ignore[no-untyped-def]
    """Trains that fire in the first n steps, as bits, by image."""
    for image in range(n):
        for row in range(rows):
            for step in range(steps):
                for word in range(line):
                    bits = u(0)
                    for lane in range(LANES):
                        bits |= u(counts[image, u((row * line + word) * LANES + lane)] > step) << u(lane)
                    arena[image, u(to + (row * steps + step) * line + word)] = np.uint16(bits)


_space_word, _space_four, _space_sixteen = spacer(LANES), spacer(4 * LANES), spacer(16 * LANES)


@compiled
def write_even(n, counts, rows, line, steps, arena, to):  # type: ignore[no-untyped-def]
    """Trains of n evenly spaced spikes, as bits, by image: `s(t) = 1 if floor((t+1)·n/T) > floor(t·n/T)`."""
    for image in range(n):
        _write_even(counts[image], rows, line, steps, arena[image], to)


@inner
def _write_even(counts, rows, line, steps, arena, to):  # type: ignore[no-untyped-def]
    for row in range(rows):
        at, out = row * line * LANES, to + row * steps * line
        sixteens, fours = line - line % 16, line - line % 4  # as many words at once as there are: none then waits for its own last step
        for word in range(0, sixteens, 16):
            _space_sixteen(counts, u(at + word * LANES), u(steps), arena, u(out + word), u(line))
        for word in range(sixteens, fours, 4):
            _space_four(counts, u(at + word * LANES), u(steps), arena, u(out + word), u(line))
        for word in range(fours, line):
            _space_word(counts, u(at + word * LANES), u(steps), arena, u(out + word), u(line))


@compiled
def pool_trains(arena, n, at, rows, columns, words, steps, kernel, stride, padding, dilation, out_rows, out_columns, to):  # type: ignore[no-untyped-def]
    """Max pooling of a train by image: a bit is set where any bit in its window is."""
    for image in range(n):
        _pool_train(arena[image], at, rows, columns, words, steps, kernel, stride, padding, dilation, out_rows, out_columns, to)


@inner
def _pool_train(arena, at, rows, columns, words, steps, kernel, stride, padding, dilation, out_rows, out_columns, to):  # type: ignore[no-untyped-def]
    for row in range(out_rows):
        for step in range(steps):
            for x in range(out_columns):
                for q in range(words):
                    bits = np.uint16(0)
                    for i in range(kernel[0]):
                        y = row * stride[0] - padding[0] + i * dilation[0]
                        for j in range(kernel[1]):
                            column = x * stride[1] - padding[1] + j * dilation[1]
                            if 0 <= y < rows and 0 <= column < columns:
                                bits |= arena[u(at + ((y * steps + step) * columns + column) * words + q)]
                    arena[u(to + ((row * steps + step) * out_columns + x) * words + q)] = bits
