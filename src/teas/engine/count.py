"""Two-phase firing on spike counts: one pass of the synapses and a closed form per layer, whatever the windows are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from teas.engine.contract import Run, check_runnable, why_not_on_cpu
from teas.engine.int8 import MAX_BYTE, Int8Compiler, as_bytes, exact_kernels
from teas.engine.plan import Compiler, Step, compile_step
from teas.engine.sharing import Share, share_currents
from teas.spiking.checks import check_dtype, check_inputs, shape_noted
from teas.spiking.coding import encode
from teas.spiking.network import SpikingNetwork
from teas.spiking.neuron import IF, fired_in_two_phases
from teas.spiking.record import LayerRecord, Output, Record
from teas.spiking.trace import INPUT, Layer


@dataclass(frozen=True)
class CountEngine:
    """`n = clip(floor((v0·θ + Σz)/θ), 0, T')` with `Σz` from one pass of the synapses on spike counts; cost and memory do not depend on T.

    Under the radix code the largest count is `2^T' - 1` instead of `T'`, and all else is the same.

    By default every float32 operation is the reference's own, on the same values in the same memory layout, and so are the counts.
    reorder: fold batch norms, initial potentials and thresholds that are powers of two into the weights before them, and lay images out
    channels last. Faster; sums are rounded in another order, so that counts flip where a potential is within rounding of a multiple of θ, and
    layers downstream amplify a flip. On dyadic weights without batch norm, where sums are exact, nothing flips.
    int8: run convolutions and linear maps of counts on 8-bit integer kernels where their weights are 8-bit integers times a power of two
    (see `quantise`): counts are then exact integers. Other synapses stay in float32; `fallbacks` says which and why.
    """

    name: str = "count"
    reorder: bool = False
    int8: bool = False

    def why_not(self, network: SpikingNetwork, device: torch.device) -> list[str]:
        """Reasons: immediate firing, training mode, another device than the CPU, another type than float32, no 8-bit weights for `int8`."""
        reasons = why_not_on_cpu(network, device)
        if network.semantics.firing != "two_phase":
            reasons.insert(0, f"it needs firing 'two_phase', the network has {network.semantics.firing!r}")
        if self.int8 and not reasons:
            if not exact_kernels():
                reasons.append("the 8-bit kernels of this build of torch on this CPU are missing or not exact")
            elif not any(isinstance(plan.compiler, Int8Compiler) and plan.compiler.on_int8 for plan in self._plans(network, "nothing")):
                found = sorted(set(self.fallbacks(network).values())) or ["it has no convolution or linear map"]
                reasons.append(f"nothing in it can run on 8-bit kernels: {', '.join(found)}")
        return reasons

    def fallbacks(self, network: SpikingNetwork) -> dict[str, str]:
        """Operations `layer/operation` that `int8` leaves in float32, each with its reason; empty without `int8`."""
        found = {}
        for plan in self._plans(network, "nothing"):
            if isinstance(plan.compiler, Int8Compiler):
                found.update({f"{plan.layer.name}/{operation}": reason for operation, reason in plan.compiler.refused.items()})
        return found

    def prepare(self, network: SpikingNetwork, keep: str = "potentials") -> Run:
        """See `Engine.prepare`; raises `TeasError` with all reasons where the engine can't run the network."""
        check_runnable(self, network, torch.device("cpu"), keep)
        plans, encoding = self._plans(network, keep), network.semantics.encoding

        @torch.no_grad()
        def run(inputs: Tensor) -> Output:
            check_inputs(inputs)
            check_dtype(network, inputs)
            with shape_noted(inputs):
                return _run(plans, inputs, encoding, keep)

        return run

    def _plans(self, network: SpikingNetwork, keep: str) -> list[LayerPlan]:
        shares = share_currents(network)
        last_reader = {source: share.layer.name for share in shares for source in share.layer.sources}
        plans = []
        for share in shares:
            layer = share.layer
            frees = tuple(source for source in layer.sources if last_reader[source] == layer.name and source != INPUT)
            plans.append(plan_layer(share, network, self, keep, frees))
        return plans


@dataclass
class LayerPlan:
    """A layer ready to run: its steps and its neurons; `frees` names the layers whose counts nobody reads after it."""

    share: Share
    window: int
    compiler: Compiler
    steps: list[Step]
    neurons: IF | None
    threshold: Tensor
    offset: Tensor | None  # v0·θ where it is still to be added
    divide: bool  # whether the division by θ is still to be done
    frees: tuple[str, ...]
    fused: Callable[[dict[str, Tensor]], Tensor] | None = None  # counts of the sources to counts, in one kernel

    @property
    def layer(self) -> Layer:
        return self.share.layer

    @property
    def code(self) -> str:
        return self.compiler.network.semantics.code


def plan_layer(share: Share, network: SpikingNetwork, engine: CountEngine, keep: str, frees: tuple[str, ...]) -> LayerPlan:
    """Compile one layer, after which nobody reads the counts of `frees`; a readout is left as the reference runs it, on rates."""
    layer = share.layer
    readout = layer.neurons is None
    levels = 1 if readout else network.levels[layer.name]
    kind = Int8Compiler if engine.int8 and not readout else Compiler
    compiler = kind(layer, network, levels, reorder=engine.reorder and not readout, contiguous=engine.int8 or (engine.reorder and readout))
    compiler.counts = {source: network.levels[source] for source in layer.sources if source != INPUT}
    compiler.charges, compiler.exports = ({INPUT} & set(layer.sources)) | share.imports, share.exports
    if readout:
        return LayerPlan(share, 0, compiler, [compile_step(compiler, o) for o in layer.synapses], None, torch.ones(()), None, False, frees)
    neurons = network.neurons(layer.name)
    threshold = neurons.threshold.detach()
    direct, summed = compiler.absorbing(layer.current, False), compiler.absorbing(layer.current, True)
    absorber = direct or summed
    if absorber and compiler.may_absorb(absorber, threshold):
        compiler.absorber, compiler.offset = absorber, neurons.v0 * threshold
        if engine.reorder and direct and keep != "potentials" and _is_power_of_two(threshold) and not engine.int8:
            compiler.divisor = threshold
    steps = [compile_step(compiler, operation) for operation in layer.synapses]
    offset = None if compiler.absorber else neurons.v0 * threshold
    plan = LayerPlan(share, network.windows[layer.name], compiler, steps, neurons, threshold, offset, compiler.divisor is None, frees)
    if isinstance(compiler, Int8Compiler) and keep != "potentials" and not share.exports:
        plan.fused = compiler.fuse(steps, threshold, frees if keep == "nothing" else ())
    return plan


def _is_power_of_two(threshold: Tensor) -> bool:
    return bool((torch.frexp(threshold).mantissa == 0.5).all())


def _run(plans: list[LayerPlan], inputs: Tensor, encoding: str, keep: str) -> Output:
    counts: dict[str, Tensor] = {}
    currents: dict[tuple[str, int], Tensor] = {}
    record: Record = {}
    for plan in plans:
        levels = plan.compiler.levels
        values = {source: counts[source] for source in plan.layer.sources if source != INPUT}
        values |= {name: currents[name, levels] for name in plan.share.imports}
        for source in plan.frees:
            del counts[source]
        if plan.fused is not None:
            count, potential = plan.fused(values), None
        else:
            charge = _charge(plan, values, inputs, encoding)
            if plan.neurons is None:
                return Output(charge, record)
            currents |= {(name, levels): values[name] for name in plan.share.exports}
            count, potential = _fire(plan, charge, keep)
        for key in plan.share.frees:
            del currents[key]
        counts[plan.layer.name] = count
        if keep != "nothing":
            record[plan.layer.name] = _recorded(plan, count, potential)
    return Output(count.to(torch.float32).contiguous() / plan.compiler.levels, record)


def _charge(plan: LayerPlan, values: dict[str, Tensor], inputs: Tensor, encoding: str) -> Tensor:
    """`Σ_t z(t)` of a layer over its window, or the result of a readout."""
    levels = plan.compiler.levels
    if INPUT in plan.layer.sources:
        if plan.neurons is None:
            values[INPUT] = inputs
        else:
            values[INPUT] = inputs * levels if encoding == "direct" else encode(inputs, levels, encoding).sum(0)
        if values[INPUT].dim() == 4 and plan.compiler.reorder:
            values[INPUT] = values[INPUT].contiguous(memory_format=torch.channels_last)
    for step in plan.steps:
        values[step.name] = step.run(values)
        for name in step.frees:
            del values[name]
    charge: Tensor = plan.compiler.charge(values, plan.layer.current)
    return charge


def _fire(plan: LayerPlan, charge: Tensor, keep: str) -> tuple[Tensor, Tensor | None]:
    """The closed form of two-phase firing; overwrites the charge where nothing else needs its memory."""
    assert plan.neurons is not None
    theta = plan.threshold if plan.threshold.dim() == 0 else plan.neurons.threshold_for(charge).detach()
    in_place = plan.layer.current in plan.compiler.fresh - plan.compiler.exports
    if plan.offset is not None:
        offset = plan.offset.view(theta.shape)
        charge = charge.add_(offset) if in_place else charge + offset
        in_place = True
    potential = charge if keep == "potentials" else None
    if potential is not None or not in_place:
        count = (charge / theta if plan.divide else charge.clone()).floor_()
    else:
        count = (charge.div_(theta) if plan.divide else charge).floor_()
    count.clamp_(0, plan.compiler.levels)
    if isinstance(plan.compiler, Int8Compiler) and plan.compiler.levels <= MAX_BYTE:
        count = as_bytes(count, plan.compiler.levels)
        count = count.contiguous(memory_format=torch.channels_last if count.dim() == 4 else torch.contiguous_format)
    return count, potential


def _recorded(plan: LayerPlan, count: Tensor, potential: Tensor | None) -> LayerRecord:
    """A layer's record; the sums over its spikes as in `run_two_phase`."""
    count = count.to(torch.float32)
    if potential is None:
        empty = count.new_empty(0)
        return LayerRecord(plan.window, count, empty, empty, code=plan.code)
    assert plan.neurons is not None
    theta = plan.neurons.threshold_for(potential).detach()
    fired = fired_in_two_phases(potential, theta, count, plan.window, plan.code)
    return LayerRecord(plan.window, count, fired, potential - count * theta, code=plan.code)
