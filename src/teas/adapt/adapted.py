"""A network with windows of its own, in one call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from teas.adapt import allocation
from teas.adapt.activity import measure_activity
from teas.adapt.schedule import Adjustment
from teas.adapt.training import Stage, run_stage
from teas.adapt.vulnerability import measure_damage
from teas.errors import TeasError, check_choice
from teas.spiking.network import SpikingNetwork

RULES = ("damage", "activity", "uniform")


def adapt(
    network: SpikingNetwork,
    data: Iterable[tuple[Tensor, Tensor]],
    mean: float,
    *,
    by: str = "damage",
    exponent: float = 1.0,
    epochs: int = 0,
    finetune: int = 0,
    learning_rate: float = 5e-4,
    scale: float = 1.0,
) -> SpikingNetwork:
    """A network with a window for every layer, at most `mean` steps on average, sharing the weights of `network`.

    data: batches of `(inputs, labels)` that can be gone through several times (a `DataLoader`, a list): what activity and damage are measured on,
    and, with `epochs`, trained on.
    by: `damage` (least sum of what shortening each layer alone does to the output; no labels needed), `activity` (in proportion to
    `Act(l)^exponent`: the paper, section 3.3; with `epochs` windows shrink as the network learns), or `uniform`.
    epochs, finetune: epochs of training while windows change, and after they are fixed; weights are trained in place.
    scale: factor on the logits in the loss. The result is a `SpikingNetwork`, an ordinary `nn.Module`.

    Raises `TeasError` for data that is empty or can be gone through only once, and a mean below 1 or above the windows that the network has.
    """
    check_choice("by", by, RULES)
    longest, layers = network.windows.max, network.spiking_layers
    if mean > network.windows.mean:
        raise TeasError(f"a mean window of {mean:g} is more than the {network.windows.mean:g} that the network has; windows only shrink")
    if iter(data) is data:
        raise TeasError("the data can be gone through only once; give a DataLoader or a list of batches")
    limits = dict(network.windows)
    if by == "uniform":
        windows = allocation.allocate(dict.fromkeys(layers, 1.0), allocation.budget_for(mean, len(layers)), limits)
    elif by == "activity":
        activity = {name: found.activity for name, found in measure_activity(network, data).items()}
        windows = allocation.by_activity(activity, limits, mean, exponent)
    else:
        training = network.training
        network.eval()
        probes = sorted({max(1, round(longest * share)) for share in (0.05, 0.1, 0.25, 0.5)})
        damage = measure_damage(network.with_windows, network.windows, probes, [inputs for inputs, _ in data])
        windows = allocation.by_damage(damage, mean, longest)
        network.train(training)
    adapted = network
    options: dict[str, Any] = {"learning_rate": learning_rate, "scale": scale}
    if epochs and by == "activity":
        adapted = network.with_windows(dict(network.windows))
        shrink = Adjustment(every=max(1, epochs // 5), layers=max(1, len(layers) // 3), fraction=0.25, mean=mean, exponent=exponent)
        run_stage(adapted, _loader(data), Stage("adapt", epochs, adjustment=shrink, **options))
    else:
        adapted = network.with_windows(windows)
        if epochs:
            run_stage(adapted, _loader(data), Stage("adapt", epochs, **options))
    if finetune:
        run_stage(adapted, _loader(data), Stage("finetune", finetune, **options))
    return adapted


def _loader(data: Iterable[tuple[Tensor, Tensor]]) -> Any:
    """The data as a loader that training can shuffle anew each epoch; batches that are ready are taken as samples of a loader without batching."""
    if isinstance(data, torch.utils.data.DataLoader):
        return data
    return torch.utils.data.DataLoader(list(data), batch_size=None, shuffle=True)  # type: ignore[arg-type]
