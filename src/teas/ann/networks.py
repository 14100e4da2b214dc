"""The ANNs that experiments convert, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from teas.ann.own import check_architecture, make_own
from teas.ann.resnet import CifarPreactivationResNet, CifarResNet
from teas.ann.vgg import CifarVGG


def _torchvision(name: str) -> Callable[[int], nn.Module]:
    def make(classes: int) -> nn.Module:
        import torchvision

        found: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes)
        return found

    return make


def _original_resnet50(classes: int) -> nn.Module:
    """ResNet-50 as first published, batch norms folded: stride 2 on the 1x1 convolution that opens a stage, biases on every convolution."""
    import torchvision

    net: nn.Module = torchvision.models.resnet50(weights=None, num_classes=classes, norm_layer=lambda channels: nn.Identity())
    for stage in ("layer2", "layer3", "layer4"):
        first: Any = net.get_submodule(f"{stage}.0")
        first.conv1.stride, first.conv2.stride = (2, 2), (1, 1)
    for conv in [module for module in net.modules() if isinstance(module, nn.Conv2d)]:
        conv.bias = nn.Parameter(torch.zeros(conv.out_channels))
    return net


def _cifar_resnet18(classes: int) -> nn.Module:
    """ResNet-18 for 32 x 32 images: a first 3x3 convolution that keeps their size, no pooling after it, projections as shortcuts."""
    import torchvision

    net: nn.Module = torchvision.models.resnet18(weights=None, num_classes=classes)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return net


ANNS: dict[str, Callable[[int], nn.Module]] = {
    "resnet20": CifarResNet,
    "resnet18": _cifar_resnet18,
    "resnet20_membrane": CifarPreactivationResNet,
    "resnet18_membrane": lambda classes: CifarPreactivationResNet(classes, blocks=2, width=64, stages=4, projected=True),
    "resnet20_wide": lambda classes: CifarResNet(classes, width=32),
    "vgg16": CifarVGG,
    "imagenet_resnet34": _torchvision("resnet34"),
    "imagenet_resnet50": _torchvision("resnet50"),
    "imagenet_resnet50_original": _original_resnet50,
    "imagenet_vgg16": _torchvision("vgg16_bn"),
}


def build_ann(name: str, classes: int) -> nn.Module:
    """The named ANN, freshly initialised, with this many classes, or one's own (see `make_own`); raises `TeasError` for an unknown name."""
    check_architecture("conversion.architecture", name, tuple(ANNS))
    return ANNS[name](classes) if name in ANNS else make_own(name, classes=classes, num_classes=classes)
