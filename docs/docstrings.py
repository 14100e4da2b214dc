"""Reference pages: a line `name: ...` becomes an item; tables of an experiment list their keys."""

import dataclasses
import json
import re
import types
import typing
from typing import Any

import griffe

from teas.adapt.objective import LOSSES, REGULARISERS
from teas.adapt.schedule import SCORES
from teas.adapt.training import PRECISIONS
from teas.ann.architectures import ARCHITECTURES, POOLINGS
from teas.ann.convert import TRAINABLE
from teas.ann.networks import ANNS
from teas.ann.thresholds import METHODS, OUTPUT
from teas.spiking.coding import CODES, ENCODINGS, LAYOUTS
from teas.spiking.neuron import FIRINGS, RESETS
from teas.spiking.surrogate import SURROGATES
from teas.spiking.temporal_transform import ROUNDINGS, TRANSFORMS
from teas.study.ablation_arms import ARMS
from teas.study.augmentation import AUGMENTATIONS
from teas.study.config import CONTROLS, Experiment
from teas.study.conversion_config import ALLOCATORS, LEARNED
from teas.study.data import READERS

_ITEM = re.compile(r"^((?:`?\w+`?)(?:, `?\w+`?)*): (?=\S)")


def itemised(text: str) -> str:
    """The text with such lines, and the lines that go on after them, as a Markdown list."""
    first, *lines = text.splitlines()
    result, inside = [first], False
    for line in lines:
        if _ITEM.match(line):
            result += ([] if inside else [""]) + [
                _ITEM.sub(lambda found: f"- **{found[1].replace('`', '')}**: ", line)
            ]
            inside = True
        elif not line.strip():
            inside = False
            result.append(line)
        elif (
            inside and (line[:1].isupper() or line[:1] == "`") and result[-1].rstrip().endswith(".")
        ):
            result += ["", line]
            inside = False
        else:
            result.append(f"  {line}" if inside else line)
    return "\n".join(result)


def kind_of(wanted: Any) -> str:
    """What a key of an experiment takes, in TOML's words."""
    if isinstance(wanted, types.UnionType):
        wanted = typing.get_args(wanted)[0]
    if dataclasses.is_dataclass(wanted):
        return "table"
    if typing.get_origin(wanted) is tuple:
        return f"list of {kind_of(typing.get_args(wanted)[0])}s"
    return {int: "whole number", float: "number", str: "text", bool: "true or false"}[wanted]


def default_of(item: dataclasses.Field[Any]) -> str:
    """The default of a key as it is written in TOML."""
    if item.default is dataclasses.MISSING:
        return "" if item.default_factory is not dataclasses.MISSING else "needed"
    if item.default is None or item.default == float("inf"):
        return ""
    return f"`{json.dumps(item.default)}`"


def value_of(kind: Any, item: dataclasses.Field[Any]) -> str:
    """What a key takes: its choices where it has any."""
    wanted = typing.get_type_hints(kind)[item.name]
    choices = CHOICES.get(f"{kind.__name__}.{item.name}", CHOICES.get(item.name))
    if not choices:
        return kind_of(wanted)
    return ("list of " if typing.get_origin(wanted) is tuple else "") + ", ".join(
        f"`{each}`" for each in choices
    )


def table_of(kind: Any) -> str:
    """The keys of a table of an experiment."""
    rows = [
        f"| `{item.name}` | {value_of(kind, item)} | {default_of(item)} |"
        for item in dataclasses.fields(kind)
    ]
    return "\n".join(["| key | value | default |", "|---|---|---|", *rows])


def tables(kind: Any) -> dict[str, Any]:
    """A dataclass of an experiment and those of its tables, by their paths."""
    found = {f"{kind.__module__}.{kind.__qualname__}": kind}
    for wanted in typing.get_type_hints(kind).values():
        inner = typing.get_args(wanted)[0] if isinstance(wanted, types.UnionType) else wanted
        if dataclasses.is_dataclass(inner):
            found |= tables(inner)
    return found


EXPERIMENT = tables(Experiment)
OWN = "module:function"
CHOICES = {
    "ConversionConfig.architecture": (*ANNS, OWN),
    "ConversionConfig.code": TRAINABLE,
    "ConversionConfig.threshold": (*METHODS, OUTPUT),
    "DataConfig.name": READERS,
    "NetworkConfig.architecture": (*ARCHITECTURES, OWN),
    "RetrainingConfig.allocators": (*ALLOCATORS, LEARNED),
    "RetrainingConfig.unlabelled": READERS,
    "Semantics.code": CODES,
    "allocator": (*ALLOCATORS, LEARNED),
    "allocators": ALLOCATORS,
    "arms": ARMS,
    "augmentation": AUGMENTATIONS,
    "controls": CONTROLS,
    "encoding": ENCODINGS,
    "firing": FIRINGS,
    "layout": LAYOUTS,
    "loss": LOSSES,
    "pooling": POOLINGS,
    "precision": PRECISIONS,
    "regulariser": REGULARISERS,
    "reset": RESETS,
    "rounding": ROUNDINGS,
    "score": SCORES,
    "surrogate": SURROGATES,
    "transform": TRANSFORMS,
}


class Itemised(griffe.Extension):
    """Rewrites every docstring that is loaded."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring:
            text = itemised(obj.docstring.value)
            if obj.path in EXPERIMENT:
                first, *rest = text.split("\n\n", 1)
                text = "\n\n".join([first, table_of(EXPERIMENT[obj.path]), *rest])
            obj.docstring.value = text
