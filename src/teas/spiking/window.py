"""A window of immediate firing as one step of autograd: norm, charge, fire, reset; the way back computes potentials again instead of keeping them."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from importlib import import_module, util
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from teas.errors import TeasError
from teas.spiking.room import room
from teas.spiking.surrogate import SURROGATES

if TYPE_CHECKING:
    from teas.spiking.neuron import IF

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def joins_window(module: nn.Module | None) -> TypeGuard[Norm]:
    """Whether a module is a batch norm that normalises by its batch, and so can be part of the window of the neurons behind it."""
    if not isinstance(module, _NORMS) or type(module) not in _NORMS:
        return False
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    return (module.training or module.running_mean is None) and not hooked


class Window(torch.autograd.Function):
    """Eq. 1 over a window: charge, fire, reset at every step, with the input of the same step.

    `V = leak·V + z`; `s = 1 if V >= θ` (a tie fires); then `V <- V_reset` (reset `zero`) or `V <- V - reset_by·θ` (reset `subtract`) where it fired.
    `z` is `sums [time, batch, *neuron]`, normalised by the batch where a norm is given; sums of one step are the current of all steps.
    Returns the spikes `[time, batch, *neuron]`, their count, the sum of the potentials at spikes and the potential left at the end, `[batch, *neuron]`.

    Backward: the surrogate gradient through spikes and potentials (Eq. 4); which neuron was reset when is taken as given. Only the sums are kept.
    Both ways go block by block or step by step, so that what a step computes stays in the cache.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, sums: Tensor, weight: Tensor | None, bias: Tensor | None, norm: Norm | None,
        threshold: Tensor, leak: Tensor | None, neuron: IF, steps: int, once: bool,
    ):  # fmt: skip
        ctx.leak, ctx.neuron, ctx.steps, ctx.once, ctx.eps = neuron.leak, neuron, steps, once, norm and norm.eps
        kernels, moments = _kernels(sums, threshold, neuron), None
        if kernels:
            moments = _moments(sums, norm) if norm else None
            spikes, count, fired, potential = kernels.forward(sums, moments, threshold, neuron, ctx.leak, steps, once)
        else:
            current, moments = _normalised(sums, norm) if norm else (_real(sums), None)
            spikes, count, fired, potential = _forward(current, threshold, neuron, ctx.leak, steps, once)
        ctx.save_for_backward(sums, weight, bias, *((moments.mean, moments.scale) if moments else (None, None)), threshold)
        ctx.mark_non_differentiable(fired, potential)
        ctx.set_materialize_grads(False)
        return spikes, count, fired, potential

    @staticmethod
    def backward(ctx, grad_spikes: Tensor | None, grad_count: Tensor | None, *_: None):  # type: ignore[no-untyped-def]
        if grad_count is not None:
            grad_spikes = grad_count.expand(ctx.steps, *grad_count.shape) if grad_spikes is None else grad_spikes + grad_count
        if grad_spikes is None:
            return (None,) * 9
        sums, weight, bias, mean, scale, threshold = ctx.saved_tensors
        moments = None if mean is None else Moments(mean, scale, weight, bias, ctx.eps)
        kernels = _kernels(sums, threshold, ctx.neuron)
        run = kernels.backward if kernels else _backward
        gradients = run(sums, moments, threshold, grad_spikes, ctx.neuron, ctx.leak, ctx.steps, ctx.once, *ctx.needs_input_grad[4:6])
        of_sums, of_weight, of_bias, of_thresholds, of_leaks = gradients
        of_threshold = of_thresholds.sum_to_size(threshold.shape) if of_thresholds is not None else None
        of_leak = of_leaks.sum() if of_leaks is not None else None
        return of_sums, of_weight, of_bias, None, of_threshold, of_leak, None, None, None


@dataclass(frozen=True)
class Moments:
    """A batch norm of one batch: mean and inverse deviation of each channel, its weight and bias; all `[channel]`."""

    mean: Tensor
    scale: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    @property
    def factor(self) -> Tensor:
        """What sums are multiplied by: currents are `sum·factor + shift`."""
        return self.scale if self.weight is None else self.weight * self.scale

    @property
    def shift(self) -> Tensor:
        """Rounded once, as torch's batch norm does on a CPU."""
        shift = -self.mean.double() * self.factor.double()
        return (shift if self.bias is None else shift + self.bias).to(self.mean.dtype)

    def backward(self, gradient: Tensor, sums: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Gradients of the sums, the weight and the bias, given that of the currents."""
        wanted = [True, self.weight is not None, self.bias is not None]
        gradient, x = gradient.to(sums.dtype).flatten(0, 1), sums.flatten(0, 1)
        found = torch.ops.aten.native_batch_norm_backward(gradient, x, self.weight, None, None, self.mean, self.scale, True, self.eps, wanted)
        return found[0].view_as(sums), *(each if needed else None for each, needed in zip(found[1:], wanted[1:], strict=True))


@functools.cache
def kernels_for(device: str) -> ModuleType | None:
    """The module of fused kernels for a kind of device: Triton's on a GPU, numba's on a CPU; None where that is not installed."""
    needed, name = {"cuda": ("triton", "window_kernels"), "cpu": ("numba", "window_cpu")}.get(device, ("", ""))
    return import_module(f"teas.spiking.{name}") if needed and util.find_spec(needed) else None


def _kernels(sums: Tensor, threshold: Tensor, neuron: IF) -> ModuleType | None:
    """The fused kernels, where they run these neurons."""
    kernels = kernels_for(sums.device.type)
    return kernels if kernels and kernels.fits(sums, threshold, neuron) else None


def _forward(current: Tensor, threshold: Tensor, neuron: IF, leak: float, steps: int, once: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Spikes of every step, their counts, sums of firing potentials, and potentials left, of currents `[time or 1, batch, *neuron]`."""
    spikes, fired, charged = room_like(current, steps), torch.zeros_like(current[0]), torch.empty_like(current[0])
    neurons = _Charging(current[0], threshold, neuron, leak, once)
    for t, spike in enumerate(spikes):
        neurons.step(current[min(t, len(current) - 1)], charged, spike)
        fired.addcmul_(charged, spike)
    return spikes, spikes.sum(0), fired, neurons.potential


def _backward(
    sums: Tensor, moments: Moments | None, threshold: Tensor, grad_spikes: Tensor, neuron: IF, leak: float, steps: int, once: bool,
    learns_threshold: bool, learns_leak: bool,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Gradients of the sums, of a norm's weight and bias, and of each neuron's threshold and leak, where these are learned."""
    current = _normalised_again(sums, moments) if moments else _real(sums)
    found = _gradients(current, threshold, grad_spikes, neuron, leak, steps, once, learns_threshold, learns_leak, moments is not None)
    gradient = found[0] if len(sums) == steps else found[0].sum(0, keepdim=True)
    to_sums = moments.backward(gradient, sums) if moments else (gradient.to(sums.dtype), None, None)
    return *to_sums, *found[1:]


def _gradients(
    current: Tensor, threshold: Tensor, grad_spikes: Tensor, neuron: IF, decay: float, steps: int, once: bool,
    learns_threshold: bool, learns_leak: bool, ours: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of the currents of every step, of each neuron's threshold and of its leak, where these are learned; `ours`: currents may be overwritten."""
    potentials, spikes = _charged(current, threshold, neuron, decay, steps, once, ours)
    by_subtraction, slope = neuron.reset == "subtract", SURROGATES[neuron.surrogate]
    needs_fired = learns_threshold or learns_leak or once or not by_subtraction
    grad_threshold, grad_leak = torch.zeros_like(potentials[0]), torch.zeros_like(potentials[0])
    spoken = None if spikes is None else spikes.sum(0)  # spikes up to and including step t
    # Gradients of the potential after the reset of step t, beginning at the end, and of the potential that step t + 1 charges.
    grad_reset, grad_charge = torch.zeros_like(potentials[0]), torch.zeros_like(potentials[0])
    for t in reversed(range(len(potentials))):
        before = potentials[t]
        ratio = before / threshold
        fired: Any = (spikes[t] if spikes is not None else (before >= threshold).to(before.dtype)) if needs_fired else None
        through_spike = slope(ratio).mul_(grad_spikes[t])
        if spoken is not None:
            spoken -= fired
            through_spike.mul_(1 - spoken)  # silenced after the first spike
        if learns_leak:
            after = torch.addcmul(before, fired, neuron.reset_by * threshold if by_subtraction else before - neuron.v_reset, value=-1)
            grad_leak.addcmul_(after, grad_charge)
        if learns_threshold:  # a spike depends on U/θ: dO/dθ = -(U/θ)·dO/dU
            grad_threshold.addcmul_(through_spike, ratio, value=-1)
            if by_subtraction:
                grad_threshold.addcmul_(fired, grad_reset, value=-neuron.reset_by)
        kept = grad_reset if by_subtraction else torch.addcmul(grad_reset, grad_reset, fired, value=-1)
        grad_charge = torch.add(through_spike, kept, out=before)  # potentials go, gradients of their currents take their place
        grad_reset = grad_charge if decay == 1 else decay * grad_charge
    of_thresholds = grad_threshold + neuron.v0 * grad_reset if learns_threshold else None
    of_leaks = grad_leak + neuron.v0 * threshold * grad_charge if learns_leak else None
    return potentials, of_thresholds, of_leaks


def has_channels_last(images: Tensor) -> bool:
    """Whether images `[batch, channel, row, column]` lie in memory with their channels last, and not in their own order too."""
    return images.dim() == 4 and not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last)


def inner_of(sums: Tensor) -> int | None:
    """How many neighbours in memory share a channel, `[time, batch, channel, *position]`; None where memory has gaps or another order."""
    if sums.is_contiguous():
        return math.prod(sums.shape[3:])
    if len(sums) > 1 and sums.stride(0) != sums.shape[1] * sums.stride(1):
        return None  # to merge time and batch would be to copy
    return 1 if has_channels_last(sums.flatten(0, 1)) else None


def laid_out_as(tensor: Tensor, example: Tensor) -> Tensor:
    """The tensor `[time, batch, *neuron]` in 32 bits, its steps laid out in memory as those of the example."""
    if tensor.dtype == torch.float32 and tensor.is_contiguous() and example.is_contiguous():
        return tensor
    wanted = room_like(example, len(tensor), torch.float32)
    return tensor if tensor.stride() == wanted.stride() and tensor.dtype == wanted.dtype else wanted.copy_(tensor)


def room_like(current: Tensor, steps: int, dtype: torch.dtype | None = None) -> Tensor:
    """Room for `steps` steps `[time, batch, *neuron]`, each laid out in memory as those of the currents, so that convolutions need no other order."""
    if current.is_contiguous():
        return room((steps, *current.shape[1:]), dtype or current.dtype, current.device)
    shape = (steps * current.shape[1], *current.shape[2:])
    return room(shape, dtype or current.dtype, current.device, has_channels_last(current.flatten(0, 1))).view(steps, *current.shape[1:])


class _Charging:
    """Neurons in the middle of their window."""

    def __init__(self, like: Tensor, threshold: Tensor, neuron: IF, leak: float, once: bool):
        self.potential = torch.empty_like(like).copy_(neuron.v0 * threshold)
        self._threshold, self._leak, self._subtracts, self._v_reset = threshold, leak, neuron.reset == "subtract", neuron.v_reset
        self._taken = threshold if neuron.reset_by == 1 else neuron.reset_by * threshold
        self._may = torch.ones_like(like) if once else None

    def step(self, current: Tensor, charged: Tensor, spike: Tensor) -> None:
        """Charge with the current of a step, which may be `charged` itself; write the potentials before the reset, and who fires."""
        torch.add(current, self.potential, alpha=self._leak, out=charged)
        torch.ge(charged, self._threshold, out=spike)
        if self._may is not None:
            spike.mul_(self._may)
            self._may.sub_(spike)
        torch.addcmul(charged, spike, self._taken if self._subtracts else charged, value=-1, out=self.potential)
        if not self._subtracts and self._v_reset:
            self.potential.add_(spike, alpha=self._v_reset)


def _charged(current: Tensor, threshold: Tensor, neuron: IF, leak: float, steps: int, once: bool, ours: bool) -> tuple[Tensor, Tensor | None]:
    """Potentials before the reset of every step, in the place of the currents where these are ours, and the spikes where potentials don't tell them."""
    charged = current if ours and len(current) == steps else room_like(current, steps)
    spikes = torch.empty_like(charged) if once else None
    spike = torch.empty_like(charged[0])
    neurons = _Charging(charged[0], threshold, neuron, leak, once)
    for t in range(steps):
        neurons.step(current[min(t, len(current) - 1)], charged[t], spike if spikes is None else spikes[t])
    return charged, spikes


def _batch(sums: Tensor, norm: Norm) -> tuple[Tensor, tuple[Tensor | None, Tensor | None], float]:
    """Sums with time folded into the batch, the running statistics that they move, and by which share, as `nn.BatchNorm2d` says."""
    folded = sums.flatten(0, 1)
    norm._check_input_dim(folded)
    if folded.numel() == folded.shape[1]:
        raise TeasError(f"a batch norm in training needs more than one value per channel; got {tuple(sums.shape)} (a last batch of one sample?)")
    momentum = norm.momentum or 0.0
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else momentum
    return folded, (norm.running_mean, norm.running_var) if norm.training else (None, None), momentum


def _moments(sums: Tensor, norm: Norm) -> Moments:
    """The moments alone, the same to the bit as `_normalised` finds on a CPU; on a GPU each conversion would be a launch more."""
    folded, running, momentum = _batch(sums, norm)
    mean, variance = torch.batch_norm_update_stats(folded, *running, momentum)
    scale = variance.add_(norm.eps).rsqrt_() if sums.is_cuda else (variance.double() + norm.eps).rsqrt().to(mean.dtype)
    return Moments(mean, scale, norm.weight, norm.bias, norm.eps)


def _normalised(sums: Tensor, norm: Norm) -> tuple[Tensor, Moments]:
    """The currents, at least in 32 bits, and the moments."""
    folded, running, momentum = _batch(sums, norm)
    current, mean, scale = torch.native_batch_norm(folded, norm.weight, norm.bias, *running, True, momentum, norm.eps)
    return _real(current).view(sums.shape), Moments(mean, scale, norm.weight, norm.bias, norm.eps)


def _normalised_again(sums: Tensor, moments: Moments) -> Tensor:
    """The same currents to the bit, from the moments: those of a norm with a variance of 1, whose weight is the factor."""
    one = torch.ones_like(moments.mean)
    current = torch.native_batch_norm(sums.flatten(0, 1), moments.factor, moments.bias, moments.mean, one, False, 0.0, 0.0)[0]
    return _real(current).view(sums.shape)


def _real(current: Tensor) -> Tensor:
    """Currents as potentials are: in 32 bits at least."""
    return current.float() if current.dtype in (torch.bfloat16, torch.float16) else current
