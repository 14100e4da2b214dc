"""The way back: a trainable network that answers as a converted one does, its batch norms put in again."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from teas.ann.quantised import quantised_activations, set_windows
from teas.errors import TeasError
from teas.spiking.network import SpikingNetwork


@torch.no_grad()
def unfold(student: nn.Module, network: SpikingNetwork, batches: Iterable[Tensor]) -> None:
    """Make a trainable network (see `Conversion.trainable`) answer as a converted one of the same ANN does, in place: weights, thresholds, windows.

    A filter `W'·x + b'` that a batch norm was folded into comes back as `γ·(W·x - μ)/σ + β`: `W` is `W'` with the length that it has in the student, for
    which learning rates were made, `μ` and `σ` are mean and deviation of `W·x` over the batches of inputs, `[batch, *shape]`, and `γ` and `β` undo both.
    Raises `TeasError` for a network of other layers or shapes, or without any batch.
    """
    if not isinstance(student, fx.GraphModule):
        raise TeasError(f"{type(student).__name__} is not a network made by Conversion.trainable; take one of these")
    modules, given = dict(student.named_modules()), dict(network.module.named_modules())
    activations = quantised_activations(student)
    if set(activations) != set(network.spiking_layers):
        raise TeasError(f"the network to start from has the layers {', '.join(network.spiking_layers)}; the one to train {', '.join(activations)}")
    set_windows(student, network.windows)
    for name, activation in activations.items():
        _fill(activation.threshold, network.neurons(name).threshold, f"thresholds of {name}")
    folded = {
        str(node.args[0].target): norm
        for node in student.graph.nodes
        if node.op == "call_module" and node.target not in given and isinstance(norm := modules[node.target], _BatchNorm)
    }
    for name, module in modules.items():
        if name in given and name not in folded and name not in activations:
            _take(module, given[name], name)
    ratios = {name: _refold(modules[name], given.get(name), norm, name) for name, norm in folded.items()}
    for name, (mean, variance) in _moments(student, folded, batches).items():
        norm = folded[name]
        norm.bias.add_(mean * ratios[name])
        norm.weight.copy_((variance + norm.eps).sqrt() * ratios[name])
        _buffer(norm.running_mean).copy_(mean)
        _buffer(norm.running_var).copy_(variance)


def _fill(value: Tensor, source: Tensor | None, name: str) -> None:
    if source is None or source.shape != value.shape:
        found = "none" if source is None else f"shape {list(source.shape)}"
        raise TeasError(f"the network to start from does not fit the one to train: {name} has shape {list(value.shape)} here, {found} there")
    value.copy_(source)


def _take(module: nn.Module, source: nn.Module, name: str) -> None:
    """Give a module the parameters and buffers of another; a bias that it has not (corrected biases leave one) becomes its own."""
    here, there = ({**each._parameters, **each._buffers} for each in (module, source))
    for part, value in here.items():
        if value is not None:
            _fill(value, there.get(part), f"{name}.{part}")
        elif there.get(part) is not None:
            setattr(module, part, copy.deepcopy(there[part]))


def _refold(linear: nn.Module, source: nn.Module | None, norm: _BatchNorm, name: str) -> Tensor:
    """Give a map the direction of a folded one and keep its length, with a batch norm that only undoes this; returns the ratio of lengths."""
    weight = linear.get_parameter("weight")
    before = weight.flatten(1).norm(dim=1)
    _fill(weight, getattr(source, "weight", None), f"{name}.weight")
    after = weight.flatten(1).norm(dim=1)
    ratio = torch.where((before > 0) & (after > 0), after / before, torch.ones_like(after))
    weight.div_(ratio.view(-1, *[1] * (weight.dim() - 1)))
    if getattr(linear, "bias", None) is not None:
        linear.get_parameter("bias").zero_()
    if not norm.affine:
        norm.affine, norm.weight, norm.bias = True, nn.Parameter(torch.ones_like(ratio)), nn.Parameter(torch.zeros_like(ratio))
    _buffer(norm.running_mean).zero_()
    _buffer(norm.running_var).fill_(1 - norm.eps)
    norm.weight.copy_(ratio)
    _fill(norm.bias, getattr(source, "bias", None), f"{name}.bias")
    return ratio


def _moments(student: nn.Module, norms: Mapping[str, _BatchNorm], batches: Iterable[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean over the batches of the mean and the variance that reach each batch norm, while all of them only undo what was done to the weights.

    A batch counts as often as it has samples: the last may be a small one.
    """
    sizes: list[int] = []
    seen: dict[str, list[Tensor]] = {name: [] for name in norms}

    def observe(name: str, values: Tensor) -> None:
        flat = values.transpose(0, 1).flatten(1)
        if flat.shape[1] < 2:
            raise TeasError(f"the statistics of batch norms need at least two values per channel; {name} sees {list(values.shape)} (a batch of one sample?)")
        seen[name].append(torch.stack([flat.mean(1), flat.var(1)]))

    hooks = [norm.register_forward_pre_hook(lambda _, inputs, name=name: observe(name, inputs[0])) for name, norm in norms.items()]
    training = student.training
    student.eval()
    try:
        for inputs in batches:
            student(inputs)
            sizes.append(len(inputs))
    finally:
        student.train(training)
        for hook in hooks:
            hook.remove()
    if not all(seen.values()):
        raise TeasError("the statistics of batch norms need at least one batch; the data is empty")
    found = {name: torch.stack([size * each for size, each in zip(sizes, moments, strict=True)]).sum(0) / sum(sizes) for name, moments in seen.items()}
    return {name: (moments[0], moments[1]) for name, moments in found.items()}


def _buffer(value: Tensor | None) -> Tensor:
    assert value is not None  # a batch norm without running statistics is never folded
    return value
