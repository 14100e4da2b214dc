"""The native format: safetensors weights, with windows, semantics and neurons as JSON in the metadata."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from teas.errors import TeasError
from teas.files import write_atomically
from teas.spiking.network import SpikingNetwork
from teas.spiking.time_windows import TimeWindows

FORMAT = 1
MAX_WINDOW = 2**16  # steps that a file may ask for: a typo in a header must not fill the memory


def neuron_options(network: SpikingNetwork) -> dict[str, dict[str, Any]]:
    """What a file says about the neurons of each layer, beside their thresholds."""
    kept = ("reset", "leak", "v0", "v_reset", "reset_by", "surrogate")
    found = {layer: {key: getattr(network.neurons(layer), key) for key in kept} for layer in network.spiking_layers}
    # Written only where it says something, so that files from before it existed stay as they are.
    return {layer: {key: value for key, value in options.items() if (key, value) != ("reset_by", 1)} for layer, options in found.items()}


def save_network(network: SpikingNetwork, path: Path | str, half: bool = False) -> None:
    """Write weights, windows, semantics and neurons to one safetensors file, atomically; `half` stores weights in 16 bits.

    Raises `TeasError` for NaN or infinite weights.
    """
    network.check_finite()
    header = {"format": FORMAT, "windows": dict(network.windows), "semantics": asdict(network.semantics), "neurons": neuron_options(network)}
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in network.module.state_dict().items()}
    if half:
        # Scalars stay whole: they take no room, and a learned leak must come back to the bit.
        tensors = {name: value.half() if value.is_floating_point() and value.dim() else value for name, value in tensors.items()}
    write_atomically(Path(path), save(tensors, metadata={"teas": json.dumps(header)}))


def checked_header(header: Any, name: str) -> dict[str, Any]:
    """The metadata of a file; raises `TeasError` where it is not ours, newer, damaged, or asks for windows beyond any use."""
    if not isinstance(header, dict) or not isinstance(header.get("format"), int):
        raise TeasError(f"{name} has no teas metadata; it was written by another tool")
    if header["format"] > FORMAT:
        raise TeasError(f"{name} has format {header['format']}, written by a newer teas; this one reads up to {FORMAT}")
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
