"""Data sets as uint8 arrays in memory, split so that nothing is ever chosen on the test set."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from teas.errors import TeasError, check_choice

Arrays = tuple[np.ndarray, np.ndarray]  # images [n, channel, height, width] uint8, labels [n]
AUGMENTATIONS = ("none", "shift", "crop_flip")


class Images(Dataset[Any]):
    """Images kept as bytes and normalised a batch at a time: `(x / full - mean) / std` per channel."""

    def __init__(self, arrays: Arrays, full: float, mean: Tensor, std: Tensor, augmentation: str = "none"):
        check_choice("augmentation", augmentation, AUGMENTATIONS)
        self.images = torch.from_numpy(np.array(arrays[0]))
        self.labels = torch.from_numpy(np.array(arrays[1])).long()
        self.full, self.mean, self.std, self.augmentation = full, mean.view(-1, 1, 1), std.view(-1, 1, 1), augmentation

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, labels = self.__getitems__([index])
        return inputs[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        pixels = self.images[indices]
        if self.augmentation != "none":
            pixels = _shifted(pixels, margin=1 if self.augmentation == "shift" else 4, flip=self.augmentation == "crop_flip")
        return (pixels.float() / self.full - self.mean) / self.std, self.labels[indices]


def _shifted(pixels: Tensor, margin: int, flip: bool) -> Tensor:
    """Each image moved by up to `margin` pixels, zeros moving in, and mirrored half of the time; draws from torch's global generator."""
    n, _, height, width = pixels.shape
    padded = torch.nn.functional.pad(pixels, [margin] * 4)
    rows = torch.randint(2 * margin + 1, (n, 1)) + torch.arange(height)
    columns = torch.randint(2 * margin + 1, (n, 1)) + torch.arange(width)
    if flip:
        columns = torch.where(torch.rand(n, 1) < 0.5, columns.flip(1), columns)
    return padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Data:
    """A data set: `train` to learn from, `validation` (held out of the training set) to choose by, `test` for final figures only."""

    name: str
    train: Images
    validation: Images
    test: Images
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input, `(channel, height, width)`."""
        return tuple(self.train.images.shape[1:])


class _Shuffle(Sampler[int]):
    """A permutation per epoch that depends on the seed and the epoch alone."""

    def __init__(self, length: int, seed: int):
        self.length, self.seed, self.epoch = length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(torch.randperm(self.length, generator=generator).tolist())


def _as_is(batch: Any) -> Any:
    return batch


def loader(images: Images, batch: int, *, shuffle_seed: int | None = None) -> DataLoader[Any]:
    """Batches of `(inputs, labels)`: in order, or shuffled by seed and epoch with a short last batch dropped."""
    if shuffle_seed is None:
        return DataLoader(images, batch, collate_fn=_as_is)
    if len(images) < batch:
        raise TeasError(f"a batch of {batch} is larger than the training set of {len(images)} samples; use a smaller batch")
    return DataLoader(images, batch, sampler=_Shuffle(len(images), shuffle_seed), collate_fn=_as_is, drop_last=True)


Moments = tuple[tuple[float, ...], tuple[float, ...]]


def load(
    name: str, folder: Path | None, *, validation: int, augmentation: str = "none", download: bool = False, moments: Moments | None = None, seed: int = 0
) -> Data:
    """A data set by name, with `validation` training samples held out at random (by seed).

    moments: mean and standard deviation per channel that inputs are normalised by, those of the training set where not given.
    `digits` is embedded (scikit-learn); the others are read from `folder`. Raises `TeasError` where the folder is missing, empty, damaged
    or of another data set.
    """
    check_choice("data set", name, tuple(READERS))
    if name == "digits":
        train, test = _digits()
    else:
        if folder is None:
            raise TeasError(f"data set {name!r} is read from a folder: add --data DIR, or --data DIR --download to fetch it there")
        if download:
            _download(name, folder)
        if not folder.is_dir() or not any(folder.iterdir()):
            raise TeasError(f"the data folder {folder} is {'empty' if folder.is_dir() else 'missing'}; expected {name!r} in it, or add --download")
        train, test = READERS[name](folder)
    classes = int(max(train[1].max(), test[1].max())) + 1
    order = np.random.default_rng(seed).permutation(len(train[1]))
    if not 0 < validation < len(order):
        raise TeasError(f"validation holds out {validation} of {len(order)} training samples; it must leave some of both")
    kept, held = np.sort(order[validation:]), np.sort(order[:validation])
    full = float(train[0].max())
    mean, std = (torch.tensor(value, dtype=torch.float32) for value in moments or _moments(train[0][kept], full))
    if len(mean) != train[0].shape[1] or len(std) != len(mean) or not bool((std > 0).all()):
        raise TeasError(f"{name!r} has {train[0].shape[1]} channels; give as many means and as many standard deviations above 0")

    def images(arrays: Arrays, augment: str = "none") -> Images:
        return Images(arrays, full, mean, std, augment)

    return Data(name, images((train[0][kept], train[1][kept]), augmentation), images((train[0][held], train[1][held])), images(test), classes)


def _moments(pixels: np.ndarray, full: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per channel; of large sets every fifth image is plenty, and a fifth of the memory."""
    channels = (pixels[:: 5 if len(pixels) >= 20_000 else 1] / full).transpose(1, 0, 2, 3).reshape(pixels.shape[1], -1)
    deviation = channels.std(1)
    return channels.mean(1), np.where(deviation > 0, deviation, 1.0)  # a constant channel stays constant


def _digits() -> tuple[Arrays, Arrays]:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 pixels of 0..16; every third image is test data."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = bunch.images.astype(np.uint8)[:, None]
    test = np.arange(len(images)) % 3 == 2
    return (images[~test], bunch.target[~test]), (images[test], bunch.target[test])


def _idx(path: Path) -> np.ndarray:
    """One file of MNIST's idx format, gzipped or not."""
    packed = path.with_name(path.name + ".gz")
    if not path.exists() and not packed.exists():
        raise TeasError(f"{path} (or .gz) is missing; --data takes the folder above torchvision's layout, e.g. the one that holds MNIST/raw")
    try:
        raw = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
        zero, kind, dims = struct.unpack(">HBB", raw[:4])
        shape = struct.unpack(f">{dims}I", raw[4 : 4 + 4 * dims])
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise TeasError(f"{path} is damaged or cut short ({error}); fetch it again") from None
    body = raw[4 + 4 * dims :]
    if zero != 0 or kind != 8 or dims not in (1, 3) or len(body) != math.prod(shape):
        raise TeasError(f"{path} is not a whole idx file of bytes: its header promises shape {shape}, and {len(body)} bytes follow")
    return np.frombuffer(body, np.uint8).reshape(shape)


def _mnist_like(subfolder: str) -> Any:
    def read(folder: Path) -> tuple[Arrays, Arrays]:
        raw = folder / subfolder / "raw"
        splits = []
        for prefix in ("train", "t10k"):
            images, labels = _idx(raw / f"{prefix}-images-idx3-ubyte"), _idx(raw / f"{prefix}-labels-idx1-ubyte")
            if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
                raise TeasError(f"{raw}: the {prefix} images and labels do not belong together: {images.shape} and {labels.shape}")
            splits.append((images[:, None], labels))
        return splits[0], splits[1]

    return read


def _cifar(name: str, binary: str, files: tuple[list[str], str], label_bytes: int) -> Any:
    def rows(path: Path) -> Arrays:
        if not path.exists():
            raise TeasError(f"{path} is missing: the folder does not hold all of {name}")
        raw = np.fromfile(path, np.uint8)
        if len(raw) == 0 or len(raw) % (3072 + label_bytes):
            raise TeasError(f"{path} is not a {name} file: {len(raw)} bytes are not rows of {3072 + label_bytes}")
        table = raw.reshape(-1, 3072 + label_bytes)
        labels = table[:, label_bytes - 1]
        if labels.max() >= (10 if label_bytes == 1 else 100):
            raise TeasError(f"{path} is not a {name} file: it has a label of {labels.max()}")
        return table[:, label_bytes:].reshape(-1, 3, 32, 32), labels

    def read(folder: Path) -> tuple[Arrays, Arrays]:
        if (folder / binary).is_dir():
            train = [rows(folder / binary / file) for file in files[0]]
            return (np.concatenate([t[0] for t in train]), np.concatenate([t[1] for t in train])), rows(folder / binary / files[1])
        import torchvision

        try:
            splits = [getattr(torchvision.datasets, name)(str(folder), train=part) for part in (True, False)]
        except RuntimeError:  # torchvision checks the published checksums before it opens a file
            raise TeasError(f"{folder} holds neither {binary} nor torchvision's layout of {name}, or its files are damaged") from None
        train_split, test_split = ((split.data.transpose(0, 3, 1, 2), np.asarray(split.targets)) for split in splits)
        return train_split, test_split

    return read


def _image_folder(folder: Path) -> tuple[Arrays, Arrays]:
    """`train/<class>/*` and `val/<class>/*`, resized and cropped to 224 x 224."""
    import torchvision

    side = torchvision.transforms.Compose([torchvision.transforms.Resize(256), torchvision.transforms.CenterCrop(224)])
    splits = []
    for part in ("train", "val"):
        try:
            found = torchvision.datasets.ImageFolder(str(folder / part), side)
        except (FileNotFoundError, OSError) as error:
            raise TeasError(f"{folder} is not an ImageNet-style folder of {part}/<class>/<image>: {error}") from None
        splits.append((np.stack([np.asarray(image).transpose(2, 0, 1) for image, _ in found]), np.asarray(found.targets)))
    if len(set(splits[0][1])) != len(set(splits[1][1])):
        raise TeasError(f"{folder}: train has {len(set(splits[0][1]))} classes and val has {len(set(splits[1][1]))}; they must be the same")
    return splits[0], splits[1]


def _download(name: str, folder: Path) -> None:
    import torchvision

    if name not in _TORCHVISION:
        raise TeasError(f"{name!r} can't be downloaded; put it into {folder} yourself")
    try:
        for part in (True, False):
            getattr(torchvision.datasets, _TORCHVISION[name])(str(folder), train=part, download=True)
    except (RuntimeError, OSError) as error:
        raise TeasError(f"downloading {name!r} into {folder} failed: {error}") from None


_TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
READERS = {
    "digits": _digits,
    "mnist": _mnist_like("MNIST"),
    "fashion_mnist": _mnist_like("FashionMNIST"),
    "cifar10": _cifar("CIFAR10", "cifar-10-batches-bin", ([f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin"), 1),
    "cifar100": _cifar("CIFAR100", "cifar-100-binary", (["train.bin"], "test.bin"), 2),
    "image_folder": _image_folder,
}
