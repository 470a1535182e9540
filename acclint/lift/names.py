"""Which names only imports bind: those become `Extern` while the program is made.

Whether something else binds a name may be seen only later in the same scope; then the scope is lowered once more with
that knowledge. That is rare and cheaper than a pass of its own over every file.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from acclint.program import Extern, Span, Stmt

_Result = TypeVar("_Result")

# What these names are in training code, where a wildcard import may have brought them.
_CONVENTIONAL = {
    "torch": "torch",
    "nn": "torch.nn",
    "F": "torch.nn.functional",
    "optim": "torch.optim",
    "DataLoader": "torch.utils.data.DataLoader",
    "np": "numpy",
    "math": "math",
}


class Lowered(NamedTuple):
    """A module: its statements, and the dotted names of what it imports and of what it uses of that."""

    body: tuple[Stmt, ...]
    imports: frozenset[str]


class Frame:
    """The names of one scope: `kind` is "module", "class" or "function".

    `imports` are bound by imports, `bound` by anything else, `used` were taken for imports so far. What an earlier pass
    found (`known`) is there from the start.
    """

    __slots__ = ("bound", "generator", "globals", "imports", "kind", "nonlocals", "parent", "used")

    def __init__(self, kind: str, parent: Frame | None, known: Frame | None = None) -> None:
        self.kind = kind
        self.parent = parent
        self.imports: dict[str, str] = dict(known.imports) if known else {}
        self.bound: set[str] = set(known.bound) if known else set()
        self.used: set[str] = set()
        self.globals: set[str] = set()
        self.nonlocals: set[str] = set()
        self.generator = False


class Names:
    """The scopes around the place that is being lowered, and what the function around it mentions."""

    def __init__(self) -> None:
        self.top = self.scope = Frame("module", None)
        self.importable: set[str] = set()
        self.paths: set[str] = set()  # see `Lowered.imports`
        self.wildcard = False  # whether there is a `from ... import *`
        self.mentions: set[str] = set()
        self.known: dict[object, Frame] = {}

    def bind(self, name: str) -> None:
        scope = self.scope
        if name in scope.globals:
            self.top.bound.add(name)
        elif name in scope.nonlocals:
            outer = scope.parent
            while outer is not None and outer.kind != "module":
                outer.bound.add(name)
                outer = outer.parent
        else:
            scope.bound.add(name)

    def bind_import(self, name: str, path: str) -> None:
        """The first import of a name counts: the others are the fallbacks of a `try` or `if`."""
        scope = self.top if name in self.scope.globals else self.scope
        scope.imports.setdefault(name, path)
        self.importable.add(name)
        self.paths.add(path)

    def bind_wildcard(self, path: str) -> None:
        self.wildcard = True
        self.paths.add(path)
        self.importable.update(_CONVENTIONAL)

    def extern(self, span: Span, path: str) -> Extern:
        self.paths.add(path)
        return Extern(span, path)

    def resolve(self, name: str) -> str | None:
        """The dotted path, if only imports bind the name as it is seen from here."""
        innermost = self.top if name in self.scope.globals else self.scope
        scope: Frame | None = innermost
        while scope is not None:
            if scope.kind != "class" or scope is innermost:
                if name in scope.bound:
                    return None
                path = scope.imports.get(name)
                if path is not None:
                    user: Frame | None = innermost
                    while user is not None and user is not scope:
                        if user.kind != "class" or user is innermost:
                            user.used.add(name)
                        user = user.parent
                    scope.used.add(name)
                    return path
            scope = scope.parent
        if self.wildcard and name in _CONVENTIONAL:
            self.top.used.add(name)
            return _CONVENTIONAL[name]
        return None

    def inside(
        self, kind: str, key: object, parameters: set[str], lower: Callable[[], _Result]
    ) -> tuple[_Result, Frame]:
        """Run `lower` in a new scope; once more if a name that it took for an import is bound otherwise too.

        `key` stands for the scope in the syntax tree, so that a repetition of an outer scope does not repeat it.
        """
        outer = self.scope
        while True:
            self.scope = frame = Frame(kind, outer, self.known.get(key))
            frame.bound |= parameters
            result = lower()
            self.scope = outer
            if not frame.bound & frame.used:
                return result, frame
            self.known[key] = frame

    def module(self, definitions: dict[int, str], count: int, lower: Callable[[int], list[Stmt]]) -> Lowered:
        """Lower the `count` statements of a module; `definitions` holds the names of its functions and classes.

        Those go last, since they see the imports of the whole module.
        """
        others = [number for number in range(count) if number not in definitions]
        while True:
            self.top = self.scope = Frame("module", None, self.top)
            self.top.bound.update(definitions.values())
            done: dict[int, list[Stmt]] = {}
            for numbers in (others, list(definitions)):
                if not self.top.bound & self.top.used:
                    done.update((number, lower(number)) for number in numbers)
            if not self.top.bound & self.top.used:
                body = tuple([one for number in range(count) for one in done[number]])
                return Lowered(body, frozenset(self.paths))


# White space, comments and continued lines between two tokens.
TRIVIA = re.compile(r"(?:[ \t\f\r\n\\]+|#[^\r\n]*)*")


def line_starts(text: str) -> list[int]:
    """The offset of each line, and an endless one last; lines end at \\n, \\r\\n and \\r as in Python."""
    if "\r" in text:
        starts = [0, *(match.end() for match in re.finditer(r"\r\n?|\n", text))]
    else:
        starts, offset = [], 0
        for line in text.split("\n"):
            starts.append(offset)
            offset += len(line) + 1
    starts.append(sys.maxsize)
    return starts
