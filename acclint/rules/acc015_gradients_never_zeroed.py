"""ACC015 gradients-never-zeroed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from acclint.findings import Confidence, Severity
from acclint.knowledge import names
from acclint.program import NOWHERE, Span
from acclint.rules.base import Action, Intent, Move, Report, Rule, Zero
from acclint.rules.windows import View, held, owner_phrase, same_turn, views, weaker
from acclint.simulate.trace import Backward, Event, Loop, Run

if TYPE_CHECKING:
    from acclint.simulate import Analysis

DOCUMENTATION = """\
## What it does

Finds optimizers that step in a loop without anything that clears the gradients they step on between two updates; also
where only one of several parameter owners is cleared, and where another optimizer's loss fills the gradients after they
were cleared: a discriminator that is zeroed right behind its step keeps what the generator's loss leaves in it.

## Why is this bad?

Each update uses all micro-batches since the run began: window n holds n times k of them with weight 1, so the
gradient grows with every update and points to where the weights were long ago.

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

for epoch in range(3):
    for i, (x, y) in enumerate(loader):
        loss = criterion(model(x), y) / accumulation_steps
        loss.backward()
        if (i + 1) % accumulation_steps == 0:
            optimizer.step()
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

for epoch in range(3):
    for i, (x, y) in enumerate(loader):
        loss = criterion(model(x), y) / accumulation_steps
        loss.backward()
        if (i + 1) % accumulation_steps == 0:
            optimizer.step()
            optimizer.zero_grad()
```

## When it stays silent

- The gradients are cleared in a function, method, closure or hook that the loop calls, or by a framework.
- The optimizer comes from, or is handed to, code that cannot be seen and may clear them.
- The optimizer steps once and the program ends.
- Several steps follow with the gradient of one backward pass.
- Two losses reach the same parameters in one turn of the loop before these are updated: a trunk of several heads.
- Low confidence, shown with `--min-confidence low`: something has to be assumed, say that the optimizer is one of
  torch's, and the loop is none over a loader, or something in it may zero.

## Fix safety

Safe: `optimizer.zero_grad()` is added behind the step. Each update then uses its own window only; a learning rate
tuned with the growing gradients may have to be raised. Unsafe in a loop over the parts of one batch, and where the loss
is divided for a window: there the step may be what stands in the wrong place. What another loss leaves is to be
cleared by hand: zero right before the backward pass of the optimizer's own loss.

## References

- [torch.optim.Optimizer.zero_grad](https://docs.pytorch.org/docs/stable/generated/torch.optim.Optimizer.zero_grad.html)
"""


def check(analysis: Analysis) -> Iterator[Report]:
    yield from held(analysis, lambda run: _judge(analysis, run))


def _judge(analysis: Analysis, run: Run) -> list[Report]:
    found: dict[Span, Report] = {}
    seen = [(view, stale_windows(view)) for view in views(analysis, run)]
    zeroed = {id(view.lane.optimizer) for view, stale in seen if not stale}  # with some of its parameters, at least
    for view, stale in seen:
        if len(view.closed) < 2:
            continue
        if len(stale) < 0.5 * (len(view.closed) - 1):
            continue
        owner = view.lane.owner
        bare = owner.empty and names.is_criterion_name(owner.name)  # a loss function, which rarely has parameters
        if id(view.lane.optimizer) in zeroed and (view.lane.parts_unknown or bare):
            continue  # Those that it may hold are zeroed.
        zeros = [event for window in view.windows for event in window.zeros]
        inner = [event for event in zeros if any(loop.span == _update_loop(view) for loop, _ in event.loops)]
        if inner:
            continue
        update = view.closed[-1].update
        if update is None or not update.loops or update.loops[-1][0].kind == "call":
            continue
        where = "never zeroed" if not zeros else "zeroed only outside the loop that steps"
        whose = owner_phrase(view)
        if id(view.lane.optimizer) in zeroed:
            whose = f"`{owner.name}`, which {whose} updates, too,"
        level, assumptions = _sure(view)
        elsewhere = _zeroed_elsewhere(view)
        if elsewhere is not None:
            level = Confidence.LOW
            assumptions += (("what is done to gradients here is taken to leave these as they are", elsewhere.span),)
        found.setdefault(
            update.span,
            Report(
                update.span,
                f"the gradients of {whose} are {where}: each update also repeats the gradients of all updates "
                "before it, so update n is about n times too large",
                Severity.ERROR,
                level,
                notes=tuple(one for one in view.related() if one[1] != update.span),
                assumptions=assumptions,
                intents=_intents(view, update, zeros),
                evidence=view.proof(),
            ),
        )
    for view, stale in seen:
        report = _foreign(view) if not stale else None
        if report is not None:
            found.setdefault(report.span, report)
    return list(found.values())


def _foreign(view: View) -> Report | None:
    """An update that also holds what another optimizer's loss has left over: a generator's, in its discriminator.

    The gradients are zeroed, but before the other loss's backward pass, whose update has long been made by the time
    that these parameters are updated. Where the first update holds another loss, too, that may be meant: two losses
    share a trunk. And a file that says which parameters take gradients may well say it of these.
    """
    spent = _spent(view)
    if len(view.closed) < 2 or not spent or not spent.keys().isdisjoint(view.closed[0].row):
        return None
    cases: list[tuple[Event, Backward, Event]] = []
    for window in view.closed:
        own = [view.run.backwards[number] for number in window.row if number not in spent]
        others = [view.run.backwards[number] for number in window.row if number in spent]
        # Of a whole that both are parts of, nobody knows which of them a loss reaches.
        others = [one for one in others if any(owner.within(view.lane.owner) for owner in one.owners)]
        zeros = [zero for zero in window.zeros if others and zero.number < others[0].event.number]
        if window.update is None or not own or not zeros:
            continue
        left = [one for one in others if spent[one.number][0].number < own[0].event.number]
        left = [one for one in left if one.site != own[0].site and not same_turn(one.event, window.update)]
        if left:
            cases.append((window.update, left[-1], zeros[-1]))
    if len(cases) * 2 < len(view.closed):
        return None
    update, other, zero = cases[-1]
    guessed = any(term.guessed or term.reduction == "unknown" for term, _ in other.terms)
    level, assumptions = _sure(view)
    if view.run.freezes or guessed:
        level = Confidence.LOW
        assumptions += (("the other loss is taken to reach these parameters", other.span),)
    return Report(
        update.span,
        f"{owner_phrase(view)} also steps with gradients that the loss of `{spent[other.number][1]}` has left in its "
        "parameters: they are zeroed before that backward pass, and not between it and the next one",
        Severity.ERROR,
        level,
        notes=(("the other loss's backward call", other.span), ("zeroed here", zero.span)),
        assumptions=assumptions,
        intents=(Intent("display", "zero the gradients right before the backward pass of this optimizer's loss"),),
        evidence={**view.proof(), "trace": {}},  # its events do not say that one of them is another one's
    )


def _spent(view: View) -> dict[int, tuple[Event, str]]:
    """The backward calls that optimizers of other parameters have used: the first such update, and whose it was."""
    found: dict[int, tuple[Event, str]] = {}
    for lane in view.run.lanes if view.lane.optimizer is not None else ():
        if lane.optimizer in (None, view.lane.optimizer) or lane.owner.overlaps(view.lane.owner):
            continue
        for window in lane.windows:
            update = window.update
            for number in window.row if update is not None else ():
                if update is not None and (number not in found or update.number < found[number][0].number):
                    found[number] = (update, lane.name)
    return found


def _sure(view: View) -> tuple[Confidence, tuple[tuple[str, Span | None], ...]]:
    """How sure a report on a lane can be, and what it takes for granted.

    That nothing zeroes is a claim about all of the code: with anything left to assume, half of such reports were wrong.
    It is likelier in a loop over a loader in which nothing zeroes, not even where the run does not come to.
    """
    if view.handed_on is None:
        loop = view.run.loops.get(_update_loop(view) or NOWHERE)
        plain = len(view.assumptions) < 2 and loop is not None and _nothing_clears(view, loop)
        level = weaker(Confidence.MEDIUM if plain else Confidence.LOW, view.confidence)
        return level if view.assumptions else Confidence.HIGH, view.notes()
    told = (f"`{view.handed_on.data['what']}` is given the optimizer", view.handed_on.span)
    return Confidence.LOW, (*view.notes(), told)


def _nothing_clears(view: View, loop: Loop) -> bool:
    """Whether nothing in a loop over a loader may zero, unless the same is computed in another way there."""
    over_loader = loop.kind == "loader" or loop.fetched
    return over_loader and (not loop.clears or _zeroed_in_another_way(view, loop))


def _zeroed_in_another_way(view: View, loop: Loop) -> bool:
    """Whether the loop zeroes where the same is computed in another way: with fp16, say."""
    mine = next((path.flipped for path in view.texts.paths if view.run in (path.first, path.second)), "")
    for path in view.texts.paths:
        if path.flipped == mine or "" not in (path.flipped, mine):
            continue  # They differ in more than one condition.
        condition = path.first.conditions.get(path.flipped or mine)
        said = (view.texts.text(condition.text_span) if condition is not None else "") or path.flipped or mine
        zeroes = any(one.span == loop.span for zero in path.first.of("zero") for one, _ in zero.loops)
        if zeroes and names.is_way_of_computing(said):
            return True
    return False


def _intents(view: View, update: Event, zeros: list[Event]) -> tuple[Intent, ...]:
    """Zero behind the update; where an outer zeroing would cut windows in two, instead of it."""
    told = (
        "zero the gradients behind the update; a learning rate tuned with the growing gradients may have to be raised"
    )
    if not all(view.sizes):
        return (Intent("display", "update only where a backward pass has run since the last update, and then zero"),)
    ways: list[tuple[Action, ...]] = []
    if view.lane.optimizer is not None:
        ways.append((Zero(update.span, view.lane.optimizer.name),))
    if zeros:
        ways.append((Move(zeros[0].span, behind=update.span),))
    # Between the parts of a batch, or of a window that the loss is divided for, the update may be what stands wrong.
    divided = view.k == 1 and any(one.divisors for window in view.closed for one in view.backwards(window))
    unclear = bool(zeros) and (divided or update.loops[-1][0].kind in ("chunks", "list"))
    return tuple(Intent("unsafe" if unclear else "safe", told, way) for way in ways)


def _zeroed_elsewhere(view: View) -> Event | None:
    """What may zero these parameters in the loop: parts of an unknown module, or a module where the optimizer's are not
    known; or something unknown that is given gradients before the first backward pass of a window.
    """
    optimizer = view.lane.optimizer
    unknown = optimizer is not None and not optimizer.known and optimizer.parts is None
    for event in view.run.of("zero"):
        if any(loop.span == _update_loop(view) for loop, _ in event.loops):
            part = view.lane.owner.unseen and any(one.within(view.lane.owner) for one in event.data["owners"])
            if part or (unknown and event.data["optimizer"] is None):
                return event
    for before, window in pairwise(view.windows):
        first = next((one.event.number for one in view.backwards(window) if one.number not in before.row), None)
        for event in window.edits:
            if event.data.get("unsure") and first is not None and event.number < first:
                return event
    return None


def _update_loop(view: View) -> Span | None:
    """The innermost loop that updates as well as calls backward: an update by hand may loop over its parameters."""
    update = view.closed[-1].update
    trains = {loop.span for window in view.windows for one in view.backwards(window) for loop, _ in one.event.loops}
    around = [loop.span for loop, _ in update.loops if loop.span in trains] if update is not None else []
    return around[-1] if around else None


def stale_windows(view: View) -> list[int]:
    """The windows with gradients that an earlier update already used besides their own.

    Several updates with the gradient of one backward pass are meant so.
    """
    used: set[int] = set()
    found: list[int] = []
    for index, window in enumerate(view.closed):
        if used & set(window.row) and window.seen:
            found.append(index)
        used |= set(window.row)
    return found


RULE = Rule(
    code="ACC015",
    name="gradients-never-zeroed",
    category="window",
    severity=Severity.ERROR,
    fix="safe",
    summary="Gradients are not zeroed between two updates.",
    documentation=DOCUMENTATION,
    check=check,
)
