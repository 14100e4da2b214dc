"""Kernels of a window on a CPU: the compiled loops of `window_loops`, given tensors, in parts on as many threads as torch has."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from teas.spiking import window_loops
from teas.spiking.window import Moments, inner_of, laid_out_as, room_like

if TYPE_CHECKING:
    from teas.spiking.neuron import IF

_ALONE = 1 << 17  # neurons times steps, up to which one thread is sooner done than it has called others
_PARTS = 16  # of the neurons, each with sums of its own: they are added in the same order by any number of threads
_SURROGATES = {"triangle": window_loops.TRIANGLE, "literal": window_loops.LITERAL, "arctan": window_loops.ARCTAN}
_EIGHT = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32)  # the bits of every byte, the first one highest
_u, _f = np.uint64, np.float32


def fits(sums: Tensor, threshold: Tensor, neuron: IF) -> bool:
    """Whether these loops run it: 32 bits, neurons that lie densely in memory, and one threshold, or one a channel (axis 1 of a batch)."""
    known = neuron.surrogate in _SURROGATES and sums.dtype == threshold.dtype == torch.float32
    return known and threshold.numel() in (1, sums.shape[2]) and sums.numel() > 0 and inner_of(sums) is not None


def forward(sums: Tensor, moments: Moments | None, threshold: Tensor, neuron: IF, leak: float, steps: int, once: bool) -> tuple[Tensor, ...]:
    """Spikes `[time, batch, *neuron]`; counts, sums of firing potentials and potentials left, `[batch, *neuron]`; of sums `[time or 1, batch, *neuron]`."""
    spikes = room_like(sums, steps)
    found = [torch.empty_like(spikes[0]) for _ in range(3)]
    factors, shifts, _, thresholds = _by_channel(sums, moments, threshold)
    sizes = _sizes(sums, thresholds)
    arrays = [_flat(sums), factors, shifts, thresholds, *map(_flat, (spikes, *found))]

    def run(_: int, first: int, last: int) -> None:
        window_loops.forward(
            *arrays, _u(steps), len(sums) == 1, *sizes, first, last, _f(leak), _f(neuron.v0), *_reset(neuron), once,
        )  # fmt: skip

    _share(run, sizes, steps)
    return spikes, *found


def backward(
    sums: Tensor, moments: Moments | None, threshold: Tensor, grad_spikes: Tensor, neuron: IF, leak: float, steps: int, once: bool,
    learns_threshold: bool, learns_leak: bool,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Gradients of the sums `[time or 1, batch, *neuron]`, of a norm's weight and bias `[channel]`, and of each neuron's threshold and leak."""
    grad_sums, none = room_like(sums, len(sums)), sums.new_empty(0)
    to_threshold = torch.empty_like(grad_sums[0]) if learns_threshold else None
    to_leak = torch.empty_like(grad_sums[0]) if learns_leak else None
    factors, shifts, means, thresholds = _by_channel(sums, moments, threshold)
    sizes = _sizes(sums, thresholds)
    to_shift, to_factor = np.zeros((2, _PARTS, len(thresholds)))
    x, gradient = _flat(sums), _flat(grad_sums)
    kept = [_flat(none if tensor is None else tensor) for tensor in (to_threshold, to_leak)]
    given = _flat(laid_out_as(grad_spikes, sums))

    def run(part: int, first: int, last: int) -> None:
        window_loops.backward(
            x, factors, shifts, means, thresholds, given, gradient, *kept, to_shift[part], to_factor[part], _u(steps), len(sums) == 1, *sizes, first, last,
            _f(leak), _f(neuron.v0), *_reset(neuron), once, _SURROGATES[neuron.surrogate], learns_threshold, learns_leak, moments is not None,
        )  # fmt: skip

    _share(run, sizes, steps)
    if moments is None:
        return grad_sums, None, None, to_threshold, to_leak
    to_bias, scale = to_shift.sum(0), moments.scale.double().numpy()
    to_weight = to_factor.sum(0) * scale
    values = sums.numel() // len(factors)
    offsets, slopes = (to_bias / values).astype(np.float32), (to_weight * scale / values).astype(np.float32)

    def through(_: int, first: int, last: int) -> None:
        window_loops.through_norm(gradient, x, factors, offsets, slopes, means, _u(len(sums)), *sizes, first, last)

    _share(through, sizes, len(sums))
    of_weight = None if moments.weight is None else torch.from_numpy(to_weight).float()
    of_bias = None if moments.bias is None else torch.from_numpy(to_bias).float()
    return grad_sums, of_weight, of_bias, to_threshold, to_leak


def pack(train: Tensor) -> Tensor:
    """Ones and zeros `[neuron]` as bytes of eight bits each, the first one highest, padded with zeros."""
    whole, bits = train.numel() // 8, torch.empty(-(-train.numel() // 8), dtype=torch.uint8)
    values, found = _flat(train), bits.numpy()
    _share(lambda _, first, last: window_loops.pack(values, found, first, last), (_u(whole), _u(1), _u(1)), 8)
    if whole < len(found):
        found[whole] = np.packbits(values[8 * whole :] != 0)[0]
    return bits


def unpack(bits: Tensor, train: Tensor) -> None:
    """Write what `pack` packed, `[neuron]`."""
    whole, values, packed = train.numel() // 8, _flat(train), bits.numpy()
    _share(lambda _, first, last: window_loops.unpack(packed, _EIGHT, values, first, last), (_u(whole), _u(1), _u(1)), 8)
    values[8 * whole :] = np.unpackbits(packed[whole:])[: len(values) - 8 * whole]


def _reset(neuron: IF) -> tuple[np.float32, np.float32, np.float32]:
    return (_f(1), _f(neuron.reset_by), _f(0)) if neuron.reset == "subtract" else (_f(0), _f(0), _f(neuron.v_reset))


def _by_channel(sums: Tensor, moments: Moments | None, threshold: Tensor) -> list[np.ndarray]:
    """Factor, shift, mean and threshold of every channel, or of all neurons where channels don't differ."""
    channels = sums.shape[2] if moments or threshold.numel() > 1 else 1
    plain = torch.ones(()), torch.zeros(()), torch.zeros(())
    values = (*((moments.factor, moments.shift, moments.mean) if moments else plain), threshold.flatten())
    return [value.detach().float().expand(channels).contiguous().numpy() for value in values]


def _sizes(sums: Tensor, thresholds: np.ndarray) -> tuple[Any, Any, Any]:
    """Neurons of a step, how many neighbours share a channel, and neurons of a block: whole rows of channels where these are neighbours and so few."""
    size, inner, channels = sums[0].numel(), inner_of(sums), len(thresholds)
    assert inner is not None
    if channels == 1:
        return _u(size), _u(size), _u(window_loops.BLOCK)
    whole_rows = inner == 1 and channels <= window_loops.BLOCK
    return _u(size), _u(inner), _u(window_loops.BLOCK // channels * channels if whole_rows else window_loops.BLOCK)


def _flat(tensor: Tensor) -> np.ndarray:
    """The values in the order of memory."""
    return tensor.detach().as_strided((tensor.numel(),), (1,)).numpy()


def _share(run: Callable[[int, Any, Any], None], sizes: tuple[Any, Any, Any], steps: int) -> None:
    """Run all parts, `(number, first neuron, last neuron)`, on torch's number of threads."""
    size, block = int(sizes[0]), int(sizes[2])
    blocks = -(-size // block)
    edges = [_u(min(size, blocks * part // _PARTS * block)) for part in range(_PARTS + 1)]
    threads = min(torch.get_num_threads(), _PARTS) if size * steps >= _ALONE else 1
    waiting = deque(range(_PARTS))

    def work() -> None:  # whoever is free takes the next part: torch's own threads wait busily beside ours for a while
        with contextlib.suppress(IndexError):
            while True:
                part = waiting.popleft()
                run(part, edges[part], edges[part + 1])

    if threads == 1:
        return work()
    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(work) for _ in range(threads - 1)]
        work()
    for other in others:
        other.result()
