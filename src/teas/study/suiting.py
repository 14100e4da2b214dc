"""Whether a network suits its data, asked before any work goes into it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from teas.errors import TeasError
from teas.spiking.record import Output
from teas.study.data import Data


@torch.no_grad()
def check_suits(network: nn.Module, architecture: str, data: Data) -> None:
    """Raise `TeasError` where a network does not take the images of the data, or has fewer outputs than the data has classes."""
    parameter = next(network.parameters(), torch.empty(0))
    images, training = torch.zeros(2, *data.shape, device=parameter.device), network.training
    asked = f"{architecture!r} was given images of {data.name!r}, {list(data.shape)}"
    try:
        with torch.random.fork_rng([parameter.device] if parameter.is_cuda else []):
            answer: Tensor | Output = network.eval()(images)
    except TeasError:
        raise
    except Exception as error:  # a network of the user's own runs here and may raise anything
        raise TeasError(f"{asked}, and can't take them: {type(error).__name__}: {error}; take an architecture or data that fits") from error
    finally:
        network.train(training)
    logits = answer.logits if isinstance(answer, Output) else answer
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 2 or logits.shape[1] < data.classes:
        seen = f"a tensor {list(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise TeasError(f"{asked}, two of them, and returned {seen}; it must return a tensor [2, {data.classes}], logits of {data.classes} classes or more")
