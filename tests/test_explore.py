"""`teas explore`, `adapt` and `cascade`: the front and the operating point by brute force, and figures that evaluation confirms exactly."""

import json
import random

import pytest
import torch

import teas as library
from teas.adapt.policy import Cascade, Policy
from teas.study.cascade import held
from teas.study.explore import cost_of, pareto, parse_budget, pick
from teas.study.subject import open_subject
from test_cli import folder, teas  # noqa: F401 (the finished run of the commands' tests)


def some_points(seed, n=30):
    generator = random.Random(seed)
    return [
        {"accuracy": generator.randrange(80, 95), "latency": {"mean": s / 4, "weighted": s / 4, "max": s, "sum": s}, "energy": {"FP32": 2.0 * s, "INT8": s / 3}}
        for s in (generator.randrange(4, 40) for _ in range(n))
    ]


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_no_point_beats(seed):
    points = some_points(seed)

    def beaten(a):
        return any(
            b["accuracy"] >= a["accuracy"]
            and cost_of(b, "sum") <= cost_of(a, "sum")
            and (b["accuracy"], -cost_of(b, "sum")) != (a["accuracy"], -cost_of(a, "sum"))
            for b in points
        )

    front = {(points[i]["accuracy"], cost_of(points[i], "sum")) for i in pareto(points, "sum")}
    assert front == {(p["accuracy"], cost_of(p, "sum")) for p in points if not beaten(p)}


@pytest.mark.parametrize("seed", range(20))
def test_the_operating_point_by_brute_force(seed):
    points = some_points(seed)
    best = max(p["accuracy"] for p in points)
    loss = points[pick(points, best, "energy", 2.0, None)]
    assert cost_of(loss, "energy") == min(cost_of(p, "FP32") for p in points if p["accuracy"] >= best - 2)
    within = points[pick(points, best, "sum", None, ("mean", 5.0))]
    assert within["accuracy"] == max(p["accuracy"] for p in points if p["latency"]["mean"] <= 5)
    with pytest.raises(library.TeasError, match="the cheapest takes"):
        pick(points, best, "sum", None, ("sum", 1.0))
    with pytest.raises(library.TeasError, match="no point loses at most"):
        pick(points, best + 5, "sum", 1.0, None)


def test_budgets_are_read_or_refused():
    assert parse_budget("sum=120") == ("sum", 120)
    for wrong in ("sum", "steps=3", "sum=-1", "sum=few", "sum=nan"):
        with pytest.raises(library.TeasError, match="for example sum=120"):
            parse_budget(wrong)


def test_the_chosen_point_keeps_its_promise(folder):  # noqa: F811
    done = teas("explore", "whole", "--budget", "mean=3", "--cost", "INT8", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    point, tested = found["points"][found["chosen"]], found["test"][str(found["chosen"])]
    assert point["latency"]["mean"] <= 3
    for split, promised in ((["--held-out"], point), ([], tested)):
        done = teas("evaluate", "whole", "--windows", "whole/explore/windows.json", "--json", *split, cwd=folder)
        again = json.loads(done.stdout)
        assert again == {key: value for key, value in promised.items() if key not in ("allocator", "target")}
    assert {path.name for path in (folder / "whole/explore").iterdir()} == {"windows.json", "raster.json", "tradeoff.png", "points.json"}
    second = teas("explore", "whole", "--budget", "mean=3", "--cost", "INT8", "--json", cwd=folder)
    assert json.loads(second.stdout) == found
    assert "held out" not in second.stderr  # all from the cache


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--cost", "price"], "choose one of mean"), (["--budget", "price=3"], "for example sum=120"), (["--max-loss", "-99"], "loses at most")],
)
def test_bad_input_is_refused_in_one_line(folder, arguments, message):  # noqa: F811
    done = teas("explore", "whole", *arguments, cwd=folder)
    assert done.returncode == 2
    assert message in done.stderr.replace("\n", " ")


def evaluated(place, cwd, *options):
    done = teas("evaluate", place, "--json", *options, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def as_measured(point):
    return {key: value for key, value in point.items() if key not in ("allocator", "target")}


def test_the_network_of_a_run_adapted_to_the_least_energy(folder):  # noqa: F811
    done = teas("adapt", "whole", "--minimise", "energy", "--max-loss", "3", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    points, chosen = found["points"], found["points"][found["chosen"]]
    allowed = [point for point in points if point["accuracy"] >= points[0]["accuracy"] - 3]
    assert cost_of(chosen, "FP32") == min(cost_of(point, "FP32") for point in allowed) < cost_of(points[0], "FP32")
    assert evaluated("whole-adapted", folder) == found["test"][str(found["chosen"])]
    assert evaluated("whole-adapted", folder, "--held-out") == as_measured(chosen)
    assert json.loads((folder / "whole-adapted/front.json").read_text()) == found
    table = teas("adapt", "whole", "--minimise", "energy", "--max-loss", "3", cwd=folder)  # all from the cache
    assert "Chosen by a loss of at most 3 points" in table.stdout
    assert "held out  mean" not in table.stderr
    assert teas("pack", "whole-adapted", "adapted-packed", cwd=folder).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["whole", "--minimise", "price"], "choose one of mean"),
        (["whole", "--max-loss", "-1"], "from 0 to 100"),
        (["whole", "--out", "whole"], "would be overwritten"),
        (["whole", "--out", "."], "not a teas run folder"),
        (["nowhere"], "not a teas run folder"),
        (["small.toml"], "teas run small.toml first"),
    ],
)
def test_what_can_not_be_adapted_is_refused_in_one_line(folder, arguments, message):  # noqa: F811
    before = sorted(folder.rglob("*"))
    done = teas("adapt", *arguments, cwd=folder)
    assert done.returncode == 2
    assert message in done.stderr.replace("\n", " ")
    assert sorted(folder.rglob("*")) == before


def test_the_figures_are_those_of_the_cascade_run_for_real(folder):  # noqa: F811
    done = teas("cascade", "whole", "--mean", "2", "--mean", "4", "--risk", "20", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["means"] == [2, 4]
    subject = open_subject(folder / "whole")
    final = torch.randperm(599, generator=torch.Generator().manual_seed(0))[299:]
    assert found["final"] == len(final) == 300
    inputs, labels = subject.data.test.__getitems__(final.tolist())
    networks = [subject.make(subject.windows(steps)) for steps in ("2", "4")]
    alone = networks[1](inputs).logits.argmax(1)
    for row in found["rows"]:
        policy = Policy(**{key: tuple(value) for key, value in row["calibration"]["policy"].items()})
        logits, stage = Cascade(networks, policy)(inputs)
        right = logits.argmax(1) == labels
        assert row["accuracy"] == pytest.approx(100 * float(right.double().mean()))
        assert row["steps"] == pytest.approx(2 + 4 * float(stage.double().mean()))
        assert row["extra_errors"] == int(((alone == labels) & ~right).sum())
        assert row["calibration"]["bound"] <= 0.2
    assert {row["calibrated_on"]: row["calibration"]["samples"] for row in found["rows"]} == {
        "held out": 400, "held out, augmented": 400, "half of the test set": 299,
    }  # fmt: skip
    assert any(row["stopped"][0] > 0.3 for row in found["rows"])
    shown = teas("cascade", "whole", "--mean", "2", "--mean", "4", "--risk", "20", cwd=folder)
    assert "last stage alone" in shown.stdout


def test_whether_a_risk_was_held():
    assert held(5, 5000, 0.001) == "yes"
    assert held(6, 5000, 0.001) == "within chance"
    assert held(20, 5000, 0.001) == "no"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mean", "4", "--mean", "2"], "rise from stage to stage; got 4, 2"),
        (["--mean", "2", "--mean", "4"], "can't show a risk of 0.001"),
        (["--mean", "2", "--mean", "9"], "above the 4 steps"),
        (["--mean", "2", "--mean", "4", "--risk", "0"], "risk is 0"),
    ],
)
def test_cascades_that_can_not_be_are_refused_in_one_line(folder, arguments, message):  # noqa: F811
    done = teas("cascade", "whole", *arguments, cwd=folder)
    assert done.returncode == 2
    assert message in done.stderr.replace("\n", " ")
