"""`--show-contributions`: the contribution matrix of each loop, drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import groupby

from acclint.findings import LoopReport
from acclint.report.style import bold, faint, location, plural

_STATES = {
    "plain": "an update per backward pass",
    "accumulates": "accumulates",
    "not-understood": "not understood",
}
_VULGAR = {
    Fraction(1, 2): "½", Fraction(1, 3): "⅓", Fraction(2, 3): "⅔", Fraction(1, 4): "¼", Fraction(3, 4): "¾",
    Fraction(1, 5): "⅕", Fraction(2, 5): "⅖", Fraction(3, 5): "⅗", Fraction(4, 5): "⅘", Fraction(1, 6): "⅙",
    Fraction(5, 6): "⅚", Fraction(1, 7): "⅐", Fraction(1, 8): "⅛", Fraction(3, 8): "⅜", Fraction(5, 8): "⅝",
    Fraction(7, 8): "⅞", Fraction(1, 9): "⅑", Fraction(1, 10): "⅒",
}  # fmt: skip
_ROWS = 12
_LEGEND = "What each backward term (column) contributes to each update (row): 1 is right, · is nothing."


def render(loops: Iterable[LoopReport], width: int = 80) -> str:
    """Every loop with its matrix: a row per update, a column per backward term, 1 is right. At most `width` wide."""
    return "\n\n".join([_LEGEND, *(_loop(loop, width) for loop in loops)])


def _loop(loop: LoopReport, width: int) -> str:
    state = _STATES.get(loop.state, loop.state)
    about = f" (k is `{loop.k}`)" if loop.k else ""
    reason = f" ({loop.reason})" if loop.reason else ""
    lines = [f"{bold(location(loop.place))}: {state}{about}{reason}"]
    for owner, updates in loop.contributions:
        lines.append(f"  {owner}{'' if updates else ': no update'}")
        lines += matrix(updates, width)
    return "\n".join(lines)


def matrix(updates: Sequence[Sequence[float]], width: int) -> list[str]:
    """The rows of one matrix, each at most `width` wide. Equal rows are drawn once, what does not fit is cut."""
    cells = [[cell(value) for value in update] for update in updates]
    columns = max((len(row) for row in cells), default=0)
    sizes = [max(len(row[at]) for row in cells if at < len(row)) for at in range(columns)]
    labels = max(2 * len(str(len(cells))) + 1, 1)
    room = width - labels - 8
    fitting = 0
    while fitting < columns and (fitting < 1 or sum(sizes[: fitting + 1]) + fitting <= room):
        fitting += 1
    # A row whose own terms all lie in the part that was cut shows nothing.
    rows = [row for row in cells if fitting == columns or any(text != "·" for text in row[:fitting])] or cells[:1]
    groups = [(row, len(list(same))) for row, same in groupby(rows)]
    lines = []
    number = 0
    for row, count in groups[:_ROWS]:
        label = f"{number + 1}" if count == 1 else f"{number + 1}-{number + count}"
        number += count
        text = " ".join(f"{item:>{size}}" for item, size in zip(row[:fitting], sizes, strict=False))
        lines.append(f"    {faint(f'{label:>{labels}} |')} {text}{' …' if len(row) > fitting else ''}")
    if len(cells) > number:
        lines.append(f"    … {plural(len(cells) - number, 'more update')}")
    return lines


def cell(value: float) -> str:
    """A contribution in as few characters as it can be read in: `1`, `¼`, `·` for 0, `2.67`."""
    if not math.isfinite(value):
        return "?"
    if value == 0:
        return "·"
    exact = Fraction(value).limit_denominator(1000)
    if abs(exact - Fraction(value)) > Fraction(1, 10**9):
        return f"{float(value):.2g}" if abs(value) < 10 else f"{float(value):.0f}"
    sign = "-" if exact < 0 else ""
    whole, part = divmod(abs(exact), 1)
    if part == 0:
        return f"{sign}{whole}"
    if part in _VULGAR:
        return f"{sign}{whole or ''}{_VULGAR[part]}"
    return f"{sign}{abs(exact)}" if len(str(abs(exact))) <= 5 else f"{float(value):.2g}"
