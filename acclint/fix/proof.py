"""Whether a rewrite did what it is for and nothing else: the loops before and after it, side by side.

A rewrite is proven when the finding is gone, nothing new is reported, every update that was right still is, every full
window of the optimizer that the finding is about is right, and no other event of the run came, went or moved to
another cadence. All of it must hold under both assignments of numbers and on every path that was run.
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
from acclint.simulate.facts import common_size, window_size
from acclint.simulate.trace import Lane, Run, Window
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
class _Update:
    """One window of a lane. `right` says whether every micro-batch of it, and nothing else, has its right weight."""

    size: int
    full: bool
    right: bool
    excess: bool


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
            yield _events(one, other, rule, intent)
            yield from _lanes(one, other, rule, report, intent, base=not flipped)


def _events(one: Run, other: Run, rule: Rule, intent: Intent) -> str:
    detaches = any(isinstance(action, Detach) for action in intent.actions)
    for kind in _KEPT:
        fewer = len(other.of(kind)) <= len(one.of(kind))
        if not fewer or (len(other.of(kind)) < len(one.of(kind)) and not detaches and not intent.regroups):
            return "another tensor would keep its graph" if not fewer else "what is kept would change"
    for kind in _TRACE:
        if intent.regroups and kind != "backward":
            continue
        if kind == "schedule" and rule.category == "schedule":
            continue
        if len(one.of(kind)) != len(other.of(kind)):
            return f"the number of `{kind}` events would change"
    return ""


def _lanes(one: Run, other: Run, rule: Rule, report: Report, intent: Intent, *, base: bool) -> Iterator[str]:
    about = _owners(report)
    if [lane.name for lane in one.lanes] != [lane.name for lane in other.lanes]:
        yield "another optimizer or other parameters would be updated"
        return
    for old, new in zip(one.lanes, other.lanes, strict=True):
        was, then = _updates(one, old), _updates(other, new)
        if not intent.regroups:
            if len(was) != len(then):
                yield "the number of updates would change"
            elif any(a.right and not b.right and (b.full or b.excess) for a, b in zip(was, then, strict=True)):
                yield "an update that is right now would be wrong"
        elif _share(then) < _share(was):
            yield "more updates would be wrong than now"
        mine = rule.category in ("gradient", "window") and base and (not about or new.name in about)
        if mine and was and not _good(then):
            yield "an update would still not be right"


def _good(updates: list[_Update]) -> bool:
    """Every full window is right, and no other one is too large."""
    return any(one.full for one in updates) and all(one.right if one.full else not one.excess for one in updates)


def _share(updates: list[_Update]) -> float:
    return sum(one.right for one in updates) / len(updates) if updates else 1.0


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
    stale = bool(used & set(window.row))
    unsure = any(event.data.get("unsure") for event in window.edits)
    right = not stale
    total: dict[tuple[Span, ...], float] = {}
    for backward in seen:
        amount = float(window.row.get(backward.number, 0))
        if amount == 0:
            right = False
        if unsure or not backward.known_scale:
            continue
        weight = max((float(weight) for _, weight in backward.terms), key=abs, default=1.0)
        term = max(backward.terms, key=lambda one: abs(float(one[1])), default=None)
        summed = term is not None and term[0].reduction == "sum"
        part = abs(amount * weight) if summed else abs(amount * weight) * max(k, 1)
        if abs(part - 1) > _EXACT:
            right = False
        if not summed:
            total[backward.site] = total.get(backward.site, 0.0) + abs(amount * weight)
    excess = stale or any(amount > 1 + _EXACT for amount in total.values())
    return _Update(size, size == k, right, excess)


def _owners(report: Report) -> set[object]:
    found = report.evidence.get("contributions")
    if not isinstance(found, (list, tuple)):
        return set()
    return {one["owner"] for one in found if isinstance(one, dict) and "owner" in one}
