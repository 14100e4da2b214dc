"""Bias correction: shift each synapse's bias by what spikes miss of the ANN's mean activation."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from teas.errors import TeasError
from teas.spiking.network import SpikingNetwork
from teas.spiking.neuron import Emission

_WITH_BIAS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)


@torch.no_grad()
def correct_biases(network: SpikingNetwork, means: Mapping[str, Tensor], batches: Sequence[Tensor]) -> SpikingNetwork:
    """A copy of a converted network whose layers, first to last, answer with the ANN's mean activation in each channel.

    `b <- b + mean(a) - mean(θ·n/T)`, over the inputs and positions; each layer is measured with those before it corrected.
    means: of the ANN's activations on the same inputs, `[channel]`, by layer. Layers that no synapse of their own feeds (shared or without
    weights) are left as they are. Source: Li et al., "A free lunch from ANN" (ICML 2021), light calibration.
    """
    module = network.module
    if not isinstance(module, fx.GraphModule):
        raise TeasError(f"bias correction is for networks made by teas.convert; this one is a {type(module).__name__}")
    fixed = SpikingNetwork(copy.deepcopy(module), network.windows, **vars(network.semantics)).eval()
    emitted: list[dict[str, Emission]] = [{} for _ in batches]
    for number, layer in enumerate(fixed.layers[: len(fixed.spiking_layers)]):
        found = own_synapse(fixed.module, layer.name)
        if found is not None:
            synapse = found[1]
            rates = [_rates(fixed.emission(layer, inputs, sources)) for inputs, sources in zip(batches, emitted, strict=True)]
            missing = means[layer.name] - torch.stack([len(rate) * channel_means(rate) for rate in rates]).sum(0) / sum(map(len, rates))
            synapse.bias = nn.Parameter(missing if synapse.bias is None else synapse.bias + missing)
        read_later = {source for later in fixed.layers[number + 1 :] for source in later.sources}
        for inputs, sources in zip(batches, emitted, strict=True):
            sources[layer.name] = fixed.emission(layer, inputs, sources)
            for name in set(sources) - read_later:
                del sources[name]
    return fixed


def _rates(emission: Emission) -> Tensor:
    """A layer's rates in units of the ANN's activation, `θ·n/T`."""
    return emission.threshold * emission.rate


def channel_means(values: Tensor) -> Tensor:
    """Mean of `[batch, channel, *position]` per channel."""
    return values.mean([axis for axis in range(values.dim()) if axis != 1])


def own_synapse(module: nn.Module, layer: str) -> tuple[str, nn.Conv2d | nn.Linear] | None:
    """Name and module of the synapse with weights that feeds a layer alone, directly or as one term of a sum."""
    assert isinstance(module, fx.GraphModule)
    calls = [node for node in module.graph.nodes if node.op == "call_module"]
    waiting = list(next(node for node in calls if node.target == layer).all_input_nodes)
    while waiting:
        node = waiting.pop()
        if len(node.users) > 1:
            continue
        found = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(found, _WITH_BIAS) and sum(call.target == node.target for call in calls) == 1:
            return str(node.target), found  # type: ignore[return-value]
        if getattr(node.target, "__name__", node.target) in ("add", "iadd"):
            waiting += node.all_input_nodes
    return None
