"""Killed at random moments: every run continues, ends in the same bits, and leaves no file half-written."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import safe_open
from typer.testing import CliRunner

from teas.cli import app
from teas.files import remove_strays

SMALL = """
name = "killed"
controls = ["uniform"]
[data]
validation = 900
batch = 32
[network]
hidden = [12]
reset = "subtract"
surrogate = "arctan"
[training]
window = 4
pretrain_epochs = 4
pretrain_rate = 5e-3
retrain_epochs = 3
finetune_epochs = 2
scale = 10.0
[windows]
mean = 2
every = 1
"""
KILLS = 20


def run(folder):
    """The run in a process of its own that has everything imported already; returns its id."""
    from teas.study import experiment as experiments
    from teas.study.config import parse

    child = os.fork()
    if child == 0:
        code = 1
        try:
            experiments.run(parse(SMALL, "the test"), folder, resume=True)
            code = 0
        finally:
            os._exit(code)
    return child


def finish(child):
    assert os.waitpid(child, 0)[1] == 0, "the run was not killed and failed"


def check_whole(folder):
    """Everything under its final name can be read to its end."""
    for path in folder.rglob("*"):
        if path.name.startswith(".") or any(part.endswith(".new") for part in path.parts):
            continue
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    file.get_tensor(name)
        elif path.parent.name == "checkpoints":
            assert (path / "stage.json").exists()


def results(folder):
    return {name: (folder / name).read_bytes() for name in ("metrics.json", "windows.json", "weights.safetensors", "raster.json")}


def main(root):
    generator = random.Random(0)
    start = time.monotonic()
    finish(run(root / "reference"))
    duration = time.monotonic() - start
    expected, folder, kills = results(root / "reference"), root / "0", 0
    while kills < KILLS:
        child = run(folder)
        time.sleep(generator.uniform(0, duration / 4))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            kills += 1
            check_whole(folder)
        else:  # it was faster
            assert status == 0, "a resumed run failed"
            assert results(folder) == expected
            folder = root / str(kills)
    finish(run(folder))
    assert results(folder) == expected
    strays = [path.name for path in root.rglob(".*")]
    assert not strays, strays
    print(json.dumps({"kills": kills, "runs": len(list(root.iterdir())) - 1}))


def test_kill_at_20_random_moments(tmp_path):
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_interruptions as t; t.main(t.Path(sys.argv[1]))",
    ]
    done = subprocess.run([*command, str(tmp_path)], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["kills"] == KILLS


def test_only_what_interrupted_writes_left_is_removed(tmp_path):
    kept = [".bashrc", ".config.json", ".notes.txt.abcdefgh", "metrics.json.abcdefgh", ".metrics.json.backup"]
    for name in [*kept, ".metrics.json.a1b2c3d4", ".weights.safetensors.x_y_z_0_"]:
        (tmp_path / name).write_text("x")
    remove_strays(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


IN_A_CALLBACK = """
import ctypes, signal, time
from teas.interruptions import interruptions_reach_us

def compare(a, b):
    DONE_IN_THE_CALLBACK
    return 0

callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(compare)
try:
    with interruptions_reach_us():
        ctypes.CDLL(None).qsort((ctypes.c_int * 2)(), 2, 4, callback)
        print("after the callback", flush=True)
        DONE_AFTER_IT
    print("went on")
except KeyboardInterrupt:
    print("interrupted")
except RuntimeError:
    print("failed")
time.sleep(0.2)
"""
INTERRUPT = "signal.raise_signal(signal.SIGINT)"


@pytest.mark.parametrize(
    ("inside", "after", "end", "told"),
    [
        (INTERRUPT, "time.sleep(20)", "interrupted", ""),
        (INTERRUPT, "raise RuntimeError('the callback left its work undone')", "interrupted", ""),
        ("1 / 0", "time.sleep(0)", "went on", "ZeroDivisionError"),
        ("1 / 0", "raise RuntimeError('another matter')", "failed", "ZeroDivisionError"),
    ],
)
def test_an_interruption_in_a_callback_of_c_is_raised_after_it(inside, after, end, told):
    """And exceptions of other kinds are told, and forgotten, as they always are."""
    code = IN_A_CALLBACK.replace("DONE_IN_THE_CALLBACK", inside).replace("DONE_AFTER_IT", after)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split("\n")[:2] == ["after the callback", end]
    assert told in done.stderr
    assert told or not done.stderr


@pytest.mark.parametrize(("command", "arguments", "way_on"), [("run", ["any.toml"], True), ("engines", ["any"], False)])
def test_only_a_command_that_can_go_on_says_how(command, arguments, way_on, monkeypatch):
    """Interrupted while the first module is imported that the command needs."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("teas.study.config.read", interrupt)
    monkeypatch.setattr("teas.study.run_folder.load_run", interrupt)
    done = CliRunner().invoke(app, [command, *arguments])
    assert done.exit_code == 130
    assert "interrupted" in done.stderr
    assert ("--resume" in done.stderr) == way_on
