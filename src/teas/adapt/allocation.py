"""Windows under a budget: by activity (the paper), and the uniform and shuffled controls. Pure and deterministic."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Mapping

from teas.errors import TeasError
from teas.spiking.time_windows import TimeWindows


def allocate(score: Mapping[str, float], budget: int, limits: Mapping[str, int]) -> TimeWindows:
    """Windows that maximise `Σ_l score_l · log T_l` with `Σ_l T_l <= budget` and `1 <= T_l <= limit_l`.

    Without rounding and limits that maximum is `T_l ∝ score_l`. The gain of one more step falls with every step, so adding steps
    greedily is exactly optimal. Ties go to the earlier layer. Raises `TeasError` for a budget below one step a layer or a score that
    is negative or not finite.
    """
    if budget < len(score):
        raise TeasError(f"a budget of {budget} steps is too small for {len(score)} layers: each needs at least one")
    for layer, value in score.items():
        if not math.isfinite(value) or value < 0:
            raise TeasError(f"the score of layer {layer!r} is {value}; scores must be finite and not negative")
    steps = dict.fromkeys(score, 1)
    order = {layer: index for index, layer in enumerate(score)}
    # One more step gains score·log((T+1)/T); among layers without any score the shortest window grows first.
    heap = [(-score[layer] * math.log(2), 1, order[layer], layer) for layer in score if limits[layer] > 1]
    heapq.heapify(heap)
    for _ in range(budget - len(score)):
        if not heap:
            break
        _, _, _, layer = heapq.heappop(heap)
        steps[layer] += 1
        if steps[layer] < limits[layer]:
            now = steps[layer]
            heapq.heappush(heap, (-score[layer] * math.log((now + 1) / now), now, order[layer], layer))
    return TimeWindows(steps)


def budget_for(mean: float, layers: int) -> int:
    """Steps to share out for a mean window, rounded down so that the mean is never exceeded; raises `TeasError` below 1."""
    if not math.isfinite(mean) or mean < 1:
        raise TeasError(f"a mean window of {mean} is not possible: every layer needs at least one step")
    return math.floor(mean * layers + 1e-9)


def by_activity(activity: Mapping[str, float], limits: Mapping[str, int], mean: float, exponent: float = 1.0) -> TimeWindows:
    """Windows in proportion to `Act(l)^exponent` at a target mean, no layer above its limit (section 3.3 of the paper, exponent 1)."""
    return allocate({layer: rate**exponent for layer, rate in activity.items()}, budget_for(mean, len(activity)), limits)


def initial(activity: Mapping[str, float], window: int, exponent: float = 1.0) -> TimeWindows:
    """The paper's start: the most active layer keeps `window` steps, the others `T_l = round(T · (Act_l / max Act)^exponent)`, at least 1."""
    peak = max(activity.values())
    if peak <= 0:
        raise TeasError("no layer fires at all: lower the thresholds or check the scale of the input before windows can follow activity")
    return TimeWindows({layer: max(1, math.floor(window * (rate / peak) ** exponent + 0.5)) for layer, rate in activity.items()})


def adjust(windows: TimeWindows, activity: Mapping[str, float], goal: Mapping[str, int], layers: int, fraction: float) -> TimeWindows:
    """One periodic adjustment: the `layers` least active layers above their goal lose `fraction` of their steps, at least one."""
    above = sorted((layer for layer in windows if windows[layer] > goal[layer]), key=lambda layer: activity[layer])
    cut = {layer: max(goal[layer], windows[layer] - max(1, round(fraction * windows[layer]))) for layer in above[:layers]}
    return windows.replace(cut) if cut else windows


def uniform(windows: TimeWindows) -> TimeWindows:
    """The control of equal sum: the same window everywhere, earlier layers one step longer where the sum does not divide."""
    return allocate(dict.fromkeys(windows, 1.0), windows.sum, dict.fromkeys(windows, windows.sum))


def shuffled(windows: TimeWindows, seed: int) -> TimeWindows:
    """The control of equal multiset: the same windows dealt to other layers, different from `windows` where that is possible."""
    generator, layers = random.Random(seed), list(windows)
    steps = list(windows.values())
    if len(set(steps)) == 1:
        return windows
    while steps == list(windows.values()):
        generator.shuffle(steps)
    return TimeWindows(dict(zip(layers, steps, strict=True)))
