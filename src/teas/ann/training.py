"""Training of ANNs, plain or with quantised activations: SGD, one cosine, 16-bit arithmetic where asked for, and a teacher where there is one."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader

from teas.ann.learned_windows import WindowLearner
from teas.ann.many_windows import Together, sandwich
from teas.ann.quantised import quantised_activations
from teas.errors import TeasError, check_choice
from teas.files import write_atomically

PRECISIONS = ("float32", "bfloat16")
UNLABELLED = -100  # a label that is none, for images that only the teacher answers; cross-entropy leaves it out
Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """How an ANN is trained: stochastic gradient descent with Nesterov momentum, a linear warm-up, then a cosine to zero.

    warmup: share of the steps. smoothing: of the labels. distillation: weight of the teacher's answer in the loss, the rest is the labels', both
    softened by `temperature` where they are compared. mixup: `α` of the Beta distribution that mixes each input with another of its batch (Zhang et
    al., ICLR 2018), 0 for none; a teacher answers to the same mixtures, so that it is matched between the images too (Beyer et al., CVPR 2022).
    mirrored: the teacher's answer to an image is the mean of its logits for the image and its mirror image, which is more often right than either.
    precision: `float32`, or `bfloat16` for arithmetic on the same 32-bit weights, faster on a processor made for it and slower on others.
    compiled: run through `torch.compile`, which takes a minute or two to start and needs a C++ compiler; on a CPU an epoch of ResNet-20 with quantised
    activations then takes about 0.6 times as long.
    together: rising uniform windows that one set of weights is trained at (see `Together`), three of them in every step (see `sandwich`).
    window_rate, window_share: how fast windows are learned under a budget, and in which share of the steps; they are fixed for the rest.
    """

    epochs: int = 30
    rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.05
    smoothing: float = 0.0
    distillation: float = 0.0
    temperature: float = 2.0
    mixup: float = 0.0
    mirrored: bool = False
    precision: str = "float32"
    compiled: bool = False
    together: tuple[int, ...] = ()
    window_rate: float = 0.02
    window_share: float = 0.6

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, PRECISIONS)
        if self.epochs < 1 or not 0 < self.rate < math.inf:
            raise TeasError(f"a recipe needs at least one epoch and a positive rate; got epochs {self.epochs} and rate {self.rate}")
        if self.together and not (len(self.together) > 1 and self.together[0] >= 1 and list(self.together) == sorted(set(self.together))):
            raise TeasError(f"together is {list(self.together)}; give at least two windows that rise, e.g. [2, 4, 8, 16]")
        if not 0 < self.window_rate < math.inf:
            raise TeasError(f"window_rate is {self.window_rate}; it must be above 0")
        if not 0 < self.temperature < math.inf or not 0 <= self.mixup < math.inf:
            raise TeasError(f"temperature must be above 0 and mixup at least 0; got temperature {self.temperature} and mixup {self.mixup}")
        for name in ("warmup", "smoothing", "distillation", "window_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise TeasError(f"{name} is {getattr(self, name)}; it is a share, from 0 to 1")

    def rate_at(self, progress: float) -> float:
        """Learning rate after this share of all steps."""
        if progress < self.warmup:
            return self.rate * progress / self.warmup
        return self.rate * (1 + math.cos(math.pi * (progress - self.warmup) / max(1 - self.warmup, 1e-9))) / 2


@dataclass(frozen=True)
class AnnEpoch:
    """What one epoch did: mean loss, and training accuracy in percent of the labelled images."""

    number: int
    loss: float
    accuracy: float


def train(
    model: nn.Module,
    data: DataLoader[Any],
    recipe: Recipe,
    *,
    teacher: nn.Module | None = None,
    budget: float | None = None,
    costs: Mapping[str, float] | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    on_epoch: Callable[[AnnEpoch], None] = lambda _: None,
    progress: Callable[[Iterable[Any], str], Iterable[Any]] = lambda batches, _: batches,
) -> list[AnnEpoch]:
    """Train an ANN in place on batches `(inputs [batch, *shape], labels [batch])`, and return what each epoch did.

    teacher: a network whose softened answer is learned too, at weight `recipe.distillation` (Hinton et al., 2015). Inputs labelled `UNLABELLED` are
    learned from its answer alone. Batches that bring answers known beforehand, `(inputs, labels, logits [batch, class])`, are learned from these.
    budget, costs: learn the windows of the quantised activations too (see `WindowLearner`), which end whole and within the budget.
    checkpoint: one file, written after each epoch; a training that finds its own there continues, to bit-identical weights on one CPU.
    Raises `TeasError` where the loss or a weight is not finite (the checkpoint keeps the epoch before), or a teacher is asked for, or needed
    by inputs without a label, and missing.
    """
    if recipe.compiled and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        raise TeasError("the recipe's `compiled` needs a C++ compiler, and none of c++, g++, clang++ is on the path; install one, or set it to false")
    if budget is not None and recipe.together:
        raise TeasError("windows are learned one set at a time; leave out together")
    if tuple(recipe.together) != (model.windows if isinstance(model, Together) else ()):
        raise TeasError(f"the recipe trains windows {list(recipe.together)} together; it takes a `Together` of these, and without any a plain network")
    device = next(model.parameters()).device
    learner = None if budget is None else WindowLearner(model, budget, costs)
    optimizer = torch.optim.SGD(_groups(model, recipe.weight_decay), recipe.rate, recipe.momentum, nesterov=recipe.momentum > 0)
    history = _restore(model, optimizer, checkpoint, recipe, seed) if checkpoint else []
    if learner and history:
        learner.assign()
    model.to(memory_format=torch.channels_last)
    # Static shapes: only the last batch of an epoch differs, and one more graph is cheaper than a graph for any size.
    networks: dict[int, Network] = {window: model.at(window) for window in model.windows} if isinstance(model, Together) else {0: model}
    if recipe.compiled:
        networks = {window: torch.compile(network, dynamic=False) for window, network in networks.items()}
    answer = torch.compile(teacher, dynamic=False) if recipe.compiled and teacher is not None else teacher
    for number in range(len(history), recipe.epochs):
        torch.manual_seed(seed * 1_000_003 + number)  # each epoch draws its own numbers, so that a resumed run draws the same
        if hasattr(data.sampler, "set_epoch"):
            data.sampler.set_epoch(number)
        batches = progress(data, f"epoch {number + 1}/{recipe.epochs}")
        model.train()
        epoch = _run_epoch(networks, optimizer, batches, len(data), recipe, answer, number, device, learner)
        if not math.isfinite(epoch.loss) or not all(value.isfinite().all() for value in model.state_dict().values()):
            raise TeasError(
                f"the training diverged in epoch {number + 1} (loss {epoch.loss:g}, or weights that are not finite); lower the rate ({recipe.rate:g})"
            )
        history.append(epoch)
        if checkpoint:
            _save(model, optimizer, checkpoint, recipe, seed, history)
        on_epoch(epoch)
    if learner:
        learner.finish()
    return history


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights decay; thresholds do not, they would shrink until everything saturates."""
    thresholds = {id(activation.threshold) for activation in quantised_activations(model).values()}
    steps = {id(activation.steps) for activation in quantised_activations(model).values()}
    decayed = [p for p in model.parameters() if id(p) not in thresholds | steps]
    free = [p for p in model.parameters() if id(p) in thresholds]
    return [{"params": decayed, "weight_decay": weight_decay}, *([{"params": free, "weight_decay": 0.0}] if free else [])]


def _run_epoch(
    networks: dict[int, Network], optimizer: torch.optim.SGD, data: Iterable[Any], steps: int, recipe: Recipe, teacher: Network | None, number: int,
    device: torch.device, learner: WindowLearner | None,
) -> AnnEpoch:  # fmt: skip
    # Totals stay on the device: to read one is to wait for it, and a GPU would run dry at every step.
    totals, seen = torch.zeros(3, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device), 0
    for index, (inputs, labels, *known) in enumerate(data):
        inputs, labels = inputs.to(device).contiguous(memory_format=torch.channels_last if inputs.dim() == 4 else torch.contiguous_format), labels.to(device)
        inputs, share = _mixed(inputs, recipe.mixup)
        done = (number + index / steps) / recipe.epochs
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(done)
        answer = _answer(teacher, inputs, known, recipe) if recipe.distillation else None
        optimizer.zero_grad()
        draw = random.Random(int(torch.randint(2**31, ()))) if recipe.together else None
        windows = sandwich(recipe.together, draw) if draw else (0,)
        for window in windows:
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                logits = networks[window](inputs)
            loss = _loss(logits.float(), labels, share, answer, recipe) / len(windows)
            loss.backward()  # type: ignore[no-untyped-call]
            totals[0] += loss.detach() * len(labels)
        optimizer.step()
        if learner and done < recipe.window_share:
            learner.update(recipe.window_rate)
        totals[1] += (logits.detach().argmax(1) == labels).sum()
        totals[2] += (labels != UNLABELLED).sum()
        seen += len(labels)
    if not seen:
        raise TeasError("the training data is empty: no batch came from the loader")
    loss_sum, right, labelled = totals.tolist()
    if answer is None and labelled < seen:
        raise TeasError(f"{seen - int(labelled)} of the {seen} inputs have no label, and there is no teacher; set distillation above 0")
    return AnnEpoch(number, loss_sum / seen, 100 * right / max(labelled, 1))


@torch.no_grad()
def _answer(teacher: Network | None, inputs: Tensor, known: Sequence[Tensor], recipe: Recipe) -> Tensor:
    if known:
        if recipe.mixup or recipe.mirrored:
            raise TeasError("answers known beforehand are to the inputs as they are; leave out mixup and mirrored")
        return known[0].to(inputs.device)
    if teacher is None:
        raise TeasError(f"distillation is {recipe.distillation} but there is no teacher; give one, or set distillation to 0")
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
        answer = teacher(inputs).float()
        if recipe.mirrored:
            if inputs.dim() != 4:
                raise TeasError(f"mirrored is for images [batch, channel, row, column], and the inputs have shape {tuple(inputs.shape)}; set it to false")
            answer = (answer + teacher(inputs.flip(-1)).float()) / 2
    return answer


def _mixed(inputs: Tensor, alpha: float) -> tuple[Tensor, float]:
    """Each input mixed with its mirror image in the batch, which is in random order, and that one's share, at most one half."""
    if not alpha:
        return inputs, 0.0
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    share = min(share, 1 - share)
    return torch.lerp(inputs, inputs.flip(0), share), share


def _loss(logits: Tensor, labels: Tensor, share: float, answer: Tensor | None, recipe: Recipe) -> Tensor:
    known = (labels != UNLABELLED).sum().clamp_min(1)  # the mean over no labels is 0
    smoothing = recipe.smoothing
    truth = (1 - share) * F.cross_entropy(logits, labels, label_smoothing=smoothing, ignore_index=UNLABELLED, reduction="sum") / known
    if share:
        truth = truth + share * F.cross_entropy(logits, labels.flip(0), label_smoothing=smoothing, ignore_index=UNLABELLED, reduction="sum") / known
    if answer is None:
        return truth
    temperature = recipe.temperature
    softened = F.kl_div(F.log_softmax(logits / temperature, 1), F.log_softmax(answer / temperature, 1), reduction="batchmean", log_target=True)
    return (1 - recipe.distillation) * truth + recipe.distillation * temperature**2 * softened


def _save(model: nn.Module, optimizer: torch.optim.SGD, path: Path, recipe: Recipe, seed: int, history: list[AnnEpoch]) -> None:
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"momentum.{name}": optimizer.state[p]["momentum_buffer"] for name, p in model.named_parameters() if optimizer.state[p]}
    header = {"recipe": asdict(recipe), "seed": seed, "history": [asdict(epoch) for epoch in history]}
    write_atomically(path, save({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, metadata={"teas": json.dumps(header)}))


def _restore(model: nn.Module, optimizer: torch.optim.SGD, path: Path, recipe: Recipe, seed: int) -> list[AnnEpoch]:
    """Continue from a checkpoint of this training, if there is one."""
    if not path.exists():
        return []
    try:
        with safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("teas", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise TeasError(f"the checkpoint {path} can't be read: {error}; delete it to start again") from None
    # What a checkpoint does not mention, it was written before there was a choice.
    written = {**json.loads(json.dumps(asdict(Recipe()))), **header.get("recipe", {})}
    if written != json.loads(json.dumps(asdict(recipe))) or header.get("seed") != seed:
        raise TeasError(f"{path} was written with another recipe or seed; use another output folder, or the settings it was started with")
    model.load_state_dict({name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")})
    for name, parameter in model.named_parameters():
        if f"momentum.{name}" in tensors:
            optimizer.state[parameter]["momentum_buffer"] = tensors[f"momentum.{name}"].to(parameter.device)
    return [AnnEpoch(**epoch) for epoch in header["history"]]
