"""A training step of a directly trained network, ours and SpikingJelly's multi-step mode: the same layers, weights, input and loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from teas.spiking.network import SpikingNetwork
from teas.spiking.neuron import IF
from teas.study.bench_peers import replaced

_WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0)  # seven convolutions; 0: average pooling


def conv7_fc2() -> nn.Sequential:
    """Seven 3x3 convolutions, two fully connected layers, for 32 x 32 images."""
    torch.manual_seed(0)
    modules: list[nn.Module] = []
    before = 3
    for width in _WIDTHS:
        if width:
            modules += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), IF(surrogate="arctan")]
            before = width
        else:
            modules.append(nn.AvgPool2d(2))
    return nn.Sequential(*modules, nn.Flatten(), nn.Linear(256 * 16, 256), IF(surrogate="arctan"), nn.Linear(256, 10))


def _batch(size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 3, 32, 32, generator=generator), torch.randint(10, (size,), generator=generator)


def _stepper(module: nn.Module, logits: Callable[[Tensor], Tensor], batch: int, device: str) -> Callable[[], None]:
    optimiser = torch.optim.SGD(module.parameters(), lr=0.01)
    inputs, labels = (tensor.to(device) for tensor in _batch(batch))

    @torch.enable_grad()
    def step() -> None:
        optimiser.zero_grad()
        nn.functional.cross_entropy(logits(inputs), labels).backward()
        optimiser.step()

    return step


def ours(steps: int, batch: int, device: str = "cpu") -> Callable[[], None]:
    """Forward, backward and update of a `SpikingNetwork`."""
    network = SpikingNetwork(conv7_fc2().train(), steps).to(device)
    return _stepper(network, lambda inputs: network(inputs).logits, batch, device)


def spikingjelly_multistep(steps: int, batch: int, device: str = "cpu") -> Callable[[], None]:
    """The same in SpikingJelly: multi-step neurons, reset to 0 and detached as ours, time folded into the batch elsewhere."""
    from spikingjelly.activation_based import functional, neuron, surrogate

    class Folded(nn.Module):
        def __init__(self, _: IF):
            super().__init__()
            self.node: Any = neuron.IFNode(v_threshold=1.0, v_reset=0.0, surrogate_function=surrogate.ATan(), detach_reset=True, step_mode="m")

        def forward(self, current: Tensor) -> Tensor:
            spikes: Tensor = self.node(current.unflatten(0, (steps, -1)))
            return spikes.flatten(0, 1)

    module, _ = replaced(conv7_fc2(), Folded)
    module.train().to(device)

    def logits(inputs: Tensor) -> Tensor:
        functional.reset_net(module)
        every: Tensor = module(inputs.repeat(steps, 1, 1, 1))
        return every.unflatten(0, (steps, -1)).mean(0)

    return _stepper(module, logits, batch, device)


STEPS: dict[str, Callable[..., Callable[[], None]]] = {"train_teas": ours, "train_spikingjelly_multistep": spikingjelly_multistep}
