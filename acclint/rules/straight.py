"""Accumulation without a loop: one backward call for each part of a batch, written out, and then one update.

Several backward calls in one turn are mostly several losses of one batch, or a GAN's halves. They are accumulation
where the calls differ in nothing but the part: the same loss of the same parameters, from all the parts of the same
tensors.
"""

from __future__ import annotations

from acclint.rules.windows import View
from acclint.simulate.trace import Backward, Part, Run, Window
from acclint.simulate.values import Term


def straight_calls(view: View) -> list[Backward]:
    """The backward calls of the last window, where every window is one written out; else nothing."""
    calls: list[Backward] = []
    for window in view.closed:
        calls = _calls(view.run, window)
        if len(calls) < 2:
            return []
    return calls


def _calls(run: Run, window: Window) -> list[Backward]:
    calls = [run.backwards[number] for number in window.seen]
    first = calls[0] if calls else None
    if first is None or len({call.site for call in calls}) < len(calls):
        return []
    terms: list[Term] = []
    for call in calls:
        same_turn = call.event.loops == first.event.loops and call.event.guards == first.event.guards
        if call.replay or not same_turn or len(call.terms) != 1 or not call.known_scale:
            return []
        term, weight = call.terms[0]
        if term.reduction != "mean" or weight * window.row.get(call.number, 0) != 1:
            return []
        terms.append(term)
    if len({(term.why, term.owners) for term in terms}) > 1 or any(event.data.get("unsure") for event in window.edits):
        return []
    return calls if _whole(run, terms) else []


def _whole(run: Run, terms: list[Term]) -> bool:
    """Whether the terms' data are the parts of the same tensors, each part once, and all of them."""
    parts = [[run.parts[one] for one in term.data if one in run.parts] for term in terms]
    rest = {frozenset(one for one in term.data if one not in run.parts) for term in terms}
    sources = {frozenset(part.source for part in found) for found in parts}
    if len(rest) > 1 or len(sources) != 1 or not parts[0]:
        return False
    for source in next(iter(sources)):
        own = [part for found in parts for part in found if part.source == source]
        if len(own) != len(terms) or not _covers(own):
            return False
    return True


def _covers(parts: list[Part]) -> bool:
    at: object = 0
    left = list(parts)
    while left:
        following = [part for part in left if part.lower == at]
        if len(following) != 1:
            return False
        at = following[0].upper
        left.remove(following[0])
    return at is None or at == parts[0].whole
