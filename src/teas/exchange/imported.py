"""Networks of other libraries: their neurons and wrappers replaced by ours, their time axis or time loop taken out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from teas.errors import TeasError
from teas.exchange.unrolled import one_step
from teas.spiking.network import SpikingNetwork
from teas.spiking.neuron import IF, LIF
from teas.spiking.time_windows import TimeWindows
from teas.spiking.trace import OneInputTracer, untraceable, without_side_effects

Replace = Callable[[Any, str], nn.Module | None]
Windows = TimeWindows | Mapping[str, int] | int | None


class Neurons(nn.Module):
    """Stands where another library's neurons were while the forward pass is traced; takes and returns what they do."""

    def __init__(self, fire: IF, states: tuple[str, ...] = ()):
        super().__init__()
        self.fire = fire
        for name in states:  # methods that make an initial state: it is always zero here
            setattr(self, name, lambda *_: None)

    def forward(self, *_: Any) -> Tensor:
        raise AssertionError("a leaf of the trace")


class _Tracer(OneInputTracer):
    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return isinstance(module, Neurons) or super().is_leaf_module(module, path)


def spiking(
    threshold: float | Tensor, *, leak: float = 1.0, gain: float = 1.0, strict: bool = False, dtype: torch.dtype, learn: bool = False, **options: Any
) -> IF:
    """Neurons with `V <- leak·V + gain·z`, written as `V/gain`, so that the input stays as it is and the threshold is `θ/gain`.

    strict: `V > θ` fires and a tie does not: the threshold is the next larger number of the type.
    """
    theta = torch.as_tensor(threshold).detach().double() / gain
    if not bool((theta > 0).all()):
        raise TeasError(f"the threshold is {theta.min().item() * gain:g} above the reset potential; it must be positive")
    exact = theta.to(dtype)
    theta = torch.nextafter(exact, torch.full_like(exact, float("inf"))) if strict else exact
    theta = theta.squeeze() if theta.numel() == 1 else theta
    options = {"surrogate": "arctan", "learn_threshold": learn, **options}
    if strict and options.get("reset") == "subtract":  # what is taken away is θ itself
        options["reset_by"] = options.get("reset_by", 1.0) * float(exact.flatten()[0].double() / theta.flatten()[0].double())
    fire = IF(theta, **options) if leak == 1 else LIF(leak, theta, **options)
    fire.threshold.data = theta.clone()  # in its own type
    return fire


def without_state(module: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """A module of one of torch's own classes from a subclass that adds only how steps are handled."""
    plain = copy.copy(module)
    plain.__class__ = kind
    return plain


def refuse_foreign(module: nn.Module, path: str, package: str, handled: str) -> None:
    """Raise `TeasError` for a module of the library that nothing is known about."""
    if type(module).__module__.split(".")[0] == package:
        raise TeasError(f"{path or 'the network'} is a {package} {type(module).__name__}, which has no equal here; handled are {handled}")


def first_type(module: nn.Module, package: str) -> bool:
    """Whether the module's own class is the library's, not a subclass that a user wrote."""
    return type(module).__module__.split(".")[0] == package


def _translated(module: nn.Module, replace: Replace, path: str, done: dict[int, nn.Module]) -> nn.Module:
    if id(module) not in done:
        own = replace(module, path)
        if own is None:
            own = copy.copy(module)
        own.__dict__["_modules"] = dict(own._modules)
        done[id(module)] = own
        if not isinstance(own, Neurons):
            for name, child in own._modules.items():
                if child is not None:
                    own._modules[name] = _translated(child, replace, f"{path}.{name}" if path else name, done)
    return done[id(module)]


def import_network(net: nn.Module, replace: Replace, windows: Windows, time_axis: bool, **semantics: str) -> SpikingNetwork:
    """The spiking network of another library's module, on copies of its weights.

    replace: our module for one of theirs, or None to look inside. time_axis: its forward pass handles tensors `[time, batch, *neuron]`.
    windows: steps, where the module itself does not say how many it runs.
    """
    module = copy.deepcopy(_translated(net, replace, "", {}))
    if isinstance(module, Neurons):
        module = nn.Sequential(module)
    training = net.training
    module.eval()  # what a forward pass does in training only is not part of the network
    try:
        graph = _Tracer().trace(module)
    except TeasError:
        raise
    except Exception as error:  # the module's own code runs here and may raise anything
        raise untraceable(net, error) from error
    without_side_effects(graph, module)
    steps, is_train = one_step(graph, {name for name, child in module.named_modules() if isinstance(child, Neurons)}, time_axis)
    for name, child in list(module.named_modules()):
        if isinstance(child, Neurons):
            parent, _, last = name.rpartition(".")
            setattr(module.get_submodule(parent), last, child.fire)
    plain = fx.GraphModule(module, graph, type(net).__name__).train(training)
    plain.delete_all_unused_submodules()
    if windows is None and steps is None:
        raise TeasError(f"{type(net).__name__} does not say how many steps it runs; give windows=8, or a mapping from layer name to steps")
    if is_train:
        semantics.setdefault("encoding", "train")
    network = SpikingNetwork(plain, windows if windows is not None else steps or 1, **semantics)
    return network.train(training)
