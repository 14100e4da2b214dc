"""Activation recomputation per layer: the backward pass runs a layer again instead of keeping what it computed, and trains wait as bits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from teas.spiking.neuron import Emission
from teas.spiking.room import room
from teas.spiking.window import has_channels_last, kernels_for

_LAST, _FIRST = (0, 2, 3, 1), (0, 3, 1, 2)  # channels of an image moved last, and back
_DIAGONAL, _LOWEST = 0x8040201008040201 - 2**64, 0x0101010101010101


def to_bits(train: Tensor) -> Tensor:
    """A tensor of 0 and 1 as bytes of eight bits each, in the order of its memory where channels lie last, padded with zeros."""
    ordered = train.permute(*_LAST) if has_channels_last(train) else train
    kernels = _kernels(train.device, train.dtype)
    if kernels and ordered.is_contiguous():
        packed: Tensor = kernels.pack(ordered.flatten())
        return packed
    flat = ordered.to(torch.uint8).flatten()
    eight = nn.functional.pad(flat, (0, -len(flat) % 8)).view(torch.int64)
    # One product moves the eight ones and zeros of a word into its highest byte, a bit each, the first one highest.
    return (eight * _DIAGONAL).view(torch.uint8)[7::8].contiguous()


def from_bits(bits: Tensor, shape: torch.Size, dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    """The tensor that `to_bits` packed."""
    kernels = _kernels(bits.device, dtype)
    if kernels:
        train = room(shape, dtype, bits.device, channels_last)
        kernels.unpack(bits, (train.permute(*_LAST) if channels_last else train).flatten())
        return train
    spread = (bits.to(torch.int64) * _DIAGONAL).bitwise_right_shift_(7).bitwise_and_(_LOWEST).view(torch.uint8)[: shape.numel()]
    if channels_last:
        return spread.view([shape[axis] for axis in _LAST]).permute(*_FIRST).to(dtype)
    return spread.view(shape).to(dtype)


def _kernels(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    return kernels_for(device.type) if dtype == torch.float32 else None


@contextlib.contextmanager
def kept_as_bits(trains: Sequence[Tensor]) -> Iterator[None]:
    """What autograd keeps of these spike trains here, it keeps as bits."""
    binary = {train.data_ptr() for train in trains}

    def pack(tensor: Tensor) -> Any:
        if tensor.data_ptr() not in binary or not tensor.is_floating_point():
            return tensor
        return to_bits(tensor), tensor.shape, tensor.dtype, has_channels_last(tensor)

    def unpack(kept: Any) -> Tensor:
        return from_bits(*kept) if isinstance(kept, tuple) else kept

    with saved_tensors_hooks(pack, unpack):
        yield


def recomputed(run: Callable[..., Emission], inputs: Sequence[Tensor], trains: Sequence[Tensor], norms: Sequence[nn.Module]) -> Emission:
    """`run(*inputs)`, run again in the backward pass: until then only its inputs are kept, those that are spike trains (`trains`) as bits.

    norms: the batch norms inside, whose running statistics the second run leaves alone.
    """

    def contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        return contextlib.nullcontext(), _frozen(norms)

    with kept_as_bits(trains):
        emission: Emission = checkpoint(run, *inputs, use_reentrant=False, context_fn=contexts)
    return emission


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
