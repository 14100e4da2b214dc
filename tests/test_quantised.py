"""Quantised activations against a plain formula, autograd and two-phase spikes; ANN training against itself interrupted."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import teas
from teas.ann.many_windows import Together
from teas.ann.quantised import QuantisedReLU, quantised_activations, set_windows
from teas.ann.training import UNLABELLED, Recipe, train


class Net(nn.Module):
    """A convolution, a shortcut, a shared ReLU and a pooling, all with dyadic weights."""

    def __init__(self):
        super().__init__()
        self.one, self.norm, self.two, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(16, 3)
        self.relu = nn.ReLU()

    def forward(self, x):
        x = self.relu(self.norm(self.one(x)))
        x = self.relu(self.two(x) + x)
        return self.head(F.max_pool2d(x, 2).flatten(1))


def dyadic(net, bits=3):
    for parameter in net.parameters():
        parameter.data = (parameter.data * 2**bits).round() / 2**bits
    net.norm.running_var.fill_(1 - net.norm.eps)  # its square root is 1
    return net


def batches(n=2):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 2, 4, 4, generator=generator) * 16).round() / 16 for _ in range(n)]


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 2, 2)])
@pytest.mark.parametrize("window", [1, 3, 64])
def test_value_is_the_plain_formula_and_gradient_that_of_a_straight_through_quantiser(shape, window):
    torch.manual_seed(0)
    layer = QuantisedReLU(torch.tensor([0.5, 1.0, 3.0]), window, v0=0.5)
    current = torch.randn(shape, requires_grad=True)
    out = layer(current)
    for index in torch.cartesian_prod(*[torch.arange(n) for n in shape]).tolist():
        theta = float(layer.threshold.detach()[index[1]])
        level = min(max(math.floor(0.5 + window * float(current.detach()[tuple(index)]) / theta), 0), window)
        assert float(out.detach()[tuple(index)]) == pytest.approx(theta * level / window, abs=1e-6)
    # The same written with autograd: round the value, pass the gradient of the clip.
    twin, theta = current.detach().clone().requires_grad_(), layer.threshold.detach().clone().requires_grad_()
    relative = twin / theta.view(1, -1, *[1] * (len(shape) - 2))
    smooth = relative.clamp(0, 1)
    rounded = (0.5 + window * relative).floor().clamp(0, window) / window
    plain = (smooth + (rounded - smooth).detach()) * theta.view(1, -1, *[1] * (len(shape) - 2))
    weight = torch.randn(shape)
    (out * weight).sum().backward()
    (plain * weight).sum().backward()
    assert torch.allclose(current.grad, twin.grad)
    positions = math.prod(shape[2:])
    assert torch.allclose(layer.threshold.grad * math.sqrt(positions * window), theta.grad, atol=1e-5)


def test_the_trainable_copy_spikes_exactly_as_its_conversion():
    torch.manual_seed(0)
    conversion = teas.convert(dyadic(Net()).eval(), batches(), threshold="maximum")
    windows = dict(zip(conversion.layers, (4, 8), strict=True))
    student = conversion.trainable(windows).eval()
    found = quantised_activations(student)
    assert {name: layer.window for name, layer in found.items()} == windows
    for layer in found.values():
        layer.threshold.data.fill_(2.0)  # dyadic, so that no sum is rounded
    network = teas.convert(student, batches()).at(windows)
    for inputs in batches():
        assert torch.equal(student(inputs), network(inputs).logits)
    assert 0 < float(network(batches()[0]).record["relu"].count.detach().mean()) < 4


def test_batch_norm_trains_in_the_copy_and_the_original_is_left_alone():
    torch.manual_seed(0)
    ann = Net().eval()
    before = {name: value.clone() for name, value in ann.state_dict().items()}
    student = teas.convert(ann, batches()).trainable(4).train()
    student(batches()[0]).sum().backward()
    assert isinstance(student.get_submodule("norm"), nn.BatchNorm2d)
    assert not torch.equal(student.get_submodule("norm").running_mean, before["norm.running_mean"])
    assert all(torch.equal(value, before[name]) for name, value in ann.state_dict().items())
    assert not ann.training


def test_windows_of_quantised_activations_are_swapped_or_refused():
    student = teas.convert(Net().eval(), batches()).trainable(4)
    set_windows(student, {"relu": 2, "relu_2": 3})
    assert [layer.window for layer in quantised_activations(student).values()] == [2, 3]
    with pytest.raises(teas.TeasError, match="relu_2"):
        set_windows(student, {"relu": 2})
    with pytest.raises(teas.TeasError, match="positive"):
        QuantisedReLU(torch.tensor([1.0, 0.0]), 4)


def samples(n=96):
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(n, 2, 4, 4, generator=generator)
    return DataLoader(TensorDataset(inputs, (inputs.mean((1, 2, 3)) > 0).long()), 16, shuffle=True)


def student(seed=0, together=()):
    torch.manual_seed(seed)
    found = teas.convert(Net().eval(), batches())
    return Together({window: found.trainable(window) for window in together}) if together else found.trainable(2)


class Stop(Exception):
    pass


def test_an_interrupted_training_resumes_to_the_same_bits(tmp_path):
    recipe, teacher = Recipe(epochs=3, rate=0.05, distillation=0.5), Net().eval()
    whole = student()
    history = train(whole, samples(), recipe, teacher=teacher, seed=3)
    assert history[-1].loss < history[0].loss

    def stop(epoch):
        raise Stop

    half = student()
    with pytest.raises(Stop):
        train(half, samples(), recipe, teacher=teacher, seed=3, checkpoint=tmp_path / "half.safetensors", on_epoch=stop)
    resumed = student(seed=9)  # everything comes from the file
    assert train(resumed, samples(), recipe, teacher=teacher, seed=3, checkpoint=tmp_path / "half.safetensors") == history
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    with pytest.raises(teas.TeasError, match="another recipe"):
        train(student(), samples(), Recipe(epochs=4), seed=3, checkpoint=tmp_path / "half.safetensors")
    (tmp_path / "half.safetensors").write_bytes(b"broken")
    with pytest.raises(teas.TeasError, match="delete it"):
        train(student(), samples(), recipe, teacher=teacher, seed=3, checkpoint=tmp_path / "half.safetensors")


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_answers_are_softened_by_the_temperature(temperature):
    net, teacher = student().eval(), Net().eval()
    inputs, labels = next(iter(samples()))
    with torch.no_grad():
        ours, theirs = ((network(inputs) / temperature).softmax(1) for network in (student().train(), teacher))
    expected = temperature**2 * (theirs * (theirs.log() - ours.log())).sum() / len(labels)
    found = train(net, DataLoader(TensorDataset(inputs, labels), 16), Recipe(epochs=1, distillation=1.0, temperature=temperature), teacher=teacher)
    assert found[0].loss == pytest.approx(float(expected), rel=1e-4)


def test_a_teacher_looks_from_both_sides():
    """The mean of its logits for an image and its mirror image; what is no image has no mirror image."""
    net, teacher = student(), Net().eval()
    inputs, labels = next(iter(samples()))
    with torch.no_grad():
        ours, theirs = student().train()(inputs).log_softmax(1), ((teacher(inputs) + teacher(inputs.flip(-1))) / 2).softmax(1)
    expected = (theirs * (theirs.log() - ours)).sum() / len(labels)
    recipe = Recipe(epochs=1, distillation=1.0, temperature=1.0, mirrored=True)
    found = train(net, DataLoader(TensorDataset(inputs, labels), 16), recipe, teacher=teacher)
    assert found[0].loss == pytest.approx(float(expected), rel=1e-4)
    with pytest.raises(teas.TeasError, match="mirrored is for images"):
        train(nn.Linear(3, 2), DataLoader(TensorDataset(torch.ones(4, 3), torch.zeros(4).long())), recipe, teacher=nn.Linear(3, 2))


@pytest.mark.parametrize("known", [6, 0])
def test_unlabelled_inputs_are_learned_from_the_teacher_alone(known):
    """Half the teacher's answer on all of them, half the labels' mean on those that have one."""
    teacher = Net().eval()
    inputs, labels = next(iter(samples()))
    labels = torch.where(torch.arange(len(labels)) < known, labels, UNLABELLED)
    with torch.no_grad():
        ours, theirs = student().train()(inputs), teacher(inputs)
        taught = 4 * ((theirs / 2).softmax(1) * ((theirs / 2).log_softmax(1) - (ours / 2).log_softmax(1))).sum() / len(labels)
        told = sum(-float(ours[i].log_softmax(0)[labels[i]]) for i in range(known)) / max(known, 1)
        right = sum(int(ours[i].argmax()) == int(labels[i]) for i in range(known))
    (epoch,) = train(student(), DataLoader(TensorDataset(inputs, labels), 16), Recipe(epochs=1, distillation=0.5), teacher=teacher)
    assert epoch.loss == pytest.approx((float(taught) + told) / 2, rel=1e-4)
    assert epoch.accuracy == pytest.approx(100 * right / max(known, 1))
    with pytest.raises(teas.TeasError, match=f"{16 - known} of the 16 inputs have no label"):
        train(student(), DataLoader(TensorDataset(inputs, labels), 16), Recipe(epochs=1))


def test_mixup_learns_mixtures_of_inputs_and_labels():
    """At a large `α` shares are a half, to 1e-4: the loss of the mean of an input and its mirror image, for both labels."""
    inputs, labels = next(iter(samples()))
    with torch.no_grad():
        logits = student().train()((inputs + inputs.flip(0)) / 2)
        expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits, labels.flip(0))) / 2
    found = train(student(), DataLoader(TensorDataset(inputs, labels), 16), Recipe(epochs=1, mixup=1e8))
    assert found[0].loss == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize(("together", "budget"), [((), None), ((2, 6), None), ((), 12)], ids=["one window", "together", "learned"])
def test_compiled_training_computes_the_same(together, budget):
    """Windows that change from step to step too: a graph must not keep the one it was compiled at."""
    plain, compiled, teacher = student(together=together), student(together=together), Net().eval()
    recipe = Recipe(epochs=2, rate=0.05, distillation=0.5, together=together)
    history = train(plain, samples(), recipe, teacher=teacher, budget=budget, seed=3)
    found = train(compiled, samples(), replace(recipe, compiled=True), teacher=teacher, budget=budget, seed=3)
    assert [epoch.loss for epoch in found] == pytest.approx([epoch.loss for epoch in history], rel=1e-4)
    for name, value in plain.state_dict().items():
        assert torch.allclose(value, compiled.state_dict()[name], rtol=1e-3, atol=1e-4), name
    assert [layer.window for layer in quantised_activations(compiled).values()] == [layer.window for layer in quantised_activations(plain).values()]


def test_compiled_training_needs_a_compiler(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(teas.TeasError, match="C\\+\\+ compiler"):
        train(student(), samples(), Recipe(compiled=True))


def test_sixteen_bits_learn_too():
    net = student()
    history = train(net, samples(), Recipe(epochs=6, rate=0.05, precision="bfloat16"))
    assert history[-1].accuracy > history[0].accuracy
    assert all(parameter.dtype == torch.float32 for parameter in net.parameters())


def test_rates_warm_up_and_fall_to_zero():
    recipe = Recipe(epochs=10, rate=0.4, warmup=0.2)
    assert [recipe.rate_at(progress) for progress in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.0, 0.2, 0.4, 0.2, 0.0])


def test_bad_recipes_and_a_divergence_are_told():
    for options, message in (
        ({"epochs": 0}, "one epoch"),
        ({"rate": math.nan}, "positive rate"),
        ({"precision": "int8"}, "bfloat16"),
        ({"distillation": 2.0}, "share"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"mixup": -1.0}, "mixup at least 0"),
    ):
        with pytest.raises(teas.TeasError, match=message):
            Recipe(**options)
    with pytest.raises(teas.TeasError, match="no teacher"):
        train(student(), samples(), Recipe(distillation=0.5))
    with pytest.raises(teas.TeasError, match="diverged in epoch 1"):
        train(student(), samples(), Recipe(epochs=2, rate=1e30))
