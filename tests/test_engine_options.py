"""Every engine gives the spikes of the reference for every option of neurons and input, or says why it can't run the network."""

import pytest
import torch
from torch import nn

import teas
from teas.engine import ENGINES

OPTIONS = {
    "reset by half a threshold": ({"reset": "subtract", "reset_by": 0.5}, {}),
    "reset by two thresholds": ({"reset": "subtract", "reset_by": 2.0}, {"layout": "even"}),
    "reset to a potential": ({"v_reset": -0.25}, {}),
    "initial potential": ({"v0": 0.5}, {"transform": "residual"}),
    "a train as input": ({"reset": "subtract"}, {"encoding": "train"}),
    "a train as input, two-phase": ({"reset": "subtract", "v0": 0.5}, {"encoding": "train", "firing": "two_phase"}),
    "first spikes": ({}, {"code": "first_spike"}),
}


def network(neurons, semantics):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), teas.IF(0.5, **neurons), nn.Linear(16, 6), teas.IF(0.5, **neurons))
    with torch.no_grad():
        for parameter in module.parameters():  # dyadic, so that no order of a sum matters
            parameter.copy_(torch.randint(-12, 17, parameter.shape) / 16)
    return teas.SpikingNetwork(module, {"2": 8, "4": 4}, **semantics).eval()


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
@pytest.mark.parametrize(("neurons", "semantics"), OPTIONS.values(), ids=list(OPTIONS))
def test_spikes_or_a_reason(engine, neurons, semantics):
    net = network(neurons, semantics)
    if reasons := engine.why_not(net, torch.device("cpu")):
        assert engine.name != "reference"
        assert all(len(reason) > 10 for reason in reasons)
        return
    inputs = torch.randint(0, 2, (32, 8, 12)).float() if net.semantics.encoding == "train" else torch.randint(0, 9, (32, 12)) / 8
    with torch.no_grad():
        expected = net(inputs)
    found = engine.prepare(net)(inputs)
    assert torch.equal(found.logits, expected.logits)
    for layer, record in expected.record.items():
        assert record.count.sum() > 0
        assert torch.equal(found.record[layer].count, record.count)
