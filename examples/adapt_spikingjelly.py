"""A SpikingJelly network, trained on digits, imported with the same spikes and adapted to windows of its own.

    python examples/adapt_spikingjelly.py [--epochs 10] [--mean 4]

Needs pip install 'teas[exchange]'. The network is residual, multi-step and runs 8 steps; weights are trained with SpikingJelly, adapted with teas.
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import teas

STEPS = 8


class Network(nn.Module):
    """Two convolutions with a sum around the second, and a spiking head; repeats its input over time and averages its output."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = layer.Conv2d(1, 16, 3, padding=1, bias=False), layer.BatchNorm2d(16)
        self.conv2, self.norm2 = layer.Conv2d(16, 16, 3, padding=1, bias=False), layer.BatchNorm2d(16)
        self.pool, self.flatten, self.fc = layer.AvgPool2d(2), layer.Flatten(), layer.Linear(256, 10)
        self.fire1, self.fire2, self.fire3 = (neuron.IFNode(v_reset=None, surrogate_function=surrogate.ATan()) for _ in range(3))
        functional.set_step_mode(self, "m")

    def forward(self, x):
        x = x.unsqueeze(0).repeat(STEPS, 1, 1, 1, 1)
        a = self.fire1(self.norm1(self.conv1(x)))
        a = a + self.fire2(self.norm2(self.conv2(a)))
        return self.fire3(self.fc(self.flatten(self.pool(a)))).mean(0)


def digits():
    """Training and test batches of scikit-learn's digits, and all images."""
    data = load_digits()
    images, labels = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(data.target)
    train, test = TensorDataset(images[:1200], labels[:1200]), TensorDataset(images[1200:], labels[1200:])
    return DataLoader(train, 64, shuffle=True), DataLoader(test, 200), images


@torch.no_grad()
def accuracy(run, batches):
    """Share of right answers, in percent."""
    right = [(run(images).argmax(1) == labels).float() for images, labels in batches]
    return 100 * torch.cat(right).mean().item()


def run_theirs(net):
    """A function from images to rates: SpikingJelly's networks keep their potentials until they are reset."""

    def run(images):
        functional.reset_net(net)
        return net(images)

    return run


def main(epochs: int, mean: float) -> tuple[int, float, float]:
    torch.manual_seed(0)
    train, test, images = digits()
    net = Network()
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(epochs):
        for x, y in train:
            loss = F.cross_entropy(8 * run_theirs(net)(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval()
    before = accuracy(run_theirs(net), test)
    print(f"SpikingJelly, {STEPS} steps everywhere: {before:.2f} %")

    network = teas.from_spikingjelly(net).eval()
    with torch.no_grad():
        counts = network(images[:1000]).logits * STEPS
        unlike = int((counts.round() != (run_theirs(net)(images[:1000]) * STEPS).round()).sum())
    print(f"imported: {unlike} of {counts.numel()} output counts differ over 1,000 inputs")

    adapted = teas.adapt(network, train, mean, by="damage", epochs=epochs, learning_rate=1e-3, scale=8.0).eval()
    after = accuracy(lambda x: adapted(x).logits, test)
    print(f"adapted: {after:.2f} % at windows {dict(adapted.windows)}, mean {adapted.windows.mean:.1f}, sum {adapted.windows.sum}")
    return unlike, before, after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--mean", type=float, default=4.0)
    main(**vars(parser.parse_args()))
