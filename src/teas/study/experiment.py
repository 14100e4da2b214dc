"""One experiment from data to report. The body of `run_seed` is the data-flow diagram of the project."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration, PartialState
from accelerate.utils import set_seed

from teas.adapt import allocation
from teas.adapt.activity import measure_activity
from teas.adapt.training import Epoch, Stage
from teas.errors import TeasError
from teas.exchange.native import save_network
from teas.files import write_atomically
from teas.spiking.network import SpikingNetwork
from teas.spiking.time_windows import TimeWindows
from teas.study import data as datasets
from teas.study.ablation import compare_arms
from teas.study.arms import full_network, stages, train_arm
from teas.study.config import Experiment
from teas.study.conversion import convert_and_compare
from teas.study.hooks import Hooks
from teas.study.metrics import Metrics, evaluate, spread
from teas.study.plan import describe
from teas.study.precision import advise
from teas.study.run_folder import forget_unstarted, load_data, open_folder, read_metrics
from teas.study.teaching import add_answers, add_unlabelled, starting_network

EVALUATION_BATCH = 500


def is_main_process() -> bool:
    """Whether this process writes and speaks for all of them."""
    return bool(PartialState(cpu=_cpu_only()).is_main_process)


def _cpu_only() -> bool:
    """Accelerate joins several CPU processes into one group only when it is told that there is nothing but CPUs."""
    return not torch.accelerator.is_available()


def run_seed(
    seed: int, data: datasets.Data, experiment: Experiment, accelerator: Accelerator, folder: Path, hooks: Hooks, data_folder: Path | None = None
) -> dict[str, Any]:
    """Full network, adaptive network and controls for one seed: metrics by arm, epochs by arm, and the adaptive network."""
    batches = datasets.loader(data.train, experiment.data.batch, shuffle_seed=seed)
    training_data = datasets.loader(data.train, EVALUATION_BATCH)
    validation_data = datasets.loader(data.validation, EVALUATION_BATCH)
    test_data = datasets.loader(data.test, EVALUATION_BATCH)
    pretraining, retraining, finetuning = stages(experiment)
    epochs: dict[str, list[Epoch]] = {}
    metrics: dict[str, Metrics] = {}
    validation: dict[str, float] = {}

    def train(network: SpikingNetwork, arm: str, *plan: Stage) -> None:
        epochs[arm] = train_arm(network, plan, batches, arm=arm, seed=seed, accelerator=accelerator, folder=folder, hooks=hooks)
        metrics[arm] = evaluate(network, test_data, seed, accelerator)
        validation[arm] = evaluate(network, validation_data, seed, accelerator).accuracy

    set_seed(seed)
    full = full_network(experiment, data, data_folder)
    train(full, "full", *pretraining)

    adaptive = copy.deepcopy(full)
    activity = {layer: found.activity for layer, found in measure_activity(adaptive, _on(accelerator, training_data)).items()}
    adaptive.windows = allocation.initial(activity, experiment.training.window, experiment.windows.exponent)
    train(adaptive, "adaptive", retraining, finetuning)

    for control in experiment.controls:
        network = copy.deepcopy(full)
        network.windows = allocation.uniform(adaptive.windows) if control == "uniform" else allocation.shuffled(adaptive.windows, seed)
        train(network, control, dataclasses.replace(retraining, adjustment=None), finetuning)
    return {"metrics": metrics, "validation": validation, "epochs": epochs, "full": full, "network": adaptive, "trained_activity": activity}


def _on(accelerator: Accelerator, batches: Any) -> Any:
    return ((inputs.to(accelerator.device), labels) for inputs, labels in batches)


def run(
    experiment: Experiment, folder: Path, *, data_folder: Path | None = None, download: bool = False, resume: bool = False, hooks: Hooks | None = None
) -> dict[str, Any]:
    """Run an experiment into a folder and return its `metrics.json`.

    Raises `TeasError` where the folder exists (unless `resume` continues the same experiment) or the data can't be read.
    """
    hooks = hooks or Hooks()
    accelerator = Accelerator(cpu=_cpu_only(), dataloader_config=DataLoaderConfiguration(split_batches=True))
    if accelerator.is_main_process:
        open_folder(experiment, folder, data_folder, resume)
    accelerator.wait_for_everyone()
    try:
        return _run(experiment, folder, data_folder, download, accelerator, hooks)
    except TeasError:
        if accelerator.is_main_process:
            forget_unstarted(folder)
        raise


def _run(experiment: Experiment, folder: Path, data_folder: Path | None, download: bool, accelerator: Accelerator, hooks: Hooks) -> dict[str, Any]:
    if (folder / "metrics.json").exists():
        hooks.say(f"{folder} is finished already")
        return read_metrics(folder)
    data = add_unlabelled(load_data(experiment, data_folder, download), experiment, data_folder, download)
    for images in (data.train, data.validation, data.test, *filter(None, [data.lessons])):
        images.to(accelerator.device)
    advise(experiment, accelerator.device, hooks)
    start = starting_network(experiment, data, data_folder)
    data = add_answers(data, experiment, data_folder, folder, hooks)
    if experiment.conversion:
        result, network = convert_and_compare(experiment, experiment.conversion, data, data_folder, folder, accelerator.device, hooks, start)
        return _finish(result, network, folder, accelerator, keep_checkpoints=True)
    for line in describe(experiment, stages(experiment), len(data.train)):
        hooks.say(line)
    if experiment.ablation:
        result, network = compare_arms(experiment, experiment.ablation, data, accelerator, folder, hooks, data_folder)
        return _finish(result, network, folder, accelerator)
    runs = {}
    for seed in experiment.seeds:
        hooks.say(f"seed {seed}")
        runs[seed] = run_seed(seed, data, experiment, accelerator, folder, hooks, data_folder)
    result = summary(experiment, runs)
    first = runs[experiment.seeds[0]]
    result["tradeoff"] = tradeoff(first["full"], first["trained_activity"], data, experiment)
    if accelerator.is_main_process:
        write_atomically(folder / "raster.json", json.dumps(raster(first["network"], data)))
        write_atomically(folder / "throughput.json", json.dumps(_throughput(runs), indent=1))
    return _finish(result, first["network"], folder, accelerator)


def _finish(result: dict[str, Any], network: SpikingNetwork | None, folder: Path, accelerator: Accelerator, keep_checkpoints: bool = False) -> dict[str, Any]:
    """Write the network and, last of all, metrics.json, which marks a run as finished; then its checkpoints may go."""
    if accelerator.is_main_process:
        if network:
            save_network(network, folder / "weights.safetensors")
            write_atomically(folder / "windows.json", network.windows.to_json())
        write_atomically(folder / "metrics.json", json.dumps(result, indent=1))
        if not keep_checkpoints:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    accelerator.wait_for_everyone()
    return result


def _throughput(runs: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Per seed and arm: what each epoch took of time and memory on this machine."""
    return {
        str(seed): {
            arm: [{"stage": e.stage, "epoch": e.number, "samples_per_second": round(e.samples_per_second, 1), "memory_mib": round(e.memory)} for e in epochs]
            for arm, epochs in found["epochs"].items()
        }
        for seed, found in runs.items()
    }


def summary(experiment: Experiment, runs: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """The content of metrics.json: every figure by seed and arm, mean and spread by arm, and whether the expectation was met."""
    arms = list(next(iter(runs.values()))["metrics"])
    by_arm: dict[str, Any] = {}
    for arm in arms:
        found = [run["metrics"][arm] for run in runs.values()]
        by_arm[arm] = {
            "accuracy": spread(m.accuracy for m in found), "mean": spread(m.latency.mean for m in found), "weighted": spread(m.latency.weighted for m in found),
            "max": spread(m.latency.max for m in found), "sum": spread(m.latency.sum for m in found), "spikes": spread(m.spikes for m in found),
            "energy": {regime: spread(m.energy[regime] for m in found) for regime in found[0].energy},
            "ann_energy": {regime: spread(m.ann_energy[regime] for m in found) for regime in found[0].ann_energy},
        }  # fmt: skip
    wanted, adaptive, full = experiment.expect, by_arm["adaptive"], by_arm["full"]
    met = adaptive["accuracy"][0] >= wanted.accuracy and adaptive["mean"][0] <= wanted.mean_window + 1e-9 and full["accuracy"][0] >= wanted.full_accuracy
    return {
        "name": experiment.name,
        "expectation_met": met,
        "arms": by_arm,
        "seeds": {str(seed): {arm: asdict(m) for arm, m in run["metrics"].items()} for seed, run in runs.items()},
        "validation_accuracy": {str(seed): run["validation"] for seed, run in runs.items()},
        "epochs": {arm: [epoch.lasting() for epoch in epochs] for arm, epochs in next(iter(runs.values()))["epochs"].items()},
        "trained_activity": next(iter(runs.values()))["trained_activity"],
    }


def tradeoff(network: SpikingNetwork, activity: dict[str, float], data: datasets.Data, experiment: Experiment) -> dict[str, list[list[Any]]]:
    """Mean window, accuracy on held-out training data and windows, the trained network's windows swapped at inference without retraining."""
    batches = datasets.loader(data.validation, EVALUATION_BATCH)
    limits = dict.fromkeys(activity, experiment.training.window)
    curves: dict[str, list[list[Any]]] = {"uniform": [], "by activity": []}
    for steps in range(1, experiment.training.window + 1):
        chosen = {"uniform": TimeWindows.uniform(activity, steps), "by activity": allocation.by_activity(activity, limits, steps, experiment.windows.exponent)}
        for name, windows in chosen.items():
            curves[name].append([windows.mean, evaluate(network.with_windows(windows), batches).accuracy, dict(windows)])
    return curves


@torch.no_grad()
def raster(network: SpikingNetwork, data: datasets.Data, neurons: int = 40) -> dict[str, Any]:
    """Spikes of the first test image: per layer its window and, for up to `neurons` of its neurons, the steps at which each fires."""
    network.eval()
    inputs, labels = data.test[0]
    output = network(inputs[None].to(next(network.parameters()).device), keep_spikes=True)
    shown = {}
    for layer, record in output.record.items():
        assert record.spikes is not None
        train = record.spikes[:, 0].flatten(1).cpu()
        picked = train[:, torch.linspace(0, train.shape[1] - 1, min(neurons, train.shape[1])).round().long()]
        shown[layer] = {"window": record.window, "neurons": train.shape[1], "spikes": [column.nonzero()[:, 0].tolist() for column in picked.T]}
    return {"label": int(labels), "prediction": int(output.logits.argmax(1)), "layers": shown}
