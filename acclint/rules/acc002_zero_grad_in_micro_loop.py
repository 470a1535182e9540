"""ACC002 zero-grad-in-micro-loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from acclint.findings import Confidence, Severity
from acclint.knowledge.names import is_accumulation_name
from acclint.program import Span
from acclint.rules.base import Action, Intent, Move, Report, Rule
from acclint.rules.rewrites import divide, undivided, zero_behind_update
from acclint.rules.windows import View, held, own_data, owner_phrase, same_turn, turning, views, weaker
from acclint.simulate.trace import Backward, Event, Run, Window
from acclint.simulate.values import roots_of

if TYPE_CHECKING:
    from acclint.simulate import Analysis

# Ways to clear the gradients of parameters one by one.
_BY_HAND = ("grad = None", "grad = tensor", "grad.zero_()", "zero_()")

DOCUMENTATION = """\
## What it does

Finds a call that clears the gradients (`zero_grad()`, `p.grad = None`, `p.grad.zero_()`) and runs for micro-batches
on which the optimizer does not step, or between the last backward pass and the step.

## Why is this bad?

All micro-batches but the last of each window are computed and thrown away: with k = 4 their weights are 0, 0, 0, 1
instead of 1, 1, 1, 1, and the update is a quarter of one micro-batch's gradient. Measured on a small net: cosine 0.83
and ratio 0.40 to the right gradient; after 15 epochs a loss of 1.795 instead of 1.201 with Adam. The loss still
falls, so the mistake lives long. Zeroing between backward and step leaves nothing to step on at all.

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
        optimizer.zero_grad()
        loss = criterion(model(x), y) / accumulation_steps
        loss.backward()
        if (i + 1) % accumulation_steps == 0:
            optimizer.step()
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

- The gradients are zeroed under the condition of the step, or at the first micro-batch of each window.
- The optimizer steps on every micro-batch: there is no accumulation.
- Another optimizer's gradients are zeroed (a GAN).
- Low confidence, shown with `--min-confidence low`: gradients are dropped one by one (`p.grad = None`) right before the
  update of an optimizer that may hold other parameters, too.
- accelerate's prepared optimizer: its `zero_grad()` does nothing inside a window, if it is called before the
  `accumulate()` block or after the step.

## Fix safety

Safe: the zeroing moves behind the step. Where the loss is not divided by k either, the division (ACC001) is added in
the same edit, since one without the other would make the gradient k times too large. The update now uses all k
micro-batches.

## References

- [torch.optim.Optimizer.zero_grad](https://docs.pytorch.org/docs/stable/generated/torch.optim.Optimizer.zero_grad.html)
- [torch.Tensor.backward](https://docs.pytorch.org/docs/stable/generated/torch.Tensor.backward.html):
  gradients accumulate in the leaves
"""


def check(analysis: Analysis) -> Iterator[Report]:
    yield from held(analysis, lambda run: _judge(analysis, run))


def _judge(analysis: Analysis, run: Run) -> list[Report]:
    wiped: dict[int, Event] = {}  # by what a backward call was first thrown away, of whichever optimizer
    for lane in run.lanes:
        for window in lane.windows:
            for number, event in window.lost.items():
                if number not in wiped or event.number < wiped[number].number:
                    wiped[number] = event
    found: list[Report] = []
    for view in views(analysis, run):
        places: dict[Span, list[tuple[Event, Window]]] = {}
        for window in view.closed:
            for event in _discarding(view, window, wiped):
                places.setdefault(event.span, []).append((event, window))
                break
        for span, cases in places.items():
            if len(cases) * 2 < len(view.closed):
                continue
            # A window that also holds what an earlier pass has left over is none to tell numbers of.
            sizes = Counter(len(window.seen) for _, window in cases)
            event, window = max(cases, key=lambda case: (sizes[len(case[1].seen)], -len(case[1].seen)))
            found.append(_report(view, span, event, window))
    return found


def _discarding(view: View, window: Window, wiped: dict[int, Event]) -> Iterator[Event]:
    """The zeroing events that threw away micro-batches of this window while its loop was running."""
    by_site: dict[tuple[tuple[Span, ...], ...], list[int]] = {}
    for backward in view.backwards(window):
        if not backward.replay:
            by_site.setdefault(_made_at(backward), []).append(backward.number)
    for numbers in by_site.values():
        lost = [number for number in numbers if number in window.lost and number not in view.run.used]
        # What another loop has thrown away before is its business.
        lost = [number for number in lost if _beside(wiped[number], window.lost[number])]
        if not lost:
            continue
        event = window.lost[lost[0]]
        if not window.row:
            # Zeroed between backward and the update: nothing is left of any site.
            last = view.run.backwards[window.seen[-1]].event.number
            if all(number in window.lost for number in window.seen) and window.lost[window.seen[-1]].number > last:
                same = window.update is not None and same_turn(window.lost[window.seen[-1]], window.update)
                each = all(same_turn(window.lost[one], view.run.backwards[one].event) for one in window.seen)
                if same or each:
                    yield window.lost[window.seen[-1]]
            continue
        kept = [number for number in numbers if window.row.get(number)]
        if not kept and (_whole(view, numbers, lost, window) or _meant(view, numbers, lost)):
            yield event
        if len(numbers) < 2 or not kept:
            continue
        if view.gate is not None and view.gate.modulus == len(kept):
            continue  # A whole window has come together: the others are what a pass has left over.
        for number in lost:
            event = window.lost[number]
            if _at_the_end(view, event):
                continue
            loop = turning(view.run.backwards[number].event.loops, view.run.backwards[kept[-1]].event.loops)
            if loop is None or (loop.kind == "call" and view.window_test is None):
                continue
            around = [one for one, _ in event.loops]
            if any(loop is one for attack in view.run.of("attack") for one, _ in attack.loops):
                continue  # The gradients are for the inputs or the embedding that is attacked.
            if loop in around:
                yield event
                break


def _made_at(backward: Backward) -> tuple[tuple[Span, ...], ...]:
    """Where the losses of a backward call are made: each branch of a test may call it for the same loss."""
    return tuple(sorted({term.site for term, _ in backward.terms})) or (backward.site,)


def _at_the_end(view: View, event: Event) -> bool:
    """Whether a zeroing stands under the window test that its window's update would have stood under: it is skipped."""
    gate = view.gate
    ended = gate is not None and any((one.span, one.outcome) == (gate.span, gate.outcome) for one in event.guards)
    updates = [window.update for window in view.closed if window.update is not None]
    return ended and not any(event.loops == update.loops for update in updates)


def _whole(view: View, numbers: list[int], lost: list[int], window: Window) -> bool:
    """Whether one of several losses is lost whole, though each of its calls saw other data."""
    calls = [view.run.backwards[number] for number in numbers]
    taken = {term for event in view.run.of("autograd.grad") for term in event.data["terms"]}
    if any(term in taken for call in calls for term, _ in call.terms):
        return False  # Its gradient was asked for in another way.
    data = {own_data(term) for call in calls for term, _ in call.terms}
    each = all(same_turn(window.lost[one], view.run.backwards[one].event) for one in lost)
    whole = 1 < len(numbers) == len(lost) <= len(data) and all(data)
    if not whole or window.update is None:
        return False
    around = [loop for loop, _ in window.update.loops]
    # Not a loop of its own, apart from all updates: a trial of the largest batches, a look at the gradients.
    each = each and all([loop for loop, _ in window.lost[one].loops][: len(around)] == around for one in lost)
    return each or same_turn(window.lost[lost[0]], window.update)


def _meant(view: View, numbers: list[int], lost: list[int]) -> bool:
    """Whether all calls of a place were thrown away although their losses are divided by as many as there are."""
    calls = [view.run.backwards[number] for number in numbers]
    divided = all(any(float(by) == len(calls) for by, _, _ in call.divisors) for call in calls)
    return len(lost) == len(numbers) > 1 and divided and len({call.event.loops for call in calls}) == len(calls)


def _report(view: View, span: Span, event: Event, window: Window) -> Report:
    total = len(set(window.seen))
    kept = len([number for number in window.seen if window.row.get(number)])
    k = view.k_phrase()
    if kept:
        several = len({_made_at(view.run.backwards[number]) for number in window.seen}) > 1
        what = "backward calls" if several else "micro-batches"
        message = (
            f"gradients are zeroed inside the accumulation window: only {kept} of {total} {what} reach the update of "
            f"{owner_phrase(view)}, the others are computed and thrown away"
        )
        if k.startswith("`"):
            message += f" ({k} simulated as {view.k})"
    else:
        message = (
            f"gradients are zeroed between backward and the update: {owner_phrase(view)} always steps on a zero "
            "gradient, "
            "so nothing is learnt from the loss"
        )
    updates = [one.update for one in view.closed if one.update is not None]
    zeros = [
        one
        for one in {event.number: event for window in view.windows for event in window.zeros}.values()
        if _beside(one, event) and not any(same_turn(one, update) and one.number > update.number for update in updates)
    ]
    divisions = divide(undivided(view, [window]), view.k_place) if kept and view.k > 1 else ()
    confidence = weaker(view.confidence, Confidence.HIGH)
    if view.micro is not None and view.micro.kind == "call":
        # The caller's loop is not seen; a window test beside the zeroing says what it goes through.
        confidence = weaker(confidence, Confidence.LOW if view.window_test is None else Confidence.MEDIUM)
    assumptions = view.notes()
    if not kept and event.data["what"] in _BY_HAND and view.assumptions:
        confidence = Confidence.LOW  # Perhaps of some parameters only, which are to have no part in this update.
    if _now_and_then(view, event):
        confidence = Confidence.LOW  # How many windows it meets, only the simulation's numbers say.
    if view.handed_on is not None:
        confidence = Confidence.LOW
        assumptions += ((f"`{view.handed_on.data['what']}` is given the gradients", view.handed_on.span),)
    return Report(
        span,
        message,
        Severity.ERROR,
        confidence,
        notes=tuple(view.related()),
        assumptions=assumptions,
        intents=_intents(view, event, zeros, divisions),
        evidence=view.proof(),
    )


def _intents(view: View, event: Event, zeros: list[Event], divisions: tuple[Action, ...]) -> tuple[Intent, ...]:
    """Zero behind the update; or, where the zeroing waits for a test and the update for another, update before it.

    Where that alone makes way for an undivided sum, the loss is divided as well.
    """
    told, ways = "zero the gradients behind the update", zero_behind_update(view, zeros)
    behind = [Intent("safe", f"{told}: every micro-batch then counts", way) for way in ways]
    if divisions:
        also = f"{told}, and divide the loss by {view.k_phrase()}: every micro-batch then counts"
        behind += [Intent("safe", also, (*way, *divisions)) for way in ways]
    update = view.update
    if update is None or {guard.span for guard in event.guards} == {guard.span for guard in update.guards}:
        return tuple(behind)
    before = Intent(
        "safe",
        "update where the gradients are zeroed, at the end of each window",
        (Move(update.span, before=event.span),),
        regroups=True,
    )
    if any(guard.modulus is not None for guard in event.guards):
        return (before,)
    waits = not {guard.span for guard in event.guards} <= {guard.span for guard in update.guards}
    # The window may end where the gradients are zeroed.
    return (before, *(replace(way, applicability="unsafe") for way in behind)) if waits else tuple(behind)


def _now_and_then(view: View, event: Event) -> bool:
    """Whether a test of unknown numbers other than the window's leads to a zeroing: every so many steps."""
    known = view.gate.roots - roots_of(view.gate.counter) if view.gate is not None else frozenset()
    for guard in event.guards:
        texts = [text for span, text in view.texts.moduli.items() if span.within(guard.span)]
        own = [text for text in texts if text == view.k_text or is_accumulation_name(text.rpartition(".")[2])]
        if guard.modulus is not None and guard.roots and not guard.roots & known and texts and not own:
            return True
    return False


def _beside(one: Event, other: Event) -> bool:
    """Whether two events happen in the same loop under the same conditions."""
    return [loop.span for loop, _ in one.loops] == [loop.span for loop, _ in other.loops] and [
        guard.span for guard in one.guards
    ] == [guard.span for guard in other.guards]


RULE = Rule(
    code="ACC002",
    name="zero-grad-in-micro-loop",
    category="window",
    severity=Severity.ERROR,
    fix="safe",
    summary="Gradients are zeroed inside the window, so that only the last micro-batch counts.",
    documentation=DOCUMENTATION,
    check=check,
)
