"""Time per sample: a cascade of networks of rising cost, which a sample leaves as soon as it is sure, at a stated risk."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from scipy import optimize, stats
from torch import Tensor

from teas.errors import TeasError

Stage = Callable[[Tensor], Any]
NEVER = math.inf  # a threshold that no confidence reaches
# Thresholds to try, surest first: log-odds of 30 (one error in 10^13) down to -7 (chance among a
# thousand classes). Fixed beforehand, as the test in sequence asks for.
GRID = tuple(step / 10 for step in range(300, -71, -1))


def error_bound(errors: int, samples: int, confidence: float = 0.95) -> float:
    """Upper bound `p` on a rate after `errors` in `samples` independent trials: `P(at most errors | p) = 1 - confidence`, and 1 if all are errors.

    Source: Clopper and Pearson (Biometrika, 1934), one-sided. Raises `TeasError` for no sample, more errors than samples, or a confidence outside (0, 1).
    """
    if not 0 <= errors <= samples or samples == 0:
        raise TeasError(f"a bound needs at least one sample and no more errors than samples; got {errors} errors in {samples} samples")
    _check_share("confidence", confidence)
    return 1.0 if errors == samples else float(stats.beta.ppf(confidence, errors + 1, samples - errors))


def log_odds(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Confidence `[batch]` of logits `u` `[batch, class]`: `log p/(1-p)`, `p` the largest of `softmax(u/temperature)`.

    A softmax of 1 in float32 still has log-odds that tell samples apart. Raises `TeasError` for fewer than two classes.
    """
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise TeasError(f"confidence needs logits [batch, class] of at least two classes; got shape {tuple(logits.shape)}")
    ordered = logits.double().sort(1, descending=True).values / temperature
    return ordered[:, 0] - ordered[:, 1:].logsumexp(1)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature between 1/20 and 20 at which `softmax(u/temperature)` gives the labels the least cross-entropy.

    Source: Guo et al., "On calibration of modern neural networks" (ICML 2017). Raises `TeasError` for no samples, or shapes that don't belong together.
    """
    if len(logits) == 0 or len(logits) != len(labels):
        raise TeasError(f"a temperature needs samples, and a label for each; got {len(logits)} logits and {len(labels)} labels")
    values = logits.double()
    found = optimize.minimize_scalar(lambda x: float(F.cross_entropy(values * math.exp(-x), labels)), bounds=(-math.log(20), math.log(20)), method="bounded")
    return math.exp(float(found.x))


@dataclass(frozen=True)
class Policy:
    """When a sample stops: at the first stage where its log-odds at the stage's temperature reach the stage's threshold; at the last stage anyway.

    thresholds, temperatures: one for each stage but the last; a threshold of infinity never stops anything, nor does a confidence that is NaN.
    Raises `TeasError` for other lengths, a threshold that is NaN, or a temperature that is not above 0.
    """

    thresholds: tuple[float, ...] = ()
    temperatures: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.thresholds) != len(self.temperatures):
            raise TeasError(f"a policy has a temperature for each threshold; got {len(self.thresholds)} thresholds and {len(self.temperatures)} temperatures")
        if any(math.isnan(value) for value in self.thresholds) or not all(0 < value < math.inf for value in self.temperatures):
            raise TeasError(f"thresholds must be numbers, temperatures above 0; got {self.thresholds} and {self.temperatures}")

    def stops(self, logits: Tensor, stage: int) -> Tensor:
        """Which samples `[batch]` stop at a stage that is not the last, by its logits `[batch, class]`."""
        return log_odds(logits, self.temperatures[stage]) >= self.thresholds[stage]


class Decided(NamedTuple):
    """What a cascade answered: logits `[batch, class]` in the order of the inputs, and the number of the stage `[batch]` at which each stopped."""

    logits: Tensor
    stage: Tensor


class Cascade:
    """Networks of rising cost as one: each stage runs only on the samples that none before it was sure of, the last on what is left.

    stages: functions from inputs `[batch, *shape]` to logits or an `Output`, e.g. `engine.prepare(network.with_windows(w), keep="nothing")` for
    rising windows `w`, or different networks. A stage that nothing reaches is not run.
    Raises `TeasError` for no stage, or a policy for another number of them.
    """

    def __init__(self, stages: Sequence[Stage], policy: Policy):
        if len(stages) != len(policy.thresholds) + 1:
            raise TeasError(f"a policy of {len(policy.thresholds)} thresholds decides between {len(policy.thresholds) + 1} stages; got {len(stages)}")
        self.stages, self.policy = tuple(stages), policy

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Decided:
        logits = _logits(self.stages[0](inputs)).clone()
        stage = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        waiting, found = torch.arange(len(logits), device=logits.device), logits
        for number, run in enumerate(self.stages[1:]):
            waiting = waiting[~self.policy.stops(found, number)]
            if not len(waiting):
                break
            found = _logits(run(inputs[waiting]))
            logits[waiting], stage[waiting] = found, number + 1
        return Decided(logits, stage)


def _logits(output: Any) -> Tensor:
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits


@dataclass(frozen=True)
class Calibration:
    """A policy and what is known of it: `errors` among `samples`, and the upper bound on their rate at the stated confidence.

    stopped: share of the samples that stop at each stage.
    """

    policy: Policy
    errors: int
    samples: int
    bound: float
    stopped: tuple[float, ...]


def decide(policy: Policy, logits: Sequence[Tensor]) -> Decided:
    """What the cascade answers where the logits of every stage `[sample, class]` are known already, for all samples."""
    return Cascade([rows.__getitem__ for rows in logits], policy)(torch.arange(len(logits[0])))


def calibrate_policy(
    logits: Sequence[Tensor], risk: float, *, labels: Tensor | None = None, temperatures: Sequence[float] | None = None, confidence: float = 0.95
) -> Calibration:
    """The least cautious policy whose risk against the last stage is at most `risk`, with probability at least `confidence` over the samples.

    An error is a sample that stops early and is wrong where the last stage is right by the `labels`; without labels, one that stops with another
    class than the last stage's. What is gained elsewhere is not counted against it, so accuracy falls by at most as much.
    logits: of each stage, `[sample, class]`, on samples that trained neither network and chose nothing else (images a network was trained on flatter it).
    temperatures: one for each stage but the last, fitted on other samples; 1 without.

    One threshold for all stages falls along a fixed grid while `error_bound` stays within the risk (fixed-sequence testing: Angelopoulos et al.,
    "Learn then test", 2021), so that trying many thresholds costs no confidence. Where not even the first one passes, nothing stops early.
    Raises `TeasError` for shapes that don't belong together, shares outside (0, 1), or so few samples that no error at all would still be too many.
    """
    _check_share("risk", risk)
    _check_share("confidence", confidence)
    samples = len(logits[0]) if logits else 0
    if not samples or any(found.shape != logits[0].shape for found in logits) or (labels is not None and labels.shape != (samples,)):
        shapes = ", ".join(str(tuple(found.shape)) for found in logits)
        raise TeasError(f"every stage needs the logits of the same samples, and labels one for each; got logits of shapes {shapes or 'none'}")
    allowed = bisect_right(range(samples + 1), risk, key=lambda errors: error_bound(errors, samples, confidence)) - 1
    if len(logits) > 1 and allowed < 0:
        least = math.ceil(math.log(1 - confidence) / math.log(1 - risk))
        raise TeasError(
            f"{samples} samples can't show a risk of {risk:g} at confidence {confidence:g}: that takes {least} without any error; give more samples"
        )
    scale = tuple(temperatures) if temperatures is not None else (1.0,) * (len(logits) - 1)
    if len(scale) != len(logits) - 1:
        raise TeasError(f"{len(logits)} stages need {len(logits) - 1} temperatures, one for each but the last; got {len(scale)}")
    odds = torch.stack([log_odds(found, temperature) for found, temperature in zip(logits, (*scale, 1.0), strict=True)])
    answers = torch.stack([found.argmax(1) for found in logits])
    errors = answers != answers[-1] if labels is None else (answers != labels) & (answers[-1] == labels)

    def judged(threshold: float) -> tuple[Tensor, int]:
        sure = odds >= threshold
        sure[-1] = True
        stage = sure.int().argmax(0)  # the first stage that is sure
        return stage, int(errors.gather(0, stage[None]).sum())

    best, (stage, wrong) = NEVER, judged(NEVER)
    for threshold in GRID if scale else ():
        found, more = judged(threshold)
        if more > allowed:
            break
        best, stage, wrong = threshold, found, more
    stopped = (stage.bincount(minlength=len(logits)).double() / samples).tolist()
    return Calibration(Policy((best,) * len(scale), scale), wrong, samples, error_bound(wrong, samples, confidence), tuple(stopped))


def _check_share(what: str, value: float) -> None:
    if not 0 < value < 1:
        raise TeasError(f"{what} is {value}; it is a share, above 0 and below 1")
