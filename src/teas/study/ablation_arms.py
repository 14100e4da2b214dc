"""The arms of an ablation of retraining, and which of them an experiment compares."""

from __future__ import annotations

from dataclasses import dataclass

from teas.errors import TeasError, check_choice


@dataclass(frozen=True)
class Arm:
    """How one arm of an ablation differs from the experiment: regulariser and surrogate (None: the experiment's own), and whether it is trained at all."""

    title: str
    regulariser: str | None = None
    surrogate: str | None = None
    trained: bool = True


ARMS = {
    "not_retrained": Arm("not retrained", trained=False),
    "retrained": Arm("retrained, no regulariser", regulariser="none"),
    "regularised": Arm("retrained, regularised", regulariser="sound"),
    "literal_regulariser": Arm("regulariser as printed (Eq. 6)", regulariser="literal"),
    "literal_surrogate": Arm("surrogate as printed (Eq. 5)", surrogate="literal"),
}


@dataclass(frozen=True)
class AblationConfig:
    """Arms that start from one trained network and are compared epoch by epoch and layer by layer (Figs. 6 and 7); see `ARMS`."""

    arms: tuple[str, ...] = ("not_retrained", "retrained", "regularised")

    def __post_init__(self) -> None:
        for arm in self.arms:
            check_choice("an arm of an ablation", arm, tuple(ARMS))
        if not self.arms or len(set(self.arms)) != len(self.arms):
            raise TeasError(f"ablation.arms is {list(self.arms)}; give at least one, each once")
