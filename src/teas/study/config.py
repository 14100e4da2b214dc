"""An experiment as one TOML page, validated into frozen dataclasses: unknown keys are refused with the nearest known name."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from teas.ann.architectures import ARCHITECTURES
from teas.errors import TeasError, check_choice
from teas.spiking.network import Semantics
from teas.study.data import AUGMENTATIONS, READERS

CONTROLS = ("uniform", "shuffled")
ALLOCATORS = ("uniform", "damage", "activity", "activity_root", "shuffled")
ANNS = ("resnet20",)


@dataclass(frozen=True)
class DataConfig:
    """Which data, how many training samples are held out to choose by, batch size, augmentation, and what pixels are normalised by."""

    name: str = "digits"
    validation: int = 200
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
        check_choice("data.augmentation", self.augmentation, AUGMENTATIONS)
        check_positive("data.batch", self.batch)
        check_positive("data.validation", self.validation)


@dataclass(frozen=True)
class NetworkConfig:
    """Architecture and neurons; see `teas.IF` and `teas.LIF` for the neurons' options."""

    architecture: str = "mlp"
    hidden: tuple[int, ...] = (800,)
    spiking_output: bool = True
    threshold: float = 1.0
    leak: float = 1.0
    reset: str = "zero"
    v0: float = 0.0
    surrogate: str = "triangle"

    def __post_init__(self) -> None:
        check_choice("network.architecture", self.architecture, tuple(ARCHITECTURES))
        check_positive("network.threshold", self.threshold)


@dataclass(frozen=True)
class TrainingConfig:
    """Start window, epochs and learning rate of the three stages, and the objective (Eqs. 7 and 8)."""

    window: int = 16
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

    def __post_init__(self) -> None:
        for name in ("window", "pretrain_epochs", "retrain_epochs", "pretrain_rate", "retrain_rate", "finetune_rate", "scale"):
            check_positive(f"training.{name}", getattr(self, name))


@dataclass(frozen=True)
class WindowsConfig:
    """Target mean window and how it is reached: every few epochs the few least active layers lose a fraction of their steps."""

    mean: float = 6.0
    exponent: float = 1.0
    every: int = 2
    layers: int = 1
    fraction: float = 0.25

    def __post_init__(self) -> None:
        if not self.mean >= 1:
            raise TeasError(f"windows.mean is {self.mean}; every layer needs at least one step")
        check_positive("windows.every", self.every)
        check_positive("windows.layers", self.layers)


@dataclass(frozen=True)
class ConversionConfig:
    """A trained ANN to convert, how its thresholds are fitted, and the allocators to compare at which mean windows, without retraining.

    weights: a file, relative to the data folder or in full. calibration, probe: training samples for thresholds, and for activity and damage.
    """

    weights: str
    architecture: str = "resnet20"
    threshold: str = "mse"
    per_channel: bool = True
    v0: float = 0.5
    calibration: int = 1000
    probe: int = 1000
    means: tuple[float, ...] = (45, 32, 16, 8, 4)
    allocators: tuple[str, ...] = ("uniform", "damage", "activity", "activity_root", "shuffled")
    firing: str = "two_phase"
    layout: str = "first"
    transform: str = "firing_potential"

    def __post_init__(self) -> None:
        check_choice("conversion.architecture", self.architecture, ANNS)
        for allocator in self.allocators:
            check_choice("an allocator", allocator, ALLOCATORS)
        for mean in self.means:
            if not mean >= 1:
                raise TeasError(f"conversion.means has {mean}; every layer needs at least one step")
        check_positive("conversion.calibration", self.calibration)
        check_positive("conversion.probe", self.probe)


@dataclass(frozen=True)
class Expectation:
    """What the run must reach, adaptive, mean over seeds: accuracy in percent at most this mean window; and before adapting.

    points: for conversions, pairs of mean window and the accuracy that allocation by damage must reach there.
    """

    accuracy: float = 0.0
    full_accuracy: float = 0.0
    mean_window: float = float("inf")
    points: tuple[tuple[float, ...], ...] = ()


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

    def __post_init__(self) -> None:
        for control in self.controls:
            check_choice("a control", control, CONTROLS)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise TeasError(f"seeds are {list(self.seeds)}; give at least one, each once")
        if self.windows.mean > self.training.window:
            raise TeasError(f"windows.mean {self.windows.mean:g} is above training.window {self.training.window}; windows only shrink")


def check_positive(what: str, value: float) -> None:
    """Raise `TeasError` unless the value is finite and above 0."""
    if not 0 < value < float("inf"):
        raise TeasError(f"{what} is {value}; it must be above 0")


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


def build(kind: Any, table: Any, where: str) -> Any:
    """A frozen dataclass from a table; raises `TeasError` for an unknown or missing key, or a value of another type."""
    if not isinstance(table, dict):
        raise TeasError(f"{where} must be a table of keys; got {table!r}")
    types_of = typing.get_type_hints(kind)
    names = [item.name for item in dataclasses.fields(kind)]
    for key in table:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(names)}"
            raise TeasError(f"{where}: unknown key {key!r}; {hint}")
    for item in dataclasses.fields(kind):
        if item.name not in table and item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise TeasError(f"{where}: key {item.name!r} is missing")
    return kind(**{key: _value(types_of[key], value, f"{where}: {key}") for key, value in table.items()})


def _value(wanted: Any, value: Any, where: str) -> Any:
    if isinstance(wanted, types.UnionType):
        if value is None:
            return None
        wanted = typing.get_args(wanted)[0]
    if dataclasses.is_dataclass(wanted):
        return build(wanted, value, where)
    if typing.get_origin(wanted) is tuple:
        if not isinstance(value, (list, tuple)):
            raise TeasError(f"{where} must be a list; got {value!r}")
        return tuple(_value(typing.get_args(wanted)[0], item, where) for item in value)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise TeasError(f"{where} must be {_TYPE_NAMES[wanted]}; got {value!r}")
    return value


_TYPE_NAMES: dict[Any, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
