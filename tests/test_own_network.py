"""Networks of one's own on the command line: named as `module:function`, with weights of one's own."""

import itertools
import sys

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import teas
from teas.ann.own import make_own
from teas.cli import app
from teas.study import data as datasets
from teas.study.run_folder import load_run

MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, width=24):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, num_classes))

    def forward(self, x, features=False):
        return self.body(x)

def spiking(shape, classes, neurons):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[1] * shape[2], 20), neurons(), nn.Linear(20, classes), neurons())

def fails(classes):
    return classes / 0

def number(classes):
    return classes

def asks(depth):
    return depth

def coloured(classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, classes))

def few():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))

def maps():
    return nn.Sequential(nn.Conv2d(1, 10, 3), nn.ReLU())

def spiking_for_more(neurons):
    return nn.Sequential(nn.Flatten(), nn.Linear(65, 10), neurons())
"""
CONVERSION = """
name = "mine"
[data]
name = "digits"
[conversion]
architecture = "{0}:Net"
means = [3]
allocators = ["uniform"]
calibration = 100
probe = 100
damage_windows = [1]
damage_full = 4
[conversion.pretraining]
epochs = 1
rate = 0.1
[retraining]
means = [3]
allocators = ["uniform"]
recipe = {{ epochs = 1, rate = 0.01 }}
"""
TRAINING = """
name = "mine"
controls = ["uniform"]
[data]
name = "digits"
[network]
architecture = "{0}:spiking"
weights = "trained.pt"
reset = "subtract"
[training]
window = 5
retrain_epochs = 1
finetune_epochs = 1
[windows]
mean = 3
"""
_numbers = itertools.count()


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The name of a module in the current folder, which Python has not seen before."""
    name = f"networks_of_mine_{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def command(*arguments):
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_an_ann_of_one_s_own_is_trained_converted_and_evaluated(own, tmp_path):
    (tmp_path / "mine.toml").write_text(CONVERSION.format(own))
    assert command("run", "mine.toml")[0] == 0
    network, data, _ = load_run(tmp_path / "runs" / "mine")
    assert network.windows == {"body.2": 3}
    assert sum(parameter.numel() for parameter in network.module.parameters() if parameter.dim() == 2) == 64 * 24 + 24 * 10
    right = sum(int((network(inputs).logits.argmax(1) == labels).sum()) for inputs, labels in datasets.loader(data.test, 500))
    code, printed = command("evaluate", "runs/mine")
    assert code == 0
    assert f"accuracy {100 * right / len(data.test):.2f} %" in printed


def test_a_trained_spiking_network_of_one_s_own_is_adapted_and_not_trained_first(own, tmp_path):
    torch.manual_seed(0)
    module = make_own(f"{own}:spiking", shape=(1, 8, 8), classes=10, neurons=lambda: teas.IF(reset="subtract"))
    torch.save(module.state_dict(), tmp_path / "trained.pt")
    (tmp_path / "mine.toml").write_text(TRAINING.format(own))
    code, printed = command("run", "mine.toml", "--data", str(tmp_path))
    assert code == 0
    assert "full: trained before, trained.pt" in printed
    assert "pretrain" not in printed
    adapted, data, _ = load_run(tmp_path / "runs" / "mine")
    full = teas.SpikingNetwork(module, 5).eval()
    right = sum(int((full(inputs).logits.argmax(1) == labels).sum()) for inputs, labels in datasets.loader(data.test, 500))
    assert f"│ full     │ {100 * right / len(data.test):.2f}" in printed
    assert adapted.windows.mean == 3
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{0}:fails", r"calling {0}:fails failed at .*{0}.py:\d+: ZeroDivisionError: division by zero"),
        ("{0}:number", "returns a int; it must return the network"),
        ("{0}:asks", "takes depth, without a default; it may ask for classes"),
        ("{0}:nothing", r"{0}.py\) has no function 'nothing'"),
        ("{0}_gone:Net", "there is no module '{0}_gone', neither in"),
        ("torch:zeros", "reading the arguments of torch:zeros failed .*: ValueError: no signature found"),
        ("os:getcwd", "a module of Python itself"),
    ],
)
def test_what_makes_no_network_is_refused(own, name, message):
    with pytest.raises(teas.TeasError, match=message.format(own)):
        make_own(name.format(own), classes=10)


def test_a_module_that_fails_to_import_says_where(own, tmp_path):
    (tmp_path / f"{own}.py").write_text("import torch\nimport no_such_package\n")
    with pytest.raises(teas.TeasError, match=rf"importing {own} failed at .*{own}.py:2: ModuleNotFoundError: No module named 'no_such_package'"):
        make_own(f"{own}:Net", classes=10)


@pytest.mark.parametrize("name", ["net:", "a/b.py:net", ":", "net:a.b"])
def test_names_that_are_none(own, tmp_path, name):
    (tmp_path / "mine.toml").write_text(CONVERSION.format(own))
    code, printed = command("run", "mine.toml", "--set", f"conversion.architecture={name}")
    assert code == 2
    assert "a network of your own is module:function" in printed


def test_a_command_that_never_started_leaves_no_folder_in_the_way_of_the_corrected_one(own, tmp_path):
    (tmp_path / "mine.toml").write_text(CONVERSION.format(own))
    assert command("run", "mine.toml", "--set", f"conversion.architecture={own}:nothing")[0] == 2
    assert not (tmp_path / "runs" / "mine").exists()
    assert command("run", "mine.toml")[0] == 0
    assert command("run", "mine.toml")[0] == 2  # a finished run is not touched
    assert (tmp_path / "runs" / "mine" / "metrics.json").exists()
    assert isinstance(load_run(tmp_path / "runs" / "mine")[0], nn.Module)


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("coloured", "and can't take them: RuntimeError: Given groups=1, weight of size [4, 3, 3, 3]"),
        ("few", "two of them, and returned a tensor [2, 3]; it must return a tensor [2, 10], logits of 10 classes or more"),
        ("maps", "two of them, and returned a tensor [2, 10, 6, 6]; it must"),
        ("spiking_for_more", "and can't take them: RuntimeError: "),
    ],
)
def test_a_network_that_does_not_suit_its_data_is_refused_before_it_is_trained(own, tmp_path, name, seen):
    kind, text = ("network", TRAINING.replace('weights = "trained.pt"\n', "")) if name.startswith("spiking") else ("conversion", CONVERSION)
    (tmp_path / "mine.toml").write_text(text.format(own))
    code, printed = command("run", "mine.toml", "--set", f"{kind}.architecture={own}:{name}")
    assert code == 2
    assert f"'{own}:{name}' was given images of 'digits', [1, 8, 8], {seen}" in printed
    assert " loss " not in printed
    assert not (tmp_path / "runs" / "mine").exists()
