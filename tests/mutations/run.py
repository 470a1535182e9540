"""Make mutants, label them by torch, compare the labels with what acclint says, and count.

python -m tests.mutations --sample 300 --seed 1 --keep /some/folder
python -m tests.mutations --all --table benchmarks/mutations.md
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path

import libcst as cst

from acclint.findings import Confidence, FileResult
from acclint.probe import OracleError, measure
from tests.mutations.label import Label, Summary, all_ones, label
from tests.mutations.operators import HARMFUL, HARMLESS, Change
from tests.mutations.script import Script

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 10.0
FORMAT = "9"  # of the cached summaries; raise it when `Summary` or the ledger changes
NO_OPERATOR = "unchanged"


@dataclass(frozen=True)
class Mutant:
    """A rewritten script: where it comes from, the operators (with the line each changed) and the text."""

    source: str
    operators: tuple[tuple[str, int], ...]
    text: str

    @property
    def operator(self) -> str:
        """The operator it counts for: the harmful one, or the first."""
        return self.operators[0][0] if self.operators else NO_OPERATOR

    @property
    def name(self) -> str:
        return "~".join([self.source, *(f"{name}@{line}" for name, line in self.operators)])


@dataclass(frozen=True)
class Result:
    mutant: Mutant
    label: Label
    found: tuple[str, ...] = ()
    sure: tuple[str, ...] = ()  # the codes among them with high confidence
    message: str = ""
    error: str = ""
    matrix: str = ""  # "equal" or "differs" where the predicted and the measured matrix can be compared

    @property
    def agrees(self) -> bool:
        return not self.error and self.label.agrees(self.found)

    @property
    def badly_wrong(self) -> bool:
        """A finding with high confidence that the label does not allow."""
        return not self.label.dropped and not set(self.sure) <= self.label.allowed


def sources(root: Path = ROOT) -> dict[str, str]:
    """Scripts without a mistake: own ones, the good fixtures, the snippets without a finding."""
    paths = sorted((root / "tests/mutations").glob("base_*.py"))
    paths += sorted((root / "fixtures").glob("ACC*/good_*.py"))
    paths += sorted((root / "fixtures/seeds").glob("*.py"))
    found = {}
    for path in paths:
        text = path.read_text(encoding="utf-8")
        if not re.search(r"# expect: ", text):
            found[path.relative_to(root).as_posix()] = text
    return found


# --- generation ------------------------------------------------------------------------------------------------------


def fitting(text: str, operator: str) -> Iterator[Change]:
    """All that one operator makes of a text, up to a form that it cannot write down."""
    function = HARMFUL.get(operator) or HARMLESS[operator]
    try:
        for change in function(_script(text)):
            if change.text != text:
                yield change
    except cst.ParserSyntaxError:
        return


@lru_cache(512)
def changes(text: str, operator: str) -> tuple[Change, ...]:
    """The same, each text once."""
    return tuple({change.text: change for change in fitting(text, operator)}.values())


@lru_cache(256)
def _script(text: str) -> Script:
    return Script(text)


def compose(mutant: Mutant, count: int, choice: random.Random) -> Mutant:
    """`count` harmless rewrites on top, chosen at random among those that fit; fewer where fewer fit."""
    names = sorted(HARMLESS)
    choice.shuffle(names)
    used = {name for name, _ in mutant.operators}
    for name in names:
        if count == 0:
            break
        if name in used:
            continue
        options = list(islice(fitting(mutant.text, name), 4))
        if options:
            change = choice.choice(options)
            mutant = Mutant(mutant.source, (*mutant.operators, (name, change.line)), change.text)
            count -= 1
    return mutant


def every(source: str, text: str, seed: int) -> Iterator[Mutant]:
    """Each operator at each place, alone; each harmful one once more under up to three harmless ones."""
    choice = random.Random(f"{seed}:{source}")
    yield Mutant(source, (), text)
    for name in HARMLESS:
        for change in changes(text, name):
            yield Mutant(source, ((name, change.line),), change.text)
    for _ in range(8):
        yield compose(Mutant(source, (), text), choice.randint(2, 3), choice)
    for name in HARMFUL:
        for change in changes(text, name):
            mutant = Mutant(source, ((name, change.line),), change.text)
            yield mutant
            yield compose(mutant, choice.randint(1, 3), choice)


def sample(scripts: dict[str, str], count: int, seed: int, operator: str = "") -> Iterator[Mutant]:
    """`count` mutants, the operators in turn, each on a script where it fits, half of them composed."""
    choice = random.Random(str(seed))
    operators = [operator] if operator else [*HARMFUL, *HARMLESS]
    seen: set[str] = set()
    made = tries = 0
    while made < count and tries < 40 * count:
        name = operators[tries % len(operators)]
        tries += 1
        order = sorted(scripts)
        choice.shuffle(order)
        for source in order[:12]:
            options = changes(scripts[source], name)
            if not options:
                continue
            change = choice.choice(options)
            mutant = Mutant(source, ((name, change.line),), change.text)
            if choice.random() < 0.5:
                mutant = compose(mutant, choice.randint(1, 3), choice)
            if mutant.text not in seen:
                seen.add(mutant.text)
                made += 1
                yield mutant
                break


# --- one mutant ------------------------------------------------------------------------------------------------------


def summary(text: str, store: Path | None) -> Summary:
    """What torch says about a script; kept in the folder `store` under the hash of its text."""
    path = store / f"{hashlib.sha256(f'{FORMAT}:{text}'.encode()).hexdigest()}.json" if store is not None else None
    if path is not None and path.exists():
        return Summary.from_json(json.loads(path.read_text(encoding="utf-8")))
    try:
        result = Summary.of(measure(text, timeout=TIMEOUT))
    except OracleError as error:
        return Summary(f"oracle: {error}", (), (), False, 0, 0, False, False, 0)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result.to_json()), encoding="utf-8")
    return result


_originals: dict[str, Summary] = {}


def judge(mutant: Mutant, original: str, store: Path | None) -> Result:
    """Label one mutant and compare with acclint."""
    from acclint.lint import check_text
    from acclint.rules import all_rules

    try:
        compile(mutant.text, mutant.source, "exec")
    except SyntaxError as error:
        return Result(mutant, Label(dropped=f"no longer Python: {error.msg}"))
    if original not in _originals:
        _originals[original] = summary(original, store)
    measured = summary(mutant.text, store)
    truth = label(measured, _originals[original], all_rules())
    if truth.dropped:
        return Result(mutant, truth)
    try:
        checked = check_text(mutant.text, mutant.source)
    except Exception as error:  # a crash of acclint is a disagreement to be listed, not the end of the run
        return Result(mutant, truth, error=f"{type(error).__name__}: {error}")
    findings = checked.findings
    return Result(
        mutant,
        truth,
        tuple(sorted({finding.code for finding in findings})),
        tuple(sorted({finding.code for finding in findings if finding.confidence is Confidence.HIGH})),
        "; ".join(f"{finding.place.row}: {finding.code} {finding.message}" for finding in findings),
        matrix=_compare(checked, measured) if truth.kind == "right" else "",
    )


def _compare(checked: FileResult, measured: Summary) -> str:
    """Whether acclint predicts a right matrix where torch measures one."""
    rows = [row for loop in checked.loops for _, updates in loop.contributions for row in updates if any(row)]
    if not rows or not all_ones(measured):
        return ""
    return "equal" if all(abs(value - 1) < 1e-4 for row in rows for value in row if value) else "differs"


def _judge(work: tuple[Mutant, str, Path | None]) -> Result:
    return judge(*work)


def run(
    mutants: Iterable[Mutant], scripts: dict[str, str], *, jobs: int = 2, store: Path | None = None
) -> list[Result]:
    """Judge mutants in `jobs` processes; the results stand in the order of the mutants."""
    work = [(mutant, scripts[mutant.source], store) for mutant in mutants]
    if jobs < 2:
        return [_judge(item) for item in work]
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(_judge, work, chunksize=4))


def _run_script(script: tuple[str, str], *, seed: int, operator: str, store: Path | None) -> list[Result]:
    source, text = script
    mutants = (m for m in every(source, text, seed) if operator in ("", *(name for name, _ in m.operators)))
    unique = {mutant.text: mutant for mutant in reversed([*mutants])}
    return [judge(mutant, text, store) for mutant in reversed(unique.values())]


def run_all(
    scripts: dict[str, str], seed: int, *, operator: str = "", jobs: int = 2, store: Path | None = None
) -> Iterator[Result]:
    """Make and judge all mutants, script by script; only those of one operator if it is given."""
    work = partial(_run_script, seed=seed, operator=operator, store=store)
    if jobs < 2:
        for item in scripts.items():
            yield from work(item)
        return
    with ProcessPoolExecutor(jobs) as pool:
        for results in pool.map(work, scripts.items()):
            yield from results


# --- the table -------------------------------------------------------------------------------------------------------


@dataclass
class Count:
    judged: int = 0
    agreed: int = 0
    dropped: int = 0
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, result: Result) -> None:
        if result.label.dropped:
            self.dropped += 1
            return
        self.judged += 1
        self.agreed += result.agrees
        self.kinds[result.label.kind] += 1

    @property
    def share(self) -> str:
        return f"{self.agreed / self.judged:.4f}" if self.judged else ""


def counted(results: Iterable[Result], key: str) -> dict[str, Count]:
    counts: defaultdict[str, Count] = defaultdict(Count)
    for result in results:
        name = result.label.rule if key == "rule" else result.mutant.operator
        counts[name].add(result)
    return dict(counts)


def table(results: Sequence[Result]) -> str:
    """Markdown: agreement per rule, per operator, and rule by operator."""
    total = Count()
    for result in results:
        total.add(result)
    wrong = sum(result.badly_wrong for result in results)
    matrices = Counter(result.matrix for result in results)
    lines = [
        "# Mutations: acclint against torch",
        "",
        f"{len(results)} mutants of {len({r.mutant.source for r in results})} scripts; {total.dropped} dropped"
        f" (they crash, or their numbers decide nothing); {total.judged} judged, agreement {total.share};"
        f" wrong with high confidence: {wrong}.",
        "",
        f"Where torch measures 1 everywhere, so does acclint in {matrices['equal']} of"
        f" {matrices['equal'] + matrices['differs']} mutants.",
        "",
        "*right*: torch finds the original's contributions, so silence is right. *open*: the numbers fit more than one"
        " intention, so the rules named may be reported and need not be.",
        "",
    ]
    for title, key in (("Rule", "rule"), ("Mutation", "operator")):
        lines += [f"| {title} | judged | agreed | share | right | wrong | open | dropped |", "|---|" + "---:|" * 7]
        order = [NO_OPERATOR, *HARMFUL, *HARMLESS]
        counts = counted(results, key)
        names = sorted(counts) if key == "rule" else [name for name in order if name in counts]
        for name in names:
            count = counts[name]
            if name != "dropped":
                kinds = " | ".join(str(count.kinds[kind]) for kind in ("right", "wrong", "open"))
                lines.append(
                    f"| {name} | {count.judged} | {count.agreed} | {count.share} | {kinds} | {count.dropped} |"
                )
        lines.append("")
    cells: defaultdict[tuple[str, str], Count] = defaultdict(Count)
    for result in results:
        if not result.label.dropped:
            cells[result.label.rule, result.mutant.operator].add(result)
    lines += ["| Rule | Mutation | judged | agreed |", "|---|---|---:|---:|"]
    lines += [f"| {rule} | {name} | {count.judged} | {count.agreed} |" for (rule, name), count in sorted(cells.items())]
    return "\n".join(lines) + "\n"


def shortfalls(results: Sequence[Result], target: float = 0.99) -> list[str]:
    """The rules and harmless mutations whose agreement is below the target, and what is wrong with high confidence."""
    lines = []
    for key in ("rule", "operator"):
        for name, count in sorted(counted(results, key).items()):
            if (key == "rule" or name in HARMLESS) and count.agreed < target * count.judged:
                lines.append(f"{name}: {count.agreed} of {count.judged}")
    lines += [f"wrong with high confidence: {result.mutant.name}" for result in results if result.badly_wrong]
    return lines


def file_name(mutant: Mutant) -> str:
    return re.sub(r"[^\w~@.-]+", "_", mutant.name.replace(".py", ""))[:150]


def keep(results: Iterable[Result], folder: Path) -> int:
    """Write the mutants on which acclint and torch disagree, with the reason on top; returns how many."""
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for result in results:
        if result.label.dropped or result.agrees:
            continue
        name = file_name(result.mutant)
        said = result.error or result.message or "silent"
        head = f"# {result.mutant.name}\n# torch: {result.label}\n# acclint: {said}\n"
        (folder / f"{name}~{written}.py").write_text(head + result.mutant.text, encoding="utf-8")
        written += 1
    return written
