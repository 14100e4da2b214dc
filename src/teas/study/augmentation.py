"""Data augmentation on batches of images, `[batch, channel, height, width]`, on the device where they lie; all draw from torch's global generator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

CUTOUT = 0.5  # side of the erased square as a share of the image's: 16 of 32 pixels, as DeVries and Taylor (2017) have it on CIFAR-10


def shifted(pixels: Tensor, margin: int, flip: bool) -> Tensor:
    """Each image moved by up to `margin` pixels, zeros moving in, and mirrored half of the time."""
    (n, _, height, width), where = pixels.shape, pixels.device
    padded = torch.nn.functional.pad(pixels, [margin] * 4)
    rows = torch.randint(2 * margin + 1, (n, 1), device=where) + torch.arange(height, device=where)
    columns = torch.randint(2 * margin + 1, (n, 1), device=where) + torch.arange(width, device=where)
    if flip:
        columns = torch.where(torch.rand(n, 1, device=where) < 0.5, columns.flip(1), columns)
    return padded[torch.arange(n, device=where)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def auto_augmented(pixels: Tensor) -> Tensor:
    """Each image changed by a sub-policy of its own; grey images as three equal channels. Source: AutoAugment (CVPR 2019), torchvision's."""
    from torchvision.transforms import v2

    change = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
    coloured = pixels if pixels.shape[1] == 3 else pixels.expand(-1, 3, -1, -1)
    return torch.stack([change(image) for image in coloured])[:, : pixels.shape[1]]


def cut_out(inputs: Tensor) -> Tensor:
    """A square of each normalised image set to the mean, its centre anywhere, so that it may reach over the edge."""
    (n, _, height, width), where = inputs.shape, inputs.device
    reach = max(1, round(CUTOUT * height / 2))
    rows, columns = torch.randint(height, (n, 1), device=where), torch.randint(width, (n, 1), device=where)
    inside_rows = (torch.arange(height, device=where) - rows + reach).div(2 * reach, rounding_mode="floor") == 0
    inside_columns = (torch.arange(width, device=where) - columns + reach).div(2 * reach, rounding_mode="floor") == 0
    return inputs.masked_fill((inside_rows[:, :, None] & inside_columns[:, None, :])[:, None], 0.0)


def pasted(pixels: Tensor) -> Tensor:
    """A rectangle of each image replaced by that of another, of any area and anywhere within. Source: CutMix (Yun et al., ICCV 2019), Eq. 2, α = 1."""
    (n, _, height, width), where = pixels.shape, pixels.device
    side, other = torch.rand(n, 1, device=where).sqrt(), torch.randperm(n, device=where)

    def inside(length: int) -> Tensor:
        places = torch.arange(length, device=where) - torch.randint(length, (n, 1), device=where)
        return places.abs() * 2 < side * length

    return torch.where((inside(height)[:, :, None] & inside(width)[:, None, :])[:, None], pixels[other], pixels)


@dataclass(frozen=True)
class Augmentation:
    """What happens to the bytes of a batch, and then to its normalised values."""

    pixels: Callable[[Tensor], Tensor] = lambda pixels: pixels
    inputs: Callable[[Tensor], Tensor] = lambda inputs: inputs


def _crop_flip(pixels: Tensor) -> Tensor:
    return shifted(pixels, margin=4, flip=True)


AUGMENTATIONS = {
    "none": Augmentation(),
    "shift": Augmentation(lambda pixels: shifted(pixels, margin=1, flip=False)),
    "crop_flip": Augmentation(_crop_flip),
    "crop_flip_cutout": Augmentation(_crop_flip, cut_out),
    "autoaugment": Augmentation(lambda pixels: auto_augmented(_crop_flip(pixels)), cut_out),
}
