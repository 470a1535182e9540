"""Nodes of Python's own `ast` become program nodes.

This is the usual way: it needs no libcst, which takes longer to import than a project takes to check. What the
positions of `ast` lack is made up from the text: the colon that ends a header, columns in characters where a line is
not ASCII, and before Python 3.12 the places inside f-strings.
"""

from __future__ import annotations

import ast
import re
import sys
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from typing import Any

from acclint.lift.names import TRIVIA, Lowered, Names, line_starts
from acclint.program import (
    Assign,
    Attr,
    Augment,
    Await,
    Binary,
    Bool,
    Break,
    Call,
    Class,
    Clause,
    Compare,
    Comprehension,
    Const,
    Continue,
    Define,
    Delete,
    Do,
    Expr,
    Extern,
    For,
    Function,
    If,
    IfElse,
    Import,
    Index,
    Lambda,
    Mapping,
    Match,
    Name,
    Parameter,
    Raise,
    Return,
    Scope,
    Sequence,
    Slice,
    Span,
    Star,
    Stmt,
    Text,
    Try,
    Unary,
    Unknown,
    Walrus,
    While,
    With,
    Yield,
)

MAX_CHAIN = 200  # operands of one binary expression; what is longer is Unknown, since later stages recurse

_BINARY: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Pow: "**",
    ast.MatMult: "@",
    ast.LShift: "<<",
    ast.RShift: ">>",
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.BitXor: "^",
}
_UNARY: dict[type[ast.unaryop], str] = {ast.USub: "-", ast.UAdd: "+", ast.Invert: "~", ast.Not: "not"}
_COMPARE: dict[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Is: "is",
    ast.IsNot: "is not",
    ast.In: "in",
    ast.NotIn: "not in",
}
_COLON = re.compile(r"(?:[ \t\f\r\n\\()\[\],/*]|#[^\r\n]*)*:")
_PLACES_IN_F_STRINGS = sys.version_info >= (3, 12)
_Body = list[ast.stmt]


def lower(text: str, tree: ast.Module) -> Lowered:
    """The program of a module."""
    return _Lowerer(text).lower_module(tree)


class _Lowerer(Names):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.starts = line_starts(text)
        self.ascii = text.isascii()
        # Where a part of the text that was parsed by itself begins: row and column of its first character, from 0.
        self.row = self.column = 0
        self.plain = self.ascii

    # --- places --------------------------------------------------------------------------------------------------

    def span(self, node: Any) -> Span:
        if self.plain:
            return _new_span(Span, (node.lineno, node.col_offset + 1, node.end_lineno, node.end_col_offset + 1))
        row, column = self.place(node.lineno, node.col_offset)
        end_row, end_column = self.place(node.end_lineno, node.end_col_offset)
        return Span(row, column, end_row, end_column)

    def place(self, row: int, offset: int) -> tuple[int, int]:
        """Row and column from 1, of a row and an offset in UTF-8 as `ast` has them."""
        begin = self.starts[row + self.row - 1]
        if row == 1:
            begin += self.column
        row += self.row
        if self.ascii or offset == 0:
            column = offset
        else:
            line = self.text[begin : min(begin + offset, self.starts[row])]
            column = offset if line.isascii() else len(line.encode()[:offset].decode(errors="ignore"))
        return row, begin + column - self.starts[row - 1] + 1

    def between(self, begin: int, end: int) -> Span:
        row, end_row = bisect_right(self.starts, begin), bisect_right(self.starts, end)
        return Span(row, begin - self.starts[row - 1] + 1, end_row, end - self.starts[end_row - 1] + 1)

    def offset(self, place: tuple[int, int]) -> int:
        return self.starts[place[0] - 1] + place[1] - 1

    def header(self, node: Any, *inside: Any) -> Span:
        """From the keyword to the colon, which comes after the last of the nodes `inside` the header."""
        begin = end = self.offset(self.place(node.lineno, node.col_offset))
        if inside:
            last_row, last_offset = max([(one.end_lineno, one.end_col_offset) for one in inside])
            end = self.offset(self.place(last_row, last_offset))
        else:
            words = 1 if isinstance(node, ast.Try) or type(node).__name__ == "TryStar" else 2
            for _ in range(words + isinstance(node, ast.AsyncFunctionDef)):
                end = _word_end(self.text, end)
        colon = _COLON.match(self.text, end)
        return self.between(begin, end if colon is None else colon.end())

    # --- expressions ---------------------------------------------------------------------------------------------

    def expr(self, node: Any) -> Expr:
        lower_one = _EXPRESSIONS.get(type(node))
        return lower_one(self, node) if lower_one is not None else Unknown(self.span(node))

    def optional(self, node: ast.expr | None) -> Expr | None:
        return None if node is None else self.expr(node)

    def exprs(self, nodes: Iterable[ast.expr]) -> tuple[Expr, ...]:
        return tuple([self.expr(node) for node in nodes])

    def name(self, node: ast.Name) -> Expr:
        if node.id in self.importable:
            path = self.resolve(node.id)
            if path is not None:
                return self.extern(self.span(node), path)
        return Name(self.span(node), node.id)

    def attribute(self, node: ast.Attribute) -> Expr:
        value = self.expr(node.value)
        self.mentions.add(node.attr)
        if type(value) is Extern:
            return self.extern(self.span(node), f"{value.path}.{node.attr}")
        return Attr(self.span(node), value, node.attr)

    def call(self, node: ast.Call) -> Expr:
        if type(node.func) is ast.Name:
            self.mentions.add(node.func.id)
        func = self.expr(node.func)
        args, keywords = self.arguments(node.args, node.keywords)
        return Call(self.span(node), func, args, keywords)

    def arguments(
        self, args: list[ast.expr], keywords: list[ast.keyword]
    ) -> tuple[tuple[Expr, ...], tuple[tuple[str | None, Expr], ...]]:
        mentions = self.mentions
        for arg in args:
            value = arg.value if type(arg) is ast.Starred else arg
            if type(value) is ast.Name:
                mentions.add(value.id)
        for keyword in keywords:
            if type(keyword.value) is ast.Name:
                mentions.add(keyword.value.id)
        return self.exprs(args), tuple([(keyword.arg, self.expr(keyword.value)) for keyword in keywords])

    def constant(self, node: ast.Constant) -> Expr:
        return Const(self.span(node), node.value)

    def formatted(self, node: ast.JoinedStr) -> Expr:
        """An f-string, or a template string."""
        parts: list[Expr] = []
        if _PLACES_IN_F_STRINGS:
            for value in _formatted_values(node):
                parts.append(self.expr(value))
            return Text(self.span(node), tuple(parts))
        span = self.span(node)
        places = list(_replacement_fields(self.text, self.offset((span.row, span.column)), self.offset(span[2:])))
        saved = self.row, self.column, self.plain
        for begin, end in places:
            try:
                inner = ast.parse(f"({self.text[begin:end]})", mode="eval").body
            except SyntaxError:
                parts.append(Unknown(span))
                continue
            row = bisect_right(self.starts, begin - 1) - 1  # the added parenthesis stands for the brace
            self.row, self.column, self.plain = row, begin - 1 - self.starts[row], False
            part = self.expr(inner)
            self.row, self.column, self.plain = saved
            if type(inner) is ast.Tuple and inner.col_offset == 0 and inner.lineno == 1:  # not its own parentheses
                first, last = _trimmed(self.text, begin, end)
                part = replace(part, span=self.between(first, last))
            parts.append(part)
        return Text(span, tuple(parts))

    def binary(self, node: ast.BinOp) -> Expr:
        spine = [node]
        while type(spine[-1].left) is ast.BinOp:
            spine.append(spine[-1].left)
        result = self.expr(spine[-1].left)
        for one in reversed(spine):
            result = Binary(self.span(one), _BINARY[type(one.op)], result, self.expr(one.right))
        return result if len(spine) <= MAX_CHAIN else Unknown(self.span(node))

    def boolean(self, node: ast.BoolOp) -> Expr:
        return Bool(self.span(node), "and" if type(node.op) is ast.And else "or", self.exprs(node.values))

    def unary(self, node: ast.UnaryOp) -> Expr:
        return Unary(self.span(node), _UNARY[type(node.op)], self.expr(node.operand))

    def comparison(self, node: ast.Compare) -> Expr:
        ops = tuple([_COMPARE[type(op)] for op in node.ops])
        return Compare(self.span(node), self.expr(node.left), ops, self.exprs(node.comparators))

    def if_else(self, node: ast.IfExp) -> Expr:
        return IfElse(self.span(node), self.expr(node.test), self.expr(node.body), self.expr(node.orelse))

    def subscript(self, node: ast.Subscript) -> Expr:
        return Index(self.span(node), self.expr(node.value), self.expr(node.slice))

    def slice(self, node: ast.Slice) -> Expr:
        return Slice(self.span(node), self.optional(node.lower), self.optional(node.upper), self.optional(node.step))

    def sequence(self, node: Any) -> Expr:
        return Sequence(self.span(node), _SEQUENCES[type(node)], self.exprs(node.elts))

    def starred(self, node: ast.Starred) -> Expr:
        return Star(self.span(node), self.expr(node.value))

    def mapping(self, node: ast.Dict) -> Expr:
        pairs = zip(node.keys, node.values, strict=True)
        return Mapping(self.span(node), tuple([(self.optional(key), self.expr(value)) for key, value in pairs]))

    def comprehension(self, node: Any) -> Expr:
        kind = _COMPREHENSIONS[type(node)]
        return Comprehension(self.span(node), kind, self.expr(node.elt), self.clauses(node.generators))

    def dict_comprehension(self, node: ast.DictComp) -> Expr:
        if getattr(node, "value", None) is None:  # {**each for each in all}, new in Python 3.15
            return Unknown(self.span(node))
        key, value = self.expr(node.key), self.expr(node.value)
        element = Sequence(Span(*key.span[:2], *value.span[2:]), "tuple", (key, value))
        return Comprehension(self.span(node), "dict", element, self.clauses(node.generators))

    def clauses(self, generators: list[ast.comprehension]) -> tuple[Clause, ...]:
        return tuple([Clause(self.target(one.target), self.expr(one.iter), self.exprs(one.ifs)) for one in generators])

    def lambda_(self, node: ast.Lambda) -> Expr:
        parameters, names = self.parameters(node.args)
        mentions, self.mentions = self.mentions, set()
        value, frame = self.inside("function", node, names, lambda: self.expr(node.body))
        inside = frozenset(self.mentions)
        mentions |= inside
        self.mentions = mentions
        span = self.span(node)
        body = (Return(value.span, value),)
        return Lambda(span, Function("<lambda>", span, parameters, body, inside, frame.generator))

    def walrus(self, node: ast.NamedExpr) -> Expr:
        return Walrus(self.span(node), self.target(node.target), self.expr(node.value))

    def await_(self, node: ast.Await) -> Expr:
        return Await(self.span(node), self.expr(node.value))

    def yield_(self, node: ast.Yield) -> Expr:
        self.scope.generator = True
        return Yield(self.span(node), self.optional(node.value))

    def yield_from(self, node: ast.YieldFrom) -> Expr:
        self.scope.generator = True
        return Yield(self.span(node), self.expr(node.value), True)

    def target(self, node: Any) -> Expr:
        """What is assigned to or deleted: its names are bound here and never `Extern`."""
        kind = type(node)
        if kind is ast.Name:
            self.bind(node.id)
            return Name(self.span(node), node.id)
        if kind is ast.Attribute:
            self.mentions.add(node.attr)
            return Attr(self.span(node), self.expr(node.value), node.attr)
        if kind is ast.Starred:
            return Star(self.span(node), self.target(node.value))
        if kind is ast.Tuple or kind is ast.List:
            return Sequence(self.span(node), _SEQUENCES[kind], tuple([self.target(one) for one in node.elts]))
        return self.expr(node)

    # --- statements ----------------------------------------------------------------------------------------------

    def lower_module(self, tree: ast.Module) -> Lowered:
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        definitions = {number: node.name for number, node in enumerate(tree.body) if isinstance(node, kinds)}

        def lower_one(number: int) -> list[Stmt]:
            out: list[Stmt] = []
            self.statement(tree.body[number], out)
            return out

        return self.module(definitions, len(tree.body), lower_one)

    def statement(self, node: ast.stmt, out: list[Stmt]) -> None:
        lower_one = _STATEMENTS.get(type(node))
        if lower_one is not None:
            lower_one(self, node, out)

    def body(self, nodes: _Body) -> tuple[Stmt, ...]:
        out: list[Stmt] = []
        for node in nodes:
            lower_one = _STATEMENTS.get(type(node))
            if lower_one is not None:
                lower_one(self, node, out)
        return tuple(out)

    def do(self, node: ast.Expr, out: list[Stmt]) -> None:
        if type(node.value) is not ast.Constant:
            out.append(Do(self.span(node), self.expr(node.value)))

    def assign(self, node: ast.Assign, out: list[Stmt]) -> None:
        targets = tuple([self.target(target) for target in node.targets])
        out.append(Assign(self.span(node), targets, self.expr(node.value)))

    def annotated(self, node: ast.AnnAssign, out: list[Stmt]) -> None:
        target = self.target(node.target)
        if node.value is not None:
            out.append(Assign(self.span(node), (target,), self.expr(node.value), annotated=True))

    def annotation(self, node: ast.expr | None) -> Expr | None:
        """A type: what it names is not used, so it is not mentioned."""
        if node is None:
            return None
        mentions, self.mentions = self.mentions, set()
        result = self.expr(node)
        self.mentions = mentions
        return result

    def augment(self, node: ast.AugAssign, out: list[Stmt]) -> None:
        target = self.target(node.target)
        out.append(Augment(self.span(node), target, _BINARY[type(node.op)], self.expr(node.value)))

    def return_(self, node: ast.Return, out: list[Stmt]) -> None:
        out.append(Return(self.span(node), self.optional(node.value)))

    def raise_(self, node: ast.Raise, out: list[Stmt]) -> None:
        out.append(Raise(self.span(node)))

    def delete(self, node: ast.Delete, out: list[Stmt]) -> None:
        targets = [self.target(target) for target in node.targets]
        if len(targets) == 1 and type(targets[0]) is Sequence:
            targets = list(targets[0].items)
        out.append(Delete(self.span(node), tuple(targets)))

    def break_(self, node: ast.Break, out: list[Stmt]) -> None:
        out.append(Break(self.span(node)))

    def continue_(self, node: ast.Continue, out: list[Stmt]) -> None:
        out.append(Continue(self.span(node)))

    def global_(self, node: ast.Global, out: list[Stmt]) -> None:
        if self.scope is not self.top:
            self.scope.globals.update(node.names)
        out.append(Scope(self.span(node), "global", tuple(node.names)))

    def nonlocal_(self, node: ast.Nonlocal, out: list[Stmt]) -> None:
        self.scope.nonlocals.update(node.names)
        out.append(Scope(self.span(node), "nonlocal", tuple(node.names)))

    def type_alias(self, node: Any, out: list[Stmt]) -> None:
        self.bind(node.name.id)

    def import_(self, node: ast.Import, out: list[Stmt]) -> None:
        span = self.span(node)
        for alias in node.names:
            path = alias.name if alias.asname else alias.name.split(".")[0]  # `import a.b` binds a
            self.bind_import(alias.asname or path, path)
            out.append(Import(span, alias.asname or path, path))

    def import_from(self, node: ast.ImportFrom, out: list[Stmt]) -> None:
        span = self.span(node)
        source = "." * node.level + (node.module or "")
        for alias in node.names:
            if alias.name == "*":
                self.bind_wildcard(source)
                out.append(Import(span, "*", source))
                continue
            path = source + alias.name if source.endswith(".") else f"{source}.{alias.name}"
            self.bind_import(alias.asname or alias.name, path)
            out.append(Import(span, alias.asname or alias.name, path))

    def if_(self, node: ast.If, out: list[Stmt]) -> None:
        arms: list[tuple[Span, Expr, tuple[Stmt, ...]]] = []
        while True:
            arms.append((self.header(node, node.test), self.expr(node.test), self.body(node.body)))
            if len(node.orelse) != 1 or type(node.orelse[0]) is not ast.If:
                break
            node = node.orelse[0]
        if len(arms) > MAX_CHAIN:
            raise RecursionError
        orelse = self.body(node.orelse)
        for span, test, body in reversed(arms):
            orelse = (If(span, test, body, orelse),)
        out.extend(orelse)

    def while_(self, node: ast.While, out: list[Stmt]) -> None:
        span = self.header(node, node.test)
        out.append(While(span, self.expr(node.test), self.body(node.body), self.body(node.orelse)))

    def for_(self, node: ast.For, out: list[Stmt]) -> None:
        span = self.header(node, node.iter)
        target, iterable = self.target(node.target), self.expr(node.iter)
        out.append(For(span, target, iterable, self.body(node.body), self.body(node.orelse)))

    def with_(self, node: ast.With, out: list[Stmt]) -> None:
        items: list[tuple[Expr, Expr | None]] = []
        for item in node.items:
            manager = self.expr(item.context_expr)
            items.append((manager, None if item.optional_vars is None else self.target(item.optional_vars)))
        last = node.items[-1]
        out.append(With(self.header(node, last.optional_vars or last.context_expr), tuple(items), self.body(node.body)))

    def try_(self, node: Any, out: list[Stmt]) -> None:
        body = self.body(node.body)
        handlers: list[tuple[Expr | None, str | None, tuple[Stmt, ...]]] = []
        for handler in node.handlers:
            if handler.name:
                self.bind(handler.name)
            handlers.append((self.optional(handler.type), handler.name, self.body(handler.body)))
        orelse, final = self.body(node.orelse), self.body(node.finalbody)
        out.append(Try(self.header(node), body, tuple(handlers), orelse, final))

    def function(self, node: ast.FunctionDef, out: list[Stmt]) -> None:
        decorators = self.exprs(node.decorator_list)
        self.bind(node.name)
        parameters, names = self.parameters(node.args)
        args = node.args
        header = [*args.posonlyargs, *args.args, *args.kwonlyargs, *args.defaults]
        header += [one for one in (*args.kw_defaults, args.vararg, args.kwarg, node.returns) if one is not None]
        span = self.header(node, *header, *getattr(node, "type_params", ()))
        mentions, self.mentions = self.mentions, set()

        def lower_body() -> tuple[Stmt, ...]:
            self.mentions.clear()
            return self.body(node.body)

        body, frame = self.inside("function", node, names, lower_body)
        inside = frozenset(self.mentions)
        mentions |= inside
        self.mentions = mentions
        function = Function(node.name, span, parameters, body, inside, frame.generator)
        out.append(Define(span, function, decorators))

    def parameters(self, args: ast.arguments) -> tuple[tuple[Parameter, ...], set[str]]:
        found: list[Parameter] = []

        def add(one: ast.arg, kind: str, default: ast.expr | None = None) -> None:
            found.append(Parameter(one.arg, kind, self.optional(default), self.annotation(one.annotation)))

        plain = [*args.posonlyargs, *args.args]
        without = len(plain) - len(args.defaults)
        for position, one in enumerate(plain):
            add(one, "plain", args.defaults[position - without] if position >= without else None)
        if args.vararg:
            add(args.vararg, "args")
        for one, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
            add(one, "keyword", default)
        if args.kwarg:
            add(args.kwarg, "kwargs")
        return tuple(found), {parameter.name for parameter in found}

    def class_(self, node: ast.ClassDef, out: list[Stmt]) -> None:
        decorators = self.exprs(node.decorator_list)
        self.bind(node.name)
        bases, _ = self.arguments(node.bases, node.keywords)
        values = [keyword.value for keyword in node.keywords]
        span = self.header(node, *node.bases, *values, *getattr(node, "type_params", ()))
        body, _ = self.inside("class", node, set(), lambda: self.body(node.body))
        out.append(Class(span, node.name, bases, body, decorators))

    def match(self, node: ast.Match, out: list[Stmt]) -> None:
        span, subject = self.header(node, node.subject), self.expr(node.subject)
        cases: list[tuple[tuple[Expr, ...], Expr | None, tuple[Stmt, ...], tuple[str, ...]]] = []
        for case in node.cases:
            constants = self.pattern(case.pattern)
            names = tuple(sorted({name for one in ast.walk(case.pattern) for name in _captured(one)}))
            for name in names:
                self.bind(name)
            cases.append((constants, self.optional(case.guard), self.body(case.body), names))
        out.append(Match(span, subject, tuple(cases)))

    def pattern(self, node: ast.pattern) -> tuple[Expr, ...]:
        """The constants a pattern stands for; () if it takes anything, `Unknown` if it looks at a structure."""
        if type(node) is ast.MatchValue:
            return (self.expr(node.value),)
        if type(node) is ast.MatchSingleton:
            return (Const(self.span(node), node.value),)
        if type(node) is ast.MatchOr:
            found = [self.pattern(one) for one in node.patterns]
            return tuple([one for constants in found for one in constants]) if all(found) else ()
        if type(node) is ast.MatchAs and node.pattern is None:
            return ()
        return (Unknown(self.span(node)),)


def _captured(node: ast.AST) -> Iterator[str]:
    """The name that a part of a pattern binds."""
    name = node.rest if isinstance(node, ast.MatchMapping) else getattr(node, "name", None)
    if name is not None:
        yield name


def _word_end(text: str, begin: int) -> int:
    end = _match_end(TRIVIA, text, begin)
    return _match_end(_WORD, text, end)


def _match_end(pattern: re.Pattern[str], text: str, begin: int) -> int:
    found = pattern.match(text, begin)
    return begin if found is None else found.end()


def _formatted_values(node: Any) -> Iterator[ast.expr]:
    """The expressions of an f-string or template string, those of the format specifications included."""
    for part in node.values:
        if type(part) is not ast.Constant:
            yield part.value
            if part.format_spec is not None:
                yield from _formatted_values(part.format_spec)


# --- f-strings before Python 3.12: no nested quotes of the same kind, no backslash and no comment in expressions -----

_WORD = re.compile(r"\w+")
_STRING_START = re.compile(r"([A-Za-z]*)('''|\"\"\"|'|\")")


def _trimmed(text: str, begin: int, end: int) -> tuple[int, int]:
    inside = text[begin:end]
    return begin + len(inside) - len(inside.lstrip()), end - len(inside) + len(inside.rstrip())


def _replacement_fields(text: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Where the expressions are in the f-string (or several strings side by side) at text[begin:end]."""
    while begin < end:
        begin = _match_end(TRIVIA, text, begin)
        start = _STRING_START.match(text, begin)
        if start is None:
            return
        prefix, quote = start.group(1).lower(), start.group(2)
        begin = yield from _literal(text, start.end(), end, quote, "f" in prefix, "r" in prefix)


def _literal(
    text: str, begin: int, end: int, quote: str, fields: bool, raw: bool, spec: bool = False
) -> Generator[tuple[int, int], None, int]:
    """Go to the end of a string (or of a format specification, `spec`) and say where its expressions are."""
    while begin < end:
        char = text[begin]
        if spec and char == "}":
            return begin
        if not spec and text.startswith(quote, begin):
            return begin + len(quote)
        if char == "\\":
            if fields and not raw and text.startswith("\\N{", begin):
                begin = text.find("}", begin) + 1
            else:
                begin += 1 if text[begin + 1] in "{}" and fields else 2
        elif fields and char in "{}" and text.startswith(char * 2, begin) and not spec:
            begin += 2
        elif fields and char == "{":
            stop = _expression_end(text, begin + 1, end)
            yield begin + 1, stop
            while begin < end and text[stop] not in ":}":
                stop += 1  # `=` and a conversion
            if text[stop] == ":":
                stop = yield from _literal(text, stop + 1, end, quote, True, raw, True)
            begin = stop + 1
        else:
            begin += 1
    return begin


def _expression_end(text: str, begin: int, end: int) -> int:
    """Where the expression of a replacement field ends: at `}`, `:`, a conversion or a `=` for debugging."""
    depth = 0
    while begin < end:
        char = text[begin]
        if char in "'\"":
            quote = char * 3 if text.startswith(char * 3, begin) else char
            closing = text.find(quote, begin + len(quote), end)
            if closing < 0:
                return end
            begin = closing + len(quote)
            continue
        if char in "([{":
            depth += 1
        elif depth and char in ")]}":
            depth -= 1
        elif not depth:
            if char in "}:" or (char == "!" and text[begin + 1] != "="):
                return begin
            if char in "=!<>" and text[begin + 1] == "=":
                begin += 1
            elif char == "=" and _DEBUG_END.match(text, begin):
                return begin
        begin += 1
    return begin


_DEBUG_END = re.compile(r"=\s*[}:!]")
_new_span = tuple.__new__
_SEQUENCES: dict[type[ast.expr], str] = {ast.Tuple: "tuple", ast.List: "list", ast.Set: "set"}
_COMPREHENSIONS: dict[type[ast.expr], str] = {
    ast.ListComp: "list",
    ast.SetComp: "set",
    ast.GeneratorExp: "generator",
}
_EXPRESSIONS: dict[type[ast.expr], Callable[[_Lowerer, Any], Expr]] = {
    ast.Name: _Lowerer.name,
    ast.Attribute: _Lowerer.attribute,
    ast.Call: _Lowerer.call,
    ast.Constant: _Lowerer.constant,
    ast.JoinedStr: _Lowerer.formatted,
    ast.BinOp: _Lowerer.binary,
    ast.BoolOp: _Lowerer.boolean,
    ast.UnaryOp: _Lowerer.unary,
    ast.Compare: _Lowerer.comparison,
    ast.IfExp: _Lowerer.if_else,
    ast.Subscript: _Lowerer.subscript,
    ast.Slice: _Lowerer.slice,
    ast.Tuple: _Lowerer.sequence,
    ast.List: _Lowerer.sequence,
    ast.Set: _Lowerer.sequence,
    ast.Dict: _Lowerer.mapping,
    ast.Starred: _Lowerer.starred,
    ast.ListComp: _Lowerer.comprehension,
    ast.SetComp: _Lowerer.comprehension,
    ast.GeneratorExp: _Lowerer.comprehension,
    ast.DictComp: _Lowerer.dict_comprehension,
    ast.Lambda: _Lowerer.lambda_,
    ast.NamedExpr: _Lowerer.walrus,
    ast.Await: _Lowerer.await_,
    ast.Yield: _Lowerer.yield_,
    ast.YieldFrom: _Lowerer.yield_from,
}
_STATEMENTS: dict[type[ast.stmt], Callable[[_Lowerer, Any, list[Stmt]], None]] = {
    ast.Expr: _Lowerer.do,
    ast.Assign: _Lowerer.assign,
    ast.AnnAssign: _Lowerer.annotated,
    ast.AugAssign: _Lowerer.augment,
    ast.Return: _Lowerer.return_,
    ast.Raise: _Lowerer.raise_,
    ast.Delete: _Lowerer.delete,
    ast.Break: _Lowerer.break_,
    ast.Continue: _Lowerer.continue_,
    ast.Global: _Lowerer.global_,
    ast.Nonlocal: _Lowerer.nonlocal_,
    ast.Import: _Lowerer.import_,
    ast.ImportFrom: _Lowerer.import_from,
    ast.If: _Lowerer.if_,
    ast.While: _Lowerer.while_,
    ast.For: _Lowerer.for_,
    ast.AsyncFor: _Lowerer.for_,
    ast.With: _Lowerer.with_,
    ast.AsyncWith: _Lowerer.with_,
    ast.Try: _Lowerer.try_,
    ast.FunctionDef: _Lowerer.function,
    ast.AsyncFunctionDef: _Lowerer.function,
    ast.ClassDef: _Lowerer.class_,
    ast.Match: _Lowerer.match,
}
# Kinds of node that not every Python has.
for _kind, _expression in (("TemplateStr", _Lowerer.formatted),):
    if hasattr(ast, _kind):
        _EXPRESSIONS[getattr(ast, _kind)] = _expression
for _kind, _statement in (("TryStar", _Lowerer.try_), ("TypeAlias", _Lowerer.type_alias)):
    if hasattr(ast, _kind):
        _STATEMENTS[getattr(ast, _kind)] = _statement
