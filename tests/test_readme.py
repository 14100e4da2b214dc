"""The code of the README runs as it stands there."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"


BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


def test_the_first_example_is_short_and_runs(tmp_path, monkeypatch, capsys):
    assert len(BLOCKS[0].strip().splitlines()) <= 12
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[0], "README.md", "exec"), {})
    assert "torch.Size([16, 10]) 5.0" in capsys.readouterr().out
    assert (tmp_path / "network.safetensors").exists()


@pytest.mark.filterwarnings("ignore:at 64 steps")  # random weights
def test_the_conversion_example_runs(capsys):
    torch.manual_seed(0)
    exec(compile(BLOCKS[1], "README.md", "exec"), {})
    assert "threshold" in capsys.readouterr().out


def test_no_example_is_left_out():
    assert len(BLOCKS) == 2


def test_every_experiment_of_the_readme_exists():
    for name in set(re.findall(r"experiments/\w+\.toml", README.read_text())):
        assert (README.parent / name).exists(), name
