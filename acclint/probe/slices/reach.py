"""What the names of a slice lead to: modules of which only the allowed part is seen, and builtins that touch nothing.

Everything else that is named is a stand-in.
"""

from __future__ import annotations

import builtins
import importlib.util
import sys
import types
import weakref
from typing import Any

from acclint.probe.slices.allowed import BUILTINS_REFUSED, FRAMEWORKS, REPLACED, is_open, is_refused, is_refused_member
from acclint.probe.slices.standins import Anything, world

_CODE = (type, types.FunctionType, types.BuiltinFunctionType)


# The modules that are shown; not kept in what is shown of them, where a slice could take them.
_real: weakref.WeakKeyDictionary[Shown, types.ModuleType] = weakref.WeakKeyDictionary()


class Shown(types.ModuleType):
    """A module as a slice sees it: other modules that it has imported, say, are stand-ins."""

    def __init__(self, module: types.ModuleType) -> None:
        super().__init__(module.__name__)
        _real[self] = module

    def __getattr__(self, name: str) -> Any:
        module = _real[self]
        if name == "__all__":
            return getattr(module, name, None) or [one for one in dir(module) if not one.startswith("_")]
        if is_refused_member(module.__name__, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return Anything(name, imported=True)
        value = getattr(module, name)
        if isinstance(value, types.ModuleType):
            return Shown(value) if is_open(value.__name__) else Anything(name, imported=True)
        if isinstance(value, _CODE) and not _is_from_open(value):
            return Anything(name, imported=True)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(_real[self], name, value)


def _is_from_open(value: Any) -> bool:
    """Whether a class or function is defined in a module whose package is allowed; many are written in C in `_name`."""
    home = getattr(value, "__module__", None)
    if not isinstance(home, str):
        return True
    if home == "builtins":
        return getattr(value, "__name__", "") not in BUILTINS_REFUSED
    root = home.partition(".")[0].lstrip("_")
    return root == "torch" or root in FRAMEWORKS or is_open(root) or home.startswith("acclint.probe.")


def import_module(name: str, globals_: Any = None, locals_: Any = None, fromlist: Any = (), level: int = 0) -> Any:
    """The `__import__` of a slice."""
    root = name.partition(".")[0]
    if level or not is_open(name) or (root in FRAMEWORKS and importlib.util.find_spec(root) is None):
        made = Anything(root, imported=True)
        for part in name.split(".")[1:] if fromlist else ():
            made = getattr(made, part)
        world().note("import", name)
        return made
    return Shown(builtins.__import__(name, globals_, locals_, fromlist, level))


class Builtins(dict[str, Any]):
    """The builtins that touch nothing; a name that is nowhere is a stand-in."""

    def __init__(self) -> None:
        kept = {name: value for name, value in vars(builtins).items() if name not in BUILTINS_REFUSED}
        super().__init__({name: value for name, value in kept.items() if not name.startswith("__")})
        self.update(__import__=import_module, __build_class__=builtins.__build_class__)
        self.update(print=lambda *args, **options: None)
        self.update(vars=attributes, getattr=_attribute)

    def __missing__(self, name: str) -> Any:
        if name.startswith("__"):
            raise KeyError(name)
        found = world().number(name)
        self[name] = Anything(name) if found is None else found
        return self[name]


def attributes(*value: Any) -> Any:
    """`vars(x)` and `x.__dict__`, but for classes and modules, whose own lead out of the slice."""
    if not value:
        return sys._getframe(1).f_locals
    if isinstance(value[0], (type, types.ModuleType)):
        raise AttributeError("__dict__")
    return vars(*value)


def replaced(value: Any, name: str) -> Any:
    """An attribute of `REPLACED`."""
    return getattr(value, name) if isinstance(value, Anything) else Anything(name)


def _attribute(value: Any, name: str, *default: Any) -> Any:
    """`getattr` without the attributes that lead out of the slice."""
    if name == "__dict__":
        return attributes(value)
    if name in REPLACED:
        return replaced(value, name)
    if is_refused(str(name)):
        raise AttributeError(name)
    return getattr(value, name, *default)
