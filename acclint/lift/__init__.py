"""Python text becomes the small language of `acclint.program`.

Usually the parser of the running Python is used. What it refuses is given to libcst, which knows newer syntax too, so
that what is found does not depend on the Python that acclint runs on.
"""

from __future__ import annotations

import ast
import re
import warnings

from acclint.program import Program, Stmt

__all__ = ["LiftError", "lift"]

# libcst's native parser overflows the stack somewhere above this many open brackets; no one writes that by hand.
_MAX_BRACKETS = 300


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
            return Program(filename, _lower(text))
    except UnicodeEncodeError as caught:
        row = text.count("\n", 0, caught.start) + 1
        column = caught.start - text.rfind("\n", 0, caught.start)
        raise LiftError("the text holds a lone surrogate", row, column, "invalid-syntax") from caught
    except (RecursionError, MemoryError) as caught:
        raise LiftError("the code is nested too deeply", 1, 1, "too-complex") from caught


def _lower(text: str) -> tuple[Stmt, ...]:
    from acclint.lift import from_ast

    try:
        tree = ast.parse(text)
    except UnicodeEncodeError:
        raise
    except (SyntaxError, ValueError) as caught:
        return _lower_newer(text, caught)
    return from_ast.lower(text, tree)


def _lower_newer(text: str, error: SyntaxError | ValueError) -> tuple[Stmt, ...]:
    """What the running Python refuses with `error`: libcst decides whether it is only newer."""
    row, column = getattr(error, "lineno", None) or 1, getattr(error, "offset", None) or 1
    depth = deepest = 0
    for bracket in re.findall(r"[(\[{}\])]", text):
        depth += 1 if bracket in "([{" else -1
        deepest = max(deepest, depth)
    if deepest > _MAX_BRACKETS:
        raise LiftError("too many nested brackets", row, column, "too-complex") from error

    import libcst

    from acclint.lift import from_libcst

    try:
        module = libcst.parse_module(text)
    except libcst.ParserSyntaxError as caught:
        same_row = caught.raw_line == row
        message = str(getattr(error, "msg", "") or "invalid syntax") if same_row else "invalid syntax"
        raise LiftError(message, caught.raw_line, caught.raw_column + 1, "invalid-syntax") from caught
    return from_libcst.lower(text, module)
