"""Batch norm through time, taken out of a trained network: its statistics and factors move into the weights before it."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import asdict

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from teas.spiking.network import SpikingNetwork

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def fold_batch_norms(network: SpikingNetwork) -> SpikingNetwork:
    """The network in evaluation mode, on copies of its weights, with every batch norm that alone reads a convolution or linear map folded into it.

    `γ·(W·x + b - μ)/σ + β` becomes `W'·x + b'`: one linear map per step, at any window. A batch norm that stands elsewhere stays.
    """
    module = copy.deepcopy(network.module).eval()
    uses = Counter(str(operation.target) for layer in network.layers for operation in layer.synapses if operation.kind == "call_module")
    for layer in network.layers:
        found = {operation.name: operation for operation in layer.synapses}
        readers = Counter(name for operation in layer.synapses for name in operation.inputs)
        for operation in layer.synapses:
            norm = operation.child(module)
            source = found.get(operation.inputs[0]) if isinstance(norm, _BatchNorm) else None
            if source is None or source.kind != "call_module" or readers[source.name] > 1 or uses[str(source.target)] > 1 or uses[str(operation.target)] > 1:
                continue
            linear = module.get_submodule(str(source.target))
            if isinstance(norm, _BatchNorm) and isinstance(linear, (nn.Linear, *_CONVOLUTIONS)):
                folded: nn.Module = fuse_linear_bn_eval(linear, norm) if isinstance(linear, nn.Linear) else fuse_conv_bn_eval(linear, norm)
                module.set_submodule(str(source.target), folded)
                module.set_submodule(str(operation.target), nn.Identity())
    return SpikingNetwork(module, network.windows, **asdict(network.semantics)).eval()
