"""ACC006 shifted-window."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from acclint.findings import Confidence, Severity
from acclint.rules.base import Report, Rule
from acclint.rules.windows import View, held, owner_phrase, views, weaker
from acclint.simulate.trace import Guard, Run

if TYPE_CHECKING:
    from acclint.simulate import Analysis

DOCUMENTATION = """\
## What it does

Finds window tests that fire at the wrong micro-batch: at the first one (`i % k == 0` with i from 0), at every one but
the last (the truth value of `i % k`), at changing distances (k is reassigned while the loop runs), or under a test
that belongs to something else (logging, a progress bar).

## Why is this bad?

With `i % k == 0` the first update is made from one micro-batch with weight 1/k, and every later window is shifted by
one, so that k - 1 micro-batches are left over at the end. An inverted test updates on k - 1 of k micro-batches with
incomplete gradients. Inside accelerate's `accumulate()` the test `i % k == 0` never meets the end of the window: no
update at all.

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
        if i % accumulation_steps == 0:
            optimizer.step()
            optimizer.zero_grad()
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

- The counter starts at 1, or is raised before the test.
- The test stands before the backward pass and closes the previous window.
- Only the zeroing is under `i % k == 0`, at the head of the window.
- The distance is measured from the last update (`i - last_update >= k`).

## Fix safety

Safe for a window that is off by one or inverted: the test becomes `(i + 1) % k == 0`, and the updates fall on full
windows. Unsafe for the others, whose intention is not certain.

## References

- [Automatic mixed precision examples: gradient accumulation](https://docs.pytorch.org/docs/stable/notes/amp_examples.html#gradient-accumulation)
"""


def check(analysis: Analysis) -> Iterator[Report]:
    yield from held(analysis, lambda run: _judge(analysis, run))


def _judge(analysis: Analysis, run: Run) -> list[Report]:
    found: list[Report] = []
    for view in views(analysis, run):
        gate = view.gate
        if gate is None or view.micro is None or view.micro.kind == "call":
            continue
        sizes = [size for size in view.sizes if size > 0]
        report = _shifted(view, gate, sizes) or _inverted(view, gate, sizes)
        if report is not None:
            found.append(report)
    return found


def _shifted(view: View, gate: Guard, sizes: list[int]) -> Report | None:
    """The first window is shorter than the others, which are all right."""
    if view.k < 2 or len(sizes) < 2 or sizes[0] >= view.k or sizes[1] != view.k or gate.modulus != view.k:
        return None
    first = next(window for window in view.closed if window.seen)
    total = 0.0
    for backward in view.backwards(first):
        term, weight = view.effective(first, backward)
        if term is not None and backward.site == view.backwards(first)[0].site:
            total += abs(float(weight))
    if view.scale_known and abs(total - 1) < 1e-6 and sizes[0] > 1:
        return None
    return Report(
        gate.span,
        f"the window test is already true after {sizes[0]} micro-batch{'es' if sizes[0] > 1 else ''}: the first update of "
        f"{owner_phrase(view)} sums {sizes[0]} of {view.k_phrase()} micro-batches and every later window is shifted",
        Severity.WARNING,
        weaker(view.confidence, Confidence.HIGH),
        notes=tuple(one for one in view.related() if one[1] != gate.span),
        assumptions=view.notes(),
        evidence=view.proof(),
    )


def _inverted(view: View, gate: Guard, sizes: list[int]) -> Report | None:
    """The update runs on every micro-batch except the boundary."""
    modulus = gate.modulus
    if (
        not isinstance(modulus, int)
        or modulus < 3
        or len(sizes) < modulus
        or not set(sizes) <= {1, 2}
        or 2 not in sizes
    ):
        return None
    total = sum(sizes)
    expected = total * (modulus - 1) / modulus
    if abs(len(sizes) - expected) > 2:
        return None
    return Report(
        gate.span,
        f"the window test is the wrong way round: {owner_phrase(view)} is stepped on every micro-batch except each "
        f"{view.k_text or modulus}-th",
        Severity.ERROR,
        weaker(view.confidence, Confidence.HIGH),
        notes=tuple(one for one in view.related() if one[1] != gate.span),
        assumptions=view.notes(),
        evidence=view.proof(),
    )


RULE = Rule(
    code="ACC006",
    name="shifted-window",
    category="window",
    severity=Severity.WARNING,
    fix="safe",
    summary="The test for the end of the window is off by one, inverted, varying or about something else.",
    documentation=DOCUMENTATION,
    check=check,
)
