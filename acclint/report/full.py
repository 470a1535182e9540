"""`--output-format full`: per finding the message, the source with carets and related lines, what was assumed."""

from __future__ import annotations

import textwrap
import unicodedata
from dataclasses import dataclass

import click

from acclint.findings import Confidence, Finding, Fix, Place
from acclint.lint import Lines, Result
from acclint.report.style import PREDICTED_OTHERWISE, bold, coloured, faint, label, location, verdict

_TAB = 4
# Rows further apart than this are shown with a gap between them.
_GAP = 2


@dataclass(frozen=True)
class _Mark:
    """Something to underline: the finding itself (`main`) or a related place."""

    place: Place
    text: str
    main: bool


def render(result: Result, width: int = 100) -> str:
    """All findings of a run, a blank line between them. `width` is that of the terminal."""
    return "\n\n".join(
        finding(item, outcome.lines, width) for outcome in result.outcomes for item in outcome.result.findings
    )


def finding(item: Finding, lines: Lines, width: int = 100) -> str:
    """One finding. `lines` is the text of its file, by cell."""
    name = "" if item.name == item.code else f"{bold(item.name)}: "
    head = _wrap_head(f"{bold(location(item.place))}: {label(item)} {name}", item.message, width)
    here = [_Mark(item.place, "", True)]
    apart: list[_Mark] = []
    for related in item.related:
        mark = _Mark(related.place, related.message, False)
        same = (related.place.filename, related.place.cell) == (item.place.filename, item.place.cell)
        (here if same else apart).append(mark)
    parts = [head, *_excerpt(item, here, lines, width)]
    notes = [f"note: {mark.text} at {location(mark.place)}" for mark in apart]
    if item.confidence is not Confidence.HIGH:
        assumed = [f"{assumption.message}{_at(assumption.place, item.place)}" for assumption in item.assumptions]
        notes.append(f"{item.confidence.value} confidence{', assuming that:' if assumed else ''}")
        notes += [f"  - {text}" for text in assumed]
    if item.fix is not None and item.fix.message:
        notes.append(f"help: {item.fix.message}{_how(item.fix)}")
    gutter = _gutter(here)
    if notes and len(parts) > 1:
        parts.append(faint(f"{'':>{gutter}}|"))
    parts += [line for note in notes for line in _wrap(note, gutter, width)]
    return "\n".join([*parts, *_measured(item, gutter, width)])


def _measured(item: Finding, gutter: int, width: int) -> list[str]:
    """What a measurement said, in the words of its verdict."""
    measured = item.evidence.get("measured")
    if not measured:
        return []
    notes = [(verdict(item.verdict), measured["text"] if measured["predicted"] else "only the run shows this")]
    if measured["surprising"]:
        notes.append(("note", PREDICTED_OTHERWISE))
    lines = []
    for word, text in notes:
        indent = " " * (gutter + 2)
        wrapped = textwrap.wrap(f"{click.unstyle(word)}: {text}", max(width - len(indent), 30), break_on_hyphens=False)
        wrapped[0] = word + wrapped[0][len(click.unstyle(word)) :]
        lines += [f"{' ' * gutter}{faint('= ')}{wrapped[0]}", *(indent + line for line in wrapped[1:])]
    return lines


def _how(fix: Fix) -> str:
    """How to have a rewrite made, or why acclint does not offer it."""
    if fix.edits:
        return " (--fix)" if fix.applicability == "safe" else " (--fix --unsafe-fixes)"
    return f" (by hand: {fix.reason})" if fix.reason else ""


def _wrap_head(styled: str, message: str, width: int) -> str:
    """The first line, the rest of a long message indented below it."""
    taken = len(click.unstyle(styled))
    lines = textwrap.wrap(
        message,
        width,
        initial_indent=" " * taken,
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return styled + "\n".join(lines)[taken:]


def _at(place: Place | None, near: Place) -> str:
    if place is None:
        return ""
    same = (place.filename, place.cell) == (near.filename, near.cell)
    return f" (line {place.row})" if same else f" ({location(place)})"


def _gutter(marks: list[_Mark]) -> int:
    return max(len(str(mark.place.row)) for mark in marks) + 1


def _wrap(note: str, gutter: int, width: int) -> list[str]:
    """A note under the excerpt, its further lines indented below its text."""
    bullet = note.startswith("  - ")
    first = " " * gutter + (faint("= ") if not bullet else "  ")
    hang = " " * (gutter + (6 if bullet else 2))
    wrapped = textwrap.wrap(note, max(width - gutter - 2, 30), break_long_words=False, break_on_hyphens=False) or [""]
    if bullet:
        wrapped[0] = "  - " + wrapped[0].strip().removeprefix("- ")
    return [first + wrapped[0], *(hang + line for line in wrapped[1:])]


def _excerpt(item: Finding, marks: list[_Mark], lines: Lines, width: int) -> list[str]:
    """The source lines of the marks in order, each with its underlining; empty where there is no source to show."""
    text = lines.get(item.place.cell) or lines.get(None) or ()
    rows = sorted({mark.place.row for mark in marks if 1 <= mark.place.row <= len(text)})
    if item.place.row not in rows:
        return []
    gutter = _gutter(marks)
    bar = faint(f"{'':>{gutter}}|")
    result = [bar]
    before = 0
    for row in rows:
        if before and row - before > _GAP:
            result.append(faint(f"{'...':>{gutter}}") if gutter >= 3 else faint("..."))
        elif before:
            result += [_source(gutter, between, text[between - 1], width) for between in range(before + 1, row)]
        result.append(_source(gutter, row, text[row - 1], width))
        on_row = sorted((mark for mark in marks if mark.place.row == row), key=lambda mark: not mark.main)
        result += [f"{bar} {_underline(mark, text[row - 1], item, width - gutter - 2)}" for mark in on_row]
        before = row
    return result


def _source(gutter: int, row: int, line: str, width: int) -> str:
    shown = _cut(_expand(line), width - gutter - 2)
    return f"{faint(f'{row:>{gutter - 1}} |')} {shown}".rstrip()


def _underline(mark: _Mark, line: str, item: Finding, room: int) -> str:
    """Carets below the finding, dashes and a word below a related place."""
    place = mark.place
    end = place.end_column if place.end_row == place.row else len(line.rstrip()) + 1
    begin = _width(_expand(line[: place.column - 1]))
    length = max(_width(_expand(line[: max(end - 1, place.column)])) - begin, 1)
    if begin >= room:  # the line is cut before the mark
        begin, length = max(room - 1, 0), 1
    length = max(min(length, room - begin), 1)
    if mark.main:
        return " " * begin + coloured(item.severity, "^" * length)
    return f"{' ' * begin}{faint('-' * length)} {faint(mark.text)}"


def _expand(line: str) -> str:
    return "".join(" " * _TAB if char == "\t" else char if char.isprintable() else "�" for char in line)


def _width(text: str) -> int:
    """Columns on a terminal: wide East Asian characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def _cut(text: str, room: int) -> str:
    if _width(text) <= room or room < 20:
        return text
    while _width(text) > room - 1:
        text = text[:-1]
    return text + "…"
