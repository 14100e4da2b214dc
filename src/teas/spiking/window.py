"""A window of immediate firing as one step of autograd: norm, charge, fire, reset; the way back computes potentials again instead of keeping them."""

from __future__ import annotations

from importlib import util
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from teas.errors import TeasError
from teas.spiking.surrogate import SURROGATES

if TYPE_CHECKING:
    from teas.spiking.neuron import IF

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def joins_window(module: nn.Module) -> TypeGuard[Norm]:
    """Whether a module is a batch norm that normalises by its batch, and so can be part of the window of the neurons behind it."""
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    return type(module) in _NORMS and (module.training or module.running_mean is None) and not hooked


class Window(torch.autograd.Function):
    """Eq. 1 over a window: charge, fire, reset at every step, with the input of the same step.

    `V = leak·V + z`; `s = 1 if V >= θ` (a tie fires); then `V <- V_reset` (reset `zero`) or `V <- V - reset_by·θ` (reset `subtract`) where it fired.
    `z` is `sums [time, batch, *neuron]`, normalised by the batch where a norm is given; sums of one step are the current of all steps.
    Returns the spikes `[time, batch, *neuron]`, and the sum of the potentials at spikes and the potential left at the end, `[batch, *neuron]`.

    Backward: the surrogate gradient through spikes and potentials (Eq. 4); which neuron was reset when is taken as given. Only the sums are kept.
    Both ways go step by step, so that what a step computes stays in the cache.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, sums: Tensor, weight: Tensor | None, bias: Tensor | None, norm: Norm | None,
        threshold: Tensor, leak: Tensor | None, neuron: IF, steps: int, once: bool,
    ):  # fmt: skip
        current, moments = _normalised(sums, weight, bias, norm)
        ctx.leak, ctx.neuron, ctx.steps, ctx.once, ctx.eps = neuron.leak, neuron, steps, once, norm and norm.eps
        kernels = _kernels(current, threshold)
        if kernels:
            spikes, fired, potential = kernels.forward(current, threshold, neuron, ctx.leak, steps, once)
        else:
            spikes, fired, potential = _fire(current, threshold, neuron, ctx.leak, steps, once)
        ctx.save_for_backward(sums, weight, bias, *moments, threshold)
        ctx.mark_non_differentiable(fired, potential)
        return spikes, fired, potential

    @staticmethod
    def backward(ctx, grad_spikes: Tensor, *_: Tensor):  # type: ignore[no-untyped-def]
        sums, weight, bias, mean, scale, threshold = ctx.saved_tensors
        neuron, decay = ctx.neuron, ctx.leak
        current = _real(sums) if mean is None else _normalised_again(sums, weight, bias, mean, scale)
        learns_threshold, learns_leak = ctx.needs_input_grad[4:6]
        kernels = _kernels(current, threshold)
        if kernels:
            gradients = kernels.backward(current, threshold, grad_spikes, neuron, decay, ctx.steps, ctx.once, learns_threshold, learns_leak)
        else:
            gradients = _gradients(current, threshold, grad_spikes, neuron, decay, ctx.steps, ctx.once, learns_threshold, learns_leak, mean is not None)
        of_currents, of_thresholds, of_leaks = gradients
        to_threshold = of_thresholds.sum_to_size(threshold.shape) if of_thresholds is not None else None
        to_leak = of_leaks.sum() if of_leaks is not None else None
        grad_current = (of_currents if len(current) == ctx.steps else of_currents.sum(0, keepdim=True)).to(sums.dtype)
        del gradients, of_currents, of_thresholds, of_leaks, current
        if mean is None:
            return grad_current, None, None, None, to_threshold, to_leak, None, None, None
        wanted = [True, weight is not None, bias is not None]
        grad_current, x = grad_current.flatten(0, 1), sums.flatten(0, 1)
        to_x, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(grad_current, x, weight, None, None, mean, scale, True, ctx.eps, wanted)
        return to_x.view_as(sums), to_weight if wanted[1] else None, to_bias if wanted[2] else None, None, to_threshold, to_leak, None, None, None


def _kernels(current: Tensor, threshold: Tensor) -> ModuleType | None:
    """The module of fused kernels, where it runs these neurons: on a GPU, with Triton."""
    if current.device.type != "cuda" or not util.find_spec("triton"):
        return None
    from teas.spiking import window_kernels

    return window_kernels if window_kernels.fits(current, threshold) else None


def _fire(current: Tensor, threshold: Tensor, neuron: IF, leak: float, steps: int, once: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes of every step, sums of firing potentials, and potentials left, of currents `[time or 1, batch, *neuron]`."""
    spikes, fired, charged = room_like(current, steps), torch.zeros_like(current[0]), torch.empty_like(current[0])
    neurons = _Charging(current[0], threshold, neuron, leak, once)
    for t, spike in enumerate(spikes):
        neurons.step(current[min(t, len(current) - 1)], charged, spike)
        fired.addcmul_(charged, spike)
    return spikes, fired, neurons.potential


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


def room_like(current: Tensor, steps: int) -> Tensor:
    """Room for `steps` steps `[time, batch, *neuron]`, each laid out in memory as those of the currents, so that convolutions need no other order."""
    order = torch.channels_last if has_channels_last(current.flatten(0, 1)) else torch.contiguous_format
    shape = (steps * current.shape[1], *current.shape[2:])
    return torch.empty(shape, dtype=current.dtype, device=current.device, memory_format=order).view(steps, *current.shape[1:])


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


def _normalised(sums: Tensor, weight: Tensor | None, bias: Tensor | None, norm: Norm | None) -> tuple[Tensor, tuple[Tensor | None, Tensor | None]]:
    """The currents, at least in 32 bits, and the mean and the inverse deviation of the batch; running statistics move as `nn.BatchNorm2d` says."""
    if norm is None:
        return _real(sums), (None, None)
    folded = sums.flatten(0, 1)
    norm._check_input_dim(folded)
    if folded.numel() == folded.shape[1]:
        raise TeasError(f"a batch norm in training needs more than one value per channel; got {tuple(sums.shape)} (a last batch of one sample?)")
    momentum = norm.momentum or 0.0
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else momentum
    running = (norm.running_mean, norm.running_var) if norm.training else (None, None)
    current, mean, scale = torch.native_batch_norm(folded, weight, bias, *running, True, momentum, norm.eps)
    return _real(current).view(sums.shape), (mean, scale)


def _normalised_again(sums: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, scale: Tensor) -> Tensor:
    """The same currents to the bit, from the moments: those of a norm with a variance of 1, whose weight is `weight·scale`."""
    weight = scale if weight is None else weight * scale
    current = torch.native_batch_norm(sums.flatten(0, 1), weight, bias, mean, torch.ones_like(mean), False, 0.0, 0.0)[0]
    return _real(current).view(sums.shape)


def _real(current: Tensor) -> Tensor:
    """Currents as potentials are: in 32 bits at least."""
    return current.float() if current.dtype in (torch.bfloat16, torch.float16) else current
