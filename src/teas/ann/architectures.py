"""Architectures by name, with spiking neurons where an ANN has its activations."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from teas.ann.own import check_architecture, make_own
from teas.errors import TeasError, check_choice

Neurons = Callable[[], nn.Module]
POOLINGS = ("average", "max")


@dataclass(frozen=True)
class Design:
    """What is free in an architecture.

    hidden: widths, as the architecture's docstring says. spiking_output: neurons after the last synapses, else a readout of their current.
    pooling: of spikes, `average` or `max`. batch_norm: after every convolution, over steps and samples alike; `fold_batch_norms` takes it out again.
    dropout: share of the neurons that are silenced before each fully connected layer, for their whole window. voters: output neurons for
    each class, averaged. Raises `TeasError` for values out of range.
    """

    hidden: tuple[int, ...] = ()
    spiking_output: bool = True
    pooling: str = "average"
    batch_norm: bool = False
    dropout: float = 0.0
    voters: int = 1

    def __post_init__(self) -> None:
        check_choice("pooling", self.pooling, POOLINGS)
        if not 0 <= self.dropout < 1:
            raise TeasError(f"dropout is {self.dropout}; it must be at least 0 and below 1")
        if self.voters < 1 or any(width < 1 for width in self.hidden):
            raise TeasError(f"widths and voters must be at least 1; got hidden {list(self.hidden)} and voters {self.voters}")
        if self.voters > 1 and not self.spiking_output:
            raise TeasError("voters are output neurons: set spiking_output to true, or voters to 1")


def mlp(shape: tuple[int, ...], classes: int, neurons: Neurons, design: Design) -> nn.Sequential:
    """Fully connected: input - hidden - classes, neurons after each; 784-800-IF-10-IF is the paper's network for MNIST."""
    if design.batch_norm or design.pooling != "average":
        raise TeasError("'mlp' has neither convolutions nor pooling; leave batch_norm and pooling out")
    return nn.Sequential(OrderedDict(_fully_connected(math.prod(shape), classes, neurons, design, design.hidden)))


def lenet(shape: tuple[int, ...], classes: int, neurons: Neurons, design: Design) -> nn.Sequential:
    """LeNet-5: two 5x5 convolutions (the first padded to keep its size), each pooled, then fully connected layers; classic widths 6, 16, 120, 84."""
    first, second, *wide = _widths(design, "lenet", 2)
    side = (shape[1] // 2 - 4) // 2
    modules = _convolution(1, nn.Conv2d(shape[0], first, 5, padding=2), neurons, design) | {"pool1": _pool(design)}
    modules |= _convolution(2, nn.Conv2d(first, second, 5), neurons, design) | {"pool2": _pool(design)}
    return nn.Sequential(OrderedDict(modules | _fully_connected(second * side**2, classes, neurons, design, tuple(wide))))


def conv7_fc2(shape: tuple[int, ...], classes: int, neurons: Neurons, design: Design) -> nn.Sequential:
    """Seven 3x3 convolutions (2, 2 and 3 to a block of the widths `w, 2w, 4w`, a pooling after each block), then two fully connected layers.

    hidden: `(w, width of the first fully connected layer)`. The paper's "7 Conv, 2 FC" (Table 2) states no widths; (128, 1024) is usual.
    """
    base, wide = _widths(design, "conv7_fc2", 2)
    return _blocks(shape, classes, neurons, design, [[base] * 2, [2 * base] * 2, [4 * base] * 3], wide)


def conv6_fc2(shape: tuple[int, ...], classes: int, neurons: Neurons, design: Design) -> nn.Sequential:
    """Six 3x3 convolutions of one width in two blocks, a pooling after each, then two fully connected layers.

    hidden: `(width, width of the first fully connected layer)`. The PLIF net (Fang et al., ICCV 2021) is (256, 2048) with learned leaks,
    max pooling, batch norm, dropout 0.5 and 10 voters a class.
    """
    width, wide = _widths(design, "conv6_fc2", 2)
    return _blocks(shape, classes, neurons, design, [[width] * 3, [width] * 3], wide)


def _blocks(shape: tuple[int, ...], classes: int, neurons: Neurons, design: Design, blocks: list[list[int]], wide: int) -> nn.Sequential:
    modules: dict[str, nn.Module] = {}
    before, number, side = shape[0], 0, shape[1] >> len(blocks)
    if side < 1:
        raise TeasError(f"images of {shape[1]} pixels are too small for {len(blocks)} poolings")
    for block, widths in enumerate(blocks, start=1):
        for width in widths:
            number += 1
            modules |= _convolution(number, nn.Conv2d(before, width, 3, padding=1, bias=not design.batch_norm), neurons, design)
            before = width
        modules[f"pool{block}"] = _pool(design)
    return nn.Sequential(OrderedDict(modules | _fully_connected(before * side**2, classes, neurons, design, (wide,))))


def _convolution(number: int, convolution: nn.Conv2d, neurons: Neurons, design: Design) -> dict[str, nn.Module]:
    norm: dict[str, nn.Module] = {f"norm{number}": nn.BatchNorm2d(convolution.out_channels)} if design.batch_norm else {}
    return {f"conv{number}": convolution, **norm, f"conv_if{number}": neurons()}


def _pool(design: Design) -> nn.Module:
    return nn.AvgPool2d(2) if design.pooling == "average" else nn.MaxPool2d(2)


def _fully_connected(inputs: int, classes: int, neurons: Neurons, design: Design, hidden: tuple[int, ...]) -> dict[str, nn.Module]:
    modules: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    for number, (before, after) in enumerate(itertools.pairwise([inputs, *hidden, classes * design.voters]), start=1):
        if design.dropout:
            modules[f"dropout{number}"] = nn.Dropout(design.dropout)
        modules[f"fc{number}"] = nn.Linear(before, after)
        if design.spiking_output or number <= len(hidden):
            modules[f"if{number}"] = neurons()
    if design.voters > 1:
        modules["vote"] = nn.AvgPool1d(design.voters)
    return modules


def _widths(design: Design, name: str, least: int) -> tuple[int, ...]:
    fixed = name != "lenet"
    if len(design.hidden) < least or (fixed and len(design.hidden) > least):
        raise TeasError(f"{name!r} takes {'' if fixed else 'at least '}{least} widths in hidden; got {list(design.hidden)}")
    return design.hidden


ARCHITECTURES = {"mlp": mlp, "lenet": lenet, "conv7_fc2": conv7_fc2, "conv6_fc2": conv6_fc2}


def build(name: str, shape: tuple[int, ...], classes: int, neurons: Neurons, design: Design) -> nn.Module:
    """The named architecture for inputs `[batch, *shape]`, or one's own (see `make_own`).

    Raises `TeasError` for an unknown name or a design that does not fit it.
    """
    check_architecture("architecture", name, tuple(ARCHITECTURES))
    if name not in ARCHITECTURES:
        return make_own(name, shape=shape, classes=classes, num_classes=classes, neurons=neurons)
    return ARCHITECTURES[name](shape, classes, neurons, design)
