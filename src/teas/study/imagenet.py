"""ImageNet-style images that stay in their files until a batch needs them: a folder a class, or a list of files with class numbers."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from teas.errors import TeasError

SIDE = 224


class Pictures:
    """Image files that stand in for an array of bytes `[n, 3, 224, 224]`; `read` opens those that are asked for."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = np.array([str(path) for path in paths], dtype=object)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """That of the array."""
        return (len(self.paths), 3, SIDE, SIDE)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, chosen: np.ndarray) -> Pictures:
        return Pictures(self.paths[chosen])

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """These images as bytes; raises `TeasError` for a file that is not one."""
        return np.stack([_pixels(Path(self.paths[index])) for index in indices])

    def sample(self, most: int = 1000) -> np.ndarray:
        """At most this many images, evenly spread, as bytes."""
        return self.read(range(0, len(self), -(-len(self) // most)))


Split = tuple[Pictures, np.ndarray]


def _pixels(path: Path) -> np.ndarray:
    """One image, shorter side resized to 256 unless it is 224 x 224 already, centre cropped, `[channel, height, width]`."""
    import torchvision
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise TeasError(f"{path} can't be read as an image: {error}") from None
    if image.size != (SIDE, SIDE):
        image = torchvision.transforms.functional.center_crop(torchvision.transforms.functional.resize(image, 256), SIDE)
    return np.asarray(image).transpose(2, 0, 1)


def read_listed(folder: Path) -> tuple[Split, Split]:
    """`imagenet_calibration` (training images) and `imagenet_val`, each with a `labels.csv` of columns `file` and `class_index`."""
    splits = []
    for part in ("imagenet_calibration", "imagenet_val"):
        table = folder / part / "labels.csv"
        try:
            with table.open(newline="") as file:
                rows = list(csv.DictReader(file))
            labels = np.array([int(row["class_index"]) for row in rows])
            files = [folder / part / row["file"] for row in rows]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise TeasError(f"{table} is not a list of images with the columns file and class_index: {error}") from None
        if not files:
            raise TeasError(f"{table} lists no image")
        splits.append((Pictures(files), labels))
    return splits[0], splits[1]


def read_folders(folder: Path) -> tuple[Split, Split]:
    """`train/<class>/*` and `val/<class>/*`."""
    import torchvision

    splits, classes = [], []
    for part in ("train", "val"):
        try:
            found = torchvision.datasets.ImageFolder(str(folder / part))
        except OSError as error:
            raise TeasError(f"{folder} is not an ImageNet-style folder of {part}/<class>/<image>: {error}") from None
        splits.append((Pictures([Path(path) for path, _ in found.samples]), np.asarray(found.targets)))
        classes.append(found.classes)
    if classes[0] != classes[1]:
        raise TeasError(f"{folder}: train has {len(classes[0])} classes and val has {len(classes[1])}; they must be the same")
    return splits[0], splits[1]
