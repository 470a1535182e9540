"""ACC014 gradients-added-by-hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from acclint.findings import Confidence, Severity
from acclint.program import Span
from acclint.rules.base import Intent, Report, Rule
from acclint.rules.windows import held
from acclint.simulate.trace import Run

if TYPE_CHECKING:
    from acclint.simulate import Analysis

DOCUMENTATION = """\
## What it does

Finds sums of `p.grad` over micro-batches (into a list, a dictionary, a buffer) in loops that do not clear `p.grad`
before each backward pass.

## Why is this bad?

`.grad` is already the sum of the micro-batches so far, so a sum of `.grad` counts the first micro-batch k times, the
second k - 1 times, and so on: for k = 5 the weights are 5, 4, 3, 2, 1, in total k(k + 1)/2 = 15 instead of 5. Size
and direction are both wrong (measured against the mean gradient for k = 5, without a division: ratio 9.5, cosine
.857), for every optimizer.

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
sums = [torch.zeros_like(p) for p in model.parameters()]

for epoch in range(3):
    for i, (x, y) in enumerate(loader):
        loss = criterion(model(x), y) / accumulation_steps
        loss.backward()
        for total, p in zip(sums, model.parameters()):
            total += p.grad
        if (i + 1) % accumulation_steps == 0:
            for total, p in zip(sums, model.parameters()):
                p.grad.copy_(total)
                total.zero_()
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

- `p.grad` is cleared before each backward pass, so that the hand-made sum is the only one.
- The gradients come from `torch.autograd.grad`, which does not accumulate.
- The gradients are only read: for a norm, for logging.

## Fix safety

Advice only: either drop the hand-made sum and use `.grad`, or clear `p.grad` after it has been added.

## References

- [torch.Tensor.backward](https://docs.pytorch.org/docs/stable/generated/torch.Tensor.backward.html):
  gradients accumulate in the leaves
"""


def check(analysis: Analysis) -> Iterator[Report]:
    yield from held(analysis, _judge)


def _judge(run: Run) -> list[Report]:
    found: dict[Span, Report] = {}
    closed = [window for lane in run.lanes for window in lane.windows if window.update is not None]
    if closed and not any(window.row for window in closed):
        return []  # Nothing is stepped on at all: another mistake.
    # An update that it reaches: not that of an optimizer that holds other parameters.
    reached = {
        event.span
        for event in run.of("hand added")
        for window in closed
        if window.update is not None
        and window.update.number > event.number
        and not window.row.keys().isdisjoint(event.data["numbers"])
    }
    written = reached & {span for event in run.of("edit", "update") for span in event.data.get("added", ())}
    for event in run.of("hand added"):
        if event.span in found or not event.loops:
            continue
        # Where the updates use `.grad` itself, the sum may be meant for a log.
        level = Confidence.HIGH if event.span in written else Confidence.LOW if run.of("update") else Confidence.MEDIUM
        around = {loop for loop, _ in event.loops}
        numbers = [
            number
            for number in event.data["numbers"]
            if any(loop in around for loop, _ in run.backwards[number].event.loops)
        ]
        if not numbers:
            continue  # What is added again was left by another loop, and nothing in this one adds to it.
        first = run.backwards[numbers[0]]
        found[event.span] = Report(
            event.span,
            "`p.grad` already holds the sum of the window's gradients and is added again: the first of k micro-batches "
            "counts k times, the last once (k, k-1, ..., 1)",
            Severity.ERROR,
            level,
            notes=(("backward adds to p.grad", first.span),),
            intents=(
                Intent(
                    "display",
                    "either drop the sum made by hand and use `.grad`, or clear `.grad` after it was added; both give "
                    "each micro-batch the same weight",
                ),
            ),
            evidence={"scope": list((first.event.loops or event.loops)[-1][0].span)},
        )
    return list(found.values())


RULE = Rule(
    code="ACC014",
    name="gradients-added-by-hand",
    category="gradient",
    severity=Severity.ERROR,
    fix="display",
    summary="Gradients are added up by hand although `.grad` already adds them up.",
    documentation=DOCUMENTATION,
    check=check,
)
