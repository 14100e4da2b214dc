"""Currents that charge several layers, as membrane shortcuts do: the first layer of a window computes them, later ones of the same window read them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import nn

from teas.engine.plan import CONVOLUTIONS, SIZE_NAMES, name_of, simplified
from teas.spiking.network import SpikingNetwork
from teas.spiking.trace import INPUT, Layer


@dataclass
class Share:
    """A layer with the operations that are left to it.

    imports: values of earlier layers that it reads; exports: values of its own that later ones read; frees: what nobody imports after it.
    """

    layer: Layer
    imports: set[str]
    exports: set[str] = field(default_factory=set)
    frees: tuple[tuple[str, int], ...] = ()


def share_currents(network: SpikingNetwork) -> list[Share]:
    """The layers of a network under two-phase firing, simplified, each current computed once for all layers of one window.

    Such a charge is the same number in each of them; layers of other windows scale counts, not charges, and so round it their own way.
    """
    shares: list[Share] = []
    owners: dict[tuple[str, int], Share] = {}
    readers: dict[tuple[str, int], Share] = {}
    for whole in network.layers:
        layer = simplified(whole, network.module)
        levels = network.levels[layer.name] if layer.neurons is not None else 0
        share = without(layer, {name for name, at in owners if at == levels})
        shares.append(share)
        for name in share.imports:
            owners[name, levels].exports.add(name)
            readers[name, levels] = share
        if levels:
            owners |= {(name, levels): share for name in currents(share, network)}
    for share in shares:
        share.frees = tuple(key for key, last in readers.items() if last is share)
    return shares


def without(layer: Layer, known: set[str]) -> Share:
    """What is left to a layer where some values are known: not the operations that only lead to these."""
    operations = {operation.name: operation for operation in layer.synapses}
    kept: set[str] = set()
    imports: set[str] = set()
    sources: set[str] = set()
    pending = [layer.current]
    while pending:
        name = pending.pop()
        if name in known:
            imports.add(name)
        elif name not in operations:
            sources.add(name)
        elif name not in kept:
            kept.add(name)
            pending += operations[name].inputs
    synapses = tuple(operation for operation in layer.synapses if operation.name in kept)
    return Share(replace(layer, synapses=synapses, sources=tuple(source for source in layer.sources if source in sources)), imports)


def currents(share: Share, network: SpikingNetwork) -> set[str]:
    """What comes out of synapses with weights, whatever is done with it afterwards; not of an input that every layer draws anew."""
    found: set[str] = set()
    drawn = {INPUT} if network.semantics.encoding == "poisson" else set()
    for operation in share.layer.synapses:
        child = operation.child(network.module)
        reads_one = bool((share.imports | found) & set(operation.inputs)) and name_of(operation) not in SIZE_NAMES
        if drawn & set(operation.inputs):
            drawn.add(operation.name)
        elif isinstance(child, (*CONVOLUTIONS, nn.Linear)) or reads_one:
            found.add(operation.name)
    return found
