"""Training through time, in stages that can be interrupted: pre-train, retrain with adjusted windows, fine-tune."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from teas.adapt import checkpoint as checkpoints
from teas.adapt.memory import explained, peak_memory
from teas.adapt.objective import LOSSES, REGULARISERS, cross_entropy, parameters_per_layer, per_step_cross_entropy, regulariser
from teas.adapt.schedule import Adjustment, sensitivity
from teas.errors import TeasError, check_choice
from teas.spiking.network import SpikingNetwork
from teas.spiking.time_windows import TimeWindows

Progress = Callable[[Iterable[Any], str], Iterable[Any]]
PRECISIONS = ("float32", "bfloat16")
SENSITIVITY_SAMPLES = 500


@dataclass(frozen=True)
class Stage:
    """One stage of training at a constant or cosine-annealed learning rate (Adam, betas 0.9 and 0.99 as in Table 1).

    strength: `λ` of Eq. 8. scale: factor on the logits in Eq. 7. loss: `rate` (Eq. 7), or `per_step` (temporal efficient training).
    window: uniform window that the stage sets first, None to keep the network's. adjustment: shrink windows during the stage and to their
    goal at its end. parts: each batch goes through in so many parts whose gradients are accumulated: less memory, the same step but for
    statistics that are taken per part (batch norm, the regulariser's weights). recompute: keep trains alone, as bits, and run each layer
    again in the backward pass: less memory, the same step to the bit. precision: of the synapses; potentials and weights stay in float32.
    """

    name: str
    epochs: int
    learning_rate: float
    anneal: bool = True
    regulariser: str = "none"
    strength: float = 0.0
    scale: float = 1.0
    weight_decay: float = 0.0
    window: int | None = None
    adjustment: Adjustment | None = None
    loss: str = "rate"
    parts: int = 1
    recompute: bool = False
    precision: str = "float32"

    def __post_init__(self) -> None:
        check_choice("regulariser", self.regulariser, REGULARISERS)
        check_choice("loss", self.loss, LOSSES)
        check_choice("precision", self.precision, PRECISIONS)
        if self.parts < 1:
            raise TeasError(f"parts is {self.parts}; a batch has at least one part")

    def rate(self, progress: float) -> float:
        """Learning rate when `progress` epochs of the stage are over."""
        return self.learning_rate * (1 + math.cos(math.pi * progress / self.epochs)) / 2 if self.anneal else self.learning_rate


@dataclass
class Epoch:
    """What happened in one epoch: loss, training accuracy in percent, activity and windows per layer while it ran.

    validation: accuracy after it on held-out data, where asked for. samples_per_second: of all processes. memory: the largest in use so far
    on this process's device, in MiB (of the whole process on a CPU).
    """

    stage: str
    number: int
    loss: float
    accuracy: float
    activity: dict[str, float] = field(default_factory=dict)
    windows: dict[str, int] = field(default_factory=dict)
    validation: float | None = None
    samples_per_second: float = 0.0
    memory: float = 0.0

    def lasting(self) -> dict[str, Any]:
        """Everything but speed and memory, which are the machine's: the same again in every run of one experiment."""
        return {key: value for key, value in asdict(self).items() if key not in ("samples_per_second", "memory")}


def run_stage(
    network: SpikingNetwork,
    data: DataLoader[Any],
    stage: Stage,
    *,
    accelerator: Accelerator | None = None,
    checkpoint: Path | None = None,
    progress: Progress = lambda batches, _: batches,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    validate: Callable[[SpikingNetwork], float] | None = None,
) -> list[Epoch]:
    """Train a network in place through one stage and return what each epoch did.

    data: a loader of `(inputs [batch, *shape], labels [batch])`; its sampler gets `set_epoch` where it has one.
    checkpoint: a folder that is written after every epoch; a stage that finds its own there continues, to bit-identical results on one CPU.
    validate: accuracy in percent, measured after every epoch at the windows that follow it.
    Raises `TeasError` where the loss is not finite or the memory runs out (the checkpoint keeps the last good epoch).
    """
    accelerator = accelerator or Accelerator()
    if stage.window:
        network.windows = TimeWindows.uniform(network.spiking_layers, stage.window)
    optimizer = torch.optim.Adam(network.parameters(), stage.learning_rate, betas=(0.9, 0.99), weight_decay=stage.weight_decay)
    model, optimizer, loader = accelerator.prepare(network, optimizer, data)
    kept = checkpoints.restore(accelerator, network, checkpoint, asdict(stage)) if checkpoint else []
    history = [Epoch(**epoch) for epoch in kept]
    network.recompute = stage.recompute
    for number in range(len(history), stage.epochs):
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(number)
        epoch = _run_epoch(accelerator, model, network, optimizer, progress(loader, f"{stage.name} {number + 1}/{stage.epochs}"), stage, number)
        _check_finite(network, epoch, stage)
        if stage.adjustment:
            network.windows = _adjusted(accelerator, network, loader, epoch, stage, stage.adjustment)
        if validate:
            epoch.validation = validate(network)
        history.append(epoch)
        if checkpoint:
            checkpoints.save(accelerator, network, checkpoint, asdict(stage), [asdict(epoch) for epoch in history])
        on_epoch(epoch)
    network.recompute = False
    accelerator.free_memory(model, optimizer, loader)
    return history


def _run_epoch(  # type: ignore[no-untyped-def]
    accelerator: Accelerator, model, network: SpikingNetwork, optimizer, loader, stage: Stage, number: int
) -> Epoch:
    model.train()
    sizes = parameters_per_layer(network)
    steps = max(1, len(loader)) if hasattr(loader, "__len__") else 1
    totals = torch.zeros(3 + len(sizes), dtype=torch.float64, device=accelerator.device)
    start = time.perf_counter()
    for index, (inputs, labels) in enumerate(loader):
        for group in optimizer.param_groups:
            group["lr"] = stage.rate(number + index / steps)
        optimizer.zero_grad()
        parts = list(zip(inputs.chunk(stage.parts), labels.chunk(stage.parts), strict=True))
        with explained(len(labels), stage.parts, network.windows):
            for part in parts:
                # Processes exchange gradients once, with the last part.
                with contextlib.nullcontext() if part is parts[-1] else accelerator.no_sync(model):
                    loss, seen = _loss(accelerator, model, network, *part, stage, sizes)
                    accelerator.backward(loss * (len(part[1]) / len(labels)))
                totals += seen
        optimizer.step()
    totals = accelerator.reduce(totals, "sum").cpu()
    if totals[2] == 0:
        raise TeasError("the training data is empty: no batch came from the loader")
    means = (totals / totals[2]).tolist()
    speed = totals[2].item() / (time.perf_counter() - start)
    activity = dict(zip(sizes, means[3:], strict=True))
    return Epoch(stage.name, number, means[0], 100 * means[1], activity, dict(network.windows), None, speed, peak_memory(accelerator.device))


def _loss(  # type: ignore[no-untyped-def]
    accelerator: Accelerator, model, network: SpikingNetwork, inputs: Tensor, labels: Tensor, stage: Stage, sizes: Mapping[str, int]
) -> tuple[Tensor, Tensor]:
    """The objective (Eq. 8) on one part of a batch, and its sums: loss, right answers, samples, activity of every layer."""
    with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=stage.precision == "bfloat16"):
        output = model(inputs)
        by_step = network.outputs_by_step(output.record) if stage.loss == "per_step" else None
    loss = cross_entropy(output.logits, labels, stage.scale) if by_step is None else per_step_cross_entropy(by_step, labels, stage.scale)
    activity = {layer: record.activity for layer, record in output.record.items()}
    observed = torch.stack([rate.detach() for rate in activity.values()])
    if stage.regulariser != "none":
        everywhere = accelerator.reduce(observed.clone(), "mean")
        loss = loss + stage.strength * regulariser(activity, everywhere, sizes, stage.regulariser)
    right = (output.logits.detach().argmax(1) == labels).sum()
    samples = torch.tensor(len(labels), device=right.device)
    return loss, torch.cat([torch.stack([loss.detach() * len(labels), right, samples]), observed * len(labels)])


def _check_finite(network: SpikingNetwork, epoch: Epoch, stage: Stage) -> None:
    if not math.isfinite(epoch.loss) or not all(p.isfinite().all() for p in network.parameters()):
        # A NaN potential never reaches its threshold, so the loss alone can look healthy while the weights are not.
        raise TeasError(
            f"the training diverged in epoch {epoch.number + 1} of stage {stage.name!r} (loss {epoch.loss:g}, or weights that are not finite); "
            f"lower the learning rate ({stage.learning_rate:g}). The checkpoint keeps the epoch before."
        )


def _adjusted(accelerator: Accelerator, network: SpikingNetwork, loader: Iterable[Any], epoch: Epoch, stage: Stage, plan: Adjustment) -> TimeWindows:
    """The windows after an epoch, by the score that the plan asks for."""
    score = epoch.activity
    if plan.score == "activity_sensitivity" and plan.due(epoch.number, stage.epochs):
        probes, count = [], 0
        for inputs, _ in loader:
            probes.append(inputs)
            count += len(inputs)
            if count * accelerator.num_processes >= SENSITIVITY_SAMPLES:
                break
        found = sensitivity(network, probes)
        damage = accelerator.reduce(torch.tensor(list(found.values()), device=accelerator.device), "mean").tolist()
        score = {layer: rate * value for (layer, rate), value in zip(score.items(), damage, strict=True)}
    return plan.adjusted(network.windows, score, epoch.number, stage.epochs)
