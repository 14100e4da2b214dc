"""Neurons of which the counts alone are asked for, in integers: the shortest way from step to step, and past many steps in which nothing changes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from teas.engine.lanes import LANES, Block

_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)


class Plain:
    """16 neurons of `firing`, or 32, in integers, whose threshold is subtracted and whose counts alone are asked for, with the shortest way from step to step.

    Nothing is reset: the sum of all charges `U` grows from the potential on, and the level `H` that it has to reach for the next spike, at first `θ`, by
    `θ` with each. In the end `V = U - H + θ`, after `H/θ - 1` spikes. 16 bits hold the charge of a step, current and drive, in the current's unit. Of 32
    neurons those with even numbers are one vector of `U` and of `H`, those with odd ones the other: two charges of 16 bits lie in each 32 bits.
    """

    def __init__(self, block: Block, number: Any, at: Any, driven: Any, to: Any, keeps: bool, lanes: int):
        builder = block.builder
        self.block, self.begin, self.lanes = block, builder.mul(number, ir.Constant(_I64, LANES)), lanes
        here = builder.add(at, self.begin)
        self.thetas, self.shifts = self.parts(8, self.begin), self.parts(9, self.begin)
        drives = self.parts(6, builder.add(driven, self.begin))
        self.drive = builder.trunc(self.joined([builder.ashr(*pair) for pair in zip(drives, self.shifts, strict=True)]), ir.VectorType(_I16, lanes))
        self.here, self.keeps, self.to = here, keeps, builder.add(to, self.begin)
        self.sums = [cgutils.alloca_once_value(builder, part) for part in self.parts(0, here)]
        self.levels = [cgutils.alloca_once_value(builder, theta) for theta in self.thetas]
        if keeps:
            self.charge = cgutils.alloca_once_value(builder, builder.add(block.load(5, here, lanes), self.drive))

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

    def widened(self, charge: Any) -> list[Any]:
        """Charges of 16 bits in the potential's unit."""
        builder, wide = self.block.builder, self.thetas[0].type
        if self.lanes == LANES:
            return [builder.shl(builder.sext(charge, wide), self.shifts[0])]
        sixteen, pairs = self.block.splat(ir.Constant(_I32, 16)), builder.bitcast(charge, wide)
        halves = builder.ashr(builder.shl(pairs, sixteen), sixteen), builder.ashr(pairs, sixteen)
        return [builder.shl(half, shift) for half, shift in zip(halves, self.shifts, strict=True)]

    def step(self, currents: Any) -> None:
        """One step with these currents."""
        builder = self.block.builder
        charge = builder.add(builder.load(self.charge) if self.keeps else self.drive, currents)
        if self.keeps:
            builder.store(charge, self.charge)
        if self.lanes > LANES and self.block.has("avx512vnni"):  # products of both halves of each pair, one of them with 0, are added in a single instruction
            pairs, wide = builder.bitcast(charge, self.thetas[0].type), self.thetas[0].type
            units = [builder.shl(self.block.splat(ir.Constant(_I32, one)), shift) for one, shift in zip((1, 1 << 16), self.shifts, strict=True)]
            sums = [
                self.block.call("llvm.x86.avx512.vpdpwssd.512", wide, builder.load(*pair), pairs, unit) for *pair, unit in zip(self.sums, units, strict=True)
            ]
        else:
            sums = [builder.add(builder.load(place), added) for place, added in zip(self.sums, self.widened(charge), strict=True)]
        for place, top, theta, total in zip(self.sums, self.levels, self.thetas, sums, strict=True):
            level = builder.load(top)
            builder.store(total, place)
            builder.store(builder.select(builder.icmp_signed(">=", total, level), builder.add(level, theta), level), top)

    def rest(self, steps: Any) -> None:
        """So many steps in which nothing changes at once: `U + k·Z`, after as many spikes as steps at which a level was reached.

        Charges `Z` up to `θ` reach a level in at most every step, and what was left to fire comes first: `floor((U + k·Z - H + θ) / θ)` spikes. Above
        `θ` they reach one in every step but the first `floor((H - U - 1) / Z)`. Negative ones let those fire that are above already, until a
        level is missed: `floor((U - H + θ) / (θ - Z))`. All of these are from 0 to `k`.
        """
        builder = self.block.builder
        k = self.block.splat(builder.trunc(steps, _I32))
        for place, top, charge, theta in zip(self.sums, self.levels, self.widened(builder.load(self.charge)), self.thetas, strict=True):
            total, level = builder.load(place), builder.load(top)
            ends = builder.add(total, builder.mul(charge, k))
            many, some = builder.icmp_signed(">", charge, theta), builder.icmp_signed(">", charge, self.constant(0))
            above = builder.add(builder.sub(builder.select(some, ends, total), level), theta)
            missing = builder.sub(builder.sub(level, total), self.constant(1))
            divisor = builder.select(many, charge, builder.select(some, theta, builder.sub(theta, charge)))
            found = self.quotient(builder.select(many, missing, above), divisor, k)
            spikes = builder.select(many, builder.sub(k, found), found)
            builder.store(ends, place)
            builder.store(builder.add(level, builder.mul(spikes, theta)), top)

    def quotient(self, number: Any, divisor: Any, most: Any) -> Any:
        """The whole part of a quotient, but at least 0 and at most `most`, which is below 2^15: one in float32 is less than a hundredth away there."""
        builder, real, zero, one = self.block.builder, ir.VectorType(ir.FloatType(), LANES), self.constant(0), self.constant(1)
        guess, limit = builder.fdiv(builder.sitofp(number, real), builder.sitofp(divisor, real)), builder.sitofp(most, real)
        whole = builder.fptosi(builder.select(builder.fcmp_ordered("<", guess, limit), guess, limit), most.type)
        left = builder.sub(number, builder.mul(whole, divisor))
        whole = builder.select(builder.icmp_signed(">=", left, divisor), builder.add(whole, one), whole)
        whole = builder.select(builder.icmp_signed("<", left, zero), builder.sub(whole, one), whole)
        whole = builder.select(builder.icmp_signed("<", whole, most), whole, most)
        return builder.select(builder.icmp_signed(">", whole, zero), whole, zero)

    def constant(self, value: int) -> Any:
        """The same number for all."""
        return ir.Constant(self.thetas[0].type, [value] * LANES)

    def store(self) -> None:
        """Write back potentials, currents that last, and counts."""
        block, builder = self.block, self.block.builder
        subtracted = [builder.sub(builder.load(top), theta) for top, theta in zip(self.levels, self.thetas, strict=True)]
        block.store(self.joined([builder.sub(builder.load(place), done) for place, done in zip(self.sums, subtracted, strict=True)]), 0, self.here)
        if self.keeps:
            block.store(builder.sub(builder.load(self.charge), self.drive), 5, self.here)
        # A whole number below 2^15: the quotient in float32 is less than a hundredth away from it.
        real = ir.VectorType(ir.FloatType(), LANES)
        half = ir.Constant(real, [0.5] * LANES)
        quotients = [builder.fdiv(builder.sitofp(done, real), builder.sitofp(theta, real)) for done, theta in zip(subtracted, self.thetas, strict=True)]
        fired = [builder.fptosi(builder.fadd(quotient, half), theta.type) for quotient, theta in zip(quotients, self.thetas, strict=True)]
        before = block.load(13, self.to, self.lanes)
        block.store(builder.add(before, builder.trunc(self.joined(fired), before.type)), 13, self.to)
