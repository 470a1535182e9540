"""Rewrites the syntax of a slice so that its statements can meet stand-ins. Rows and columns stay as they are.

The helpers that it puts in are called `__acc__` (`program.Helpers`).
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from acclint.probe.slices.allowed import REPLACED
from acclint.probe.slices.standins import World


class Rewrite(ast.NodeTransformer):
    """Puts the helpers where the slice may meet a stand-in. Rows stay as they are."""

    def __init__(self, world: World, lenient: bool) -> None:
        self.world = world
        self.k_names = frozenset(world.spec["k_names"])
        self.lenient = lenient
        self.chain = frozenset(world.spec["chain"])
        self.training = 0  # how many loops that move gradients are around what is visited

    def call(self, name: str, node: ast.expr, *arguments: ast.expr) -> ast.expr:
        made = ast.Call(_helper(name, node), [node, *arguments], [])
        return ast.fix_missing_locations(ast.copy_location(made, node))

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if isinstance(node.ctx, ast.Load) and node.id in self.k_names:
            return self.call("k", node, ast.Constant(node.id))
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Load) and node.attr in self.k_names:
            return self.call("k", node, ast.Constant(node.attr))
        if isinstance(node.ctx, ast.Load) and node.attr == "__dict__":
            return self.call("attributes", node.value)
        if isinstance(node.ctx, ast.Load) and node.attr in REPLACED:
            return self.call("replaced", node.value, ast.Constant(node.attr))
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        key = node.slice.value if isinstance(node.slice, ast.Constant) else None
        if isinstance(node.ctx, ast.Load) and isinstance(key, str) and key in self.k_names:
            return self.call("k", node, ast.Constant(key))
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        other = node.comparators[0]
        if len(node.ops) == 1 and isinstance(other, ast.Constant) and other.value is None:
            if isinstance(node.ops[0], ast.Is):
                return self.call("is_none", node.left)
            if isinstance(node.ops[0], ast.IsNot):
                return self.call("negate", self.call("is_none", node.left))
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        return self.call("negate", node.operand) if isinstance(node.op, ast.Not) else node

    def visit_If(self, node: ast.If) -> ast.AST:
        body, orelse = self._moves(node.body), self._moves(node.orelse)
        jumps = isinstance(node.body[-1], (ast.Continue, ast.Break, ast.Return, ast.Raise))
        if body or orelse:
            self._want(node.test, body and not orelse)
        else:  # the first of several choices; but nothing that is only done at times
            self._want(node.test, bool(node.orelse) and not jumps)
        self.generic_visit(node)
        return node

    def visit_While(self, node: ast.While) -> ast.AST:
        trains = self._moves(node.body)
        self.world.whiles.update(range(node.test.lineno, (node.test.end_lineno or node.test.lineno) + 1))
        self.training += trains
        self.generic_visit(node)
        self.training -= trains
        return node

    def _want(self, test: ast.expr, value: bool) -> None:
        for row in range(test.lineno, (test.end_lineno or test.lineno) + 1):
            self.world.wanted[row] = value

    def _moves(self, body: Sequence[ast.stmt]) -> bool:
        """Whether statements move gradients, or call what does."""
        return any(_moves(node, self.chain) for statement in body for node in ast.walk(statement))

    def visit_Assign(self, node: ast.Assign) -> Any:
        self.generic_visit(node)
        target = node.targets[0]
        if len(node.targets) == 1 and not isinstance(node.value, (ast.Constant, ast.Lambda)):
            shape = _shape(target)
            if isinstance(shape, tuple):
                if isinstance(node.value, (ast.Tuple, ast.List)):
                    if len(shape) == len(node.value.elts):
                        node.value.elts = [self._named(v, s) for v, s in zip(node.value.elts, shape, strict=True)]
                else:
                    node.value = self.call("unpack", node.value, _literal(shape))
            elif shape:
                node.value = self._named(node.value, shape)
        return self._tolerant(node)

    def _named(self, value: ast.expr, name: Any) -> ast.expr:
        if name and isinstance(name, str) and isinstance(value, (ast.Call, ast.Attribute, ast.Subscript, ast.Name)):
            return self.call("named", value, ast.Constant(name))
        return value

    def visit_Expr(self, node: ast.Expr | ast.AugAssign) -> Any:
        self.generic_visit(node)
        return self._tolerant(node)

    visit_AugAssign = visit_Expr

    def visit_For(self, node: ast.For) -> ast.AST:
        inner = [n for n in ast.walk(node) if isinstance(n, (ast.For, ast.While)) and n is not node]
        trains = self._moves(node.body)
        innermost = trains and not any(self._moves(n.body) for n in inner)
        shape = _shape(node.target)
        self.training += trains
        self.generic_visit(node)
        self.training -= trains
        node.iter = self.call(
            "each",
            node.iter,
            _literal(shape) if isinstance(shape, tuple) else ast.Constant(None),
            ast.Constant(innermost),
        )
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        node.decorator_list.insert(0, _helper("cls", node))
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        if node.name in self.world.spec["decorated"]:
            node.decorator_list.append(_helper("filled", node))
        return node

    def _tolerant(self, node: ast.stmt) -> Any:
        """A statement that moves no gradient may fail where there are stand-ins: then its value is one, too."""
        if not self.lenient or any(_moves(n, self.chain) for n in ast.walk(node)):
            return node
        if any(isinstance(n, (ast.Yield, ast.YieldFrom, ast.Await, ast.NamedExpr)) for n in ast.walk(node)):
            return node
        row = ast.Constant(node.lineno)
        handler: list[ast.stmt] = []
        if isinstance(node, ast.Assign):
            for target in node.targets:
                shape = _shape(target)
                name = shape if isinstance(shape, str) and shape else "value"
                value = self.call("failed", row, ast.Constant(name), ast.Constant(False))
                if isinstance(shape, tuple):
                    value = self.call("unpack", value, _literal(shape))
                handler.append(ast.Assign([target], value))
        else:
            handler.append(
                ast.Expr(self.call("failed", row, ast.Constant("statement"), ast.Constant(self.training > 0)))
            )
        made = ast.Try([node], [ast.ExceptHandler(ast.Name("__acc_error__", ast.Load()), None, handler)], [], [])
        return ast.fix_missing_locations(ast.copy_location(made, node))


def _helper(name: str, node: ast.expr | ast.stmt) -> ast.expr:
    """A method of `program.Helpers`, at the place of a node."""
    function = ast.Attribute(ast.Name("__acc__", ast.Load()), name, ast.Load())
    return ast.fix_missing_locations(ast.copy_location(function, node))


def _moves(node: ast.AST, chain: frozenset[str]) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name in chain or name in ("backward", "manual_backward", "step", "zero_grad", "unscale_", "grad")


def _shape(target: ast.expr) -> Any:
    """The name that a target binds, a tuple of them, or "" for another kind."""
    if isinstance(target, (ast.Tuple, ast.List)):
        if any(isinstance(e, ast.Starred) for e in target.elts):
            return ""
        return tuple(_shape(e) for e in target.elts)
    if isinstance(target, ast.Name):
        return target.id
    if isinstance(target, ast.Attribute):
        return target.attr
    return ""


def _literal(shape: Any) -> ast.expr:
    if isinstance(shape, tuple):
        return ast.Tuple([_literal(s) for s in shape], ast.Load())
    return ast.Constant(shape)
