"""Mutation truth: mutate training scripts, label them by torch, compare with acclint. Exit code 1 below the target."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path

from tests.mutations import confirmed, fixes, watched
from tests.mutations.operators import HARMFUL, HARMLESS
from tests.mutations.run import keep, run, run_all, sample, shortfalls, sources, table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--sample", type=int, default=300, metavar="N", help="judge N mutants (default: 300)")
    size.add_argument("--all", action="store_true", help="judge all mutants")
    parser.add_argument("--seed", type=int, default=1, help="of the choice and of the compositions (default: 1)")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes (default: 2)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep what torch measured, by hash of the text")
    parser.add_argument(
        "--table", type=Path, metavar="FILE", help="write the table to a file; verdicts: to its section of it"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="write the mutants with a disagreement to a folder")
    parser.add_argument("--source", default="", help="only scripts with this text in their name")
    parser.add_argument("--operator", default="", help="only mutants of this operator")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--fixes", action="store_true", help="fix a sample, and let torch judge what came out")
    what.add_argument("--probe", action="store_true", help="judge the verdicts of acclint probe on a sample")
    what.add_argument(
        "--confirm", action="store_true", help="judge the verdicts of acclint check --confirm on a sample"
    )
    options = parser.parse_args()
    if options.operator and options.operator not in {**HARMFUL, **HARMLESS}:
        parser.error(f"unknown operator {options.operator}; there are {', '.join([*HARMFUL, *HARMLESS])}")
    scripts = {name: text for name, text in sources().items() if options.source in name}
    if not scripts:
        parser.error(f"no script with {options.source!r} in its name")
    if options.fixes:
        return _fixes(options, scripts)
    if options.probe or options.confirm:
        return _verdicts(options, scripts)
    began = time.monotonic()
    if options.all:
        made = run_all(scripts, options.seed, operator=options.operator, jobs=options.jobs, store=options.cache)
        results = [*made]
    else:
        mutants = sample(scripts, options.sample, options.seed, options.operator)
        results = run(mutants, scripts, jobs=options.jobs, store=options.cache)
    print(f"{len(results)} mutants in {time.monotonic() - began:.0f} s", file=sys.stderr)
    text = table(results)
    if options.table:
        options.table.write_text(text, encoding="utf-8")
    print(text)
    reasons = Counter(result.label.dropped.split(":")[0] for result in results if result.label.dropped)
    print("dropped:", ", ".join(f"{reason} {count}" for reason, count in reasons.most_common()) or "none")
    disagreements = [result for result in results if not result.label.dropped and not result.agrees]
    for result in disagreements:
        print(f"{result.mutant.name}: torch: {result.label}; acclint: {result.error or result.message or 'silent'}")
    if options.keep:
        print(f"{keep(results, options.keep)} mutants written to {options.keep}")
    below = shortfalls(results)
    if below:
        print("below the target of 0.99:", *below, sep="\n  ")
    return 1 if below else 0


def _fixes(options: argparse.Namespace, scripts: dict[str, str]) -> int:
    mutants = sample(scripts, options.sample, options.seed, options.operator)
    outcomes = fixes.mend_all(mutants, scripts, jobs=options.jobs, store=options.cache)
    text = fixes.table(outcomes)
    if options.table:
        options.table.write_text(text, encoding="utf-8")
    print(text)
    for outcome in outcomes:
        if outcome.state in ("refused", "changed", "worse"):
            print(f"{outcome.state}: {outcome.mutant.name}: {outcome.before}; {outcome.reason}")
            if options.keep:
                fixes.keep(outcome, options.keep)
    good = fixes.share(outcomes) >= fixes.TARGET and not any(outcome.state == "worse" for outcome in outcomes)
    return 0 if good else 1


def _verdicts(options: argparse.Namespace, scripts: dict[str, str]) -> int:
    mutants = sample(scripts, options.sample, options.seed, options.operator)
    judge_all, table = (
        (confirmed.confirm_all, confirmed.table) if options.confirm else (watched.watch_all, watched.table)
    )
    results = judge_all(mutants, scripts, jobs=options.jobs, store=options.cache)
    text = table(results)
    if options.table:
        watched.put_section(options.table, text)
    print(text)
    wrong = watched.wrong(results)
    for one, verdict in wrong:
        asked = "" if verdict.predicted or options.probe else " (asked)"
        print(
            f"{verdict.state}{asked}: {verdict.code} at {verdict.row}: {one.mutant.name}: {one.truth}; {verdict.text}"
        )
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
        for number, (one, verdict) in enumerate(wrong):
            head = f"# {one.mutant.name}\n# torch: {one.truth}\n# {verdict.state}: {verdict.code}: {verdict.text}\n"
            (options.keep / f"{verdict.code}~{number}.py").write_text(head + one.mutant.text, encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
