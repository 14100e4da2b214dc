"""One set of weights for many windows: several windows in every step of training, and batch norms put right for each afterwards."""

from __future__ import annotations

import random
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from teas.errors import TeasError

Norm = nn.modules.batchnorm._BatchNorm


def sandwich(bounds: tuple[int, ...], draw: random.Random) -> tuple[int, ...]:
    """Windows of one step of training: the shortest and the longest, which are the bounds, and one between them at random, where there is one.

    Source: the sandwich rule, Yu and Huang, "Universally slimmable networks" (ICCV 2019).
    """
    shortest, longest = bounds
    between = (draw.randint(shortest + 1, longest - 1),) if longest - shortest > 1 else ()
    return tuple(dict.fromkeys((shortest, *between, longest)))


@torch.no_grad()
def recalibrate(ann: nn.Module, batches: Iterable[Tensor | tuple[Tensor, ...]]) -> None:
    """Measure the statistics of all batch norms anew, in place: mean over the batches of each batch's mean and variance, nothing else is changed.

    For windows other than those that they were gathered at (see `set_windows`). batches: inputs `[batch, *shape]`, or tuples that begin with them.
    Raises `TeasError` for no batch, or one of a single sample, which has no variance.
    """
    norms = [module for module in ann.modules() if isinstance(module, Norm) and module.track_running_stats]
    before = [(module, module.training) for module in ann.modules()]
    momenta = [norm.momentum for norm in norms]
    ann.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum, norm.training = None, True  # None: a plain mean over all batches
    seen = 0
    try:
        for batch in batches:
            inputs = batch if isinstance(batch, Tensor) else batch[0]
            if len(inputs) < 2:
                raise TeasError(f"recalibrating batch norms needs batches of at least two samples; got one of {len(inputs)}")
            ann(inputs)
            seen += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in before:
            module.training = training
    if norms and not seen:
        raise TeasError("recalibrating batch norms needs at least one batch; the data is empty")
