"""What a network computes beside its weights and windows, as one value."""

from __future__ import annotations

from dataclasses import dataclass

from teas.errors import TeasError, check_choice
from teas.spiking.coding import CODES, ENCODINGS, LAYOUTS
from teas.spiking.neuron import FIRINGS
from teas.spiking.temporal_transform import ROUNDINGS, TRANSFORMS


@dataclass(frozen=True)
class Semantics:
    """What a network computes, beside its weights and windows. Defaults: the paper to the letter.

    code: `rate` (SNN-R), `first_spike` (SNN-T), or `radix` (binary digits: a spike of step t is worth `2^(T-1-t)`; two-phase firing).
    firing: `immediate` (Eq. 1) or `two_phase` (integrate the whole source train, then fire).
    transform: `firing_potential` (Eq. 3), `linear`, or `residual`; between unequal windows under immediate firing.
    layout: re-timed trains fire in the `first` steps or spaced `even`ly (rate code).
    rounding: of first spike times, `sound` or `literal`.
    encoding: of the input: `direct` (analog current), `poisson`, `latency` (first spikes), or `train` (it is a train, `[batch, time, *shape]`).
    """

    code: str = "rate"
    firing: str = "immediate"
    transform: str = "firing_potential"
    layout: str = "first"
    rounding: str = "sound"
    encoding: str = "direct"

    def __post_init__(self) -> None:
        check_choice("code", self.code, CODES)
        check_choice("firing", self.firing, FIRINGS)
        check_choice("transform", self.transform, TRANSFORMS)
        check_choice("layout", self.layout, LAYOUTS)
        check_choice("rounding", self.rounding, ROUNDINGS)
        check_choice("encoding", self.encoding, ENCODINGS)
        if self.code == "first_spike" and self.firing == "two_phase":
            raise TeasError("two_phase firing sums a train and so loses the time of its only spike; use firing 'immediate' with code 'first_spike'")
        if self.code == "first_spike" and self.transform == "residual":
            raise TeasError("transform 'residual' needs spike counts; with code 'first_spike' use 'firing_potential' or 'linear'")
        if self.code == "radix" and self.firing != "two_phase":
            raise TeasError("code 'radix' says a count in binary digits, the largest first, so a neuron must know all of it: use firing 'two_phase'")
        if self.code == "radix" and self.encoding != "direct":
            raise TeasError(f"code 'radix' reads the input as an analog current, encoding 'direct'; encoding {self.encoding!r} goes with code 'rate'")
        if self.encoding == "latency" and self.code == "rate":
            raise TeasError("latency encoding is a first-spike code; use it with code 'first_spike', or 'poisson' with code 'rate'")
