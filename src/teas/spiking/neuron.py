"""Integrate-and-fire neurons: what they do over a whole window, and the thin module that holds their parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from teas.errors import TeasError, check_choice
from teas.spiking.surrogate import SURROGATES

RESETS = ("zero", "subtract")
FIRINGS = ("immediate", "two_phase")


@dataclass(frozen=True)
class Emission:
    """What a layer hands on after its window; `count`, `fired` and `residual` have shape `[batch, *neuron]`."""

    window: int
    threshold: Tensor  # θ, broadcastable to [batch, *neuron]
    count: Tensor  # spikes in the window
    fired: Tensor  # sum of the firing potentials
    residual: Tensor  # membrane potential left at the end of the window
    spikes: Tensor | None  # [time, batch, *neuron]; None under two-phase firing, whose train is its count


class _Window(torch.autograd.Function):
    """Eq. 1 over a window: charge, fire, reset at every step, with the input of the same step.

    `V = leak·V + z`; `s = 1 if V >= θ` (a tie fires); then `V <- V_reset` (reset `zero`) or `V <- V - reset_by·θ` (reset `subtract`) where it fired.
    Returns the spikes, the potentials before the reset (both `[time, batch, *neuron]`) and the potential left at the end. Backward: the
    surrogate gradient through spikes and potentials (Eq. 4); which neuron was reset when is taken as given. Both ways go step by step, so
    that what a step computes stays in the cache.
    """

    @staticmethod
    def forward(ctx, current: Tensor, threshold: Tensor, leak: Tensor | None, neuron: IF, once: bool):  # type: ignore[no-untyped-def]
        charged, spikes = torch.empty_like(current, memory_format=torch.contiguous_format), torch.empty_like(current, memory_format=torch.contiguous_format)
        potential = (neuron.v0 * threshold).expand_as(current[0])
        silent = torch.ones_like(current[0]) if once else None
        decay = neuron.leak
        taken = threshold if neuron.reset_by == 1 else neuron.reset_by * threshold
        for now, before, spike in zip(current, charged, spikes, strict=True):
            torch.add(now, potential, alpha=decay, out=before)
            torch.ge(before, threshold, out=spike)
            if silent is not None:
                spike.mul_(silent)
                silent.sub_(spike)
            potential = torch.addcmul(before, spike, taken if neuron.reset == "subtract" else before, value=-1)
            if neuron.reset == "zero" and neuron.v_reset:
                potential.add_(spike, alpha=neuron.v_reset)
        ctx.save_for_backward(threshold, charged, spikes if once else None)  # otherwise charged >= θ says who fired
        ctx.neuron, ctx.once, ctx.decay = neuron, once, decay
        ctx.mark_non_differentiable(charged, potential)
        return spikes, charged, potential

    @staticmethod
    def backward(ctx, grad_spikes: Tensor, *_: Tensor):  # type: ignore[no-untyped-def]
        threshold, charged, spikes = ctx.saved_tensors
        neuron, decay = ctx.neuron, ctx.decay
        by_subtraction, slope = neuron.reset == "subtract", SURROGATES[neuron.surrogate]
        _, learns_threshold, learns_leak, *_ = ctx.needs_input_grad
        needs_fired = learns_threshold or learns_leak or ctx.once or not by_subtraction
        grad_current = torch.empty_like(charged)
        grad_threshold, grad_leak = torch.zeros_like(charged[0]), torch.zeros_like(charged[0])
        spoken = spikes.sum(0) if ctx.once else None  # spikes up to and including step t
        # Gradients of the potential after the reset of step t, beginning at the end, and of the potential that step t + 1 charges.
        grad_reset, grad_charge = torch.zeros_like(charged[0]), torch.zeros_like(charged[0])
        for t in reversed(range(len(charged))):
            ratio = charged[t] / threshold
            fired: Any = (spikes[t] if ctx.once else (charged[t] >= threshold).to(charged.dtype)) if needs_fired else None
            through_spike = slope(ratio).mul_(grad_spikes[t])
            if spoken is not None:
                spoken -= fired
                through_spike.mul_(1 - spoken)  # silenced after the first spike
            if learns_leak:
                after = torch.addcmul(charged[t], fired, neuron.reset_by * threshold if by_subtraction else charged[t] - neuron.v_reset, value=-1)
                grad_leak.addcmul_(after, grad_charge)
            if learns_threshold:  # a spike depends on U/θ: dO/dθ = -(U/θ)·dO/dU
                grad_threshold.addcmul_(through_spike, ratio, value=-1)
                if by_subtraction:
                    grad_threshold.addcmul_(fired, grad_reset, value=-neuron.reset_by)
            kept = grad_reset if by_subtraction else torch.addcmul(grad_reset, grad_reset, fired, value=-1)
            grad_charge = torch.add(through_spike, kept, out=grad_current[t])
            grad_reset = grad_charge if decay == 1 else decay * grad_charge
        start = neuron.v0 * threshold
        to_threshold = (grad_threshold + neuron.v0 * grad_reset).sum_to_size(threshold.shape) if learns_threshold else None
        to_leak = (grad_leak + start * grad_charge).sum() if learns_leak else None
        return grad_current, to_threshold, to_leak, None, None


def run_immediate(current: Tensor, neuron: IF, once: bool = False) -> Emission:
    """Every step of a window, each neuron firing as soon as it reaches its threshold (Eq. 1).

    `current` is `[time, batch, *neuron]`. With `once` (SNN-T) a neuron is silent after its first spike.
    """
    threshold = neuron.threshold_for(current[0])
    spikes, charged, residual = _Window.apply(current, threshold, neuron.learned_leak(), neuron, once)
    fired = (charged * spikes.detach()).sum(0)
    return Emission(len(current), threshold, spikes.sum(0), fired, residual, spikes)


def run_two_phase(charge: Tensor, window: int, neuron: IF) -> Emission:
    """Integrate the whole source train first, then fire one spike a step: `n = clip(floor((v0·θ + Σz) / θ), 0, T)`.

    `charge` is `Σ_t z(t)`, `[batch, *neuron]`. The gradient is straight through the rounding: that of `clip(Σz/θ, 0, T)`.
    Source: SpikeConverter (AAAI 2022); the same value as simulating both phases step by step.
    """
    threshold = neuron.threshold_for(charge)
    potential = neuron.v0 * threshold + charge
    count = (potential / threshold).floor().clamp(0, window)
    if torch.is_grad_enabled() and charge.requires_grad:
        smooth = (charge / threshold).clamp(0, window)
        count = smooth + (count - smooth).detach()
    exact = count.detach()
    residual = potential - exact * threshold
    # Spike k leaves at potential P - kθ, so n spikes leave at n·P - θ·n(n-1)/2 in all.
    fired = (exact * potential - threshold * exact * (exact - 1) / 2).detach()
    return Emission(window, threshold, count, fired, residual, None)


class IF(nn.Module):
    """A layer of integrate-and-fire neurons: the parameters of Eq. 1, run by a `SpikingNetwork`.

    threshold: `θ > 0`, a number or one per channel (axis 0 of a neuron's position).
    reset: `zero` (V <- v_reset) or `subtract` (V <- V - θ).
    reset_by: what reset `subtract` takes away, in thresholds; `1/leak` where another tool subtracts after the leak of the next step.
    v0: potential at the start of the window, in thresholds; 0.5 helps converted networks.
    surrogate: derivative of a spike (Eq. 5), one of `triangle`, `literal`.
    learn_threshold: make θ a parameter.
    Raises `TeasError` for a threshold that is not positive and finite, or an unknown choice.
    """

    def __init__(
        self,
        threshold: float | Tensor = 1.0,
        *,
        reset: str = "zero",
        v0: float = 0.0,
        v_reset: float = 0.0,
        reset_by: float = 1.0,
        surrogate: str = "triangle",
        learn_threshold: bool = False,
    ):
        super().__init__()
        check_choice("reset", reset, RESETS)
        check_choice("surrogate", surrogate, tuple(SURROGATES))
        if not math.isfinite(v0) or not math.isfinite(v_reset):
            raise TeasError(f"v0 and v_reset must be finite numbers; got {v0} and {v_reset}")
        if not (math.isfinite(reset_by) and reset_by > 0):
            raise TeasError(f"reset_by is {reset_by}; it must be positive and finite: 1 takes one threshold away")
        value = torch.as_tensor(threshold, dtype=torch.get_default_dtype()).detach().clone()
        if value.dim() > 1:
            raise TeasError(f"a threshold is a number or one per channel; got shape {tuple(value.shape)}")
        self.reset, self.v0, self.v_reset, self.reset_by, self.surrogate = reset, v0, v_reset, reset_by, surrogate
        if learn_threshold:
            self.threshold = nn.Parameter(value)
        else:
            self.register_buffer("threshold", value)
        self.check_threshold("of this layer")

    @property
    def leak(self) -> float:
        """Factor that the potential decays by before each charge; 1 is no leak."""
        return 1.0

    def learned_leak(self) -> Tensor | None:
        """The leak as a function of a parameter, or None where it is not learned."""
        return None

    def check_threshold(self, whose: str) -> None:
        """Raise `TeasError` unless every threshold is positive and finite."""
        bad = ~(self.threshold > 0) | ~self.threshold.isfinite()
        if bad.any():
            raise TeasError(f"the threshold {whose} is {self.threshold[bad][0].item():g}; it must be positive and finite")

    def threshold_for(self, potential: Tensor) -> Tensor:
        """θ shaped to broadcast against `[batch, *neuron]`, channels on axis 1."""
        theta: Tensor = self.threshold
        if theta.dim() == 0:
            return theta
        if potential.dim() < 2 or theta.numel() != potential.shape[1]:
            raise TeasError(f"{theta.numel()} thresholds were given for potentials of shape [batch, neuron] = {tuple(potential.shape)}; give one per channel")
        return theta.view(-1, *[1] * (potential.dim() - 2))

    def forward(self, current: Tensor) -> Tensor:
        raise TeasError("a spiking layer runs inside a network: build teas.SpikingNetwork(module, windows) and call that")

    def extra_repr(self) -> str:
        shown = f"{self.threshold.item():g}" if self.threshold.dim() == 0 else f"one per {self.threshold.numel()} channels"
        return f"threshold={shown}, leak={self.leak:g}, reset={self.reset}, v0={self.v0:g}"


class LIF(IF):
    """Leaky integrate-and-fire: an `IF` whose potential decays by `leak` (0 < leak <= 1) before each charge.

    learn_leak: learn it as `leak = sigmoid(leak_logit)`, one per layer, from 0 < leak < 1 on. Source: PLIF (Fang et al., ICCV 2021), whose
    input is scaled by `1 - leak` beside; a batch norm or the weights do that here.
    """

    def __init__(self, leak: float = 0.5, threshold: float | Tensor = 1.0, *, learn_leak: bool = False, **options):  # type: ignore[no-untyped-def]
        super().__init__(threshold, **options)
        if not 0 < leak <= 1:
            raise TeasError(f"leak is {leak}; it must be in (0, 1], where 1 is no leak")
        if learn_leak and leak == 1:
            raise TeasError("a leak that is learned must start below 1, where the sigmoid behind it is finite; 0.5 is usual")
        self._leak = leak
        self.leak_logit = nn.Parameter(torch.tensor(leak).logit()) if learn_leak else None

    @property
    def leak(self) -> float:
        return self._leak if self.leak_logit is None else self.leak_logit.detach().sigmoid().item()

    def learned_leak(self) -> Tensor | None:
        return None if self.leak_logit is None else self.leak_logit.sigmoid()


class Amplitude(nn.Module):
    """What one spike carries: its value, a number or one per channel (axis 1). Converted layers send `θ` a spike, so that `θ·n/T` is an activation."""

    def __init__(self, value: Tensor):
        super().__init__()
        if isinstance(value, nn.Parameter):
            self.value: Tensor = value
        else:
            self.register_buffer("value", value)

    def forward(self, spikes: Tensor) -> Tensor:
        return spikes * (self.value if self.value.dim() == 0 else self.value.view(-1, *[1] * (spikes.dim() - 2)))
