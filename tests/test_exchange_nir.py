"""NIR: the round trip keeps windows, semantics and spikes; what its equations do not say is refused; other tools run what we write."""

import itertools

import pytest
import torch
from torch import nn

import teas

nir = pytest.importorskip("nir", reason="needs nir: pip install 'teas[exchange]'")


class Residual(nn.Module):
    def __init__(self, neurons):
        super().__init__()
        self.conv1, self.fire1 = nn.Conv2d(2, 4, 3, padding=1, bias=False), neurons(torch.tensor([0.5, 0.75, 1.0, 0.25]))
        self.norm1 = nn.BatchNorm2d(4)
        self.conv2, self.fire2 = nn.Conv2d(4, 4, 3, padding=1, stride=1, groups=2), neurons(0.5)
        self.fc, self.fire3 = nn.Linear(4 * 4 * 3, 5), neurons(0.75)

    def forward(self, x):
        a = self.fire1(self.norm1(self.conv1(x)))
        b = self.fire2(self.conv2(a))
        return self.fire3(self.fc(torch.flatten(a + b, 1)))


def dyadic(module):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randint(-24, 32, parameter.shape) / 32)
    return module.eval()


def sample():
    torch.manual_seed(1)
    return torch.randint(0, 17, (64, 2, 4, 3)) / 16


CASES = {
    "paper": (lambda t: teas.IF(t), {}),
    "first spike": (lambda t: teas.IF(t), {"code": "first_spike", "encoding": "latency"}),
    "subtract, even": (lambda t: teas.IF(t, reset="subtract", v0=0.5), {"layout": "even", "transform": "residual"}),
    "leaky": (lambda t: teas.LIF(0.75, t, v_reset=-0.125), {"transform": "linear"}),
    "late reset": (lambda t: teas.LIF(0.5, t, reset="subtract", reset_by=2.0, surrogate="arctan"), {}),
    "two-phase": (lambda t: teas.IF(t, reset="subtract", v0=0.5), {"firing": "two_phase"}),
}


def same(network, back, inputs, exact=True):
    assert back.windows == network.windows
    assert back.semantics == network.semantics
    a, b = network(inputs, keep_spikes=True), back(inputs, keep_spikes=True)
    for layer, record in a.record.items():
        assert record.count.sum() > 0
        assert torch.equal(record.spikes, b.record[layer].spikes), layer
        for option in ("reset", "v0", "v_reset", "reset_by", "leak", "surrogate"):
            assert getattr(network.neurons(layer), option) == getattr(back.neurons(layer), option)
        assert torch.equal(network.neurons(layer).threshold, back.neurons(layer).threshold)
    assert torch.equal(a.logits, b.logits) if exact else torch.allclose(a.logits, b.logits, atol=1e-6)


@pytest.mark.parametrize(("neurons", "semantics"), CASES.values(), ids=list(CASES))
def test_round_trip_keeps_windows_semantics_and_spikes(neurons, semantics, tmp_path):
    module = dyadic(Residual(neurons))
    module.norm1 = nn.Identity()
    network = teas.SpikingNetwork(module, {"fire1": 4, "fire2": 8, "fire3": 2}, **semantics)
    teas.to_nir(network, tmp_path / "a.nir", (2, 4, 3), strict=False)
    back = teas.from_nir(tmp_path / "a.nir")
    same(network, back, sample())
    teas.to_nir(back, tmp_path / "b.nir", (2, 4, 3), strict=False)
    same(back, teas.from_nir(tmp_path / "b.nir"), sample())
    assert teas.from_nir(tmp_path / "a.nir", windows=3).windows.sum == 9


def test_batch_norms_are_folded(tmp_path):
    module = Residual(lambda t: teas.IF(t)).double()
    module.norm1.running_mean.uniform_(-0.1, 0.1)
    module.norm1.running_var.uniform_(0.5, 2)
    network = teas.SpikingNetwork(module.eval(), {"fire1": 4, "fire2": 8, "fire3": 2}).double()
    teas.to_nir(network, tmp_path / "a.nir", (2, 4, 3), strict=False)
    same(network, teas.from_nir(tmp_path / "a.nir"), sample().double(), exact=False)


@pytest.mark.filterwarnings("ignore:at 64 steps")
def test_a_converted_network_makes_the_round_trip(tmp_path):
    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    ann = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.AvgPool2d((2, 1)), *head).eval()
    network = teas.convert(ann, [sample()]).at({"2": 16, "4": 4})
    teas.to_nir(network, tmp_path / "a.nir", (2, 4, 3), strict=False)
    same(network, teas.from_nir(tmp_path / "a.nir"), sample(), exact=False)


def uniform(**options):
    return teas.SpikingNetwork(nn.Sequential(nn.Linear(6, 5), teas.IF(**options), nn.Linear(5, 3), teas.LIF(0.75, **options)), 8)


def test_what_nir_can_say_is_written_without_asking(tmp_path):
    network = dyadic(uniform())
    teas.to_nir(network, tmp_path / "a.nir", (6,))
    graph = nir.read(tmp_path / "a.nir")
    assert sorted(type(node).__name__ for node in graph.nodes.values()) == ["Affine", "Affine", "IF", "Input", "LIF", "Output"]
    assert graph.nodes["3"].tau[0] == pytest.approx(1e-4 / 0.25)
    plain = nir.NIRGraph(graph.nodes, graph.edges)  # as another tool would write it: without our metadata
    back = teas.from_nir(plain, 8)
    x = torch.randn(200, 6)
    assert torch.allclose(back(x).logits, network(x).logits, atol=0.126)
    assert (back(x).logits == network(x).logits).float().mean() > 0.95  # ties do not fire by NIR's equations
    with pytest.raises(teas.TeasError, match="give windows=8"):
        teas.from_nir(plain)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: uniform(reset="subtract"), "reset by subtraction of layer '1'"),
        (lambda: uniform(v0=0.5), "initial potential of layer '1'"),
        (lambda: uniform().with_windows({"1": 4, "3": 8}), "unequal windows"),
        (lambda: teas.SpikingNetwork(nn.Sequential(nn.Linear(6, 3), teas.IF()), 4, code="first_spike"), "code 'first_spike'"),
    ],
)
def test_what_would_be_lost_on_other_tools_is_refused(network, message, tmp_path):
    with pytest.raises(teas.TeasError, match=message):
        teas.to_nir(network(), tmp_path / "a.nir", (6,))
    assert not (tmp_path / "a.nir").exists()
    teas.to_nir(network(), tmp_path / "a.nir", (6,), strict=False)


def test_operations_without_a_node_are_all_named(tmp_path):
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), teas.IF(), nn.Softmax(1), nn.Flatten(), nn.Linear(4, 2), teas.IF())
    with pytest.raises(teas.TeasError, match=r"1 \(MaxPool2d\); 3 \(Softmax\)"):
        teas.to_nir(teas.SpikingNetwork(module, 4), tmp_path / "a.nir", (2, 4, 4))
    with pytest.raises(teas.TeasError, match=r"does not take inputs of the shape \(5,\)"):
        teas.to_nir(uniform(), tmp_path / "a.nir", (5,))


def test_spikingjelly_runs_what_we_write_and_we_read_what_it_writes(tmp_path):
    pytest.importorskip("spikingjelly", reason="needs spikingjelly: pip install 'teas[exchange]'")
    from spikingjelly.activation_based import functional, neuron
    from spikingjelly.activation_based.nir_exchange import export_to_nir, import_from_nir

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), neuron.IFNode(v_threshold=0.3), nn.Flatten(), nn.Linear(8, 5), neuron.LIFNode(tau=2.0, v_threshold=0.1))

    def rates(net, x):
        functional.reset_net(net)
        return sum(net(x) for _ in range(8)) / 8

    export_to_nir(net, sample()[:1], tmp_path / "theirs.nir")
    assert torch.equal(teas.from_nir(tmp_path / "theirs.nir", 8)(sample()).logits, rates(net, sample()))
    network = teas.from_spikingjelly(net, 8)
    teas.to_nir(network, tmp_path / "ours.nir", (2, 4, 3))
    runner, state, total = import_from_nir(tmp_path / "ours.nir"), None, 0
    for _ in range(8):
        spikes, state = runner(sample(), state)
        total = total + spikes
    assert total.sum() > 0
    assert torch.equal(total / 8, network(sample()).logits)


def graph_of(*nodes, edges=None):
    named = {"input": nir.Input({"input": torch.tensor([4]).numpy()}), **{f"n{i}": node for i, node in enumerate(nodes)}}
    named["output"] = nir.Output({"output": torch.tensor([4]).numpy()})
    order = list(named)
    return nir.NIRGraph(named, edges or list(itertools.pairwise(order)), type_check=False)


def fire(**changes):
    full = {"r": torch.full((4,), 1e4).numpy(), "v_threshold": torch.ones(4).numpy(), **changes}
    return nir.IF(**full)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (lambda: graph_of(nir.Linear(torch.ones(4, 3).numpy()), fire()), "n0.*can't read a value of shape"),
        (lambda: graph_of(nir.Delay(torch.ones(4).numpy()), fire()), "n0.*is a Delay"),
        (lambda: graph_of(fire(v_threshold=-torch.ones(4).numpy())), "must be positive"),
        (lambda: graph_of(fire(r=torch.arange(4).numpy() + 1.0)), "n0.r differs from neuron to neuron"),
        (lambda: graph_of(fire(), edges=[("input", "n0"), ("n0", "n0"), ("n0", "output")]), "recurrent"),
        (lambda: graph_of(fire(), edges=[("input", "n0"), ("n0", "nowhere")]), "nodes that are not there: nowhere"),
        (lambda: graph_of(fire(), edges=[("n0", "output")]), "nothing leads to"),
    ],
)
def test_graphs_that_can_not_run_are_refused(graph, message):
    with pytest.raises(teas.TeasError, match=message):
        teas.from_nir(graph(), 4)
