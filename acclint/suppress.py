"""Suppression comments: `# acclint: ignore[ACC001] reason`, `# acclint: ignore-file[ACC001]`, `# noqa: ACC001`."""

from __future__ import annotations

import re
import sys
import tokenize
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from acclint.findings import Confidence, Edit, Finding, Fix, Severity
from acclint.program import Span
from acclint.rules import all_rules
from acclint.settings import SPECIAL, suggest_rule
from acclint.source import Unit, split_lines

_ACCLINT = re.compile(r"#\s*acclint\s*:\s*(?P<verb>[\w-]*)\s*(?P<list>\[(?P<codes>[^\]#]*)\])?", re.IGNORECASE)
_NOQA = re.compile(r"#\s*noqa\b(?P<colon>\s*:\s*(?P<codes>[A-Z]+[0-9]+(?:[\s,]+[A-Z]+[0-9]+)*))?", re.IGNORECASE)

# `ignore-file` counts among the first lines, so that nobody has to look for it further down.
_FILE_ROWS = 25


@dataclass
class Directive:
    """One `acclint:` comment or noqa. `rows` is the statement it applies to, None for the file; `codes` None is all.

    `report_unused` is False for noqa, which other tools use as well.
    """

    span: Span
    rows: tuple[int, int] | None
    codes: frozenset[str] | None
    report_unused: bool = False
    used: bool = False

    def covers(self, code: str, row: int) -> bool:
        if self.rows is not None and not self.rows[0] <= row <= self.rows[1]:
            return False
        return self.codes is None or code in self.codes


@dataclass(frozen=True)
class Suppressions:
    """The suppression comments of one unit, and a finding for each that is malformed."""

    unit: Unit
    directives: tuple[Directive, ...] = ()
    invalid: tuple[Finding, ...] = ()

    def hides(self, code: str, row: int) -> bool:
        """Whether a finding on `row` of the unit is suppressed; marks the comments that do it as used."""
        covering = [directive for directive in self.directives if directive.covers(code, row)]
        for directive in covering:
            directive.used = True
        return bool(covering)

    def unused(self, ran: frozenset[str]) -> Iterator[Finding]:
        """A finding for each `acclint:` comment that ignored nothing, though a rule it names ran."""
        for directive in self.directives:
            if directive.used or not directive.report_unused:
                continue
            if directive.codes is not None and not directive.codes & ran:
                continue
            names = ", ".join(sorted(directive.codes)) if directive.codes is not None else "all rules"
            place = self.unit.place(directive.span)
            yield Finding(
                code="unused-ignore",
                name="unused-ignore",
                severity=Severity.WARNING,
                confidence=Confidence.HIGH,
                message=f"this comment ignores {names}, but nothing is reported here",
                place=place,
                fix=Fix(
                    "safe", "remove the comment", (Edit("", self.unit.place(_removal(directive.span, self.unit))),)
                ),
            )


def _removal(span: Span, unit: Unit) -> Span:
    """What goes with a comment: its whole line if it stands alone, else the blanks before it."""
    line = split_lines(unit.text)[span.row - 1]
    before, behind = line[: span.column - 1], line[span.end_column - 1 :]
    if behind.strip():
        return span
    if not before.strip():
        return Span(span.row, 1, span.row + 1, 1)
    return Span(span.row, len(before.rstrip()) + 1, span.row, len(line) + 1)


def find_suppressions(unit: Unit) -> Suppressions:
    """The suppression comments of a unit; cheap where there are none."""
    lowered = unit.text.lower()
    if "acclint" not in lowered and "noqa" not in lowered:
        return Suppressions(unit)
    comments, statements = _scan(unit.text)
    alone = {comment.row for comment in comments if comment.alone}
    directives: list[Directive] = []
    invalid: list[Finding] = []
    for comment in comments:
        rows = _statement(comment, statements, alone)
        for match in _ACCLINT.finditer(comment.text):
            span = _span(comment, match)
            directive, problem = _acclint(match, span, rows)
            if directive is not None:
                directives.append(directive)
            if problem:
                invalid.append(_invalid(unit, span, problem))
        noqa = None if comment.alone else _NOQA.search(comment.text)
        if noqa is not None:
            codes = noqa["codes"]
            named = None if codes is None else frozenset(code.upper() for code in re.split(r"[\s,]+", codes))
            directives.append(Directive(_span(comment, noqa), rows, named))
    return Suppressions(unit, tuple(directives), tuple(invalid))


def _invalid(unit: Unit, span: Span, problem: str) -> Finding:
    return Finding(
        code="invalid-ignore",
        name="invalid-ignore",
        severity=Severity.WARNING,
        confidence=Confidence.HIGH,
        message=problem,
        place=unit.place(span),
    )


def _span(comment: _Comment, match: re.Match[str]) -> Span:
    """The part of a comment from a directive to the comment's end or the next `#`, without blanks at its end."""
    end = comment.text.find("#", match.start() + 1)
    length = len((comment.text if end < 0 else comment.text[:end]).rstrip())
    return Span(comment.row, comment.column + match.start(), comment.row, comment.column + length)


def _acclint(match: re.Match[str], span: Span, rows: tuple[int, int]) -> tuple[Directive | None, str]:
    """What an `acclint:` comment asks for, and what is wrong with it; a comment may hold good codes beside bad ones."""
    verb = match["verb"].lower()
    written = None if match["list"] is None else [code for code in re.split(r"[\s,]+", match["codes"]) if code]
    if verb not in ("ignore", "ignore-file"):
        return (
            None,
            f"`acclint: {match['verb']}` is no directive; write `acclint: ignore[CODE]` or `acclint: ignore-file`",
        )
    if verb == "ignore" and not written:
        return None, "this ignores nothing: name the rules, `acclint: ignore[CODE]`"
    if written == []:
        return None, "name the rules, `acclint: ignore-file[CODE]`, or leave out the brackets"
    if verb == "ignore-file" and span.row > _FILE_ROWS:
        return None, f"`acclint: ignore-file` counts only in the first {_FILE_ROWS} lines"
    codes = {code: _code(code) for code in written or ()}
    unknown = [code for code, known in codes.items() if known is None]
    problem = f"unknown rule {unknown[0]!r}{suggest_rule(unknown[0])}" if unknown else ""
    known = frozenset(code for code in codes.values() if code is not None)
    if written and not known:
        return None, problem
    return Directive(span, None if verb == "ignore-file" else rows, known if written else None, True), problem


def _code(text: str) -> str | None:
    """The code of a rule written as code or name; None if there is no such rule."""
    rules = all_rules()
    if text.upper() in rules:
        return text.upper()
    if text.lower() in SPECIAL:
        return text.lower()
    return next((rule.code for rule in rules.values() if rule.name == text.lower()), None)


class _Comment(NamedTuple):
    row: int
    column: int
    text: str
    alone: bool


def _scan(text: str) -> tuple[list[_Comment], list[tuple[int, int]]]:
    """The comments of a module, and the first and last row of each statement (of a compound one: of its header).

    Where the tokenizer of the running Python gives up (newer syntax), each further line counts as a statement.
    """
    lines = split_lines(text)
    comments: list[_Comment] = []
    statements: list[tuple[int, int]] = []
    start = 0
    row = 0
    try:
        for token in tokenize.generate_tokens(iter([line + "\n" for line in lines]).__next__):
            row = token.start[0]
            if token.type == tokenize.COMMENT:
                alone = not lines[row - 1][: token.start[1]].strip()
                comments.append(_Comment(row, token.start[1] + 1, token.string, alone))
            elif token.type == tokenize.NEWLINE:
                statements.append((start or row, row))
                start = 0
            elif token.type not in _LAYOUT and not start:
                start = row
    except (tokenize.TokenError, SyntaxError):
        seen = {comment.row for comment in comments}
        for number, line in enumerate(lines[row:], start=row + 1):
            at = line.find("#")
            if at >= 0 and number not in seen:
                comments.append(_Comment(number, at + 1, line[at:], not line[:at].strip()))
            if line[: at if at >= 0 else None].strip():
                statements.append((number, number))
    return comments, statements


_LAYOUT = frozenset({tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER})


def _statement(comment: _Comment, statements: Sequence[tuple[int, int]], alone: set[int]) -> tuple[int, int]:
    """The statement that a comment belongs to: the one it stands in, else the one right below it."""
    row = comment.row
    index = bisect_right(statements, (row, sys.maxsize)) - 1
    if index >= 0 and statements[index][0] <= row <= statements[index][1]:
        return statements[index]
    while row + 1 in alone:
        row += 1
    if index + 1 < len(statements) and statements[index + 1][0] == row + 1:
        return statements[index + 1]
    return (comment.row, comment.row)
