"""Frozen dataclasses from tables of keys: unknown keys are refused with the nearest known name, values of another type with the type."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from typing import Any

from teas.errors import TeasError


def check_positive(what: str, value: float) -> None:
    """Raise `TeasError` unless the value is finite and above 0."""
    if not 0 < value < float("inf"):
        raise TeasError(f"{what} is {value}; it must be above 0")


def build(kind: Any, table: Any, where: str) -> Any:
    """A frozen dataclass from a table; raises `TeasError` for an unknown or missing key, or a value of another type."""
    if not isinstance(table, dict):
        raise TeasError(f"{where} must be a table of keys; got {table!r}")
    types_of = typing.get_type_hints(kind)
    names = [item.name for item in dataclasses.fields(kind)]
    for key in table:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(names)}"
            raise TeasError(f"{where}: unknown key {key!r}; {hint}")
    for item in dataclasses.fields(kind):
        if item.name not in table and item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise TeasError(f"{where}: key {item.name!r} is missing")
    return kind(**{key: _value(types_of[key], value, f"{where}: {key}") for key, value in table.items()})


def _value(wanted: Any, value: Any, where: str) -> Any:
    if isinstance(wanted, types.UnionType):
        if value is None:
            return None
        wanted = typing.get_args(wanted)[0]
    if dataclasses.is_dataclass(wanted):
        return build(wanted, value, where)
    if typing.get_origin(wanted) is tuple:
        if not isinstance(value, (list, tuple)):
            raise TeasError(f"{where} must be a list; got {value!r}")
        return tuple(_value(typing.get_args(wanted)[0], item, where) for item in value)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise TeasError(f"{where} must be {_TYPE_NAMES[wanted]}; got {value!r}")
    return value


_TYPE_NAMES: dict[Any, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
