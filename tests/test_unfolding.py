"""A converted network made trainable again answers as it did, with batch norms that have something to normalise."""

import copy

import pytest
import torch
from torch import nn

import teas
from teas.ann.quantised import quantised_activations
from teas.ann.resnet import CifarPreactivationResNet, CifarResNet
from teas.ann.unfolding import unfold
from test_convert import Nasty


def pair(make, channels):
    """A converted network of other weights, windows and biases than the trainable one beside it."""
    torch.manual_seed(0)
    inputs = torch.randn(64, channels, 8, 8)
    first, second = make().eval(), make().eval()
    network = teas.convert(first, [inputs]).at({name: 3 + i for i, name in enumerate(teas.convert(first, [inputs]).layers)}, bias_correction=True)
    return network, teas.convert(second, [inputs]).trainable(5), inputs


def assert_same(student, network, inputs):
    wanted, found = network(inputs).logits.detach(), student(inputs).detach()
    assert float((found - wanted).norm() / wanted.norm()) < 0.02  # a current at a border between levels may round to either side


def test_the_answers_and_windows_are_those_of_the_network_and_weights_keep_their_length():
    network, student, inputs = pair(Nasty, 2)

    def lengths(module):
        return module.get_submodule("stem").weight.detach().flatten(1).norm(dim=1)

    before = lengths(student)
    unfold(student, network, [inputs])
    assert_same(student.eval(), network, inputs)
    assert {name: layer.window for name, layer in quantised_activations(student).items()} == dict(network.windows)
    torch.testing.assert_close(lengths(student), before)
    again = teas.convert(student.eval(), [inputs]).at(network.windows)
    torch.testing.assert_close(again.module.stem.weight, network.module.stem.weight)
    torch.testing.assert_close(again.module.stem.bias, network.module.stem.bias)
    torch.testing.assert_close(again.module.head.weight, network.module.head.weight)


def test_batch_norms_normalise_the_inputs_that_they_were_put_in_for():
    network, student, inputs = pair(lambda: CifarResNet(3, blocks=1, width=4), 3)
    unfold(student, network, [inputs])
    assert_same(student.train(), network, inputs)  # in training it is the statistics of the batch that count
    assert_same(student.eval(), network, inputs)


def membrane():
    """A network of membrane shortcuts whose batch norms have seen inputs of its own."""
    ann = CifarPreactivationResNet(3, blocks=1, width=4)
    ann(1 + torch.randn(16, 3, 8, 8))
    return ann


def test_batch_norms_of_a_residual_stream_come_back_as_they_are():
    network, student, inputs = pair(membrane, 3)
    assert not torch.equal(student.get_submodule("layer2.0.bn1").running_mean, network.module.get_submodule("layer2.0.bn1").running_mean)
    unfold(student, network, [inputs])
    assert_same(student.eval(), network, inputs)
    torch.testing.assert_close(student.get_submodule("layer2.0.bn1").state_dict(), network.module.get_submodule("layer2.0.bn1").state_dict())


class Bare(nn.Module):
    """A convolution without any bias, and a batch norm without factors of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Conv2d(2, 4, 3, bias=False), nn.Conv2d(4, 3, 3, bias=False), nn.BatchNorm2d(3, affine=False)

    def forward(self, x):
        return torch.relu(self.norm(self.second(torch.relu(self.first(x))))).mean((2, 3))


def test_what_conversion_added_is_kept():
    network, student, inputs = pair(Bare, 2)
    assert network.module.first.bias is not None  # it was corrected
    student.get_submodule("second").weight.data[1] = 0  # a filter without a length to keep
    unfold(student, network, [inputs])
    assert_same(student.eval(), network, inputs)
    assert_same(student.train(), network, inputs)


def test_a_last_batch_of_one_image_is_enough_and_counts_once():
    network, student, inputs = pair(Nasty, 2)
    again = copy.deepcopy(student)
    unfold(student, network, [inputs, inputs[:1]])
    assert_same(student.eval(), network, inputs)
    unfold(again, network, [*[inputs] * (1000 // len(inputs)), 5 * inputs[:1]])  # as a whole batch it would more than double variances
    plain = copy.deepcopy(again)
    unfold(plain, network, [inputs])
    for ours, theirs in zip(again.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)


def test_what_does_not_fit_is_refused():
    network, student, inputs = pair(Nasty, 2)
    with pytest.raises(teas.TeasError, match="the data is empty"):
        unfold(student, network, [])
    plain = teas.convert(nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU()).eval(), [torch.randn(8, 2)])
    with pytest.raises(teas.TeasError, match="at least two values per channel"):
        unfold(plain.trainable(2), plain.at(2), [torch.randn(1, 2)])
    narrow = teas.convert(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval(), [inputs])
    wide = teas.convert(nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU()).eval(), [inputs])
    with pytest.raises(teas.TeasError, match=r"thresholds of 2 has shape \[4\] here, shape \[6\] there"):
        unfold(narrow.trainable(2), wide.at(2), [inputs])
    with pytest.raises(teas.TeasError, match="has the layers 2; the one to train"):
        unfold(student, narrow.at(2), [inputs])
    with pytest.raises(teas.TeasError, match="not a network made by"):
        unfold(nn.Linear(2, 2), network, [inputs])
