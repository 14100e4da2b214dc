"""Surrogate gradients: each is the derivative `dO/dU` that stands in for that of the step function, and nothing more."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def triangle(ratio: Tensor) -> Tensor:
    """`dO/dU = max(0, 1 - |U/θ - 1|)`: Eq. 5 with its peak moved to the threshold, where a spike is undecided."""
    return (ratio - 1).abs_().neg_().add_(1).clamp_min_(0)


def literal(ratio: Tensor) -> Tensor:
    """`dO/dU = max(0, 1 - |U/θ|)`: Eq. 5 as printed; zero for every neuron at or above threshold."""
    return ratio.abs().neg_().add_(1).clamp_min_(0)


def arctan(ratio: Tensor) -> Tensor:
    """`dO/dU = 1 / (1 + (π·(U/θ - 1))²)`: as high as the triangle at the threshold, but never zero, so that no neuron is lost for good."""
    return (ratio - 1).mul_(torch.pi).square_().add_(1).reciprocal_()


SURROGATES: dict[str, Callable[[Tensor], Tensor]] = {"triangle": triangle, "literal": literal, "arctan": arctan}
