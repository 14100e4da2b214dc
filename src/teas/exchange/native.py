"""The native format: safetensors weights, with windows, semantics and neurons as JSON in the metadata."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from teas.errors import TeasError
from teas.files import write_atomically
from teas.spiking.network import SpikingNetwork
from teas.spiking.time_windows import TimeWindows

FORMAT, WITH_BYTES = 1, 2  # weights in bytes came later, and files without them stay as they were
STEP = ":step"  # of a weight in bytes, after its name
MAX_WINDOW = 2**16  # steps that a file may ask for: a typo in a header must not fill the memory


def neuron_options(network: SpikingNetwork) -> dict[str, dict[str, Any]]:
    """What a file says about the neurons of each layer, beside their thresholds."""
    kept = ("reset", "leak", "v0", "v_reset", "reset_by", "surrogate")
    found = {layer: {key: getattr(network.neurons(layer), key) for key in kept} for layer in network.spiking_layers}
    # Written only where it says something, so that files from before it existed stay as they are.
    return {layer: {key: value for key, value in options.items() if (key, value) != ("reset_by", 1)} for layer, options in found.items()}


def save_network(network: SpikingNetwork, path: Path | str, bits: int = 32) -> None:
    """Write weights, windows, semantics and neurons to one safetensors file, atomically.

    bits: of what is stored. 32: everything as it is. 16: floating-point tensors in half precision, numbers of their own excepted. 8: weights `w` as
    integers `k` of one byte and a step per output channel (axis 0), `w ≈ step·k`, rounded to nearest, `step = max|w|/127`; all else as it is.
    Raises `TeasError` for NaN or infinite weights, or another number of bits.
    """
    if bits not in (8, 16, 32):
        raise TeasError(f"bits is {bits}; weights are stored in 32, 16 or 8 bits")
    network.check_finite()
    version = WITH_BYTES if bits == 8 else FORMAT
    header = {"format": version, "windows": dict(network.windows), "semantics": asdict(network.semantics), "neurons": neuron_options(network)}
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in network.module.state_dict().items()}
    if bits == 16:
        # Scalars stay whole: they take no room, and a learned leak must come back to the bit.
        tensors = {name: value.half() if value.is_floating_point() and value.dim() else value for name, value in tensors.items()}
    if bits == 8:
        tensors = {stored: part for name, value in tensors.items() for stored, part in _in_bytes(name, value).items()}
    write_atomically(Path(path), save(tensors, metadata={"teas": json.dumps(header)}))


def _in_bytes(name: str, value: Tensor) -> dict[str, Tensor]:
    if not value.is_floating_point() or value.dim() < 2:
        return {name: value}
    largest = value.float().abs().flatten(1).amax(1)
    step = torch.where(largest > 0, largest / 127, 1.0)
    return {name: (value.float() / step.view(-1, *[1] * (value.dim() - 1))).round().to(torch.int8), name + STEP: step}


def _from_bytes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a file, those in bytes times their steps; raises `TeasError` for bytes without a step per channel."""
    steps = {name: tensors.get(name + STEP) for name, value in tensors.items() if value.dtype == torch.int8}
    for name, step in steps.items():
        if step is None or step.shape != tensors[name].shape[:1] or tensors[name].dim() < 2:
            raise TeasError(f"{name} is stored in bytes without a step per channel, {name}{STEP}; the file is damaged")
    plain = {name: value for name, value in tensors.items() if name not in steps and name.removesuffix(STEP) not in steps}
    return plain | {name: tensors[name] * step.view(-1, *[1] * (tensors[name].dim() - 1)) for name, step in steps.items() if step is not None}


def checked_header(header: Any, name: str) -> dict[str, Any]:
    """The metadata of a file; raises `TeasError` where it is not ours, newer, damaged, or asks for windows beyond any use."""
    if not isinstance(header, dict) or not isinstance(header.get("format"), int):
        raise TeasError(f"{name} has no teas metadata; it was written by another tool")
    if header["format"] > WITH_BYTES:
        raise TeasError(f"{name} has format {header['format']}, written by a newer teas; this one reads up to {WITH_BYTES}")
    if not isinstance(header.get("windows"), dict) or not isinstance(header.get("semantics"), dict):
        raise TeasError(f"{name}: the teas metadata has no windows or no semantics; the file is damaged")
    if any(isinstance(steps, int) and steps > MAX_WINDOW for steps in header["windows"].values()):
        raise TeasError(f"{name} asks for windows of more than {MAX_WINDOW} steps; the file is damaged")
    if not all(isinstance(value, str) for value in header["semantics"].values()):
        raise TeasError(f"{name}: its semantics are not names; the file is damaged")
    return header


def load_network(path: Path | str, module: nn.Module) -> SpikingNetwork:
    """The network of a file, its weights loaded into `module`, which must have the architecture that was saved.

    Raises `TeasError` for a file that is missing, cut short or not ours, weights that do not fit `module` or are not finite, and neurons
    that differ from those of `module`.
    """
    path = Path(path)
    if not path.is_file():
        raise TeasError(f"{path} does not exist; expected a weights file written by teas")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("teas", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise TeasError(f"{path} is cut short or not a safetensors file: {error}") from None
    header = checked_header(header, str(path))
    tensors = _from_bytes(tensors) if header["format"] == WITH_BYTES else tensors
    expected = module.state_dict()
    faults = [f"missing {name}" for name in expected if name not in tensors] + [f"unknown {name}" for name in tensors if name not in expected]
    faults += [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(expected[name].shape)}"
        for name in expected
        if name in tensors and tensors[name].shape != expected[name].shape
    ]
    if faults:
        raise TeasError(f"the weights of {path} do not fit {type(module).__name__}: {'; '.join(faults[:6])}")
    module.load_state_dict(tensors)
    network = SpikingNetwork(module, TimeWindows(header["windows"]), **header["semantics"])
    if header.get("neurons") != neuron_options(network):
        raise TeasError(f"the neurons of {path} differ from those of the module: {header.get('neurons')} against {neuron_options(network)}")
    network.check_finite()
    return network
