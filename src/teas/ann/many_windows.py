"""One set of weights for many windows: several windows in every step of training, each with its own batch norms and thresholds."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from teas.ann.quantised import QuantisedReLU, quantised_activations, set_windows
from teas.errors import TeasError
from teas.spiking.checks import inputs_of

Norm = nn.modules.batchnorm._BatchNorm


class Together(nn.Module):
    """Networks of quantised activations for several windows with the same weights: each has batch norms and thresholds of its own, all else is shared.

    networks: of the same modules, by window; each gets this window in all its layers, and the weights of the first.
    Source: switchable batch norm, Yu et al., "Slimmable neural networks" (ICLR 2019), here for windows.
    Raises `TeasError` for fewer than two windows, or networks of other modules.
    """

    def __init__(self, networks: Mapping[int, nn.Module]):
        super().__init__()
        if len(networks) < 2:
            raise TeasError(f"networks for many windows need at least two of these; got {', '.join(map(str, networks)) or 'none'}")
        self.windows = tuple(sorted(networks))
        self.networks = nn.ModuleDict({str(window): networks[window] for window in self.windows})
        shared = {name: module for name, module in self.at(self.windows[0]).named_modules() if not isinstance(module, (Norm, QuantisedReLU))}
        for window in self.windows:
            network = self.at(window)
            set_windows(network, dict.fromkeys(quantised_activations(network), window))
            modules = dict(network.named_modules())
            for name, module in shared.items():
                twin = modules.get(name)
                if twin is None or _shapes(twin) != _shapes(module):
                    raise TeasError(f"the networks for {self.windows[0]} and {window} steps differ at {name!r}; make them from one network")
                twin._parameters.update(module._parameters)
                twin._buffers.update(module._buffers)

    def at(self, window: float) -> nn.Module:
        """The network for this window, or for the one whose ratio to it is nearest to 1; it still shares its weights."""
        nearest = min(self.windows, key=lambda known: abs(math.log(known / window)))
        return self.networks[str(nearest)]


def _shapes(module: nn.Module) -> dict[str, torch.Size | None]:
    """Shapes of a module's own parameters and buffers."""
    return {name: None if value is None else value.shape for name, value in (*module._parameters.items(), *module._buffers.items())}


def sandwich(windows: tuple[int, ...], draw: random.Random) -> tuple[int, ...]:
    """Windows of one step of training, of these rising ones: the shortest and the longest, and one between them at random, where there is one.

    Source: the sandwich rule, Yu and Huang, "Universally slimmable networks" (ICCV 2019).
    """
    shortest, *between, longest = windows
    return (shortest, *draw.sample(between, min(1, len(between))), longest)


@torch.no_grad()
def recalibrate(ann: nn.Module, batches: Iterable[Tensor | tuple[Tensor, ...]]) -> None:
    """Measure the statistics of all batch norms anew, in place: mean over the batches of each batch's mean and variance, nothing else is changed.

    For windows other than those that they were gathered at (see `set_windows`). batches: inputs `[batch, *shape]`, or tuples that begin with them.
    Raises `TeasError` for no batch, or one of a single sample, which has no variance.
    """
    norms = [module for module in ann.modules() if isinstance(module, Norm) and module.track_running_stats]
    before = [(module, module.training) for module in ann.modules()]
    momenta = [norm.momentum for norm in norms]
    ann.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum, norm.training = None, True  # None: a plain mean over all batches
    seen = 0
    try:
        for inputs in inputs_of(batches):
            if len(inputs) < 2:
                raise TeasError(f"recalibrating batch norms needs batches of at least two samples; got one of {len(inputs)}")
            ann(inputs)
            seen += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in before:
            module.training = training
    if norms and not seen:
        raise TeasError("recalibrating batch norms needs at least one batch; the data is empty")
