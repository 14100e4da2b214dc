"""Pictures of training: windows over epochs, and Figs. 6 and 7 of the paper from the metrics of an ablation."""

from __future__ import annotations

import statistics
from typing import Any

from matplotlib.figure import Figure

from teas.study.figures import axes_of

# Okabe-Ito; black for the network that was not retrained, as in the paper.
ARM_STYLE = {
    "not_retrained": {"color": "#000000", "marker": "s"},
    "retrained": {"color": "#0072B2", "marker": "^"},
    "regularised": {"color": "#D55E00", "marker": "o"},
    "literal_regulariser": {"color": "#CC79A7", "marker": "v"},
    "literal_surrogate": {"color": "#009E73", "marker": "D"},
}
LAYER_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"]


def windows_over_epochs(metrics: dict[str, Any]) -> Figure:
    """Time window of every layer in each epoch of the adaptive arm, a staircase a layer, and their mean; first seed."""
    epochs = metrics["epochs"]["adaptive"]
    figure, axes = axes_of()
    numbers = list(range(1, len(epochs) + 1))
    for index, layer in enumerate(epochs[0]["windows"]):
        steps, style = [epoch["windows"][layer] for epoch in epochs], ["-", "--", ":"][index // len(LAYER_COLOURS) % 3]
        axes.step(numbers, steps, where="mid", lw=1.5, ls=style, color=LAYER_COLOURS[index % len(LAYER_COLOURS)], label=layer)
    means = [statistics.fmean(epoch["windows"].values()) for epoch in epochs]
    axes.plot(numbers, means, color="black", lw=3, alpha=0.35, label="mean")
    frozen = next((number for number, epoch in zip(numbers, epochs, strict=True) if epoch["stage"] == "finetune"), None)
    if frozen:
        axes.axvline(frozen - 0.5, color="#999999", lw=1, ls=":")
        axes.text(frozen - 0.45, 0.98, "windows frozen", transform=axes.get_xaxis_transform(), va="top", fontsize=8, color="#555555")
    axes.set(xlabel="epoch of retraining", ylabel="time window (steps)", ylim=(0, None), xticks=_ticks(len(epochs)))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
    return figure


def windows_and_accuracy_by_layer(metrics: dict[str, Any]) -> Figure:
    """Fig. 6: per arm the window of every layer, and the accuracy as one layer after another takes its window; first seed, held-out images."""
    found = next(iter(metrics["seeds"].values()))
    layers, arms = list(found["activity"]), list(found["arms"])
    figure, (above, below) = axes_of(width=8, height=6, nrows=2, sharex=True)
    width = 0.8 / len(arms)
    for index, arm in enumerate(arms):
        at = [position + (index - (len(arms) - 1) / 2) * width for position in range(len(layers))]
        mean, deviation = metrics["arms"][arm]["accuracy"]
        label = f"{metrics['arms'][arm]['title']}: {mean:.2f}{f' ± {deviation:.2f}' if deviation else ''} %, mean {metrics['arms'][arm]['mean'][0]:.2f}"
        above.bar(at, [found["arms"][arm]["windows"][layer] for layer in layers], width=width, color=ARM_STYLE[arm]["color"], label=label)
        below.plot(range(len(layers)), found["arms"][arm]["by_layer"], lw=1.4, ms=6, mfc="none", **ARM_STYLE[arm])
    above.set(ylabel="time window (steps)")
    title = f"test accuracy of each network at its windows, {len(metrics['seeds'])} seed(s)"
    above.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8, frameon=False, title=title, title_fontsize=8, alignment="left")
    dotted = below.axhline(found["full_validation"], color="black", ls=":", lw=1, label=f"before retraining, every layer at {metrics['window']} steps")
    below.legend(handles=[dotted], loc="lower left", fontsize=8, frameon=False)
    below.set(
        ylabel="accuracy on held-out images (%)", xticks=range(len(layers)), xlabel="layers up to this one at their windows, the others at the full window"
    )
    below.set_xticklabels(layers)
    below.margins(y=0.15)
    below.grid(alpha=0.3)
    return figure


def accuracy_over_epochs(metrics: dict[str, Any]) -> Figure:
    """Fig. 7: accuracy on held-out images against epochs of retraining, a line an arm (mean) with a band from the worst to the best trial."""
    figure, axes = axes_of(height=4.4)
    trials = list(metrics["seeds"].values())
    for arm in (name for name in metrics["arms"] if trials[0]["arms"][name]["by_epoch"]):
        curves = [[trial["arms"][arm]["before"], *trial["arms"][arm]["by_epoch"]] for trial in trials]
        by_epoch, epochs = list(zip(*curves, strict=True)), range(len(curves[0]))
        title = f"{metrics['arms'][arm]['title']}, mean window {metrics['arms'][arm]['mean'][0]:.1f}"
        axes.plot(epochs, [statistics.fmean(values) for values in by_epoch], lw=1.6, ms=5, label=title, **ARM_STYLE[arm])
        axes.fill_between(epochs, [min(v) for v in by_epoch], [max(v) for v in by_epoch], color=ARM_STYLE[arm]["color"], alpha=0.18, lw=0)
    full = statistics.fmean(trial["full_validation"] for trial in trials)
    axes.axhline(full, color="black", ls=":", lw=1, label=f"before, every layer at {metrics['window']} steps")
    axes.set(xlabel="epochs of retraining (0: windows cut, not retrained)", ylabel="accuracy on held-out images (%)", xticks=_ticks(len(curves[0]), first=0))
    axes.grid(alpha=0.3)
    title = f"mean of {len(trials)} trials, band from the worst to the best"
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8, frameon=False, title=title, title_fontsize=8, alignment="left")
    return figure


def _ticks(count: int, first: int = 1) -> range:
    return range(first, first + count, max(1, count // 10))
