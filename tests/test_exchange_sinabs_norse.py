"""Sinabs and Norse networks send the same spikes here where they say the same thing, and are refused where they do not."""

import pytest
import torch
from torch import nn

import teas
from peers import STEPS, digits, on_a_grid, trains


def parts(*neurons):
    torch.manual_seed(0)
    return nn.Conv2d(1, 4, 3, padding=1), neurons[0], nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 20), neurons[1]


def check(network, expected, images):
    output = network(images, keep_spikes=True)
    assert len(expected) == len(output.record) == 2
    for path, record in output.record.items():
        assert expected[path].sum() > 0
        assert torch.equal(record.spikes.to(expected[path].dtype), expected[path]), path


class TestSinabs:
    layers = staticmethod(lambda: pytest.importorskip("sinabs.layers", reason="needs sinabs: pip install 'teas[exchange]'"))

    def neurons(self, kind, **options):
        layers = self.layers()
        from sinabs import activation

        return getattr(layers, kind)(batch_size=len(digits(300)[0]), spike_fn=activation.SingleSpike, **options)

    @pytest.mark.parametrize("norm", [True, False])
    def test_the_same_spikes(self, norm):
        self.layers()
        from sinabs import activation

        first = self.neurons("IAFSqueeze", spike_threshold=torch.tensor(0.25))
        second = self.neurons("LIFSqueeze", tau_mem=4.0, norm_input=norm, spike_threshold=torch.tensor(0.125), reset_fn=activation.MembraneReset())
        net, images = on_a_grid(nn.Sequential(*parts(first, second)[:-1], second)), digits(300)[0]
        second.tau_mem.data.fill_(4.0)  # not on the grid: e^(-1/4)
        repeated = images.repeat_interleave(STEPS, 0)  # [batch·time, *shape]
        found = trains(net, (type(first), type(second)), lambda net, x: net(x), repeated)
        expected = {path: train.unflatten(0, (300, STEPS)).transpose(0, 1) for path, train in found.items()}
        check(teas.from_sinabs(net, STEPS), expected, images)

    def test_several_spikes_a_step_are_refused(self):
        net = nn.Sequential(nn.Linear(4, 4), self.layers().IAFSqueeze(batch_size=1, min_v_mem=-1.0))
        with pytest.raises(teas.TeasError, match=r"MultiSpike: a neuron sends one spike a step here; min_v_mem"):
            teas.from_sinabs(net, 4)

    def test_unknown_layers_are_refused(self):
        with pytest.raises(teas.TeasError, match="is a sinabs ExpLeak"):
            teas.from_sinabs(nn.Sequential(nn.Linear(4, 4), self.layers().ExpLeak(tau_mem=2.0)), 4)


class TestNorse:
    norse = staticmethod(lambda: pytest.importorskip("norse.torch", reason="needs norse: pip install 'teas[exchange]'"))

    def test_the_same_spikes(self):
        norse = self.norse()
        from norse.torch.functional.iaf import IAFParameters
        from norse.torch.functional.lif_box import LIFBoxParameters
        from norse.torch.module.iaf import IAFCell

        box = LIFBoxParameters(tau_mem_inv=torch.tensor(250.0), v_th=torch.tensor(0.0625), v_leak=torch.tensor(-0.0625), v_reset=torch.tensor(-0.125))
        first, second = IAFCell(IAFParameters(v_th=torch.tensor(0.5))), norse.LIFBoxCell(box)
        net, images = on_a_grid(norse.SequentialState(*parts(first, second))), digits(300)[0]

        def run(net, x):
            state = None
            for _ in range(STEPS):
                _, state = net(x, state)

        check(teas.from_norse(net, STEPS), trains(net, (IAFCell, norse.LIFBoxCell), run, images), images)

    def test_synaptic_currents_are_refused(self):
        norse = self.norse()
        with pytest.raises(teas.TeasError, match="is a norse LIFCell, which has no equal"):
            teas.from_norse(norse.SequentialState(nn.Linear(4, 4), norse.LIFCell()), 4)
