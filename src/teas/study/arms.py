"""The network and the stages of an experiment, and the training of one of its arms."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

from teas.adapt.training import Epoch, Stage, run_stage
from teas.ann import architectures
from teas.exchange.weights import load_weights
from teas.spiking.network import SpikingNetwork
from teas.spiking.neuron import IF, LIF
from teas.study import data as datasets
from teas.study.config import Experiment
from teas.study.hooks import Hooks
from teas.study.suiting import check_suits


def build_module(experiment: Experiment, shape: tuple[int, ...], classes: int) -> torch.nn.Module:
    """The experiment's architecture with its neurons, freshly initialised."""
    config = experiment.network

    def neurons() -> IF:
        options: dict[str, Any] = {"reset": config.reset, "v0": config.v0, "surrogate": config.surrogate}
        if config.leak == 1 and not config.learn_leak:
            return IF(config.threshold, **options)
        return LIF(config.leak, config.threshold, learn_leak=config.learn_leak, **options)

    return architectures.build(config.architecture, shape, classes, neurons, config.design)


def full_network(experiment: Experiment, data: datasets.Data, data_folder: Path | None) -> SpikingNetwork:
    """The experiment's network at its full window, freshly initialised, or with the trained weights that the experiment names."""
    module = build_module(experiment, data.shape, data.classes)
    if experiment.network.weights:
        load_weights(module, (data_folder or Path()) / experiment.network.weights)
    network = SpikingNetwork(module, experiment.training.window, **asdict(experiment.semantics))
    check_suits(network, experiment.network.architecture, data)
    return network


def stages(experiment: Experiment) -> tuple[list[Stage], Stage, Stage]:
    """Pre-training (after a warm-up, if any; none of trained weights), retraining with adjustment, and fine-tuning, as the experiment sets them."""
    t = experiment.training
    shared: dict[str, Any] = {key: getattr(t, key) for key in ("scale", "weight_decay", "loss", "parts", "recompute", "precision")}
    regular: dict[str, Any] = {**shared, "regulariser": t.regulariser, "strength": t.strength}
    warmup = [Stage("warmup", t.warmup_epochs, t.warmup_rate, window=t.warmup_window, **shared)] if t.warmup_epochs else []
    pretraining = [*warmup, Stage("pretrain", t.pretrain_epochs, t.pretrain_rate, window=t.window, **shared)]
    return (
        [] if experiment.network.weights else pretraining,
        Stage("retrain", t.retrain_epochs, t.retrain_rate, anneal=False, adjustment=experiment.windows.adjustment, **regular),
        Stage("finetune", t.finetune_epochs, t.finetune_rate, **regular),
    )


def train_arm(
    network: SpikingNetwork,
    plan: Iterable[Stage],
    batches: DataLoader[Any],
    *,
    arm: str,
    seed: int,
    accelerator: Accelerator,
    folder: Path,
    hooks: Hooks,
    validate: Callable[[SpikingNetwork], float] | None = None,
) -> list[Epoch]:
    """Train a network in place through the stages of one arm, each with a checkpoint of its own in the run folder."""
    epochs: list[Epoch] = []
    for stage in plan:
        # Every stage starts from its own seed, so that a resumed run draws what an uninterrupted one draws.
        set_seed(seed)
        epochs += run_stage(
            network, batches, stage, accelerator=accelerator, checkpoint=folder / "checkpoints" / f"seed{seed}-{arm}-{stage.name}",
            progress=hooks.progress, on_epoch=lambda epoch: hooks.on_epoch(f"seed {seed} {arm}", epoch), validate=validate,
        )  # fmt: skip
    return epochs
