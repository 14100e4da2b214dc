"""Architectures by name, with spiking neurons where an ANN has its activations."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from teas.errors import check_choice

Neurons = Callable[[], nn.Module]


def mlp(shape: tuple[int, ...], classes: int, neurons: Neurons, hidden: tuple[int, ...] = (800,), spiking_output: bool = True) -> nn.Sequential:
    """Fully connected: input - hidden - classes, neurons after each; 784-800-IF-10-IF is the paper's network for MNIST."""
    sizes = [math.prod(shape), *hidden, classes]
    modules: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    for number, (before, after) in enumerate(itertools.pairwise(sizes), start=1):
        modules[f"fc{number}"] = nn.Linear(before, after)
        if spiking_output or number <= len(hidden):
            modules[f"if{number}"] = neurons()
    return nn.Sequential(OrderedDict(modules))


def lenet(shape: tuple[int, ...], classes: int, neurons: Neurons, hidden: tuple[int, ...] = (6, 16, 120, 84), spiking_output: bool = True) -> nn.Sequential:
    """LeNet-5 with average pooling: two 5x5 convolutions (the first padded to keep its size), then fully connected layers."""
    first, second, *wide = hidden
    side = (shape[1] // 2 - 4) // 2
    modules: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(shape[0], first, 5, padding=2),
        "conv_if1": neurons(),
        "pool1": nn.AvgPool2d(2),
        "conv2": nn.Conv2d(first, second, 5),
        "conv_if2": neurons(),
        "pool2": nn.AvgPool2d(2),
    }
    head = mlp((second, side, side), classes, neurons, tuple(wide), spiking_output)
    return nn.Sequential(OrderedDict(modules | dict(head.named_children())))


ARCHITECTURES = {"mlp": mlp, "lenet": lenet}


def build(name: str, shape: tuple[int, ...], classes: int, neurons: Neurons, hidden: tuple[int, ...], spiking_output: bool) -> nn.Sequential:
    """The named architecture for inputs `[batch, *shape]`; raises `TeasError` for an unknown name."""
    check_choice("architecture", name, tuple(ARCHITECTURES))
    return ARCHITECTURES[name](shape, classes, neurons, hidden, spiking_output)
