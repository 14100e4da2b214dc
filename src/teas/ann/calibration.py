"""The calibration of a conversion: the ANN run once on inputs without labels, what its activations return recorded."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from teas.ann.activations import Activation
from teas.ann.thresholds import Samples
from teas.errors import TeasError
from teas.spiking.checks import check_dtype, shape_noted

_KEPT_VALUES = 2_000_000  # input values kept for bias correction: 650 images of CIFAR, 16 of ImageNet
_BATCH_VALUES = 200_000  # and at a time, of which the first are for the report: 65 images of CIFAR, 8 of ImageNet


class Recorder(nn.Module):
    """An activation that keeps samples of what it returns."""

    def __init__(self, activation: Activation, samples: Samples):
        super().__init__()
        self.activation, self.samples, self.last = activation, samples, torch.empty(0)

    def forward(self, current: Tensor) -> Tensor:
        quantised = self.activation.quantised
        self.last = quantised(current) if quantised else current.clamp(0, self.activation.ceiling)
        self.samples.add(self.last)
        return self.last


def peeked(batches: Iterator[Tensor]) -> tuple[Tensor | None, Iterator[Tensor]]:
    """The first inputs, None where there are none, and all."""
    first = next(batches, None)
    return first, batches if first is None else itertools.chain([first], batches)


def record_all(recording: nn.Module, calibration: Iterable[Tensor], held_out: int) -> tuple[list[Tensor], list[Tensor]]:
    """Run the calibration through a network that records; returns the first inputs, and the batches that were held out, of so many inputs or more."""
    kept: list[Tensor] = []
    out: list[Tensor] = []
    for inputs in calibration:
        check_dtype(recording, inputs)
        if not inputs.isfinite().all():
            raise TeasError("the calibration inputs have NaN or infinite values; clean the data first")
        if sum(map(len, out)) < held_out:
            out.append(inputs)
        else:
            with shape_noted(inputs):
                recording(inputs)
        if sum(part.numel() for part in kept) < _KEPT_VALUES:
            kept.append(inputs)
    if not kept or len(kept[0]) == 0:
        raise TeasError("calibration needs at least one batch of inputs; the data is empty")
    return kept, out


def first_of(batches: list[Tensor]) -> tuple[Tensor, ...]:
    """The first inputs, not many more values of them than are kept, in batches small enough to record every layer."""
    inputs = torch.cat(batches)
    size = inputs[0].numel()
    return torch.split(inputs[: max(16, _KEPT_VALUES // size)], max(8, _BATCH_VALUES // size))
