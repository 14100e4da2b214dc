"""The trade-off of one set of weights: accuracy against time and energy under many windows, its Pareto front, and an operating point."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from teas.adapt.activity import measure_activity
from teas.adapt.vulnerability import measure_damage
from teas.ann.learned_windows import LONGEST
from teas.errors import TeasError
from teas.files import write_atomically
from teas.spiking.time_windows import TimeWindows
from teas.study import data as datasets
from teas.study import figures
from teas.study.conversion import allocated, fast
from teas.study.conversion_config import DAMAGE_WINDOWS
from teas.study.energy import REGIMES
from teas.study.experiment import EVALUATION_BATCH, raster
from teas.study.hooks import Hooks
from teas.study.metrics import evaluate
from teas.study.subject import Cache, Subject, fingerprint, locate, open_subject

MEANS = (2, 3, 4, 6, 8, 12, 16, 32)
ALLOCATORS = ("uniform", "damage", "activity", "activity_root")
Point = dict[str, Any]
COSTS = ("mean", "weighted", "max", "sum", "energy", *REGIMES)


def cost_of(point: Point, cost: str) -> float:
    """Steps, or energy in nJ without memory, of a point; `energy` is that in FP32."""
    return float(point["latency"][cost] if cost in point["latency"] else point["energy"]["FP32" if cost == "energy" else cost])


def pareto(points: Sequence[Point], cost: str) -> list[int]:
    """Indices of the points that no other beats: by rising cost, each more accurate than every cheaper one."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (cost_of(points[i], cost), -points[i]["accuracy"])):
        if not front or points[index]["accuracy"] > points[front[-1]]["accuracy"]:
            front.append(index)
    return front


def parse_budget(text: str) -> tuple[str, float]:
    """A budget `cost=value`, e.g. `sum=120`; raises `TeasError` for anything else."""
    name, _, value = text.partition("=")
    try:
        limit = float(value)
    except ValueError:
        limit = float("nan")
    if name not in COSTS or not limit > 0:
        raise TeasError(f"--budget {text!r}: write a cost and its limit, for example sum=120; the costs are {', '.join(COSTS)}")
    return name, limit


def pick(points: Sequence[Point], reference: float, cost: str, max_loss: float | None, budget: tuple[str, float] | None) -> int:
    """The operating point: the cheapest that loses at most `max_loss` points of accuracy, or the most accurate within the budget; or both.

    Raises `TeasError` where no point qualifies.
    """
    allowed = [i for i, point in enumerate(points) if budget is None or cost_of(point, budget[0]) <= budget[1]]
    if not allowed:
        assert budget is not None
        raise TeasError(f"no point keeps to {budget[0]} <= {budget[1]:g}; the cheapest takes {min(cost_of(point, budget[0]) for point in points):g}")
    if max_loss is None:
        return min(allowed, key=lambda i: (-points[i]["accuracy"], cost_of(points[i], cost)))
    kept = [i for i in allowed if points[i]["accuracy"] >= reference - max_loss - 1e-9]
    if not kept:
        best = max(points[i]["accuracy"] for i in allowed)
        raise TeasError(f"no point loses at most {max_loss:g} points: the best has {best:.2f} % of {reference:.2f} %; allow a larger loss or budget")
    return min(kept, key=lambda i: (cost_of(points[i], cost), -points[i]["accuracy"]))


def candidates(subject: Subject, cache: Cache, allocators: Sequence[str], means: Sequence[float], hooks: Hooks) -> list[tuple[str, float, TimeWindows]]:
    """Allocator, mean and windows of every choice; activity and damage come from training inputs at the full windows."""

    settings = subject.experiment.conversion

    def measured() -> dict[str, Any]:
        hooks.say("measuring activity and damage per layer on training images")
        activity = measure_activity(subject.plain(subject.full), subject.probe)
        probes = [steps for steps in (settings.damage_windows if settings else DAMAGE_WINDOWS["rate"]) if steps < subject.full.max]
        damage = measure_damage(lambda windows: fast(subject.plain(windows)), subject.full, probes, subject.probe)
        return {"activity": {layer: found.activity for layer, found in activity.items()}, "damage": damage}

    found = cache.get("allocation", {"full": dict(subject.full), "inputs": sum(map(len, subject.probe))}, measured)
    damage = {layer: {int(steps): value for steps, value in row.items()} for layer, row in found["damage"].items()}
    longest = settings.longest if settings else LONGEST["rate"]
    choices: list[tuple[str, float, TimeWindows]] = [("full", subject.full.mean, subject.full)]
    if subject.own and subject.own != subject.full:
        choices.append(("own", subject.own.mean, subject.own))
    for mean, allocator in itertools.product([mean for mean in means if mean <= subject.full.mean], allocators):
        choices.append((allocator, mean, allocated(allocator, mean, found["activity"], damage, subject.experiment.seeds[0], longest)))
    return choices


def measure(subject: Subject, cache: Cache, windows: TimeWindows, split: str, hooks: Hooks) -> Point:
    """Accuracy, latency and energy at these windows on all images of a split, `held out` or `test`: what `teas evaluate` prints."""

    def compute() -> Point:
        images = subject.data.test if split == "test" else subject.data.validation
        found = evaluate(subject.make(windows), datasets.loader(images, EVALUATION_BATCH), subject.experiment.seeds[0])
        hooks.say(f"  {split}  mean {windows.mean:6.2f}  sum {found.latency.sum:5d}  {found.accuracy:.2f} %")
        return asdict(found)

    found: Point = cache.get("point", {"windows": dict(windows), "split": split}, compute)
    return found


def measured_points(subject: Subject, cache: Cache, allocators: Sequence[str], means: Sequence[float], hooks: Hooks) -> list[Point]:
    """Every choice of windows, measured on held-out images; the first is the full windows."""
    return [
        {"allocator": allocator, "target": target, **measure(subject, cache, windows, "held out", hooks)}
        for allocator, target, windows in candidates(subject, cache, allocators, means, hooks)
    ]


def judged(
    subject: Subject, points: list[Point], test: Callable[[int], Point], cost: str, max_loss: float | None, budget: tuple[str, float] | None
) -> dict[str, Any]:
    """Points with their front and operating point, and what `test` finds for these on test images."""
    front = pareto(points, cost)
    chosen = pick(points, points[0]["accuracy"], cost, max_loss, budget)
    return {
        "name": subject.experiment.name, "cost": cost, "held_out": points[0]["samples"], "semantics": asdict(subject.make(subject.full).semantics),
        "max_loss": max_loss, "budget": budget, "points": points, "front": front, "chosen": chosen,
        "test": {str(i): test(i) for i in dict.fromkeys([chosen, *front])},
    }  # fmt: skip


def explore(
    subject: Subject, cache: Cache, *, allocators: Sequence[str], means: Sequence[float], cost: str, max_loss: float | None,
    budget: tuple[str, float] | None, hooks: Hooks,
) -> dict[str, Any]:  # fmt: skip
    """Measure every choice of windows on held-out images, find the front and the operating point, and confirm both on test images."""
    points = measured_points(subject, cache, allocators, means, hooks)

    def test(i: int) -> Point:
        return measure(subject, cache, TimeWindows(points[i]["windows"]), "test", hooks)

    return judged(subject, points, test, cost, max_loss, budget)


def run(path: Path, data_folder: Path | None, *, out: Path | None = None, hooks: Hooks, **options: Any) -> tuple[dict[str, Any], Path]:
    """Explore the network of a run folder or a conversion's TOML file into its folder `explore`; returns what was found, and that folder."""
    folder = locate(path, data_folder, out)[1]
    cache = Cache(folder / "cache", fingerprint(path, data_folder))

    def measure_all() -> dict[str, Any]:
        subject = open_subject(path, data_folder, out)
        found = explore(subject, cache, hooks=hooks, **options)
        with torch.no_grad():
            return {"found": found, "raster": raster(subject.make(TimeWindows(found["points"][found["chosen"]]["windows"])), subject.data)}

    measured = cache.get("explore", options, measure_all)
    found, folder = measured["found"], folder / "explore"
    write_atomically(folder / "windows.json", TimeWindows(found["points"][found["chosen"]]["windows"]).to_json())
    write_atomically(folder / "raster.json", json.dumps(measured["raster"]))
    write_atomically(folder / "tradeoff.png", figures.to_png(figures.tradeoff_front(found)))
    write_atomically(folder / "points.json", json.dumps(found, indent=1))
    return found, folder


def table(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the points of the front, with the operating point marked."""
    header = ["", "allocator", "mean", "op-weighted", "max", "sum", "nJ FP32", "nJ INT8", "held out %", "test %"]
    rows = []
    for i in sorted({*found["front"], found["chosen"]}, key=lambda i: cost_of(found["points"][i], found["cost"])):
        point, at = found["points"][i], found["points"][i]["latency"]
        rows.append([
            "chosen" if i == found["chosen"] else "", point["allocator"], f"{at['mean']:.2f}", f"{at['weighted']:.2f}", str(at["max"]), str(at["sum"]),
            f"{point['energy']['FP32']:.1f}", f"{point['energy']['INT8']:.1f}", f"{point['accuracy']:.2f}", f"{found['test'][str(i)]['accuracy']:.2f}",
        ])  # fmt: skip
    return header, rows


def findings(found: dict[str, Any]) -> list[str]:
    """What was chosen, by what, and what it does on test images."""
    point, test, full = found["points"][found["chosen"]], found["test"][str(found["chosen"])], found["points"][0]
    same = "" if any(other["allocator"].endswith("retrained") for other in found["points"]) else " for the same weights"
    rules = [] if found["max_loss"] is None else [f"a loss of at most {found['max_loss']:g} points"]
    rules += [] if found["budget"] is None else [f"{found['budget'][0]} <= {found['budget'][1]:g}"]
    return [
        f"{len(found['points'])} choices of windows{same}, {len(found['front'])} on the Pareto front of accuracy and {found['cost']}; "
        f"chosen on {found['held_out']} images held out of the training set (full windows: {full['accuracy']:.2f} %).",
        f"Chosen by {' and '.join(rules)}: {point['allocator']} at a mean of {point['latency']['mean']:.2f}, sum {point['latency']['sum']}: "
        f"held out {point['accuracy']:.2f} %, test {test['accuracy']:.2f} %; {test['energy']['FP32']:.1f} nJ in FP32, {test['energy']['INT8']:.1f} nJ in INT8 "
        "per test image, without memory.",
    ]
