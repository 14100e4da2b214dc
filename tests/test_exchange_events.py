"""Recordings in the file formats of N-MNIST and DVS128 Gesture, read by Tonic, reach the first layer in its window."""

import numpy as np
import pytest
import torch
from torch import nn

import teas

tonic = pytest.importorskip("tonic", reason="needs tonic: pip install 'teas[exchange]'")

EVENTS = [(0, 3, 1, 0), (5, 33, 0, 40_000), (5, 33, 0, 45_000), (7, 2, 1, 79_999), (8, 8, 1, 100_000)]  # x, y, polarity, microseconds


def network(size, window=4):
    torch.manual_seed(0)
    module = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(2 * (size // 2) ** 2, 8), teas.IF(0.01), nn.Linear(8, 3), teas.IF())
    return teas.SpikingNetwork(module, {"3": window, "5": 6}, encoding="train")


def n_mnist(folder):
    """Five bytes an event: x, y, then polarity and 23 bits of time."""
    content = bytearray()
    for x, y, p, t in EVENTS:
        content += bytes([x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255])
    for digit in range(10):
        place = folder / "NMNIST" / "Test" / str(digit)
        place.mkdir(parents=True)
        (place / "00001.bin").write_bytes(content)


def test_n_mnist_files(tmp_path, monkeypatch):
    n_mnist(tmp_path)
    monkeypatch.setattr(tonic.datasets.NMNIST, "_check_exists", lambda self: True)
    net = network(34)
    data = tonic.datasets.NMNIST(str(tmp_path), train=False, transform=teas.bin_events(net, tonic.datasets.NMNIST.sensor_size))
    train, label = data[3]
    assert label == 3
    assert train.shape == (4, 2, 34, 34)
    spikes = {tuple(place) for place in train.nonzero().tolist()}  # step, polarity, y, x: steps of 25 ms, without their last instant
    assert spikes == {(0, 1, 3, 0), (1, 0, 33, 5), (3, 1, 2, 7)}
    inputs, _ = next(iter(torch.utils.data.DataLoader(data, batch_size=10)))
    output = net(inputs)
    assert output.logits.shape == (10, 3)
    assert output.record["3"].count.sum() > 0


def test_dvs_gesture_files(tmp_path, monkeypatch):
    place = tmp_path / "DVSGesture" / "ibmGestureTest" / "user24_led"
    place.mkdir(parents=True)
    np.save(place / "3.npy", np.array([[x, y, p, t / 1000] for x, y, p, t in EVENTS]))
    monkeypatch.setattr(tonic.datasets.DVSGesture, "_check_exists", lambda self: True)
    net = network(128, window=5)
    data = tonic.datasets.DVSGesture(str(tmp_path), train=False, transform=teas.bin_events(net, tonic.datasets.DVSGesture.sensor_size))
    train, _ = data[0]
    assert train.shape == (5, 2, 128, 128)
    assert train[0].sum() == 1
    assert net(train.unsqueeze(0)).logits.shape == (1, 3)


def test_two_phase_sums_the_train():
    module = nn.Sequential(nn.Flatten(), nn.Linear(8, 4), teas.IF(reset="subtract"), nn.Linear(4, 2))
    train = (torch.rand(3, 5, 8) < 0.5).float()
    net = teas.SpikingNetwork(module, 5, firing="two_phase", encoding="train")
    charge = torch.stack([module[1](train[:, t]) for t in range(5)]).sum(0)
    assert torch.equal(net(train).record["2"].count, charge.floor().clamp(0, 5))


def test_networks_that_do_not_fit_are_refused():
    with pytest.raises(teas.TeasError, match="encoding='train'"):
        teas.bin_events(teas.SpikingNetwork(nn.Sequential(nn.Linear(4, 2), teas.IF()), 4), (34, 34, 2))
    with pytest.raises(teas.TeasError, match="no events"):
        teas.bin_events(network(34), (34, 34, 2))(np.zeros(0, dtype=tonic.datasets.NMNIST.dtype))
