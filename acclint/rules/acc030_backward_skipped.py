"""ACC030 backward-skipped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from acclint.findings import Confidence, Severity
from acclint.program import Span
from acclint.rules.base import Report, Rule
from acclint.rules.windows import held, owner_phrase, views, weaker
from acclint.simulate.trace import Backward, Guard, Run
from acclint.simulate.values import Term

if TYPE_CHECKING:
    from acclint.simulate import Analysis

DOCUMENTATION = """\
## What it does

Finds windows in which every micro-batch is run forward but only the last one's loss is passed to `backward()`.

## Why is this bad?

The gradient is that of one micro-batch: the weights are 0, 0, 0, 1 for k = 4, and with the division by k the update
is a quarter of one micro-batch's gradient. (k - 1)/k of the forward passes are computed for nothing; the effective
batch is the micro-batch.

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
        if (i + 1) % accumulation_steps == 0:
            loss.backward()
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

- The losses of the window are summed and the sum is passed to `backward()` (ACC031).
- The whole pass, forward included, is under the test, as for a generator that is trained every n-th batch.
- The other forward passes run under `torch.no_grad()`.

## Fix safety

Advice only: either `backward()` moves out of the test, or the forward passes that are not used do not run.

## References

- [torch.Tensor.backward](https://docs.pytorch.org/docs/stable/generated/torch.Tensor.backward.html):
  gradients accumulate in the leaves
"""


def check(analysis: Analysis) -> Iterator[Report]:
    yield from held(analysis, lambda run: _judge(analysis, run))


def _judge(analysis: Analysis, run: Run) -> list[Report]:
    found: dict[Span, Report] = {}
    for view in views(analysis, run):
        for window in view.closed:
            if window.update is None:
                continue
            around = {guard.span for guard in window.update.guards}
            for backward in view.backwards(window):
                guard = _window_guard(backward, around)
                if guard is None or backward.span in found or len(backward.terms) != 1:
                    continue
                term = backward.terms[0][0]
                wasted = _wasted(run, term)
                sent = sum(1 for one in run.terms if one.site == term.site and one.sent)
                if wasted < sent or wasted < 3:
                    continue
                known = term.reduction in ("mean", "sum") and term.why not in ("loss", "output", "outputs")
                level = Confidence.HIGH if known else Confidence.MEDIUM
                found[backward.span] = Report(
                    backward.span,
                    f"backward runs only on the last micro-batch of a window: the losses of the others are computed and thrown "
                    f"away, so each update of {owner_phrase(view)} sees 1 of {view.texts.moduli and _k(analysis, guard) or guard.modulus} micro-batches",
                    Severity.ERROR,
                    weaker(view.confidence, level),
                    notes=(("the window test", guard.span), ("the loss is computed here every time", term.span)),
                    assumptions=view.notes(),
                    evidence=view.proof(),
                )
    return list(found.values())


def _k(analysis: Analysis, guard: Guard) -> str:
    from acclint.rules.windows import inside

    for span, text in analysis.moduli.items():
        if inside(span, guard.span):
            return f"`{text}`"
    return ""


def _window_guard(backward: Backward, around: set[Span]) -> Guard | None:
    """A window test that guards both the backward call and the update."""
    for guard in reversed(backward.event.guards):
        if guard.modulus is not None and guard.span in around and isinstance(guard.modulus, int) and guard.modulus > 1:
            return guard
    return None


def _wasted(run: Run, term: Term) -> int:
    """Loss values of the same expression that no backward call used."""
    return sum(1 for one in run.terms if one.site == term.site and not one.sent)


RULE = Rule(
    code="ACC030",
    name="backward-skipped",
    category="window",
    severity=Severity.ERROR,
    fix="display",
    summary="`backward()` is called only at the end of the window, so the other micro-batches count for nothing.",
    documentation=DOCUMENTATION,
    check=check,
)
