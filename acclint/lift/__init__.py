"""Python text becomes the small language of `acclint.program`.

Usually the parser of the running Python is used. What it refuses is given to libcst, which knows newer syntax too, so
that what is found does not depend on the Python that acclint runs on.
"""

from __future__ import annotations

import ast
import re
import warnings
from typing import TYPE_CHECKING

from acclint.lift.names import Lowered
from acclint.program import Program

if TYPE_CHECKING:
    import libcst

__all__ = ["LiftError", "lift", "parse_tree"]

# libcst's native parser has no limits of its own: what is nested far more deeply overflows the stack.
_MAX_BRACKETS = 200
_MAX_TERM = 1000  # tokens between two commas or statements
_MAX_ELIF = 1000
# Roughly: strings that hold their own quotes, which only newer Python allows, come out as several.
_STRINGS_AND_COMMENTS = re.compile(
    r"""\"\"\".*?\"\"\"|'''.*?'''|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|\#[^\n]*""", re.DOTALL
)


class LiftError(Exception):
    """The text cannot be lifted. `kind` is "invalid-syntax" or "too-complex"; row and column count from 1."""

    def __init__(self, message: str, row: int, column: int, kind: str) -> None:
        super().__init__(message)
        self.message = message
        self.row = row
        self.column = column
        self.kind = kind


def lift(text: str, filename: str = "<string>") -> Program:
    """Lift one module: all its module-level statements, in order.

    Spans count rows and columns from 1, in characters; a byte order mark at the beginning is not counted. Raises
    `LiftError`.
    """
    text = text.removeprefix("\ufeff")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the escapes in the strings of the text
            lowered = _lower(text)
            return Program(filename, lowered.body, lowered.imports)
    except UnicodeEncodeError as caught:
        raise _invalid("the text holds a lone surrogate", text, caught.start) from caught
    except (RecursionError, MemoryError) as caught:
        raise LiftError("the code is nested too deeply", 1, 1, "too-complex") from caught


def _invalid(message: str, text: str, offset: int) -> LiftError:
    before = re.split(r"\r\n?|\n", text[:offset])
    return LiftError(message, len(before), len(before[-1]) + 1, "invalid-syntax")


def _lower(text: str) -> Lowered:
    from acclint.lift import from_ast

    if "\0" in text:
        raise _invalid("the text holds a null character", text, text.index("\0"))
    try:
        tree = ast.parse(text)
    except UnicodeEncodeError:
        raise
    except (SyntaxError, ValueError) as caught:
        return _lower_newer(text, caught)
    return from_ast.lower(text, tree)


def _lower_newer(text: str, error: SyntaxError | ValueError) -> Lowered:
    """What the running Python refuses with `error`: libcst decides whether it is only newer."""
    from acclint.lift import from_libcst

    row, column = getattr(error, "lineno", None) or 1, getattr(error, "offset", None) or 1
    message = str(getattr(error, "msg", "") or "invalid syntax")
    return from_libcst.lower(text, _parse_tree(text, row, column, message))


def parse_tree(text: str) -> libcst.Module:
    """The libcst tree of a text. Raises `LiftError`, also for what libcst's parser would not survive."""
    return _parse_tree(text, 1, 1, "invalid syntax")


def _parse_tree(text: str, row: int, column: int, message: str) -> libcst.Module:
    """`row`, `column` and `message` are what another parser said; libcst's are not for users."""
    if _is_too_deep(text):
        raise LiftError("the code is nested too deeply", row, column, "too-complex")

    import libcst

    try:
        return libcst.parse_module(text)
    except libcst.ParserSyntaxError as caught:
        same_row = caught.raw_line == row
        said = message if same_row else "invalid syntax"
        raise LiftError(said, caught.raw_line, caught.raw_column + 1, "invalid-syntax") from caught
    except (RecursionError, MemoryError):
        raise
    except Exception as caught:  # what its checks of single nodes raise, for instance
        raise LiftError(message, row, column, "invalid-syntax") from caught
    except BaseException as caught:
        if type(caught).__name__ == "PanicException":  # of the native parser; it is no Exception
            raise LiftError("the parser cannot read this", row, column, "too-complex") from caught
        raise


def _is_too_deep(text: str) -> bool:
    """Whether libcst may not survive the text: many open brackets, or one very long expression."""
    text = _STRINGS_AND_COMMENTS.sub("0", text)
    depth = length = 0
    for token in re.findall(r"\w+|[^\w \t\f]", text):
        if token in "([{":
            depth += 1
        elif token in ")]}":
            depth = max(depth - 1, 0)
        length = 0 if token == "," or (token in "\r\n" and depth == 0) else length + 1
        if depth > _MAX_BRACKETS or length > _MAX_TERM:
            return True
    return len(re.findall(r"^\s*elif\b", text, re.MULTILINE)) > _MAX_ELIF
