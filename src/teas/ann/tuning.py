"""Thresholds and biases fitted by gradient to the ANN's answers, on a few inputs without labels; weights stay as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from teas.ann.bias import own_synapse
from teas.ann.quantised import quantised_activations
from teas.errors import TeasError

_BIAS_SHARE = 0.1  # of the rate, in thresholds of the layer that the bias feeds


def tune(student: fx.GraphModule, ann: Callable[[Tensor], Tensor], batches: Sequence[Tensor], epochs: int, rate: float) -> None:
    """Fit, in place, the thresholds and biases of quantised activations so that the logits are nearest to the ANN's.

    Minimises `‖u - û‖² / ‖û‖²` over thresholds `θ·e^a` and biases `b + θ·c`, by Adam, `rate` falling as a cosine; `a` and `c` start at 0.
    student: in evaluation mode, batch norms folded. batches: inputs `[batch, *shape]`. Biases are those of synapses that feed one layer alone.
    Raises `TeasError` for no inputs or such as are not finite, less than one epoch or a rate that is not positive, and where the fit diverges.
    """
    if epochs < 1 or not 0 < rate < math.inf or not sum(map(len, batches)):
        raise TeasError(f"tuning needs inputs, at least one epoch and a positive rate; got {sum(map(len, batches))} inputs, {epochs} epochs, rate {rate:g}")
    if not all(inputs.isfinite().all() for inputs in batches):
        raise TeasError("the inputs to tune on have NaN or infinite values; clean the data first")
    student.requires_grad_(False)
    layers = quantised_activations(student)
    fixed = {f"{name}.threshold": layer.threshold.detach().clone() for name, layer in layers.items()}
    unit = {}
    for name, layer in layers.items():
        synapse = own_synapse(student, name)
        if synapse is not None and synapse[1].bias is not None:
            key = f"{synapse[0]}.bias"
            fixed[key], unit[key] = synapse[1].bias.detach().clone(), layer.threshold.detach().mean()
    moved = {key: torch.zeros_like(value, requires_grad=True) for key, value in fixed.items()}
    thresholds, biases = [moved[key] for key in fixed if key not in unit], [moved[key] for key in unit]
    optimizer = torch.optim.Adam([{"params": thresholds}, {"params": biases}], betas=(0.9, 0.99))
    with torch.no_grad():
        wanted = [ann(inputs) for inputs in batches]
    draw = torch.Generator().manual_seed(0)  # the same fit whatever was drawn before

    def tuned() -> dict[str, Tensor]:
        return {key: value + unit[key] * moved[key] if key in unit else value * moved[key].exp() for key, value in fixed.items()}

    for step in range(steps := epochs * len(batches)):
        if step % len(batches) == 0:
            order = torch.randperm(len(batches), generator=draw).tolist()
        for group, share in zip(optimizer.param_groups, (1.0, _BIAS_SHARE), strict=True):
            group["lr"] = share * rate * (1 + math.cos(math.pi * step / steps)) / 2
        number = order[step % len(batches)]
        with torch.enable_grad():
            logits = torch.func.functional_call(student, tuned(), (batches[number],))
            loss = (logits - wanted[number]).square().sum() / wanted[number].square().sum().clamp_min(1e-12)
            optimizer.zero_grad()
            loss.backward()
        if not loss.isfinite():
            raise TeasError(f"tuning diverged in step {step + 1} of {steps}; lower the rate ({rate:g})")
        optimizer.step()
    student.load_state_dict({key: value.detach() for key, value in tuned().items()}, strict=False)
    student.requires_grad_()
