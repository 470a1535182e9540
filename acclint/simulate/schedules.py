"""Learning-rate schedulers: when they are stepped, and how long their schedules are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from acclint.knowledge import schedulers
from acclint.program import NOWHERE, Span
from acclint.simulate import values as v
from acclint.simulate.losses import Losses
from acclint.simulate.values import (
    ClassValue,
    Closure,
    Imported,
    Instance,
    Opaque,
    PyRaise,
    Tensor,
    Value,
    numeric,
    resolution_order,
)

_TORCH = "torch.optim.lr_scheduler."
_TELLING = 1000  # unknown numbers from here up are unlike any other number of a run


class Schedules(Losses):
    """What makes schedulers and steps them."""

    def schedule(self, scheduler: v.Scheduler, args: list[Value], span: Span, absolute: bool = False) -> None:
        gate = self.gate_of(scheduler)
        if gate is not None and not gate.sync:
            return
        metric = bool(args) and type(args[0]) in (Tensor, Opaque)
        self.event("schedule", span, scheduler=scheduler, absolute=absolute and not metric, metric=metric)

    def gate_of(self, prepared: v.Optimizer | v.Scheduler) -> v.Accelerator | None:
        """The accelerator whose window gates an optimizer or scheduler.

        What is handed in together with an accelerator that accumulates was prepared by it, unless the file prepares.
        """
        lent = self.lent
        handed_in = lent is not None and lent.entered and not lent.prepares and prepared.kind == "unknown"
        return lent if handed_in and prepared.gate is None else prepared.gate

    def as_scheduler(self, value: Opaque, span: Span = NOWHERE) -> v.Scheduler:
        kept = value.attrs.get("<scheduler>")
        if kept is None:
            kept = v.Scheduler(len(self.run.schedulers), value.name, "unknown", "unknown", span)
            value.attrs["<scheduler>"] = kept
            self.run.schedulers.append(kept)
        return kept

    def own_schedule(self, optimizer: v.Optimizer, length: Value, span: Span) -> None:
        """Note the schedule that an optimizer has of its own, of so many updates."""
        length = self.as_number(length)
        if numeric(length) is None or numeric(length) <= 0:
            return
        own = v.Scheduler(len(self.run.schedulers), "<scheduler>", optimizer.kind, "update", span)
        own.attrs["<counts>"], own.attrs["<args>"] = {"total_steps": length}, ([], {})
        own.optimizer = optimizer
        self.run.schedulers.append(own)
        optimizer.attrs["<schedule>"] = own

    def make_scheduler(
        self, path: str, kind: Any, args: list[Value], keywords: dict[str, Value], span: Span
    ) -> v.Scheduler:
        said = args[0] if args else keywords.get("name")
        if path.endswith(".get_scheduler") and said in ("constant", "constant_with_warmup"):
            path = "transformers.get_constant_schedule"
        made = v.Scheduler(len(self.run.schedulers), "<scheduler>", path, kind.cadence, span)
        values: dict[str, Value] = {}
        for count in kind.counts:
            if count.name in keywords:
                values[count.name] = keywords[count.name]
            elif count.position is not None and count.position < len(args):
                values[count.name] = args[count.position]
        if "steps_per_epoch" in values and "epochs" in values:
            values = {name: one if (n := self.as_number(one)) is None else n for name, one in values.items()}
        made.attrs["<counts>"] = values
        given = args[kind.optimizer_position] if len(args) > kind.optimizer_position else keywords.get("optimizer")
        if type(given) is Opaque and not given.graph:
            given = self.as_optimizer(given)
        made.optimizer = given if type(given) is v.Optimizer else None
        made.attrs["<args>"] = (list(args), dict(keywords))
        if path.endswith(".LambdaLR"):
            factor = args[1] if len(args) > 1 else keywords.get("lr_lambda")
            factor = factor[0] if isinstance(factor, list) and factor else factor
            if isinstance(factor, (Closure, v.Partial, Instance)):
                self.settle_end(made, lambda step: self.call_value(factor, [step], span))
        if path.endswith(".SequentialLR"):
            parts = args[1] if len(args) > 1 else keywords.get("schedulers")
            made.horizon = self.end_of_parts(parts, values.get("milestones"), span)
        self.run.schedulers.append(made)
        self.note_site(span)
        return made

    def derived_scheduler(
        self, made: Instance, path: str, args: list[Value], keywords: dict[str, Value], span: Span
    ) -> v.Scheduler:
        """A scheduler whose class is the project's, made from one of torch. What it hands on to that is what counts."""
        base = made.attrs.get("<base>")
        handed, named = base if base is not None else (args, keywords)
        scheduler = self.make_scheduler(path, schedulers.scheduler_kind(path), handed, named, span)
        scheduler.attrs.update({name: value for name, value in made.attrs.items() if name[:1] != "<"})
        rates = self.member(made.cls, "get_lr")
        if type(rates) is Closure or (base is None and self.member(made.cls, "__init__") is not None):
            scheduler.attrs["<counts>"] = {}
        if type(rates) is Closure:
            made.attrs.update(base_lrs=[1.0], optimizer=scheduler.optimizer)

            def factor(step: int) -> Value:
                made.attrs["last_epoch"] = step
                found = self.invoke(rates.bind(made), [], {}, span)
                return found[0] if isinstance(found, list) and found else None

            self.settle_end(scheduler, factor)
        return scheduler

    def end_of_parts(self, parts: Value, milestones: Value, span: Span) -> Value:
        """Where schedules behind each other end: that of the last one behind the last milestone; None if unknown."""
        if not (isinstance(parts, list) and parts and isinstance(milestones, (list, tuple)) and milestones):
            return None
        counts = parts[-1].attrs.get("<counts>", {}) if type(parts[-1]) is v.Scheduler else {}
        begin, length = (
            self.as_number(one) for one in (milestones[-1], counts.get("T_max", counts.get("total_iters")))
        )
        return (
            None
            if begin is None or length is None
            else self.derived(numeric(begin) + numeric(length), span, begin, length)
        )

    def settle_schedules(self) -> None:
        """Lengths of schedules that nobody had used as a number when they were given: the run knows them by now."""
        for made in self.run.schedulers:
            counts = made.attrs.get("<counts>", {})
            unknown = {name: one.key for name, one in counts.items() if type(one) is Opaque}
            counts.update({name: self.numbers[key] for name, key in unknown.items() if key in self.numbers})

    def settle_end(self, scheduler: v.Scheduler, factor: Callable[[int], Value]) -> None:
        """Note where a schedule ends whose factor is a function of the file, with the name of the number it equals."""
        before, self.deciding = self.deciding, False
        try:
            end = schedulers.end_of_decay(lambda step: numeric(factor(step)))
        except PyRaise:
            end = None
        finally:
            self.deciding = before
        if end is not None:
            roots = {key for key, one in self.run.numbers.items() if one == end.step and one >= _TELLING}
            scheduler.horizon = v.Num(end.step, frozenset(roots)) if len(roots) == 1 else end.step
            scheduler.floor = not end.at_zero


def scheduler_base(cls: ClassValue) -> str:
    """The scheduler of torch that a class is derived from, where its steps are those of torch; else ""."""
    order = resolution_order(cls)
    if any("step" in one.members for one in order):
        return ""
    paths = (base.path for one in order for base in one.bases if isinstance(base, Imported))
    return next((path for path in paths if path.startswith(_TORCH) and schedulers.scheduler_kind(path)), "")
