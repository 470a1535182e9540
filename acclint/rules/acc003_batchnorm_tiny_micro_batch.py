"""ACC003 batchnorm-tiny-micro-batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from acclint.findings import Confidence, Severity
from acclint.program import Span
from acclint.rules.base import Intent, Report, Rule
from acclint.rules.windows import View, held, views, weaker
from acclint.simulate.trace import Run
from acclint.simulate.values import Num, numeric, roots_of

if TYPE_CHECKING:
    from acclint.simulate import Analysis

DOCUMENTATION = """\
## What it does

Finds accumulation over micro-batches of at most 8 samples with a model that has BatchNorm layers in training mode.

## Why is this bad?

Accumulation makes the gradient's batch large, not the batch that BatchNorm normalises over. Measured accuracy of one
net by micro-batch size: 64: .80, 16: .79, 8: .76, 4: .70, 2: .52, 1: .05 (chance). The running variance stays too low
as well: .83 of the true one at 4 samples, .66 at 2, .30 at 1. `BatchNorm1d` on one sample raises a ValueError.
GroupNorm does not change between 2 and 64 samples. An error at 1 or 2 samples, a warning at 3 or 4, info at 5 to 8 or
where the size is not known.

## Example

```python
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

data = TensorDataset(torch.randn(32, 3, 16, 16), torch.randint(0, 10, (32,)))
loader = DataLoader(data, batch_size=2, shuffle=True)
model = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1),
    nn.BatchNorm2d(8),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(8 * 16 * 16, 10),
)
criterion = nn.CrossEntropyLoss()
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

## Use instead

```python
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

data = TensorDataset(torch.randn(32, 3, 16, 16), torch.randint(0, 10, (32,)))
loader = DataLoader(data, batch_size=2, shuffle=True)
model = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1),
    nn.GroupNorm(4, 8),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(8 * 16 * 16, 10),
)
criterion = nn.CrossEntropyLoss()
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

- The BatchNorm layers are in eval mode (after each `model.train()`) or are `FrozenBatchNorm2d`.
- The layers do not depend on the batch: LayerNorm, GroupNorm, RMSNorm, InstanceNorm.
- The micro-batch has more than 8 samples.

## Fix safety

Advice only. The choices: larger micro-batches with fewer of them; SyncBatchNorm over several processes; GroupNorm;
BatchNorm frozen in eval mode. A momentum of 1 - (1 - m)^(1/k) corrects the pace of the running mean, but neither the
running variance nor the accuracy (.68 at 4 samples, .54 at 2).

## References

- [Wu and He: Group Normalization](https://arxiv.org/abs/1803.08494): ResNet-50's error with
  BatchNorm grows from 23.6 % at 32 images per GPU to 34.7 % at 2
- [torch.nn.BatchNorm2d](https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html)
"""


def check(analysis: Analysis) -> Iterator[Report]:
    yield from held(analysis, lambda run: _judge(analysis, run))


def _judge(analysis: Analysis, run: Run) -> list[Report]:
    found: dict[Span, Report] = {}
    norms = run.of("norm")
    if not norms:
        return []
    for view in views(analysis, run):
        if view.k < 2 or view.evidence is Confidence.LOW or _of_others(view):
            continue
        sites = {loop.span for window in view.windows for one in view.backwards(window) for loop, _ in one.event.loops}
        for event in norms:
            owner = event.data["owner"]
            if not view.lane.owner.overlaps(owner) or not any(loop.span in sites for loop, _ in event.loops):
                continue
            layer = event.data["layer"]
            if layer not in found:
                found[layer] = _report(view, run, event.data)
    return [report for report in found.values() if report is not None]


def _of_others(view: View) -> bool:
    """Whether the losses of other optimizers make the windows: a critic's, which reaches the generator, too."""
    others = {
        number
        for lane in view.run.lanes
        if lane.optimizer is not view.lane.optimizer
        for window in lane.windows
        if window.update is not None
        for number in window.row
    }
    return all(
        len([one for one in window.seen if one in window.row or one not in others]) < 2 for window in view.closed
    )


def _report(view: View, run: Run, data: dict[str, Any]) -> Report:
    size, size_span = data["size"], data["size_span"]
    samples = _known_size(run, size)
    notes = list(view.related())
    if size_span is not None:
        notes.insert(0, ("the size of a micro-batch", size_span))
    if samples is None:
        severity, told = Severity.INFO, "the micro-batch size is not known here"
    else:
        if samples > 8:
            return None  # type: ignore[return-value]
        severity = Severity.ERROR if samples <= 2 else Severity.WARNING if samples <= 4 else Severity.INFO
        plural = "sample" if samples == 1 else "samples"
        told = f"each micro-batch has {samples} {plural}"
    confidence = weaker(view.confidence, view.evidence)
    assumptions = list(view.notes())
    if samples is not None and type(size) is Num and roots_of(size):
        confidence = weaker(confidence, Confidence.MEDIUM)
        assumptions.append(("the default of the batch size is taken for its value", size_span))
    return Report(
        data["layer"],
        f"BatchNorm sees one micro-batch at a time, not the {view.k_phrase()} that are accumulated: {told}, so its "
        "statistics are not those of the effective batch",
        severity,
        confidence,
        notes=tuple(notes),
        assumptions=tuple(assumptions),
        intents=(_CHOICES,),
        evidence=view.proof(),
    )


_CHOICES = Intent(
    "display",
    "larger micro-batches and fewer of them (accuracy .79 at 16 samples, .70 at 4, .52 at 2, .05 at 1), or GroupNorm "
    "(.71 at any size), or SyncBatchNorm over several processes, or BatchNorm frozen with eval() after each train(); a "
    "smaller momentum does not help (.54 at 2)",
)


def _known_size(run: Run, size: Any) -> int | None:
    """The samples of a micro-batch, if the text says: a literal, or the default of an argument."""
    number = numeric(size)
    if number is None:
        return None
    roots = roots_of(size)
    if not roots:
        return int(number)
    if len(roots) == 1:
        (root,) = roots
        hint = run.hints.get(root)
        return int(hint) if isinstance(hint, int) and run.numbers.get(root, number) == number else None
    return None


RULE = Rule(
    code="ACC003",
    name="batchnorm-tiny-micro-batch",
    category="batch",
    severity=Severity.ERROR,
    fix="display",
    summary="BatchNorm in training mode sees micro-batches that are too small for its statistics.",
    documentation=DOCUMENTATION,
    check=check,
)
