"""Evaluation of expressions, and assignment to targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from acclint import program as p
from acclint.knowledge import names
from acclint.simulate import values as v
from acclint.simulate.conditions import Conditions
from acclint.simulate.core import Frame
from acclint.simulate.iteration import LIST_TURNS
from acclint.simulate.operators import modulus_of
from acclint.simulate.scan import text
from acclint.simulate.trace import Guard, Loop
from acclint.simulate.values import (
    NO_ROOTS,
    ClassValue,
    Closure,
    Imported,
    Instance,
    Loader,
    Maybe,
    Module,
    Num,
    Opaque,
    Param,
    ParamSet,
    Range,
    Stream,
    Tensor,
    Value,
    numeric,
    roots_of,
)


class Enough(Exception):
    """A generator has yielded as much as is worth running."""


# Larger accumulation steps are simulated by smaller ones, although the file fixes them.
MAX_LITERAL = 32
_NAMED = (v.Optimizer, v.Scheduler, v.Module, Instance, v.Accelerator, v.Scaler, Loader, v.LossFunction)
_OBJECTS = frozenset(
    (
        Tensor,
        v.Module,
        Instance,
        v.Optimizer,
        v.Scheduler,
        v.Scaler,
        v.Accelerator,
        v.Fabric,
        v.Engine,
        v.Grad,
        Param,
        ParamSet,
        Loader,
        Stream,
        Closure,
        ClassValue,
        Imported,
        v.Bound,
        v.Partial,
        v.LossFunction,
        v.Dataset,
        Range,
        v.Delta,
    )
)


class Expressions(Conditions):
    """The expressions of the small program."""

    def eval(self, expr: p.Expr, frame: Frame) -> Value:
        return _EXPRESSIONS[type(expr)](self, expr, frame)

    def eval_const(self, expr: p.Const, frame: Frame) -> Value:
        return expr.value

    def eval_name(self, expr: p.Name, frame: Frame) -> Value:
        return self.lookup(expr.id, frame)

    def eval_extern(self, expr: p.Extern, frame: Frame) -> Value:
        return self.linked(p.file_of(expr.span), expr.path)

    def eval_attr(self, expr: p.Attr, frame: Frame) -> Value:
        return self.attribute(self.eval(expr.value, frame), expr.name, expr.span)

    def eval_index(self, expr: p.Index, frame: Frame) -> Value:
        value = self.eval(expr.value, frame)
        index = self.eval(expr.index, frame)
        return self.item(value, index, expr.span)

    def eval_slice(self, expr: p.Slice, frame: Frame) -> Value:
        parts = [self.eval(part, frame) if part is not None else None for part in (expr.lower, expr.upper, expr.step)]
        return ("slice", *parts)

    def eval_call(self, expr: p.Call, frame: Frame) -> Value:
        func = expr.func
        if type(func) is p.Name and func.id == "super" and frame.self_value is not None:
            return v.Bound(frame.self_value, "<super>")
        callee = self.eval(func, frame)
        args: list[Value] = []
        for arg in expr.args:
            if type(arg) is p.Star:
                spread = self.eval(arg.value, frame)
                if isinstance(spread, (list, tuple)):
                    args.extend(spread)
                else:
                    args.append(spread)
            else:
                args.append(self.eval(arg, frame))
        keywords: dict[str, Value] = {}
        for name, value in expr.keywords:
            if name is None:
                spread = self.eval(value, frame)
                if isinstance(spread, dict):
                    keywords.update({key: one for key, one in spread.items() if isinstance(key, str)})
                    rest = [one for key, one in spread.items() if not isinstance(key, str)]
                    if rest:
                        keywords["**"] = rest
                else:
                    keywords["**"] = spread
            else:
                keywords[name] = self.eval(value, frame)
        return self.call(callee, args, keywords, expr, frame)

    def eval_binary(self, expr: p.Binary, frame: Frame) -> Value:
        left = self.eval(expr.left, frame)
        right = self.eval(expr.right, frame)
        return self.binary(expr.op, left, right, expr.span)

    def eval_unary(self, expr: p.Unary, frame: Frame) -> Value:
        value = self.eval(expr.operand, frame)
        if expr.op == "-" and type(value) is Opaque and not value.graph and not value.batch and not value.owners:
            return self.opaque(f"-{value.key}", value.name)
        if expr.op == "not":
            kind = type(value)
            if kind is Maybe:
                return Maybe(value.key, not value.negated, expr.span)
            if kind is Num:
                return Num(not value.v, value.roots, expr.span, value.modulus)
            if kind is Opaque:
                if value.key in self.numbers:
                    return False
                return Maybe(value.key, True, expr.span)
            if kind is Tensor or kind in (v.Module, Instance, v.Optimizer):
                return False
            try:
                return not value
            except TypeError:
                return False
        number = numeric(value)
        if number is not None:
            if expr.op == "-":
                return Num(-number, roots_of(value), expr.span, modulus_of(value)) if type(value) is Num else -number
            return value
        if type(value) is Tensor and expr.op == "-" and value.terms is not None:
            return self.scaled(value, -1)
        return value

    def eval_compare(self, expr: p.Compare, frame: Frame) -> Value:
        left = self.eval(expr.left, frame)
        result: Value = True
        for op, right_expr in zip(expr.ops, expr.rights, strict=True):
            right = self.eval(right_expr, frame)
            one = self.compare(op, left, right, expr)
            if one is False or (type(one) is Num and not one.v):
                return one
            if type(one) in (Maybe, Num, Opaque) and result is True:
                result = one
            left = right
        return result

    def eval_bool(self, expr: p.Bool, frame: Frame) -> Value:
        is_and = expr.op == "and"
        value: Value = None
        unknown: list[Value] = []
        modulus = None
        roots: frozenset[str] = NO_ROOTS
        for part in expr.values:
            value = self.eval(part, frame)
            kind = type(value)
            if kind is Maybe or (kind is Opaque and not value.graph):
                unknown.append(value)
                continue
            if kind is Num:
                modulus = modulus or value.modulus
                roots |= value.roots
            truth = bool(value.v) if kind is Num else (True if kind in _OBJECTS else bool(value))
            if truth != is_and:
                return value
        if unknown:
            alike = all(type(one) is Opaque and one.name == unknown[0].name for one in unknown)
            if alike and not is_and:
                return unknown[0]  # `loader or self.loader`
            if len(unknown) == 1 and len(expr.values) == 1:
                return unknown[0]
            key = f" {expr.op} ".join(self.key(one) for one in unknown)
            if len(unknown) == 1 and type(unknown[0]) is Maybe:
                return unknown[0]
            return Maybe(key, False, expr.span)
        if modulus is not None and type(value) in (Num, bool):
            return Num(numeric(value), roots, expr.span, modulus)
        return value

    def eval_ifelse(self, expr: p.IfElse, frame: Frame) -> Value:
        guard = Guard(expr.test.span, True)
        if self.decide(expr.test, frame, None, guard, lambda: True, None):
            return self.eval(expr.body, frame)
        return self.eval(expr.orelse, frame)

    def eval_sequence(self, expr: p.Sequence, frame: Frame) -> Value:
        items: list[Value] = []
        for item in expr.items:
            if type(item) is p.Star:
                spread = self.eval(item.value, frame)
                if isinstance(spread, (list, tuple)):
                    items.extend(spread)
                elif type(spread) in (Range, ParamSet, Stream):
                    items.extend(self.listed(spread))
                else:
                    items.append(spread)
            else:
                items.append(self.eval(item, frame))
        return tuple(items) if expr.kind == "tuple" else items

    def eval_mapping(self, expr: p.Mapping, frame: Frame) -> Value:
        made: dict[Any, Value] = {}
        for key, value in expr.items:
            one = self.eval(value, frame)
            if key is None:
                if isinstance(one, dict):
                    made.update(one)
                continue
            name = self.eval(key, frame)
            if isinstance(name, (str, int, float, bool, tuple)) or name is None:
                if isinstance(name, str):
                    one = self.tunable(one, f"{{{expr.span.row}:{expr.span.column}}}.{name}", name)
                try:
                    made[name] = one
                except TypeError:
                    continue
        return made

    def eval_comprehension(self, expr: p.Comprehension, frame: Frame) -> Value:
        inner = Frame(frame)
        inner.self_value, inner.cls = frame.self_value, frame.cls
        made: list[Value] = []
        self._clauses(expr, 0, inner, made)
        if expr.kind == "dict":
            result: dict[Any, Value] = {}
            for pair in made:
                if isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], (str, int, Param)):
                    result[self.dict_key(pair[0])] = pair[1]
                else:
                    key, value = pair if isinstance(pair, tuple) and len(pair) == 2 else ("", pair)
                    result[v.AnyKey(f"{self.key(key)}#{len(result)}")] = value
            return result
        if expr.kind == "generator":
            feeds = any(type(item) is Opaque and item.batch for item in made[:1])
            return Stream(iter(made), len(made), feeds)
        return made

    def _clauses(self, expr: p.Comprehension, at: int, frame: Frame, made: list[Value]) -> None:
        if at == len(expr.clauses):
            made.append(self.eval(expr.element, frame))
            return
        clause = expr.clauses[at]
        value = self.eval(clause.iterable, frame)
        loop = Loop(expr.span, self.entries, "list", "quiet")
        self.entries += 1
        self.loops.append(loop)
        try:
            self._clause(expr, at, frame, made, value, loop)
        finally:
            self.loops.pop()

    def _clause(
        self, expr: p.Comprehension, at: int, frame: Frame, made: list[Value], value: Value, loop: Loop
    ) -> None:
        clause = expr.clauses[at]
        items = self.listed(value)
        for item in items:
            loop.turn = loop.turns
            loop.turns += 1
            self.assign(clause.target, item, frame)
            keep = True
            for test in clause.tests:
                guard = Guard(test.span, True)
                if not self.decide(test, frame, None, guard, lambda: True, None):
                    keep = False
                    break
            if keep:
                self._clauses(expr, at + 1, frame, made)
            last = made[-1] if made else None
            many = loop.turns >= self.many_turns()
            if len(made) >= LIST_TURNS or (many and type(last) in (Module, Instance)):
                return
            called = many and type(value) is Range and isinstance(expr.element, p.Call) and len(made) == loop.turns
            if called and isinstance(last, (Opaque, tuple, list, dict)) and not self.graph_owners([last]):
                made += [last] * (min(len(items), LIST_TURNS) - len(made))  # A few results stand for all.
                return

    def eval_lambda(self, expr: p.Lambda, frame: Frame) -> Value:
        return Closure(expr.function, frame)

    def eval_text(self, expr: p.Text, frame: Frame) -> Value:
        return "<text>"

    def eval_walrus(self, expr: p.Walrus, frame: Frame) -> Value:
        value = self.eval(expr.value, frame)
        self.assign(expr.target, value, frame)
        return value

    def eval_await(self, expr: p.Await, frame: Frame) -> Value:
        return self.eval(expr.value, frame)

    def eval_yield(self, expr: p.Yield, frame: Frame) -> Value:
        value = self.eval(expr.value, frame) if expr.value is not None else None
        scope: Frame | None = frame
        while scope is not None and scope.yields is None:
            scope = scope.parent
        if scope is not None and scope.yields is not None:
            if expr.many:
                scope.yields.extend(self.listed(value))
            else:
                scope.yields.append(value)
            if len(scope.yields) >= 3 * self.world.turns(self.assignment):
                raise Enough
        return None

    def eval_star(self, expr: p.Star, frame: Frame) -> Value:
        return self.eval(expr.value, frame)

    def eval_unknown(self, expr: p.Expr, frame: Frame) -> Value:
        return self.opaque(f"value:{expr.span.row}:{expr.span.column}", "<value>")

    def assign(self, target: p.Expr, value: Value, frame: Frame) -> None:
        kind = type(target)
        if type(value) is Opaque and value.batch == v.SOME_DATA and names.is_loader_name(text(target)):
            value = self.opaque(value.key, text(target).rpartition(".")[2])  # `self.train_loader = data["train"]`
        if kind is p.Name:
            assert isinstance(target, p.Name)
            if type(value) is Opaque and value.name.startswith("<"):
                value.name = target.id
                self.recognise(value)
            elif type(value) is Opaque and value.graph and names.is_index_name(target.id):
                value = self.opaque(value.key, target.id, batch=value.batch)
            elif type(value) is Opaque and value.hint == "forward" and _is_plain_loss(target.id):
                value.hint = "output"  # `loss = model(x, y)`, `for loss in model(x, y).values()`
            elif type(value) in _NAMED and value.name[:1] in "<":
                value.name = target.id
            elif type(value) is Num and self.world.is_accumulation(target.id) and target.id not in self.world.counters:
                value = self.as_steps(value)
            elif type(value) is int and value > MAX_LITERAL:
                value = self.tunable(value, f"@{target.id}", target.id, only_steps=True)
            scope = frame.outer.get(target.id, frame)
            scope.vars[target.id] = value
        elif kind is p.Attr:
            assert isinstance(target, p.Attr)
            steps = type(value) is Num and self.world.is_accumulation(target.name)
            if steps and text(target) not in self.world.counters:
                value = self.as_steps(value)
            self.store_attribute(self.eval(target.value, frame), target.name, value, target.span)
        elif kind is p.Index:
            assert isinstance(target, p.Index)
            base, index = self.eval(target.value, frame), self.eval(target.index, frame)
            self.store_item(base, index, value, target.span, text(target.value))
        elif kind is p.Sequence:
            assert isinstance(target, p.Sequence)
            self.unpack(target.items, value, frame)
        elif kind is p.Star:
            assert isinstance(target, p.Star)
            self.assign(target.value, value, frame)

    def unpack(self, targets: tuple[p.Expr, ...], value: Value, frame: Frame) -> None:
        stars = [i for i, target in enumerate(targets) if type(target) is p.Star]
        items = self.items_for_unpacking(value, len(targets), bool(stars))
        given = value.attrs.get("<given>") if type(value) is Opaque else None
        if given:
            # `model, optimizer = setup(model, optimizer)`: what comes back under its own name is the same thing.
            items = [given.get(text(target), item) for target, item in zip(targets, items, strict=False)]
        if type(value) is Opaque and value.graph and value.hint == "forward":
            for target, item in zip(targets, items, strict=False):
                if type(item) is Opaque and _is_plain_loss(text(target)):
                    item.hint = "output"  # `_, train_loss = model(batch)`, as `model(batch)[0]`
        if stars and len(items) >= len(targets) - 1:
            at = stars[0]
            tail = len(targets) - at - 1
            middle = items[at : len(items) - tail]
            items = [*items[:at], middle, *items[len(items) - tail :]]
        for i, target in enumerate(targets):
            self.assign(target, items[i] if i < len(items) else self.beyond(items, i, target), frame)

    def beyond(self, items: list[Value], at: int, target: p.Expr) -> Opaque:
        """What is unpacked behind the items that an abstract run knows of: like the last of them, and nothing else."""
        last = items[-1] if items else None
        like = last if type(last) is Opaque else None
        key = f"{like.key if like is not None else text(target)}#{at}"
        made = self.opaque(key, "<item>")
        if like is not None:
            made.batch, made.graph, made.owners = like.batch, like.graph, like.owners
        return made

    def items_for_unpacking(self, value: Value, count: int, starred: bool) -> list[Value]:
        if isinstance(value, (tuple, list)):
            return list(value)
        if isinstance(value, dict):
            return list(value)
        if type(value) is Stream:
            return self.drain(value, max(count, 8) if starred else count)
        return [self.item(value, i) for i in range(count)]


def _is_plain_loss(name: str) -> bool:
    return names.is_loss_name(name) and {"sum", "scaled", "total", "summed"}.isdisjoint(names.words(name))


_EXPRESSIONS: dict[type, Callable[[Expressions, Any, Frame], Value]] = {
    p.Const: Expressions.eval_const,
    p.Name: Expressions.eval_name,
    p.Extern: Expressions.eval_extern,
    p.Attr: Expressions.eval_attr,
    p.Index: Expressions.eval_index,
    p.Slice: Expressions.eval_slice,
    p.Call: Expressions.eval_call,
    p.Binary: Expressions.eval_binary,
    p.Unary: Expressions.eval_unary,
    p.Compare: Expressions.eval_compare,
    p.Bool: Expressions.eval_bool,
    p.IfElse: Expressions.eval_ifelse,
    p.Sequence: Expressions.eval_sequence,
    p.Mapping: Expressions.eval_mapping,
    p.Comprehension: Expressions.eval_comprehension,
    p.Lambda: Expressions.eval_lambda,
    p.Text: Expressions.eval_text,
    p.Walrus: Expressions.eval_walrus,
    p.Await: Expressions.eval_await,
    p.Yield: Expressions.eval_yield,
    p.Star: Expressions.eval_star,
    p.Unknown: Expressions.eval_unknown,
}
