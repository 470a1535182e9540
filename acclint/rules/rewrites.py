"""Pieces of intents that several rules share, and what a rewrite does to a learning rate that was tuned before it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from acclint.program import Span
from acclint.rules.base import Action, Divide, Move, Remove, Zero
from acclint.rules.windows import View
from acclint.simulate.trace import Backward, Event, Window
from acclint.simulate.values import roots_of

_RATE = re.compile(r"(^|[^a-z])(lr|rate|learning_rate)([^a-z]|$)", re.IGNORECASE)


def divide(backwards: Sequence[Backward], by: Span | str) -> tuple[Action, ...]:
    """Divide what each of the backward calls is given, one action for a call."""
    calls = {backward.span: bool(backward.event.data.get("via")) for backward in backwards}
    return tuple(Divide(span, by, argument) for span, argument in calls.items())


def zero_behind_update(view: View, zeros: Sequence[Event]) -> list[tuple[Action, ...]]:
    """The ways to zero behind the update instead of at `zeros`, the best one first."""
    update, optimizer = view.update, view.lane.optimizer
    if update is None or not zeros:
        return []
    first, *rest = dict.fromkeys(event.span for event in zeros)
    others = tuple(Remove(span) for span in rest)
    ways: list[tuple[Action, ...]] = [(Move(first, behind=update.span), *others)]
    if optimizer is not None:
        ways.append((Remove(first), *others, Zero(update.span, optimizer.name)))
    if zeroed_after(view, {event.span for event in zeros}):
        # The gradients are zeroed behind the update already.
        ways.insert(0, (Remove(first), *others))
    return ways


def zeroed_after(view: View, but: set[Span]) -> bool:
    """Whether each update is followed by a zeroing, other than those at `but`, in the same turn of its loops."""
    updates = [window.update for window in view.closed if window.update is not None]
    zeros = [event for event in view.run.of("zero") if event.span not in but]
    return bool(updates) and all(
        any(zero.number > update.number and zero.loops == update.loops for zero in zeros) for update in updates
    )


def divided_rate(view: View) -> bool:
    """Plain SGD without weight decay: a learning rate divided by k is the division."""
    optimizer = view.lane.optimizer
    if optimizer is None:
        return True
    if not optimizer.invariant and view.texts.scaled_rate:
        return True  # `LR *= batch_size / 16`: linear in the micro-batch, as the gradient that is summed wants it.
    if not optimizer.plain_sgd:
        return False
    if roots_of(optimizer.lr) & {"over k", *view.run.k_names}:
        return True
    # The same expression divides a rate, whatever it is called. Where k has no words, what divides the rate may be k.
    return any(text == view.k_text or (not view.k_text and not text.isdigit()) for text in rate_divisors(view))


def rate_divisors(view: View) -> list[str]:
    """What learning rates are divided by, in the optimizer's call or before it."""
    optimizer = view.lane.optimizer
    return [
        text
        for span, text in view.texts.divisors.items()
        if (optimizer is not None and span.within(optimizer.span))
        or _RATE.search(view.texts.text(span).partition("/")[0])
    ]


def undivided(view: View, windows: Sequence[Window]) -> list[Backward]:
    """The backward calls whose mean losses have weight 1, where they have one, in the windows.

    None where the learning rate is divided instead.
    """
    if divided_rate(view):
        return []
    found: dict[Span, Backward] = {}
    for window in windows:
        for backward in view.backwards(window):
            term, weight = view.effective(window, backward)
            if term is not None and term.reduction in ("mean", "unknown") and abs(abs(float(weight)) - 1) < 1e-6:
                found[backward.span] = backward
    return list(found.values())


def smaller_gradient(view: View) -> str:
    """What a gradient that is k times smaller does to the learning rate at hand."""
    optimizer = view.lane.optimizer
    k = view.k_phrase()
    if optimizer is not None and optimizer.invariant and not view.run.of("clip"):
        name = optimizer.kind.rpartition(".")[2]
        return f"the gradient becomes 1/{k} of what it was, which {name} hardly notices"
    return (
        f"the gradient becomes 1/{k} of what it was; a learning rate tuned with the old code would have to be {k} "
        "times as large for the same steps"
    )
