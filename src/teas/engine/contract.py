"""What every engine promises, and how one is chosen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from teas.errors import TeasError, check_choice
from teas.spiking.network import SpikingNetwork
from teas.spiking.record import Output

KEEPS = ("potentials", "counts", "nothing")
Run = Callable[[Tensor], Output]
logger = logging.getLogger(__name__)


class Engine(Protocol):
    """Executes a `SpikingNetwork`: the same spikes as its forward pass, without gradients."""

    @property
    def name(self) -> str:
        """The name that `choose` knows it by."""

    def why_not(self, network: SpikingNetwork, device: torch.device) -> list[str]:
        """Every reason why this engine can't run the network on the device; empty where it can."""

    def prepare(self, network: SpikingNetwork, keep: str = "potentials") -> Run:
        """A function from inputs `[batch, *shape]` to `Output(logits, record)`, for the weights and windows that the network has now.

        Prepare again after changing them: some are copied, others shared.
        keep: what the record holds. `potentials`: count, firing potential and residual of every layer. `counts`: the counts; both
        potentials are empty tensors. `nothing`: the record is empty, and a count is freed as soon as its last reader is done.
        """


def choose(network: SpikingNetwork, device: torch.device | str, name: str, engines: Sequence[Engine]) -> Engine:
    """The engine of that name, or with `auto` the first of the list that can run the network on the device; its choice is logged.

    Raises `TeasError` for an unknown name, and with all reasons where no engine asked for can run.
    """
    check_choice("engine", name, ("auto", *[engine.name for engine in engines]))
    device = torch.device(device)
    refused = {}
    for engine in engines:
        if name in ("auto", engine.name):
            refused[engine.name] = engine.why_not(network, device)
            if not refused[engine.name]:
                if name == "auto":
                    passed_over = "".join(f"; not {other}: {reasons[0]}" for other, reasons in refused.items() if reasons)
                    logger.info("engine %s was chosen%s", engine.name, passed_over)
                return engine
    raise TeasError("; ".join(f"engine {other!r} can't run this network: {'; '.join(reasons)}" for other, reasons in refused.items()))


def why_not_on_cpu(network: SpikingNetwork, device: torch.device, types: tuple[torch.dtype, ...] = (torch.float32,)) -> list[str]:
    """Reasons that engines for the CPU share: training mode, another device than the CPU, another type than one of these."""
    reasons = []
    if any(module.training for module in network.module.modules()):
        reasons.append("the network is in training mode: call network.eval()")
    if device.type != "cpu":
        reasons.append(f"it runs on the CPU only, not on {device.type}")
    tensors = [*network.module.parameters(), *network.module.buffers()]
    found = {t.dtype for t in tensors if t.is_floating_point()}
    if len(found) > 1 or found - {*types}:
        names, wanted = (", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds)) for kinds in (found, types))
        reasons.append(f"it computes in {wanted.replace(', ', ' or ')}, the network has {names}")
    if any(t.device.type != "cpu" for t in tensors):
        reasons.append("its weights are not on the CPU: network.to('cpu')")
    return reasons


def check_runnable(engine: Engine, network: SpikingNetwork, device: torch.device | str, keep: str) -> None:
    """Raise `TeasError` with all reasons where the engine can't run the network on the device, or for an unknown `keep`."""
    check_choice("keep", keep, KEEPS)
    choose(network, device, engine.name, [engine])
