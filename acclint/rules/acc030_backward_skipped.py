"""ACC030 backward-skipped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from acclint.findings import Confidence, Severity
from acclint.program import Span
from acclint.rules.base import Intent, Report, Rule
from acclint.rules.windows import View, held, own_data, owner_phrase, views, weaker
from acclint.simulate.trace import Backward, Guard, Loop, Run, Window
from acclint.simulate.values import Term, roots_of

if TYPE_CHECKING:
    from acclint.simulate import Analysis

DOCUMENTATION = """\
## What it does

Finds windows in which every micro-batch is run forward but only the last one's loss is passed to `backward()`.

## Why is this bad?

The gradient is that of one micro-batch: the weights are 0, 0, 0, 1 for k = 4, and with the division by k the update
is a quarter of one micro-batch's gradient. (k - 1)/k of the forward passes are computed for nothing; the effective
batch is the micro-batch.

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
        if (i + 1) % accumulation_steps == 0:
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

- The losses of the window are summed and the sum is passed to `backward()` (ACC031).
- The whole pass, forward included, is under the test, as for a generator that is trained every n-th batch.
- The other forward passes run under `torch.no_grad()`.

## Fix safety

Advice only: either `backward()` moves out of the test, or the forward passes that are not used do not run.

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
                if backward.span in found or not backward.terms:
                    continue
                report = _under_window_test(view, window, backward)
                if report is None and len(backward.terms) == 1:
                    report = _whole_turn_gated(view, window, backward) or _behind_loop(view, backward)
                if report is not None:
                    found[backward.span] = report
    return list(found.values())


def _under_window_test(view: View, window: Window, backward: Backward) -> Report | None:
    """Backward and update wait for the window test, the forward pass does not."""
    assert window.update is not None
    guard = _window_guard(backward, {guard.span for guard in window.update.guards})
    if guard is None:
        return None
    term = backward.terms[0][0]
    counts: list[tuple[int, int]] = []
    for site in {one.site for one, _ in backward.terms}:
        # By turns: a place may make several terms in each, parts that are used only together.
        same = [one for one in view.run.terms if one.site == site]
        counts.append((len({one.loops for one in same}), len({one.loops for one in same if one.sent})))
    if any(made - sent < max(sent, 3) for made, sent in counts):
        return None
    made, sent = counts[0]
    notes = (("the window test", guard.span), ("the loss is computed here every time", term.span))
    return _report(view, backward, term, f"1 of {round(made / sent) if sent else guard.modulus}", notes)


def _whole_turn_gated(view: View, window: Window, backward: Backward) -> Report | None:
    """Forward, backward and update all wait for the window test, and the one loss is divided by the window's length."""
    assert window.update is not None
    guard = _window_guard(backward, {guard.span for guard in window.update.guards})
    if guard is None or guard.modulus is None or view.k != 1 or not backward.known_scale:
        return None
    tests = [event for event in view.run.of("test") if event.span == guard.span]
    if any(event.data["both"] for event in tests) or backward.event.loops not in [event.loops for event in tests]:
        return None
    if any(len(one.terms) > 1 for one in view.run.backwards if one.site == backward.site):
        return None  # the sum of a window
    moduli = {text for span, text in view.texts.moduli.items() if span.within(guard.span)}
    names = {text.rpartition(".")[2] for text in moduli}
    divided = [event.span for event in window.edits if view.texts.divisors.get(event.span) in moduli]
    for value, is_k, span in backward.divisors:
        said = view.texts.divisors.get(span, "")
        alike = is_k or said.rpartition(".")[2] in names or (not moduli and not said.isdigit())
        if said in moduli or (value == guard.modulus and alike):
            divided.append(span)
    if not divided:
        divided += [span for span in view.texts.divided if span.within(backward.span)]
    term, weight = view.effective(window, backward)
    optimizer = view.lane.optimizer
    if optimizer is not None and optimizer.plain_sgd and roots_of(optimizer.lr) & {"over k", *view.run.k_names}:
        divided, weight = [optimizer.span], float(weight) / guard.modulus  # The rate is divided instead.
    if not divided or term is None or abs(abs(float(weight)) * guard.modulus - 1) > 1e-6:
        return None
    notes = (("the window test", guard.span), ("divided by the length of a window", divided[0]))
    return _report(view, backward, term, f"1 of {guard.modulus}", notes)


def _behind_loop(view: View, backward: Backward) -> Report | None:
    """Backward stands behind the loop over the micro-batches, and gets the loss of the last one."""
    term = backward.terms[0][0]
    wasted = wasted_siblings(view.run, backward, term)
    if not wasted:
        return None
    loop = _inner_loop(backward, term)
    assert loop is not None
    notes = (("the loop over the micro-batches", loop.span), ("the loss is computed here every time", term.span))
    return _report(view, backward, term, "only the last" if loop.cut else f"1 of {len(wasted) + 1}", notes)


def _report(view: View, backward: Backward, term: Term, part: str, notes: tuple[tuple[str, Span], ...]) -> Report:
    known = term.reduction in ("mean", "sum") and term.why not in ("loss", "output", "outputs")
    return Report(
        backward.span,
        "backward runs only on the last micro-batch of a window: the losses of the others are computed and thrown "
        f"away, so each update of {owner_phrase(view)} sees {part} micro-batch{'es' if part[-1].isdigit() else ''}",
        Severity.ERROR,
        weaker(view.confidence, Confidence.HIGH if known else Confidence.MEDIUM),
        notes=notes,
        assumptions=view.notes(),
        intents=(
            Intent(
                "display",
                "call backward on each micro-batch's loss, before the window test; the gradient is then that of all "
                "micro-batches",
            ),
        ),
        evidence=view.proof(),
    )


def _window_guard(backward: Backward, around: set[Span]) -> Guard | None:
    """A window test that guards both the backward call and the update."""
    for guard in reversed(backward.event.guards):
        if guard.modulus is not None and guard.span in around and guard.modulus > 1:
            return guard
    return None


def _inner_loop(backward: Backward, term: Term) -> Loop | None:
    """The loop around the loss that had ended when backward was called."""
    around = {id(loop) for loop, _ in backward.event.loops}
    return next((loop for loop, _ in term.loops if id(loop) not in around), None)


def wasted_siblings(run: Run, backward: Backward, term: Term) -> list[Term]:
    """The losses of the other turns of a loop that had ended when backward was called with the loss of its last turn.

    Empty if one of them is used too, or if the turns work on the same data (a refinement, an attack).
    """
    loop = _inner_loop(backward, term)
    if loop is None:
        return []
    same = [one for one in run.terms if one.site == term.site and any(inner is loop for inner, _ in one.loops)]
    others = [one for one in same if one is not term]
    if any(one.sent for one in others) or (same and same[-1] is not term):
        return []
    data = [own_data(one) for one in same]
    return others if all(data) and len(set(data)) == len(data) else []


RULE = Rule(
    code="ACC030",
    name="backward-skipped",
    category="window",
    severity=Severity.ERROR,
    fix="display",
    summary="`backward()` is called only at the end of the window, so the other micro-batches count for nothing.",
    documentation=DOCUMENTATION,
    check=check,
)
