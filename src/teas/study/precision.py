"""Whether 16-bit arithmetic pays on this machine: a processor without fast instructions for it takes longer in bfloat16 than in float32."""

from __future__ import annotations

import time

import torch
from torch import nn

from teas.study.config import Experiment
from teas.study.hooks import Hooks

_WORTH_A_WORD = 0.9  # of the speed of float32; between that and 1 it hardly matters


def bfloat16_gain(rounds: int = 5) -> float:
    """How many times as fast as in float32 a convolution and its gradients are in bfloat16 on this machine's CPU, the best of some rounds of each."""
    inputs = torch.zeros(64, 64, 16, 16).to(memory_format=torch.channels_last).requires_grad_()
    convolution = nn.Conv2d(64, 64, 3, padding=1, bias=False).to(memory_format=torch.channels_last)

    def seconds(low: bool) -> float:
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            convolution(inputs).sum().backward()
        return time.perf_counter() - began

    taken = [(seconds(False), seconds(True)) for _ in range(rounds + 1)][1:]  # kernels are made in the first round
    return min(wide for wide, _ in taken) / min(low for _, low in taken)


def bfloat16_settings(experiment: Experiment) -> list[str]:
    """The settings of an experiment that ask for bfloat16."""
    found = {"training.precision": experiment.training.precision}
    if experiment.conversion and experiment.conversion.pretraining:
        found["conversion.pretraining.precision"] = experiment.conversion.pretraining.precision
    if experiment.retraining:
        found["retraining.recipe.precision"] = experiment.retraining.recipe.precision
    return [name for name, value in found.items() if value == "bfloat16"]


def advise(experiment: Experiment, device: torch.device, hooks: Hooks) -> None:
    """Say so, before any training, where an experiment asks a CPU for bfloat16 that is slower there than float32."""
    settings = bfloat16_settings(experiment)
    if settings and device.type == "cpu" and (gain := bfloat16_gain()) < _WORTH_A_WORD:
        hooks.say(
            f"bfloat16 has {gain:.2f} times the speed of float32 on this processor; for a new run set {' and '.join(settings)} to float32 "
            "(one that was begun keeps its precision)"
        )
