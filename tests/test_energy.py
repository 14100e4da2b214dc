"""Energy and its baselines by hand, and operations beside other tools' counters on the same uniform network."""

import math

import pytest
import torch
from torch import nn

import teas
from teas.study.energy import ACCESS, REGIMES, Operations, ann_memory, costs, count_operations, quantised_ann_energy, total


@pytest.fixture
def toy():
    """Inputs 1 and 2 make two neurons fire 2 and 4 times in 4 steps; each spike reaches 3 neurons, of which the first two fire as often as their source."""
    module = nn.Sequential(nn.Linear(2, 2, bias=False), teas.IF(reset="subtract"), nn.Linear(2, 3, bias=False), teas.IF(reset="subtract"), nn.Linear(3, 5))
    module[0].weight.data = 0.5 * torch.eye(2)
    module[2].weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    network = teas.SpikingNetwork(module, {"1": 4, "3": 4}).eval()
    return network, count_operations(network, torch.tensor([[1.0, 2.0]]))


def test_energy_and_memory_of_a_hand_counted_network(toy):
    network, found = toy
    whole = total(found)
    assert whole == Operations(dense=4 + 6 + 15, analog=4, synaptic=18 + 30, updates=8 + 12, transform=0)
    for regime, (mac, add, access) in {"FP32": (4.6, 0.9, 5), "FP16": (1.5, 0.4, 2.5), "INT32": (3.2, 0.1, 5), "INT8": (0.23, 0.03, 1.25)}.items():
        assert whole.energy(regime) == pytest.approx(4 * mac + 68 * add)
        assert whole.memory(regime) == pytest.approx((3 * 48 + 2 * 20 + 2 * 4) * access)
        assert ann_memory(found, regime) == pytest.approx(2 * 25 * access)
    nano = costs(network, found)
    assert nano["energy"]["FP32"] == pytest.approx((4 * 4.6 + 68 * 0.9) / 1000)
    assert set(nano["memory"]) == set(REGIMES) == set(ACCESS)


def test_the_quantised_ann_has_as_many_bits_as_the_windows_have_levels(toy):
    network, found = toy
    # Pixels have 8 bits; 0 to 4 spikes are 5 levels, 3 bits: 4 MACs of 8 x 8 bits, 21 of 3 x 8, and with 32-bit weights 8 x 32 and 3 x 32.
    assert quantised_ann_energy(network, found, "INT8") == pytest.approx(4 * (0.2 + 0.03) + 21 * (0.2 * 3 / 8 + 0.03))
    assert quantised_ann_energy(network, found, "INT32") == pytest.approx(4 * (3.1 * 8 / 32 + 0.1) + 21 * (3.1 * 3 / 32 + 0.1))
    for window in (1, 2, 3, 4, 7, 8, 255, 256):
        assert window.bit_length() == math.ceil(math.log2(window + 1))


def test_windows_of_unequal_length_pay_for_their_transform(toy):
    network, _ = toy
    other = network.with_windows({"1": 4, "3": 2})
    found = count_operations(other, torch.tensor([[1.0, 2.0]]))
    assert found["3"].transform == 2
    assert found["3"].updates == 2 * 3
    alone = Operations(dense=0, analog=0, synaptic=0, updates=0, transform=2)
    assert (alone.energy("INT32"), alone.memory("INT32")) == (2 * 3.2, 2 * 2 * 5)


def test_two_phase_operations_do_not_need_the_trains():
    """The engine's counts give the operations that plain counting over the simulated trains gives."""
    torch.manual_seed(0)
    neurons = {"reset": "subtract", "v0": 0.5}
    module = nn.Sequential(nn.Linear(6, 9), teas.IF(0.4, **neurons), nn.Linear(9, 7), teas.IF(0.5, **neurons), nn.Linear(7, 3))
    network, inputs = teas.SpikingNetwork(module, {"1": 5, "3": 3}, firing="two_phase").eval(), torch.rand(8, 6)
    record = network(inputs, keep_spikes=True).record
    found = count_operations(network, inputs)
    assert found["3"].synaptic == record["1"].spikes.sum().item() * 7 / 8
    assert found["readout"].synaptic == record["3"].spikes.sum().item() * 3 / 8


class Stream(nn.Module):
    """Membrane shortcuts over three neurons: each is charged with all currents before it."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.out = nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 5)
        self.f, self.g, self.h = (teas.IF(0.4, reset="subtract") for _ in range(3))

    def forward(self, x):
        stream = self.a(x)
        stream = stream + self.b(self.f(stream))
        stream = stream + self.c(self.g(stream))
        return self.out(self.h(stream))


def test_a_current_that_charges_several_layers_is_computed_once():
    torch.manual_seed(0)
    inputs = torch.rand(4, 2)
    network = teas.SpikingNetwork(Stream(), {"f": 4, "g": 2, "h": 3}, firing="two_phase").eval()
    with torch.no_grad():
        record, found = network(inputs).record, count_operations(network, inputs)
    spikes = {name: float(record[name].count.sum()) / 4 for name in "fgh"}
    assert all(spikes.values())
    assert found["f"] == Operations(dense=6, analog=6, synaptic=0, updates=3 * 4, transform=0)
    # The stream so far joins what a block adds to it: one addition for each of three neurons.
    assert found["g"] == Operations(dense=9, analog=0, synaptic=3 * spikes["f"], updates=3 * 2 + 3, transform=0)
    assert found["h"] == Operations(dense=9, analog=0, synaptic=3 * spikes["g"], updates=3 * 3 + 3, transform=0)
    # 8 bits for pixels; 3 for four steps and 2 for two and three, whoever else is charged with them.
    assert quantised_ann_energy(network, found, "INT8") == pytest.approx((6 * 8 + 9 * 3 + 9 * 2 + 15 * 2) * 0.2 / 8 + 39 * 0.03)
    stepped = teas.SpikingNetwork(Stream(), {"f": 4, "g": 2, "h": 3}).eval()
    stepped.module.load_state_dict(network.module.state_dict())
    with torch.no_grad():
        trains, anew = stepped(inputs, keep_spikes=True).record, count_operations(stepped, inputs)
    assert anew["h"].synaptic == 3 * sum(float(trains["h"].received[name].sum()) for name in "fg") / 4  # both are re-timed to the window of h
    assert (anew["h"].dense, anew["h"].analog, anew["h"].transform) == (9, 0, 6)


def uniform_network():
    """Convolutions with padding, stride and groups, at 6 steps everywhere, immediate firing, reset to zero, no biases."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(2, 4, 3, padding=1, bias=False), teas.IF(0.3), nn.Conv2d(4, 8, 3, padding=1, stride=2, groups=2, bias=False), teas.IF(0.2),
        nn.Flatten(), nn.Linear(8 * 5 * 4, 10, bias=False), teas.IF(0.2),
    ]  # fmt: skip
    return nn.Sequential(*layers), torch.rand(3, 2, 9, 7)


def test_synaptic_operations_beside_spikingjelly():
    """SpikingJelly steps the same network with its own neurons and counts what spikes add; its count is per batch, and leaves out neuron updates."""
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason="pip install spikingjelly")
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based.op_counter import DispatchCounterMode, MACCounter, SynOpCounter

    module, inputs = uniform_network()
    network = teas.SpikingNetwork(module, 6)
    ours = count_operations(network, inputs)
    theirs = nn.Sequential(*(neuron.IFNode(v_threshold=float(m.threshold), v_reset=0.0) if isinstance(m, teas.IF) else m for m in module)).eval()
    functional.reset_net(theirs)
    hidden, first, trains = nn.Sequential(*theirs[1:]), theirs[0], []
    with torch.no_grad():
        currents = first(inputs)
        counter, macs = SynOpCounter(), MACCounter()
        with DispatchCounterMode([counter]):
            for _ in range(6):
                trains.append(hidden(currents))
        with DispatchCounterMode([macs]):
            first(inputs)
    assert torch.equal(torch.stack(trains).sum(0), network(inputs).record["6"].count)  # the same spikes
    assert counter.get_total() > 0
    assert sum(row.synaptic for row in ours.values()) == pytest.approx(counter.get_total() / 3)
    # Its MACs of a padded convolution count the kernel at every position, the zeros beyond the border too; ours count real pixels alone.
    assert macs.get_total() / 3 == 2 * 4 * 9 * 9 * 7
    assert ours["1"].analog == 2 * 4 * sum(min(3, r + 2, 10 - r) for r in range(9)) * sum(min(3, c + 2, 8 - c) for c in range(7))


def test_synaptic_operations_beside_the_average_rate():
    """`syops` and most papers: MACs of the dense layer times the mean firing rate of its input, times the steps."""
    module, inputs = uniform_network()
    network = teas.SpikingNetwork(module, 6)
    ours, record = count_operations(network, inputs), network(inputs).record
    by_rate = {"3": 9 * 2 * 8 * 5 * 4 * record["1"].activity.item() * 6, "6": 160 * 10 * record["3"].activity.item() * 6}
    # Exact where every input has the same fan-out; with padding and stride an average over unequal fan-outs, above ours here because the border
    # reaches fewer outputs than the kernel has weights.
    assert ours["6"].synaptic == pytest.approx(by_rate["6"])
    assert ours["3"].synaptic < by_rate["3"] < 1.5 * ours["3"].synaptic
