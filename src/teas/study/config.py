"""An experiment as one TOML page, validated into frozen dataclasses."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from teas.adapt.objective import LOSSES
from teas.adapt.schedule import Adjustment
from teas.adapt.training import PRECISIONS
from teas.ann.architectures import ARCHITECTURES, Design
from teas.ann.own import check_architecture
from teas.errors import TeasError, check_choice
from teas.spiking.semantics import Semantics
from teas.study.ablation_arms import AblationConfig
from teas.study.augmentation import AUGMENTATIONS
from teas.study.conversion_config import ALLOCATORS, LEARNED, ConversionConfig, RetrainingConfig
from teas.study.data import READERS
from teas.study.tables import build, check_positive

CONTROLS = ("uniform", "shuffled")


@dataclass(frozen=True)
class DataConfig:
    """Which data, how many training samples are held out to choose by, batch size, augmentation, and what pixels are normalised by.

    samples: how many of the other training samples to learn from, drawn at random; 0 for all of them.
    """

    name: str = "digits"
    validation: int = 200
    samples: int = 0
    batch: int = 64
    augmentation: str = "none"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and standard deviation per channel to normalise by; None for those of the training set."""
        return (self.mean, self.std) if self.mean or self.std else None

    def __post_init__(self) -> None:
        check_choice("data.name", self.name, tuple(READERS))
        check_choice("data.augmentation", self.augmentation, tuple(AUGMENTATIONS))
        check_positive("data.batch", self.batch)
        check_positive("data.validation", self.validation)


@dataclass(frozen=True)
class NetworkConfig:
    """Architecture and neurons; see `Design`, and `teas.IF` and `teas.LIF` for the neurons' options.

    architecture: one of `teas.ann.architectures.ARCHITECTURES`, or `module:function` of one's own (see `make_own`), which may ask for `shape`,
    `classes` and `neurons`, a function that makes a layer's neurons with these options.
    weights: a file, relative to the data folder or in full, of the trained network, which is then adapted without being trained first.
    """

    architecture: str = "mlp"
    weights: str = ""
    hidden: tuple[int, ...] = (800,)
    spiking_output: bool = True
    pooling: str = "average"
    batch_norm: bool = False
    dropout: float = 0.0
    voters: int = 1
    threshold: float = 1.0
    leak: float = 1.0
    learn_leak: bool = False
    reset: str = "zero"
    v0: float = 0.0
    surrogate: str = "triangle"

    def __post_init__(self) -> None:
        check_architecture("network.architecture", self.architecture, tuple(ARCHITECTURES))
        check_positive("network.threshold", self.threshold)
        assert self.design

    @property
    def design(self) -> Design:
        """What the architecture leaves free."""
        return Design(self.hidden, self.spiking_output, self.pooling, self.batch_norm, self.dropout, self.voters)


@dataclass(frozen=True)
class TrainingConfig:
    """Start window, epochs and learning rate of the stages, and the objective (Eqs. 7 and 8).

    warmup_epochs, warmup_window: epochs before pre-training at a short uniform window, which cost that much less; 0 is the paper.
    loss, parts, recompute, precision: see `Stage`.
    """

    window: int = 16
    warmup_epochs: int = 0
    warmup_window: int = 4
    warmup_rate: float = 5e-4
    pretrain_epochs: int = 150
    pretrain_rate: float = 5e-4
    retrain_epochs: int = 20
    retrain_rate: float = 5e-4
    finetune_epochs: int = 10
    finetune_rate: float = 1e-4
    regulariser: str = "sound"
    strength: float = 0.01
    scale: float = 1.0
    weight_decay: float = 0.0
    loss: str = "rate"
    parts: int = 1
    recompute: bool = False
    precision: str = "float32"

    def __post_init__(self) -> None:
        check_choice("training.loss", self.loss, LOSSES)
        check_choice("training.precision", self.precision, PRECISIONS)
        for name in (
            "parts",
            "window",
            "pretrain_epochs",
            "retrain_epochs",
            "warmup_window",
            "warmup_rate",
            "pretrain_rate",
            "retrain_rate",
            "finetune_rate",
            "scale",
        ):
            check_positive(f"training.{name}", getattr(self, name))


@dataclass(frozen=True)
class WindowsConfig:
    """Target mean window and how it is reached: every few epochs the few layers of least score lose a fraction of their steps (see `Adjustment`)."""

    mean: float = 6.0
    exponent: float = 1.0
    every: int = 2
    layers: int = 1
    fraction: float = 0.25
    score: str = "activity"

    def __post_init__(self) -> None:
        if not self.mean >= 1:
            raise TeasError(f"windows.mean is {self.mean}; every layer needs at least one step")
        assert self.adjustment

    @property
    def adjustment(self) -> Adjustment:
        """The schedule as training takes it."""
        return Adjustment(self.every, self.layers, self.fraction, self.mean, self.exponent, self.score)


@dataclass(frozen=True)
class Expectation:
    """What the run must reach, adaptive, mean over seeds: accuracy in percent at most this mean window; and before adapting.

    points: for conversions, mean window, and the accuracy that must be reached there by the windows of `allocator`; a third number is the share of images
    in percent that must get the ANN's answer.
    """

    accuracy: float = 0.0
    full_accuracy: float = 0.0
    mean_window: float = float("inf")
    points: tuple[tuple[float, ...], ...] = ()
    allocator: str = "damage"

    def __post_init__(self) -> None:
        check_choice("expect.allocator", self.allocator, (*ALLOCATORS, LEARNED))
        for point in self.points:
            if len(point) not in (2, 3):
                raise TeasError(f"expect.points has {list(point)}; a point is a mean window, an accuracy and, where wanted, an agreement with the ANN")


@dataclass(frozen=True)
class Experiment:
    """One experiment: a claim, what to run for it, and what to expect."""

    name: str
    claim: str = ""
    seeds: tuple[int, ...] = (0,)
    controls: tuple[str, ...] = CONTROLS
    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    semantics: Semantics = field(default_factory=Semantics)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    windows: WindowsConfig = field(default_factory=WindowsConfig)
    expect: Expectation = field(default_factory=Expectation)
    conversion: ConversionConfig | None = None
    retraining: RetrainingConfig | None = None
    ablation: AblationConfig | None = None

    def __post_init__(self) -> None:
        for control in self.controls:
            check_choice("a control", control, CONTROLS)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise TeasError(f"seeds are {list(self.seeds)}; give at least one, each once")
        if self.ablation and self.conversion:
            raise TeasError("an ablation is of a directly trained network; leave out the table [ablation] or [conversion]")
        if self.retraining and not self.conversion:
            raise TeasError("retraining is for converted networks: add a table [conversion]")
        if self.retraining and self.retraining.unlabelled == self.data.name:
            raise TeasError(f"retraining.unlabelled is {self.data.name!r}, the data set itself, whose held-out images would be learned; name another one")
        if self.retraining and self.conversion and self.conversion.firing != "two_phase" and not self.retraining.through_time:
            raise TeasError(
                f"conversion.firing is {self.conversion.firing!r}, but the recipe of a retraining quantises activations as two_phase firing does; "
                "set retraining.through_time to some epochs of training step by step"
            )
        if self.windows.mean > self.training.window:
            raise TeasError(f"windows.mean {self.windows.mean:g} is above training.window {self.training.window}; windows only shrink")


def parse(text: str, source: str, overrides: tuple[str, ...] = ()) -> Experiment:
    """An experiment from TOML and `key=value` overrides (dotted keys, TOML values or bare words)."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TeasError(f"{source} is not valid TOML: {error}") from None
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign:
            raise TeasError(f"--set {override!r}: write key=value, for example training.window=8")
        *path, last = key.strip().split(".")
        at = table
        for part in path:
            at = at.setdefault(part, {})
            if not isinstance(at, dict):
                raise TeasError(f"--set {override!r}: {part!r} is a value, not a table")
        at[last] = _toml_value(value)
    experiment = build(Experiment, table, source)
    assert isinstance(experiment, Experiment)
    return experiment


def read(path: Path, overrides: tuple[str, ...] = ()) -> Experiment:
    """The experiment of a TOML file; raises `TeasError` for anything that is not one."""
    try:
        return parse(path.read_text(), str(path), overrides)
    except (OSError, UnicodeDecodeError) as error:
        raise TeasError(f"cannot read experiment {path}: {error}") from None


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string
