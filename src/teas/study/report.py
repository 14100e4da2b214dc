"""The result table as text, and the report page of a run as one self-contained HTML file."""

from __future__ import annotations

import functools
import json
from importlib import resources
from pathlib import Path
from typing import Any

from teas.files import write_atomically
from teas.study import ablation_report, figures, figures_training, profile
from teas.study.page import energy_tables, page_data
from teas.study.run_folder import open_run, read_metrics

CONVERSION_HEADER = ["allocator", "mean window", "accuracy %", "as the ANN %", "p against uniform", "op-weighted", "max", "sum", "Mops/image"]
HEADER = ["network", "accuracy %", "mean window", "op-weighted", "max", "sum", "spikes/image", "nJ FP32", "nJ INT8"]


def _figure(pair: list[float], digits: int) -> str:
    mean, deviation = pair
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}" if deviation else f"{mean:.{digits}f}"


def is_conversion(metrics: dict[str, Any]) -> bool:
    """Whether the figures are those of a comparison of conversions."""
    return metrics.get("kind") == "conversion"


def is_ablation(metrics: dict[str, Any]) -> bool:
    """Whether the figures are those of an ablation of retraining."""
    return metrics.get("kind") == "ablation"


def header(metrics: dict[str, Any]) -> list[str]:
    """Names of the columns of the result table."""
    if is_ablation(metrics):
        return ablation_report.HEADER
    return CONVERSION_HEADER if is_conversion(metrics) else HEADER


def table_rows(metrics: dict[str, Any]) -> list[list[str]]:
    """One row an arm: accuracy, windows, spikes and energy, mean ± standard deviation over the seeds; for conversions one an allocation."""
    if is_ablation(metrics):
        return ablation_report.rows(metrics)
    if is_conversion(metrics):
        return [
            [
                row["allocator"] + (", retrained" if row["retrained"] else ""), f"{row['mean']:.2f}", f"{row['accuracy']:.2f}", f"{row['agreement']:.2f}",
                "" if row["p_value"] is None else f"{row['p_value']:.2g}",
                f"{row['weighted']:.2f}", str(row["max"]), str(row["sum"]), f"{row['synaptic_operations'] / 1e6:.1f}",
            ]
            for row in metrics["rows"]
        ]  # fmt: skip
    digits = {"accuracy": 2, "mean": 2, "weighted": 2, "max": 1, "sum": 1, "spikes": 0}
    return [
        [arm, *(_figure(found[key], digits[key]) for key in digits), *(f"{found['energy'][regime][0]:.1f}" for regime in ("FP32", "INT8"))]
        for arm, found in metrics["arms"].items()
    ]


def findings(metrics: dict[str, Any]) -> list[str]:
    """What the figures say, in words, the controls that the adaptive windows did not beat included."""
    if is_ablation(metrics):
        return ablation_report.findings(metrics)
    if is_conversion(metrics):
        return [_best_at(metrics, *key) for key in dict.fromkeys((row["target"], row["retrained"]) for row in metrics["rows"])]
    arms = metrics["arms"]
    full, adaptive = arms["full"], arms["adaptive"]
    loss = full["accuracy"][0] - adaptive["accuracy"][0]
    lines = [
        f"Adaptive windows take {adaptive['mean'][0]:.2f} steps a layer instead of {full['mean'][0]:.0f}: accuracy {adaptive['accuracy'][0]:.2f} % "
        f"against {full['accuracy'][0]:.2f} % ({'a loss' if loss > 0 else 'a gain'} of {abs(loss):.2f} points)."
    ]
    seeds = list(metrics["seeds"].values())
    for control in (arm for arm in arms if arm not in ("full", "adaptive")):
        differences = [seed["adaptive"]["accuracy"] - seed[control]["accuracy"] for seed in seeds]
        lines.append(f"Against the {control} control of equal mean: {_verdict(differences)}")
    return lines


def _best_at(metrics: dict[str, Any], target: float, retrained: bool) -> str:
    """Which allocator is best at a mean window, and whether it beats the uniform one."""
    rows = {row["allocator"]: row for row in metrics["rows"] if (row["target"], row["retrained"]) == (target, retrained)}
    best = max(rows.values(), key=lambda row: row["accuracy"])
    stands = "is best with" if len(rows) > 1 else "has"
    text = f"Mean window {target:g}{', retrained' if retrained else ''}: {best['allocator']} {stands} {best['accuracy']:.2f} %"
    if "uniform" not in rows or best["allocator"] == "uniform":
        return text + "."
    verdict = "significant" if best["p_value"] < 0.05 else "not significant"
    return f"{text}, uniform has {rows['uniform']['accuracy']:.2f} % (p = {best['p_value']:.2g}, {verdict})."


def _verdict(differences: list[float]) -> str:
    """A paired comparison over seeds; 2.776 standard errors is the 95 % interval of five seeds (Student's t)."""
    from scipy import stats

    n, mean = len(differences), sum(differences) / len(differences)
    wins = sum(d > 0 for d in differences)
    text = f"{mean:+.2f} points on average, better in {wins} of {n} seeds"
    if n < 2:
        return text + "; one seed shows no significance."
    deviation = (sum((d - mean) ** 2 for d in differences) / (n - 1)) ** 0.5
    half = float(stats.t.ppf(0.975, n - 1)) * deviation / n**0.5
    significant = abs(mean) > half
    verdict = ("better" if mean > 0 else "WORSE") if significant else "not significantly different"
    return f"{text}; 95 % interval {mean - half:+.2f} to {mean + half:+.2f}: {verdict}."


def note(metrics: dict[str, Any]) -> str:
    """How to read the table."""
    if is_ablation(metrics):
        return ablation_report.note(metrics)
    if is_conversion(metrics):
        digits = "windows say binary digits, another league than spikes that count; " if metrics["semantics"].get("code") == "radix" else ""
        return (
            f"{metrics['samples']} test images, ANN {metrics['ann_accuracy']:.2f} %; {metrics['semantics']['firing']} firing; {digits}"
            "thresholds and windows from training images. p: McNemar's exact test against the uniform windows of equal mean, on the same images."
        )
    seed = next(iter(metrics["seeds"].values()))["full"]
    return (
        f"{seed['samples']} test images, mean ± standard deviation over {len(metrics['seeds'])} seed(s). A layer waits for the whole train of its "
        "predecessor: one inference takes the sum of the windows along the longest path, a pipeline delivers every max. "
        f"The same network as an ANN: {seed['ann_energy']['FP32']:.1f} nJ in FP32, {seed['ann_energy']['INT8']:.1f} nJ in INT8."
    )


def write_report(folder: Path) -> Path:
    """Write report.html and the pictures of a finished run; returns the page. Raises `TeasError` for a folder that is not a finished run."""
    import jinja2

    experiment, _ = open_run(folder)
    metrics = read_metrics(folder)
    shown = []
    for name, (title, draw, content, caption) in (_pictures(metrics, folder) | _vulnerability(folder)).items():
        write_atomically(folder / "figures" / f"{name}.png", figures.to_png(draw(content)))
        if name != "raster":  # the page has one to step through
            shown.append({"title": title, "svg": figures.to_svg(draw(content)), "caption": caption})
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {}  # layers stay in their order
    source = resources.files("teas.study")
    template = environment.from_string(source.joinpath("report.html.j2").read_text())
    page = template.render(
        experiment=experiment, findings=findings(metrics), header=header(metrics), rows=table_rows(metrics), note=note(metrics), figures=shown,
        data=page_data(folder, metrics), script=source.joinpath("report.js").read_text(), energy_tables=energy_tables(metrics),
        environment=(folder / "environment.json").read_text(),
        config=json.dumps(json.loads((folder / "config.json").read_text())["experiment"], indent=1),
    )  # fmt: skip
    write_atomically(folder / "report.html", page)
    return folder / "report.html"


def _pictures(metrics: dict[str, Any], folder: Path) -> dict[str, tuple[str, Any, Any, str]]:
    """Per picture: title, how it is drawn, from what, and its caption."""
    if is_ablation(metrics):
        return ablation_report.pictures(metrics)
    if is_conversion(metrics):
        return {
            "tradeoff": (
                "Accuracy against mean window", figures.conversion_tradeoff, metrics,
                "Lines: the same converted network at windows of equal mean. Single points: after retraining at these windows. On test images.",
            ),
            "damage": (
                "Activity and measured damage", figures.activity_and_damage, metrics,
                "Activity of each layer, and what cutting that layer alone to 4 steps does to the output.",
            ),
        }  # fmt: skip
    raster = json.loads((folder / "raster.json").read_text())
    return {
        "windows": (
            "Windows and activity", figures.windows_beside_activity, metrics,
            "Time window of each layer after adapting (bars), beside its activity before (line). First seed.",
        ),
        "tradeoff": (
            "Accuracy against mean window", figures.accuracy_against_window, metrics,
            "Curves: the trained network's windows swapped at inference, nothing retrained, on held-out training data, first seed. "
            "Points: after retraining, on test data, all seeds.",
        ),
        "epochs": (
            "Windows over epochs", figures_training.windows_over_epochs, metrics,
            "Time window of each layer while the adaptive network retrains: shrinking first, then frozen. First seed.",
        ),
        "raster": (
            "One image through the layers", figures.spike_raster, raster,
            f"First test image (a {raster['label']}, taken for a {raster['prediction']}): every layer runs its own window.",
        ),
    }  # fmt: skip


def _vulnerability(folder: Path) -> dict[str, tuple[str, Any, Any, str]]:
    """Pictures of the run's profile, where `teas profile` measured one."""
    path = folder / "profile.json"
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    lines = profile.findings(found)[1:]
    return {
        f"vulnerability_{kind}": (
            f"Activity and vulnerability: {'one layer shortened' if kind == 'shortened' else f'{kind} noise on one layer'}",
            functools.partial(figures.activity_and_accuracy, kind=kind), found, line,
        )
        for kind, line in zip(found["vulnerability"], lines, strict=True)
    }  # fmt: skip
