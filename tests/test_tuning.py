"""Thresholds and biases fitted by gradient: against brute force over the threshold, and to logits nearer to the ANN's at the weights it had."""

import pytest
import torch
from torch import nn

import teas
from teas.ann.quantised import QuantisedReLU
from teas.ann.tuning import tune


def residual_net():
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.norm, self.two, self.head = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

        def forward(self, x):
            x = torch.relu(self.norm(self.one(x)))
            x = torch.relu(self.two(x) + x)
            return self.head(x.mean((2, 3)))

    net = Net().eval()
    net.norm.running_mean.normal_(0, 0.1), net.norm.running_var.uniform_(0.2, 1)
    return net


def test_a_threshold_is_tuned_to_where_brute_force_finds_the_least_error():
    inputs = torch.linspace(0, 1, 400)[:, None]
    net = nn.Sequential(nn.ReLU(), nn.Linear(1, 1, bias=False)).eval()
    net[1].weight.data.fill_(2.0)
    conversion = teas.convert(net, [inputs], threshold="maximum", margin=1.6)

    def error(theta):
        return float((QuantisedReLU(torch.tensor([theta]), 3)(inputs).detach() - inputs).square().sum())

    best = min((0.5 + i / 1000 for i in range(1200)), key=error)
    network = conversion.tuned(3, [inputs], epochs=300, rate=0.02).at(3)
    assert error(float(network.neurons("0").threshold)) < 1.05 * error(best) < 0.5 * error(1.6)  # where it started


@pytest.mark.parametrize("windows", [3, {"relu": 2, "relu_2": 7}])
def test_tuned_logits_are_nearer_at_the_same_weights(windows):
    net, inputs = residual_net(), torch.randn(256, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    conversion = teas.convert(net, inputs.split(64))
    plain = conversion.at(windows)
    kept = {name: value.clone() for name, value in plain.state_dict().items()}
    tuned = conversion.tuned(windows, [(part,) for part in inputs.split(64)], epochs=20, rate=0.02).at(windows)
    fresh = torch.randn(256, 2, 6, 6, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        errors = [[float((network(x).logits - net(x)).norm()) for network in (plain, tuned)] for x in (inputs, fresh)]
    assert errors[0][1] < 0.92 * errors[0][0]
    assert errors[1][1] < errors[1][0]
    assert dict(tuned.windows) == dict(plain.windows)
    for name, value in tuned.state_dict().items():
        if name.endswith("weight"):
            assert torch.equal(value, kept[name]), name
    assert any(not torch.equal(value, kept[name]) for name, value in tuned.state_dict().items() if name.endswith("bias"))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(value, kept[name]) for name, value in conversion.at(windows).state_dict().items())


def test_bad_input_is_refused():
    net, inputs = residual_net(), torch.randn(8, 2, 6, 6)
    conversion = teas.convert(net, [inputs])
    for options in ({"epochs": 0}, {"rate": 0.0}, {"rate": float("inf")}):
        with pytest.raises(teas.TeasError, match="at least one epoch and a positive rate"):
            conversion.tuned(4, [inputs], **options)
    with pytest.raises(teas.TeasError, match="got 0 inputs"):
        conversion.tuned(4, [])
    with pytest.raises(teas.TeasError, match="NaN or infinite"):
        conversion.tuned(4, [inputs / 0])
    with pytest.raises(teas.TeasError, match="relu_2"):
        conversion.tuned({"relu": 4}, [inputs])
    with pytest.raises(teas.TeasError, match="tuning diverged in step 1 of 1"):
        tune(conversion.trainable(4).eval(), lambda x: net(x) * float("nan"), [inputs], 1, 0.01)


def test_the_same_inputs_are_tuned_to_the_same_bits():
    net, inputs = residual_net(), torch.randn(32, 2, 6, 6)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(teas.convert(net, [inputs]).tuned(3, inputs.split(8), epochs=2).at(3).state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
