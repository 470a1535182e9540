"""ACC004 scheduler-step-per-micro-batch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from acclint.findings import Confidence, Severity
from acclint.knowledge.schedulers import scheduler_kind
from acclint.program import Span
from acclint.rules.base import Intent, Move, Report, Resize, Rule
from acclint.rules.windows import View, held, owner_phrase, views, weaker
from acclint.simulate.trace import Event, Limit, Loop, Run
from acclint.simulate.values import BATCHES, Num, Number, Scheduler, Value, numeric, roots_of

if TYPE_CHECKING:
    from acclint.simulate import Analysis

DOCUMENTATION = """\
## What it does

Finds schedulers that are stepped once per micro-batch although their length counts updates, schedulers stepped once
per update although their length counts micro-batches, and `ReduceLROnPlateau` stepped with the loss of a micro-batch
or an update instead of once per epoch.

## Why is this bad?

With k = 4 and a linear decay sized in updates but stepped per micro-batch, the learning rate is 0 after a quarter of
the run and stays there; a cosine swings up and down; OneCycleLR raises a ValueError. The reverse goes through only
1/k of the schedule: the rate ends at .75 of its start, and a warm-up lasts k times too long. A plateau scheduler that
looks at single losses sees their noise: with a loss near its floor the rate was 1e-8 after the first epoch, instead
of 1e-3 for 16 epochs.

## Example

```python
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

data = TensorDataset(torch.randn(64, 8), torch.randn(64, 1))
loader = DataLoader(data, batch_size=4, shuffle=True)
model = nn.Linear(8, 1)
criterion = nn.MSELoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
accumulation_steps = 4
epochs = 3
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=len(loader) // accumulation_steps * epochs)

for epoch in range(epochs):
    for i, (x, y) in enumerate(loader):
        loss = criterion(model(x), y) / accumulation_steps
        loss.backward()
        if (i + 1) % accumulation_steps == 0:
            optimizer.step()
            optimizer.zero_grad()
        scheduler.step()
```

## Use instead

```python
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

data = TensorDataset(torch.randn(64, 8), torch.randn(64, 1))
loader = DataLoader(data, batch_size=4, shuffle=True)
model = nn.Linear(8, 1)
criterion = nn.MSELoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
accumulation_steps = 4
epochs = 3
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=len(loader) // accumulation_steps * epochs)

for epoch in range(epochs):
    for i, (x, y) in enumerate(loader):
        loss = criterion(model(x), y) / accumulation_steps
        loss.backward()
        if (i + 1) % accumulation_steps == 0:
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
```

## When it stays silent

- The scheduler is stepped per micro-batch and sized in micro-batches: consistent.
- The scheduler is stepped per epoch, or its rate is constant.
- The rate is a function of the position (`step(epoch + i / n)`, timm's `step_update(n)`).
- A framework gates the step: accelerate's prepared scheduler, a DeepSpeed engine, Lightning's `interval="step"`.

## Fix safety

Safe where the length is known to count updates: `scheduler.step()` moves behind `optimizer.step()`. Unsafe where the
length is not known, and where it is the length that has to be changed (`math.ceil(len(loader) / k) * epochs`). Either
way the learning rate of the run changes; never do both.

## References

- [How to adjust the learning rate](https://docs.pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate)
- [torch.optim.lr_scheduler.ReduceLROnPlateau](https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.ReduceLROnPlateau.html)
"""


def check(analysis: Analysis) -> Iterator[Report]:
    yield from held(analysis, lambda run: _judge(analysis, run))


def _judge(analysis: Analysis, run: Run) -> list[Report]:
    found: list[Report] = []
    accumulating = [view for view in views(analysis, run) if view.k > 1 and view.closed]
    calls: dict[Scheduler, list[Event]] = {}
    for event in run.of("schedule"):
        if event.loops:
            calls.setdefault(event.data["scheduler"], []).append(event)
    for scheduler, events in calls.items():
        if "get_constant_schedule" in scheduler.kind:
            continue  # There is nothing to come to an end.
        view = _lane_of(scheduler, accumulating)
        if view is None and (report := _too_seldom(analysis, run, scheduler, events)) is not None:
            found.append(report)
        if view is None or any(event.data["absolute"] for event in events):
            continue
        report = _report(view, scheduler, events)
        if report is not None:
            found.append(report)
    return found


def _too_seldom(analysis: Analysis, run: Run, scheduler: Scheduler, events: list[Event]) -> Report | None:
    """A schedule for each update of an optimizer that does not accumulate, stepped under another one's window test."""
    for view in views(analysis, run):
        if view.lane.optimizer is not scheduler.optimizer or scheduler.optimizer is None or view.k != 1:
            continue
        own = {guard.span for window in view.closed if window.update for guard in window.update.guards}
        tests = {guard for event in events for guard in event.guards if guard.modulus and guard.span not in own}
        if not tests or 2 * len(events) > len(view.closed) or not _with_updates(view, events):
            continue
        if _unit(view, scheduler, _counts(view, events)[0]) not in ("micro-batches", "updates"):
            continue
        return Report(
            events[0].span,
            f"the schedule is as long as the updates of {owner_phrase(view)}, one per micro-batch, but it is stepped "
            "only at the end of a window: most of it never runs",
            Severity.WARNING,
            view.confidence,
            notes=(("the schedule's length", scheduler.span), ("the window test", next(iter(tests)).span)),
            assumptions=view.notes(),
            intents=(Intent("display", "step the scheduler with each update of its optimizer"),),
            evidence=view.proof(),
        )
    return None


def _lane_of(scheduler: Scheduler, accumulating: list[View]) -> View | None:
    """The accumulating lane whose learning rate the scheduler sets."""
    mine = [view for view in accumulating if view.lane.optimizer is scheduler.optimizer]
    if mine:
        return mine[0]
    optimizers = {id(view.lane.optimizer) for view in accumulating}
    return accumulating[0] if scheduler.optimizer is None and len(optimizers) == 1 else None


def _report(view: View, scheduler: Scheduler, events: list[Event]) -> Report | None:
    micro = view.micro
    if micro is None or micro.kind == "call":
        return None
    micro_batches, updates = _counts(view, events)
    inside = [event for event in events if any(loop.span == micro.span for loop, _ in event.loops)]
    if micro.level == "window":
        outside = [event for event in events if event not in inside]
        per_micro = len(inside) >= micro_batches
        per_update = not per_micro and len(outside) >= 0.9 * updates and _in_update_loop(view, outside)
    else:
        per_micro = len(inside) >= 0.9 * micro_batches
        # What is left over may be flushed behind the loop.
        ends = min(updates, sum(_turn(view, window.update) is not None for window in view.closed if window.update))
        per_update = not per_micro and len(inside) >= 0.75 * ends and ends > 1 and _with_updates(view, inside)
    if not per_micro and not (per_update and updates > 1):
        return None  # Of one update, the number of updates is not told from one of micro-batches.
    confidence = weaker(view.confidence, view.evidence)
    notes = view.related()
    k = view.k_phrase()
    if any(event.data["metric"] for event in events) or scheduler.cadence == "metric":
        how = "micro-batch" if per_micro else "update"
        return Report(
            events[0].span,
            f"ReduceLROnPlateau is stepped once per {how} with the loss of a training batch: its patience counts noisy "
            f"{how}s, so the learning rate collapses early; step it once per epoch with a validation metric",
            Severity.WARNING,
            weaker(confidence, Confidence.HIGH if scheduler.cadence == "metric" else Confidence.LOW),
            notes=tuple(notes),
            assumptions=view.notes(),
            intents=(Intent("display", "step it behind the loop over the batches, with the validation loss"),),
            evidence=view.proof(),
        )
    unit = _unit_of_trainings(view, scheduler, events, micro_batches)
    if unit == "updates" and per_micro and scheduler.floor:
        unit = ""  # It may well fall to its floor in a part of the training.
    if per_update and unit == "updates":
        return None
    if unit == "epochs" and per_update and abs(float(numeric(_horizon(scheduler))) - updates) < 0.5:
        return None  # One update an epoch.
    if unit == "epochs":
        how = "micro-batch" if per_micro else "update"
        return Report(
            events[0].span,
            f"the schedule is as long as the number of epochs, but it is stepped once per {how}: it is over within the "
            "first epoch",
            Severity.ERROR,
            confidence,
            notes=(("the schedule's length", scheduler.span), *view.related()),
            assumptions=view.notes(),
            evidence=view.proof(),
        )
    if numeric(_horizon(scheduler)) is not None:
        notes = [*notes, ("the schedule's length", scheduler.span)]
    taken: list[tuple[str, Span | None]] = list(view.notes())
    if BATCHES in roots_of(_horizon(scheduler)):
        same = view.run.batch_sizes & view.run.sample_divisors
        confidence = weaker(confidence, Confidence.MEDIUM if same else Confidence.LOW)
        taken.append(("the samples divided by the batch size are taken for the length of the loader", None))
    if per_micro:
        if unit.startswith("micro-batches"):
            return None
        severity = Severity.ERROR if unit == "updates" else Severity.WARNING
        assumptions = taken
        if unit != "updates":
            if scheduler.cadence == "epoch":
                severity = Severity.INFO
            elif scheduler.cadence not in ("update",) or scheduler.kind == "unknown":
                confidence = Confidence.LOW
            else:
                confidence = weaker(confidence, Confidence.MEDIUM)
            assumptions.append(("the schedule is taken to be sized in optimizer updates", None))
        return Report(
            events[0].span,
            f"the scheduler is stepped once per micro-batch, {k} times per update: the schedule is over after "
            f"1/{view.k_text or view.k} of the training",
            severity,
            confidence,
            notes=tuple(notes),
            assumptions=tuple(assumptions),
            intents=_per_update(view, events[0], sized=unit == "updates"),
            evidence=view.proof(),
        )
    if unit:
        whole = (
            f"only the first 1/{view.k_text or view.k} of it runs (with k = {view.k}, a linear decay ends at "
            f"{1 - 1 / view.k:.2f} of the learning rate instead of 0)"
        )
        return Report(
            scheduler.span,
            "the schedule's length counts micro-batches, but it is stepped once per update: "
            + (whole if unit == "micro-batches" else f"it takes {k} times as many epochs as its length says"),
            Severity.WARNING,
            weaker(confidence, Confidence.HIGH),
            notes=(("the scheduler step", events[0].span), *view.related()),
            assumptions=tuple(taken),
            intents=_resized(view, scheduler) if unit == "micro-batches" else (),
            evidence=view.proof(),
        )
    return None


def _per_update(view: View, step: Event, *, sized: bool) -> tuple[Intent, ...]:
    """Move the scheduler's step behind the update: safe where the schedule is known to be sized in updates."""
    if view.update is None:
        return ()
    told = f"step the scheduler once per update: the schedule then takes {view.k_phrase()} times as long"
    return (Intent("safe" if sized else "unsafe", told, (Move(step.span, behind=view.update.span),)),)


def _resized(view: View, scheduler: Scheduler) -> tuple[Intent, ...]:
    """Count the schedule's length in updates. Unsafe: it may be meant to stop early."""
    kind = scheduler_kind(scheduler.kind)
    by = view.k_place
    lengths = [count for count in kind.counts if count.unit != "epochs"] if kind is not None and by else []
    told = f"divide the length of the schedule by {view.k_phrase()}: it then ends with the training"
    given = scheduler.attrs["<counts>"]
    return tuple(
        Intent("unsafe", told, (Resize(scheduler.span, count.name, count.position, by),))
        for count in lengths
        if roots_of(given.get(count.name)) or numeric(given.get(count.name)) is not None
    )


def _with_updates(view: View, events: list[Event]) -> bool:
    """Whether most of the steps are in a turn of the loop over micro-batches that updates."""
    turns = {_turn(view, window.update) for window in view.closed if window.update is not None}
    return 2 * sum(_turn(view, event) in turns for event in events) > len(events)


def _turn(view: View, event: Event) -> tuple[int, int] | None:
    return next(((loop.entry, turn) for loop, turn in event.loops if view.micro and loop.span == view.micro.span), None)


def _in_update_loop(view: View, events: list[Event]) -> bool:
    update = view.update
    return update is not None and bool(events) and len(events[0].loops) == len(update.loops)


def _factor(loop: Loop) -> float:
    """How many times more turns a loop has than were run."""
    return loop.total / loop.turns if loop.total and loop.turns and loop.cut else 1


def _counts(view: View, events: list[Event]) -> tuple[int, int]:
    """Micro-batches and updates of the run, without what another call of the function does with its own optimizer.

    `events` are the steps of a schedule: where one call makes them all, that is the call.
    """
    closed = view.closed
    calls = [one for window in closed for one in view.backwards(window)]
    mine = _of_calls(one.event for one in calls)
    rest = [one for window in view.windows if window.update is None for one in view.backwards(window)]
    calls += [one for one in rest if not mine or one.event.loops[:1] in mine]
    made = _of_calls(events)
    if len(made) == 1:
        calls = [one for one in calls if one.event.loops[:1] in made]
        closed = [window for window in closed if window.update is not None and window.update.loops[:1] in made]
    sites = Counter(one.site for one in calls if not one.replay)
    return max(sites.values(), default=0), len(closed)


def _of_calls(events: Iterable[Event]) -> set[tuple[tuple[Loop, int], ...]]:
    """The calls of functions that events happen in, where nothing in the file calls them."""
    return {one.loops[:1] for one in events if one.loops and one.loops[0][0].kind == "call"}


def _horizon(scheduler: Scheduler) -> Value:
    """The length of the schedule in calls of step(): a number with what it depends on, or None."""
    counts = scheduler.attrs.get("<counts>", {})
    total = counts.get("total_steps")
    if numeric(total) is None and "steps_per_epoch" in counts and "epochs" in counts:
        per, epochs = counts["steps_per_epoch"], counts["epochs"]
        if numeric(per) is None or numeric(epochs) is None:
            return None
        return Num(numeric(per) * numeric(epochs), roots_of(per) | roots_of(epochs))
    known = (counts[name] for name in (*_LENGTHS, *_PERIODS) if numeric(counts.get(name)) is not None)
    return next(known, scheduler.horizon)


_LENGTHS = ("total_steps", "num_training_steps", "t_total", "T_max", "total_iters", "max_iters")
# Parts of a schedule: their number says nothing about the whole.
_PERIODS = ("T_0", "step_size")
_PARTS = ("LinearLR", "ConstantLR")


def _unit_of_trainings(view: View, scheduler: Scheduler, events: list[Event], micro_batches: int) -> str:
    """The unit of a length that is for one call of a function that goes through all epochs by itself (an object's
    `train()`), or else for all calls of the run; "" where only one of the two would be right.
    """
    around = [loop for loop, _ in events[0].loops if loop.kind != "call"]
    calls = len(_of_calls(events)) if len(around) > 1 else 1
    unit = _unit(view, scheduler, micro_batches)
    if calls < 2:
        return unit
    of_one = _unit(view, scheduler, micro_batches / calls)
    if unit == "updates" and not of_one:
        return unit
    differ = unit and of_one and unit != of_one
    return "" if differ and "updates" in (unit, of_one) else of_one


def _unit(view: View, scheduler: Scheduler, micro_batches: float) -> str:
    """The unit of the schedule's length, by its value in this run: "micro-batches", "micro-batches of some epochs",
    "updates", "epochs" or "" (unknown).

    The length of some epochs is only believed where it is made from the length of the loader.
    """
    length = _horizon(scheduler)
    first = next((one for window in view.windows for one in view.backwards(window)), None)
    if numeric(length) is None or view.micro is None or first is None:
        return ""
    if BATCHES in roots_of(length) and view.run.batch_sizes and not view.run.batch_sizes & view.run.sample_divisors:
        return ""  # Divided by something else than the batch size of a loader.
    horizon = float(numeric(length))
    periodic = not any(numeric(scheduler.attrs["<counts>"].get(name)) is not None for name in _LENGTHS) and any(
        numeric(scheduler.attrs["<counts>"].get(name)) is not None for name in _PERIODS
    )
    around = [loop for loop, _ in first.event.loops if loop.kind != "call"]
    if len(around) == 1 and around[0].cut and around[0].total and not roots_of(length):
        # The only loop, of a number of turns that is written down. A warm-up alone may be of any length.
        whole = 0 if periodic or scheduler.kind.endswith(_PARTS) else around[0].total
        if whole and abs(horizon - whole) < 0.5:
            return "micro-batches"
        if whole and abs(horizon - whole / view.k) < 1:
            return "updates"
    factor = epochs = 1.0
    for loop, _ in first.event.loops:
        if loop.span != view.micro.span:
            factor *= _factor(loop)
            epochs = max(epochs, loop.turns * _factor(loop))
    total = micro_batches * factor
    windows = total / epochs / view.k
    if not periodic:
        if abs(horizon - total) < 0.5 or (epochs > 1 and abs(horizon * view.k - total * view.k) < view.k):
            return "micro-batches"
        if roots_of(length) and total < horizon <= total + epochs * (view.k - 1):
            return "micro-batches"  # Rounded up, for a division that is not there.
        # Each epoch's rest may make an update of its own, or none.
        if epochs > 1 and abs(horizon - epochs) < 0.5 and "epoch" in view.texts.text(scheduler.span).lower():
            return "epochs"
        if epochs * math.floor(windows) - 1 <= horizon <= epochs * math.ceil(windows) + 1:
            return "updates"
    if roots_of(length) or "len(" in view.texts.text(scheduler.span):
        passes = _passes(view)
        some = horizon / (total / passes) if passes > 1 else 0
        if 1 <= round(some) < passes and abs(some - round(some)) < 1e-6:
            return "micro-batches of some epochs"
        if periodic and math.floor(windows) <= horizon <= math.ceil(windows):
            return "updates"
    return _counted_unit(view, horizon, roots_of(length))


# A number without a name is taken for the end of the training only where it is large.
_LONG = 100


def _counted_unit(view: View, horizon: float, roots: frozenset[str]) -> str:
    """The unit of a length that a counter of the file is compared with: what the counter counts."""
    site = next(one.site for window in view.windows for one in view.backwards(window))
    calls = [one.event.number for one in view.run.backwards if one.site == site and not one.replay]
    updates = [window.update.number for window in view.closed if window.update is not None]
    seen: dict[Number, list[Limit]] = {}
    for test in view.run.limits:
        if roots & test.roots if roots else not test.roots and float(test.limit) >= _LONG:
            seen.setdefault(test.limit, []).append(test)
    for limit, tests in seen.items():
        fallen = (at for at, (one, other) in enumerate(pairwise(tests), 1) if other.counter < one.counter)
        first, last = tests[0], tests[next(fallen, 0) - 1]  # up to where the counter begins anew
        rise = float(last.counter) - float(first.counter)
        counted = [sum(first.events <= number < last.events for number in numbers) for numbers in (calls, updates)]
        if rise < 2 or counted[0] < counted[1] + 3:
            continue
        by_update, by_micro_batch = (abs(rise - count) <= 1 for count in reversed(counted))
        ratio = horizon / float(limit)
        if (by_update and ratio == 1) or (by_micro_batch and ratio * view.k == 1):
            return "updates"
        if (by_micro_batch and ratio == 1) or (by_update and ratio == view.k):
            return "micro-batches"
    return ""


def _passes(view: View) -> int:
    """How often the loop over all micro-batches of an epoch was run through; 0 if that is not clear."""
    calls = [one for window in view.windows for one in view.backwards(window)]
    loops = [[loop for loop, _ in one.event.loops if loop.kind != "call"] for one in calls]
    outer = {around[0].span for around in loops if around}
    if len(outer) != 1 or any(len(around) < 2 for around in loops):
        return 0
    epoch_loop = loops[0][0]
    return 0 if epoch_loop.cut or epoch_loop.level != "outer" else epoch_loop.turns


RULE = Rule(
    code="ACC004",
    name="scheduler-step-per-micro-batch",
    category="schedule",
    severity=Severity.ERROR,
    fix="safe",
    summary="The learning-rate scheduler is stepped per micro-batch but sized in updates, or the reverse.",
    documentation=DOCUMENTATION,
    check=check,
)
