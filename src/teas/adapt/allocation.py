"""Windows under a budget: by activity (the paper), by damage, and the uniform and shuffled controls. Pure and deterministic."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Mapping, Sequence

import numpy as np

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
    return allocate(_powers(activity, exponent), budget_for(mean, len(activity)), limits)


def by_damage(damage: Mapping[str, Mapping[int, float]], mean: float, limit: int) -> TimeWindows:
    """Windows that minimise the sum of the layers' measured damage, `Σ_l d_l(T_l)`, at a target mean, no window above `limit`; exact.

    damage: per layer, damage at some probe windows (see `measure_damage`); between and beyond them it is taken as a power of `T`, the
    exponent beyond the last probe being that of quantisation noise, -2, and never rising with `T`. Dynamic programming over the budget.
    """
    layers, budget = list(damage), budget_for(mean, len(damage))
    if budget < len(layers):
        raise TeasError(f"a budget of {budget} steps is too small for {len(layers)} layers: each needs at least one")
    best = np.full(budget + 1, math.inf)  # least damage of the layers so far with exactly this many steps
    best[0] = 0
    choices: list[np.ndarray] = []
    for layer in layers:
        chosen, after = np.zeros(budget + 1, np.int64), np.full(budget + 1, math.inf)
        for steps in range(1, min(limit, budget) + 1):
            value = best[:-steps] + _interpolated(damage[layer], steps)
            better = value < after[steps:]
            after[steps:][better], chosen[steps:][better] = value[better], steps
        best, choices = after, [*choices, chosen]
    total = int(best.argmin())
    windows: dict[str, int] = {}
    for layer, chosen in zip(reversed(layers), reversed(choices), strict=True):
        windows[layer] = int(chosen[total])
        total -= windows[layer]
    return TimeWindows({layer: windows[layer] for layer in layers})


def _interpolated(points: Mapping[int, float], steps: int) -> float:
    """Damage at any window from that at the probes, on log-log axes."""
    tiny = 1e-12
    known = sorted((window, max(value, tiny)) for window, value in points.items())
    for index in range(1, len(known)):  # more steps never do more damage: what rises is noise of the measurement
        known[index] = (known[index][0], min(known[index][1], known[index - 1][1]))
    low = [point for point in known if point[0] <= steps] or known[:1]
    high = [point for point in known if point[0] >= steps]
    (a, x), (b, y) = low[-1], high[0] if high else low[-1]
    if not high or a > steps:
        return x * (a / steps) ** 2
    return x if a == b else x * (y / x) ** (math.log(steps / a) / math.log(b / a))


def staircase(layers: Sequence[str], mean: float) -> TimeWindows:
    """Windows that fall by one step from each layer to the next, at a mean of at most `mean`: no two are equal, so that every train is re-timed.

    For immediate firing with layout `even`: a train that passes unchanged keeps its neuron's bursts, a re-timed one is spaced evenly. Raises
    `TeasError` for a mean at which the last window would be below one step.
    """
    last = math.floor(mean - (len(layers) - 1) / 2 + 1e-9)
    if last < 1:
        raise TeasError(f"windows that fall by a step over {len(layers)} layers need a mean of at least {(len(layers) + 1) / 2:g}, not {mean:g}")
    return TimeWindows({layer: last + later for layer, later in zip(layers, reversed(range(len(layers))), strict=True)})


def initial(activity: Mapping[str, float], window: int, exponent: float = 1.0) -> TimeWindows:
    """The paper's start: the most active layer keeps `window` steps, the others `T_l = round(T · (Act_l / max Act)^exponent)`, at least 1.

    A negative exponent turns the rule round: the least active layer keeps its window. Raises `TeasError` where no layer fires.
    """
    if max(activity.values()) <= 0:
        raise TeasError("no layer fires at all: lower the thresholds or check the scale of the input before windows can follow activity")
    powers = _powers(activity, exponent)
    return TimeWindows({layer: max(1, math.floor(window * power / max(powers.values()) + 0.5)) for layer, power in powers.items()})


def _powers(activity: Mapping[str, float], exponent: float) -> dict[str, float]:
    return {layer: max(rate, 1e-6 if exponent < 0 else 0.0) ** exponent for layer, rate in activity.items()}


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
