"""Joins findings of the source with what a run measured: a verdict for each, and findings that only the run shows."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

from acclint.findings import Confidence, Finding, LoopReport, Place, Severity
from acclint.probe import Measurement
from acclint.probe.agreement import relative_row
from acclint.probe.difference import RESIDUAL
from acclint.probe.readings import CHECKS, Reading, read
from acclint.probe.windows import bands, usual_size, windows
from acclint.rules import all_rules

CONFIRMED, REFUTED, INCONCLUSIVE = "confirmed", "refuted", "inconclusive"
NOT_REACHED, CRASHED = "not reached", "crashed"

# What a run may say on its own: here the numbers leave no other intention open. Of the weights the first that is shown,
_WEIGHTS = ("ACC014", "ACC002", "ACC015", "ACC001", "ACC030", "ACC006", "ACC007")
_BESIDE = ("ACC005", "ACC003", "ACC017", "ACC011")  # and whatever else is.
_TINY = {1: Severity.ERROR, 2: Severity.ERROR, 3: Severity.WARNING, 4: Severity.WARNING}  # else info
_KEEPING = ("ACC005", "ACC031")  # their places may be in a loop without backward or update
# Names and severities of what the source is not searched for.
_UNSEARCHED = {"ACC011": ("mean-of-means", Severity.INFO), "ACC017": ("batch-coupled-loss", Severity.WARNING)}

Spot = tuple[str, int]  # file (empty: the script), row


@dataclass(frozen=True)
class Judged:
    """A finding with `evidence["measured"]` filled; `verdict` and `text` are its verdict and the number or reason.

    `owners` are the optimizers that it is about. `predicted` is False for what only the run shows.
    """

    finding: Finding
    verdict: str
    text: str
    owners: tuple[int, ...] = ()
    predicted: bool = True

    @property
    def surprising(self) -> bool:
        return is_surprising(self.finding.code, self.verdict, self.predicted)


def is_surprising(code: str, verdict: str, predicted: bool) -> bool:
    """Whether the source said otherwise than the run; what it is not searched for is no surprise."""
    return verdict == REFUTED or not (predicted or code in _UNSEARCHED)


class Run:
    """A measurement beside the sources: `script` is its absolute path, `texts` are the files by absolute path."""

    def __init__(self, measured: Measurement, script: str, texts: Mapping[str, str]) -> None:
        self.measured = measured
        self.script = script
        self.texts = texts
        self._blocks = {file: _blocks(text) for file, text in texts.items()}

    def judge(self, finding: Finding) -> Judged:
        """The verdict for a finding of the source."""
        verdict, text, owners = self._verdict(finding)
        if finding.code == "ACC003" and verdict == CONFIRMED:  # The source may not tell how many samples there are.
            finding = replace(
                finding, severity=max(finding.severity, self._severity_of_batches(), key=lambda one: one.rank)
            )
        return self._judged(finding, verdict, text, owners)

    def _verdict(self, finding: Finding) -> tuple[str, str, list[int]]:
        measured = self.measured
        owners = list(range(len(measured.optimizers)))
        crashed = f"{measured.error} (line {measured.error_line})" if measured.error_line else measured.error or ""
        if finding.code not in CHECKS:
            return INCONCLUSIVE, f"what a run shows says nothing about {finding.code}", owners
        spots = self._spots(finding)
        reached, about = self._reached(spots)
        if not reached and finding.code in _KEEPING:
            reached, about = self._reached(spots, wide=True)  # What is kept is often made further out.
        if not reached:
            if measured.outcome == "crashed":
                return CRASHED, f"the script ended before it came there: {crashed}", owners
            ended = "" if measured.outcome == "finished" else f" before the run was ended ({measured.outcome})"
            return NOT_REACHED, f"no backward call or update was made there{ended}", owners
        owners = about or owners
        reading = read(finding.code, measured, owners)
        if reading.shown is not None:
            return (CONFIRMED if reading.shown else REFUTED), reading.text, owners
        if measured.outcome == "crashed":
            return CRASHED, f"{crashed}; until then {reading.text}", owners
        return INCONCLUSIVE, reading.text, owners

    def _spots(self, finding: Finding) -> list[Spot]:
        places = [finding.place, *(related.place for related in finding.related)]
        return [
            (self._file(place), row) for place in places for row in range(place.row, max(place.end_row, place.row) + 1)
        ]

    def _file(self, place: Place) -> str:
        path = os.path.abspath(place.filename)
        return "" if path == self.script else path

    def _reached(self, spots: Sequence[Spot], *, wide: bool = False) -> tuple[bool, list[int]]:
        """Whether anything happened in the loops of these spots (`wide`: or around those), and to which optimizers.

        Those are the optimizers of what happened at the spots themselves, else of what happened in their loops.
        """
        blocks = [(file, *self.block(file, row, wide=wide)) for file, row in spots]
        exact: set[int] = set()
        around: set[int] = set()
        reached = False
        for spot, also, owners in self._happened():
            if spot in spots or any((spot[0], row) in spots for row in also):
                exact.update(owners)
                reached = True
            elif any(spot[0] == file and first <= spot[1] <= last for file, first, last in blocks) or any(
                first <= row <= last for _, first, last in blocks for row in also
            ):
                around.update(owners)
                reached = True
        return reached, sorted(exact or around)

    def _happened(self) -> Iterable[tuple[Spot, tuple[int, ...], tuple[int, ...]]]:
        """Place, further lines of the call stack, and optimizers of each event."""
        for event in self.measured.events:
            if event.kind.startswith("loader"):
                continue
            also: tuple[int, ...] = ()
            if event.kind in ("backward", "grad") and event.ordinal is not None:
                also = self.measured.backwards[event.ordinal].site[1:]
            yield (event.file, event.line), also, event.owners
        for count in self.measured.live_graphs:  # a validation loop calls models only
            yield ("", count.line), (), ()

    def block(self, file: str, row: int, *, wide: bool = False) -> tuple[int, int]:
        """First and last row of the innermost loop or function around a row, else of the whole file.

        `wide`: of the next one around that, if there is one.
        """
        blocks = self._blocks.get(file or self.script, [])
        around = sorted((last - first, first, last) for first, last in blocks if first <= row <= last)
        return around[min(int(wide), len(around) - 1)][1:] if around else (0, 1 << 30)

    # --- what only the run shows ---

    def findings(self, judged: Sequence[Judged], loops: Sequence[LoopReport]) -> list[Judged]:
        """Defects that the numbers show and no finding of the source tells."""
        found: list[Judged] = []
        confirmed = [one for one in judged if one.verdict == CONFIRMED]
        explained = {owner for one in confirmed for owner in one.owners}
        told = {one.finding.code for one in confirmed}
        for owner in range(len(self.measured.optimizers)):
            weights = () if owner in explained else _WEIGHTS
            for code in (*weights, *_BESIDE):
                reading = read(code, self.measured, [owner], alone=True)
                if not reading.shown or code in told or self._intended(code, loops, judged):
                    continue
                if code in _WEIGHTS and any(one.owners == (owner,) and one.finding.code in _WEIGHTS for one in found):
                    continue
                found.append(self._only_run(code, reading, owner))
            told |= {one.finding.code for one in found if one.finding.code in _BESIDE}
        return found

    def _intended(self, code: str, loops: Sequence[LoopReport], judged: Sequence[Judged]) -> bool:
        """Whether the check saw the same numbers and held them right: a learning rate that is divided instead, say."""
        if code == "ACC001":
            rows = [row for loop in loops for _, updates in loop.contributions for row in updates]
            owners = range(len(self.measured.optimizers))
            sizes = {window.size for owner in owners for window in windows(self.measured, owner)}
            return any(_unscaled(row, size) for row in rows for size in sizes if size > 1)
        if code in ("ACC006", "ACC007"):
            predicted = [
                [sum(map(bool, row)) for row in updates] for loop in loops for _, updates in loop.contributions
            ]
            # The windows that are shorter than the longest: the first one, or one of the others.
            short = [[at for at, size in enumerate(one) if size < max(one)] for one in predicted]
            return any(one[:1] == [0] and len(one) < 3 if code == "ACC006" else any(one) for one in short)
        if code == "ACC003":
            return any(one.finding.code == code for one in judged)
        if code == "ACC005":
            return any(one.finding.code == "ACC031" and one.verdict == CONFIRMED for one in judged)
        return False

    def _only_run(self, code: str, reading: Reading, owner: int) -> Judged:
        rule = all_rules().get(code)
        name, severity = (rule.name, rule.severity) if rule is not None else _UNSEARCHED[code]
        record = self.measured.optimizers[owner]
        file, row = (reading.file, reading.line) if reading.line else ("", record.line)
        if code == "ACC003":
            severity = self._severity_of_batches()
        path = os.path.relpath(file or self.script)
        path = path if not path.startswith("..") else file or self.script
        lines = self.texts.get(file or self.script, "").splitlines()
        line = lines[row - 1] if 0 < row <= len(lines) else ""
        place = Place(path, max(row, 1), len(line) - len(line.lstrip()) + 1, max(row, 1), len(line.rstrip()) + 1)
        evidence: dict[str, Any] = {"k": None, "contributions": [], "trace": {}, "measured": None}
        finding = Finding(code, name, severity, Confidence.HIGH, reading.text, place, evidence=evidence)
        return self._judged(finding, CONFIRMED, reading.text, [owner], predicted=False)

    def _severity_of_batches(self) -> Severity:
        """How bad batch statistics over so few samples are."""
        return _TINY.get(min(use.samples for use in self.measured.batch_norms), Severity.INFO)

    def _judged(self, finding: Finding, verdict: str, text: str, owners: list[int], predicted: bool = True) -> Judged:
        measured = self.measured
        equal, different = bands(measured.precision)
        residuals = [update.residual for owner in owners for update in measured.optimizers[owner].updates]
        known = [residual for residual in residuals if residual == residual]
        data = {
            "verdict": verdict,
            "text": text,
            "predicted": predicted,
            "surprising": is_surprising(finding.code, verdict, predicted),
            "contributions": contributions(measured, owners),
            "precision": measured.precision,
            "residual": max(known) if known else None,
            "thresholds": {"equal": equal, "different": different, "residual": RESIDUAL},
            "comparison": None if measured.comparison is None else _known(asdict(measured.comparison)),
            "run": {"outcome": measured.outcome, "backwards": len(measured.backwards), "torch": measured.torch},
        }
        return Judged(
            replace(finding, evidence={**finding.evidence, "measured": data}), verdict, text, tuple(owners), predicted
        )


def contributions(measured: Measurement, owners: Iterable[int]) -> list[dict[str, Any]]:
    """Per optimizer its measured matrix in the shape of `evidence.contributions`: 1 is right, a row per update.

    A row holds the backward calls since the update before, and before them those of earlier ones that are in it. What
    clipping the whole gradient multiplies it with is left out.
    """
    found = []
    for owner in owners:
        record = measured.optimizers[owner]
        seen = windows(measured, owner)
        size = usual_size(seen) or 1
        updates = [list(relative_row(window, size, by_element=True)) for window in seen]
        found.append({"owner": record.name, "optimizer": owner, "line": record.line, "k": size, "updates": updates})
    return found


def _known(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: None says that a number is not known."""
    return {name: None if number != number else number for name, number in numbers.items()}


def _unscaled(row: Sequence[float], size: int) -> bool:
    """Whether a predicted update sums `size` whole mean losses: 4 4 4 4, or the terms that each of them consists of."""
    used = [float(value) for value in row if value]
    return len(used) >= size and abs(sum(used) - size * size) < 1e-6


@lru_cache(16)
def _blocks(text: str) -> list[tuple[int, int]]:
    """First and last rows of the loops and functions of a text; none if this Python cannot read it."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return []
    kinds = (ast.For, ast.AsyncFor, ast.While, ast.FunctionDef, ast.AsyncFunctionDef)
    return [(node.lineno, node.end_lineno or node.lineno) for node in ast.walk(tree) if isinstance(node, kinds)]
