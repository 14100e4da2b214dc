"""The ANNs by name, and ImageNet-style images from lists of files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import teas
from teas.ann.networks import ANNS, build_ann
from teas.study import config
from teas.study import data as datasets
from teas.study.experiment import run
from teas.study.report import write_report


def test_published_sizes():
    sizes = {name: sum(p.numel() for p in build_ann(name, 10).parameters()) for name in ("resnet20", "vgg16", "resnet18", "resnet18_membrane")}
    # VGG-16's thirteen convolutions have 14,710,464 weights, their batch norms 8,448, and the head 5,130.
    # ResNet-18 with its 3x3 stem: 11,173,962 for ten classes, as He et al.'s followers on CIFAR-10 have it.
    # Its pre-activation form: 11,171,146, and the batch norm at its end.
    assert sizes == {"resnet20": 269_722, "vgg16": 14_710_464 + 8_448 + 5_130, "resnet18": 11_173_962, "resnet18_membrane": 11_171_146 + 1_024}
    with pytest.raises(teas.TeasError, match="resnet20"):
        build_ann("resnet21", 10)


def test_membrane_shortcuts_charge_every_neuron_with_all_blocks_before_it():
    torch.manual_seed(0)
    ann = build_ann("resnet20_membrane", 10).eval()
    plain = build_ann("resnet20", 10)
    assert [conv.weight.shape for conv in ann.modules() if isinstance(conv, nn.Conv2d)] == [c.weight.shape for c in plain.modules() if isinstance(c, nn.Conv2d)]
    inputs = torch.randn(2, 3, 32, 32)
    layers = {layer.name: layer for layer in teas.convert(ann, [inputs]).at(4).layers}
    assert len(layers) == 20
    assert layers["layer1.2.relu"].sources == ("input", "layer1.0.relu_2", "layer1.1.relu_2")
    # The stream alone, without its blocks: what the stem makes of the image, every second pixel, zeros for channels that are new.
    for block in [*ann.layer1, *ann.layer2, *ann.layer3]:
        block.conv2.weight.data.zero_()
    stem = ann.conv1(inputs)
    assert torch.equal(ann.layer2(ann.layer1(stem))[:, 8:24], stem[:, :, ::2, ::2])
    assert not ann.layer2(ann.layer1(stem))[:, :8].any()


def test_the_original_resnet50_strides_where_it_was_published_to():
    net = build_ann("imagenet_resnet50_original", 1000)
    assert net.layer2[0].conv1.stride == (2, 2)
    assert net.layer2[0].conv2.stride == (1, 1)
    assert sum(p.numel() for p in net.parameters()) == 25_530_472
    assert all(conv.bias is not None for conv in net.modules() if isinstance(conv, nn.Conv2d))
    assert net.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize("name", [name for name in ANNS if name.startswith(("resnet", "vgg"))])
def test_small_anns_convert_to_what_they_were(name):
    torch.manual_seed(0)
    ann = build_ann(name, 10).eval()
    inputs = torch.randn(2, 3, 32, 32)
    network = teas.convert(ann, [inputs], threshold="maximum").at(1024)
    assert (network(inputs).logits - ann(inputs)).norm() < 0.03 * ann(inputs).norm()


def listed(folder):
    generator = np.random.default_rng(0)
    for part, n in (("imagenet_calibration", 6), ("imagenet_val", 3)):
        (folder / part / "n01").mkdir(parents=True)
        rows = ["file,synset,class_index"]
        for i in range(n):
            Image.fromarray(generator.integers(0, 256, (224, 224, 3), np.uint8)).save(folder / part / f"n01/{i}.png")
            rows.append(f"n01/{i}.png,n01,{7 + i % 2}")
        (folder / part / "labels.csv").write_text("\n".join(rows))


def test_listed_images_are_read_with_their_classes_or_refused(tmp_path):
    listed(tmp_path)
    data = datasets.load("imagenet_listed", tmp_path, validation=2, moments=((0.5,) * 3, (0.25,) * 3))
    assert (len(data.train), len(data.validation), len(data.test)) == (4, 2, 3)
    assert data.test.labels.tolist() == [7, 8, 7]
    picture = np.asarray(Image.open(tmp_path / "imagenet_val/n01/1.png"))
    assert torch.allclose(data.test[1][0][2], (torch.from_numpy(picture[:, :, 2] / 255) - 0.5).float() / 0.25, atol=1e-6)
    (tmp_path / "imagenet_val/n01/1.png").write_bytes(b"not an image")
    with pytest.raises(teas.TeasError, match="can't be read as an image"):
        data.test[1]
    (tmp_path / "imagenet_val/labels.csv").write_text("name,class\na,1\n")
    with pytest.raises(teas.TeasError, match="columns file and class_index"):
        datasets.load("imagenet_listed", tmp_path, validation=2)


@pytest.mark.parametrize("name", ["resnet34"])  # VGG-16 does as much arithmetic as the rest of the suite
def test_imagenet_experiments_run_from_a_folder_to_a_report(tmp_path, name):
    generator = np.random.default_rng(0)
    for part, n in (("train", 8), ("val", 2)):
        for label in ("cat", "dog"):
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(n):
                Image.fromarray(generator.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / part / label / f"{i}.png")
    changes = ("conversion.weights=random", "conversion.means=[4]", "conversion.calibration=8", "conversion.probe=6", "data.validation=2")
    with pytest.raises(teas.TeasError, match="more than the 14 training samples"):
        run(config.read(Path(__file__).parents[1] / f"experiments/imagenet_{name}.toml", changes[:2] + changes[-1:]), tmp_path / "no", data_folder=tmp_path)
    experiment = config.read(Path(__file__).parents[1] / f"experiments/imagenet_{name}.toml", changes)
    metrics = run(experiment, tmp_path / "out", data_folder=tmp_path)
    assert [row["allocator"] for row in metrics["rows"]] == ["uniform", "activity_root"]
    assert metrics["samples"] == 4
    assert "random" in write_report(tmp_path / "out").read_text()
