"""Event-driven layers: sparse additions of weights, and neurons that integrate, fire and are reset in one pass.

A map of neurons lies in memory as `[row, column, channel]`, channels padded to multiples of 16; a train as one bit per neuron and step,
`[row, time, column, channel / 16]` of 16-bit words. An event is one number: where its run of additions begins, in vectors, times 2^16,
plus its row of the weights. Every function releases the interpreter's lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from teas.engine.firing import firing
from teas.engine.lanes import LANES, adder, adder_where, count_bits, look_up, ones, spacer, summer, unpack, unpack_counts, unpack_ends

# What the events of a term are: spikes; on at step 0 and off at step n; on and off at any step; none, for every word of spikes is looked up.
SPIKES, FIRST, CHANGES, TABLED = 0, 1, 2, 3
# Columns of the integers that describe a term, a source with its connections.
AT, ROWS, COLUMNS, WORDS, KIND, ROW_KERNEL, KERNEL, ROW_STRIDE, STRIDE, ROW_PAD, PAD, ROW_RUN, RUN, TABLE, WEIGHTS, EVENTS, STARTS, BASES = range(18)
DIAGONAL, TABLES = 18, 19

_options: dict[str, Any] = {"nogil": True, "cache": True, "boundscheck": False, "error_model": "numpy"}
_jit: Any = njit
_compiled = _jit(**_options)
_inner = _jit(**_options, _nrt=False)  # makes no arrays: those of its caller need not be counted, which takes longer than a row of additions
_inlined = _jit(**_options, _nrt=False, forceinline=True)
_u = np.uint64


@_inlined
def _row_of_one(events, at, run):  # type: ignore[no-untyped-def]
    return ((_u(events[at]) & _u(0xFFFF)) * run,)


@_inlined
def _rows_of_two(events, at, run):  # type: ignore[no-untyped-def]
    return (_u(events[at]) & _u(0xFFFF)) * run, (_u(events[at + _u(1)]) & _u(0xFFFF)) * run


def _sender(width: int, vectors: int, lanes: int, subtract: bool, pairs: bool) -> Callable[..., Any]:
    """Add the weights of events, `width` a row, to some places from each event's on; two events or pairs in turn, so that none waits for the other's sums.

    Returns where the rest of the events begins: one event, one pair, or none.
    """
    add, rows, run, size = adder(vectors, lanes, subtract), _rows_of_two if pairs else _row_of_one, _u(width), _u(2 if pairs else 1)

    def send(current, places, weights, tables, events, low, high):  # type: ignore[no-untyped-def]
        half = (high - low) // (_u(2) * size)
        middle = low + half * size
        for i in range(half):
            e, f = low + i * size, middle + i * size
            add(current, (_u(events[e]) >> _u(16)) * _u(16), places, weights, rows(events, e, run), tables)
            add(current, (_u(events[f]) >> _u(16)) * _u(16), places, weights, rows(events, f, run), tables)
        return middle + half * size

    return _inlined(send)  # type: ignore[no-any-return]


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
        first, second, third = _u(top % ring) * slot, _u((top + 1) % ring) * slot, _u((top + 2) % ring) * slot
        rest = low
        if n == 3:
            rows, tables = (first, second, third), (row0, row0 + table, row0 + table + table)
            if run == _u(48):
                rest = send48(current, rows, weights, tables, events, low, high)
            elif run == _u(96):
                rest = send96(current, rows, weights, tables, events, low, high)
        elif n == 2:
            two, tables2 = (first, second), (row0, row0 + table)
            if run == _u(64):
                rest = send64(current, two, weights, tables2, events, low, high)
            elif run == _u(128):
                halves, tables4 = (first, first + _u(64), second, second + _u(64)), (row0, row0 + _u(64), row0 + table, row0 + table + _u(64))
                rest = send128(current, halves, weights, tables4, events, low, high)
        low = rest
        for r in range(n):
            offset, row, rest = _u((top + r) % ring) * slot, row0 + _u(r) * table, low
            one, table1 = (offset,), (row,)
            if run == _u(48):
                rest = send48(current, one, weights, table1, events, low, high)
            elif run == _u(64):
                rest = send64(current, one, weights, table1, events, low, high)
            elif run == _u(96):
                rest = send96(current, one, weights, table1, events, low, high)
            elif run == _u(128):
                rest = send128(current, (offset, offset + _u(64)), weights, (row, row + _u(64)), events, low, high)
            elif run == _u(192):
                rest = send192(current, (offset, offset + _u(96)), weights, (row, row + _u(96)), events, low, high)
            elif run % _u(64) == _u(0):
                for i in range(low, high):
                    e = _u(events[i])
                    for v in range(_u(0), run, _u(64)):
                        add4(current, (e >> _u(16)) * _u(16), (offset + v,), weights, ((e & _u(0xFFFF)) * run,), (row + v,))
                rest = high
            for i in range(rest, high):
                e = _u(events[i])
                for v in range(_u(0), run, _u(16)):
                    add1(current, (e >> _u(16)) * _u(16), (offset + v,), weights, ((e & _u(0xFFFF)) * run,), (row + v,))

    return _inner(scatter)  # type: ignore[no-any-return]


_add_events, _subtract_events = _scatterer(False, False), _scatterer(True, False)
_add_pairs, _subtract_pairs = _scatterer(False, True), _scatterer(True, True)


_sum48, _sum64, _sum96, _sum128, _sum192 = summer(3, 16), summer(2, 32), summer(3, 32), summer(4, 32), summer(6, 32)


@_inner
def _add_places(current, top, n, ring, slot, weights, row0, table, run, events, low, ends, at, columns):  # type: ignore[no-untyped-def]
    """Add the weights of all events of a row that begin at step 0, those of a place at once: they end at `ends[at:]`, place after place.

    Returns whether there is a way to: for kernels of 3x3 and up to 64 channels, at stride 1 or 2, away from the edges of the map.
    """
    first, second, third = _u(top % ring) * slot, _u((top + 1) % ring) * slot, _u((top + 2) % ring) * slot
    three, tables, two, tables2 = (first, second, third), (row0, row0 + table, row0 + table + table), (first, second), (row0, row0 + table)
    if not ((n == 3 and (run == _u(48) or run == _u(96) or run == _u(192))) or (n == 2 and (run == _u(64) or run == _u(128)))):
        return False
    for column in range(columns):
        high = _u(ends[at + column])
        if low == high:
            continue
        place = (_u(events[low]) >> _u(16)) * _u(LANES)
        if run == _u(48):
            _sum48(current, place, three, weights, run, events, low, high, tables)
        elif run == _u(96):
            _sum96(current, place, three, weights, run, events, low, high, tables)
        elif run == _u(192):
            _sum192(current, place, three, weights, run, events, low, high, tables)
        elif run == _u(64):
            _sum64(current, place, two, weights, run, events, low, high, tables2)
        else:
            _sum128(current, place, two, weights, run, events, low, high, tables2)
        low = high
    return True


@_inner
def _phase(terms, k, row):  # type: ignore[no-untyped-def]
    return (row + terms[k, ROW_PAD]) % terms[k, ROW_STRIDE]


@_inner
def _row_events(arena, terms, k, row, begin, end, steps, row_vectors, vectors, bases, reads, events, off):  # type: ignore[no-untyped-def]
    """Events of one row of a source at steps `begin` to `end`, in pairs that begin at the same place: where one is left over, an event without weights
    follows; `off` asks for the neurons that stop firing instead of those that begin.

    The currents of the next step lie a row further. Returns the end of the events.
    """
    columns, words = _u(terms[k, COLUMNS]), _u(terms[k, WORDS])
    table, phase = _u(terms[k, BASES]), _u(_phase(terms, k, row) * terms[k, STRIDE] * terms[k, WORDS] * LANES)
    first = n = _u(terms[k, EVENTS])
    nothing = _u(terms[k, TABLE] // (terms[k, RUN] * vectors * LANES) - 1)  # the last row of the weights
    changes = terms[k, KIND] == CHANGES
    for step in range(begin, end):
        at, more = _u(terms[k, AT]) + _u(row * steps + step) * columns * words, phase + (_u((step - begin) * row_vectors) << _u(16))
        i = _u(0)
        for _ in range(columns):
            place = ((_u(bases[table + i]) + more) >> _u(16)) << _u(16)
            for _ in range(words):
                word = _u(arena[at + i])
                if changes:
                    before = _u(arena[at + i - columns * words]) if step > 0 else _u(0)
                    word = before & ~word if off else word & ~before
                n = unpack(word & _u(reads[table + i]), _u(bases[table + i]) + more, events, n)
                i += _u(1)
            events[n] = place + nothing
            n += (n - first) & _u(1)
    return n


@_inner
def _look_up(words, at, terms, k, row, step, at_once, rows, tables, current, row_vectors, ring, bases):  # type: ignore[no-untyped-def]
    """Add what one row of a source, its spikes in `words[at:]`, sends to the three rows of neurons that it reaches, to the currents of the `step`th step at
    once; what would lie outside of the map goes to a row of currents that is not read.
    """
    slot, nowhere = at_once * row_vectors * LANES, ring * at_once * row_vectors * LANES
    from_, first, third = step * row_vectors * LANES + (bases[_u(terms[k, BASES])] >> 16) * LANES, row - 1, row + 1
    low = first % ring * slot + from_ if first >= 0 else nowhere
    high = third % ring * slot + from_ if third < rows else nowhere
    look_up(words, _u(at), _u(terms[k, COLUMNS]), tables, _u(terms[k, TABLES]), current, _u(low), _u(row % ring * slot + from_), _u(high))


@_inner
def _send_row(arena, terms, k, row, begin, end, steps, at_once, rows, vectors, weights, tables, current, row_vectors, ring, bases, reads, events, starts):  # type: ignore[no-untyped-def]
    """Add what one row of a source sends at steps `begin` to `end` to the rows of neurons that it reaches."""
    phase = _phase(terms, k, row)
    top = (row + terms[k, ROW_PAD]) // terms[k, ROW_STRIDE] - (terms[k, ROW_RUN] - 1)
    low, high = max(0, -top, terms[k, ROW_RUN] - 1 - (terms[k, ROW_KERNEL] - 1 - phase) // terms[k, ROW_STRIDE]), min(terms[k, ROW_RUN], rows - top)
    if phase >= terms[k, ROW_KERNEL] or low >= high:
        return
    run, slot = _u(terms[k, RUN] * vectors * LANES), _u(at_once * row_vectors * LANES)
    top, n, table = top + low, high - low, _u(terms[k, TABLE])
    row0, first = _u(terms[k, WEIGHTS]) + _u(low) * table, _u(terms[k, EVENTS])
    if terms[k, KIND] == FIRST:
        columns, rooms = _u(terms[k, COLUMNS]), _u(parts(steps, at_once))
        bucket = _u(terms[k, STARTS] + row * row_room(terms, k, steps, at_once))
        if begin == 0:
            on, off = _u(starts[bucket]), _u(starts[bucket + _u(1)])
            if terms[k, TABLES] >= 0 and off - on > columns // _u(2):
                _look_up(starts, bucket + rooms + columns, terms, k, row, 0, at_once, rows, tables, current, row_vectors, ring, bases)
            elif not _add_places(current, top, n, ring, slot, weights, row0, table, run, events, on, starts, bucket + rooms, columns):
                _add_events(current, top, n, ring, slot, weights, row0, table, run, events, on, off)
        bucket += _u(begin // at_once)
        _subtract_events(current, top, n, ring, slot, weights, row0, table, run, events, _u(starts[bucket + _u(1)]), _u(starts[bucket + _u(2)]))
        return
    last = _row_events(arena, terms, k, row, begin, end, steps, row_vectors, vectors, bases, reads, events, False)
    _add_pairs(current, top, n, ring, slot, weights, row0, table, run, events, first, last)
    if terms[k, KIND] == CHANGES:
        last = _row_events(arena, terms, k, row, begin, end, steps, row_vectors, vectors, bases, reads, events, True)
        _subtract_pairs(current, top, n, ring, slot, weights, row0, table, run, events, first, last)


_add_where, _subtract_where, _add_two, _subtract_two = adder_where(16, False), adder_where(16, True), adder_where(32, False), adder_where(32, True)


@_inner
def _send_alike(arena, terms, k, row, begin, end, steps, vectors, weights, current, from_, pitch):  # type: ignore[no-untyped-def]
    """Add what one row of a source of the same shape sends to the same neurons, each with a weight of its channel's: two words at once."""
    words, width, changes = _u(terms[k, WORDS] * terms[k, COLUMNS]), _u(terms[k, TABLE]), terms[k, KIND] == CHANGES
    twos, table = words & ~_u(1) if vectors == 1 or vectors % 2 == 0 else _u(0), _u(terms[k, WEIGHTS])
    for step in range(begin, end):
        at, to, weight = _u(terms[k, AT]) + _u(row * steps + step) * words, from_ + _u(step - begin) * pitch, _u(0)
        for i in range(_u(0), twos, _u(2)):
            word = _u(arena[at + i]) | _u(arena[at + i + _u(1)]) << _u(16)
            if changes:
                before = _u(arena[at + i - words]) | _u(arena[at + i + _u(1) - words]) << _u(16) if step > 0 else _u(0)
                _subtract_two(current, to + i * _u(LANES), weights, table + weight, before & ~word)
                word &= ~before
            _add_two(current, to + i * _u(LANES), weights, table + weight, word)
            weight += _u(2 * LANES)
            weight = _u(0) if weight >= width else weight
        for i in range(twos, words):
            word, weight = _u(arena[at + i]), i % _u(vectors) * _u(LANES)
            if changes:
                before = _u(arena[at + i - words]) if step > 0 else _u(0)
                _subtract_where(current, to + i * _u(LANES), weights, table + weight, before & ~word)
                word &= ~before
            _add_where(current, to + i * _u(LANES), weights, table + weight, word)


@_inner
def parts(steps, at_once):  # type: ignore[no-untyped-def]
    """Places in `starts` for where events of a row of a source begin: its neurons go on, off during each `at_once` steps, or last."""
    return (steps + at_once - 1) // at_once + 2


@_inner
def row_room(terms, k, steps, at_once):  # type: ignore[no-untyped-def]
    """Places in `starts` that a row of a source takes: `parts`, where the events of each column end that go on, and words of the neurons that fire at all."""
    return parts(steps, at_once) + terms[k, COLUMNS] * (1 + terms[k, WORDS])


@_compiled
def sort_first(counts, steps, at_once, row_vectors, terms, k, bases, reads, events, starts, kept):  # type: ignore[no-untyped-def]
    """Events of a train that fires in the first n steps: each row's on at step 0, then off at n, sorted by `at_once` steps, as `starts` tells."""
    columns, words, rooms, room = _u(terms[k, COLUMNS]), _u(terms[k, WORDS]), _u(parts(steps, at_once)), _u(row_room(terms, k, steps, at_once))
    table, n, pitch = _u(terms[k, BASES]), _u(terms[k, EVENTS]), _u(row_vectors) << _u(16)
    # Four places a room, taken in turn, so that an event need not wait until the last one's place is known.
    places, room_of, later = np.zeros(_u(4) * rooms, np.uint32), np.zeros(steps + 1, np.uint32), np.zeros(steps + 1, np.uint32)
    for count in range(steps):
        room_of[count], later[count] = 4 * (1 + count // at_once), _u(count % at_once) * pitch
    room_of[steps] = _u(4) * (rooms - _u(1))
    for row in range(terms[k, ROWS]):
        phase, from_ = _u(_phase(terms, k, row) * terms[k, STRIDE] * terms[k, WORDS] * LANES), _u(row) * columns * words
        begin, bucket = n, _u(terms[k, STARTS]) + _u(row) * room
        for column in range(columns):
            for i in range(column * words, (column + _u(1)) * words):
                word = _u(0)
                if reads[table + i]:
                    word = unpack_counts(counts, (from_ + i) * _u(LANES), _u(bases[table + i]) + phase, events, n, kept, n - begin)
                starts[bucket + rooms + columns + i] = word
                n += ones(word)
            starts[bucket + rooms + column] = n
        starts[bucket], starts[bucket + _u(1)] = begin, n
        if steps <= at_once:  # nothing to be sorted
            for i in range(columns * words):
                if reads[table + i]:
                    n += unpack_ends(counts, (from_ + i) * _u(LANES), _u(bases[table + i]) + phase, events, n, _u(steps), pitch)
            starts[bucket + _u(2)] = n
            continue
        active = n - begin
        places[:] = 0
        for i in range(active):
            places[_u(room_of[kept[i]]) + (i & _u(3))] += 1
        for part in range(_u(1), rooms):
            starts[bucket + part] = n
            for place in range(_u(4) * part, _u(4) * part + _u(4)):
                size = _u(places[place])
                places[place] = n
                n += size
        for i in range(active):
            slot = _u(room_of[kept[i]]) + (i & _u(3))
            events[places[slot]] = events[begin + i] + later[kept[i]]
            places[slot] += 1


def _runner(rule: str) -> Callable[..., None]:
    """One layer for `n` images: all steps, `at_once` of them at a time, row by row; its trains go to `arena[image, to:]`, potentials are left in place.

    bare: nobody reads the trains, and their counts go to `counts[image]` instead.

    shape: rows, columns, vectors of channels. halo: columns on the left and on the right where runs of additions may end outside of the map.
    kinds: what the events of each term are, by image. keeps: whether currents last until an event changes them (all terms are FIRST or CHANGES), or
    are those of one step (SPIKES or TABLED), by image. tables: what `look_up` reads. current: `at_once` steps of each row that source rows read so far
    may reach, a ring of rows, and one more that is not read; 0 inside of the map, before and after.
    drive: the constant part of the current, by image or for all, `drive_row` apart from row to row. start: potentials before the first step.
    neurons: potential, current that lasts, threshold, shift, sum of firing potentials, who may fire, and the rule, as `firing` takes them; of
    potentials and sums one row an image, or one for all where nobody asks for them later. sorted_counts: of each FIRST term, by image.
    """
    fire_changes, fire_spikes = firing(rule, True, False), firing(rule, False, False)
    count_changes, count_spikes = firing(rule, True, True), firing(rule, False, True)

    def run_image(  # type: ignore[no-untyped-def]
        arena, to, bare, counts, steps, shape, ring, at_once, halo, terms, weights, tables, keeps, current, drive, drive_row, neurons, bases, reads,
        events, starts, sent,
    ):  # fmt: skip
        rows, columns, vectors = shape
        potential, held, theta, shift, fired, may, how = neurons
        line = _u(columns * vectors)
        row_vectors = (columns + halo[0] + halo[1]) * vectors
        for begin in range(0, steps, at_once):
            end = min(begin + at_once, steps)
            sent[:] = 0
            for row in range(rows):
                at, from_, driven = _u(row) * line * _u(LANES), _u((row % ring * at_once * row_vectors + halo[0] * vectors) * LANES), _u(row * drive_row)
                out, count = _u(to) + _u(row * steps + begin) * line, _u(end - begin)
                # Where no events come, all steps read the same zeros, which stay near.
                pitch = _u(row_vectors * LANES if len(terms) else 0)
                for k in range(len(terms)):
                    if terms[k, DIAGONAL]:
                        _send_alike(arena, terms, k, row, begin, end, steps, _u(vectors), weights, current, from_, pitch)
                        continue
                    last = min(terms[k, ROWS], row * terms[k, ROW_STRIDE] - terms[k, ROW_PAD] + terms[k, ROW_KERNEL])
                    for source in range(sent[k], last):
                        if terms[k, KIND] == TABLED:
                            for step in range(begin, end):
                                words = terms[k, AT] + (source * steps + step) * terms[k, COLUMNS]
                                _look_up(arena, words, terms, k, source, step - begin, at_once, rows, tables, current, row_vectors, ring, bases)
                            continue
                        _send_row(
                            arena, terms, k, source, begin, end, steps, at_once, rows, vectors, weights, tables, current, row_vectors, ring, bases, reads,
                            events, starts,
                        )  # fmt: skip
                    sent[k] = max(sent[k], last)
                if bare and keeps:
                    count_changes(potential, at, current, from_, pitch, held, drive, driven, theta, shift, fired, may, how, counts, at, line, line, count)
                elif bare:
                    count_spikes(potential, at, current, from_, pitch, held, drive, driven, theta, shift, fired, may, how, counts, at, line, line, count)
                elif keeps:
                    fire_changes(potential, at, current, from_, pitch, held, drive, driven, theta, shift, fired, may, how, arena, out, line, line, count)
                else:
                    fire_spikes(potential, at, current, from_, pitch, held, drive, driven, theta, shift, fired, may, how, arena, out, line, line, count)

    image_runner = _inner(run_image)

    def run(  # type: ignore[no-untyped-def]
        arena, n, to, bare, counts, steps, shape, ring, at_once, halo, terms, kinds, keeps, weights, tables, current, drive, drive_row, start, neurons,
        bases, reads, events, starts, sorted_counts, kept,
    ):  # fmt: skip
        potentials, held, theta, shift, sums, may, how = neurons
        sent = np.zeros(len(terms), np.int64)
        row_vectors = (shape[1] + halo[0] + halo[1]) * shape[2]
        for image in range(n):
            potential, fired = potentials[image % len(potentials)], sums[image % len(sums)]
            potential[:] = start
            held[:], fired[:], may[:] = 0, 0, 0xFFFF
            counts[image] = 0
            end = starts_end = 0
            for k in range(len(terms)):
                terms[k, KIND] = kinds[image, k]
                if terms[k, KIND] == FIRST:
                    terms[k, EVENTS], terms[k, STARTS] = end, starts_end
                    sort_first(sorted_counts[k, image], steps, at_once, row_vectors, terms, k, bases, reads, events, starts, kept)
                    end += 2 * terms[k, ROWS] * terms[k, COLUMNS] * terms[k, WORDS] * LANES
                    starts_end += terms[k, ROWS] * row_room(terms, k, steps, at_once)
            for k in range(len(terms)):
                if terms[k, KIND] != FIRST:
                    terms[k, EVENTS] = end
            here = (potential, held, theta, shift, fired, may, how)
            image_runner(
                arena[image], to, bare, counts[image], steps, shape, ring, at_once, halo, terms, weights, tables, keeps[image], current,
                drive[image % len(drive)], drive_row, here, bases, reads, events, starts, sent,
            )  # fmt: skip

    return _compiled(run)  # type: ignore[no-any-return]


run_plain, run_sums, run_any = _runner("subtract"), _runner("sums"), _runner("any")
_fire_steps = firing("any", False, False)


@_compiled
def count_trains(arena, n, at, rows, steps, line, counts, totals):  # type: ignore[no-untyped-def]
    """Spikes of every neuron of a train by image, and of all; `counts` has room for 48 neurons more, and so has the arena."""
    for image in range(n):
        totals[image] = _count_train(arena[image], at, rows, steps, line, counts[image])


@_compiled
def add_up(counts, n, totals):  # type: ignore[no-untyped-def]
    """Spikes of all neurons by image, from their counts."""
    for image in range(n):
        total = 0
        for i in range(counts.shape[1]):
            total += counts[image, i]
        totals[image] = total


@_inner
def _count_train(arena, at, rows, steps, line, counts):  # type: ignore[no-untyped-def]
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
def choose_kinds(arena, n, at, rows, steps, line, neurons, totals, kinds):  # type: ignore[no-untyped-def]
    """CHANGES for images whose neurons begin and stop firing less often than they fire, else SPIKES, as where three quarters of the steps are silent."""
    for image in range(n):
        often = 4 * totals[image] >= neurons * steps
        kinds[image] = CHANGES if often and _count_changes(arena[image], at, rows, steps, line) < totals[image] else SPIKES


@_inner
def _count_changes(arena, at, rows, steps, line):  # type: ignore[no-untyped-def]
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


@_compiled
def write_first(n, counts, rows, line, steps, arena, to):  # type: ignore[no-untyped-def]
    """Trains that fire in the first n steps, as bits, by image."""
    for image in range(n):
        for row in range(rows):
            for step in range(steps):
                for word in range(line):
                    bits = _u(0)
                    for lane in range(LANES):
                        bits |= _u(counts[image, _u((row * line + word) * LANES + lane)] > step) << _u(lane)
                    arena[image, _u(to + (row * steps + step) * line + word)] = np.uint16(bits)


_space_word, _space_four, _space_sixteen = spacer(LANES), spacer(4 * LANES), spacer(16 * LANES)


@_compiled
def write_even(n, counts, rows, line, steps, arena, to):  # type: ignore[no-untyped-def]
    """Trains of n evenly spaced spikes, as bits, by image: `s(t) = 1 if floor((t+1)·n/T) > floor(t·n/T)`."""
    for image in range(n):
        _write_even(counts[image], rows, line, steps, arena[image], to)


@_inner
def _write_even(counts, rows, line, steps, arena, to):  # type: ignore[no-untyped-def]
    for row in range(rows):
        at, out = row * line * LANES, to + row * steps * line
        sixteens, fours = line - line % 16, line - line % 4  # as many words at once as there are: none then waits for its own last step
        for word in range(0, sixteens, 16):
            _space_sixteen(counts, _u(at + word * LANES), _u(steps), arena, _u(out + word), _u(line))
        for word in range(sixteens, fours, 4):
            _space_four(counts, _u(at + word * LANES), _u(steps), arena, _u(out + word), _u(line))
        for word in range(fours, line):
            _space_word(counts, _u(at + word * LANES), _u(steps), arena, _u(out + word), _u(line))


@_compiled
def pool_trains(arena, n, at, rows, columns, words, steps, kernel, stride, padding, dilation, out_rows, out_columns, to):  # type: ignore[no-untyped-def]
    """Max pooling of a train by image: a bit is set where any bit in its window is."""
    for image in range(n):
        _pool_train(arena[image], at, rows, columns, words, steps, kernel, stride, padding, dilation, out_rows, out_columns, to)


@_inner
def _pool_train(arena, at, rows, columns, words, steps, kernel, stride, padding, dilation, out_rows, out_columns, to):  # type: ignore[no-untyped-def]
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
