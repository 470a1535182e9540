"""The library's front door: `check` for paths, `check_text` for one text."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from acclint.discover import Target, discover, reason
from acclint.findings import (
    Assumption,
    Confidence,
    FileResult,
    Finding,
    Fix,
    LoopReport,
    Place,
    Related,
    Severity,
)
from acclint.gate import may_train
from acclint.program import Span
from acclint.rules import all_rules
from acclint.rules.precedence import alone
from acclint.settings import Finder, Settings
from acclint.source import Source, SourceError, Unit, parses, read, read_text
from acclint.suppress import find_suppressions

if TYPE_CHECKING:
    from acclint.rules.base import Report, Rule
    from acclint.simulate import LoopFacts

# The text of a file as an editor shows it, by cell of a notebook; None is the whole file.
Lines = Mapping[int | None, tuple[str, ...]]

# Starting a worker costs about as much as checking this many files.
_FILES_PER_WORKER = 12


class Hidden(NamedTuple):
    """A finding below the thresholds of its file, and which of the two hides it."""

    finding: Finding
    by_severity: bool
    by_confidence: bool


@dataclass(frozen=True)
class Outcome:
    """One file after the thresholds: what is reported, what they hide, and an error of acclint itself, if any.

    `lines` is the text of the file where there are findings to show in it.
    """

    result: FileResult
    hidden: tuple[Hidden, ...] = ()
    lines: Lines = field(default_factory=dict)
    error: str = ""
    traceback: str = ""


@dataclass(frozen=True)
class Result:
    """A whole run: one outcome per file, sorted by name, and a line for each path that could not be checked."""

    outcomes: tuple[Outcome, ...] = ()
    errors: tuple[str, ...] = ()
    tracebacks: tuple[str, ...] = ()

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(finding for outcome in self.outcomes for finding in outcome.result.findings)

    @property
    def hidden(self) -> tuple[Hidden, ...]:
        return tuple(hidden for outcome in self.outcomes for hidden in outcome.hidden)

    @property
    def loops(self) -> tuple[LoopReport, ...]:
        return tuple(loop for outcome in self.outcomes for loop in outcome.result.loops)


def check(paths: Sequence[str], finder: Finder | None = None, *, force_exclude: bool = False, jobs: int = 1) -> Result:
    """Check files and folders. `jobs` is the number of processes, of which small inputs use only one.

    Raises Problem for wrong settings; a path that cannot be read is a line in `errors`, and the others are checked.
    """
    finder = finder or Finder()
    found = discover(paths, finder, force_exclude)
    outcomes = _run(found.targets, min(jobs, len(found.targets) // _FILES_PER_WORKER))
    return collect(outcomes, found.errors)


def collect(outcomes: Iterable[Outcome], errors: Sequence[str] = ()) -> Result:
    """A Result from single outcomes: those with an error become lines."""
    done = tuple(outcomes)
    return Result(
        done,
        (*errors, *(outcome.error for outcome in done if outcome.error)),
        tuple(outcome.traceback for outcome in done if outcome.traceback),
    )


def check_text(text: str, filename: str, settings: Settings | None = None) -> FileResult:
    """Check one Python text. `filename` is for messages and for per-file-ignores."""
    return examine(read_text(text, filename), settings or Settings(), Path(filename).absolute()).result


# --- files and processes ---------------------------------------------------------------------------------------------


def _run(targets: Sequence[Target], jobs: int) -> Iterator[Outcome]:
    if jobs < 2:
        yield from map(check_file, targets)
        return
    # An interrupt ends a worker at once and without a traceback.
    with ProcessPoolExecutor(jobs, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_DFL)) as pool:
        try:
            futures = [pool.submit(check_file, target) for target in targets]
            for target, future in zip(targets, futures, strict=True):
                try:
                    yield future.result()
                except BrokenProcessPool:
                    yield _alone(target)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _alone(target: Target) -> Outcome:
    """Check a file in a process of its own, after a pool has died: only the file that killed it is lost."""
    with ProcessPoolExecutor(1) as pool:
        try:
            return pool.submit(check_file, target).result()
        except BrokenProcessPool:
            return Outcome(FileResult(target.name), error=_internal(target.name, "the process died"))


def _internal(filename: str, what: str) -> str:
    return f"internal error in {filename}: {what}; please report it with this file (--verbose shows the traceback)"


def check_file(target: Target) -> Outcome:
    """Read and check one file; never raises but for an interrupt."""
    try:
        data = target.path.read_bytes()
    except OSError as error:
        return Outcome(FileResult(target.name), error=f"{target.name}: {reason(error)}")
    return check_bytes(data, target)


def check_bytes(data: bytes, target: Target) -> Outcome:
    """Check the bytes of one file (or of standard input, under the name and settings of `target`)."""
    try:
        source = read(data, target.name)
    except SourceError as error:
        place = Place(target.name, error.row, error.column, error.row, error.column + 1)
        return _outcome(
            target.name, [_syntax("invalid-syntax", error.message, place)], (), target.settings, target.path
        )
    try:
        return examine(source, target.settings, target.path)
    except Exception as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        return Outcome(FileResult(target.name), error=_internal(target.name, what), traceback=traceback.format_exc())


def examine(source: Source, settings: Settings, path: Path) -> Outcome:
    """Analyse each unit of a source, apply suppression comments, then the thresholds."""
    rules = settings.rules_for(path)
    findings = [_syntax("invalid-syntax", broken.message, broken.place) for broken in source.broken]
    loops: list[LoopReport] = []
    for unit in source.units:
        found, seen, complete = _analyse(unit, rules, settings)
        suppressions = find_suppressions(unit)
        findings += [finding for row, finding in found if not suppressions.hides(finding.code, row)]
        findings += [
            finding for finding in suppressions.invalid if not suppressions.hides(finding.code, finding.place.row)
        ]
        if complete:
            findings += suppressions.unused(rules)
        loops += seen
    outcome = _outcome(source.filename, findings, loops, settings, path)
    return replace(outcome, lines=source.lines) if outcome.result.findings else outcome


def _outcome(
    filename: str, findings: Iterable[Finding], loops: Sequence[LoopReport], settings: Settings, path: Path
) -> Outcome:
    rules = settings.rules_for(path)
    ordered = sorted(
        (item for item in findings if item.code in rules), key=lambda item: (_order(item.place), item.code)
    )
    judged = [
        Hidden(
            item,
            item.severity.rank < settings.min_severity.rank,
            item.confidence.rank < settings.min_confidence.rank,
        )
        for item in ordered
    ]
    kept = tuple(item.finding for item in judged if not (item.by_severity or item.by_confidence))
    hidden = tuple(item for item in judged if item.by_severity or item.by_confidence)
    return Outcome(FileResult(filename, kept, tuple(sorted(loops, key=lambda loop: _order(loop.place)))), hidden)


def _order(place: Place) -> tuple[int, int, int]:
    return (place.cell or 0, place.row, place.column)


# --- one unit --------------------------------------------------------------------------------------------------------


def _analyse(
    unit: Unit, rules: frozenset[str], settings: Settings
) -> tuple[list[tuple[int, Finding]], list[LoopReport], bool]:
    """The findings of a unit with their rows in the unit, its loops, and whether the analysis came to its end."""
    trains = may_train(unit.text.encode("utf-8", "replace"))
    if not trains and parses(unit.text) is None:
        return [], [], True
    # libcst is only needed from here on: to analyse, or to decide about text that the running Python refuses.
    from acclint.lift import LiftError, lift

    try:
        program = lift(unit.text, unit.filename)
        if not trains:
            return [], [], True
        from acclint.simulate import analyze

        analysis = analyze(
            program,
            accumulation_names=frozenset(settings.accumulation_names),
            reductions={**dict.fromkeys(settings.mean_losses, "mean"), **dict.fromkeys(settings.sum_losses, "sum")},
        )
        chosen = [rule for rule in all_rules().values() if rule.code in rules]
        reports = alone([(rule, report) for rule in chosen for report in rule.check(analysis)])
    except LiftError as error:
        row, column, code, message = error.row, error.column, error.kind, error.message
    except RecursionError:
        row, column, code, message = 1, 1, "too-complex", "the code is nested too deeply to be analysed"
    else:
        findings = [(report.span.row, _finding(unit, rule, report)) for rule, report in reports]
        return findings, [_loop(unit, loop) for loop in analysis.loops], True
    span = Span(row, column, row, column + 1)
    return [(row, _syntax(code, message, unit.place(span)))], [], False


def _syntax(code: str, message: str, place: Place) -> Finding:
    severity = Severity.WARNING if code == "too-complex" else Severity.ERROR
    return Finding(code, code, severity, Confidence.HIGH, message, place)


def _finding(unit: Unit, rule: Rule, report: Report) -> Finding:
    # Until the fix is built from the intent, its text is advice.
    fix = Fix("display", report.intent.message) if report.intent is not None else None
    evidence: dict[str, Any] = {"k": None, "contributions": [], "trace": {}, "measured": None}
    return Finding(
        code=rule.code,
        name=rule.name,
        severity=report.severity,
        confidence=report.confidence,
        message=report.message,
        place=unit.place(report.span),
        related=tuple(Related(message, unit.place(span)) for message, span in report.notes),
        assumptions=tuple(
            Assumption(message, unit.place(span) if span is not None else None) for message, span in report.assumptions
        ),
        fix=fix,
        evidence={**evidence, **report.evidence},
    )


def _loop(unit: Unit, loop: LoopFacts) -> LoopReport:
    return LoopReport(unit.place(loop.span), loop.state, loop.reason, loop.k, loop.contributions)
