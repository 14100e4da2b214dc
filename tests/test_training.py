"""Stages of training: resume to the bit, two processes against one, windows that shrink, losses that diverge."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration

import teas
from teas.ann.architectures import build
from teas.study import data as datasets


def small_data():
    return datasets.load("digits", None, validation=900)


def fresh_network(window=6, seed=0):
    torch.manual_seed(seed)
    return teas.SpikingNetwork(build("mlp", (1, 8, 8), 10, lambda: teas.IF(reset="subtract", surrogate="arctan"), (24, 16), True), window)


def stage(**options):
    plan = teas.Adjustment(every=1, layers=1, fraction=0.5, mean=2, exponent=0.5)
    return teas.Stage(
        **{"name": "retrain", "epochs": 4, "learning_rate": 1e-3, "scale": 10.0, "regulariser": "sound", "strength": 0.1, "adjustment": plan, **options}
    )


def batches(data, batch=32):
    return datasets.loader(data.train, batch, shuffle_seed=7)


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


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
    assert [vars(epoch) for epoch in history] == [vars(epoch) for epoch in expected]
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
    history = teas.run_stage(network, batches(data), stage(epochs=3), accelerator=accelerator)
    if accelerator.is_main_process:
        torch.save({"weights": weights(network), "windows": dict(network.windows), "loss": history[-1].loss, "processes": accelerator.num_processes}, out)


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


def test_deepcopies_train_apart():
    data = small_data()
    first = fresh_network()
    second = copy.deepcopy(first)
    teas.run_stage(first, batches(data), stage(epochs=1))
    assert not torch.equal(weights(first), weights(second))
