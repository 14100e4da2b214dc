"""Networks of one's own, named as `module:function`."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from teas.errors import TeasError, check_choice

_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def check_architecture(what: str, name: str, known: tuple[str, ...]) -> None:
    """Raise `TeasError` unless the name is known or is `module:function`."""
    if ":" not in name:
        check_choice(what, name, (*known, "module:function of your own"))
    elif not _NAME.fullmatch(name):
        raise TeasError(f"{what} is {name!r}; a network of your own is module:function, as in my_networks:make for a function make in my_networks.py")


def make_own(name: str, **known: Any) -> nn.Module:
    """What a function, or a class, makes: found in the current folder or among installed packages, and called with what it has arguments for.

    name: `module:function`. known: the values that its arguments may ask for, by name; its other arguments need defaults.
    Raises `TeasError` where the module can't be imported, is one of Python's own, has no such function, or that fails or makes no `nn.Module`.
    """
    module, _, function = name.partition(":")
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise TeasError(f"{name!r} names a module of Python itself; a network of your own is in a module of your own")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = _guarded(f"importing {module}", lambda: importlib.import_module(module))
    except TeasError as error:
        if isinstance(error.__cause__, ModuleNotFoundError) and error.__cause__.name == module:
            raise TeasError(f"there is no module {module!r}, neither in {here} nor among installed packages, to make {name!r}") from None
        raise
    make = getattr(found, function, None)
    if not callable(make):
        raise TeasError(f"{module} ({found.__file__}) has no function {function!r}")
    arguments = _guarded(f"reading the arguments of {name}", lambda: inspect.signature(make).parameters.values())
    asked = {argument.name: known[argument.name] for argument in arguments if argument.name in known}
    unknown = [a.name for a in arguments if a.name not in known and a.default is a.empty and a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD)]
    if unknown:
        raise TeasError(f"{name} takes {', '.join(unknown)}, without a default; it may ask for {', '.join(known)}")
    network = _guarded(f"calling {name}", lambda: make(**asked))
    if not isinstance(network, nn.Module):
        raise TeasError(f"{name} returns a {type(network).__name__}; it must return the network, an nn.Module")
    return network


def _guarded(what: str, step: Callable[[], Any]) -> Any:
    """Run the user's code; what it raises becomes a `TeasError` that says where."""
    try:
        return step()
    except TeasError:
        raise
    except Exception as error:  # the user's own code runs here and may raise anything
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename not in (__file__, importlib.__file__) and not f.filename.startswith("<")]
        where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        raise TeasError(f"{what} failed{where}: {type(error).__name__}: {error}") from error
