"""ACC001 missing-loss-division."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from acclint.findings import Confidence, Severity
from acclint.program import Span
from acclint.rules.base import Report, Rule
from acclint.rules.straight import straight_calls
from acclint.rules.windows import View, held, inside, own_data, owner_phrase, scale_severity, views, weaker
from acclint.simulate.trace import Backward, Run
from acclint.simulate.values import numeric, roots_of

if TYPE_CHECKING:
    from acclint.simulate import Analysis

DOCUMENTATION = """\
## What it does

Finds accumulation windows in which each micro-batch's loss is a mean and nothing divides it, or its gradient, by the
number of micro-batches in the window, k.

## Why is this bad?

`backward()` adds to `.grad`. The sum of k mean gradients is k times the gradient of the large batch: the ratio is
exactly k, the direction is right. SGD then works with k times the learning rate; weight decay and clipping thresholds
no longer fit. Adam and its relatives hardly notice a constant factor (end point off by 1e-6), so the finding is a
warning where every optimizer is scale-invariant, unless coupled weight decay (end point off by 12 %), a large `eps`
or clipping is in play.

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
        loss = criterion(model(x), y)
        (loss / accumulation_steps).backward()
        if (i + 1) % accumulation_steps == 0:
            optimizer.step()
            optimizer.zero_grad()
```

## When it stays silent

- The loss is a sum (`reduction="sum"`, `.sum()`), or is multiplied by the batch size.
- The gradients are divided between the last backward pass and the step, or the learning rate is divided by k (plain
  SGD without weight decay only).
- A framework divides: `accelerator.backward`, a DeepSpeed engine, Lightning's automatic optimization, the
  transformers Trainer.
- Several backward passes serve one batch (several losses, a GAN's real and fake halves).

## Fix safety

Safe. Only the expression that is passed to `backward` changes, so logged losses keep their value. The gradient
becomes 1/k of what it was: a learning rate that was tuned with the old code may have to be raised.

## References

- [torch.Tensor.backward](https://docs.pytorch.org/docs/stable/generated/torch.Tensor.backward.html):
  gradients accumulate in the leaves
- [Automatic mixed precision examples: gradient accumulation](https://docs.pytorch.org/docs/stable/notes/amp_examples.html#gradient-accumulation)
"""


_RATE = re.compile(r"(^|[^a-z])(lr|rate|learning_rate)([^a-z]|$)", re.IGNORECASE)


def check(analysis: Analysis) -> Iterator[Report]:
    yield from held(analysis, lambda run: _judge(analysis, run))


def _judge(analysis: Analysis, run: Run) -> list[Report]:
    found: list[Report] = []
    for view in views(analysis, run):
        if view.k < 2:
            calls = straight_calls(view)
            if calls and not _divided_rate(view) and not _compared_rate(view, len(calls)):
                found.append(_straight(view, calls))
            continue
        for report in _undivided(view):
            found.append(report)
    return found


def _compared_rate(view: View, k: int) -> bool:
    """Whether plain SGD has a k-th of the rate of another one in the file: the rate was divided by hand."""
    optimizer = view.lane.optimizer
    rate = numeric(optimizer.lr) if optimizer is not None and optimizer.plain_sgd else None
    others = [numeric(one.lr) for one in view.run.optimizers if one is not optimizer]
    if not rate:
        return False
    return any(other is not None and abs(other - k * rate) < 1e-9 * k * rate for other in others)


def _straight(view: View, calls: list[Backward]) -> Report:
    """The parts of a batch are written out: the number of parts is k."""
    k = len(calls)
    return Report(
        calls[0].span,
        f"the batch is cut into {k} parts with a backward pass each, and their mean losses are not divided by {k}: the "
        f"gradient that reaches {owner_phrase(view)} is {k} times too large",
        scale_severity(view),
        weaker(view.confidence, Confidence.MEDIUM),
        notes=(*((f"part {i} of {k}", call.span) for i, call in enumerate(calls[1:], 2)), *view.related()),
        assumptions=tuple(view.notes()),
        evidence=view.proof(),
    )


def _divided_rate(view: View) -> bool:
    """Plain SGD without weight decay: a learning rate divided by k is the division."""
    optimizer = view.lane.optimizer
    if optimizer is None:
        return True
    if not optimizer.plain_sgd:
        return False
    if roots_of(optimizer.lr) & {"over k", *view.run.k_names}:
        return True
    # The same expression divides a rate, whatever it is called: in the optimizer's call or before it.
    return any(
        text == view.k_text and (inside(span, optimizer.span) or _RATE.search(view.texts.text(span).partition("/")[0]))
        for span, text in view.texts.divisors.items()
    )


def undivided_sites(view: View) -> dict[tuple[Span, ...], list[int]]:
    """The backward sites whose mean loss enters every full window with weight 1 a micro-batch, with their numbers."""
    if _divided_rate(view):
        return {}
    suspects: dict[tuple[Span, ...], list[int]] = {}
    cleared: set[tuple[Span, ...]] = set()
    for window in view.full:
        by_site: dict[tuple[Span, ...], list[int]] = {}
        for backward in view.backwards(window):
            if not backward.replay:
                by_site.setdefault(backward.site, []).append(backward.number)
        for site, numbers in by_site.items():
            group = [view.run.backwards[number] for number in numbers]
            if len(group) < 2 or any(window.row.get(number, 0) == 0 for number in numbers):
                cleared.add(site)
                continue
            if any(not one.known_scale for one in group) or any(event.data.get("unsure") for event in window.edits):
                cleared.add(site)
                continue
            seen = {own_data(term) for one in group for term, _ in one.terms}
            if len(seen) == 1 and len(next(iter(seen))) >= len(group):
                cleared.add(site)  # Each call sees the data of the whole window (a replay): there is nothing to divide.
                continue
            weights = [view.effective(window, one) for one in group]
            means = all(term is not None and term.reduction in ("mean", "unknown") for term, _ in weights)
            if means and all(abs(abs(float(weight)) - 1) < 1e-6 for _, weight in weights):
                suspects.setdefault(site, []).extend(numbers)
            else:
                cleared.add(site)
    return {site: numbers for site, numbers in suspects.items() if site not in cleared}


def _undivided(view: View) -> Iterator[Report]:
    for numbers in undivided_sites(view).values():
        backward = view.run.backwards[numbers[0]]
        term = max(backward.terms, key=lambda one: abs(float(one[1])))[0]
        levels = [view.confidence, view.evidence]
        assumptions = list(view.notes())
        if term.reduction == "unknown":
            plain = any(word in term.why.lower() for word in ("loss", "criterion", "crit", "cost"))
            levels.append(Confidence.MEDIUM if plain else Confidence.LOW)
            assumptions.append(
                (f"the loss is taken as a mean over the micro-batch (`{term.why}` is not known)", term.span)
            )
        elif term.why in ("loss", "output", "outputs"):
            levels.append(Confidence.MEDIUM)
            assumptions.append(("the model's loss is taken as a mean over the micro-batch", term.span))
        k = view.k_phrase()
        times = f"{k} times" if k.startswith("`") else f"{view.k} times"
        example = f"; with {view.k_text} = {view.k}: {view.k}.00x" if k.startswith("`") else f" ({view.k}.00x)"
        severity = scale_severity(view)
        harm = ""
        if severity.value == "warning" and view.lane.optimizer is not None:
            kind = view.lane.optimizer.kind.rpartition(".")[2]
            harm = f"; {kind} cancels a constant factor in its update, but not in clipping, logging or eps"
        yield Report(
            backward.span,
            f"the mean loss is not divided by the number of accumulated micro-batches: the gradient that reaches "
            f"{owner_phrase(view)} is {times} too large{example}{harm}",
            severity,
            weaker(*levels),
            notes=tuple(view.related()),
            assumptions=tuple(assumptions),
            evidence=view.proof(),
        )


RULE = Rule(
    code="ACC001",
    name="missing-loss-division",
    category="gradient",
    severity=Severity.ERROR,
    fix="safe",
    summary="The mean loss of each micro-batch is not divided by the number of accumulated micro-batches.",
    documentation=DOCUMENTATION,
    check=check,
)
