"""What acclint says: a finding, the places it names, and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Severity(str, Enum):
    """How bad it is if the finding is true. Ordered by `rank`."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"

    @property
    def rank(self) -> int:
        return ("info", "warning", "error").index(self.value)


class Confidence(str, Enum):
    """How sure the analysis is that the finding is true, apart from how bad it would be."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"

    @property
    def rank(self) -> int:
        return ("low", "medium", "high").index(self.value)


@dataclass(frozen=True, order=True)
class Place:
    """A span of text. Rows and columns count from 1; `end_column` is the column behind the last character.

    `cell` is the 1-based cell of a notebook or block of a Markdown page, None in a plain file.
    """

    filename: str
    row: int
    column: int
    end_row: int
    end_column: int
    cell: int | None = None


@dataclass(frozen=True)
class Related:
    """Another place that made the finding what it is, with a word about its part in it."""

    message: str
    place: Place


@dataclass(frozen=True)
class Assumption:
    """Something the analysis took for granted; each one lowers the confidence."""

    message: str
    place: Place | None = None


@dataclass(frozen=True)
class Edit:
    """Replace the text at `place` by `content`."""

    content: str
    place: Place


@dataclass(frozen=True)
class Fix:
    """A rewrite. `applicability` is "safe", "unsafe" or "display"; a display fix has no edits.

    `reason` says why a rewrite that the rule has in mind is not offered here.
    """

    applicability: str
    message: str
    edits: tuple[Edit, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Finding:
    """One mistake at one place.

    `code` is an ACC rule or one of `invalid-syntax`, `too-complex`, `unused-ignore`, `invalid-ignore`.
    `evidence` is plain JSON data (see docs): k, contributions, trace, measured.
    """

    code: str
    name: str
    severity: Severity
    confidence: Confidence
    message: str
    place: Place
    related: tuple[Related, ...] = ()
    assumptions: tuple[Assumption, ...] = ()
    fix: Fix | None = None
    evidence: dict[str, Any] = field(default_factory=dict, compare=False, hash=False)
    url: str = ""

    @property
    def verdict(self) -> str:
        """What a measurement said about it; empty without one."""
        return str((self.evidence.get("measured") or {}).get("verdict", ""))


@dataclass(frozen=True)
class LoopReport:
    """What was made of one training loop, for the summary and `--show-contributions`.

    `state` is "plain" (an update per backward pass), "accumulates" or "not-understood" (then `reason` says why).
    `contributions` holds one (owner, updates) pair per optimizer; an update is the tuple of contributions of the
    backward terms since the loop began, relative to the right weight (1 is right), as exact fractions or floats.
    """

    place: Place
    state: str
    reason: str = ""
    k: str = ""
    contributions: tuple[tuple[str, tuple[tuple[float, ...], ...]], ...] = ()


@dataclass(frozen=True)
class FileResult:
    """Everything `check` learnt about one file."""

    filename: str
    findings: tuple[Finding, ...] = ()
    loops: tuple[LoopReport, ...] = ()
