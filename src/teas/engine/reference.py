"""The network's own forward pass as an engine: the definition, everywhere."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from teas.engine.contract import Run, check_runnable
from teas.spiking.network import SpikingNetwork
from teas.spiking.record import Output


@dataclass(frozen=True)
class ReferenceEngine:
    """`SpikingNetwork.forward` without gradients, on any device and in any mode."""

    name: str = "reference"

    def why_not(self, network: SpikingNetwork, device: torch.device) -> list[str]:
        """No reason but one: the weights must lie on the device."""
        strangers = {parameter.device.type for parameter in network.parameters()} - {device.type}
        return [f"its weights are on {', '.join(sorted(strangers))}, not on {device.type}: network.to({device.type!r})"] if strangers else []

    def prepare(self, network: SpikingNetwork, keep: str = "potentials") -> Run:
        """See `Engine.prepare`; here later changes of weights and windows are seen."""
        device = next(network.parameters(), torch.empty(0)).device
        check_runnable(self, network, device, keep)

        @torch.no_grad()
        def run(inputs: Tensor) -> Output:
            logits, record = network(inputs)
            if keep == "nothing":
                return Output(logits, {})
            if keep == "counts":
                empty = logits.new_empty(0)
                record = {name: replace(found, fired=empty, residual=empty) for name, found in record.items()}
            return Output(logits, record)

        return run
