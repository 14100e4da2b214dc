"""Search under a budget: the cheapest windows that keep the accuracy, allocated and, where asked for, retrained; the network in a folder of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from teas.errors import TeasError, check_choice
from teas.exchange.native import save_network
from teas.files import write_atomically
from teas.spiking.network import SpikingNetwork
from teas.spiking.time_windows import TimeWindows
from teas.study import data as datasets
from teas.study.conversion import Comparison, retrain
from teas.study.conversion_config import ConversionConfig, RetrainingConfig
from teas.study.experiment import EVALUATION_BATCH
from teas.study.explore import ALLOCATORS, COSTS, MEANS, Point, candidates, judged, measure, measured_points
from teas.study.hooks import Hooks
from teas.study.metrics import evaluate
from teas.study.precision import advise
from teas.study.run_folder import open_folder
from teas.study.subject import Cache, Subject, fingerprint, locate, open_subject
from teas.study.teaching import add_answers, add_unlabelled, starting_network

FILES = ("weights.safetensors", "windows.json", "front.json")


def run(
    path: Path, data_folder: Path | None, *, max_loss: float, minimise: str, allocators: Sequence[str] = ALLOCATORS, means: Sequence[float] = MEANS,
    out: Path | None = None, hooks: Hooks,
) -> tuple[dict[str, Any], Path]:  # fmt: skip
    """The cheapest network of a run folder or a conversion's TOML file that loses at most `max_loss` points of accuracy on held-out images.

    All allocators at all means are tried, and with a table [retraining] its allocators at its means, retrained; of the network that it starts from, where
    it names one, and not of the ANN. What is written to the folder (by
    default beside the run's own, `NAME-adapted`) is a run folder itself: `teas evaluate` takes it. Returns the front as `explore` does, and that folder.
    Raises `TeasError` for an unknown cost, a loss that is negative, or a folder that holds something else.
    """
    check_choice("--minimise", minimise, COSTS)
    if not 0 <= max_loss <= 100:
        raise TeasError(f"--max-loss is {max_loss:g}; it is in points of accuracy, from 0 to 100")
    experiment, source, data_folder = locate(path, data_folder)
    folder = out or source.with_name(source.name + "-adapted")
    if folder.resolve() == source.resolve():
        raise TeasError(f"{folder} is the run's own folder, whose network would be overwritten; choose another one with --out")
    open_folder(experiment, folder, data_folder, resume=True)
    subject = open_subject(path, data_folder, device=torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu"))
    context, start = fingerprint(path, data_folder), None
    if subject.converted:
        advise(experiment, subject.data.train.labels.device, hooks)
        data = add_unlabelled(subject.data, experiment, data_folder)
        start = starting_network(experiment, data, data_folder)
        subject = replace(subject, data=add_answers(data, experiment, data_folder, subject.folder, hooks))
    if start and experiment.conversion and experiment.retraining:
        # The network at hand is the one to start from: its ANN plays no part in it, and may never have been trained.
        at = partial(_at, start, experiment.conversion)
        weights = (Path(experiment.retraining.start) / FILES[0]).read_bytes()
        subject, context = replace(subject, make=at, plain=at), {**context, "start": hashlib.sha256(weights).hexdigest()}
    cache = Cache(source / "cache", context)
    points = measured_points(subject, cache, allocators, means, hooks)
    networks: dict[int, SpikingNetwork] = {}
    if experiment.retraining and subject.converted:
        for point, network in retrained(subject, cache, experiment.retraining, hooks, start):
            networks[len(points)] = network
            points.append(point)

    def test(i: int) -> Point:
        return _measured(subject, networks[i], "test") if i in networks else measure(subject, cache, TimeWindows(points[i]["windows"]), "test", hooks)

    found = judged(subject, points, test, minimise, max_loss, None)
    chosen = found["chosen"]
    network = networks[chosen] if chosen in networks else subject.make(TimeWindows(points[chosen]["windows"]))
    save_network(network, folder / FILES[0])
    write_atomically(folder / FILES[1], network.windows.to_json())
    write_atomically(folder / FILES[2], json.dumps(found, indent=1))
    return found, folder


def retrained(
    subject: Subject, cache: Cache, config: RetrainingConfig, hooks: Hooks, start: SpikingNetwork | None = None
) -> Iterator[tuple[Point, SpikingNetwork]]:
    """Every network that the table [retraining] asks for, with its figures on held-out images; an interrupted training continues."""
    assert subject.converted is not None
    assert subject.ann is not None
    conversion, calibration = subject.converted
    semantics = asdict(subject.make(subject.full).semantics)
    ready = Comparison(subject.ann, conversion, calibration, {}, {}, semantics, subject.experiment.seeds[0], start=start)
    for allocator, target, windows in candidates(subject, cache, config.allocators, config.means, hooks):
        if allocator in config.allocators:
            network = retrain(ready, config, windows, allocator, subject.experiment.data.batch, subject.data, subject.folder, hooks)
            point = {"allocator": f"{allocator}, retrained", "target": target, **_measured(subject, network, "held out")}
            hooks.say(f"  held out, retrained  mean {windows.mean:6.2f}  {point['accuracy']:.2f} %")
            yield point, network


def _at(start: SpikingNetwork, settings: ConversionConfig, windows: TimeWindows) -> SpikingNetwork:
    """The network that a retraining starts from at other windows, spiking as the conversion says."""
    options = {name: getattr(settings, name) for name in ("code", "firing", "layout", "transform")}
    return SpikingNetwork(start.module, windows, **options).eval()


def _measured(subject: Subject, network: SpikingNetwork, split: str) -> Point:
    images = subject.data.test if split == "test" else subject.data.validation
    return asdict(evaluate(network, datasets.loader(images, EVALUATION_BATCH), subject.experiment.seeds[0]))
