"""Windows learned by gradient under a budget: each quantised activation learns how many steps it needs, and all of them together keep to the budget."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from teas.ann.quantised import quantised_activations, set_windows
from teas.errors import TeasError

LONGEST = {"rate": 255, "radix": 8}  # counts up to 255 fit a byte
_MEMORY = 0.95  # of the running mean of gradients


def whole_steps(steps: Mapping[str, float], costs: Mapping[str, float], budget: float, longest: int = LONGEST["rate"]) -> dict[str, int]:
    """Integers near these steps with `Σ_l cost_l · T_l <= budget` and `1 <= T_l`: all rounded down, then one more where most was cut off and it fits.

    Raises `TeasError` for a budget that one step a layer exceeds.
    """
    least = sum(costs[layer] for layer in steps)
    if not least <= budget * (1 + 1e-9):
        raise TeasError(f"a budget of {budget:g} is too small for {len(steps)} layers: one step each takes {least:g}")
    whole = {layer: max(1, math.floor(value)) for layer, value in steps.items()}
    spent = sum(costs[layer] * value for layer, value in whole.items())
    while spent > budget * (1 + 1e-9):  # layers below one step were rounded up: others pay for it
        layer = max((name for name in whole if whole[name] > 1), key=lambda name: whole[name] - steps[name])
        whole[layer], spent = whole[layer] - 1, spent - costs[layer]
    for layer in sorted(steps, key=lambda name: whole[name] - steps[name]):
        if spent + costs[layer] <= budget * (1 + 1e-9) and whole[layer] < longest and steps[layer] > whole[layer]:
            whole[layer], spent = whole[layer] + 1, spent + costs[layer]
    return whole


class WindowLearner:
    """Windows of a network of quantised activations as something to learn, at a budget that holds after every step: `Σ_l cost_l · T_l <= budget`.

    The gradient for `T_l` goes straight through the rounding of the activation `a`: `Σ g · (clip(x, 0, θ) - a) / T`
    (radix code: `log 2·2^T / (2^T - 1)` for `1/T`). Each `log T_l` grows with the layer's
    gain per cost, `-∂L/∂T_l / cost_l`, over the mean of its size, `rate` at a time; then all are scaled back to the budget, which is the Lagrange
    multiplier solved for. It rests where one more step is worth the same in every layer. Forward passes use `whole_steps`.
    costs: of one step of each layer, e.g. its synaptic operations for energy; 1 without, so that the budget is a sum of windows.

    Source: learned step sizes and bit widths (LSQ, ICLR 2020; Uhlich et al., mixed precision DNNs, ICLR 2020), here for windows.
    Raises `TeasError` for a network without quantised activations, a budget too small, or costs that do not fit.
    """

    def __init__(self, model: nn.Module, budget: float, costs: Mapping[str, float] | None = None):
        self.model, self.layers, self.budget = model, quantised_activations(model), budget
        if not self.layers:
            raise TeasError(f"{type(model).__name__} has no quantised activation whose window could be learned; see Conversion.trainable")
        self.costs = dict.fromkeys(self.layers, 1.0) if costs is None else dict(costs)
        if set(self.costs) != set(self.layers) or not all(0 < cost < math.inf for cost in self.costs.values()):
            raise TeasError(f"every layer needs a cost above 0; got {self.costs} for the layers {', '.join(self.layers)}")
        self.longest = LONGEST[next(iter(self.layers.values())).code]
        self._state = {name: layer.learn_steps() for name, layer in self.layers.items()}
        self._costs = next(gain for _, gain in self._state.values()).new_tensor([self.costs[name] for name in self._state])
        self.assign()

    @torch.no_grad()
    def update(self, rate: float) -> None:
        """Take the gradients of the last backward passes, move the windows, and forget the gradients."""
        steps, gains = (torch.stack([pair[kind].detach() for pair in self._state.values()]) for kind in (0, 1))
        found = [parameter.grad for parameter, _ in self._state.values()]
        gradients = torch.stack([torch.zeros_like(gains[0]) if gradient is None else gradient for gradient in found])
        gains.mul_(_MEMORY).sub_(gradients / self._costs, alpha=1 - _MEMORY)
        steps.mul_((rate * (gains / gains.abs().mean().clamp_min(1e-30)).clamp(-2, 2)).exp())
        for (parameter, gain), moved in zip(self._state.values(), gains, strict=True):
            parameter.grad = None
            gain.copy_(moved)
        self._assign(steps)

    @torch.no_grad()
    def assign(self) -> None:
        """Scale the steps to the budget, by halving the interval of the factor, and give the layers the whole steps nearest to them."""
        self._assign(torch.stack([parameter.detach() for parameter, _ in self._state.values()]))

    def _assign(self, values: Tensor) -> None:
        steps = dict(zip(self._state, values.tolist(), strict=True))  # read at once: a GPU is waited for once, not once a layer

        def scaled(factor: float) -> dict[str, float]:
            return {name: min(max(factor * value, 1.0), float(self.longest)) for name, value in steps.items()}

        low, high = -12.0, 12.0
        for _ in range(60):
            middle = (low + high) / 2
            over = sum(self.costs[name] * value for name, value in scaled(math.exp(middle)).items()) > self.budget
            low, high = (low, middle) if over else (middle, high)
        found = scaled(math.exp(low))
        for name, (parameter, _) in self._state.items():
            parameter.fill_(found[name])
        set_windows(self.model, whole_steps(found, self.costs, self.budget, self.longest))

    def finish(self) -> None:
        """Leave an ordinary network with the windows that were learned."""
        for layer in self.layers.values():
            layer.forget_steps()
