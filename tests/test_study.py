"""Data readers, configuration, metrics and energy: real formats, bad input, hand counts."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import teas
from teas.spiking.neuron import Amplitude
from teas.study import data as datasets
from teas.study.augmentation import cut_out
from teas.study.config import parse, read
from teas.study.energy import Operations, ann_energy, count_operations, total
from teas.study.metrics import evaluate

ROOT = Path(__file__).parents[1]
REAL = ROOT / "data"


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def tiny_mnist(folder, n=30):
    generator = np.random.default_rng(0)
    for prefix, size in (("train", n), ("t10k", 10)):
        write_idx(folder / f"MNIST/raw/{prefix}-images-idx3-ubyte.gz", generator.integers(0, 256, (size, 28, 28), np.uint8))
        write_idx(folder / f"MNIST/raw/{prefix}-labels-idx1-ubyte", np.arange(size, dtype=np.uint8) % 10)


def test_digits_are_split_without_overlap():
    data = datasets.load("digits", None, validation=100)
    assert (len(data.train), len(data.validation), len(data.test)) == (1098, 100, 599)
    assert data.shape == (1, 8, 8)
    rows = torch.cat([part.images.flatten(1) for part in (data.train, data.validation, data.test)])
    assert rows.float().sum().item() == 561718  # the sum of all pixels of scikit-learn's digits
    inputs, _ = next(iter(datasets.loader(data.train, 1098)))
    assert abs(inputs.mean().item()) < 1e-5
    assert abs(inputs.std().item() - 1) < 1e-3


def test_idx_files_gzipped_or_not(tmp_path):
    tiny_mnist(tmp_path)
    data = datasets.load("mnist", tmp_path, validation=10)
    assert (len(data.train), len(data.validation), len(data.test), data.classes) == (20, 10, 10, 10)


def test_cifar_binary_layout(tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (20, 3074), np.uint8)
    rows[:, 0], rows[:, 1] = 0, np.arange(20) * 5
    for name in ("train", "test"):
        (tmp_path / "cifar-100-binary").mkdir(exist_ok=True)
        rows.tofile(tmp_path / f"cifar-100-binary/{name}.bin")
    data = datasets.load("cifar100", tmp_path, validation=5)
    assert (data.shape, data.classes) == ((3, 32, 32), 96)
    assert torch.equal(data.test.images[3].flatten(), torch.from_numpy(rows[3, 2:]))
    assert data.test.labels[3] == 15


def test_image_folders(tmp_path):
    from PIL import Image

    for part, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (300, 260), (i * 50, 0, 99)).save(tmp_path / part / name / f"{i}.png")
    data = datasets.load("image_folder", tmp_path, validation=2)
    assert (data.shape, data.classes, len(data.train), len(data.test)) == ((3, 224, 224), 2, 6, 4)
    assert all(inputs.isfinite().all() for inputs, _ in datasets.loader(data.test, 2))  # two channels are constant
    with pytest.raises(teas.TeasError, match="3 channels"):
        datasets.load("image_folder", tmp_path, validation=2, moments=((0.5,), (0.5,)))


@pytest.mark.skipif(not (REAL / "MNIST").is_dir(), reason="MNIST is not in data/")
def test_real_mnist():
    data = datasets.load("mnist", REAL, validation=5000)
    assert (len(data.train), len(data.test)) == (55_000, 10_000)
    assert torch.bincount(data.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.skipif(not (REAL / "cifar-10-batches-bin").is_dir(), reason="CIFAR-10 is not in data/")
def test_real_cifar10():
    data = datasets.load("cifar10", REAL, validation=5000)
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10


def cut_short(folder):
    path = folder / "MNIST/raw/train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:500])


def wrong_length(folder):
    write_idx(folder / "MNIST/raw/t10k-labels-idx1-ubyte", np.zeros(7, np.uint8))


def not_idx(folder):
    (folder / "MNIST/raw/train-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 9, 9, 1, 3) + b"abc")


def gone(folder):
    (folder / "MNIST/raw/train-labels-idx1-ubyte").unlink()


@pytest.mark.parametrize(
    ("damage", "message"), [(cut_short, "damaged or cut short"), (wrong_length, "do not belong together"), (not_idx, "not a whole idx file"), (gone, "missing")]
)
def test_damaged_data_is_refused(damage, message, tmp_path):
    tiny_mnist(tmp_path)
    damage(tmp_path)
    with pytest.raises(teas.TeasError, match=message):
        datasets.load("mnist", tmp_path, validation=10)


def test_missing_empty_and_foreign_folders_are_refused(tmp_path):
    with pytest.raises(teas.TeasError, match="--data DIR"):
        datasets.load("mnist", None, validation=10)
    with pytest.raises(teas.TeasError, match="missing"):
        datasets.load("mnist", tmp_path / "nowhere", validation=10)
    with pytest.raises(teas.TeasError, match="empty"):
        datasets.load("mnist", tmp_path, validation=10)
    tiny_mnist(tmp_path)
    with pytest.raises(teas.TeasError, match="neither cifar-10-batches-bin nor torchvision"):
        datasets.load("cifar10", tmp_path, validation=10)
    (tmp_path / "cifar-10-batches-bin").mkdir()
    (tmp_path / "cifar-10-batches-bin/data_batch_1.bin").write_bytes(b"x" * 100)
    with pytest.raises(teas.TeasError, match="not rows of 3073"):
        datasets.load("cifar10", tmp_path, validation=10)
    with pytest.raises(teas.TeasError, match="must leave some of both"):
        datasets.load("mnist", tmp_path, validation=30)


def write_arrays(folder, **changes):
    draw = np.random.default_rng(0)
    for part, n in (("train", 30), ("test", 8)):
        split = {"images": draw.integers(0, 256, (n, 2, 5, 6), np.uint8), "labels": np.arange(n) % 3, **changes.get(part, {})}
        np.savez(folder / f"{part}.npz", **{key: value for key, value in split.items() if value is not None})


def test_arrays_of_one_s_own(tmp_path):
    write_arrays(tmp_path)
    data = datasets.load("arrays", tmp_path, validation=10)
    assert (data.shape, data.classes, len(data.train), len(data.test)) == ((2, 5, 6), 3, 20, 8)
    stored = np.load(tmp_path / "test.npz")
    assert np.array_equal(data.test.images, stored["images"])
    assert data.test.labels.tolist() == stored["labels"].tolist()
    write_arrays(tmp_path, train={"images": np.ones((30, 5, 6), np.uint8)}, test={"images": np.ones((8, 5, 6), np.uint8)})
    assert datasets.load("arrays", tmp_path, validation=10).shape == (1, 5, 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"images": np.ones((30, 2, 5, 6))}}, r"train.npz has images float64 \[30, 2, 5, 6\]"),
        ({"test": {"labels": np.zeros(7, int)}}, r"labels int64 \[7\]"),
        ({"test": {"labels": np.full(8, -1)}}, "labels int64 from -1"),
        ({"test": {"labels": np.zeros(8)}}, "labels float64 from 0.0"),
        ({"test": {"labels": None}}, "test.npz can't be read: .*labels"),
        ({"test": {"images": np.ones((8, 3, 5, 6), np.uint8)}}, r"\[2, 5, 6\] in train.npz and \[3, 5, 6\] in test.npz"),
        ({"test": {"labels": np.array([{}] * 8)}}, "can't be read: Object arrays"),
    ],
)
def test_other_arrays_are_refused(changes, message, tmp_path):
    write_arrays(tmp_path, **changes)
    with pytest.raises(teas.TeasError, match=message):
        datasets.load("arrays", tmp_path, validation=10)


def test_missing_and_damaged_arrays_are_refused(tmp_path):
    write_arrays(tmp_path)
    whole = (tmp_path / "test.npz").read_bytes()
    np.save(single := tmp_path / "single.npy", np.zeros(3))
    for damaged in (b"", b"nothing", whole[:300], whole[:100] + b"xxxx" + whole[104:], single.read_bytes()):
        (tmp_path / "test.npz").write_bytes(damaged)
        with pytest.raises(teas.TeasError, match=r"test.npz can't be read"):
            datasets.load("arrays", tmp_path, validation=10)
    (tmp_path / "test.npz").unlink()
    with pytest.raises(teas.TeasError, match=r"test.npz is missing"):
        datasets.load("arrays", tmp_path, validation=10)


def test_a_failed_download_says_so(tmp_path, monkeypatch):
    import torchvision

    def unreachable(*_, **__):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(torchvision.datasets, "MNIST", unreachable)
    with pytest.raises(teas.TeasError, match="downloading 'mnist' into"):
        datasets.load("mnist", tmp_path, validation=10, download=True)
    with pytest.raises(teas.TeasError, match="can't be downloaded"):
        datasets.load("image_folder", tmp_path, validation=10, download=True)


def test_shuffling_depends_on_seed_and_epoch_alone():
    data = datasets.load("digits", None, validation=100)
    batches = datasets.loader(data.train, 64, shuffle_seed=1)
    first = [labels for _, labels in batches]
    assert all(torch.equal(a, b) for a, (_, b) in zip(first, batches, strict=True))
    batches.sampler.set_epoch(1)
    assert not all(torch.equal(a, b) for a, (_, b) in zip(first, batches, strict=True))


def test_augmentation_moves_and_mirrors():
    picture = np.zeros((1, 1, 6, 6), np.uint8)
    picture[0, 0, 2, 3] = 255
    images = datasets.Images((np.repeat(picture, 200, 0), np.zeros(200)), 255.0, torch.zeros(1), torch.ones(1), "shift")
    torch.manual_seed(0)
    moved, _ = images.__getitems__(list(range(200)))
    assert moved.sum((1, 2, 3)).eq(1).all()
    assert sorted({tuple(i[1:].tolist()) for i in moved.nonzero()}) == [(0, r, c) for r in (1, 2, 3) for c in (2, 3, 4)]
    images.augmentation = "crop_flip"
    mirrored, _ = images.__getitems__(list(range(200)))
    assert {0, 5} <= {i[3].item() for i in mirrored.nonzero()}


def colourful(augmentation, n=200):
    pictures = np.random.default_rng(0).integers(1, 256, (1, 3, 32, 32), np.uint8)
    return datasets.Images((np.repeat(pictures, n, 0), np.zeros(n)), 255.0, torch.full((3,), 0.25), torch.ones(3), augmentation)


def test_cutout_erases_one_square_of_each_image():
    torch.manual_seed(0)
    erased = cut_out(torch.ones(300, 3, 32, 32)) == 0
    assert (erased.any(1) == erased.all(1)).all()  # the same pixels of every channel
    heights, widths = erased[:, 0].any(2).sum(1), erased[:, 0].any(1).sum(1)
    assert (erased[:, 0].sum((1, 2)) == heights * widths).all()  # a rectangle
    assert (heights.max(), widths.max(), heights.min()) == (16, 16, 8)  # centres near the edge reach over it
    inputs, _ = colourful("crop_flip_cutout").__getitems__(list(range(50)))
    assert (inputs == 0).all(1).sum((1, 2)).min() >= 64


def test_autoaugment_changes_each_image_by_itself():
    torch.manual_seed(0)
    inputs, _ = colourful("autoaugment").__getitems__(list(range(40)))
    assert inputs.shape == (40, 3, 32, 32)
    assert len({tuple(image.flatten().sort().values.tolist()) for image in inputs}) > 30
    grey = datasets.Images((np.full((4, 1, 8, 8), 9, np.uint8), np.zeros(4)), 16.0, torch.zeros(1), torch.ones(1), "autoaugment")
    assert grey.__getitems__([0, 1])[0].shape == (2, 1, 8, 8)


def test_a_share_of_the_training_images():
    few, all_of_them = datasets.load("digits", None, validation=100, samples=50), datasets.load("digits", None, validation=100)
    assert (len(few.train), len(few.validation)) == (50, 100)
    assert torch.equal(few.validation.images, all_of_them.validation.images)
    kept = {image.numpy().tobytes() for image in all_of_them.train.images}
    assert all(image.numpy().tobytes() in kept for image in few.train.images)
    with pytest.raises(teas.TeasError, match="1098 training samples"):
        datasets.load("digits", None, validation=100, samples=1099)


@pytest.mark.parametrize("path", [*sorted((ROOT / "experiments").glob("*.toml")), ROOT / "src/teas/study/demo.toml"], ids=lambda p: p.stem)
def test_experiments_are_valid_and_say_what_they_claim(path):
    experiment = read(path)
    assert experiment.claim
    header = path.read_text()
    assert header.startswith("# Claim: ")
    assert "# Command: teas " in header
    assert "# Expected: " in header


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = 'x'\n[training]\nwindw = 3", r"unknown key 'windw'; did you mean 'window'\?"),
        ("name = 'x'\nzzz = 3", "the keys are name, claim"),
        ("", "'name' is missing"),
        ("name = 3", "must be text"),
        ("name = 'x'\n[training]\nwindow = 2.5", "must be a whole number"),
        ("name = 'x'\n[training]\nwindow = true", "must be a whole number"),
        ("name = 'x'\n[training]\nwindow = 0", "must be above 0"),
        ("name = 'x'\n[windows]\nmean = 40", "above training.window"),
        ("name = 'x'\nseeds = []", "at least one"),
        ("name = 'x'\ntraining = 3", "must be a table"),
        ("name = 'x'\n[semantics]\nfiring = 'slow'", "immediate, two_phase"),
        ("name = 'x'\n[data]\nname = 'mnits'", "digits, mnist"),
        ("name = ", "not valid TOML"),
    ],
)
def test_bad_experiments_are_refused(text, message):
    with pytest.raises(teas.TeasError, match=message):
        parse(text, "test")


def test_overrides():
    text = "name = 'x'\n[training]\nwindow = 8"
    experiment = parse(text, "test", ("training.window=12", "semantics.layout=even", "network.hidden=[5, 6]", "training.retrain_rate=1e-2"))
    assert (experiment.training.window, experiment.semantics.layout, experiment.network.hidden) == (12, "even", (5, 6))
    assert experiment.training.retrain_rate == 0.01
    with pytest.raises(teas.TeasError, match="key=value"):
        parse(text, "test", ("training.window",))
    with pytest.raises(teas.TeasError, match="unknown key"):
        parse(text, "test", ("training.winow=3",))


def brute_force_additions(conv, counts):
    """Every spike and every output neuron it reaches, one by one."""
    (height, width), (kh, kw) = counts.shape[-2:], conv.kernel_size
    stride, padding, dilation = conv.stride[0], conv.padding[0], conv.dilation[0]
    out_h = (height + 2 * padding - dilation * (kh - 1) - 1) // stride + 1
    out_w = (width + 2 * padding - dilation * (kw - 1) - 1) // stride + 1
    per_group = conv.out_channels // conv.groups
    additions = 0
    for row in range(out_h):
        for column in range(out_w):
            for i in range(kh):
                for j in range(kw):
                    r, c = row * stride - padding + i * dilation, column * stride - padding + j * dilation
                    if 0 <= r < height and 0 <= c < width:
                        additions += per_group * counts[:, r, c].sum().item()
    return additions


@pytest.mark.parametrize(
    "conv",
    [nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.Conv2d(4, 4, 3, groups=4, dilation=2, padding=2)],
    ids=["padded", "strided-grouped", "depthwise-dilated"],
)
@pytest.mark.parametrize("firing", ["immediate", "two_phase"])
def test_synaptic_operations_equal_brute_force(conv, firing):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), teas.IF(0.5, reset="subtract"), conv, teas.IF(reset="subtract"))
    network = teas.SpikingNetwork(module, {"1": 3, "3": 5}, firing=firing)
    inputs = torch.randn(2, 1, 9, 8)
    received = network(inputs, keep_spikes=True).record["3"].received["1"]
    found = count_operations(network, inputs)
    assert found["3"].synaptic == pytest.approx(sum(brute_force_additions(conv, counts) for counts in received) / 2)
    assert received.sum() > 0
    # The first layer: 9 x 8 pixels, 3 x 3 kernels, 7 x 6 outputs of 4 channels.
    assert found["1"].analog == found["1"].dense == 7 * 6 * 9 * 4
    assert found["1"].synaptic == 0
    assert found["1"].updates == 3 * 4 * 7 * 6
    assert found["3"].transform == (0 if firing == "two_phase" else 4 * 7 * 6)


def test_operations_of_a_hand_counted_network():
    # Inputs 1 and 2 fire 2 and 4 times in 4 steps and reach 3 neurons each: 18 additions; a pooled pair reaches 5 readout neurons twice.
    module = nn.Sequential(nn.Linear(2, 2, bias=False), teas.IF(reset="subtract"), nn.Linear(2, 3, bias=False), teas.IF(reset="subtract"), nn.Linear(3, 5))
    module[0].weight.data = 0.5 * torch.eye(2)
    module[2].weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    found = count_operations(teas.SpikingNetwork(module, 4), torch.tensor([[1.0, 2.0]]))
    assert found["1"] == Operations(4, 4, 0, 8, 0)
    assert found["3"] == Operations(6, 0, 18, 12, 0)
    assert found["readout"] == Operations(15, 0, 5 * (2 + 4), 0, 0)
    whole = total(found)
    assert whole.energy("FP32") == pytest.approx(4.6 * 4 + 0.9 * (18 + 30 + 20))
    assert ann_energy(found, "FP32") == pytest.approx(4.6 * 25)


def test_spikes_pass_through_pooling_whole():
    module = nn.Sequential(nn.Identity(), teas.IF(), nn.AvgPool2d(2), nn.Conv2d(1, 3, 1), teas.IF())
    found = count_operations(teas.SpikingNetwork(module, 2), torch.ones(1, 1, 4, 4))
    # 16 neurons fire at both steps; each spike reaches one pooled position and from there 3 channels.
    assert found["4"].synaptic == 16 * 2 * 3


class Functional(nn.Module):
    """The same spikes through pooling and factors written as functions, with an amplitude that is no spike count."""

    def __init__(self, plain):
        super().__init__()
        self.plain, self.fire, self.last = plain, teas.IF(), teas.IF()
        self.amplitude, self.norm, self.conv, self.head = Amplitude(torch.tensor(0.3)), nn.BatchNorm2d(1), nn.Conv2d(1, 3, 1), nn.Linear(3, 2)

    def forward(self, x):
        s = self.fire(x)
        pooled = nn.functional.avg_pool2d(s, 2) if self.plain else self.norm(self.amplitude(nn.functional.avg_pool2d(s, 2)) * 0.5)
        return self.head(self.last(self.conv(pooled)).mean((2, 3)))


@pytest.mark.parametrize("plain", [True, False])
def test_factors_and_functional_pooling_change_no_count_of_spikes(plain):
    module = Functional(plain).eval()
    module.conv.weight.data.fill_(50.0)
    found = count_operations(teas.SpikingNetwork(module, 2).eval(), torch.ones(1, 1, 4, 4))
    # 16 neurons fire at both steps and reach one pooled position, from there 3 channels; 4 positions of 3 channels fire twice, to 2 neurons each.
    assert found["last"].synaptic == pytest.approx(16 * 2 * 3)
    assert found["readout"].synaptic == pytest.approx(4 * 3 * 2 * 2)


def test_a_converted_network_counts_spikes_not_amplitudes():
    torch.manual_seed(0)
    ann, inputs = (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(252, 2)),
        torch.randn(4, 1, 9, 8),
    )
    network = teas.convert(ann, [inputs]).at({"1": 3, "3": 5})
    counts = network(inputs).record["1"].count
    found = count_operations(network, inputs)
    assert found["3"].synaptic == pytest.approx(sum(brute_force_additions(ann[2], one) for one in counts) / 4, rel=1e-5)


def test_synapses_that_cannot_be_counted_are_refused():
    class Raw(nn.Module):
        def __init__(self, hidden):
            super().__init__()
            self.hidden = hidden
            self.weight, self.one, self.two = nn.Parameter(torch.eye(3)), teas.IF(), teas.IF()

        def forward(self, x):
            return self.two(nn.functional.linear(self.one(x) if self.hidden else x, self.weight))

    for hidden in (True, False):
        with pytest.raises(teas.TeasError, match="can't be counted"):
            count_operations(teas.SpikingNetwork(Raw(hidden), 2), torch.ones(1, 3))


def test_latency_follows_the_longest_path():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = teas.IF(), teas.IF(), teas.IF()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            a = self.a(self.one(x))
            return self.c(self.two(self.b(a * 1.0)) + a)

    network = teas.SpikingNetwork(Fork(), {"a": 5, "b": 2, "c": 4})
    found = evaluate(network, [(torch.randn(8, 4), torch.zeros(8, dtype=torch.long))]).latency
    assert (found.mean, found.max, found.sum) == (11 / 3, 5, 11)
    parallel = network.with_windows({"a": 5, "b": 2, "c": 4})
    assert evaluate(parallel, [(torch.randn(2, 4), torch.zeros(2, dtype=torch.long))]).latency.weighted == pytest.approx((16 * 5 + 16 * 4) / 32)
