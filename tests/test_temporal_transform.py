"""Hand-computed traces of every code and transform option, properties, and the gradient rule."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import teas
from teas.spiking.coding import count_to_train, encode, first_spike_time, time_to_train
from teas.spiking.neuron import Emission
from teas.spiking.temporal_transform import retime

RATE = {"code": "rate", "transform": "firing_potential", "layout": "first", "rounding": "sound"}
FIRST = {**RATE, "code": "first_spike"}


def emission(train, fired=0.0, residual=0.0, threshold=1.0):
    spikes = torch.tensor(train, dtype=torch.float64)[:, None]
    one = torch.ones(1, dtype=torch.float64)
    return Emission(len(train), threshold * one, spikes.sum(0), fired * one, residual * one, spikes)


def retimed(source, window, **options):
    return [int(s) for s in retime(source, window, **{**RATE, **options})[:, 0]]


def test_equal_windows_pass_unchanged():
    source = emission([0, 1, 0, 1], fired=2.0)
    assert retime(source, 4, **RATE) is source.spikes


def test_firing_potential_shrinks_and_expands():
    # n = 2, mean V_fire = 4/3, x̃ = 2 + 1 - 3/4 = 2.25; T 4 -> 2: 1.125 -> 1; 4 -> 8: 4.5 -> 5
    source = emission([0, 1, 0, 1], fired=8 / 3)
    assert retimed(source, 2) == [1, 0]
    assert retimed(source, 8) == [1, 1, 1, 1, 1, 0, 0, 0]


def test_linear_ignores_the_potential():
    # x̃ = 2: 4 -> 8 gives 4; 4 -> 3 gives 1.5 -> 2 (halves round up)
    source = emission([0, 1, 0, 1], fired=8 / 3)
    assert retimed(source, 8, transform="linear") == [1, 1, 1, 1, 0, 0, 0, 0]
    assert retimed(source, 3, transform="linear") == [1, 1, 0]


def test_residual_adds_what_is_left():
    # x̃ = 2 + 0.5/1 = 2.5: 4 -> 8 gives 5; a negative rest takes away: x̃ = 2 - 0.75 = 1.25: 4 -> 8 gives 2.5 -> 3
    assert sum(retimed(emission([0, 1, 0, 1], residual=0.5), 8, transform="residual")) == 5
    assert sum(retimed(emission([0, 1, 0, 1], residual=-0.75), 8, transform="residual")) == 3
    assert sum(retimed(emission([0, 1, 0, 1], residual=-9.0), 8, transform="residual")) == 0
    assert sum(retimed(emission([0, 1, 0, 1], residual=99.0), 8, transform="residual")) == 8


def test_layout_even_spaces_the_spikes():
    # x̃ = 3, T 4 -> 8: n' = 6, spikes where floor((t+1)·6/8) steps up: not at t = 0 and 4. Then n' = 3 of 8: at t = 2, 5, 7
    source = emission([0, 1, 1, 1], fired=3.0)
    assert retimed(source, 8, layout="even") == [0, 1, 1, 1, 0, 1, 1, 1]
    assert count_to_train(torch.tensor([3.0]), 8, "even")[:, 0].tolist() == [0, 0, 1, 0, 0, 1, 0, 1]


def test_first_spike_sound_and_literal():
    # x = 1, V_fire = 2: x̃ = 1.5. T 4 -> 8: sound ceil(3) - 1 = 2, literal round(3) = 3. T 4 -> 2: ceil(.75) - 1 = 0, round(.75) = 1
    source = emission([0, 1, 0, 0], fired=2.0)
    assert retimed(source, 8, **{**FIRST}).index(1) == 2
    assert retimed(source, 8, **{**FIRST, "rounding": "literal"}).index(1) == 3
    assert retimed(source, 2, **{**FIRST}).index(1) == 0
    assert retimed(source, 2, **{**FIRST, "rounding": "literal"}).index(1) == 1
    # linear: V_fire = θ, x̃ = 2: ceil(4) - 1 = 3
    assert retimed(source, 8, **{**FIRST, "transform": "linear"}).index(1) == 3


def test_silence_stays_silent():
    assert sum(retimed(emission([0, 0, 0]), 7)) == 0
    assert sum(retimed(emission([0, 0, 0]), 7, **FIRST)) == 0


@given(st.integers(1, 12), st.integers(0, 11), st.integers(1, 12), st.floats(1.0, 20.0))
def test_sound_first_spikes_are_never_lost_and_never_late(source_window, time, window, potential):
    time %= source_window
    source = emission([int(t == time) for t in range(source_window)], fired=potential)
    train = retimed(source, window, **FIRST)
    assert sum(train) == 1
    assert train.index(1) * source_window <= (time + 1) * window


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.sampled_from(["firing_potential", "linear", "residual"]))
def test_counts_stay_in_the_window_and_are_monotone(source_window, window, smaller, transform):
    counts = []
    for n in sorted({0, smaller % (source_window + 1), source_window}):
        train = [int(t < n) for t in range(source_window)]
        counts.append(sum(retimed(emission(train, fired=1.25 * n, residual=0.25), window, transform=transform)))
    assert counts == sorted(counts)
    assert counts[0] >= 0
    assert counts[-1] <= window


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(["first", "even"]))
def test_layouts_hold_exactly_n_spikes(n, window, layout):
    n = min(n, window)
    train = count_to_train(torch.tensor([float(n)]), window, layout)
    assert train.sum().item() == n
    assert set(train.flatten().tolist()) <= {0.0, 1.0}


def test_rate_gradient_is_spread_evenly_and_keeps_its_sum():
    spikes = torch.tensor([[0.0], [1.0], [0.0], [1.0]], requires_grad=True)
    source = Emission(4, torch.ones(1), spikes.sum(0), torch.full((1,), 2.5), torch.zeros(1), spikes)
    weight = torch.tensor([[1.0], [2.0]])
    (retime(source, 2, **RATE) * weight).sum().backward()
    assert spikes.grad[:, 0].tolist() == [0.75] * 4  # (1 + 2) / 4


def test_first_spike_gradient_follows_the_mapped_step():
    spikes = torch.tensor([[0.0], [1.0], [0.0], [0.0]], requires_grad=True)
    source = Emission(4, torch.ones(1), spikes.sum(0), torch.full((1,), 1.0), torch.zeros(1), spikes)
    weight = torch.tensor([[5.0], [7.0]])
    (retime(source, 2, **FIRST) * weight).sum().backward()
    assert spikes.grad[:, 0].tolist() == [5.0, 5.0, 7.0, 7.0]


def test_first_spike_time_and_back():
    times = torch.tensor([0.0, 2.0, 3.0])
    train = time_to_train(times, 3)
    assert train.sum(0).tolist() == [1, 1, 0]
    assert first_spike_time(train).tolist() == [0, 2, 3]


def test_latency_encoding_by_hand():
    # 1 fires at once, 0.5 in the middle, 0 never, 2 is clamped
    train = encode(torch.tensor([[1.0, 0.5, 0.25, 0.0, 2.0]]), 4, "latency")
    assert first_spike_time(train)[0].tolist() == [0, 2, 3, 4, 0]


def test_poisson_encoding_has_the_rate_of_its_value():
    torch.manual_seed(0)
    train = encode(torch.tensor([[0.0, 0.25, 1.0]]), 4000, "poisson")
    rates = train.mean(0)[0].tolist()
    assert rates[0] == 0
    assert rates[2] == 1
    assert abs(rates[1] - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5


def test_residual_needs_counts():
    with pytest.raises(teas.TeasError, match="counts"):
        retime(emission([1, 0]), 3, **{**FIRST, "transform": "residual"})
