"""What the ledger keeps of a backward call, an optimizer and a scheduler while a script runs."""

from __future__ import annotations

import warnings
from contextlib import suppress
from copy import copy
from typing import TYPE_CHECKING, Any

from torch import Tensor

from acclint.knowledge.schedulers import end_of_decay
from acclint.probe.instruments.nodes import number

if TYPE_CHECKING:
    from acclint.probe.instruments.terms import Probe

_HORIZONS = (
    "total_steps",
    "T_max",
    "num_training_steps",
    "t_total",
    "total_iters",
    "max_steps",
    "max_iters",
    "max_iter",
)


class Call:
    """A backward call while it runs and after it."""

    def __init__(self, ordinal: int, place: tuple[str, int], site: tuple[int, ...], via: str) -> None:
        self.ordinal = ordinal
        self.place = place
        self.site = site
        self.via = via
        self.retain_graph = False
        self.closure = False
        self.replay = False
        self.probes: list[Probe] = []
        self.hooks: list[Any] = []
        self.leaves: dict[int, Tensor] = {}
        self.fired: set[int] = set()
        self.scale = 1.0
        self.terms: list[dict[str, Any]] = []


class Optimizer:
    def __init__(self, name: str, line: int, lr: float | None, weight_decay: float | None) -> None:
        self.name = name
        self.line = line
        self.lr = lr
        self.weight_decay = weight_decay
        self.parameters = 0
        self.updates: list[dict[str, Any]] = []
        self.stepped: set[int] = set()
        self.discards: dict[int, int] = {}
        self.last_step = -1  # the last backward call before the last step
        self.evaluations = 0  # of the closure in the step that runs
        self.taken = False
        self.moved = False


class Scheduler:
    def __init__(self, scheduler: Any, optimizer: int | None, line: int, lr: float | None) -> None:
        self.scheduler = scheduler
        self.optimizer = optimizer
        self.line = line
        self.initial_lr = lr
        self.lrs: list[float] = []
        self.lines: list[int] = []


def scheduler_result(record: Scheduler) -> dict[str, Any]:
    scheduler = record.scheduler
    found: dict[str, Any] = dict(vars(scheduler))
    for function in getattr(scheduler, "lr_lambdas", ()):
        found.update(getattr(function, "keywords", None) or {})
        inner = getattr(function, "func", function)
        code, cells = getattr(inner, "__code__", None), getattr(inner, "__closure__", None)
        if code is not None and cells:
            for name, cell in zip(code.co_freevars, cells, strict=False):
                with suppress(ValueError):  # an empty cell
                    found[name] = cell.cell_contents
    sizes = {
        name: int(value)
        for name, value in found.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and float(value).is_integer()
        if not name.startswith("_") and name not in ("last_epoch", "verbose", "base_lrs", "num_bad_epochs", "best")
    }
    return {
        "name": type(scheduler).__name__,
        "optimizer": record.optimizer,
        "line": record.line,
        "horizon": _end_of(scheduler, len(record.lrs)) if _own_rates(scheduler) else _horizon(sizes, found),
        "sizes": sizes,
        "initial_lr": record.initial_lr,
        "lrs": record.lrs,
        "lines": record.lines,
    }


def _horizon(sizes: dict[str, Any], found: dict[str, Any]) -> int | None:
    """The steps after which a schedule is over; of schedules behind each other (SequentialLR) those of the last one."""
    parts, milestones = found.get("_schedulers"), found.get("_milestones")
    if parts and milestones:
        last = vars(parts[-1])
        end = next((last[name] for name in _HORIZONS if isinstance(last.get(name), int)), None)
        return None if end is None else int(milestones[-1]) + int(end)
    return next((sizes[name] for name in _HORIZONS if name in sizes), None)


def _own_rates(scheduler: Any) -> bool:
    """Whether a function of the script makes the learning rates."""
    maker = getattr(type(scheduler).get_lr, "__module__", "") if hasattr(type(scheduler), "get_lr") else "torch."
    return bool(getattr(scheduler, "lr_lambdas", None)) or not maker.startswith("torch.")


def _end_of(scheduler: Any, steps: int) -> int | None:
    """The steps after which a schedule of the script's own is over, by its values.

    A floor that was come to within the `steps` that were taken may be that of a part.
    """
    functions = getattr(scheduler, "lr_lambdas", None)
    probed = copy(scheduler)

    def factor(step: int) -> Any:
        if functions:
            value = functions[0](step)
        else:
            probed.last_epoch = step
            value = probed.get_lr()[0] / probed.base_lrs[0]
        return None if isinstance(value, complex) else value

    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        end = end_of_decay(factor)
        return end.step if end is not None and (end.at_zero or end.step > steps) else None
    return None


def rate_of(scheduler: Any) -> float | None:
    groups = getattr(getattr(scheduler, "optimizer", None), "param_groups", None)
    return number(groups[0].get("lr")) if groups else None
