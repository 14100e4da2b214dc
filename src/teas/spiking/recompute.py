"""Activation recomputation per layer: the backward pass runs a layer again instead of keeping what it computed, and trains wait as bits."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from teas.spiking.neuron import Emission


def to_bits(train: Tensor) -> Tensor:
    """A tensor of 0 and 1 as bytes of eight bits each, in its own order, padded with zeros."""
    flat = train.to(torch.uint8).flatten()
    rows = nn.functional.pad(flat, (0, -len(flat) % 8)).view(-1, 8)
    bits: Tensor = sum((rows[:, bit] << bit for bit in range(1, 8)), rows[:, 0])
    return bits


def from_bits(bits: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The tensor that `to_bits` packed."""
    rows = (bits[:, None] >> torch.arange(8, dtype=torch.uint8, device=bits.device)) & 1
    return rows.flatten()[: shape.numel()].view(shape).to(dtype)


_SUMS = {getattr(torch.ops.aten, name).default for name in ("convolution", "mm", "addmm", "bmm")}  # dear to compute: a product of matrices


def recomputed(
    run: Callable[..., Emission], inputs: Sequence[Tensor], trains: Sequence[Tensor], norms: Sequence[nn.Module], keep_sums: bool = False
) -> Emission:
    """`run(*inputs)`, run again in the backward pass: until then only its inputs are kept, those that are spike trains (`trains`) as bits.

    norms: the batch norms inside, whose running statistics the second run leaves alone. keep_sums: keep what convolutions and linear maps
    computed too, so that the second run repeats none of them.
    """
    binary = {train.data_ptr() for train in trains}

    def pack(tensor: Tensor) -> Any:
        return (to_bits(tensor), tensor.shape, tensor.dtype) if tensor.data_ptr() in binary and tensor.is_floating_point() else tensor

    def unpack(kept: Any) -> Tensor:
        return from_bits(*kept) if isinstance(kept, tuple) else kept

    def contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        first, again = contextlib.nullcontext(), contextlib.nullcontext()
        if keep_sums:
            first, again = create_selective_checkpoint_contexts(_policy)  # type: ignore[no-untyped-call]
        return first, _both(_frozen(norms), again)

    with saved_tensors_hooks(pack, unpack), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A saved_tensors_hooks context", FutureWarning)  # sums are no trains: the hooks pass them on or never see them
        emission: Emission = checkpoint(run, *inputs, use_reentrant=False, context_fn=contexts)
    return emission


def _policy(_: Any, operation: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _SUMS else CheckpointPolicy.PREFER_RECOMPUTE


@contextlib.contextmanager
def _both(first: contextlib.AbstractContextManager[None], second: contextlib.AbstractContextManager[None]) -> Iterator[None]:
    with first, second:
        yield


@contextlib.contextmanager
def _frozen(norms: Sequence[nn.Module]) -> Iterator[None]:
    """Batch norms that normalise by their batch and leave their running statistics as they are."""
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
    for norm, *_, tracked in kept:
        norm.momentum, norm.num_batches_tracked = 0.0, None if tracked is None else tracked.clone()
    try:
        yield
    finally:
        for norm, momentum, tracked in kept:
            norm.momentum, norm.num_batches_tracked = momentum, tracked
