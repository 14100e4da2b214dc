"""Time and memory of one training step at uniform windows of 16 against unequal windows of mean 4, the same network in one run.

    python benchmarks/training_step.py [--repeats 15]

No step is padded to a global T, so both should fall with the mean window.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch.autograd.graph import saved_tensors_hooks

import teas
from teas.ann.architectures import build


def step(network: teas.SpikingNetwork, inputs: torch.Tensor, labels: torch.Tensor) -> None:
    """Forward, loss, backward."""
    network.zero_grad()
    torch.nn.functional.cross_entropy(10 * network(inputs).logits, labels).backward()


def saved_bytes(network: teas.SpikingNetwork, inputs: torch.Tensor, labels: torch.Tensor) -> int:
    """Bytes that the forward pass keeps for the backward pass, each storage counted once."""
    storages: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        step(network, inputs, labels)
    return sum(storages.values())


def main() -> None:
    """Print one row per choice of windows, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    module = build("lenet", (1, 28, 28), 10, lambda: teas.IF(reset="subtract", surrogate="arctan"), (16, 32, 120, 84), True)
    uniform = teas.SpikingNetwork(module, 16)
    adaptive = uniform.with_windows(dict(zip(uniform.spiking_layers, (6, 5, 4, 3, 2), strict=True)))
    inputs, labels = torch.randn(64, 1, 28, 28), torch.randint(10, (64,))
    times: dict[str, list[float]] = {"uniform 16": [], "adaptive, mean 4": []}
    networks = {"uniform 16": uniform, "adaptive, mean 4": adaptive}
    for round_number in range(repeats + 2):  # interleaved, so that both see the same machine
        for name, network in networks.items():
            start = time.perf_counter()
            step(network, inputs, labels)
            if round_number >= 2:
                times[name].append(time.perf_counter() - start)
    memory = {name: saved_bytes(network, inputs, labels) for name, network in networks.items()}
    for name in networks:
        low, high = min(times[name]), max(times[name])
        print(f"{name:18s} {1e3 * statistics.median(times[name]):7.1f} ms ({1e3 * low:.1f} to {1e3 * high:.1f})  {memory[name] / 2**20:6.1f} MiB kept")
    first, second = networks
    ratio = statistics.median(times[second]) / statistics.median(times[first])
    print(f"ratio: time {ratio:.2f}, memory {memory[second] / memory[first]:.2f}")


if __name__ == "__main__":
    main()
