"""The GPU's kernels of a window, interpreted on the CPU, against the step-by-step window that the oracle checks."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

CHECK = """
import itertools
import torch
import teas
from teas.spiking import window_kernels
from teas.spiking.window import _fire, _gradients

def neuron_of(reset, surrogate, v_reset, reset_by, v0):
    return teas.IF(reset=reset, surrogate=surrogate, v0=v0, v_reset=v_reset, reset_by=reset_by)

torch.manual_seed(0)
cases = 0
shapes = [((5, 3, 4), False), ((3, 2, 3, 4, 5), False), ((3, 2, 3, 4, 5), True), ((1, 2, 3, 4, 5), False), ((1, 30, 70), False)]
for (shape, last), reset, surrogate, once in itertools.product(shapes, ("zero", "subtract"), ("triangle", "literal", "arctan"), (False, True)):
    for leak, per_channel, v0, v_reset, reset_by in ((1.0, False, 0.0, 0.0, 1.0), (0.5, True, 0.5, -0.25, 2.0)):
        steps = 6 if shape[0] == 1 else shape[0]
        current = torch.randint(-8, 17, shape) / 16  # dyadic: sums are exact, ties occur
        if last:
            current = current.flatten(0, 1).contiguous(memory_format=torch.channels_last).view(shape)
        neuron = neuron_of(reset, surrogate, v_reset, reset_by, v0)
        threshold = torch.randint(4, 17, (shape[2],)) / 16 if per_channel else torch.tensor(0.5)
        threshold = threshold.view(-1, *[1] * (len(shape) - 3)) if per_channel else threshold
        assert window_kernels.fits(current, threshold)
        found = window_kernels.forward(current, threshold, neuron, leak, steps, once)
        wanted = _fire(current, threshold, neuron, leak, steps, once)
        for ours, theirs in zip(found, wanted, strict=True):
            assert torch.equal(ours, theirs), (shape, last, reset, once, leak)
        gradient = torch.randn(steps, *shape[1:])
        found = window_kernels.backward(current, threshold, gradient, neuron, leak, steps, once, True, True)
        wanted = _gradients(current, threshold, gradient, neuron, leak, steps, once, True, True, False)
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        cases += 1
assert not window_kernels.fits(torch.zeros(2, 2, 3, 4, 5).transpose(3, 4), torch.tensor(1.0))
assert not window_kernels.fits(torch.zeros(2, 2, 3, dtype=torch.float64), torch.tensor(1.0))
assert not window_kernels.fits(torch.zeros(1, 2, 3).expand(4, 2, 3), torch.tensor(1.0))
print(cases, "cases")
"""


def test_kernels_do_what_the_step_by_step_window_does() -> None:
    pytest.importorskip("triton", reason="Triton comes with torch's builds for NVIDIA GPUs only")
    done = subprocess.run([sys.executable, "-c", CHECK], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "120 cases\n"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_a_gpu_trains_like_the_cpu(reset: str) -> None:
    import teas
    from teas.spiking import window

    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    neurons = lambda: teas.IF(0.5, reset=reset, surrogate="arctan", learn_threshold=True)  # noqa: E731
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), neurons(), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 5))
    inputs = torch.randn(4, 3, 8, 8)
    gradients = {}
    for device in ("cpu", "cuda"):
        network = teas.SpikingNetwork(module.to(device), 6)
        network.zero_grad()
        network(inputs.to(device)).logits.square().sum().backward()
        gradients[device] = [parameter.grad.detach().cpu().clone() for parameter in network.parameters()]
    assert window._kernels(torch.zeros(6, 4, 8, 6, 6, device="cuda"), torch.ones((), device="cuda")) is not None
    for ours, theirs in zip(gradients["cuda"], gradients["cpu"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("subtracts", [False, True])
def test_kernels_compile_for_a_gpu_that_is_not_here(subtracts: bool) -> None:
    """Interpreted Triton takes what its compiler refuses; the compiler needs no GPU."""
    triton = pytest.importorskip("triton", reason="Triton comes with torch's builds for NVIDIA GPUs only")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from teas.spiking import window_kernels

    kinds = {"size": "i32", "inner": "i32", "channels": "i32", "steps": "i32", "leak": "fp32", "v0": "fp32", "v_reset": "fp32", "reset_by": "fp32"}
    for once, lasting, surrogate, learns in ((False, False, "triangle", False), (True, True, "literal", True), (False, True, "arctan", True)):
        chosen = {
            "lasting": lasting, "subtracts": subtracts, "once": once, "block": 1024, "surrogate": surrogate, "learns_threshold": learns, "learns_leak": learns,
        }  # fmt: skip
        for kernel in (window_kernels._forward, window_kernels._backward):
            names = kernel.arg_names
            constants = {name: value for name, value in chosen.items() if name in names}
            signature = {name: "constexpr" if name in constants else kinds.get(name, "*fp32") for name in names}
            compiled = triton.compile(ASTSource(kernel, signature, constexprs=constants), target=GPUTarget("cuda", 90, 32))
            assert len(compiled.asm["cubin"]) > 1000
