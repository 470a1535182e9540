"""`--output-format json`: ruff's shape with a few keys more."""

from __future__ import annotations

import json
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from acclint.findings import Finding, Fix, Place


def render(findings: Iterable[Finding]) -> str:
    """One JSON array, a finding per item."""
    return json.dumps([as_data(finding) for finding in findings], indent=2, ensure_ascii=False, default=_plain)


def as_data(finding: Finding) -> dict[str, Any]:
    """A finding as plain data, in the order of the documentation."""
    return {
        "code": finding.code,
        "name": finding.name,
        "severity": finding.severity.value,
        "confidence": finding.confidence.value,
        "message": finding.message,
        "filename": finding.place.filename,
        "cell": finding.place.cell,
        **_span(finding.place),
        "related": [
            {"message": item.message, "filename": item.place.filename, **_cell(item.place), **_span(item.place)}
            for item in finding.related
        ],
        "assumptions": [{"message": item.message, **_where(item.place)} for item in finding.assumptions],
        "fix": None if finding.fix is None else _fix(finding.fix),
        "evidence": finding.evidence,
        "url": finding.url,
    }


def _span(place: Place) -> dict[str, Any]:
    return {
        "location": {"row": place.row, "column": place.column},
        "end_location": {"row": place.end_row, "column": place.end_column},
    }


def _cell(place: Place) -> dict[str, Any]:
    return {} if place.cell is None else {"cell": place.cell}


def _where(place: Place | None) -> dict[str, Any]:
    """Both keys always, so that a reader need not ask for them: null where an assumption has no place."""
    if place is None:
        return {"filename": None, "location": None}
    return {"filename": place.filename, **_cell(place), "location": {"row": place.row, "column": place.column}}


def _fix(fix: Fix) -> dict[str, Any]:
    return {
        "applicability": fix.applicability,
        "message": fix.message,
        "edits": [{"content": edit.content, **_cell(edit.place), **_span(edit.place)} for edit in fix.edits],
    }


def _plain(value: object) -> object:
    """Evidence may hold exact fractions and sets."""
    if isinstance(value, Fraction):
        return int(value) if value.denominator == 1 else float(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    return str(value)
