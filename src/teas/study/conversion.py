"""Conversion, as it is and retrained: allocators compared at equal mean windows, on the same images, with a paired test."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from scipy import stats
from torch import Tensor, nn

from teas.adapt import allocation
from teas.adapt.activity import measure_activity
from teas.adapt.training import Stage, run_stage
from teas.adapt.vulnerability import measure_damage
from teas.ann.convert import Conversion, convert
from teas.ann.learned_windows import LONGEST
from teas.ann.many_windows import Together, recalibrate
from teas.ann.networks import build_ann
from teas.ann.quantised import quantised_activations, set_windows
from teas.ann.training import train
from teas.engine import choose_engine
from teas.errors import TeasError
from teas.exchange.weights import load_weights
from teas.spiking.network import SpikingNetwork
from teas.spiking.radix import to_radix
from teas.spiking.record import Output
from teas.spiking.time_windows import TimeWindows
from teas.study import data as datasets
from teas.study.config import Experiment
from teas.study.conversion_config import LEARNED, RANDOM, ConversionConfig, RetrainingConfig
from teas.study.energy import costs, count_operations, total
from teas.study.hooks import Hooks
from teas.study.metrics import latency
from teas.study.suiting import check_suits

BATCH = 250
TUNED = 25  # inputs a step of tuning


def fast(network: SpikingNetwork) -> Callable[[Tensor], Output]:
    """The network on the fastest engine that counts exactly as it does."""
    device = next(network.parameters()).device
    return choose_engine(network, device).prepare(network, keep="nothing")


def batch_for(images: datasets.Images, most: int) -> int:
    """A batch of images: at most as many as of CIFAR's, fewer of larger ones, for every layer's record has to fit into memory."""
    return min(most, max(8, most * 12_288 // math.prod(images.images.shape[1:])))


@torch.no_grad()
def predictions_on(model: Callable[[Tensor], Tensor | Output], images: datasets.Images) -> Tensor:
    """The class that each image is given."""
    found = []
    for inputs, _ in datasets.loader(images, batch_for(images, BATCH)):
        output = model(inputs)
        found.append((output if isinstance(output, Tensor) else output.logits).argmax(1))
    return torch.cat(found)


def correct_on(model: Callable[[Tensor], Tensor | Output], images: datasets.Images) -> Tensor:
    """Whether each image is classified right."""
    return predictions_on(model, images) == images.labels


def paired_p_value(ours: Tensor, theirs: Tensor) -> float:
    """McNemar's exact test: how likely a difference this large is, were both classifiers equally good on these images."""
    gained, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


@dataclass(frozen=True)
class Comparison:
    """What is fixed while allocators are compared: the ANN, its conversion, what was measured on training images to allocate by, and a retraining's start."""

    ann: nn.Module
    conversion: Conversion
    calibration: list[Tensor]
    activity: dict[str, float]
    damage: dict[str, dict[int, float]]
    semantics: dict[str, Any]
    seed: int
    longest: int = LONGEST["rate"]
    start: SpikingNetwork | None = None

    def windows(self, allocator: str, mean: float) -> TimeWindows:
        """The windows of an allocator at a mean."""
        return allocated(allocator, mean, self.activity, self.damage, self.seed, self.longest)


def convert_and_compare(
    experiment: Experiment, config: ConversionConfig, data: datasets.Data, data_folder: Path | None, folder: Path, device: torch.device, hooks: Hooks,
    start: SpikingNetwork | None = None,
) -> tuple[dict[str, Any], SpikingNetwork | None]:  # fmt: skip
    """Convert the experiment's ANN, allocate windows in every way asked for, and measure each on the test set, converted and retrained.

    Returns the content of metrics.json, and the retrained network at the smallest mean window that still meets the expectation, or else at the
    smallest of all; None where nothing is retrained. Thresholds, activity and damage come from training images; test labels are used for the
    final figures alone.
    """
    ann, conversion, calibration, probe = load_conversion(experiment, config, data, data_folder, device, folder, hooks)
    wanted = predictions_on(ann, data.test)
    ann_correct = wanted == data.test.labels
    hooks.say(f"ANN: {100 * ann_correct.float().mean():.2f} % of {len(ann_correct)} test images")
    found = measure(ann, conversion, calibration, probe, experiment, config, hooks, start)
    rows = []

    def converted(windows: TimeWindows, _: str) -> SpikingNetwork:
        return conversion.at(windows, bias_correction=config.bias_correction, **found.semantics)

    for mean in config.means:
        rows += _rows(found, mean, config.allocators, data, wanted, converted, hooks, retrained=False)
    networks: list[tuple[float, float, SpikingNetwork]] = []
    if experiment.retraining:
        retraining = experiment.retraining

        def make(windows: TimeWindows, allocator: str) -> SpikingNetwork:
            return retrain(found, retraining, windows, allocator, experiment.data.batch, data, folder, hooks)

        for mean in retraining.means:
            rows += _rows(found, mean, retraining.allocators, data, wanted, make, hooks, retrained=True, keep=networks)
    points = experiment.expect.points
    judged = [row for row in rows if row["allocator"] == experiment.expect.allocator]
    met = all(
        any(row["mean"] <= mean and row["accuracy"] >= least and row["agreement"] >= max(same, default=0) for row in judged) for mean, least, *same in points
    )
    metrics = {
        "name": experiment.name, "kind": "conversion", "expectation_met": met, "ann_accuracy": 100 * int(ann_correct.sum()) / len(ann_correct),
        "samples": len(ann_correct), "semantics": found.semantics, "activity": found.activity, "damage": found.damage, "rows": rows,
    }  # fmt: skip
    best = min(networks, key=lambda entry: (not any(entry[0] <= mean and entry[1] >= least for mean, least, *_ in points), entry[0]), default=None)
    return metrics, best and best[2]


def load_conversion(
    experiment: Experiment,
    config: ConversionConfig,
    data: datasets.Data,
    data_folder: Path | None,
    device: torch.device,
    folder: Path,
    hooks: Hooks = Hooks(),  # noqa: B008 (frozen)
) -> tuple[nn.Module, Conversion, list[Tensor], list[Tensor]]:
    """The experiment's ANN, its conversion, and batches of training images: those of the calibration, and others to probe with."""
    ann = _obtain_ann(experiment, config, data, data_folder, device, folder, hooks)
    if config.calibration + config.probe > len(data.train):
        raise TeasError(
            f"conversion.calibration {config.calibration} and conversion.probe {config.probe} ask for more than the {len(data.train)} training samples of "
            f"{data.name!r}; lower them"
        )
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(experiment.seeds[0])).tolist()
    pictures, size = data.train.plain(), batch_for(data.train, 100)
    calibration, probe = (
        [pictures.__getitems__(part[i : i + size])[0].to(device) for i in range(0, len(part), size)]
        for part in (order[: config.calibration], order[config.calibration : config.calibration + config.probe])
    )
    options: dict[str, Any] = {"threshold": config.threshold, "per_channel": config.per_channel, "v0": config.v0, "margin": config.margin}
    return ann, convert(ann, calibration, **options), calibration, probe


def _obtain_ann(
    experiment: Experiment, config: ConversionConfig, data: datasets.Data, data_folder: Path | None, device: torch.device, folder: Path, hooks: Hooks
) -> nn.Module:
    """The experiment's ANN in evaluation mode: its weights read from a file, or trained here and kept in the run folder."""
    set_seed(experiment.seeds[0])
    ann = build_ann(config.architecture, config.classes or data.classes).to(device)
    if config.weights not in ("", RANDOM):
        load_weights(ann, (data_folder or Path()) / config.weights)
    check_suits(ann, config.architecture, data)
    if config.pretraining:
        batches = datasets.loader(data.train, experiment.data.batch, shuffle_seed=experiment.seeds[0])
        checkpoint = folder / "checkpoints" / "ann.safetensors"
        train(
            ann, batches, config.pretraining, seed=experiment.seeds[0], checkpoint=checkpoint, progress=hooks.progress,
            on_epoch=lambda epoch: hooks.say(f"  ann {epoch.number + 1:3d}  loss {epoch.loss:.4f}  train {epoch.accuracy:6.2f} %"),
        )  # fmt: skip
    return ann.eval()


def skeleton(config: ConversionConfig, shape: tuple[int, ...], classes: int) -> nn.Module:
    """The module of a converted network of the experiment, to load weights into; its thresholds and weights mean nothing yet."""
    ann = build_ann(config.architecture, config.classes or classes).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # conversion warns of what it finds in random weights
        found = convert(ann, [torch.zeros(1, *shape)], threshold="maximum", per_channel=config.per_channel, v0=config.v0)
        return found.at(1, bias_correction=config.bias_correction).module


def measure(
    ann: nn.Module, conversion: Conversion, calibration: list[Tensor], probe: list[Tensor], experiment: Experiment, config: ConversionConfig, hooks: Hooks,
    start: SpikingNetwork | None,
) -> Comparison:  # fmt: skip
    """What allocators need, measured on the training images that are not for calibration: of the conversion, or of the network that retraining starts from."""
    hooks.say("measuring activity and damage per layer on training images")
    semantics = config.semantics

    def at(windows: TimeWindows) -> SpikingNetwork:
        # Quantisers of the same windows whatever the discipline: two-phase firing is measured, being the fastest.
        if start is None:
            return conversion.at(windows, code=config.code)
        return SpikingNetwork(start.module, windows, code=config.code, firing="two_phase").eval()

    full = TimeWindows.uniform(conversion.layers, config.damage_full)
    activity = {name: layer.activity for name, layer in measure_activity(at(full), probe).items()}
    retraining = experiment.retraining.allocators if experiment.retraining else ()
    wanted = "damage" in (*(config.allocators if config.means else ()), *retraining)
    damage = measure_damage(lambda windows: fast(at(windows)), full, config.damage_windows, probe) if wanted else {}
    return Comparison(ann, conversion, calibration, activity, damage, semantics, experiment.seeds[0], config.longest, start)


def retrain(
    found: Comparison, config: RetrainingConfig, windows: TimeWindows, allocator: str, batch: int, data: datasets.Data, folder: Path, hooks: Hooks
) -> SpikingNetwork:
    """The network at these windows after training with them in the loop, the ANN as the teacher; by `learned`, at windows of the same sum that were learned.

    A recipe that trains windows together does so once, for all; at other windows than those the batch norms are then recalibrated on training images.
    Training through time follows, where asked for. Where the configuration says `tuned`, thresholds and biases alone are fitted instead.
    """
    if config.tuned:
        parts = [part for inputs in found.calibration for part in torch.split(inputs, TUNED)]
        return found.conversion.tuned(windows, parts, epochs=config.tuned, code=found.semantics["code"]).at(windows, **found.semantics)
    learned, together = allocator == LEARNED, config.recipe.together
    name = "together" if together else f"{allocator}-{windows.mean:.4g}"
    trainable = functools.partial(found.conversion.trainable, code=found.semantics["code"])
    before = _windows_in(found.start, found.semantics["code"]) if learned and found.start else windows
    student: nn.Module = Together({steps: trainable(steps) for steps in together}) if together else trainable(before, start=found.start)
    batches = datasets.loader(data.lessons or data.train, batch, shuffle_seed=found.seed)
    # Teachers have answered mirror images already, once for all views.
    recipe = dataclasses.replace(config.recipe, mirrored=False) if config.teachers else config.recipe
    train(
        student, batches, recipe, teacher=found.ann, budget=windows.sum if learned else None, seed=found.seed,
        checkpoint=folder / "checkpoints" / f"{name}.safetensors", progress=hooks.progress,
        on_epoch=lambda epoch: hooks.say(f"  {name} {epoch.number + 1:3d}  loss {epoch.loss:.4f}  train {epoch.accuracy:6.2f} %"),
    )  # fmt: skip
    if learned:
        windows = TimeWindows({layer: activation.window for layer, activation in quantised_activations(student).items()})
    if isinstance(student, Together):
        student = copy.deepcopy(student.at(windows.mean))
        if set(windows.values()) != {activation.window for activation in quantised_activations(student).values()}:
            set_windows(student, windows)
            recalibrate(student, found.calibration)
    network = convert(student.eval(), found.calibration).at(windows, **found.semantics)
    if config.through_time:
        name, batches = f"{allocator}-{windows.mean:.4g} through time", datasets.loader(data.train, batch, shuffle_seed=found.seed)
        run_stage(
            network, batches, Stage("through_time", config.through_time, config.through_time_rate), accelerator=Accelerator(),
            checkpoint=folder / "checkpoints" / name.replace(" ", "-"), progress=hooks.progress,
            on_epoch=lambda epoch: hooks.say(f"  {name} {epoch.number + 1:3d}  loss {epoch.loss:.4f}  train {epoch.accuracy:6.2f} %"),
        )  # fmt: skip
    return network.eval()


def _windows_in(start: SpikingNetwork, code: str) -> TimeWindows:
    """A network's windows in a code: where it has another, as few as say its levels."""
    if start.semantics.code == code:
        return start.windows
    return to_radix(start).windows if code == "radix" else TimeWindows(start.levels)


def _rows(
    found: Comparison, mean: float, allocators: Sequence[str], data: datasets.Data, wanted: Tensor, make: Callable[[TimeWindows, str], SpikingNetwork],
    hooks: Hooks, *, retrained: bool, keep: list[tuple[float, float, SpikingNetwork]] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """One row an allocator at a mean window, measured on the test set; p-values are against the uniform one."""
    rows: list[dict[str, Any]] = []
    base: Tensor | None = None
    for allocator in sorted(allocators, key=lambda name: name != "uniform"):
        network = make(found.windows(allocator, mean), allocator)
        answers = predictions_on(fast(network), data.test)
        correct = answers == data.test.labels
        base = correct if allocator == "uniform" else base
        operations = count_operations(network, found.calibration[0])
        row = {
            "allocator": allocator, "retrained": retrained, "target": mean,
            "accuracy": 100 * int(correct.sum()) / len(correct), "agreement": 100 * int((answers == wanted).sum()) / len(answers),
            "windows": dict(network.windows),
            "p_value": None if base is None or allocator == "uniform" else paired_p_value(correct, base),
            "synaptic_operations": total(operations).synaptic, **asdict(latency(network, operations)), **costs(network, operations),
        }  # fmt: skip
        rows.append(row)
        if keep is not None:
            keep.append((row["mean"], row["accuracy"], network))
        agreement = f"the ANN's answer on {row['agreement']:.2f} %"
        hooks.say(f"mean {row['mean']:5.2f}  {allocator:13s}  {row['accuracy']:.2f} %, {agreement}{'  retrained' if retrained else ''}")
    return rows


def allocated(allocator: str, mean: float, activity: dict[str, float], damage: dict[str, dict[int, float]], seed: int, longest: int) -> TimeWindows:
    """Windows at a mean by the name of an allocator, from the layers' activity and measured damage; those to be learned start uniform."""
    limits = dict.fromkeys(activity, longest)
    if allocator in ("uniform", LEARNED):
        return allocation.allocate(dict.fromkeys(activity, 1.0), allocation.budget_for(mean, len(activity)), limits)
    if allocator == "damage":
        return allocation.by_damage(damage, mean, longest)
    if allocator == "staircase":
        return allocation.staircase(list(activity), mean)
    exponent = 0.5 if allocator == "activity_root" else 1.0
    windows = allocation.by_activity(activity, limits, mean, exponent)
    return allocation.shuffled(windows, seed) if allocator == "shuffled" else windows
