"""What a rule is: its documentation, its place in the table, and its check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from acclint.findings import Confidence, Severity

if TYPE_CHECKING:
    from acclint.program import Span
    from acclint.simulate import Analysis


@dataclass(frozen=True)
class Intent:
    """What the fix of a finding wants done, in the terms of the program; acclint.fix turns it into edits.

    `action` is one of: divide, move, insert, remove, detach, replace. `applicability` is safe, unsafe or display.
    """

    action: str
    applicability: str
    message: str
    target: Span | None = None
    anchor: Span | None = None
    text: str = ""


@dataclass(frozen=True)
class Report:
    """What a check yields: where, what happens, how sure; acclint.lint makes a Finding of it.

    `notes` are related places, `assumptions` what was taken for granted (with the place, or None).
    """

    span: Span
    message: str
    severity: Severity
    confidence: Confidence = Confidence.HIGH
    notes: tuple[tuple[str, Span], ...] = ()
    assumptions: tuple[tuple[str, Span | None], ...] = ()
    intent: Intent | None = None
    evidence: dict[str, object] = field(default_factory=dict, compare=False, hash=False)


@dataclass(frozen=True)
class Rule:
    """One pitfall. `fix` is the applicability in the table; `documentation` is Markdown with fixed headings."""

    code: str
    name: str
    category: str
    severity: Severity
    fix: str
    summary: str
    documentation: str
    check: Callable[[Analysis], Iterator[Report]]
