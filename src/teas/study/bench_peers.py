"""The same network in other libraries: our neurons replaced by theirs, then stepped through time as their manuals do."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from teas.spiking.network import SpikingNetwork
from teas.spiking.neuron import IF
from teas.spiking.trace import INPUT

Run = Callable[[Tensor], Tensor]


def replaced(module: nn.Module, make: Callable[[IF], nn.Module]) -> tuple[nn.Module, list[Any]]:
    """A copy with every `IF` replaced, and what replaced them."""
    module = copy.deepcopy(module)
    made: list[Any] = []
    for path, child in list(module.named_modules()):
        if isinstance(child, IF):
            owner, _, name = path.rpartition(".")
            made.append(make(child))
            setattr(module.get_submodule(owner), name, made[-1])
    return module.eval(), made


def _stepped(module: nn.Module, steps: int, reset: Callable[[], None]) -> Run:
    """The mean output over the steps, all layers together at each."""

    def run(inputs: Tensor) -> Tensor:
        reset()
        total = module(inputs)
        for _ in range(steps - 1):
            total = total + module(inputs)
        return total / steps

    return run


def spikingjelly(network: SpikingNetwork, steps: int) -> Run:
    """Single-step mode, all layers at every step."""
    from spikingjelly.activation_based import functional, neuron

    def make(fire: IF) -> nn.Module:
        node: nn.Module = neuron.IFNode(v_threshold=float(fire.threshold), v_reset=None)
        return node

    module, made = replaced(network.module, make)
    starts = [neurons.v0 * float(neurons.threshold) for neurons in _neurons(network)]

    def reset() -> None:
        functional.reset_net(module)
        for node, start in zip(made, starts, strict=True):
            node.v = start

    return _stepped(module, steps, reset)


def spikingjelly_multistep(network: SpikingNetwork, steps: int) -> Run:
    """Multi-step mode: each layer runs all steps before the next, synapses on time folded into the batch. Its other backends need CUDA."""
    from spikingjelly.activation_based import functional, neuron

    class Folded(nn.Module):
        def __init__(self, fire: IF):
            super().__init__()
            self.node: Any = neuron.IFNode(v_threshold=float(fire.threshold), v_reset=None, step_mode="m")
            self.start = fire.v0 * float(fire.threshold)

        def forward(self, current: Tensor) -> Tensor:
            self.node.v = self.start
            spikes: Tensor = self.node(current.unflatten(0, (steps, -1)))
            return spikes.flatten(0, 1)

    module, _ = replaced(network.module, Folded)

    def run(inputs: Tensor) -> Tensor:
        functional.reset_net(module)
        every: Tensor = module(inputs.repeat(steps, *[1] * (inputs.dim() - 1)))
        return every.unflatten(0, (steps, -1)).mean(0)

    return run


def snntorch(network: SpikingNetwork, steps: int) -> Run:
    """Leaky neurons that leak nothing and subtract their threshold."""
    import snntorch as library

    analog = [network.neurons(layer.name) for layer in network.layers if INPUT in layer.sources and layer.neurons is not None]
    thresholds = {float(neurons.threshold) for neurons in analog}

    def make(fire: IF) -> nn.Module:
        node: nn.Module = library.Leaky(beta=1.0, threshold=float(fire.threshold), reset_mechanism="subtract", init_hidden=True)
        # They fire above the threshold and not at it. Less than a unit of the weights more at the start makes these two the same; on the
        # analog input, which has no unit, no potential meets the threshold exactly.
        unit = 0.0 if float(fire.threshold) in thresholds else 2.0 ** (math.floor(math.log2(float(fire.threshold))) - 14)
        start = fire.v0 * float(fire.threshold) + unit
        node.register_forward_pre_hook(lambda n, x: setattr(n, "mem", torch.full_like(x[0], start)) if n.mem.shape != x[0].shape else None)
        return node

    module, made = replaced(network.module, make)

    def reset() -> None:
        for node in made:
            node.mem = torch.zeros(0)

    return _stepped(module, steps, reset)


def sinabs(network: SpikingNetwork, steps: int) -> Run:
    """Time folded into the batch, at most one spike a step."""
    import sinabs.activation
    import sinabs.layers

    def make(fire: IF) -> nn.Module:
        node: Any = sinabs.layers.IAFSqueeze(
            spike_threshold=fire.threshold.clone(), spike_fn=sinabs.activation.SingleSpike, reset_fn=sinabs.activation.MembraneSubtract(),
            num_timesteps=steps,
        )  # fmt: skip
        start = fire.v0 * fire.threshold

        def begin(node: Any, inputs: Any) -> None:
            node.init_state_with_shape((len(inputs[0]) // steps, *inputs[0].shape[1:]))
            node.v_mem.fill_(start)

        node.register_forward_pre_hook(begin)
        return node

    module, _ = replaced(network.module, make)

    def run(inputs: Tensor) -> Tensor:
        every: Tensor = module(inputs.repeat_interleave(steps, 0))
        return every.unflatten(0, (-1, steps)).mean(1)

    return run


def norse(network: SpikingNetwork, steps: int, compiled: bool = False) -> Run:
    """Feed-forward integrate-and-fire; it resets to a value, so its answers are checked against our network with reset to zero."""
    from norse.torch.functional.iaf import IAFFeedForwardState, IAFParameters, iaf_feed_forward_step

    class Node(nn.Module):
        def __init__(self, fire: IF):
            super().__init__()
            below = torch.nextafter(fire.threshold, torch.zeros(()))
            self.parameters_, self.start = IAFParameters(v_th=below), fire.v0 * fire.threshold
            self.state: Any = None

        def forward(self, current: Tensor) -> Tensor:
            state = IAFFeedForwardState(v=self.start.expand_as(current)) if self.state is None else self.state
            spikes, self.state = iaf_feed_forward_step(current, state, self.parameters_)
            return spikes

    module, made = replaced(network.module, Node)
    called: Any = torch.compile(module) if compiled else module

    def reset() -> None:
        for node in made:
            node.state = None

    return _stepped(called, steps, reset)


def _neurons(network: SpikingNetwork) -> list[IF]:
    return [child for child in network.module.modules() if isinstance(child, IF)]


PEERS: dict[str, Callable[[SpikingNetwork, int], Run]] = {
    "spikingjelly": spikingjelly, "spikingjelly_multistep": spikingjelly_multistep, "snntorch": snntorch, "sinabs": sinabs, "norse": norse,
    "norse_compiled": lambda network, steps: norse(network, steps, compiled=True),
}  # fmt: skip
