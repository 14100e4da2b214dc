"""Time per sample: bounds against sums and scipy, cascades against running everything, and a risk that holds on samples never seen."""

import math
import random

import pytest
import torch
from scipy import stats

import teas
from teas.adapt.policy import GRID, NEVER, Cascade, Policy, calibrate_policy, decide, error_bound, fit_temperature, log_odds


def at_most(errors, samples, p):
    """P(at most that many errors), by its sum."""
    return sum(math.comb(samples, k) * p**k * (1 - p) ** (samples - k) for k in range(errors + 1))


@pytest.mark.parametrize(("errors", "samples", "confidence"), [(0, 20, 0.95), (3, 20, 0.9), (1, 200, 0.99), (19, 20, 0.95), (7, 100, 0.5)])
def test_the_bound_is_where_so_few_errors_become_unlikely(errors, samples, confidence):
    bound = error_bound(errors, samples, confidence)
    assert at_most(errors, samples, bound) == pytest.approx(1 - confidence)
    assert bound == pytest.approx(stats.binomtest(errors, samples, alternative="less").proportion_ci(confidence).high)


def test_the_bound_by_hand():
    assert error_bound(0, 5000) == pytest.approx(1 - 0.05 ** (1 / 5000))
    assert error_bound(4, 4) == 1.0


@pytest.mark.parametrize(("errors", "samples", "confidence"), [(0, 0, 0.95), (3, 2, 0.95), (-1, 5, 0.95), (1, 5, 1.0), (1, 5, 0.0)])
def test_impossible_bounds_are_refused(errors, samples, confidence):
    with pytest.raises(teas.TeasError, match=r"at least one sample|above 0 and below 1"):
        error_bound(errors, samples, confidence)


def test_log_odds_are_those_of_the_softmax_and_tell_sure_samples_apart():
    torch.manual_seed(0)
    logits = torch.randn(50, 4)
    p = (logits / 1.7).double().softmax(1).amax(1)
    assert torch.allclose(log_odds(logits, 1.7), (p / (1 - p)).log())
    sure = log_odds(torch.tensor([[200.0, 0.0], [100.0, 0.0]]))
    assert sure.tolist() == [200, 100]
    with pytest.raises(teas.TeasError, match="at least two classes"):
        log_odds(torch.zeros(3, 1))


def test_the_temperature_undoes_what_made_logits_too_sure():
    torch.manual_seed(0)
    logits = torch.randn(20_000, 5) * 2
    labels = torch.multinomial(logits.softmax(1), 1)[:, 0]
    assert fit_temperature(3 * logits, labels) == pytest.approx(3, rel=0.03)
    with pytest.raises(teas.TeasError, match="a label for each"):
        fit_temperature(logits, labels[:5])


class Counted:
    """A stage that answers from a table, inputs being row numbers, and notes whom it was asked about."""

    def __init__(self, table):
        self.table, self.asked = table, []

    def __call__(self, inputs):
        self.asked += inputs.tolist()
        return self.table[inputs]


def tables(samples=60, classes=4, stages=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(1 + number) * torch.randn(samples, classes, generator=generator) for number in range(stages)]


@pytest.mark.parametrize("seed", range(5))
def test_a_cascade_is_sample_by_sample_the_first_sure_stage_and_runs_nothing_else(seed):
    found, policy = tables(seed=seed), Policy((1.0, 2.0), (0.8, 1.3))
    stages = [Counted(table) for table in found]
    order = random.Random(seed).sample(range(60), 60)
    logits, stage = Cascade(stages, policy)(torch.tensor(order))
    for place, sample in enumerate(order):
        sure = [float(log_odds(found[i][sample : sample + 1], policy.temperatures[i])) >= policy.thresholds[i] for i in range(2)]
        expected = sure.index(True) if any(sure) else 2
        assert stage[place] == expected
        assert torch.equal(logits[place], found[expected][sample])
        assert [sample in s.asked for s in stages] == [i <= expected for i in range(3)]
    assert all(len(s.asked) == len(set(s.asked)) for s in stages)
    assert len(stages[0].asked) > len(stages[1].asked) > len(stages[2].asked) > 0


def test_edges_of_a_cascade():
    found = tables(stages=2)
    one = Cascade([Counted(found[0])], Policy())(torch.arange(7))
    assert torch.equal(one.logits, found[0][:7])
    assert one.stage.tolist() == [0] * 7
    second = Counted(found[1])
    empty = Cascade([Counted(found[0]), second], Policy((0.0,), (1.0,)))(torch.arange(0))
    assert empty.logits.shape == (0, 4)
    assert empty.stage.shape == (0,)
    everyone = Cascade([Counted(found[0]), second], Policy((-1e9,), (1.0,)))(torch.arange(9))
    assert second.asked == []
    assert everyone.stage.sum() == 0
    nobody = Cascade([Counted(found[0]), second], Policy((NEVER,), (1.0,)))(torch.arange(9))
    assert torch.equal(nobody.logits, found[1][:9])
    first = Counted(torch.full((9, 4), math.nan))
    assert Cascade([first, second], Policy((-1e9,), (1.0,)))(torch.arange(9)).stage.tolist() == [1] * 9
    table = found[0].clone()
    Cascade([lambda _: table, second], Policy((1.0,), (1.0,)))(torch.arange(60))
    assert torch.equal(table, found[0])  # what a stage returned stays what it was


def test_a_cascade_of_engines_answers_as_its_networks_do():
    torch.manual_seed(0)
    network = teas.SpikingNetwork(torch.nn.Sequential(torch.nn.Linear(6, 12), teas.IF(reset="subtract"), torch.nn.Linear(12, 3)), 16, firing="two_phase").eval()
    inputs = 3 * torch.randn(40, 6)
    runs = [teas.choose_engine(network).prepare(network.with_windows(steps), keep="nothing") for steps in (1, 4, 16)]
    with torch.no_grad():
        whole = [network.with_windows(steps)(inputs).logits for steps in (1, 4, 16)]
    threshold = float(log_odds(whole[2]).median())
    logits, stage = Cascade(runs, Policy((threshold, threshold), (1.0, 1.0)))(inputs)
    assert set(stage.tolist()) == {0, 1, 2}
    assert torch.allclose(logits, torch.stack([whole[s][i] for i, s in enumerate(stage.tolist())]), atol=1e-6)


def made(samples, seed):
    """Labels, and logits of a cheap and a dear stage: the dearer the less noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (samples,), generator=generator)
    clean = torch.nn.functional.one_hot(labels, 5) * 6.0
    clean *= torch.rand(samples, 1, generator=generator)
    return labels, [clean + noise * torch.randn(samples, 5, generator=generator) for noise in (1.0, 0.5)]


@pytest.mark.parametrize("labelled", [True, False])
def test_calibration_takes_the_last_threshold_before_the_first_that_fails(labelled):
    labels, logits = made(2000, 0)
    labels = labels if labelled else None
    found = calibrate_policy(logits, 0.02, labels=labels)
    last, sure = logits[1].argmax(1), log_odds(logits[0])

    def errors(threshold):
        wrong = (sure >= threshold) & (logits[0].argmax(1) != last)
        return int((wrong if labels is None else wrong & (last == labels)).sum())

    passing = []
    for threshold in GRID:
        if error_bound(errors(threshold), 2000) > 0.02:
            break
        passing.append(threshold)
    assert found.policy.thresholds == (passing[-1],)
    assert found.errors == errors(passing[-1])
    assert found.bound == error_bound(found.errors, 2000) <= 0.02
    assert found.stopped == pytest.approx((float((sure >= passing[-1]).double().mean()), 1 - float((sure >= passing[-1]).double().mean())))
    assert 0.1 < found.stopped[0] < 1


def test_the_stated_risk_holds_on_other_samples_as_often_as_stated():
    """30 calibrations at confidence 0.8: the true risk may exceed the stated one in a fifth of them, and in 13 or more with probability 0.003."""
    risk, broken = 0.03, 0
    labels, truth = made(20_000, 999)
    for seed in range(30):
        calibration = made(500, seed)
        policy = calibrate_policy(calibration[1], risk, labels=calibration[0], confidence=0.8).policy
        decided = decide(policy, truth)
        broken += float(((decided.logits.argmax(1) != labels) & (truth[1].argmax(1) == labels)).double().mean()) > risk
    assert 0 < broken < 13


def test_nothing_stops_where_even_sure_samples_are_wrong():
    labels, logits = made(500, 1)
    found = calibrate_policy([-40 * logits[1], logits[1]], 0.05, labels=labels)
    assert found.policy.thresholds == (NEVER,)
    assert found.stopped == (0.0, 1.0)
    assert calibrate_policy(logits[:1], 0.05, labels=labels).policy == Policy()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Policy((1.0,), ()), "a temperature for each threshold"),
        (lambda: Policy((math.nan,), (1.0,)), "must be numbers"),
        (lambda: Policy((1.0,), (0.0,)), "above 0"),
        (lambda: Cascade([], Policy()), "got 0"),
        (lambda: Cascade([Counted(None)] * 3, Policy((1.0,), (1.0,))), "between 2 stages; got 3"),
        (lambda: calibrate_policy([], 0.1), "got logits of shapes none"),
        (lambda: calibrate_policy([torch.zeros(5, 2), torch.zeros(6, 2)], 0.5), "the same samples"),
        (lambda: calibrate_policy([torch.zeros(5, 2)] * 2, 0.5, labels=torch.zeros(4)), "labels one for each"),
        (lambda: calibrate_policy([torch.zeros(500, 2)] * 2, 0.001), "that takes 2995 without any error"),
        (lambda: calibrate_policy([torch.zeros(500, 2)] * 2, 0.0), "risk is 0"),
        (lambda: calibrate_policy([torch.zeros(500, 2)] * 2, 0.1, confidence=1.0), "confidence is 1"),
        (lambda: calibrate_policy([torch.zeros(500, 2)] * 2, 0.1, temperatures=(1.0, 2.0)), "need 1 temperatures"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(teas.TeasError, match=message):
        call()
