"""The rules of the house: imports run one way, heavy libraries stay in their rooms, no state at module level."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src/teas"
MODULES = sorted(SOURCE.rglob("*.py"))
SHARED = {"errors", "files", "interruptions", "_version"}
ALLOWED = {
    "spiking": {"spiking"},
    "ann": {"ann", "spiking"},
    "adapt": {"adapt", "spiking"},
    "engine": {"engine", "spiking"},
    "exchange": {"exchange", "spiking"},
    "study": {"study", "ann", "adapt", "engine", "exchange", "spiking"},
    "cli": {"study", "spiking"},
    "__main__": {"cli"},
    "__init__": {"spiking", "ann", "adapt", "engine", "exchange"},
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def test_there_is_something_to_check():
    assert len(MODULES) > 20


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_run_one_way(path):
    here = room(path)
    allowed = {"errors"} if here in SHARED else ALLOWED[here] | SHARED
    used = {name.split(".")[1] for name in imports(path) if name.startswith("teas.")}
    assert used <= allowed, f"{here} imports {used - allowed}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_libraries_stay_in_their_rooms(path):
    used = {name.split(".")[0] for name in imports(path)}
    kernels = {"window_kernels.py": {"triton"}, "window_cpu.py": {"numpy"}, "window_loops.py": {"numpy", "numba"}}
    assert "triton" not in used or path.name == "window_kernels.py"
    if room(path) == "spiking":
        assert used - {"__future__", "torch", "teas"} - kernels.get(path.name, set()) <= set(__import__("sys").stdlib_module_names)
    if used & {"numba", "llvmlite"}:
        assert path.name in ("lanes.py", "firing.py", "counting.py", "event_sources.py", "window_loops.py")
    if "matplotlib" in used:
        assert path.name in ("figures.py", "figures_training.py", "report.py", "bench_report.py")
    assert "pickle" not in used or path.name == "weights.py"  # only to catch its error


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_no_environment_variable_selects_behaviour(path):
    assert "os.environ" not in path.read_text()
    assert "getenv" not in path.read_text()
    assert "weights_only=False" not in path.read_text()
