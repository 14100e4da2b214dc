"""The paper's figures and tables again, ours beside the paper's: what was measured, and what was not and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from teas.errors import TeasError, check_choice
from teas.files import write_atomically
from teas.study import baselines, config, experiment, figures, profile, report, run_folder
from teas.study import data as datasets
from teas.study.experiment import EVALUATION_BATCH
from teas.study.hooks import Hooks
from teas.study.metrics import evaluate
from teas.study.paper import ENERGY_GAIN, ERRATA, LONGEST, TABLE2, TABLE3, Row
from teas.study.subject import Cache, fingerprint, open_subject

FIRST = "cifar10_resnet20"  # the experiment of the figures that take one network


@dataclass(frozen=True)
class Place:
    """Where data, experiments, finished runs and packed networks are, and where results go; train: run experiments that train, too."""

    data: Path | None
    experiments: Path
    runs: Path
    zoo: Path
    out: Path
    train: bool
    hooks: Hooks

    def command(self, name: str) -> str:
        """The command that runs an experiment."""
        return f"teas run {self.experiments / name}.toml --data {self.data or 'DATA'}"


@dataclass
class Found:
    """One figure or table: rows, what they say, what was not run, and the pictures."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)


def metrics_of(name: str, place: Place) -> tuple[dict[str, Any] | None, str]:
    """The metrics of an experiment with the command that made them, or None and why there are none.

    Finished runs are read; conversions of ready weights are run here, and with `train` everything else too.
    """
    toml, folder, command = place.experiments / f"{name}.toml", place.runs / name, place.command(name)
    if not toml.exists():
        return None, ""
    page = config.read(toml)
    if (folder / "metrics.json").exists():
        if run_folder.open_run(folder)[0] != page:
            return None, f"{folder} was run with other settings than {toml} has now; move it away, and {command}"
        return run_folder.read_metrics(folder), command
    ready = page.conversion and page.conversion.weights and not (page.conversion.pretraining or page.retraining)
    if not (ready or place.train):
        return None, f"it trains; {command}"
    try:
        place.hooks.say(command)
        return experiment.run(page, folder, data_folder=place.data, resume=True, hooks=place.hooks), command
    except TeasError as error:
        return None, f"{error}; {command}"


def _packed(name: str, place: Place) -> tuple[dict[str, Any] | None, str]:
    """The packed network of an experiment, evaluated on its test data."""
    folder, command = place.zoo / name, f"teas evaluate {place.zoo / name} --data {place.data or 'DATA'}"
    if not (folder / "weights.safetensors").exists():
        return None, ""

    def measure() -> dict[str, Any]:
        place.hooks.say(command)
        subject = open_subject(folder, place.data)
        assert subject.own is not None
        found = evaluate(subject.make(subject.own), datasets.loader(subject.data.test, EVALUATION_BATCH), subject.experiment.seeds[0])
        return {**asdict(found), "firing": subject.experiment.semantics.firing}

    try:
        return Cache(place.out / "cache", fingerprint(folder, place.data)).get("packed", {}, measure), command
    except TeasError as error:
        return None, f"{error}; {command}"


def _answers(row: Row, name: str, place: Place) -> list[str] | None:
    """Our cells for a row of Table 2: full, adapted, uniform of equal mean, sum, firing, seeds, command; None where nothing was measured."""
    found, how = metrics_of(name, place)
    if found is None:
        packed, command = _packed(name, place)
        if packed is None:
            return None
        adapted = f"{packed['accuracy']:.2f} @ {packed['latency']['mean']:.2f}"
        return ["", adapted, "", str(packed["latency"]["sum"]), packed["firing"], "1", command]
    if "rows" in found:
        target = max((r["target"] for r in found["rows"] if r["target"] <= row.mean), default=None)
        rows = {
            r["allocator"]: r for r in found["rows"] if r["target"] == target and r.get("retrained", False) == any(q.get("retrained") for q in found["rows"])
        }
        if not rows:
            return None
        best = rows.get("damage") or next(iter(rows.values()))
        uniform = f"{rows['uniform']['accuracy']:.2f} @ {rows['uniform']['mean']:.2f}" if "uniform" in rows else ""
        cells = [f"ANN {found['ann_accuracy']:.2f}", f"{best['accuracy']:.2f} @ {best['mean']:.2f}", uniform, str(best["sum"])]
        return [*cells, found["semantics"]["firing"], "1", how]
    if "adaptive" not in found.get("arms", {}):
        return None
    arms = found["arms"]
    shown = {arm: f"{arms[arm]['accuracy'][0]:.2f} @ {arms[arm]['mean'][0]:.2f}" for arm in ("full", "adaptive", "uniform") if arm in arms}
    page = config.read(place.experiments / f"{name}.toml")
    sums = f"{arms['adaptive']['sum'][0]:g}"
    return [shown["full"], shown["adaptive"], shown.get("uniform", ""), sums, page.semantics.firing, str(len(found["seeds"])), how]


def _reason(row: Row, place: Place) -> str:
    """Why a row was not measured, and the command that would."""
    for name in row.experiments:
        if (place.experiments / f"{name}.toml").exists():
            return metrics_of(name, place)[1]
    return f"needs {row.needs or 'an experiment'}{'; ' + row.otherwise if row.otherwise else ''}"


def table2(place: Place) -> Found:
    """Table 2, all ten rows: what the paper reports, and ours where it was measured."""
    header = ["network", "data", "paper: ANN", "full", "adapted", "ratio", "ours: full", "adapted", "uniform", "sum", "firing", "seeds", "command"]
    rows, missing = [], []
    for row in TABLE2:
        paper = [f"{row.ann:.2f}" if row.ann else "", f"{row.full:g} @ {row.steps}", f"{row.reduced:g} @ {row.mean:g}", f"{row.compression:.1f}x"]
        answers = [(name, cells) for name in row.experiments if (cells := _answers(row, name, place))]
        for index, (name, cells) in enumerate(answers):
            label = f"{row.network} (reduced size)" if name.endswith("_reduced") else row.network
            rows.append(
                [label if index == 0 or name.endswith("_reduced") else "", row.data if index == 0 else "", *(paper if index == 0 else [""] * 4), *cells]
            )
        if not answers:
            rows.append([row.network, row.data, *paper, "not run", *[""] * 6])
            missing.append(f"Not run: {row.network} on {row.data}: {_reason(row, place)}")
    notes = [
        "Accuracy in percent on the test set @ mean window; ratio: Table 2's own original steps over its mean. Ours: sum is the steps of one inference; "
        "uniform windows of equal mean stand beside the adapted ones. Windows are chosen on training images; of several means, the largest within the paper's.",
        *missing,
    ]
    return Found("Table 2: accuracy and mean window", header, rows, notes)


def table3(place: Place) -> Found:
    """Table 3 with its ratios put right, ours below the paper's rows."""
    header = ["method", "network", "data", "accuracy %", "steps", "ratio as printed", "ratio put right", "note"]
    rows = []
    for rival in TABLE3:
        cells = [rival.method, rival.network, rival.data, f"{rival.accuracy:g}", f"{rival.steps:g}", f"{rival.printed:g}x"]
        if not rival.ours:
            rows.append([*cells, "", "base 2500"])
            continue
        row = next(row for row in TABLE2 if (row.network, row.data) == (rival.network, rival.data))
        swapped = "" if rival.steps == row.mean else f"swapped: Table 2 has {row.reduced:g} @ {row.mean:g}"
        rows.append([*cells, f"{row.compression:.1f}x", swapped or f"base {row.steps}"])
        for name in row.experiments:
            ours = _answers(row, name, place)
            if ours:
                accuracy, _, mean = ours[1].partition(" @ ")
                reduced = " (reduced size)" if name.endswith("_reduced") else ""
                rows.append(
                    ["ours", row.network + reduced, row.data, accuracy, mean, "", f"{row.steps / float(mean):.1f}x", f"base {row.steps}; {ours[4]}; {ours[6]}"]
                )
    return Found("Table 3: other methods", header, rows, list(ERRATA))


def fig3(place: Place) -> Found:
    """Fig. 3: activity of every layer, and accuracy with that layer alone under noise."""
    noises = ["delete=0.1", "flip=0.1"]
    toml = place.experiments / f"{FIRST}.toml"
    found, folder = profile.run(toml, place.data, "16", noises, images=1000, seeds=range(5), shorten=4, out=place.out / "fig3", hooks=place.hooks)
    header, rows = profile.table(found)
    notes = [
        "Ours: ResNet-20, CIFAR-10, converted, 16 steps in every layer; the paper has VGG-16 at u = 0.1 and does not say what its noise is. "
        "So both are shown: every spike lost with probability 0.1, and every step of every train inverted with probability 0.1.",
        *profile.findings(found),
        *_not_run("VGG-16", "cifar10_vgg16", place, "fig3"),
    ]
    return Found("Fig. 3: activity and vulnerability", header, rows, notes, [str(path) for path in profile.pictures(found, folder)])


def _not_run(network: str, name: str, place: Place, target: str) -> list[str]:
    row = next(row for row in TABLE2 if row.experiments[0] == name)
    return [f"Not run: {network}: {_reason(row, place)}"]


def fig5(place: Place) -> Found:
    """Fig. 5: the window of every layer."""
    metrics, how = metrics_of(FIRST, place)
    if metrics is None:
        raise TeasError(f"Fig. 5 needs the conversion of ResNet-20: {how}")
    target = max(row["target"] for row in metrics["rows"] if row["target"] <= 45.5)
    chosen = {row["allocator"]: row for row in metrics["rows"] if row["target"] == target and row["allocator"] in ("damage", "activity", "activity_root")}
    layers = list(next(iter(chosen.values()))["windows"])
    rows = [[layer, f"{metrics['activity'][layer]:.4f}", *(str(row["windows"][layer]) for row in chosen.values())] for layer in layers]
    picture = place.out / "fig5.png"
    write_atomically(picture, figures.to_png(figures.windows_by_allocator({name: row["windows"] for name, row in chosen.items()}, LONGEST["ResNet-20"])))
    longest = ", ".join(f"{name} {row['max']} ({row['accuracy']:.2f} %)" for name, row in chosen.items())
    notes = [
        f"ResNet-20, CIFAR-10, {metrics['semantics']['firing']} firing, mean {target:g}, nothing retrained; {how}",
        f"Longest window: the paper {LONGEST['ResNet-20']} (91.43 %, mean 45.5); ours {longest}. The paper's bars are not given as numbers.",
        *_not_run("VGG-16, ImageNet", "imagenet_vgg16", place, "fig5"),
    ]
    return Found("Fig. 5: windows of the layers", ["layer", "activity", *chosen], rows, notes, [str(picture)])


def _from_run(title: str, name: str, remark: str) -> Callable[[Place], Found]:
    """A figure that is the report of one experiment."""

    def make(place: Place) -> Found:
        metrics, how = metrics_of(name, place)
        if metrics is None:
            return Found(title, [], [], [f"Not run: {how or 'there is no experiment ' + name}"])
        folder = place.runs / name
        report.write_report(folder)
        pictures = [str(path) for path in sorted((folder / "figures").glob("*.png"))]
        return Found(title, report.header(metrics), report.table_rows(metrics), [remark, *report.findings(metrics), report.note(metrics), how], pictures)

    return make


def fig8a(place: Place) -> Found:
    """Fig. 8(a): energy of the ANN, of the network at the original steps, and adapted, relative to the ANN, in every regime."""
    metrics, how = metrics_of(FIRST, place)
    if metrics is None:
        raise TeasError(f"Fig. 8(a) needs the conversion of ResNet-20: {how}")
    toml = place.experiments / f"{FIRST}.toml"
    windows = {f"adapted, mean {row['target']:g}": row["windows"] for row in metrics["rows"] if row["allocator"] == "damage"}
    cache = Cache(place.out / "cache", fingerprint(toml, place.data))
    found = cache.get("energy", {"windows": windows}, lambda: baselines.compare(open_subject(toml, place.data, place.out / "fig8a"), windows, place.hooks))
    picture = place.out / "fig8a.png"
    write_atomically(picture, figures.to_png(figures.energy_by_regime(found)))
    header, rows = baselines.table(found)
    gains = ", ".join(f"{gain}x ({what})" for what, gain in ENERGY_GAIN.items())
    return Found("Fig. 8(a): energy", header, rows, [f"The paper, integers, without memory: {gains}.", *baselines.findings(found), how], [str(picture)])


def fig8b(place: Place) -> Found:
    """Fig. 8(b): the energy of one operation."""
    picture = place.out / "fig8b.png"
    write_atomically(picture, figures.to_png(figures.prices(baselines.PRICES)))
    rows = [[regime, *(f"{price:g}" for price in row)] for regime, row in baselines.PRICES.items()]
    header = ["regime", "multiplication", "addition", "MAC", "memory access", "MAC / addition"]
    notes = ["pJ at 45 nm; Horowitz, ISSCC 2014. The paper's Fig. 8(b) is the integer regime; a MAC is a multiplication and an addition."]
    return Found("Fig. 8(b): energy of one operation (pJ)", header, rows, notes, [str(picture)])


TARGETS: dict[str, Callable[[Place], Found]] = {
    "fig3": fig3, "fig5": fig5, "fig8a": fig8a, "fig8b": fig8b, "table2": table2, "table3": table3,
    "fig6": _from_run("Fig. 6: with and without retraining", "fig6_retraining", "The paper has ResNet-20, converted; ours is named below."),
    "fig7": _from_run("Fig. 7: accuracy against epochs", "fig7_epochs", "The paper has VGG-16 and ResNet-20, 50 epochs, 5 trials; ours is named below."),
}  # fmt: skip


def reproduce(target: str, place: Place) -> Found:
    """Make one figure or table and write it, as JSON too; raises `TeasError` for an unknown one or where its network or data are missing."""
    check_choice("what to reproduce", target, tuple(sorted(TARGETS)))
    if not place.experiments.is_dir():
        raise TeasError(f"there is no folder {place.experiments} of experiments here; run this in the project's folder, or give --experiments")
    found = TARGETS[target](place)
    write_atomically(place.out / f"{target}.json", json.dumps(asdict(found), indent=1))
    return found
