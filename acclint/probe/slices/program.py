"""Runs a slice of a file in the measuring child, with stand-ins for what is not in it.

What may be had is the user's own: torch, a few modules of the standard library that touch nothing, the frameworks that
are installed, and every statement of the slice. The rest is a stand-in (`standins.py`).
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import types
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.utils.data
from torch import nn

from acclint.knowledge import names
from acclint.probe.slices.allowed import word_set
from acclint.probe.slices.harm import Harm
from acclint.probe.slices.reach import Builtins, attributes, replaced
from acclint.probe.slices.rewrite import Rewrite
from acclint.probe.slices.standins import Anything, Question, Value, World, as_loss, begin, missing_attribute, world
from acclint.probe.slices.tame import OnTheProcessor, tame

IDLE = 8  # after so many calls that sent nothing backward no more are made
CALLS = 400  # so often a function without a loop of its own is called, at most
_INDEX = word_set("i idx index step batch_idx batch_index iteration it itr batch_i global_step n_iter ni")


class Helpers:
    """What the rewritten statements of a slice call; in them its name is `__acc__`."""

    def __init__(self, world: World) -> None:
        self.world = world

    def k(self, value: Any, name: str) -> Any:
        """The number of accumulated micro-batches, where the source leaves it open."""
        if value is None or isinstance(value, Anything) or (type(value) is int and value <= 1):
            self.world.note("k", name)
            return self.world.k
        if type(value) is int:
            self.world.note("own k", str(value))
        return value

    def is_none(self, value: Any) -> Any:
        return Question(value, "is", None) if isinstance(value, Anything) else value is None

    def negate(self, value: Any) -> Any:
        if isinstance(value, (Anything, Value)):
            return Question(value) if isinstance(value, Question) else Question(value, negated=True)
        return not value

    def named(self, value: Any, name: str) -> Any:
        """What is assigned to a name that tells what it is."""
        if isinstance(value, Value) and value.requires_grad and names.is_loss_name(name):
            return as_loss(value, name)
        if isinstance(value, Anything) and type(value) is Anything and value._acc_name.endswith("()"):
            if names.is_optimizer_name(name) and name != "opt":
                return self.world.optimizer(name)
            value.__dict__["_acc_name"] = name
        return value

    def unpack(self, value: Any, shape: Sequence[Any]) -> Any:
        """The items of a value that is assigned to several names."""
        if isinstance(value, Value):
            if value.requires_grad:
                self.world.note("part", "")
            parts: list[Any] = [value if value.requires_grad else self.world.batch() for _ in shape]
        elif isinstance(value, Anything):
            parts = [Anything(f"{s}()" if isinstance(s, str) else "item", value) for s in shape]
        elif type(value) in (tuple, list) and len(value) == len(shape):
            parts = list(value)
        else:
            return value
        return tuple(
            self.named(part, one) if isinstance(one, str) else self.unpack(part, one)
            for part, one in zip(parts, shape, strict=True)
        )

    def each(self, items: Any, shape: Any, loader: bool) -> Any:
        """What a `for` goes through."""
        if type(items) is Anything and loader:
            items = self.world.loader()
        if not isinstance(shape, tuple):
            return items
        return (self.unpack(item, shape) for item in items)

    def cls(self, value: Any) -> Any:
        """A class of the file: a model or data set of the user's own may have to be stood in for."""
        if not isinstance(value, type):
            return value
        entry = value.__name__ in self.world.spec["classes"]
        if self.world.spec["models"] and not entry:
            if issubclass(value, nn.Module) and not issubclass(value, nn.modules.loss._Loss):
                name = value.__name__
                return Anything("criterion" if "loss" in name.lower() else f"model_{name}")
            if issubclass(value, torch.utils.data.Dataset):
                return Anything("dataset")
        if entry and not issubclass(value, nn.Module) and "__getattr__" not in value.__dict__:
            value.__getattr__ = missing_attribute  # type: ignore[attr-defined]
        return value

    attributes = staticmethod(attributes)
    replaced = staticmethod(replaced)

    def filled(self, function: Any) -> Any:
        """A function that a decorator gave its arguments: those that are missing are stand-ins."""

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            for parameter in list(inspect.signature(function).parameters.values())[len(args) :]:
                named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
                if named and parameter.default is parameter.empty and parameter.name not in kwargs:
                    kwargs[parameter.name] = _argument(parameter)
            return function(*args, **kwargs)

        return wrapper

    def failed(self, row: int, name: str, lost: bool) -> Any:
        """In place of a value whose statement raised; `lost` if it would have changed something in a training loop."""
        self.world.note("lost" if lost else "failed", name, row)
        return Anything(f"{name}()")


def program(spec: Mapping[str, Any], text: str) -> Callable[[], None]:
    """What runs the slice; call it once, in the child, with the instruments on."""
    begun = begin(spec)
    tree = ast.parse(text)
    tree = ast.fix_missing_locations(Rewrite(begun, spec["lenient"]).visit(tree))
    code = compile(tree, spec["path"], "exec")
    tame()
    begun.harm = Harm(clips=not spec["models"])
    builtin = Builtins()
    builtin.update(__acc__=Helpers(begun), __acc_error__=Exception)
    module = types.ModuleType("__main__" if spec["mode"] == "script" else "slice")
    module.__dict__.update(__file__=spec["path"], __builtins__=builtin)
    sys.modules[module.__name__] = module

    def run() -> None:
        mode: Any = OnTheProcessor() if spec["devices"] else None
        if mode is not None:
            mode.__enter__()
        exec(code, module.__dict__)
        if spec["mode"] == "entry":
            _enter(spec, module.__dict__)

    return run


def notes(result: Mapping[str, Any], optimizers: Mapping[int, int]) -> dict[str, Any]:
    """What the stand-ins of this run had to answer, and the harm of losses that are not divided.

    `result` is that of the ledger, `optimizers` its optimizers by their id.
    """
    whole = [abs(term["weight"] - 1) < 0.02 for call in result["backwards"] for term in call["terms"] if term["data"]]
    factors = {}
    if whole and all(whole):
        for key, owner in optimizers.items():
            sizes = Counter(len(update["coefficients"]) for update in result["optimizers"][owner]["updates"])
            factors[key] = max(sizes, key=lambda size: sizes[size], default=1)
    return {
        "harm": world().harm.result(factors) if factors else [],
        "notes": world().notes,
        "decisions": [[key, *rest] for key, rest in world().decisions.items()],
    }


def _enter(spec: Mapping[str, Any], namespace: dict[str, Any]) -> None:
    """Call the function that leads to the loop, again and again if the loop is elsewhere."""
    owner, _, name = spec["entry"].rpartition(".")
    if owner:
        made = namespace[owner]
        function = inspect.getattr_static(made, name)
        function = getattr(function, "__func__", function)
        instance = _instance(made)
        arguments = _arguments(function, skip=1)
        call = [instance]
    else:
        function = namespace[name]
        arguments, call = _arguments(function), []
    for turn in range(1 if spec["loops"] else CALLS):
        if turn == IDLE and not any(core.weight.grad is not None for core in world().cores):
            break
        args, options = arguments(turn)
        made = function(*call, *args, **options)
        if isinstance(made, types.FunctionType):  # it is what trains
            function, arguments, call = made, _arguments(made), []


def _instance(made: Any) -> Any:
    try:
        args, options = _arguments(made.__init__, skip=1)(0)
        return made(*args, **options)
    except Exception:
        world().note("failed", f"{made.__name__}()", 0)
        instance = made.__new__(made)
        if isinstance(instance, nn.Module):
            nn.Module.__init__(instance)
        return instance


def _arguments(function: Any, skip: int = 0) -> Callable[[int], tuple[list[Any], dict[str, Any]]]:
    """Stand-ins for the parameters of a function, by name; `turn` is the value of an index."""
    parameters = list(inspect.signature(function).parameters.values())[skip:]
    kept: dict[str, Any] = {}

    def made(turn: int) -> tuple[list[Any], dict[str, Any]]:
        args: list[Any] = []
        options: dict[str, Any] = {}
        for parameter in parameters:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            if parameter.name in _INDEX:
                value: Any = turn
            else:
                if parameter.name not in kept:
                    kept[parameter.name] = _argument(parameter)
                value = kept[parameter.name]
                if parameter.name in ("batch", "x", "inputs", "data", "y", "labels", "targets", "images"):
                    value = world().batch()
            if parameter.kind is parameter.KEYWORD_ONLY:
                options[parameter.name] = value
            else:
                args.append(value)
        return args, options

    return made


def _argument(parameter: inspect.Parameter) -> Any:
    name = parameter.name
    default = parameter.default
    number = world().number(name)
    if name in world().spec["k_names"]:
        return number
    if default is None and (names.is_scaler_name(name) or names.is_scheduler_name(name)):
        if world().decide(f"no {name}", f"parameter {name}"):
            return None
    elif default is not parameter.empty and default is not None:
        return default
    if names.is_optimizer_name(name) and not names.is_scheduler_name(name) and name != "opt":
        return world().optimizer(name)
    if names.is_scaler_name(name):
        return torch.amp.GradScaler("cpu", enabled=False)
    if names.is_loader_name(name):
        return world().loader()
    return Anything(name) if number is None else number
