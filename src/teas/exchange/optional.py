"""Libraries that are not always there."""

from __future__ import annotations

import importlib
from types import ModuleType

from teas.errors import TeasError

_MISSING = "{} is not installed, or not whole ({}): pip install 'teas[exchange]'"


def library(name: str, module: str | None = None, extra: str = "exchange") -> ModuleType:
    """The imported library; raises `TeasError` that says how to install it."""
    try:
        return importlib.import_module(module or name)
    except ImportError as error:
        raise TeasError(_MISSING.replace("exchange", extra).format(name, error)) from None
