"""How long acclint's own work takes beside the libcst parse of the same file.

    python benchmarks/speed.py FILE_OR_FOLDER...

CPU time of this process, best of three, per file: the libcst parse (the yardstick), acclint's lift, its link (which of
the project's other files belong to it; these are lifted once for all files that import them), its simulation and its
rules. Files without a training loop are left out. Prints medians and the number of files in which
lift, link and simulation together take less than the parse.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import libcst

from acclint.lift import LiftError, lift
from acclint.project import link
from acclint.rules import all_rules
from acclint.simulate import Analysis, analyze


def best(work: Callable[[], Any], rounds: int = 3) -> tuple[float, Any]:
    """The least CPU time of `rounds` runs in milliseconds, and the last result."""
    least, result = float("inf"), None
    for _ in range(rounds):
        start = time.process_time()
        result = work()
        least = min(least, time.process_time() - start)
    return least * 1000, result


def judge(analysis: Analysis) -> int:
    return sum(len(list(rule.check(analysis))) for rule in all_rules().values())


def main() -> None:
    paths = [Path(argument) for argument in sys.argv[1:]]
    files = sorted(file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py")))
    rows = []
    for file in files:
        text = file.read_text(encoding="utf-8", errors="replace")
        try:
            lifting, program = best(lambda text=text: lift(text))
            parsing, _ = best(lambda text=text: libcst.parse_module(text))
        except (LiftError, libcst.ParserSyntaxError):
            continue
        linking, program = best(lambda program=program, file=file: link(program, file.resolve()))
        simulating, analysis = best(lambda program=program: analyze(program))
        if not analysis.paths:
            continue
        judging, _ = best(lambda analysis=analysis: judge(analysis))
        rows.append((parsing, lifting, linking, simulating, judging, str(file)))
    if not rows:
        sys.exit("no file with a training loop")
    for name, at in (("libcst parse", 0), ("lift", 1), ("link", 2), ("simulate", 3), ("rules", 4)):
        values = sorted(row[at] for row in rows)
        print(f"{name:14} median {statistics.median(values):7.1f} ms   95 % {values[int(len(values) * 0.95)]:7.1f} ms")
    ratios = sorted(sum(row[1:4]) / row[0] for row in rows)
    below = sum(ratio < 1 for ratio in ratios)
    median = statistics.median(ratios)
    print(f"(lift + link + simulate) / parse: median {median:.2f}, below 1 in {below} of {len(rows)} files")
    for row in sorted(rows, key=lambda row: row[3])[-5:]:
        print(f"slowest: simulate {row[3]:.0f} ms, parse {row[0]:.0f} ms  {row[5]}")


if __name__ == "__main__":
    main()
