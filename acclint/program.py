"""The small language that the simulator runs.

It is Python reduced to what can matter to a training loop: expressions and statements as frozen, hashable dataclasses,
free of libcst and of text. A `Span` leads back to the source. Names that an import binds are already resolved: they
are `Extern` nodes with the full dotted name ("torch.optim.AdamW"). What the lifter could not express is `Unknown`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Span(NamedTuple):
    """A place in the source: rows and columns from 1, the end column behind the last character."""

    row: int
    column: int
    end_row: int
    end_column: int

    def within(self, outer: Span) -> bool:
        """Whether it lies in another place (or is the same)."""
        ends = (outer.end_row, outer.end_column)
        return (outer.row, outer.column) <= (self.row, self.column) and (self.end_row, self.end_column) <= ends


NOWHERE = Span(0, 0, 0, 0)


# --- expressions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Expr:
    span: Span


@dataclass(frozen=True, slots=True)
class Const(Expr):
    """A literal: int, float, complex, str, bytes, bool, None or Ellipsis."""

    value: Any


@dataclass(frozen=True, slots=True)
class Name(Expr):
    id: str


@dataclass(frozen=True, slots=True)
class Extern(Expr):
    """Something imported, by its full dotted name."""

    path: str


@dataclass(frozen=True, slots=True)
class Attr(Expr):
    value: Expr
    name: str


@dataclass(frozen=True, slots=True)
class Index(Expr):
    value: Expr
    index: Expr


@dataclass(frozen=True, slots=True)
class Slice(Expr):
    lower: Expr | None
    upper: Expr | None
    step: Expr | None


@dataclass(frozen=True, slots=True)
class Call(Expr):
    """`keywords` holds (name, value); a name of None is `**value`. A starred positional is a `Star`."""

    func: Expr
    args: tuple[Expr, ...]
    keywords: tuple[tuple[str | None, Expr], ...]


@dataclass(frozen=True, slots=True)
class Star(Expr):
    value: Expr


@dataclass(frozen=True, slots=True)
class Binary(Expr):
    """`op` is one of + - * / // % ** @ << >> & | ^."""

    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class Unary(Expr):
    """`op` is one of - + ~ not."""

    op: str
    operand: Expr


@dataclass(frozen=True, slots=True)
class Compare(Expr):
    """A chain: `ops` are == != < <= > >= is "is not" in "not in"."""

    left: Expr
    ops: tuple[str, ...]
    rights: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Bool(Expr):
    """`op` is "and" or "or"."""

    op: str
    values: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class IfElse(Expr):
    test: Expr
    body: Expr
    orelse: Expr


@dataclass(frozen=True, slots=True)
class Sequence(Expr):
    """`kind` is "tuple", "list" or "set"."""

    kind: str
    items: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Mapping(Expr):
    """A key of None is `**value`."""

    items: tuple[tuple[Expr | None, Expr], ...]


@dataclass(frozen=True, slots=True)
class Comprehension(Expr):
    """`kind` is "list", "set", "dict" or "generator"; a dict's element is a tuple Sequence of key and value."""

    kind: str
    element: Expr
    clauses: tuple[Clause, ...]


@dataclass(frozen=True, slots=True)
class Clause:
    """One `for target in iterable if tests` of a comprehension."""

    target: Expr
    iterable: Expr
    tests: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Lambda(Expr):
    function: Function


@dataclass(frozen=True, slots=True)
class Text(Expr):
    """An f-string: the value is opaque text, the parts are evaluated."""

    parts: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Walrus(Expr):
    target: Expr
    value: Expr


@dataclass(frozen=True, slots=True)
class Await(Expr):
    value: Expr


@dataclass(frozen=True, slots=True)
class Yield(Expr):
    value: Expr | None
    many: bool = False


@dataclass(frozen=True, slots=True)
class Unknown(Expr):
    """An expression the lifter has no form for."""


# --- statements ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stmt:
    span: Span


@dataclass(frozen=True, slots=True)
class Assign(Stmt):
    targets: tuple[Expr, ...]
    value: Expr
    annotated: bool = False


@dataclass(frozen=True, slots=True)
class Augment(Stmt):
    target: Expr
    op: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Do(Stmt):
    """An expression statement."""

    value: Expr


@dataclass(frozen=True, slots=True)
class If(Stmt):
    test: Expr
    body: tuple[Stmt, ...]
    orelse: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True)
class For(Stmt):
    target: Expr
    iterable: Expr
    body: tuple[Stmt, ...]
    orelse: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True)
class While(Stmt):
    test: Expr
    body: tuple[Stmt, ...]
    orelse: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True)
class With(Stmt):
    """`items` holds (context manager, target or None)."""

    items: tuple[tuple[Expr, Expr | None], ...]
    body: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True)
class Try(Stmt):
    """`handlers` holds (exception type or None, name or None, body)."""

    body: tuple[Stmt, ...]
    handlers: tuple[tuple[Expr | None, str | None, tuple[Stmt, ...]], ...]
    orelse: tuple[Stmt, ...]
    final: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True)
class Match(Stmt):
    """`cases` holds (constant patterns or () for a wildcard, guard or None, body, names bound)."""

    subject: Expr
    cases: tuple[tuple[tuple[Expr, ...], Expr | None, tuple[Stmt, ...], tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class Return(Stmt):
    value: Expr | None


@dataclass(frozen=True, slots=True)
class Break(Stmt):
    pass


@dataclass(frozen=True, slots=True)
class Continue(Stmt):
    pass


@dataclass(frozen=True, slots=True)
class Raise(Stmt):
    pass


@dataclass(frozen=True, slots=True)
class Delete(Stmt):
    targets: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Import(Stmt):
    """Binds `name` to the imported thing `path`."""

    name: str
    path: str


@dataclass(frozen=True, slots=True)
class Scope(Stmt):
    """`global` and `nonlocal`."""

    kind: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Parameter:
    """`kind` is "plain", "args" (*args), "keyword" (keyword only) or "kwargs" (**kwargs)."""

    name: str
    kind: str
    default: Expr | None
    annotation: Expr | None


@dataclass(frozen=True, slots=True)
class Function:
    """The inside of a `def` or lambda. `mentions` are the attribute and call names anywhere inside (for slicing)."""

    name: str
    span: Span
    parameters: tuple[Parameter, ...]
    body: tuple[Stmt, ...]
    mentions: frozenset[str]
    generator: bool = False


@dataclass(frozen=True, slots=True)
class Define(Stmt):
    function: Function
    decorators: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Class(Stmt):
    name: str
    bases: tuple[Expr, ...]
    body: tuple[Stmt, ...]
    decorators: tuple[Expr, ...]


# The rows of the other files that a program imports from follow its own: those of the first from here on, and so on.
ROWS = 10_000_000


def file_of(span: Span) -> int:
    """The number of the file that a place lies in: 0 for the program's own, else that of a `Module`."""
    return span.row // ROWS


@dataclass(frozen=True, slots=True)
class Module:
    """Another file of the project. Its rows begin behind `number * ROWS`; `path` is where it lies on disk.

    `links` leads from the dotted names of the files that it imports to their numbers.
    """

    number: int
    path: str
    body: tuple[Stmt, ...]
    links: dict[str, int]


@dataclass(frozen=True, slots=True)
class Program:
    """One module. `filename` is for messages only.

    `imports` are the dotted names of what it imports and of what it uses of that. `others` are the files of the project
    that they lead to, by number; `links` is as for a `Module`.
    """

    filename: str
    body: tuple[Stmt, ...]
    imports: frozenset[str] = frozenset()
    others: dict[int, Module] = field(default_factory=dict)
    links: dict[str, int] = field(default_factory=dict)

    def find(self, number: int, path: str) -> tuple[Module, tuple[str, ...]] | None:
        """The file that the dotted name `path` leads to, as seen from file `number`, and what is named in it."""
        links = self.links if number == 0 else self.others[number].links
        if not links:
            return None
        head = path
        rest: tuple[str, ...] = ()
        while head:
            found = links.get(head)
            if found is not None:
                return self.others[found], rest
            head, _, last = head.rpartition(".")
            rest = (last, *rest)
        return None
