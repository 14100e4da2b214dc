"""Neurons that integrate, fire and are reset for several steps at once, 16 to a vector: what they keep waits in registers from step to step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from teas.engine.lanes import LANES, MASK, Block

_TOGETHER = 4  # vectors whose steps are computed in turn, so that none waits for its own last step
_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)


class _Kept:
    """Values of 16 neurons that wait in registers from step to step: loaded before the first, stored after the last."""

    def __init__(self, block: Block, index: dict[int, Any]):
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

    def __init__(self, block: Block, may: int, at: Any):
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
        return builder.bitcast(bits, MASK)

    def store(self) -> None:
        self.block.builder.store(self.block.builder.load(self.place), self.pointer)


class _Neurons:
    """16 neurons of `firing`: what they keep, and what is the same at every step."""

    def __init__(self, block: Block, number: Any, at: Any, driven: Any, to: Any, rule: str, keeps: bool, counts: bool):
        builder = block.builder
        self.number, self.begin, self.lanes = number, builder.mul(number, ir.Constant(_I64, LANES)), LANES
        here = builder.add(at, self.begin)
        kept = [0, *([5] if keeps else []), *([10] if rule != "subtract" else [])]
        self.kept = _Kept(block, dict.fromkeys(kept, here) | ({13: builder.add(to, self.begin)} if counts else {}))
        self.drive, self.theta, self.shift = block.load(6, builder.add(driven, self.begin)), block.load(8, self.begin), block.load(9, self.begin)
        self.may = _May(block, 11, here) if rule == "any" else None

    def store(self) -> None:
        self.kept.store()
        if self.may is not None:
            self.may.store()


class _Plain:
    """16 neurons of `firing`, or 32, in integers, whose threshold is subtracted and whose counts alone are asked for, with the shortest way from step to step.

    Nothing is reset: the sum of all charges `U` grows from the potential on, and the level `H` that it has to reach for the next spike, at first `θ`, by
    `θ` with each. In the end `V = U - H + θ`, after `H/θ - 1` spikes. Of 32 neurons those with even numbers are one vector and those with odd ones the
    other: two currents of 16 bits lie in each 32 bits as they are loaded.
    """

    def __init__(self, block: Block, number: Any, at: Any, driven: Any, to: Any, keeps: bool, lanes: int):
        builder = block.builder
        self.block, self.begin, self.lanes = block, builder.mul(number, ir.Constant(_I64, LANES)), lanes
        here = builder.add(at, self.begin)
        self.thetas, self.shifts, self.drives = self.parts(8, self.begin), self.parts(9, self.begin), self.parts(6, builder.add(driven, self.begin))
        self.here, self.keeps, self.to = here, keeps, builder.add(to, self.begin)
        self.sums = [cgutils.alloca_once_value(builder, part) for part in self.parts(0, here)]
        self.levels = [cgutils.alloca_once_value(builder, theta) for theta in self.thetas]
        self.charges = [cgutils.alloca_once_value(builder, drive) for drive in self.drives]
        if keeps:
            self.charge(self.charges, block.load(5, here, lanes))

    def parts(self, argument: int, index: Any) -> list[Any]:
        """Values of all neurons as vectors of 16."""
        loaded = self.block.load(argument, index, self.lanes)
        if self.lanes == LANES:
            return [loaded]
        return [self.shuffled(loaded, loaded, range(first, 2 * LANES, 2)) for first in (0, 1)]

    def joined(self, parts: list[Any]) -> Any:
        """The reverse."""
        return parts[0] if len(parts) == 1 else self.shuffled(parts[0], parts[1], (lane + LANES * odd for lane in range(LANES) for odd in (0, 1)))

    def shuffled(self, first: Any, second: Any, order: Iterable[int]) -> Any:
        """Values of two vectors of 32-bit integers in another order."""
        lanes = list(order)
        return self.block.builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(_I32, len(lanes)), lanes))

    def charge(self, places: list[Any], currents: Any) -> None:
        """Add currents to values in the potential's unit."""
        builder, wide = self.block.builder, self.thetas[0].type
        if self.lanes == LANES:
            charged = [builder.shl(builder.sext(currents, wide), self.shifts[0])]
        else:
            sixteen, pairs = self.block.splat(ir.Constant(_I32, 16)), builder.bitcast(currents, wide)
            if self.block.has("avx512vnni"):  # products of both halves of each pair, one of them with 0, are added in a single instruction
                ones = self.block.splat(ir.Constant(_I32, 1)), self.block.splat(ir.Constant(_I32, 1 << 16))
                for place, one, shift in zip(places, ones, self.shifts, strict=True):
                    added = self.block.call("llvm.x86.avx512.vpdpwssd.512", wide, builder.load(place), pairs, builder.shl(one, shift))
                    builder.store(added, place)
                return
            tops = (builder.shl(pairs, sixteen), builder.and_(pairs, self.block.splat(ir.Constant(_I32, 0xFFFF0000))))
            charged = [builder.ashr(top, builder.sub(sixteen, shift)) for top, shift in zip(tops, self.shifts, strict=True)]
        for place, current in zip(places, charged, strict=True):
            builder.store(builder.add(builder.load(place), current), place)

    def step(self, currents: Any) -> None:
        """One step with these currents."""
        builder = self.block.builder
        if self.keeps:
            self.charge(self.charges, currents)
        for place, charge in zip(self.sums, self.charges, strict=True):
            builder.store(builder.add(builder.load(place), builder.load(charge)), place)
        if not self.keeps:
            self.charge(self.sums, currents)
        for place, top, theta in zip(self.sums, self.levels, self.thetas, strict=True):
            level = builder.load(top)
            builder.store(builder.select(builder.icmp_signed(">=", builder.load(place), level), builder.add(level, theta), level), top)

    def store(self) -> None:
        """Write back potentials, currents that last, and counts."""
        block, builder = self.block, self.block.builder
        subtracted = [builder.sub(builder.load(top), theta) for top, theta in zip(self.levels, self.thetas, strict=True)]
        block.store(self.joined([builder.sub(builder.load(place), done) for place, done in zip(self.sums, subtracted, strict=True)]), 0, self.here)
        if self.keeps:
            charged = [builder.sub(builder.load(held), drive) for held, drive in zip(self.charges, self.drives, strict=True)]
            lasting = [builder.ashr(z, shift) for z, shift in zip(charged, self.shifts, strict=True)]
            block.store(builder.trunc(self.joined(lasting), ir.VectorType(_I16, self.lanes)), 5, self.here)
        # A whole number below 2^15: the quotient in float32 is less than a hundredth away from it.
        real = ir.VectorType(ir.FloatType(), LANES)
        half = ir.Constant(real, [0.5] * LANES)
        quotients = [builder.fdiv(builder.sitofp(done, real), builder.sitofp(theta, real)) for done, theta in zip(subtracted, self.thetas, strict=True)]
        fired = [builder.fptosi(builder.fadd(quotient, half), theta.type) for quotient, theta in zip(quotients, self.thetas, strict=True)]
        before = block.load(13, self.to, self.lanes)
        block.store(builder.add(before, builder.trunc(self.joined(fired), before.type)), 13, self.to)


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
            block = Block(context, builder, signature, arguments)
            _, at, _, from_, pitch, _, _, driven, _, _, _, _, _, _, to, line, n, steps = arguments
            integer = block.is_integer(0)
            plus, minus = (builder.add, builder.sub) if integer else (builder.fadd, builder.fsub)
            plain = integer and rule == "subtract" and counts

            def step(neurons: _Neurons | _Plain, turn: Any) -> None:
                """One step of 16 neurons."""
                now = builder.add(builder.add(from_, builder.mul(turn, pitch)), neurons.begin)
                z = block.load(2, now, neurons.lanes)
                block.store(ir.Constant(z.type, [0] * neurons.lanes), 2, now)
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

            def group(number: Any, lanes: int) -> _Neurons | _Plain:
                made = (block, number, at, driven, to)
                return _Plain(*made, keeps, lanes) if plain else _Neurons(*made, rule, keeps, counts)

            whole = builder.udiv(n, ir.Constant(_I64, _TOGETHER))
            done = builder.mul(whole, ir.Constant(_I64, _TOGETHER))
            for times, together, first in ((whole, _TOGETHER, ir.Constant(_I64, 0)), (builder.sub(n, done), 1, done)):
                wide = 2 if plain and together > 1 else 1
                with cgutils.for_range(builder, times) as places:
                    number = builder.add(first, builder.mul(places.index, ir.Constant(_I64, together)))
                    groups = [group(builder.add(number, ir.Constant(_I64, i)), wide * LANES) for i in range(0, together, wide)]
                    with cgutils.for_range(builder, steps) as loop:
                        for neurons in groups:
                            step(neurons, loop.index)
                    for neurons in groups:
                        neurons.store()
            return context.get_dummy_value()

        types_ = (potential, at, current, from_, pitch, held, drive, driven, theta, shift, fired, may, how, bits, to, line, n, steps)
        return types.void(*types_), build

    return fire
