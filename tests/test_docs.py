"""Documentation that runs: every block of Python on every page, every notebook, and every command's words."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.main import get_command

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OPTIONAL = {"spikingjelly", "snntorch", "norse", "sinabs", "tonic", "nir", "onnxruntime", "lightning"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)
blocks = {page: FENCE.findall(page.read_text()) for page in [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]}
with_python = [page for page, found in blocks.items() if any(language == "python" for language, _ in found) and page.name != "README.md"]  # see test_readme.py


def name(path):
    return str(path.relative_to(ROOT))


def run(source, where, tmp_path, monkeypatch):
    for library in sorted(OPTIONAL & set(re.findall(r"(?:import|from) (\w+)", source)) | ({"onnx"} if "to_onnx" in source else set())):
        pytest.importorskip(library, reason=f"needs {library}: pip install 'teas[exchange]'")
    for function, library in (("to_nir", "nir"), ("to_spikingjelly", "spikingjelly"), ("bin_events", "tonic")):
        if function in source:
            pytest.importorskip(library, reason=f"needs {library}: pip install 'teas[exchange]'")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(source, where, "exec"), {"__name__": "__main__"})


@pytest.mark.filterwarnings("ignore:at 64 steps", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("page", with_python, ids=name)
def test_pages_run_from_top_to_bottom(page, tmp_path, monkeypatch):
    run("\n".join(code for language, code in blocks[page] if language == "python"), name(page), tmp_path, monkeypatch)


@pytest.mark.filterwarnings("ignore:at 64 steps", "ignore::UserWarning")
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_notebooks_run_from_top_to_bottom(notebook, tmp_path, monkeypatch):
    cells = json.loads(notebook.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 3
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code"), "outputs are not kept: they would not be what the code prints"
    run("\n".join(code), name(notebook), tmp_path, monkeypatch)


def commands():
    """Every line of every page that calls `teas`, with its page."""
    for page, found in blocks.items():
        for language, text in found:
            for line in text.splitlines() if language in ("", "bash") else []:
                if re.match(r"(teas|torchrun .* -m teas) ", line):
                    yield name(page), line.split("#")[0].strip()


@pytest.mark.parametrize(("page", "line"), list(commands()))
def test_commands_exist_with_their_options(page, line):
    from teas.cli import app

    _, *words = shlex.split(line[line.index("teas ") :])
    known = get_command(app).commands
    assert words[0] in known, f"{page}: {line}"
    options = {option for parameter in known[words[0]].params for option in parameter.opts}
    for word in words[1:]:
        assert not word.startswith("--") or word.split("=")[0] in options, f"{page}: {line}"
        if word.endswith(".toml") and "EXPERIMENT" not in word:
            assert (ROOT / word).is_file(), f"{page}: {word}"


@pytest.mark.parametrize("page", [page for page, found in blocks.items() if any(language == "toml" for language, _ in found)], ids=name)
def test_experiments_on_pages_are_valid(page):
    from teas.study.config import parse

    for language, text in blocks[page]:
        if language == "toml":
            assert parse(text, name(page)).name.startswith("mine")


def test_every_block_is_run_or_a_command():
    for page, found in blocks.items():
        for language, text in found:
            assert language in ("python", "toml", "bash", ""), f"{name(page)} has a block of {language!r}, which nothing runs"
            if language == "":
                assert all(re.match(r"(teas|make|torchrun|OMP_NUM_THREADS|python) ", line) for line in text.strip().splitlines()), f"{name(page)}: {text}"


def test_there_are_pages_and_three_notebooks():
    assert len(with_python) >= 9
    assert len(NOTEBOOKS) == 3


def test_every_public_name_is_in_the_reference():
    import teas

    text = "".join(page.read_text() for page in (ROOT / "docs/reference").glob("*.md"))
    missing = [public for public in teas.__all__ if not public.startswith("__") and not re.search(rf"^::: teas\.(\w+\.)*{public}$", text, re.M)]
    assert not missing
