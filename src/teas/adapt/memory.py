"""Memory of a training step: how much was used, and what to do when it runs out."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator

import torch

from teas.errors import TeasError
from teas.spiking.time_windows import TimeWindows


def peak_memory(device: torch.device) -> float:
    """The largest memory in use so far, in MiB: of the device, or of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _is_out_of_memory(error: BaseException) -> bool:
    """A CPU's allocator has no exception of its own: it says so in words."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error) or "not enough memory" in str(error)


@contextlib.contextmanager
def explained(batch: int, parts: int, windows: TimeWindows) -> Iterator[None]:
    """Turn running out of memory into a `TeasError` that names the batch size, the windows and the ways out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise TeasError(
            f"out of memory: a training step of {batch} samples{f' in {parts} parts' if parts > 1 else ''} at windows {dict(windows)} "
            f"(mean {windows.mean:.1f}) does not fit. Three ways out: training.parts = {2 * parts} (the same batch in smaller parts), "
            "training.recompute = true (run layers again instead of keeping what they computed; slower), or shorter windows "
            "(training.window; memory falls with their mean). The checkpoint keeps the epoch before: change the experiment in a new folder."
        ) from None
