"""Time windows: how many steps each layer runs, as an immutable value."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import SupportsIndex

from teas.errors import TeasError


def _steps(layer: str, window: object) -> int:
    """A window as an integer, also NumPy's."""
    if isinstance(window, SupportsIndex) and not isinstance(window, bool) and operator.index(window) >= 1:
        return operator.index(window)
    raise TeasError(f"the time window of layer {layer!r} is {window!r}; it must be an integer >= 1")


class TimeWindows(Mapping[str, int]):
    """Time window `T_l` of every layer: an immutable mapping from layer name to steps (an integer >= 1).

    Raises `TeasError` for a window that is not an integer >= 1, or for no layer at all.
    """

    def __init__(self, steps: Mapping[str, int]):
        if not steps:
            raise TeasError("time windows need at least one layer; none was given")
        self._steps = {layer: _steps(layer, window) for layer, window in steps.items()}

    @classmethod
    def of(cls, windows: Mapping[str, int] | int, layers: Iterable[str]) -> TimeWindows:
        """The windows of these layers from a mapping, or from one integer for all of them; raises `TeasError` for anything else, or where they don't fit."""
        if isinstance(windows, Iterable) and not isinstance(windows, Mapping):
            raise TeasError(f"time windows are one integer, or a mapping of layer name to steps; got {windows!r}")
        layers = tuple(layers)
        chosen = windows if isinstance(windows, cls) else cls(windows) if isinstance(windows, Mapping) else cls.uniform(layers, windows)
        chosen.validate(layers)
        return chosen

    @classmethod
    def uniform(cls, layers: Iterable[str], steps: int) -> TimeWindows:
        """The same window for every layer: the one global number of time steps."""
        return cls(dict.fromkeys(layers, steps))

    def __getitem__(self, layer: str) -> int:
        return self._steps[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)

    def __hash__(self) -> int:
        return hash(tuple(sorted(self._steps.items())))

    def __repr__(self) -> str:
        return f"TimeWindows({self._steps})"

    @property
    def mean(self) -> float:
        """Unweighted mean over the layers, in steps: the figure that the paper reports."""
        return self.sum / len(self)

    @property
    def max(self) -> int:
        """Longest window, in steps: the interval between two results of a layer pipeline."""
        return max(self._steps.values())

    @property
    def sum(self) -> int:
        """Sum over the layers, in steps: the latency of one inference through a chain of layers."""
        return sum(self._steps.values())

    def replace(self, steps: Mapping[str, int]) -> TimeWindows:
        """These windows with some layers changed; raises `TeasError` for an unknown layer."""
        changed = TimeWindows({**self._steps, **steps})
        changed.validate(self._steps)
        return changed

    def validate(self, layers: Iterable[str]) -> None:
        """Raise `TeasError` unless exactly these layers have a window."""
        layers = list(layers)
        unknown = [layer for layer in self if layer not in layers]
        missing = [layer for layer in layers if layer not in self._steps]
        if unknown or missing:
            faults = [f"unknown layer {layer!r}" for layer in unknown] + [f"no window for layer {layer!r}" for layer in missing]
            raise TeasError(f"the time windows do not fit the network: {'; '.join(faults)}. Its layers are: {', '.join(layers)}")

    def to_json(self) -> str:
        """JSON object, layer name to steps, in the order of the layers."""
        return json.dumps(self._steps, indent=2)

    @classmethod
    def from_json(cls, text: str) -> TimeWindows:
        """Windows from a JSON object; raises `TeasError` for anything else."""
        try:
            steps = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise TeasError(f"time windows must be a JSON object of layer name to steps; this is not JSON: {error}") from None
        if not isinstance(steps, dict):
            raise TeasError(f"time windows must be a JSON object of layer name to steps; got a {type(steps).__name__}")
        return cls(steps)
