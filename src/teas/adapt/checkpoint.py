"""Checkpoints of a stage of training: written beside the old one and swapped in, so that an interruption leaves the one or the other, whole."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError

from teas.errors import TeasError
from teas.files import write_atomically
from teas.spiking.network import SpikingNetwork
from teas.spiking.time_windows import TimeWindows


def save(accelerator: Accelerator, network: SpikingNetwork, folder: Path, stage: dict[str, Any], history: list[dict[str, Any]]) -> None:
    """Write weights, optimiser, random states, windows and history of all processes; raises `TeasError` where that fails (a full disk)."""
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    if accelerator.is_main_process:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(fresh))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise TeasError(f"cannot write the checkpoint {fresh}: {error}. The one of the epoch before is whole; make room and continue with --resume") from None
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_atomically(fresh / "stage.json", json.dumps({"stage": stage, "windows": dict(network.windows), "history": history}))
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.replace(folder, old)
        os.replace(fresh, folder)
        shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


def restore(accelerator: Accelerator, network: SpikingNetwork, folder: Path, stage: dict[str, Any]) -> list[dict[str, Any]]:
    """Continue from a checkpoint of this stage, if there is one, and return its history; raises `TeasError` for one of another stage."""
    old = folder.with_name(folder.name + ".old")
    if not folder.exists() and old.exists():  # interrupted between the two renames of a swap
        folder = old
    if not folder.exists():
        return []
    state = json.loads((folder / "stage.json").read_text())
    if state["stage"] != stage:
        raise TeasError(f"{folder} was written with other settings of stage {stage['name']!r}; use another output folder, or the settings it was started with")
    accelerator.load_state(str(folder))
    network.windows = TimeWindows(state["windows"])
    history: list[dict[str, Any]] = state["history"]
    return history
