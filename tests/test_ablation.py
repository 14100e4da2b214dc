"""Ablations of retraining: arms from one trained network, measured by epoch and by layer, and Figs. 6 and 7 drawn from them."""

import json

import pytest

import teas
from teas.study import data as datasets
from teas.study import experiment as experiments
from teas.study import figures_training
from teas.study.ablation_arms import ARMS
from teas.study.config import parse
from teas.study.hooks import Hooks
from teas.study.metrics import evaluate
from teas.study.report import findings, header, note, table_rows, write_report
from teas.study.run_folder import load_run

SMALL = """
name = "arms"
seeds = [0, 1]
[data]
validation = 300
batch = 32
[network]
hidden = [24]
reset = "subtract"
surrogate = "arctan"
[training]
window = 6
warmup_epochs = 2
warmup_window = 2
warmup_rate = 5e-3
pretrain_epochs = 2
pretrain_rate = 5e-3
retrain_epochs = 2
retrain_rate = 5e-3
finetune_epochs = 1
finetune_rate = 5e-3
scale = 10.0
[windows]
mean = 2.5
exponent = 0.5
every = 1
[ablation]
arms = ["not_retrained", "retrained", "regularised", "literal_regulariser", "literal_surrogate"]
[expect]
mean_window = 2.5
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished ablation: its folder, its metrics, and what was said."""
    folder, said = tmp_path_factory.mktemp("ablation") / "run", []
    metrics = experiments.run(parse(SMALL, "the test"), folder, hooks=Hooks(say=said.append))
    return folder, metrics, said


def test_every_arm_starts_from_one_network_and_ends_at_the_budget(done):
    _, metrics, _ = done
    assert list(metrics["arms"]) == list(ARMS)
    for trial in metrics["seeds"].values():
        assert len({arm["before"] for arm in trial["arms"].values()}) == 1
        for name, arm in trial["arms"].items():
            assert arm["mean"] <= 2.5
            assert len(arm["by_epoch"]) == (0 if name == "not_retrained" else 3)
            assert len(arm["by_layer"]) == 2
        assert trial["arms"]["retrained"]["accuracy"] > trial["arms"]["not_retrained"]["accuracy"]
        # The last epoch's and the last layer's accuracy are both that of the finished network, on the same held-out images.
        assert trial["arms"]["retrained"]["by_epoch"][-1] == trial["arms"]["retrained"]["by_layer"][-1]
        assert trial["arms"]["not_retrained"]["by_layer"][-1] == trial["arms"]["not_retrained"]["before"]
        assert trial["arms"]["literal_surrogate"]["by_epoch"] != trial["arms"]["regularised"]["by_epoch"]
        assert trial["arms"]["literal_regulariser"]["epochs"] != trial["arms"]["retrained"]["epochs"]


def test_the_network_of_an_ablation_evaluates_to_its_figures(done):
    folder, metrics, _ = done
    network, data, _ = load_run(folder)
    found = evaluate(network, datasets.loader(data.test, 500))
    assert found.accuracy == metrics["seeds"]["0"]["arms"]["regularised"]["accuracy"]


def test_the_plan_is_said_before_anything_is_trained(done):
    _, _, said = done
    text = " ".join(said)
    assert said[0] == f"plan: 2 seed(s), 16 epochs of {1198 - 300} samples each, batches of 32"
    for part in ("warmup 2 epochs, at 2 steps", "pretrain 2 epochs, at 6 steps", "activity^0.5", "gives up 25 %", "mean of 2.5"):
        assert part in text
    assert text.index("plan") < text.index("seed 0")


def test_the_report_draws_both_figures(done):
    folder, metrics, _ = done
    page = write_report(folder).read_text()
    assert (folder / "figures/by_layer.png").stat().st_size > 10_000
    assert (folder / "figures/by_epoch.png").stat().st_size > 10_000
    assert "Fig. 6" in page
    assert "Fig. 7" in page
    rows = table_rows(metrics)
    assert [len(row) for row in rows] == [len(header(metrics))] * (1 + len(ARMS))
    assert any(line.startswith("retrained, no regulariser against not retrained: +") for line in findings(metrics))
    assert "one trained network" in note(metrics)


def test_the_band_reaches_from_the_worst_to_the_best_trial(done):
    _, metrics, _ = done
    figure = figures_training.accuracy_over_epochs(metrics)
    axes = figure.axes[0]
    curves = [[t["arms"]["retrained"]["before"], *t["arms"]["retrained"]["by_epoch"]] for t in metrics["seeds"].values()]
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((min(map(min, curves)), max(map(max, curves))))
    assert axes.lines[0].get_ydata() == pytest.approx([sum(values) / 2 for values in zip(*curves, strict=True)])


def test_windows_over_epochs_shows_each_layer_and_the_mean(done):
    _, metrics, _ = done
    epochs = metrics["seeds"]["0"]["arms"]["retrained"]["epochs"]
    axes = figures_training.windows_over_epochs({"epochs": {"adaptive": epochs}}).axes[0]
    assert [line.get_label() for line in axes.lines][:3] == ["if1", "if2", "mean"]
    assert axes.lines[0].get_ydata().tolist() == [epoch["windows"]["if1"] for epoch in epochs]


def test_bad_ablations_are_refused():
    with pytest.raises(teas.TeasError, match="choose one of not_retrained"):
        parse(SMALL.replace('"retrained", ', '"retried", '), "the test")
    with pytest.raises(teas.TeasError, match="each once"):
        parse(SMALL.replace('"retrained", ', '"regularised", '), "the test")
    with pytest.raises(teas.TeasError, match="directly trained"):
        parse(SMALL + '[conversion]\nweights = "x"\n', "the test")


def test_metrics_hold_nothing_of_the_machine(done):
    folder, _, _ = done
    text = (folder / "metrics.json").read_text()
    assert "samples_per_second" not in text
    assert json.loads(text)["expectation_met"] is True
