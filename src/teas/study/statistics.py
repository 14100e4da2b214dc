"""Intervals and rank correlation, so that no figure stands without its uncertainty."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from teas.study.metrics import spread

Interval = tuple[float, float]


def mean_interval(values: Sequence[float]) -> Interval:
    """95 % interval of a mean by Student's t; the value itself where there is but one."""
    mean, deviation = spread(values)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * deviation / len(values) ** 0.5 if len(values) > 1 else 0.0
    return mean - half, mean + half


def accuracy_interval(accuracy: float, samples: int) -> Interval:
    """95 % interval of an accuracy in percent, measured on that many images (Wilson's score interval)."""
    found = stats.binomtest(round(accuracy / 100 * samples), samples).proportion_ci(method="wilson")
    return 100 * float(found.low), 100 * float(found.high)


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of two lists of length `n`: rho, its 95 % interval, and the p-value of no correlation."""

    rho: float
    low: float
    high: float
    p_value: float
    n: int

    def __str__(self) -> str:
        return f"{self.rho:+.2f} (95 % interval {self.low:+.2f} to {self.high:+.2f}, p = {self.p_value:.2g}, n = {self.n})"


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> Correlation:
    """Spearman's rho, its interval by Fisher's z with the variance `(1 + rho²/2) / (n - 3)` (Bonett and Wright, 2000).

    The p-value is exact, over all pairings, for up to 7 pairs, and by Student's t for more. 0 with p = 1 where a list is constant; the interval
    is -1 to 1 for fewer than 4 pairs.
    """
    n = len(first)
    if n < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        return Correlation(0.0, -1.0, 1.0, 1.0, n)
    found = stats.spearmanr(first, second)
    rho, p_value = float(found.statistic), float(found.pvalue) if n > 7 else _exact_p_value(first, second)
    if n < 4 or abs(rho) >= 1:
        return Correlation(rho, rho if n >= 4 else -1.0, rho if n >= 4 else 1.0, p_value, n)
    half = 1.959964 * math.sqrt((1 + rho**2 / 2) / (n - 3))
    return Correlation(rho, math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half), p_value, n)


def _exact_p_value(first: Sequence[float], second: Sequence[float]) -> float:
    """Share of all pairings whose rank correlation is at least as strong; with fixed ranks it is a sum of products but for constants."""
    ranks = [stats.rankdata(values) - (len(values) + 1) / 2 for values in (first, second)]
    sums = [abs(sum(a * b for a, b in zip(ranks[0], order, strict=True))) for order in itertools.permutations(ranks[1])]
    return float(sum(value >= sums[0] - 1e-9 for value in sums) / len(sums))
