"""The way back: a trainable network that answers as a converted one does, its batch norms put in again."""

from __future__ import annotations

from collections.abc import Iterable

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
        if name not in folded and name in given and name not in activations:
            source = {**given[name]._parameters, **given[name]._buffers}
            for part, value in {**module._parameters, **module._buffers}.items():
                if value is not None:
                    _fill(value, source.get(part), f"{name}.{part}")
    scales = {name: _refold(modules[name], given.get(name), norm, name) for name, norm in folded.items()}
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in folded}
    hooks = [norm.register_forward_pre_hook(_observer(seen[name])) for name, norm in folded.items()]
    training = student.training
    student.eval()
    for inputs in batches:
        student(inputs)
    student.train(training)
    for hook in hooks:
        hook.remove()
    for name, norm in folded.items():
        if not seen[name]:
            raise TeasError("batch norms need at least one batch of inputs for their statistics; the data is empty")
        mean, variance = (torch.stack(values).mean(0) for values in zip(*seen[name], strict=True))
        norm.bias.add_(mean * scales[name])
        norm.weight.copy_((variance + norm.eps).sqrt() * scales[name])
        norm.running_mean.copy_(mean)  # type: ignore[union-attr]
        norm.running_var.copy_(variance)  # type: ignore[union-attr]


def _fill(value: Tensor, source: Tensor | None, name: str) -> None:
    if source is None or source.shape != value.shape:
        found = "none" if source is None else f"shape {list(source.shape)}"
        raise TeasError(f"the network to start from does not fit the one to train: {name} has shape {list(value.shape)} here, {found} there")
    value.copy_(source)


def _refold(linear: nn.Module, source: nn.Module | None, norm: _BatchNorm, name: str) -> Tensor:
    """Give a map the direction of a folded one and keep its length, with a batch norm that only undoes this; returns the ratio of lengths."""
    weight = linear.get_parameter("weight")
    length = weight.flatten(1).norm(dim=1)
    _fill(weight, getattr(source, "weight", None), f"{name}.weight")
    ratio = weight.flatten(1).norm(dim=1) / length
    ratio = torch.where(ratio > 0, ratio, torch.ones_like(ratio))
    weight.div_(ratio.view(-1, *[1] * (weight.dim() - 1)))
    if getattr(linear, "bias", None) is not None:
        linear.get_parameter("bias").zero_()
    norm.running_mean.zero_()  # type: ignore[union-attr]
    norm.running_var.fill_(1 - norm.eps)  # type: ignore[union-attr]
    norm.weight.copy_(ratio)
    _fill(norm.bias, getattr(source, "bias", None), f"{name}.bias")
    return ratio


def _observer(seen: list[tuple[Tensor, Tensor]]):  # type: ignore[no-untyped-def]
    def observe(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].transpose(0, 1).flatten(1)
        seen.append((values.mean(1), values.var(1)))

    return observe
