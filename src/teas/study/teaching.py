"""What a retraining starts from, and learns from beside the training images: unlabelled ones, or larger networks' answers to fixed views."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from teas.ann.training import UNLABELLED
from teas.engine import choose_engine, quantise
from teas.errors import TeasError
from teas.files import write_atomically
from teas.spiking.network import SpikingNetwork
from teas.study import data as datasets
from teas.study.augmentation import AUGMENTATIONS, pasted
from teas.study.config import Experiment
from teas.study.conversion import fast
from teas.study.hooks import Hooks
from teas.study.imagenet import Pictures
from teas.study.run_folder import load_run

BATCH = 100  # images a teacher answers at once: its counts then stay in a processor's cache
Teacher = tuple[SpikingNetwork, datasets.Images]  # and its training images, for what it normalises by


class Views(datasets.Images):
    """Images in fixed augmented views, with a teacher's logits for each of them.

    pixels: of the images, `[view, image, channel, row, column]`, bytes. answers: `[view, image, class]`. An item is an image in one of its views, drawn
    anew each time, its label, and the answer to this view: `(inputs, labels, answers)`. The last `composed` views show two images and have no label.
    """

    def __init__(self, images: datasets.Images, pixels: Tensor, answers: Tensor, composed: int):
        self.__dict__.update(vars(images))
        self.pixels, self.answers, self.composed = pixels, answers, composed

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        chosen = torch.tensor(indices).to(self.pixels.device, non_blocking=True)
        view = torch.randint(len(self.pixels), chosen.shape, device=chosen.device)
        labels = self.labels[chosen].masked_fill(view >= len(self.pixels) - self.composed, UNLABELLED)
        return self.normalised(self.pixels[view, chosen]), labels, self.answers[view, chosen]


def check_views(images: datasets.Images) -> None:
    """Raise `TeasError` for images that can't be kept in several views."""
    if isinstance(images.images, Pictures):
        raise TeasError("retraining.teachers needs images that fit into memory in all their views; leave it out, the ANN then teaches")
    if images.augmentation == "none" or AUGMENTATIONS[images.augmentation].inputs is not AUGMENTATIONS["none"].inputs:
        raise TeasError(
            f"data.augmentation is {images.augmentation!r}; with retraining.teachers it must be one that only moves pixels, which every teacher normalises "
            "its own way: crop_flip or shift"
        )


def views_of(images: datasets.Images, views: int, seed: int, composed: int = 0) -> Tensor:
    """Bytes of several augmented views of images, then of composed ones, `[view, image, channel, row, column]`, the same for the same seed."""
    check_views(images)
    change, pixels = AUGMENTATIONS[images.augmentation].pixels, images.images
    assert isinstance(pixels, Tensor)
    with torch.random.fork_rng(devices=[pixels.device] if pixels.is_cuda else []):
        torch.manual_seed(seed)
        found = [torch.cat([change(pixels[at : at + 1000]) for at in range(0, len(pixels), 1000)]) for _ in range(views + composed)]
        return torch.stack([view if number < views else pasted(view) for number, view in enumerate(found)])


def answered(
    images: datasets.Images, teachers: Sequence[Teacher], views: int, seed: int, path: Path, hooks: Hooks, composed: int = 0, mirrored: bool = False
) -> Views:
    """Views of the images with the teachers' answers: the mean of their logits, each on integer kernels where its weights in 8 bits run on them.

    path: a file of answers, written after every view; those that are there already are not asked for again. mirrored: the mean takes in their logits
    for the view's mirror image. Raises `TeasError` for a file that is damaged or of other views.
    """
    pixels, total, kind = views_of(images, views, seed, composed), views + composed, json.dumps([views, composed] if composed else views)
    if mirrored:
        kind += " mirrored"
    networks = [(engine(network), normaliser) for network, normaliser in teachers]

    def answer(part: Tensor) -> Tensor:
        seen = [part, part.flip(-1)] if mirrored else [part]
        return torch.stack([network(normaliser.normalised(image)) for network, normaliser in networks for image in seen]).mean(0)

    found = _known(path, len(images), kind)
    for view in range(len(found), total):
        parts = [pixels[view, at : at + BATCH] for at in range(0, len(images), BATCH)]
        answers = [answer(part) for part in hooks.progress(parts, f"answers to view {view + 1}/{total}")]
        found.append(torch.cat(answers).cpu())
        write_atomically(path, save({"answers": torch.stack(found)}, metadata={"views": kind}))
    labels = images.labels.cpu()
    right = sum(float((answer.argmax(1) == labels).float().mean()) for answer in found[:views]) / views
    judged = f", {100 * right:.2f} % of them right" if bool((labels != UNLABELLED).all()) else " without labels"
    hooks.say(f"answers of {len(teachers)} to {views} views of {len(images)} images{judged}" + (f", and to {composed} composed views" if composed else ""))
    return Views(images, pixels, torch.stack(found).to(pixels.device), composed)


def joined(first: Views, second: Views) -> Views:
    """Views of two sets of images as one, normalised as the first."""
    images = copy.copy(first)
    assert isinstance(first.images, Tensor)
    assert isinstance(second.images, Tensor)
    images.images, images.labels = torch.cat([first.images, second.images]), torch.cat([first.labels, second.labels])
    return Views(images, torch.cat([first.pixels, second.pixels], 1), torch.cat([first.answers, second.answers], 1), first.composed)


def engine(network: SpikingNetwork) -> Callable[[Tensor], Tensor]:
    """The logits of a network, with 8-bit weights where integer kernels run these."""
    small, device = quantise(network.eval()), next(network.parameters()).device
    run = fast(small if choose_engine(small, device).name == "count_int8" else network)

    @torch.no_grad()
    def logits(inputs: Tensor) -> Tensor:
        return run(inputs).logits

    return logits


def _known(path: Path, images: int, kind: str) -> list[Tensor]:
    if not path.exists():
        return []
    try:
        with safe_open(str(path), framework="pt") as file:
            answers, header = file.get_tensor("answers"), file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise TeasError(f"the answers in {path} can't be read: {error}; delete the file to ask again") from None
    if header.get("views") != kind or answers.dim() != 3 or answers.shape[1] != images:
        raise TeasError(f"{path} holds answers to other views; delete it to ask again")
    return list(answers)


def starting_network(experiment: Experiment, data: datasets.Data, data_folder: Path | None) -> SpikingNetwork | None:
    """The network that the experiment's retraining starts from, if it is not its ANN's.

    Raises `TeasError` where it is missing, or of another architecture, before anything is trained.
    """
    if experiment.retraining is None or not experiment.retraining.start:
        return None
    name = experiment.retraining.start
    network, known, before = load_run(Path(name), data_folder)
    ours, theirs = (
        (each.conversion.architecture if each.conversion else "none that was converted", each_data.shape, each_data.classes)
        for each, each_data in ((experiment, data), (before, known))
    )
    if ours != theirs:
        raise TeasError(f"retraining.start, {name}, has the architecture, input shape and classes {theirs}; the experiment has {ours}")
    return network.to(data.train.labels.device)


def add_unlabelled(data: datasets.Data, experiment: Experiment, folder: Path | None, download: bool = False) -> datasets.Data:
    """The data with the unlabelled images that the experiment's retraining asks for, if any; only a retraining has to read them."""
    if experiment.retraining is None or not experiment.retraining.unlabelled:
        return data
    return dataclasses.replace(data, lessons=datasets.with_unlabelled(data.train, experiment.retraining.unlabelled, folder, download))


def add_answers(data: datasets.Data, experiment: Experiment, data_folder: Path | None, folder: Path, hooks: Hooks) -> datasets.Data:
    """The data with views of its training images, and of unlabelled ones, answered by the teachers that the experiment's retraining names, if any.

    Raises `TeasError` for a teacher that is missing, or of inputs of another shape or other classes.
    """
    config = experiment.retraining
    if config is None or not config.teachers:
        return data
    check_views(data.train)
    teachers = []
    for name in config.teachers:
        network, known, _ = load_run(Path(name), data_folder)
        if (known.shape, known.classes) != (data.shape, data.classes):
            raise TeasError(f"the teacher {name} sees inputs {known.shape} of {known.classes} classes; {data.name!r} has {data.shape} of {data.classes}")
        known.train.to(data.train.labels.device)
        teachers.append((network.to(data.train.labels.device), known.train))

    def asked(images: datasets.Images, name: str) -> Views:
        file = folder / "checkpoints" / f"{name}.safetensors"
        return answered(images, teachers, config.views, experiment.seeds[0], file, hooks, config.composed, config.recipe.mirrored)

    lessons = asked(data.train, "answers")
    if data.lessons:
        lessons = joined(lessons, asked(data.lessons.part(len(data.train)), "answers_unlabelled"))
    return dataclasses.replace(data, lessons=lessons)
