"""ACC023 frozen-window-counter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from acclint import program as p
from acclint.findings import Confidence, Severity
from acclint.program import Span
from acclint.rules.base import Report, Rule
from acclint.rules.windows import held
from acclint.simulate.scan import bodies, children, expressions, text
from acclint.simulate.trace import Event, Run
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
sees k times as many.

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
        if _stands_still(events) and _only_update_counts(analysis, run, events[0]):
            found.append(_report(analysis, run, span, events))
    return found


def _stands_still(events: list[Event]) -> bool:
    """Whether a window test is decided the same way for good (but perhaps for the first time) by a constant counter."""
    k = events[0].data["modulus"]
    if not isinstance(k, int) or k < 2 or not events[-1].loops or events[-1].loops[-1][0].kind == "call":
        return False
    loop = events[-1].loops[-1][0]
    same = [event for event in events if any(one.span == loop.span for one, _ in event.loops)]
    if len(same) < 2 * k:
        return False
    tail = same if same[0].data["outcome"] == same[1].data["outcome"] else same[1:]
    counters = [event.data["counter"] for event in tail]
    if any(numeric(one) is None or roots_of(one) for one in counters):
        return False
    return len({event.data["outcome"] for event in tail}) == 1 and len({numeric(one) for one in counters}) == 1


def _only_update_counts(analysis: Analysis, run: Run, test: Event) -> bool:
    """Whether the update and the counting both wait for the test, in its block or behind the jump it guards."""
    stmt = test.data["stmt"]
    waiting: list[p.Stmt] = [*stmt.body, *stmt.orelse]
    if stmt.body and isinstance(stmt.body[-1], (p.Continue, p.Return)) and not stmt.orelse:
        waiting = _behind(analysis.program.body, stmt)
    updates = [event for event in run.of("update") if any(guard.span == test.span for guard in event.guards)]
    if len(updates) > 1:
        return False
    steps, counts = False, False
    read = _variables(stmt.test)
    for one in _reached(analysis, waiting):
        steps = steps or "step" in {expr.name for expr in _inside(one) if isinstance(expr, p.Attr)}
        if isinstance(one, p.Augment):
            counts = counts or text(one.target) in read
        elif isinstance(one, p.Assign):
            counts = counts or any(text(target) in read for target in one.targets)
    return steps and counts


def _variables(test: p.Expr) -> set[str]:
    found: set[str] = set()
    todo = [test]
    while todo:
        one = todo.pop()
        if isinstance(one, (p.Name, p.Attr, p.Index)):
            found.add(text(one))
        if not isinstance(one, p.Attr):
            todo += children(one)
    return found


def _inside(stmt: p.Stmt) -> list[p.Expr]:
    """The expressions of a statement, nested ones too, without those of the statements inside it."""
    found: list[p.Expr] = []
    todo = list(expressions(stmt))
    while todo:
        one = todo.pop()
        found.append(one)
        todo += children(one)
    return found


def _behind(body: tuple[p.Stmt, ...], stmt: p.Stmt) -> list[p.Stmt]:
    """The statements after `stmt` in the block that holds it."""
    todo = [body]
    while todo:
        block = todo.pop()
        for i, one in enumerate(block):
            if one is stmt:
                return list(block[i + 1 :])
            todo += bodies(one)
            if isinstance(one, p.Define):
                todo.append(one.function.body)
            elif isinstance(one, p.Class):
                todo.append(one.body)
    return []


def _reached(analysis: Analysis, block: list[p.Stmt]) -> list[p.Stmt]:
    """The statements of a block, nested ones too, and those of the functions and methods of the file that it calls."""
    defined: dict[str, list[p.Function]] = {}
    todo = list(analysis.program.body)
    while todo:
        one = todo.pop()
        todo += [inner for part in bodies(one) for inner in part]
        if isinstance(one, p.Define):
            defined.setdefault(one.function.name, []).append(one.function)
            todo += one.function.body
        elif isinstance(one, p.Class):
            todo += one.body
    found: list[p.Stmt] = []
    todo, seen = list(block), set[str]()
    while todo:
        one = todo.pop()
        found.append(one)
        todo += [inner for part in bodies(one) for inner in part]
        for expr in _inside(one):
            func = expr.func if isinstance(expr, p.Call) else None
            if isinstance(func, p.Attr) and text(func.value) not in ("self", "cls"):
                continue
            name = func.id if isinstance(func, p.Name) else func.name if isinstance(func, p.Attr) else ""
            if name and name not in seen:
                seen.add(name)
                todo += [inner for function in defined.get(name, ()) for inner in function.body]
    return found


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
        evidence={"scope": list(events[-1].loops[-1][0].span)},
    )


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
