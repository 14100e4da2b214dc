"""Teachers that answer fixed views of the training images before a retraining learns from them."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import pad
from torch.utils.data import DataLoader, TensorDataset

import teas
from teas.ann.training import UNLABELLED, Recipe, train
from teas.study import config, teaching
from teas.study import data as datasets
from teas.study.conversion import load_conversion
from teas.study.experiment import run
from teas.study.hooks import Hooks
from teas.study.report import note
from teas.study.run_folder import load_run
from test_conversion_study import TEXT, small_cifar
from test_quantised import Net, samples, student

MEAN, STD = torch.tensor([0.2, 0.5]), torch.tensor([0.3, 0.2])


def pictures(augmentation="crop_flip", n=12, mean=MEAN, std=STD):
    pixels = np.random.default_rng(0).integers(0, 256, (n, 2, 4, 4), np.uint8)
    return datasets.Images((pixels, np.arange(n) % 3), 255.0, mean, std, augmentation)


def test_views_are_shifted_mirror_images_and_the_same_for_the_same_seed():
    images = pictures()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    views = teaching.views_of(images, 4, seed=1)
    assert torch.equal(torch.get_rng_state(), before)  # what is drawn later does not depend on whether there were teachers
    assert torch.equal(views, teaching.views_of(images, 4, seed=1))
    assert not torch.equal(views, teaching.views_of(images, 4, seed=2))
    assert not torch.equal(views[0], views[1])
    for number, image in enumerate(pad(images.images, [4] * 4)):
        crops = [image[:, row : row + 4, column : column + 4] for row in range(9) for column in range(9)]
        possible = {part.numpy().tobytes() for crop in crops for part in (crop.contiguous(), crop.flip(-1))}
        assert all(view.contiguous().numpy().tobytes() in possible for view in views[:, number])


def test_composed_views_follow_the_others_and_hold_a_rectangle_of_another_image():
    plain, brightness = teaching.views_of(pictures(), 3, seed=1), torch.arange(12, dtype=torch.uint8)
    images = pictures()
    assert torch.equal(teaching.views_of(images, 3, seed=1, composed=2)[:3], plain)
    images.images[:] = 10 + brightness[:, None, None, None]  # each of its own brightness, zeros from beyond its edge
    composed = teaching.views_of(images, 3, seed=1, composed=20)[3:, :, 0]
    shares = set()
    for view in composed:
        for number, image in enumerate(view):
            other = set(image.unique().tolist()) - {0, 10 + number}
            assert len(other) <= 1
            if not other:
                continue
            strange = image == other.pop()
            rows, columns = strange.any(1).nonzero().flatten(), strange.any(0).nonzero().flatten()
            block = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert not (block == 10 + number).any()
            shares.add(int(strange.sum()))
    assert {1, 9} <= shares  # rectangles small and large


def test_a_composed_view_has_an_answer_but_no_label(tmp_path):
    images = pictures()
    found = teaching.answered(images, [(network(0), images)], 1, 3, tmp_path / "answers.safetensors", Hooks(), composed=1)
    unlike = int((found.answers[0] - found.answers[1]).abs().sum(1).argmax())
    _, labels, answers = found.__getitems__([unlike] * 20)
    view = [int(found.answers[:, unlike].sub(answer).abs().sum(1).argmin()) for answer in answers]
    assert set(view) == {0, 1}
    assert labels.tolist() == [int(images.labels[unlike]) if one == 0 else UNLABELLED for one in view]
    with pytest.raises(teas.TeasError, match="holds answers to other views"):
        teaching.answered(images, [(network(0), images)], 2, 3, tmp_path / "answers.safetensors", Hooks())


def network(seed):
    torch.manual_seed(seed)
    return teas.convert(Net().eval(), [torch.rand(8, 2, 4, 4)], threshold="maximum").at(5)


def test_answers_are_the_mean_of_the_teachers_logits_each_by_its_own_normalisation(tmp_path, monkeypatch):
    images, other = pictures(), pictures(mean=torch.zeros(2), std=torch.ones(2))
    teachers = [(network(0), images), (network(1), other)]
    monkeypatch.setattr(teaching, "quantise", lambda network: network)  # answers in float32, to compare with
    said = []
    found = teaching.answered(images, teachers, 2, 3, tmp_path / "answers.safetensors", Hooks(say=said.append))
    pixels = teaching.views_of(images, 2, 3).float() / 255
    with torch.no_grad():
        for view in range(2):
            wanted = (teachers[0][0]((pixels[view] - MEAN[:, None, None]) / STD[:, None, None]).logits + teachers[1][0](pixels[view]).logits) / 2
            torch.testing.assert_close(found.answers[view], wanted)
    assert f"{100 * float((found.answers.argmax(2) == images.labels).float().mean()):.2f} % of them right" in said[0]

    unlike = int((found.answers[0] - found.answers[1]).abs().sum(1).argmax())  # its views can be told apart by their answers
    numbers = [unlike] * 20 + [2]
    inputs, labels, answers = found.__getitems__(numbers)
    assert labels.tolist() == [images.labels[number] for number in numbers]
    drawn = [int(found.answers[:, number].sub(answer).abs().sum(1).argmin()) for number, answer in zip(numbers, answers, strict=True)]
    assert set(drawn) == {0, 1}
    for number, view, one in zip(numbers, drawn, inputs, strict=True):
        torch.testing.assert_close(one, (pixels[view, number] - MEAN[:, None, None]) / STD[:, None, None])


def test_mirrored_answers_are_the_mean_over_each_view_and_its_mirror_image(tmp_path, monkeypatch):
    images, other = pictures(), pictures(mean=torch.zeros(2), std=torch.ones(2))
    teachers = [(network(0), images), (network(1), other)]
    monkeypatch.setattr(teaching, "quantise", lambda network: network)
    path = tmp_path / "answers.safetensors"
    found = teaching.answered(images, teachers, 1, 3, path, Hooks(), composed=1, mirrored=True)
    pixels = teaching.views_of(images, 1, 3, composed=1)
    assert torch.equal(found.pixels, pixels)  # the student sees the view, and not its mirror image
    with torch.no_grad():
        for view in range(2):
            seen = [pixels[view], pixels[view].flip(-1)]
            wanted = sum(run(normaliser.normalised(one)).logits for run, normaliser in teachers for one in seen) / 4
            torch.testing.assert_close(found.answers[view], wanted)
            assert float((found.answers[view] - wanted.roll(1, 0)).abs().max()) > 1e-3
    with pytest.raises(teas.TeasError, match="holds answers to other views"):
        teaching.answered(images, teachers, 1, 3, path, Hooks(), composed=1)


def test_answers_that_are_known_are_not_asked_for_again(tmp_path):
    images, path = pictures(), tmp_path / "answers.safetensors"
    whole = teaching.answered(images, [(network(0), images)], 3, 3, tmp_path / "whole.safetensors", Hooks())
    asked = []

    def stop(parts, name):
        asked.append(name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return parts

    with pytest.raises(KeyboardInterrupt):
        teaching.answered(images, [(network(0), images)], 3, 3, path, Hooks(progress=stop))
    resumed = teaching.answered(images, [(network(0), images)], 3, 3, path, Hooks(progress=lambda parts, name: (asked.append(name), parts)[1]))
    assert asked == ["answers to view 1/3", "answers to view 2/3", "answers to view 2/3", "answers to view 3/3"]
    assert torch.equal(resumed.answers, whole.answers)
    with pytest.raises(teas.TeasError, match="holds answers to other views"):
        teaching.answered(images, [(network(0), images)], 2, 3, path, Hooks())
    path.write_bytes(b"broken")
    with pytest.raises(teas.TeasError, match="delete the file to ask again"):
        teaching.answered(images, [(network(0), images)], 3, 3, path, Hooks())


def test_answers_in_a_batch_are_learned_like_a_teachers():
    inputs, labels = next(iter(samples()))
    teacher, recipe = Net().eval(), Recipe(epochs=2, rate=0.05, distillation=0.7, temperature=3.0)
    with torch.no_grad():
        answers = teacher(inputs)
    asked, told = student(), student()
    history = train(asked, DataLoader(TensorDataset(inputs, labels), 16), recipe, teacher=teacher)
    assert train(told, DataLoader(TensorDataset(inputs, labels, answers), 16), recipe) == history
    assert all(torch.equal(value, told.state_dict()[name]) for name, value in asked.state_dict().items())
    with pytest.raises(teas.TeasError, match="leave out mixup and mirrored"):
        train(student(), DataLoader(TensorDataset(inputs, labels, answers), 16), Recipe(epochs=1, distillation=0.7, mirrored=True))


def test_what_teachers_cannot_do_is_refused_before_work(tmp_path):
    small_cifar(tmp_path)
    taught = ("conversion.pretraining={epochs = 1}", "conversion.weights=''", "retraining.teachers=['gone']")
    for change, message in (
        ((), "distillation above 0"),
        (("retraining.recipe={epochs = 1, distillation = 1.0}", "retraining.tuned=2"), "leave out tuned"),
        (("retraining.recipe={epochs = 1, distillation = 1.0, mixup = 0.2}",), "leave out tuned"),
        (("retraining.recipe={epochs = 1, distillation = 1.0}", "retraining.views=0"), "views is 0"),
        (("retraining.recipe={epochs = 1, distillation = 1.0}", "retraining.composed=-1"), "composed is -1"),
        (("retraining.teachers=[]", "retraining.composed=2"), "teachers answer, 0 for none"),
    ):
        with pytest.raises(teas.TeasError, match=message):
            config.parse(TEXT, "test", (*taught, "retraining.recipe={epochs = 1, distillation = 0.0}", *change))
    for augmentation, message in (("none", "only moves pixels"), ("crop_flip_cutout", "only moves pixels"), ("crop_flip", "gone is not a teas run folder")):
        changes = (*taught, "retraining.recipe={epochs = 1, distillation = 1.0}", f"data.augmentation={augmentation}")
        with pytest.raises(teas.TeasError, match=message):
            run(config.parse(TEXT, "test", changes), tmp_path / augmentation, data_folder=tmp_path)


def test_views_of_two_sets_are_drawn_as_one(tmp_path):
    images = pictures()
    whole = teaching.answered(images, [(network(0), images)], 2, 3, tmp_path / "one.safetensors", Hooks())
    said = []
    rest = images.part(7)
    rest.labels = torch.full_like(rest.labels, teaching.UNLABELLED)
    other = teaching.answered(rest, [(network(0), images)], 2, 4, tmp_path / "two.safetensors", Hooks(say=said.append))
    assert said == ["answers of 1 to 2 views of 5 images without labels"]
    both = teaching.joined(whole, other)
    assert len(both) == 17
    for number, (views, at) in enumerate([(whole, i) for i in range(12)] + [(other, i) for i in range(5)]):
        torch.manual_seed(number)
        found = both.__getitems__([number])
        torch.manual_seed(number)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, views.__getitems__([at]), strict=True))


def test_one_run_teaches_another(tmp_path):
    small_cifar(tmp_path)
    common = ("conversion.means=[]", "conversion.weights=''", "conversion.calibration=20", "conversion.probe=20", "retraining.means=[2]",
              "retraining.allocators=['uniform']", "data.augmentation=crop_flip")  # fmt: skip
    run(config.parse(TEXT, "test", (*common, "conversion.pretraining={epochs = 1}", "retraining.recipe={epochs = 1}")), tmp_path / "one", data_folder=tmp_path)
    changes = (*common, "conversion.pretraining={epochs = 1}", "retraining.recipe={epochs = 1, distillation = 0.9}",
               f"retraining.teachers=['{tmp_path / 'one'}']", "retraining.views=2")  # fmt: skip
    said = []
    run(config.parse(TEXT, "test", changes), tmp_path / "two", data_folder=tmp_path, hooks=Hooks(say=said.append))
    assert any("answers of 1 to 2 views of 280 images" in line for line in said)
    assert (tmp_path / "two/checkpoints/answers.safetensors").exists()
    (tmp_path / "cifar-100-binary").mkdir()
    for name in ("train", "test"):
        np.random.default_rng(1).integers(0, 100, (30, 3074), np.uint8).tofile(tmp_path / f"cifar-100-binary/{name}.bin")
    said.clear()
    more = config.parse(TEXT, "test", (*changes, "retraining.unlabelled=cifar100", "retraining.composed=1",
                                         "retraining.recipe={epochs = 1, distillation = 0.9, mirrored = true}"))  # fmt: skip
    run(more, tmp_path / "more", data_folder=tmp_path, hooks=Hooks(say=said.append))
    assert any("answers of 1 to 2 views of 280 images," in line for line in said)
    assert any("answers of 1 to 2 views of 30 images without labels, and to 1 composed views" in line for line in said)
    assert load_run(tmp_path / "two")[0].windows == load_run(tmp_path / "one")[0].windows

    # A run may start from the network of another: at a rate of next to nothing it ends where that one did.
    start = ("retraining.recipe={epochs = 1, rate = 1e-12, distillation = 0.9}", f"retraining.start='{tmp_path / 'two'}'", "retraining.teachers=[]")
    run(config.parse(TEXT, "test", (*changes, *start)), tmp_path / "same", data_folder=tmp_path)
    one, two, same = (load_run(tmp_path / name)[0].module.get_submodule("linear").weight.detach() for name in ("one", "two", "same"))
    torch.testing.assert_close(same, two, atol=1e-6, rtol=0)
    assert float((same - one).abs().max()) > 1e-3
    with pytest.raises(teas.TeasError, match="one network to train further"):
        config.parse(TEXT, "test", (*changes, *start, "retraining.recipe={epochs = 1, together = [2, 4]}"))
    with pytest.raises(teas.TeasError, match="gone is not a teas run folder"):
        run(config.parse(TEXT, "test", (*changes, *start, "retraining.start=gone")), tmp_path / "none", data_folder=tmp_path)

    # In another code too: what its windows are allocated by is measured on that network, not on the ANN here, which plays no part.
    digits = (*changes, *start, "conversion.code=radix", "retraining.allocators=['damage', 'learned']", "conversion.damage_windows=[1, 2]",
              "conversion.damage_full=3")  # fmt: skip
    page = config.parse(TEXT, "test", digits)
    run(page, tmp_path / "digits", data_folder=tmp_path)
    network, data, _ = load_run(tmp_path / "digits")
    assert network.semantics.code == "radix"
    assert network.windows.sum <= 2 * len(network.windows)
    torch.testing.assert_close(network.module.get_submodule("linear").weight.detach(), two, atol=1e-6, rtol=0)
    *_, probe = load_conversion(page, page.conversion, data, tmp_path, torch.device("cpu"), tmp_path / "digits")
    before = load_run(tmp_path / "two")[0].eval()
    wanted = teas.measure_damage(teas.to_radix(before, 3).with_windows, teas.TimeWindows.uniform(before.windows, 3), [1, 2], probe)
    metrics = json.loads((tmp_path / "digits/metrics.json").read_text())
    assert "another league than spikes that count" in note(metrics)
    for layer, points in metrics["damage"].items():
        assert {int(steps): value for steps, value in points.items()} == pytest.approx(wanted[layer], rel=1e-4, abs=1e-9), layer

    other = (*changes, *start, "conversion.architecture=vgg16", f"retraining.start='{tmp_path / 'two'}'")
    with pytest.raises(teas.TeasError, match="architecture, input shape and classes"):
        run(config.parse(TEXT, "test", other), tmp_path / "none-either", data_folder=tmp_path)

    digits = "name='digits'\n[data]\naugmentation='shift'\n[conversion]\nweights='random'\n"
    wrong = config.parse(digits, "test", (f"retraining.teachers=['{tmp_path / 'one'}']", "retraining.recipe={epochs = 1, distillation = 0.9}"))
    with pytest.raises(teas.TeasError, match="'digits' has"):
        run(wrong, tmp_path / "three", data_folder=tmp_path)
