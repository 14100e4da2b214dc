"""The radix code: binary digits against Python's own, engines and graphs against the network, training against conversion, and what refuses it.

That the network computes what the step-by-step mechanism does (potentials that double, thresholds that halve) is in test_oracle.py.
"""

import math

import onnxruntime as ort
import pytest
import torch
from torch import nn

import teas
from conformance import CASES, build, check
from teas.adapt.activity import measure_activity
from teas.adapt.vulnerability import Noise, accuracy_under_noise
from teas.ann.learned_windows import LONGEST, WindowLearner
from teas.ann.quantised import QuantisedReLU, quantised_activations, set_windows
from teas.engine.count import CountEngine
from teas.engine.event import EventEngine
from teas.engine.int8 import exact_kernels
from teas.spiking.coding import radix_count, radix_train, spikes_of
from teas.study.conversion_config import ConversionConfig
from teas.study.energy import count_operations, quantised_ann_energy
from teas.study.metrics import evaluate

ENGINES = [CountEngine(), CountEngine("count_reordered", reorder=True), CountEngine("count_int8", int8=True)]
LEFT_OUT = {"T = 2048", "from 2048 to 8", "no synapses", "T = 255", "T = 255, residual"}


def radix(name):
    """A case of the conformance suite under the radix code, at 1, 2 or 4 steps: 1, 3 and 15 levels, never fewer after more, so that sums are exact."""
    network, inputs = build(name)
    steps = sorted({1: 1, 2: 1, 3: 2, 4: 2}.get(steps, 4) for steps in CASES[name][1])
    windows = dict(zip(network.spiking_layers, steps, strict=True))
    return teas.SpikingNetwork(network.module, windows, code="radix", firing="two_phase").eval(), inputs


def two_layers(steps=3):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 8), teas.IF(reset="subtract", v0=0.5), nn.Linear(8, 6), teas.IF(reset="subtract", v0=0.5))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randint(-8, 9, parameter.shape) / 8)
    return teas.SpikingNetwork(module, steps, code="radix", firing="two_phase").eval(), torch.randint(-8, 17, (12, 5)) / 8


@pytest.mark.parametrize("window", [1, 2, 3, 8, 16])
def test_a_train_is_the_binary_digits_of_its_count(window):
    numbers = sorted({0, 1, 2**window - 1, 2 ** (window - 1), *range(0, 2**window, 37)} & set(range(2**window)))
    train = radix_train(torch.tensor(numbers, dtype=torch.float32), window)
    assert [[int(s) for s in column] for column in train.T] == [[int(digit) for digit in f"{number:0{window}b}"] for number in numbers]
    assert radix_count(train).tolist() == numbers
    assert spikes_of(torch.tensor(numbers), window, "radix").tolist() == [number.bit_count() for number in numbers]


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: e.name)
@pytest.mark.parametrize("case", [case for case in CASES if case not in LEFT_OUT])
def test_engines_conform(engine, case):
    network, inputs = radix(case)
    if engine.int8 and (not exact_kernels() or engine.why_not(network, torch.device("cpu"))):
        pytest.skip("no exact 8-bit kernels for this case")
    check(engine, network, inputs)


def test_the_cases_reach_every_level():
    network, inputs = radix("residual")
    with torch.no_grad():
        record = network(inputs).record
    for found in record.values():
        assert set(found.count.unique().tolist()) == set(range(16))
        assert float(found.activity) == pytest.approx(float(found.sent.mean()) / 4)
        assert 0 < found.activity < 1


def test_the_record_says_spikes_and_counts():
    network, inputs = two_layers()
    for record in network(inputs, keep_spikes=True).record.values():
        assert torch.equal(record.spikes.sum(0), record.sent)
        assert torch.equal(4 * record.spikes[0] + 2 * record.spikes[1] + record.spikes[2], record.count)
        assert record.spikes.shape[0] == 3
    assert torch.equal(network(inputs).logits, record.count / 7)


def test_an_onnx_graph_has_the_same_counts(tmp_path):
    network, inputs = two_layers(steps=4)
    teas.to_onnx(network, tmp_path / "a.onnx", (5,), counts=True)
    session = ort.InferenceSession(str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"])
    logits, *counts = session.run(None, {"input": inputs.numpy()})
    output = network(inputs)
    assert torch.equal(torch.from_numpy(logits), output.logits)
    for found, record in zip(counts, output.record.values(), strict=True):
        assert torch.equal(torch.from_numpy(found).float(), record.count)


def test_a_file_keeps_the_code(tmp_path):
    network, inputs = two_layers()
    teas.save_network(network, tmp_path / "a.safetensors")
    again = teas.load_network(tmp_path / "a.safetensors", two_layers()[0].module)
    assert again.semantics.code == "radix"
    assert torch.equal(again(inputs).logits, network(inputs).logits)


def ann_and_batches():
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)).eval()
    return ann, [torch.randn(16, 2, 4, 4) for _ in range(4)]


def test_three_steps_are_as_near_to_the_ann_as_seven_of_the_rate_code():
    ann, batches = ann_and_batches()
    conversion = teas.convert(ann, batches)
    short, long = conversion.at(3, code="radix"), conversion.at(7)
    assert torch.allclose(short(batches[0]).logits, long(batches[0]).logits, atol=1e-6)
    assert [row.error for row in conversion.report(short)] == pytest.approx([row.error for row in conversion.report(long)], rel=1e-5)
    corrected = conversion.at(3, code="radix", bias_correction=True)
    assert torch.allclose(corrected(batches[0]).logits, conversion.at(7, bias_correction=True)(batches[0]).logits, atol=1e-5)


def test_a_network_that_counts_runs_in_digits():
    ann, batches = ann_and_batches()
    conversion = teas.convert(ann, batches)
    counted = conversion.at({"2": 7, "4": 3})
    digits = teas.to_radix(counted)
    assert dict(digits.windows) == {"2": 3, "4": 2}
    for old, new in zip(counted(batches[0]).record.values(), digits(batches[0]).record.values(), strict=True):
        assert torch.equal(old.count, new.count)
    assert torch.equal(counted(batches[0]).logits, digits(batches[0]).logits)
    assert dict(teas.to_radix(conversion.at({"2": 8, "4": 1})).windows) == {"2": 4, "4": 1}
    assert dict(teas.to_radix(counted, 5).windows) == {"2": 5, "4": 5}
    with pytest.raises(teas.TeasError, match="code 'radix', firing 'two_phase'"):
        teas.to_radix(digits)
    with pytest.raises(teas.TeasError, match="code 'rate', firing 'immediate'"):
        teas.to_radix(conversion.at(4, firing="immediate"))


def test_a_trained_copy_converts_to_its_own_code():
    ann, batches = ann_and_batches()
    conversion = teas.convert(ann, batches)
    student = conversion.trainable({"2": 2, "4": 3}, code="radix").eval()
    assert [activation.levels.item() for activation in quantised_activations(student).values()] == [3, 7]
    network = teas.convert(student, batches).at({"2": 2, "4": 3})
    assert network.semantics.code == "radix"
    assert (network(batches[0]).logits - student(batches[0])).abs().max() < 1e-5
    tuned = conversion.tuned(3, batches, epochs=2, code="radix").at(3)
    assert tuned.semantics.code == "radix"
    rate = conversion.trainable(7).eval()
    set_windows(student, {"2": 3, "4": 3})
    assert torch.equal(rate(batches[0]), conversion.trainable(3, code="radix").eval()(batches[0]))
    with pytest.raises(teas.TeasError, match="code"):
        conversion.trainable(3, code="first_spike")


def test_the_gradient_of_a_window_is_the_slope_of_the_quantisation_noise():
    """The squared error of rounding a uniform value is `1/(12·L²)`, `L = 2^T - 1`, so its slope is `-log 2·2^T/(6·L³)`."""
    torch.manual_seed(0)
    layer, x = QuantisedReLU(torch.tensor(1.0), 3, code="radix"), torch.rand(200_000, 1)
    layer.learn_steps()
    (layer(x) - x).square().mean().backward()
    assert float(layer.steps.grad) == pytest.approx(-math.log(2) * 8 / (6 * 7**3), rel=0.02)


def test_learned_windows_stay_within_a_byte_of_counts():
    layer = QuantisedReLU(torch.tensor(1.0), 3, code="radix")
    learner = WindowLearner(nn.Sequential(layer), 20.0)
    assert learner.longest == LONGEST["radix"] == 8
    assert layer.window == 8
    learner.finish()


def test_activity_energy_and_metrics_count_spikes():
    network, inputs = two_layers()
    with torch.no_grad():
        record = network(inputs).record
    sent = {name: float(found.sent.sum()) / len(inputs) for name, found in record.items()}
    assert all(float(found.count.sum()) > float(found.sent.sum()) for found in record.values())
    labels = torch.zeros(len(inputs), dtype=torch.long)
    activity = measure_activity(network, [inputs])
    for name, found in activity.items():
        assert found.spikes == pytest.approx(sent[name])
        assert found.activity == pytest.approx(float(record[name].activity))
        assert len(found.histogram) == 8
    operations = count_operations(network, inputs)
    assert operations["3"].synaptic == pytest.approx(6 * sent["1"])  # each spike reaches 6 neurons
    assert operations["3"].updates == 6 * 3 * 2  # 6 neurons, 3 steps, each adds its input and doubles
    bits = quantised_ann_energy(network, operations, "INT8")
    assert bits == pytest.approx(40 * (0.2 * 8 / 8 + 0.03) + 48 * (0.2 * 3 / 8 + 0.03))  # pixels of 8 bits, activations of 3
    assert evaluate(network, [(inputs, labels)]).spikes == pytest.approx(sum(sent.values()))


def test_noise_hits_digits():
    network, inputs = two_layers()
    labels = network(inputs).logits.argmax(1)
    draw, clean = torch.Generator().manual_seed(0), {}
    for layer in network.layers:
        clean[layer.name] = network.emission(layer, inputs, clean)
    before = clean["1"].count
    every = Noise("flip", 1.0).disturb(network, network.layers[0], inputs, clean, draw)
    assert torch.equal(every.count, 7 - before)
    assert torch.equal(Noise("delete", 1.0).disturb(network, network.layers[0], inputs, clean, draw).count, torch.zeros_like(before))
    moved = Noise("jitter", 3).disturb(network, network.layers[0], inputs, clean, draw).count
    assert not torch.equal(moved, before)
    assert torch.equal(spikes_of(moved, 3, "radix"), spikes_of(before, 3, "radix"))
    found = accuracy_under_noise(network, Noise("potential", 0.0), [(inputs, labels)], 0)
    assert set(found.values()) == {100.0}


def test_what_the_code_excludes_is_refused():
    module = nn.Sequential(nn.Linear(5, 8), teas.IF(reset="subtract"))
    with pytest.raises(teas.TeasError, match="use firing 'two_phase'"):
        teas.SpikingNetwork(module, 3, code="radix")
    with pytest.raises(teas.TeasError, match="encoding 'direct'"):
        teas.SpikingNetwork(module, 3, code="radix", firing="two_phase", encoding="poisson")
    with pytest.raises(teas.TeasError, match="at most 16; the longest here is 17"):
        teas.SpikingNetwork(module, 17, code="radix", firing="two_phase")
    with pytest.raises(teas.TeasError, match="two_phase"):
        ConversionConfig(weights="x", code="radix", firing="immediate")
    with pytest.raises(teas.TeasError, match=r"damage_full is 64; windows of code 'radix' have at most 16 steps"):
        ConversionConfig(weights="x", code="radix", means=(3,), damage_full=64)
    network, _ = two_layers(steps=9)
    assert CountEngine("count_int8", int8=True).why_not(network, torch.device("cpu"))
    assert EventEngine().why_not(network, torch.device("cpu"))
    with pytest.raises(teas.TeasError, match="more than 8 bits hold"):
        teas.to_onnx(network, "never.onnx", (5,))


def test_a_network_of_the_code_learns():
    """Thresholds and weights get the gradient of the clip, activity that of a count spread over the window."""
    network, inputs = two_layers()
    network.train()
    output = network(inputs)
    output.logits.sum().backward()
    slope = torch.stack([p.grad.abs().sum() for p in network.module.parameters()])
    assert (slope > 0).all()
    count = torch.tensor([3.0, 5.0], requires_grad=True)
    spikes_of(count, 3, "radix").sum().backward()
    assert count.grad.tolist() == pytest.approx([3 / 7, 3 / 7])
