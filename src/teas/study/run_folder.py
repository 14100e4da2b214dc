"""Run folders: the marker that says whose they are, what they hold, and the network in them with its data."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import accelerate
import torch

from teas._version import __version__
from teas.errors import TeasError
from teas.exchange.native import load_network, save_network
from teas.files import remove_strays, write_atomically
from teas.spiking.network import SpikingNetwork
from teas.study import data as datasets
from teas.study.arms import build_module
from teas.study.config import Experiment
from teas.study.conversion import skeleton
from teas.study.tables import build

MARK = "teas run folder, format 1"
SETTINGS = {"config.json", "environment.json"}


def open_folder(experiment: Experiment, folder: Path, data_folder: Path | None, resume: bool) -> None:
    """Make the run folder, or check that it is ours and of the same experiment."""
    config = asdict(experiment)
    marker = folder / "config.json"
    if folder.is_dir():
        remove_strays(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not read_marker(folder):
            raise TeasError(f"{folder} exists and is not a teas run folder; choose another one with --out")
        if not resume:
            raise TeasError(f"{folder} holds a run already; continue it with --resume, or choose another folder with --out")
        if open_run(folder)[0] != experiment:
            raise TeasError(f"{folder} was started with other settings; use the same experiment and --set, or choose another folder with --out")
    data = str(data_folder.resolve()) if data_folder else None
    write_atomically(marker, json.dumps({"mark": MARK, "experiment": config, "data_folder": data}, indent=1))
    environment = {
        "teas": __version__, "torch": torch.__version__, "accelerate": accelerate.__version__, "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}", "threads": torch.get_num_threads(),
        "command": ["teas", *sys.argv[1:]],
    }  # fmt: skip
    write_atomically(folder / "environment.json", json.dumps(environment, indent=1))


def forget_unstarted(folder: Path) -> None:
    """Remove a run folder that holds its settings alone, so that the same command, corrected, may start in it."""
    if read_marker(folder) and {path.name for path in folder.iterdir()} <= SETTINGS:
        shutil.rmtree(folder)


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


def holds_network(folder: Path, experiment: Experiment) -> bool:
    """Whether a run folder holds one network: that of a training, of a retraining or of `teas adapt`; a comparison of conversions has none."""
    return not experiment.conversion or bool(experiment.retraining) or (folder / "weights.safetensors").exists()


def load_run(folder: Path, data_folder: Path | None = None) -> tuple[SpikingNetwork, datasets.Data, Experiment]:
    """The adapted network of a run with its data, read from where the run found them or from `data_folder`."""
    experiment, recorded = open_run(folder)
    if not holds_network(folder, experiment):
        raise TeasError(f"{folder} compares conversions and holds no single network to evaluate; its figures are in metrics.json")
    data = load_data(experiment, data_folder or recorded)
    converted = experiment.conversion
    module = skeleton(converted, data.shape, data.classes) if converted else build_module(experiment, data.shape, data.classes)
    return load_network(folder / "weights.safetensors", module), data, experiment


def pack(folder: Path, out: Path, bits: int = 16, data_folder: Path | None = None) -> Path:
    """Write what is needed to evaluate a finished run again into a small folder: its settings, windows, and weights in 16 or 8 bits."""
    network, _, experiment = load_run(folder, data_folder)
    if out.exists() and any(out.iterdir()):
        raise TeasError(f"{out} is not empty; choose another folder")
    save_network(network, out / "weights.safetensors", bits=bits)
    write_atomically(out / "config.json", json.dumps({"mark": MARK, "experiment": asdict(experiment), "data_folder": None}, indent=1))
    write_atomically(out / "windows.json", network.windows.to_json())
    return out


def load_data(experiment: Experiment, folder: Path | None, download: bool = False) -> datasets.Data:
    """The experiment's data, read from the folder of the data sets."""
    config = experiment.data
    options: dict[str, Any] = {"validation": config.validation, "samples": config.samples, "augmentation": config.augmentation, "moments": config.moments}
    return datasets.load(config.name, folder, download=download, **options)
