"""ACC016 update-without-window."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from acclint.findings import Confidence, Severity
from acclint.knowledge.names import is_accumulation_name, is_way_of_computing
from acclint.program import Span
from acclint.rules.acc015_gradients_never_zeroed import stale_windows
from acclint.rules.acc030_backward_skipped import wasted_siblings
from acclint.rules.base import Action, Gate, Intent, Move, Report, Rule
from acclint.rules.windows import View, held, own_data, owner_phrase, views, weaker
from acclint.simulate.trace import Backward, Event, Guard, Run
from acclint.simulate.values import numeric

if TYPE_CHECKING:
    from acclint.simulate import Analysis

DOCUMENTATION = """\
## What it does

Finds loops that divide the loss by the accumulation steps but step and zero on every micro-batch, also where a window
test comes out the same every time, and loops that step on every micro-batch but zero only every k of them. Where the
zeroing stands outside the loop over the micro-batches, this is so if the loss is divided by their number.

## Why is this bad?

In the first case there is no accumulation: k times as many updates, each made from one micro-batch with 1/k of its
gradient. SGD makes about the same progress with more noise; Adam, which does not mind the factor, makes k times too
many full steps, and momentum forgets k times faster. In the second case the updates of a window use 1, 2, ..., k
micro-batches.

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

- k is the literal 1.
- The division is for something else: the number of losses, views, crops, tasks or processes.
- A framework gates the step: accelerate's prepared optimizer inside `accumulate()`, a DeepSpeed engine.

## Fix safety

Unsafe: either the test for the end of the window is missing or the division is not wanted. The fix adds the test,
which makes the number of updates k times smaller; schedules and step counts have to follow.

## References

- [Automatic mixed precision examples: gradient accumulation](https://docs.pytorch.org/docs/stable/notes/amp_examples.html#gradient-accumulation)
"""


def check(analysis: Analysis) -> Iterator[Report]:
    yield from held(analysis, lambda run: _judge(analysis, run))


def _judge(analysis: Analysis, run: Run) -> list[Report]:
    found: dict[Span, Report] = {}
    for view in views(analysis, run):
        if view.k != 1 or len(view.closed) < 2 or set(view.sizes) != {1}:
            continue
        report = _repeated(view)
        if report is None and len(view.closed) > 2:
            report = _divided(view) or _always_true(view) or _clipped_only(view)
        if report is not None:
            found.setdefault(report.span, report)
    return list(found.values())


def _divided(view: View) -> Report | None:
    """Divided by the accumulation steps, but every micro-batch updates."""
    divisors = []
    tested = _tested_divisors(view)
    guards = [guard for window in view.closed if window.update for guard in window.update.guards]
    if any(guard.modulus is not None for guard in guards):
        return None
    remainders = [span for guard in guards if guard.unknown for span in view.texts.moduli if span.within(guard.span)]
    if remainders:
        return None  # `if plan[i % k]`: a window test, of which the text does not say when it is true.
    for window in view.closed:
        for backward in view.backwards(window):
            named = [one for one in backward.divisors if (one[1] or one[2] in tested) and float(one[0]) > 1]
            known = backward.known_scale or (len(backward.divisors) == 1 and backward.divisors[0][2] in tested)
            if not named or not known or not _of_one_batch(backward):
                return None
            if _thrown_away(view, backward):
                return None
            term, weight = view.effective(window, backward)
            if term is None or abs(abs(float(weight)) * float(named[-1][0]) - 1) > 1e-6:
                return None
            divisors.append(named[-1])
    if not divisors or view.update is None:
        return None
    k = view.texts.divisors.get(divisors[-1][2], "k")
    if any(one.unknown and not is_way_of_computing(view.texts.text(one.span)) for one in _own_guards(view)):
        return None  # `if seen >= k * batch_size`: a window test that is not understood.
    return Report(
        view.update.span,
        f"the loss is divided by `{k}`, but {owner_phrase(view)} is stepped after every micro-batch: no gradients are "
        f"accumulated, each update is 1/{k} of its size and there are {k} times as many",
        Severity.ERROR,
        weaker(view.confidence, Confidence.HIGH),
        notes=(("the division", divisors[-1][2]),),
        assumptions=view.notes(),
        intents=_gated(view, view.texts.divided.get(divisors[-1][2], k)),
        evidence=view.proof(),
    )


def _own_guards(view: View) -> list[Guard]:
    """The tests of the updates that their backward passes do not wait for."""
    found = []
    for window in view.closed:
        around = {guard.span for one in view.backwards(window) for guard in one.event.guards}
        found += [guard for guard in (window.update.guards if window.update else ()) if guard.span not in around]
    return found


def _of_one_batch(backward: Backward) -> bool:
    """Whether a loss is one, or several different ones of the same data; not the mean of several passes."""
    sites = {term.site for term, _ in backward.terms}
    data = {own_data(term) for term, _ in backward.terms} - {frozenset()}
    return len(sites) == len(backward.terms) and (len(data) < 2 or bool(frozenset.intersection(*data)))


def _in_the_window(*actions: Action) -> Intent:
    told = "update once per window; there will be fewer, larger updates, and a schedule may have to be resized"
    return Intent("unsafe", told, actions, regroups=True)


def _gated(view: View, k: Span | str) -> tuple[Intent, ...]:
    """Put the update, and what belongs to it, under a window test."""
    update, micro = view.update, view.micro
    if update is None or micro is None:
        return ()

    def spans(*kinds: str) -> tuple[Span, ...]:
        mine = [event for event in view.run.of(*kinds) if any(loop.span == micro.span for loop, _ in event.loops)]
        return tuple(dict.fromkeys(event.span for event in mine))

    gate = Gate(update.span, micro.span, k, first=spans("clip"), then=(*spans("schedule"), *spans("zero")))
    return (_in_the_window(gate),)


def _zeros_behind(view: View, update: Event) -> tuple[Action, ...]:
    zeros = dict.fromkeys(event.span for window in view.windows for event in window.zeros)
    return tuple(Move(span, behind=update.span) for span in zeros)


def _always_true(view: View) -> Report | None:
    """There is a window test, but it comes out the same for every micro-batch, and each weighs as one of k."""
    gate = view.gate
    if gate is None or not isinstance(gate.modulus, int) or gate.modulus < 2 or not view.scale_known:
        return None
    tests = [event for event in view.run.of("test") if event.span == gate.span]
    if (
        view.micro is not None
        and view.micro.kind == "call"
        and len({numeric(one.data["counter"]) for one in tests}) < 2
    ):
        return None  # Whoever calls this may well count.
    calls = [backward for window in view.closed for backward in view.backwards(window)]
    weights = {abs(float(view.effective(window, one)[1])) for window in view.closed for one in view.backwards(window)}
    if len({event.data["outcome"] for event in tests}) != 1 or any(
        abs(one * gate.modulus - 1) > 1e-6 for one in weights
    ):
        return None
    if any(_thrown_away(view, backward) for backward in calls) or view.update is None:
        return None
    return Report(
        view.update.span,
        f"the window test comes out the same after every micro-batch: {owner_phrase(view)} is stepped each time, "
        f"though the loss is divided by {view.k_text or gate.modulus}",
        Severity.ERROR,
        weaker(view.confidence, Confidence.HIGH),
        notes=(("the window test", gate.span),),
        assumptions=view.notes(),
        evidence=view.proof(),
    )


def _tested_divisors(view: View) -> set[Span]:
    """The divisions by what a window test of the same loop takes as its modulus, whatever that is called."""
    micro = view.micro
    moduli = {
        view.texts.moduli[span]
        for event in view.run.of("test")
        if micro is not None and any(loop.span == micro.span for loop, _ in event.loops)
        for span in view.texts.moduli
        if span.within(event.span)
    }
    return {span for span, text in view.texts.divisors.items() if text in moduli and not text.isdigit()}


def _thrown_away(view: View, backward: Backward) -> bool:
    """Whether the loss was computed several times since the one before it that was used: another mistake (ACC030)."""
    term = backward.terms[0][0]
    same = [one for one in view.run.terms if one.site == term.site]
    unused = sum(not one.sent for one in same)
    return bool(wasted_siblings(view.run, backward, term)) or unused * 2 >= len(same)


def _repeated(view: View) -> Report | None:
    """Stepped every micro-batch, zeroed every k-th: an update repeats the window so far."""
    stale = stale_windows(view)
    wiped = [window for window in view.closed if window.seen and not window.row]
    if not stale or len(stale) + len(wiped) < 0.5 * (len(view.closed) - 1):
        return None
    zeros = [event for window in view.windows for event in window.zeros]
    update = view.update
    if update is None or not update.loops or not zeros:
        return None
    gated = [
        event
        for event in zeros
        if any(loop.span == update.loops[-1][0].span for loop, _ in event.loops)
        and not {guard.span for guard in event.guards if not guard.unknown} <= {guard.span for guard in update.guards}
    ]
    place = gated[0] if gated else _zeroed_around(view, update, zeros)
    if place is None:
        return None
    ways = [Move(update.span, before=place.span)]
    if not gated:
        ways.append(Move(update.span, behind=update.loops[-1][0].span))
    return Report(
        update.span,
        f"{owner_phrase(view)} is stepped after every micro-batch, but its gradients are zeroed only at the end of the "
        "window: each update repeats the micro-batches of the window before it",
        Severity.ERROR,
        weaker(view.confidence, Confidence.HIGH),
        notes=(("zeroed here", place.span),),
        assumptions=view.notes(),
        intents=tuple(_in_the_window(way) for way in ways),
        evidence=view.proof(),
    )


def _zeroed_around(view: View, update: Event, zeros: list[Event]) -> Event | None:
    """A zeroing outside the loop that steps, where what lies between two of them is a window.

    That is so where the losses weigh 1 together or the loop counts to k by its name; else it is the zeroing that may
    stand in the wrong place (ACC015).
    """
    around = [event for event in zeros if _turns(event) == _turns(update)[: len(event.loops)] != _turns(update)]
    if around and view.micro is not None and view.micro.named and view.micro.kind == "count":
        return around[0]
    blocks: list[list[float]] = []
    for window in view.closed:
        if window.zeros or not blocks:
            blocks.append([])
        for backward in view.backwards(window):
            term, weight = view.effective(window, backward)
            if term is None or term.reduction not in ("mean", "unknown") or not backward.known_scale:
                return None
            blocks[-1].append(abs(float(weight)))
    ended = blocks[:-1] or blocks  # a run may be left within its first window
    whole = all(len(block) > 1 and abs(sum(block) - 1) < 1e-6 for block in ended)
    return around[0] if around and blocks and whole else None


def _turns(event: Event) -> list[Span]:
    return [loop.span for loop, _ in event.loops]


def _clipped_only(view: View) -> Report | None:
    """The window test guards clipping or the like, and the update stands outside of it."""
    update, micro = view.update, view.micro
    if update is None or micro is None or micro.level != "micro" or _turns(update)[-1:] != [micro.span]:
        return None  # Updates in a loop inside are another optimizer's of the same parameters.
    own = {guard.span for guard in update.guards}
    for event in view.run.of("clip"):
        if not any(loop.span == micro.span for loop, _ in event.loops):
            continue
        for guard in event.guards:
            moduli = [text for span, text in view.texts.moduli.items() if span.within(guard.span)]
            named = any(is_accumulation_name(text.rpartition(".")[2]) for text in moduli)
            if guard.modulus is None or guard.span in own or not named or not float(guard.modulus) > 1:
                continue
            return Report(
                update.span,
                f"the window of `{moduli[0]}` micro-batches guards the clipping only: {owner_phrase(view)} is stepped "
                "after every micro-batch, so nothing is accumulated",
                Severity.ERROR,
                weaker(view.confidence, Confidence.MEDIUM),
                notes=(("the window test", guard.span), ("clipped here", event.span)),
                assumptions=view.notes(),
                intents=(_in_the_window(Move(update.span, behind=event.span), *_zeros_behind(view, update)),),
                evidence=view.proof(),
            )
    return None


RULE = Rule(
    code="ACC016",
    name="update-without-window",
    category="window",
    severity=Severity.ERROR,
    fix="unsafe",
    summary="The loss is divided for accumulation, or zeroed per window, but every micro-batch updates.",
    documentation=DOCUMENTATION,
    check=check,
)
