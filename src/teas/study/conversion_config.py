"""What an experiment says of an ANN that is converted, and of its retraining."""

from __future__ import annotations

from dataclasses import dataclass, field

from teas.ann.convert import TRAINABLE, check_margin
from teas.ann.learned_windows import LONGEST
from teas.ann.networks import ANNS
from teas.ann.own import check_architecture
from teas.ann.thresholds import METHODS, OUTPUT
from teas.ann.training import Recipe
from teas.errors import TeasError, check_choice
from teas.exchange.native import MAX_WINDOW
from teas.spiking.coding import RADIX_LONGEST
from teas.spiking.semantics import Semantics
from teas.study.tables import check_positive

RANDOM = "random"  # as weights: none, only to try the road
ALLOCATORS = ("uniform", "damage", "activity", "activity_root", "shuffled", "staircase")
DAMAGE_WINDOWS = {"rate": (2, 4, 8, 16, 32), "radix": (1, 2, 3, 4, 5, 6)}
DAMAGE_FULL = {"rate": 64, "radix": 8}
LEARNED = "learned"  # by gradient, from uniform windows: only while retraining


@dataclass(frozen=True)
class ConversionConfig:
    """An ANN to convert, how its thresholds are fitted, and the allocators to compare at which mean windows, without retraining.

    architecture: one of `teas.ann.networks.ANNS`, or `module:function` of one's own (see `make_own`), which may ask for `classes`.
    weights: a file, relative to the data folder or in full, or `random`, to try the road without; pretraining: how to train the ANN, from
    these weights or from none. margin: see `convert`.
    calibration, probe: training samples for thresholds, and for activity and damage. classes: of the ANN, where the data has fewer.
    code: `rate`, or `radix`, under two-phase firing. damage_windows, damage_full: windows at which the damage of one layer is measured, and the window of
    all others then. longest: no layer is allocated more steps. Left out, these three suit the code.
    """

    weights: str = ""
    classes: int = 0
    pretraining: Recipe | None = None
    architecture: str = "resnet20"
    threshold: str = "mse"
    per_channel: bool = True
    v0: float = 0.5
    margin: float = 1.0
    bias_correction: bool = False
    calibration: int = 1000
    probe: int = 1000
    means: tuple[float, ...] = (45, 32, 16, 8, 4)
    allocators: tuple[str, ...] = ("uniform", "damage", "activity", "activity_root", "shuffled")
    firing: str = "two_phase"
    code: str = "rate"
    layout: str = "first"
    transform: str = "firing_potential"
    damage_windows: tuple[int, ...] = ()
    damage_full: int = 0
    longest: int = 0

    def __post_init__(self) -> None:
        check_choice("conversion.code", self.code, TRAINABLE)
        for name, suitable in (("damage_windows", DAMAGE_WINDOWS), ("damage_full", DAMAGE_FULL), ("longest", LONGEST)):
            if not getattr(self, name):
                object.__setattr__(self, name, suitable[self.code])
        Semantics(**self.semantics)
        if not self.weights and self.pretraining is None:
            raise TeasError("a conversion needs a trained ANN: give conversion.weights, a file, or conversion.pretraining, how to train it")
        check_architecture("conversion.architecture", self.architecture, tuple(ANNS))
        check_choice("conversion.threshold", self.threshold, (*METHODS, OUTPUT))
        check_margin(self.margin, self.threshold)
        for allocator in self.allocators:
            check_choice("an allocator", allocator, ALLOCATORS)
        for mean in self.means:
            if not mean >= 1:
                raise TeasError(f"conversion.means has {mean}; every layer needs at least one step")
        if not 1 <= min(self.damage_windows) <= max(self.damage_windows) < self.damage_full:
            raise TeasError(
                f"conversion.damage_windows are {list(self.damage_windows)} and conversion.damage_full {self.damage_full}; give windows of at least one step, "
                "all shorter than the full one"
            )
        limit, largest = RADIX_LONGEST if self.code == "radix" else MAX_WINDOW, max(self.means, default=1)
        if not largest <= self.longest <= limit:
            raise TeasError(
                f"conversion.longest is {self.longest}; it must be at least the largest of conversion.means, which is {largest:g}, and at most {limit}"
            )
        if self.damage_full > limit:
            raise TeasError(f"conversion.damage_full is {self.damage_full}; windows of code {self.code!r} have at most {limit} steps")
        check_positive("conversion.calibration", self.calibration)
        check_positive("conversion.probe", self.probe)

    @property
    def semantics(self) -> dict[str, str]:
        """The options of the networks that conversion makes."""
        return {"code": self.code, "firing": self.firing, "layout": self.layout, "transform": self.transform}


@dataclass(frozen=True)
class RetrainingConfig:
    """Converted networks to retrain with their windows in the loop: at which mean windows, allocated how (or `learned`), and by which recipe.

    The recipe trains quantised activations, which is two-phase firing; with `recipe.together` one network for all of these windows. through_time:
    epochs after it, step by step under the conversion's own firing, layout and transform (STBP, Eqs. 4 and 5), which immediate firing needs;
    through_time_rate: their learning rate. unlabelled: another data set, whose training images are learned from too, by the teacher's answers
    alone; an epoch then is one pass over both. tuned: epochs in which thresholds and biases alone are fitted to the ANN's logits on the
    calibration inputs, instead of the recipe (see `Conversion.tuned`); 0 for none.
    teachers: run folders of networks for the same data that teach in place of the ANN; before training they answer each image, labelled or not, in `views`
    augmented views, and training draws from these. A teacher so many times larger costs no more than one of the network's own size. composed: so many
    views more, each with a part of another image of the set pasted in (CutMix); they are learned from by the answers alone. With
    `recipe.mirrored` they answer the mirror image of each view too, and the mean is learned, as it is of an ANN's answers.
    start: a run folder of the same architecture, whose network training starts from instead of the ANN: activity and damage are measured on it, and
    learned windows start from its own.
    """

    means: tuple[float, ...] = (4,)
    allocators: tuple[str, ...] = ("uniform", "damage")
    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=20, rate=0.03, weight_decay=1e-4, distillation=0.5))
    through_time: int = 0
    through_time_rate: float = 1e-4
    unlabelled: str = ""
    tuned: int = 0
    teachers: tuple[str, ...] = ()
    views: int = 8
    composed: int = 0
    start: str = ""

    def __post_init__(self) -> None:
        check_positive("retraining.views", self.views)
        if self.composed < 0 or (self.composed and not self.teachers):
            raise TeasError(f"retraining.composed is {self.composed}; it is a number of views that retraining.teachers answer, 0 for none")
        if self.teachers and (self.tuned or self.recipe.mixup or not self.recipe.distillation):
            raise TeasError("retraining.teachers answer to fixed views, once: leave out tuned and recipe.mixup, and set recipe.distillation above 0")
        if self.start and (self.tuned or self.recipe.together):
            raise TeasError("retraining.start is one network to train further: leave out tuned and recipe.together")
        if self.tuned < 0 or (self.tuned and (self.recipe.together or self.through_time or self.unlabelled or LEARNED in self.allocators)):
            raise TeasError(
                "retraining.tuned is a number of epochs and takes the place of the recipe: leave out together, through_time, unlabelled and learned"
            )
        if self.unlabelled and not self.recipe.distillation:
            raise TeasError(f"retraining.unlabelled is {self.unlabelled!r}: without labels only a teacher can be learned from; set recipe.distillation above 0")
        check_positive("retraining.through_time_rate", self.through_time_rate)
        if self.through_time < 0:
            raise TeasError(f"retraining.through_time is {self.through_time}; it is a number of epochs, 0 for none")
        for allocator in self.allocators:
            check_choice("an allocator of retraining", allocator, (*ALLOCATORS, LEARNED))
        if LEARNED in self.allocators and self.recipe.together:
            raise TeasError("learned windows change while they are learned: leave recipe.together out")
        for mean in self.means:
            if not mean >= 1:
                raise TeasError(f"retraining.means has {mean}; every layer needs at least one step")
