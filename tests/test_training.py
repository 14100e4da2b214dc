"""Stages of training: resume to the bit, two processes against one, windows that shrink, losses that diverge."""

import copy
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration

import teas
from teas.adapt import training
from teas.adapt.schedule import sensitivity
from teas.ann.architectures import Design, build
from teas.study import data as datasets
from teas.study.metrics import evaluate


def small_data():
    return datasets.load("digits", None, validation=900)


def fresh_network(window=6, seed=0):
    torch.manual_seed(seed)
    return teas.SpikingNetwork(build("mlp", (1, 8, 8), 10, lambda: teas.IF(reset="subtract", surrogate="arctan"), Design((24, 16))), window)


def stage(**options):
    plan = teas.Adjustment(every=1, layers=1, fraction=0.5, mean=2, exponent=0.5)
    return teas.Stage(
        **{"name": "retrain", "epochs": 4, "learning_rate": 1e-3, "scale": 10.0, "regulariser": "sound", "strength": 0.1, "adjustment": plan, **options}
    )


def batches(data, batch=32):
    return datasets.loader(data.train, batch, shuffle_seed=7)


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def without_speed(epoch):
    assert epoch.samples_per_second > 0
    assert epoch.memory > 1
    return dataclasses.replace(epoch, samples_per_second=0, memory=0)


def test_training_learns_and_windows_shrink_to_the_goal():
    network = fresh_network()
    before = teas.run_stage(network, batches(small_data()), stage(name="pretrain", epochs=15, learning_rate=5e-3, adjustment=None))
    assert before[-1].accuracy > 90
    history = teas.run_stage(network, batches(small_data()), stage(epochs=6))
    assert history[-1].accuracy > 60
    means = [sum(epoch.windows.values()) / 3 for epoch in history]
    assert means == sorted(means, reverse=True)
    assert means[0] == 6
    assert network.windows.mean == 2


def test_schedules_are_values():
    plan = teas.Adjustment(every=2, layers=1, fraction=0.5, mean=2, exponent=1)
    assert [epoch for epoch in range(7) if plan.due(epoch, 7)] == [1, 3, 5, 6]
    windows, score = teas.TimeWindows({"a": 8, "b": 8, "c": 8}), {"a": 0.1, "b": 0.2, "c": 0.1}
    assert plan.adjusted(windows, score, 0, 7) is windows
    assert dict(plan.adjusted(windows, score, 1, 7)) == {"a": 4, "b": 8, "c": 8}
    assert dict(plan.adjusted(windows, score, 6, 7)) == {"a": 2, "b": 3, "c": 1}  # six steps by score, ties to the earlier layer
    for bad in ({"every": 0}, {"layers": 0}, {"fraction": 0.0}, {"fraction": 1.5}):
        with pytest.raises(teas.TeasError, match="an adjustment needs"):
            dataclasses.replace(plan, **bad)
    with pytest.raises(teas.TeasError, match="activity, activity_sensitivity"):
        dataclasses.replace(plan, score="luck")


def test_sensitivity_is_the_damage_of_half_a_window():
    network = fresh_network(window=6)
    network.windows = {"if1": 6, "if2": 4, "if3": 1}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)  # lively
    inputs = torch.randn(16, 1, 8, 8)
    found = sensitivity(network, [inputs[:8], inputs[8:]])
    logits = torch.log_softmax(network(inputs).logits, 1)
    for layer, half in (("if1", 3), ("if2", 2), ("if3", 1)):
        shortened = torch.log_softmax(network.with_windows({**network.windows, layer: half})(inputs).logits, 1)
        divergence = (logits.exp() * (logits - shortened)).sum(1).mean().item()
        assert found[layer] == pytest.approx(divergence, abs=1e-6)
    assert found["if1"] > 0
    assert network.training


def test_windows_shrink_by_activity_times_sensitivity(monkeypatch):
    """The layer without sensitivity alone loses its steps, busy as it is."""
    probed = []

    def found(network, inputs):
        probed.append(sum(map(len, inputs)))
        return {"if1": 0.0, "if2": 1.0, "if3": 1.0}

    monkeypatch.setattr(training, "sensitivity", found)
    network = fresh_network()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)  # lively
    plan = teas.Adjustment(every=2, layers=1, fraction=0.5, mean=4, exponent=0.1, score="activity_sensitivity")
    history = teas.run_stage(network, batches(small_data()), stage(learning_rate=1e-9, epochs=3, adjustment=plan))
    assert min(history[0].activity.values()) > 0
    assert [epoch.windows["if1"] for epoch in history] == [6, 6, 3]
    assert dict(network.windows) == {"if1": 1, "if2": 6, "if3": 5} or dict(network.windows) == {"if1": 1, "if2": 5, "if3": 6}
    assert probed == [288, 288]  # all nine batches, since they are fewer than 500 samples


def test_a_stage_sets_its_window_and_validates_each_epoch():
    network = fresh_network(window=6)
    seen = []

    def validate(validated):
        seen.append(dict(validated.windows))
        return 12.5

    history = teas.run_stage(network, batches(small_data()), stage(epochs=2, window=3), validate=validate)
    assert [epoch.validation for epoch in history] == [12.5, 12.5]
    assert history[0].windows == {"if1": 3, "if2": 3, "if3": 3}
    assert seen == [history[1].windows, dict(network.windows)]


def test_bad_stages_are_refused():
    for bad in ({"loss": "hinge"}, {"precision": "float8"}, {"parts": 0}, {"regulariser": "l2"}):
        with pytest.raises(teas.TeasError, match=str(next(iter(bad)))):
            stage(**bad)


def test_resume_is_bit_identical(tmp_path):
    data = small_data()
    whole = fresh_network()
    expected = teas.run_stage(whole, batches(data), stage())

    class Stop(Exception):
        pass

    def stop_after_two(epoch):
        if epoch.number == 1:
            raise Stop

    with pytest.raises(Stop):
        teas.run_stage(fresh_network(), batches(data), stage(), checkpoint=tmp_path / "c", on_epoch=stop_after_two)
    resumed = fresh_network(seed=99)
    history = teas.run_stage(resumed, batches(data), stage(), checkpoint=tmp_path / "c")
    assert torch.equal(weights(whole), weights(resumed))
    assert [without_speed(epoch) for epoch in history] == [without_speed(epoch) for epoch in expected]
    assert resumed.windows == whole.windows


def test_a_swap_interrupted_between_its_renames_still_resumes(tmp_path):
    data, folder = small_data(), tmp_path / "c"
    whole = fresh_network()
    teas.run_stage(whole, batches(data), stage(), checkpoint=folder)
    folder.rename(tmp_path / "c.old")
    again = fresh_network(seed=5)
    assert len(teas.run_stage(again, batches(data), stage(), checkpoint=folder)) == 4
    assert torch.equal(weights(whole), weights(again))


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    teas.run_stage(fresh_network(), batches(small_data()), stage(epochs=1), checkpoint=tmp_path / "c")
    with pytest.raises(teas.TeasError, match="other settings"):
        teas.run_stage(fresh_network(), batches(small_data()), stage(epochs=2), checkpoint=tmp_path / "c")


def test_a_diverging_loss_stops_and_keeps_the_last_epoch(tmp_path):
    network = fresh_network()

    def spoil(epoch):
        with torch.no_grad():
            network.module.fc3.weight.fill_(float("nan"))

    with pytest.raises(teas.TeasError, match="lower the learning rate"):
        teas.run_stage(network, batches(small_data()), stage(), checkpoint=tmp_path / "c", on_epoch=spoil)
    assert (tmp_path / "c" / "stage.json").exists()


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(teas.TeasError, match="smaller batch"):
        batches(small_data(), batch=5000)


def worker(out):
    """One of the processes of the test below, or the only one: the same three epochs on the same batches."""
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(split_batches=True))
    torch.set_default_dtype(torch.float64)
    network = fresh_network()
    data = small_data()
    data.train.mean, data.train.std = data.train.mean.double(), data.train.std.double()
    data.validation.mean, data.validation.std = data.train.mean, data.train.std
    measured = evaluate(network, datasets.loader(data.validation, 250), accelerator=accelerator)  # its last batch has 150 images
    history = teas.run_stage(network, batches(data), stage(epochs=3), accelerator=accelerator)
    if accelerator.is_main_process:
        found = {"weights": weights(network), "windows": dict(network.windows), "loss": history[-1].loss, "processes": accelerator.num_processes}
        torch.save({**found, "accuracy": measured.accuracy, "samples": measured.samples, "spikes": measured.spikes}, out)


def test_two_processes_equal_one(tmp_path):
    """The mean of two half batches' gradients is the whole batch's: equal up to the order of float64 sums, 1e-9 after three epochs."""
    results = []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.pt"
        code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_training; test_training.worker({str(out)!r})"
        script = tmp_path / "worker.py"
        script.write_text(code)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", str(script)]
        subprocess.run(command, check=True, env=environment, capture_output=True, timeout=240)
        results.append(torch.load(out, weights_only=True))
    one, two = results
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["windows"] == two["windows"]
    torch.testing.assert_close(two["weights"], one["weights"], rtol=0, atol=1e-9)
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-9)
    assert not torch.equal(one["weights"], weights(fresh_network()).double())
    assert two["samples"] == one["samples"] == 900  # evaluation is shared out, and its sums of whole numbers are exact
    assert (two["accuracy"], two["spikes"]) == (one["accuracy"], one["spikes"])


def test_deepcopies_train_apart():
    data = small_data()
    first = fresh_network()
    second = copy.deepcopy(first)
    teas.run_stage(first, batches(data), stage(epochs=1))
    assert not torch.equal(weights(first), weights(second))
