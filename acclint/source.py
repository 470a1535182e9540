"""One file read once: its text, and the Python units in it with the way back to places in the file.

A plain file is one unit. The Python cells of a notebook form one unit, since they share their names; so do the code
blocks of a Markdown page.
"""

from __future__ import annotations

import ast
import codecs
import io
import json
import re
import textwrap
import tokenize
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from acclint.findings import Place
from acclint.program import ROWS, Span, file_of

_NEWLINE = re.compile(r"\r\n|\r|\n")


class SourceError(Exception):
    """The bytes are no source text (encoding, notebook format). Row and column count from 1."""

    def __init__(self, message: str, row: int = 1, column: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.row = row
        self.column = column


class Row(NamedTuple):
    """Where a row of a unit lies in the file. `shift` is added to columns (the indentation of a Markdown block)."""

    row: int
    cell: int | None = None
    shift: int = 0


@dataclass(frozen=True)
class Unit:
    """Python text that is analysed as one module. `rows` leads back to the file, None where nothing has moved.

    `others` are the names of the files of its project that are analysed with it, by number (`program.Module`).
    """

    filename: str
    text: str
    rows: tuple[Row, ...] | None = None
    others: Mapping[int, str] = field(default_factory=dict, compare=False)

    def place(self, span: Span) -> Place:
        """The place of a span of the unit in the file, or in the other file that it lies in."""
        number = file_of(span)
        if number:
            behind = number * ROWS
            return Place(self.others[number], span.row - behind, span.column, span.end_row - behind, span.end_column)
        row, cell, shift = self._row(span.row)
        end_row, end_cell, end_shift = self._row(span.end_row)
        if end_cell != cell:
            # A place lies in one cell: end it with the line it began on.
            length = len(split_lines(self.text)[max(span.row, 1) - 1])
            return Place(self.filename, row, max(span.column, 1) + shift, row, length + 1 + shift, cell)
        return Place(
            self.filename, row, max(span.column, 1) + shift, end_row, max(span.end_column, 1) + end_shift, cell
        )

    def _row(self, row: int) -> Row:
        if self.rows is None or not self.rows:
            return Row(max(row, 1))
        return self.rows[min(max(row, 1), len(self.rows)) - 1]


@dataclass(frozen=True)
class Broken:
    """A part of a file that is not valid Python, though it should be (a cell of a notebook)."""

    message: str
    place: Place


@dataclass(frozen=True)
class Source:
    """The units of one file, and `lines`, the text as an editor shows it, by cell (None: the whole file)."""

    filename: str
    units: tuple[Unit, ...]
    broken: tuple[Broken, ...] = ()
    lines: dict[int | None, tuple[str, ...]] = field(default_factory=dict)


def split_lines(text: str) -> list[str]:
    """The lines as Python counts them: form feeds and Unicode separators do not end a line."""
    return _NEWLINE.split(text)


def read(data: bytes, filename: str) -> Source:
    """Decode the bytes of a file and find its Python. Raises SourceError if they are no text or no notebook."""
    lowered = filename.lower()
    if lowered.endswith(".ipynb"):
        return _read_notebook(data, filename)
    text = decode(data, filename)
    return _read_markdown(text, filename) if _is_markdown(filename) else read_text(text, filename)


def _is_markdown(filename: str) -> bool:
    return filename.lower().endswith((".md", ".markdown"))


def read_text(text: str, filename: str) -> Source:
    """The source of a plain Python file whose text is at hand."""
    text = text.removeprefix("\ufeff")
    return Source(filename, (Unit(filename, text),), lines={None: tuple(split_lines(text))})


def decode(data: bytes, filename: str) -> str:
    """The text of a Python file: PEP 263 encoding comment, byte order mark, UTF-8 by default. Newlines stay.

    Markdown pages are UTF-8. Raises SourceError.
    """
    if _is_markdown(filename):
        return _decode(data, "utf-8-sig")
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    except SyntaxError as error:
        # Either the comment names an unknown encoding, or the first lines are not UTF-8.
        if "unknown encoding" in str(error):
            raise SourceError(f"unknown encoding in the coding comment: {str(error).split(': ')[-1]}") from error
        encoding = "utf-8"
    return _decode(data, encoding)


def encode(text: str, like: bytes, filename: str) -> bytes:
    """The bytes of a text in the encoding, and with the byte order mark, of `like`. Raises UnicodeEncodeError."""
    encoding = "utf-8"
    if not _is_markdown(filename):
        encoding, _ = tokenize.detect_encoding(io.BytesIO(like).readline)
    bom = codecs.BOM_UTF8 if like.startswith(codecs.BOM_UTF8) else b""
    return bom + text.encode(encoding.removesuffix("-sig"))


def _decode(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        before = data[: error.start]
        row = len(re.findall(rb"\r\n|\r|\n", before)) + 1
        column = error.start - max(before.rfind(b"\n"), before.rfind(b"\r"))
        shown = encoding.removesuffix("-sig").upper()
        raise SourceError(
            f"byte 0x{data[error.start]:02x} is not valid {shown}; save the file as UTF-8", row, column
        ) from error
    except (LookupError, ValueError) as error:
        raise SourceError(f"the encoding {encoding} cannot be decoded") from error


def parses(text: str) -> SyntaxError | None:
    """None if the running Python accepts `text`, else its error. Never raises anything else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except SyntaxError as error:
        return error
    except (ValueError, RecursionError, MemoryError) as error:
        return SyntaxError(str(error) or "nested too deeply")
    return None


def _readable(text: str) -> SyntaxError | None:
    """As `parses`, but newer syntax than the running Python's is fine as well."""
    error = parses(text)
    if error is None:
        return None
    import libcst

    try:
        libcst.parse_module(text)
    except Exception:
        return error
    return None


# --- notebooks -------------------------------------------------------------------------------------------------------

# Cell magics whose cell is ordinary Python; every other cell magic hides the whole cell.
_PYTHON_CELLS = frozenset({"capture", "time", "timeit", "prun", "python", "python3", "memit", "mprun", "lprun", "heat"})
_MAGIC_LINE = re.compile(r"^(\s*)(%|!|\?|,|;|/(?=\w))")
_MAGIC_VALUE = re.compile(r"^(\s*[\w.,\s\[\]\"']+?=\s*)([%!](?![=]).*)$")
# Commands that IPython runs without a percent sign.
_AUTOMAGIC = re.compile(
    r"(\s*)(?:cd|ls|pip3?|conda|pwd|mkdir|rm|cp|mv|cat|man|more|less|clear|git|apt|apt-get|wget|unzip)"
    r"(?:$|\s+(?![=(\[,+*/%<>|&:]|-[^-\w]|in\b|is\b|and\b|or\b|if\b|not\b|for\b))"
)
_HELP_LINE = re.compile(r"^(\s*)[%\w.]+\?{1,2}\s*$")


def _read_notebook(data: bytes, filename: str) -> Source:
    try:
        document = json.loads(_decode(data, "utf-8-sig"))
    except json.JSONDecodeError as error:
        raise SourceError(f"not a notebook: {error.msg}", error.lineno, error.colno) from error
    except RecursionError as error:
        raise SourceError("not a notebook: nested too deeply") from error
    if not isinstance(document, dict):
        raise SourceError("not a notebook: the file holds no JSON object")
    cells = _cells(document)
    if cells is None:
        raise SourceError("not a notebook: it has no list of cells")
    if not _is_python(document):
        return Source(filename, ())
    parts: list[tuple[int, str]] = []
    broken: list[Broken] = []
    lines: dict[int | None, tuple[str, ...]] = {}
    for number, cell in enumerate(cells, start=1):
        text = _cell_text(cell)
        if text is None:
            continue
        lines[number] = tuple(split_lines(text))
        python = _without_magics(text)
        refused = _readable(python)
        if refused is None:
            parts.append((number, python))
        else:
            row, column = refused.lineno or 1, refused.offset or 1
            broken.append(Broken(refused.msg, Place(filename, row, column, row, column + 1, number)))
    rows = [Row(row, number) for number, text in parts for row in range(1, len(split_lines(text)) + 1)]
    text = "\n".join(text for _, text in parts)
    return Source(filename, (Unit(filename, text, tuple(rows)),) if rows else (), tuple(broken), lines)


def _cells(document: dict[str, Any]) -> list[Any] | None:
    cells = document.get("cells")
    if cells is None and isinstance(document.get("worksheets"), list):  # nbformat 3
        sheets = [sheet for sheet in document["worksheets"] if isinstance(sheet, dict)]
        cells = [cell for sheet in sheets for cell in sheet.get("cells", [])]
    return cells if isinstance(cells, list) else None


def _is_python(document: dict[str, Any]) -> bool:
    metadata = document.get("metadata")
    if not isinstance(metadata, dict):
        return True
    kernel, language = metadata.get("kernelspec"), metadata.get("language_info")
    names = [kernel.get("language") if isinstance(kernel, dict) else None]
    names.append(language.get("name") if isinstance(language, dict) else None)
    return all(name is None or "python" in str(name).lower() for name in names)


def _cell_text(cell: Any) -> str | None:
    """The text of a code cell, without a final newline; None for every other cell."""
    if not isinstance(cell, dict) or cell.get("cell_type") != "code":
        return None
    text = cell.get("source", cell.get("input", ""))
    if isinstance(text, list):
        text = "".join(part for part in text if isinstance(part, str))
    return text.removesuffix("\n") if isinstance(text, str) else None


def _without_magics(text: str) -> str:
    """The cell with IPython's own syntax replaced by `pass` or None; the number of lines stays."""
    lines = split_lines(text)
    first = next((line.strip() for line in lines if line.strip()), "")
    if first.startswith("%%"):
        name = re.match(r"%%(\w*)", first)
        if name is None or name[1] not in _PYTHON_CELLS:
            return "\n" * (len(lines) - 1)
    elif parses(text) is None:
        return "\n".join(lines)
    if re.match(r"[ \t]", next((line for line in lines if line.strip()), "")):
        # IPython takes a cell's common indentation away.
        lines = textwrap.dedent("\n".join(lines)).split("\n")
    result: list[str] = []
    inside = _Inside()
    continued = False
    for line in lines:
        if continued:  # a shell command goes on behind a backslash
            continued = line.rstrip().endswith("\\")
            result.append("")
            continue
        if inside.code():
            if match := _MAGIC_LINE.match(line) or _HELP_LINE.match(line) or _AUTOMAGIC.match(line):
                continued = line.rstrip().endswith("\\")
                result.append(match[1] + "pass")
                continue
            if match := _MAGIC_VALUE.match(line):
                continued = line.rstrip().endswith("\\")
                result.append(match[1] + "None")
                continue
        inside.feed(line)
        result.append(line)
    return "\n".join(result)


class _Inside:
    """Follows strings and brackets from line to line, to tell a magic from the rest of an expression."""

    _token = re.compile(r"\\.|'''|\"\"\"|['\"#()\[\]{}]")

    def __init__(self) -> None:
        self._quote = ""
        self._depth = 0
        self._backslash = False

    def code(self) -> bool:
        """Whether the next line begins a statement."""
        return not self._quote and self._depth <= 0 and not self._backslash

    def feed(self, line: str) -> None:
        for match in self._token.finditer(line):
            token = match[0]
            if self._quote:
                if token == self._quote:
                    self._quote = ""
            elif token == "#":
                break
            elif token[0] in "'\"":
                self._quote = token
            elif token in "([{":
                self._depth += 1
            elif token in ")]}":
                self._depth -= 1
        if len(self._quote) == 1:  # such a string ends with its line
            self._quote = ""
        self._backslash = line.endswith("\\") and not self._quote


# --- Markdown --------------------------------------------------------------------------------------------------------

_FENCE = re.compile(r"^([ \t>]*)(`{3,}|~{3,})[ \t]*(.*)$")
_PYTHON_FENCE = re.compile(r"^\{?\.?\s*(python3?|py3?|pycon)\b", re.IGNORECASE)


def _read_markdown(text: str, filename: str) -> Source:
    lines = split_lines(text)
    blocks = list(_blocks(lines))
    source_lines: dict[int | None, tuple[str, ...]] = {None: tuple(lines)}

    def unit(chosen: Sequence[tuple[list[str], list[Row]]]) -> Unit:
        rows = tuple(row for _, block_rows in chosen for row in block_rows)
        return Unit(filename, "\n".join("\n".join(block) for block, _ in chosen), rows)

    # Consecutive blocks tell one story. Prose also shows fragments, which are no mistakes: they are left out.
    whole = unit(blocks)
    if parses(whole.text) is not None:
        whole = unit([block for block in blocks if _readable("\n".join(block[0])) is None])
    return Source(filename, (whole,) if whole.rows else (), lines=source_lines)


def _blocks(lines: list[str]) -> Iterator[tuple[list[str], list[Row]]]:
    """Each fenced Python block of a page: its lines without the indentation, and where each of them lies."""
    number = 0
    at = 0
    while at < len(lines):
        opening = _FENCE.match(lines[at])
        at += 1
        if opening is None or (opening[2][0] == "`" and "`" in opening[3]):
            continue
        begin = at
        closing = re.compile(rf"^[ \t>]*{opening[2][0]}{{{len(opening[2])},}}[ \t]*$")
        while at < len(lines) and not closing.match(lines[at]):
            at += 1
        body = lines[begin:at]
        at += 1
        if not _PYTHON_FENCE.match(opening[3]):
            continue
        number += 1
        # A block in a list or a quotation is indented by what stands before its fence.
        prefix = len(opening[1])
        body = [line[prefix:] if line[:prefix].strip(" \t>") == "" else line for line in body]
        shift = prefix
        dedented = textwrap.dedent("\n".join(body)).split("\n")
        shift += max((len(old) - len(new) for old, new in zip(body, dedented, strict=True) if new.strip()), default=0)
        shifts = [shift] * len(dedented)
        if any(line.startswith(">>>") for line in dedented):
            # A doctest: the prompts go, the output becomes empty lines.
            shifts = [shift + 4] * len(dedented)
            dedented = [line[4:] if re.match(r"(>>>|\.\.\.)( |$)", line) else "" for line in dedented]
        yield dedented, [Row(begin + index + 1, number, shifts[index]) for index in range(len(dedented))]
