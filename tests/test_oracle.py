"""The network agrees with the plain-Python oracle, exactly, on dyadic weights: branches, unequal windows, every option."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import oracle
import teas
from teas.spiking import network as network_module
from teas.spiking import temporal_transform

WIDTH = 3


class Graph(nn.Module):
    """Layers that each sum linear maps of some earlier layers; odd layers with two sources take them concatenated."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers
        self.maps, self.neurons = nn.ModuleDict(), nn.ModuleDict()
        for layer in layers:
            for source, weights in layer["inputs"]:
                linear = nn.Linear(WIDTH, WIDTH, bias=False)
                linear.weight.data = torch.tensor([[float(w) for w in row] for row in weights])
                self.maps[f"{layer['name']}-{source}"] = linear
            joined = nn.Linear(WIDTH * len(layer["inputs"]), WIDTH)
            joined.weight.data = torch.cat([self.maps[f"{layer['name']}-{source}"].weight.data for source, _ in layer["inputs"]], 1)
            joined.bias.data = torch.tensor([float(b) for b in layer["bias"]])
            self.maps[layer["name"]] = joined
            options = {"reset": layer["reset"], "v0": float(layer["v0"]), "reset_by": float(layer.get("reset_by", 1))}
            theta = torch.tensor([float(x) for x in layer["threshold"]])
            self.neurons[layer["name"]] = teas.IF(theta, **options) if layer["leak"] == 1 else teas.LIF(float(layer["leak"]), theta, **options)

    def forward(self, x):
        values = {"input": x}
        for index, layer in enumerate(self.layers):
            sources = [source for source, _ in layer["inputs"]]
            if index % 2 or layer.get("joined"):
                current = self.maps[layer["name"]](torch.cat([values[source] for source in sources], 1))
            else:
                current = sum(self.maps[f"{layer['name']}-{source}"](values[source]) for source in sources) + self.maps[layer["name"]].bias
            values[layer["name"]] = self.neurons[layer["name"]](current)
        return values[self.layers[-1]["name"]]


def dyadic(low, high, denominator):
    return st.integers(low * denominator, high * denominator).map(lambda n: Fraction(n, denominator))


@st.composite
def networks(draw, firing, code="rate"):
    windows = st.sampled_from([1, 2, 4, 8]) if firing == "two_phase" else st.integers(1, 7)  # T'/T must be exact to be compared exactly
    depth, layers = draw(st.integers(1, 4)), []
    steps = draw(st.lists(windows, min_size=depth, max_size=depth))
    steps = sorted(steps) if code == "radix" else steps  # 1, 3, 15 and 255 levels, of which only the larger are multiples of the smaller
    for index in range(depth):
        earlier = ["input", *[layer["name"] for layer in layers]]
        sources = draw(st.lists(st.sampled_from(earlier), min_size=1, max_size=2, unique=True))
        matrix = st.lists(st.lists(dyadic(-2, 2, 4), min_size=WIDTH, max_size=WIDTH), min_size=WIDTH, max_size=WIDTH)
        layers.append(
            {
                "name": f"l{index}",
                "window": steps[index],
                "joined": code == "radix",  # a bias that is added by itself is scaled by 2^T - 1 inexactly
                "inputs": [(source, draw(matrix)) for source in sources],
                "bias": draw(st.lists(dyadic(-1, 1, 4), min_size=WIDTH, max_size=WIDTH)),
                "threshold": draw(st.lists(st.sampled_from([Fraction(1), Fraction(3, 4), Fraction(2)]), min_size=WIDTH, max_size=WIDTH)),
                "reset": "subtract" if firing == "two_phase" else draw(st.sampled_from(["zero", "subtract"])),
                "reset_by": Fraction(1) if firing == "two_phase" else draw(st.sampled_from([Fraction(1), Fraction(2), Fraction(1, 2)])),
                "leak": Fraction(1) if firing == "two_phase" else draw(st.sampled_from([Fraction(1), Fraction(1, 2)])),
                "v0": draw(st.sampled_from([Fraction(0), Fraction(1, 2)])),
            }
        )
    samples = draw(st.lists(st.lists(dyadic(-1, 2, 4), min_size=WIDTH, max_size=WIDTH), min_size=1, max_size=2))
    return layers, samples


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def network_of(layers, options):
    return teas.SpikingNetwork(Graph(layers), {f"neurons.{layer['name']}": layer["window"] for layer in layers}, **options)


def compare(layers, samples, options):
    network = network_of(layers, options)
    output = network(torch.tensor([[float(x) for x in sample] for sample in samples]), keep_spikes=True)
    for index, sample in enumerate(samples):
        done, logits = oracle.run(layers, sample, options)
        assert output.logits[index].tolist() == [float(x) for x in logits]
        for layer in layers:
            record = output.record.get(f"neurons.{layer['name']}")
            assert record is not None
            for j, neuron in enumerate(done[layer["name"]]):
                assert record.spikes[:, index, j].tolist() == neuron["spikes"]
                assert record.count[index, j].item() == oracle.said(neuron["spikes"], options["code"])[0]
                assert record.sent[index, j].item() == sum(neuron["spikes"])
                assert record.residual[index, j].item() == float(neuron["residual"])
                mean = sum(neuron["fired"]) / len(neuron["fired"]) if neuron["fired"] else 0
                assert record.firing_potential[index, j].item() == pytest.approx(float(mean), rel=1e-12)


RATE = [
    {"code": "rate", "firing": "immediate", "transform": transform, "layout": layout, "rounding": "sound", "encoding": "direct"}
    for transform in ("firing_potential", "linear", "residual")
    for layout in ("first", "even")
]
TWO_PHASE = [{**RATE[0], "firing": "two_phase"}]
RADIX = [{**TWO_PHASE[0], "code": "radix"}]
FIRST_SPIKE = [
    {"code": "first_spike", "firing": "immediate", "transform": transform, "layout": "first", "rounding": rounding, "encoding": encoding}
    for transform in ("firing_potential", "linear")
    for rounding in ("sound", "literal")
    for encoding in ("direct", "latency")
]


@pytest.mark.parametrize("options", RATE + TWO_PHASE + RADIX + FIRST_SPIKE, ids=lambda o: "-".join(dict.fromkeys(o.values())))
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_network_equals_oracle(options, data):
    layers, samples = data.draw(networks(options["firing"], options["code"]))
    compare(layers, samples, options)


def fixed_case():
    """A two-layer network with unequal windows in which ties, negative weights and several spikes occur."""
    half = Fraction(1, 2)
    layers = [
        {"name": "l0", "window": 5, "inputs": [("input", [[1, 0, 0], [0, 1, half], [half, -1, 1]])], "bias": [0, half, 0]},
        {"name": "l1", "window": 3, "inputs": [("l0", [[1, -half, 0], [half, half, half], [-1, 1, 1]])], "bias": [half, 0, 0]},
    ]
    for layer in layers:
        layer.update(threshold=[Fraction(1)] * 3, reset="subtract", leak=Fraction(1), v0=Fraction(0))
    return layers, [[Fraction(3, 4), half, Fraction(1)], [Fraction(1), Fraction(1), half]]


def test_fixed_case_agrees():
    compare(*fixed_case(), RATE[0])


def broken_fire(monkeypatch):
    monkeypatch.setattr(torch, "ge", torch.gt)  # a tie no longer fires


def broken_reset(monkeypatch):
    real = network_module.run_immediate
    monkeypatch.setattr(network_module, "run_immediate", lambda sums, neuron, *rest: real(sums, teas.IF(neuron.threshold, reset="zero", v0=neuron.v0), *rest))


def broken_count(monkeypatch):
    real = temporal_transform.retimed_count
    monkeypatch.setattr(temporal_transform, "retimed_count", lambda *a: (real(*a) - 1).clamp_min(0))


def broken_layout(monkeypatch):
    real = temporal_transform.count_to_train
    monkeypatch.setattr(temporal_transform, "count_to_train", lambda n, window, layout: real(n, window, layout).flip(0))


@pytest.mark.parametrize("fault", [broken_fire, broken_reset, broken_count, broken_layout])
def test_broken_on_purpose_is_caught(fault, monkeypatch):
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        compare(*fixed_case(), RATE[0])
