"""Networks cut from modules: structure, windows, training behaviour, and clear errors."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import teas
from teas.engine import choose_engine


class Residual(nn.Module):
    """Convolutions, a residual sum, a concatenation, pooling, a reused activation, and reshapes of several kinds."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Conv2d(8, 4, 3, stride=2)
        self.norm, self.pool = nn.BatchNorm2d(4), nn.AvgPool2d(2)
        self.first, self.shared = teas.IF(reset="subtract"), teas.IF(0.5, reset="subtract")
        self.head = nn.Linear(4 * 3 * 3, 10)

    def forward(self, x):
        a = self.first(self.norm(self.conv1(x)))
        b = self.shared(self.conv2(a) + a)
        c = self.shared(self.conv3(torch.cat([a, F.relu(b)], dim=1)))
        return self.head(c.view(c.size(0), -1))


def mlp(**options):
    return nn.Sequential(nn.Linear(6, 5), teas.IF(**options), nn.Linear(5, 3), teas.IF(**options))


def inputs():
    torch.manual_seed(1)
    return torch.randn(4, 1, 8, 8)


def test_layers_sources_and_names():
    network = teas.SpikingNetwork(Residual(), {"first": 3, "shared": 2, "shared#2": 4})
    assert network.spiking_layers == ("first", "shared", "shared#2")
    sources = {layer.name: layer.sources for layer in network.layers}
    assert sources == {"first": ("input",), "shared": ("first",), "shared#2": ("first", "shared"), "readout": ("shared#2",)}


@pytest.mark.parametrize("firing", ["immediate", "two_phase"])
def test_forward_shapes_and_record(firing):
    network = teas.SpikingNetwork(Residual().eval(), {"first": 3, "shared": 2, "shared#2": 4}, firing=firing).eval()
    logits, record = network(inputs(), keep_spikes=True)
    assert logits.shape == (4, 10)
    assert record["shared#2"].spikes.shape == (4, 4, 4, 3, 3)
    for name, found in record.items():
        assert torch.equal(found.spikes.sum(0), found.count), name
        assert found.count.max() <= network.windows[name]
    assert record["first"].count.sum() > 0


def test_a_batch_is_its_samples():
    network = teas.SpikingNetwork(Residual().double().eval(), {"first": 3, "shared": 2, "shared#2": 4}).eval()
    together = network(inputs().double()).record["shared#2"].count
    alone = torch.cat([network(x[None]).record["shared#2"].count for x in inputs().double()])
    assert torch.equal(together, alone)


def test_two_phase_is_a_uniform_quantiser_of_the_ann():
    """With many steps the rates approach clip(f(x)/θ, 0, 1), whatever the windows of the layers are."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(6, 8), teas.IF(4.0, reset="subtract", v0=0.5), nn.BatchNorm1d(8), nn.Linear(8, 3), teas.IF(4.0, reset="subtract", v0=0.5), nn.Linear(3, 2)
    ).double()
    module.eval()
    module[2].running_mean.uniform_(-1, 1)
    x = torch.randn(5, 6, dtype=torch.float64)
    hidden = (module[0](x) / 4).clamp(0, 1)
    wanted = module[5]((module[3](module[2](hidden)) / 4).clamp(0, 1))
    network = teas.SpikingNetwork(module, {"1": 3000, "4": 2000}, firing="two_phase").eval()
    torch.testing.assert_close(network(x).logits, wanted, atol=2e-3, rtol=0)


def test_with_windows_shares_the_weights():
    network = teas.SpikingNetwork(mlp(), 4)
    twin = network.with_windows({"1": 2, "3": 7})
    assert (network.windows["3"], twin.windows["3"]) == (4, 7)
    assert twin.module is network.module
    network.module[0].weight.data.fill_(0.5)
    assert twin.module[0].weight.flatten()[0] == 0.5


class WritesInPlace(nn.Module):
    """Adds into a spike train and into a current without using the results, and reads both again."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.one, self.two, self.three, self.relu = teas.IF(), teas.IF(), teas.IF(), nn.ReLU(inplace=in_place)

    def forward(self, x):
        s, t = self.one(self.a(x)), self.two(self.b(x))
        if self.in_place:
            before = s * 1
            s += t
            s.add_(before)
            self.relu(s)
            return self.three(self.c(s) + t)
        return self.three(self.c(self.relu(s + t + s)) + t)


@pytest.mark.parametrize("firing", ["immediate", "two_phase"])
def test_operations_in_place_change_no_train(firing):
    torch.manual_seed(0)
    plain = WritesInPlace(False).eval()
    writing = WritesInPlace(True).eval()
    writing.load_state_dict(plain.state_dict())
    for module in (plain, writing):
        for neurons in (module.one, module.two, module.three):
            neurons.reset = "subtract"
    windows, x = {"one": 3, "two": 5, "three": 5}, 2 * torch.randn(16, 6)
    wanted, found = (teas.SpikingNetwork(module, windows, firing=firing)(x, keep_spikes=True) for module in (plain, writing))
    assert torch.equal(wanted.logits, found.logits)
    assert wanted.logits.sum() > 0
    assert found.record["two"].spikes.max() == 1


def test_deepcopy_is_independent():
    network = teas.SpikingNetwork(Residual(), 3)
    other = copy.deepcopy(network).eval()
    with torch.no_grad():
        network.module.conv1.weight.zero_()
    assert other.module.conv1.weight.abs().sum() > 0
    assert other(inputs()).logits.shape == (4, 10)


def test_gradients_reach_every_parameter_through_unequal_windows():
    network = teas.SpikingNetwork(Residual(), {"first": 3, "shared": 2, "shared#2": 5})
    network(inputs()).logits.square().sum().backward()
    for name, parameter in network.module.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.filterwarnings("ignore:Dynamo detected")
@pytest.mark.parametrize("options", [{}, {"firing": "two_phase"}, {"firing": "two_phase", "code": "radix"}])
@pytest.mark.parametrize("training", [False, True])
def test_a_network_may_be_part_of_what_is_compiled(options, training):
    networks = [teas.SpikingNetwork(Residual().train(training), {"first": 3, "shared": 2, "shared#2": 5}, **options).train(training) for _ in range(2)]
    plain, compiled = networks
    compiled.load_state_dict(plain.state_dict())
    torch._dynamo.reset()
    head = torch.compile(lambda x: compiled(2 * x).logits.tanh(), backend="eager")
    answers = [plain(2 * inputs()).logits.tanh(), head(inputs())]
    assert torch.equal(*answers)
    assert answers[0].abs().sum() > 0
    if training:
        for answer in answers:
            answer.square().sum().backward()
        for (name, ours), theirs in zip(compiled.named_parameters(), plain.parameters(), strict=True):
            assert torch.equal(ours.grad, theirs.grad), name


def test_first_spike_logits_are_negative_times():
    torch.manual_seed(0)
    network = teas.SpikingNetwork(mlp(), {"1": 4, "3": 6}, code="first_spike", encoding="latency")
    output = network(torch.rand(8, 6), keep_spikes=True)
    spikes = output.record["3"].spikes
    assert spikes.sum(0).max() <= 1
    wanted = torch.where(spikes.sum(0) > 0, spikes.argmax(0), 6)
    assert torch.equal(output.logits, -wanted.float())


def test_dropout_drops_a_neuron_for_its_whole_window():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Identity(), teas.IF(0.5), nn.Dropout(0.5), nn.Linear(40, 40, bias=False), teas.IF(0.5, reset="subtract"))
    module[3].weight.data = torch.eye(40)
    spikes = teas.SpikingNetwork(module, 6)(torch.ones(1, 40), keep_spikes=True).record["4"].spikes[:, 0]
    assert {tuple(column.tolist()) for column in spikes.T} == {(0.0,) * 6, (1.0,) * 6}


def test_empty_batch():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), teas.IF(), nn.Flatten(), nn.Linear(72, 10))
    assert teas.SpikingNetwork(module, 3)(torch.zeros(0, 1, 8, 8)).logits.shape == (0, 10)


def test_poisson_input_is_reproducible_by_seed():
    network = teas.SpikingNetwork(mlp(), 8, encoding="poisson")
    torch.manual_seed(3)
    first = network(torch.rand(4, 6, generator=torch.Generator().manual_seed(0))).logits
    torch.manual_seed(3)
    assert torch.equal(first, network(torch.rand(4, 6, generator=torch.Generator().manual_seed(0))).logits)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.fire = teas.IF()

    def forward(self, x):
        if x.sum() > 0:
            return self.fire(x)
        return x


class Writes(nn.Module):
    def __init__(self):
        super().__init__()
        self.fire = teas.IF()

    def forward(self, x):
        x[:, 0] = 0
        return self.fire(x)


class Options(nn.Module):
    """Takes more than its input, by default nothing that changes what it returns."""

    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x, shortcut=None, scale=2.0, *, features=False, **_):
        x = self.body(x)
        if shortcut is not None:
            x = x + shortcut
        if features:
            return {"features": x}
        return x * scale


def test_further_arguments_of_the_forward_pass_have_their_defaults():
    module = Options()
    assert torch.equal(teas.SpikingNetwork(module, 4)(torch.ones(2, 6)).logits, 2 * teas.SpikingNetwork(module.body, 4)(torch.ones(2, 6)).logits)


class Returns(Options):
    def forward(self, x, features=True):
        return super().forward(x, features=features)


class Two(Options):
    def forward(self, x, y, features=False):
        return super().forward(x, y, features=features)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: teas.SpikingNetwork(Returns(), 4), "returns a dict; it must return one tensor: wrap it"),
        (lambda: teas.SpikingNetwork(Two(), 4), r"cannot trace Two at .*test_network.py:\d+ in forward"),
        (lambda: teas.SpikingNetwork(mlp(), {"1": 0, "3": 4}), "layer '1' is 0; it must be an integer >= 1"),
        (lambda: teas.SpikingNetwork(mlp(), 0), "must be an integer >= 1"),
        (lambda: teas.SpikingNetwork(mlp(), {"1": 4, "3": 4, "fc9": 2}), "unknown layer 'fc9'"),
        (lambda: teas.SpikingNetwork(mlp(), {"1": 4}), "no window for layer '3'"),
        (lambda: teas.SpikingNetwork(mlp(), {"1": 2.5, "3": 4}), "2.5"),
        (lambda: teas.SpikingNetwork(mlp(), [4, 3]), r"mapping of layer name to steps; got \[4, 3\]"),
        (lambda: teas.SpikingNetwork(nn.Linear(2, 2), 4), "no spiking layer"),
        (lambda: teas.SpikingNetwork(Branching(), 4), r"test_network.py:\d+ in forward: \"if x.sum\(\) > 0:\""),
        (lambda: teas.SpikingNetwork(Writes(), 4), r'in forward: "x\[:, 0\] = 0"'),
        (lambda: teas.SpikingNetwork(mlp(), 4, transfrom="linear"), "unknown option 'transfrom'"),
        (lambda: teas.SpikingNetwork(mlp(), 4, transform="cubic"), "firing_potential, linear, residual"),
        (lambda: teas.SpikingNetwork(mlp(), 4, firing="two_phase"), "reset 'subtract'"),
        (lambda: teas.SpikingNetwork(mlp(), 4, code="first_spike", firing="two_phase"), "loses the time"),
        (lambda: teas.SpikingNetwork(mlp()[:3], 4, code="first_spike"), "end the module with"),
        (lambda: teas.SpikingNetwork(mlp(), 4, encoding="latency"), "first-spike code"),
        (lambda: teas.SpikingNetwork(mlp(), 4)(torch.full((1, 6), float("nan"))), "NaN or infinite"),
        (lambda: teas.SpikingNetwork(mlp(), 4)(torch.ones(1, 6).numpy()), "takes a tensor .* got ndarray"),
        (lambda: teas.SpikingNetwork(mlp(), 4)(torch.ones(1, 6).double()), r"input is torch.float64, and the weights are torch.float32: give inputs.to"),
        (lambda: teas.SpikingNetwork(mlp(), 4).bfloat16()(torch.ones(1, 6).bfloat16()), r"torch.autocast\('cpu', torch.bfloat16\)"),
        (lambda: torch.export.export(teas.SpikingNetwork(mlp(), 4), (torch.ones(1, 6),)), "teas.to_onnx"),
        (lambda: teas.TimeWindows({}), "at least one layer"),
        (lambda: teas.TimeWindows.from_json("[1, 2]"), "JSON object"),
        (lambda: teas.TimeWindows.from_json("{"), "not JSON"),
        (lambda: teas.TimeWindows({"a": 1}).replace({"b": 2}), "unknown layer 'b'"),
    ],
)
def test_bad_input_is_refused_clearly(make, message):
    with pytest.raises(teas.TeasError, match=message):
        make()


def test_windows_may_be_numpy_integers():
    network = teas.SpikingNetwork(mlp(), dict(zip(("1", "3"), np.array([2, 3]), strict=True)))
    assert network.windows.to_json() == teas.TimeWindows({"1": 2, "3": 3}).to_json()
    assert network.with_windows(np.int64(5)).windows == {"1": 5, "3": 5}


def test_nan_weights_are_named():
    network = teas.SpikingNetwork(mlp(), 4)
    network.module[2].bias.data[0] = float("nan")
    with pytest.raises(teas.TeasError, match=r"2\.bias has a NaN"):
        network.check_finite()


def test_time_windows_are_a_value():
    windows = teas.TimeWindows({"a": 2, "b": 6})
    assert (windows.mean, windows.max, windows.sum) == (4.0, 6, 8)
    assert teas.TimeWindows.from_json(windows.to_json()) == windows
    assert hash(windows) == hash(teas.TimeWindows({"b": 6, "a": 2}))
    assert windows.replace({"a": 3}) == {"a": 3, "b": 6}
    assert windows == {"a": 2, "b": 6}
    with pytest.raises(TypeError):
        windows["a"] = 9


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 1, 8, 8)])
def test_what_torch_says_of_shapes_comes_with_the_input_s(shape):
    ann = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    reference = teas.convert(ann, [torch.rand(8, 3, 8, 8)], per_channel=False).at(4)
    for run in (reference, choose_engine(reference, "cpu", "count").prepare(reference)):
        with pytest.raises(RuntimeError) as raised:
            run(torch.zeros(shape))
        assert raised.value.__notes__ == [
            f"The network was given inputs of shape {list(shape)}; it takes a batch, [batch, *shape], of such as it was made for."
        ]
