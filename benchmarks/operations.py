"""Synaptic operations of one uniform network, counted three ways: by `teas`, by SpikingJelly's counter, and by the mean firing rate.

    python benchmarks/operations.py --data data [--experiment experiments/cifar10_resnet20.toml] [--window 8] [--images 4]

Each convolution between spiking layers gets the very train that it receives, so that only the counting differs. Needs spikingjelly.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from spikingjelly.activation_based.op_counter import DispatchCounterMode, SynOpCounter
from torch import nn

from teas.spiking.time_windows import TimeWindows
from teas.study.energy import count_operations
from teas.study.subject import open_subject


def main() -> None:
    """Print additions per image of all convolutions between spiking layers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--experiment", type=Path, default=Path("experiments/cifar10_resnet20.toml"))
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--images", type=int, default=4)
    options = parser.parse_args()
    subject = open_subject(options.experiment, options.data)
    network = subject.make(TimeWindows.uniform(subject.full, options.window))
    inputs = subject.data.test.__getitems__(list(range(options.images)))[0]
    operations, record = count_operations(network, inputs), network(inputs, keep_spikes=True).record
    ours = theirs = by_rate = 0.0
    for layer in network.layers:
        for operation in layer.synapses:
            child = network.module.get_submodule(str(operation.target)) if operation.kind == "call_module" else None
            if not isinstance(child, nn.Conv2d) or "input" in layer.sources:
                continue
            read = operation.inputs[0].removesuffix("_amplitude")  # a converted layer's spikes pass its amplitude first
            train = record[next(name for name in layer.sources if name.replace(".", "_") == read)].spikes.flatten(0, 1)
            counter = SynOpCounter()
            with torch.no_grad(), DispatchCounterMode([counter]):
                positions = child(train)[0].numel()
            theirs += counter.get_total() / options.images
            by_rate += child.weight[0].numel() * positions * train.mean().item() * options.window
            ours += operations[layer.name].synaptic
    print(f"additions per image at {options.window} steps: teas {ours:,.0f}, SpikingJelly {theirs:,.0f}, by mean rate {by_rate:,.0f} ({by_rate / ours:.3f}x)")


if __name__ == "__main__":
    main()
