"""Time and memory of one training step at uniform windows of 16 against unequal windows of mean 4, the same network in one run.

    python benchmarks/training_step.py [--repeats 15] [--network lenet]

No step is padded to a global T, so both should fall with the mean window. `recomputed` keeps the trains alone, as bits, and runs every
layer again on the way back (`training.recompute`). Memory is what a forward pass leaves for the backward pass, counts included.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch.profiler import ProfilerActivity, profile

import teas
from teas.ann.architectures import Design, build

NETWORKS = {
    "lenet": ((1, 28, 28), Design((16, 32, 120, 84)), (6, 5, 4, 3, 2)),
    "conv7_fc2": ((3, 32, 32), Design((16, 128), batch_norm=True), (6, 6, 5, 5, 4, 4, 2, 2, 2)),
}
UNIFORM, ADAPTIVE, UNIFORM_AGAIN, ADAPTIVE_AGAIN = "uniform 16", "adaptive, mean 4", "uniform 16, recomputed", "adaptive, mean 4, recomputed"


def forward(network: teas.SpikingNetwork, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss of a batch."""
    return torch.nn.functional.cross_entropy(10 * network(inputs).logits, labels)


def kept_bytes(network: teas.SpikingNetwork, inputs: torch.Tensor, labels: torch.Tensor) -> int:
    """Bytes that a forward pass leaves allocated: all that it allocated minus all that it freed."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        loss = forward(network, inputs, labels)
    loss.backward()
    return sum(event.self_cpu_memory_usage for event in seen.key_averages())


def main() -> None:
    """Print one row per choice of windows, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--network", choices=NETWORKS, default="lenet")
    options = parser.parse_args()
    torch.manual_seed(0)
    shape, design, windows = NETWORKS[options.network]
    module = build(options.network, shape, 10, lambda: teas.IF(reset="subtract", surrogate="arctan"), design)
    uniform = teas.SpikingNetwork(module, 16)
    adaptive = uniform.with_windows(dict(zip(uniform.spiking_layers, windows, strict=True)))
    networks = {UNIFORM: uniform, ADAPTIVE: adaptive, UNIFORM_AGAIN: uniform.with_windows(16), ADAPTIVE_AGAIN: adaptive.with_windows(adaptive.windows)}
    networks[UNIFORM_AGAIN].recompute = networks[ADAPTIVE_AGAIN].recompute = True
    inputs, labels = torch.randn(64, *shape), torch.randint(10, (64,))
    times: dict[str, list[float]] = {name: [] for name in networks}
    for round_number in range(options.repeats + 2):  # interleaved, so that all see the same machine
        for name, network in networks.items():
            start = time.perf_counter()
            network.zero_grad()
            forward(network, inputs, labels).backward()
            if round_number >= 2:
                times[name].append(time.perf_counter() - start)
    memory = {name: kept_bytes(network, inputs, labels) for name, network in networks.items()}
    for name in networks:
        median, low, high = statistics.median(times[name]), min(times[name]), max(times[name])
        ratios = f"{median / statistics.median(times[UNIFORM]):.2f}x time, {memory[name] / memory[UNIFORM]:.2f}x memory"
        print(f"{name:29s} {1e3 * median:7.1f} ms ({1e3 * low:.1f} to {1e3 * high:.1f})  {memory[name] / 2**20:6.1f} MiB kept  {ratios}")


if __name__ == "__main__":
    main()
