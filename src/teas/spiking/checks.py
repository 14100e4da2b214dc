"""Checks of what a network is given."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from teas.errors import TeasError


def check_inputs(inputs: Tensor) -> Callable[[], None]:
    """Raise `TeasError` where inputs are not finite; a GPU in training is asked, and waited for by the function that is returned, lest it run dry."""

    def judge(finite: Tensor, known: torch.cuda.Event | None = None) -> None:
        if known:
            known.synchronize()
        if not finite:
            raise TeasError(f"the input of shape {tuple(inputs.shape)} has NaN or infinite values; clean the data first")

    if not (inputs.is_cuda and torch.is_grad_enabled()):
        judge(inputs.isfinite().all())
        return lambda: None
    if torch.cuda.is_current_stream_capturing():
        return lambda: None
    finite, known = inputs.isfinite().all().to("cpu", non_blocking=True), torch.cuda.Event()  # type: ignore[no-untyped-call]
    known.record()
    return lambda: judge(finite, known)
