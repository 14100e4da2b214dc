"""One contender in a process of its own: build it, check what it answers, time it, and print what was found as JSON."""

from __future__ import annotations

import copy
import ctypes
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from teas.engine import choose_engine
from teas.study import bench_networks, bench_training
from teas.study.bench_peers import PEERS

OURS = {
    "count_int8": "two_phase", "count": "two_phase", "reference_two_phase": "two_phase", "event": "pass", "event_first": "first", "event_even": "even",
    "reference": "pass",
}  # fmt: skip
PLAIN = ("ann", "ann_int8")
CONTENDERS = (*PEERS, *PLAIN, *OURS)
TRAINING = tuple(bench_training.STEPS)
_CHECKED = 4  # images that are compared with the reference's answer
_MMAP_THRESHOLD, _AT_ONCE, _USUAL = -3, 2**20, 2**25  # mallopt's number of the size from which blocks go back at once, and two such sizes
_LEVELS = 255  # of an activation in 8 bits
Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Task:
    """What one process is to measure."""

    contender: str
    network: str
    window: int
    batch: int
    threads: int
    seconds: float
    weights: str | None = None


def contender(task: Task) -> tuple[list[Run], Run]:
    """What is timed (the fastest counts), and what it must answer as."""
    ann, base = bench_networks.network(task.network, task.window, Path(task.weights) if task.weights else None)
    if task.contender == "ann":
        last = copy.deepcopy(ann).to(memory_format=torch.channels_last)
        return [ann, lambda inputs: last(inputs.contiguous(memory_format=torch.channels_last))], ann
    if task.contender == "ann_int8":  # activations and weights in 8 bits: what two-phase firing computes in a window of 255
        base = bench_networks.variant(bench_networks.network(task.network, _LEVELS, Path(task.weights) if task.weights else None)[1], "two_phase")
        return [_engine(base, "count_int8")], _engine(base, "reference")
    if task.contender in PEERS:
        reference = bench_networks.variant(base, "zero") if task.contender.startswith("norse") else base
        return [PEERS[task.contender](base, task.window)], _engine(reference, "reference")
    found = bench_networks.variant(base, OURS[task.contender])
    name = "reference" if task.contender.startswith("reference") else task.contender.split("_")[0] if OURS[task.contender] != "two_phase" else task.contender
    return [_engine(found, name)], _engine(found, "reference")


def _engine(network: Any, name: str) -> Run:
    run = choose_engine(network, "cpu", name).prepare(network, "nothing")
    return lambda inputs: run(inputs).logits


@torch.no_grad()
def measure(task: Task) -> dict[str, Any]:
    """Times of all rounds in seconds and the peak of memory in MiB, or why there are none."""
    torch.set_num_threads(task.threads)
    _map_from(_AT_ONCE)
    if task.contender in TRAINING:
        return _rounds(task, [bench_training.STEPS[task.contender](task.window, task.batch)])
    try:
        runs, reference = contender(task)
    except ImportError as error:
        return {"missing": f"{error}; install the extra: pip install 'teas[bench]'"}
    inputs = bench_networks.images(task.network, task.batch)
    wanted = reference(inputs[:_CHECKED])
    for run in runs:
        found = run(inputs[:_CHECKED])
        error_ = float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))
        if not error_ < 1e-4:
            return {"wrong": f"its answers are {error_:.2g} away from the reference's, relative to the largest"}
    return _rounds(task, [lambda run=run: run(inputs) for run in runs])  # type: ignore[misc]


def _rounds(task: Task, runs: list[Callable[[], Any]]) -> dict[str, Any]:
    best: list[float] = []
    before, peak = _peak(runs[0])
    _map_from(_USUAL)
    for run in runs:
        run()  # the first warms up
        spent: list[float] = []
        while len(spent) < 3 or (sum(spent) < task.seconds and len(spent) < 50):
            start = time.perf_counter()
            run()
            spent.append(time.perf_counter() - start)
            if sum(spent) > 3 * task.seconds:
                break
        if not best or statistics.median(spent) < statistics.median(best):
            best = spent
    return {"seconds": best, "peak_mib": peak, "added_mib": peak - before}


def _memory(what: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at its peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) / 1024


def _peak(run: Callable[[], Any]) -> tuple[float, float]:
    """MiB in use before a round, and at its peak. What building the network took is forgotten, and what libraries take when first used."""
    run()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    run()
    return before, _memory("VmHWM")


def _map_from(size: int) -> None:
    """Blocks of `size` bytes and more go back to the system when they are freed. All large ones do while memory is measured, so that the peak
    is what is in use, not what the allocator keeps in pieces of the wrong size; asking again takes time, so that fewer do in the timed rounds.
    """
    ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, size)


if __name__ == "__main__":
    asked = Task(**json.loads(sys.argv[1]))
    print(json.dumps({"task": asdict(asked), **measure(asked)}))
