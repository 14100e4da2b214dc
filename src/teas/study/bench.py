"""Contenders side by side, one process each, in one run: nothing is shown unless every one answers as the reference does."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from teas.engine import ENGINES
from teas.errors import TeasError, check_choice
from teas.spiking.network import SpikingNetwork
from teas.study.bench_contender import CONTENDERS, OURS, TRAINING, Task
from teas.study.bench_networks import NETWORKS, multiplications
from teas.study.bench_peers import PEERS

Say = Callable[[str], None]
LIMIT = 900  # seconds that one contender may take


def tasks(networks: Iterable[str], windows: Iterable[int], names: Iterable[str], **shared: Any) -> list[Task]:
    """Every contender at every network and window; an ANN once a network, whatever the windows. Raises `TeasError` for unknown names."""
    found = []
    for network in networks:
        check_choice("network", network, tuple(NETWORKS))
        for name in names:
            check_choice("contender", name, CONTENDERS + TRAINING)
            for number, window in enumerate(windows):
                if window < 1:
                    raise TeasError(f"a window is {window}; it must be at least 1")
                if not (name.startswith("ann") and number):
                    found.append(Task(name, network, window, **{**shared, "weights": shared["weights"] if network == "resnet20" else None}))
    return found


def run(todo: list[Task], say: Say) -> dict[str, Any]:
    """Run each task in a process of its own; raises `TeasError` where one's answers are wrong. One that isn't installed is left out, and said."""
    rows = []
    for task in todo:
        if task.weights and not Path(task.weights).is_file():
            raise TeasError(f"there is no file of weights {task.weights}")
        say(f"{task.network}, T = {task.window}: {task.contender}")
        found = _measured(task)
        if "wrong" in found:
            raise TeasError(f"{task.contender} on {task.network} at T = {task.window}: {found['wrong']}; no figures are shown")
        if "missing" in found:
            say(f"  left out: {found['missing']}")
            continue
        middle = statistics.median(found["seconds"])
        rows.append({
            "network": task.network, "window": task.window, "contender": task.contender, "images_per_second": task.batch / middle, "median_seconds": middle,
            "fastest": min(found["seconds"]), "slowest": max(found["seconds"]), "rounds": len(found["seconds"]), "peak_mib": found["peak_mib"],
            "added_mib": found["added_mib"],
        })  # fmt: skip
    first = todo[0]
    return {"rows": rows, "machine": machine(first.threads), "batch": first.batch, "threads": first.threads, "weights": first.weights or "random"}


def _measured(task: Task) -> dict[str, Any]:
    command = [sys.executable, "-m", "teas.study.bench_contender", json.dumps(asdict(task))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"missing": f"it took more than {LIMIT} s"}
    if done.returncode:
        return {"missing": f"it failed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}"}
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def machine(threads: int) -> dict[str, float]:
    """What the machine can do, measured: 10^9 multiply-accumulates a second in a large float32 matrix product, and GB/s of a large sum."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
        x = torch.ones(32 * 2**20)
        product, total = _best(lambda: a @ b), _best(lambda: x.sum())
    finally:
        torch.set_num_threads(before)
    return {"fp32_gmac_per_second": 1024**3 / product / 1e9, "read_gb_per_second": x.numel() * 4 / total / 1e9}


def _best(work: Callable[[], Any]) -> float:
    spent = []
    for _ in range(7):
        start = time.perf_counter()
        work()
        spent.append(time.perf_counter() - start)
    return min(spent)


def with_ratios(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows with the speed over the fastest peer's at the same network and window, the time over the float32 ANN's, and the share of the roofline.

    That share is of the float32 multiply-accumulates that one pass of the ANN takes, whatever the contender computes instead.
    """
    rows = []
    passes = {name: multiplications(name) for name in {row["network"] for row in results["rows"]}}
    for row in results["rows"]:
        alike = [other for other in results["rows"] if other["network"] == row["network"]]
        peers = [other["images_per_second"] for other in alike if other["contender"] in PEERS and other["window"] == row["window"]]
        ann = next((other["median_seconds"] for other in alike if other["contender"] == "ann"), None)
        trained = next((other for other in alike if other["contender"] == "train_spikingjelly_multistep"), None)
        over_peers = row["images_per_second"] / max(peers) if peers and row["contender"] in OURS else None
        extra = {"over_fastest_peer": over_peers, "time_over_ann": row["median_seconds"] / ann if ann and row["contender"] not in TRAINING else None}
        if trained and row["contender"] in TRAINING:
            extra |= {"over_fastest_peer": row["images_per_second"] / trained["images_per_second"], "memory_over_peer": row["added_mib"] / trained["added_mib"]}
        if row["contender"] not in TRAINING:
            extra["of_roofline"] = row["images_per_second"] * passes[row["network"]] / 1e9 / results["machine"]["fp32_gmac_per_second"]
        rows.append({**row, **extra})
    return rows


def engines_table(network: SpikingNetwork, device: str = "cpu") -> list[tuple[str, list[str]]]:
    """Every engine with all its reasons why it can't run the network, in the order of `auto`; none where it can."""
    return [(engine.name, engine.why_not(network, torch.device(device))) for engine in ENGINES]
