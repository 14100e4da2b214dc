"""Data sets as uint8 arrays in memory, split so that nothing is ever chosen on the test set."""

from __future__ import annotations

import copy
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

from teas.ann.training import UNLABELLED
from teas.errors import TeasError, check_choice
from teas.study.arrays import read_arrays
from teas.study.augmentation import AUGMENTATIONS
from teas.study.imagenet import Pictures, read_folders, read_listed

Arrays = tuple[np.ndarray | Pictures, np.ndarray]  # images [n, channel, height, width] uint8, labels [n]


class Images(Dataset[Any]):
    """Images kept as bytes and normalised a batch at a time: `(x / full - mean) / std` per channel.

    Batches are cut, augmented (see `AUGMENTATIONS`) and normalised on the device where the images lie: see `to`.
    """

    def __init__(self, arrays: Arrays, full: float, mean: Tensor, std: Tensor, augmentation: str = "none"):
        check_choice("augmentation", augmentation, tuple(AUGMENTATIONS))
        self.images = arrays[0] if isinstance(arrays[0], Pictures) else torch.from_numpy(np.array(arrays[0]))
        self.labels = torch.from_numpy(np.array(arrays[1])).long()
        self.full, self.mean, self.std, self.augmentation = full, mean.view(-1, 1, 1), std.view(-1, 1, 1), augmentation

    def plain(self) -> Images:
        """The same images without augmentation."""
        twin = copy.copy(self)
        twin.augmentation = "none"
        return twin

    def part(self, start: int) -> Images:
        """The images from this one on, of those kept in memory."""
        assert isinstance(self.images, Tensor)
        rest = copy.copy(self)
        rest.images, rest.labels = self.images[start:], self.labels[start:]
        return rest

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, labels = self.__getitems__([index])
        return inputs[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        change = AUGMENTATIONS[self.augmentation]
        where = self.mean.device
        chosen = torch.tensor(indices).to(where, non_blocking=True)  # a plain list would make a GPU wait for what it has still to do
        found = torch.from_numpy(self.images.read(indices)).to(where) if isinstance(self.images, Pictures) else self.images[chosen]
        pixels = change.pixels(found)
        return change.inputs(self.normalised(pixels)), self.labels[chosen]

    def normalised(self, pixels: Tensor) -> Tensor:
        """Bytes as inputs."""
        return (pixels.float() / self.full - self.mean) / self.std

    def to(self, device: torch.device) -> None:
        """Keep the images on a device, in bytes, so that batches are cut, augmented and normalised there."""
        for name in ("images", "labels", "mean", "std"):
            value = getattr(self, name)
            setattr(self, name, value if isinstance(value, Pictures) else value.to(device))


@dataclass(frozen=True)
class Data:
    """A data set: `train` to learn from, `validation` (held out of the training set) to choose by, `test` for final figures only.

    lessons: what a retraining learns from where that is not `train`: those images and unlabelled ones, or views that teachers have answered.
    """

    name: str
    train: Images
    validation: Images
    test: Images
    classes: int
    lessons: Images | None = None

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
    name: str,
    folder: Path | None,
    *,
    validation: int,
    samples: int = 0,
    augmentation: str = "none",
    download: bool = False,
    moments: Moments | None = None,
    seed: int = 0,
) -> Data:
    """A data set by name, with `validation` training samples held out at random (by seed), and `samples` of the others (0: all) to learn from.

    moments: mean and standard deviation per channel that inputs are normalised by, those of the training set where not given.
    `digits` is embedded (scikit-learn); the others are read from `folder`. Raises `TeasError` where the folder is missing, empty, damaged
    or of another data set.
    """
    train, test = _read(name, folder, download)
    classes = int(max(train[1].max(), test[1].max())) + 1
    order = np.random.default_rng(seed).permutation(len(train[1]))
    if not 0 < validation < len(order):
        raise TeasError(f"validation holds out {validation} of {len(order)} training samples; it must leave some of both")
    if not 0 <= samples <= len(order) - validation:
        raise TeasError(f"samples is {samples}; beside the {validation} held out there are {len(order) - validation} training samples (0 takes all)")
    kept, held = np.sort(order[validation:][: samples or None]), np.sort(order[:validation])
    full = 255.0 if isinstance(train[0], Pictures) else float(train[0].max())
    mean, std = (torch.tensor(value, dtype=torch.float32) for value in moments or _moments(train[0][kept], full))
    if len(mean) != train[0].shape[1] or len(std) != len(mean) or not bool((std > 0).all()):
        raise TeasError(f"{name!r} has {train[0].shape[1]} channels; give as many means and as many standard deviations above 0")

    def images(arrays: Arrays, augment: str = "none") -> Images:
        return Images(arrays, full, mean, std, augment)

    return Data(name, images((train[0][kept], train[1][kept]), augmentation), images((train[0][held], train[1][held])), images(test), classes)


def with_unlabelled(labelled: Images, name: str, folder: Path | None, download: bool = False) -> Images:
    """The images and, after them, the training images of another data set, augmented and normalised alike, all labelled `UNLABELLED`.

    Raises `TeasError` where they are not images of the same shape kept as bytes in memory, or can't be read.
    """
    extra = _read(name, folder, download)[0][0]
    if isinstance(labelled.images, Pictures) or isinstance(extra, Pictures) or labelled.images.shape[1:] != extra.shape[1:]:
        shapes = [list(images.shape[1:]) for images in (labelled.images, extra)]
        raise TeasError(f"unlabelled images must be of the size of the others and fit into memory; those of {name!r} are {shapes[1]}, the others {shapes[0]}")
    joined = copy.copy(labelled)
    joined.images = torch.cat([labelled.images, torch.from_numpy(extra)])
    joined.labels = torch.cat([labelled.labels, torch.full((len(extra),), UNLABELLED)])
    return joined


def _read(name: str, folder: Path | None, download: bool) -> tuple[Arrays, Arrays]:
    check_choice("data set", name, tuple(READERS))
    if name == "digits":
        return _digits()
    if folder is None:
        raise TeasError(f"data set {name!r} is read from a folder: add --data DIR, or --data DIR --download to fetch it there")
    if download:
        _download(name, folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        raise TeasError(f"the data folder {folder} is {'empty' if folder.is_dir() else 'missing'}; expected {name!r} in it, or add --download")
    found: tuple[Arrays, Arrays] = READERS[name](folder)
    return found


def _moments(images: np.ndarray | Pictures, full: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per channel; of large sets every fifth image is plenty, and a fifth of the memory."""
    pixels = images.sample() if isinstance(images, Pictures) else images
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
    "arrays": read_arrays,
    "image_folder": read_folders,
    "imagenet_listed": read_listed,
}
