"""snnTorch networks, trained a little, send the same spikes here, ties and late resets included; what has no equal is refused."""

import pytest
import torch
from torch import nn

import teas
from peers import STEPS, Residual, digits, on_a_grid, train, trains

snn = pytest.importorskip("snntorch", reason="needs snntorch: pip install 'teas[exchange]'")
from snntorch import utils  # noqa: E402


def leaky(index, **options):
    kinds = [{"beta": 0.875}, {"beta": 0.5, "reset_mechanism": "zero", "threshold": 0.75}, {"beta": 0.9, "threshold": 0.5, "learn_beta": True}]
    return snn.Leaky(**{**kinds[index], "init_hidden": True, **options})


class Tutorial(nn.Module):
    """The form of snnTorch's tutorials: potentials passed along, a loop, recorded spikes first."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, 40), leaky(0, init_hidden=False)
        self.fc2, self.lif2 = nn.Linear(40, 10), leaky(2, init_hidden=False)

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.reset_mem()
        spikes, potentials = [], []
        for _ in range(STEPS):
            spk1, mem1 = self.lif1(self.fc1(x.flatten(1)), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
            potentials.append(mem2)
        return torch.stack(spikes, dim=0), torch.stack(potentials, dim=0)


class OnEvents(Tutorial):
    """The same on trains `[time, batch, *shape]`."""

    def forward(self, x):
        mem1, mem2, spikes = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for step in range(STEPS):
            spk1, mem1 = self.lif1(self.fc1(x[step].flatten(1)), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
        return torch.stack(spikes)


def conv():
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), leaky(1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10), leaky(2, output=True))


def looped(net, x):
    found = net(x)
    return (found[0] if isinstance(found, tuple) else found).mean(0)


def stepped(net, x):
    utils.reset(net)
    outputs = [net(x) for _ in range(STEPS)]
    return sum(out[0] if isinstance(out, tuple) else out for out in outputs) / STEPS


CASES = {
    "MLP, the tutorial's loop": (Tutorial, looped, None),
    "conv, init_hidden": (conv, stepped, STEPS),
    "residual": (lambda: Residual(nn, leaky), stepped, STEPS),
}


@pytest.mark.parametrize(("make", "run", "windows"), CASES.values(), ids=list(CASES))
def test_the_same_spikes_over_1000_digits(make, run, windows):
    trained = train(make(), run)
    images, labels = digits()
    for net in (trained, on_a_grid(trained)):
        expected = trains(net, snn.Leaky, run, images)
        with torch.no_grad():
            wanted = run(net, images)
            output = teas.from_snntorch(net, windows)(images, keep_spikes=True)
        assert len(expected) == len(output.record) >= 2
        for path, record in output.record.items():
            assert expected[path].sum() > 0
            assert torch.equal(record.spikes, expected[path]), path
        assert (wanted.argmax(1) == labels).float().mean() > 0.3


def test_a_tie_does_not_fire_and_a_reset_comes_after_the_leak():
    net = nn.Sequential(nn.Linear(1, 1, bias=False), snn.Leaky(beta=0.5, init_hidden=True))
    net[0].weight.data.fill_(0.5)
    for value, wanted in [(1.0, [0] * 8), (2.0, [0, 1, 0, 1, 0, 0, 1, 0]), (3.0, [1, 0, 1, 1, 0, 1, 1, 0])]:
        x = torch.tensor([[value]])
        expected = trains(net, snn.Leaky, stepped, x)["1"].flatten().tolist()
        found = teas.from_snntorch(net, STEPS)(x, keep_spikes=True).record["1"].spikes.flatten().tolist()
        assert found == expected
        if value == 1.0:  # U approaches 1 and never passes it
            assert expected == wanted


def test_trains_are_read_step_by_step():
    torch.manual_seed(0)
    net, events = OnEvents(), (torch.rand(STEPS, 32, 1, 8, 8) < 0.4).float()
    network = teas.from_snntorch(net)
    assert network.semantics.encoding == "train"
    found = network(events.transpose(0, 1), keep_spikes=True).record["lif2"].spikes
    assert found.sum() > 0
    assert torch.equal(found, net(events))
    with pytest.raises(teas.TeasError, match=r"must be \[batch, 8, \*shape\]"):
        network(events[:5].transpose(0, 1))


class Returning(Tutorial):
    def forward(self, x):
        return super().forward(x)[1]


class Recurrent(Tutorial):
    def forward(self, x):
        mem1, spk1, out = self.lif1.reset_mem(), x.flatten(1)[:, :40], []
        for _ in range(3):
            spk1, mem1 = self.lif1(self.fc1(x.flatten(1)) + spk1, mem1)
            out.append(spk1)
        return torch.stack(out)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 4), snn.Synaptic(alpha=0.5, beta=0.5, init_hidden=True)), "1 is a Synaptic, which has no equal"),
        (lambda: nn.Sequential(nn.Linear(4, 4), snn.Leaky(beta=0.5, reset_mechanism="none")), "no reset"),
        (lambda: nn.Sequential(nn.Linear(4, 4), snn.Leaky(beta=0.5, reset_delay=False)), "reset_delay=False"),
        (lambda: nn.Sequential(nn.Linear(4, 4), snn.Leaky(beta=torch.tensor([0.1, 0.2, 0.3, 0.4]))), "one beta per neuron"),
        (lambda: nn.Sequential(nn.Linear(4, 4), snn.Leaky(beta=0.5, graded_spikes_factor=2.0)), "graded spikes"),
        (lambda: nn.Sequential(nn.Linear(4, 4), snn.Leaky(beta=0.0)), "without memory"),
        (Returning, "membrane potentials"),
        (Recurrent, "recurrent|differ"),
    ],
)
def test_what_has_no_equal_is_refused(make, message):
    with pytest.raises(teas.TeasError, match=message):
        teas.from_snntorch(make(), 4)
