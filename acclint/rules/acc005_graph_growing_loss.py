"""ACC005 graph-growing-loss."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from acclint.findings import Confidence, Severity
from acclint.program import NOWHERE, Span
from acclint.rules.base import Detach, Intent, Report, Rule
from acclint.rules.windows import held, turning, weaker
from acclint.simulate.trace import Backward, Event, Loop, Run
from acclint.simulate.values import Opaque, Owner, Term, roots_of

if TYPE_CHECKING:
    from acclint.simulate import Analysis

FEW = 4
"""Graphs kept at once that are no growth: a window of this many micro-batches whose sum is reset."""

DOCUMENTATION = """\
## What it does

Finds losses that are added to, or stored in, something that outlives the iteration (`+=`, `total = total + loss`,
`append`, a dictionary, an attribute) without `.item()`, `.detach()` or `torch.no_grad()`; and outputs of the model
that are collected over batches with their graphs.

## Why is this bad?

After `backward()` the activations are free, but the nodes of the graph live as long as the kept tensor: 14 kB (4
layers) to 110 kB (50 layers) of host memory per micro-batch, against 0.2 kB with `.item()`. Without a backward pass
(a validation loop without `no_grad`) all activations stay as well: 7.7 MB grew to 61.6 MB in 8 micro-batches, which
ends out of memory; that is an error.

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
    total_loss = 0.0
    for i, (x, y) in enumerate(loader):
        loss = criterion(model(x), y)
        (loss / accumulation_steps).backward()
        total_loss += loss
        if (i + 1) % accumulation_steps == 0:
            optimizer.step()
            optimizer.zero_grad()
    print(epoch, total_loss / len(loader))
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
    total_loss = 0.0
    for i, (x, y) in enumerate(loader):
        loss = criterion(model(x), y)
        (loss / accumulation_steps).backward()
        total_loss += loss.detach()
        if (i + 1) % accumulation_steps == 0:
            optimizer.step()
            optimizer.zero_grad()
    print(epoch, total_loss / len(loader))
```

## When it stays silent

- The value is taken with `.item()`, `.detach()`, `float()` or `.data`, or under `torch.no_grad()`.
- The sum is reset in each iteration, sums several losses of one batch, or is a list from which items are taken again. A
  sum that starts anew after some iterations, and whose losses backward was called on, keeps little: an info finding.
- The sum is what `backward()` is called on later (ACC031 speaks about that).
- A meter or a logger takes the value itself.
- The outputs are collected for one backward pass over all of them.
- No parameter of the model asks for a gradient.
- Low confidence, shown with `--min-confidence low`: what is a loss by its name only, and nothing calls backward on.

## Fix safety

Safe after a backward pass: `.detach()` is added, the value stays the same. Unsafe where nothing has called backward
on the loss yet, since the sum might be meant for it.

## References

- [PyTorch FAQ: my model reports "cuda runtime error(2): out of memory"](https://docs.pytorch.org/docs/stable/notes/faq.html)
"""


# A statement that keeps more values than these at once is not rewritten.
_VALUES = 4


def check(analysis: Analysis) -> Iterator[Report]:
    base = analysis.base
    sent = {term.site for term in base.terms if term.sent} if base is not None else set()
    yield from held(analysis, lambda run: _judge(run, sent))


def _judge(run: Run, sent: set[tuple[Span, ...]]) -> list[Report]:
    """`sent`: the places of losses that backward is called on where no condition is flipped."""
    # What is kept for one backward call is ACC031's business.
    sums = [{one for term, _ in backward.terms for one in (term, *term.origins)} for backward in run.backwards]
    sums += [set(event.data["terms"]) for event in run.of("autograd.grad")]
    together = [one for one in sums if len({term for term in one if not term.origins}) > 1]
    by_place: dict[Span, list[Event]] = {}
    growing, deferred = set[Span](), set[Span]()
    for event in run.of("keep"):
        terms = set(event.data["terms"])
        if any(terms & one for one in together):
            deferred.add(event.span)
        if any(term.sent for term in terms) and not any(terms <= one for one in together):
            growing.add(event.span)
    deferred -= growing
    for event in run.of("keep"):
        if event.span not in deferred and event.data.get("holder") not in run.popped:
            by_place.setdefault(event.span, []).append(event)
    found: list[Report] = []
    told: set[Term] = set()
    for events in by_place.values():
        event, group = _largest(events)
        if told.issuperset(group):
            continue  # The same sum under another name.
        site = group[0].site
        if site in sent and not any(term.sent for term in run.terms if term.site == site):
            continue  # Only a flipped condition keeps backward from being called on them.
        report = _report(run, events, event, group)
        if report is not None:
            found.append(report)
            told.update(*(one.data["terms"] for one in events))
    outputs: dict[Span, list[Event]] = {}
    for event in run.of("keep output"):
        if event.span not in by_place and event.data["holder"] not in run.popped:
            outputs.setdefault(event.span, []).append(event)
    for events in outputs.values():
        kept = [term for event in events for term in event.data["terms"]]
        reports = [_outputs(run, event, kept) for event in events]
        if all(reports) and reports[-1] is not None:
            found.append(reports[-1])
    return found


def _outputs(run: Run, event: Event, kept: list[Term]) -> Report | None:
    """Results of the model, not losses, that are collected with their graphs over several batches.

    `kept` are those of all calls of the place.
    """
    terms: tuple[Term, ...] = event.data["terms"]
    batches: tuple[frozenset[int], ...] = event.data["batches"]
    loop = _turning(list(terms))
    fetched = {frozenset(number for number in batch if number > 0) for batch in batches}
    if loop is None or loop.kind == "call" or not all(batches) or len(fetched) < len(batches):
        return None
    if frozenset.intersection(*fetched) - run.cuts:
        return None  # What one batch is weighed with, head by head, say.
    if any(len(batch) > 2 for batch in batches):
        return None  # Sums over many batches: a metric, which something unknown has given.
    sent = [0] * len(batches)
    for backward in run.backwards:
        reached: frozenset[int] = backward.event.data["batch"]
        used = [i for i, batch in enumerate(batches) if batch <= reached]
        if len(used) > 1 or (
            not reached and any(own.overlaps(other) for own in backward.owners for other in terms[0].owners)
        ):
            return None  # They are collected for this backward pass.
        for i in used:
            sent[i] += 1
    if run.of("autograd.grad"):
        return None
    name = event.data["target"] or "the list"
    if all(sent) and _of_one_window(loop, list(terms), kept):
        return None
    if all(sent):
        level, severity = Confidence.MEDIUM, Severity.WARNING
        message = f"`{name}` keeps the autograd graph of every batch's output: host memory grows; keep `.detach()`"
    elif not any(sent):
        # What an unknown object returns is a tensor with a graph if the object is a module: it has eval(). Outputs
        # that are collected while training are mostly put together again for the loss.
        level = Confidence.HIGH if event.data["evaluating"] else Confidence.LOW
        severity = Severity.ERROR
        message = (
            f"`{name}` keeps every batch's output with its whole forward graph, since nothing calls backward on "
            "it: memory "
            "grows with all activations until it runs out; keep `.detach()`, or run under torch.no_grad()"
        )
    else:
        return None
    return Report(
        event.span,
        message,
        severity,
        weaker(level, _reach(event)),
        notes=(("the loop over batches", loop.span),),
        intents=_detaching(event.span, name, after_backward=all(sent)),
        evidence={"scope": list(loop.span)},
    )


def _detaching(span: Span, name: str, *, after_backward: bool) -> tuple[Intent, ...]:
    """Ways to cut the graph off: which of the values written there holds it is for the proof to say."""
    if after_backward:
        told = f"keep the value without its graph: `{name}` has the same numbers, and no synchronisation is added"
    else:
        told = f"keep the value without its graph; wrong if backward is to be called on `{name}`"
    applicability = "safe" if after_backward else "unsafe"
    return tuple(Intent(applicability, told, (Detach(span, part),)) for part in range(_VALUES))


def _reach(event: Event) -> Confidence:
    """How sure it is that the place runs with gradients: an evaluation that nobody in the file calls may not."""
    outer = event.loops[0][0] if event.loops else None
    unsure = outer is not None and outer.kind == "call" and outer.level == "quiet" and not outer.named
    return Confidence.LOW if unsure else Confidence.HIGH


def _largest(events: list[Event]) -> tuple[Event, list[Term]]:
    """The event that keeps the most, and the terms of the one place that most of it comes from."""
    event = max(events, key=lambda one: (int(one.data["size"]), one.number))  # the last: what is replaced, is by then
    terms: tuple[Term, ...] = event.data["terms"]
    site = max({term.site for term in terms}, key=lambda one: sum(term.site == one for term in terms))
    return event, [term for term in terms if term.site == site]


def _behind(backward: Backward, kept: Event, loop: Loop) -> bool:
    """Whether backward is called behind the loop that keeps losses."""
    return backward.event.number > kept.number and loop.span not in [one.span for one, _ in backward.event.loops]


def _report(run: Run, events: list[Event], event: Event, group: list[Term]) -> Report | None:
    """What to say of all `events` of a place, of which `event` keeps the most."""
    span, site = event.span, group[0].site
    loop = _turning(group)
    if loop is None:
        return None
    sizes: dict[int, list[tuple[int, int]]] = {}  # by the pass of the loop: (turn, size)
    for one in events:
        for around, turn in one.loops:
            if around.span == loop.span:
                sizes.setdefault(around.entry, []).append((turn, one.data["size"]))
    steps = [pair for kept in sizes.values() for pair in pairwise([(0, 0), *kept])]
    # What is kept with each update, or now and then, cannot grow faster than it is kept.
    chances = min(loop.turns, max(map(len, sizes.values()), default=loop.turns))
    anew = any(later <= size for (_, size), (_, later) in steps)
    # What takes the first few of a pass is full by then.
    grows = any(later > size and 2 * turn >= loop.turns for (_, size), (turn, later) in steps)
    # A sum that starts anew within the loop holds a few graphs at most.
    bounded = loop.known_length and (loop.level == "window" or event.data["size"] < loop.turns)
    if bounded and event.data["size"] < FEW:
        return None
    behind = [backward for backward in run.backwards if _behind(backward, event, loop)]
    if any(term in group for backward in behind for term, _ in backward.terms):
        return None  # One of them is chosen when all are there.
    outer = turning(group[0].loops, group[-1].loops) or loop
    calls = sum(any(term in group for term, _ in backward.terms) for backward in run.backwards)
    if outer.known_length and not outer.cut and 0 < calls < FEW:
        return None  # Of few backward calls in all, whatever each was made from.
    sent = any(term.sent for term in group) or any(term.site == site and term.sent for term in run.terms)
    trained = {term.data for term in run.terms if term.sent and term.data}
    # A metric of what backward was called for, or of a part of it.
    beside = not sent and all(any(term.data and term.data <= one for one in trained) for term in group)
    same = len({term.data for term in group}) == 1
    if not sent and any(one > 0 or same for one in frozenset.intersection(*(term.data for term in group))):
        return None  # Layers, scales or parts of one batch.
    known = group[0].reduction in ("mean", "sum") and group[0].why not in ("loss", "output", "outputs")
    level = Confidence.HIGH if sent or known else Confidence.LOW
    if loop.kind == "call":
        level = Confidence.LOW
    fresh = len({term.fetch for term in group}) > 1
    if not fresh and loop.kind not in ("loader", "while") and not sent:
        level = Confidence.LOW
    if not sent and loop.kind == "loader" and not loop.named:
        level = Confidence.LOW  # What is gone through may well be the samples of one batch.
    trained_too = any(one.overlaps(own) for own in group[0].owners for one in _trained(run))
    if not sent and (group[0].guessed if trained_too else not event.data["evaluating"]):
        # A metric beside the loss: what returns both may well detach it. Or what nobody trains and nobody evaluates may
        # have no parameters at all.
        level = Confidence.LOW
    level = weaker(level, _reach(event), Confidence.MEDIUM if beside else Confidence.HIGH)
    sent |= beside
    name = event.data["target"] or "the list"
    alike = [term for term in run.terms if term.site == site]
    few = (anew or not grows) and event.data["size"] < chances
    if sent and (few or _of_one_window(outer, group, alike) or _of_one_update(run, group)):
        return Report(
            span,
            f"`{name}` keeps the autograd graphs of its micro-batches' losses until it starts anew (activations are "
            "freed by backward, the graphs' nodes are not); keep `.detach()` or `.item()`",
            Severity.INFO,
            level,
            notes=(("the loop over micro-batches", loop.span),),
            intents=_detaching(span, name, after_backward=True),
            evidence={"scope": list(loop.span)},
        )
    if sent:
        return Report(
            span,
            f"`{name}` keeps the autograd graph of every micro-batch's loss (activations are freed by backward, "
            "the graph's "
            "nodes are not): host memory grows with each micro-batch; keep `.detach()` or `.item()`",
            Severity.WARNING,
            level,
            notes=(("the loop over micro-batches", loop.span),),
            intents=_detaching(span, name, after_backward=True),
            evidence={"scope": list(loop.span)},
        )
    return Report(
        span,
        f"`{name}` keeps the whole forward graph of every batch, since nothing calls backward on it: memory "
        "grows with all "
        "activations until it runs out; keep `.detach()` or `.item()`, or run under torch.no_grad()",
        Severity.ERROR,
        level,
        notes=(("the loop over batches", loop.span),),
        intents=_detaching(span, name, after_backward=False),
        evidence={"scope": list(loop.span)},
    )


def _of_one_window(loop: Loop, group: list[Term], others: list[Term]) -> bool:
    """Whether what is kept is of one entry of a loop over a window's micro-batches, which is entered again and again.

    `others` are all terms that the same place has made.
    """
    within: dict[int, set[int]] = {}  # entries of the loop by those of the loop around it
    for term in others:
        around = [one for one, _ in term.loops]
        at = next((i for i, one in enumerate(around) if one.span == loop.span), 0)
        if at:
            within.setdefault(around[at - 1].entry, set()).add(around[at].entry)
    entries = {one.entry for term in group for one, _ in term.loops if one.span == loop.span}
    again = any(len(one) > 1 for one in within.values())
    return (loop.level == "window" or _counts_to_k(loop)) and len(entries) == 1 and again


def _of_one_update(run: Run, group: list[Term]) -> bool:
    """Whether the losses that are kept at most are those of one update: the sum starts anew with the next one."""
    calls = {one.number for one in run.backwards if any(term in group for term, _ in one.terms)}
    sites = {run.backwards[number].site for number in calls}
    for lane in run.lanes:
        ended = [window.seen for window in lane.windows if window.update is not None]
        again = [seen for seen in ended if any(run.backwards[number].site in sites for number in seen)]
        if calls and len(again) > 1 and any(calls.issubset(seen) for seen in ended):
            return True
    return False


def _counts_to_k(loop: Loop) -> bool:
    """Whether a loop is `for i in range(iter_size)`, and not over a multiple of it."""
    plain = isinstance(loop.count, Opaque) or (
        len(roots_of(loop.count)) == 1 and getattr(loop.count, "born", 0) == NOWHERE
    )
    return loop.kind == "count" and loop.named and plain


def _trained(run: Run) -> set[Owner]:
    return {owner for backward in run.backwards for owner in backward.owners}


def _turning(group: list[Term]) -> Loop | None:
    for one, other in pairwise(group):
        found = turning(one.loops, other.loops)
        if found is not None:
            return found
    return None


RULE = Rule(
    code="ACC005",
    name="graph-growing-loss",
    category="memory",
    severity=Severity.WARNING,
    fix="safe",
    summary="A loss that still holds its autograd graph is kept beyond its iteration.",
    documentation=DOCUMENTATION,
    check=check,
)
