"""Pictures of a run, drawn with matplotlib: windows beside activity, accuracy against mean window, a spike raster."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

# Okabe-Ito: told apart without colour vision; every series also has its own marker or hatch.
STYLE = {
    "full": {"color": "#000000", "marker": "s"},
    "own": {"color": "#56B4E9", "marker": "P"},
    "adaptive": {"color": "#D55E00", "marker": "o"},
    "uniform": {"color": "#0072B2", "marker": "^"},
    "shuffled": {"color": "#009E73", "marker": "v"},
    "by activity": {"color": "#D55E00", "marker": "o"},
    "damage": {"color": "#D55E00", "marker": "o"},
    "activity": {"color": "#CC79A7", "marker": "s"},
    "activity_root": {"color": "#E69F00", "marker": "D"},
    "staircase": {"color": "#56B4E9", "marker": "X"},
    "learned": {"color": "#009E73", "marker": "*"},
}


def axes_of(width: float = 7.0, height: float = 3.6, **options: Any) -> tuple[Figure, Any]:
    """A figure of our size and layout, with its axes."""
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained", **options)
    return figure, axes


def windows_beside_activity(metrics: dict[str, Any]) -> Figure:
    """Per layer: the adaptive window (bars) and the activity of the trained network before adapting (line), first seed."""
    adaptive = next(iter(metrics["seeds"].values()))["adaptive"]
    layers = list(adaptive["windows"])
    figure, axes = axes_of()
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
    figure, axes = axes_of()
    for name, points in metrics["tradeoff"].items():
        axes.plot(
            [point[0] for point in points], [point[1] for point in points], lw=1.2, ms=4, alpha=0.8, mfc="none", label=f"{name}, not retrained", **STYLE[name]
        )
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
    figure, axes = axes_of()
    names = list(dict.fromkeys(row["allocator"] for row in metrics["rows"]))
    for name, retrained in itertools.product(names, (False, True)):
        points = sorted((row["mean"], row["accuracy"]) for row in metrics["rows"] if (row["allocator"], row["retrained"]) == (name, retrained))
        if points:
            how: dict[str, Any] = {"ls": "none", "ms": 10, "markerfacecolor": "none"} if retrained else {"lw": 1.4, "ms": 6}
            label = name.replace("activity_root", "root of activity") + (", retrained" if retrained else "")
            axes.plot(*zip(*points, strict=True), label=label, **how, **STYLE[name])
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
    figure, axes = axes_of(height=4.4)
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


def windows_by_allocator(windows: dict[str, dict[str, int]], paper: int) -> Figure:
    """Fig. 5 of the paper: the window of every layer, by allocator; a line at the longest window that the paper reports."""
    figure, axes = axes_of(width=9, height=4.4)
    layers = list(next(iter(windows.values())))
    wide = 0.8 / len(windows)
    for index, (name, steps) in enumerate(windows.items()):
        places = [layer + (index - (len(windows) - 1) / 2) * wide for layer in range(len(layers))]
        label = name.replace("activity_root", "root of activity")
        axes.bar(places, steps.values(), width=wide, color=STYLE[name]["color"], edgecolor="white", hatch=("", "///", "...")[index % 3], label=f"by {label}")
    axes.axhline(paper, color="black", ls=":", label=f"longest window of the paper ({paper})")
    axes.set(ylabel="time window (steps)", xticks=range(len(layers)))
    axes.set_xticklabels(layers, rotation=60, ha="right", fontsize=8)
    axes.legend(fontsize=8)
    return figure


def energy_by_regime(found: dict[str, Any]) -> Figure:
    """Fig. 8(a) of the paper: energy relative to the ANN's of the same regime, without memory and with it, on logarithmic axes."""
    names = list(found["networks"])
    regimes = list(found["networks"][names[0]]["energy"])
    figure, panels = axes_of(width=11, height=4.4, ncols=2, sharey=True)
    wide = 0.8 / len(names)
    for axes, memory in zip(panels, (False, True), strict=True):
        for index, name in enumerate(names):
            row = found["networks"][name]
            values = [
                (row["energy"][r] + memory * row["memory"][r]) / (row["ann_energy"][r] + memory * row["ann_memory"][r]) for r in regimes
            ]  # fmt: skip
            places = [place + (index - (len(names) - 1) / 2) * wide for place in range(len(regimes))]
            color = "#D55E00" if "adapted" in name else "#0072B2"
            axes.bar(
                places,
                values,
                width=wide,
                color=color,
                edgecolor="white",
                alpha=1 - 0.7 * index / len(names),
                hatch="" if "adapted" in name else "///",
                label=name,
            )
        axes.axhline(1, color="black", lw=1)
        axes.set(yscale="log", xticks=range(len(regimes)), xticklabels=regimes, title="with memory traffic" if memory else "without memory")
    panels[0].set_ylabel("energy relative to the ANN")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    return figure


def prices(table: Mapping[str, tuple[float, ...]]) -> Figure:
    """Fig. 8(b) of the paper: the energy of a multiplication and of an addition, by regime."""
    figure, axes = axes_of()
    for index, (name, color, hatch) in enumerate((("multiplication", "#0072B2", "///"), ("addition", "#E69F00", ""))):
        bars = axes.bar(
            [place + 0.4 * index - 0.2 for place in range(len(table))], [row[index] for row in table.values()], 0.4, color=color, hatch=hatch, label=name
        )
        axes.bar_label(bars, fmt="%g", fontsize=8)
    axes.set(xticks=range(len(table)), xticklabels=list(table), ylabel="energy (pJ), 45 nm", yscale="log")
    axes.legend()
    return figure


def tradeoff_front(found: dict[str, Any]) -> Figure:
    """Accuracy on held-out images against the sum of the windows, and against energy: every point by allocator, the Pareto front, and what was chosen."""
    figure, panels = axes_of(width=11, height=4.2, ncols=2, sharey=True)
    points = found["points"]
    sums, energies = [point["latency"]["sum"] for point in points], [point["energy"]["INT8"] for point in points]
    for axes, label, cost in (
        (panels[0], "steps of one inference (sum of the windows)", sums),
        (panels[1], "energy of one inference, INT8 without memory (nJ)", energies),
    ):
        for name in dict.fromkeys(point["allocator"] for point in points):
            chosen = [(at, point["accuracy"]) for at, point in zip(cost, points, strict=True) if point["allocator"] == name]
            axes.plot(*zip(*chosen, strict=True), ls="none", ms=6, mfc="none", label=name.replace("activity_root", "root of activity"), **STYLE[name])
        front, best = found["front"], found["chosen"]
        axes.plot([cost[i] for i in front], [points[i]["accuracy"] for i in front], color="black", lw=1, zorder=0, label="Pareto front")
        axes.plot(cost[best], points[best]["accuracy"], ls="none", marker="*", ms=16, color="#000000", mfc="#F0E442", label="chosen")
        axes.set(xlabel=label, xscale="log")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy on held-out images (%)")
    panels[0].set_title(f"the front is that of accuracy and {found['cost']}", fontsize=9, loc="left")
    panels[1].legend(loc="lower right", fontsize=8)
    return figure


def activity_and_accuracy(found: dict[str, Any], kind: str) -> Figure:
    """Fig. 3 of the paper: per layer its activity (bars), and the accuracy with that layer alone disturbed (line, 95 % interval over images)."""
    layers, measured = list(found["layers"]), found["vulnerability"][kind]
    figure, axes = axes_of(height=4.4)
    bars = axes.bar(range(len(layers)), [row["activity"] for row in found["layers"].values()], color="#E69F00", width=0.6, label="spiking activity")
    axes.set(ylabel="spiking activity (spikes per step)", xticks=range(len(layers)))
    axes.set_xticklabels(layers, rotation=60, ha="right", fontsize=8)
    right = axes.twinx()
    accuracy = measured["accuracy"]
    error = [
        [a - low for a, (low, _) in zip(accuracy, measured["interval"], strict=True)],
        [h - a for a, (_, h) in zip(accuracy, measured["interval"], strict=True)],
    ]
    line = right.errorbar(range(len(layers)), accuracy, yerr=error, color="#0072B2", marker="o", capsize=3, label="accuracy, this layer disturbed")
    clean = right.axhline(found["clean"], color="black", ls=":", label="accuracy, undisturbed")
    right.set(ylabel="accuracy (%)")
    axes.legend(handles=[bars, line, clean], loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=3, frameon=False, fontsize=9)
    return figure


def spike_raster(raster: dict[str, Any]) -> Figure:
    """Spikes of one image through the layers: a panel a layer, each as wide as its own time window."""
    layers = raster["layers"]
    widths = [max(2, layer["window"]) for layer in layers.values()]
    figure, panels = axes_of(ncols=len(layers), width_ratios=widths, squeeze=False)
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


def engine_speeds(rows: list[dict[str, Any]]) -> Figure:
    """Images a second against the window, a line per contender, a panel per network; the ANN's is level."""
    networks = list(dict.fromkeys(row["network"] for row in rows))
    figure, panels = axes_of(4.5 * len(networks) + 2, 4.2, ncols=len(networks), squeeze=False)
    for axes, network in zip(panels[0], networks, strict=True):
        for number, name in enumerate(dict.fromkeys(row["contender"] for row in rows if row["network"] == network)):
            found = sorted((row["window"], row["images_per_second"]) for row in rows if row["network"] == network and row["contender"] == name)
            windows, speeds = zip(*found, strict=True)
            if name.startswith("ann"):
                axes.axhline(speeds[0], color="#555555", linestyle="--" if name == "ann" else ":", label=name)
            else:
                axes.plot(windows, speeds, marker="osv^D<>pXP*h"[number % 12], linestyle="-" if number < 10 else "--", color=f"C{number % 10}", label=name)
        axes.set(xscale="log", yscale="log", xlabel="time window (steps)", ylabel="images a second", title=network)
        measured = sorted({row["window"] for row in rows if row["network"] == network})
        axes.set_xticks(measured, [str(window) for window in measured])
        axes.set_xticks([], minor=True)
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
