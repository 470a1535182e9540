"""`--output-format concise`: one line per finding."""

from __future__ import annotations

from collections.abc import Iterable

from acclint.findings import Finding
from acclint.report.style import bold, label, location, verdict


def render(findings: Iterable[Finding]) -> str:
    """A line per finding: place, severity, code, message, and what a measurement said of it, if there was one."""
    return "\n".join(
        f"{bold(location(item.place))}: {label(item)} {item.message}{_measured(item)}" for item in findings
    )


def _measured(item: Finding) -> str:
    return f" [{verdict(item.verdict)}: {item.evidence['measured']['text']}]" if item.verdict else ""
