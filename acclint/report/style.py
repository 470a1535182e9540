"""Colours and words that the text renderers share. They are always written; the command strips them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import click

from acclint.findings import Finding, Place, Severity

PREDICTED_OTHERWISE = "acclint predicted otherwise: please report it with this script"

_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.INFO: "cyan"}


def coloured(severity: Severity, text: str) -> str:
    return click.style(text, fg=_COLOURS[severity], bold=True)


def bold(text: str) -> str:
    return click.style(text, bold=True)


def faint(text: str) -> str:
    return click.style(text, fg="blue", bold=True)


def location(place: Place) -> str:
    """`train.py:42:9`, in a notebook `train.ipynb:cell 3:42:9`."""
    cell = f"cell {place.cell}:" if place.cell is not None and place.filename.endswith(".ipynb") else ""
    return f"{place.filename}:{cell}{place.row}:{place.column}"


def label(finding: Finding) -> str:
    """`error[ACC001]`, or `error[invalid-syntax]` for what is no rule."""
    return coloured(finding.severity, f"{finding.severity.value}[{finding.code}]")


def verdict(word: str) -> str:
    """What a measurement says of a finding."""
    return click.style(word, fg={"confirmed": "red", "refuted": "green"}.get(word, "yellow"), bold=True)


def plural(count: int, one: str, many: str = "") -> str:
    """`1 file`, `2 files`."""
    return f"{count} {one if count == 1 else many or one + 's'}"


VERDICTS = ("confirmed", "refuted", "consistent", "inconclusive", "not reached", "crashed")


def counted(verdicts: Iterable[str]) -> str:
    """`4 confirmed, 1 inconclusive`."""
    counts = Counter(verdicts)
    return ", ".join(f"{counts[word]} {word}" for word in VERDICTS if counts[word])
