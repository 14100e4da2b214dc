"""Read NIR files (HDF5) as plain dictionaries, in a process of its own; write one whole."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from teas.errors import TeasError
from teas.exchange.optional import library
from teas.files import write_atomically

LIMIT = 2**31  # bytes of all arrays of a file together, unpacked
SECONDS = 30
Tree = dict[str, Any]


def read_tree(path: Path) -> Tree:
    """Groups as dictionaries, arrays as numpy arrays, texts as str.

    Raises `TeasError` for a file that is missing or damaged, has links out of itself, unpacks to more than `LIMIT` bytes or takes more than
    `SECONDS` to read.
    """
    if not path.is_file():
        raise TeasError(f"{path} does not exist; expected a NIR file")
    found = next(read_trees([path]))
    if isinstance(found, TeasError):
        raise found
    return found


def read_trees(paths: Sequence[Path], seconds: int = SECONDS) -> Iterator[Tree | TeasError]:
    """Several files, each as `read_tree` reads it, or the error. A file that ends the reading process is damaged; the others go on."""
    library("h5py")
    script, left = Path(__file__).with_name("hdf5_reader.py"), list(paths)
    while left:
        command = [sys.executable, "-I", str(script), str(seconds), str(LIMIT), *map(str, left)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            while left:
                head = process.stdout.read(9)
                kind, length = struct.unpack("<BQ", head) if len(head) == 9 else (1, 0)
                data = process.stdout.read(length)
                path = left.pop(0)
                if len(head) < 9 or len(data) < length:
                    yield TeasError(f"{path} is damaged: reading it took more than {seconds} s, or ended the process that read it")
                    break
                yield TeasError(f"{path} is damaged or not a NIR file (HDF5): {data.decode()}") if kind else _tree(path, data)
            process.kill()


def _tree(path: Path, data: bytes) -> Tree | TeasError:
    tree: Tree = {}
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            for name in arrays.files:
                *groups, last = name.split("/")
                place = tree
                for group in groups:
                    place = place.setdefault(group, {})
                value = arrays[name]
                place[last] = str(value) if value.shape == () and value.dtype.kind == "U" else value
    except (ValueError, KeyError, AttributeError, TypeError, OSError, zipfile.BadZipFile) as error:
        return TeasError(f"{path} has names or values that no NIR file has: {str(error).splitlines()[0]}")
    return tree


def write_graph(graph: Any, path: Path) -> None:
    """Write a `nir.NIRGraph`, atomically."""
    buffer = io.BytesIO()
    library("nir").write(buffer, graph)
    write_atomically(path, buffer.getvalue())
