"""Small networks of other libraries, trained a little on digits, and the spikes that they really send."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

STEPS = 8


def digits(count=1000):
    """The first digits, `[n, 1, 8, 8]` in [0, 1], and their classes."""
    data = load_digits()
    return torch.tensor(data.images[:count], dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(data.target[:count])


def train(net, run, batches=20):
    """A few steps of Adam; `run(net, x)` is the logits."""
    torch.manual_seed(0)
    images, labels = digits()
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    net.train()
    for _ in range(batches):
        chosen = torch.randint(len(images), (64,))
        loss = F.cross_entropy(8 * run(net, images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


@torch.no_grad()
def trains(net, kinds, run, x):
    """The spikes of every module of these kinds, `[time, batch, *neuron]`, by path; multi-step modules give all steps at once."""
    found, hooks = {}, []

    def kept(path):
        return lambda module, _, out: found.setdefault(path, []).append((out[0] if isinstance(out, tuple) else out).clone())

    for path, module in net.named_modules():
        if isinstance(module, kinds):
            hooks.append(module.register_forward_hook(kept(path)))
    run(net, x)
    for hook in hooks:
        hook.remove()
    return {path: parts[0] if len(parts) == 1 else torch.stack(parts) for path, parts in found.items()}


def on_a_grid(net, bits=8):
    """Weights as multiples of 2^-bits, so that ties occur and sums are exact in any order."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_((parameter * 2**bits).round() / 2**bits)
    return net


class Residual(nn.Module):
    """Two convolutions with a sum around the second, and a head; `layers` supplies the classes, `neurons(i)` the spiking layers."""

    def __init__(self, layers, neurons):
        super().__init__()
        self.conv1, self.norm1, self.fire1 = layers.Conv2d(1, 4, 3, padding=1, bias=False), layers.BatchNorm2d(4), neurons(0)
        self.conv2, self.norm2, self.fire2 = layers.Conv2d(4, 4, 3, padding=1, bias=False), layers.BatchNorm2d(4), neurons(1)
        self.pool, self.flatten = layers.AvgPool2d(2), layers.Flatten()
        self.fc, self.fire3 = layers.Linear(64, 10), neurons(2)

    def forward(self, x):
        a = self.fire1(self.norm1(self.conv1(x)))
        a = a + self.fire2(self.norm2(self.conv2(a)))
        return self.fire3(self.fc(self.flatten(self.pool(a))))
