"""One experiment from data to report. The body of `run_seed` is the data-flow diagram of the project."""

from __future__ import annotations

import copy
import dataclasses
import json
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import accelerate
import torch
from accelerate import Accelerator, DataLoaderConfiguration, PartialState
from accelerate.utils import set_seed

from teas._version import __version__
from teas.adapt import allocation
from teas.adapt.activity import measure_activity
from teas.adapt.training import Adjustment, Epoch, Progress, Stage, run_stage
from teas.ann import architectures
from teas.errors import TeasError
from teas.exchange.native import load_network, save_network
from teas.files import write_atomically
from teas.spiking.network import SpikingNetwork
from teas.spiking.neuron import IF, LIF
from teas.spiking.time_windows import TimeWindows
from teas.study import data as datasets
from teas.study.config import Experiment, build
from teas.study.conversion import convert_and_compare
from teas.study.metrics import Metrics, evaluate, spread

MARK = "teas run folder, format 1"
EVALUATION_BATCH = 500


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What the caller shows while a run goes on: a progress display for batches, a line for each epoch, and messages."""

    progress: Progress = lambda batches, _: batches
    on_epoch: Callable[[str, Epoch], None] = lambda arm, epoch: None
    say: Callable[[str], None] = lambda message: None


def is_main_process() -> bool:
    """Whether this process writes and speaks for all of them."""
    return bool(PartialState(cpu=_cpu_only()).is_main_process)


def _cpu_only() -> bool:
    """Accelerate joins several CPU processes into one group only when it is told that there is nothing but CPUs."""
    return not torch.accelerator.is_available()


def build_module(experiment: Experiment, shape: tuple[int, ...], classes: int) -> torch.nn.Module:
    """The experiment's architecture with its neurons, freshly initialised."""
    config = experiment.network

    def neurons() -> IF:
        options: dict[str, Any] = {"reset": config.reset, "v0": config.v0, "surrogate": config.surrogate}
        return IF(config.threshold, **options) if config.leak == 1 else LIF(config.leak, config.threshold, **options)

    return architectures.build(config.architecture, shape, classes, neurons, config.hidden, config.spiking_output)


def stages(experiment: Experiment) -> tuple[Stage, Stage, Stage]:
    """Pre-training, retraining with adjustment, and fine-tuning, as the experiment sets them."""
    t, w = experiment.training, experiment.windows
    shared: dict[str, Any] = {"scale": t.scale, "weight_decay": t.weight_decay}
    regular: dict[str, Any] = {**shared, "regulariser": t.regulariser, "strength": t.strength}
    plan = Adjustment(w.every, w.layers, w.fraction, w.mean, w.exponent)
    return (
        Stage("pretrain", t.pretrain_epochs, t.pretrain_rate, **shared),
        Stage("retrain", t.retrain_epochs, t.retrain_rate, anneal=False, adjustment=plan, **regular),
        Stage("finetune", t.finetune_epochs, t.finetune_rate, **regular),
    )


def run_seed(seed: int, data: datasets.Data, experiment: Experiment, accelerator: Accelerator, folder: Path, hooks: Hooks) -> dict[str, Any]:
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
        epochs[arm] = []
        for stage in plan:
            # Every stage starts from its own seed, so that a resumed run draws what an uninterrupted one draws.
            set_seed(seed)
            checkpoint = folder / "checkpoints" / f"seed{seed}-{arm}-{stage.name}"
            epochs[arm] += run_stage(
                network, batches, stage, accelerator=accelerator, checkpoint=checkpoint, progress=hooks.progress,
                on_epoch=lambda epoch: hooks.on_epoch(f"seed {seed} {arm}", epoch),
            )  # fmt: skip
        metrics[arm] = evaluate(network, test_data, seed)
        validation[arm] = evaluate(network, validation_data, seed).accuracy

    set_seed(seed)
    module = build_module(experiment, data.shape, data.classes)
    full = SpikingNetwork(module, experiment.training.window, **asdict(experiment.semantics))
    train(full, "full", pretraining)

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
    if (folder / "metrics.json").exists():
        hooks.say(f"{folder} is finished already")
        return read_metrics(folder)
    data = load_data(experiment, data_folder, download)
    if experiment.conversion:
        result = convert_and_compare(experiment, experiment.conversion, data, data_folder, accelerator.device, hooks.say)
        if accelerator.is_main_process:
            write_atomically(folder / "metrics.json", json.dumps(result, indent=1))
        accelerator.wait_for_everyone()
        return result
    runs = {}
    for seed in experiment.seeds:
        hooks.say(f"seed {seed}")
        runs[seed] = run_seed(seed, data, experiment, accelerator, folder, hooks)
    result = summary(experiment, runs)
    first = runs[experiment.seeds[0]]
    result["tradeoff"] = tradeoff(first["full"], first["trained_activity"], data, experiment)
    if accelerator.is_main_process:
        save_network(first["network"], folder / "weights.safetensors")
        write_atomically(folder / "windows.json", first["network"].windows.to_json())
        write_atomically(folder / "raster.json", json.dumps(raster(first["network"], data)))
        write_atomically(folder / "metrics.json", json.dumps(result, indent=1))
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    accelerator.wait_for_everyone()
    return result


def load_data(experiment: Experiment, folder: Path | None, download: bool = False) -> datasets.Data:
    """The experiment's data, read from the folder of the data sets."""
    config = experiment.data
    return datasets.load(config.name, folder, validation=config.validation, augmentation=config.augmentation, download=download, moments=config.moments)


def open_folder(experiment: Experiment, folder: Path, data_folder: Path | None, resume: bool) -> None:
    """Make the run folder, or check that it is ours and of the same experiment."""
    config = asdict(experiment)
    marker = folder / "config.json"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not read_marker(folder):
            raise TeasError(f"{folder} exists and is not a teas run folder; choose another one with --out")
        if not resume:
            raise TeasError(f"{folder} holds a run already; continue it with --resume, or choose another folder with --out")
        if json.loads(marker.read_text())["experiment"] != json.loads(json.dumps(config)):
            raise TeasError(f"{folder} was started with other settings; use the same experiment and --set, or choose another folder with --out")
    data = str(data_folder.resolve()) if data_folder else None
    write_atomically(marker, json.dumps({"mark": MARK, "experiment": config, "data_folder": data}, indent=1))
    environment = {
        "teas": __version__, "torch": torch.__version__, "accelerate": accelerate.__version__, "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}", "threads": torch.get_num_threads(),
        "command": ["teas", *sys.argv[1:]],
    }  # fmt: skip
    write_atomically(folder / "environment.json", json.dumps(environment, indent=1))


def read_marker(folder: Path) -> dict[str, Any] | None:
    """The content of a run folder's config.json, or None where the folder is not ours."""
    try:
        content = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("mark") == MARK else None


def open_run(folder: Path) -> tuple[Experiment, Path | None]:
    """Experiment and data folder of a run; raises `TeasError` for a folder that is not a run."""
    content = read_marker(folder)
    if content is None:
        raise TeasError(f"{folder} is not a teas run folder: it has no config.json of ours")
    data = content.get("data_folder")
    return build(Experiment, content["experiment"], f"{folder}/config.json"), Path(data) if data else None


def read_metrics(folder: Path) -> dict[str, Any]:
    """The metrics.json of a finished run; raises `TeasError` where the run is not finished."""
    try:
        content = json.loads((folder / "metrics.json").read_text())
    except FileNotFoundError:
        raise TeasError(f"{folder} has no metrics.json: the run is not finished; continue it with teas run ... --resume") from None
    except ValueError as error:
        raise TeasError(f"{folder}/metrics.json is damaged: {error}") from None
    assert isinstance(content, dict)
    return content


def load_run(folder: Path, data_folder: Path | None = None) -> tuple[SpikingNetwork, datasets.Data, Experiment]:
    """The adapted network of a run with its data, read from where the run found them or from `data_folder`."""
    experiment, recorded = open_run(folder)
    if experiment.conversion:
        raise TeasError(f"{folder} compares conversions and holds no single network to evaluate; its figures are in metrics.json")
    data = load_data(experiment, data_folder or recorded)
    return load_network(folder / "weights.safetensors", build_module(experiment, data.shape, data.classes)), data, experiment


def pack(folder: Path, out: Path) -> Path:
    """Write what is needed to evaluate a finished run again into a small folder: its settings, windows, and weights in 16 bits."""
    network, _, experiment = load_run(folder)
    if out.exists() and any(out.iterdir()):
        raise TeasError(f"{out} is not empty; choose another folder")
    write_atomically(out / "config.json", json.dumps({"mark": MARK, "experiment": asdict(experiment), "data_folder": None}, indent=1))
    write_atomically(out / "windows.json", network.windows.to_json())
    save_network(network, out / "weights.safetensors", half=True)
    return out


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
        "epochs": {arm: [asdict(epoch) for epoch in epochs] for arm, epochs in next(iter(runs.values()))["epochs"].items()},
        "trained_activity": next(iter(runs.values()))["trained_activity"],
    }


def tradeoff(network: SpikingNetwork, activity: dict[str, float], data: datasets.Data, experiment: Experiment) -> dict[str, list[list[float]]]:
    """Accuracy on held-out training data against mean window, the trained network's windows swapped at inference without retraining."""
    batches = datasets.loader(data.validation, EVALUATION_BATCH)
    limits = dict.fromkeys(activity, experiment.training.window)
    curves: dict[str, list[list[float]]] = {"uniform": [], "by activity": []}
    for steps in range(1, experiment.training.window + 1):
        chosen = {"uniform": TimeWindows.uniform(activity, steps), "by activity": allocation.by_activity(activity, limits, steps, experiment.windows.exponent)}
        for name, windows in chosen.items():
            curves[name].append([windows.mean, evaluate(network.with_windows(windows), batches).accuracy])
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
