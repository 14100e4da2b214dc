"""Thresholds of converted layers, fitted to samples of the ANN's activations."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from teas.ann.histogram import Histogram

METHODS = ("mse", "percentile", "maximum")
OUTPUT = "output"  # whichever of these serves the network's output best, layer by layer
_KEPT = 40_000  # samples kept per batch and layer, shared by its channels
_CANDIDATES = 80


@dataclass
class Samples:
    """Activations of one layer seen so far: a sample of them and the exact maximum, per channel; all of them in bins, where there is a histogram."""

    batches: list[Tensor] = field(default_factory=list)  # each [channel, n]
    maximum: Tensor | None = None
    histogram: Histogram | None = None

    def add(self, activations: Tensor) -> None:
        """Keep an even share of a batch of activations, `[batch, channel, *position]`."""
        flat = activations.detach().float().flatten(2).transpose(0, 1).flatten(1) if activations.dim() > 2 else activations.detach().float().T
        most = flat.amax(1)
        self.maximum = most if self.maximum is None else torch.maximum(self.maximum, most)
        if self.histogram:
            self.histogram.add(flat)
        stride = max(1, flat.numel() // _KEPT)
        # A stride that shares a factor with the width would sample the same columns of every image.
        while stride > 1 and any(stride % p == 0 for p in (2, 3, 5, 7)):
            stride += 1
        self.batches.append(flat[:, ::stride].contiguous())  # a view would keep the whole batch alive

    def values(self) -> Tensor:
        """All that was kept, `[channel, n]`."""
        return torch.cat(self.batches, 1)


def quantised(values: Tensor, threshold: Tensor, window: int, v0: float) -> Tensor:
    """What two-phase neurons make of an activation: `θ/T · clip(floor(v0 + T·a/θ), 0, T)`."""
    return (v0 + window * values / threshold).floor().clamp(0, window) * (threshold / window)


def fit(samples: Samples, window: int, method: str, v0: float, ceiling: float, per_channel: bool, margin: float = 1.0) -> Tensor:
    """Thresholds for a window, one number or one per channel `[channel]`; never above the ceiling of a clipped activation.

    `maximum`: the largest activation seen, times `margin` for what was not seen. `percentile`: the 99.9th. `mse`: the one that minimises the
    mean squared error of `quantised` over the samples, or all activations where there is a histogram, searched on a grid of fractions of the maximum.
    """
    assert samples.maximum is not None
    values = samples.values()
    maximum = samples.maximum
    if not per_channel:
        values, maximum = values.flatten()[None], maximum.max()[None]
    smallest = 1e-3 * maximum.max().clamp_min(1e-6)  # a channel that never fires still needs a threshold above 0
    if method == "maximum":
        best = margin * maximum
    elif method == "percentile":
        rank = max(1, round(0.999 * values.shape[1]))
        best = values.kthvalue(rank, dim=1).values
    else:
        best, error = maximum.clone(), torch.full_like(maximum, float("inf"), dtype=torch.float64)
        for fraction in torch.linspace(1 / _CANDIDATES, 1, _CANDIDATES):
            candidate = (fraction * maximum).clamp_min(smallest)
            if samples.histogram:
                found = samples.histogram.squared_error(candidate, window, v0)
            else:
                found = (quantised(values, candidate[:, None], window, v0) - values).square().mean(1)
            best, error = torch.where(found < error, candidate, best), torch.minimum(found, error)
    best = best.clamp(min=smallest).clamp_max(ceiling)
    return best if per_channel else best[0]


def fits(samples: Samples, window: int, v0: float, ceiling: float, per_channel: bool, margin: float) -> list[Tensor]:
    """What each method gives, see `fit`; `mse` and `maximum` also times the margin, where there is one."""
    found = [fit(samples, window, method, v0, ceiling, per_channel) for method in METHODS]
    return found if margin == 1 else [*found, *((margin * threshold).clamp_max(ceiling) for threshold in (found[0], found[2]))]
