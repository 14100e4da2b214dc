"""`teas explore`: the front and the operating point by brute force, and figures that evaluation confirms exactly."""

import json
import random

import pytest

import teas as library
from teas.study.explore import cost_of, pareto, parse_budget, pick
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
