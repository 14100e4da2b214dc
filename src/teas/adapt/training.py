"""Training through time, in stages that can be interrupted: pre-train, retrain with adjusted windows, fine-tune."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch.utils.data import DataLoader

from teas.adapt import allocation
from teas.adapt.objective import REGULARISERS, cross_entropy, parameters_per_layer, regulariser
from teas.errors import TeasError, check_choice
from teas.files import write_atomically
from teas.spiking.network import SpikingNetwork
from teas.spiking.time_windows import TimeWindows

Progress = Callable[[Iterable[Any], str], Iterable[Any]]


@dataclass(frozen=True)
class Adjustment:
    """When and how windows shrink while the network learns.

    every: epochs between adjustments. layers: how many of the least active layers shrink each time. fraction: share of a window that goes.
    mean: target mean window. exponent: of activity in the allocation.
    """

    every: int
    layers: int
    fraction: float
    mean: float
    exponent: float


@dataclass(frozen=True)
class Stage:
    """One stage of training at a constant or cosine-annealed learning rate (Adam, betas 0.9 and 0.99 as in Table 1).

    strength: `λ` of Eq. 8. scale: factor on the logits in Eq. 7. adjustment: shrink windows during the stage and to their goal at its end.
    """

    name: str
    epochs: int
    learning_rate: float
    anneal: bool = True
    regulariser: str = "none"
    strength: float = 0.0
    scale: float = 1.0
    weight_decay: float = 0.0
    adjustment: Adjustment | None = None

    def __post_init__(self) -> None:
        check_choice("regulariser", self.regulariser, REGULARISERS)


@dataclass
class Epoch:
    """What happened in one epoch: loss, training accuracy in percent, activity and windows per layer."""

    stage: str
    number: int
    loss: float
    accuracy: float
    activity: dict[str, float] = field(default_factory=dict)
    windows: dict[str, int] = field(default_factory=dict)


def run_stage(
    network: SpikingNetwork,
    data: DataLoader[Any],
    stage: Stage,
    *,
    accelerator: Accelerator | None = None,
    checkpoint: Path | None = None,
    progress: Progress = lambda batches, _: batches,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
) -> list[Epoch]:
    """Train a network in place through one stage and return what each epoch did.

    data: a loader of `(inputs [batch, *shape], labels [batch])`; its sampler gets `set_epoch` where it has one.
    checkpoint: a folder that is written after every epoch; a stage that finds its own there continues, to bit-identical results on one CPU.
    Raises `TeasError` where the loss is not finite (the checkpoint keeps the last good epoch).
    """
    accelerator = accelerator or Accelerator()
    optimizer = torch.optim.Adam(network.parameters(), stage.learning_rate, betas=(0.9, 0.99), weight_decay=stage.weight_decay)
    model, optimizer, loader = accelerator.prepare(network, optimizer, data)
    history = _restore(accelerator, network, checkpoint, stage) if checkpoint else []
    sizes = parameters_per_layer(network)
    for number in range(len(history), stage.epochs):
        loader.set_epoch(number)
        epoch = _run_epoch(accelerator, model, network, optimizer, progress(loader, f"{stage.name} {number + 1}/{stage.epochs}"), stage, number, sizes)
        if not math.isfinite(epoch.loss) or not all(p.isfinite().all() for p in network.parameters()):
            # A NaN potential never reaches its threshold, so the loss alone can look healthy while the weights are not.
            raise TeasError(
                f"the training diverged in epoch {number + 1} of stage {stage.name!r} (loss {epoch.loss:g}, or weights that are not finite); "
                f"lower the learning rate ({stage.learning_rate:g}). The checkpoint keeps the epoch before."
            )
        history.append(epoch)
        if stage.adjustment:
            network.windows = _adjusted(network.windows, epoch, stage, stage.adjustment)
        if checkpoint:
            _save(accelerator, network, checkpoint, stage, history)
        on_epoch(epoch)
    accelerator.free_memory(model, optimizer, loader)
    return history


def _run_epoch(  # type: ignore[no-untyped-def]
    accelerator: Accelerator, model, network: SpikingNetwork, optimizer, loader, stage: Stage, number: int, sizes: Mapping[str, int]
) -> Epoch:
    model.train()
    steps = max(1, len(loader)) if hasattr(loader, "__len__") else 1
    totals = torch.zeros(3 + len(sizes), dtype=torch.float64, device=accelerator.device)
    for index, (inputs, labels) in enumerate(loader):
        if stage.anneal:
            rate = stage.learning_rate * (1 + math.cos(math.pi * (number + index / steps) / stage.epochs)) / 2
            for group in optimizer.param_groups:
                group["lr"] = rate
        output = model(inputs)
        loss = cross_entropy(output.logits, labels, stage.scale)
        activity = {layer: record.activity for layer, record in output.record.items()}
        observed = torch.stack([rate.detach() for rate in activity.values()])
        if stage.regulariser != "none":
            everywhere = accelerator.reduce(observed.clone(), "mean")
            loss = loss + stage.strength * regulariser(activity, everywhere, sizes, stage.regulariser)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        right = (output.logits.detach().argmax(1) == labels).sum()
        totals += torch.cat([torch.stack([loss.detach() * len(labels), right, torch.tensor(len(labels), device=right.device)]), observed * len(labels)])
    totals = accelerator.reduce(totals, "sum").cpu()
    if totals[2] == 0:
        raise TeasError("the training data is empty: no batch came from the loader")
    means = (totals / totals[2]).tolist()
    return Epoch(stage.name, number, means[0], 100 * means[1], dict(zip(sizes, means[3:], strict=True)), dict(network.windows))


def _adjusted(windows: TimeWindows, epoch: Epoch, stage: Stage, plan: Adjustment) -> TimeWindows:
    """The windows after an epoch: a step towards the goal when one is due, the goal itself at the end of the stage."""
    goal = allocation.by_activity(epoch.activity, windows, plan.mean, plan.exponent)
    done = epoch.number + 1
    if done == stage.epochs:
        return goal
    return allocation.adjust(windows, epoch.activity, goal, plan.layers, plan.fraction) if done % plan.every == 0 else windows


def _save(accelerator: Accelerator, network: SpikingNetwork, folder: Path, stage: Stage, history: list[Epoch]) -> None:
    """Write a checkpoint beside the old one, then swap: an interruption leaves the one or the other, whole."""
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    if accelerator.is_main_process:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(fresh))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise TeasError(f"cannot write the checkpoint {fresh}: {error}. The one of the epoch before is whole; make room and continue with --resume") from None
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        state = {"stage": asdict(stage), "windows": dict(network.windows), "history": [asdict(epoch) for epoch in history]}
        write_atomically(fresh / "stage.json", json.dumps(state))
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.replace(folder, old)
        os.replace(fresh, folder)
        shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


def _restore(accelerator: Accelerator, network: SpikingNetwork, folder: Path, stage: Stage) -> list[Epoch]:
    """Continue from a checkpoint of this stage, if there is one."""
    old = folder.with_name(folder.name + ".old")
    if not folder.exists() and old.exists():  # interrupted between the two renames of a swap
        folder = old
    if not folder.exists():
        return []
    state = json.loads((folder / "stage.json").read_text())
    if state["stage"] != asdict(stage):
        raise TeasError(f"{folder} was written with other settings of stage {stage.name!r}; use another output folder, or the settings it was started with")
    accelerator.load_state(str(folder))
    network.windows = TimeWindows(state["windows"])
    return [Epoch(**epoch) for epoch in state["history"]]
