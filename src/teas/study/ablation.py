"""What retraining, its regulariser and the misprints of the paper do: arms that start from one trained network (Figs. 6 and 7)."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from teas.adapt import allocation
from teas.adapt.activity import measure_activity
from teas.adapt.training import Stage
from teas.spiking.network import SpikingNetwork
from teas.study import data as datasets
from teas.study.ablation_arms import ARMS, AblationConfig
from teas.study.arms import full_network, stages, train_arm
from teas.study.config import Experiment
from teas.study.hooks import Hooks
from teas.study.metrics import evaluate, spread

BATCH = 500


def compare_arms(
    experiment: Experiment, ablation: AblationConfig, data: datasets.Data, accelerator: Accelerator, folder: Path, hooks: Hooks,
    data_folder: Path | None = None,
) -> tuple[dict[str, Any], SpikingNetwork]:  # fmt: skip
    """The content of metrics.json, and the network of the arm that counts (`regularised`, else the last one), first seed."""
    seeds: dict[str, Any] = {}
    networks: list[SpikingNetwork] = []
    counts = "regularised" if "regularised" in ablation.arms else ablation.arms[-1]
    for seed in experiment.seeds:
        hooks.say(f"seed {seed}")
        seeds[str(seed)], trained = _run_seed(seed, experiment, ablation, data, accelerator, folder, hooks, data_folder)
        networks.append(trained[counts])
    arms: dict[str, dict[str, Any]] = {
        arm: {
            "title": ARMS[arm].title,
            "accuracy": spread(trial["arms"][arm]["accuracy"] for trial in seeds.values()),
            "mean": spread(trial["arms"][arm]["mean"] for trial in seeds.values()),
        }
        for arm in ablation.arms
    }
    full = spread(trial["full"] for trial in seeds.values())
    found, wanted = arms[counts], experiment.expect
    met = found["accuracy"][0] >= wanted.accuracy and found["mean"][0] <= wanted.mean_window + 1e-9 and full[0] >= wanted.full_accuracy
    result = {
        "kind": "ablation", "name": experiment.name, "network": experiment.network.architecture, "expectation_met": met, "window": experiment.training.window,
        "samples": len(data.test), "held_out": len(data.validation), "full": full, "arms": arms, "seeds": seeds,
    }  # fmt: skip
    return result, networks[0]


def _run_seed(
    seed: int, experiment: Experiment, ablation: AblationConfig, data: datasets.Data, accelerator: Accelerator, folder: Path, hooks: Hooks,
    data_folder: Path | None,
) -> tuple[dict[str, Any], dict[str, SpikingNetwork]]:  # fmt: skip
    batches = datasets.loader(data.train, experiment.data.batch, shuffle_seed=seed)
    test, held_out = datasets.loader(data.test, BATCH), datasets.loader(data.validation, BATCH)
    pretraining, retraining, finetuning = stages(experiment)
    trains: dict[str, Any] = {"seed": seed, "accelerator": accelerator, "folder": folder, "hooks": hooks}

    def validate(network: SpikingNetwork) -> float:
        return evaluate(network, held_out, seed, accelerator).accuracy

    set_seed(seed)
    full = full_network(experiment, data, data_folder)
    train_arm(full, pretraining, batches, arm="full", **trains)
    found = measure_activity(full, ((inputs.to(accelerator.device), labels) for inputs, labels in datasets.loader(data.train.plain(), BATCH)))
    activity = {layer: value.activity for layer, value in found.items()}
    result: dict[str, Any] = {"full": evaluate(full, test, seed, accelerator).accuracy, "full_validation": validate(full), "activity": activity, "arms": {}}
    networks: dict[str, SpikingNetwork] = {}
    for name in ablation.arms:
        arm, network = ARMS[name], copy.deepcopy(full)
        networks[name] = network
        _set_surrogate(network, arm.surrogate or experiment.network.surrogate)
        limits = dict.fromkeys(activity, experiment.training.window)
        goal = allocation.by_activity(activity, limits, experiment.windows.mean, experiment.windows.exponent)
        network.windows = allocation.initial(activity, experiment.training.window, experiment.windows.exponent) if arm.trained else goal
        plan: list[Stage] = []
        if arm.trained:
            plan = [dataclasses.replace(stage, regulariser=arm.regulariser or experiment.training.regulariser) for stage in (retraining, finetuning)]
        epochs = train_arm(network, plan, batches, arm=name, validate=validate, **trains)
        _set_surrogate(network, experiment.network.surrogate)
        measured = evaluate(network, test, seed, accelerator)
        result["arms"][name] = {
            "accuracy": measured.accuracy, "mean": measured.latency.mean, "windows": dict(network.windows), "activity": measured.activity,
            "spikes": measured.spikes, "before": validate(full.with_windows(goal)), "by_epoch": [epoch.validation for epoch in epochs],
            "by_layer": _one_layer_after_another(network, experiment.training.window, validate), "epochs": [epoch.lasting() for epoch in epochs],
        }  # fmt: skip
    return result, networks


def _set_surrogate(network: SpikingNetwork, surrogate: str) -> None:
    for layer in network.spiking_layers:
        network.neurons(layer).surrogate = surrogate


@torch.no_grad()
def _one_layer_after_another(network: SpikingNetwork, window: int, validate: Any) -> list[float]:
    """Accuracy on held-out images with the first 1, 2, ... layers at their windows and all others at the full window."""
    accuracies, windows = [], dict.fromkeys(network.windows, window)
    for layer, steps in network.windows.items():
        windows[layer] = steps
        accuracies.append(validate(network.with_windows(dict(windows))))
    return accuracies
