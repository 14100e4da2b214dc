"""Amplitudes folded into the synapses that read them, so that these read spike counts themselves."""

from __future__ import annotations

import copy

import torch
from torch import fx, nn

from teas.spiking.network import SpikingNetwork
from teas.spiking.neuron import Amplitude


@torch.no_grad()
def fold_amplitudes(network: SpikingNetwork) -> SpikingNetwork:
    """A copy in which convolutions and linear maps of a layer's weighted spikes read its spikes: `w <- w·a` per input channel.

    Other readers (sums, poolings, a readout behind them) keep the amplitude. The same network up to float32 rounding. A converted network
    then has the maps of whole counts that integer kernels and `to_onnx` need (after `teas.engine.quantise`).
    """
    module = copy.deepcopy(network.module)
    if not isinstance(module, fx.GraphModule):
        return SpikingNetwork(module, network.windows, **vars(network.semantics)).train(network.training)
    uses = [str(node.target) for node in module.graph.nodes if node.op == "call_module"]
    for node in list(module.graph.nodes):
        amplitude = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(amplitude, Amplitude):
            continue
        for reader in list(node.users):
            child = module.get_submodule(str(reader.target)) if reader.op == "call_module" else None
            if not isinstance(child, (nn.Conv1d, nn.Conv2d, nn.Linear)) or uses.count(str(reader.target)) > 1:
                continue
            factor = amplitude.value
            if factor.dim():
                if isinstance(child, nn.Linear) and child.in_features != len(factor):
                    continue
                groups = getattr(child, "groups", 1)
                rows = factor.view(groups, 1, -1).expand(groups, len(child.weight) // groups, -1).reshape(len(child.weight), -1)
                factor = rows.view(*rows.shape, *[1] * (child.weight.dim() - 2))
            child.weight.mul_(factor)
            reader.replace_input_with(node, node.args[0])
        if not node.users:
            module.graph.erase_node(node)
    module.recompile()
    return SpikingNetwork(module, network.windows, **vars(network.semantics)).train(network.training)
