"""Rate, radix and time-to-first-spike codes: values to spike trains and back. Time is axis 0: `[time, batch, *neuron]`."""

from __future__ import annotations

import torch
from torch import Tensor

from teas.errors import TeasError

CODES = ("rate", "radix", "first_spike")
RADIX_LONGEST = 16  # steps: 65,535 levels, and sums of them that float32 still holds
LAYOUTS = ("first", "even")
ENCODINGS = ("direct", "poisson", "latency", "train")
BINARY = ("poisson", "latency")  # those that make trains of 0 and 1 of the input


def _steps(window: int, like: Tensor) -> Tensor:
    return torch.arange(window, device=like.device, dtype=like.dtype).view(-1, *[1] * like.dim())


def count_to_train(count: Tensor, window: int, layout: str = "first") -> Tensor:
    """Spike train `[window, *count.shape]` with `n` spikes: in the first n steps, or spaced evenly.

    `first`: `s(t) = 1 if t < n`. `even`: `s(t) = 1 if floor((t+1)·n/T) > floor(t·n/T)`.
    """
    t = _steps(window, count)
    if layout == "first":
        return (t < count).to(count.dtype)
    return ((t + 1) * count / window).floor() - (t * count / window).floor()


def levels_of(window: int, code: str) -> int:
    """The largest count that a train of `T` steps can say: `T`, or under the radix code `2^T - 1`, where a spike of step t is worth `2^(T-1-t)`."""
    return 2**window - 1 if code == "radix" else window


def radix_train(count: Tensor, window: int) -> Tensor:
    """Spike train `[window, *count.shape]` that says `n = Σ_t 2^(T-1-t)·s(t)`: the binary digits of the count, the largest first.

    Source: Wang et al., "Efficient spiking neural networks with radix encoding" (TNNLS 2024).
    """
    worth = (2 ** (window - 1 - _steps(window, count).float())).to(count.dtype)
    return (count / worth).floor() % 2


def radix_count(spikes: Tensor) -> Tensor:
    """What a train of the radix code says, `Σ_t 2^(T-1-t)·s(t)`, `[batch, *neuron]`."""
    window = len(spikes)
    return (2 ** (window - 1 - _steps(window, spikes[0])) * spikes).sum(0)


def spikes_of(count: Tensor, window: int, code: str) -> Tensor:
    """Spikes in trains that say these counts: the count itself, or the number of its binary digits that are 1 (radix).

    The gradient of these digits is that of a count spread over the window, `T/(2^T - 1)`.
    """
    if code != "radix":
        return count
    sent = radix_train(count.detach(), window).sum(0)
    return sent + (count - count.detach()) * (window / levels_of(window, code)) if count.requires_grad else sent


def time_to_train(time: Tensor, window: int) -> Tensor:
    """Spike train `[window, *time.shape]` whose only spike is at step `time`; `time >= window` is silent."""
    return (_steps(window, time) == time).to(time.dtype)


def first_spike_time(spikes: Tensor) -> Tensor:
    """0-based step of the only spike of each train; the window `T` where silent.

    Written as `T - Σ_t (T - t)·s(t)`, so that it is differentiable in the spikes.
    """
    window = spikes.shape[0]
    remaining = window - _steps(window, spikes[0])
    return window - (remaining * spikes).sum(0)


def encode(values: Tensor, window: int, encoding: str) -> Tensor:
    """Input values `[batch, *neuron]` (trains: `[batch, time, *neuron]`) as what the first layer sees over its window, `[time, batch, *neuron]`.

    `direct`: the value itself as an analog current at every step (time has length 1; the caller repeats it).
    `poisson`: a spike at each step with the value, clamped to [0, 1], as its probability.
    `latency`: one spike at step `floor((1 - value)·T)`; a value <= 0 stays silent, values above 1 fire at once.
    `train`: what arrives at each step, recorded events for example. Raises `TeasError` unless it has as many steps as the window.
    """
    if encoding == "direct":
        return values.unsqueeze(0)
    if encoding == "train":
        if values.dim() < 2 or values.shape[1] != window:
            raise TeasError(
                f"a train for a layer with a window of {window} steps must be [batch, {window}, *shape]; this one is {tuple(values.shape)}. "
                "Bin the recording to that window (teas.bin_events), or change the window"
            )
        return values.transpose(0, 1)
    if encoding == "poisson":
        return torch.bernoulli(values.clamp(0, 1).expand(window, *values.shape))
    return time_to_train(((1 - values.clamp(0, 1)) * window).floor(), window)
