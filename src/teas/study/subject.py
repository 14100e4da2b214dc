"""A network under study: a finished run, or a conversion, opened with its data and taken to any windows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from teas._version import __version__
from teas.ann.convert import Conversion
from teas.errors import TeasError
from teas.files import write_atomically
from teas.spiking.network import SpikingNetwork
from teas.spiking.time_windows import TimeWindows
from teas.study import config, conversion
from teas.study import data as datasets
from teas.study.config import Experiment
from teas.study.conversion_config import RANDOM
from teas.study.imagenet import Pictures
from teas.study.run_folder import holds_network, load_data, load_run, open_folder, open_run, read_marker

PROBED = 1000  # inputs that activity and damage are measured on


@dataclass(frozen=True)
class Subject:
    """A network at any windows, with its data.

    make: the network at given windows; plain: without bias correction, which many windows are measured without because it takes longer than they do.
    full: the windows before adapting. own: those that it was adapted to; None for a conversion.
    probe: batches of training inputs, to measure activity and damage on. ann: what was converted. folder: where results go.
    converted: a conversion, and the batches of training inputs that it was calibrated on.
    """

    experiment: Experiment
    folder: Path
    data: datasets.Data
    make: Callable[[TimeWindows], SpikingNetwork]
    full: TimeWindows
    own: TimeWindows | None
    probe: list[Tensor]
    plain: Callable[[TimeWindows], SpikingNetwork]
    ann: nn.Module | None = None
    converted: tuple[Conversion, list[Tensor]] | None = None

    def windows(self, option: str | None) -> TimeWindows:
        """Windows from an option: the name of a JSON file, or one integer; without it the network's own, and for a conversion the full ones."""
        if not option:
            return self.own or self.full
        if option.lstrip("-").isdigit():
            return TimeWindows.uniform(self.full, int(option))
        windows = TimeWindows.from_json(content_of(option))
        windows.validate(self.full)
        return windows


def content_of(option: str | None) -> str:
    """What an option for windows says: an integer as it is, or what its file holds; raises `TeasError` where that can't be read."""
    if not option or option.lstrip("-").isdigit():
        return option or ""
    try:
        return Path(option).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise TeasError(f"--windows takes a JSON file or an integer; cannot read {option!r}: {error}") from None


def locate(path: Path, data_folder: Path | None, out: Path | None = None) -> tuple[Experiment, Path, Path | None]:
    """Experiment, folder for results and data folder of a run folder, or of a conversion's TOML file."""
    if path.suffix != ".toml":
        experiment, recorded = open_run(path)
        return experiment, out or path, data_folder or recorded
    experiment = config.read(path)
    if not experiment.conversion:
        raise TeasError(f"{path} trains a network, so there is nothing to measure yet: teas run {path} first, then give its run folder")
    return experiment, out or Path("runs") / experiment.name, data_folder


def open_subject(path: Path, data_folder: Path | None = None, out: Path | None = None, device: torch.device | None = None) -> Subject:
    """The network of a finished run or of a conversion; raises `TeasError` where there is none, or its data can't be read.

    device: of a conversion; the CPU without. The network of a run is on the CPU.
    """
    experiment, folder, data_folder = locate(path, data_folder, out)
    if path.suffix == ".toml" and out is None and not (read_marker(folder) and open_run(folder)[0] == experiment):
        open_folder(experiment, folder, data_folder, resume=True)
    if experiment.conversion is None or (path.suffix != ".toml" and holds_network(path, experiment)):
        network, data, _ = load_run(path, data_folder)
        network.eval()
        batches = datasets.loader(data.validation, 100)
        probe = [batch for (batch, _), _ in zip(batches, range(PROBED // 100), strict=False)]
        full = TimeWindows.uniform(network.spiking_layers, experiment.conversion.damage_full if experiment.conversion else experiment.training.window)
        return Subject(experiment, folder, data, network.with_windows, full, network.windows, probe, network.with_windows)
    settings = experiment.conversion
    data = load_data(experiment, data_folder)
    ann, found, calibration, probe = conversion.load_conversion(experiment, settings, data, data_folder, device or torch.device("cpu"), folder)
    options: dict[str, Any] = {name: getattr(settings, name) for name in ("code", "firing", "layout", "transform")}
    full = TimeWindows.uniform(found.layers, settings.damage_full)

    def make(windows: TimeWindows) -> SpikingNetwork:
        return found.at(windows, bias_correction=settings.bias_correction, **options)

    return Subject(experiment, folder, data, make, full, None, probe, lambda windows: found.at(windows, **options), ann, (found, calibration))


def fingerprint(path: Path, data_folder: Path | None) -> dict[str, Any]:
    """What a figure depends on: the experiment's settings that are not the defaults, and digests of its weights and of its data."""
    experiment, _, data_folder = locate(path, data_folder)
    data, digest = load_data(experiment, data_folder), hashlib.sha256()
    for part in (data.train, data.validation, data.test):
        digest.update("\n".join(part.images.paths).encode() if isinstance(part.images, Pictures) else part.images.numpy().tobytes())
        digest.update(part.labels.numpy().tobytes())
    settings = {key: value for key, value in _chosen(experiment).items() if key not in ("name", "claim", "expect")}
    weights = _weights(experiment, path, data_folder)
    return {"teas": __version__, "settings": settings, "data": digest.hexdigest(), "weights": hashlib.sha256(weights).hexdigest()}


def _weights(experiment: Experiment, path: Path, data_folder: Path | None) -> bytes:
    """The file of the run's network, of the ANN to convert, or of the one that the run trained; nothing where that is still to be trained, or random."""
    converted = experiment.conversion
    if converted is None or (path.suffix != ".toml" and holds_network(path, experiment)):
        file = path / "weights.safetensors"
    elif converted.weights not in ("", RANDOM):
        file = (data_folder or Path()) / converted.weights
    else:
        return b""
    try:
        return file.read_bytes()
    except OSError as error:
        raise TeasError(f"cannot read the weights {file}: {error.strerror}") from None


def _chosen(settings: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults, nested ones too."""
    found = {}
    for item in fields(settings):
        value = getattr(settings, item.name)
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        if value != default:
            found[item.name] = _chosen(value) if is_dataclass(value) else value
    return found


@dataclass(frozen=True)
class Cache:
    """Results kept in a folder under a digest of what they depend on: what is computed once is read the next time, after an interruption too."""

    folder: Path
    context: dict[str, Any]

    def get(self, part: str, settings: dict[str, Any], compute: Callable[[], Any]) -> Any:
        """The result of `compute`, anything JSON, from the folder where it was computed before from the same settings in the same context."""
        key = hashlib.sha256(json.dumps([self.context, part, settings], sort_keys=True).encode()).hexdigest()[:20]
        path = self.folder / f"{part}-{key}.json"
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError):
            result = compute()
            write_atomically(path, json.dumps(result))
            return json.loads(json.dumps(result))
