"""Whether bfloat16 pays is measured, and said before a training that asks for it where it does not."""

from __future__ import annotations

import time

import pytest
import torch

from teas.study import precision
from teas.study.config import parse
from teas.study.hooks import Hooks

LOW = """
name = "low"
[training]
precision = "bfloat16"
[conversion]
architecture = "resnet20"
pretraining = { epochs = 1, precision = "bfloat16" }
[retraining]
recipe = { epochs = 1, precision = "bfloat16" }
"""
SETTINGS = ("training.precision", "conversion.pretraining.precision", "retraining.recipe.precision")


def said(text, overrides=(), device="cpu"):
    lines = []
    precision.advise(parse(text, "here", overrides), torch.device(device), Hooks(say=lines.append))
    return lines


@pytest.mark.parametrize(("gain", "lines"), [(0.5, 1), (0.95, 0), (2.0, 0)])
def test_it_is_said_where_bfloat16_is_slower(monkeypatch, gain, lines):
    monkeypatch.setattr(precision, "bfloat16_gain", lambda: gain)
    found = said(LOW)
    assert len(found) == lines
    assert all(f"{gain:.2f} times" in line and all(name in line for name in SETTINGS) for line in found)


def test_nothing_is_measured_where_nothing_asks_for_it(monkeypatch):
    monkeypatch.setattr(precision, "bfloat16_gain", lambda: pytest.fail("measured"))
    assert said(LOW, tuple(f"{name}=float32" for name in SETTINGS)) == said('name = "plain"') == said(LOW, device="cuda") == []


@pytest.mark.parametrize("share", [0.25, 3.0])
def test_the_gain_is_the_time_in_float32_over_that_in_bfloat16(monkeypatch, share):
    """On a clock that counts kernels instead of seconds: those in bfloat16 take `share` of the others' time."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    forward = torch.nn.Conv2d.forward

    def counted(self, inputs):
        now[0] += share if torch.is_autocast_enabled("cpu") else 1.0
        return forward(self, inputs)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", counted)
    assert precision.bfloat16_gain(2) == pytest.approx(1 / share)
