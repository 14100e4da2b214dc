"""Integrate-and-fire neurons: what they do over a whole window, and the thin module that holds their parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from teas.errors import TeasError, check_choice
from teas.spiking.coding import levels_of, radix_train
from teas.spiking.surrogate import SURROGATES
from teas.spiking.window import Norm, Window

RESETS = ("zero", "subtract")
FIRINGS = ("immediate", "two_phase")


@dataclass(frozen=True)
class Emission:
    """What a layer hands on after its window; `count`, `fired` and `residual` have shape `[batch, *neuron]`."""

    window: int
    threshold: Tensor  # θ, broadcastable to [batch, *neuron]
    count: Tensor  # what the train says: its spikes, under the radix code each by its worth
    fired: Tensor  # sum of the firing potentials
    residual: Tensor  # membrane potential left at the end of the window
    spikes: Tensor | None  # [time, batch, *neuron]; None under two-phase firing, whose train is its count
    code: str = "rate"

    @property
    def rate(self) -> Tensor:
        """The count as a share of the largest that the window can say, in [0, 1]."""
        return self.count / levels_of(self.window, self.code)


def run_immediate(sums: Tensor, neuron: IF, once: bool = False, window: int | None = None, norm: Norm | None = None) -> Emission:
    """Every step of a window, each neuron firing as soon as it reaches its threshold (Eq. 1).

    `sums` is `[time, batch, *neuron]`, or that of one step where all of the window's are alike; norm: a batch norm in training that makes currents of
    them. With `once` (SNN-T) a neuron is silent after its first spike.
    """
    window = len(sums) if window is None else window
    threshold = neuron.threshold_for(sums[0])
    weight, bias = (None, None) if norm is None else (norm.weight, norm.bias)
    spikes, count, fired, residual = Window.apply(sums, weight, bias, norm, threshold, neuron.learned_leak(), neuron, window, once)
    return Emission(window, threshold, count, fired, residual, spikes)


def run_two_phase(charge: Tensor, window: int, neuron: IF, code: str = "rate") -> Emission:
    """Integrate the whole source train first, then fire: `n = clip(floor((v0·θ + Σz) / θ), 0, L)`, with one spike a step, or in binary digits.

    `charge` is `Σ_t z(t)`, `[batch, *neuron]`. Rate code: `L = T`, and a neuron fires while its potential reaches `θ`, which it then loses. Radix code:
    `L = 2^T - 1`, each input of step t counts `2^(T-1-t)`-fold (the potential doubles from step to step), and the threshold that is reached, and lost,
    halves from step to step, from `2^(T-1)·θ` to `θ`. The gradient is straight through the rounding: that of `clip(Σz/θ, 0, L)`.
    Source: SpikeConverter (AAAI 2022), radix encoding (TNNLS 2024); the same value as simulating both phases step by step.
    """
    levels = levels_of(window, code)
    threshold = neuron.threshold_for(charge)
    potential = neuron.v0 * threshold + charge
    count = (potential / threshold).floor().clamp(0, levels)
    if torch.is_grad_enabled() and charge.requires_grad:
        smooth = (charge / threshold).clamp(0, levels)
        count = smooth + (count - smooth).detach()
    exact = count.detach()
    residual, fired = potential - exact * threshold, fired_in_two_phases(potential.detach(), threshold.detach(), exact, window, code)
    return Emission(window, threshold, count, fired, residual, None, code)


def fired_in_two_phases(potential: Tensor, threshold: Tensor, count: Tensor, window: int, code: str) -> Tensor:
    """Sum of the potentials at spikes, before their resets, of neurons that had this potential when they began to fire."""
    if code == "rate":  # spike k leaves at potential P - kθ, so n spikes leave at n·P - θ·n(n-1)/2 in all
        return count * potential - threshold * count * (count - 1) / 2
    fired, said = torch.zeros_like(potential), torch.zeros_like(potential)
    for t, spike in enumerate(radix_train(count, window)):
        fired.addcmul_(spike, potential - threshold * said)
        said.add_(spike, alpha=2 ** (window - 1 - t))
    return fired


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
            raise TeasError(
                f"{theta.numel()} thresholds were given for potentials of shape {list(potential.shape)}, [batch, *neuron]; give one per channel, and inputs "
                "with their batch axis, [batch, *shape]"
            )
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
