"""Schedules as values: when windows are adjusted, how many layers, by how much and by which score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from teas.adapt import allocation
from teas.adapt.vulnerability import measure_damage
from teas.errors import TeasError, check_choice
from teas.spiking.network import SpikingNetwork
from teas.spiking.time_windows import TimeWindows

SCORES = ("activity", "activity_sensitivity")


@dataclass(frozen=True)
class Adjustment:
    """When and how windows shrink while the network learns.

    every: epochs between adjustments. layers: how many of the layers with the least score shrink each time. fraction: share of a window
    that goes. mean: target mean window. exponent: of the score in the allocation. score: `activity` (the paper), or `activity_sensitivity`,
    activity times the damage that half a window does to the output (see `sensitivity`).
    Raises `TeasError` for values out of range.
    """

    every: int
    layers: int
    fraction: float
    mean: float
    exponent: float
    score: str = "activity"

    def __post_init__(self) -> None:
        check_choice("the score of an adjustment", self.score, SCORES)
        if self.every < 1 or self.layers < 1 or not 0 < self.fraction <= 1:
            raise TeasError(
                f"an adjustment needs every >= 1, layers >= 1 and a fraction in (0, 1]; got every {self.every}, layers {self.layers}, fraction {self.fraction}"
            )

    def due(self, epoch: int, epochs: int) -> bool:
        """Whether windows change after epoch number `epoch` (from 0) of a stage of `epochs`."""
        return epoch + 1 == epochs or (epoch + 1) % self.every == 0

    def adjusted(self, windows: TimeWindows, score: Mapping[str, float], epoch: int, epochs: int) -> TimeWindows:
        """The windows after an epoch: a step towards the goal when one is due, the goal itself at the end of the stage."""
        if not self.due(epoch, epochs):
            return windows
        goal = allocation.by_activity(score, windows, self.mean, self.exponent)
        return goal if epoch + 1 == epochs else allocation.adjust(windows, score, goal, self.layers, self.fraction)


def sensitivity(network: SpikingNetwork, inputs: Iterable[Tensor]) -> dict[str, float]:
    """What half of its window does to the output, for each layer alone: mean divergence in nats (see `measure_damage`)."""
    training = network.training
    network.eval()
    half = {layer: max(1, steps // 2) for layer, steps in network.windows.items()}
    damage = measure_damage(network.with_windows, network.windows, sorted(set(half.values())), inputs)
    network.train(training)
    return {layer: damage[layer][steps] for layer, steps in half.items()}
