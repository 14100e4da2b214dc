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

    def splat(self, scalar: Any) -> Any:
        vector = ir.VectorType(scalar.type, LANES)
        one = self.builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(_I32, 0))
        return self.builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES))

    def call(self, name: str, result: Any, *arguments: Any) -> Any:
        function = cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(result, [a.type for a in arguments]), name)
        return self.builder.call(function, arguments)


def adder(vectors: int, subtract: bool) -> Callable[..., None]:
    """`current[at:at + 16·vectors] ±= weights[row:row + 16·vectors]`, all loads before all stores."""

    @intrinsic
    def add(typing: Any, current: Any, at: Any, weights: Any, row: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            block, (_, at, _, row) = _Block(context, builder, signature, arguments), arguments
            integer = block.is_integer(0)
            operation = (builder.sub if subtract else builder.add) if integer else (builder.fsub if subtract else builder.fadd)
            offsets = [ir.Constant(_I64, LANES * number) for number in range(vectors)]
            sums = [operation(block.load(0, builder.add(at, offset)), block.load(2, builder.add(row, offset))) for offset in offsets]
            for value, offset in zip(sums, offsets, strict=True):
                block.store(value, 0, builder.add(at, offset))
            return context.get_dummy_value()

        return types.void(current, at, weights, row), build

    return add


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


def firing(sums: bool, resets: bool) -> Callable[..., None]:
    """One step of neurons that subtract their threshold: `V += z + drive`, fire where `V >= θ`, `V -= θ`; the mask goes to `bits`.

    sums: add the potentials at a spike to `fired`. resets: set z to 0 afterwards. Integer currents are shifted to the potential's unit.
    """

    @intrinsic
    def fire(
        typing: Any, potential: Any, at: Any, current: Any, from_: Any, drive: Any, driven: Any, theta: Any, shift: Any, fired: Any, bits: Any, to: Any, n: Any
    ) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            block, (_, at, _, from_, _, driven, _, _, _, _, to, n) = _Block(context, builder, signature, arguments), arguments
            integer = block.is_integer(0)
            plus, minus = (builder.add, builder.sub) if integer else (builder.fadd, builder.fsub)
            with cgutils.for_range(builder, n) as loop:
                i = builder.mul(loop.index, ir.Constant(_I64, LANES))
                z, theta = block.load(2, builder.add(from_, i)), block.load(6, i)
                if resets:
                    block.store(ir.Constant(z.type, [0] * LANES), 2, builder.add(from_, i))
                if integer:
                    z = builder.shl(builder.sext(z, ir.VectorType(_I32, LANES)), block.load(7, i))
                v = plus(block.load(0, builder.add(at, i)), plus(z, block.load(4, builder.add(driven, i))))
                mask = builder.icmp_signed(">=", v, theta) if integer else builder.fcmp_ordered(">=", v, theta)
                if sums:
                    old = block.load(8, builder.add(at, i))
                    block.store(builder.select(mask, plus(old, v), old), 8, builder.add(at, i))
                block.store(builder.select(mask, minus(v, theta), v), 0, builder.add(at, i))
                builder.store(builder.bitcast(mask, _I16), block.pointer(9, builder.add(to, loop.index)))
            return context.get_dummy_value()

        return types.void(potential, at, current, from_, drive, driven, theta, shift, fired, bits, to, n), build

    return fire


@intrinsic
def fire_any(
    typing: Any, potential: Any, at: Any, current: Any, from_: Any, drive: Any, driven: Any, theta: Any, fired: Any, bits: Any, to: Any, n: Any, may: Any,
    rule: Any,
) -> Any:  # fmt: skip
    """As `firing` with sums, in float32, for every rule of reset: `rule` holds leak, whether to subtract, v_reset, whether to fire once.

    `may` holds a mask of the neurons that may fire, for every 16 of the layer; a neuron that fires once loses its bit.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        block, (_, at, _, from_, _, driven, _, _, _, to, n, _, _) = _Block(context, builder, signature, arguments), arguments
        leak, subtracts, v_reset, once = (builder.load(block.pointer(12, ir.Constant(_I64, number))) for number in range(4))
        zero = ir.Constant(ir.FloatType(), 0.0)
        subtracts, once = builder.fcmp_ordered("!=", subtracts, zero), builder.fcmp_ordered("!=", once, zero)
        with cgutils.for_range(builder, n) as loop:
            i = builder.mul(loop.index, ir.Constant(_I64, LANES))
            sixteen = builder.udiv(builder.add(at, i), ir.Constant(_I64, LANES))
            theta, old = block.load(6, i), block.load(7, builder.add(at, i))
            charge = builder.fadd(block.load(2, builder.add(from_, i)), block.load(4, builder.add(driven, i)))
            v = block.call(f"llvm.fma.v{LANES}f32", charge.type, block.splat(leak), block.load(0, builder.add(at, i)), charge)
            may_pointer = block.pointer(11, sixteen)
            may = builder.load(may_pointer)
            bits = builder.and_(builder.bitcast(builder.fcmp_ordered(">=", v, theta), _I16), may)
            mask = builder.bitcast(bits, _MASK)
            builder.store(builder.select(once, builder.and_(may, builder.not_(bits)), may), may_pointer)
            block.store(builder.select(mask, builder.fadd(old, v), old), 7, builder.add(at, i))
            after = builder.select(subtracts, builder.fsub(v, theta), block.splat(v_reset))
            block.store(builder.select(mask, after, v), 0, builder.add(at, i))
            builder.store(bits, block.pointer(8, builder.add(to, loop.index)))
        return context.get_dummy_value()

    return types.void(potential, at, current, from_, drive, driven, theta, fired, bits, to, n, may, rule), build
