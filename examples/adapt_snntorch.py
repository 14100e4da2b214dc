"""An snnTorch network in the form of its tutorials, trained on digits, imported with the same spikes and adapted to windows of its own.

    python examples/adapt_snntorch.py [--epochs 10] [--mean 5]

Needs pip install 'teas[exchange]'. The loop over 10 steps in the forward pass is recognised; leaks and the late reset of snnTorch are kept.
"""

import argparse

import snntorch as snn
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import teas

STEPS = 10


class Network(nn.Module):
    """A convolution and two fully connected layers of leaky neurons; returns the recorded spikes."""

    def __init__(self):
        super().__init__()
        self.conv, self.lif1 = nn.Conv2d(1, 12, 3, padding=1), snn.Leaky(beta=0.9)
        self.fc1, self.lif2 = nn.Linear(192, 64), snn.Leaky(beta=0.9)
        self.fc2, self.lif3 = nn.Linear(64, 10), snn.Leaky(beta=0.9, reset_mechanism="zero")

    def forward(self, x):
        mem1, mem2, mem3 = self.lif1.reset_mem(), self.lif2.reset_mem(), self.lif3.reset_mem()
        recorded = []
        for _ in range(STEPS):
            spk1, mem1 = self.lif1(F.max_pool2d(self.conv(x), 2), mem1)
            spk2, mem2 = self.lif2(self.fc1(spk1.flatten(1)), mem2)
            spk3, mem3 = self.lif3(self.fc2(spk2), mem3)
            recorded.append(spk3)
        return torch.stack(recorded)


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


def main(epochs: int, mean: float) -> tuple[int, float, float]:
    torch.manual_seed(0)
    train, test, images = digits()
    net = Network()
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(epochs):
        for x, y in train:
            loss = F.cross_entropy(8 * net(x).mean(0), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    before = accuracy(lambda x: net(x).mean(0), test)
    print(f"snnTorch, {STEPS} steps everywhere: {before:.2f} %")

    network = teas.from_snntorch(net).eval()
    with torch.no_grad():
        spikes = network(images[:1000], keep_spikes=True).record["lif3"].spikes
        unlike = int((spikes != net(images[:1000])).sum())
    print(f"imported: {unlike} of {spikes.numel()} output spikes differ over 1,000 inputs")

    adapted = teas.adapt(network, train, mean, by="damage", epochs=epochs, learning_rate=1e-3, scale=8.0).eval()
    after = accuracy(lambda x: adapted(x).logits, test)
    print(f"adapted: {after:.2f} % at windows {dict(adapted.windows)}, mean {adapted.windows.mean:.1f}, sum {adapted.windows.sum}")
    return unlike, before, after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--mean", type=float, default=5.0)
    main(**vars(parser.parse_args()))
