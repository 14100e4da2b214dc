"""The networks that are trained directly: their layers, what is free in them, and batch norm through time that folds away."""

import pytest
import torch
from torch import nn

import teas
from teas.ann.architectures import Design, build
from teas.ann.folding import fold_batch_norms


def neurons():
    return teas.LIF(0.5, learn_leak=True, surrogate="arctan")


def network(name, design, window=3, shape=(3, 16, 16), classes=4):
    torch.manual_seed(0)
    return teas.SpikingNetwork(build(name, shape, classes, neurons, design), window)


@pytest.mark.parametrize(
    ("name", "hidden", "convolutions", "widths", "wide"),
    [
        ("conv7_fc2", (2, 9), 7, [2, 2, 4, 4, 8, 8, 8], 8 * 2 * 2),
        ("conv6_fc2", (3, 9), 6, [3] * 6, 3 * 4 * 4),
        ("lenet", (2, 3, 9), 2, [2, 3], 3 * 2 * 2),
    ],
)
def test_layers_of_the_convolutional_networks(name, hidden, convolutions, widths, wide):
    found = network(name, Design(hidden, batch_norm=True))
    assert [layer for layer in found.module.modules() if isinstance(layer, nn.Conv2d)][-1].out_channels == widths[-1]
    assert [m.out_channels for m in found.module.modules() if isinstance(m, nn.Conv2d)] == widths
    assert [m.num_features for m in found.module.modules() if isinstance(m, nn.BatchNorm2d)] == widths
    assert found.module.fc1.in_features == wide
    assert len(found.spiking_layers) == convolutions + 2
    assert found(torch.randn(2, 3, 16, 16)).logits.shape == (2, 4)


def test_voters_are_averaged_and_dropout_silences_for_a_whole_window():
    found = network("conv6_fc2", Design((3, 40), pooling="max", dropout=0.5, voters=5))
    output = found(torch.randn(2, 3, 16, 16))
    rates = output.record["if2"].count / 3
    torch.testing.assert_close(output.logits, rates.view(2, 4, 5).mean(2))
    found.eval()
    assert torch.equal(found(torch.ones(2, 3, 16, 16)).logits, found(torch.ones(2, 3, 16, 16)).logits)
    assert sum(isinstance(m, nn.MaxPool2d) for m in found.module.modules()) == 2
    assert sum(isinstance(m, nn.Dropout) for m in found.module.modules()) == 2


@pytest.mark.parametrize(
    ("name", "design", "message"),
    [
        ("conv7_fc2", {"hidden": (2,)}, "takes 2 widths"),
        ("lenet", {"hidden": (2,)}, "at least 2 widths"),
        ("mlp", {"hidden": (2,), "batch_norm": True}, "neither convolutions nor pooling"),
        ("mlp", {"hidden": (2,), "pooling": "max"}, "neither convolutions nor pooling"),
        ("lenet", {"hidden": (2, 2), "pooling": "median"}, "choose one of average, max"),
        ("lenet", {"hidden": (2, 2), "dropout": 1.0}, "below 1"),
        ("lenet", {"hidden": (2, 2), "voters": 2, "spiking_output": False}, "voters are output neurons"),
        ("vgg99", {"hidden": (2, 2)}, "choose one of"),
    ],
)
def test_designs_that_do_not_fit_are_refused(name, design, message):
    with pytest.raises(teas.TeasError, match=message):
        build(name, (3, 16, 16), 4, neurons, Design(**design))


def test_images_too_small_for_the_poolings_are_refused():
    with pytest.raises(teas.TeasError, match="too small for 3 poolings"):
        build("conv7_fc2", (1, 7, 7), 4, neurons, Design((2, 9)))


def test_batch_norm_folds_without_changing_a_spike():
    trained = network("conv6_fc2", Design((3, 9), batch_norm=True)).double()
    trained.windows = dict(zip(trained.spiking_layers, (4, 3, 5, 2, 4, 3, 2, 3), strict=True))
    inputs = torch.randn(8, 3, 16, 16, dtype=torch.float64)
    for _ in range(3):  # statistics that are not those of a fresh network
        trained(2 * inputs + 1)
    with torch.no_grad():
        for norm in (m for m in trained.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 2)
            norm.bias.uniform_(0.2, 0.7)
    folded = fold_batch_norms(trained)
    assert any(isinstance(m, nn.BatchNorm2d) for m in trained.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert folded.windows == trained.windows
    expected, found = trained.eval()(inputs), folded(inputs)
    for layer, record in expected.record.items():
        assert torch.equal(found.record[layer].count, record.count), layer
    assert expected.record["conv_if6"].count.sum() > 0


def test_a_batch_norm_that_reads_spikes_stays():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.fc, self.neurons, self.out = nn.BatchNorm1d(3), nn.Linear(3, 3), teas.IF(), nn.Linear(3, 2)

        def forward(self, x):
            return self.out(self.norm(self.neurons(self.fc(x))))

    folded = fold_batch_norms(teas.SpikingNetwork(Odd(), 2))
    assert isinstance(folded.module.norm, nn.BatchNorm1d)
