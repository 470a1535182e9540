"""`--statistics`: how many findings of each rule."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

from acclint.findings import Finding
from acclint.report.style import bold


def render(findings: Iterable[Finding]) -> str:
    """A line per rule, the most frequent first."""
    counts = _count(findings)
    width = max((len(str(count)) for _, count in counts), default=0)
    codes = max((len(code) for (code, _), _ in counts), default=0)
    return "\n".join(
        f"{count:>{width}}  {bold(f'{code:<{codes}}')}{'' if name == code else f'  {name}'}"
        for (code, name), count in counts
    )


def render_json(findings: Iterable[Finding]) -> str:
    return json.dumps(
        [{"code": code, "name": name, "count": count} for (code, name), count in _count(findings)], indent=2
    )


def _count(findings: Iterable[Finding]) -> list[tuple[tuple[str, str], int]]:
    counts = Counter((finding.code, finding.name) for finding in findings)
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
