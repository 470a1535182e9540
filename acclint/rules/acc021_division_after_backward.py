"""ACC021 division-after-backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from acclint.findings import Confidence, Severity
from acclint.program import Span
from acclint.rules.acc001_missing_loss_division import undivided_sites
from acclint.rules.base import Action, Intent, Move, Report, Rule
from acclint.rules.rewrites import divide, smaller_gradient
from acclint.rules.windows import View, held, owner_phrase, scale_severity, views, weaker
from acclint.simulate.trace import Backward, Run

if TYPE_CHECKING:
    from acclint.simulate import Analysis

DOCUMENTATION = """\
## What it does

Finds divisions of the loss by the accumulation steps that come after the backward pass of the same loss, with no
other division.

## Why is this bad?

The gradients were computed from the undivided loss: they are exactly k times too large, as if there were no division
at all (see ACC001). Only the value that is logged is divided. A warning where every optimizer is scale-invariant.

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
        loss = criterion(model(x), y)
        loss.backward()
        loss = loss / accumulation_steps
        if (i + 1) % accumulation_steps == 0:
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

- The loss is divided before the backward pass too, or the gradients are divided before the step.
- The loss is a sum, or a framework divides.

## Fix safety

Safe: the division moves in front of the backward pass. The gradient becomes 1/k of what it was: a learning rate that
was tuned with the old code may have to be raised.

## References

- [torch.Tensor.backward](https://docs.pytorch.org/docs/stable/generated/torch.Tensor.backward.html):
  gradients accumulate in the leaves
- [Automatic mixed precision examples: gradient accumulation](https://docs.pytorch.org/docs/stable/notes/amp_examples.html#gradient-accumulation)
"""


def check(analysis: Analysis) -> Iterator[Report]:
    yield from held(analysis, lambda run: _judge(analysis, run))


def _judge(analysis: Analysis, run: Run) -> list[Report]:
    found: dict[Span, Report] = {}
    late = run.of("late division")
    if not late:
        return []
    for view in views(analysis, run):
        if view.k < 2:
            continue
        sent = {number for numbers in undivided_sites(view).values() for number in numbers}
        terms = {term: number for number in sent for term, _ in run.backwards[number].terms}
        for event in late:
            value, named, _ = event.data["divisor"]
            if not (named or value == view.k) or not any(term in terms for term in event.data["terms"]):
                continue
            number = next(terms[term] for term in event.data["terms"] if term in terms)
            several = len({view.run.backwards[one].site for window in view.full for one in window.seen}) > 1
            part = "what this loss adds to the gradient of" if several else "the gradient that reaches"
            found.setdefault(
                event.span,
                Report(
                    event.span,
                    f"the loss is divided by {view.k_phrase()} after backward: {part} "
                    f"{owner_phrase(view)} was computed from the undivided loss and is {view.k}.00x too large "
                    f"(k = {view.k})",
                    scale_severity(view),
                    weaker(view.confidence, _evidence(view, value)),
                    notes=(("backward runs here, on the undivided loss", run.backwards[number].span), *view.related()),
                    assumptions=view.notes(),
                    intents=_intents(view, event.span, run.backwards[number]),
                    evidence=view.proof(),
                ),
            )
    return list(found.values())


def _intents(view: View, division: Span, backward: Backward) -> tuple[Intent, ...]:
    ways: list[tuple[str, tuple[Action, ...]]] = [
        ("divide before the backward pass", (Move(division, before=backward.span),)),
        ("divide in the backward call", divide([backward], view.k_place)),
    ]
    return tuple(Intent("safe", f"{told}: {smaller_gradient(view)}", actions) for told, actions in ways)


def _evidence(view: View, divisor: object) -> Confidence:
    """That the loss is divided by the number of backward calls of an update is evidence of its own."""
    micro = view.micro
    own = divisor == view.k and micro is not None and micro.kind != "call"
    return Confidence.MEDIUM if own and view.evidence is Confidence.LOW else view.evidence


RULE = Rule(
    code="ACC021",
    name="division-after-backward",
    category="gradient",
    severity=Severity.ERROR,
    fix="safe",
    summary="The loss is divided by the accumulation steps after `backward()`, when it is too late.",
    documentation=DOCUMENTATION,
    check=check,
)
