"""`teas adapt` from a conversion and from a retraining: the network it writes is the one it promised. From a trained run: see test_explore.py."""

import json

import pytest
import torch

import teas as library
from teas.ann.resnet import CifarResNet
from teas.study import adapting, config
from teas.study import data as datasets
from teas.study.experiment import run
from teas.study.hooks import Hooks
from teas.study.metrics import evaluate
from teas.study.run_folder import load_run
from test_cli import teas
from test_conversion_study import TEXT, small_cifar


@pytest.mark.filterwarnings("ignore:at 64 steps")  # random weights
@pytest.mark.parametrize("retraining", ["", "[retraining]\nmeans = [2]\nallocators = ['activity']\nrecipe = {epochs = 1, rate = 0.01}"])
def test_a_conversion_adapts_to_a_folder_that_evaluates(tmp_path, monkeypatch, retraining):
    small_cifar(tmp_path)
    torch.manual_seed(0)
    torch.save(CifarResNet(10).state_dict(), tmp_path / "ann.th")
    (tmp_path / "tiny.toml").write_text(TEXT.replace("= 100", "= 20").replace("means =", "bias_correction = true\ndamage_windows = [2]\nmeans =") + retraining)
    monkeypatch.chdir(tmp_path)
    options = {"max_loss": 100.0, "minimise": "sum", "allocators": ["uniform"], "means": [4], "hooks": Hooks()}
    found, where = adapting.run(tmp_path / "tiny.toml", tmp_path, **options)
    assert [point["allocator"] for point in found["points"]] == ["full", "uniform", *(["activity, retrained"] if retraining else [])]
    assert found["chosen"] == len(found["points"]) - 1
    assert where.name == "tiny-adapted"
    tested = found["test"][str(found["chosen"])]
    done = teas("evaluate", where, "--json", cwd=tmp_path)
    again = json.loads(done.stdout)
    assert again["windows"] == tested["windows"] == json.loads((where / "windows.json").read_text())
    assert (again["accuracy"], again["spikes"]) == (tested["accuracy"], tested["spikes"])
    # The unlabelled images and the teachers that a retraining asks for are read before anything is measured.
    for asked, message in (("unlabelled = 'cifar100'", "cifar-100-binary nor"), ("teachers = ['gone']", "gone is not a teas run folder")):
        if retraining:
            text = (tmp_path / "tiny.toml").read_text().replace('"tiny"', f'"{asked[:8]}"').replace("0.01}", f"0.01, distillation = 1.0}}\n{asked}")
            (tmp_path / "more.toml").write_text(text.replace("validation = 20", "validation = 20\naugmentation = 'crop_flip'"))
            with pytest.raises(library.TeasError, match=message):
                adapting.run(tmp_path / "more.toml", tmp_path, **options, out=tmp_path / asked[:8])
    (tmp_path / "other.toml").write_text(TEXT)
    with pytest.raises(library.TeasError, match="other settings"):
        adapting.run(tmp_path / "other.toml", tmp_path, **options, out=where)


@pytest.mark.filterwarnings("ignore:at 64 steps")  # random weights
def test_what_starts_from_a_network_is_measured_and_judged_on_it_and_not_on_the_ann(tmp_path, monkeypatch):
    small_cifar(tmp_path)
    monkeypatch.chdir(tmp_path)
    text = TEXT.replace("= 100", "= 20").replace("ann.th", "random").replace("means = [8, 2]", "means = []\ndamage_windows = [2]\ndamage_full = 4")
    first = text + "[retraining]\nmeans = [4]\nallocators = ['uniform']\nrecipe = {epochs = 1, rate = 0.01}"
    run(config.parse(first, "test", ("name=first",)), tmp_path / "first", data_folder=tmp_path)
    second = text + "[retraining]\nstart = 'first'\nmeans = [3]\nallocators = ['damage']\nrecipe = {epochs = 1, rate = 1e-12}"
    (tmp_path / "second.toml").write_text(second.replace('"tiny"', '"second"'))
    options = {"max_loss": 100.0, "minimise": "sum", "allocators": ["uniform", "damage"], "means": [3], "hooks": Hooks()}
    found, _ = adapting.run(tmp_path / "second.toml", tmp_path, **options)
    start, data, _ = load_run(tmp_path / "first")
    start.eval()
    for point in found["points"][:-1]:
        wanted = evaluate(start.with_windows(point["windows"]), datasets.loader(data.validation, 100), 0)
        assert (point["accuracy"], point["spikes"]) == (wanted.accuracy, wanted.spikes), point["allocator"]
    assert found["points"][-1]["windows"] == found["points"][-2]["windows"]  # retrained where damage to the network says, too
