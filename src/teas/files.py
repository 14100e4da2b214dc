"""Files that are either whole or not there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from teas.errors import TeasError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name beside it and rename it into place; raises `TeasError` where that fails (a full disk)."""
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise TeasError(f"cannot write {path}: {error.strerror or error}. Nothing was lost; make room or choose another folder, and run it again") from None
        raise


def remove_strays(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder, `.NAME.json.XXXXXXXX` and the like, and nothing else."""
    for stray in folder.glob(".*.????????"):
        if Path(stray.stem).suffix in (".json", ".safetensors", ".html", ".png"):
            stray.unlink(missing_ok=True)
