"""The kernels of a window, the GPU's interpreted on the CPU, against the step-by-step window that the oracle checks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from window_cases import check

CASES = 288


def test_kernels_do_what_the_step_by_step_window_does() -> None:
    pytest.importorskip("triton", reason="Triton comes with torch's builds for NVIDIA GPUs only")
    command = [sys.executable, str(Path(__file__).with_name("window_cases.py")), "teas.spiking.window_kernels"]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == f"{CASES} cases\n"


@pytest.mark.parametrize("threads", [1, 2])
def test_loops_do_what_the_step_by_step_window_does(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    loops = pytest.importorskip("teas.spiking.window_cpu", reason="numba is not installed")
    monkeypatch.setattr(loops, "_ALONE", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert check(loops) == CASES


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_kernels_on_a_gpu_do_what_the_step_by_step_window_does() -> None:
    from teas.spiking import window_kernels

    with torch.device("cuda"):
        assert check(window_kernels, every=11) == 27  # each is compiled first


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
    assert window._kernels(torch.zeros(6, 4, 8, 6, 6, device="cuda"), torch.ones((), device="cuda"), neurons()) is not None
    for ours, theirs in zip(gradients["cuda"], gradients["cpu"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_refuses_bad_inputs_and_captures_a_step() -> None:
    import teas

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(6, 8), teas.IF(0.5, surrogate="arctan"), torch.nn.Linear(8, 3)).cuda()
    network, inputs = teas.SpikingNetwork(module, 6), torch.randn(4, 6, device="cuda")
    for learning in (False, True):
        with torch.set_grad_enabled(learning), pytest.raises(teas.TeasError, match="NaN"):
            network(inputs * float("nan"))

    def step() -> torch.Tensor:
        network.zero_grad()
        loss = network(inputs).logits.square().sum()
        loss.backward()
        return loss.detach()

    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        expected = step()
    torch.cuda.current_stream().wait_stream(stream)
    wanted = [parameter.grad.clone() for parameter in network.parameters()]
    with torch.cuda.graph(graph):
        found = step()
    graph.replay()
    torch.testing.assert_close(found, expected)
    for parameter, gradient in zip(network.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("subtracts", [False, True])
def test_kernels_compile_for_a_gpu_that_is_not_here(subtracts: bool) -> None:
    """Interpreted Triton takes what its compiler refuses; the compiler needs no GPU."""
    triton = pytest.importorskip("triton", reason="Triton comes with torch's builds for NVIDIA GPUs only")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from teas.spiking import window_kernels

    whole, real = ("size", "inner", "channels", "thresholds", "steps"), ("leak", "v0", "v_reset", "reset_by")
    kinds = {**dict.fromkeys(whole, "i32"), **dict.fromkeys(real, "fp32")}
    for once, lasting, surrogate, learns in ((False, False, "triangle", False), (True, True, "literal", True), (False, True, "arctan", True)):
        chosen = {
            "normed": not once, **({"weight": None, "bias": None} if lasting else {}),
            "lasting": lasting, "subtracts": subtracts, "once": once, "block": 1024, "surrogate": surrogate, "learns_threshold": learns, "learns_leak": learns,
        }  # fmt: skip
        for kernel in (window_kernels._forward, window_kernels._backward, window_kernels._through_norm):
            names = kernel.arg_names
            constants = {name: value for name, value in chosen.items() if name in names}
            signature = {name: "constexpr" if name in constants else kinds.get(name, "*fp32") for name in names}
            compiled = triton.compile(ASTSource(kernel, signature, constexprs=constants), target=GPUTarget("cuda", 90, 32))
            assert len(compiled.asm["cubin"]) > 1000
    for kernel in (window_kernels._pack, window_kernels._unpack):
        signature = {"train": "*fp32", "bits": "*u8", "size": "i32", "block": "constexpr"}
        source = ASTSource(kernel, {name: signature[name] for name in kernel.arg_names}, constexprs={"block": 128})
        assert len(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]) > 1000
