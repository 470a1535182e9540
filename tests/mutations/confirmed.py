"""`acclint check --confirm` on mutants: is a verdict true by the label that torch gave the mutant beside its original?

The questions are what the check reports at all severities and confidences, and what it does not report but is asked
here all the same: the defects that the label is sure of, and of right scripts the rules of `ASKED`.
"""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from acclint import lint
from acclint.findings import Confidence, FileResult, Finding, Place, Related, Severity
from acclint.probe.confirm import Confirmer
from acclint.probe.readings import CHECKS
from acclint.settings import Finder, Overrides
from tests.mutations.label import Label
from tests.mutations.run import Mutant
from tests.mutations.watched import Verdict, Watched, judge_all, oracle, state, summed, truth_of

EVERYTHING = Finder(Overrides(min_severity=Severity.INFO, min_confidence=Confidence.LOW), None, True)
ASKED = ("ACC001", "ACC002", "ACC006", "ACC014", "ACC015", "ACC016", "ACC023")
STATES = ("rightly confirmed", "falsely confirmed", "rightly refuted", "openly refuted", "falsely refuted")
STATES += ("consistent", "inconclusive")


def confirm(mutant: Mutant, original: str, store: Path | None = None) -> Watched:
    """Check one mutant and measure its findings as `acclint check --confirm` does."""
    truth = truth_of(mutant, original, store)
    if truth.dropped:
        return Watched(mutant, truth)
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "train.py")
        script.write_text(mutant.text, encoding="utf-8")
        result = lint.check([str(script)], EVERYTHING).outcomes[0].result
        reported = [finding for finding in result.findings if finding.code in CHECKS]
        judged = Confirmer(oracle()).judge(str(script), [*reported, *_asked(mutant.text, result, truth)])
    verdicts = tuple(
        Verdict(
            one.finding.code,
            one.finding.place.row,
            state(one.verdict, one.finding.code, truth),
            one.text,
            number < len(reported),
        )
        for number, one in enumerate(judged)
    )
    return summed(mutant, truth, verdicts)


def _asked(text: str, result: FileResult, truth: Label) -> Iterator[Finding]:
    """Findings at the backward calls that the check does not report."""
    rows = [row for row, line in enumerate(text.splitlines(), 1) if "backward(" in line]
    reported = {finding.code for finding in result.findings}
    sure = [defect.codes for defect in truth.defects if defect.sure]
    codes = [codes[0] for codes in sure if reported.isdisjoint(codes)]
    codes += [code for code in ASKED if truth.kind == "right" and code not in reported]
    k = next((finding.evidence["k"] for finding in result.findings if finding.evidence.get("k")), None)
    k = k or {"expression": next((loop.k for loop in result.loops if loop.k), ""), "value": None, "simulated_as": 4}
    places = [Place(result.filename, row, 1, row, 80) for row in rows]
    others = tuple(Related("", place) for place in places[1:])
    for code in dict.fromkeys(codes):
        if places and code in CHECKS:
            yield Finding(code, code, Severity.ERROR, Confidence.LOW, "asked", places[0], others, evidence={"k": k})


def confirm_all(
    mutants: Iterable[Mutant], scripts: dict[str, str], *, jobs: int = 2, store: Path | None = None
) -> list[Watched]:
    return judge_all(confirm, mutants, scripts, jobs=jobs, store=store)


def table(results: Sequence[Watched]) -> str:
    """Markdown: the verdicts by rule, on what the check reports and on what it is asked besides."""
    judged = [result for result in results if not result.truth.dropped]
    right = sum(result.truth.kind == "right" for result in judged)
    reported = "What the check reports, at all severities and confidences"
    asked = (
        "What it does not report and is asked at the backward calls: the defects that the label is sure of, "
        f"and of right scripts {', '.join(ASKED)}"
    )
    lines = [
        "# Verdicts on mutations: acclint check --confirm against torch",
        "",
        f"{len(judged)} mutants judged, {right} of them right. *openly*: the numbers leave the intention open.",
    ]
    for title, predicted in ((reported, True), (asked, False)):
        lines += ["", f"{title}:", "", f"| Rule | {' | '.join(STATES)} |", f"|---|{'---:|' * len(STATES)}"]
        rows: dict[str, Counter[str]] = defaultdict(Counter)
        for verdict in (verdict for result in judged for verdict in result.verdicts):
            if verdict.predicted is predicted:
                rows[verdict.code][verdict.state] += 1
        rows = {**dict(sorted(rows.items())), "all": sum(rows.values(), Counter[str]())}
        lines += [f"| {code} | {' | '.join(str(row[s]) for s in STATES)} |" for code, row in rows.items()]
    return "\n".join(lines) + "\n"
