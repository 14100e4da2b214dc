"""The table, the findings and the pictures of an ablation, for its report."""

from __future__ import annotations

from typing import Any

from teas.study import figures_training

HEADER = ["arm", "accuracy %", "mean window", "before retraining % (held out)", "spikes/image"]


def rows(metrics: dict[str, Any]) -> list[list[str]]:
    """One row an arm: mean ± standard deviation over the seeds."""
    trials = list(metrics["seeds"].values())
    full, deviation = metrics["full"]
    lines = [["full window", _figure(full, deviation), f"{metrics['window']:.2f}", "", ""]]
    for arm, found in metrics["arms"].items():
        before, spikes = (sum(trial["arms"][arm][key] for trial in trials) / len(trials) for key in ("before", "spikes"))
        lines.append([found["title"], _figure(*found["accuracy"]), f"{found['mean'][0]:.2f}", f"{before:.2f}", f"{spikes:.0f}"])
    return lines


def findings(metrics: dict[str, Any]) -> list[str]:
    """Each trained arm against the one that is not retrained, and against the regularised one, in points of test accuracy."""
    lines = []
    for base in ("not_retrained", "regularised"):
        for arm in metrics["arms"]:
            if base in metrics["arms"] and arm not in ("not_retrained", base):
                differences = [t["arms"][arm]["accuracy"] - t["arms"][base]["accuracy"] for t in metrics["seeds"].values()]
                mean = sum(differences) / len(differences)
                titles = metrics["arms"][arm]["title"], metrics["arms"][base]["title"]
                lines.append(f"{titles[0]} against {titles[1]}: {mean:+.2f} points, better in {sum(d > 0 for d in differences)} of {len(differences)} seeds.")
    return lines


def note(metrics: dict[str, Any]) -> str:
    """How to read the table."""
    return (
        f"{metrics['network']}, {metrics['samples']} test images, {len(metrics['seeds'])} seed(s), mean ± standard deviation; curves on "
        f"{metrics['held_out']} images held out of the training set. All arms of a seed start from one trained network."
    )


def pictures(metrics: dict[str, Any]) -> dict[str, tuple[str, Any, Any, str]]:
    """Per picture: title, how it is drawn, from what, and its caption."""
    shown: dict[str, tuple[str, Any, Any, str]] = {
        "by_layer": (
            "Windows and accuracy per layer (Fig. 6)", figures_training.windows_and_accuracy_by_layer, metrics,
            "Above: the window of every layer. Below: accuracy as one layer after another takes its window. First seed.",
        )
    }  # fmt: skip
    if any(found["by_epoch"] for found in next(iter(metrics["seeds"].values()))["arms"].values()):
        shown["by_epoch"] = (
            "Accuracy over epochs (Fig. 7)", figures_training.accuracy_over_epochs, metrics,
            "Mean over the trials; bands reach from the worst to the best.",
        )  # fmt: skip
    return shown


def _figure(mean: float, deviation: float) -> str:
    return f"{mean:.2f} ± {deviation:.2f}" if deviation else f"{mean:.2f}"
