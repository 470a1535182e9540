"""Bytes to units and places: encodings, newlines, notebooks, Markdown."""

from __future__ import annotations

import ast
import codecs
import json

import pytest

from acclint.program import Span
from acclint.source import SourceError, Unit, decode, read, split_lines


def notebook(*cells: object, **metadata: object) -> bytes:
    made = [cell if isinstance(cell, dict) else {"cell_type": "code", "source": cell} for cell in cells]
    return json.dumps({"cells": made, "metadata": metadata, "nbformat": 4}).encode()


def only(data: bytes, filename: str) -> Unit:
    source = read(data, filename)
    assert not source.broken
    assert len(source.units) == 1
    return source.units[0]


# --- plain files ---


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"x = 1\n", "x = 1\n"),
        (b"", ""),
        (codecs.BOM_UTF8 + b"x = 1\n", "x = 1\n"),
        (b"# -*- coding: latin-1 -*-\nx = '\xe4'\n", "# -*- coding: latin-1 -*-\nx = 'ä'\n"),
        (b"#!/usr/bin/python\n# vim: set fileencoding=cp1252 :\nx = '\x80'\n", None),
        ("x = 'ä'\r\ny = 2\r\n".encode(), "x = 'ä'\r\ny = 2\r\n"),
    ],
)
def test_decodes_as_python_does(data: bytes, text: str | None) -> None:
    decoded = decode(data, "train.py")
    if text is not None:
        assert decoded == text
    else:
        assert "€" in decoded


@pytest.mark.parametrize(
    ("data", "row", "column", "says"),
    [
        (b"x = 1\ny = '\xff'\n", 2, 6, "0xff is not valid UTF-8"),
        (b"# coding: martian\n", 1, 1, "unknown encoding"),
        (codecs.BOM_UTF16_LE + "x".encode("utf-16-le"), 1, 1, "UTF-8"),
        (codecs.BOM_UTF8 + b"# coding: latin-1\n", 1, 1, ""),
    ],
)
def test_bytes_that_are_no_text_have_a_place(data: bytes, row: int, column: int, says: str) -> None:
    if not says:  # a mark and a comment that contradict each other: Python refuses; reading it as UTF-8 is kinder
        assert decode(data, "train.py")
        return
    with pytest.raises(SourceError, match=says) as caught:
        decode(data, "train.py")
    assert (caught.value.row, caught.value.column) == (row, column)


def test_only_newlines_end_a_line() -> None:
    assert split_lines("a\x0cb\u2028c\x85d\r\ne\rf\n") == ["a\x0cb\u2028c\x85d", "e", "f", ""]


def test_a_plain_file_keeps_its_places() -> None:
    place = only(b"x = 1\ny = 22\n", "train.py").place(Span(2, 5, 2, 7))
    assert (place.filename, place.row, place.column, place.end_row, place.end_column) == ("train.py", 2, 5, 2, 7)
    assert place.cell is None


def test_a_span_without_a_place_is_shown_at_the_top() -> None:
    place = only(b"x = 1\n", "train.py").place(Span(0, 0, 0, 0))
    assert (place.row, place.column) == (1, 1)


# --- notebooks ---


def test_cells_become_one_unit_and_rows_count_inside_the_cell() -> None:
    unit = only(
        notebook("import torch\nx = 1", {"cell_type": "markdown", "source": "text"}, ["y = 2\n", "z = 3\n"]), "a.ipynb"
    )
    assert unit.text == "import torch\nx = 1\ny = 2\nz = 3"
    place = unit.place(Span(4, 1, 4, 6))
    assert (place.cell, place.row, place.column, place.end_column) == (3, 2, 1, 6)


def test_a_place_ends_in_its_cell() -> None:
    unit = only(notebook("x = 1", "y = 2"), "a.ipynb")
    place = unit.place(Span(1, 1, 2, 6))
    assert (place.cell, place.row, place.end_row, place.end_column) == (1, 1, 1, 6)


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ("%matplotlib inline\nx = 1", "pass\nx = 1"),
        ("!pip install torch\nx = 1", "pass\nx = 1"),
        ("if x:\n    !ls\n", "if x:\n    pass"),
        ("%%time\nx = 1", "pass\nx = 1"),
        ("%%bash\nls -l", "\n"),
        ("%%writefile train.py\nx = (", "\n"),
        ("files = !ls *.py\nx = 1", "files = None\nx = 1"),
        ("t = %timeit -o f()", "t = None"),
        ("model?", "pass"),
        ("?model", "pass"),
        ("!pip install \\\n  torch\nx = 1", "pass\n\nx = 1"),
        # Python that only looks like magic stays.
        ("x = (a\n% b)", "x = (a\n% b)"),
        ('s = """\n%time\n!ls\n"""', 's = """\n%time\n!ls\n"""'),
        ('s = """\n%time\n"""\n!ls', 's = """\n%time\n"""\npass'),
        ("x = a % b\n!ls", "x = a % b\npass"),
        ("x = [\n  '%d'\n  % n]\n%time", "x = [\n  '%d'\n  % n]\npass"),
        ("x = y != z\n%time", "x = y != z\npass"),
        ("s = 'it\\'s ('\n%time f()", "s = 'it\\'s ('\npass"),
        ("x = 1  # don't (\n%time f()", "x = 1  # don't (\npass"),
    ],
)
def test_magics_go_and_lines_stay(cell: str, text: str) -> None:
    unit = only(notebook(cell), "a.ipynb")
    assert unit.text == text
    ast.parse(unit.text)


def test_a_broken_cell_is_named_and_the_others_stay() -> None:
    source = read(notebook("x = 1", "y = (", "z = 3"), "a.ipynb")
    assert source.units[0].text == "x = 1\nz = 3"
    assert [(item.place.cell, item.place.row) for item in source.broken] == [(2, 1)]
    assert source.units[0].place(Span(2, 1, 2, 2)).cell == 3


def test_nbformat_3() -> None:
    data = json.dumps({"worksheets": [{"cells": [{"cell_type": "code", "input": ["x = 1"]}]}]}).encode()
    assert only(data, "a.ipynb").text == "x = 1"


@pytest.mark.parametrize(
    "metadata",
    [{"kernelspec": {"language": "R"}}, {"language_info": {"name": "julia"}}],
)
def test_notebooks_of_other_languages_hold_nothing(metadata: dict[str, object]) -> None:
    assert read(notebook("x <- 1", **metadata), "a.ipynb").units == ()


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"cells": 3}', b"{", b'"x"', b"[" * 100_000])
def test_what_is_no_notebook_is_said(data: bytes) -> None:
    with pytest.raises(SourceError, match="not a notebook"):
        read(data, "a.ipynb")


@pytest.mark.parametrize(
    "cell", [None, 3, {"cell_type": "code"}, {"cell_type": "code", "source": 3}, {"source": "x"}, []]
)
def test_odd_cells_are_left_out(cell: object) -> None:
    data = json.dumps({"cells": [cell, {"cell_type": "code", "source": "x = 1"}]}).encode()
    unit = only(data, "a.ipynb")
    assert unit.text.strip() == "x = 1"
    assert unit.place(Span(len(split_lines(unit.text)), 1, len(split_lines(unit.text)), 2)).cell == 2


# --- Markdown ---


def test_blocks_tell_one_story() -> None:
    page = "# Title\n\n```python\nimport torch\n```\n\ntext\n\n~~~py\nx = torch.ones(1)\n~~~\n"
    unit = only(page.encode(), "README.md")
    assert unit.text == "import torch\nx = torch.ones(1)"
    place = unit.place(Span(2, 1, 2, 18))
    assert (place.row, place.column, place.cell) == (10, 1, 2)


def test_blocks_that_go_on_are_joined() -> None:
    unit = only(b"```python\nfor x in y:\n```\n```python\n    print(x)\n```\n", "a.md")
    ast.parse(unit.text)


def test_indented_blocks_keep_their_columns() -> None:
    unit = only(b"- item\n\n    ```python\n    if x:\n        y = 1\n    ```\n", "a.md")
    assert unit.text == "if x:\n    y = 1"
    place = unit.place(Span(2, 5, 2, 10))
    assert (place.row, place.column) == (5, 9)


def test_an_excerpt_from_a_function_is_dedented() -> None:
    unit = only(b"```python\n    x = 1\n\n    y = 2\n```\n", "a.md")
    assert unit.text == "x = 1\n\ny = 2"
    assert unit.place(Span(3, 1, 3, 2)).column == 5


def test_doctests_lose_their_prompts() -> None:
    unit = only(b"```pycon\n>>> for x in y:\n...     print(x)\n1\n>>> z\n```\n", "a.md")
    ast.parse(unit.text)
    assert "print(x)" in unit.text
    assert unit.place(Span(4, 1, 4, 2)).column == 5


@pytest.mark.parametrize(
    "page",
    [
        "no code",
        "```\nx = 1\n```",
        "```bash\nls\n```",
        "```python\nfor ... in\n```",  # a fragment is no mistake
        "`` `python` ``",
        "",
    ],
)
def test_pages_without_python(page: str) -> None:
    source = read(page.encode(), "a.md")
    assert source.units == ()
    assert source.broken == ()


def test_fragments_are_left_out_and_counted() -> None:
    unit = only(b"```python\nx = 1\n```\n```python\nloss = ...(\n```\n```python\ny = 2\n```\n", "a.md")
    assert unit.text == "x = 1\ny = 2"
    assert unit.place(Span(2, 1, 2, 2)).cell == 3


def test_an_open_block_ends_with_the_page() -> None:
    assert only(b"```python\nx = 1\n", "a.md").text.strip() == "x = 1"


def test_a_longer_fence_holds_a_shorter_one() -> None:
    assert only(b'````python\ns = """\n```\n"""\n````\n', "a.md").text == 's = """\n```\n"""'
