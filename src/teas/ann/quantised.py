"""Quantised activations with learned thresholds: an ANN trained with them is a two-phase spiking network, window for window."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from teas.errors import TeasError
from teas.spiking.coding import levels_of
from teas.spiking.time_windows import TimeWindows

SMALLEST = 1e-6  # threshold: a step of the optimiser may carry one to 0 or below, where there is no quantiser


class _Quantise(torch.autograd.Function):
    """`q = clip(floor(v0 + T·u), 0, T) / T` of a current in thresholds, `u = x/θ`, as `θ·q`; straight through the rounding.

    `T`: the largest count. Its gradient is `[0 < u < 1]` for the current, and `q - u·[0 < u < 1]` for `θ`.
    """

    @staticmethod
    def forward(ctx: Any, current: Tensor, threshold: Tensor, levels: Tensor, v0: float) -> Tensor:
        relative = current * threshold.reciprocal().to(current.dtype)
        level = (relative * levels).add_(v0).floor_().div_(levels).clamp_(0, 1)
        ctx.save_for_backward(relative, level, levels)
        ctx.shape = threshold.shape
        return level * threshold.to(current.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        relative, level, levels = ctx.saved_tensors
        gradient = gradients[0].to(relative.dtype)
        through = torch.ops.aten.hardtanh_backward(gradient, relative, 0.0, 1.0)
        if not ctx.needs_input_grad[1]:
            return through, None, None, None
        shared = [axis for axis, size in enumerate(ctx.shape) if size == 1]
        moved = (gradient * level).addcmul_(through, relative, value=-1).sum(shared, keepdim=True).float()
        # Thousands of neurons share one θ; without this its steps would dwarf those of the weights (LSQ, ICLR 2020, section 2.2).
        positions = relative[0].numel() / math.prod(ctx.shape)
        return through, moved / (positions * levels).sqrt(), None, None


class _Stepped(torch.autograd.Function):
    """A quantised activation `a` as it is, with a gradient for its window: `∂a/∂T = (clip(x, 0, θ) - a)·∂log L/∂T`, straight through the rounding; `L` is
    the largest count, so that the factor is `1/T` under the rate code, and `log 2·(L + 1)/L` under the radix code.

    Where the loss is smooth in `a`, that is the fall of its quantisation noise: `E[H·(a - x)²]/2 ∝ L^-2` has this derivative, while finite differences
    of `a` itself compare the noise of two grids, which has little in common.
    """

    @staticmethod
    def forward(ctx: Any, quantised: Tensor, current: Tensor, threshold: Tensor, steps: Tensor, growth: Tensor) -> Tensor:
        clipped = torch.minimum(current, threshold.to(current.dtype)).clamp_min_(0)
        ctx.save_for_backward((clipped - quantised).mul_(growth))
        return quantised.view_as(quantised)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, Tensor, None]:
        return gradients[0], None, None, (gradients[0] * ctx.saved_tensors[0]).float().sum(), None


class QuantisedReLU(nn.Module):
    """A clipped ReLU on a uniform grid: `θ/T · clip(floor(v0 + T·x/θ), 0, T)`, what `T` steps of two-phase firing make of a current `x`.

    threshold: `θ > 0`, learned; a number, or one per channel (axis 1 of `[batch, channel, *position]`). window: `T`. v0: in thresholds.
    code: `rate`, or `radix`, with `2^T - 1` for `T` in the grid.
    Gradients go straight through the rounding (QCFS, ICLR 2022; for `θ` as in LSQ, ICLR 2020).
    steps: None, or a number near `T` that gets a gradient while the window is learned (see `WindowLearner`), `gain` what is remembered of it.
    """

    levels: Tensor
    steps: nn.Parameter | None
    gain: Tensor | None

    def __init__(self, threshold: Tensor, window: int, v0: float = 0.5, code: str = "rate"):
        super().__init__()
        if threshold.dim() > 1 or not bool((threshold > 0).all()):
            raise TeasError(f"thresholds must be positive, one number or one per channel; got shape {tuple(threshold.shape)}, smallest {threshold.min():g}")
        self.threshold = nn.Parameter(threshold.detach().clone())
        self.register_buffer("levels", torch.ones((), device=threshold.device), persistent=False)
        self.code, self.v0 = code, v0
        self.window = window
        self.register_parameter("steps", None)
        self.register_buffer("gain", None)

    @property
    def window(self) -> int:
        """`T`. Arithmetic reads the largest count from a tensor, so that a compiled network serves any window."""
        return self._window

    @window.setter
    def window(self, steps: int) -> None:
        largest = levels_of(steps, self.code)
        self._window, self._many = steps, largest > 16
        self.levels = torch.full_like(self.levels, largest)  # anew: a backward pass may still need the old one

    def learn_steps(self) -> tuple[nn.Parameter, Tensor]:
        """Begin to learn the window: the parameter `steps`, at the window, and `gain`, at 0."""
        where = self.threshold.device
        self.steps, self.gain = nn.Parameter(torch.tensor(float(self.window), device=where)), torch.zeros((), device=where)
        return self.steps, self.gain

    def forget_steps(self) -> None:
        """Learn the window no more."""
        self.steps, self.gain = None, None

    def forward(self, current: Tensor) -> Tensor:
        threshold = self.threshold.clamp_min(SMALLEST).view(1, -1, *[1] * (current.dim() - 2))
        if self._many:
            current = current.float()  # 16 bits would blur the borders between so many levels
        quantised: Tensor = _Quantise.apply(current, threshold, self.levels, self.v0)
        if self.steps is not None and self.training:
            growth = 1 / self.levels if self.code == "rate" else math.log(2) * (1 + 1 / self.levels)
            quantised = _Stepped.apply(quantised, current.detach(), threshold.detach(), self.steps, growth)
        return quantised

    def extra_repr(self) -> str:
        return f"window={self.window}, code={self.code}, v0={self.v0:g}, thresholds={self.threshold.numel()}"


def quantised_activations(ann: nn.Module) -> dict[str, QuantisedReLU]:
    """The quantised activations of a network, by name."""
    return {name: module for name, module in ann.named_modules() if isinstance(module, QuantisedReLU)}


def set_windows(ann: nn.Module, windows: TimeWindows | Mapping[str, int]) -> None:
    """Give the quantised activations of a network other windows, in place; raises `TeasError` where the layers are not the same."""
    found = quantised_activations(ann)
    steps = TimeWindows.of(windows, found)
    for name, activation in found.items():
        if activation.window != steps[name]:
            activation.window = steps[name]
