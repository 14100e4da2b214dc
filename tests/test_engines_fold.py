"""Amplitudes of converted networks folded into weights: the same function, and integer kernels for networks from `teas.convert`."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import teas
from conformance import Graph
from teas.ann.resnet import CifarPreactivationResNet, CifarResNet
from teas.engine.fold import fold_amplitudes
from teas.engine.int8 import quantise
from teas.spiking.neuron import Amplitude
from test_engines import INT8, flip_rate, needs_int8


def converted(ann, shape=(3, 16, 16), windows=16, **options):
    torch.manual_seed(0)
    inputs = torch.randn(24, *shape)
    ann.train()
    for _ in range(5):
        ann(inputs)  # running statistics
    return teas.convert(ann.eval(), [inputs], **options).at(windows), inputs


def amplitudes(network):
    return [module for module in network.module.modules() if isinstance(module, Amplitude)]


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1, self.c2, self.c3, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1, groups=2), nn.Conv2d(10, 8, 3), nn.Linear(72, 5)

    def forward(self, x):
        a = F.max_pool2d(F.relu(self.c1(x)), 2)
        b = F.relu(self.c2(a))
        return self.fc(torch.flatten(F.avg_pool2d(F.relu(self.c3(torch.cat([a, b], 1))), 2), 1))


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(
    "ann",
    [lambda: CifarResNet(10, blocks=1, width=8), lambda: CifarPreactivationResNet(10, blocks=2, width=8), Pooled],
    ids=["resnet", "membrane shortcuts", "pools, groups, cat, flatten"],
)
def test_folding_keeps_what_the_network_computes(ann, per_channel):
    torch.manual_seed(1)
    network, inputs = converted(ann(), per_channel=per_channel)
    folded, left = fold_amplitudes(network)
    if per_channel or ann is not Pooled:
        assert left == {}
        assert len(amplitudes(network)) > 2
        assert not amplitudes(folded)
    else:
        assert "mixes channels" in next(iter(left.values()))  # numbers, of how many channels is not known
    wanted, found = network(inputs), folded(inputs)
    flips = [(found.record[name].count != record.count).float().mean() for name, record in wanted.record.items()]
    assert max(flips) < 1e-3
    assert (found.logits - wanted.logits).abs().max() < 0.1 * wanted.logits.abs().max()
    untouched = converted(ann(), per_channel=per_channel)[0]
    assert len(amplitudes(untouched)) == len(amplitudes(network))


@needs_int8
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(("ann", "analog"), [(CifarResNet, "relu/conv1"), (CifarPreactivationResNet, "layer1.0.relu/conv1")])
def test_integer_kernels_run_converted_networks(ann, analog, per_channel):
    torch.manual_seed(1)
    network, inputs = converted(ann(10, blocks=1, width=8), per_channel=per_channel)
    quantised = quantise(network)
    assert list(INT8.fallbacks(quantised)) == [analog]
    assert flip_rate(INT8, quantised, inputs) == 0
    assert torch.equal(INT8.prepare(quantised, "nothing")(inputs).logits, quantised(inputs).logits)


def of_layers(flow, **parts):
    module = Graph(flow, a=teas.IF(1.5, reset="subtract"), b=teas.IF(0.7, reset="subtract"), amplitude=Amplitude(torch.tensor([1.5, 2.0])), **parts)
    return teas.SpikingNetwork(module, 8, firing="two_phase").eval()


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (lambda: of_layers(lambda m, x: m.amplitude(m.a(x))), "no weights after it"),
        (lambda: of_layers(lambda m, x: m.b(m.amplitude(m.a(x)) + x)), "different amplitudes without weights"),
        (lambda: of_layers(lambda m, x: m.b(m.fc(m.fc(x) + m.amplitude(m.a(m.fc(x))))), fc=nn.Linear(2, 2)), "used at several places"),
        (lambda: of_layers(lambda m, x: m.b((stream := m.fc(x)) + m.amplitude(m.a(stream))), fc=nn.Linear(2, 2)), "charges several layers"),
        (lambda: of_layers(lambda m, x: m.b(m.fc(m.amplitude(m.a(x)).sum(1, keepdim=True))), fc=nn.Linear(1, 2)), "mixes channels"),
    ],
)
def test_what_cannot_be_folded_stays_and_says_why(network, reason, caplog):
    caplog.set_level(logging.WARNING, logger="teas")
    network = network()
    folded, left = fold_amplitudes(network)
    assert reason in left["a"]
    assert len(amplitudes(folded)) == 1
    inputs = torch.rand(6, 2)
    assert torch.equal(folded(inputs).logits, network(inputs).logits)
    quantise(network)
    assert reason in caplog.text
