"""A training step on a GPU: ours with its Triton kernels, step by step, and through `torch.compile`; SpikingJelly's multi-step mode with Triton and without;
ours and SpikingJelly's fastest captured as a CUDA graph, whose replay costs the GPU's own time alone.

    python benchmarks/gpu_training.py [--window 8] [--batch 32] [--seconds 2] [--contenders ...]

Seven convolutions and two linear layers, forward, backward and update, each contender in a process of its own and alone on the GPU. `check` is the
loss before and after ten steps in exact float32, the same for all of them but for rounding; times are with PyTorch's own settings. Memory is
the peak that a step adds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

CONTENDERS = ("teas", "spikingjelly_triton", "teas_graph", "spikingjelly_triton_graph", "spikingjelly_torch", "teas_compiled", "teas_steps")


def main() -> None:
    """Print a row per contender, speeds relative to SpikingJelly's Triton kernels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(measure(options.contender, options.window, options.batch, options.seconds)))
        return
    rows = {}
    for name in options.contenders:
        environment = os.environ | {"SJ_IF_CUDA_IMPLEMENTATION": name.split("_")[1]} if name.startswith("spikingjelly") else os.environ
        done = subprocess.run([sys.executable, *sys.argv, "--contender", name], env=environment, capture_output=True, text=True)
        if done.returncode:
            print(f"{name:26s} failed: {done.stderr.strip().splitlines()[-1]}")
            continue
        rows[name] = json.loads(done.stdout.splitlines()[-1])
    for name, row in rows.items():
        against = rows.get("spikingjelly_triton", row)
        ratios = f"{against['milliseconds'] / row['milliseconds']:.2f}x speed, {row['megabytes'] / against['megabytes']:.2f}x memory"
        print(
            f"{name:26s} {row['milliseconds']:7.2f} ms ({row['low']:.2f} to {row['high']:.2f})  {row['megabytes']:7.1f} MiB  {ratios}  "
            f"check {row['check'][0]:.5f} {row['check'][1]:.5f}"
        )


def measure(contender: str, window: int, batch: int, seconds: float) -> dict[str, object]:
    """Median, least and most milliseconds of a step, MiB that a step adds at its peak, and the losses of the check."""
    import torch

    from teas.spiking import window as windows
    from teas.study import bench_training

    if contender == "teas_steps":
        windows._kernels = lambda *_: None
    if contender == "teas_compiled":
        windows._kernels = lambda *_: None
        windows._forward, windows._gradients = torch.compile(windows._forward, dynamic=False), torch.compile(windows._gradients, dynamic=False)
    make = bench_training.STEPS["train_teas" if contender.startswith("teas") else "train_spikingjelly_multistep"]
    losses: list[torch.Tensor] = []
    plain = torch.nn.functional.cross_entropy

    def listening(*arguments: object) -> torch.Tensor:
        loss = plain(*arguments)
        losses.append(loss.detach())
        return loss

    torch.nn.functional.cross_entropy = listening
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    plainly, as_graph = make(window, batch, "cuda"), contender.endswith("_graph")
    for _ in range(3):
        plainly()
    first, step = float(losses[0]), captured(plainly) if as_graph else plainly  # to capture is to take one step more
    for _ in range(7 if as_graph else 8):
        step()
    last = float(losses[-1])
    torch.backends.cudnn.allow_tf32, torch.nn.functional.cross_entropy = tf32, plain
    for _ in range(10):
        plainly()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step = captured(plainly) if as_graph else plainly
    step()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        for _ in range(10):
            step()
        torch.cuda.synchronize()
        times.append(100 * (time.perf_counter() - start))
    return {
        "milliseconds": statistics.median(times), "low": min(times), "high": max(times), "megabytes": peak / 2**20, "check": [first, last],
    }  # fmt: skip


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph, after a few steps on the stream that captures it."""
    import torch

    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        step()
    return graph.replay


if __name__ == "__main__":
    main()
