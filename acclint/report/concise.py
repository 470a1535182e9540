"""`--output-format concise`: one line per finding."""

from __future__ import annotations

from collections.abc import Iterable

from acclint.findings import Finding
from acclint.report.style import bold, label, location


def render(findings: Iterable[Finding]) -> str:
    """A line per finding: place, severity, code, message."""
    return "\n".join(f"{bold(location(item.place))}: {label(item)} {item.message}" for item in findings)
