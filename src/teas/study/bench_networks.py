"""What the benchmark runs: an ANN, and the spiking network made of it, the same for every contender."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from teas.ann.convert import convert
from teas.ann.resnet import CifarResNet
from teas.engine import quantise
from teas.errors import check_choice
from teas.exchange.weights import load_weights
from teas.spiking.network import SpikingNetwork
from teas.spiking.neuron import IF

_VGG = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # 0: max pooling


def mlp() -> nn.Sequential:
    """784-800-800-10."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 800), nn.ReLU(), nn.Linear(800, 800), nn.ReLU(), nn.Linear(800, 10))


def vgg16() -> nn.Sequential:
    """VGG-16 for 32 x 32 images, with batch norm and one hidden layer of 512 before the classes."""
    modules: list[nn.Module] = []
    before = 3
    for width in _VGG:
        if width:
            modules += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        else:
            modules.append(nn.MaxPool2d(2))
    return nn.Sequential(*modules, nn.Flatten(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


NETWORKS = {"mlp": (mlp, (1, 28, 28)), "resnet20": (lambda: CifarResNet(10), (3, 32, 32)), "vgg16": (vgg16, (3, 32, 32))}


def images(name: str, number: int) -> Tensor:
    """Smooth noise in the network's shape: neighbouring pixels are alike, as in pictures."""
    channels, *size = NETWORKS[name][1]
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(number, channels, 8, 8, generator=generator)
    return nn.functional.interpolate(coarse, size=tuple(size), mode="bilinear") + 0.2 * torch.randn(number, channels, *size, generator=generator)


@torch.no_grad()
def multiplications(name: str) -> int:
    """Multiply-accumulates of the ANN for one image: those of its convolutions and linear maps."""
    ann, found = NETWORKS[name][0]().eval(), []
    for child in ann.modules():
        if isinstance(child, (nn.Conv2d, nn.Linear)):
            child.register_forward_hook(lambda module, _, output: found.append(module.weight[0].numel() * output[0].numel()))
    ann(images(name, 1))
    return sum(found)


@torch.no_grad()
def network(name: str, window: int, weights: Path | None = None) -> tuple[nn.Module, SpikingNetwork]:
    """The ANN, and its spiking network for immediate firing at one window; without a file of weights both are random.

    Thresholds are the 99.9th percentile per layer. Weights of all spiking layers are rounded to 8 bits (`quantise`): every sum is then exact in
    float32, whatever its order, so that contenders that compute the same must answer the same.
    """
    check_choice("network", name, tuple(NETWORKS))
    torch.manual_seed(0)
    ann, inputs = NETWORKS[name][0](), images(name, 32)
    if weights is not None:
        load_weights(ann, weights)
    else:
        for module in ann.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        ann.train()
        for _ in range(20):
            ann(inputs)  # running statistics
    found = quantise(convert(ann.eval(), [inputs], threshold="percentile", per_channel=False).at(window))
    return ann, SpikingNetwork(found.module, window).eval()


def variant(base: SpikingNetwork, kind: str) -> SpikingNetwork:
    """The same weights in another discipline: `two_phase`, `pass` (uniform windows, trains unchanged), `first` or `even` (every train re-timed).

    Windows of re-timed networks differ by a step or two from layer to layer around the same mean, so that no train passes unchanged.
    """
    if kind == "two_phase":
        return SpikingNetwork(base.module, base.windows, firing="two_phase").eval()
    if kind == "zero":
        return SpikingNetwork(_reset_to_zero(base.module), base.windows).eval()
    if kind == "pass":
        return base
    steps = next(iter(base.windows.values()))
    names = base.spiking_layers
    unequal = {name: steps if number % 2 else max(1, steps + (1 if number // 2 % 2 else -1)) for number, name in enumerate(names)}
    return SpikingNetwork(base.module, unequal, layout=kind, transform="residual").eval()


def _reset_to_zero(module: nn.Module) -> nn.Module:
    import copy

    module = copy.deepcopy(module)
    for child in module.modules():
        if isinstance(child, IF):
            child.reset = "zero"
    return module
