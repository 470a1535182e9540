"""libcst nodes become program nodes, for text that is newer than the running Python.

libcst nodes carry no positions, and its position provider costs more than parsing. But the text is at hand and libcst
keeps the order of everything in it: so a cursor moves over the text while the nodes are visited in source order. Each
step skips white space and comments and then the known width of a token. The result is what `from_ast` would make.
"""

from __future__ import annotations

import ast
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Any

import libcst as cst

from acclint.lift.from_ast import MAX_CHAIN
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

_trivia = TRIVIA.match

_BINARY: dict[type[cst.CSTNode], str] = {
    cst.Add: "+",
    cst.Subtract: "-",
    cst.Multiply: "*",
    cst.Divide: "/",
    cst.FloorDivide: "//",
    cst.Modulo: "%",
    cst.Power: "**",
    cst.MatrixMultiply: "@",
    cst.LeftShift: "<<",
    cst.RightShift: ">>",
    cst.BitAnd: "&",
    cst.BitOr: "|",
    cst.BitXor: "^",
}
_AUGMENT: dict[type[cst.CSTNode], str] = {
    cst.AddAssign: "+",
    cst.SubtractAssign: "-",
    cst.MultiplyAssign: "*",
    cst.DivideAssign: "/",
    cst.FloorDivideAssign: "//",
    cst.ModuloAssign: "%",
    cst.PowerAssign: "**",
    cst.MatrixMultiplyAssign: "@",
    cst.LeftShiftAssign: "<<",
    cst.RightShiftAssign: ">>",
    cst.BitAndAssign: "&",
    cst.BitOrAssign: "|",
    cst.BitXorAssign: "^",
}
_UNARY: dict[type[cst.CSTNode], str] = {cst.Minus: "-", cst.Plus: "+", cst.BitInvert: "~", cst.Not: "not"}
_COMPARE: dict[type[cst.CSTNode], str] = {
    cst.Equal: "==",
    cst.NotEqual: "!=",
    cst.LessThan: "<",
    cst.LessThanEqual: "<=",
    cst.GreaterThan: ">",
    cst.GreaterThanEqual: ">=",
    cst.Is: "is",
    cst.IsNot: "is not",
    cst.In: "in",
    cst.NotIn: "not in",
}
_CONSTANTS: dict[str, object] = {"True": True, "False": False, "None": None}
_new = tuple.__new__


def lower(text: str, module: cst.Module) -> Lowered:
    """The program of a module, whose text has no byte order mark."""
    return _Lowerer(text, module).lower_module()


class _Lowerer(Names):
    def __init__(self, text: str, module: cst.Module) -> None:
        super().__init__()
        self.text = text
        self.tree = module
        self.pos = 0
        self.open = 0  # where the innermost parenthesis around the current expression is
        self.starts = line_starts(text)
        self.jump(0)

    # --- the cursor ----------------------------------------------------------------------------------------------

    def jump(self, pos: int) -> None:
        self.pos = pos
        self.row = bisect_right(self.starts, pos)
        self.line_start = self.starts[self.row - 1]
        self.line_end = self.starts[self.row]

    def skip(self) -> int:
        self.pos = pos = _trivia(self.text, self.pos).end()  # type: ignore[union-attr]
        return pos

    def token(self, width: int) -> None:
        self.pos = _trivia(self.text, self.pos).end() + width  # type: ignore[union-attr]

    def span(self, start: int) -> Span:
        """From `start` to the cursor."""
        end = self.pos
        while end >= self.line_end:
            self.line_start = self.line_end
            self.row += 1
            self.line_end = self.starts[self.row]
        base = self.line_start - 1
        if start > base:
            return _new(Span, (self.row, start - base, self.row, end - base))
        row = bisect_right(self.starts, start)
        return Span(row, start - self.starts[row - 1] + 1, self.row, end - base)

    def width(self, node: cst.CSTNode) -> int:
        return len(self.tree.code_for_node(node))

    # --- expressions ---------------------------------------------------------------------------------------------

    def expr(self, node: Any) -> Expr:
        lpar = node.lpar
        if lpar:
            for _ in lpar:
                self.open = self.skip()
                self.pos += 1
        start = self.pos = _trivia(self.text, self.pos).end()  # type: ignore[union-attr]
        lower_one = _EXPRESSIONS.get(type(node))
        result = lower_one(self, node, start) if lower_one else self.unknown(node, start)
        if lpar:
            for _ in node.rpar:
                self.token(1)
        return result

    def optional(self, node: Any) -> Expr | None:
        return None if node is None else self.expr(node)

    def unknown(self, node: Any, start: int) -> Expr:
        self.pos = start + self.width(node.with_changes(lpar=(), rpar=()))
        return Unknown(self.span(start))

    def name(self, node: cst.Name, start: int) -> Expr:
        value = node.value
        self.pos = start + len(value)
        if value in self.importable:
            path = self.resolve(value)
            if path is not None:
                return self.extern(self.span(start), path)
        if value in _CONSTANTS:
            return Const(self.span(start), _CONSTANTS[value])
        return Name(self.span(start), value if value.isascii() else _normal(value))

    def attribute(self, node: cst.Attribute, start: int) -> Expr:
        value = self.expr(node.value)
        self.token(1)
        name = self.identifier(node.attr)
        self.mentions.add(name)
        if type(value) is Extern:
            return self.extern(self.span(start), f"{value.path}.{name}")
        return Attr(self.span(start), value, name)

    def identifier(self, node: cst.Name) -> str:
        """A name that is no expression."""
        value = node.value
        self.pos = _trivia(self.text, self.pos).end() + len(value)  # type: ignore[union-attr]
        return value if value.isascii() else _normal(value)

    def call(self, node: cst.Call, start: int) -> Expr:
        func = self.expr(node.func)
        mentions = self.mentions
        if type(node.func) is cst.Name:
            mentions.add(node.func.value)
        self.open = self.skip()
        self.pos += 1
        args: list[Expr] = []
        keywords: list[tuple[str | None, Expr]] = []
        for arg in node.args:
            self.argument(arg, args, keywords)
        self.token(1)
        return Call(self.span(start), func, tuple(args), tuple(keywords))

    def argument(self, arg: cst.Arg, args: list[Expr], keywords: list[tuple[str | None, Expr]]) -> None:
        value = arg.value
        if type(value) is cst.Name and value.value not in _CONSTANTS:
            self.mentions.add(value.value)
        if arg.keyword is not None:
            name = self.identifier(arg.keyword)
            self.token(1)
            keywords.append((name, self.expr(value)))
        elif not arg.star:
            args.append(self.expr(value))
        elif arg.star == "*":
            start = self.skip()
            self.pos += 1
            inner = self.expr(value)
            args.append(Star(self.span(start), inner))
        else:
            self.token(2)
            keywords.append((None, self.expr(value)))
        if type(arg.comma) is cst.Comma:
            self.token(1)

    def number(self, node: cst.Integer | cst.Float | cst.Imaginary, start: int) -> Expr:
        self.pos = start + len(node.value)
        try:
            return Const(self.span(start), ast.literal_eval(node.value))
        except (ValueError, SyntaxError):  # more digits than int() takes
            return Unknown(self.span(start))

    def string(self, node: cst.SimpleString, start: int) -> Expr:
        self.pos = start + len(node.value)
        value = _string_value(node.value)
        return Text(self.span(start), ()) if value is None else Const(self.span(start), value)

    def concatenated(self, node: cst.ConcatenatedString, start: int) -> Expr:
        pieces: list[Expr] = []
        rest: Any = node
        while type(rest) is cst.ConcatenatedString:
            pieces.append(self.expr(rest.left))
            rest = rest.right
        pieces.append(self.expr(rest))
        span = self.span(start)
        values = [piece.value for piece in pieces if type(piece) is Const]
        if len(values) == len(pieces):
            if all(isinstance(value, str) for value in values):
                return Const(span, "".join(str(value) for value in values))
            return Const(span, b"".join(value for value in values if isinstance(value, bytes)))
        return Text(span, tuple([part for piece in pieces if type(piece) is Text for part in piece.parts]))

    def formatted(self, node: cst.FormattedString | cst.TemplatedString, start: int) -> Expr:
        self.pos = start + len(node.start)
        parts: list[Expr] = []
        self.format_parts(node.parts, parts)
        self.pos += len(node.end)
        return Text(self.span(start), tuple(parts))

    def format_parts(self, nodes: Iterable[Any], parts: list[Expr]) -> None:
        for node in nodes:
            if type(node) is cst.FormattedStringText or type(node) is cst.TemplatedStringText:
                self.pos += len(node.value)
                continue
            self.pos += 1
            parts.append(self.expr(node.expression))
            if node.equal is not None:
                self.token(1)
            if node.conversion is not None:
                self.token(1 + len(node.conversion))
            if node.format_spec is not None:
                self.token(1)
                self.format_parts(node.format_spec, parts)
                self.pos += 1
            else:
                self.token(1)

    def ellipsis(self, node: cst.Ellipsis, start: int) -> Expr:
        self.pos = start + 3
        return Const(self.span(start), ...)

    def binary(self, node: cst.BinaryOperation, start: int) -> Expr:
        spine, starts = self.left_spine(node, start)
        result = self.expr(spine[-1].left)
        for one, begin in zip(reversed(spine), reversed(starts), strict=True):
            op = _BINARY[type(one.operator)]
            self.token(len(op))
            right = self.expr(one.right)
            result = Binary(self.span(begin), op, result, right)
            self.close(one, node)
        return result if len(spine) <= MAX_CHAIN else Unknown(self.span(start))

    def left_spine(self, node: Any, start: int) -> tuple[list[Any], list[int]]:
        """The operations that start where this one starts, outermost first, and where each one starts."""
        spine, starts = [node], [start]
        kind = type(node)
        left = node.left
        while type(left) is kind:
            for _ in left.lpar:
                self.token(1)
            spine.append(left)
            starts.append(self.skip())
            left = left.left
        return spine, starts

    def close(self, node: Any, outermost: Any) -> None:
        """The closing parentheses of an operation in a left spine; `expr` does those of the outermost one."""
        if node is not outermost:
            for _ in node.rpar:
                self.token(1)

    def boolean(self, node: cst.BooleanOperation, start: int) -> Expr:
        spine, starts = self.left_spine(node, start)
        values = [self.expr(spine[-1].left)]
        op, closed, span = "", False, Span(0, 0, 0, 0)
        for one, begin in zip(reversed(spine), reversed(starts), strict=True):
            next_op = "and" if type(one.operator) is cst.And else "or"
            if op and (closed or next_op != op):
                values = [Bool(span, op, tuple(values))]
            op = next_op
            self.token(len(op))
            values.append(self.expr(one.right))
            span = self.span(begin)
            closed = one is not node and bool(one.rpar)
            self.close(one, node)
        return Bool(span, op, tuple(values))

    def unary(self, node: cst.UnaryOperation, start: int) -> Expr:
        op = _UNARY[type(node.operator)]
        self.pos = start + len(op)
        operand = self.expr(node.expression)
        return Unary(self.span(start), op, operand)

    def comparison(self, node: cst.Comparison, start: int) -> Expr:
        left = self.expr(node.left)
        ops: list[str] = []
        rights: list[Expr] = []
        for target in node.comparisons:
            op = _COMPARE[type(target.operator)]
            for word in op.split():
                self.token(len(word))
            ops.append(op)
            rights.append(self.expr(target.comparator))
        return Compare(self.span(start), left, tuple(ops), tuple(rights))

    def if_else(self, node: cst.IfExp, start: int) -> Expr:
        body = self.expr(node.body)
        self.token(2)
        test = self.expr(node.test)
        self.token(4)
        orelse = self.expr(node.orelse)
        return IfElse(self.span(start), test, body, orelse)

    def subscript(self, node: cst.Subscript, start: int) -> Expr:
        value = self.expr(node.value)
        self.token(1)
        first = self.skip()
        items: list[Expr] = []
        comma = False
        for element in node.slice:
            items.append(self.slice_item(element.slice))
            comma = type(element.comma) is cst.Comma
            if comma:
                self.token(1)
        if len(items) == 1 and not comma and type(items[0]) is not Star:
            index = items[0]
        else:
            index = Sequence(self.span(first), "tuple", tuple(items))
        self.token(1)
        return Index(self.span(start), value, index)

    def slice_item(self, node: Any) -> Expr:
        start = self.skip()
        if type(node) is cst.Index:
            if not node.star:
                return self.expr(node.value)
            self.pos += 1
            value = self.expr(node.value)
            return Star(self.span(start), value)
        lower_bound = self.optional(node.lower)
        self.token(1)
        upper = self.optional(node.upper)
        step = None
        if type(node.second_colon) is cst.Colon:
            self.token(1)
            step = self.optional(node.step)
        return Slice(self.span(start), lower_bound, upper, step)

    def tuple_(self, node: cst.Tuple, start: int) -> Expr:
        if not node.lpar:
            items = self.elements(node.elements)
            return Sequence(self.span(start), "tuple", items)
        start = self.open
        items = self.elements(node.elements)
        return Sequence(self.enclosed(start), "tuple", items)

    def enclosed(self, start: int) -> Span:
        """The span from an open bracket to the next closing one, which stays before the cursor."""
        pos = self.pos
        self.token(1)
        span = self.span(start)
        self.pos = pos
        return span

    def elements(self, nodes: Iterable[Any]) -> tuple[Expr, ...]:
        items: list[Expr] = []
        for element in nodes:
            if type(element) is cst.StarredElement:
                items.append(self.expr(element))
            else:
                items.append(self.expr(element.value))
            if type(element.comma) is cst.Comma:
                self.token(1)
        return tuple(items)

    def starred(self, node: cst.StarredElement, start: int) -> Expr:
        self.pos = start + 1
        value = self.expr(node.value)
        return Star(self.span(start), value)

    def list_(self, node: cst.List, start: int) -> Expr:
        return self.bracketed(node, start, "list")

    def set_(self, node: cst.Set, start: int) -> Expr:
        return self.bracketed(node, start, "set")

    def bracketed(self, node: Any, start: int, kind: str) -> Expr:
        self.pos = start + 1
        items = self.elements(node.elements)
        self.token(1)
        return Sequence(self.span(start), kind, items)

    def dict_(self, node: cst.Dict, start: int) -> Expr:
        self.pos = start + 1
        items: list[tuple[Expr | None, Expr]] = []
        for element in node.elements:
            key = None
            if type(element) is cst.DictElement:
                key = self.expr(element.key)
                self.token(1)
            else:
                self.token(2)
            items.append((key, self.expr(element.value)))
            if type(element.comma) is cst.Comma:
                self.token(1)
        self.token(1)
        return Mapping(self.span(start), tuple(items))

    def list_comp(self, node: cst.ListComp, start: int) -> Expr:
        return self.comprehension(node, start, "list")

    def set_comp(self, node: cst.SetComp, start: int) -> Expr:
        return self.comprehension(node, start, "set")

    def comprehension(self, node: Any, start: int, kind: str) -> Expr:
        self.pos = start + 1
        element = self.expr(node.elt)
        clauses = self.clauses(node.for_in)
        self.token(1)
        return Comprehension(self.span(start), kind, element, clauses)

    def generator(self, node: cst.GeneratorExp, start: int) -> Expr:
        begin = self.open  # its own parenthesis, or that of the call whose only argument it is
        element = self.expr(node.elt)
        clauses = self.clauses(node.for_in)
        return Comprehension(self.enclosed(begin), "generator", element, clauses)

    def dict_comp(self, node: cst.DictComp, start: int) -> Expr:
        self.pos = start + 1
        key = self.expr(node.key)
        self.token(1)
        value = self.expr(node.value)
        element = Sequence(Span(*key.span[:2], *value.span[2:]), "tuple", (key, value))
        clauses = self.clauses(node.for_in)
        self.token(1)
        return Comprehension(self.span(start), "dict", element, clauses)

    def clauses(self, node: cst.CompFor | None) -> tuple[Clause, ...]:
        found: list[Clause] = []
        while node is not None:
            if node.asynchronous is not None:
                self.token(5)
            self.token(3)
            target = self.target(node.target)
            self.token(2)
            iterable = self.expr(node.iter)
            tests: list[Expr] = []
            for test in node.ifs:
                self.token(2)
                tests.append(self.expr(test.test))
            found.append(Clause(target, iterable, tuple(tests)))
            node = node.inner_for_in
        return tuple(found)

    def lambda_(self, node: cst.Lambda, start: int) -> Expr:
        self.pos = start + 6
        parameters, names = self.parameters(node.params)
        self.token(1)
        mentions, self.mentions = self.mentions, set()
        pos = self.pos

        def lower_body() -> Expr:
            self.jump(pos)
            return self.expr(node.body)

        value, frame = self.inside("function", node, names, lower_body)
        inside = frozenset(self.mentions)
        mentions |= inside
        self.mentions = mentions
        span = self.span(start)
        body = (Return(value.span, value),)
        return Lambda(span, Function("<lambda>", span, parameters, body, inside, frame.generator))

    def walrus(self, node: cst.NamedExpr, start: int) -> Expr:
        target = self.target(node.target)
        self.token(2)
        value = self.expr(node.value)
        return Walrus(self.span(start), target, value)

    def await_(self, node: cst.Await, start: int) -> Expr:
        self.pos = start + 5
        value = self.expr(node.expression)
        return Await(self.span(start), value)

    def yield_(self, node: cst.Yield, start: int) -> Expr:
        self.pos = start + 5
        self.scope.generator = True
        value: Any = node.value
        if value is None:
            return Yield(self.span(start), None)
        many = type(value) is cst.From
        if many:
            self.token(4)
            value = value.item
        inner = self.expr(value)
        return Yield(self.span(start), inner, many)

    # --- targets -------------------------------------------------------------------------------------------------

    def target(self, node: Any) -> Expr:
        """What is assigned to or deleted: its names are bound here and never `Extern`."""
        kind = type(node)
        if kind is cst.Subscript:
            return self.expr(node)
        lpar = node.lpar
        opened = 0
        for _ in lpar:
            opened = self.skip()
            self.pos += 1
        start = self.skip()
        if kind is cst.Name:
            name = self.identifier(node)
            self.bind(name)
            result: Expr = Name(self.span(start), name)
        elif kind is cst.Attribute:
            value = self.expr(node.value)
            self.token(1)
            name = self.identifier(node.attr)
            self.mentions.add(name)
            result = Attr(self.span(start), value, name)
        elif kind is cst.StarredElement:
            self.pos += 1
            inner = self.target(node.value)
            result = Star(self.span(start), inner)
        elif kind is cst.Tuple or kind is cst.List:
            if kind is cst.List:
                self.pos += 1
            items: list[Expr] = []
            for element in node.elements:
                items.append(self.target(element if type(element) is cst.StarredElement else element.value))
                if type(element.comma) is cst.Comma:
                    self.token(1)
            if kind is cst.List:
                self.token(1)
                result = Sequence(self.span(start), "list", tuple(items))
            else:
                span = self.enclosed(opened) if lpar else self.span(start)
                result = Sequence(span, "tuple", tuple(items))
        else:
            lower_one = _EXPRESSIONS.get(kind)
            result = lower_one(self, node, start) if lower_one else self.unknown(node, start)
        for _ in node.rpar:
            self.token(1)
        return result

    # --- statements ----------------------------------------------------------------------------------------------

    def lower_module(self) -> Lowered:
        nodes = self.tree.body
        offset = sum(self.width(line) for line in self.tree.header)
        offsets: list[int] = []
        definitions: dict[int, str] = {}
        for number, node in enumerate(nodes):
            offsets.append(offset)
            offset += self.width(node)
            if isinstance(node, (cst.FunctionDef, cst.ClassDef)):
                definitions[number] = node.name.value

        def lower_one(number: int) -> list[Stmt]:
            self.jump(offsets[number])
            out: list[Stmt] = []
            self.statement(nodes[number], out)
            return out

        return self.module(definitions, len(nodes), lower_one)

    def statement(self, node: Any, out: list[Stmt]) -> None:
        lower_one = _STATEMENTS.get(type(node))
        if lower_one is None:
            self.skip()
            self.pos += self.width(node)  # a kind of statement that is newer than this code
        else:
            lower_one(self, node, out)

    def simple_line(self, node: cst.SimpleStatementLine | cst.SimpleStatementSuite, out: list[Stmt]) -> None:
        for small in node.body:
            lower_one = _SMALL.get(type(small))
            start = self.skip()
            if lower_one is None:
                self.pos += self.width(small.with_changes(semicolon=cst.MaybeSentinel.DEFAULT))
            else:
                lower_one(self, small, start, out)
            if type(small.semicolon) is cst.Semicolon:
                self.token(1)

    def suite(self, node: Any) -> tuple[Stmt, ...]:
        out: list[Stmt] = []
        if type(node) is cst.IndentedBlock:
            for one in node.body:
                lower_one = _STATEMENTS.get(type(one))
                if lower_one is None:
                    self.statement(one, out)
                else:
                    lower_one(self, one, out)
        else:
            self.simple_line(node, out)
        return tuple(out)

    def orelse(self, node: cst.Else | cst.Finally | None, width: int = 4) -> tuple[Stmt, ...]:
        if node is None:
            return ()
        self.token(width)
        self.token(1)
        return self.suite(node.body)

    def do(self, node: cst.Expr, start: int, out: list[Stmt]) -> None:
        value = self.expr(node.value)
        if type(value) is not Const:
            out.append(Do(self.span(start), value))

    def assign(self, node: cst.Assign, start: int, out: list[Stmt]) -> None:
        targets: list[Expr] = []
        for one in node.targets:
            targets.append(self.target(one.target))
            self.token(1)
        value = self.expr(node.value)
        out.append(Assign(self.span(start), tuple(targets), value))

    def annotated(self, node: cst.AnnAssign, start: int, out: list[Stmt]) -> None:
        target = self.target(node.target)
        self.annotation(node.annotation)
        if node.value is not None:
            self.token(1)
            value = self.expr(node.value)
            out.append(Assign(self.span(start), (target,), value, annotated=True))

    def annotation(self, node: cst.Annotation | None, width: int = 1) -> Expr | None:
        """A type, with the `:` or `->` before it."""
        if node is None:
            return None
        self.token(width)
        return self.unmentioned(node.annotation)

    def unmentioned(self, node: Any) -> Expr:
        """An expression that is not run, or not followed: what it names is not mentioned."""
        mentions, self.mentions = self.mentions, set()
        result = self.expr(node)
        self.mentions = mentions
        return result

    def augment(self, node: cst.AugAssign, start: int, out: list[Stmt]) -> None:
        target = self.target(node.target)
        op = _AUGMENT[type(node.operator)]
        self.token(len(op) + 1)
        value = self.expr(node.value)
        out.append(Augment(self.span(start), target, op, value))

    def return_(self, node: cst.Return, start: int, out: list[Stmt]) -> None:
        self.pos = start + 6
        value = self.optional(node.value)
        out.append(Return(self.span(start), value))

    def raise_(self, node: cst.Raise, start: int, out: list[Stmt]) -> None:
        self.pos = start + 5
        if node.exc is not None:
            self.unmentioned(node.exc)
        if node.cause is not None:
            self.token(4)
            self.unmentioned(node.cause.item)
        out.append(Raise(self.span(start)))

    def assert_(self, node: cst.Assert, start: int, out: list[Stmt]) -> None:
        self.pos = start + 6
        self.unmentioned(node.test)
        if node.msg is not None:
            self.token(1)
            self.unmentioned(node.msg)

    def delete(self, node: cst.Del, start: int, out: list[Stmt]) -> None:
        self.pos = start + 3
        target = self.target(node.target)
        targets = target.items if type(target) is Sequence else (target,)
        out.append(Delete(self.span(start), targets))

    def pass_(self, node: cst.Pass, start: int, out: list[Stmt]) -> None:
        self.pos = start + 4

    def break_(self, node: cst.Break, start: int, out: list[Stmt]) -> None:
        self.pos = start + 5
        out.append(Break(self.span(start)))

    def continue_(self, node: cst.Continue, start: int, out: list[Stmt]) -> None:
        self.pos = start + 8
        out.append(Continue(self.span(start)))

    def global_(self, node: cst.Global | cst.Nonlocal, start: int, out: list[Stmt]) -> None:
        kind = "global" if type(node) is cst.Global else "nonlocal"
        self.pos = start + len(kind)
        names = []
        for item in node.names:
            names.append(self.identifier(item.name))
            if type(item.comma) is cst.Comma:
                self.token(1)
        if self.scope is not self.top:
            (self.scope.globals if kind == "global" else self.scope.nonlocals).update(names)
        out.append(Scope(self.span(start), kind, tuple(names)))

    def type_alias(self, node: cst.TypeAlias, start: int, out: list[Stmt]) -> None:
        self.bind(node.name.value)
        self.pos += self.width(node.with_changes(semicolon=cst.MaybeSentinel.DEFAULT))

    def import_(self, node: Any, start: int, out: list[Stmt]) -> None:
        if type(node) is cst.LazyImport:
            self.token(4)
        self.token(6)
        found = [self.alias(alias) for alias in node.names]
        span = self.span(start)
        for path, name in found:
            if not name:  # `import a.b` binds a
                name = path = path.split(".")[0]
            self.bind_import(name, path)
            out.append(Import(span, name, path))

    def import_from(self, node: Any, start: int, out: list[Stmt]) -> None:
        if type(node) is cst.LazyImportFrom:
            self.token(4)
        self.token(4)
        for _ in node.relative:
            self.token(1)
        source = "." * len(node.relative)
        if node.module is not None:
            source += self.dotted(node.module)
        self.token(6)
        if isinstance(node.names, cst.ImportStar):
            self.token(1)
            self.bind_wildcard(source)
            out.append(Import(self.span(start), "*", source))
            return
        if node.lpar is not None:
            self.token(1)
        found = [self.alias(alias) for alias in node.names]
        if node.rpar is not None:
            self.token(1)
        span = self.span(start)
        for member, name in found:
            path = source + member if source.endswith(".") else f"{source}.{member}"
            self.bind_import(name or member, path)
            out.append(Import(span, name or member, path))

    def alias(self, node: cst.ImportAlias) -> tuple[str, str]:
        path = self.dotted(node.name)
        name = ""
        if node.asname is not None:
            self.token(2)
            assert isinstance(node.asname.name, cst.Name)
            name = self.identifier(node.asname.name)
        if type(node.comma) is cst.Comma:
            self.token(1)
        return path, name

    def dotted(self, node: Any) -> str:
        if type(node) is cst.Name:
            return self.identifier(node)
        path = self.dotted(node.value)
        self.token(1)
        return f"{path}.{self.identifier(node.attr)}"

    def header(self, start: int) -> Span:
        """The span from a keyword to its colon, which is next."""
        self.token(1)
        return self.span(start)

    def if_(self, node: cst.If, out: list[Stmt]) -> None:
        arms: list[tuple[Span, Expr, tuple[Stmt, ...]]] = []
        rest: Any = node
        while type(rest) is cst.If:
            start = self.skip()
            self.pos += 4 if arms else 2
            test = self.expr(rest.test)
            span = self.header(start)
            arms.append((span, test, self.suite(rest.body)))
            rest = rest.orelse
        if len(arms) > MAX_CHAIN:
            raise RecursionError
        orelse = self.orelse(rest)
        for span, test, body in reversed(arms):
            orelse = (If(span, test, body, orelse),)
        out.extend(orelse)

    def while_(self, node: cst.While, out: list[Stmt]) -> None:
        start = self.skip()
        self.pos += 5
        test = self.expr(node.test)
        span = self.header(start)
        body = self.suite(node.body)
        out.append(While(span, test, body, self.orelse(node.orelse)))

    def for_(self, node: cst.For, out: list[Stmt]) -> None:
        start = self.skip()
        if node.asynchronous is not None:
            self.token(5)
        self.token(3)
        target = self.target(node.target)
        self.token(2)
        iterable = self.expr(node.iter)
        span = self.header(start)
        body = self.suite(node.body)
        out.append(For(span, target, iterable, body, self.orelse(node.orelse)))

    def with_(self, node: cst.With, out: list[Stmt]) -> None:
        start = self.skip()
        if node.asynchronous is not None:
            self.token(5)
        self.token(4)
        if type(node.lpar) is cst.LeftParen:
            self.token(1)
        items: list[tuple[Expr, Expr | None]] = []
        for item in node.items:
            manager = self.expr(item.item)
            target = None
            if item.asname is not None:
                self.token(2)
                target = self.target(item.asname.name)
            items.append((manager, target))
            if type(item.comma) is cst.Comma:
                self.token(1)
        if type(node.rpar) is cst.RightParen:
            self.token(1)
        span = self.header(start)
        out.append(With(span, tuple(items), self.suite(node.body)))

    def try_(self, node: cst.Try | cst.TryStar, out: list[Stmt]) -> None:
        start = self.skip()
        self.pos += 3
        span = self.header(start)
        body = self.suite(node.body)
        handlers: list[tuple[Expr | None, str | None, tuple[Stmt, ...]]] = []
        for handler in node.handlers:
            self.token(6)
            if type(handler) is cst.ExceptStarHandler:
                self.token(1)
            caught = self.optional(handler.type)
            name = None
            if handler.name is not None:
                self.token(2)
                assert isinstance(handler.name.name, cst.Name)
                name = self.identifier(handler.name.name)
                self.bind(name)
            self.token(1)
            handlers.append((caught, name, self.suite(handler.body)))
        orelse = self.orelse(node.orelse)
        final = self.orelse(node.finalbody, 7)
        out.append(Try(span, body, tuple(handlers), orelse, final))

    def decorators(self, nodes: Iterable[cst.Decorator]) -> tuple[Expr, ...]:
        found: list[Expr] = []
        for decorator in nodes:
            self.token(1)
            found.append(self.expr(decorator.decorator))
        return tuple(found)

    def function(self, node: cst.FunctionDef, out: list[Stmt]) -> None:
        decorators = self.decorators(node.decorators)
        start = self.skip()
        if node.asynchronous is not None:
            self.token(5)
        self.token(3)
        name = self.identifier(node.name)
        self.bind(name)
        self.type_parameters(node.type_parameters)
        self.token(1)
        parameters, names = self.parameters(node.params)
        self.token(1)
        self.annotation(node.returns, 2)
        span = self.header(start)
        mentions, pos = self.mentions, self.pos

        def lower_body() -> tuple[Stmt, ...]:
            self.jump(pos)
            self.mentions = set()
            return self.suite(node.body)

        body, frame = self.inside("function", node, names, lower_body)
        inside = frozenset(self.mentions)
        mentions |= inside
        self.mentions = mentions
        function = Function(name, span, parameters, body, inside, frame.generator)
        out.append(Define(span, function, decorators))

    def type_parameters(self, node: cst.TypeParameters | None) -> None:
        if node is not None:
            self.skip()
            self.pos += self.width(node)

    def parameters(self, node: cst.Parameters) -> tuple[tuple[Parameter, ...], set[str]]:
        found: list[Parameter] = []
        for one in node.posonly_params:
            self.parameter(one, "plain", found)
        if isinstance(node.posonly_ind, cst.ParamSlash):
            self.token(1)
            if type(node.posonly_ind.comma) is cst.Comma:
                self.token(1)
        for one in node.params:
            self.parameter(one, "plain", found)
        if isinstance(node.star_arg, cst.ParamStar):
            self.token(2)  # with its comma
            self.pos = self.pos if self.text[self.pos - 1] == "," else self.skip() + 1
        elif isinstance(node.star_arg, cst.Param):
            self.parameter(node.star_arg, "args", found)
        for one in node.kwonly_params:
            self.parameter(one, "keyword", found)
        if node.star_kwarg is not None:
            self.parameter(node.star_kwarg, "kwargs", found)
        return tuple(found), {parameter.name for parameter in found}

    def parameter(self, node: cst.Param, kind: str, found: list[Parameter]) -> None:
        if kind == "args" or kind == "kwargs":
            self.token(1 if kind == "args" else 2)
        name = self.identifier(node.name)
        annotation = self.annotation(node.annotation)
        default = None
        if node.default is not None:
            self.token(1)
            default = self.expr(node.default)
        if type(node.comma) is cst.Comma:
            self.token(1)
        found.append(Parameter(name, kind, default, annotation))

    def class_(self, node: cst.ClassDef, out: list[Stmt]) -> None:
        decorators = self.decorators(node.decorators)
        start = self.skip()
        self.pos += 5
        name = self.identifier(node.name)
        self.bind(name)
        self.type_parameters(node.type_parameters)
        bases: list[Expr] = []
        keywords: list[tuple[str | None, Expr]] = []
        if type(node.lpar) is cst.LeftParen:
            self.token(1)
            for arg in (*node.bases, *node.keywords):
                self.argument(arg, bases, keywords)
            self.token(1)
        span = self.header(start)
        pos = self.pos

        def lower_body() -> tuple[Stmt, ...]:
            self.jump(pos)
            return self.suite(node.body)

        body, _ = self.inside("class", node, set(), lower_body)
        out.append(Class(span, name, tuple(bases), body, decorators))

    def match(self, node: cst.Match, out: list[Stmt]) -> None:
        start = self.skip()
        self.pos += 5
        subject = self.expr(node.subject)
        span = self.header(start)
        cases: list[tuple[tuple[Expr, ...], Expr | None, tuple[Stmt, ...], tuple[str, ...]]] = []
        for case in node.cases:
            self.token(4)
            constants = self.pattern(case.pattern)
            names = tuple(sorted(set(_captures(case.pattern))))
            for name in names:
                self.bind(name)
            guard = None
            if case.guard is not None:
                self.token(2)
                guard = self.expr(case.guard)
            self.token(1)
            cases.append((constants, guard, self.suite(case.body), names))
        out.append(Match(span, subject, tuple(cases)))

    def pattern(self, node: Any) -> tuple[Expr, ...]:
        """The constants a pattern stands for; () if it takes anything, `Unknown` if it looks at a structure."""
        if type(node) is cst.MatchValue:
            return (self.expr(node.value),)
        if type(node) is cst.MatchSingleton:
            return (self.expr(node.value),)
        start = self.skip()
        if type(node) is cst.MatchOr:
            for _ in node.lpar:
                self.token(1)
            found: list[Expr] = []
            anything = False
            for element in node.patterns:
                constants = self.pattern(element.pattern)
                anything = anything or not constants
                found.extend(constants)
                if type(element.separator) is cst.BitOr:
                    self.token(1)
            for _ in node.rpar:
                self.token(1)
            return () if anything else tuple(found)
        self.pos += self.width(node)
        if type(node) is cst.MatchAs and node.pattern is None:
            return ()
        return (Unknown(self.span(start)),)


def _captures(node: cst.CSTNode) -> list[str]:
    """The names that a pattern binds."""
    found: list[str] = []
    if isinstance(node, (cst.MatchAs, cst.MatchStar)) and node.name is not None:
        found.append(node.name.value)
    if isinstance(node, cst.MatchMapping) and node.rest is not None:
        found.append(node.rest.value)
    for child in node.children:
        found.extend(_captures(child))
    return found


def _string_value(source: str) -> str | bytes | None:
    if "\\" not in source and "\r" not in source and source[0] in "'\"":
        return source[3:-3] if source[:3] == source[0] * 3 and len(source) >= 6 else source[1:-1]
    try:
        value = ast.literal_eval(source)
    except (ValueError, SyntaxError):
        return None
    return value if isinstance(value, (str, bytes)) else None


def _normal(name: str) -> str:
    return unicodedata.normalize("NFKC", name)


_EXPRESSIONS: dict[type[cst.CSTNode], Callable[[_Lowerer, Any, int], Expr]] = {
    cst.Name: _Lowerer.name,
    cst.Attribute: _Lowerer.attribute,
    cst.Call: _Lowerer.call,
    cst.Integer: _Lowerer.number,
    cst.Float: _Lowerer.number,
    cst.Imaginary: _Lowerer.number,
    cst.SimpleString: _Lowerer.string,
    cst.ConcatenatedString: _Lowerer.concatenated,
    cst.FormattedString: _Lowerer.formatted,
    cst.TemplatedString: _Lowerer.formatted,
    cst.Ellipsis: _Lowerer.ellipsis,
    cst.BinaryOperation: _Lowerer.binary,
    cst.BooleanOperation: _Lowerer.boolean,
    cst.UnaryOperation: _Lowerer.unary,
    cst.Comparison: _Lowerer.comparison,
    cst.IfExp: _Lowerer.if_else,
    cst.Subscript: _Lowerer.subscript,
    cst.Tuple: _Lowerer.tuple_,
    cst.List: _Lowerer.list_,
    cst.Set: _Lowerer.set_,
    cst.Dict: _Lowerer.dict_,
    cst.StarredElement: _Lowerer.starred,
    cst.ListComp: _Lowerer.list_comp,
    cst.SetComp: _Lowerer.set_comp,
    cst.DictComp: _Lowerer.dict_comp,
    cst.GeneratorExp: _Lowerer.generator,
    cst.Lambda: _Lowerer.lambda_,
    cst.NamedExpr: _Lowerer.walrus,
    cst.Await: _Lowerer.await_,
    cst.Yield: _Lowerer.yield_,
}
_SMALL: dict[type[cst.CSTNode], Callable[[_Lowerer, Any, int, list[Stmt]], None]] = {
    cst.Expr: _Lowerer.do,
    cst.Assign: _Lowerer.assign,
    cst.AnnAssign: _Lowerer.annotated,
    cst.AugAssign: _Lowerer.augment,
    cst.Return: _Lowerer.return_,
    cst.Raise: _Lowerer.raise_,
    cst.Assert: _Lowerer.assert_,
    cst.Del: _Lowerer.delete,
    cst.Pass: _Lowerer.pass_,
    cst.Break: _Lowerer.break_,
    cst.Continue: _Lowerer.continue_,
    cst.Global: _Lowerer.global_,
    cst.Nonlocal: _Lowerer.global_,
    cst.TypeAlias: _Lowerer.type_alias,
    cst.Import: _Lowerer.import_,
    cst.ImportFrom: _Lowerer.import_from,
    cst.LazyImport: _Lowerer.import_,
    cst.LazyImportFrom: _Lowerer.import_from,
}
_STATEMENTS: dict[type[cst.CSTNode], Callable[[_Lowerer, Any, list[Stmt]], None]] = {
    cst.SimpleStatementLine: _Lowerer.simple_line,
    cst.If: _Lowerer.if_,
    cst.While: _Lowerer.while_,
    cst.For: _Lowerer.for_,
    cst.With: _Lowerer.with_,
    cst.Try: _Lowerer.try_,
    cst.TryStar: _Lowerer.try_,
    cst.FunctionDef: _Lowerer.function,
    cst.ClassDef: _Lowerer.class_,
    cst.Match: _Lowerer.match,
}
