"""How the shape of windows serves immediate firing at one mean: agreement of a converted ResNet-20 with its ANN on images of another data set.

    python benchmarks/immediate_windows.py --data data [--images 400] [--calibration 300]

Needs CIFAR-10, CIFAR-100 and resnet20-12fca82f.th in the data folder. Neither network has seen an image of CIFAR-100, and no label is used. The conversion
is that of experiments/cifar10_resnet20_immediate.toml; `kl` is the mean divergence of the network's answer from the ANN's.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F

from teas.adapt import allocation
from teas.study import config
from teas.study.conversion import fast, load_conversion
from teas.study.data import loader
from teas.study.run_folder import load_data

EXPERIMENT = Path(__file__).parents[1] / "experiments/cifar10_resnet20_immediate.toml"
MEAN = 45


def shapes(layers: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Windows of (about) the same mean, by name."""
    falling = dict(allocation.staircase(layers, MEAN))
    turns = {"three in turn": (0, -1, 1), "three in turn, two apart": (0, -2, 2), "five in turn": (0, -2, 2, -1, 1)}
    found = {name: {layer: MEAN + offsets[i % len(offsets)] for i, layer in enumerate(layers)} for name, offsets in turns.items()}
    found |= {"falling": falling, "rising": dict(zip(layers, reversed(falling.values()), strict=True))}
    for seed in (0, 1):
        found[f"shuffled {seed}"] = dict(zip(layers, random.Random(seed).sample(list(falling.values()), len(layers)), strict=True))
    return {"uniform": dict.fromkeys(layers, MEAN), **found}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="Shapes of windows under immediate firing.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=400, help="of CIFAR-100's test set")
    parser.add_argument("--calibration", type=int, default=300, help="training images that biases are corrected on")
    options = parser.parse_args()
    experiment = config.read(EXPERIMENT, (f"conversion.calibration={options.calibration}",))
    assert experiment.conversion is not None
    data = load_data(experiment, options.data, False)
    images, _ = next(iter(loader(load_data(config.read(EXPERIMENT, ("data.name=cifar100",)), options.data, False).test, options.images)))
    ann, conversion, *_ = load_conversion(experiment, experiment.conversion, data, options.data, torch.device("cpu"), Path())
    wanted = torch.cat([ann(part) for part in images.split(100)])
    rows = shapes(conversion.layers)
    print(f"{'windows':<26} {'transform':<18} {'biases':<10} {'mean':>6} {'agrees %':>9} {'kl':>6}")
    for name, transform, corrected in [
        *((name, "firing_potential", False) for name in rows), ("falling", "residual", False),
        ("uniform", "firing_potential", True), ("falling", "firing_potential", True),
    ]:  # fmt: skip
        network = conversion.at(rows[name], firing="immediate", layout="even", transform=transform, bias_correction=corrected)
        run = fast(network)
        found = torch.cat([run(part).logits for part in images.split(100)])
        agrees = 100 * (found.argmax(1) == wanted.argmax(1)).float().mean()
        divergence = F.kl_div(found.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True)
        print(
            f"{name:<26} {transform:<18} {'corrected' if corrected else 'as they are':<11} {network.windows.mean:6.2f} {agrees:9.2f} {divergence:6.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
