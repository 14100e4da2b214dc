"""What the caller of a run shows while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from teas.adapt.training import Epoch, Progress


@dataclass(frozen=True)
class Hooks:
    """A progress display for batches, a line for each epoch, and messages."""

    progress: Progress = lambda batches, _: batches
    on_epoch: Callable[[str, Epoch], None] = lambda arm, epoch: None
    say: Callable[[str], None] = lambda message: None
