"""The library's front door: `check` for paths, `check_text` for one text."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from acclint.discover import Target, discover, reason, shown
from acclint.findings import (
    Assumption,
    Confidence,
    FileResult,
    Finding,
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
    from acclint.judge import Judged
    from acclint.rules.base import Report, Rule
    from acclint.simulate import LoopFacts

# The text of a file as an editor shows it, by cell of a notebook; None is the whole file.
Lines = Mapping[int | None, tuple[str, ...]]

Work = TypeVar("Work")

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

    @classmethod
    def failed(cls, filename: str, error: str, traceback: str = "") -> Outcome:
        """A file that could not be checked."""
        return cls(FileResult(filename), error=error, traceback=traceback)


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
    return collect(run(found.targets, check_file, lambda outcome: outcome, jobs), found.errors)


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


def run(
    targets: Sequence[Target], work: Callable[[Target], Work], lost: Callable[[Outcome], Work], jobs: int
) -> Iterator[Work]:
    """`work` for each file, in order, in at most `jobs` processes; `lost` is for a file that killed its process."""
    jobs = min(jobs, len(targets) // _FILES_PER_WORKER)
    if jobs < 2:
        yield from map(work, targets)
        return
    # An interrupt ends a worker at once and without a traceback.
    with ProcessPoolExecutor(jobs, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_DFL)) as pool:
        try:
            futures = [pool.submit(work, target) for target in targets]
            for target, future in zip(targets, futures, strict=True):
                try:
                    yield future.result()
                except BrokenProcessPool:
                    yield _alone(target, work, lost)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _alone(target: Target, work: Callable[[Target], Work], lost: Callable[[Outcome], Work]) -> Work:
    """A file in a process of its own, after a pool has died: only the file that killed it is lost."""
    with ProcessPoolExecutor(1) as pool:
        try:
            return pool.submit(work, target).result()
        except BrokenProcessPool:
            return lost(Outcome.failed(target.name, _internal(target.name, "the process died")))


def _internal(filename: str, what: str) -> str:
    return f"internal error in {filename}: {what}; please report it with this file (--verbose shows the traceback)"


def check_file(target: Target) -> Outcome:
    """Read and check one file; never raises but for an interrupt."""
    try:
        data = target.path.read_bytes()
    except OSError as error:
        return Outcome.failed(target.name, f"{target.name}: {reason(error)}")
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
        return Outcome.failed(target.name, _internal(target.name, what), traceback.format_exc())


def examine(source: Source, settings: Settings, path: Path) -> Outcome:
    """Analyse each unit of a source, apply suppression comments, then the thresholds."""
    rules = settings.rules_for(path)
    findings = [_syntax("invalid-syntax", broken.message, broken.place) for broken in source.broken]
    loops: list[LoopReport] = []
    for unit in source.units:
        analysed = _analyse(unit, rules, settings, path)
        suppressions = find_suppressions(unit)
        if analysed.judged is not None:
            others = analysed.judged.analysis.program.others
            unit = replace(unit, others={number: shown(Path(one.path)) for number, one in others.items()})
        findings += [item for row, item in analysed.broken if not suppressions.hides(item.code, row)]
        for rule, report in analysed.reports:
            if not suppressions.hides(rule.code, report.span.row):
                findings.append(_finding(source, unit, analysed, rule, report, settings))
        findings += [
            finding for finding in suppressions.invalid if not suppressions.hides(finding.code, finding.place.row)
        ]
        if not analysed.broken:
            findings += suppressions.unused(rules)
        loops += analysed.loops
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


class _Analysed(NamedTuple):
    """What was made of a unit. `broken` says that, and where, the analysis did not come to its end."""

    judged: Judged | None = None
    reports: tuple[tuple[Rule, Report], ...] = ()
    loops: tuple[LoopReport, ...] = ()
    broken: tuple[tuple[int, Finding], ...] = ()


def _analyse(unit: Unit, rules: frozenset[str], settings: Settings, path: Path) -> _Analysed:
    trains = may_train(unit.text.encode("utf-8", "replace"))
    if not trains and parses(unit.text) is None:
        return _Analysed()
    # libcst is only needed from here on: to analyse, or to decide about text that the running Python refuses.
    from acclint.lift import LiftError, lift

    try:
        if not trains:
            lift(unit.text, unit.filename)
            return _Analysed()
        from acclint.judge import judge

        judged = judge(unit.text, unit.filename, settings, path)
        reports = alone(list(judged.reports_of(rule for rule in all_rules().values() if rule.code in rules)))
    except LiftError as error:
        row, column, code, message = error.row, error.column, error.kind, error.message
    except RecursionError:
        row, column, code, message = 1, 1, "too-complex", "the code is nested too deeply to be analysed"
    else:
        return _Analysed(judged, tuple(reports), tuple(_loop(unit, loop) for loop in judged.analysis.loops))
    span = Span(row, column, row, column + 1)
    return _Analysed(broken=((row, _syntax(code, message, unit.place(span))),))


def _syntax(code: str, message: str, place: Place) -> Finding:
    severity = Severity.WARNING if code == "too-complex" else Severity.ERROR
    return Finding(code, code, severity, Confidence.HIGH, message, place)


def _finding(
    source: Source, unit: Unit, analysed: _Analysed, rule: Rule, report: Report, settings: Settings
) -> Finding:
    fix = None
    shown = (
        report.severity.rank >= settings.min_severity.rank and report.confidence.rank >= settings.min_confidence.rank
    )
    if report.intents and shown and analysed.judged is not None:
        from acclint.fix import fix_of

        fix = fix_of(analysed.judged, rule, report, unit, source.lines)
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
        evidence=_evidence(unit, analysed, report),
    )


def _evidence(unit: Unit, analysed: _Analysed, report: Report) -> dict[str, Any]:
    """The evidence of a report as plain JSON data, with places in the file: for other files, of the calls into them."""
    empty: dict[str, Any] = {"k": None, "contributions": [], "trace": {}, "measured": None}
    evidence = empty | {key: value for key, value in report.evidence.items() if key != "scope"}
    if evidence["trace"]:
        assert analysed.judged is not None
        own = analysed.judged.analysis.own_place
        events = evidence["trace"]["events"]
        events = [_located(unit, **{**event, "place": own(event["place"]) or report.span}) for event in events]
        evidence["trace"] = {**evidence["trace"], "events": events}
    return evidence


def _located(unit: Unit, place: Span, **event: Any) -> dict[str, Any]:
    found = unit.place(place)
    cell = {} if found.cell is None else {"cell": found.cell}
    return {**event, "location": {"row": found.row, "column": found.column}, **cell}


def _loop(unit: Unit, loop: LoopFacts) -> LoopReport:
    return LoopReport(unit.place(loop.span), loop.state, loop.reason, loop.k, loop.contributions)
