"""The suite that every engine must pass: counts, potentials and logits equal to the network's own, to the bit.

Weights, biases, thresholds and inputs are multiples of powers of two small enough that every float32 sum is exact, in any order.
"""

import operator

import torch
import torch.nn.functional as F
from torch import nn

import teas
from teas.engine.contract import KEEPS


def neurons(threshold=1.0, v0=0.5):
    return teas.IF(threshold, reset="subtract", v0=v0)


class Graph(nn.Module):
    """A module from a function of (its parts, x); the parts are attributes."""

    def __init__(self, flow, **parts):
        super().__init__()
        self.flow = flow
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.flow(self, x)


def residual(m, x):
    a = m.f1(m.c1(x))
    return m.f3(m.c3(m.f2(m.c2(a))) + a)


def both_maps(m, x):
    a = m.f1(m.c1(x))
    return m.fc(torch.flatten(m.f3(m.c3(m.f2(m.c2(a))) + m.skip(a)), 1))


def sum_in_place(m, x):
    a = m.f1(m.c1(x))
    b = m.c2(a)
    b += a
    return m.f2(b)


def sum_read_twice(m, x):
    a = m.f1(m.c1(x))
    b = m.c2(a)
    return m.f2(operator.add(b, a) + b)


def concatenation(m, x):
    a = m.f1(m.c1(x))
    b = m.f2(m.c2(a))
    return m.f3(m.c3(torch.cat([a, b], 1)))


def view_and_sum(m, x):
    a = m.f1(m.c1(x))
    b = m.c2(a)
    flat = b.flatten(1)
    return m.fc(m.f2(m.c3(b + a).flatten(1) + flat))


def no_synapses(m, x):
    a = m.f1(x)
    return m.f2(a + a)


def identities(m, x):
    a = m.drop(m.f1(m.nothing(m.c1(m.nothing(x)))))
    return m.nothing(m.f3(m.nothing(m.c3(m.nothing(m.f2(m.nothing(a)))) + m.nothing(a))))


def added_twice(m, x):
    a = m.f2(m.c2(m.f1(m.c1(x))))
    b = m.f3(m.c3(a))
    return m.f5(m.c5(m.f4(m.c4(b) + a)) + a)


def added_to_itself(m, x):
    a = m.f1(m.c1(x))
    return m.f2(m.c2(a) + a)


def viewed(m, x):
    a = m.f1(m.c1(x))
    b = m.f2(m.c2(a).view(a.size(0), 252))
    return m.f3(m.fc(torch.cat([b, a.view(a.shape[0], 252)], 1)))


def membrane_shortcuts(m, x):
    stream = m.c1(x)
    stream = stream + m.c2(m.f1(stream))
    return m.f3(stream + m.c3(m.f2(stream)))


def membrane_shortcuts_of_shapes(m, x):
    stream = m.c1(x)
    stream += m.c2(m.f1(stream))
    narrow = F.pad(stream[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)) + m.c3(m.f2(stream))
    flat = narrow.view(narrow.size(0), 160)
    return m.f5(m.fc(m.f3(m.norm(narrow)).flatten(1)) + m.skip(m.f4(flat)) + m.skip(flat))


def padded_shortcut(m, x):
    a = m.f1(m.c1(x))
    return m.f3(m.c3(m.f2(m.c2(a))) + F.pad(a[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))


def skipped_input(m, x):
    return m.fc((m.f1(m.c1(x)) + x.mean(1, keepdim=True)).mean((2, 3)))


def pair(width=4, **options):
    """Two convolutions with the options on the second."""
    options = {"kernel_size": 3, **options}
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), neurons(), nn.Conv2d(width, width, **options), neurons(0.75))


def conv(before=4, after=4):
    return nn.Conv2d(before, after, 3, padding=1)


def per_channel():
    return torch.tensor([1.0, 0.75, 2.0, 0.625])


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 7 * 9, 16), neurons(v0=0.0), nn.Linear(16, 12), neurons(0.75), nn.Linear(12, 5), neurons(2.0))


def pooled(pool):
    head = (pool, nn.Conv2d(4, 4, 3, padding=1), neurons(per_channel()), nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten(), nn.Linear(8, 5))
    return nn.Sequential(conv(3), neurons(), *head)


def averaged():
    return nn.Sequential(nn.Conv2d(3, 4, 2), neurons(), nn.AvgPool2d(2), conv(), neurons(0.75), nn.Flatten(), nn.Linear(48, 5))


def maps():
    return {"fc": nn.Linear(160, 5), "skip": nn.Linear(160, 5)}


def chain_of(flow, last=1.0, **parts):
    names = {"f1": neurons(), "f2": neurons(0.75), "f3": neurons(last)}
    return Graph(flow, c1=conv(3), **{"c2": conv(), **names, **parts})


# name: (module, windows of its spiking layers in order, 0 for one window)
CASES = {
    "odd sizes": (pair, (8, 8)),
    "stride": (lambda: pair(stride=2), (8, 8)),
    "groups": (lambda: pair(groups=2), (8, 8)),
    "depthwise": (lambda: pair(groups=4, padding=1), (8, 8)),
    "dilation": (lambda: pair(dilation=2, padding=2), (8, 8)),
    "circular padding": (lambda: pair(padding=1, padding_mode="circular"), (8, 8)),
    "same padding": (lambda: pair(padding="same"), (8, 8)),
    "kernel 1, no bias": (lambda: pair(kernel_size=1, bias=False), (8, 8)),
    "T = 1": (pair, (1, 1)),
    "T = 255": (pair, (255, 255)),
    "T = 255, residual": (lambda: chain_of(residual, c3=conv()), (255, 255, 255)),
    "T = 2048": (pair, (2048, 2048)),
    "unequal": (pair, (16, 4)),
    "unequal, longer": (pair, (2, 64)),
    "from 2048 to 8": (pair, (2048, 8)),
    "linear": (mlp, (8, 4, 32)),
    "residual": (lambda: chain_of(residual, c3=conv()), (8, 8, 8)),
    "residual, unequal": (lambda: chain_of(residual, c3=conv()), (4, 8, 16)),
    "residual, per channel": (lambda: chain_of(residual, per_channel(), c3=conv()), (8, 8, 8)),
    "residual, per channel, unequal": (lambda: chain_of(residual, per_channel(), c3=conv()), (4, 8, 3)),
    "residual, per channel, T = 200": (lambda: chain_of(residual, per_channel(), c3=conv()), (200, 100, 200)),
    "residual of two maps": (lambda: chain_of(both_maps, c3=conv(), skip=nn.Conv2d(4, 4, 1), fc=nn.Linear(4 * 7 * 9, 5)), (8, 8, 4)),
    "sum in place": (lambda: chain_of(sum_in_place), (8, 8)),
    "sum read twice": (lambda: chain_of(sum_read_twice), (8, 8)),
    "membrane shortcuts": (lambda: chain_of(membrane_shortcuts, c3=conv()), (8, 8, 8)),
    "membrane shortcuts, unequal": (lambda: chain_of(membrane_shortcuts, per_channel(), c3=conv()), (4, 8, 2)),
    "membrane shortcuts, shapes": (
        lambda: chain_of(
            membrane_shortcuts_of_shapes, c3=nn.Conv2d(4, 8, 3, 2, 1), norm=nn.Conv2d(8, 8, 1, groups=8), f4=neurons(), f5=neurons(256.0), **maps()
        ),
        (8, 8, 8, 8, 8),
    ),
    "concatenation": (lambda: chain_of(concatenation, c3=conv(8)), (8, 8, 8)),
    "concatenation, unequal": (lambda: chain_of(concatenation, c3=conv(8)), (8, 2, 4)),
    "view and sum": (lambda: chain_of(view_and_sum, c3=conv(), fc=nn.Linear(4 * 7 * 9, 5)), (8, 8)),
    "no synapses": (lambda: Graph(no_synapses, f1=neurons(), f2=neurons(1.5)), (4, 8)),
    "input at the readout": (lambda: chain_of(skipped_input, fc=nn.Linear(4, 5)), (8,)),
    "residual, added twice": (lambda: chain_of(added_twice, c3=conv(), c4=conv(), c5=conv(), f4=neurons(1.5), f5=neurons()), (8,) * 5),
    "residual, added to itself": (lambda: chain_of(added_to_itself), (8, 8)),
    "pooling, overlapping": (lambda: pooled(nn.MaxPool2d((3, 2), 2, 1)), (16, 8)),
    "pooling, dilated": (lambda: pooled(nn.MaxPool2d(2, (1, 3), dilation=2)), (8, 8)),
    "pooling, again and again": (lambda: pooled(nn.Sequential(nn.MaxPool2d(2, 1, 1), nn.MaxPool2d(2, 1, 1), nn.MaxPool2d(3, 3))), (16, 8)),
    "pooling, ceil": (lambda: pooled(nn.MaxPool2d(2, ceil_mode=True)), (8, 8)),
    "viewed": (lambda: chain_of(viewed, 12.0, fc=nn.Linear(2 * 4 * 7 * 9, 5)), (8, 8, 32)),
    "pooling of averages": (lambda: pooled(nn.AvgPool2d(2)), (8, 8)),
    "pooling of even averages": (averaged, (8, 8)),
    "average, flat": (lambda: nn.Sequential(conv(3), neurons(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(48, 5), neurons()), (8, 4)),
    "stride and dilation": (lambda: pair(kernel_size=(3, 2), stride=(2, 3), dilation=(1, 2), padding=(0, 3)), (8, 5)),
    "wide": (lambda: nn.Sequential(nn.Conv2d(3, 20, 3), neurons(), nn.Conv2d(20, 36, 3, padding=1), neurons(0.75), nn.Conv2d(36, 64, 1), neurons()), (8, 4, 2)),
    "padded shortcut, T = 45": (lambda: chain_of(padded_shortcut, c3=nn.Conv2d(4, 8, 3, 2, 1)), (45, 45, 45)),
    "identities": (lambda: chain_of(identities, c3=conv(), nothing=nn.Identity(), drop=nn.Dropout()), (8, 4, 8)),
    "pooling": (lambda: pooled(nn.MaxPool2d(2)), (8, 8)),
    "pooling, T = 45": (lambda: pooled(nn.MaxPool2d(2)), (45, 45)),
}


def build(name, seed=0, firing="two_phase", **semantics):
    """The network of a case, its weights multiples of 1/8 in [-1, 1], and inputs: noise, ties, silence and saturation."""
    generator = torch.Generator().manual_seed(seed)

    def eighths(shape, low, high):
        return torch.randint(8 * low, 8 * high + 1, shape, generator=generator) / 8

    make, windows = CASES[name]
    module = make().eval()
    for key, parameter in module.named_parameters():
        if not key.endswith("threshold"):
            parameter.data = eighths(parameter.shape, -1, 1)
    network = teas.SpikingNetwork(module, 1, firing=firing, **semantics).eval()
    network.windows = dict(zip(network.spiking_layers, windows, strict=True))
    noise = eighths((3, 3, 7, 9), -1, 2)
    return network, torch.cat([noise, torch.zeros(1, 3, 7, 9), torch.full((1, 3, 7, 9), -64.0), torch.full((1, 3, 7, 9), 64.0)])


def check(engine, network, inputs):
    """Assert that an engine gives exactly what the network gives, whatever it is asked to keep."""
    with torch.no_grad():
        wanted = network(inputs)
    for keep in KEEPS:
        before = inputs.clone()
        found = engine.prepare(network, keep)(inputs)
        assert torch.equal(inputs, before)
        assert torch.equal(found.logits, wanted.logits), (keep, "logits")
        assert found.logits.dtype == wanted.logits.dtype
        assert set(found.record) == (set() if keep == "nothing" else set(wanted.record))
        for layer, record in found.record.items():
            reference = wanted.record[layer]
            assert record.window == reference.window
            assert torch.equal(record.count, reference.count), (keep, layer, "count")
            if keep == "potentials":
                assert torch.equal(record.residual, reference.residual), (layer, "residual")
                check_potential(record, reference, layer)


def check_potential(record, reference, layer):
    """Equal firing potentials where their sum, a multiple of 1/64, is a number that float32 holds; else equal but for the rounding of the sum."""
    exact = reference.firing_potential * reference.count < 2**24 / 64
    assert torch.equal(record.firing_potential[exact], reference.firing_potential[exact]), (layer, "firing potential")
    torch.testing.assert_close(record.firing_potential, reference.firing_potential, rtol=1e-4, atol=0)


def check_all(engine, runs, **semantics):
    """The suite over the named cases, an empty batch included."""
    for name in runs:
        network, inputs = build(name, **semantics)
        check(engine, network, inputs)
        check(engine, network, inputs[:0])
