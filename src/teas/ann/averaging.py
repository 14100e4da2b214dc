"""Two networks of one architecture averaged: what training starts from, and what it ends at."""

from __future__ import annotations

import torch

from teas.errors import TeasError
from teas.spiking.network import SpikingNetwork


@torch.no_grad()
def average_with(network: SpikingNetwork, other: SpikingNetwork, share: float) -> None:
    """Give a network, in place, the mean `(1 - share)·w + share·w'` of its own weights, biases and thresholds and another's; its windows stay.

    It helps where training from one to the other stayed in one basin of the loss, as a short one at a low rate does. Source: Wortsman et al., "Robust
    fine-tuning of zero-shot models" (CVPR 2022). Raises `TeasError` for a network of other parts or shapes.
    """
    ours, theirs = network.module.state_dict(), other.module.state_dict()
    if {name: value.shape for name, value in ours.items()} != {name: value.shape for name, value in theirs.items()}:
        strange = sorted(set(ours) ^ set(theirs)) or [name for name in ours if ours[name].shape != theirs[name].shape]
        raise TeasError(f"networks of different parts can't be averaged: {', '.join(strange[:5])}")
    network.module.load_state_dict(
        {name: torch.lerp(value, theirs[name].to(value), share) if value.is_floating_point() else value for name, value in ours.items()}
    )
