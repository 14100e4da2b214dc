"""Hand-computed traces of every neuron option, and gradients."""

import pytest
import torch
from torch import nn

import teas
from teas.spiking.neuron import run_immediate, run_two_phase
from teas.spiking.surrogate import SURROGATES


def trace(currents, neuron, once=False):
    emission = run_immediate(torch.tensor(currents, dtype=torch.float64)[:, None, None], neuron.double(), once)
    return emission.spikes[:, 0, 0].tolist(), emission.residual.item(), emission.fired.item()


def test_reset_zero_forgets_the_excess():
    # V: .75 | 1.5 fires -> 0 | .75 | 1.5 fires -> 0
    assert trace([0.75, 0.75, 0.75, 0.75], teas.IF()) == ([0, 1, 0, 1], 0.0, 3.0)


def test_reset_subtract_keeps_the_excess():
    # V: .75 | 1.5 fires -> .5 | 1.25 fires -> .25 | 1.0 fires (tie) -> 0
    assert trace([0.75, 0.75, 0.75, 0.75], teas.IF(reset="subtract")) == ([0, 1, 1, 1], 0.0, 3.75)


def test_reset_to_another_potential():
    # V: 1 fires -> -0.5 | .5 | 1.5 fires -> -0.5
    assert trace([1.0, 1.0, 1.0], teas.IF(v_reset=-0.5)) == ([1, 0, 1], -0.5, 2.5)


def test_leak_decays_before_the_charge():
    # V: .75 | .375 + .75 = 1.125 fires -> 0 | .5 | .25 + .5 = .75
    assert trace([0.75, 0.75, 0.5, 0.5], teas.LIF(0.5)) == ([0, 1, 0, 0], 0.75, 1.125)


def test_initial_potential_is_in_thresholds():
    # θ = 2, V starts at 1: 2 fires -> 0 | 1
    assert trace([1.0, 1.0], teas.IF(2.0, v0=0.5)) == ([1, 0], 1.0, 2.0)


def test_first_spike_code_fires_once():
    # V: 1 fires -> 0 | 1, silent | 2, silent
    assert trace([1.0, 1.0, 1.0], teas.IF(), once=True) == ([1, 0, 0], 2.0, 1.0)


def test_thresholds_per_channel():
    currents = torch.full((2, 1, 2, 3), 0.5)
    emission = run_immediate(currents, teas.IF(torch.tensor([0.5, 1.0])))
    assert emission.count[0].tolist() == [[2.0] * 3, [1.0] * 3]


@pytest.mark.parametrize(
    ("charge", "count", "residual"),
    [(3.5, 3, 0.5), (3.0, 3, 0.0), (9.0, 4, 5.0), (-2.0, 0, -2.0), (0.75, 0, 0.75)],
)
def test_two_phase_counts(charge, count, residual):
    # At most one spike a step: a charge of 9 leaves 5 thresholds unspent after 4 steps.
    emission = run_two_phase(torch.tensor([[charge]]), 4, teas.IF(reset="subtract"))
    assert (emission.count.item(), emission.residual.item()) == (count, residual)
    # Potentials at the spikes: charge, charge - 1, charge - 2, ...
    assert emission.fired.item() == sum(charge - k for k in range(count))


def test_two_phase_starts_at_the_initial_potential():
    assert run_two_phase(torch.tensor([[0.5]]), 4, teas.IF(reset="subtract", v0=0.5)).count.item() == 1


def test_surrogates_on_a_grid():
    grid = torch.tensor([-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0])
    assert SURROGATES["triangle"](grid).tolist() == [0, 0, 0.5, 1, 0.5, 0, 0]
    assert SURROGATES["literal"](grid).tolist() == [0, 1, 0.5, 0, 0, 0, 0]
    assert SURROGATES["arctan"](grid)[3].item() == 1
    assert SURROGATES["arctan"](grid)[5].item() == pytest.approx(1 / (1 + torch.pi**2))


def slow_twin(current, threshold, neuron, once):
    """The same window by autograd, step by step: a surrogate per spike, resets taken as given."""
    potential, silent, train = neuron.v0 * threshold.expand_as(current[0]), torch.ones_like(current[0]), []
    for now in current:
        potential = now + (neuron.leak if neuron.learned_leak() is None else neuron.learned_leak()) * potential
        hard = (potential >= threshold).to(current.dtype) * silent
        ratio = potential / threshold
        # The value is the spike, the slope dO/dU = σ(U/θ) as Eq. 5 states it, and dO/dθ = -(U/θ)·dO/dU.
        slope = SURROGATES[neuron.surrogate](ratio.detach()) * silent
        smooth = slope * (potential - ratio.detach() * threshold)
        spike = hard + smooth - smooth.detach()
        silent = silent - hard if once else silent
        potential = potential - neuron.reset_by * hard * threshold if neuron.reset == "subtract" else potential * (1 - hard) + neuron.v_reset * hard
        train.append(spike)
    return torch.stack(train)


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("surrogate", list(SURROGATES))
@pytest.mark.parametrize(
    "make",
    [
        lambda **o: teas.IF(**o),
        lambda **o: teas.LIF(0.75, **o),
        lambda **o: teas.IF(reset="subtract", **o),
        lambda **o: teas.LIF(0.75, learn_leak=True, reset="subtract", **o),
        lambda **o: teas.LIF(0.75, learn_leak=True, reset="subtract", reset_by=1.5, **o),
        lambda **o: teas.LIF(0.75, learn_leak=True, v_reset=-0.25, **o),
    ],
)
def test_backward_equals_a_step_by_step_twin(make, surrogate, once):
    torch.manual_seed(0)
    neuron = make(surrogate=surrogate, v0=0.25, threshold=torch.tensor([1.0, 0.5]), learn_threshold=True).double()
    current = torch.randn(6, 3, 2, 4, dtype=torch.float64).requires_grad_()
    weight = torch.randn(6, 3, 2, 4, dtype=torch.float64)
    emission = run_immediate(current, neuron, once)
    (emission.spikes * weight).sum().backward()
    leak = getattr(neuron, "leak_logit", None)
    got = current.grad.clone(), neuron.threshold.grad.clone(), None if leak is None else leak.grad.clone()
    neuron.zero_grad()
    current.grad = None
    spikes = slow_twin(current, neuron.threshold_for(current[0]), neuron, once)
    assert torch.equal(spikes, emission.spikes)
    assert spikes.sum() > 0
    (spikes * weight).sum().backward()
    torch.testing.assert_close(got[0], current.grad)
    torch.testing.assert_close(got[1], neuron.threshold.grad)
    assert got[0].abs().sum() > 0
    if leak is not None:
        torch.testing.assert_close(got[2], leak.grad)
        assert got[2].abs() > 0


def test_two_phase_gradient_is_that_of_the_clipped_charge():
    charge = torch.tensor([[-1.0, 0.5, 3.2, 9.0]], requires_grad=True)
    run_two_phase(charge, 4, teas.IF(2.0, reset="subtract")).count.sum().backward()
    assert charge.grad.tolist() == [[0.0, 0.5, 0.5, 0.0]]


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan"), float("inf"), torch.tensor([1.0, 0.0])])
def test_bad_thresholds_are_refused(threshold):
    with pytest.raises(teas.TeasError, match="must be positive"):
        teas.IF(threshold)


@pytest.mark.parametrize("leak", [0.0, -0.5, 1.5])
def test_bad_leaks_are_refused(leak):
    with pytest.raises(teas.TeasError, match="leak"):
        teas.LIF(leak)


def test_a_leak_is_learned_between_0_and_1():
    neuron = teas.LIF(0.75, learn_leak=True)
    assert neuron.leak == pytest.approx(0.75)
    with torch.no_grad():
        neuron.leak_logit += 50
    assert 0.75 < neuron.leak <= 1
    with pytest.raises(teas.TeasError, match="start below 1"):
        teas.LIF(1.0, learn_leak=True)


def test_unknown_options_are_refused_with_the_choices():
    with pytest.raises(teas.TeasError, match="zero, subtract"):
        teas.IF(reset="none")


def test_a_spiking_layer_alone_says_what_to_do():
    with pytest.raises(teas.TeasError, match="SpikingNetwork"):
        nn.Sequential(nn.Linear(2, 2), teas.IF())(torch.zeros(1, 2))


def test_thresholds_that_do_not_fit_the_channels():
    network = teas.SpikingNetwork(nn.Sequential(nn.Linear(2, 3), teas.IF(torch.ones(2))), 4)
    with pytest.raises(teas.TeasError, match="one per channel"):
        network(torch.zeros(1, 2))
