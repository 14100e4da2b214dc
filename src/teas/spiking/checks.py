"""Checks of what a network is given."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from teas.errors import TeasError

SHORT = (torch.float16, torch.bfloat16)


def inputs_of(batches: Iterable[Tensor | Sequence[Tensor]]) -> Iterator[Tensor]:
    """The inputs of batches, each a tensor `[batch, *shape]` or a tuple that begins with one; raises `TeasError` for anything else."""
    if isinstance(batches, Tensor):
        raise TeasError(f"inputs come in batches, of a DataLoader or in a list; got one tensor of shape {tuple(batches.shape)}: put it into a list")
    if not isinstance(batches, Iterable):
        raise TeasError(f"inputs come in batches, of a DataLoader or in a list; got {type(batches).__name__}: give a DataLoader of it")
    for batch in batches:
        inputs = batch[0] if isinstance(batch, Sequence) and batch else batch
        if not isinstance(inputs, Tensor):
            raise TeasError(f"a batch is a tensor [batch, *shape], or a tuple that begins with one; got {type(inputs).__name__}")
        yield inputs


def check_dtype(module: nn.Module, inputs: Tensor) -> None:
    """Raise `TeasError` for inputs of another type than the weights, unless autocast sees to it."""
    weights = next((parameter.dtype for parameter in module.parameters() if parameter.dim() > 1), inputs.dtype)
    if inputs.dtype != weights and not torch.is_autocast_enabled(inputs.device.type):
        raise TeasError(f"the input is {inputs.dtype}, and the weights are {weights}: give inputs.to({weights}), scaled as in training")


def check_call(module: nn.Module, inputs: Tensor) -> None:
    """Raise `TeasError` for a call that the reference never answers: by torch.export, of a module with 16-bit weights, or with inputs of another type."""
    if torch.compiler.is_exporting():
        raise TeasError("torch can't export a spiking network, whose steps differ from layer to layer; write it with teas.to_onnx or teas.to_nir")
    weights = next((parameter.dtype for parameter in module.parameters()), torch.float32)
    if weights in SHORT:
        raise TeasError(
            f"the weights are {weights}, and potentials need 32 bits: keep the weights in float32 (network.float()) and run it under "
            f"torch.autocast({inputs.device.type!r}, {weights})"
        )
    if isinstance(inputs, Tensor):
        check_dtype(module, inputs)


def check_inputs(inputs: Tensor) -> Callable[[], None]:
    """Raise `TeasError` where inputs are no tensor, or not finite; a GPU in training is asked, and waited for by what is returned, lest it run dry."""
    if not isinstance(inputs, Tensor):
        raise TeasError(f"a network takes a tensor [batch, *shape]; got {type(inputs).__name__}: give torch.as_tensor of it")

    def judge(finite: Tensor | bool) -> None:
        if not finite:
            raise TeasError(f"the input of shape {tuple(inputs.shape)} has NaN or infinite values; clean the data first")

    if not (inputs.is_cuda and torch.is_grad_enabled()):
        judge(inputs.isfinite().all())
        return lambda: None
    if torch.cuda.is_current_stream_capturing():
        return lambda: None
    nothing, known = (inputs.detach() * 0).sum().to("cpu", non_blocking=True), torch.cuda.Event()  # type: ignore[no-untyped-call]
    known.record()

    def wait_and_judge() -> None:
        known.synchronize()
        judge(bool(nothing == 0))  # what is infinite, or no number, makes a NaN of it

    return wait_and_judge


@contextlib.contextmanager
def shape_noted(inputs: Tensor) -> Iterator[None]:
    """What torch says of shapes deep inside, with a note of what the network was given."""
    try:
        yield
    except (RuntimeError, IndexError) as error:
        if not isinstance(error, torch.OutOfMemoryError):
            error.add_note(f"The network was given inputs of shape {list(inputs.shape)}; it takes a batch, [batch, *shape], of such as it was made for.")
        raise
