"""SpikingJelly networks, trained a little, send the same spikes here; what has no equal is refused."""

import copy

import pytest
import torch
from torch import nn

import teas
from peers import STEPS, Residual, digits, on_a_grid, train, trains

pytest.importorskip("spikingjelly", reason="needs spikingjelly: pip install 'teas[exchange]'")
from spikingjelly.activation_based import functional, layer, neuron, surrogate

ATAN = {"surrogate_function": surrogate.ATan()}


def node(index):
    """A different neuron at every place: IF, LIF, parametric LIF; reset to zero, to a value, and by subtraction."""
    kinds = [
        lambda: neuron.IFNode(v_reset=None, **ATAN),
        lambda: neuron.LIFNode(tau=2.0, v_threshold=0.5, v_reset=-0.25, **ATAN),
        lambda: neuron.ParametricLIFNode(init_tau=3.0, decay_input=False, v_reset=None, **ATAN),
    ]
    return kinds[index]()


def mlp():
    return nn.Sequential(layer.Flatten(), layer.Linear(64, 50), node(1), layer.Dropout(0.3), layer.Linear(50, 10), node(2))


def conv():
    first = layer.SeqToANNContainer(nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6))
    return nn.Sequential(first, node(0), layer.MaxPool2d(2), layer.Flatten(), layer.Linear(96, 20), node(1), layer.VotingLayer(2))


class Repeating(nn.Module):
    """The usual multi-step network: repeat the input, average over time."""

    def __init__(self, body):
        super().__init__()
        self.body = body
        functional.set_step_mode(self, "m")

    def forward(self, x):
        return self.body(x.unsqueeze(0).repeat(STEPS, 1, 1, 1, 1)).mean(0)


class Looping(nn.Module):
    """The usual single-step network: sum over a loop, divide by the steps."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        total = self.body(x)
        for _ in range(STEPS - 1):
            total += self.body(x)
        return total / STEPS


def logits(net, x):
    functional.reset_net(net)
    return net(x)


def stepped(net, x):
    functional.reset_net(net)
    return sum(net(x) for _ in range(STEPS)) / STEPS


CASES = {
    "MLP, loop": (lambda: Looping(mlp()), logits, None),
    "conv, multi-step": (lambda: Repeating(conv()), logits, None),
    "residual, multi-step": (lambda: Repeating(Residual(layer, node)), logits, None),
    "residual, single step": (lambda: Residual(layer, node), stepped, STEPS),
}


@pytest.mark.parametrize(("make", "run", "windows"), CASES.values(), ids=list(CASES))
def test_the_same_spikes_over_1000_digits(make, run, windows):
    trained = train(make(), run)
    functional.reset_net(trained)
    for net, dtype in ((copy.deepcopy(trained).double(), torch.float64), (on_a_grid(trained), torch.float32)):  # rounding plays no part in either
        images, labels = digits()
        images = images.to(dtype)
        expected = trains(net, neuron.BaseNode, run, images)
        with torch.no_grad():
            wanted = run(net, images)
            output = teas.from_spikingjelly(net, windows)(images, keep_spikes=True)
        assert len(expected) == len(output.record) >= 2
        for path, record in output.record.items():
            assert expected[path].sum() > 0
            assert torch.equal(record.spikes.to(expected[path].dtype), expected[path]), path
        assert (wanted.argmax(1) == labels).float().mean() > 0.3
        assert torch.allclose(output.logits, wanted, atol=1e-6)


def test_weights_are_copied_and_windows_can_differ():
    net = train(Repeating(conv()), logits, batches=2)
    network = teas.from_spikingjelly(net)
    assert network.windows == {"body.1": STEPS, "body.5": STEPS}
    weight = net.body[4].weight.clone()
    network(digits(8)[0])
    network.with_windows({"body.1": 3, "body.5": 5})(digits(8)[0])
    next(network.parameters()).data.zero_()
    assert torch.equal(net.body[4].weight, weight)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(layer.Linear(4, 4), neuron.QIFNode()), "1 is a QIFNode, which has no equal here"),
        (lambda: nn.Sequential(nn.Linear(4, 4), layer.SynapseFilter(), neuron.IFNode()), "1 is a spikingjelly SynapseFilter"),
        (lambda: nn.Sequential(nn.Linear(4, 4), neuron.IFNode(v_threshold=1.0, v_reset=2.0)), "must be positive"),
        (lambda: nn.Sequential(nn.Linear(4, 4)), "no spiking layer"),
    ],
)
def test_what_has_no_equal_is_refused(make, message):
    with pytest.raises(teas.TeasError, match=message):
        teas.from_spikingjelly(make(), 4)


class Transposing(nn.Module):
    def __init__(self):
        super().__init__()
        self.fire = neuron.IFNode(step_mode="m")

    def forward(self, x):
        return self.fire(x.unsqueeze(0).repeat(4, 1, 1).transpose(0, 1))


def test_a_time_axis_used_in_other_ways_is_refused():
    with pytest.raises(teas.TeasError, match="transpose on a tensor"):
        teas.from_spikingjelly(Transposing())


def test_steps_that_nobody_gives_are_asked_for():
    with pytest.raises(teas.TeasError, match="give windows=8"):
        teas.from_spikingjelly(Residual(layer, node))


@pytest.mark.parametrize("leak", [1.0, 0.75])
@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_to_spikingjelly_sends_the_same_spikes(reset, leak):
    torch.manual_seed(0)
    fires = [teas.LIF(leak, 0.7, reset=reset) if leak < 1 else teas.IF(0.7, reset=reset) for _ in range(2)]
    network = teas.SpikingNetwork(nn.Sequential(nn.Flatten(), nn.Linear(64, 30), fires[0], nn.Linear(30, 10), fires[1]), STEPS).double()
    images = digits(200)[0].double()
    net = teas.to_spikingjelly(network)
    expected = trains(net, neuron.BaseNode, stepped, images)
    output = network(images, keep_spikes=True)
    assert expected["4"].sum() > 0
    for path, record in output.record.items():
        assert torch.equal(record.spikes.to(expected[path].dtype), expected[path])


def test_to_spikingjelly_refuses_what_would_be_lost():
    network = teas.SpikingNetwork(nn.Sequential(nn.Linear(4, 4), teas.IF(torch.ones(4), v0=0.5), nn.Linear(4, 2), teas.IF()), {"1": 3, "3": 5})
    with pytest.raises(teas.TeasError, match=r"unequal windows.*one threshold per channel.*v0 0\.5"):
        teas.to_spikingjelly(network)
