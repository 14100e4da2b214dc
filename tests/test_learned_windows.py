"""Windows learned under a budget, and one set of weights for many: gradients by hand, budgets that hold, and tasks whose answer is known."""

import copy
import random

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import teas
from teas.ann.learned_windows import WindowLearner, whole_steps
from teas.ann.many_windows import Together, recalibrate, sandwich
from teas.ann.quantised import QuantisedReLU, quantised_activations, set_windows
from teas.ann.training import Recipe, train


@pytest.mark.parametrize("window", [1, 4])
def test_the_gradient_of_a_window_is_that_of_a_straight_through_quantiser_and_nothing_else_changes(window):
    torch.manual_seed(0)
    layer, theta = QuantisedReLU(torch.tensor([0.5, 2.0]), window), torch.tensor([0.5, 2.0]).view(1, 2, 1)
    layer.learn_steps()
    current, weight = torch.randn(7, 2, 3, requires_grad=True), torch.randn(7, 2, 3)
    out = layer(current)
    (out * weight).sum().backward()
    # The same written with autograd: round the level, pass its gradient.
    steps = torch.tensor(float(window), requires_grad=True)
    level = steps * (current.detach() / theta).clamp(0, 1)
    rounded = level + ((0.5 + level).floor() - level).detach()
    (theta * rounded / steps * weight).sum().backward()
    assert torch.allclose(out, theta * rounded / steps)
    assert float(layer.steps.grad) == pytest.approx(float(steps.grad), abs=1e-5)
    plain, twin = QuantisedReLU(torch.tensor([0.5, 2.0]), window), current.detach().clone().requires_grad_()
    again = plain(twin)
    (again * weight).sum().backward()
    assert torch.equal(out, again)
    assert torch.equal(current.grad, twin.grad)
    layer.forget_steps()
    assert set(layer.state_dict()) == {"threshold"}


@pytest.mark.parametrize("window", [2, 5])
def test_the_gradient_is_the_slope_of_the_quantisation_noise(window):
    """The squared error of rounding a uniform value is `1/(12·T²)`, so its slope is `-1/(6·T³)`."""
    torch.manual_seed(0)
    layer, x = QuantisedReLU(torch.tensor(1.0), window), torch.rand(200_000, 1)
    layer.learn_steps()
    (layer(x) - x).square().mean().backward()
    assert float(layer.steps.grad) == pytest.approx(-1 / (6 * window**3), rel=0.02)


@pytest.mark.parametrize("seed", range(30))
def test_whole_steps_keep_the_budget_and_leave_nothing_that_fits(seed):
    draw = random.Random(seed)
    names = [str(i) for i in range(draw.randint(1, 6))]
    costs = {name: 1.0 if seed % 2 else draw.uniform(0.5, 3) for name in names}
    steps = {name: draw.choice([draw.uniform(0.1, 1), draw.uniform(1, 9)]) for name in names}
    budget = max(sum(costs.values()), sum(costs[name] * max(1, value) for name, value in steps.items()))
    whole = whole_steps(steps, costs, budget)
    spent = sum(costs[name] * value for name, value in whole.items())
    assert spent <= budget + 1e-6
    for name, value in whole.items():
        assert value >= 1
        assert value - 1 < max(1, steps[name]) < value + 1 or value == 1
        assert not (value < steps[name] and spent + costs[name] <= budget)
    with pytest.raises(teas.TeasError, match="one step each takes"):
        whole_steps(steps, costs, sum(costs.values()) - 0.1)


def test_too_much_is_taken_from_where_it_hurts_least():
    assert whole_steps({"a": 0.2, "b": 0.2, "c": 4.6}, dict.fromkeys("abc", 1.0), 5) == {"a": 1, "b": 1, "c": 3}


class Branches(nn.Module):
    """A branch whose input has many levels, and one whose input is 0 or 1, for which one step is enough."""

    def __init__(self, steps):
        super().__init__()
        self.fine, self.coarse = QuantisedReLU(torch.tensor(1.0), steps), QuantisedReLU(torch.tensor(1.0), steps)

    def forward(self, x):
        return torch.cat([self.fine(x[:, :1]), self.coarse(x[:, 1:])], 1)


@pytest.mark.parametrize(("costs", "budget", "windows"), [(None, 10.0, (9, 1)), ({"fine": 3.0, "coarse": 1.0}, 20.0, (6, 1))])
def test_steps_go_to_the_layer_that_needs_levels(costs, budget, windows):
    torch.manual_seed(0)
    model = Branches(5)
    learner = WindowLearner(model, budget, costs)
    for _ in range(150):
        x = torch.stack([torch.rand(256), torch.randint(2, (256,)).float()], 1)
        (256 * (model(x) - x).square().mean()).backward()
        learner.update(0.05)
        spent = sum((costs or {"fine": 1, "coarse": 1})[name] * layer.window for name, layer in quantised_activations(model).items())
        assert spent <= budget
    learner.finish()
    assert (model.fine.window, model.coarse.window) == windows
    assert set(model.state_dict()) == {"fine.threshold", "coarse.threshold"}


def test_equal_needs_get_equal_steps():
    torch.manual_seed(0)
    model = Branches(4)
    model.fine.window = 7
    learner = WindowLearner(model, 8)
    for _ in range(200):
        x = torch.rand(512, 2)
        (512 * (model(x) - x).square().mean()).backward()
        learner.update(0.05)
    assert abs(model.fine.window - 4) <= 1
    assert model.fine.window + model.coarse.window == 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WindowLearner(nn.Linear(2, 2), 4), "no quantised activation"),
        (lambda: WindowLearner(Branches(2), 1.5), "one step each takes 2"),
        (lambda: WindowLearner(Branches(2), 4, {"fine": 1.0}), "needs a cost above 0"),
        (lambda: WindowLearner(Branches(2), 4, {"fine": 1.0, "coarse": 0.0}), "needs a cost above 0"),
        (lambda: Recipe(together=(4,)), r"e.g. \[2, 4, 8, 16\]"),
        (lambda: Recipe(together=(4, 2)), r"e.g. \[2, 4, 8, 16\]"),
        (lambda: Together({2: net()}), "at least two of these; got 2"),
        (lambda: Together({2: net(), 4: Branches(2)}), "differ at"),
        (lambda: train(net(), loader(), Recipe(together=(2, 4))), "takes a `Together` of these"),
        (lambda: train(together(2, 4), loader(), Recipe()), "takes a `Together` of these"),
        (lambda: Recipe(window_rate=0), "window_rate is 0"),
        (lambda: train(together(2, 4), loader(), Recipe(together=(2, 4)), budget=4), "leave out together"),
        (lambda: recalibrate(nn.BatchNorm1d(2), []), "at least one batch"),
        (lambda: recalibrate(nn.BatchNorm1d(2), [torch.zeros(1, 2)]), "at least two samples"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(teas.TeasError, match=message):
        make()


def net():
    torch.manual_seed(0)
    activations = [QuantisedReLU(torch.ones(16), 4), QuantisedReLU(torch.ones(16), 4)]
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), activations[0], nn.Linear(16, 16), nn.BatchNorm1d(16), activations[1], nn.Linear(16, 4))


def together(*windows):
    return Together({window: net() for window in windows})


def loader(samples=256):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, 8, generator=generator)
    labels = (torch.sin(inputs @ torch.randn(8, 6, generator=generator)) @ torch.randn(6, 4, generator=generator)).argmax(1)
    return DataLoader(TensorDataset(inputs, labels), 64, shuffle=True)


def test_training_ends_with_whole_windows_in_the_budget_and_continues_to_the_same_bits(tmp_path):
    recipe = Recipe(epochs=4, rate=0.05, window_rate=0.3, window_share=0.8)
    whole, parts = net(), net()
    train(whole, loader(), recipe, budget=9, seed=3)
    windows = [layer.window for layer in quantised_activations(whole).values()]
    assert sum(windows) == 9
    assert windows != [5, 4]
    assert not any("steps" in name for name in whole.state_dict())

    class Stopped(Exception):
        pass

    def stop(epoch):
        if epoch.number == 1:
            raise Stopped

    with pytest.raises(Stopped):
        train(parts, loader(), recipe, budget=9, seed=3, checkpoint=tmp_path / "net", on_epoch=stop)
    parts = net()
    train(parts, loader(), recipe, budget=9, seed=3, checkpoint=tmp_path / "net")
    assert [layer.window for layer in quantised_activations(parts).values()] == windows
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True))


def test_a_checkpoint_from_before_a_setting_existed_is_taken_up(tmp_path):
    import json

    from safetensors import safe_open
    from safetensors.torch import save_file

    path, recipe = tmp_path / "net", Recipe(epochs=1, rate=0.01)
    train(net(), loader(64), recipe, checkpoint=path)
    with safe_open(str(path), framework="pt") as file:
        header = json.loads(file.metadata()["teas"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name in ("together", "window_rate", "window_share"):
        del header["recipe"][name]
    save_file(tensors, path, metadata={"teas": json.dumps(header)})
    assert len(train(net(), loader(64), recipe, checkpoint=path)) == 1
    with pytest.raises(teas.TeasError, match="another recipe"):
        train(net(), loader(64), Recipe(epochs=1, rate=0.01, window_rate=0.1), checkpoint=path)


def test_the_sandwich_has_both_ends_and_now_and_then_everything_between():
    draw = random.Random(0)
    drawn = [sandwich((2, 3, 4, 6), draw) for _ in range(100)]
    assert all(windows[0] == 2 and windows[-1] == 6 for windows in drawn)
    assert {windows[1] for windows in drawn} == {3, 4}
    assert sandwich((2, 3), draw) == (2, 3)


def test_networks_together_share_weights_and_have_their_own_norms_and_thresholds():
    model = together(1, 3, 8)
    assert [[layer.window for layer in quantised_activations(model.at(window)).values()] for window in model.windows] == [[1, 1], [3, 3], [8, 8]]
    one, eight = (dict(model.at(window).named_parameters()) for window in (1, 8))
    same = {name for name in one if one[name] is eight[name]}
    assert same == {"0.weight", "0.bias", "3.weight", "3.bias", "6.weight", "6.bias"}
    assert one.keys() - same == {"1.weight", "1.bias", "2.threshold", "4.weight", "4.bias", "5.threshold"}
    assert [model.at(window) is model.at(nearest) for window, nearest in ((2, 3), (1.5, 1), (5, 8), (100, 8))] == [True] * 4
    assert len(list(model.parameters())) == 6 + 3 * 6
    assert not any("steps" in name for name in model.state_dict())


def test_recalibrated_norms_have_the_statistics_of_the_data_at_these_windows():
    model = net().train()
    model[4].eval()
    model[1].momentum = 0.3
    batches = [inputs for inputs, _ in loader()]
    set_windows(model, dict.fromkeys(quantised_activations(model), 2))
    recalibrate(model, [(inputs, None) for inputs in batches])
    first = [model[0](inputs).detach() for inputs in batches]
    assert torch.allclose(model[1].running_mean, torch.stack([x.mean(0) for x in first]).mean(0), atol=1e-6)
    assert torch.allclose(model[1].running_var, torch.stack([x.var(0) for x in first]).mean(0), atol=1e-6)
    assert model[1].momentum == 0.3
    assert [model[1].training, model[4].training] == [True, False]


def test_a_step_at_windows_together_is_one_along_the_mean_of_their_gradients():
    model, data = together(1, 2, 3), loader(64)
    twin = copy.deepcopy(model).train()
    recipe = Recipe(epochs=1, rate=0.1, momentum=0.0, weight_decay=0.0, warmup=0.0, together=(1, 2, 3))
    torch.manual_seed(0)  # as `train` does before an epoch, which shuffles the batch
    inputs, labels = next(iter(data))
    train(model, data, recipe)
    (sum(nn.functional.cross_entropy(twin.at(window)(inputs), labels) for window in (1, 2, 3)) / 3).backward()
    for found, expected in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(found, expected - 0.1 * expected.grad, atol=1e-6)


def test_a_training_together_that_was_interrupted_goes_on_to_the_same_bits(tmp_path):
    recipe = Recipe(epochs=2, rate=0.05, together=(1, 2, 3))
    whole, parts = together(1, 2, 3), together(1, 2, 3)
    train(whole, loader(), recipe, seed=3)

    def stop(epoch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(parts, loader(), recipe, seed=3, checkpoint=tmp_path / "net", on_epoch=stop)
    parts = together(1, 2, 3)
    train(parts, loader(), recipe, seed=3, checkpoint=tmp_path / "net")
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True))
    assert parts.at(1)[0].weight is parts.at(3)[0].weight
