"""ResNets for 32 x 32 images (He et al., 2016, section 4.2): 6n + 2 layers, shortcuts without parameters; and the pre-activation ResNet-18."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _shortcut(x: Tensor, stride: int, padding: int) -> Tensor:
    return x if stride == 1 else F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, padding, padding))


class Block(nn.Module):
    """Two 3x3 convolutions; where the shape changes, the shortcut takes every second pixel and pads channels with zeros."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.stride, self.padding = stride, (after - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + _shortcut(x, self.stride, self.padding))


class PreactivationBlock(nn.Module):
    """The block of a residual stream that no activation cuts: `x + conv(relu(norm(conv(relu(norm(x))))))`; the shortcut is that of `Block`.

    projected: where the shape changes, the shortcut is instead a 1x1 convolution of what the block's first activation says.
    """

    def __init__(self, before: int, after: int, stride: int, projected: bool = False):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(before), nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(after), nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if projected and (before, stride) != (after, 1) else None
        self.stride, self.padding = stride, (after - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        y: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return y + (_shortcut(x, self.stride, self.padding) if self.shortcut is None else self.shortcut(active))


def _stages(block: Callable[[int, int, int], nn.Module], blocks: int, width: int, stages: int = 3) -> list[nn.Sequential]:
    """Stages of blocks, each after the first half as large and twice as wide as the one before."""
    shapes = [(width, width, 1), *[(width << number, 2 * width << number, 2) for number in range(stages - 1)]]
    return [nn.Sequential(block(before, after, stride), *[block(after, after, 1) for _ in range(blocks - 1)]) for before, after, stride in shapes]


class CifarResNet(nn.Module):
    """ResNet-20 (n = 3 blocks a stage, 16-32-64 channels) and its relatives; weights of the common PyTorch checkpoints fit its names."""

    def __init__(self, classes: int, blocks: int = 3, width: int = 16):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.layer1, self.layer2, self.layer3 = _stages(Block, blocks, width)
        self.linear = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        out: Tensor = self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return out


class CifarPreactivationResNet(nn.Module):
    """ResNet-20 or -18 with pre-activation blocks (He et al., ECCV 2016), whose spiking form has membrane shortcuts (MS-ResNet, Hu et al., 2021).

    The residual stream is a sum of currents: each neuron is charged by every block before it (ResNet-18: of its stage), and no shortcut is rounded to spikes.
    """

    def __init__(self, classes: int, blocks: int = 3, width: int = 16, stages: int = 3, projected: bool = False):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.stages = [f"layer{number + 1}" for number in range(stages)]
        for name, stage in zip(self.stages, _stages(partial(PreactivationBlock, projected=projected), blocks, width, stages), strict=True):
            self.add_module(name, stage)
        last = width << stages - 1
        self.bn = nn.BatchNorm2d(last)
        self.linear = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for name in self.stages:
            x = self.get_submodule(name)(x)
        x = F.relu(self.bn(x))
        out: Tensor = self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return out
