"""`acclint probe`: run a user's script unchanged under the instruments, and judge each finding of its source."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from acclint import Problem, lint
from acclint.findings import Finding
from acclint.probe import Limits, Measurement, Oracle
from acclint.probe.agreement import Agreement, agreements
from acclint.probe.readings import CHECKS
from acclint.probe.verdict import CONFIRMED, REFUTED, Judged, Run
from acclint.rules import all_rules
from acclint.settings import Finder, Settings

TIMEOUT = 120.0  # seconds
UPDATES = 32
BATCHES = 24  # an epoch has at least so many batches, if it has them,
MODULUS = 8  # and as many modulo this (and the k that the source tells) as without the probe
BACKWARDS = 2000


@dataclass(frozen=True)
class Request:
    """What to run and how. None is the default of that limit; `max_batches` is the exact length of an epoch."""

    script: str
    argv: tuple[str, ...] = ()
    python: str | None = None
    entry: str = ""
    max_updates: int | None = None
    max_batches: int | None = None
    timeout: float | None = None
    allow_write: tuple[str, ...] = ()


@dataclass(frozen=True)
class Watched:
    """A watched run. `judged` are the findings with their verdicts, by place; `agreements` are the contributions that
    can be compared with predicted ones; `lines` are the files by shown name.

    Findings below the thresholds of the settings are among them only if they are confirmed.
    """

    script: str
    measured: Measurement
    judged: tuple[Judged, ...]
    agreements: tuple[Agreement, ...] = ()
    lines: Mapping[str, lint.Lines] = field(default_factory=dict)
    errors: tuple[str, ...] = ()

    @property
    def remaining(self) -> tuple[Finding, ...]:
        """The findings that were not refuted."""
        return tuple(one.finding for one in self.judged if one.verdict != REFUTED)


def watch(
    request: Request, finder: Finder | None = None, progress: Callable[[Mapping[str, float]], None] | None = None
) -> Watched:
    """Run the script and judge. Raises Problem if it cannot be run at all; what happens in it is part of the result."""
    finder = finder or Finder()
    script = os.path.abspath(request.script)
    if not Path(script).is_file():
        raise Problem(f"no such script: {request.script}")
    for folder in request.allow_write:
        if not Path(folder).is_dir():
            raise Problem(f"--allow-write {folder}: no such folder")
    module, colon, function = request.entry.partition(":")
    if request.entry and not (module and colon and function):
        raise Problem(f"--entry {request.entry}: give MODULE:FUNCTION")
    if script.endswith((".ipynb", ".md")):
        raise Problem(f"{request.script}: only Python scripts can be run (jupyter nbconvert --to script makes one)")
    static = lint.check([request.script], finder)
    for finding in static.findings:
        if finding.code == "invalid-syntax":
            raise Problem(f"{request.script}:{finding.place.row}: cannot be run: {finding.message}")
    with Oracle(request.python or interpreter(), gpu=True) as oracle:
        measured = oracle.watch(
            script,
            limits_of(request, static),
            argv=request.argv,
            cwd=Path.cwd(),
            entry=request.entry,
            allow_write=request.allow_write,
            progress=progress,
        )
    return judge(script, measured, [static, *_others(measured, finder)], finder.find(Path(script).parent))


def limits_of(request: Request, static: lint.Result) -> Limits:
    """The limits of a run; the epochs are chosen by the k that the source tells."""
    return Limits(
        timeout=TIMEOUT if request.timeout is None else request.timeout,
        backwards=BACKWARDS,
        updates=UPDATES if request.max_updates is None else request.max_updates,
        shadow=True,
        batches=_batches(request.max_batches, [*static.findings, *(hidden.finding for hidden in static.hidden)]),
    )


def judge(
    script: str, measured: Measurement, results: Iterable[lint.Result], settings: Settings | None = None
) -> Watched:
    """The verdicts for what `check` said about the files of a run, and what only the run shows, by the settings."""
    settings = settings or Settings()
    wanted = settings.rules_for(Path(script).absolute()) | (CHECKS.keys() - all_rules().keys())
    outcomes = [outcome for result in results for outcome in result.outcomes]
    names = [outcome.result.filename for outcome in outcomes]
    texts = {os.path.abspath(name): _text(name) for name in names}
    run = Run(measured, os.path.abspath(script), texts)
    shown = [run.judge(finding) for outcome in outcomes for finding in outcome.result.findings]
    hidden = [run.judge(one.finding) for outcome in outcomes for one in outcome.hidden]
    judged = [*shown, *(one for one in hidden if one.verdict == CONFIRMED)]
    loops = [loop for outcome in outcomes for loop in outcome.result.loops]
    judged += [
        one
        for one in run.findings([*shown, *hidden], loops)
        if one.finding.code in wanted and one.finding.severity.rank >= settings.min_severity.rank
    ]
    judged.sort(key=lambda one: (one.finding.place, one.finding.code))
    lines: dict[str, Any] = {name: {None: tuple(texts[os.path.abspath(name)].splitlines())} for name in names}
    errors = tuple(outcome.error for outcome in outcomes if outcome.error)
    predicted = [one.finding for one in (*shown, *hidden)]
    compared = tuple(agreements(measured, run.script, loops, predicted, run.block))
    return Watched(script, measured, tuple(judged), compared, lines, errors)


def interpreter() -> str:
    """The Python of the active environment: a virtual one, conda's, else the one that runs acclint."""
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        folder = os.environ.get(variable)
        if folder and (python := shutil.which("python", path=str(Path(folder, "bin")))):
            return python
    return sys.executable


def _batches(exact: int | None, findings: Sequence[Finding]) -> tuple[int, int]:
    """(base, least) of `Limits`."""
    if exact is not None:
        return 1, exact
    known = [finding.evidence.get("k") or {} for finding in findings]
    ks = [k["value"] or k["simulated_as"] for k in known if k.get("value") or k.get("simulated_as")]
    base = math.lcm(MODULUS, *(k for k in ks if isinstance(k, int) and 1 < k <= 64))
    base = base if base <= 512 else MODULUS
    return base, max(BATCHES, *(4 * k for k in ks if isinstance(k, int)), 2)


def _others(measured: Measurement, finder: Finder) -> list[lint.Result]:
    """The user's other files in which something happened."""
    files = sorted({event.file for event in measured.events if event.file})
    return [lint.check([file], finder) for file in files if Path(file).is_file()]


def _text(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
