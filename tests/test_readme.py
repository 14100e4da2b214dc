"""The code of the README runs as it stands there."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert len(blocks) == 1
    assert len(blocks[0].strip().splitlines()) <= 12
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks[0], "README.md", "exec"), {})
    assert "torch.Size([16, 10]) 5.0" in capsys.readouterr().out
    assert (tmp_path / "network.safetensors").exists()


def test_every_experiment_of_the_readme_exists():
    for name in set(re.findall(r"experiments/\w+\.toml", README.read_text())):
        assert (README.parent / name).exists(), name
