"""What the report page shows beside its table: the trade-off to move along, energy by regime, and spikes to step through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from teas.spiking.time_windows import TimeWindows
from teas.study.energy import REGIMES
from teas.study.metrics import spread

Rows = list[list[str]]


def page_data(folder: Path, metrics: dict[str, Any]) -> dict[str, Any]:
    """Data of the interactive parts, anything JSON; a part that the run folder has nothing for is None."""
    raster = _read(folder / "raster.json") or _read(folder / "explore" / "raster.json")
    return {"tradeoff": _tradeoff(folder, metrics), "raster": raster, "regimes": list(REGIMES)}


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def _tradeoff(folder: Path, metrics: dict[str, Any]) -> dict[str, Any] | None:
    explored = _read(folder / "explore" / "points.json")
    if explored:
        kept = ("allocator", "accuracy", "latency", "energy", "windows", "activity")
        points = [{key: point[key] for key in kept} for point in explored["points"]]
        for index, tested in explored["test"].items():
            points[int(index)]["test"] = tested["accuracy"]
        return {"images": "images held out of the training set", "points": points, "chosen": explored["chosen"], "cost": explored["cost"]}
    if metrics.get("kind") == "conversion":
        points = [
            {
                "allocator": row["allocator"] + (", retrained" if row["retrained"] else ""), "accuracy": row["accuracy"], "windows": row["windows"],
                "energy": row.get("energy", {}),
                "latency": {key: row[key] for key in ("mean", "max", "sum")}, "activity": metrics["activity"],
            }
            for row in metrics["rows"]
        ]  # fmt: skip
        return {"images": "test images", "points": points, "chosen": None, "cost": "sum"}
    points = []
    for name, curve in metrics.get("tradeoff", {}).items():
        for _, accuracy, steps in (point for point in curve if len(point) == 3):
            windows = TimeWindows(steps)
            latency = {"mean": windows.mean, "max": windows.max, "sum": windows.sum}
            points.append(
                {"allocator": name, "accuracy": accuracy, "windows": steps, "energy": {}, "latency": latency, "activity": metrics["trained_activity"]}
            )
    return {"images": "images held out of the training set", "points": points, "chosen": None, "cost": "sum"} if points else None


def energy_tables(metrics: dict[str, Any]) -> list[tuple[str, Rows]]:
    """Title and rows, network and nJ by regime with the ratio to the ANN in brackets: without memory, and with it."""
    networks = _networks(metrics)
    if not networks:
        return []
    tables = [("without memory", _rows(networks, ("energy",), ("ann_energy",)))]
    if all("memory" in found for found in networks.values()):
        tables.append(("with memory traffic, nothing reused", _rows(networks, ("energy", "memory"), ("ann_energy", "ann_memory"))))
    return tables


def _networks(metrics: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Energy in nJ by network, kind and regime, mean over the seeds."""
    if metrics.get("kind") == "conversion":
        return {f"{row['allocator']}, mean {row['target']:g}{', retrained' if row['retrained'] else ''}": row for row in metrics["rows"] if "energy" in row}
    if (
        metrics.get("kind") == "ablation"
        or "arms" not in metrics
        or not all("energy" in found for arms in metrics["seeds"].values() for found in arms.values() if isinstance(found, dict))
    ):
        return {}
    seeds = list(metrics["seeds"].values())
    kinds = ("energy", "memory", "ann_energy", "ann_memory", "quantised_ann_energy")
    return {
        arm: {kind: {regime: spread(seed[arm][kind][regime] for seed in seeds)[0] for regime in seeds[0][arm][kind]} for kind in kinds if kind in seeds[0][arm]}
        for arm in metrics["arms"]
    }


def _rows(networks: dict[str, dict[str, dict[str, float]]], ours: tuple[str, ...], base: tuple[str, ...]) -> Rows:
    first = next(iter(networks.values()))
    anns = {regime: sum(first[kind][regime] for kind in base) for regime in REGIMES}
    rows = [["ANN of the same shape", *(_short(anns[regime]) for regime in REGIMES)]]
    for name, found in networks.items():
        values = {regime: sum(found[kind][regime] for kind in ours) for regime in REGIMES}
        rows.append([name, *(f"{_short(values[regime])} ({anns[regime] / values[regime]:.2f}x)" for regime in REGIMES)])
        quantised = found.get("quantised_ann_energy", {})
        if len(ours) == 1 and quantised:
            rows.append([f"ANN of as many levels as {name}", *(_short(quantised[regime]) if regime in quantised else "" for regime in REGIMES)])
    return rows


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
