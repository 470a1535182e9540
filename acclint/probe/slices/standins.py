"""Stand-ins for what is not in a slice: models, data, settings, trackers, modules of other packages.

`Anything` accepts every call, `Value` is a tensor for data and outputs of models that fits wherever it is put. A
stand-in decides nothing by itself: every question that it answers for the user's statements (a branch, a reduction, who
owns which parameters) is noted, and who asks for the measurement decides what it is then worth (`confirm.py`).
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.utils.data
from torch import Tensor, nn

from acclint.knowledge import names
from acclint.probe.slices.allowed import word_set

COLUMNS, HIDDEN = 5, 48  # of stand-in tensors; gradients have COLUMNS * HIDDEN entries
LOOPS = 200  # so often a condition of `while` that nobody knows holds
NEVER = 1009  # every so many steps: not within a run

_WRAPPERS = word_set(
    "prepare initialize setup wrap parallel parallelize ddp fsdp compile convert distributed dataparallel watch "
    "setup_module setup_optimizers setup_dataloaders unwrap unwrap_model"
)
_VERBS = word_set("get set build create make setup configure load save use adjust update compute find is has should")
_MODELS = word_set(
    "model models net network module encoder decoder generator discriminator critic actor policy student unet "
    "backbone transformer vae bert gpt llm head classifier learner agent engine fabric netg netd"
)


class World:
    """What the stand-ins of one run share, and what was noted about them."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.spec = spec
        self.path: str = spec["path"]
        self.k: int = spec["k"]
        self.rows: int = spec["rows"]  # samples of a batch
        self.flips: frozenset[str] = frozenset(spec["flips"])
        self.notes: dict[str, list[list[Any]]] = {}
        self.decisions: dict[str, list[Any]] = {}
        self.wanted: dict[int, bool] = {}  # row -> what a test there should come to
        self.whiles: set[int] = set()
        self.asked: dict[str, int] = {}
        self.cores: list[Core] = []
        self.handed: list[Core] = []  # those whose parameters were handed to somebody
        self.catch_alls: list[torch.optim.Optimizer] = []
        self.harm: Any = None  # what keeps the steps of optimizers (`harm.Harm`)
        self.generator = torch.Generator().manual_seed(0)

    def row(self) -> int:
        """The user's row that runs."""
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_filename == self.path:
                return frame.f_lineno
            frame = frame.f_back  # type: ignore[assignment]
        return 0

    def note(self, kind: str, name: str = "", row: int | None = None) -> None:
        found = self.notes.setdefault(kind, [])
        item = [self.row() if row is None else row, name]
        if item not in found and len(found) < 50:
            found.append(item)

    def decide(self, name: str, key: str = "", negated: bool = False) -> bool:
        """The answer to a question about a stand-in: as the branch it stands in front of suggests, or the opposite.

        The same question, by its key, is answered alike everywhere; without a key it is that of its place.
        """
        frame = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename != self.path:
            if "torch" in frame.f_code.co_filename.split("/"):
                return True  # torch checks an argument
            frame = frame.f_back  # type: ignore[assignment]
        row = frame.f_lineno if frame is not None else 0
        place = f"{row}:{frame.f_lasti if frame is not None else 0}"
        if row in self.whiles:
            count = self.asked[place] = self.asked.get(place, 0) + 1
            self.note("loops", name, row)
            return count <= LOOPS
        key = key or place
        if key not in self.decisions:
            answer = (self.wanted.get(row, True) != negated) != (key in self.flips)
            self.decisions[key] = [row, name, answer]
        return bool(self.decisions[key][2]) != negated

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def batch(self) -> Value:
        return as_value(self.randn(self.rows, COLUMNS))

    def new_core(self, name: str) -> Core:
        core = Core(name)
        self.cores.append(core)
        for optimizer in self.catch_alls:
            optimizer.add_param_group({"params": [core.weight]})
        return core

    def optimizer(self, name: str) -> torch.optim.Optimizer:
        """An optimizer of all stand-in models, present and to come."""
        self.note("optimizer", name)
        found = torch.optim.SGD([*(core.weight for core in self.cores), nn.Parameter(self.randn(1))], lr=0.01)
        self.catch_alls.append(found)
        return found

    def loader(self) -> torch.utils.data.DataLoader[Any]:
        """Real batches of stand-in values, so many that windows are followed by a rest."""
        self.note("loader")
        return DATA_LOADER(
            range(self.spec["batches"] * self.rows),
            batch_size=self.rows,
            collate_fn=lambda _: self.batch(),
        )

    def number(self, name: str) -> Any:
        """The value that a setting of this name gets; None if the name does not tell."""
        found = self._number(name)
        if isinstance(found, int):
            return Whole(found)
        return Fraction(found) if isinstance(found, float) else found

    def _number(self, name: str) -> Any:
        parts = names.words(name)
        if not parts or parts[0] in _VERBS:
            return None
        if name in self.spec["k_names"] or names.is_accumulation_name(name):
            self.note("k", name)
            return self.k
        if parts[:1] in (("start",), ("begin",), ("initial",), ("last",), ("current",), ("resume",)) or name in (
            "rank",
            "local_rank",
            "seed",
            "num_workers",
            "weight_decay",
            "momentum",
            "dropout",
            "global_step",
            "gpu",
        ):
            return 0
        found: Any = None
        if names.is_world_size_name(name):
            found = 1
        elif names.is_epoch_name(name):
            found = 2
        elif names.is_batch_size_name(name):
            found = self.rows
        elif parts[:1] == ("lr",) or parts[:2] == ("learning", "rate") or parts[-1:] == ("lr",):
            found = 0.01
        elif name in ("betas",):
            found = (0.9, 0.999)
        elif parts[-1:] in (("beta1",), ("beta2",)) or parts[-2:] in (("beta", "1"), ("beta", "2")):
            found = 0.9 if name.endswith("1") else 0.999
        elif name in ("eps", "epsilon", "adam_epsilon"):
            found = 1e-8
        elif parts[:1] == ("clip",) or parts[-1:] == ("norm",) or parts[-1:] == ("clip",):
            found = 1.0
        elif names.is_interval_name(name):
            found = NEVER
        elif names.is_limit_name(name):
            found = 64
            self.note("limit", name)
        return found


_current: list[World] = []


def begin(spec: Mapping[str, Any]) -> World:
    """The world of a run; there is one in a child."""
    _current[:] = [World(spec)]
    return _current[0]


def world() -> World:
    return _current[0]


# --- tensors ---------------------------------------------------------------------------------------------------------


class Value(Tensor):  # type: ignore[misc]
    """A tensor that stands for data or for what a model makes of it; it fits wherever it is put.

    An operation that its shape does not allow gives another such tensor, computed from all that went in.
    """

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types_: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            return _apply(func, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _part(self, name)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return _part(self, key)
        if isinstance(key, Anything):
            return self
        return Tensor.__getitem__(self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(key, (str, Anything)):
            return
        Tensor.__setitem__(self, key, value)

    def __iter__(self) -> Iterator[Any]:
        if self.dim() < 2:
            return iter([as_value(world().randn(COLUMNS)) for _ in range(self.dim() and len(self))])
        return iter([as_value(row) for row in self.as_subclass(Tensor).unbind(0)])

    def __contains__(self, key: Any) -> bool:
        return world().decide(repr(key)[:20])

    def __bool__(self) -> bool:
        return world().decide("a value")

    def __float__(self) -> float:
        return float(self.as_subclass(Tensor).detach().double().mean())

    def __int__(self) -> int:
        return int(float(self))

    def __index__(self) -> int:
        return 3

    def __hash__(self) -> int:
        return id(self)

    def item(self) -> float:
        return float(self)

    def keys(self) -> list[str]:
        return ["inputs", "labels"]

    def values(self) -> list[Any]:
        return [_part(self, key) for key in self.keys()]

    def items(self) -> list[tuple[str, Any]]:
        return [(key, _part(self, key)) for key in self.keys()]

    def get(self, key: Any, default: Any = None) -> Any:
        return _part(self, str(key))

    def pop(self, key: Any = "", default: Any = None) -> Any:
        return _part(self, str(key))

    def update(self, *args: Any, **kwargs: Any) -> None:
        return None

    def cuda(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def to(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def backward(self, *args: Any, **kwargs: Any) -> None:
        backward(self, kwargs)


def backward(loss: Tensor | None, options: Mapping[str, Any] | None = None) -> None:
    """Send a stand-in for a loss backward: the mean of a value, or something of all models if it has no graph."""
    if loss is None or not loss.requires_grad:
        world().note("factor", "loss")
        loss = mixed([core.weight for core in world().cores] or [world().new_core("model").weight])
    plain = loss.as_subclass(Tensor)
    if plain.dim():
        world().note("loss", "loss")
        plain = plain.mean()
    plain.backward(**(options or {}))


def as_value(tensor: Tensor) -> Value:
    made: Value = tensor.as_subclass(Value)
    return made


def _part(value: Value, name: str) -> Any:
    """An entry or attribute of a value."""
    if value.requires_grad:
        world().note("part", name)
        return as_loss(value, name) if names.is_loss_name(name) else value
    return world().batch()


def as_loss(value: Tensor, name: str) -> Tensor:
    """What is called a loss is a scalar; how it was reduced is not known."""
    world().note("loss", name)
    return value.as_subclass(Tensor).mean()


def _plain(value: Any) -> Any:
    if isinstance(value, Value):
        return value.as_subclass(Tensor)
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(_plain(v) for v in value)
    return value


def _wrapped(value: Any) -> Any:
    if isinstance(value, Tensor) and not isinstance(value, (Value, nn.Parameter)) and value.dim():
        return as_value(value)
    if type(value) in (list, tuple):
        return type(value)(_wrapped(v) for v in value)
    return value


_ARITHMETIC = word_set("add sub mul div true_divide rsub rtruediv radd rmul floor_divide")


def _apply(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The torch function itself where it can be had, else something of what went in."""
    name = getattr(func, "__name__", "").strip("_")
    holder = next((a for a in args if isinstance(a, Tensor)), None)
    unknown = any(isinstance(a, Anything) for a in [*args, *kwargs.values()])
    if unknown:
        if name in ("to", "cuda", "type", "cpu") and holder is not None:
            return holder
        if name in {*_ARITHMETIC, *("i" + n for n in _ARITHMETIC)}:
            world().note("factor", next(a for a in [*args, *kwargs.values()] if isinstance(a, Anything))._acc_name)
        args = [1.0 if isinstance(a, Anything) else a for a in args]
        kwargs = {k: v for k, v in kwargs.items() if not isinstance(v, Anything)}
    plain, options = [_plain(a) for a in args], {k: _plain(v) for k, v in kwargs.items()}
    try:
        return _wrapped(func(*plain, **options))
    except Exception:
        pass
    if "reduction" in options or "loss" in name or name in ("cross_entropy", "binary_cross_entropy", "kl_div"):
        return _loss(func, name, plain, options)
    return mixed([*plain, *options.values()])


def _loss(func: Callable[..., Any], name: str, args: list[Any], options: dict[str, Any]) -> Any:
    """A loss of torch with a target that fits its input."""
    tensors = [a for a in [*args, *options.values()] if isinstance(a, Tensor) and a.dim()]
    guess = next((t for t in tensors if t.requires_grad), tensors[0] if tensors else None)
    if guess is not None:
        if guess.dim() < 2:
            guess = guess.reshape(1, -1)
        rest = {k: v for k, v in options.items() if not isinstance(v, Tensor) and k not in ("input", "target")}
        classes = torch.arange(guess.numel() // guess.shape[1]).remainder(guess.shape[1])
        classes = classes.reshape(guess.shape[0], *guess.shape[2:])
        for target in (classes, guess.detach().sigmoid(), guess.detach()):
            try:
                return func(guess, target, **rest)
            except Exception:
                continue
    world().note("loss", name)
    made = mixed(tensors)
    return made.as_subclass(Tensor).mean() if options.get("reduction", "mean") != "none" else made


def mixed(inputs: Sequence[Any]) -> Value:
    """A value computed from all tensors that went in, in a way that differs each time."""
    total: Tensor = world().randn(world().rows, COLUMNS)
    for tensor in _tensors(inputs):
        if tensor.is_floating_point() and tensor.requires_grad:
            plain = tensor.as_subclass(Tensor)
            total = total + (plain * torch.randn_like(plain)).mean()
    return as_value(total)


def _tensors(value: Any, depth: int = 3) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if depth and isinstance(value, (list, tuple)):
        return [t for v in value for t in _tensors(v, depth - 1)]
    if depth and isinstance(value, dict):
        return [t for v in value.values() for t in _tensors(v, depth - 1)]
    return []


class Core(nn.Module):  # type: ignore[misc]
    """The parameters of a stand-in model, and its forward: noise times them, and what comes with a graph."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(world().randn(COLUMNS, HIDDEN) * 0.1)

    def forward(self, *inputs: Any) -> Tensor:
        out = world().randn(world().rows, HIDDEN) @ self.weight.t()
        for tensor in _tensors(inputs):
            if tensor.requires_grad:
                plain = tensor.as_subclass(Tensor)
                out = out + (plain * torch.randn_like(plain)).mean()
        return out


# --- settings ---------------------------------------------------------------------------------------------------------


class _Setting:
    """A number that a name told, and that may turn out to be something else."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return Anything("setting")(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything(name)

    def __getitem__(self, key: Any) -> Any:
        return Anything("setting")[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(Anything("setting"))

    def __len__(self) -> int:
        return len(Anything("setting"))


class Whole(_Setting, int):
    """An int."""


class Fraction(_Setting, float):
    """A float."""


# --- everything else -------------------------------------------------------------------------------------------------


class Anything:
    """Stands for a thing that is not in the slice: a model, a tracker, settings, a module of another package."""

    def __init__(self, name: str, parent: Anything | None = None, imported: bool = False) -> None:
        self.__dict__.update(
            _acc_made=name.endswith("()"),
            _acc_name=name,
            _acc_parent=parent,
            _acc_core=None,
            _acc_inner=None,
            _acc_imported=imported,
        )
        world().note("stand-in", name)

    # attributes and entries: the same thing each time

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        if self._acc_imported:
            found = self.__dict__[name] = Anything(name, self, name.islower())
            return found
        if name == "grad":
            world().note("opaque", f"{full_name(self)}.grad")
        if name in _OPTIMIZER_METHODS and is_optimizer(self):
            return getattr(self._acc_real(), name)
        if name in _MODEL_METHODS:
            model = self._acc_model()
            if name == "zero_grad" and model not in world().handed:
                world().note("zeroed", self._acc_name)
            elif name in ("parameters", "named_parameters"):
                world().handed.append(model)
            return getattr(model, name)
        found = world().number(name)
        if found is None:
            found = self if name == "module" else Anything(name, self)
        self.__dict__[name] = found
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "grad":
            world().note("opaque", f"{full_name(self)}.grad")
        self.__dict__[name] = value

    def __getitem__(self, key: Any) -> Any:
        return getattr(self, key) if isinstance(key, str) and key.isidentifier() else Anything(self._acc_name, self)

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(key, str):
            self.__dict__[key] = value

    def __delitem__(self, key: Any) -> None:
        return None

    def get(self, key: Any, default: Any = None) -> Any:
        return self[key]

    # calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _called(self, args, kwargs)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __mro_entries__(self, bases: Any) -> tuple[type, ...]:
        return (_Base,)

    # containers

    def __iter__(self) -> Iterator[Any]:
        if names.is_loader_name(self._acc_name) or self._acc_name in ("train_data", "dataset", "data"):
            return iter(world().loader())
        return iter([Anything(self._acc_name, self), Anything(self._acc_name, self)])

    def __next__(self) -> Any:
        iterator = self.__dict__.get("_acc_iterator") or iter(world().loader())
        self.__dict__["_acc_iterator"] = iterator
        return next(iterator)

    def __len__(self) -> int:
        size: int = world().spec["batches"]
        if names.is_loader_name(self._acc_name):
            return size
        if not parts_of(self).isdisjoint({"dataset", "data", "samples", "examples"}):
            return size * world().rows
        world().note("number", f"len({self._acc_name})")
        return 2  # as many as `__iter__` gives

    def __contains__(self, item: Any) -> bool:
        return world().decide(self._acc_name)

    # questions and numbers

    def __bool__(self) -> bool:
        return world().decide(self._acc_name)

    def _ask(self, other: Any) -> Any:
        return Question(self._acc_name)

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _ask

    def __hash__(self) -> int:
        return id(self)

    def __index__(self) -> int:
        world().note("number", self._acc_name)
        return 3

    def __int__(self) -> int:
        return self.__index__()

    def __float__(self) -> float:
        world().note("number", self._acc_name)
        return 0.5

    def __str__(self) -> str:
        return str(self._acc_name)

    def __format__(self, spec: str) -> str:
        return str(self._acc_name)

    def _compute(self, *others: Any) -> Any:
        tensors = [o for o in others if isinstance(o, Tensor)]
        if tensors:
            world().note("factor", self._acc_name)
            return tensors[0]
        return Anything(self._acc_name, self)

    for _operator in word_set("add sub mul truediv floordiv mod pow matmul and or xor lshift rshift"):
        for _form in ("", "r", "i"):
            locals()[f"__{_form}{_operator}__"] = _compute
    __neg__ = __pos__ = __abs__ = __invert__ = __round__ = _compute

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types_: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return _apply(func, args, dict(kwargs or {}))

    # what it may turn out to be

    def _acc_model(self) -> Core:
        """Its parameters: those of the outermost part of its name that says model."""
        owner, one = self, self
        while one._acc_parent is not None and not one._acc_parent._acc_imported and not one._acc_made:
            one = one._acc_parent
            if _is_model_name(one._acc_name):
                owner = one
        if owner._acc_core is None:
            owner.__dict__["_acc_core"] = world().new_core(owner._acc_name)
        core: Core = owner._acc_core
        return core

    def _acc_real(self) -> torch.optim.Optimizer:
        if self._acc_inner is None:
            self.__dict__["_acc_inner"] = world().optimizer(self._acc_name)
        found: torch.optim.Optimizer = self._acc_inner
        return found


_OPTIMIZER_METHODS = frozenset({"step", "zero_grad", "param_groups", "add_param_group", "state_dict"})
_MODEL_METHODS = frozenset(
    {"parameters", "named_parameters", "state_dict", "modules", "named_modules", "children", "buffers", "zero_grad"}
)


_MODULE_STATE = frozenset(vars(nn.Module()))
_SCHEDULERS = word_set("scheduler schedule sched lr warmup")
_STEPPED = _SCHEDULERS | {"profiler", "prof", "ema"}  # things with a step() that is no update
_RETURNING = word_set("to cuda cpu half float double bfloat16 train eval requires_grad_ apply")


class Question(Anything):
    """What is asked about a stand-in: true or false is decided when it is used."""

    def __init__(self, about: Any, relation: str = "", other: Any = None, negated: bool = False) -> None:
        name = about._acc_name if isinstance(about, Anything) else "a value"
        super().__init__(name)
        key = ""
        if isinstance(about, Question) and not relation:  # the negation of another question
            key, negated = about._acc_key, not about._acc_negated
        elif isinstance(about, Anything) and isinstance(other, (str, bool, type(None))):
            key = f"{full_name(about)} {relation} {other!r}".strip() if relation else full_name(about)
        self.__dict__.update(_acc_key=key, _acc_negated=negated)

    def __bool__(self) -> bool:
        return world().decide(self._acc_name, self._acc_key, self._acc_negated)


class _Base(nn.Module):  # type: ignore[misc]
    """What a class of another package is derived from."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __getattr__(self, name: str) -> Any:
        return missing_attribute(self, name)


def missing_attribute(owner: Any, name: str) -> Any:
    """An attribute that an object of the slice does not have, since what sets it is elsewhere."""
    if name.startswith("__"):
        raise AttributeError(name)
    if isinstance(owner, nn.Module):
        for store in ("_parameters", "_buffers", "_modules"):
            if name in owner.__dict__.get(store, {}):
                return owner.__dict__[store][name]
        if name in _MODULE_STATE:
            raise AttributeError(name)
    kept = owner.__dict__.setdefault("_acc_kept", {})
    if name not in kept:
        found = world().number(name)
        kept[name] = Anything(name) if found is None else found
    return kept[name]


class Progress(Anything):
    """Something around an iterable that passes its items on, as a progress bar does."""

    def __init__(self, name: str, inner: Any) -> None:
        super().__init__(name)
        self.__dict__["_acc_items"] = inner

    def __iter__(self) -> Iterator[Any]:
        return iter(self._acc_items)

    def __next__(self) -> Any:
        iterator = self.__dict__.get("_acc_iterator") or iter(self._acc_items)
        self.__dict__["_acc_iterator"] = iterator
        return next(iterator)

    def __len__(self) -> int:
        return len(self._acc_items)


def _is_model_name(name: str) -> bool:
    return not _MODELS.isdisjoint(names.words(name.rstrip("()")))


def is_optimizer(thing: Any) -> bool:
    if not isinstance(thing, Anything):
        return isinstance(thing, torch.optim.Optimizer)
    return names.is_optimizer_name(thing._acc_name) and not names.is_scheduler_name(thing._acc_name)


def _called(thing: Anything, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a call of a stand-in gives."""
    name = thing._acc_name
    parts = set(names.words(name))
    given = [*args, *kwargs.values()]
    tensors = _tensors(given)
    if len(args) == 1 and not kwargs and isinstance(args[0], (types.FunctionType, type)):
        return args[0]  # a decorator
    if name in _RETURNING and thing._acc_parent is not None and not thing._acc_parent._acc_imported:
        return thing._acc_parent
    if name in ("backward", "manual_backward"):
        if tensors:
            world().note("opaque", f"{full_name(thing)}()")
        backward(tensors[0] if tensors else None)
        return None
    if name in ("accumulate", "no_sync"):
        if name == "accumulate":
            world().note("opaque", f"{full_name(thing)}()")
        return thing
    if not parts.isdisjoint(_WRAPPERS) and args and not tensors:
        return args[0] if len(args) == 1 or not isinstance(args[1], (*_THINGS, Anything)) else tuple(args)
    if any(is_optimizer(one) for one in given) and parts.isdisjoint(_SCHEDULERS):
        world().note("opaque", f"{full_name(thing)}()")
    owner = thing._acc_parent
    if (owner is not None and is_optimizer(owner) and not owner._acc_imported) or (
        name == "step" and parts_of(owner).isdisjoint(_STEPPED)
    ):
        world().note("opaque", f"{full_name(thing)}()")
    if name == "trange" and args:
        return Progress(name, range(*args))
    if args and isinstance(args[0], (torch.utils.data.DataLoader, range, list, enumerate, zip, map, Progress)):
        return Progress(name, args[0])
    if args and isinstance(args[0], Anything) and names.is_loader_name(args[0]._acc_name):
        return Progress(name, args[0])
    if tensors:
        graph = any(tensor.requires_grad for tensor in tensors)
        if graph and not parts.isdisjoint({"loss", "criterion", "losses", "objective"}):
            return as_loss(mixed(tensors), name)
        if name[:1].isupper() and not name.isupper() and not thing._acc_made:
            return Anything(f"{name}()", thing)  # a data set of tensors, say
        if thing._acc_core is None and not _is_model_name(name):
            return mixed(tensors)
        return as_value(thing._acc_model()(*tensors))
    if _is_model_name(name) and not args and kwargs:
        return as_value(thing._acc_model()())
    return Anything(f"{name}()", thing)


def parts_of(thing: Anything | None) -> set[str]:
    """The words of the last part of its name."""
    return set() if thing is None else set(names.words(thing._acc_name))


def full_name(thing: Anything) -> str:
    """Its dotted name."""
    parts = [thing._acc_name]
    while thing._acc_parent is not None:
        thing = thing._acc_parent
        if not parts[0].startswith(thing._acc_name):  # what a call returned
            parts.insert(0, thing._acc_name)
    return ".".join(parts)


DATA_LOADER = torch.utils.data.DataLoader
_THINGS = (nn.Module, torch.optim.Optimizer, DATA_LOADER)
