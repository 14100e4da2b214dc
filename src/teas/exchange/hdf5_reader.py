"""Run as a process of its own: reads HDF5 files and writes their content to standard output, one frame a file.

The HDF5 library loops for ever or crashes on some damaged files. Here that ends this process, and nothing else. Imports nothing of teas.
"""

from __future__ import annotations

import io
import math
import signal
import struct
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np

DEPTH, ENTRIES = 8, 100_000
RATIO = 1100  # more than deflate can pack; arrays that claim more are damaged


class Refused(Exception):
    """The file is not what it should be; the message says why."""


def content(path: str, limit: int) -> dict[str, np.ndarray]:
    """Every array below the group `node`, by its path in it; links out of the file are refused."""
    size, found, left = Path(path).stat().st_size, {}, [limit, ENTRIES]

    def read(group: Any, prefix: str, depth: int) -> None:
        for name in group:
            left[1] -= 1
            if depth > DEPTH or left[1] < 0 or not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise Refused(f"{prefix}{name} is a link out of the file, or there are too many groups for a NIR graph")
            item = group[name]
            if isinstance(item, h5py.Group):
                read(item, f"{prefix}{name}/", depth + 1)
            else:
                found[prefix + name] = array(prefix + name, item)

    def array(name: str, dataset: Any) -> np.ndarray:
        if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
            raise Refused(f"{name} is not plain data")
        chunks = math.prod(-(-length // chunk) for length, chunk in zip(dataset.shape, dataset.chunks, strict=True)) if dataset.chunks else 1
        left[0] -= dataset.nbytes
        if left[0] < 0 or dataset.nbytes > RATIO * size or chunks > size:
            raise Refused(f"{name} claims {dataset.nbytes} bytes in {chunks} pieces, more than the file can hold or than {limit >> 20} MiB in all")
        value = dataset[()]
        if isinstance(value, bytes):
            return np.array(value.decode())
        value = np.asarray(value)
        return np.array([text.decode() for text in value.ravel()]).reshape(value.shape) if value.dtype == object else value

    with h5py.File(path, "r") as file:
        if not isinstance(file.get("node"), h5py.Group):
            raise Refused("it is an HDF5 file without a NIR graph")
        read(file["node"], "", 0)
    return found


def frame(path: str, limit: int) -> bytes:
    """The content of a file as `np.savez` writes it, or why there is none; with its kind and length before it."""
    try:
        buffer = io.BytesIO()
        np.savez(buffer, **content(path, limit))  # type: ignore[arg-type]
        kind, data = 0, buffer.getvalue()
    except Exception as error:  # the library raises anything on damaged files
        kind, data = 1, (str(error).strip() or type(error).__name__).splitlines()[0].encode()
    return struct.pack("<BQ", kind, len(data)) + data


def main(seconds: str, limit: str, *paths: str) -> None:
    """One frame a file; a file that takes longer than `seconds` ends the process."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (2 * int(limit) + 2**30,) * 2)
    except (ImportError, ValueError, OSError):
        pass  # not on this system; the limits above hold
    for path in paths:
        if hasattr(signal, "alarm"):
            signal.alarm(int(seconds))
        sys.stdout.buffer.write(frame(path, int(limit)))
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
