"""What `--fix` did, or `--diff` would do: coloured differences, and the last lines of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import click

from acclint.findings import Finding
from acclint.repair import Repairs
from acclint.report.style import bold, location, plural

_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


def diffs(repairs: Repairs) -> Iterator[str]:
    """The unified difference of each file that changes, coloured."""
    for repair in repairs.repairs:
        lines = repair.diff().splitlines()
        if lines:
            yield "\n".join(_line(line) for line in lines)


def _line(line: str) -> str:
    if line.startswith(("+++", "---")):
        return bold(line)
    colour = _COLOURS.get(line[:1])
    return click.style(line, fg=colour) if colour else line


def summary(repairs: Repairs, *, unsafe: bool, dry: bool) -> str:
    """How many findings were fixed, how many more --unsafe-fixes would fix, and which were not, with the reason."""
    fixed = repairs.fixed
    files = len({finding.place.filename for finding in fixed})
    verb = "Would fix" if dry else "Fixed"
    text = f"{verb} {plural(len(fixed), 'finding')}"
    if fixed:
        codes = Counter(finding.code for finding in fixed)
        text += (
            f" in {plural(files, 'file')} ({', '.join(f'{code} x{count}' for code, count in sorted(codes.items()))})"
        )
    left = [finding for finding in repairs.result.findings if finding.fix is not None]
    more = sum(1 for finding in left if finding.fix is not None and finding.fix.applicability == "unsafe")
    if more and not unsafe:
        text += f"; {more} more with --unsafe-fixes"
    lines = [f"{text}."]
    lines += [_refused(finding, finding.fix.reason) for finding in left if finding.fix and finding.fix.reason]
    together = "its rewrite would bring another finding"
    lines += [_refused(finding, together) for repair in repairs.repairs for finding in repair.refused]
    lines += [f"  {repair.name} stays as it was: {repair.error}" for repair in repairs.repairs if repair.error]
    return "\n".join(lines)


def _refused(finding: Finding, reason: str) -> str:
    return f"  not fixed: {location(finding.place)} {finding.code}: {reason}"
