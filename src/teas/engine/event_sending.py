"""Sparse additions: what the sources of a layer send to a ring of rows of its currents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from teas.engine.event_sources import (
    AT,
    BASES,
    CHANGES,
    COLUMNS,
    EVENTS,
    FIRST,
    KIND,
    ROW_KERNEL,
    ROW_PAD,
    ROW_RUN,
    ROW_STRIDE,
    RUN,
    STARTS,
    TABLE,
    TABLES,
    WEIGHTS,
    WORDS,
    inlined,
    inner,
    parts,
    phase_of,
    row_events,
    row_room,
    u,
)
from teas.engine.lanes import LANES, adder, adder_where, look_up, summer


@inlined
def _row_of_one(events, at, run):  # type: ignore[no-untyped-def]
    return ((u(events[at]) & u(0xFFFF)) * run,)


@inlined
def _rows_of_two(events, at, run):  # type: ignore[no-untyped-def]
    return (u(events[at]) & u(0xFFFF)) * run, (u(events[at + u(1)]) & u(0xFFFF)) * run


def _sender(width: int, vectors: int, lanes: int, subtract: bool, pairs: bool) -> Callable[..., Any]:
    """Add the weights of events, `width` a row, to some places from each event's on; two events or pairs in turn, so that none waits for the other's sums.

    Returns where the rest of the events begins: one event, one pair, or none.
    """
    add, rows, run, size = adder(vectors, lanes, subtract), _rows_of_two if pairs else _row_of_one, u(width), u(2 if pairs else 1)

    def send(current, places, weights, tables, events, low, high):  # type: ignore[no-untyped-def]
        half = (high - low) // (u(2) * size)
        middle = low + half * size
        for i in range(half):
            e, f = low + i * size, middle + i * size
            add(current, (u(events[e]) >> u(16)) * u(16), places, weights, rows(events, e, run), tables)
            add(current, (u(events[f]) >> u(16)) * u(16), places, weights, rows(events, f, run), tables)
        return middle + half * size

    return inlined(send)  # type: ignore[no-any-return]


def _scatterer(subtract: bool, pairs: bool) -> Callable[..., None]:
    """Add (or subtract) the weights of events to `n` rows of currents from row `top` on; kernels of 3x3 and up to 64 channels to all rows at once.

    pairs: events come two by two at the same place; a place is then stored once for both, for stores take longest.
    A vector is never wider than a column of the currents: an event of the next column then loads what was stored, whole, and need not wait for it. At most
    three are in registers at a time, two to four of the processor's own each.
    """
    send48, send64, send96 = (_sender(*sizes, subtract, pairs) for sizes in ((48, 3, 16), (64, 2, 32), (96, 3, 32)))
    send128, send192 = (_sender(*sizes, subtract, pairs) for sizes in ((128, 2, 32), (192, 3, 32)))
    add1, add4 = adder(1, 16, subtract), adder(2, 32, subtract)

    def scatter(current, top, n, ring, slot, weights, row0, table, run, events, low, high):  # type: ignore[no-untyped-def]
        first, second, third = u(top % ring) * slot, u((top + 1) % ring) * slot, u((top + 2) % ring) * slot
        rest = low
        if n == 3:
            rows, tables = (first, second, third), (row0, row0 + table, row0 + table + table)
            if run == u(48):
                rest = send48(current, rows, weights, tables, events, low, high)
            elif run == u(96):
                rest = send96(current, rows, weights, tables, events, low, high)
        elif n == 2:
            two, tables2 = (first, second), (row0, row0 + table)
            if run == u(64):
                rest = send64(current, two, weights, tables2, events, low, high)
            elif run == u(128):
                halves, tables4 = (first, first + u(64), second, second + u(64)), (row0, row0 + u(64), row0 + table, row0 + table + u(64))
                rest = send128(current, halves, weights, tables4, events, low, high)
        low = rest
        for r in range(n):
            offset, row, rest = u((top + r) % ring) * slot, row0 + u(r) * table, low
            one, table1 = (offset,), (row,)
            if run == u(48):
                rest = send48(current, one, weights, table1, events, low, high)
            elif run == u(64):
                rest = send64(current, one, weights, table1, events, low, high)
            elif run == u(96):
                rest = send96(current, one, weights, table1, events, low, high)
            elif run == u(128):
                rest = send128(current, (offset, offset + u(64)), weights, (row, row + u(64)), events, low, high)
            elif run == u(192):
                rest = send192(current, (offset, offset + u(96)), weights, (row, row + u(96)), events, low, high)
            elif run % u(64) == u(0):
                for i in range(low, high):
                    e = u(events[i])
                    for v in range(u(0), run, u(64)):
                        add4(current, (e >> u(16)) * u(16), (offset + v,), weights, ((e & u(0xFFFF)) * run,), (row + v,))
                rest = high
            for i in range(rest, high):
                e = u(events[i])
                for v in range(u(0), run, u(16)):
                    add1(current, (e >> u(16)) * u(16), (offset + v,), weights, ((e & u(0xFFFF)) * run,), (row + v,))

    return inner(scatter)  # type: ignore[no-any-return]


_add_events, _subtract_events = _scatterer(False, False), _scatterer(True, False)
_add_pairs, _subtract_pairs = _scatterer(False, True), _scatterer(True, True)
_sum48, _sum64, _sum96, _sum128, _sum192 = summer(3, 16), summer(2, 32), summer(3, 32), summer(4, 32), summer(6, 32)


@inner
def _add_places(current, top, n, ring, slot, weights, row0, table, run, events, low, ends, at, columns):  # type: ignore[no-untyped-def]
    """Add the weights of all events of a row that begin at step 0, those of a place at once: they end at `ends[at:]`, place after place.

    Returns whether there is a way to: for kernels of 3x3 and up to 64 channels, at stride 1 or 2, away from the edges of the map.
    """
    first, second, third = u(top % ring) * slot, u((top + 1) % ring) * slot, u((top + 2) % ring) * slot
    three, tables, two, tables2 = (first, second, third), (row0, row0 + table, row0 + table + table), (first, second), (row0, row0 + table)
    if not ((n == 3 and (run == u(48) or run == u(96) or run == u(192))) or (n == 2 and (run == u(64) or run == u(128)))):
        return False
    for column in range(columns):
        high = u(ends[at + column])
        if low == high:
            continue
        place = (u(events[low]) >> u(16)) * u(LANES)
        if run == u(48):
            _sum48(current, place, three, weights, run, events, low, high, tables)
        elif run == u(96):
            _sum96(current, place, three, weights, run, events, low, high, tables)
        elif run == u(192):
            _sum192(current, place, three, weights, run, events, low, high, tables)
        elif run == u(64):
            _sum64(current, place, two, weights, run, events, low, high, tables2)
        else:
            _sum128(current, place, two, weights, run, events, low, high, tables2)
        low = high
    return True


@inner
def send_words(words, at, terms, k, row, step, at_once, rows, tables, current, row_vectors, ring, bases):  # type: ignore[no-untyped-def]
    """Add what one row of a source, its spikes in `words[at:]`, sends to the three rows of neurons that it reaches, to the currents of the `step`th step at
    once; what would lie outside of the map goes to a row of currents that is not read.
    """
    slot, nowhere = at_once * row_vectors * LANES, ring * at_once * row_vectors * LANES
    from_, first, third = step * row_vectors * LANES + (bases[u(terms[k, BASES])] >> 16) * LANES, row - 1, row + 1
    low = first % ring * slot + from_ if first >= 0 else nowhere
    high = third % ring * slot + from_ if third < rows else nowhere
    look_up(words, u(at), u(terms[k, COLUMNS]), tables, u(terms[k, TABLES]), current, u(low), u(row % ring * slot + from_), u(high))


@inner
def send_row(arena, terms, k, row, begin, end, steps, at_once, rows, vectors, weights, tables, current, row_vectors, ring, bases, reads, events, starts):  # type: ignore[no-untyped-def]
    """Add what one row of a source sends at steps `begin` to `end` to the rows of neurons that it reaches."""
    phase = phase_of(terms, k, row)
    top = (row + terms[k, ROW_PAD]) // terms[k, ROW_STRIDE] - (terms[k, ROW_RUN] - 1)
    low, high = max(0, -top, terms[k, ROW_RUN] - 1 - (terms[k, ROW_KERNEL] - 1 - phase) // terms[k, ROW_STRIDE]), min(terms[k, ROW_RUN], rows - top)
    if phase >= terms[k, ROW_KERNEL] or low >= high:
        return
    run, slot = u(terms[k, RUN] * vectors * LANES), u(at_once * row_vectors * LANES)
    top, n, table = top + low, high - low, u(terms[k, TABLE])
    row0, first = u(terms[k, WEIGHTS]) + u(low) * table, u(terms[k, EVENTS])
    if terms[k, KIND] == FIRST:
        columns, rooms = u(terms[k, COLUMNS]), u(parts(steps, at_once))
        bucket = u(terms[k, STARTS] + row * row_room(terms, k, steps, at_once))
        if begin == 0:
            on, off = u(starts[bucket]), u(starts[bucket + u(1)])
            if terms[k, TABLES] >= 0 and off - on > columns // u(2):
                send_words(starts, bucket + rooms + columns, terms, k, row, 0, at_once, rows, tables, current, row_vectors, ring, bases)
            elif not _add_places(current, top, n, ring, slot, weights, row0, table, run, events, on, starts, bucket + rooms, columns):
                _add_events(current, top, n, ring, slot, weights, row0, table, run, events, on, off)
        bucket += u(begin // at_once)
        _subtract_events(current, top, n, ring, slot, weights, row0, table, run, events, u(starts[bucket + u(1)]), u(starts[bucket + u(2)]))
        return
    last = row_events(arena, terms, k, row, begin, end, steps, row_vectors, vectors, bases, reads, events, False)
    _add_pairs(current, top, n, ring, slot, weights, row0, table, run, events, first, last)
    if terms[k, KIND] == CHANGES:
        last = row_events(arena, terms, k, row, begin, end, steps, row_vectors, vectors, bases, reads, events, True)
        _subtract_pairs(current, top, n, ring, slot, weights, row0, table, run, events, first, last)


def _alike(lanes: int) -> Callable[..., None]:
    """Add the weights of neurons that fire, each its own, and where only changes count, subtract those of neurons that fired before."""
    add, subtract = adder_where(lanes, False), adder_where(lanes, True)

    def send(current, place, weights, weight, word, before, changes):  # type: ignore[no-untyped-def]
        if changes:
            subtract(current, place, weights, weight, before & ~word)
            word &= ~before
        add(current, place, weights, weight, word)

    return inlined(send)  # type: ignore[no-any-return]


_send_one, _send_two = _alike(LANES), _alike(2 * LANES)


@inner
def send_alike(arena, terms, k, row, begin, end, steps, vectors, weights, current, from_, pitch):  # type: ignore[no-untyped-def]
    """Add what one row of a source of the same shape sends to the same neurons, each with a weight of its channel's: two words at once."""
    words, width, changes = u(terms[k, WORDS] * terms[k, COLUMNS]), u(terms[k, TABLE]), terms[k, KIND] == CHANGES
    twos, table = words & ~u(1) if vectors == 1 or vectors % 2 == 0 else u(0), u(terms[k, WEIGHTS])
    for step in range(begin, end):
        at, to, weight, lasts = u(terms[k, AT]) + u(row * steps + step) * words, from_ + u(step - begin) * pitch, table, changes and step > 0
        for i in range(u(0), twos, u(2)):
            word = u(arena[at + i]) | u(arena[at + i + u(1)]) << u(16)
            before = u(arena[at + i - words]) | u(arena[at + i + u(1) - words]) << u(16) if lasts else u(0)
            _send_two(current, to + i * u(LANES), weights, weight, word, before, changes)
            weight += u(2 * LANES)
            weight = table if weight >= table + width else weight
        for i in range(twos, words):
            before = u(arena[at + i - words]) if lasts else u(0)
            _send_one(current, to + i * u(LANES), weights, table + i % u(vectors) * u(LANES), u(arena[at + i]), before, changes)
