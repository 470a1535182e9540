"""Files fixed: proven rewrites applied together, judged again, until nothing changes."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from acclint import lint
from acclint.discover import Target, discover, reason
from acclint.findings import Edit, Finding, Severity
from acclint.fix.edits import overlap
from acclint.fix.files import Unwritable, edited, write
from acclint.fix.tree import Refused
from acclint.lint import Lines, Outcome, Result, check_bytes, run
from acclint.settings import Finder
from acclint.source import read

# A rewrite can make room for another one; more rounds than this mean that two of them undo each other.
MAX_ROUNDS = 20


@dataclass(frozen=True)
class Repair:
    """One file after fixing. `outcome` is what is still found in `new`; `old` is the file as it was.

    `fixed` are the findings whose rewrite is in `new`, `refused` those whose rewrite was proven alone but would bring
    another finding in the whole file; `error` says why the file was not written, though it changed.
    """

    outcome: Outcome
    old: bytes
    new: bytes
    fixed: tuple[Finding, ...] = ()
    refused: tuple[Finding, ...] = ()
    error: str = ""

    @property
    def name(self) -> str:
        return self.outcome.result.filename

    def diff(self) -> str:
        """The unified difference, by cell for a notebook; "" if there is none."""
        if self.old == self.new:
            return ""  # Perhaps nothing that can be read as Python.
        old, new = _texts(self.old, self.name), _texts(self.new, self.name)
        parts: list[str] = []
        for cell, lines in old.items():
            label = self.name if cell is None else f"{self.name}:cell {cell}"
            parts += difflib.unified_diff(lines, new.get(cell, ()), label, label, lineterm="")
        return "\n".join(parts)


@dataclass(frozen=True)
class Repairs:
    """A whole run with --fix or --diff."""

    repairs: tuple[Repair, ...]
    result: Result

    @property
    def fixed(self) -> tuple[Finding, ...]:
        return tuple(finding for repair in self.repairs for finding in repair.fixed)


def fix(
    paths: Sequence[str],
    finder: Finder,
    *,
    unsafe: bool = False,
    dry: bool = False,
    force_exclude: bool = False,
    jobs: int = 1,
) -> Repairs:
    """Fix files and folders; with `dry` nothing is written. `unsafe` also applies the unsafe rewrites."""
    found = discover(paths, finder, force_exclude)
    return collect(run(found.targets, partial(fix_file, unsafe=unsafe, dry=dry), _lost, jobs), found.errors)


def collect(repairs: Iterable[Repair], errors: Sequence[str] = ()) -> Repairs:
    """A run from single files."""
    done = tuple(repairs)
    return Repairs(done, lint.collect([repair.outcome for repair in done], errors))


def _lost(outcome: Outcome) -> Repair:
    return Repair(outcome, b"", b"")


def fix_file(target: Target, unsafe: bool, dry: bool) -> Repair:
    """Fix one file; never raises but for an interrupt."""
    try:
        data = target.path.read_bytes()
    except OSError as error:
        return _lost(Outcome.failed(target.name, f"{target.name}: {reason(error)}"))
    repair = fix_bytes(data, target, unsafe)
    if dry or repair.new == data:
        return repair
    try:
        write(target.path, data, repair.new)
    except Unwritable as problem:
        outcome = replace(check_bytes(data, target), error=f"{target.name}: not fixed: {problem}")
        return Repair(outcome, data, data, error=str(problem))
    return repair


def fix_bytes(data: bytes, target: Target, unsafe: bool) -> Repair:
    """Fix the bytes of one file, in memory."""
    allowed = {"safe", "unsafe"} if unsafe else {"safe"}
    now, outcome = data, check_bytes(data, target)
    done: list[Finding] = []
    for _ in range(MAX_ROUNDS):
        wanted = [
            finding
            for finding in outcome.result.findings
            if finding.fix is not None and finding.fix.edits and finding.fix.applicability in allowed
        ]
        for chosen in (_apart(wanted), *([one] for one in wanted)):
            tried = _tried(now, outcome, chosen, target) if chosen else None
            if tried is not None:
                now, outcome = tried
                done += chosen
                break
        else:
            return Repair(outcome, data, now, tuple(done), tuple(wanted))
    # Two rewrites undo each other: the file stays as it was.
    return Repair(check_bytes(data, target), data, data, error="the rewrites do not come to an end")


def _apart(wanted: list[Finding]) -> list[Finding]:
    """As many of the findings, in their order, as have rewrites that do not touch.

    Two findings about one loop may be one mistake: the second one is looked at again when the first is fixed.
    """
    chosen: list[Finding] = []
    taken: list[Edit] = []
    for finding in wanted:
        edits = finding.fix.edits if finding.fix is not None else ()
        same_loop = any(_loop(one) == _loop(finding) for one in chosen)
        if not same_loop and not any(overlap(one.place, other.place) for one in edits for other in taken):
            chosen.append(finding)
            taken += edits
    return chosen


def _loop(finding: Finding) -> object:
    return finding.evidence.get("scope"), finding.place.cell


def _tried(data: bytes, outcome: Outcome, chosen: list[Finding], target: Target) -> tuple[bytes, Outcome] | None:
    """The file after the rewrites of some findings, None if they do not hold together."""
    try:
        new = edited(data, target.name, [edit for one in chosen if one.fix is not None for edit in one.fix.edits])
    except Refused:
        return None
    after = check_bytes(new, target)
    gone = Counter(finding.code for finding in chosen)
    was, now = _counts(outcome, gone), _counts(after, gone)
    if after.error or any(now[code] > was[code] - gone[code] for code in {*was, *now}):
        return None
    return new, after


def _counts(outcome: Outcome, codes: Container[str]) -> Counter[str]:
    """How many findings of each code there are, those below the thresholds too; mere information only of `codes`."""
    findings = (*outcome.result.findings, *(item.finding for item in outcome.hidden))
    return Counter(one.code for one in findings if one.severity is not Severity.INFO or one.code in codes)


def _texts(data: bytes, name: str) -> Lines:
    lines: dict[Any, tuple[str, ...]] = read(data, name).lines
    return lines if name.lower().endswith(".ipynb") else {None: lines[None]}
