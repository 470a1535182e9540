"""ACC031 deferred-backward."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from acclint.findings import Confidence, Severity
from acclint.program import Span
from acclint.rules.base import Intent, Report, Rule
from acclint.rules.windows import held, own_data, turning, views, weaker
from acclint.simulate.trace import Run
from acclint.simulate.values import Term

if TYPE_CHECKING:
    from acclint.simulate import Analysis

DOCUMENTATION = """\
## What it does

Finds windows whose losses are added up as tensors with one backward pass at the end.

## Why is this bad?

The gradient is right (relative difference 1.8e-16). But the graphs of all k micro-batches, with their activations,
are alive until the window ends: 7.7, 15.4, 30.8 and 61.6 MB after 1, 2, 4 and 8 micro-batches, where one backward
pass per micro-batch frees them each time. The window needs as much memory as the large batch it was meant to replace.

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
    window_loss = 0.0
    for i, (x, y) in enumerate(loader):
        loss = criterion(model(x), y) / accumulation_steps
        window_loss = window_loss + loss
        if (i + 1) % accumulation_steps == 0:
            window_loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            window_loss = 0.0
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

- The sum is over several losses of one batch, or over the time steps of one sequence.
- The sum is not passed to `backward()` (ACC005).

## Fix safety

Advice only: call `backward()` on each micro-batch's loss. The gradients stay the same unless the losses depend on
each other.

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
            for backward in view.backwards(window):
                by_site: dict[tuple[Span, ...], list[Term]] = {}
                for term, _ in backward.terms:
                    by_site.setdefault(term.site, []).append(term)
                for group in by_site.values():
                    loops = [turning(one.loops, other.loops) for one, other in pairwise(group)]
                    loop = next((one for one in loops if one is not None), None)
                    if loop is None or not _independent(run, group) or backward.span in found:
                        continue
                    found[backward.span] = Report(
                        backward.span,
                        f"the losses of {len(group)} micro-batches are summed and backward runs once on the sum: the "
                        "gradients "
                        "are right, but every micro-batch's graph is held until then, so accumulation saves no memory",
                        Severity.INFO,
                        weaker(
                            view.confidence,
                            Confidence.HIGH if loop.kind == "loader" or loop.fetched else Confidence.MEDIUM,
                        ),
                        notes=(
                            ("the loop over micro-batches", loop.span),
                            ("each loss is computed here", group[0].span),
                        ),
                        intents=(
                            Intent(
                                "display",
                                "call backward on each micro-batch's loss in the loop, with the same factor: the "
                                "gradients stay as they are, and only one graph is held at a time",
                            ),
                        ),
                        evidence=view.proof(),
                    )
    return list(found.values())


def _independent(run: Run, group: list[Term]) -> bool:
    """Whether the losses come from different data, and none from another one's data as well (a state carried on).

    Views of one batch (with other noise in each) are one micro-batch; chunks, slices and rows of it are several.
    """
    data = [own_data(term) for term in group]
    parts = {term.data & run.cuts for term in group}
    apart = all(not one & other for one, other in pairwise(data)) and all(data)
    if len({term.fetch for term in group}) < 2 and len(parts) < 2 and not apart:
        return False
    return not any(one < other for one, other in pairwise(data))


RULE = Rule(
    code="ACC031",
    name="deferred-backward",
    category="memory",
    severity=Severity.INFO,
    fix="display",
    summary="The losses of a window are summed and passed to `backward()` once: right gradients, no memory saved.",
    documentation=DOCUMENTATION,
    check=check,
)
