"""Pictures of a run, drawn with matplotlib: windows beside activity, accuracy against mean window, a spike raster."""

from __future__ import annotations

import io
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

# Okabe-Ito: told apart without colour vision; every series also has its own marker or hatch.
STYLE = {
    "full": {"color": "#000000", "marker": "s"},
    "adaptive": {"color": "#D55E00", "marker": "o"},
    "uniform": {"color": "#0072B2", "marker": "^"},
    "shuffled": {"color": "#009E73", "marker": "v"},
    "by activity": {"color": "#D55E00", "marker": "o"},
    "damage": {"color": "#D55E00", "marker": "o"},
    "activity": {"color": "#CC79A7", "marker": "s"},
    "activity_root": {"color": "#E69F00", "marker": "D"},
}


def _axes(width: float = 7.0, height: float = 3.6, **options: Any) -> tuple[Figure, Any]:
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained", **options)
    return figure, axes


def windows_beside_activity(metrics: dict[str, Any]) -> Figure:
    """Per layer: the adaptive window (bars) and the activity of the trained network before adapting (line), first seed."""
    adaptive = next(iter(metrics["seeds"].values()))["adaptive"]
    layers = list(adaptive["windows"])
    figure, axes = _axes()
    bars = axes.bar(range(len(layers)), [adaptive["windows"][layer] for layer in layers], color="#E69F00", width=0.6, label="time window")
    for position, layer in enumerate(layers):  # at the foot, clear of the line
        axes.text(position, 0.02 * max(adaptive["windows"].values()), adaptive["windows"][layer], ha="center", va="bottom", weight="bold")
    axes.set(xlabel="layer", ylabel="time window (steps)", xticks=range(len(layers)), xticklabels=layers)
    axes.margins(y=0.15)
    right = axes.twinx()
    activity = [metrics["trained_activity"][layer] for layer in layers]
    right.plot(range(len(layers)), activity, color="#0072B2", marker="o", label="activity before adapting")
    right.set(ylabel="spiking activity (spikes per step)", ylim=(0, max(activity) * 1.25))
    axes.legend(handles=[bars, *right.lines], loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=2, frameon=False)
    return figure


def accuracy_against_window(metrics: dict[str, Any]) -> Figure:
    """Accuracy against mean window: curves without retraining (held-out data), points after it (test data, all seeds)."""
    figure, axes = _axes()
    for name, points in metrics["tradeoff"].items():
        axes.plot(*zip(*points, strict=True), lw=1.2, ms=4, alpha=0.8, mfc="none", label=f"{name}, not retrained", **STYLE[name])
    dodge = {"uniform": -0.25, "shuffled": 0.25}  # arms of equal mean would hide each other
    for arm, found in metrics["arms"].items():
        error = {"xerr": found["mean"][1], "yerr": found["accuracy"][1]}
        axes.errorbar(found["mean"][0] + dodge.get(arm, 0), found["accuracy"][0], **error, ls="none", ms=8, capsize=4, label=arm, **STYLE[arm])
    best = max(found["accuracy"][0] for found in metrics["arms"].values())
    lowest = min(found["accuracy"][0] for found in metrics["arms"].values())
    axes.set(xlabel="mean time window (steps)", ylabel="accuracy (%)", ylim=(max(0.0, lowest - 8), min(100.0, best + 2)))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    return figure


def conversion_tradeoff(metrics: dict[str, Any]) -> Figure:
    """Accuracy of a converted network against mean window, a line an allocator, the ANN's accuracy above."""
    figure, axes = _axes()
    names = list(dict.fromkeys(row["allocator"] for row in metrics["rows"]))
    for name in names:
        points = sorted((row["mean"], row["accuracy"]) for row in metrics["rows"] if row["allocator"] == name)
        axes.plot(*zip(*points, strict=True), lw=1.4, ms=6, label=name.replace("activity_root", "root of activity"), **STYLE[name])
    axes.axhline(metrics["ann_accuracy"], color="black", ls=":", label="ANN")
    axes.set(xlabel="mean time window (steps)", ylabel="accuracy (%)", xscale="log", xticks=(ticks := sorted({row["target"] for row in metrics["rows"]})))
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    return figure


def activity_and_damage(metrics: dict[str, Any]) -> Figure:
    """Per layer: activity (bars), and damage at 4 steps (line, logarithmic)."""
    layers = list(metrics["activity"])
    figure, axes = _axes(height=4.4)
    bars = axes.bar(range(len(layers)), [metrics["activity"][layer] for layer in layers], color="#E69F00", width=0.6, label="spiking activity")
    axes.set(ylabel="spiking activity (spikes per step)", xticks=range(len(layers)))
    axes.set_xticklabels(layers, rotation=60, ha="right", fontsize=8)
    handles = [bars]
    if metrics["damage"]:
        right = axes.twinx()
        damage = [metrics["damage"][layer].get("4", metrics["damage"][layer].get(4)) for layer in layers]
        handles += right.plot(range(len(layers)), damage, color="#0072B2", marker="o", label="damage at 4 steps")
        right.set(ylabel="divergence of the output (nats)", yscale="log")
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=2, frameon=False)
    return figure


def spike_raster(raster: dict[str, Any]) -> Figure:
    """Spikes of one image through the layers: a panel a layer, each as wide as its own time window."""
    layers = raster["layers"]
    widths = [max(2, layer["window"]) for layer in layers.values()]
    figure, panels = _axes(ncols=len(layers), width_ratios=widths, squeeze=False)
    for axes, (name, layer) in zip(panels[0], layers.items(), strict=True):
        axes.eventplot(layer["spikes"], lineoffsets=range(len(layer["spikes"])), linelengths=0.8, linewidths=4, color="#0072B2")
        axes.set(title=f"layer {name}: {layer['window']} steps", xlim=(-0.6, layer["window"] - 0.4), xlabel="step", xticks=range(layer["window"]))
        axes.title.set_fontsize(9)
        axes.set_yticks([])
    panels[0][0].set_ylabel("neurons (a sample)")
    return figure


def to_svg(figure: Figure) -> str:
    """The figure as one SVG element; closes the figure."""
    buffer = io.StringIO()
    with plt.rc_context({"svg.hashsalt": "teas"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file; closes the figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    plt.close(figure)
    return buffer.getvalue()
