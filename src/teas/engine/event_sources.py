"""What a layer's sources send: one number an event, where its run of additions begins, in vectors, times 2^16, plus its row of the weights.

A source with its connections, a term, is a row of integers. Its train is one bit per neuron and step, `[row, time, column, channel / 16]` of 16-bit words;
one that fires in the first n steps of its window is also known from n alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from teas.engine.firing import TOGETHER
from teas.engine.lanes import LANES, largest_below, ones, unpack, unpack_counts, unpack_ends

# What the events of a term are: spikes; on at step 0 and off at step n; on and off at any step; none, for every word of spikes is looked up.
SPIKES, FIRST, CHANGES, TABLED = 0, 1, 2, 3
# Columns of the integers that describe a term, a source with its connections.
AT, ROWS, COLUMNS, WORDS, KIND, ROW_KERNEL, KERNEL, ROW_STRIDE, STRIDE, ROW_PAD, PAD, ROW_RUN, RUN, TABLE, WEIGHTS, EVENTS, STARTS, BASES = range(18)
DIAGONAL, TABLES = 18, 19

u = np.uint64
_files = sorted(Path(__file__).parent.glob("*.py"))
_sources = hashlib.sha256(b"".join(file.read_bytes() for file in _files)).hexdigest()


def _compiler(**options: Any) -> Callable[..., Any]:
    """numba's `njit`, whose code is kept on disk until any file of the engine changes: numba looks at a function's own, and what it calls lies in others."""

    def compile_(function: Callable[..., Any]) -> Any:
        made: Any = njit(**options, nogil=True, cache=True, boundscheck=False, error_model="numpy")(function)
        made._cache._cache_file._source_stamp = _sources
        return made

    return compile_


compiled = _compiler()
inner = _compiler(_nrt=False)  # makes no arrays: those of its caller need not be counted, which takes longer than a row of additions
inlined = _compiler(_nrt=False, forceinline=True)


@inner
def phase_of(terms, k, row):  # type: ignore[no-untyped-def]
    """Rows of the kernel that a row of a source meets: every `stride`th from this one on."""
    return (row + terms[k, ROW_PAD]) % terms[k, ROW_STRIDE]


@inner
def row_events(arena, terms, k, row, begin, end, steps, row_vectors, vectors, bases, reads, events, off):  # type: ignore[no-untyped-def]
    """Events of one row of a source at steps `begin` to `end`, in pairs that begin at the same place: where one is left over, an event without weights
    follows; `off` asks for the neurons that stop firing instead of those that begin.

    The currents of the next step lie a row further. Returns the end of the events.
    """
    columns, words = u(terms[k, COLUMNS]), u(terms[k, WORDS])
    table, phase = u(terms[k, BASES]), u(phase_of(terms, k, row) * terms[k, STRIDE] * terms[k, WORDS] * LANES)
    first = n = u(terms[k, EVENTS])
    nothing = u(terms[k, TABLE] // (terms[k, RUN] * vectors * LANES) - 1)  # the last row of the weights
    changes = terms[k, KIND] == CHANGES
    for step in range(begin, end):
        at, more = u(terms[k, AT]) + u(row * steps + step) * columns * words, phase + (u((step - begin) * row_vectors) << u(16))
        i = u(0)
        for _ in range(columns):
            place = ((u(bases[table + i]) + more) >> u(16)) << u(16)
            for _ in range(words):
                word = u(arena[at + i])
                if changes:
                    before = u(arena[at + i - columns * words]) if step > 0 else u(0)
                    word = before & ~word if off else word & ~before
                n = unpack(word & u(reads[table + i]), u(bases[table + i]) + more, events, n)
                i += u(1)
            events[n] = place + nothing
            n += (n - first) & u(1)
    return n


@inner
def parts(steps, at_once):  # type: ignore[no-untyped-def]
    """Places in `starts` for where events of a row of a source begin: its neurons go on, off during each `at_once` steps, and no more."""
    return (steps + at_once - 1) // at_once + 2


@inner
def row_room(terms, k, steps, at_once):  # type: ignore[no-untyped-def]
    """Places in `starts` that a row of a source takes: `parts`, where the events of each column end that go on, and words of the neurons that fire at all."""
    return parts(steps, at_once) + terms[k, COLUMNS] * (1 + terms[k, WORDS])


@inner
def sort_first(counts, steps, at_once, row_vectors, terms, k, bases, reads, events, starts):  # type: ignore[no-untyped-def]
    """Events of a train that fires in the first n steps: each row's on at step 0, then off at n, `at_once` steps after the other, as `starts` tells."""
    columns, words, rooms, room = u(terms[k, COLUMNS]), u(terms[k, WORDS]), u(parts(steps, at_once)), u(row_room(terms, k, steps, at_once))
    table, n, pitch = u(terms[k, BASES]), u(terms[k, EVENTS]), u(row_vectors) << u(16)
    for row in range(terms[k, ROWS]):
        phase, from_ = u(phase_of(terms, k, row) * terms[k, STRIDE] * terms[k, WORDS] * LANES), u(row) * columns * words
        bucket = u(terms[k, STARTS]) + u(row) * room
        starts[bucket] = n
        for column in range(columns):
            for i in range(column * words, (column + u(1)) * words):
                word = u(0)
                if reads[table + i]:
                    word = unpack_counts(counts, (from_ + i) * u(LANES), u(bases[table + i]) + phase, events, n)
                starts[bucket + rooms + columns + i] = word
                n += ones(word)
            starts[bucket + rooms + column] = n
        starts[bucket + u(1)] = n
        for begin in range(0, steps, at_once):
            first, end, before = u(max(begin, 1)), u(min(begin + at_once, steps)), u(begin) * pitch
            for i in range(columns * words):
                if reads[table + i]:
                    n += unpack_ends(counts, (from_ + i) * u(LANES), u(bases[table + i]) + phase - before, events, n, first, end, pitch)
            starts[bucket + u(2) + u(begin // at_once)] = n


@inner
def put_off(quiet, counts, steps, shape, terms, k, latest):  # type: ignore[no-untyped-def]
    """Move the step from which on nothing changes, of every `TOGETHER` vectors of a row, behind the last change of a train that fires in the first n steps."""
    rows, columns, vectors = shape
    places, words = u(terms[k, ROWS] * terms[k, COLUMNS]), u(terms[k, WORDS])
    for place in range(places):
        last = u(0)
        for i in range(place * words, (place + u(1)) * words):
            last = max(last, largest_below(counts, i * u(LANES), u(steps)))
        latest[place] = last
    groups = columns * vectors // TOGETHER
    for row in range(rows):
        top = row * terms[k, ROW_STRIDE] - terms[k, ROW_PAD]
        for group in range(groups):
            left = group * TOGETHER // vectors * terms[k, STRIDE] - terms[k, PAD]
            right = (group * TOGETHER + TOGETHER - 1) // vectors * terms[k, STRIDE] - terms[k, PAD] + terms[k, KERNEL]
            found = u(quiet[row * groups + group])
            for source in range(max(0, top), min(terms[k, ROWS], top + terms[k, ROW_KERNEL])):
                for place in range(source * terms[k, COLUMNS] + max(0, left), source * terms[k, COLUMNS] + min(terms[k, COLUMNS], right)):
                    found = max(found, u(latest[u(place)]) + u(1))
            quiet[row * groups + group] = found
