"""ACC007 leftover-micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from acclint.findings import Confidence, Severity
from acclint.program import Span
from acclint.rules.base import Flush, Intent, Report, Rule
from acclint.rules.windows import View, held, views, weaker
from acclint.simulate.facts import window_size
from acclint.simulate.trace import Event, Loop, Run, Window
from acclint.simulate.values import numeric

if TYPE_CHECKING:
    from acclint.simulate import Analysis

DOCUMENTATION = """\
## What it does

Finds windows that are counted afresh in each epoch and have no provision for the micro-batches behind the last full
window.

## Why is this bad?

With n micro-batches and r = n mod k left over, one of three things happens. They are dropped, if the gradients are
zeroed when the epoch begins: r/n of the work is lost. They leak, if not: the next window holds k + r micro-batches
and its gradient is (k + r)/k of the right size. They are stepped on but divided by k: r/k of the right size. A loader
shorter than k makes no update at all: an error.

## Example

Ten micro-batches per epoch and windows of four: two are left over.

```python
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

data = TensorDataset(torch.randn(40, 8), torch.randn(40, 1))
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

## Use instead

```python
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

data = TensorDataset(torch.randn(40, 8), torch.randn(40, 1))
loader = DataLoader(data, batch_size=4, shuffle=True)
model = nn.Linear(8, 1)
criterion = nn.MSELoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
accumulation_steps = 4

for epoch in range(3):
    for i, (x, y) in enumerate(loader):
        first = i // accumulation_steps * accumulation_steps
        window = min(accumulation_steps, len(loader) - first)
        loss = criterion(model(x), y) / window
        loss.backward()
        if (i + 1) % accumulation_steps == 0 or i + 1 == len(loader):
            optimizer.step()
            optimizer.zero_grad()
```

## When it stays silent

- The counter runs across epochs, so that the window simply goes on.
- The last micro-batch closes the window (`or i + 1 == len(loader)`) and the division is by the true count.
- The loop is endless or bounded by a number of steps.
- The number of micro-batches is known to be a multiple of k.

## Fix safety

Unsafe: an update per epoch is added, which a scheduler sized in updates has to know about (ceil instead of floor),
and the divisor of the last window changes.

## References

- [transformers#2995](https://github.com/huggingface/transformers/issues/2995): an epoch shorter than the window
  makes no update
- [Lightning#19987](https://github.com/Lightning-AI/pytorch-lightning/issues/19987): the last window is divided by k
"""


def check(analysis: Analysis) -> Iterator[Report]:
    yield from held(analysis, lambda run: _judge(analysis, run))


def _judge(analysis: Analysis, run: Run) -> list[Report]:
    found: list[Report] = []
    for view in views(analysis, run):
        micro = view.micro
        if micro is None or micro.level != "micro" or micro.kind == "call" or _cut(view, micro):
            continue
        if not view.closed:
            never = _never(analysis, view, micro)
            if never is not None:
                found.append(never)
        if view.k < 2:
            continue
        if view.gate is None or view.evidence is Confidence.LOW:
            continue
        shifted = [size for size in view.sizes if size][:2]
        outcome = _tail(view, micro)
        zeroed = outcome == "drop" and any(window.lost for window in view.windows)
        if not zeroed and len(shifted) == 2 and shifted[0] < view.k == shifted[1]:
            continue
        if outcome:
            found.append(_report(view, micro, outcome, zeroed))
    return found


def _cut(view: View, micro: Loop) -> bool:
    """Whether a pass over the micro-batches was not run to its end, so that its rest says nothing."""
    return micro.cut or any(
        loop.cut
        for window in view.windows
        for backward in view.backwards(window)
        for loop, _ in backward.event.loops
        if loop.span == micro.span
    )


def _never(analysis: Analysis, view: View, micro: Loop) -> Report | None:
    """A pass that is known to be shorter than the window: the window test is never true."""
    tests: dict[Span, list[Event]] = {}
    for event in view.run.of("test"):
        if event.loops and event.loops[-1][0].span == micro.span:
            tests.setdefault(event.span, []).append(event)
    for span, events in tests.items():
        k = events[0].data["modulus"]
        counters = {numeric(event.data["counter"]) for event in events}
        entries = {event.loops[-1][0] for event in events}
        if not isinstance(k, int) or any(event.data["outcome"] for event in events) or len(counters) < 2:
            continue
        if events[0].data["roots"]:
            continue  # The default of an argument is no window.
        countable = all(loop.known_length and loop.kind in ("loader", "list", "count") for loop in entries)
        if not countable or not all(1 < loop.turns < k for loop in entries):
            continue
        if len(entries) < 2 and any(loop.kind == "call" or not loop.ended for loop, _ in events[0].loops):
            continue
        if not events[0].data["steps"]:
            continue
        turns = max(loop.turns for loop in entries)
        return Report(
            span,
            f"a pass has {turns} micro-batches and the window {k}: the window test is never true, there is no update",
            Severity.ERROR,
            view.confidence,
            notes=(("the loop over micro-batches", micro.span),),
            assumptions=view.notes(),
            intents=(
                Intent("display", f"a window of at most {turns} micro-batches, or an update at the end of a pass"),
            ),
            evidence={**view.proof(), "tail": "never"},
        )
    return None


def _entry(loops: tuple[tuple[Loop, int], ...], micro: Loop) -> int:
    return next((loop.entry for loop, _ in loops if loop.span == micro.span), -1)


def _tail(view: View, micro: Loop) -> str:
    """What becomes of the micro-batches behind the last full window of a pass: "leak", "drop", "short" or ""."""
    for window in view.windows:
        size = window_size(view.run, window)
        if not size:
            continue
        entries = [_entry(one.event.loops, micro) for one in view.backwards(window)]
        if window.update is not None and len(set(entries)) > 1 and size == view.k and not window.lost:
            return ""  # The counter runs on from pass to pass.
        if window.update is not None and len(set(entries)) > 1 and size != view.k:
            return "leak" if not window.lost else "drop"
        for number, event in window.lost.items():
            if _entry(event.loops, micro) != _entry(view.run.backwards[number].event.loops, micro):
                return "drop"
        if window.update is not None and size < view.k and len(set(entries)) == 1 and _is_flush(view, window, micro):
            return "short" if _short(view, window) else ""
    last = view.windows[-1]
    if last.update is None and last.seen and window_size(view.run, last) < view.k:
        return "drop"
    return ""


def _is_flush(view: View, window: Window, micro: Loop) -> bool:
    """Whether the update came at the end of a pass, not at a shifted boundary."""
    entry = _entry(view.backwards(window)[-1].event.loops, micro)
    following = [
        one for one in view.run.backwards if _entry(one.event.loops, micro) == entry and one.number > window.seen[-1]
    ]
    return not following


def _short(view: View, window: Window) -> bool:
    """Whether a short window is divided by k all the same."""
    if not view.scale_known:
        return False
    total: dict[tuple[Span, ...], float] = {}
    for backward in view.backwards(window):
        term, weight = view.effective(window, backward)
        if term is None or term.reduction not in ("mean", "unknown"):
            return False
        total[backward.site] = total.get(backward.site, 0) + abs(float(weight))
    return all(value < 1 - 1e-6 for value in total.values())


def _flushed(view: View, micro: Loop, outcome: str) -> tuple[Intent, ...]:
    """Update at the end of a pass too, each window divided by what it holds. Unsafe: there are more updates then."""
    assert view.gate is not None
    calls = [one for window in view.windows for one in view.backwards(window)]
    divisions = tuple(dict.fromkeys(span for one in calls for _, is_k, span in one.divisors if is_k))
    told = "also update at the end of a pass, and divide its last window by the number of micro-batches in it"
    flush = Flush(micro.span, view.k_place, None if outcome == "short" else view.gate.span, divisions)
    return (Intent("unsafe", f"{told}; an epoch may then have one update more", (flush,), regroups=True),)


def _report(view: View, micro: Loop, outcome: str, zeroed: bool) -> Report:
    k = view.k_phrase()
    what = {
        "leak": f"they stay in the gradient and join the first window of the next epoch, which then sums more than {k} "
        "micro-batches",
        "drop": "their gradients never reach an update",
        "short": f"the last update of an epoch sums fewer micro-batches but is still divided by {k}",
    }[outcome]
    assert view.gate is not None
    zeros = [event for window in view.windows for event in window.lost.values()] if zeroed else []
    places = [("zeroed here", zeros[-1].span)] if zeros else []
    return Report(
        view.gate.span,
        f"where the number of micro-batches is no multiple of {k}, some are left over at the end of an epoch: {what}",
        Severity.INFO,
        weaker(view.confidence, view.evidence),
        notes=tuple(one for one in [*view.related(), *places] if one[1] != view.gate.span),
        assumptions=view.notes(),
        intents=_flushed(view, micro, outcome),
        evidence={**view.proof(), "tail": "zeroed" if zeroed else outcome},
    )


RULE = Rule(
    code="ACC007",
    name="leftover-micro-batches",
    category="window",
    severity=Severity.INFO,
    fix="unsafe",
    summary="The last micro-batches of an epoch do not fill a window and are lost, leak or weigh too little.",
    documentation=DOCUMENTATION,
    check=check,
)
