"""`acclint check --confirm`: each finding measured on the loop's own statements.

The statements that a loop consists of are cut from the file (`slices.py`) and run in a guarded child, with stand-ins
for what is not in them (`standins.py`). What was measured is read as that of a whole script is (`verdict.py`), and then
weighed: a number confirms or refutes only if no stand-in decided it.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from acclint.findings import Finding, Place
from acclint.lint import Outcome, Result
from acclint.probe import Limits, Measurement, Oracle, OracleError, Term, replay
from acclint.probe.kept import Kept, versions_of
from acclint.probe.readings import CHECKS
from acclint.probe.slices.cutting import CannotSlice, Slice, cut
from acclint.probe.verdict import CONFIRMED, INCONCLUSIVE, REFUTED, Judged, Run
from acclint.probe.watch import interpreter
from acclint.probe.windows import usual_size, windows
from acclint.source import SourceError, Unit, read

CONSISTENT = "consistent"

TIMEOUT = 5.0  # seconds for one run of a slice
PATIENCE = 8.0  # seconds after which no other way of running a slice is begun
UPDATES = 32
BACKWARDS = 600
TRIES = 5  # so many are turned to get a slice to run
FLIPS = 6  # so many answers of stand-ins are tried the other way round, at most
MOST = 64  # a larger k takes too long
USUAL = 4  # k where the source does not tell
ROWS, OTHER_ROWS = 7, 11  # samples in a stand-in batch, unlike any likely k
CANCELS = 0.02  # updates that differ by less are the same
OTHER_FACTOR = 0.37  # no factor that a loop might divide by

# What a verdict hangs on, by rule: which values hold a graph; numbers of steps; the batch size.
_GRAPHS = frozenset({"ACC005", "ACC031"})
_NUMBERS = frozenset({"ACC004"})
_BATCHES = frozenset({"ACC003"})
_HARMS = frozenset({"ACC001", "ACC021"})
_ZEROED = frozenset({"ACC002", "ACC015"})
_RESTS = frozenset({"ACC007"})  # their question is asked only where windows are followed by a rest


@dataclass(frozen=True)
class Way:
    """How a slice is run: as a script or from one of its functions (`entry`; `loops`: its loop is in it).

    `whole` takes the whole file. With `models`, the user's own models and data sets are stand-ins, and statements that
    move no gradient may fail. `flips` are the questions that stand-ins answer the other way round, `rows` the samples
    in a stand-in batch. `k` is the user's own number of micro-batches where only the run tells it, else 0.
    """

    entry: str = ""
    loops: bool = True
    whole: bool = False
    models: bool = False
    flips: tuple[str, ...] = ()
    rows: int = ROWS
    k: int = 0


@dataclass(frozen=True)
class Measured:
    """One run of a slice: what was measured and what stand-ins answered."""

    measurement: Measurement
    answered: Mapping[str, Any]
    way: Way
    batches: int  # of stand-in data
    k: int

    def notes(self, *kinds: str) -> list[tuple[int, str]]:
        """(row, name) of what was noted under these words; see `standins.World.note`."""
        found = self.answered.get("notes", {})
        return [(row, name) for kind in kinds for row, name in found.get(kind, [])]

    @property
    def decisions(self) -> list[tuple[str, int, str]]:
        """(key, row, name) of each question about a stand-in that a branch of the slice asked."""
        return [(key, row, name) for key, row, name, _ in self.answered.get("decisions", [])]

    @property
    def pure(self) -> bool:
        """No stand-in took part."""
        return not self.answered.get("notes", {}).keys() - {"own k"} and not self.decisions

    @property
    def ended(self) -> bool:
        return self.measurement.outcome in ("finished", "stopped")

    @property
    def reached(self) -> int:
        """How far it came: to updates (3), to backward calls (2), to calls of a model (1), or nowhere (0)."""
        if not self.ended:
            return 0
        updates = sum(len(optimizer.updates) for optimizer in self.measurement.optimizers)
        backwards = len(self.measurement.backwards)
        return 3 if updates and backwards > 1 else 2 if backwards > 1 else 1 if self.measurement.live_graphs else 0


@dataclass(frozen=True)
class Case:
    """A finding, the slice for it, and the file it is in."""

    finding: Finding
    part: Slice
    path: str
    text: str

    def read(self, measurement: Measurement) -> Judged:
        return Run(measurement, self.path, {self.path: self.text}).judge(self.finding)


def confirm(
    result: Result, progress: Callable[[int, int], None] | None = None, cache: str | os.PathLike[str] | None = None
) -> Result:
    """Measure all findings of a result that are shown; each then has `evidence["measured"]`.

    `progress` is called with the numbers of findings that are measured and of all. What is measured is kept in the
    folder `cache`, if it is given. Raises OracleError where nothing can be measured: no torch, no fork.
    """
    count = sum(_is_rule(finding) for finding in result.findings)
    if not count:
        return result
    python = interpreter()
    versions = versions_of(python) if cache is not None else ""
    kept = Kept(cache, versions) if cache is not None and versions else None
    with Confirmer(Oracle(python), kept) as confirmer:
        outcomes = []
        for outcome in result.outcomes:
            outcomes.append(confirmer.outcome(outcome))
            if progress is not None:
                progress(len(confirmer.seconds), count)
        return dataclasses.replace(result, outcomes=tuple(outcomes))


def refused() -> str:
    """Why findings must not be confirmed here; empty if they may be: a hook runs without anyone's command."""
    for variable in ("PRE_COMMIT", "GIT_INDEX_FILE"):
        if os.environ.get(variable):
            return f"--confirm runs statements of the checked files, so it is not for hooks ({variable} is set)"
    return ""


def _is_rule(finding: Finding) -> bool:
    return finding.code.startswith("ACC")


@dataclass
class Confirmer:
    """Measures findings with one server process. Use it as a context manager.

    Equal slices are measured once, and with `kept` once for all runs of acclint; then the server is not started before
    it is needed. `seconds` are those that each finding took.
    """

    oracle: Oracle = field(default_factory=Oracle)
    kept: Kept | None = None
    runs: dict[tuple[object, ...], Measured] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    started: bool = False

    def __enter__(self) -> Confirmer:
        if self.kept is None:
            self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self.oracle.close()
        if self.kept is not None:
            self.kept.tidy()

    def _start(self) -> None:
        if not self.started:
            self.oracle.__enter__()
            self.started = True

    def outcome(self, outcome: Outcome) -> Outcome:
        """The same file with `evidence["measured"]` in each finding that is shown."""
        findings = outcome.result.findings
        judged = iter(self.judge(outcome.result.filename, [finding for finding in findings if _is_rule(finding)]))
        told = tuple(next(judged).finding if _is_rule(finding) else finding for finding in findings)
        return dataclasses.replace(outcome, result=dataclasses.replace(outcome.result, findings=told))

    def judge(self, filename: str, findings: Sequence[Finding]) -> list[Judged]:
        """The findings of one file with their verdicts."""
        judged = []
        unit = _unit(filename)
        for finding in findings:
            began = time.monotonic()
            try:
                judged.append(self._judge(finding, unit))
            except OracleError as error:
                if not self.started:
                    raise  # nothing can be measured, not this slice alone
                why = (str(error).strip().splitlines() or ["?"])[-1]
                judged.append(_said(finding, INCONCLUSIVE, f"acclint could not measure it: {why}"))
            self.seconds.append(time.monotonic() - began)
        return judged

    def _judge(self, finding: Finding, unit: Unit | None) -> Judged:
        if finding.code not in CHECKS:
            return _said(finding, INCONCLUSIVE, f"what a run shows says nothing about {finding.code}")
        if unit is None:
            return _said(finding, INCONCLUSIVE, "the file cannot be read")
        if unit.rows is None:
            return self._judge_in_unit(finding, unit)
        judged = self._judge_in_unit(_moved(finding, unit), unit)  # cells and blocks are cut and run as one text
        text = _in_cells(judged.text, unit)
        data = {**judged.finding.evidence["measured"], "text": text}
        for one in data.get("contributions", ()):
            one["line"] = unit.rows[one["line"] - 1].row if one["line"] else 0
        evidence = {**finding.evidence, "measured": data}
        return dataclasses.replace(judged, finding=dataclasses.replace(finding, evidence=evidence), text=text)

    def _judge_in_unit(self, finding: Finding, unit: Unit) -> Judged:
        """The verdict for a finding whose rows are those of the unit."""
        places = [finding.place, *(related.place for related in finding.related)]
        path = os.path.abspath(unit.filename)
        try:
            part = cut(unit.text, {place.row for place in places if place.filename == finding.place.filename})
        except CannotSlice as error:
            return self._replayed(finding, unit, str(error))
        case = Case(finding, part, path, unit.text)
        measured, why = self._measure(case)
        if measured is None:
            return self._replayed(finding, unit, why)
        judged = case.read(measured.measurement)
        verdict, why = self._weigh(case, judged, measured)
        if verdict in (CONFIRMED, CONSISTENT) and finding.code in _HARMS:
            why += harm_of(measured)
        if judged.verdict not in (CONFIRMED, REFUTED) and not measured.pure:
            return self._replayed(finding, unit, why)
        return _said(judged.finding, verdict, why, measured)

    def _replayed(self, finding: Finding, unit: Unit, why: str) -> Judged:
        """The verdict where the loop's own statements cannot be run, and `why`: its lifted events are, if there are."""
        rows = {(place.cell, place.row): row for row, place in enumerate(unit.rows or (), 1)}
        text = replay.program(finding.evidence.get("trace") or {}, rows)
        if not text:
            return _said(finding, INCONCLUSIVE, why)
        path = os.path.abspath(unit.filename)
        way = Way()
        measurement, answered = self._measured(text, path, Limits(TIMEOUT), _spec(way, USUAL))
        judged = Run(measurement, path, {path: unit.text}).judge(finding)
        if judged.verdict != CONFIRMED:
            return _said(finding, INCONCLUSIVE, why)
        told = f"{judged.text} in a replay of what acclint reads from it, since {why}"
        return _said(judged.finding, CONSISTENT, told, Measured(measurement, answered, way, 0, 0))

    # --- runs ---

    def _measure(self, case: Case) -> tuple[Measured | None, str]:
        """The first way of running the slice that comes to updates, or else to most; or why none comes to anything.

        Where no stand-in takes part, what the script does is what it does.
        """
        best: Measured | None = None
        why = ""
        began = time.monotonic()
        for way in _ways(case.part):
            if time.monotonic() - began > PATIENCE:
                break
            measured = self._passable(case, way)
            if measured.reached == 3 or (measured.pure and measured.reached):
                return measured, ""
            if measured.reached > (best.reached if best else 0):
                best = measured
            why = _why_not(measured.measurement)
            if measured.measurement.outcome == "timeout":
                break
        return best, why

    def _passable(self, case: Case, way: Way) -> Measured:
        """A way as it is, or where the slice fails, with one answer of a stand-in the other way round."""
        first = measured = self._run(case, way)
        own = {int(value) for _, value in measured.notes("own k")}
        if len(own) == 1 and not own & {measured.k} and max(own) <= MOST:
            way = dataclasses.replace(way, k=own.pop())
            first = measured = self._run(case, way)
        tried = 0
        while measured.measurement.outcome == "crashed" and tried < TRIES and way.models:
            keys = [key for key, _, _ in first.decisions]
            if tried >= len(keys):
                return first
            tried += 1
            measured = self._run(case, dataclasses.replace(way, flips=(keys[-tried],)))
        return measured if measured.reached else first

    def _run(self, case: Case, way: Way) -> Measured:
        name, k = _k_of(case.finding)
        k = way.k or k
        part = case.part
        text = part.whole if way.whole else part.text
        rest = max(1, k // 2) if case.finding.code in _RESTS else 0
        key = (text, way, name, k, rest)
        if key not in self.runs:
            spec = {
                **_spec(way, k),
                "k_names": [name] if name else [],
                "batches": 4 * k + rest,
                "chain": list(part.chain),
                "decorated": list(part.decorated),
                "classes": [entry.rpartition(".")[0] for entry, _ in part.entries if "." in entry],
                "devices": any(word in text for word in ("cuda", "device", "mps", "pin_memory")),
            }
            limits = Limits(TIMEOUT, BACKWARDS, UPDATES, (math.lcm(8, k), max(24, 2 * k)))
            self.runs[key] = Measured(*self._measured(text, case.path, limits, spec), way, 4 * k + rest, k)
        return self.runs[key]

    def _measured(
        self, text: str, path: str, limits: Limits, spec: Mapping[str, Any]
    ) -> tuple[Measurement, Mapping[str, Any]]:
        """A run of a slice, if it is not known how it ends."""
        name = self.kept.name(text, dataclasses.asdict(limits), spec) if self.kept is not None else ""
        if self.kept is not None and (known := self.kept.get(name)) is not None:
            return Measurement.from_json(known["measurement"]), known["answered"]
        self._start()
        measurement, answered = self.oracle.run_slice(text, path, limits, spec)
        if self.kept is not None and measurement.outcome != "timeout":  # it may have been the load of the machine
            self.kept.put(name, {"measurement": measurement.to_json(), "answered": answered})
        return measurement, answered

    # --- what a number is worth ---

    def _weigh(self, case: Case, judged: Judged, measured: Measured) -> tuple[str, str]:
        """The verdict and its text, after the part of stand-ins in it."""
        if judged.verdict not in (CONFIRMED, REFUTED):
            return INCONCLUSIVE, judged.text
        doubt = self._doubt(case, judged.verdict, measured)
        if not doubt:
            return judged.verdict, judged.text
        return CONSISTENT if judged.verdict == CONFIRMED else INCONCLUSIVE, f"{judged.text}; but {doubt}"

    def _passes(self, measured: Measured) -> bool:
        """Whether the windows of an optimizer are whole passes through the stand-in data."""
        count = len(measured.measurement.optimizers)
        sizes = {usual_size(windows(measured.measurement, owner)) for owner in range(count)}
        return measured.batches in sizes

    def _doubt(self, case: Case, verdict: str, measured: Measured) -> str:
        """Which stand-in decided the question; empty if none did."""
        for row, name in measured.notes("opaque"):
            return f"what `{name}` does is not known (line {row})"
        for row, _ in measured.notes("optimizer"):
            if not any(optimizer.updates for optimizer in measured.measurement.optimizers):
                return f"what the optimizer does is not known (line {row})"
        optimizers = len(measured.measurement.optimizers)
        if measured.notes("optimizer", "owner") and optimizers > 1:
            return f"it is not known which of {optimizers} optimizers owns which parameters"
        for row, _ in measured.notes("lost"):
            return f"line {row} could not be run"
        measurement = measured.measurement
        if not measured.pure and not measurement.optimizers:
            return "no optimizer was made"
        unscaled = any(case.read(_scaled(measurement, factor)).verdict != verdict for factor in _factors(measurement))
        unreduced = case.read(_reduced(measurement)).verdict != verdict
        for row, _ in measured.notes("loss") if unreduced else ():
            return f"how the loss is reduced is not known (line {row})"
        for row, name in measured.notes("factor", "number") if unscaled else ():
            return f"`{name}` is not known (line {row})"
        if unscaled and measured.notes("loader") and self._passes(measured):
            return "the number of batches is not known"
        if unscaled and measured.notes("loader"):
            other = self._run(case, dataclasses.replace(measured.way, rows=OTHER_ROWS))
            if _weights(other.measurement) != _weights(measurement):
                return "the batch size is not known"
        code = case.finding.code
        if code in _RESTS and measured.notes("loader"):
            return "whether windows fill an epoch is not known"
        for codes, kinds, what in (
            (_ZEROED, ("zeroed",), "which parameters `{}` zeroes"),
            (_GRAPHS, ("loss", "part"), "what the model returns"),
            (_NUMBERS, ("number", "limit"), "`{}`"),
            (_BATCHES, ("loader", "stand-in"), "the batch or the model"),
        ):
            for row, name in measured.notes(*kinds) if code in codes else ():
                return f"{what.format(name)} is not known (line {row})"
        decisions = measured.decisions
        if len(decisions) > FLIPS:
            return f"{len(decisions)} conditions are not known, the first at line {decisions[0][1]}"
        for key, row, name in decisions:
            flips = tuple(sorted({*measured.way.flips} ^ {key}))
            other = self._run(case, dataclasses.replace(measured.way, flips=flips))
            if not other.ended or case.read(other.measurement).verdict != verdict:
                return f"`{name}` decides (line {row})"
        return ""


def _spec(way: Way, k: int) -> dict[str, Any]:
    """What every run is told; see `slices.program.program`. Without more, there are no stand-ins."""
    return {
        "mode": "entry" if way.entry else "script",
        "entry": way.entry,
        "loops": way.loops,
        "models": way.models,
        "lenient": way.models,
        "flips": list(way.flips),
        "rows": way.rows,
        "k": k,
        "k_names": [],
        "batches": 4 * k,
        "chain": [],
        "decorated": [],
        "classes": [],
        "devices": False,
    }


def _unit(filename: str) -> Unit | None:
    """The Python of a file as the check reads it: cells of a notebook and blocks of a page are one text."""
    try:
        units = read(Path(filename).read_bytes(), filename).units
    except (OSError, SourceError):
        return None
    return units[0] if units else None


def _moved(finding: Finding, unit: Unit) -> Finding:
    """The finding with its places in the rows of the unit's text."""
    rows = {(place.cell, place.row): row for row, place in enumerate(unit.rows or (), 1)}

    def moved(place: Place) -> Place:
        first = rows.get((place.cell, place.row))
        if first is None or place.filename != finding.place.filename:
            return place
        return dataclasses.replace(place, row=first, end_row=first + place.end_row - place.row, cell=None)

    related = tuple(dataclasses.replace(one, place=moved(one.place)) for one in finding.related)
    return dataclasses.replace(finding, place=moved(finding.place), related=related)


def _in_cells(text: str, unit: Unit) -> str:
    """What was said with rows of the unit's text, with those of the file; in a notebook with the cell."""
    rows = unit.rows or ()

    def told(match: re.Match[str]) -> str:
        row = int(match[1])
        if not 0 < row <= len(rows):
            return match[0]
        place = rows[row - 1]
        return (
            f"cell {place.cell}, line {place.row}" if unit.filename.lower().endswith(".ipynb") else f"line {place.row}"
        )

    return re.sub(r"\bline (\d+)\b", told, text)


def _weights(measurement: Measurement) -> list[list[float]]:
    """What the micro-batches of each update weigh."""
    owners = range(len(measurement.optimizers))
    return [[round(weight, 4) for weight in w.weights] for owner in owners for w in windows(measurement, owner)]


def _factors(measurement: Measurement) -> set[float]:
    """Scales of the losses that are not known: no usual one, and those with which they would be right."""
    found = [w for owner in range(len(measurement.optimizers)) for w in windows(measurement, owner)]
    return {OTHER_FACTOR, *(1 / total for total in {round(w.total, 6) for w in found[:4]} if total)}


def _scaled(measurement: Measurement, factor: float) -> Measurement:
    """The same with losses of another scale: a verdict that does not change does not hang on it."""
    return _with_terms(measurement, lambda term: dataclasses.replace(term, weight=term.weight * factor))


def _reduced(measurement: Measurement) -> Measurement:
    """The same with losses of another reduction."""
    return _with_terms(measurement, lambda term: dataclasses.replace(term, reduction="other"))


def _with_terms(measurement: Measurement, other: Callable[[Term], Term]) -> Measurement:
    backwards = tuple(
        dataclasses.replace(call, terms=tuple(other(term) for term in call.terms)) for call in measurement.backwards
    )
    return dataclasses.replace(measurement, backwards=backwards)


def harm_of(measured: Measured) -> str:
    """What the factor does to the updates of the user's own optimizers, in words; empty if that is not known."""
    told = []
    for harm in measured.answered.get("harm", []) if not measured.notes("optimizer") else []:
        name, factor, ratio, apart = (harm[key] for key in ("optimizer", "factor", "ratio", "difference"))
        if abs(ratio - 1) < CANCELS and apart < CANCELS:
            text = f"with {name} the factor {factor} cancels in the updates ({ratio:.2f}x)"
        else:
            text = f"with {name} the updates are {ratio:.2f}x as large as they should be"
            if abs(apart - abs(ratio - 1)) > CANCELS:
                text += f" and differ from them by {apart:.0%}"
        if harm["clip"] is not None:
            text += f", but the clipping threshold {harm['clip']:g} is {factor} times tighter"
            clipped = harm["clipped_ratio"]
            if clipped is not None and abs(clipped - ratio) > CANCELS:
                text += f": {clipped:.2f}x after it"
        told.append(text)
    return "".join(f"; {text}" for text in dict.fromkeys(told))


def _said(finding: Finding, verdict: str, text: str, measured: Measured | None = None) -> Judged:
    said = {"verdict": verdict, "text": text, "predicted": True, "surprising": verdict == REFUTED}
    data = {**(finding.evidence.get("measured") or {}), **said}
    if measured is not None:
        data["harm"] = measured.answered.get("harm", [])
        data["stand_ins"] = sorted({name for _, name in measured.notes("stand-in") if name})
    return Judged(dataclasses.replace(finding, evidence={**finding.evidence, "measured": data}), verdict, text)


def _ways(part: Slice) -> Iterator[Way]:
    """How a slice may be run: as it is, with all that is around it, with the user's own models stood in for, or from a
    function of it."""
    yield Way()
    if part.whole:
        yield Way(whole=True)
    yield Way(models=True)
    for entry, loops in part.entries:
        yield Way(entry, loops, models=True)


def _k_of(finding: Finding) -> tuple[str, int]:
    """The last part of k's expression and its value, by what the check found out."""
    k: Mapping[str, Any] = finding.evidence.get("k") or {}
    value = k.get("value") or k.get("simulated_as")
    expression = str(k.get("expression") or "")
    name = expression.rstrip("]'\")").replace("['", ".").replace('["', ".").rpartition(".")[2]
    return (name if name.isidentifier() else ""), value if isinstance(value, int) and 1 < value <= MOST else USUAL


def _why_not(measurement: Measurement) -> str:
    where = f" at line {measurement.error_line}" if measurement.error_line else ""
    if measurement.outcome == "timeout":
        return "the slice took too long"
    if measurement.error:
        return f"the slice could not be run{where}: {measurement.error}"
    return "the slice came to no update" if measurement.backwards else "the slice came to no backward call"
