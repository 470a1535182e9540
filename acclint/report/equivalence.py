"""The tables of `acclint equivalence`, as text and as JSON."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from acclint.probe.difference import number
from acclint.probe.tables import Cell, Experiment, Number, Table
from acclint.report.style import bold, plural

if TYPE_CHECKING:
    from acclint.probe.study import Study


def render_study(study: Study, width: int) -> str:
    """The answer first, then the causes, then the tables."""
    colour = "green" if study.equal else "red"
    head = [click.style(study.answer, fg=colour, bold=True)]
    head += [_wrapped(detail, width, "  ") for detail in study.details]
    return "\n\n".join(["\n".join(head), *(table(t, width) for t in study.tables)])


def render_experiment(experiment: Experiment, width: int) -> str:
    """One founding experiment: its question, what is right and wrong in the text, and the numbers."""
    lines = [
        bold(f"{experiment.key}  {experiment.title}"),
        _wrapped(f"Question: {experiment.question}", width, "  "),
        _wrapped(f"Answer: {experiment.answer}", width, "  "),
        "",
    ]
    for claim in experiment.claims:
        mark = click.style("right", fg="green") if claim.right else click.style("wrong", fg="red")
        lines.append(f"  {mark}  {_wrapped(claim.text, width, ' ' * 9).strip()}")
        lines.append(_wrapped(claim.because, width, " " * 13))
    return "\n\n".join(["\n".join(lines), *(table(t, width) for t in experiment.tables)])


def summary(experiments: Sequence[Experiment]) -> str:
    """How many reference values were reproduced, and which were not."""
    total = sum(t.references for e in experiments for t in e.tables)
    failures = [failure for e in experiments for failure in e.failures]
    if not failures:
        return f"All {total} reference values of {plural(len(experiments), 'experiment')} reproduced."
    return "\n".join([
        f"{plural(len(failures), 'reference value')} of {total} not reproduced:", *(f"  {f}" for f in failures)
    ])  # fmt: skip


def render_json(result: Study | Sequence[Experiment]) -> str:
    """Everything, with names as in the dataclasses."""
    if isinstance(result, Sequence):
        return json.dumps([dataclasses.asdict(e) for e in result], indent=2)
    return json.dumps(dataclasses.asdict(result), indent=2)


def table(found: Table, width: int) -> str:
    """A title, aligned columns and the note. A table too wide for the terminal is turned on its side if that helps."""
    grid = [list(found.columns), *([_text(cell) for cell in row] for row in found.rows)]
    failed = {
        (r + 1, c) for r, row in enumerate(found.rows) for c, cell in enumerate(row)
        if isinstance(cell, Number) and not cell.holds
    }  # fmt: skip
    turned = [list(column) for column in zip(*grid, strict=True)]
    if _width(grid) > width and _width(turned) < _width(grid):
        grid, failed = turned, {(c, r) for r, c in failed}
    sizes = [max(len(row[c]) for row in grid) for c in range(len(grid[0]))]
    texts = [c == 0 or _is_text([row[c] for row in grid[1:]]) for c in range(len(grid[0]))]
    lines = [bold(_wrapped(found.title, width, ""))]
    for r, row in enumerate(grid):
        cells = [_cell(text, sizes[c], texts[c], (r, c) in failed) for c, text in enumerate(row)]
        line = "  " + "  ".join(cells).rstrip()
        lines.append(bold(line) if r == 0 else line)
    if any(text.endswith(")") and " (" in text and text[:1] in "-0123456789" for row in grid for text in row):
        lines.append(_wrapped("in brackets: the known value, where the first two digits differ", width, "  "))
    if found.note:
        lines.append(_wrapped(found.note, width, "  "))
    return "\n".join(lines)


def _is_text(column: list[str]) -> bool:
    """Whether most cells are words: those go to the left, numbers to the right."""
    filled = [text for text in column if text]
    return 2 * sum(text[0] not in "-0123456789" for text in filled) > len(filled)


def _cell(text: str, size: int, is_text: bool, failed: bool) -> str:
    padded = f"{text:<{size}}" if is_text else f"{text:>{size}}"
    return click.style(padded, fg="red", bold=True) if failed else padded


def _text(cell: Cell) -> str:
    if isinstance(cell, str):
        return cell
    if cell.reference is None:
        return number(cell.measured)
    known = cell.reference.value
    same = f"{cell.measured:.1e}" == f"{known:.1e}" or (known == 0 and cell.holds)
    return number(cell.measured) if same and cell.holds else f"{number(cell.measured)} ({number(known)})"


def _width(grid: list[list[str]]) -> int:
    return sum(max(len(row[c]) for row in grid) + 2 for c in range(len(grid[0])))


def _wrapped(text: str, width: int, indent: str) -> str:
    return textwrap.fill(text, max(width, 40), initial_indent=indent, subsequent_indent=indent)
