"""The difference of two texts as edits at places of a file, and edits applied."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from acclint.findings import Edit, Place
from acclint.fix.tree import Refused
from acclint.program import Span
from acclint.source import Row, Unit, split_lines

Lines = Sequence[str]


def edits(unit: Unit, new: str, shown: dict[int | None, tuple[str, ...]]) -> tuple[Edit, ...]:
    """What turns the text of a unit into `new`, at places of its file. `shown` is the text of the file, by cell.

    Raises Refused where the difference cannot be written in the file: across two cells, or on a line of IPython's.
    """
    old_lines, new_lines = _kept(unit.text), _kept(new)
    found: list[Edit] = []
    matcher = difflib.SequenceMatcher(None, old_lines, new_lines, autojunk=False)
    for kind, begin, end, new_begin, new_end in matcher.get_opcodes():
        if kind == "equal":
            continue
        if end - begin == new_end - new_begin:
            pairs = zip(old_lines[begin:end], new_lines[new_begin:new_end], strict=True)
            found += [_within(unit, at, old, new, shown) for at, (old, new) in enumerate(pairs, begin) if old != new]
        else:
            found.append(_lines(unit, begin, end, "".join(new_lines[new_begin:new_end]), shown))
    return tuple(found)


def _kept(text: str) -> list[str]:
    """The lines with their ends."""
    ends: list[str] = []
    at = 0
    for line in split_lines(text):
        stop = at + len(line)
        end = "\r\n" if text.startswith("\r\n", stop) else text[stop : stop + 1]
        ends.append(line + end)
        at = stop + len(end)
    return ends[:-1] if ends and not ends[-1] else ends


def _within(unit: Unit, at: int, old: str, new: str, shown: dict[int | None, tuple[str, ...]]) -> Edit:
    """An edit within one line: the part of it that changes. Rows are counted from 0 here."""
    _writable(unit, at, at + 1, shown)
    short = min(len(old), len(new))
    front = next((i for i in range(short) if old[i] != new[i]), short)
    back = next((i for i in range(short - front) if old[-1 - i] != new[-1 - i]), short - front)
    span = Span(at + 1, front + 1, at + 1, len(old) - back + 1)
    return Edit(new[front : len(new) - back], unit.place(span))


def _lines(unit: Unit, begin: int, end: int, content: str, shown: dict[int | None, tuple[str, ...]]) -> Edit:
    """An edit of whole lines."""
    lines = _kept(unit.text)
    if unit.rows is None:
        if end < len(lines) or not lines or lines[-1].endswith(("\n", "\r")):
            return Edit(content, unit.place(Span(begin + 1, 1, end + 1, 1)))
        # The file ends without a newline, and stays so.
        last = len(lines)
        if begin == end:
            return Edit(
                "\n" + content.rstrip("\r\n"), unit.place(Span(last, len(lines[-1]) + 1, last, len(lines[-1]) + 1))
            )
        return Edit(content, unit.place(Span(begin + 1, 1, last, len(lines[-1]) + 1)))
    _writable(unit, begin, end, shown)
    rows = unit.rows
    home = rows[begin] if begin < end else rows[max(begin - 1, 0)]
    prefix = _prefix(home, shown)
    if begin == end:
        # Behind the line before, in its cell.
        if begin == 0:
            raise Refused("the rewrite would stand before the first cell")
        width = len(lines[begin - 1].rstrip("\r\n"))
        place = unit.place(Span(begin, width + 1, begin, width + 1))
        return Edit("".join("\n" + prefix + line for line in content.splitlines()), place)
    if not content:
        return _removal(unit, begin, end, lines)
    width = len(lines[end - 1].rstrip("\r\n"))
    whole = ("\n" + prefix).join(content.rstrip("\n").split("\n"))
    return Edit(whole, unit.place(Span(begin + 1, 1, end, width + 1)))


def _removal(unit: Unit, begin: int, end: int, lines: list[str]) -> Edit:
    assert unit.rows is not None
    same_after = end < len(unit.rows) and unit.rows[end].cell == unit.rows[begin].cell
    if same_after:
        return Edit("", unit.place(Span(begin + 1, 1, end + 1, 1)))
    width = len(lines[end - 1].rstrip("\r\n"))
    if begin > 0 and unit.rows[begin - 1].cell == unit.rows[begin].cell:
        before = len(lines[begin - 1].rstrip("\r\n"))
        return Edit("", unit.place(Span(begin, before + 1, end, width + 1)))
    return Edit("", unit.place(Span(begin + 1, 1, end, width + 1)))


def _writable(unit: Unit, begin: int, end: int, shown: dict[int | None, tuple[str, ...]]) -> None:
    """Raise Refused unless the rows of a unit are one part of a cell, as it stands in the file."""
    if unit.rows is None:
        return
    rows = unit.rows[begin:end]
    if len({row.cell for row in rows}) > 1:
        raise Refused("the rewrite would reach over two cells")
    lines = split_lines(unit.text)
    for at, row in enumerate(rows, begin):
        if _shown(row, shown)[row.shift :] != lines[at]:
            raise Refused("the line is not plain Python in the file")


def _shown(row: Row, shown: dict[int | None, tuple[str, ...]]) -> str:
    text = shown[row.cell] if row.cell in shown else shown.get(None, ())
    return text[row.row - 1] if row.row <= len(text) else ""


def _prefix(row: Row, shown: dict[int | None, tuple[str, ...]]) -> str:
    """What stands before the code of a block of a Markdown page: indentation, a quotation's mark, a prompt."""
    return _shown(row, shown)[: row.shift]


# --- applying --------------------------------------------------------------------------------------------------------


def overlap(one: Place, other: Place) -> bool:
    """Whether two edits touch: one edit's text, or the point where it writes, lies in the other's."""
    if one.cell != other.cell:
        return False
    return _begin(one) <= _end(other) and _begin(other) <= _end(one)


def apply(text: str, changes: Iterable[Edit]) -> str:
    """The text of a file (or of a cell) after edits that do not touch."""
    lines = _kept(text)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    for edit in sorted(changes, key=lambda one: _begin(one.place), reverse=True):
        place = edit.place
        begin = starts[min(place.row - 1, len(lines))] + place.column - 1
        end = starts[min(place.end_row - 1, len(lines))] + place.end_column - 1
        text = text[:begin] + edit.content + text[end:]
    return text


def _begin(place: Place) -> tuple[int, int]:
    return (place.row, place.column)


def _end(place: Place) -> tuple[int, int]:
    return (place.end_row, place.end_column)
