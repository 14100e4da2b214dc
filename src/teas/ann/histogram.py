"""Every activation that a layer has seen, in bins fine enough to know the error of any threshold: samples miss the rare large values of deep layers."""

from __future__ import annotations

import torch
from torch import Tensor

_LOWEST, _OCTAVES, _PARTS = -16, 32, 16  # bins from 2^-16 to 2^16, sixteen to an octave
_BINS = _OCTAVES * _PARTS
_BELOW_ONE, _EXPONENT_AT = 127, 23  # of IEEE 754 single precision: bias and lowest bit of the exponent


class Histogram:
    """Number, sum and sum of squares of a layer's activations above 0, by channel and bin."""

    def __init__(self) -> None:
        self.tables = torch.zeros(3, 1, _BINS, dtype=torch.float64)

    def add(self, activations: Tensor) -> None:
        """Count activations `[channel, n]`."""
        channel = torch.arange(len(activations), device=activations.device)[:, None].expand_as(activations)
        above = activations > 0
        values, channel = activations[above].float(), channel[above]
        # The first bits of a float after its sign are octave and part of the octave.
        parts = values.view(torch.int32) >> (_EXPONENT_AT - _PARTS.bit_length() + 1)
        bins = (parts - (_BELOW_ONE + _LOWEST) * _PARTS).clamp(0, _BINS - 1) + channel * _BINS
        exact = values.double()
        found = [torch.bincount(bins, weights, len(activations) * _BINS) for weights in (torch.ones_like(exact), exact, exact.square())]
        self.tables = self.tables.to(activations.device) + torch.stack(found).view(3, -1, _BINS)

    def squared_error(self, threshold: Tensor, window: int, v0: float) -> Tensor:
        """Sum over the activations of `(θ/T · clip(floor(v0 + T·a/θ), 0, T) - a)²` for a threshold per channel, `[channel]`, or one for all, `[1]`.

        Exact to the width of a bin where that is small against a step, `θ/T`; where it is not, `((1 - v0)³ + v0³)/3 · (θ/T)²` for each activation.
        """
        octave = torch.arange(_BINS, device=threshold.device).div(_PARTS, rounding_mode="floor")
        width = 2.0 ** (_LOWEST + octave) / _PARTS
        low = 2.0 ** (_LOWEST + octave) + width * (torch.arange(_BINS, device=threshold.device) % _PARTS)
        number, total, squares = self.tables if len(threshold) > 1 else self.tables.sum(1, keepdim=True)
        ceiling = threshold.double()[:, None]
        step = ceiling / window
        level = (v0 + total / number.clamp_min(1) / step).floor().clamp(0, window) * step
        known = (width < step / 4) | (low >= ceiling) | (low + width <= step * (1 - v0))
        return torch.where(known, squares - 2 * level * total + number * level.square(), number * step.square() * ((1 - v0) ** 3 + v0**3) / 3).sum(1)
