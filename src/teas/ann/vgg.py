"""VGG-16 for 32 x 32 images (Simonyan and Zisserman, 2015, configuration D): thirteen convolutions, batch norm after each, one linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_PLAN = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # channels, 0 for a pooling


class CifarVGG(nn.Module):
    """VGG-16 with max pooling; five halvings leave one position, so a single linear layer reads the features."""

    def __init__(self, classes: int, dropout: float = 0.0):
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for channels in _PLAN:
            if channels:
                layers += [nn.Conv2d(before, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
                before = channels
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.dropout(torch.flatten(self.features(x), 1)))
        return out
