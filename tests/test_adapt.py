"""Activity, allocation, objective: against hand counts, brute force and autograd."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import teas
from teas.adapt import allocation
from teas.adapt.objective import cross_entropy, parameters_per_layer, regulariser


def fixed_network(windows):
    """One weight of 0.5 per neuron: an input of 1 fires every second step, an input of 2 at every step, 0 never."""
    module = nn.Sequential(nn.Linear(3, 3, bias=False), teas.IF(reset="subtract"), nn.Linear(3, 1, bias=False), teas.IF(reset="subtract"))
    module[0].weight.data = 0.5 * torch.eye(3)
    module[2].weight.data = torch.tensor([[0.0, 1.0, 0.0]])
    return teas.SpikingNetwork(module, windows)


def test_activity_by_hand():
    network = fixed_network({"1": 4, "3": 4})
    found = teas.measure_activity(network, [(torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([0])), (torch.zeros(1, 3), torch.tensor([0]))])
    # Sample 1: counts 2, 4, 0 in layer 1 and 4 in layer 3; sample 2: none.
    first, last = found["1"], found["3"]
    assert first.activity == 6 / (2 * 3 * 4)
    assert (first.spikes, first.silent, first.saturated, first.neurons) == (3.0, 4 / 6, 1 / 6, 3)
    assert (last.activity, last.spikes, last.silent, last.saturated) == (4 / 8, 2.0, 1 / 2, 1 / 2)


def test_activity_needs_data():
    with pytest.raises(teas.TeasError, match="at least one sample"):
        teas.measure_activity(fixed_network(2), [])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=4), st.integers(0, 12), st.integers(1, 6), st.data())
def test_allocation_equals_brute_force(scores, extra, limit, data):
    layers = [f"l{i}" for i in range(len(scores))]
    score = dict(zip(layers, scores, strict=True))
    limits = {layer: data.draw(st.integers(1, limit)) for layer in layers}
    budget = len(layers) + extra
    windows = allocation.allocate(score, budget, limits)
    assert windows.sum == min(budget, sum(limits.values()))
    assert all(1 <= windows[layer] <= limits[layer] for layer in layers)

    def value(steps):
        return sum(score[layer] * math.log(t) for layer, t in zip(layers, steps, strict=True))

    best = max(value(steps) for steps in itertools.product(*[range(1, limits[layer] + 1) for layer in layers]) if sum(steps) <= budget)
    assert value(windows.values()) == pytest.approx(best, abs=1e-9)


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=20), st.floats(1, 40))
def test_allocation_by_activity_is_proportional_and_within_budget(rates, mean):
    activity = {f"l{i}": rate for i, rate in enumerate(rates)}
    windows = allocation.by_activity(activity, dict.fromkeys(activity, 10_000), mean)
    assert windows.mean <= mean + 1e-9
    share = {layer: mean * len(rates) * rate / sum(rates) for layer, rate in activity.items()}
    ordered = sorted(activity, key=activity.get)
    assert all(windows[a] <= windows[b] for a, b in itertools.pairwise(ordered) if activity[a] < activity[b])
    if min(share.values()) >= 1:
        assert all(abs(windows[layer] - share[layer]) <= 1 + share[layer] / 2 for layer in activity)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=3), st.integers(0, 9), st.integers(2, 7))
def test_damage_allocation_equals_brute_force(damages, extra, limit):
    layers = [f"l{i}" for i in range(len(damages))]
    damage = {layer: {2: max(pair), 6: min(pair)} for layer, pair in zip(layers, damages, strict=True)}
    mean = (len(layers) + extra) / len(layers)
    windows = allocation.by_damage(damage, mean, limit)
    assert windows.sum <= len(layers) + extra
    assert windows.max <= limit

    def total(steps):
        return sum(allocation._interpolated(damage[layer], t) for layer, t in zip(layers, steps, strict=True))

    every = [steps for steps in itertools.product(range(1, limit + 1), repeat=len(layers)) if sum(steps) <= len(layers) + extra]
    assert total(windows.values()) == pytest.approx(min(map(total, every)), rel=1e-9, abs=1e-15)


def test_damage_between_probes_is_a_power_of_the_window():
    points = {4: 0.16, 16: 0.01}
    assert allocation._interpolated(points, 8) == pytest.approx(0.04)
    assert allocation._interpolated(points, 2) == pytest.approx(0.64)
    assert allocation._interpolated(points, 32) == pytest.approx(0.0025)
    assert allocation._interpolated({4: 0.1, 8: 0.2}, 8) == pytest.approx(0.1)


def test_damage_by_hand():
    network = fixed_network({"1": 4, "3": 4})
    inputs = [torch.tensor([[1.0, 2.0, 0.0]])]
    found = teas.measure_damage(network.with_windows, network.windows, [4, 2], inputs)
    assert found["1"][4] == found["3"][4] == 0.0
    assert set(found) == {"1", "3"}
    with pytest.raises(teas.TeasError, match="at least one batch"):
        teas.measure_damage(network.with_windows, network.windows, [2], [])


def test_initial_windows_of_the_paper():
    assert allocation.initial({"a": 0.2, "b": 0.4, "c": 0.01}, 16) == {"a": 8, "b": 16, "c": 1}
    assert allocation.initial({"a": 0.1, "b": 0.4}, 16, exponent=0.5) == {"a": 8, "b": 16}
    assert allocation.initial({"a": 0.1, "b": 0.4}, 16, exponent=-1) == {"a": 16, "b": 4}
    assert allocation.initial({"a": 0.0, "b": 0.4}, 16, exponent=-1) == {"a": 16, "b": 1}
    with pytest.raises(teas.TeasError, match="no layer fires"):
        allocation.initial({"a": 0.0}, 16)


def test_adjustment_shrinks_the_few_least_active_layers():
    windows, activity = teas.TimeWindows({"a": 16, "b": 16, "c": 4}), {"a": 0.3, "b": 0.1, "c": 0.2}
    goal = {"a": 8, "b": 4, "c": 4}
    assert allocation.adjust(windows, activity, goal, layers=1, fraction=0.25) == {"a": 16, "b": 12, "c": 4}
    assert allocation.adjust(windows, activity, goal, layers=2, fraction=0.25) == {"a": 12, "b": 12, "c": 4}
    assert allocation.adjust(windows, activity, goal, layers=2, fraction=1.0) == goal
    assert allocation.adjust(teas.TimeWindows(goal), activity, goal, layers=2, fraction=0.5) == goal


def test_a_staircase_has_no_two_windows_alike():
    assert allocation.staircase(["a", "b", "c"], 4.0) == {"a": 5, "b": 4, "c": 3}
    assert allocation.staircase(["a", "b"], 4.0) == {"a": 4, "b": 3}  # a mean of 3.5: never above the one asked for
    assert allocation.staircase(["a", "b", "c"], 2.0) == {"a": 3, "b": 2, "c": 1}
    with pytest.raises(teas.TeasError, match=r"a mean of at least 2, not 1\.9"):
        allocation.staircase(["a", "b", "c"], 1.9)


def test_controls_keep_the_budget():
    windows = teas.TimeWindows({"a": 7, "b": 2, "c": 2})
    assert allocation.uniform(windows) == {"a": 4, "b": 4, "c": 3}
    for seed in range(5):
        dealt = allocation.shuffled(windows, seed)
        assert sorted(dealt.values()) == [2, 2, 7]
        assert dealt != windows
    flat = teas.TimeWindows({"a": 3, "b": 3})
    assert allocation.shuffled(flat, 0) == flat


@pytest.mark.parametrize(
    ("score", "budget", "message"), [({"a": 1.0, "b": 1.0}, 1, "too small"), ({"a": float("nan")}, 3, "finite"), ({"a": -1.0}, 3, "negative")]
)
def test_bad_allocations_are_refused(score, budget, message):
    with pytest.raises(teas.TeasError, match=message):
        allocation.allocate(score, budget, dict.fromkeys(score, 9))


def test_regulariser_sound_by_hand():
    rates = {"a": torch.tensor(0.1, requires_grad=True), "b": torch.tensor(0.4, requires_grad=True)}
    observed = torch.tensor([0.1, 0.4])
    value = regulariser(rates, observed, {"a": 30, "b": 10}, "sound")
    # w_a = .75 · .25/.1 = 1.875, w_b = .25 · .25/.4 = .15625
    assert value.item() == pytest.approx(1.875 * 0.1 + 0.15625 * 0.4, rel=1e-4)
    value.backward()
    assert rates["a"].grad.item() == pytest.approx(1.875, rel=1e-4)  # the quiet layer is pushed harder
    assert rates["b"].grad.item() == pytest.approx(0.15625, rel=1e-4)


def test_regulariser_literal_by_hand_pushes_quiet_layers_up():
    rates = {"a": torch.tensor(0.1, requires_grad=True), "b": torch.tensor(0.4, requires_grad=True)}
    value = regulariser(rates, torch.tensor([0.1, 0.4]), {"a": 30, "b": 10}, "literal")
    # Σ Act·params = 3 + 4 = 7: (7/.1 + 7/.4) / (40 · 2)
    assert value.item() == pytest.approx((70 + 17.5) / 80, rel=1e-3)
    value.backward()
    assert rates["a"].grad.item() < 0


def test_parameters_per_layer_counts_each_synapse():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.gain = nn.Linear(4, 4), nn.Parameter(torch.ones(4))
            self.one, self.two = teas.IF(), teas.IF(torch.ones(4), learn_threshold=True)

        def forward(self, x):
            return self.two(self.linear(self.one(self.linear(x))) * self.gain)

    assert parameters_per_layer(teas.SpikingNetwork(Shared(), 2)) == {"one": 20, "two": 20 + 4 + 4}


def test_cross_entropy_of_rates():
    assert cross_entropy(torch.tensor([[1.0, 0.0]]), torch.tensor([0]), 1.0).item() == pytest.approx(math.log(1 + math.exp(-1)))
    assert cross_entropy(torch.tensor([[1.0, 0.0]]), torch.tensor([0]), 10.0).item() == pytest.approx(math.log(1 + math.exp(-10)), rel=1e-3)
