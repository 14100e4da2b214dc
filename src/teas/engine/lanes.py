"""Vector instructions that numba's loops don't reach, on 16 neurons at a time: LLVM turns them into what the CPU has.

Every array is one-dimensional and contiguous; every index counts elements and is unsigned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
TABLED = 12 * LANES  # numbers in an entry of the tables of `look_up`
_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
MASK = ir.VectorType(ir.IntType(1), LANES)


class Block:
    """Loads and stores of vectors while one function is built."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any):
        self.context, self.builder, self.types, self.values = context, builder, signature.args, arguments

    def pointer(self, argument: int, index: Any) -> Any:
        array = self.context.make_array(self.types[argument])(self.context, self.builder, self.values[argument])
        return self.builder.gep(array.data, [index])

    def is_integer(self, argument: int) -> bool:
        return isinstance(self.types[argument].dtype, types.Integer)

    def load(self, argument: int, index: Any, lanes: int = LANES) -> Any:
        element = self.context.get_data_type(self.types[argument].dtype)
        loaded = self.builder.load(self.builder.bitcast(self.pointer(argument, index), ir.VectorType(element, lanes).as_pointer()))
        loaded.align = self.types[argument].dtype.bitwidth // 8
        return loaded

    def store(self, value: Any, argument: int, index: Any) -> None:
        stored = self.builder.store(value, self.builder.bitcast(self.pointer(argument, index), value.type.as_pointer()))
        stored.align = self.types[argument].dtype.bitwidth // 8

    def numbered(self, base: Any) -> Any:
        """`base + i` in 32 bits for each lane i."""
        return self.builder.add(self.splat(self.builder.trunc(base, _I32)), ir.Constant(ir.VectorType(_I32, LANES), list(range(LANES))))

    def compress(self, values: Any, mask: Any, argument: int, index: Any) -> None:
        """Store those of 16 values in 32 bits that the mask has, one behind the other; what follows them is overwritten, 16 numbers in all."""
        packed = self.call(f"llvm.experimental.vector.compress.v{LANES}i32", values.type, values, mask, ir.Constant(values.type, ir.Undefined))
        self.store(packed, argument, index)

    def splat(self, scalar: Any, lanes: int = LANES) -> Any:
        vector = ir.VectorType(scalar.type, lanes)
        one = self.builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(_I32, 0))
        return self.builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))

    def has(self, feature: str) -> bool:
        """Whether the processor that code is made for has instructions of this name."""
        return f"+{feature}" in getattr(self.context.codegen(), "_tm_features", "")

    def call(self, name: str, result: Any, *arguments: Any) -> Any:
        function = cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(result, [a.type for a in arguments]), name)
        return self.builder.call(function, arguments)


def adder(vectors: int, lanes: int, subtract: bool) -> Callable[..., None]:
    """`current[at + to:][:lanes·vectors] ±= Σ_row weights[row + from:][:lanes·vectors]` for each `to` and `from` of two tuples, and all rows of a third.

    Loads before stores of each place; rows are added in their order, one after the other.
    """

    @intrinsic
    def add(typing: Any, current: Any, at: Any, to: Any, weights: Any, rows: Any, from_: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            block, (_, at, to, _, rows, from_) = Block(context, builder, signature, arguments), arguments
            integer = block.is_integer(0)
            operation = (builder.sub if subtract else builder.add) if integer else (builder.fsub if subtract else builder.fadd)
            starts = [builder.extract_value(rows, number) for number in range(signature.args[4].count)]
            for number in range(signature.args[2].count):
                place, table = builder.add(at, builder.extract_value(to, number)), builder.extract_value(from_, number)
                offsets = [ir.Constant(_I64, lanes * vector) for vector in range(vectors)]
                sums = [block.load(0, builder.add(place, offset), lanes) for offset in offsets]
                for start in starts:
                    row = builder.add(start, table)
                    sums = [operation(value, block.load(3, builder.add(row, offset), lanes)) for value, offset in zip(sums, offsets, strict=True)]
                for value, offset in zip(sums, offsets, strict=True):
                    block.store(value, 0, builder.add(place, offset))
            return context.get_dummy_value()

        return types.void(current, at, to, weights, rows, from_), build

    return add


def summer(vectors: int, lanes: int) -> Callable[..., None]:
    """`current[at + to:][:lanes·vectors] += Σ_i weights[(events[i] mod 2^16)·run + from:][:lanes·vectors]` for each `to` and `from` of two tuples.

    All events from `low` to `high`, the sums in registers meanwhile.
    """

    @intrinsic
    def sum_up(typing: Any, current: Any, at: Any, to: Any, weights: Any, run: Any, events: Any, low: Any, high: Any, from_: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            block, (_, at, to, _, run, _, low, high, from_) = Block(context, builder, signature, arguments), arguments
            plus = builder.add if block.is_integer(0) else builder.fadd
            parts = [(number, ir.Constant(_I64, lanes * vector)) for number in range(signature.args[2].count) for vector in range(vectors)]
            places = [builder.add(builder.add(at, builder.extract_value(to, number)), offset) for number, offset in parts]
            sums = [cgutils.alloca_once_value(builder, block.load(0, place, lanes)) for place in places]
            with cgutils.for_range(builder, builder.sub(high, low)) as loop:
                event = builder.zext(builder.load(block.pointer(5, builder.add(low, loop.index))), _I64)
                row = builder.mul(builder.and_(event, ir.Constant(_I64, 0xFFFF)), run)
                for (number, offset), kept in zip(parts, sums, strict=True):
                    weight = block.load(3, builder.add(builder.add(row, builder.extract_value(from_, number)), offset), lanes)
                    builder.store(plus(builder.load(kept), weight), kept)
            for place, kept in zip(places, sums, strict=True):
                block.store(builder.load(kept), 0, place)
            return context.get_dummy_value()

        return types.void(current, at, to, weights, run, events, low, high, from_), build

    return sum_up


@intrinsic
def look_up(typing: Any, words: Any, at: Any, columns: Any, tables: Any, table: Any, current: Any, first: Any, second: Any, third: Any) -> Any:
    """Add what a row of a source, 16 channels in a word a column, sends through a 3x3 kernel to 16 channels in three rows of currents.

    `tables[table:]` has the sum of the weights for each value of each byte of a word, `[byte, value, column, row, 16]`: for the columns before, at and
    behind that of the word, and for four rows, the last of them zeros. The first two rows are one vector, for loads take longest. Sums of a column wait in
    registers until all three words that add to it are read. first, second, third: where in the rows the column before the first word lies.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        block, (_, at, columns, _, table, _, *rows) = Block(context, builder, signature, arguments), arguments
        element, plus = context.get_data_type(signature.args[3].dtype), builder.add if block.is_integer(3) else builder.fadd

        def add(two: Any, third: Any, column: Any) -> None:
            """Sums of a column to the rows."""
            halves = [builder.shuffle_vector(two, two, ir.Constant(ir.VectorType(_I32, LANES), list(range(at, at + LANES)))) for at in (0, LANES)]
            for row, value in zip(rows, (*halves, third), strict=True):
                to = builder.add(row, builder.mul(column, ir.Constant(_I64, LANES)))
                block.store(plus(block.load(5, to), value), 5, to)

        # What is known of the sums of the next column, and of the one behind it, of two rows and of the third.
        sizes = (2 * LANES, LANES)
        next_, last = ([cgutils.alloca_once_value(builder, ir.Constant(ir.VectorType(element, size), [0] * size)) for size in sizes] for _ in range(2))
        with cgutils.for_range(builder, columns) as loop:
            word = builder.zext(builder.load(block.pointer(0, builder.add(at, loop.index))), _I64)
            entries = []
            for byte in range(2):
                value = builder.and_(builder.lshr(word, ir.Constant(_I64, 8 * byte)), ir.Constant(_I64, 255))
                entries.append(builder.add(builder.add(table, ir.Constant(_I64, TABLED * 256 * byte)), builder.mul(value, ir.Constant(_I64, TABLED))))

            def sent(column: int, part: int) -> Any:
                offset = ir.Constant(_I64, LANES * (4 * column + 2 * part))
                return plus(*(block.load(3, builder.add(entry, offset), sizes[part]) for entry in entries))

            add(*(plus(builder.load(next_[part]), sent(0, part)) for part in range(2)), loop.index)
            for part in range(2):
                builder.store(plus(builder.load(last[part]), sent(1, part)), next_[part])
                builder.store(sent(2, part), last[part])
        add(*(builder.load(place) for place in next_), columns)
        add(*(builder.load(place) for place in last), builder.add(columns, ir.Constant(_I64, 1)))
        return context.get_dummy_value()

    return types.void(words, at, columns, tables, table, current, first, second, third), build


def spacer(lanes: int) -> Callable[..., None]:
    """Bits of trains of so many neurons with `counts[at:at + lanes]` evenly spaced spikes: `lanes / 16` words a step, the next step's `line` further on.

    `V += n`, and where `V >= T`, a spike and `V -= T`, for T below 2^15.
    """

    @intrinsic
    def space(typing: Any, counts: Any, at: Any, steps: Any, bits: Any, to: Any, line: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            block, (_, at, steps, _, to, line) = Block(context, builder, signature, arguments), arguments
            charge, threshold = block.load(0, at, lanes), block.splat(builder.trunc(steps, _I16), lanes)
            potential = cgutils.alloca_once_value(builder, ir.Constant(charge.type, [0] * lanes))
            with cgutils.for_range(builder, steps) as loop:
                v = builder.add(builder.load(potential), charge)
                mask = builder.icmp_unsigned(">=", v, threshold)
                # Below T the difference wraps to a large number. A minimum is ready sooner than a choice by the mask, and the next step waits for it.
                left = block.call(f"llvm.umin.v{lanes}i16", v.type, v, builder.sub(v, threshold))
                builder.store(left, potential)
                words = builder.bitcast(mask, ir.VectorType(_I16, lanes // LANES))
                block.store(words, 3, builder.add(to, builder.mul(loop.index, line)))
            return context.get_dummy_value()

        return types.void(counts, at, steps, bits, to, line), build

    return space


def adder_where(lanes: int, subtract: bool) -> Callable[..., None]:
    """`current[at + i] ±= weights[row + i]` for each set bit i of 16-bit words, `lanes / 16` of them one behind the other."""

    @intrinsic
    def add_where(typing: Any, current: Any, at: Any, weights: Any, row: Any, word: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            block, (_, at, _, row, word) = Block(context, builder, signature, arguments), arguments
            integer, before = block.is_integer(0), block.load(0, at, lanes)
            operation = (builder.sub if subtract else builder.add) if integer else (builder.fsub if subtract else builder.fadd)
            where = builder.bitcast(builder.trunc(word, ir.IntType(lanes)), ir.VectorType(ir.IntType(1), lanes))
            block.store(builder.select(where, operation(before, block.load(2, row, lanes)), before), 0, at)
            return context.get_dummy_value()

        return types.void(current, at, weights, row, word), build

    return add_where


@intrinsic
def unpack(typing: Any, word: Any, base: Any, events: Any, count: Any) -> Any:
    """Append `base + i` to the events for each set bit i of a 16-bit word; returns the new number of events. Writes 16 elements at any rate."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        block, (word, base, _, count) = Block(context, builder, signature, arguments), arguments
        bits = builder.trunc(word, _I16)
        block.compress(block.numbered(base), builder.bitcast(bits, MASK), 2, count)
        return builder.add(count, builder.zext(builder.ctpop(bits), _I64))

    return types.uint64(word, base, events, count), build


@intrinsic
def ones(typing: Any, word: Any) -> Any:
    """Number of set bits."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), build


@intrinsic
def count_bits(typing: Any, words: Any, at: Any, stride: Any, steps: Any, counts: Any, to: Any) -> Any:
    """`counts[to + i] += Σ_t bit i of words[at + t·stride]` for 64 neurons, the bits of four words in a row; at most 255 steps."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        block, (_, at, stride, steps, _, to) = Block(context, builder, signature, arguments), arguments
        bytes_ = ir.VectorType(ir.IntType(8), 64)
        sums = cgutils.alloca_once_value(builder, ir.Constant(bytes_, [0] * 64))
        with cgutils.for_range(builder, steps) as loop:
            four = builder.bitcast(block.load(0, builder.add(at, builder.mul(loop.index, stride)), 4), ir.VectorType(ir.IntType(1), 64))
            builder.store(builder.add(builder.load(sums), builder.zext(four, bytes_)), sums)
        wide = builder.zext(builder.load(sums), ir.VectorType(_I16, 64))
        block.store(builder.add(block.load(4, to, 64), wide), 4, to)
        return context.get_dummy_value()

    return types.void(words, at, stride, steps, counts, to), build


@intrinsic
def unpack_counts(typing: Any, counts: Any, at: Any, base: Any, events: Any, to: Any) -> Any:
    """Write `base + i` to `events[to:]` for each of 16 counts that is not 0; returns a word with a bit for each of these. Writes 16 elements at any rate."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        block, (_, at, base, _, to) = Block(context, builder, signature, arguments), arguments
        found = block.load(0, at)
        mask = builder.icmp_unsigned("!=", found, ir.Constant(found.type, [0] * LANES))
        block.compress(block.numbered(base), mask, 3, to)
        return builder.zext(builder.bitcast(mask, _I16), _I64)

    return types.uint64(counts, at, base, events, to), build


@intrinsic
def unpack_ends(typing: Any, counts: Any, at: Any, base: Any, events: Any, to: Any, first: Any, end: Any, pitch: Any) -> Any:
    """Write `base + i + n·pitch` to `events[to:]` for each of 16 counts n from `first` on and below `end`; returns how many these are."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        block, (_, at, base, _, to, first, end, pitch) = Block(context, builder, signature, arguments), arguments
        found = block.load(0, at)
        low, high = (block.splat(builder.trunc(bound, _I16)) for bound in (first, end))
        mask = builder.and_(builder.icmp_unsigned(">=", found, low), builder.icmp_unsigned("<", found, high))
        later = builder.mul(builder.zext(found, ir.VectorType(_I32, LANES)), block.splat(builder.trunc(pitch, _I32)))
        block.compress(builder.add(block.numbered(base), later), mask, 3, to)
        return builder.zext(builder.ctpop(builder.bitcast(mask, _I16)), _I64)

    return types.uint64(counts, at, base, events, to, first, end, pitch), build


@intrinsic
def largest_below(typing: Any, counts: Any, at: Any, limit: Any) -> Any:
    """The largest of 16 counts that is below a limit, or else 0."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        block, (_, at, limit) = Block(context, builder, signature, arguments), arguments
        found = block.load(0, at)
        below = builder.icmp_unsigned("<", found, block.splat(builder.trunc(limit, _I16)))
        kept = builder.select(below, found, ir.Constant(found.type, [0] * LANES))
        return builder.zext(block.call(f"llvm.vector.reduce.umax.v{LANES}i16", _I16, kept), _I64)

    return types.uint64(counts, at, limit), build
