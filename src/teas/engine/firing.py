"""Neurons that integrate, fire and are reset for several steps at once, 16 to a vector: what they keep waits in registers from step to step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from teas.engine.counting import Plain
from teas.engine.lanes import LANES, MASK, Block

TOGETHER = 4  # vectors whose steps are computed in turn, so that none waits for its own last step
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
        self.block, builder = block, block.builder
        self.number, self.begin, self.lanes = number, builder.mul(number, ir.Constant(_I64, LANES)), LANES
        here = builder.add(at, self.begin)
        kept = [0, *([5] if keeps else []), *([10] if rule != "subtract" else [])]
        self.kept, self.to = _Kept(block, dict.fromkeys(kept, here)), builder.add(to, self.begin)
        # Counted in numbers like potentials: a masked addition of these is one instruction, and real ones are whole below 2^24.
        self.count = cgutils.alloca_once_value(builder, ir.Constant(self.kept[0].type, [0] * LANES)) if counts else None
        self.drive, self.theta, self.shift = block.load(6, builder.add(driven, self.begin)), block.load(8, self.begin), block.load(9, self.begin)
        self.may = _May(block, 11, here) if rule == "any" else None

    def counted(self, mask: Any) -> None:
        """One spike more of those of a mask."""
        builder, count = self.block.builder, self.block.builder.load(self.count)
        plus, one = (builder.add, 1) if self.block.is_integer(0) else (builder.fadd, 1.0)
        builder.store(builder.select(mask, plus(count, ir.Constant(count.type, [one] * LANES)), count), self.count)

    def store(self) -> None:
        self.kept.store()
        if self.may is not None:
            self.may.store()
        if self.count is not None:
            builder, before = self.block.builder, self.block.load(13, self.to)
            count = builder.load(self.count)
            new = builder.trunc(count, before.type) if self.block.is_integer(0) else builder.fptoui(count, before.type)
            self.block.store(builder.add(before, new), 13, self.to)


def firing(rule: str, keeps: bool, counts: bool, narrow: bool = False, alone: bool = False) -> Callable[..., None]:
    """Several steps of `n` times 16 neurons: `V += z + drive`, fire where `V >= θ`, reset; the spikes of step t go to `bits[to + t·line:]`.

    counts: nobody reads the spikes themselves; they are added up in `bits[to:]`, a number a neuron, instead. Four arguments more then tell what is not worth
    computing: the first step is number `begin` of `total`, and from step `quiet[quiet_at + i]` on, at least 1, nothing changes for the ith four vectors.

    What changes at step t lies in `current[from_ + t·pitch:]`, and is 0 afterwards. keeps: it is added to the current in `held`, which lasts;
    otherwise it is the current of that step. Integer currents are shifted to the potential's unit.
    alone: nothing but the drive charges them, and no current is read.
    narrow: of integers, 16 bits hold the charge of one step in the current's unit (see `Numbers`).
    rule: `subtract` subtracts the threshold; `sums` adds the potentials at a spike to `fired` beside; `any` is `sums` in real numbers for every
    reset: the array `rule` holds leak, whether to subtract, v_reset, whether to fire once, and `may` a mask of the neurons that may
    fire, for every 16 of the layer; one that fires once loses its bit.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        block = Block(context, builder, signature, arguments)
        _, at, _, from_, pitch, _, _, driven, _, _, _, _, _, _, to, line, n, steps, *until = arguments
        integer = block.is_integer(0)
        plus, minus = (builder.add, builder.sub) if integer else (builder.fadd, builder.fsub)
        plain = integer and narrow and rule == "subtract" and counts

        def changes(neurons: _Neurons | Plain, turn: Any) -> Any:
            """What changes at a step, for 16 neurons or 32; it is 0 afterwards."""
            now = builder.add(builder.add(from_, builder.mul(turn, pitch)), neurons.begin)
            z = block.load(2, now, neurons.lanes)
            block.store(ir.Constant(z.type, [0] * neurons.lanes), 2, now)
            return z

        def charged(neurons: _Neurons, turn: Any) -> Any:
            """The charge of a step."""
            if alone:
                return neurons.drive
            z = changes(neurons, turn)
            if keeps:
                z = neurons.kept[5] = plus(neurons.kept[5], z)
            if integer:
                z = builder.shl(builder.sext(z, neurons.theta.type), neurons.shift)
            return plus(z, neurons.drive)

        def step(neurons: _Neurons | Plain, turn: Any) -> None:
            """One step of 16 neurons, or 32."""
            if isinstance(neurons, Plain):
                neurons.step(changes(neurons, turn))
                return
            kept, theta, may, charge = neurons.kept, neurons.theta, neurons.may, charged(neurons, turn)
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
                neurons.counted(mask)
            else:
                word = builder.add(builder.add(to, builder.mul(turn, line)), neurons.number)
                builder.store(builder.bitcast(mask, _I16), block.pointer(13, word))

        def run(groups: Sequence[_Neurons | Plain], times: Any) -> None:
            """So many steps of some vectors, in turn."""
            with cgutils.for_range(builder, times) as loop:
                for neurons in groups:
                    step(neurons, loop.index)

        def group(number: Any, lanes: int) -> _Neurons | Plain:
            made = (block, number, at, driven, to)
            return Plain(*made, keeps, lanes) if plain else _Neurons(*made, rule, keeps, counts)

        def all_steps(number: Any, together: int) -> None:
            wide = 2 if plain and together > 1 else 1
            groups = [group(builder.add(number, ir.Constant(_I64, i)), wide * LANES) for i in range(0, together, wide)]
            run(groups, steps)
            for neurons in groups:
                neurons.store()

        def until_quiet(number: Any, index: Any) -> None:
            """The steps up to the last that changes anything, and when that is done the rest at once: later calls find nothing to do."""
            _, quiet_at, begin, total = until
            quiet = builder.zext(builder.load(block.pointer(18, builder.add(quiet_at, index))), _I64)
            end = builder.add(begin, steps)
            with builder.if_then(builder.icmp_unsigned(">", quiet, begin)):
                groups = [Plain(block, builder.add(number, ir.Constant(_I64, i)), at, driven, to, keeps, 2 * LANES) for i in range(0, TOGETHER, 2)]
                over = builder.icmp_unsigned("<=", quiet, end)
                run(groups, builder.sub(builder.select(over, quiet, end), begin))
                with builder.if_then(over):
                    for neurons in groups:
                        neurons.rest(builder.sub(total, quiet))
                for neurons in groups:
                    neurons.store()

        together = 2 * TOGETHER if alone and counts else TOGETHER  # these keep little, and so more of them at a time
        whole = builder.udiv(n, ir.Constant(_I64, together))
        done = builder.mul(whole, ir.Constant(_I64, together))
        with cgutils.for_range(builder, whole) as places:
            number = builder.mul(places.index, ir.Constant(_I64, together))
            if plain and keeps:
                until_quiet(number, places.index)
            else:
                all_steps(number, together)
        with cgutils.for_range(builder, builder.sub(n, done)) as places:
            all_steps(builder.add(done, places.index), 1)
        return context.get_dummy_value()

    if counts:

        @intrinsic
        def count(
            typing: Any, potential: Any, at: Any, current: Any, from_: Any, pitch: Any, held: Any, drive: Any, driven: Any, theta: Any, shift: Any,
            fired: Any, may: Any, how: Any, numbers: Any, to: Any, line: Any, n: Any, steps: Any, quiet: Any, quiet_at: Any, begin: Any, total: Any,
        ) -> Any:  # fmt: skip
            types_ = (
                potential, at, current, from_, pitch, held, drive, driven, theta, shift, fired, may, how, numbers, to, line, n, steps, quiet, quiet_at, begin,
                total,
            )  # fmt: skip
            return types.void(*types_), build

        return count

    @intrinsic
    def fire(
        typing: Any, potential: Any, at: Any, current: Any, from_: Any, pitch: Any, held: Any, drive: Any, driven: Any, theta: Any, shift: Any, fired: Any,
        may: Any, how: Any, bits: Any, to: Any, line: Any, n: Any, steps: Any,
    ) -> Any:  # fmt: skip
        types_ = (potential, at, current, from_, pitch, held, drive, driven, theta, shift, fired, may, how, bits, to, line, n, steps)
        return types.void(*types_), build

    return fire
