"""The temporal transform: re-times a spike train from the window of its layer to the window of the layer that receives it (Eq. 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from teas.errors import TeasError
from teas.spiking.coding import count_to_train, first_spike_time, time_to_train
from teas.spiking.neuron import Emission

TRANSFORMS = ("firing_potential", "linear", "residual")
ROUNDINGS = ("sound", "literal")


def _continuous_count(source: Emission, transform: str) -> tuple[Tensor, Tensor]:
    """`x̃` of SNN-R as numerator and denominator, so that one division at the end rounds a tie as a tie.

    `firing_potential`: `x̃ = n + 1 - θ / mean(V_fire)` (Eq. 3), 0 for a silent neuron; `mean(V_fire) = fired / n`.
    `residual`: `x̃ = n + V(T)/θ`. `linear`: `x̃ = n`.
    """
    n = source.count
    if transform == "linear":
        return n, torch.ones_like(n)
    if transform == "residual":
        return n * source.threshold + source.residual, source.threshold.expand_as(n)
    spoke = n > 0
    return torch.where(spoke, (n + 1) * source.fired - n * source.threshold, 0), torch.where(spoke, source.fired, 1)


def retimed_count(source: Emission, window: int, transform: str) -> Tensor:
    """Spike count in the receiver's window: `n' = round(T'/T · x̃)`, clamped to [0, T'], `round(x) = floor(x + 1/2)`."""
    numerator, denominator = _continuous_count(source, transform)
    half_step = source.window * denominator
    return ((2 * window * numerator + half_step) / (2 * half_step)).floor().clamp(0, window)


def retimed_first_spike(source: Emission, window: int, transform: str, rounding: str) -> Tensor:
    """First spike time in the receiver's window, `T'` where the neuron is silent.

    `x̃ = x + θ/V_fire`, in (x, x+1]; `t' = ceil(T'/T · x̃) - 1`, which never loses a spike and is the identity at `T' = T`.
    `linear` takes `V_fire = θ`. Rounding `literal` is `min(round(T'/T · x̃), T'-1)`, where `linear` means `x̃ = x`.
    """
    if transform == "residual":
        raise TeasError("transform 'residual' needs spike counts (code 'rate'); with first spikes use 'firing_potential' or 'linear'")
    assert source.spikes is not None
    x = first_spike_time(source.spikes)
    silent = source.count == 0
    if transform == "linear":
        numerator, denominator = (x if rounding == "literal" else x + 1), torch.ones_like(x)
    else:
        denominator = torch.where(silent, 1, source.fired)
        numerator = x * denominator + source.threshold
    if rounding == "literal":
        time = ((2 * window * numerator + source.window * denominator) / (2 * source.window * denominator)).floor().clamp_max(window - 1)
    else:
        time = (window * numerator / (source.window * denominator)).ceil() - 1
    return torch.where(silent, window, time.clamp(0, window))


class _StraightThrough(torch.autograd.Function):
    """Forward: the re-timed train. Backward, straight through the rounding, `dn'/dx̃ = T'/T`.

    Rate code: spread evenly over the steps of the source train. First-spike code: each source step takes the gradient of the step it maps to.
    """

    @staticmethod
    def forward(ctx, spikes: Tensor, retimed: Tensor, code: str) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.window, ctx.code = spikes.shape[0], code
        return retimed

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        source, target = ctx.window, grad.shape[0]
        if ctx.code == "rate":  # each of T' steps carries dn'/T' of a change of the count, and dn' = T'/T: the factors leave 1/T
            return (grad.sum(0, keepdim=True) / source).expand(source, *grad.shape[1:]), None, None
        mapped = [-(-target * (t + 1) // source) - 1 for t in range(source)]
        return grad[mapped], None, None


def retime(source: Emission, window: int, *, code: str, transform: str, layout: str, rounding: str) -> Tensor:
    """The source's train as the receiver sees it, `[window, batch, *neuron]`; unchanged where the windows are equal.

    Gradients pass straight through the rounding. Source: Eq. 3, with the two firing potentials and `x̃` put right.
    """
    assert source.spikes is not None
    if source.window == window:
        return source.spikes
    with torch.no_grad():
        if code == "rate":
            train = count_to_train(retimed_count(source, window, transform), window, layout)
        else:
            train = time_to_train(retimed_first_spike(source, window, transform, rounding), window)
    retimed: Tensor = _StraightThrough.apply(source.spikes, train, code)
    return retimed
