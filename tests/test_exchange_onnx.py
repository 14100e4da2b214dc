"""ONNX Runtime counts as the network does, to the spike, wherever sums are exact; everything else is refused or named."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import teas
from teas.engine import quantise

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'teas[exchange]'")
ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'teas[exchange]'")


def fire(threshold=1.0, v0=0.5):
    return teas.IF(threshold, reset="subtract", v0=v0)


class Shortcut(nn.Module):
    """A padded shortcut as in ResNets for CIFAR, pooling, and a readout."""

    def __init__(self):
        super().__init__()
        self.conv1, self.fire1 = nn.Conv2d(3, 4, 3, padding=1), fire(torch.tensor([0.5, 1.0, 2.0, 0.75]))
        self.conv2, self.fire2 = nn.Conv2d(4, 8, 3, stride=2, padding=1), fire()
        self.conv3, self.fire3 = nn.Conv2d(8, 8, 3, padding=1, groups=2), fire(0.625)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        a = self.fire1(self.conv1(x))
        y = self.conv3(self.fire2(self.conv2(a)))
        b = self.fire3(y + F.pad(a[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(b, 1), 1))


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 20), fire(v0=0.0), nn.Linear(20, 12, bias=False), fire(0.75), nn.Linear(12, 5), fire(2.0))


def pooled():
    head = (nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), fire(0.5), nn.Dropout(), nn.Flatten(), nn.Linear(24, 5))
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), fire(), *head)


CASES = {
    "residual, unequal": (Shortcut, (8, 16, 4)),
    "residual, uniform": (Shortcut, (6, 6, 6)),
    "MLP, spiking output": (mlp, (16, 2, 32)),
    "max pooling": (pooled, (4, 128)),
}


def dyadic(module):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randint(-24, 32, parameter.shape) / 32)
    return module.eval()


def images(n=20):
    torch.manual_seed(1)
    return torch.randint(-16, 17, (n, 3, 8, 8)) / 16


def ran(path, x):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return {name: torch.from_numpy(value) for name, value in zip(names, session.run(None, {"input": x.numpy()}), strict=True)}


def check(network, path, x):
    found, output = ran(path, x), network(x)
    for name, record in output.record.items():
        assert 0 < record.count.mean() < record.window
        assert torch.equal(found[name].float(), record.count), name
    exact = network.double()(x.double()).logits.float()
    network.float()
    assert torch.equal(found["logits"], exact)


@pytest.mark.parametrize(("make", "windows"), CASES.values(), ids=list(CASES))
def test_the_same_counts_and_logits(make, windows, tmp_path):
    module = dyadic(make())
    layers = teas.SpikingNetwork(module, 1).spiking_layers
    network = teas.SpikingNetwork(module, dict(zip(layers, windows, strict=True)), firing="two_phase")
    rounded = teas.to_onnx(network, tmp_path / "a.onnx", (3, 8, 8), counts=True)
    assert list(rounded.values()) == ["it reads the analog input, or sums of counts"]  # the first layer alone
    check(network, tmp_path / "a.onnx", images())
    check(network, tmp_path / "a.onnx", images(3))  # any batch


@pytest.mark.filterwarnings("ignore:at 64 steps")
def test_a_converted_network_on_8_bits(tmp_path):
    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    ann = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=2), nn.ReLU(), *head).eval()
    converted = teas.convert(ann, [images()]).at({"2": 16, "4": 8})
    folded = teas.fold_amplitudes(converted)
    assert (folded(images()).logits - converted(images()).logits).abs().max() < 1e-2
    network = quantise(folded)
    first = network.module.get_submodule("0")
    with torch.no_grad():
        first.weight.copy_((first.weight * 64).round() / 64)
        first.bias.copy_((first.bias * 64).round() / 64)
    teas.to_onnx(network, tmp_path / "a.onnx", (3, 8, 8), counts=True)
    check(network, tmp_path / "a.onnx", images())
    kinds = {str(onnx.numpy_helper.to_array(tensor).dtype) for tensor in onnx.load(str(tmp_path / "a.onnx")).graph.initializer}
    assert "int8" in kinds


def test_synapses_that_may_round_are_named(tmp_path):
    network = teas.SpikingNetwork(dyadic(mlp()), {"2": 5, "4": 7, "6": 4}, firing="two_phase")
    network.module[5].weight.data[0, 0] = 0.123
    rounded = teas.to_onnx(network, tmp_path / "a.onnx", (3, 8, 8))
    assert "factor that float32 rounds" in rounded["4/_3"]
    assert "factor" in rounded["6/_5"]
    uniform = network.with_windows(8)
    assert "not 8-bit integers" in teas.to_onnx(uniform, tmp_path / "a.onnx", (3, 8, 8))["6/_5"]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: teas.SpikingNetwork(mlp(), 4), "firing 'immediate', not 'two_phase'"),
        (lambda: teas.SpikingNetwork(mlp(), 256, firing="two_phase"), "more than 8 bits hold"),
        (lambda: teas.SpikingNetwork(mlp().double(), 4, firing="two_phase"), "not float32"),
        (lambda: teas.SpikingNetwork(nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.GELU(), fire()), 4, firing="two_phase"), r"3/_2 \(GELU\)"),
    ],
)
def test_what_has_no_integer_form_is_refused(network, message, tmp_path):
    with pytest.raises(teas.TeasError, match=message):
        teas.to_onnx(network(), tmp_path / "a.onnx", (3, 8, 8))
    assert not list(tmp_path.iterdir())
