"""A window of immediate firing in one Triton kernel each way: what `Window` does step by step, with the potentials in registers.

A GPU needs it, for there every step of the loop in Python is four launches and as many passes over memory. A batch norm before the neurons is part of
both kernels: its currents are never written, and what its gradient needs is summed on the way back (torch's own kernel takes a block a channel, and
most of a GPU waits for it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from teas.spiking.window import Moments, inner_of, laid_out_as, room_like

if TYPE_CHECKING:
    from teas.spiking.neuron import IF

_BLOCK = 1024


@triton.jit
def _slope(ratio, surrogate: tl.constexpr):  # type: ignore[no-untyped-def]
    if surrogate == "triangle":
        return tl.maximum(1.0 - tl.abs(ratio - 1.0), 0.0)
    elif surrogate == "literal":
        return tl.maximum(1.0 - tl.abs(ratio), 0.0)
    else:
        scaled = 3.141592653589793 * (ratio - 1.0)
        return 1.0 / (1.0 + scaled * scaled)


@triton.jit
def _norm(mean, scale, weight, bias, channel, inside):  # type: ignore[no-untyped-def]
    """What makes currents of sums: `sum·factor + shift`."""
    factor = tl.load(scale + channel, mask=inside, other=1.0)
    if weight is not None:
        factor = factor * tl.load(weight + channel, mask=inside, other=1.0)
    shift = -tl.load(mean + channel, mask=inside, other=0.0) * factor
    if bias is not None:
        shift = shift + tl.load(bias + channel, mask=inside, other=0.0)
    return factor, shift


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    sums, mean, scale, weight, bias, threshold, spikes, count, fired, left, size, inner, channels, thresholds, steps, leak, v0, v_reset, reset_by,
    normed: tl.constexpr, lasting: tl.constexpr, subtracts: tl.constexpr, once: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside, channel = at < size, (at // inner) % channels
    theta = tl.load(threshold + channel % thresholds, mask=inside, other=1.0)
    if normed:
        factor, shift = _norm(mean, scale, weight, bias, channel, inside)
    v, total, spoken = v0 * theta, tl.zeros_like(theta), tl.zeros_like(theta)
    may, row = at >= 0, at
    for _ in range(steps):
        current = tl.load(sums + (at if lasting else row), mask=inside, other=0.0).to(tl.float32)
        if normed:
            current = current * factor + shift
        charged = current + leak * v
        fires = charged >= theta
        if once:
            fires = fires & may
            may = may & (charged < theta)
        total += tl.where(fires, charged, 0.0)
        spoken += fires.to(theta.dtype)
        v = tl.where(fires, charged - reset_by * theta if subtracts else v_reset, charged)
        tl.store(spikes + row, fires.to(theta.dtype), mask=inside)
        row += size
    tl.store(count + at, spoken, mask=inside)
    tl.store(fired + at, total, mask=inside)
    tl.store(left + at, v, mask=inside)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    sums, mean, scale, weight, bias, threshold, grad_spikes, grad_current, grad_sums, grad_norm, grad_threshold, grad_leak, size, inner, channels,
    thresholds, steps, leak, v0, v_reset, reset_by,
    surrogate: tl.constexpr, normed: tl.constexpr, lasting: tl.constexpr, subtracts: tl.constexpr, once: tl.constexpr, learns_threshold: tl.constexpr,
    learns_leak: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside, channel = at < size, (at // inner) % channels
    theta = tl.load(threshold + channel % thresholds, mask=inside, other=1.0)
    if normed:
        factor, shift = _norm(mean, scale, weight, bias, channel, inside)
    v, row = v0 * theta, at
    first = tl.full(theta.shape, steps, tl.int32)  # step of the first spike
    for t in range(steps):  # potentials before the reset, kept where the gradients of their currents will be
        current = tl.load(sums + (at if lasting else row), mask=inside, other=0.0).to(tl.float32)
        if normed:
            current = current * factor + shift
        charged = current + leak * v
        fires = charged >= theta
        if once:
            fires = fires & (first == steps)
            first = tl.where(fires, t, first)
        v = tl.where(fires, charged - reset_by * theta if subtracts else v_reset, charged)
        tl.store(grad_current + row, charged, mask=inside)
        row += size
    after, charging = tl.zeros_like(theta), tl.zeros_like(theta)  # gradients of the potential after the reset, and of what step t + 1 charges
    to_threshold, to_leak, to_shift, to_factor = tl.zeros_like(theta), tl.zeros_like(theta), tl.zeros_like(theta), tl.zeros_like(theta)
    centre = tl.load(mean + channel, mask=inside, other=0.0) if normed else 0.0
    for back in range(steps):
        t = steps - 1 - back
        row -= size
        before = tl.load(grad_current + row, mask=inside, other=0.0)
        ratio = before / theta
        through = _slope(ratio, surrogate) * tl.load(grad_spikes + row, mask=inside, other=0.0)
        fires = before >= theta
        if once:
            fires = first == t
            through = tl.where(first < t, 0.0, through)
        if learns_leak:
            to_leak += tl.where(fires, before - reset_by * theta if subtracts else v_reset, before) * charging
        if learns_threshold:
            to_threshold -= through * ratio
            if subtracts:
                to_threshold -= tl.where(fires, reset_by * after, 0.0)
        charging = through + (after if subtracts else tl.where(fires, 0.0, after))
        if not lasting:
            tl.store(grad_current + row, charging, mask=inside)
        to_shift += charging
        if normed:
            to_factor += charging * (tl.load(sums + (at if lasting else row), mask=inside, other=0.0).to(tl.float32) - centre)
        after = leak * charging
    if lasting:
        tl.store(grad_sums + at, to_shift, mask=inside)
    if normed:  # summed over the channel later
        tl.store(grad_norm + at, to_shift, mask=inside)
        tl.store(grad_norm + size + at, to_factor, mask=inside)
    if learns_threshold:
        tl.store(grad_threshold + at, to_threshold + v0 * after, mask=inside)
    if learns_leak:
        tl.store(grad_leak + at, to_leak + v0 * theta * charging, mask=inside)


@triton.jit
def _through_norm(  # type: ignore[no-untyped-def]
    sums, mean, scale, weight, grad_norm, grad_current, grad_sums, size, inner, channels, steps, block: tl.constexpr
):
    """Gradients of the sums, from those of the currents: less their mean, and less what would only scale the channel."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside, channel, values = at < size, (at // inner) % channels, size // channels * steps
    centre, deviation = tl.load(mean + channel, mask=inside, other=0.0), tl.load(scale + channel, mask=inside, other=1.0)
    factor = deviation
    if weight is not None:
        factor = factor * tl.load(weight + channel, mask=inside, other=1.0)
    common = tl.load(grad_norm + channel, mask=inside, other=0.0) / values
    sloping = tl.load(grad_norm + channels + channel, mask=inside, other=0.0) / values * deviation * deviation
    row = at
    for _ in range(steps):
        apart = tl.load(sums + row, mask=inside, other=0.0).to(tl.float32) - centre
        gradient = factor * (tl.load(grad_current + row, mask=inside, other=0.0) - common - sloping * apart)
        tl.store(grad_sums + row, gradient.to(grad_sums.dtype.element_ty), mask=inside)
        row += size


@triton.jit
def _pack(train, bits, size, block: tl.constexpr):  # type: ignore[no-untyped-def]
    byte, bit = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block), tl.arange(0, 8)
    at = byte[:, None] * 8 + bit[None, :]
    spikes = tl.load(train + at, mask=at < size, other=0.0)
    found = tl.sum(tl.where(spikes != 0.0, 128 >> bit[None, :], 0), 1)
    tl.store(bits + byte, found.to(tl.uint8), mask=byte * 8 < size)


@triton.jit
def _unpack(bits, train, size, block: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    byte = tl.load(bits + at // 8, mask=at < size, other=0).to(tl.int32)
    tl.store(train + at, ((byte >> (7 - at % 8).to(tl.int32)) & 1).to(tl.float32), mask=at < size)


def _cdiv(size: int, block: int) -> int:
    return -(-size // block)  # Triton's own, a function for kernels too, takes microseconds


def pack(train: Tensor) -> Tensor:
    """Ones and zeros `[neuron]` as bytes of eight bits each, the first one highest, padded with zeros."""
    bits = torch.empty(_cdiv(train.numel(), 8), dtype=torch.uint8, device=train.device)
    if len(bits):
        _pack[(_cdiv(len(bits), _BLOCK // 8),)](train, bits, train.numel(), block=_BLOCK // 8)
    return bits


def unpack(bits: Tensor, train: Tensor) -> None:
    """Write what `pack` packed, `[neuron]`."""
    if len(bits):
        _unpack[(_cdiv(train.numel(), _BLOCK),)](bits, train, train.numel(), block=_BLOCK)


def fits(sums: Tensor, threshold: Tensor, neuron: IF) -> bool:
    """Whether these kernels run it: at most 32 bits, neurons that lie densely in memory, and one threshold, or one a channel (axis 1 of a batch)."""
    known = neuron.surrogate in ("triangle", "literal", "arctan") and sums.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return known and threshold.numel() in (1, sums.shape[2]) and sums.numel() > 0 and inner_of(sums) is not None


def _shape_arguments(sums: Tensor, threshold: Tensor) -> tuple[int, int, int, int]:
    inner = inner_of(sums)
    assert inner is not None
    return sums.numel() // len(sums), inner, sums.shape[2], threshold.numel()


def forward(sums: Tensor, moments: Moments | None, threshold: Tensor, neuron: IF, leak: float, steps: int, once: bool) -> tuple[Tensor, ...]:
    """Spikes `[time, batch, *neuron]`; counts, sums of firing potentials and potentials left, `[batch, *neuron]`; of sums `[time or 1, batch, *neuron]`."""
    spikes = room_like(sums, steps, torch.float32)
    each = spikes[0]
    count, fired, left = (torch.empty_like(each) for _ in range(3))
    size, *shape = _shape_arguments(sums, threshold)
    norm = (moments.mean, moments.scale, moments.weight, moments.bias) if moments else (None,) * 4
    _forward[(_cdiv(size, _BLOCK),)](
        sums, *norm, threshold, spikes, count, fired, left, size, *shape, steps, leak, neuron.v0, neuron.v_reset, neuron.reset_by,
        normed=moments is not None, lasting=len(sums) == 1, subtracts=neuron.reset == "subtract", once=once, block=_BLOCK,
    )  # fmt: skip
    return spikes, count, fired, left


def backward(
    sums: Tensor, moments: Moments | None, threshold: Tensor, grad_spikes: Tensor, neuron: IF, leak: float, steps: int, once: bool,
    learns_threshold: bool, learns_leak: bool,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Gradients of the sums `[time or 1, batch, *neuron]`, of a norm's weight and bias `[channel]`, and of each neuron's threshold and leak."""
    grad_current, lasting = room_like(sums, steps, torch.float32), len(sums) == 1
    grad_spikes, gradient = laid_out_as(grad_spikes, sums), room_like(sums, 1, torch.float32) if lasting else grad_current
    of_norm = room_like(sums, 2, torch.float32) if moments else None
    to_threshold = torch.empty_like(grad_current[0]) if learns_threshold else None
    to_leak = torch.empty_like(grad_current[0]) if learns_leak else None
    size, *shape = _shape_arguments(sums, threshold)
    norm = (moments.mean, moments.scale, moments.weight, moments.bias) if moments else (None,) * 4
    _backward[(_cdiv(size, _BLOCK),)](
        sums, *norm, threshold, grad_spikes, grad_current, gradient, of_norm, to_threshold, to_leak, size, *shape, steps, leak, neuron.v0, neuron.v_reset,
        neuron.reset_by, surrogate=neuron.surrogate, normed=moments is not None, lasting=lasting, subtracts=neuron.reset == "subtract", once=once,
        learns_threshold=learns_threshold, learns_leak=learns_leak, block=_BLOCK,
    )  # fmt: skip
    if moments is None:
        return gradient.to(sums.dtype), None, None, to_threshold, to_leak
    assert of_norm is not None
    totals = of_norm.sum([axis for axis in range(1, of_norm.dim()) if axis != 2])
    to_sums = gradient if sums.dtype == torch.float32 else room_like(sums, len(sums), sums.dtype)
    _through_norm[(_cdiv(size, _BLOCK),)](
        sums, moments.mean, moments.scale, moments.weight, totals, gradient, to_sums, size, *shape[:2], len(sums), block=_BLOCK
    )
    to_weight = totals[1] * moments.scale if moments.weight is not None else None
    return to_sums, to_weight, totals[0] if moments.bias is not None else None, to_threshold, to_leak
