"""The contribution matrix from two sides: as the source predicts it, and as the run measured it, cell by cell.

The two can be compared where both have windows of the same size, for the updates from the first one to the first that
is cut short or runs on: how long a pass over the data is, the source need not know. Where the two differ there, acclint
is wrong, whatever the script does.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from acclint.findings import Finding, LoopReport
from acclint.probe import Measurement, Term
from acclint.probe.windows import Window, bands, usual_size, windows
from acclint.simulate.facts import thrown_away

TOLERANCE = 1e-2  # relative, of a cell; real factors are 2 and more

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Agreement:
    """One optimizer's contributions, predicted and measured, of the updates that can be compared; 1 is right.

    `optimizer` is an index into the measurement's, `loop` is the loop that was predicted.
    """

    optimizer: int
    loop: LoopReport
    predicted: Rows
    measured: Rows

    @property
    def differences(self) -> tuple[tuple[int, int], ...]:
        """(update, backward call) of each cell that differs; an update of another length differs behind its last."""
        found = []
        for update, (ours, theirs) in enumerate(zip(self.predicted, self.measured, strict=True)):
            found += [
                (update, at)
                for at, (a, b) in enumerate(zip(ours, theirs, strict=False))
                if abs(a - b) > TOLERANCE * max(abs(a), abs(b), 1.0)
            ]
            if len(ours) != len(theirs):
                found.append((update, min(len(ours), len(theirs))))
        return tuple(found)


def agreements(
    measured: Measurement,
    script: str,
    loops: Iterable[LoopReport],
    findings: Iterable[Finding],
    extent: Callable[[str, int], tuple[int, int]],
) -> list[Agreement]:
    """The optimizers for which a prediction can be compared.

    `script` is the absolute path of what was run. `extent` tells the first and the last row of the loop that begins at
    a row of a file (empty: the script). A finding has predictions of its own, for the branch that it is about.
    """
    found = []
    loops = [loop for loop in loops if len(loop.contributions) == 1]
    findings = list(findings)
    for optimizer in range(len(measured.optimizers)):
        seen = windows(measured, optimizer)
        mine = [loop for loop in loops if _is_about(loop, seen, script, extent)]
        if len(mine) != 1 or not all(window.explained and _single_means(window) for window in seen):
            continue
        others = [
            entry["updates"]
            for finding in findings
            if finding.place.filename == mine[0].place.filename
            for entry in finding.evidence.get("contributions", ())
        ]
        compared = [
            one
            for rows in (mine[0].contributions[0][1], *others)
            for size in dict.fromkeys((_common_length(rows), usual_size(seen)))  # several calls may be one micro-batch
            if (one := _compare(optimizer, mine[0], rows, seen, size)) is not None
        ]
        if compared:
            found.append(next((one for one in compared if not one.differences), compared[0]))
    return found


def _compare(
    optimizer: int, loop: LoopReport, rows: Sequence[Sequence[float]], seen: Sequence[Window], size: int
) -> Agreement | None:
    predicted = [tuple(map(float, row)) for row in rows]
    measured = [relative_row(window, size) for window in seen]
    count = _comparable(predicted, measured)
    return Agreement(optimizer, loop, tuple(predicted[:count]), tuple(measured[:count])) if count else None


def relative_row(window: Window, size: int, *, by_element: bool = False) -> tuple[float, ...]:
    """The contributions of the calls of an update and of older ones that are in it; 1 is right in windows of `size`.

    A window of another size may be divided by its own: then its means weigh 1 together. With `by_element` 1 is right
    also where the losses of the window are together the mean over its elements, whatever their sizes.
    """
    elements = _elements_of_a_mean(window) if by_element else 0.0
    # Several places are branches for one loss, or several losses of each micro-batch.
    for calls in (window.fresh, window.main) if window.fresh and window.means else ():
        weights = [window.weight(call) for call in calls]
        if abs(sum(weights) - 1) <= bands(window.measured.precision)[0]:
            size = len(calls) - thrown_away(weights, size)
            break
    row = []
    for call in sorted({*window.stale, *window.fresh}):
        terms = window.terms(call)
        summed = bool(terms) and terms[0].reduction == "sum"
        right = 1.0 if summed else max(size, 1)
        weight = _weight(terms)
        if elements and call in window.main:
            weight, right = abs(terms[0].per_element or 0.0), elements
        row.append(window.factor(call) * weight * right)
    return tuple(row)


def _weight(terms: Sequence[Term]) -> float:
    """What a micro-batch of a call weighs: of several terms of one model call the largest, of a difference one side."""
    sides: dict[int, dict[tuple[int, ...], float]] = {}
    for term in terms:
        side = sides.setdefault(-1 if term.weight < 0 else 1, {})
        side[term.forwards] = max(side.get(term.forwards, 0.0), abs(term.weight))
    means = {sign: sum(side.values()) / len(side) for sign, side in sides.items()}
    if len(means) == 1:
        return next(sign * mean for sign, mean in means.items())
    return max(means.values(), default=1.0)


def _elements_of_a_mean(window: Window) -> float:
    """How many elements a window has whose losses are together the mean over them: sums, or means of unlike size.

    0 for other windows: there the number of micro-batches is what a mean is divided by.
    """
    terms = [term for call in window.main for term in window.terms(call)]
    if len(terms) != len(window.main) or any(not term.elements or not term.per_element for term in terms):
        return 0.0
    counts = [float(term.elements or 0.0) for term in terms]
    whole = sum(counts)
    share = [abs(window.factor(call) * (window.terms(call)[0].per_element or 0.0)) * whole for call in window.main]
    alike = len(set(counts)) == 1 and not any(term.reduction == "sum" for term in terms)
    equal, _ = bands(window.measured.precision)
    return 0.0 if alike or any(abs(one - 1) > equal for one in share) else whole


def _is_about(
    loop: LoopReport, seen: Sequence[Window], script: str, extent: Callable[[str, int], tuple[int, int]]
) -> bool:
    """Whether all backward calls of the windows are made in that loop."""
    path = os.path.abspath(loop.place.filename)
    file = "" if path == script else path
    first, last = extent(file, loop.place.row)
    calls = [window.measured.backwards[call] for window in seen for call in window.fresh]
    return bool(calls) and all(call.file == file and any(first <= row <= last for row in call.site) for call in calls)


def _single_means(window: Window) -> bool:
    """Whether each call is of one mean loss, so that its right weight is known and it is one column."""
    calls = [window.measured.backwards[call] for call in window.fresh]
    terms = [call.data_terms(window.optimizer) for call in calls]
    return all(len(one) == 1 and one[0].reduction == "mean" for one in terms) and not any(c.closure for c in calls)


def _common_length(rows: Sequence[Sequence[float]]) -> int:
    return Counter(map(len, rows)).most_common(1)[0][0] if rows else 0


def _comparable(predicted: Sequence[Sequence[float]], measured: Sequence[Sequence[float]]) -> int:
    """How many updates from the first on can be compared; 0 if the windows have different sizes."""
    size = _common_length(predicted)
    if size < 2 or _common_length(measured) != size:
        return 0
    return min(
        next((at for at, row in enumerate(rows) if at and len(row) != size), len(rows))
        for rows in (predicted, measured)
    )
