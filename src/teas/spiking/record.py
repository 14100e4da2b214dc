"""What a network's forward pass returns: logits, and what each layer did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from teas.spiking.coding import levels_of, spikes_of


@dataclass(frozen=True)
class LayerRecord:
    """What one layer did in one forward pass; tensors of shape `[batch, *neuron]`.

    count: what the train says, its spikes, under the radix code each by its worth. fired: sum of the potentials at spikes, before their resets.
    residual: potential left at the end; an engine that is told to keep neither leaves both empty. spikes: the train `[time, batch, *neuron]`, kept for
    the last spiking layer, and for others on request; received: the spikes that reached the layer from each source after re-timing, on request.
    """

    window: int
    count: Tensor
    fired: Tensor
    residual: Tensor
    spikes: Tensor | None = None
    received: dict[str, Tensor] | None = None
    code: str = "rate"

    @property
    def rate(self) -> Tensor:
        """The count as a share of the largest that the window can say, in [0, 1]."""
        return self.count / levels_of(self.window, self.code)

    @property
    def sent(self) -> Tensor:
        """Spikes in the window: the count itself but under the radix code."""
        return spikes_of(self.count, self.window, self.code)

    @property
    def activity(self) -> Tensor:
        """`Act(l)`: mean over samples and neurons of spikes a step, `sent / T_l` (Eq. 2), in [0, 1]; differentiable."""
        return self.sent.mean() / self.window

    @property
    def firing_potential(self) -> Tensor:
        """Mean potential at a spike before its reset, 0 where silent; empty where `fired` is."""
        return torch.where(self.count > 0, self.fired / self.sent.detach().clamp_min(1), 0) if self.fired.numel() else self.fired


Record = dict[str, LayerRecord]


class Output(NamedTuple):
    """Result of a forward pass: `logits [batch, class]` and a record per layer."""

    logits: Tensor
    record: Record
