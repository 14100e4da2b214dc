"""A window of immediate firing in compiled loops, one each way: what `Window` does step by step, on a CPU, with the potentials in its nearest cache.

Neurons are taken in the order of memory, a block at a time, through all steps. A batch norm before them is part of the loop: its currents are never written.
Every loop releases the interpreter's lock.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

BLOCK = 1024  # neurons that are taken through their steps together
TRIANGLE, LITERAL, ARCTAN = range(3)  # surrogate gradients

# What a block needs beside what it reads and writes lies in rows of one array, a constant distance apart: LLVM then sees that no row is another, and
# takes many neurons at once. A row is a little longer than a block, so that equal places of all rows do not compete for the same lines of a cache.
_u = np.uint64
_PITCH = _u(BLOCK + 32)
_ROWS = 15
_FACTOR, _SHIFT, _MEAN, _THETA, _INVERSE, _TAKEN, _V, _SPOKEN, _FIRST, _TOTAL, _MOVED, _THROUGH, _AFTER, _TO_THETA, _TO_LEAK = (
    _u(row) * _PITCH for row in range(_ROWS)
)
_f = np.float32
_PI = _f(np.pi)

# Products and sums are contracted, as they are in torch's batch norm and in its sums with a factor.
_options: dict[str, Any] = {"nogil": True, "cache": True, "boundscheck": False, "error_model": "numpy", "fastmath": {"contract"}}
_jit: Any = njit
_compiled = _jit(**_options)
_summing = _jit(**{**_options, "fastmath": {"contract", "reassoc"}}, _nrt=False)
_inner = _jit(**_options, _nrt=False)  # one loop each, which LLVM then turns into vector instructions; it does not where several follow each other


@_inner
def _spread(values, start, n, inner, rows, row):  # type: ignore[no-untyped-def]
    """Values of the channels of `n` neurons from `start` on, `inner` neighbours to a channel."""
    channels, at = _u(len(values)), _u(0)
    channel, run = (start // inner) % channels, inner - start % inner
    while at < n:
        end = min(n, at + run)
        for j in range(at, end):
            rows[row + j] = values[channel]
        at, run = end, inner
        channel = channel + _u(1) if channel + _u(1) < channels else _u(0)


@_summing
def _sum(values, at, n):  # type: ignore[no-untyped-def]
    total = 0.0
    for j in range(n):
        total += values[at + j]
    return total


@_inner
def _gather(rows, row, start, n, inner, sums):  # type: ignore[no-untyped-def]
    """Add what `n` neurons from `start` on have found to the sums of their channels."""
    channels, at = _u(len(sums)), _u(0)
    channel, run = (start // inner) % channels, inner - start % inner
    while at < n:
        end = min(n, at + run)
        sums[channel] += _sum(rows, row + at, end - at)
        at, run = end, inner
        channel = channel + _u(1) if channel + _u(1) < channels else _u(0)


@_inner
def _begin(rows, factors, shifts, thresholds, start, n, inner, taken, put):  # type: ignore[no-untyped-def]
    """Parameters of a block. A spike leaves `kept·v - taken·θ - put`: all of `v` but some thresholds, or none of it but the reset potential."""
    _spread(factors, start, n, inner, rows, _FACTOR)
    _spread(shifts, start, n, inner, rows, _SHIFT)
    _spread(thresholds, start, n, inner, rows, _THETA)
    for j in range(n):
        rows[_INVERSE + j] = _f(1) / rows[_THETA + j]
        rows[_TAKEN + j] = taken * rows[_THETA + j] - put


@_compiled
def forward(  # type: ignore[no-untyped-def]
    sums, factors, shifts, thresholds, spikes, count, fired, left, steps, lasting, size, inner, block, first, last, leak, v0, kept, taken, put, once
):  # fmt: skip
    """Spikes of neurons `first` to `last` at every step, their counts, sums of firing potentials, and potentials left (Eq. 1); arrays in memory's order."""
    rows, phase, whole = np.empty(_ROWS * _PITCH, np.float32), size, inner * _u(len(thresholds))
    for start in range(first, last, block):
        n = min(block, last - start)
        if start % whole != phase:
            phase = start % whole
            _begin(rows, factors, shifts, thresholds, start, n, inner, taken, put)
        for j in range(n):
            rows[_V + j], rows[_SPOKEN + j], rows[_TOTAL + j] = v0 * rows[_THETA + j], _f(0), _f(0)
        for t in range(steps):
            row = start + t * size
            at = start if lasting else row
            for j in range(n):
                v = (sums[at + j] * rows[_FACTOR + j] + rows[_SHIFT + j]) + leak * rows[_V + j]
                fires = v >= rows[_THETA + j]
                if once:
                    fires = fires & (rows[_SPOKEN + j] == _f(0))
                one = _f(1) if fires else _f(0)
                spikes[row + j] = one
                rows[_SPOKEN + j] += one
                rows[_TOTAL + j] += v if fires else _f(0)
                rows[_V + j] = kept * v - rows[_TAKEN + j] if fires else v
        for j in range(n):
            count[start + j] = rows[_SPOKEN + j]
        for j in range(n):
            fired[start + j] = rows[_TOTAL + j]
        for j in range(n):
            left[start + j] = rows[_V + j]


@_inner
def _charge(sums, row, n, rows, charged, at, leak, kept):  # type: ignore[no-untyped-def]
    """Potentials before the reset of a step, and after it."""
    for j in range(n):
        v = (sums[row + j] * rows[_FACTOR + j] + rows[_SHIFT + j]) + leak * rows[_V + j]
        charged[at + j] = v
        rows[_V + j] = kept * v - rows[_TAKEN + j] if v >= rows[_THETA + j] else v


@_inner
def _slope(charged, at, n, rows, surrogate, gradient, row):  # type: ignore[no-untyped-def]
    """Gradients of potentials through the spikes of a step: those of the spikes times the surrogate gradient."""
    if surrogate == TRIANGLE:
        for j in range(n):
            rows[_THROUGH + j] = max(_f(1) - abs(charged[at + j] * rows[_INVERSE + j] - _f(1)), _f(0)) * gradient[row + j]
    elif surrogate == LITERAL:
        for j in range(n):
            rows[_THROUGH + j] = max(_f(1) - abs(charged[at + j] * rows[_INVERSE + j]), _f(0)) * gradient[row + j]
    else:
        for j in range(n):
            scaled = (charged[at + j] * rows[_INVERSE + j] - _f(1)) * _PI
            rows[_THROUGH + j] = gradient[row + j] / (_f(1) + scaled * scaled)


@_inner
def _return(charged, at, n, rows, leak, kept):  # type: ignore[no-untyped-def]
    """Gradients of what a step charges, and of the potential that the step before it left."""
    for j in range(n):
        through = rows[_THROUGH + j] + (_f(1) if charged[at + j] < rows[_THETA + j] else kept) * rows[_AFTER + j]
        rows[_THROUGH + j] = through
        rows[_AFTER + j] = leak * through
        rows[_TOTAL + j] += through


@_inner
def _hand_on(sums, at, n, rows, row, grad_sums):  # type: ignore[no-untyped-def]
    """Gradients of the sums of a step, and what they move the factors by."""
    for j in range(n):
        rows[_MOVED + j] += rows[row + j] * (sums[at + j] - rows[_MEAN + j])
        grad_sums[at + j] = rows[row + j]


@_compiled
def backward(  # type: ignore[no-untyped-def]
    sums, factors, shifts, means, thresholds, grad_spikes, grad_sums, grad_threshold, grad_leak, to_shifts, to_factors,
    steps, lasting, size, inner, block, first, last, leak, v0, kept, taken, put, once, surrogate, learns_threshold, learns_leak, normed,
):  # fmt: skip
    """Gradients of the currents of neurons `first` to `last` (Eq. 4), and, where asked for, of thresholds and leaks; sums a channel for a norm's own."""
    rows, phase, whole = np.empty(_ROWS * _PITCH, np.float32), size, inner * _u(len(thresholds))
    charged = np.empty(steps * _PITCH, np.float32)  # potentials before the reset
    for start in range(first, last, block):
        n = min(block, last - start)
        if start % whole != phase:
            phase = start % whole
            _begin(rows, factors, shifts, thresholds, start, n, inner, taken, put)
            _spread(means, start, n, inner, rows, _MEAN)
        for j in range(n):
            rows[_V + j], rows[_FIRST + j] = v0 * rows[_THETA + j], _f(steps)
        # With `once`, what a neuron would do after its first spike does no harm: no gradient comes from there.
        for t in range(steps):
            at, row = t * _PITCH, start if lasting else start + t * size
            _charge(sums, row, n, rows, charged, at, leak, kept)
            if once:
                for j in range(n):
                    rows[_FIRST + j] = min(rows[_FIRST + j], _f(t) if charged[at + j] >= rows[_THETA + j] else _f(steps))
        for j in range(n):
            rows[_AFTER + j], rows[_TO_THETA + j], rows[_TO_LEAK + j], rows[_TOTAL + j], rows[_MOVED + j] = _f(0), _f(0), _f(0), _f(0), _f(0)
        for back in range(steps):
            t = steps - _u(1) - back
            at, row = t * _PITCH, start + t * size
            _slope(charged, at, n, rows, surrogate, grad_spikes, row)
            if once:
                for j in range(n):
                    rows[_THROUGH + j] = rows[_THROUGH + j] if _f(t) <= rows[_FIRST + j] else _f(0)
            if learns_threshold:  # a spike depends on U/θ: dO/dθ = -(U/θ)·dO/dU
                for j in range(n):
                    lost = taken * rows[_AFTER + j] if charged[at + j] >= rows[_THETA + j] else _f(0)
                    rows[_TO_THETA + j] -= rows[_THROUGH + j] * charged[at + j] * rows[_INVERSE + j] + lost
            _return(charged, at, n, rows, leak, kept)
            if not lasting:
                _hand_on(sums, row, n, rows, _THROUGH, grad_sums)
            if learns_leak and t > _u(0):
                for j in range(n):
                    v = charged[at - _PITCH + j]
                    rows[_TO_LEAK + j] += (kept * v - rows[_TAKEN + j] if v >= rows[_THETA + j] else v) * rows[_THROUGH + j]
        if lasting:
            _hand_on(sums, start, n, rows, _TOTAL, grad_sums)
        if normed:
            _gather(rows, _TOTAL, start, n, inner, to_shifts)
            _gather(rows, _MOVED, start, n, inner, to_factors)
        if learns_threshold:
            for j in range(n):
                grad_threshold[start + j] = rows[_TO_THETA + j] + v0 * rows[_AFTER + j]
        if learns_leak:
            for j in range(n):
                grad_leak[start + j] = rows[_TO_LEAK + j] + v0 * rows[_THETA + j] * rows[_THROUGH + j]


@_inner
def _through(gradient, sums, at, n, rows):  # type: ignore[no-untyped-def]
    for j in range(n):
        moved = rows[_THROUGH + j] * (sums[at + j] - rows[_MEAN + j])
        gradient[at + j] = rows[_FACTOR + j] * (gradient[at + j] - rows[_SHIFT + j] - moved)


@_compiled
def through_norm(gradient, sums, factors, offsets, slopes, means, steps, size, inner, block, first, last):  # type: ignore[no-untyped-def]
    """Gradients of a norm's outputs become those of its inputs: `factor·(g - offset - slope·(x - mean))`."""
    rows, phase, whole = np.empty(_ROWS * _PITCH, np.float32), size, inner * _u(len(factors))
    for start in range(first, last, block):
        n = min(block, last - start)
        if start % whole != phase:
            phase = start % whole
            _spread(factors, start, n, inner, rows, _FACTOR)
            _spread(offsets, start, n, inner, rows, _SHIFT)
            _spread(slopes, start, n, inner, rows, _THROUGH)
            _spread(means, start, n, inner, rows, _MEAN)
        for t in range(steps):
            _through(gradient, sums, start + t * size, n, rows)


@_compiled
def pack(values, bits, first, last):  # type: ignore[no-untyped-def]
    """Bytes `first` to `last` of eight ones and zeros each, the first one highest."""
    for i in range(first, last):
        at, byte = i * _u(8), _u(0)
        for j in range(_u(8)):
            byte |= _u(values[at + j] != _f(0)) << (_u(7) - j)
        bits[i] = byte


@_compiled
def unpack(bits, table, values, first, last):  # type: ignore[no-untyped-def]
    """The ones and zeros of bytes `first` to `last`, of each byte those in its row of the table."""
    for i in range(first, last):
        at, byte = i * _u(8), _u(bits[i])
        for j in range(_u(8)):
            values[at + j] = table[byte, j]
