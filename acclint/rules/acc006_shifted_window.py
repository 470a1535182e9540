"""ACC006 shifted-window."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from acclint.findings import Severity
from acclint.knowledge.names import is_accumulation_name, is_batch_size_name, is_interval_name
from acclint.program import Span
from acclint.rules.base import Action, Intent, Move, Negate, Report, Rule, Shift
from acclint.rules.rewrites import divide, undivided
from acclint.rules.windows import View, held, own_data, owner_phrase, views
from acclint.simulate.trace import Event, Guard, Loop, Run, Window
from acclint.simulate.values import Number, Term, numeric, roots_of

if TYPE_CHECKING:
    from acclint.simulate import Analysis

DOCUMENTATION = """\
## What it does

Finds window tests that fire at the wrong micro-batch: at the first one (`i % k == 0` with i from 0), one late in the
first window (`i % k == 0 and i > 0`), at every one but the last (the truth value of `i % k`), at changing distances (k
is reassigned while the loop runs), or under a test that belongs to something else (logging, a progress bar).

## Why is this bad?

With `i % k == 0` the first update is made from one micro-batch with weight 1/k, and every later window is shifted by
one, so that k - 1 micro-batches are left over at the end. An inverted test updates on k - 1 of k micro-batches with
incomplete gradients. Inside accelerate's `accumulate()` the test `i % k == 0` never meets the end of the window: no
update at all.

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
        if i % accumulation_steps == 0:
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

- The counter starts at 1, or is raised before the test.
- The test stands before the backward pass and closes the previous window.
- Only the zeroing is under `i % k == 0`, at the head of the window.
- The distance is measured from the last update (`i - last_update >= k`).
- k is computed anew in the loop (a warm-up of the accumulation steps): the first window may be shorter by intent.

## Fix safety

Safe for a window that is off by one or inverted: the test becomes `(i + 1) % k == 0`, and the updates fall on full
windows; where the loss is not divided either, the division is added. Advice for the others, whose intention is not
certain.

## References

- [Automatic mixed precision examples: gradient accumulation](https://docs.pytorch.org/docs/stable/notes/amp_examples.html#gradient-accumulation)
"""


def check(analysis: Analysis) -> Iterator[Report]:
    yield from held(analysis, lambda run: _judge(analysis, run))


def _judge(analysis: Analysis, run: Run) -> list[Report]:
    found: list[Report] = []
    for view in views(analysis, run):
        if view.micro is None:
            continue
        if view.micro.kind == "call":
            report = _shifted_calls(view)
        elif not view.closed:
            report = _never_due(view, view.micro) or _never_true(view, view.micro)
        elif (gate := view.gate) is not None:
            sizes = [size for size in view.sizes if size > 0]
            report = (
                _varying(view, gate)
                or _shifted(view, gate, sizes)
                or _long_first(view, gate, sizes)
                or _inverted(view, gate, sizes)
                or _late(view, gate, sizes)
                or _borrowed(view, gate, sizes)
                or _another_number(view, gate, sizes)
                or _irregular(view, gate)
            )
        else:
            report = _shifted_sums(view)
        if report is not None:
            found.append(report)
    return found


def _weighs_one(view: View, window: Window) -> bool:
    """Whether the means of the micro-batches of a window weigh 1 together, as those of a full window should."""
    site = view.backwards(window)[0].site
    calls = [view.effective(window, one) for one in view.backwards(window) if one.site == site]
    if any(term is not None and term.reduction == "sum" for term, _ in calls):
        return False
    weights = [weight for _, weight in calls]
    if not all(weights):
        return False  # some of them are zeroed
    return view.scale_known and abs(sum(abs(float(weight)) for weight in weights) - 1) < 1e-6


def _report(view: View, place: Span, message: str, severity: Severity, intents: tuple[Intent, ...] = ()) -> Report:
    return Report(
        place,
        message,
        severity,
        view.confidence,
        notes=tuple(one for one in view.related() if one[1] != place),
        assumptions=view.notes(),
        intents=intents,
        evidence=view.proof(),
    )


def _ways(view: View, told: str, *ways: tuple[Action, ...]) -> tuple[Intent, ...]:
    """One intent per way to correct the test; then each together with the division that is missing as well."""
    if _divided_for_another(view):
        return (Intent("display", "let the window test and the division of the loss go by the same number"),)
    plain = [Intent("safe", told, way, regroups=True) for way in ways]
    missing = divide(undivided(view, view.closed), view.k_place) if view.k_place else ()
    also = f"{told}, and divide the loss by {view.k_phrase()}"
    return (*plain, *(Intent("safe", also, (*way, *missing), regroups=True) for way in ways if missing))


def _divided_for_another(view: View) -> bool:
    """Whether a mean, or its gradient, is divided by a number of its own, which is not the length of a window."""
    k = view.gate.modulus if view.gate is not None else None
    for window in view.closed:
        if any(event.data.get("unsure") for event in window.edits):
            continue
        for backward in view.backwards(window):
            term, weight = view.effective(window, backward)
            if term is None or term.reduction not in ("mean", "unknown") or not backward.known_scale or not weight:
                continue
            divisor = 1 / abs(float(weight))
            if round(divisor) not in (1, k) and abs(divisor - round(divisor)) < 1e-6:
                return True
    return False


def _later(view: View, gate: Guard, by: int) -> list[tuple[Action, ...]]:
    """Shift a window test alone, or wherever it stands in its loop."""
    test = _test(view, gate)
    return [(Shift(test, by, everywhere),) for everywhere in (False, True)]


def _test(view: View, gate: Guard) -> Span:
    """The place of a window test: of its remainder, where that is written in another statement."""
    at = gate.remainder
    return at if at is not None and at in view.texts.operands and not at.within(gate.span) else gate.span


def _behind_backward(view: View, gate: Guard, first: Window) -> tuple[Intent, ...]:
    """Where the update stands before the backward pass of its own micro-batch, its `if` belongs behind it."""
    assert first.update is not None
    update = first.update
    turn = [(loop, turn) for loop, turn in update.loops]
    later = [
        backward
        for backward in view.run.backwards
        if backward.event.loops[: len(turn)] == tuple(turn) and backward.event.number > update.number
    ]
    if not later:
        return ()
    tests = [event for event in view.run.of("test") if event.span == gate.span]
    path, site = tests[0].path if tests else update.path, later[-1].site
    depth = next((at for at, one in enumerate(path) if (one,) != site[at : at + 1]), len(path))
    if depth >= len(site):
        return ()
    # Where the test is in a function that the backward call is not in, it is the call of the function that moves.
    moved = gate.span if depth == len(path) else path[depth]
    place = site[depth]
    told = "update behind the backward pass of the micro-batch: the first window is then as long as the others"
    return (Intent("safe", told, (Move(moved, behind=place, level=True),), regroups=True),)


def _varying(view: View, gate: Guard) -> Report | None:
    """k is reassigned between two boundaries of a counter that runs on: the windows are not as long as k says."""
    seen: list[tuple[Window, int, object, Span | None]] = []
    for window, size in zip(view.closed, view.sizes, strict=True):
        guards = [guard for guard in window.update.guards if guard.span == gate.span] if window.update else []
        if size and guards and guards[-1].modulus is not None:
            seen.append((window, size, guards[-1].modulus, guards[-1].remainder or guards[-1].bound_span))
    if len({place for *_, place in seen}) > 1:
        return None  # Now this part of the test has decided, now that.
    changed = [one for before, one in pairwise(seen) if one[2] != before[2]]
    if not any(size != k and not _weighs_one(view, window) for window, size, k, _ in changed):
        return None
    sizes = ", ".join(str(size) for _, size, *_ in seen[:8])
    return _report(
        view,
        gate.span,
        f"k changes while the counter of this window test runs on: the updates of {owner_phrase(view)} sum {sizes} "
        "micro-batches, not k each",
        Severity.ERROR,
        (Intent("display", "change k only where a window begins, together with the counter"),),
    )


def _divisors(view: View, windows: list[Window]) -> set[float]:
    """What the losses of the windows were divided by where that was k by its name or use; empty if unsure."""
    found: set[float] = set()
    for window in windows:
        for backward in view.backwards(window):
            named = [float(value) for value, is_k, _ in backward.divisors if is_k]
            if len(named) != 1 or len(backward.divisors) != 1 or not backward.known_scale:
                return set()
            found.update(named)
    return found


def _late(view: View, gate: Guard, sizes: list[int]) -> Report | None:
    """The counter has to exceed k: every window holds one micro-batch too many for the division."""
    modulus = gate.modulus
    if not isinstance(modulus, int) or len(sizes) < 2 or any(size != modulus + 1 for size in sizes):
        return None
    weights = {
        abs(float(view.effective(window, backward)[1])) for window in view.closed for backward in view.backwards(window)
    }
    if not view.scale_known or any(abs(weight * modulus - 1) > 1e-6 for weight in weights):
        return None
    return _report(
        view,
        gate.span,
        f"the window test is true one micro-batch late: each update of {owner_phrase(view)} sums {modulus + 1} "
        f"micro-batches, and the loss is divided by {modulus}",
        Severity.WARNING,
        _ways(view, f"let the test come true after {modulus} micro-batches", *_later(view, gate, -1)),
    )


def _borrowed(view: View, gate: Guard, sizes: list[int]) -> Report | None:
    """The update stands under a test of logging or the like, while the loss is divided by another number."""
    modulus = gate.modulus
    word = _interval(view, gate.span)
    if not word or not isinstance(modulus, int) or len(sizes) < 2 or set(sizes[1:]) != {modulus}:
        return None
    divisors = _divisors(view, view.closed)
    if len(divisors) != 1 or modulus in divisors:
        return None
    (divisor,) = divisors
    return _report(
        view,
        gate.span,
        f"the update is under the test of `{word}`: {owner_phrase(view)} is stepped every {modulus} micro-batches, but "
        f"the loss is divided by {divisor:g}",
        Severity.ERROR,
        (Intent("display", "give the update a window test of its own, with the number that the loss is divided by"),),
    )


def _another_number(view: View, gate: Guard, sizes: list[int]) -> Report | None:
    """The window test goes by a number that cannot be what the loss is divided by: `% 5` or `% (k + 1)`, and `/ k`."""
    modulus = gate.modulus
    said = {text for span, text in view.texts.moduli.items() if span.within(gate.span)}
    if not isinstance(modulus, int) or len(sizes) < 2 or modulus not in sizes or len(said) != 1:
        return None
    calls = [(window, call) for window in view.closed for call in view.backwards(window)]
    found = {divisor for _, call in calls for divisor in call.divisors}
    (test,) = said
    if len(found) != 1 or any(len(call.divisors) != 1 or not call.known_scale for _, call in calls):
        return None
    ((divisor, is_k, place),) = found
    word = view.texts.divisors.get(place, "")
    derived = test in (f"{word} + 1", f"{word} - 1")
    named = is_k or is_accumulation_name(word.rpartition(".")[2])
    if not word or divisor == modulus or not (derived or (named and test.isdigit())):
        return None
    if any(abs(abs(float(view.effective(*one)[1])) * float(divisor) - 1) > 1e-6 for one in calls):
        return None
    return _report(
        view,
        gate.span,
        f"the window test goes by `{test}` micro-batches and the loss is divided by `{word}`: the updates of "
        f"{owner_phrase(view)} are {modulus / float(divisor):.3g} times as large as the mean over their window",
        Severity.ERROR,
        (Intent("display", "let the window test and the division of the loss go by the same number"),),
    )


def _never_due(view: View, micro: Loop) -> Report | None:
    """As `_borrowed`, where the interval is so long in the abstract run that no update was seen."""
    for event in view.run.of("test"):
        inside_loop = any(loop.span == micro.span for loop, _ in event.loops)
        word = _interval(view, event.span)
        if word and inside_loop and event.data["steps"] and _divisors(view, view.windows):
            return _report(
                view,
                event.span,
                f"the update is under the test of `{word}`, while the loss is divided by the accumulation steps: "
                f"{owner_phrase(view)} is not stepped at the end of a window",
                Severity.ERROR,
            )
    return None


def _never_true(view: View, micro: Loop) -> Report | None:
    """A window test over a counter that is known all along and never meets it."""
    tests: dict[Span, list[Event]] = {}
    for event in view.run.of("test"):
        if any(loop.span == micro.span for loop, _ in event.loops) and event.data["steps"]:
            tests.setdefault(event.span, []).append(event)
    for span, events in tests.items():
        k = events[0].data["modulus"]
        known = all(
            numeric(event.data["counter"]) is not None and not roots_of(event.data["counter"]) for event in events
        )
        if not known or not isinstance(k, int) or k < 2 or len({event.data["outcome"] for event in events}) > 1:
            continue
        if len({numeric(event.data["counter"]) for event in events}) < 2:
            continue  # `if args.warmup != -1` counts nothing.
        whole = micro.known_length and not micro.cut and micro.ended
        nested = any(guard.modulus is not None and guard.outcome for guard in events[0].guards)
        entries = {loop.entry for event in events for loop, _ in event.loops if loop.span == micro.span}
        if len(events) < max(2, len(entries)) * k and not (nested and whole and len(events) > 1):
            continue  # a loader shorter than k is another mistake
        if _counts_outer(micro, events):
            continue  # The run may have been too short for a counter of a loop further out.
        if any(event.data["unknown"] for event in events) or any(guard.unknown for guard in events[0].guards):
            continue  # It may be another part of the test that is false.
        return _report(
            view,
            span,
            "this window test is never true for the values that its counter takes: "
            f"{owner_phrase(view)} is never stepped",
            Severity.ERROR,
        )
    return None


def _counts_outer(micro: Loop, events: list[Event]) -> bool:
    """Whether the counter of a window test changes, but never within a pass of the loop over micro-batches."""
    passes: dict[int, set[float]] = {}
    for event in events:
        entry = next(loop.entry for loop, _ in event.loops if loop.span == micro.span)
        passes.setdefault(entry, set()).add(float(numeric(event.data["counter"])))
    return all(len(one) == 1 for one in passes.values()) and len(set().union(*passes.values())) > 1


def _in_steps(view: View, gate: Guard) -> bool:
    """Whether the counter of a window test rises by more than one with each micro-batch."""
    counters: list[tuple[float, int]] = []
    for window, size in zip(view.closed, view.sizes, strict=True):
        guards = [one for one in window.update.guards if one.span == gate.span] if window.update is not None else []
        at = numeric(guards[-1].counter) if guards else None
        if at is not None:
            counters.append((float(at), size))
    return any(later - earlier > size > 0 for (earlier, _), (later, size) in pairwise(counters))


def _irregular(view: View, gate: Guard) -> Report | None:
    """The test is not true every k micro-batches: its counter is reset or raised at the wrong place."""
    k = gate.modulus
    micro = view.micro
    if not isinstance(k, int) or k < 2 or micro is None or not view.scale_known or roots_of(gate.counter):
        return None
    if set(view.sizes) == {1}:
        return None  # Every micro-batch updates: there is no window at all.
    if is_batch_size_name(view.tested_text.rpartition(".")[2]) and _in_steps(view, gate):
        return None  # Samples are counted.
    inner: list[tuple[Window, int]] = []
    before: int | None = None
    for window, size in zip(view.closed, view.sizes, strict=True):
        assert window.update is not None
        entry = next((loop.entry for loop, _ in window.update.loops if loop.span == micro.span), None)
        if entry is not None and entry == before and window.seen and _boundary(window, gate):
            inner.append((window, size))
        before = entry
    # The update at the end of a pass, by another part of the test, comes at another remainder.
    remainders = [_remainder(window, gate, k) for window, _ in inner]
    usual = max(remainders, key=remainders.count, default=None)
    inner = [one for one, remainder in zip(inner, remainders, strict=True) if remainder == usual]
    wrong = [
        window for window, size in inner if size not in (k, _modulus(window, gate)) and not _weighs_one(view, window)
    ]
    if len(inner) < 2 or len(wrong) * 2 <= len(inner):
        return None
    sizes = ", ".join(str(size) for size in view.sizes[:8])
    return _report(
        view,
        gate.span,
        f"the window test does not come true every {view.k_phrase()} micro-batches: "
        f"the updates of {owner_phrase(view)} sum {sizes} micro-batches",
        Severity.ERROR,
        (
            Intent(
                "display", "raise the counter once per micro-batch, and reset it only where the optimizer is stepped"
            ),
        ),
    )


def _modulus(window: Window, gate: Guard) -> object:
    """What k was when the window ended, where it changes."""
    assert window.update is not None
    return next((guard.modulus for guard in window.update.guards if guard.span == gate.span), None)


def _remainder(window: Window, gate: Guard, k: int) -> object:
    """What the counter of the window test leaves when it is divided by k, at the update that ends a window."""
    assert window.update is not None
    counters = [numeric(guard.counter) for guard in window.update.guards if guard.span == gate.span]
    return counters[-1] % k if counters and counters[-1] is not None else None


def _boundary(window: Window, gate: Guard) -> bool:
    """Whether an update came from the remainder itself, not from another part of the test (the last batch)."""
    assert window.update is not None
    return any(guard.span == gate.span and guard.modulus is not None for guard in window.update.guards)


def _interval(view: View, test: Span) -> str:
    """The modulus of a test, if its name says that it is an interval of logging, saving or the like."""
    for span, said in view.texts.moduli.items():
        if span.within(test):
            name = said.rpartition(".")[2]
            if is_interval_name(name) and not is_accumulation_name(name):
                return said
    return ""


def _shifted(view: View, gate: Guard, sizes: list[int]) -> Report | None:
    """The first window is shorter than the others, which are all right."""
    if len(sizes) == 1 == sizes[0] and isinstance(gate.modulus, int) and gate.modulus > 1:
        return _first_only(view, gate)
    if view.k < 2 or len(sizes) < 2 or sizes[0] >= view.k or sizes[1] != view.k or gate.modulus != view.k:
        return None
    if {gate.bound, *(said for span, said in view.texts.moduli.items() if span.within(gate.span))} & view.texts.moving:
        return None  # k may be shorter at first, and come to its length later.
    first = next(window for window in view.closed if window.seen)
    if first.update is None or not any(guard.span == gate.span for guard in first.update.guards):
        return None  # Another place has updated before, a trial say.
    counter = numeric(gate.counter)
    if counter is not None and not 0 <= counter <= view.k:
        return None  # A counter that starts somewhere: the windows are in phase with it from then on.
    if _weighs_one(view, first) and all(_weighs_one(view, window) for window in view.full):
        return None
    if any(event.data.get("unsure") for window in view.closed for event in window.edits):
        return None  # The gradients are divided by what was seen, perhaps.
    if _turns(view, first) % view.k == 0 and not _behind_backward(view, gate, first):
        return None  # The test is true at the k-th turn; some turns made no loss.
    return _report(
        view,
        gate.span,
        f"the window test is already true after {sizes[0]} micro-batch{'es' if sizes[0] > 1 else ''}: the first update "
        f"of {owner_phrase(view)} sums {sizes[0]} of {view.k_phrase()} micro-batches and every later window is shifted",
        Severity.WARNING,
        (
            *_behind_backward(view, gate, first),
            *_ways(
                view,
                f"let the test come true at the {view.k_phrase()}-th micro-batch: the first window is then as long as "
                "the others",
                *_later(view, gate, sizes[0] if 2 * sizes[0] <= view.k else sizes[0] - view.k),
                # One of two: off by one is the wrong way round.
                *([(Negate(gate.span),)] if view.k == 2 else []),
            ),
        ),
    )


def _shifted_sums(view: View) -> Report | None:
    """As `_shifted`, where backward is called once, with the sum of a window's losses."""
    sums = [view.backwards(window) for window in view.closed]
    if len(sums) < 2 or any(len(calls) != 1 or not calls[0].terms for calls in sums):
        return None
    update = view.closed[0].update
    gates = [one for one in update.guards if one.modulus is not None and not one.unknown] if update is not None else []
    first, second = ({own_data(term) for term, _ in calls[0].terms} for calls in sums[:2])
    if not gates or not isinstance(k := gates[-1].modulus, int) or not len(first) < k == len(second):
        return None
    if _turns(view, view.closed[0]) % k == 0:
        return None
    gate, counter = gates[-1], numeric(gates[-1].counter)
    weights = [
        weight * window.row.get(window.seen[0], 0) for window in view.closed for _, weight in _terms(view, window)
    ]
    if counter is None or not 0 <= counter < k or any(abs(abs(float(one)) * k - 1) > 1e-6 for one in weights):
        return None
    said = next((text for span, text in view.texts.moduli.items() if span.within(gate.span)), str(k))
    return _report(
        view,
        gate.span,
        f"the window test is already true after {len(first)} micro-batch{'es' if len(first) > 1 else ''}: the first "
        f"update of {owner_phrase(view)} sums {len(first)} of `{said}` micro-batches, each divided by it, and every "
        "later window is shifted",
        Severity.WARNING,
        (
            Intent(
                "safe",
                f"let the test come true at the `{said}`-th micro-batch",
                (Shift(_test(view, gate), len(first)),),
                regroups=True,
            ),
        ),
    )


def _terms(view: View, window: Window) -> Iterator[tuple[Term, Number]]:
    return (one for backward in view.backwards(window) for one in backward.terms)


def _shifted_calls(view: View) -> Report | None:
    """As `_shifted`, where the loop is elsewhere: the object that is called counts by itself, from a known number."""
    gate = view.gate
    if gate is None or roots_of(gate.counter):
        return None
    return _shifted(view, gate, [size for size in view.sizes if size > 0])


def _turns(view: View, first: Window) -> int:
    """How many turns of the loop over micro-batches there were up to the first update."""
    loops = first.update.loops if first.update is not None else ()
    return next((turn + 1 for loop, turn in loops if view.micro is not None and loop.span == view.micro.span), 1)


def _first_only(view: View, gate: Guard) -> Report | None:
    """As `_shifted`, where the pass ends before the second update: the first micro-batch steps, the rest never does."""
    rest = view.windows[-1]
    window = view.closed[0]
    weights = [view.effective(window, one)[1] for one in view.backwards(window)]
    if numeric(gate.counter) != 0 or rest.update is not None or not rest.seen or not view.scale_known:
        return None
    if len(weights) != 1 or abs(abs(float(weights[0])) * float(gate.modulus or 0) - 1) > 1e-6:
        return None
    return _report(
        view,
        gate.span,
        f"the window test is already true after 1 micro-batch: the only update of {owner_phrase(view)} sums 1 of "
        f"{gate.modulus} micro-batches",
        Severity.WARNING,
    )


def _long_first(view: View, gate: Guard, sizes: list[int]) -> Report | None:
    """`i % k == 0 and i > 0` with a counter from 0: the first window has k + 1 micro-batches, the others k."""
    k = gate.modulus
    first = next((window for window in view.closed if window.seen), None)
    if not isinstance(k, int) or k < 2 or sizes[:2] != [k + 1, k] or first is None or first.update is None:
        return None
    counters = [numeric(guard.counter) for guard in first.update.guards if guard.span == gate.span]
    if counters[-1:] != [k]:
        return None
    weights = [view.effective(window, one)[1] for window in view.closed for one in view.backwards(window)]
    if not view.scale_known or any(weight and abs(abs(float(weight)) * k - 1) > 1e-6 for weight in weights):
        return None  # Of those that are zeroed, left over at the end of a pass, another rule speaks.
    micro = view.micro
    entries = {
        loop.entry for one in view.backwards(first) for loop, _ in one.event.loops if micro and loop.span == micro.span
    }
    if len(entries) != 1:
        return None  # What another pass has left over.
    return _report(
        view,
        gate.span,
        f"the window test leaves out 0 and counts from it: the first update of {owner_phrase(view)} sums {k + 1} "
        f"micro-batches, each divided by {view.k_phrase()}, and every later window is shifted",
        Severity.WARNING,
        _ways(view, f"let the test come true at the {view.k_phrase()}-th micro-batch", *_later(view, gate, 1)),
    )


def _inverted(view: View, gate: Guard, sizes: list[int]) -> Report | None:
    """The update runs on every micro-batch except the boundary."""
    modulus = gate.modulus
    if not isinstance(modulus, int) or modulus < 3 or len(sizes) < modulus or set(sizes) != {1, 2}:
        return None
    total = sum(sizes)
    expected = total * (modulus - 1) / modulus
    passed = sum(one.span == gate.span and one.data["outcome"] == gate.outcome for one in view.run.of("test"))
    if abs(len(sizes) - expected) > 2 or passed < len(sizes) - 1:
        return None  # Many updates behind one test are a loop of their own.
    return _report(
        view,
        gate.span,
        f"the window test is the wrong way round: {owner_phrase(view)} is stepped on every micro-batch except each "
        f"{view.k_text or modulus}-th",
        Severity.ERROR,
        _ways(
            view,
            f"turn the test round: one update for {view.k_text or modulus} micro-batches",
            (Negate(gate.span),),
            (Negate(gate.span), Shift(_test(view, gate), 1)),
        ),
    )


RULE = Rule(
    code="ACC006",
    name="shifted-window",
    category="window",
    severity=Severity.WARNING,
    fix="safe",
    summary="The test for the end of the window is off by one, inverted, varying or about something else.",
    documentation=DOCUMENTATION,
    check=check,
)
