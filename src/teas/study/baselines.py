"""Energy beside its baselines: the ANN, the ANN of as few bits, the spiking network at uniform windows; every regime, with and without memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from teas.spiking.time_windows import TimeWindows
from teas.study.energy import ACCESS, MULTIPLY, REGIMES, costs, count_operations, total
from teas.study.hooks import Hooks
from teas.study.subject import Subject

ORIGINAL = 2048  # steps of the networks that the paper starts from
PRICES = {
    regime: (MULTIPLY[regime][0], price["add"], price["mac"], ACCESS[regime], price["mac"] / price["add"])
    for regime, price in REGIMES.items()
}  # fmt: skip


def compare(subject: Subject, windows: Mapping[str, Mapping[str, int]], hooks: Hooks) -> dict[str, Any]:
    """Energy per image in nJ over 500 test images: of the ANN, and of the network at the original steps, these windows, and uniform ones of equal mean."""
    inputs = torch.cat([subject.data.test.__getitems__(list(range(start, start + 100)))[0] for start in range(0, 500, 100)])
    names = {f"uniform, {ORIGINAL} steps": TimeWindows.uniform(subject.full, ORIGINAL)}
    for name, steps in windows.items():
        chosen = TimeWindows(dict(steps))
        names[f"uniform, {round(chosen.mean)} steps"] = TimeWindows.uniform(subject.full, max(1, round(chosen.mean)))
        names[name] = chosen
    return {"images": len(inputs), "networks": {name: _measured(subject, chosen, inputs, name, hooks) for name, chosen in names.items()}}


def _measured(subject: Subject, windows: TimeWindows, inputs: Tensor, name: str, hooks: Hooks) -> dict[str, Any]:
    hooks.say(f"operations: {name}")
    network = subject.make(windows)
    operations = count_operations(network, inputs)
    whole = total(operations)
    return {
        **costs(network, operations), "mean": windows.mean, "spikes_per_synapse": whole.synaptic / max(1.0, whole.dense - whole.analog),
        "synaptic": whole.synaptic, "updates": whole.updates, "analog": whole.analog, "dense": whole.dense,
    }  # fmt: skip


def table(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: nJ and, in brackets, how many times less than the ANN of the same regime; then with memory."""
    header = ["network", "spikes a synapse", *(f"{regime}" for regime in REGIMES), *(f"{regime} with memory" for regime in REGIMES)]
    first = next(iter(found["networks"].values()))
    anns = (
        [f"{first['ann_energy'][regime]:.0f}" for regime in REGIMES],
        [f"{first['ann_energy'][regime] + first['ann_memory'][regime]:.0f}" for regime in REGIMES],
    )
    rows = [["ANN", "", *anns[0], *anns[1]]]
    for name, row in found["networks"].items():
        plain = [_ratio(row["energy"][regime], row["ann_energy"][regime]) for regime in REGIMES]
        whole = [_ratio(row["energy"][regime] + row["memory"][regime], row["ann_energy"][regime] + row["ann_memory"][regime]) for regime in REGIMES]
        rows.append([name, f"{row['spikes_per_synapse']:.2f}", *plain, *whole])
        if "adapted" in name:
            bits = [_ratio(row["energy"][r], row["quantised_ann_energy"][r]) if r in row["quantised_ann_energy"] else "" for r in REGIMES]
            rows.append(["  against an ANN of as many levels", "", *bits, *[""] * len(REGIMES)])
    return header, rows


def _ratio(energy: float, base: float) -> str:
    return f"{energy:.0f} ({base / energy:.2f}x)"


def findings(found: dict[str, Any]) -> list[str]:
    """In words: what each regime makes of the same spikes, and how few spikes the paper's gains need."""
    lines = [f"Energy in nJ per image over {found['images']} test images; in brackets how many times less than the ANN of that regime (below 1: more)."]
    for name, row in found["networks"].items():
        if "adapted" in name:
            gains = ", ".join(f"{regime} {row['ann_energy'][regime] / row['energy'][regime]:.2f}x" for regime in REGIMES)
            lines.append(f"{name}: {gains}; {row['spikes_per_synapse']:.2f} spikes a synapse and image.")
    for gain in (11.5, 22.9):
        needed = ", ".join(f"{regime} {price['mac'] / price['add'] / gain:.2f}" for regime, price in REGIMES.items())
        lines.append(f"A gain of {gain}x over the ANN needs, synapses alone, at most this many spikes a synapse: {needed}.")
    return lines
