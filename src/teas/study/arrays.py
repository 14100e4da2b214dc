"""Data of one's own as NumPy arrays: `train.npz` and `test.npz`, each with images and labels."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from teas.errors import TeasError

LAYOUT = "images, bytes [n, channel, row, column] or [n, row, column], and labels, integers [n] from 0"


def read_arrays(folder: Path) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Training and test images `[n, channel, row, column]` with their labels; raises `TeasError` for files that are missing or hold something else."""
    train, test = (_split(folder / f"{part}.npz") for part in ("train", "test"))
    if train[0].shape[1:] != test[0].shape[1:]:
        raise TeasError(f"{folder}: images are {list(train[0].shape[1:])} in train.npz and {list(test[0].shape[1:])} in test.npz; they must be the same")
    return train, test


def _split(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
    except FileNotFoundError:
        raise TeasError(f"{path} is missing; the data set 'arrays' is train.npz and test.npz, each with {LAYOUT}") from None
    except (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error, zipfile.BadZipFile) as error:
        raise TeasError(f"{path} can't be read: {error}; it must hold {LAYOUT}") from None
    if images.ndim == 3:
        images = images[:, None]
    if images.dtype != np.uint8 or images.ndim != 4 or labels.shape != images.shape[:1] or not len(images):
        raise TeasError(f"{path} has images {images.dtype} {list(images.shape)} and labels {labels.dtype} {list(labels.shape)}; it must hold {LAYOUT}")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise TeasError(f"{path} has labels {labels.dtype} from {labels.min()}; they must be integers from 0")
    return images, labels.astype(np.int64)
