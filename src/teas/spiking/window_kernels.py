"""A window of immediate firing in one Triton kernel each way: what `Window` does step by step, with the potentials in registers.

A GPU needs it, for there every step of the loop in Python is four launches and as many passes over memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from teas.spiking.window import has_channels_last, room_like

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
def _forward(  # type: ignore[no-untyped-def]
    current, threshold, spikes, fired, left, size, inner, channels, steps, leak, v0, v_reset, reset_by,
    lasting: tl.constexpr, subtracts: tl.constexpr, once: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < size
    theta = tl.load(threshold + (at // inner) % channels, mask=inside, other=1.0)
    v, total = v0 * theta, tl.zeros_like(theta)
    may, row = at >= 0, at
    for _ in range(steps):
        charged = tl.load(current + (at if lasting else row), mask=inside, other=0.0) + leak * v
        fires = charged >= theta
        if once:
            fires = fires & may
            may = may & (charged < theta)
        total += tl.where(fires, charged, 0.0)
        v = tl.where(fires, charged - reset_by * theta if subtracts else v_reset, charged)
        tl.store(spikes + row, fires.to(theta.dtype), mask=inside)
        row += size
    tl.store(fired + at, total, mask=inside)
    tl.store(left + at, v, mask=inside)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    current, threshold, grad_spikes, grad_current, grad_threshold, grad_leak, size, inner, channels, steps, leak, v0, v_reset, reset_by,
    surrogate: tl.constexpr, lasting: tl.constexpr, subtracts: tl.constexpr, once: tl.constexpr, learns_threshold: tl.constexpr, learns_leak: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < size
    theta = tl.load(threshold + (at // inner) % channels, mask=inside, other=1.0)
    v, row = v0 * theta, at
    first = tl.full(theta.shape, steps, tl.int32)  # step of the first spike
    for t in range(steps):  # potentials before the reset, kept where the gradients of their currents will be
        charged = tl.load(current + (at if lasting else row), mask=inside, other=0.0) + leak * v
        fires = charged >= theta
        if once:
            fires = fires & (first == steps)
            first = tl.where(fires, t, first)
        v = tl.where(fires, charged - reset_by * theta if subtracts else v_reset, charged)
        tl.store(grad_current + row, charged, mask=inside)
        row += size
    after, charging = tl.zeros_like(theta), tl.zeros_like(theta)  # gradients of the potential after the reset, and of what step t + 1 charges
    to_threshold, to_leak = tl.zeros_like(theta), tl.zeros_like(theta)
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
        tl.store(grad_current + row, charging, mask=inside)
        after = leak * charging
    if learns_threshold:
        tl.store(grad_threshold + at, to_threshold + v0 * after, mask=inside)
    if learns_leak:
        tl.store(grad_leak + at, to_leak + v0 * theta * charging, mask=inside)


def fits(current: Tensor, threshold: Tensor) -> bool:
    """Whether these kernels run it: 32 bits, neurons that lie densely in memory, and one threshold, or one a channel (axis 1 of a batch)."""
    return threshold.numel() in (1, current.shape[2]) and current.dtype == torch.float32 and current.numel() > 0 and _inner(current) is not None


def _inner(current: Tensor) -> int | None:
    """How many neighbours in memory share a channel, `[time, batch, channel, *position]`; None where memory has gaps or another order."""
    if len(current) > 1 and current.stride(0) != current.shape[1] * current.stride(1):
        return None  # to merge time and batch would be to copy
    folded = current.flatten(0, 1)
    if folded.is_contiguous():
        return folded[0, 0].numel() if folded.dim() > 1 else 1
    return 1 if has_channels_last(folded) else None


def _shape_arguments(current: Tensor, threshold: Tensor) -> tuple[int, int, int]:
    inner = _inner(current)
    assert inner is not None
    return current[0].numel(), inner, threshold.numel()


def forward(current: Tensor, threshold: Tensor, neuron: IF, leak: float, steps: int, once: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes `[time, batch, *neuron]`, sums of firing potentials and potentials left, `[batch, *neuron]`, of currents `[time or 1, batch, *neuron]`."""
    spikes = room_like(current, steps)
    fired, left = torch.empty_like(spikes[0]), torch.empty_like(spikes[0])
    size, inner, channels = _shape_arguments(current, threshold)
    _forward[(triton.cdiv(size, _BLOCK),)](
        current, threshold, spikes, fired, left, size, inner, channels, steps, leak, neuron.v0, neuron.v_reset, neuron.reset_by,
        lasting=len(current) == 1, subtracts=neuron.reset == "subtract", once=once, block=_BLOCK,
    )  # fmt: skip
    return spikes, fired, left


def backward(
    current: Tensor, threshold: Tensor, grad_spikes: Tensor, neuron: IF, leak: float, steps: int, once: bool, learns_threshold: bool, learns_leak: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of the currents `[time, batch, *neuron]`, of each neuron's threshold and of its leak, `[batch, *neuron]`, where these are learned."""
    grad_current = room_like(current, steps)
    grad_spikes = _laid_out_as(grad_spikes, grad_current)
    to_threshold = torch.empty_like(grad_current[0]) if learns_threshold else None
    to_leak = torch.empty_like(grad_current[0]) if learns_leak else None
    size, inner, channels = _shape_arguments(current, threshold)
    _backward[(triton.cdiv(size, _BLOCK),)](
        current, threshold, grad_spikes, grad_current, to_threshold, to_leak, size, inner, channels, steps, leak, neuron.v0, neuron.v_reset, neuron.reset_by,
        surrogate=neuron.surrogate, lasting=len(current) == 1, subtracts=neuron.reset == "subtract", once=once,
        learns_threshold=learns_threshold, learns_leak=learns_leak, block=_BLOCK,
    )  # fmt: skip
    return grad_current, to_threshold, to_leak


def _laid_out_as(tensor: Tensor, example: Tensor) -> Tensor:
    """The tensor in 32 bits, laid out as the example."""
    if tensor.stride() == example.stride() and tensor.dtype == example.dtype:
        return tensor
    return torch.empty_like(example).copy_(tensor)
