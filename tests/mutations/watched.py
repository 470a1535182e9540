"""`acclint probe` on mutants: is a verdict true by the label that torch gave the mutant beside its original?"""

from __future__ import annotations

import atexit
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import repeat
from pathlib import Path

from acclint import lint
from acclint.probe import Oracle, OracleError
from acclint.probe.verdict import CONFIRMED, REFUTED
from acclint.probe.watch import Request, judge, limits_of
from acclint.rules import all_rules
from tests.mutations.label import Label, label
from tests.mutations.run import Mutant, summary

FALSE = ("falsely confirmed", "falsely refuted")


@dataclass(frozen=True)
class Verdict:
    """A verdict on one finding. `state` is the verdict, with "rightly" or "falsely" before confirmed and refuted.

    A refutation is false if the label is sure of the defect; of what a label leaves open it is "openly refuted".
    """

    code: str
    row: int
    state: str
    text: str
    predicted: bool


@dataclass(frozen=True)
class Watched:
    """A mutant, its label, the verdicts, and the sure defects of the label that none of them confirms."""

    mutant: Mutant
    truth: Label
    verdicts: tuple[Verdict, ...] = ()
    missed: tuple[str, ...] = ()


def state(verdict: str, code: str, truth: Label) -> str:
    if verdict == CONFIRMED:
        return f"{'rightly' if code in truth.allowed else 'falsely'} confirmed"
    if verdict == REFUTED:
        sure = {code for defect in truth.defects if defect.sure for code in defect.codes}
        return f"{'falsely' if code in sure else 'openly' if code in truth.allowed else 'rightly'} refuted"
    return verdict


@cache
def oracle() -> Oracle:
    """The server of this process."""
    one = Oracle()
    atexit.register(one.close)
    return one


def truth_of(mutant: Mutant, original: str, store: Path | None) -> Label:
    """The label of a mutant; what the original is said to have is tolerated in the mutant, too."""
    try:
        compile(mutant.text, mutant.source, "exec")
    except SyntaxError as error:
        return Label(dropped=f"no longer Python: {error.msg}")
    truth = label(summary(mutant.text, store), summary(original, store), all_rules())
    known = {code for line in re.findall(r"# expect-info: (.*)", original) for code in re.findall(r"ACC\d{3}", line)}
    return replace(truth, tolerated=truth.tolerated | known)


def summed(mutant: Mutant, truth: Label, verdicts: tuple[Verdict, ...]) -> Watched:
    """The verdicts about a mutant, and the sure defects that none of them confirms."""
    confirmed = {one.code for one in verdicts if one.state == "rightly confirmed"}
    missed = [d.codes[0] for d in truth.defects if d.sure and not confirmed & set(d.codes)]
    return Watched(mutant, truth, verdicts, tuple(missed))


def watch(mutant: Mutant, original: str, store: Path | None = None) -> Watched:
    """Check, run and judge one mutant as `acclint probe` does."""
    truth = truth_of(mutant, original, store)
    if truth.dropped:
        return Watched(mutant, truth)
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "train.py")
        script.write_text(mutant.text, encoding="utf-8")
        static = lint.check([str(script)])
        try:
            measured = oracle().watch(script, limits_of(Request(str(script)), static))
        except OracleError as error:
            return Watched(mutant, Label(dropped=f"oracle: {error}"))
        judged = judge(str(script), measured, [static]).judged
    verdicts = tuple(
        Verdict(
            one.finding.code,
            one.finding.place.row,
            state(one.verdict, one.finding.code, truth),
            one.text,
            one.predicted,
        )
        for one in judged
    )
    return summed(mutant, truth, verdicts)


def watch_all(
    mutants: Iterable[Mutant], scripts: dict[str, str], *, jobs: int = 2, store: Path | None = None
) -> list[Watched]:
    return judge_all(watch, mutants, scripts, jobs=jobs, store=store)


def judge_all(
    judge: Callable[[Mutant, str, Path | None], Watched],
    mutants: Iterable[Mutant],
    scripts: dict[str, str],
    *,
    jobs: int,
    store: Path | None,
) -> list[Watched]:
    """Judge mutants in `jobs` processes; the results stand in the order of the mutants."""
    mutants = list(mutants)
    originals = [scripts[mutant.source] for mutant in mutants]
    if jobs < 2:
        return [judge(mutant, original, store) for mutant, original in zip(mutants, originals, strict=True)]
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(judge, mutants, originals, repeat(store), chunksize=4))


def wrong(results: Iterable[Watched]) -> list[tuple[Watched, Verdict]]:
    """The verdicts that are false."""
    return [(one, verdict) for one in results for verdict in one.verdicts if verdict.state in FALSE]


def table(results: Sequence[Watched]) -> str:
    """Markdown: the verdicts by rule; what the run alone shows is counted among the confirmed, and once more."""
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    for result in results:
        for verdict in result.verdicts:
            rows[verdict.code][verdict.state] += 1
            rows[verdict.code]["by the run alone"] += not verdict.predicted
        for code in result.missed:
            rows[code]["not confirmed"] += 1
    states = ["rightly confirmed", "falsely confirmed", "rightly refuted", "openly refuted", "falsely refuted"]
    states += ["inconclusive", "not reached", "crashed", "by the run alone", "not confirmed"]
    judged = sum(not result.truth.dropped for result in results)
    silent = sum(not result.truth.dropped and not result.verdicts for result in results)
    lines = [
        "# Verdicts on mutations: acclint probe against torch",
        "",
        f"{judged} mutants judged, {silent} of them without a finding. *openly*: the numbers leave the intention open. "
        "*not confirmed*: the label is sure of a defect, and no verdict confirms it.",
        "",
        f"| Rule | {' | '.join(states)} |",
        f"|---|{'---:|' * len(states)}",
    ]
    total = sum(rows.values(), Counter[str]())
    lines += [f"| {code} | {' | '.join(str(rows[code][s]) for s in states)} |" for code in sorted(rows)]
    lines += [f"| all | {' | '.join(str(total[s]) for s in states)} |"]
    return "\n".join(lines) + "\n"


def put_section(path: Path, text: str) -> None:
    """Put a table into a file in place of the section with the same title, or behind all others."""
    title = text.partition("\n")[0]
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    sections = [section for section in re.split(r"(?m)^(?=# )", old) if section.strip()]
    made = [text if section.startswith(title + "\n") else section for section in sections]
    if text not in made:
        made.append(text)
    path.write_text("\n".join(section.rstrip() + "\n" for section in made), encoding="utf-8")
