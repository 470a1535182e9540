"""MODULE:FACTORY: the user's function that makes what `acclint equivalence` compares. No torch here."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acclint import Problem

WANTED = "(model, loss_fn, batch) or (model, loss_fn, batch, make_optimizer)"
_KEYS = ("model", "loss_fn", "batch", "make_optimizer")


@dataclass(frozen=True)
class Setup:
    """A model, its loss function (model, batch) -> scalar, one batch, and perhaps parameters -> optimizer."""

    model: Any
    loss_fn: Callable[[Any, Any], Any]
    batch: Any
    make_optimizer: Callable[[Any], Any] | None = None


def load(target: str) -> Setup:
    """Import the module, from the working directory too, and call the factory. Runs the user's code.

    MODULE is a dotted name or the path of a Python file. Raises `Problem` in one line for whatever goes wrong in it.
    """
    name, colon, attribute = target.rpartition(":")
    if not colon or not name or not attribute:
        raise Problem(f"{target!r} is not MODULE:FACTORY; write for example mypackage.training:make_case")
    module = _import(name)
    factory: Any = module
    for part in attribute.split("."):
        if not hasattr(factory, part):
            raise Problem(f"{name} has no {attribute!r}; FACTORY is a function there that returns {WANTED}")
        factory = getattr(factory, part)
    if not callable(factory):
        raise Problem(f"{target} is a {type(factory).__name__}, not a function that returns {WANTED}")
    try:
        made = factory()
    except (Exception, SystemExit) as error:
        raise Problem(f"{target} failed: {described(error)}") from error
    return _setup(target, made)


def described(error: BaseException) -> str:
    """An exception in one line, with the user's line where it came from."""
    text = " ".join(str(error).split())
    line = ""
    at = error.__traceback__
    while at is not None:
        code = at.tb_frame.f_code
        if "site-packages" not in code.co_filename and not code.co_filename.startswith(
            (str(Path(__file__).parent), "<")
        ):
            line = f" ({os.path.relpath(code.co_filename)}:{at.tb_lineno})"
        at = at.tb_next
    return f"{type(error).__name__}{': ' if text else ''}{text[:300]}{line}"


def _import(name: str) -> Any:
    path = Path(name)
    try:
        if name.endswith(".py"):
            if not path.is_file():
                raise Problem(f"no such file: {name}")
            sys.path.insert(0, str(path.resolve().parent))
            spec = importlib.util.spec_from_file_location(path.stem, path)
            if spec is None or spec.loader is None:
                raise Problem(f"{name} cannot be imported")
            module = importlib.util.module_from_spec(spec)
            sys.modules[path.stem] = module
            spec.loader.exec_module(module)
            return module
        sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, Problem):
            raise
        if isinstance(error, ModuleNotFoundError) and error.name and (name + ".").startswith(error.name + "."):
            raise Problem(f"no module {name!r}, looked in {Path.cwd()} and the installed packages") from error
        raise Problem(f"importing {name} failed: {described(error)}") from error


def _setup(target: str, made: Any) -> Setup:
    if isinstance(made, Setup):
        return made
    if isinstance(made, Mapping):
        unknown = sorted(str(key) for key in set(made) - set(_KEYS))
        missing = [key for key in _KEYS[:3] if key not in made]
        if unknown or missing:
            what = f"unknown {', '.join(unknown)}" if unknown else f"no {', '.join(missing)}"
            raise Problem(f"{target} returned a dictionary with {what}; its keys are {', '.join(_KEYS)}")
        return Setup(**made)
    if not isinstance(made, (tuple, list)) or len(made) not in (3, 4):
        what = f"{len(made)} values" if isinstance(made, (tuple, list)) else type(made).__name__
        raise Problem(f"{target} must return {WANTED}, not {what}")
    return Setup(*made)
