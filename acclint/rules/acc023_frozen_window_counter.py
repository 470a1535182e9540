"""ACC023 frozen-window-counter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from acclint.findings import Confidence, Severity
from acclint.program import Span
from acclint.rules.base import Action, Intent, Move, Report, Rule, Shift
from acclint.rules.windows import held
from acclint.simulate.trace import Backward, Event, Run
from acclint.simulate.values import numeric, roots_of

if TYPE_CHECKING:
    from acclint.simulate import Analysis

DOCUMENTATION = """\
## What it does

Finds window tests on a counter that changes only inside the block that the test guards.

## Why is this bad?

The counter waits for the update and the update waits for the counter. With `(updates + 1) % k == 0` there is never an
update, with `updates % k == 0` there is one, at the first micro-batch, and none after it: measured 0 and 1 updates in
8 micro-batches. The loss is computed and logged, the weights do not move.

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
updates = 0

for epoch in range(3):
    for x, y in loader:
        loss = criterion(model(x), y) / accumulation_steps
        loss.backward()
        if (updates + 1) % accumulation_steps == 0:
            optimizer.step()
            optimizer.zero_grad()
            updates += 1
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
micro_batches = 0

for epoch in range(3):
    for x, y in loader:
        loss = criterion(model(x), y) / accumulation_steps
        loss.backward()
        micro_batches += 1
        if micro_batches % accumulation_steps == 0:
            optimizer.step()
            optimizer.zero_grad()
```

## When it stays silent

- The counter is raised for every micro-batch, here or in a function that the loop calls.
- The guarded block only resets a counter that is raised outside it.

## Fix safety

Unsafe: the counter is raised for each micro-batch instead, and whatever else reads it as a number of updates then
sees k times as many. A counter that is raised in another function than backward is left alone.

## References

- [Automatic mixed precision examples: gradient accumulation](https://docs.pytorch.org/docs/stable/notes/amp_examples.html#gradient-accumulation)
"""


def check(analysis: Analysis) -> Iterator[Report]:
    yield from held(analysis, lambda run: _judge(analysis, run))


def _judge(analysis: Analysis, run: Run) -> list[Report]:
    found: list[Report] = []
    tests: dict[Span, list[Event]] = {}
    for event in run.of("test"):
        tests.setdefault(event.span, []).append(event)
    for span, events in tests.items():
        if _stands_still(events) and _only_update_counts(run, events[0]) and _trains(run, events[-1]):
            found.append(_report(analysis, run, span, events))
    return found


def _stands_still(events: list[Event]) -> bool:
    """Whether a window test is decided the same way for good (but perhaps for the first time) by a constant counter."""
    k = events[0].data["modulus"]
    if not isinstance(k, int) or k < 2 or not events[-1].loops or events[-1].loops[-1][0].kind == "call":
        return False
    loop = events[-1].loops[-1][0]
    same = [event for event in events if any(one.span == loop.span for one, _ in event.loops)]
    around = {one for event in same for one, _ in event.loops if one.span == loop.span}
    whole = len(same) > 2 * len(around) and all(one.ended and one.known_length and not one.cut for one in around)
    if len(same) < 2 * k and not whole:
        return False
    tail = same if same[0].data["outcome"] == same[1].data["outcome"] else same[1:]
    counters = [event.data["counter"] for event in tail]
    if any(numeric(one) is None or roots_of(one) for one in counters):
        return False
    return len({event.data["outcome"] for event in tail}) == 1 and len({numeric(one) for one in counters}) == 1


def _trains(run: Run, test: Event) -> bool:
    """Whether backward is called in the loop of a test."""
    loop = test.loops[-1][0].span
    return any(loop == one.span for backward in run.backwards for one, _ in backward.event.loops)


def _only_update_counts(run: Run, test: Event) -> bool:
    """Whether the update and the counting both wait for the test, in its block or behind the jump it guards."""
    updates = [event for event in run.of("update") if any(guard.span == test.span for guard in event.guards)]
    return bool(len(updates) < 2 and test.data["steps"] and test.data["sets"])


def _report(analysis: Analysis, run: Run, span: Span, events: list[Event]) -> Report:
    happened = events[0].data["outcome"] != events[-1].data["outcome"]
    what = "only one update ever runs" if happened else "no update ever runs"
    backwards = [
        one for one in run.backwards if one.event.loops and one.event.loops[-1][0].span == events[-1].loops[-1][0].span
    ]
    notes = (("gradients are added here", backwards[0].span),) if backwards else ()
    return Report(
        span,
        "the counter in this window test is only raised inside the block that the test guards, so it stands still: "
        + what,
        Severity.ERROR,
        Confidence.HIGH,
        notes=notes,
        intents=_intents(events, backwards),
        evidence={"scope": list(events[-1].loops[-1][0].span)},
    )


def _last_of_turn(backwards: list[Backward]) -> Span:
    """The last backward call of the first micro-batch."""
    turn = backwards[0].event.loops
    return [one.span for one in backwards if one.event.loops == turn][-1]


def _intents(events: list[Event], backwards: list[Backward]) -> tuple[Intent, ...]:
    """Raise the counter behind the backward pass of each micro-batch; the test then sees it one further."""
    told = "raise the counter for each micro-batch; whatever reads it as a number of updates then sees k times as many"
    raises, test = events[0].data["raises"], events[0].span
    if len(raises) != 1 or not backwards:
        return (Intent("display", told),)
    (at,) = raises
    move = Move(at, behind=_last_of_turn(backwards))
    ways: tuple[tuple[Action, ...], ...] = ((move,), (move, Shift(test, -1)))
    return tuple(Intent("unsafe", told, way, regroups=True) for way in ways)


RULE = Rule(
    code="ACC023",
    name="frozen-window-counter",
    category="window",
    severity=Severity.ERROR,
    fix="unsafe",
    summary="The window test looks at a counter that only the update itself raises.",
    documentation=DOCUMENTATION,
    check=check,
)
