"""Lifting: places are exact, both parsers agree, and bad input gives a LiftError."""

from __future__ import annotations

import ast
import dataclasses
import random
import re
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

import libcst
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acclint import program as p
from acclint.lift import LiftError, from_ast, from_libcst, lift


def nodes(root: object) -> Iterator[object]:
    """Every program node in a tree of them."""
    stack = [root]
    while stack:
        node = stack.pop()
        if dataclasses.is_dataclass(node):
            yield node
            stack.extend(getattr(node, field.name) for field in dataclasses.fields(node))
        elif isinstance(node, tuple) and not isinstance(node, p.Span):
            stack.extend(node)


def with_libcst(text: str) -> tuple[p.Stmt, ...]:
    return from_libcst.lower(text, libcst.parse_module(text)).body


def cut(text: str, span: p.Span) -> str:
    """The text at a span."""
    lines = re.split(r"(?<=\n)|(?<=\r)(?!\n)", text)
    if span.row == span.end_row:
        return lines[span.row - 1][span.column - 1 : span.end_column - 1]
    first, last = lines[span.row - 1][span.column - 1 :], lines[span.end_row - 1][: span.end_column - 1]
    return first + "".join(lines[span.row : span.end_row - 1]) + last


def one(text: str) -> p.Stmt:
    """The last statement of a text, which both parsers lower to the same."""
    body = lift(text).body
    assert with_libcst(text) == body
    return body[-1]


def value(text: str) -> p.Expr:
    statement = one(text)
    assert isinstance(statement, (p.Do, p.Assign))
    return statement.value


# --- real code -------------------------------------------------------------------------------------------------------


def library() -> list[Path]:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in sorted(root.rglob("*.py")) if "site-packages" not in path.parts]
    return random.Random(20).sample(files, 60)


def sources() -> Iterator[tuple[Path, str, ast.Module]]:
    for path in library():
        try:
            with path.open(encoding="utf-8", newline="") as file:
                text = file.read().removeprefix("\ufeff")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        yield path, text, tree


def test_places_are_those_of_ast() -> None:
    """Counted outside of what is dropped (annotations, assertions, raise) and of f-strings."""
    seen = 0
    for path, text, tree in sources():
        lines = re.split(r"\r\n?|\n", text)
        dropped: set[ast.AST] = set()
        for node in ast.walk(tree):
            parts: list[ast.AST | None] = []
            if isinstance(node, (ast.Assert, ast.Raise, ast.JoinedStr, ast.pattern)):
                parts = [node]
            elif isinstance(node, ast.AnnAssign):
                parts = [node.annotation]
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                parts = [node.returns]
            elif isinstance(node, ast.ClassDef):
                parts = list(node.keywords)
            for part in parts:
                dropped.update(ast.walk(part) if part is not None else ())

        def place(row: int | None, offset: int | None, lines: list[str] = lines) -> tuple[int, int]:
            assert row is not None and offset is not None
            return row, len(lines[row - 1].encode()[:offset].decode()) + 1

        expected: dict[type, set[tuple[int, ...]]] = {p.Call: set(), p.Binary: set(), p.Name: set(), p.Attr: set()}
        for node in ast.walk(tree):
            kind = {ast.Call: p.Call, ast.BinOp: p.Binary, ast.Name: p.Name, ast.Attribute: p.Attr}.get(type(node))
            if kind is not None and node not in dropped and isinstance(node, ast.expr):
                begin, end = place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset)
                expected[kind].add((*begin, *end))

        found: dict[type, set[tuple[int, ...]]] = {kind: set() for kind in (*expected, p.Extern)}
        stack: list[object] = [with_libcst(text)]
        while stack:
            item = stack.pop()
            if isinstance(item, (p.Text, p.Span)):
                continue
            if dataclasses.is_dataclass(item):
                if type(item) in found:
                    assert isinstance(item, p.Expr)
                    found[type(item)].add(tuple(item.span))
                stack.extend(getattr(item, field.name) for field in dataclasses.fields(item))
            elif isinstance(item, tuple):
                stack.extend(item)
        assert found[p.Call] == expected[p.Call], path
        assert found[p.Binary] == expected[p.Binary], path
        assert found[p.Attr] <= expected[p.Attr], path
        assert found[p.Name] <= expected[p.Name], path
        assert found[p.Extern] <= expected[p.Attr] | expected[p.Name], path
        seen += sum(map(len, found.values()))
    assert seen > 10_000


def test_both_parsers_give_the_same_program() -> None:
    compared = 0
    for path, text, tree in sources():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert from_ast.lower(text, tree).body == with_libcst(text), path
        compared += 1
    assert compared > 40


# --- places ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "headers"),
    [
        ("if (a\n    ) : # no: this\n  b\nelif c:\n  d\nelse:\n  e\n", ["if (a\n    ) :", "elif c:"]),
        ("for i, (x, y) in enumerate(z) :\n\tpass\nelse:\n\tpass\n", ["for i, (x, y) in enumerate(z) :"]),
        ("while a[1:2]: b()\n", ["while a[1:2]:"]),
        ("with (a as b,  # one: two\n      c as d,):\n    pass\n", ["with (a as b,  # one: two\n      c as d,):"]),
        ("try : a\nexcept E: b\nfinally: c\n", ["try :"]),
        (
            "@d(1)\ndef f(a, /, b: int=lambda: 1, *, c) -> x[1:2]: pass\n",
            ["def f(a, /, b: int=lambda: 1, *, c) -> x[1:2]:"],
        ),
        ("async  def f(\n):\n    async with a: pass\n", ["async  def f(\n):", "async with a:"]),
        ("class A: pass\nclass B(C, k=D(),): pass\n", ["class A:", "class B(C, k=D(),):"]),
        ("def f(*a, **k): pass\ndef g(*, a): pass\n", ["def f(*a, **k):", "def g(*, a):"]),
        ("match a, b:\n  case 1 : pass\n", ["match a, b:"]),
        ("def über(é): pass\n", ["def über(é):"]),
    ],
)
def test_headers(text: str, headers: list[str]) -> None:
    for body in (lift(text).body, with_libcst(text)):
        compound = (p.If, p.For, p.While, p.With, p.Try, p.Define, p.Class, p.Match)
        spans = sorted({node.span for node in nodes(body) if isinstance(node, compound)})
        assert [cut(text, span) for span in spans] == headers


def test_columns_count_characters() -> None:
    text = "x = 'é𝄞'; loss = f('ü', a + b)\n"
    statement = one(text)
    assert isinstance(statement, p.Assign)
    assert cut(text, statement.span) == "loss = f('ü', a + b)"
    binary = next(node for node in nodes(statement) if isinstance(node, p.Binary))
    assert binary.span == p.Span(1, 25, 1, 30)
    assert cut(text, binary.span) == "a + b"


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_line_ends_tabs_form_feeds_and_continued_lines(newline: str) -> None:
    text = "if a:\n\tb = 1 + \\\n\t\tc; d(e) ; \n\t# comment\n\n\f\nx = '''\n\n''' + y\n".replace("\n", newline)
    body = lift(text).body
    assert with_libcst(text) == body
    binaries = sorted(node.span for node in nodes(body) if isinstance(node, p.Binary))
    assert binaries == [p.Span(2, 6, 3, 4), p.Span(7, 5, 9, 8)]
    assert [cut(text, span) for span in binaries] == [f"1 + \\{newline}\t\tc", f"'''{newline}{newline}''' + y"]
    call = next(node for node in nodes(body) if isinstance(node, p.Call))
    assert cut(text, call.span) == "d(e)"


def test_a_byte_order_mark_is_not_counted() -> None:
    assert lift("\ufeffx = 1\n") == lift("x = 1\n")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("f'{a}'", ["a"]),
        ("f'{{no}} {a.b!r:>{w}} {c=} {d = !s}'", ["a.b", "w", "c", "d"]),
        (
            "rf'\\{a}' F\"\"\"\n {b if c != '}' else x['k']}\"\"\" 'no {d}' f'{e:%H:%M}'",
            ["a", "b if c != '}' else x['k']", "e"],
        ),
        ("f'\\N{DIGIT ONE}{a}\\'{b}'", ["a", "b"]),
        ("f'{ a, b }{(lambda x: x)(1)}{ {1: 2}[1] }'", ["a, b", "(lambda x: x)(1)", "{1: 2}[1]"]),
        ("f'é{ü}{f\"{ä}\"}'", ["ü", 'f"{ä}"']),
        ("f'{a == b}{c >= 1}{d:=^9}{(e := 1)}'", ["a == b", "c >= 1", "d", "e := 1"]),
        ("f'''{\na\n+ b}'''", ["a\n+ b"]),
    ],
)
def test_expressions_in_f_strings(text: str, parts: list[str]) -> None:
    found = value(text)
    assert isinstance(found, p.Text)
    assert [cut(text, part.span) for part in found.parts] == parts


@pytest.mark.parametrize(
    "text",
    [
        'f"{x["a"]}" + f"{\'\\n\'.join(y)}"',
        "f'''{\n    a # why } not\n}'''",
        "f'{f'{f'{1 + z}'}'}'",
        "def f[T: int, *S](a: T) -> S: return a + 1\ntype X[T] = list[T]\nclass A[T](B): pass\n",
        "try:\n    a\nexcept* E as e:\n    b(e)\n",
        "t'{a + b} {c!r:>{d}}'",
        "x[*a, 1] = b[*c]\n",
        "with (a as b, c(d) as e):\n    pass\n",
        "try:\n    a\nexcept A, B:\n    b\n",
    ],
)
def test_newer_syntax_is_lifted_on_every_python(text: str) -> None:
    """Where the running Python knows the syntax, both ways agree; where it does not, libcst takes over."""
    body = lift(text).body
    assert body
    assert body == with_libcst(text)


# --- what becomes of what --------------------------------------------------------------------------------------------


def test_statements() -> None:
    text = '''
"""Docstring."""
a = b = c, *d = e
n: int
n: int = 1
x.y -= 2
assert a, b
del a, b[0]
print(a)
raise E from None
pass
...
'''
    kinds = [type(node).__name__ for node in lift(text).body]
    assert kinds == ["Assign", "Assign", "Augment", "Delete", "Do", "Raise"]
    assert with_libcst(text) == lift(text).body
    first = lift(text).body[0]
    assert isinstance(first, p.Assign) and len(first.targets) == 3
    assert isinstance(first.targets[2], p.Sequence) and isinstance(first.targets[2].items[1], p.Star)


def test_elif_is_nested() -> None:
    statement = one("if a: b\nelif c: d\nelse: e")
    assert isinstance(statement, p.If) and isinstance(statement.orelse[0], p.If)
    assert isinstance(statement.orelse[0].orelse[0], p.Do)


def test_operators() -> None:
    text = "a and b and (c or d) or not e < f is not g not in h"
    found = value(text)
    assert isinstance(found, p.Bool) and found.op == "or"
    inner = found.values[0]
    assert isinstance(inner, p.Bool) and inner.op == "and" and len(inner.values) == 3
    negation = found.values[1]
    assert isinstance(negation, p.Unary) and isinstance(negation.operand, p.Compare)
    assert negation.operand.ops == ("<", "is not", "not in")


def test_calls() -> None:
    found = value("f(a, *b, c=d, **e)")
    assert isinstance(found, p.Call)
    assert isinstance(found.args[1], p.Star)
    assert [name for name, _ in found.keywords] == ["c", None]


@pytest.mark.parametrize(
    ("text", "constant"),
    [
        *[("1_000", 1000), ("0x1F", 31), ("1e-3", 0.001), ("2j", 2j), ("True", True), ("None", None), ("...", ...)],
        *[("'a' \"b\"", "ab"), ("b'a' b'b'", b"ab"), ("r'\\d'", "\\d"), ("'\\x41'", "A"), ("'''a'''", "a"), ("''", "")],
    ],
)
def test_constants(text: str, constant: object) -> None:
    found = value(f"x = {text}")
    assert isinstance(found, p.Const)
    assert found.value == constant and type(found.value) is type(constant)


def test_functions() -> None:
    text = "def f(a, /, b=1, *c, d: int = 2, **e):\n    g = [h(i) for i in a if i]\n    def k(): yield m.n(q)\n"
    statement = one(text)
    assert isinstance(statement, p.Define)
    function = statement.function
    assert [(one.name, one.kind) for one in function.parameters] == [
        ("a", "plain"),
        ("b", "plain"),
        ("c", "args"),
        ("d", "keyword"),
        ("e", "kwargs"),
    ]
    assert function.mentions == {"h", "i", "n", "q"}
    assert not function.generator
    inner = function.body[1]
    assert isinstance(inner, p.Define) and inner.function.generator and inner.function.mentions == {"n", "q"}


def test_match() -> None:
    statement = one(
        "match a:\n case 'x' | 1: b\n case [c, *d] if e: f\n case {'k': g, **h}: i\n case j: k\n case _: l\n"
    )
    assert isinstance(statement, p.Match)
    constants = [[type(one).__name__ for one in case[0]] for case in statement.cases]
    assert constants == [["Const", "Const"], ["Unknown"], ["Unknown"], [], []]
    assert [case[3] for case in statement.cases] == [(), ("c", "d"), ("g", "h"), ("j",), ()]


# --- imports ---------------------------------------------------------------------------------------------------------


def externs(text: str) -> list[str]:
    body = lift(text).body
    assert with_libcst(text) == body
    found = [node for node in nodes(body) if isinstance(node, p.Extern)]
    return [node.path for node in sorted(found, key=lambda node: node.span)]


def test_imports_keep_their_paths() -> None:
    text = "import a.b, c.d as e\nfrom . import f\nfrom ..g.h import (i as j, k,)\nfrom l import *\n"
    assert [(node.name, node.path) for node in lift(text).body if isinstance(node, p.Import)] == [
        ("a", "a"),
        ("e", "c.d"),
        ("f", ".f"),
        ("j", "..g.h.i"),
        ("k", "..g.h.k"),
        ("*", "l"),
    ]
    assert with_libcst(text) == lift(text).body


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("import torch.nn as nn\nnn.CrossEntropyLoss()", ["torch.nn.CrossEntropyLoss"]),
        ("from torch import optim\noptim.AdamW(p)", ["torch.optim.AdamW"]),
        ("import torch\ntorch.optim.SGD(p)", ["torch.optim.SGD"]),
        ("from .utils import helper\nhelper()", [".utils.helper"]),
        ("import torch.nn\ntorch.nn.Linear", ["torch.nn.Linear"]),
        ("def f():\n    return nn.L1Loss()\nfrom torch import nn\n", ["torch.nn.L1Loss"]),
        ("def f():\n    from torch import nn\n    nn.L1Loss()\nnn.L1Loss()\n", ["torch.nn.L1Loss"]),
        ("try:\n    from a import amp\nexcept E:\n    from b import amp\namp.x", ["a.amp.x"]),
        ("try:\n    from a import amp\nexcept E:\n    amp = None\namp.x", []),
        ("import a\ndef f(a):\n    a.b\ndef g():\n    a.b\n", ["a.b"]),
        ("import a\ndef f():\n    a.b\n    def g(): a.c\n    a = 1\ndef h(): a.d\n", ["a.d"]),
        ("import a\nclass C:\n    a = 1\n    a.b\n    def f(self): a.c\n", ["a.c"]),
        ("import a\nclass C:\n    def f(self): a.c\n    a = 1\n", ["a.c"]),
        ("import a\ndef f():\n    global a\n    a = 1\na.b\n", []),
        ("import a\ndef f():\n    x = 1\n    for a in b: a.c\n", []),
        ("import a\nlambda a: a.b\n[a.b for a in c]\na.c", []),
        ("import a\nlambda a: a.b\na.c", ["a.c"]),
        ("import a\ndef a(): pass\na.b", []),
        ("import torch\ntorch.backends.cudnn.benchmark = True", ["torch.backends.cudnn"]),
        ("from a import b as c\nwith c.d as c.e: pass", ["a.b.d", "a.b"]),
    ],
)
def test_names_that_only_imports_bind(text: str, paths: list[str]) -> None:
    assert externs(text) == paths


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("x = 1\ny = (\n", 2),
        ("a b", 1),
        ("x = 1\n  y = 2\n", 2),
        ("x = 1\n\0", 2),
        ("x = '\ud800'", 1),
        ("print 'a'", 1),
    ],
)
def test_invalid_syntax(text: str, row: int) -> None:
    with pytest.raises(LiftError) as caught:
        lift(text)
    assert caught.value.kind == "invalid-syntax"
    assert caught.value.message
    assert caught.value.row == row and caught.value.column >= 1


NESTED = {
    "sum": "x = " + " + ".join(["a"] * 3000),
    "longer sum": "x = " + " + ".join(["a"] * 30_000),
    "parentheses": "(" * 500 + "a" + ")" * 500,
    "more parentheses": "(" * 50_000 + "a" + ")" * 50_000,
    "lists": "[" * 150 + "]" * 150,
    "elif": "if a: pass\n" + "elif b: pass\n" * 1000,
    "more elif": "if a: pass\n" + "elif b: pass\n" * 20_000,
    "not": "not " * 2000 + "a",
    "minus": "-" * 20_000 + "a",
    "lambda": "lambda: " * 3000 + "a",
    "attributes": "a" + ".b" * 5000,
    "calls": "a" + "()" * 5000,
    "else": "x = " + "a if b else " * 3000 + "c",
    "strings": "x = " + "'a' f'{b}' " * 5000,
    "comparison": "x = " + " < ".join(["a"] * 5000),
    "and": "x = " + " and ".join(["a"] * 5000),
    "targets": "a = " * 5000 + "1",
    "blocks": "".join(" " * depth + "if a:\n" for depth in range(99)) + " " * 99 + "pass\n",
    "subscript": "a" + "[b" * 190 + "]" * 190,
}


@pytest.mark.parametrize("tail", ["", "\nx = = 1\n"], ids=["valid", "invalid"])
@pytest.mark.parametrize("name", NESTED)
def test_deep_nesting(name: str, tail: str) -> None:
    """In a process of its own, since a parser that overflows its stack takes the process along."""
    source = (
        "import sys\nfrom acclint.lift import LiftError, lift\n"
        "try:\n    lift(sys.stdin.read())\n"
        "except LiftError as error:\n    assert error.kind in ('too-complex', 'invalid-syntax')\n"
    )
    command = [sys.executable, "-c", source]
    done = subprocess.run(command, input=NESTED[name] + tail, text=True, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_short_chains_are_understood() -> None:
    chain = value(" + ".join(["a"] * 150))
    assert isinstance(chain, p.Binary) and chain.span == p.Span(1, 1, 1, 150 * 4 - 2)
    assert isinstance(value(" + ".join(["a"] * 300)), p.Unknown)


def test_libcst_is_not_imported_for_ordinary_text() -> None:
    source = "import sys\nfrom acclint.lift import lift\nlift('x = 1')\nassert 'libcst' not in sys.modules"
    subprocess.run([sys.executable, "-c", source], check=True)


# --- generated text --------------------------------------------------------------------------------------------------

WORDS = (
    "a b loss 1 2.5 'x' f'{a}' f\" { } [ ] ( ) : , . ; = == + - * ** / // % @ & | ^ ~ < > <= != := -> ... "
    "if elif else for while with as def class try except finally return yield from import lambda not and or in is "
    "async await match case global del assert raise pass break True None type \\ # é \ufeff"
)
TOKENS = WORDS.split()
GAPS = ["", " ", "\n", "\n    ", "\n        ", "\t", "\r\n", "\r", "\f", "\\\n"]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(TOKENS), st.sampled_from(GAPS)), max_size=30))
def test_any_tokens(pairs: list[tuple[str, str]]) -> None:
    text = "".join(token + gap for token, gap in pairs)
    try:
        lift(text)
    except LiftError as error:
        assert error.kind in ("invalid-syntax", "too-complex")
        assert error.row >= 1 and error.column >= 1


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_any_text(text: str) -> None:
    try:
        lift(text)
    except LiftError as error:
        assert error.row >= 1 and error.column >= 1


NAMES = st.sampled_from(["a", "b", "loss", "torch", "é"])
EXPRESSIONS = st.recursive(
    st.one_of(NAMES, st.sampled_from(["1", "2.5", "'x'", "None", "f'{a}{b!r:>{c}}'", "b'x' b'y'", "[]", "()"])),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "@", "**", "and", "or", "<", "is"]), inner).map(
            lambda t: f"({t[0]}) {t[1]} ({t[2]})"
        ),
        st.tuples(NAMES, st.sampled_from(["+", " -  ", " and ", " or ", "<=", " not  in "]), inner).map("".join),
        st.tuples(NAMES, inner, inner).map(lambda t: f"{t[0]}({t[1]}, k = {t[2]} ,)"),
        st.tuples(NAMES, inner).map(lambda t: f"{t[0]} . {t[0]} [ {t[1]} : ]"),
        st.tuples(inner, inner).map(lambda t: f"[({t[0]} ) , {t[1]},]"),
        st.tuples(inner, NAMES, inner).map(lambda t: f"[{t[0]} for {t[1]} in ({t[2]}) if {t[1]}]"),
        st.tuples(NAMES, inner).map(lambda t: f"(lambda {t[0]} , *c: {t[1]})"),
        st.tuples(inner, inner).map(lambda t: "{" + f"({t[0]}): {t[1]}" + "}"),
        inner.map(lambda one: f"(  # note\n {one}\n)"),
        inner.map(lambda one: f"(- {one})"),
    ),
    max_leaves=8,
)
LINES = st.one_of(
    EXPRESSIONS,
    st.tuples(NAMES, EXPRESSIONS).map(" = ".join),
    st.tuples(NAMES, EXPRESSIONS).map(" += ".join),
    st.tuples(NAMES, NAMES).map(lambda t: f"import {t[0]} as {t[1]}"),
    NAMES.map(lambda name: f"from .{name} import {name}"),
    EXPRESSIONS.map(lambda one: f"return {one};"),
    EXPRESSIONS.map(lambda one: f"return {one}; a \\\n = 1 ; # end"),
)
BLOCKS = st.recursive(
    st.lists(LINES, min_size=1, max_size=3),
    lambda inner: st.tuples(
        st.sampled_from(["if a :", "for a in b:", "while (a):", "with a as b:", "def a(b, *, c=1):", "class a(b):"]),
        inner,
    ).map(lambda t: [t[0], *("\t" + line.replace("\n", "\n\t") for line in t[1])]),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(BLOCKS, min_size=1, max_size=3), st.sampled_from(["\n", "\r\n", "\r"]))
def test_generated_programs_are_the_same_by_both_parsers(blocks: list[list[str]], newline: str) -> None:
    lines = [line for block in blocks for line in block]
    text = ("def main():\n" + "".join(f" {line}\n".replace("\n", "\n ").rstrip(" ") for line in lines)).replace(
        "\n", newline
    )
    assert lift(text).body == with_libcst(text)
