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
TABLED = 160  # numbers in an entry of the tables of `look_up`
_TOGETHER = 4  # vectors whose steps are computed in turn, so that none waits for its own last step
_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_MASK = ir.VectorType(ir.IntType(1), LANES)


class _Block:
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

    def splat(self, scalar: Any, lanes: int = LANES) -> Any:
        vector = ir.VectorType(scalar.type, lanes)
        one = self.builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(_I32, 0))
        return self.builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))

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
            block, (_, at, to, _, rows, from_) = _Block(context, builder, signature, arguments), arguments
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


@intrinsic
def look_up(typing: Any, words: Any, at: Any, columns: Any, tables: Any, table: Any, current: Any, first: Any, second: Any, third: Any) -> Any:
    """Add what a row of a source, 16 channels in a word a column, sends through a 3x3 kernel to 16 channels in three rows of currents.

    `tables[table:]` has the sum of the weights for each value of each byte of a word, `[byte, value, vector, 32]`: for each of the
    columns before, at and behind that of the word, the first two rows; the third row of the first two columns; that of the last, and 16 unused. Sums of a
    column wait in registers until all three words that add to it are read. first, second, third: where in the rows the column before the first word lies.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        block, (_, at, columns, _, table, _, *rows) = _Block(context, builder, signature, arguments), arguments
        element, plus = context.get_data_type(signature.args[3].dtype), builder.add if block.is_integer(3) else builder.fadd
        narrow, wide, none = ir.VectorType(element, 16), ir.VectorType(element, 32), ir.Undefined
        low, high = (ir.Constant(ir.VectorType(_I32, 16), list(range(begin, begin + 16))) for begin in (0, 16))

        def half(value: Any, part: Any) -> Any:
            return builder.shuffle_vector(value, ir.Constant(wide, none), part)

        def add(pair: Any, third: Any, column: Any) -> None:
            """Sums of a column to the three rows."""
            offset = builder.mul(column, ir.Constant(_I64, LANES))
            for place, value in zip(rows, (half(pair, low), half(pair, high), third), strict=True):
                to = builder.add(place, offset)
                block.store(plus(block.load(5, to), value), 5, to)

        # What is known of the sums of the next column, and of the one behind it: first two rows, third row.
        next_pair, next_third, last_pair, last_third = (
            cgutils.alloca_once_value(builder, ir.Constant(kind, [0] * kind.count)) for kind in (wide, narrow, wide, narrow)
        )
        with cgutils.for_range(builder, columns) as loop:
            word = builder.zext(builder.load(block.pointer(0, builder.add(at, loop.index))), _I64)
            found: list[list[Any]] = [[] for _ in range(5)]
            for byte in range(2):
                value = builder.and_(builder.lshr(word, ir.Constant(_I64, 8 * byte)), ir.Constant(_I64, 255))
                entry = builder.add(builder.add(table, ir.Constant(_I64, TABLED * 256 * byte)), builder.mul(value, ir.Constant(_I64, TABLED)))
                for vector, lanes in enumerate((32, 32, 32, 32, 16)):
                    found[vector].append(block.load(3, builder.add(entry, ir.Constant(_I64, 32 * vector)), lanes))
            before, here, behind, thirds, third = (plus(a, b) for a, b in found)
            add(plus(builder.load(next_pair), before), plus(builder.load(next_third), half(thirds, low)), loop.index)
            builder.store(plus(builder.load(last_pair), here), next_pair)
            builder.store(plus(builder.load(last_third), half(thirds, high)), next_third)
            builder.store(behind, last_pair)
            builder.store(third, last_third)
        add(builder.load(next_pair), builder.load(next_third), columns)
        add(builder.load(last_pair), builder.load(last_third), builder.add(columns, ir.Constant(_I64, 1)))
        return context.get_dummy_value()

    return types.void(words, at, columns, tables, table, current, first, second, third), build


def spacer(lanes: int) -> Callable[..., None]:
    """Bits of trains of so many neurons with `counts[at:at + lanes]` evenly spaced spikes: `lanes / 16` words a step, the next step's `line` further on.

    `V += n`, and where `V >= T`, a spike and `V -= T`, for T below 2^15.
    """

    @intrinsic
    def space(typing: Any, counts: Any, at: Any, steps: Any, bits: Any, to: Any, line: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            block, (_, at, steps, _, to, line) = _Block(context, builder, signature, arguments), arguments
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


def adder_where(subtract: bool) -> Callable[..., None]:
    """`current[at + i] ±= weights[row + i]` for each set bit i of a 16-bit word."""

    @intrinsic
    def add_where(typing: Any, current: Any, at: Any, weights: Any, row: Any, word: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            block, (_, at, _, row, word) = _Block(context, builder, signature, arguments), arguments
            integer, before = block.is_integer(0), block.load(0, at)
            operation = (builder.sub if subtract else builder.add) if integer else (builder.fsub if subtract else builder.fadd)
            where = builder.bitcast(builder.trunc(word, _I16), _MASK)
            block.store(builder.select(where, operation(before, block.load(2, row)), before), 0, at)
            return context.get_dummy_value()

        return types.void(current, at, weights, row, word), build

    return add_where


@intrinsic
def unpack(typing: Any, word: Any, base: Any, events: Any, count: Any) -> Any:
    """Append `base + i` to the events for each set bit i of a 16-bit word; returns the new number of events. Writes 16 elements at any rate."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        block, (word, base, _, count) = _Block(context, builder, signature, arguments), arguments
        bits = builder.trunc(word, _I16)
        vector = ir.VectorType(_I32, LANES)
        numbered = builder.add(block.splat(builder.trunc(base, _I32)), ir.Constant(vector, list(range(LANES))))
        packed = block.call(f"llvm.experimental.vector.compress.v{LANES}i32", vector, numbered, builder.bitcast(bits, _MASK), ir.Constant(vector, ir.Undefined))
        block.store(packed, 2, count)
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
        block, (_, at, stride, steps, _, to) = _Block(context, builder, signature, arguments), arguments
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
def unpack_counts(typing: Any, counts: Any, at: Any, base: Any, events: Any, to: Any, kept: Any, keep_to: Any) -> Any:
    """Write `base + i` to `events[to:]` and the count to `kept[keep_to:]` for each of 16 counts that is not 0; returns how many these are."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        block, (_, at, base, _, to, _, keep_to) = _Block(context, builder, signature, arguments), arguments
        vector = ir.VectorType(_I32, LANES)
        found = block.load(0, at)
        mask = builder.icmp_unsigned("!=", found, ir.Constant(found.type, [0] * LANES))
        numbered = builder.add(block.splat(builder.trunc(base, _I32)), ir.Constant(vector, list(range(LANES))))
        for argument, index, values in ((3, to, numbered), (5, keep_to, builder.zext(found, vector))):
            packed = block.call(f"llvm.experimental.vector.compress.v{LANES}i32", vector, values, mask, ir.Constant(vector, ir.Undefined))
            block.store(packed, argument, index)
        return builder.zext(builder.ctpop(builder.bitcast(mask, _I16)), _I64)

    return types.uint64(counts, at, base, events, to, kept, keep_to), build


class _Kept:
    """Values of 16 neurons that wait in registers from step to step: loaded before the first, stored after the last."""

    def __init__(self, block: _Block, index: dict[int, Any]):
        """index: where the 16 lie in an array, by the number of the argument that this is."""
        self.block, self.index = block, index
        self.places = {argument: cgutils.alloca_once_value(block.builder, block.load(argument, at)) for argument, at in index.items()}

    def __getitem__(self, argument: int) -> Any:
        return self.block.builder.load(self.places[argument])

    def __setitem__(self, argument: int, value: Any) -> None:
        self.block.builder.store(value, self.places[argument])

    def store(self) -> None:
        for argument, at in self.index.items():
            self.block.store(self[argument], argument, at)


class _May:
    """Which of 16 neurons may fire, and the rule of their reset, see `firing`."""

    def __init__(self, block: _Block, may: int, at: Any):
        self.block, builder = block, block.builder
        self.pointer = block.pointer(may, builder.udiv(at, ir.Constant(_I64, LANES)))
        self.place = cgutils.alloca_once_value(builder, builder.load(self.pointer))
        leak, subtracts, v_reset, once = (builder.load(block.pointer(may + 1, ir.Constant(_I64, number))) for number in range(4))
        zero = ir.Constant(subtracts.type, 0.0)
        self.leak, self.v_reset = block.splat(leak), block.splat(v_reset)
        self.subtracts, self.once = builder.fcmp_ordered("!=", subtracts, zero), builder.fcmp_ordered("!=", once, zero)

    def fire(self, reached: Any) -> Any:
        """Those of the neurons at their threshold that fire."""
        builder = self.block.builder
        may = builder.load(self.place)
        bits = builder.and_(builder.bitcast(reached, _I16), may)
        builder.store(builder.select(self.once, builder.and_(may, builder.not_(bits)), may), self.place)
        return builder.bitcast(bits, _MASK)

    def store(self) -> None:
        self.block.builder.store(self.block.builder.load(self.place), self.pointer)


class _Neurons:
    """16 neurons of `firing`: what they keep, and what is the same at every step."""

    def __init__(self, block: _Block, number: Any, at: Any, driven: Any, to: Any, rule: str, keeps: bool, counts: bool):
        builder = block.builder
        self.number, self.begin = number, builder.mul(number, ir.Constant(_I64, LANES))
        here = builder.add(at, self.begin)
        kept = [0, *([5] if keeps else []), *([10] if rule != "subtract" else [])]
        self.kept = _Kept(block, dict.fromkeys(kept, here) | ({13: builder.add(to, self.begin)} if counts else {}))
        self.drive, self.theta, self.shift = block.load(6, builder.add(driven, self.begin)), block.load(8, self.begin), block.load(9, self.begin)
        self.may = _May(block, 11, here) if rule == "any" else None

    def store(self, _: Any) -> None:
        self.kept.store()
        if self.may is not None:
            self.may.store()


class _Plain:
    """16 neurons of `firing` in integers, whose threshold is subtracted and whose counts alone are asked for, with the shortest way from step to step.

    With `c = z + drive - θ`: `s = V + c` is the potential after a spike, `m = s >> 31` is -1 where there is none, and then `V = s + (θ & m)`. A mask
    would take as long as the rest until it is there.
    """

    def __init__(self, block: _Block, number: Any, at: Any, driven: Any, to: Any, keeps: bool):
        builder = block.builder
        self.block, self.number, self.begin = block, number, builder.mul(number, ir.Constant(_I64, LANES))
        here = builder.add(at, self.begin)
        self.theta, self.shift = block.load(8, self.begin), block.load(9, self.begin)
        self.drive = builder.sub(block.load(6, builder.add(driven, self.begin)), self.theta)
        self.potential, self.silent = _Kept(block, {0: here}), cgutils.alloca_once_value(builder, ir.Constant(self.theta.type, [0] * LANES))
        self.here, self.keeps, self.to = here, keeps, builder.add(to, self.begin)
        self.charge = cgutils.alloca_once_value(builder, builder.add(self.widened(block.load(5, here)), self.drive) if keeps else self.drive)

    def widened(self, current: Any) -> Any:
        """Currents in the potential's unit."""
        return self.block.builder.shl(self.block.builder.sext(current, self.theta.type), self.shift)

    def step(self, z: Any) -> None:
        """One step with these currents."""
        builder = self.block.builder
        charge = builder.add(builder.load(self.charge), self.widened(z))
        if self.keeps:
            builder.store(charge, self.charge)
        left = builder.add(self.potential[0], charge)
        silent = builder.ashr(left, self.block.splat(ir.Constant(_I32, 31)))
        self.potential[0] = builder.add(left, builder.and_(self.theta, silent))
        builder.store(builder.add(builder.load(self.silent), silent), self.silent)

    def store(self, steps: Any) -> None:
        """Write back potentials, currents that last, and counts, all steps but the silent ones."""
        block, builder = self.block, self.block.builder
        self.potential.store()
        if self.keeps:
            lasting = builder.ashr(builder.sub(builder.load(self.charge), self.drive), self.shift)
            block.store(builder.trunc(lasting, ir.VectorType(_I16, LANES)), 5, self.here)
        fired = builder.add(block.splat(builder.trunc(steps, _I32)), builder.load(self.silent))
        before = block.load(13, self.to)
        block.store(builder.add(before, builder.trunc(fired, before.type)), 13, self.to)


def firing(rule: str, keeps: bool, counts: bool) -> Callable[..., None]:
    """Several steps of `n` times 16 neurons: `V += z + drive`, fire where `V >= θ`, reset; the spikes of step t go to `bits[to + t·line:]`.

    counts: nobody reads the spikes themselves; they are added up in `bits[to:]`, a number a neuron, instead.

    What changes at step t lies in `current[from_ + t·pitch:]`, and is 0 afterwards. keeps: it is added to the current in `held`, which lasts;
    otherwise it is the current of that step. Integer currents are shifted to the potential's unit.
    rule: `subtract` subtracts the threshold; `sums` adds the potentials at a spike to `fired` beside; `any` is `sums` in real numbers for every
    reset: the array `rule` holds leak, whether to subtract, v_reset, whether to fire once, and `may` a mask of the neurons that may
    fire, for every 16 of the layer; one that fires once loses its bit.
    """

    @intrinsic
    def fire(
        typing: Any, potential: Any, at: Any, current: Any, from_: Any, pitch: Any, held: Any, drive: Any, driven: Any, theta: Any, shift: Any, fired: Any,
        may: Any, how: Any, bits: Any, to: Any, line: Any, n: Any, steps: Any,
    ) -> Any:  # fmt: skip
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            block = _Block(context, builder, signature, arguments)
            _, at, _, from_, pitch, _, _, driven, _, _, _, _, _, _, to, line, n, steps = arguments
            integer = block.is_integer(0)
            plus, minus = (builder.add, builder.sub) if integer else (builder.fadd, builder.fsub)
            plain = integer and rule == "subtract" and counts

            def step(neurons: _Neurons | _Plain, turn: Any) -> None:
                """One step of 16 neurons."""
                now = builder.add(builder.add(from_, builder.mul(turn, pitch)), neurons.begin)
                z = block.load(2, now)
                block.store(ir.Constant(z.type, [0] * LANES), 2, now)
                if isinstance(neurons, _Plain):
                    neurons.step(z)
                    return
                kept, theta, may = neurons.kept, neurons.theta, neurons.may
                if keeps:
                    z = kept[5] = plus(kept[5], z)
                if integer:
                    z = builder.shl(builder.sext(z, theta.type), neurons.shift)
                charge = plus(z, neurons.drive)
                if may is None:
                    v = plus(kept[0], charge)
                    mask = builder.icmp_signed(">=", v, theta) if integer else builder.fcmp_ordered(">=", v, theta)
                    after = minus(v, theta)
                else:
                    v = block.call(f"llvm.fma.v{LANES}{'f64' if charge.type.element == ir.DoubleType() else 'f32'}", charge.type, may.leak, kept[0], charge)
                    mask = may.fire(builder.fcmp_ordered(">=", v, theta))
                    after = builder.select(may.subtracts, builder.fsub(v, theta), may.v_reset)
                if rule != "subtract":
                    kept[10] = builder.select(mask, plus(kept[10], v), kept[10])
                kept[0] = builder.select(mask, after, v)
                if counts:
                    kept[13] = builder.sub(kept[13], builder.sext(mask, kept[13].type))
                else:
                    word = builder.add(builder.add(to, builder.mul(turn, line)), neurons.number)
                    builder.store(builder.bitcast(mask, _I16), block.pointer(13, word))

            whole = builder.udiv(n, ir.Constant(_I64, _TOGETHER))
            done = builder.mul(whole, ir.Constant(_I64, _TOGETHER))
            for times, together, first in ((whole, _TOGETHER, ir.Constant(_I64, 0)), (builder.sub(n, done), 1, done)):
                with cgutils.for_range(builder, times) as places:
                    number = builder.add(first, builder.mul(places.index, ir.Constant(_I64, together)))
                    numbers = [builder.add(number, ir.Constant(_I64, i)) for i in range(together)]
                    made = [(block, number, at, driven, to) for number in numbers]
                    group = [_Plain(*one, keeps) if plain else _Neurons(*one, rule, keeps, counts) for one in made]
                    with cgutils.for_range(builder, steps) as loop:
                        for neurons in group:
                            step(neurons, loop.index)
                    for neurons in group:
                        neurons.store(steps)
            return context.get_dummy_value()

        types_ = (potential, at, current, from_, pitch, held, drive, driven, theta, shift, fired, may, how, bits, to, line, n, steps)
        return types.void(*types_), build

    return fire
