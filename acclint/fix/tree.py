"""The libcst tree of one text with the way from the places of a program to its nodes."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from functools import cached_property, lru_cache
from typing import TypeVar, cast

import libcst as cst
from libcst.metadata import (
    CodeRange,
    GlobalScope,
    MetadataWrapper,
    ParentNodeProvider,
    PositionProvider,
    Scope,
    ScopeProvider,
)

from acclint.lift import parse_tree
from acclint.program import Span

Node = TypeVar("Node", bound=cst.CSTNode)
_FUNCTIONS = (cst.FunctionDef, cst.Lambda, cst.ClassDef, cst.Module)


@lru_cache(1)
def tree_of(text: str) -> Tree:
    """The tree of a text; the last one is kept, since one text is rewritten in several ways."""
    return Tree(text)


class Refused(Exception):
    """A rewrite that cannot be done, with the reason for the user."""


class Tree:
    """Nodes by place. All nodes it gives are those of `module`, so that they can be told apart by identity."""

    def __init__(self, text: str) -> None:
        self._wrapper = MetadataWrapper(parse_tree(text), unsafe_skip_copy=True)
        self.module = self._wrapper.module
        self._parents = self._wrapper.resolve(ParentNodeProvider)
        self._positions = cast("dict[cst.CSTNode, CodeRange]", self._wrapper.resolve(PositionProvider))

    @cached_property
    def _by_span(self) -> dict[Span, list[cst.CSTNode]]:
        found: dict[Span, list[cst.CSTNode]] = {}
        for node in self._positions:
            if isinstance(node, (cst.BaseExpression, cst.BaseSmallStatement, cst.BaseStatement)):
                found.setdefault(self.span(node), []).append(node)
        return found

    @cached_property
    def _scopes(self) -> dict[cst.CSTNode, Scope | None]:
        return cast("dict[cst.CSTNode, Scope | None]", self._wrapper.resolve(ScopeProvider))

    def span(self, node: cst.CSTNode) -> Span:
        place = self._positions[node]
        return Span(place.start.line, place.start.column + 1, place.end.line, place.end.column + 1)

    def code(self, node: cst.CSTNode) -> str:
        return self.module.code_for_node(node)

    def parent(self, node: cst.CSTNode) -> cst.CSTNode:
        return self._parents[node]

    def above(self, node: cst.CSTNode) -> Iterator[cst.CSTNode]:
        """The nodes around a node, from the inside out."""
        while node in self._parents:
            node = self._parents[node]
            yield node

    # --- from places to nodes ---

    def expression(self, span: Span) -> cst.BaseExpression:
        """The expression written at `span`."""
        for node in self._by_span.get(span, ()):
            if isinstance(node, cst.BaseExpression):
                return node
        raise Refused("the place of the rewrite was not found in the syntax tree")

    def statement(self, span: Span) -> cst.BaseSmallStatement:
        """The simple statement at, or around, `span`."""
        for node in self._by_span.get(span, ()):
            for one in (node, *self.above(node)):
                if isinstance(one, cst.BaseSmallStatement):
                    return one
                if isinstance(one, cst.BaseCompoundStatement):
                    break
        raise Refused("the place of the rewrite is no statement of its own")

    def line(self, small: cst.BaseSmallStatement) -> cst.SimpleStatementLine | cst.SimpleStatementSuite:
        """The line that a simple statement stands on, perhaps with others."""
        line = self.parent(small)
        assert isinstance(line, (cst.SimpleStatementLine, cst.SimpleStatementSuite))
        return line

    def block(self, line: cst.CSTNode) -> cst.IndentedBlock | cst.Module:
        """The block whose statement is `line`."""
        block = self.parent(line)
        if not isinstance(block, (cst.IndentedBlock, cst.Module)):
            raise Refused("the place of the rewrite is no statement of its own")
        return block

    def function(self, node: cst.CSTNode) -> cst.CSTNode:
        """The function (or class, or module) that a node belongs to."""
        return next(one for one in self.above(node) if isinstance(one, _FUNCTIONS))

    def loop(self, node: cst.CSTNode) -> cst.For | cst.While | None:
        """The innermost loop around a node, within its function."""
        for one in self.above(node):
            if isinstance(one, (cst.For, cst.While)):
                return one
            if isinstance(one, _FUNCTIONS):
                break
        return None

    def loops(self, node: cst.CSTNode) -> Iterator[cst.For | cst.While]:
        """The loops around a node, within its function."""
        loop = self.loop(node)
        while loop is not None:
            yield loop
            loop = self.loop(loop)

    def conditional(self, span: Span) -> cst.If | None:
        """The `if` whose test is at `span`."""
        for node in self._by_span.get(span, ()):
            parent = self.parent(node)
            if isinstance(parent, cst.If) and parent.test is node:
                return parent
        return None

    def loop_at(self, span: Span) -> cst.For | cst.While | None:
        """The loop whose header is at `span`."""
        for place, nodes in self._by_span.items():
            if place[:2] == span[:2]:
                for node in nodes:
                    if isinstance(node, (cst.For, cst.While)):
                        return node
        return None

    def inside(self, node: cst.CSTNode, kind: type[Node]) -> Iterator[Node]:
        """A node and those below it that are of a kind, functions and classes left out."""
        todo = [node]
        while todo:
            one = todo.pop()
            if isinstance(one, kind):
                yield one
            todo += [child for child in one.children if not isinstance(child, _FUNCTIONS)]

    # --- names ---

    def free_name(self, name: str, at: cst.CSTNode) -> str:
        """`name`, with a number if it is already in use at a node."""
        scope = self._scope(at)
        return next(one for one in (name, *(f"{name}_{n}" for n in range(2, 100))) if not _taken(scope, one))

    def _scope(self, at: cst.CSTNode) -> Scope | None:
        return next((self._scopes[one] for one in (at, *self.above(at)) if one in self._scopes), None)

    def check_names(self, expression: cst.CSTNode, at: cst.CSTNode) -> None:
        """Raise Refused unless every name that `expression` reads can be read at the node `at`."""
        scope = self._scope(at)
        for name in reads(expression):
            if hasattr(builtins, name) or (scope is not None and _bound(scope, name)):
                continue
            raise Refused(f"`{name}` is not known where the rewrite would use it")


def _taken(scope: Scope | None, name: str) -> bool:
    return scope is not None and any(True for _ in scope[name])


def _bound(scope: Scope, name: str) -> bool:
    return any(True for _ in scope[name]) or ("*" in _stars(scope.globals))


def _stars(scope: Scope) -> set[str]:
    """ "*" if the module imports all names of another one."""
    found: set[str] = set()
    if isinstance(scope, GlobalScope):
        for assignment in scope.assignments:
            if isinstance(getattr(getattr(assignment, "node", None), "names", None), cst.ImportStar):
                found.add("*")
    return found


def reads(expression: cst.CSTNode) -> Iterator[str]:
    """The names that an expression reads; attributes and keywords of calls are none."""
    todo = [expression]
    while todo:
        node = todo.pop()
        if isinstance(node, cst.Name):
            yield node.value
        elif isinstance(node, (cst.Attribute, cst.Arg)):
            todo.append(node.value)
        else:
            todo += node.children
