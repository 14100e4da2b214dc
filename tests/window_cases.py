"""Windows of all kinds, run by a module of fused kernels and step by step, as the oracle checks it; `python window_cases.py MODULE` does them all."""

import importlib
import itertools
import sys

import numpy as np
import torch

import teas
from teas.spiking.window import Moments, _backward, _forward, _normalised_again

# Shape of the sums, and whether channels lie last. The last ones need several blocks, of neurons and of channels.
SHAPES = [((5, 3, 4), False), ((3, 2, 3, 4, 5), False), ((3, 2, 3, 4, 5), True), ((1, 2, 3, 4, 5), False), ((1, 30, 70), False), ((2, 3, 7, 15, 11), True)]
NEURONS = [(1.0, False, 0.0, 0.0, 1.0), (0.5, True, 0.5, -0.25, 2.0)]  # leak, thresholds per channel, v0, v_reset, reset_by


def dyadic(low, high, *shape):
    return torch.randint(low, high, shape) / 16  # sums and products are exact, ties occur


def check(kernels, every: int = 1) -> int:
    """Run each `every`-th case, on torch's default device, and say how many."""
    torch.manual_seed(0)
    cases = list(itertools.product(SHAPES, (False, True), ("zero", "subtract"), ("triangle", "literal", "arctan"), (False, True), NEURONS))[::every]
    for (shape, last), normed, reset, surrogate, once, (leak, per_channel, v0, v_reset, reset_by) in cases:
        steps = 6 if shape[0] == 1 else shape[0]
        sums = dyadic(-8, 17, *shape)
        if last:
            sums = sums.flatten(0, 1).contiguous(memory_format=torch.channels_last).view(shape)
        neuron = teas.IF(reset=reset, surrogate=surrogate, v0=v0, v_reset=v_reset, reset_by=reset_by)
        channels, after = shape[2], [1] * (len(shape) - 3)
        threshold = dyadic(4, 17, channels).view(-1, *after) if per_channel else torch.tensor(0.5)
        affine = (dyadic(8, 33, channels), dyadic(-8, 9, channels)) if once else (None, None)
        moments = Moments(dyadic(-8, 9, channels), 2.0 ** torch.randint(-1, 2, (channels,)), *affine, 1e-5) if normed else None
        assert kernels.fits(sums, threshold, neuron)
        found = kernels.forward(sums, moments, threshold, neuron, leak, steps, once)
        current = _normalised_again(sums, moments) if moments else sums
        for ours, theirs in zip(found, _forward(current, threshold, neuron, leak, steps, once), strict=True):
            assert torch.equal(ours, theirs), (shape, last, normed, reset, once, leak)
        assert found[0].stride() == torch.empty_like(found[0]).stride()
        gradient = torch.randn(steps, *shape[1:])
        found = kernels.backward(sums, moments, threshold, gradient, neuron, leak, steps, once, True, True)
        wanted = _backward(sums, moments, threshold, gradient, neuron, leak, steps, once, True, True)
        for ours, theirs in zip(found, wanted, strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)
        quiet = kernels.backward(sums, moments, threshold, gradient, neuron, leak, steps, once, False, False)
        # What a compiler fuses, and so the last bit, depends on what else there is to do.
        torch.testing.assert_close(quiet[0], found[0], rtol=1e-6 if sums.is_cuda else 0, atol=1e-6 if sums.is_cuda else 0)
        assert quiet[3:] == (None, None)
        if surrogate == "arctan" and kernels.fits(sums.bfloat16(), threshold, neuron):  # the same sums, in 16 bits to the bit
            short = kernels.backward(sums.bfloat16(), moments, threshold, gradient, neuron, leak, steps, once, False, False)
            assert short[0].dtype == torch.bfloat16
            torch.testing.assert_close(short[0].float(), found[0], rtol=8e-3, atol=2e-5)  # interpreted kernels cut 16 bits off
    for size in (0, 1, 8, 1021, 5000):
        train = (torch.rand(size) < 0.4).float()
        bits, again = kernels.pack(train), torch.full((size,), 7.0)
        assert bits.tolist() == np.packbits(train.cpu().numpy().astype(bool)).tolist()
        kernels.unpack(bits, again)
        assert torch.equal(again, train)
    assert not kernels.fits(torch.zeros(2, 2, 3, 4, 5).transpose(3, 4), torch.tensor(1.0), neuron)
    assert not kernels.fits(torch.zeros(2, 2, 3, dtype=torch.float64), torch.tensor(1.0), neuron)
    assert not kernels.fits(torch.zeros(1, 2, 3).expand(4, 2, 3), torch.tensor(1.0), neuron)
    return len(cases)


if __name__ == "__main__":
    print(check(importlib.import_module(sys.argv[1])), "cases")
