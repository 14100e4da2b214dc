"""Room for the large tensors of training on a CPU.

Linux clears a fresh page of memory at its first touch, and the C library returns what is larger than 32 MB at once, so that a large tensor costs a fault
for every 4 KB each time it is made, more than all that is then computed with it. Pages of 2 MB cost a fraction of that.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

_LARGE = 32 << 20  # bytes from which on glibc never keeps what was freed
_HUGE = hasattr(mmap, "MADV_HUGEPAGE")  # Linux


def room(shape: Sequence[int], dtype: torch.dtype, device: torch.device, channels_last: bool = False) -> Tensor:
    """An uninitialised tensor, `[batch, channel, row, column]` where channels lie last."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < _LARGE or not _HUGE:
        return torch.empty(tuple(shape), dtype=dtype, device=device, memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"can't allocate {size} bytes: {error}") from None
    with contextlib.suppress(OSError):  # a kernel without such pages gives its own
        pages.madvise(mmap.MADV_HUGEPAGE)
    values = torch.frombuffer(pages, dtype=dtype)
    if not channels_last:
        return values.view(tuple(shape))
    batch, channels, rows, columns = shape
    return values.view(batch, rows, columns, channels).permute(0, 3, 1, 2)
