"""Weights from elsewhere: safetensors, or a PyTorch checkpoint read without running any code of its own."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from teas.errors import TeasError


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a state dict into a module, with or without the prefix `module.` and the wrapper `state_dict`.

    Raises `TeasError` for a file that is missing, damaged, or needs code to be read, and for weights that do not fit.
    """
    if not path.is_file():
        raise TeasError(f"the weights {path} do not exist; give their path relative to the data folder, or in full")
    try:
        content: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise TeasError(
            f"{path} can't be read as plain weights: it is damaged, or holds more than tensors, such as a whole model, which would run code of its own; "
            "save model.state_dict(), with safetensors or torch.save"
        ) from None
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise TeasError(f"{path} can't be read as plain weights: {str(error).splitlines()[0]}") from None
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {name.removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}
    expected = module.state_dict()
    missing = [name for name in expected if name not in tensors and not name.endswith("num_batches_tracked")]
    unknown = [name for name in tensors if name not in expected]
    wrong = [name for name in tensors if name in expected and tensors[name].shape != expected[name].shape]
    if missing or unknown or wrong:
        faults = [f"missing {n}" for n in missing] + [f"unknown {n}" for n in unknown] + [f"another shape of {n}" for n in wrong]
        raise TeasError(f"{path} does not fit {type(module).__name__}: {'; '.join(faults[:5])}")
    module.load_state_dict(tensors, strict=False)
