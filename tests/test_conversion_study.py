"""Foreign weights, and the comparison of conversions from data folder to report, on a small copy of CIFAR-10's format."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import stats
from torch import nn

import teas
from teas.ann.resnet import CifarResNet
from teas.ann.training import UNLABELLED
from teas.exchange.weights import load_weights
from teas.study import config
from teas.study import data as datasets
from teas.study.conversion import paired_p_value
from teas.study.experiment import run
from teas.study.hooks import Hooks
from teas.study.metrics import evaluate
from teas.study.report import findings, table_rows, write_report
from teas.study.run_folder import load_run, pack


def test_weights_in_each_wrapping(tmp_path):
    torch.manual_seed(0)
    source = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    state = source.state_dict()
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}, tmp_path / "a.th")
    save_file(state, tmp_path / "b.safetensors")
    for name in ("a.th", "b.safetensors"):
        target = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        load_weights(target, tmp_path / name)
        assert torch.equal(target[0].weight, source[0].weight)


class Bomb:
    def __reduce__(self):
        return (print, ("code of a stranger ran",))


def test_foreign_weights_are_refused_clearly(tmp_path, capsys):
    (tmp_path / "bomb.th").write_bytes(pickle.dumps({"state_dict": Bomb()}))
    (tmp_path / "short.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    torch.save({"weight": torch.zeros(9)}, tmp_path / "other.th")
    torch.save([1, 2], tmp_path / "list.th")
    torch.save(nn.Linear(3, 2), tmp_path / "whole.pt")
    for name, message in {
        "bomb.th": "can't be read as plain weights",
        "whole.pt": "such as a whole model, .* save model.state_dict",
        "short.safetensors": "can't be read as plain weights",
        "other.th": "missing bias",
        "list.th": "missing weight",
        "gone.th": "do not exist",
    }.items():
        with pytest.raises(teas.TeasError, match=message):
            load_weights(nn.Linear(3, 2), tmp_path / name)
    assert "stranger" not in capsys.readouterr().out


def test_resnet20_has_the_published_size():
    assert sum(p.numel() for p in CifarResNet(10).parameters()) == 269_722
    assert len(teas.convert(CifarResNet(10), [torch.randn(2, 3, 32, 32)], threshold="maximum").layers) == 19


def test_paired_test_against_scipy():
    torch.manual_seed(0)
    ours, theirs = torch.rand(500) < 0.9, torch.rand(500) < 0.8
    gained, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    assert paired_p_value(ours, theirs) == pytest.approx(min(1.0, 2 * stats.binom.sf(max(gained, lost) - 1, gained + lost, 0.5)))
    assert paired_p_value(ours, ours) == 1.0


TEXT = """
name = "tiny"
claim = "The whole road of a conversion."
[data]
name = "cifar10"
validation = 20
[conversion]
weights = "ann.th"
calibration = 100
probe = 100
threshold = "maximum"
means = [8, 2]
allocators = ["uniform", "activity", "shuffled"]
"""


def small_cifar(folder):
    """CIFAR-10's files, with 300 training and 40 test images of noise."""
    generator = np.random.default_rng(0)
    (folder / "cifar-10-batches-bin").mkdir()
    for name, n in [*((f"data_batch_{i}", 60) for i in range(1, 6)), ("test_batch", 40)]:
        rows = generator.integers(0, 256, (n, 3073), np.uint8)
        rows[:, 0] = np.arange(n) % 10
        rows.tofile(folder / f"cifar-10-batches-bin/{name}.bin")


def test_a_comparison_of_conversions_end_to_end(tmp_path):
    small_cifar(tmp_path)
    torch.manual_seed(0)
    torch.save(CifarResNet(10).state_dict(), tmp_path / "ann.th")
    metrics = run(config.parse(TEXT, "test"), tmp_path / "out", data_folder=tmp_path)
    assert [(row["allocator"], row["target"]) for row in metrics["rows"]] == [(a, m) for m in (8.0, 2.0) for a in ("uniform", "activity", "shuffled")]
    for row in metrics["rows"]:
        assert row["mean"] <= row["target"]
        assert row["sum"] == sum(row["windows"].values())  # one chain: the shortcuts are never longer
        assert (row["p_value"] is None) == (row["allocator"] == "uniform")
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == json.loads(json.dumps(metrics))
    page = write_report(tmp_path / "out").read_text()
    assert "activity" in page
    assert len(table_rows(metrics)) == 6
    assert "Mean window 2" in findings(metrics)[1]
    alone = {**metrics, "rows": metrics["rows"][:1]}
    assert ["is best with" in findings(each)[0] for each in (metrics, alone)] == [True, False]  # one alone is not the best of anything
    with pytest.raises(teas.TeasError, match="no single network"):
        load_run(tmp_path / "out", tmp_path)


@pytest.mark.parametrize("agreement", [0.0, 100.0])
def test_damage_is_measured_where_asked_and_agreement_with_the_ann_can_be_expected(tmp_path, agreement):
    small_cifar(tmp_path)
    torch.manual_seed(0)
    torch.save(CifarResNet(10).state_dict(), tmp_path / "ann.th")
    changes = ("conversion.probe=20", "conversion.means=[300]", "conversion.allocators=['damage']", "conversion.damage_windows=[40]",
               "conversion.damage_full=90", "conversion.longest=400", f"expect.points=[[300, 0.0, {agreement}]]")  # fmt: skip
    metrics = run(config.parse(TEXT, "test", changes), tmp_path / "out", data_folder=tmp_path)
    (row,) = metrics["rows"]
    assert all(list(points) == ["40"] for points in json.loads((tmp_path / "out/metrics.json").read_text())["damage"].values())
    assert 300 < row["max"] <= 400
    assert metrics["expectation_met"] == (row["agreement"] >= agreement)
    assert agreement == 0 or row["agreement"] < 100  # so that either case is seen


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("conversion.damage_windows=[2, 64]",), "all shorter than the full one"),
        (("conversion.damage_windows=[0, 2]",), "windows of at least one step"),
        (("conversion.means=[300]",), "longest is 255; it must be at least the largest"),
        (("conversion.longest=100000",), "at most 65536"),
        (("expect.points=[[8.0]]",), "a point is a mean window"),
    ],
)
def test_settings_of_damage_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(teas.TeasError, match=message):
        config.parse(TEXT, "test", changes)


def test_retraining_from_an_untrained_ann_to_a_network_that_evaluates_again(tmp_path):
    small_cifar(tmp_path)
    recipe = "{epochs = 1, rate = 0.01}"
    changes = ("conversion.means=[]", "conversion.weights=''", f"conversion.pretraining={recipe}", "retraining.means=[2]", f"retraining.recipe={recipe}")
    said = []
    metrics = run(config.parse(TEXT, "test", changes), tmp_path / "out", data_folder=tmp_path, hooks=Hooks(say=said.append))
    assert [(row["allocator"], row["retrained"], row["target"]) for row in metrics["rows"]] == [("uniform", True, 2.0), ("damage", True, 2.0)]
    network, data, _ = load_run(tmp_path / "out")
    found = [row["accuracy"] for row in metrics["rows"] if row["windows"] == dict(network.windows)]
    assert evaluate(network, datasets.loader(data.test, 20)).accuracy in found
    assert any(line.startswith("  ann   1  loss") for line in said)
    assert "retrained" in table_rows(metrics)[0][0]
    assert "Mean window 2, retrained" in findings(metrics)[0]
    page = write_report(tmp_path / "out").read_text()
    assert '"damage, retrained"' in page
    assert "nothing is retrained between" not in page
    assert (pack(tmp_path / "out", tmp_path / "packed") / "weights.safetensors").exists()
    # The checkpoints of a run that stopped at its end are taken up: nothing is trained a second time.
    (tmp_path / "out/metrics.json").unlink()
    again = []
    assert (
        run(config.parse(TEXT, "test", changes), tmp_path / "out", data_folder=tmp_path, resume=True, hooks=Hooks(say=again.append))["rows"] == metrics["rows"]
    )
    assert not any("loss" in line for line in again)


def test_unlabelled_images_are_learned_from_but_not_through_time(tmp_path, monkeypatch):
    small_cifar(tmp_path)
    (tmp_path / "cifar-100-binary").mkdir()
    rows = np.random.default_rng(1).integers(0, 100, (20, 3074), np.uint8)
    for name in ("train", "test"):
        rows.tofile(tmp_path / f"cifar-100-binary/{name}.bin")
    changes = ("conversion.means=[]", "conversion.weights=''", "conversion.pretraining={epochs = 1}", "conversion.firing=immediate", "retraining.means=[2]",
               "retraining.allocators=['uniform']", "retraining.through_time=1", "retraining.unlabelled=cifar100")  # fmt: skip
    with pytest.raises(teas.TeasError, match="only a teacher"):
        config.parse(TEXT, "test", (*changes, "retraining.recipe={epochs = 1}"))
    experiment = config.parse(TEXT, "test", (*changes, "retraining.recipe={epochs = 1, distillation = 1.0}"))
    seen = []
    drawn = datasets.loader
    monkeypatch.setattr(datasets, "loader", lambda images, *rest, **options: (seen.append(images), drawn(images, *rest, **options))[1])
    run(experiment, tmp_path / "out", data_folder=tmp_path)
    (lessons,) = (images for images in seen if bool((images.labels == UNLABELLED).any()))
    shutil.rmtree(tmp_path / "cifar-100-binary")
    data = load_run(tmp_path / "out")[1]  # to evaluate, nothing but the data set itself is read
    with pytest.raises(teas.TeasError, match="cifar-100-binary nor"):
        run(experiment, tmp_path / "again", data_folder=tmp_path)
    assert torch.equal(lessons.images, torch.cat([data.train.images, torch.from_numpy(rows[:, 2:].reshape(-1, 3, 32, 32))]))
    assert torch.equal(lessons.labels, torch.cat([data.train.labels, torch.full((20,), UNLABELLED)]))
    assert sum(torch.equal(images.labels, data.train.labels) for images in seen) == 2  # the ANN's training, and the one through time


def test_unlabelled_images_of_another_size_are_refused():
    digits = datasets.load("digits", None, validation=100).train
    with pytest.raises(teas.TeasError, match="add --data DIR"):
        datasets.with_unlabelled(digits, "cifar100", None)
    wide = datasets.Images((np.zeros((4, 1, 9, 8), np.uint8), np.zeros(4)), 16.0, torch.zeros(1), torch.ones(1))
    with pytest.raises(teas.TeasError, match=r"of 'digits' are \[1, 8, 8\], the others \[1, 9, 8\]"):
        datasets.with_unlabelled(wide, "digits", None)


def test_immediate_firing_is_retrained_through_time(tmp_path):
    small_cifar(tmp_path)
    recipe = "{epochs = 1, rate = 0.01}"
    changes = ("conversion.means=[]", "conversion.weights=''", f"conversion.pretraining={recipe}", "conversion.firing=immediate",
               "retraining.means=[2]", "retraining.allocators=['damage']", f"retraining.recipe={recipe}")  # fmt: skip
    with pytest.raises(teas.TeasError, match="through_time to some epochs"):
        config.parse(TEXT, "test", changes)
    said = []
    metrics = run(config.parse(TEXT, "test", (*changes, "retraining.through_time=1")), tmp_path / "out", data_folder=tmp_path, hooks=Hooks(say=said.append))
    assert any(line.startswith("  damage-2 through time   1  loss") for line in said)
    network, data, _ = load_run(tmp_path / "out")
    assert network.semantics.firing == "immediate"
    assert evaluate(network, datasets.loader(data.test, 20)).accuracy == metrics["rows"][0]["accuracy"]


@pytest.mark.parametrize(("recipe", "allocators"), [("{epochs = 1, rate = 0.01, together = [1, 3]}", ["uniform"]), ("{epochs = 1, rate = 0.01}", ["learned"])])
def test_one_network_for_many_windows_and_windows_that_are_learned(tmp_path, recipe, allocators):
    small_cifar(tmp_path)
    torch.manual_seed(0)
    torch.save(CifarResNet(10).state_dict(), tmp_path / "ann.th")
    small = ("conversion.calibration=20", "conversion.probe=20", "conversion.means=[]", "conversion.allocators=[]")
    changes = (*small, "retraining.means=[3, 2]", f"retraining.allocators={allocators}", f"retraining.recipe={recipe}")
    said = []
    metrics = run(config.parse(TEXT, "test", changes), tmp_path / "out", data_folder=tmp_path, hooks=Hooks(say=said.append))
    assert [(row["allocator"], row["target"]) for row in metrics["rows"]] == [(allocators[0], 3.0), (allocators[0], 2.0)]
    assert [row["sum"] for row in metrics["rows"]] == [57, 38]
    assert sum("loss" in line for line in said) == (1 if "together" in recipe else 2)
    if "together" in recipe:
        assert {path.name for path in (tmp_path / "out/checkpoints").iterdir()} == {"together.safetensors"}


def test_tuned_networks_are_kept_and_loaded(tmp_path):
    small_cifar(tmp_path)
    torch.manual_seed(0)
    torch.save(CifarResNet(10).state_dict(), tmp_path / "ann.th")
    small = ("conversion.calibration=20", "conversion.probe=20", "conversion.means=[2]", "conversion.allocators=['uniform']")
    changes = (*small, "retraining.means=[2]", "retraining.allocators=['uniform']", "retraining.tuned=2")
    metrics = run(config.parse(TEXT, "test", changes), tmp_path / "out", data_folder=tmp_path, hooks=Hooks())
    plain, tuned = metrics["rows"]
    assert (plain["retrained"], tuned["retrained"]) == (False, True)
    network, data, _ = load_run(tmp_path / "out")
    assert evaluate(network, datasets.loader(data.test, 20)).accuracy == tuned["accuracy"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("retraining.allocators=['learned']|retraining.recipe={together = [1, 3]}", "leave recipe.together out"),
        ("retraining.tuned=-1", "a number of epochs"),
        ("retraining.tuned=2|retraining.through_time=1", "takes the place of the recipe"),
        ("retraining.tuned=2|retraining.recipe={together = [2, 4]}", "takes the place of the recipe"),
        ("conversion.allocators=['learned']", "choose one of uniform"),
        ("retraining.allocators=['guess']", "uniform, damage"),
        ("retraining.means=[0]", "at least one step"),
        ("conversion.weights=''", "conversion.pretraining"),
        ("conversion.architecture='resnet21'", "resnet20"),
        ("conversion.allocators=['guess']", "uniform, damage"),
        ("conversion.means=[0.5]", "at least one step"),
        ("retraining.unlabelled='cifar10'|retraining.recipe={distillation = 1.0}", "name another one"),
        ("conversion.threshold='median'", "mse, percentile, maximum"),
        ("conversion.margin=2.0|conversion.threshold='mse'", "set threshold to 'maximum'"),
        ("conversion.weight='x'", "did you mean 'weights'"),
    ],
)
def test_bad_conversions_are_refused(change, message):
    with pytest.raises(teas.TeasError, match=message):
        config.parse(TEXT, "test", tuple(change.split("|")))


def test_every_allocator_has_a_style_of_its_own():
    from teas.study import conversion_config, figures

    styles = [tuple(sorted(figures.STYLE[name].items())) for name in (*conversion_config.ALLOCATORS, conversion_config.LEARNED)]
    assert len(set(styles)) == len(styles)
