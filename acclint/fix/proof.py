"""Whether a rewrite did what it is for and nothing else: the loops before and after it, side by side.

A rewrite is proven when the finding is gone, nothing new is reported, every update that was right still is, every
weight that changed is right, and no other event of the run came, went or moved to another cadence: under both
assignments of numbers and on every path that was run. On the path that the source suggests, every full window of the
optimizer that the finding is about must be right as well; other paths may be wrong for reasons of their own.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from acclint.findings import Severity
from acclint.judge import Judged
from acclint.program import Span
from acclint.rules.base import Detach, Intent, Report, Rule
from acclint.rules.precedence import owners
from acclint.simulate.facts import common_size, window_size
from acclint.simulate.trace import Backward, Lane, Run, Window
from acclint.source import split_lines

# Events whose number a rewrite may not change, unless it is about them.
_TRACE = ("backward", "update", "clip", "schedule", "edit", "hand added", "engine", "accumulate", "hook", "norm")
_KEPT = ("keep", "keep output")
_EXACT = 1e-6


def refusal(before: Judged, after: Judged, rule: Rule, report: Report, intent: Intent) -> str:
    """Why a rewrite is not proven, "" if it is."""
    return _reported(before, after, rule, report) or next(
        (reason for reason in _runs(before, after, rule, report, intent) if reason), ""
    )


# --- what is reported ------------------------------------------------------------------------------------------------


def _reported(before: Judged, after: Judged, rule: Rule, report: Report) -> str:
    rows = _Rows(before.text, after.text)
    here = {rows.after(report.span.row)}
    mine = [one for other, one in after.reports if other.code == rule.code]
    known = sum(other.code == rule.code for other, _ in before.reports)
    if len(mine) >= known or any(one.span.row in here for one in mine):
        return "the finding would still be there"
    for code, count in _loud(after).items():
        if code != rule.code and count > _loud(before)[code]:
            return f"{code} would be reported then"
    return ""


def _loud(judged: Judged) -> Counter[str]:
    return Counter(rule.code for rule, report in judged.reports if report.severity is not Severity.INFO)


class _Rows:
    """Where a row of the old text lies in the new one."""

    def __init__(self, old: str, new: str) -> None:
        matcher = difflib.SequenceMatcher(None, split_lines(old), split_lines(new), autojunk=False)
        self._codes = matcher.get_opcodes()

    def after(self, row: int) -> int:
        for _, begin, end, new_begin, new_end in self._codes:
            if begin < row <= end:
                return min(new_begin + row - begin, max(new_end, new_begin + 1))
        return row


# --- what the loops do -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    """A backward call in an update: `weights` are what its loss may be said to weigh there, none if that is unknown.

    1 is right relative to the window (`right`), or is the weight of a mean that nothing divides (`undivided`; what a
    sum is divided by is not the length of the window either).
    """

    weights: frozenset[float]
    right: bool
    undivided: bool


@dataclass(frozen=True)
class _Update:
    """One window of a lane.

    `numbers` are the backward calls in it. `stale`: it holds micro-batches that an earlier update has used. `lost`:
    some of its own are missing. `excess`: the weights of one place are more than one batch together.
    """

    size: int
    numbers: frozenset[int]
    full: bool
    stale: bool
    lost: bool
    excess: bool
    calls: tuple[_Call, ...]

    @property
    def right(self) -> bool:
        return not self.stale and not self.lost and all(call.right for call in self.calls)

    @property
    def sensible(self) -> bool:
        """Whether what the losses are divided by, if they are, is the length of the window for at least one of them."""
        return not self.calls or any(call.right or call.undivided for call in self.calls)


def _runs(before: Judged, after: Judged, rule: Rule, report: Report, intent: Intent) -> Iterator[str]:
    old = {path.flipped: path for path in before.analysis.paths}
    new = {path.flipped: path for path in after.analysis.paths}
    if "" not in old or "" not in new:
        yield "the rewritten loop is not understood"
        return
    for flipped in old:
        if flipped not in new:
            continue
        for one, other in ((old[flipped].first, new[flipped].first), (old[flipped].second, new[flipped].second)):
            if one is None or other is None:
                yield "the rewritten loop is not understood"
                return
            # A rewrite may show that a number is k, which is then run as another one.
            regroups = intent.regroups or one.k_names != other.k_names
            yield _events(one, other, rule, intent, regroups)
            yield from _lanes(one, other, rule, report, regroups, base=not flipped)


def _events(one: Run, other: Run, rule: Rule, intent: Intent, regroups: bool) -> str:
    detaches = any(isinstance(action, Detach) for action in intent.actions)
    for kind in _KEPT:
        fewer = len(other.of(kind)) <= len(one.of(kind))
        if not fewer or (len(other.of(kind)) < len(one.of(kind)) and not detaches and not regroups):
            return "another tensor would keep its graph" if not fewer else "what is kept would change"
    for kind in _TRACE:
        if regroups:
            continue  # The windows are others, and so is how long an unknown loader is taken to be.
        if kind == "schedule" and rule.category == "schedule":
            continue
        if len(one.of(kind)) != len(other.of(kind)):
            return f"the number of `{kind}` events would change"
    return ""


def _lanes(one: Run, other: Run, rule: Rule, report: Report, regroups: bool, *, base: bool) -> Iterator[str]:
    about = owners(report)
    if [lane.name for lane in one.lanes] != [lane.name for lane in other.lanes]:
        yield "another optimizer or other parameters would be updated"
        return
    for old, new in zip(one.lanes, other.lanes, strict=True):
        was, then = _updates(one, old), _updates(other, new)
        mine = rule.category in ("gradient", "window") and base and (not about or new.name in about)
        if regroups:
            yield _regrouped(was, then, common_size(other, new) >= min(common_size(one, old), 2))
        elif len(was) != len(then) or common_size(one, old) != common_size(other, new):
            yield "the number of updates would change"
        elif any(_worse(a, b) for a, b in zip(was, then, strict=True)):
            yield "an update that is right now would be wrong"
        elif mine and any(not _corrected(a, b) for a, b in zip(was, then, strict=True) if b.full):
            yield "an update would still not be right"
        if sum(update.size == 0 for update in then) > sum(update.size == 0 for update in was):
            yield "an update would run without a gradient"
        if mine and was and not _whole(then):
            yield "an update would still not be right"
        if mine and common_size(other, new) == 1 and not _sensible(then):
            yield "every micro-batch would update, though the loss is divided for a window"
    sizes = [common_size(other, lane) for lane in other.lanes if not about or lane.name in about]
    if regroups and base and max(sizes, default=2) < 2:
        yield "nothing would be accumulated any more"


def _regrouped(was: list[_Update], then: list[_Update], accumulates: bool) -> str:
    """What is wrong with updates of other micro-batches than before; "" if nothing."""
    if _share(then) < _share(was):
        return "more updates would be wrong than now"
    if not accumulates:
        return "nothing would be accumulated any more"
    if not _sensible(then):
        return "the loss is divided by another number than the length of the window"
    return ""


def _sensible(updates: list[_Update]) -> bool:
    return all(update.sensible for update in updates if update.full)


def _worse(was: _Update, then: _Update) -> bool:
    return (
        (was.right and then.numbers != was.numbers)
        or (then.stale and not was.stale)
        or (then.lost and not was.lost)
        or (then.excess and not was.excess and not was.lost)
        or (then.full and was.right and not then.right)
    )


def _corrected(was: _Update, then: _Update) -> bool:
    """Whether every weight that a rewrite has changed is right now."""
    if len(was.calls) != len(then.calls):
        return False
    pairs = zip(was.calls, then.calls, strict=True)
    return all(new.right for old, new in pairs if old.weights and new.weights and old.weights != new.weights)


def _whole(updates: list[_Update]) -> bool:
    """Every full window holds its own micro-batches, and no update those of another."""
    full = [one for one in updates if one.full]
    return bool(full) and not any(one.lost for one in full) and not any(one.stale for one in updates)


def _share(updates: list[_Update]) -> float:
    return sum(one.right and one.full for one in updates) / len(updates) if updates else 1.0


def _updates(run: Run, lane: Lane) -> list[_Update]:
    k = common_size(run, lane)
    used: set[int] = set()
    found: list[_Update] = []
    for window in lane.windows:
        if window.update is None:
            continue
        found.append(_judged(run, window, k, used))
        used |= set(window.row)
    return found


def _judged(run: Run, window: Window, k: int, used: set[int]) -> _Update:
    size = window_size(run, window)
    seen = [run.backwards[number] for number in window.seen if not run.backwards[number].replay]
    unsure = any(event.data.get("unsure") for event in window.edits)
    # A short window may be divided by k, as frameworks do, or by what it holds.
    counts = {max(k, 1), max(size, 1)}
    calls: list[_Call] = []
    total: dict[tuple[Span, ...], float] = {}
    for backward in seen:
        amount = abs(float(window.row.get(backward.number, 0)))
        if unsure or not backward.known_scale or not amount:
            calls.append(_Call(frozenset(), right=True, undivided=False))
            continue
        summed, weights = _weights(backward)
        parts = {1} if summed else counts
        calls.append(
            _Call(
                frozenset(round(amount * weight, 9) for weight in weights),
                right=any(abs(amount * weight * n - 1) < _EXACT for weight in weights for n in parts),
                undivided=summed or any(abs(amount * weight - 1) < _EXACT for weight in weights),
            )
        )
        if not summed:
            total[backward.site] = total.get(backward.site, 0.0) + amount * min(weights)
    return _Update(
        size,
        frozenset(number for number, amount in window.row.items() if amount),
        full=size == k,
        stale=bool(used & set(window.row)),
        lost=any(not window.row.get(backward.number) for backward in seen),
        excess=any(amount > 1 + _EXACT for amount in total.values()),
        calls=tuple(calls),
    )


def _weights(backward: Backward) -> tuple[bool, set[float]]:
    """Whether the loss is a sum, and the weight it is sent with: of its largest term, or of all terms of one place.

    Several terms of one place are steps in time, which make one loss together, or losses of their own.
    """
    sites: dict[tuple[Span, ...], list[float]] = {}
    for term, weight in backward.terms:
        sites.setdefault(term.site, []).append(abs(float(weight)))
    together = max((sum(weights) for weights in sites.values()), default=1.0)
    alone = max((max(weights) for weights in sites.values()), default=1.0)
    return any(term.reduction == "sum" for term, _ in backward.terms), {alone, together}
