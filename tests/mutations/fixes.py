"""Mutation truth of the fixes: damage a right script, let acclint repair it, let torch say whether it is right again.

python -m tests.mutations --fixes --sample 300 --seed 1
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from acclint.discover import Target
from acclint.repair import Repair, fix_bytes
from acclint.rules import all_rules
from acclint.settings import Settings
from tests.mutations.label import Label, Summary, label
from tests.mutations.run import Mutant, file_name, summary

# Of the found mistakes with a safe rule, this share is to be repaired.
TARGET = 0.95


@dataclass(frozen=True)
class Outcome:
    """What `--fix` made of a mutant.

    `state`: "repaired" (torch measures the original's contributions again), "refused" (a finding of a safe rule is
    left, `reason` says why), "unsafe" (the form of the mistake has no safe rewrite), "missed" (a safe rule's damage is
    not found), "changed" (a rewrite was applied and the script is not right), "worse" (it has a defect that it did not
    have), "untouched" (a right or undecided script, not a byte changed), "elsewhere" (damage that no safe rule is for).
    """

    mutant: Mutant
    before: Label
    state: str
    reason: str = ""
    text: str = ""

    @property
    def rule(self) -> str:
        return self.before.rule


def safe_rules() -> frozenset[str]:
    return frozenset(rule.code for rule in all_rules().values() if rule.fix == "safe")


def mend(mutant: Mutant, original: str, store: Path | None = None) -> Outcome:
    """Fix one mutant and measure what came out."""
    try:
        compile(mutant.text, mutant.source, "exec")
    except SyntaxError as error:
        return Outcome(mutant, Label(dropped=f"no longer Python: {error.msg}"), "dropped")
    rules, reference = all_rules(), summary(original, store)
    before = label(summary(mutant.text, store), reference, rules)
    if before.dropped:
        return Outcome(mutant, before, "dropped")
    repair = fix_bytes(mutant.text.encode(), Target(Path(mutant.source), mutant.source, Settings()), unsafe=False)
    text = repair.new.decode()
    if text != mutant.text:
        return _measured(mutant, before, text, summary(text, store), reference)
    if before.kind != "wrong":
        return Outcome(mutant, before, "untouched")
    sure = [defect for defect in before.defects if defect.sure]
    if not any(safe_rules() & set(defect.codes[:1]) for defect in sure):
        return Outcome(mutant, before, "elsewhere")
    return Outcome(mutant, before, *_unfixed(repair, before))


def _measured(mutant: Mutant, before: Label, text: str, measured: Summary, reference: Summary) -> Outcome:
    after = label(measured, reference, all_rules())
    if after.kind == "right":
        return Outcome(mutant, before, "repaired", text=text)
    new = after.allowed - before.allowed - after.tolerated
    state = "worse" if after.dropped or new or before.kind == "right" else "changed"
    return Outcome(mutant, before, state, str(after), text)


def _unfixed(repair: Repair, before: Label) -> tuple[str, str]:
    left = [finding for finding in repair.outcome.result.findings if finding.code in safe_rules()]
    if repair.error:
        return "refused", repair.error
    if not left:
        other = [finding.code for finding in repair.outcome.result.findings if finding.code in before.allowed]
        return ("unsafe", other[0]) if other else ("missed", "")
    fix = left[0].fix
    if fix is None or not fix.reason:
        return "unsafe", left[0].code
    return "refused", f"{left[0].code}: {fix.reason}"


def _mend(work: tuple[Mutant, str, Path | None]) -> Outcome:
    return mend(*work)


def mend_all(
    mutants: Iterable[Mutant], scripts: dict[str, str], *, jobs: int = 2, store: Path | None = None
) -> list[Outcome]:
    work = [(mutant, scripts[mutant.source], store) for mutant in mutants]
    if jobs < 2:
        return [_mend(item) for item in work]
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(_mend, work, chunksize=4))


def share(outcomes: Sequence[Outcome]) -> float:
    """The share of the mutants with a safe rule's damage, found, that are right again."""
    counts = Counter(outcome.state for outcome in outcomes)
    whole = sum(counts[state] for state in ("repaired", "refused", "changed", "worse"))
    return counts["repaired"] / whole if whole else 1.0


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: what became of the mutants of each rule, and the refusals by their reason."""
    judged = [outcome for outcome in outcomes if outcome.state != "dropped"]
    states = ("repaired", "refused", "changed", "worse", "unsafe", "missed", "untouched", "elsewhere")
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in judged:
        rows[outcome.rule][outcome.state] += 1
    lines = [
        "# Fixes: acclint against torch",
        "",
        f"{len(judged)} mutants judged; of those with a safe rule's damage that is found, {share(judged):.4f} have the "
        "original's contributions again.",
        "",
        f"| Rule | {' | '.join(states)} |",
        f"|---|{'---:|' * len(states)}",
    ]
    lines += [f"| {rule} | {' | '.join(str(rows[rule][state]) for state in states)} |" for rule in sorted(rows)]
    reasons = Counter(outcome.reason for outcome in judged if outcome.state == "refused")
    lines += ["", "| Why not rewritten | |", "|---|---:|"]
    lines += [f"| {reason} | {count} |" for reason, count in reasons.most_common()]
    return "\n".join(lines) + "\n"


def keep(outcome: Outcome, folder: Path) -> None:
    """Write a mutant and what the rewrite made of it, side by side."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{outcome.state}_{file_name(outcome.mutant)}"
    (folder / f"{name}.before.py").write_text(outcome.mutant.text, encoding="utf-8")
    (folder / f"{name}.after.py").write_text(outcome.text or outcome.mutant.text, encoding="utf-8")
