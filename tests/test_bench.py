"""The benchmark: it measures what it says, only where the answers are right, and refuses what it doesn't know."""

import json

import pytest
import torch
from typer.testing import CliRunner

import teas
from teas.cli import app
from teas.study import bench, bench_contender, bench_networks
from teas.study.bench_contender import OURS, Task


def task(contender, network="mlp", window=3):
    return Task(contender, network, window, 4, 1, 0.01)


def test_every_variant_has_the_same_weights_and_re_times_every_train():
    _, base = bench_networks.network("resnet20", 5)
    for kind in ("first", "even"):
        windows = bench_networks.variant(base, kind).windows
        assert windows.mean == pytest.approx(5, abs=0.3)
        for layer in base.layers[:-1]:
            assert all(windows[source] != windows[layer.name] for source in layer.sources if source != "input"), layer.name
    assert bench_networks.variant(base, "two_phase").module is base.module
    assert bench_networks.variant(base, "zero").module is not base.module


@pytest.mark.parametrize("contender", ["ann", "count", "reference", "event_first"])
def test_a_contender_is_checked_and_timed(contender):
    if contender.startswith("event"):
        pytest.importorskip("numba")
    found = bench_contender.measure(task(contender))
    assert len(found["seconds"]) >= 3
    assert min(found["seconds"]) > 0
    assert found["peak_mib"] > found["added_mib"] >= 0


def test_a_wrong_answer_is_refused(monkeypatch):
    monkeypatch.setitem(bench_contender.PEERS, "norse", lambda network, steps: lambda inputs: torch.ones(len(inputs), 10))
    assert "away from the reference's" in bench_contender.measure(task("norse"))["wrong"]
    monkeypatch.setattr(bench, "_measured", lambda task: {"wrong": "its answers are off"})
    with pytest.raises(teas.TeasError, match="no figures are shown"):
        bench.run([task("norse")], print)


def test_what_is_not_installed_is_left_out_and_said(monkeypatch):
    def absent(network, steps):
        raise ImportError("No module named 'norse'")

    monkeypatch.setitem(bench_contender.PEERS, "norse", absent)
    assert "teas[bench]" in bench_contender.measure(task("norse"))["missing"]
    said = []
    monkeypatch.setattr(bench, "_measured", lambda task: {"missing": "not here"})
    assert bench.run([task("norse")], said.append)["rows"] == []
    assert "left out: not here" in said[-1]


def test_ratios_compare_with_the_fastest_peer_and_the_ann():
    def row(contender, speed):
        return {"network": "mlp", "window": 4, "contender": contender, "images_per_second": speed, "median_seconds": 1 / speed, "added_mib": 10 * speed}

    names = {"norse": 2.0, "sinabs": 5.0, "ann": 50.0, "event": 40.0, "train_teas": 3.0, "train_spikingjelly_multistep": 2.0}
    found = {row["contender"]: row for row in bench.with_ratios({"rows": [row(*item) for item in names.items()], "machine": {"fp32_gmac_per_second": 1e-3}})}
    assert found["event"]["over_fastest_peer"] == 8
    assert found["event"]["time_over_ann"] == pytest.approx(1.25)
    assert found["norse"]["over_fastest_peer"] is None
    assert found["ann"]["of_roofline"] == pytest.approx(50 * (784 * 800 + 800 * 800 + 800 * 10) / 1e6)
    assert found["train_teas"]["over_fastest_peer"] == 1.5
    assert found["train_teas"]["memory_over_peer"] == 1.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--network", "lenet"], "choose one of mlp, resnet20, vgg16"),
        (["--contender", "warp"], "choose one of"),
        (["--window", "0"], "must be at least 1"),
        (["--network", "resnet20", "--weights", "nowhere.th"], "no file of weights"),
    ],
)
def test_the_command_refuses_what_it_does_not_know(options, message):
    found = CliRunner().invoke(app, ["bench", *options])
    assert found.exit_code == 2
    assert message in " ".join(found.output.split())


def test_the_command_prints_and_draws(tmp_path):
    options = ["--network", "mlp", "--window", "2", "--batch", "2", "--threads", "1", "--seconds", "0.01", "--contender", "ann", "--contender", "count"]
    found = CliRunner().invoke(app, ["bench", *options, "--json", "--picture", str(tmp_path / "speed.png")])
    assert found.exit_code == 0, found.output
    results = json.loads(found.stdout.strip().splitlines()[-1])
    assert [row["contender"] for row in results["rows"]] == ["ann", "count"]
    assert results["rows"][0]["time_over_ann"] == 1
    assert (tmp_path / "speed.png").read_bytes()[:4] == b"\x89PNG"
    assert set(OURS) & {row["contender"] for row in results["rows"]}


def test_the_table_of_engines_gives_every_reason():
    _, base = bench_networks.network("mlp", 3)
    found = dict(bench.engines_table(base))
    assert found["reference"] == []
    assert any("two_phase" in reason for reason in found["count"])
    two_phase = dict(bench.engines_table(bench_networks.variant(base, "two_phase").train()))
    assert any("training mode" in reason for reason in two_phase["count"])
    assert any("immediate" in reason for reason in two_phase["event"])
