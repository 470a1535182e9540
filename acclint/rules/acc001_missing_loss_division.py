"""ACC001 missing-loss-division."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from acclint.findings import Confidence, Severity
from acclint.program import Span
from acclint.rules.base import Intent, Report, Rule
from acclint.rules.rewrites import divide, divided_rate, rate_divisors, smaller_gradient
from acclint.rules.straight import straight_calls
from acclint.rules.windows import View, held, owner_phrase, scale_severity, turning, views, weaker
from acclint.simulate.trace import Backward, Loop, Run, Window
from acclint.simulate.values import Opaque, Term, numeric, roots_of

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
- Each loss is a mean over the whole window: a contrastive loss against the cached features of its other micro-batches.
- Low confidence, shown with `--min-confidence low`: a list of unknown length is gone through for each update, whose
  items may be layers or tasks instead of micro-batches.

## Fix safety

Safe. Only the expression that is passed to `backward` changes, so logged losses keep their value. The gradient
becomes 1/k of what it was: a learning rate that was tuned with the old code may have to be raised.

## References

- [torch.Tensor.backward](https://docs.pytorch.org/docs/stable/generated/torch.Tensor.backward.html):
  gradients accumulate in the leaves
- [Automatic mixed precision examples: gradient accumulation](https://docs.pytorch.org/docs/stable/notes/amp_examples.html#gradient-accumulation)
"""


def check(analysis: Analysis) -> Iterator[Report]:
    yield from held(analysis, lambda run: _judge(analysis, run))


def _judge(analysis: Analysis, run: Run) -> list[Report]:
    found: list[Report] = []
    for view in views(analysis, run):
        if view.k < 2:
            calls = straight_calls(view)
            if calls and not divided_rate(view) and not _compared_rate(view, len(calls)):
                found.append(_straight(view, calls))
            continue
        if view.gate is None and len(view.closed) > 1 and not any(window.zeros for window in view.windows):
            continue  # What adds up from update to update, since nothing zeroes it, is no window (ACC015).
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
        intents=(_division(view, calls, str(k)),),
        evidence=view.proof(),
    )


def _division(view: View, calls: list[Backward], by: Span | str) -> Intent:
    told = f"divide the loss by {view.k_phrase()} in the backward call: {smaller_gradient(view)}"
    if not by:
        return Intent("display", told)
    optimizer = view.lane.optimizer
    rates = rate_divisors(view) if optimizer is not None and optimizer.plain_sgd else []
    other = next((text for text in rates if not text.isdigit()), "")
    if other:  # With plain SGD that divides, too, perhaps by the number that was meant.
        return Intent("unsafe", f"{told}; the learning rate is divided by `{other}`", divide(calls, by))
    return Intent("safe", told, divide(calls, by))


def undivided_sites(view: View) -> dict[tuple[Span, ...], list[int]]:
    """The backward sites whose mean loss enters every full window with weight 1 a micro-batch, with their numbers."""
    if divided_rate(view) or _changed_elsewhere(view):
        return {}
    suspects: dict[tuple[Span, ...], list[int]] = {}
    cleared: set[tuple[Span, ...]] = set()
    for window in view.full:
        if _of_several_calls(view, window):
            continue
        by_site: dict[tuple[Span, ...], list[int]] = {}
        for backward in view.backwards(window):
            if not backward.replay:
                by_site.setdefault(backward.site, []).append(backward.number)
        for site, numbers in by_site.items():
            group = [view.run.backwards[number] for number in numbers]
            if _begun_anew(window, group):
                continue
            if len(group) < 2 or any(window.row.get(number, 0) == 0 for number in numbers):
                cleared.add(site)
                continue
            if any(not one.known_scale for one in group) or any(event.data.get("unsure") for event in window.edits):
                cleared.add(site)
                continue
            if _of_the_whole_window(group) or any(map(_sums_data, group)):
                cleared.add(site)
                continue
            if any(_divided(view, window.row.get(one.number, 0) * weight) for one in group for _, weight in one.terms):
                # A part of the loss is divided: what is not may be meant so.
                cleared.add(site)
                continue
            weights = [_as_one(view, one, _plain(window, one) or view.effective(window, one)) for one in group]
            means = all(term is not None and term.reduction in ("mean", "unknown") for term, _ in weights)
            if means and all(abs(abs(float(weight)) - 1) < 1e-6 for _, weight in weights):
                suspects.setdefault(site, []).extend(numbers)
            else:
                cleared.add(site)
    return {site: numbers for site, numbers in suspects.items() if site not in cleared}


def _of_several_calls(view: View, window: Window) -> bool:
    """Whether a window holds what another call of the function that trains has left over."""
    calls = [one.event.loops[:1] for one in view.backwards(window)]
    update = window.update.loops[:1] if window.update is not None else ()
    return bool(update) and (update[0][0].kind, update[0][0].level) == ("call", "outer") and set(calls) != {update}


def _begun_anew(window: Window, group: list[Backward]) -> bool:
    """Whether the micro-batches that a window lacks were zeroed between two passes: the window says nothing then."""
    lost = [one for one in group if window.row.get(one.number, 0) == 0]
    zeros = [(window.lost.get(one.number), one) for one in lost]
    return bool(lost) and all(zero is not None and len(zero.loops) < len(one.event.loops) for zero, one in zeros)


def _changed_elsewhere(view: View) -> bool:
    """Whether something unknown has changed gradients of an optimizer of which nobody knows the parameters."""
    lanes = [lane for lane in view.run.lanes if view.lane.parts_unknown and lane.optimizer is view.lane.optimizer]
    return any(event.data.get("unsure") for lane in lanes for window in lane.windows for event in window.edits)


def _of_the_whole_window(group: list[Backward]) -> bool:
    """Whether each loss is computed from the same several micro-batches (each with the graph of another one of them).

    Their gradients are parts of the gradient of one loss, which a sum puts together (a contrastive loss over cached
    features, for instance). The very same data time and again is no window either: several models of a batch.
    """
    all_data = {frozenset(one for term, _ in backward.terms for one in term.data) for backward in group}
    data = {frozenset(one for one in found if one > 0) for found in all_data}
    return len(data) == 1 and (len(next(iter(data))) > 1 or (len(all_data) == 1 and bool(next(iter(data)))))


def _sums_data(backward: Backward) -> bool:
    """Whether a part of a loss is a sum over data: how the rest is to be weighed against it, the author knows."""
    return any(term.reduction == "sum" and term.data for term, _ in backward.terms)


def _sum_over_samples(backward: Backward) -> bool:
    """Whether a loss may sum those of single samples: `for i in range(len(x)): loss += criterion(...)`.

    What is counted may also be the outputs of several heads.
    """
    sites: dict[tuple[Span, ...], Term] = {}
    for term, _ in backward.terms:
        other = sites.setdefault(term.site, term)
        loop = turning(other.loops, term.loops) if other is not term else None
        if loop is None or loop.kind != "count":
            continue
        keys = {loop.count.key} if isinstance(loop.count, Opaque) else roots_of(loop.count)
        if any(key.startswith(("len(", "shape", "tensor.size")) for key in keys):
            return True
    return False


def _as_one(view: View, backward: Backward, effective: tuple[Term | None, Any]) -> tuple[Term | None, Any]:
    """The largest term and its weight; of a mean of several losses (`(a + b) / 2`), the weight of all together."""
    term, weight = effective
    count = len(backward.terms)
    sites = {one.site for one, _ in backward.terms}
    parts = [one.data for one, _ in backward.terms]
    of_one_batch = len(parts) > 1 and bool(frozenset.intersection(*parts))  # the mean over its samples, one by one
    alike = len({abs(float(one)) for _, one in backward.terms}) == 1 and (len(sites) > 1 or of_one_batch)
    mean = alike and count != view.k and not any(is_k for _, is_k, _ in backward.divisors)
    return (term, weight * count) if mean and abs(abs(float(weight)) * count - 1) < 1e-6 else (term, weight)


def _plain(window: Window, backward: Backward) -> tuple[Term, Any] | None:
    """A mean that a weighted sum takes as it is, and its weight in the update, where nothing at all is divided."""
    factor = window.row.get(backward.number, 0)
    means = [(term, weight * factor) for term, weight in backward.terms if term.reduction in ("mean", "unknown")]
    plain = (one for one in means if abs(abs(float(one[1])) - 1) < 1e-6)
    return next(plain, None) if not backward.divisors else None


def _divided(view: View, weight: Any) -> bool:
    return abs(abs(float(weight)) * view.k - 1) < 1e-6


def _is_of_anything(loop: Loop) -> bool:
    """Whether the loop that a window is goes through a list of unknown length, of whatever is in it."""
    unknown = not loop.known_length and not loop.named
    return unknown and loop.level == "window" and loop.kind in ("list", "loader")


def _undivided(view: View) -> Iterator[Report]:
    for numbers in undivided_sites(view).values():
        backward = view.run.backwards[numbers[0]]
        term = max(backward.terms, key=lambda one: abs(float(one[1])))[0]
        levels = [view.confidence, view.evidence]
        assumptions = list(view.notes())
        if term.reduction == "unknown":
            plain = any(word in term.why.lower() for word in ("loss", "criterion", "crit", "cost"))
            # An engine's loop is not seen either: that would be two things to assume.
            seen = view.micro is not None and view.micro.kind != "call"
            levels.append(Confidence.MEDIUM if plain and seen else Confidence.LOW)
            unknown = f" (`{term.why}` is not known)" if term.why else ""
            assumptions.append((f"the loss is taken as a mean over the micro-batch{unknown}", term.span))
        elif term.why in ("loss", "output", "outputs"):
            levels.append(Confidence.MEDIUM)
            assumptions.append(("the model's loss is taken as a mean over the micro-batch", term.span))
        if _sum_over_samples(backward):
            levels.append(Confidence.LOW)
            assumptions.append(("what is summed up in a loop are not the samples of the micro-batch", term.span))
        if view.gate is None and not view.k_text and view.micro is not None and _is_of_anything(view.micro):
            levels.append(Confidence.LOW)
            assumptions.append(("what is gone through are the micro-batches of one window", view.micro.span))
        k = view.k_phrase()
        name = view.k_text if k.startswith("`") else k
        example = f" ({view.k}.00x)" if k.isdigit() else f"; with {name} = {view.k}: {view.k}.00x"
        severity = scale_severity(view)
        harm = ""
        if severity.value == "warning" and view.lane.optimizer is not None:
            kind = view.lane.optimizer.kind.rpartition(".")[2]
            harm = f"; {kind} cancels a constant factor in its update, but not in clipping, logging or eps"
        yield Report(
            backward.span,
            f"the mean loss is not divided by the number of accumulated micro-batches: the gradient that reaches "
            f"{owner_phrase(view)} is {k} times too large{example}{harm}",
            severity,
            weaker(*levels),
            notes=tuple(view.related()),
            assumptions=tuple(assumptions),
            intents=(_division(view, [backward], view.k_place),),
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
