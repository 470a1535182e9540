"""The abstract machine: runs the small program, statement by statement, with abstract values.

This file is the Python half (scopes, control flow, calls, numbers, unknown conditions); what torch and the frameworks do
when they are called is in `library.py`. The machine writes a `Run`.
"""

from __future__ import annotations

import operator
import re
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

from acclint import program as p
from acclint.knowledge import names, optimizers
from acclint.knowledge.norms import is_batchnorm_layer
from acclint.program import NOWHERE, Span
from acclint.simulate import values as v
from acclint.simulate.ledger import Ledger
from acclint.simulate.library import Library
from acclint.simulate.scan import text
from acclint.simulate.trace import Condition, Event, Guard, Loop, Run
from acclint.simulate.values import (
    NO_ROOTS,
    NOBODY,
    ClassValue,
    Closure,
    Imported,
    Instance,
    Loader,
    Maybe,
    Num,
    Opaque,
    Owner,
    Param,
    ParamSet,
    PyRaise,
    Range,
    Stream,
    Tensor,
    Value,
    numeric,
    roots_of,
)
from acclint.simulate.world import Assignment, Stop, World

STEP_BUDGET = 60_000
DEPTH = 14
KEY_LENGTH = 240
_QUIET_TURNS = 2
_LIST_TURNS = 64

BREAK, CONTINUE, RETURN = "break", "continue", "return"


class Frame:
    """One scope. `parent` is the enclosing scope for reading."""

    __slots__ = ("cls", "function", "outer", "parent", "result", "self_value", "vars", "yields")

    def __init__(self, parent: Frame | None, function: p.Function | None = None) -> None:
        self.vars: dict[str, Value] = {}
        self.parent = parent
        self.function = function
        self.outer: dict[str, Frame] = {}
        self.result: Value = None
        self.yields: list[Value] | None = None
        self.self_value: Value = None
        self.cls: ClassValue | None = None


_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
    "<<": operator.lshift,
    ">>": operator.rshift,
    "&": operator.and_,
    "|": operator.or_,
    "^": operator.xor,
}
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Machine(Library):
    """Runs one program under one assignment and one set of choices."""

    def __init__(self, world: World, assignment: Assignment, choices: dict[str, bool]) -> None:
        self.world = world
        self.scanner = world.scanner
        self.assignment = assignment
        self.choices = choices
        self.run = Run()
        self.ledger = Ledger()
        self.path: list[Span] = []
        self.loops: list[Loop] = []
        self.guards: list[Guard] = []
        self.grad_enabled = True
        self.numbers: dict[str, Num] = {}
        self.called: set[int] = set()
        self.stack: list[p.Function] = []
        self.budget = STEP_BUDGET
        self.entries = 0
        self.batches = 0
        self.inventions = 0
        self.deciding = True
        self.compared: dict[Span, tuple[Value, Value]] = {}
        self.globals = Frame(None)
        self.owners: dict[str, Owner] = {}
        self.templates: dict[Any, Value] = {}
        self.last_batch = False
        self.evaluations: dict[Span, int] = {}
        self.wild: dict[Owner, v.Optimizer] = {}
        self.replaying = 0
        self.sent: dict[int, tuple[Tensor, int]] = {}
        self.engine_driven: list[tuple[Closure, Value]] = []
        self.instances: dict[str, Instance] = {}
        self.parameters: dict[Owner, Param] = {}
        self.attached: dict[tuple[Owner, str], Value] = {}
        self.sources: dict[int, tuple[int, Value]] = {}  # what parts were cut from, by identity
        self.taken: dict[tuple[int, v.Number], int] = {}
        self.frozen: set[Owner] = set()
        self.layers: dict[Span, list[Owner]] = {}  # BatchNorm layers by the place that makes them
        self.always: set[Span] = set()  # those without running statistics
        self.norms_off: set[Owner] = set()  # modules whose BatchNorm layers a loop puts into eval mode
        self.normless: set[Owner] = set()  # modules whose BatchNorm layers are replaced
        self.evaluating: set[Owner] = set()
        self.outputs: dict[int, tuple[Value, v.Term]] = {}

    # --- unknown numbers ---------------------------------------------------------------------------------------------

    def number(self, key: str, name: str, role: str = "") -> Num:
        """The number of the unknown `key` in this run."""
        kept = self.numbers.get(key)
        if kept is None:
            if role:
                self.world.roles.setdefault(key, role)
            kind = self.world.role_of(key, name)
            kept = Num(self.world.number(key, kind, self.assignment, len(self.numbers)), frozenset((key,)))
            self.numbers[key] = kept
            self.run.numbers[key] = kept.v
            if kind == "k":
                self.run.k_names[key] = kept.v
        return kept

    def as_number(self, value: Value) -> Value:
        """`value` if it is a number; an unknown without a graph becomes the number of its key; else None."""
        if numeric(value) is not None:
            return value
        if type(value) is Opaque and not value.graph:
            return self.number(value.key, value.name)
        return None

    def is_k(self, value: Value) -> bool:
        """Whether a number is the accumulation steps by name or by role."""
        return any(self.world.role_of(root, root.rpartition(".")[2].strip("'\"[]")) == "k" for root in roots_of(value))

    def derived(self, result: Any, span: Span, *sources: Value) -> Value:
        """A number computed from others: a plain one if no source depends on an unknown."""
        roots = NO_ROOTS.union(*(roots_of(source) for source in sources))
        if not roots:
            return result
        role = self.world.overrides.get(span)
        if role is not None:
            return self.number(f"@{span.row}:{span.column}", "", role)
        return Num(result, roots, span)

    # --- events ------------------------------------------------------------------------------------------------------

    def event(self, kind: str, span: Span, **data: Any) -> Event:
        loops = tuple((loop, loop.turn) for loop in self.loops)
        event = Event(kind, len(self.run.events), span, tuple(self.path), loops, tuple(self.guards), data)
        self.run.events.append(event)
        return event

    # --- scopes ------------------------------------------------------------------------------------------------------

    def lookup(self, name: str, frame: Frame) -> Value:
        scope: Frame | None = frame
        while scope is not None:
            outer = scope.outer.get(name)
            if outer is not None:
                scope = outer
            if name in scope.vars:
                return scope.vars[name]
            scope = scope.parent
        if name == "__name__":
            return "__main__"
        if name in _BUILTINS:
            return Imported("builtins." + name)
        kept = self.globals.vars[name] = self.opaque(f"{name}", name)
        return kept

    def opaque(self, key: str, name: str, **options: Any) -> Opaque:
        if len(key) > KEY_LENGTH:
            key = f"{key[:80]}...{zlib.crc32(key.encode()):08x}"
        return Opaque(key, name, **options)

    def assign(self, target: p.Expr, value: Value, frame: Frame) -> None:
        kind = type(target)
        if kind is p.Name:
            assert isinstance(target, p.Name)
            if type(value) is Opaque and value.name.startswith("<"):
                value.name = target.id
                self.recognise(value)
            elif type(value) in _NAMED and value.name[:1] in "<":
                value.name = target.id
            elif type(value) is Num and self.world.is_accumulation(target.id):
                value = self.as_steps(value)
            scope = frame.outer.get(target.id, frame)
            scope.vars[target.id] = value
        elif kind is p.Attr:
            assert isinstance(target, p.Attr)
            if type(value) is Num and self.world.is_accumulation(target.name):
                value = self.as_steps(value)
            self.store_attribute(self.eval(target.value, frame), target.name, value, target.span)
        elif kind is p.Index:
            assert isinstance(target, p.Index)
            self.store_item(self.eval(target.value, frame), self.eval(target.index, frame), value, target.span)
        elif kind is p.Sequence:
            assert isinstance(target, p.Sequence)
            self.unpack(target.items, value, frame)
        elif kind is p.Star:
            assert isinstance(target, p.Star)
            self.assign(target.value, value, frame)

    def as_steps(self, value: Num) -> Value:
        """A computed number that is given the name of the accumulation steps: it must be a usable window."""
        if value.roots and value.born != NOWHERE and value.modulus is None and not 2 <= value.v <= 12:
            self.world.learn(self.world.overrides, value.born, "k")
        return value

    def unpack(self, targets: tuple[p.Expr, ...], value: Value, frame: Frame) -> None:
        stars = [i for i, target in enumerate(targets) if type(target) is p.Star]
        items = self.items_for_unpacking(value, len(targets), bool(stars))
        given = value.attrs.get("<given>") if type(value) is Opaque else None
        if given:
            # `model, optimizer = setup(model, optimizer)`: what comes back under its own name is the same thing.
            items = [given.get(text(target), item) for target, item in zip(targets, items, strict=False)]
        if stars and len(items) >= len(targets) - 1:
            at = stars[0]
            tail = len(targets) - at - 1
            middle = items[at : len(items) - tail]
            items = [*items[:at], middle, *items[len(items) - tail :]]
        for i, target in enumerate(targets):
            self.assign(target, items[i] if i < len(items) else self.opaque("?", "<item>"), frame)

    def items_for_unpacking(self, value: Value, count: int, starred: bool) -> list[Value]:
        if isinstance(value, (tuple, list)):
            return list(value)
        if isinstance(value, dict):
            return list(value)
        if type(value) is Stream:
            return self.drain(value, max(count, 8) if starred else count)
        return [self.item(value, i) for i in range(count)]

    # --- statements --------------------------------------------------------------------------------------------------

    def block(self, body: tuple[p.Stmt, ...], frame: Frame) -> str | None:
        depth = len(self.guards)
        try:
            for stmt in body:
                signal = self.statement(stmt, frame)
                if signal is not None:
                    return signal
            return None
        finally:
            del self.guards[depth:]

    def statement(self, stmt: p.Stmt, frame: Frame) -> str | None:
        self.budget -= 1
        if self.budget < 0:
            raise Stop("the loop is too large to be run in the abstract")
        return _STATEMENTS[type(stmt)](self, stmt, frame)

    def do_assign(self, stmt: p.Assign, frame: Frame) -> None:
        value = self.eval(stmt.value, frame)
        if type(value) is Tensor or type(value) is Opaque:
            self.watch_division(stmt, value, frame)
        for target in stmt.targets:
            self.assign(target, value, frame)
            if type(value) is Tensor:
                self.watch_growth(stmt.span, text(target), value)

    def do_augment(self, stmt: p.Augment, frame: Frame) -> None:
        target = stmt.target
        if type(target) is p.Attr and target.name in ("grad", "data"):  # type: ignore[attr-defined]
            base = self.eval(target.value, frame)  # type: ignore[attr-defined]
            if self.augment_gradient(base, target.name, stmt.op, self.eval(stmt.value, frame), stmt.span):  # type: ignore[attr-defined]
                return
        old = self.eval(target, frame)
        new = self.eval(stmt.value, frame)
        if type(old) is Param and self.augment_parameter(old, stmt.op, new, stmt.span):
            return
        if type(old) is v.Grad and not old.shared and stmt.op in ("+", "-", "*", "/"):
            changed = self.binary(stmt.op, old, new, stmt.span, augmented=True)
            if type(changed) is v.Grad:
                # In place: every name and container sees it.
                old.row, old.read, old.added = changed.row, changed.read, changed.added
                self.assign(target, old, frame)
                return
        if isinstance(old, list) and stmt.op == "+":
            if isinstance(new, (list, tuple)):
                old.extend(new[:_LIST_TURNS])
                self.watch_kept(stmt.span, new[:4], old, text(target))
            return
        value = self.binary(stmt.op, old, new, stmt.span, augmented=True)
        if type(value) is Tensor:
            self.watch_division(stmt, value, frame)
        self.assign(target, value, frame)
        if type(value) is Tensor:
            self.watch_growth(stmt.span, text(target), value)

    def do_expression(self, stmt: p.Do, frame: Frame) -> None:
        self.eval(stmt.value, frame)

    def do_if(self, stmt: p.If, frame: Frame) -> str | None:
        outcome, guard = self.condition(stmt.test, frame, lambda: self.desired(stmt), stmt)
        taken, other = (stmt.body, stmt.orelse) if outcome else (stmt.orelse, stmt.body)
        guard.outcome = outcome
        if guard.modulus is None and self.loops and not guard.unknown:
            self.threshold(stmt, guard)
        if guard.modulus is not None:
            self.event("test", stmt.test.span, outcome=outcome, modulus=guard.modulus, counter=guard.counter, stmt=stmt)
        self.guards.append(guard)
        signal = self.block(taken, frame)
        self.guards.pop()
        # `if not boundary: continue` guards the rest of the block.
        if signal is None and other and _ends_in_jump(other):
            self.guards.append(guard)
        return signal

    def threshold(self, stmt: p.If, guard: Guard) -> None:
        """A comparison of a counter of the file with a number, where it gates an update, is a window test."""
        jumps = _ends_in_jump(stmt.body)
        if "%" in text(stmt.test):
            return  # The remainder is the window test, the comparison beside it is something else.
        if "step" not in self.scanner.reach(stmt.body) and not (jumps and not self.scanner.has_events(stmt.body)):
            return
        todo: list[p.Expr] = [stmt.test]
        while todo:
            one = todo.pop(0)
            if isinstance(one, p.Unary) and one.op == "not":
                todo.append(one.operand)
            elif isinstance(one, p.Bool):
                todo += one.values
            elif isinstance(one, p.Compare) and len(one.ops) == 1 and one.span in self.compared:
                left, right = self.compared[one.span]
                if self.counts(one.left) == self.counts(one.rights[0]):
                    continue
                counter, bound, said = (
                    (left, right, one.rights[0]) if self.counts(one.left) else (right, left, one.left)
                )
                limit = numeric(bound)
                if not isinstance(limit, int) or isinstance(limit, bool) or limit < 2 or numeric(counter) is None:
                    continue
                if isinstance(said, p.Binary) and said.op == "-" and text(said.right) == "1":
                    # A counter from 0 that is compared with k - 1.
                    limit, said = limit + 1, said.left
                if not jumps and not roots_of(counter) and self.loops[-1].level == "micro":
                    self.learn_k(limit, roots_of(bound), in_test=True)
                guard.modulus, guard.counter, guard.bound = limit, counter, text(said)
                guard.roots |= roots_of(bound) | roots_of(counter)
                return

    def counts(self, expr: p.Expr) -> bool:
        """Whether an expression is a counter of the file, or one and a number."""
        if isinstance(expr, p.Binary) and expr.op in ("+", "-"):
            return self.counts(expr.left) or self.counts(expr.right)
        return isinstance(expr, (p.Name, p.Attr)) and text(expr) in self.world.counters

    def desired(self, stmt: p.If) -> bool:
        """The branch of an unknown condition to follow first: the one with events; no jumps."""
        scanner = self.scanner
        body_jumps, else_jumps = _ends_in_jump(stmt.body), bool(stmt.orelse) and _ends_in_jump(stmt.orelse)
        body_events, else_events = scanner.has_events(stmt.body), scanner.has_events(stmt.orelse)
        if body_jumps and else_jumps:
            return not isinstance(stmt.body[-1], p.Raise)
        if body_jumps and self._returns_choice(stmt.body):
            return True
        if body_jumps:
            return scanner.has_backward(stmt.body)
        if else_jumps:
            return True
        if else_events and not body_events:
            return False
        if not body_events and not stmt.orelse:
            return not _RESUMING.search(text(stmt.test))
        return True

    def _returns_choice(self, body: tuple[p.Stmt, ...]) -> bool:
        """`if name == "adam": return Adam(...)` in a factory: the first choice will do."""
        last = body[-1]
        return (
            isinstance(last, p.Return)
            and isinstance(last.value, (p.Call, p.Sequence))
            and bool(self.stack)
            and not self.scanner.has_backward(self.stack[-1].body)
        )

    def condition(self, test: p.Expr, frame: Frame, desired: Callable[[], bool], stmt: p.Stmt) -> tuple[bool, Guard]:
        guard = Guard(test.span, True)
        outcome = self.decide(test, frame, None, guard, desired, stmt)
        return outcome, guard

    def decide(
        self,
        test: p.Expr,
        frame: Frame,
        want: bool | None,
        guard: Guard,
        desired: Callable[[], bool],
        stmt: p.Stmt | None,
    ) -> bool:
        """The truth of a test. Unknown parts are chosen so that the whole becomes `want`, and remembered."""
        if type(test) is p.Unary and test.op == "not":
            inner = test.operand
            flipped = None if want is None else not want
            return not self.decide(inner, frame, flipped, guard, lambda: not desired(), stmt)
        if type(test) is p.Bool:
            is_and = test.op == "and"
            for part in test.values:
                outcome = self.decide(part, frame, want, guard, desired, stmt)
                if outcome != is_and:
                    return outcome
            return is_and
        value = self.eval(test, frame)
        return self.truth(value, test, guard, desired if want is None else (lambda: bool(want)), stmt)

    def truth(
        self,
        value: Value,
        test: p.Expr,
        guard: Guard | None,
        desired: Callable[[], bool],
        stmt: p.Stmt | None = None,
    ) -> bool:
        kind = type(value)
        if kind is Num and not self.deciding:
            return bool(value.v)
        if kind is Num:
            if guard is not None:
                guard.roots |= value.roots
                if value.modulus is not None:
                    guard.modulus = value.modulus[0]
                    guard.roots |= value.modulus[1]
                    guard.counter = value.modulus[2]
                    frozen = self.frozen_counter(value, test, guard, desired, stmt)
                    if frozen is not None:
                        return frozen
                    self.learn_modulus(value.modulus, stmt)
            if value.modulus is None and value.roots - {"<size>"} and isinstance(stmt, p.If):
                return self.truth_of_size(value, test, guard, desired, stmt)
            return bool(value.v)
        if kind is bool or value is None or isinstance(value, (int, float, str, Fraction, tuple, list, dict)):
            return bool(value)
        if kind is Maybe:
            chosen = self.choose(value.key, test.span, lambda: desired() != value.negated, stmt)
            if guard is not None:
                guard.unknown, guard.key = True, value.key
            return chosen != value.negated
        if kind is Opaque:
            if guard is not None:
                guard.unknown, guard.key = True, value.key
            known = self.numbers.get(value.key)
            if known is not None and known.v != 0:
                return True
            return self.choose(value.key, test.span, desired, stmt)
        if kind is Stream:
            return True
        return True

    def truth_of_size(
        self, value: Num, test: p.Expr, guard: Guard | None, desired: Callable[[], bool], stmt: p.If
    ) -> bool:
        """A comparison with an unknown size: its outcome in this run says nothing, unless the size is the window's."""
        roles = {self.role_of_root(root) for root in value.roots}
        if not roles <= {"", "limit", "batch", "interval", "world"}:
            return bool(value.v)
        scanner = self.scanner
        steps = "step" in scanner.reach(stmt.body) or "step" in scanner.reach(stmt.orelse)
        if steps and not scanner.has_backward(stmt.body) and not scanner.has_backward(stmt.orelse):
            if roles == {""} and len(value.roots) == 1 and self.loops:
                self.world.learn(self.world.roles, next(iter(value.roots)), "k")
            if "batch" in roles or "" in roles:
                return bool(value.v)
        key = text(test)
        if guard is not None:
            guard.unknown, guard.key = True, key
        return self.choose(key, test.span, desired, stmt)

    def frozen_counter(
        self, value: Num, test: p.Expr, guard: Guard, desired: Callable[[], bool], stmt: p.Stmt | None
    ) -> bool | None:
        """A remainder of a counter that this file never raises: somebody else counts.

        Where it gates an update it is taken to be true on every k-th evaluation; elsewhere it is an unknown condition.
        """
        assert value.modulus is not None
        divisor, _, counter = value.modulus
        unknown = {root for root in roots_of(counter) if self.role_of_root(root) in ("", "limit", "epochs")}
        if not unknown or not isinstance(stmt, p.If):
            return None
        guard.unknown, guard.key = True, text(test)
        steps = "step" in self.scanner.reach(stmt.body) or "step" in self.scanner.reach(stmt.orelse)
        if not steps or not self.loops or self.scanner.has_backward(stmt.body):
            return self.choose(guard.key, test.span, desired, stmt)
        turn = self.evaluations[test.span] = self.evaluations.get(test.span, 0) + 1
        boundary = isinstance(divisor, int) and divisor > 0 and turn % divisor == 0
        equal = isinstance(test, p.Compare) and test.ops == ("==",)
        return boundary if equal or not isinstance(test, p.Compare) else not boundary

    def role_of_root(self, root: str) -> str:
        return self.world.role_of(root, root.rpartition(".")[2].strip("'\"[]"))

    def choose(self, key: str, span: Span, desired: Callable[[], bool], stmt: p.Stmt | None) -> bool:
        known = self.run.conditions.get(key)
        matters = False
        if stmt is not None and isinstance(stmt, p.If):
            body, orelse = self.scanner.has_events(stmt.body), self.scanner.has_events(stmt.orelse)
            matters = (body and orelse) or (bool(self.loops) and (body or orelse))
        if known is not None:
            known.matters |= matters
            return known.value
        chosen = self.choices.get(key)
        if chosen is None:
            chosen = desired()
        self.run.conditions[key] = Condition(key, span, chosen, matters)
        return chosen

    def learn_modulus(self, modulus: v.Remainder, stmt: p.Stmt | None) -> None:
        """A remainder that gates an update: its modulus is the accumulation steps."""
        if not isinstance(stmt, p.If):
            return
        inside = self.scanner.reach(stmt.body) | self.scanner.reach(stmt.orelse)
        jumps = self.scanner.scan(stmt.body).jumps
        if "step" not in inside and "zero_grad" not in inside and not jumps:
            return
        if jumps and not self.loops:
            return
        self.learn_k(modulus[0], modulus[1], in_test=True)

    def learn_k(self, value: v.Number, roots: frozenset[str], *, in_test: bool = False) -> None:
        if not roots:
            if isinstance(value, int) and 1 < value:
                if value > MAX_K:
                    if in_test:
                        return
                elif value not in self.world.literal_ks and self.loops:
                    self.world.literal_ks.add(value)
                    self.run.window_values.add(value)
                    if value > self.assignment.k:
                        from acclint.simulate.world import Restart

                        raise Restart
            if isinstance(value, int):
                self.run.window_values.add(value)
            return
        self.run.window_values.add(value)
        if len(roots) == 1:
            (root,) = roots
            role = self.world.role_of(root, root.rpartition(".")[2].strip("'\"[]"))
            if role == "" and 1 < self.numbers[root].v != self.assignment.k and self.numbers[root].v == value:
                self.world.learn(self.world.roles, root, "k")

    def do_for(self, stmt: p.For, frame: Frame) -> str | None:
        iterable = self.eval(stmt.iterable, frame)
        level = self.level(stmt)
        loop = Loop(stmt.span, self.entries, "other", level)
        self.entries += 1
        items = self.iterate(iterable, loop, stmt)
        loop.target = text(stmt.target)
        signal = self.turn(loop, stmt, frame, items)
        if type(iterable) is ParamSet:
            self.note_frozen(stmt, iterable, frame)
        return signal

    def note_frozen(self, stmt: p.For, parameters: ParamSet, frame: Frame) -> None:
        """`for p in net.parameters(): p.requires_grad = False`, without a test: nothing of the net has a gradient."""
        target = stmt.target.items[-1] if isinstance(stmt.target, p.Sequence) and stmt.target.items else stmt.target
        if self.scanner.scan(stmt.body).jumps:
            return
        for inner in stmt.body:
            value: Value = None
            if isinstance(inner, p.Assign) and text(inner.targets[0]) == f"{text(target)}.requires_grad":
                value = self.eval(inner.value, frame)
            elif isinstance(inner, p.Do) and text(inner.value) == f"{text(target)}.requires_grad_(False)":
                value = False
            if value is False:
                self.frozen |= parameters.owners

    def turn(self, loop: Loop, stmt: p.For, frame: Frame, items: Iterator[Value]) -> str | None:
        self.run.loops[loop.span] = loop
        self.loops.append(loop)
        self.event("loop", loop.span, loop=loop)
        signal = None
        try:
            while True:
                try:
                    item = next(items)
                except StopIteration:
                    loop.ended = True
                    break
                loop.turns += 1
                self.assign(stmt.target, item, frame)
                signal = self.block(stmt.body, frame)
                loop.turn += 1
                if signal == BREAK:
                    signal = None
                    break
                if signal == CONTINUE:
                    signal = None
                if signal is not None:
                    break
            else:
                pass
        finally:
            self.loops.pop()
            self.last_batch = False
        self.event("loop end", loop.span, loop=loop)
        if signal is None and loop.ended and stmt.orelse:
            return self.block(stmt.orelse, frame)
        return signal

    def level(self, stmt: p.For | p.While) -> str:
        """micro: backward inside, and the update too. window: backward inside, no update. outer: loops with backward
        inside. quiet: no backward."""
        scanner = self.scanner
        if self.stack and self.stack[-1].generator:
            return "micro"
        if stmt.span in self.world.loud and not scanner.has_backward(stmt.body):
            inner = any(loop.span in self.world.loud or scanner.has_backward(loop.body) for loop in scanner.scan(stmt.body).loops)
            return "outer" if inner else "micro"
        if not scanner.has_backward(stmt.body):
            return "quiet"
        if scanner.has_nested_backward(stmt.body):
            return "micro" if scanner.scan(stmt.body).mod_step and not self._nested_steps(stmt.body) else "outer"
        if "step" in scanner.reach(stmt.body):
            return "micro"
        return "window"

    def _nested_steps(self, body: tuple[p.Stmt, ...]) -> bool:
        return any("step" in self.scanner.reach(loop.body) for loop in self.scanner.scan(body).loops)

    def wanted_turns(self, level: str) -> int:
        if level == "micro":
            return self.world.turns(self.assignment)
        if level == "window":
            return self.assignment.k
        if level == "outer":
            return self.assignment.epochs
        return _QUIET_TURNS

    def do_while(self, stmt: p.While, frame: Frame) -> str | None:
        level = self.level(stmt)
        loop = Loop(stmt.span, self.entries, "while", level)
        self.entries += 1
        cap = {"micro": 3 * max([self.assignment.k, *self.world.literal_ks]) + 2, "outer": self.assignment.epochs + 1}
        limit = cap.get(level, 3 * self.world.turns(self.assignment) if level == "window" else _QUIET_TURNS)
        bounded = not (isinstance(stmt.test, p.Const) and stmt.test.value)
        if bounded and level in ("micro", "window"):
            limit = max(limit, 70)
        self.run.loops[loop.span] = loop
        self.loops.append(loop)
        self.event("loop", loop.span, loop=loop)
        signal = None
        decided = False
        try:
            while True:
                guard = Guard(stmt.test.span, True)
                known = len(self.run.conditions)
                outcome = self.decide(stmt.test, frame, None, guard, lambda: loop.turns < limit, None)
                decided = not guard.unknown and len(self.run.conditions) == known
                if not outcome:
                    loop.ended = True
                    break
                large = any(self.world.role_of(root, root.rpartition(".")[2]) == "limit" for root in guard.roots)
                if loop.turns >= (cap.get(level, limit) if large or not decided else limit):
                    loop.cut = True
                    break
                loop.turns += 1
                signal = self.block(stmt.body, frame)
                loop.turn += 1
                if signal == BREAK:
                    signal = None
                    break
                if signal == CONTINUE:
                    signal = None
                if signal is not None:
                    break
        finally:
            self.loops.pop()
        self.event("loop end", loop.span, loop=loop)
        if signal is None and loop.ended and stmt.orelse:
            return self.block(stmt.orelse, frame)
        return signal

    def do_with(self, stmt: p.With, frame: Frame) -> str | None:
        exits: list[Callable[[], None]] = []
        for manager, target in stmt.items:
            value = self.eval(manager, frame)
            bound, leave = self.enter(value, manager)
            if leave is not None:
                exits.append(leave)
            if target is not None:
                self.assign(target, bound, frame)
        try:
            return self.block(stmt.body, frame)
        finally:
            for leave in reversed(exits):
                leave()

    def do_try(self, stmt: p.Try, frame: Frame) -> str | None:
        signal = None
        try:
            try:
                signal = self.block(stmt.body, frame)
            except PyRaise as error:
                for kind, name, body in stmt.handlers:
                    if _catches(kind, str(error)):
                        if name:
                            frame.vars[name] = self.opaque(f"exception:{name}", name)
                        signal = self.block(body, frame)
                        break
                else:
                    raise
            else:
                if signal is None and stmt.orelse:
                    signal = self.block(stmt.orelse, frame)
        finally:
            final = self.block(stmt.final, frame) if stmt.final else None
        return final or signal

    def do_match(self, stmt: p.Match, frame: Frame) -> str | None:
        subject = self.eval(stmt.subject, frame)
        for patterns, guard, body, bound in stmt.cases:
            for name in bound:
                frame.vars[name] = self.opaque(f"case:{name}", name)
            if not patterns:
                return self.block(body, frame)
            if isinstance(subject, (str, int, float)) or subject is None:
                if any(self.eval(pattern, frame) == subject for pattern in patterns):
                    return self.block(body, frame)
            else:
                key = f"{self.key(subject)} == {text(patterns[0])}"
                want = self.scanner.has_events(body)
                if self.choose(key, stmt.span, lambda want=want: want, None) and guard is None:  # type: ignore[misc]
                    return self.block(body, frame)
        return None

    def do_return(self, stmt: p.Return, frame: Frame) -> str:
        frame.result = self.eval(stmt.value, frame) if stmt.value is not None else None
        return RETURN

    def do_raise(self, stmt: p.Raise, frame: Frame) -> str:
        raise PyRaise("Exception")

    def do_delete(self, stmt: p.Delete, frame: Frame) -> None:
        for target in stmt.targets:
            if type(target) is p.Name:
                frame.vars.pop(target.id, None)
            elif type(target) is p.Attr and target.name == "grad":
                self.store_attribute(self.eval(target.value, frame), "grad", None, target.span)

    def do_import(self, stmt: p.Import, frame: Frame) -> None:
        if stmt.name != "*":
            frame.vars[stmt.name] = Imported(stmt.path)

    def do_scope(self, stmt: p.Scope, frame: Frame) -> None:
        for name in stmt.names:
            if stmt.kind == "global":
                frame.outer[name] = self.globals
            else:
                scope = frame.parent
                while scope is not None and name not in scope.vars:
                    scope = scope.parent
                if scope is not None:
                    frame.outer[name] = scope

    def do_define(self, stmt: p.Define, frame: Frame) -> None:
        frame.vars[stmt.function.name] = self.closure(stmt, frame, None)

    def closure(self, stmt: p.Define, frame: Frame, cls: ClassValue | None) -> Value:
        made = Closure(stmt.function, frame, owner_class=cls)
        for parameter in stmt.function.parameters:
            if parameter.default is not None:
                made.defaults[parameter.name] = self.eval(parameter.default, frame)
        for decorator in stmt.decorators:
            path = text(decorator.func if isinstance(decorator, p.Call) else decorator)
            last = path.rpartition(".")[2]
            if last in ("no_grad", "inference_mode"):
                made.no_grad = True
            elif last in ("property", "cached_property"):
                made.kind = "property"
            elif last in ("staticmethod", "classmethod"):
                made.kind = last[:-6]
            elif last in ("contextmanager",):
                made.kind = "context"
        return made

    def do_class(self, stmt: p.Class, frame: Frame) -> None:
        bases = tuple(self.eval(base, frame) for base in stmt.bases)
        cls = ClassValue(stmt, frame, {}, bases, stmt.name)
        for base in bases:
            path = base.path if isinstance(base, Imported) else getattr(base, "name", "")
            last = path.rpartition(".")[2]
            inherited = isinstance(base, ClassValue) and base.module
            if inherited or last.endswith(("Module", "Model", "PreTrainedModel")) or path.startswith("torch.nn."):
                cls.module = True
            if last in ("Dataset", "IterableDataset", "Sampler", "BatchSampler"):
                cls.dataset = True
            if isinstance(base, ClassValue) and base.dataset:
                cls.dataset = True
        for decorator in stmt.decorators:
            if "dataclass" in text(decorator) or text(decorator).startswith("attr"):
                cls.dataclass = True
        body = Frame(frame)
        body.cls = cls
        for one in stmt.body:
            if isinstance(one, p.Define):
                cls.members[one.function.name] = body.vars[one.function.name] = self.closure(one, frame, cls)
            elif isinstance(one, p.Assign):
                value = self.eval(one.value, body)
                for target in one.targets:
                    if isinstance(target, p.Name):
                        if cls.dataclass or self.world.is_accumulation(target.id):
                            value = self.tunable(value, f"{stmt.name}.{target.id}", target.id)
                        cls.members[target.id] = body.vars[target.id] = value
        frame.vars[stmt.name] = cls

    def tunable(self, value: Value, key: str, name: str) -> Value:
        """A number that a user is meant to change (a default, a settings item): its value is only a hint."""
        if (
            isinstance(value, int)
            and not isinstance(value, bool)
            and (self.world.is_accumulation(name) or names.is_batch_size_name(name))
        ):
            self.world.hints.setdefault(key, value)
            return self.number(key, name)
        return value

    # --- loops -------------------------------------------------------------------------------------------------------

    def iterate(self, value: Value, loop: Loop, stmt: p.For) -> Iterator[Value]:
        """The items of one entry into a `for` loop, as many as are worth running."""
        level, wanted = loop.level, self.wanted_turns(loop.level)
        if type(value) is Imported:
            value = self.opaque(value.path, value.path.rpartition(".")[2])
        if type(value) is Range:
            return self.iterate_range(value, loop, wanted)
        if isinstance(value, (list, tuple, dict, set)):
            loop.kind = "list"
            loop.known_length = True
            items = list(value)
            feeds = any(type(item) is Opaque and item.batch for item in items[:1])
            loop.fetched = feeds
            if level == "outer" and len(items) > 4 and not feeds:
                items = items[:4]
            return self._last_marked(items[:_LIST_TURNS], feeds)
        if type(value) is Loader:
            loop.kind = "loader"
            loop.fetched = True
            loop.named = True
            loop.known_length = value.length is not None and not roots_of(value.length)
            return self.batches_of(value)
        if type(value) is Stream:
            loop.kind = "loader" if value.feeds else "other"
            loop.fetched = value.feeds
            loop.known_length = value.length is not None and not roots_of(value.length)
            limit = wanted if level == "outer" else (_QUIET_TURNS if level == "quiet" and not value.feeds else 70)
            if value.endless:
                limit = 3 * max([self.assignment.k, *self.world.literal_ks]) + 2 if level != "outer" else wanted
            return self._limited(value.pull, limit, loop, endless=value.endless)
        if type(value) is ParamSet or type(value) is Param:
            loop.kind = "list"
            return iter(self.parameters_of(value))
        if type(value) in (v.Module, Instance):
            return self.iterate_object(value, loop, wanted)
        if isinstance(value, str):
            return iter([value[:1]])
        if type(value) is Tensor:
            loop.kind = "list"
            count = numeric(value.size)
            total = int(count) if count is not None and 0 < count <= 32 else wanted
            return self.rows(value, total)
        if type(value) is Opaque:
            return self.iterate_unknown(value, loop, wanted)
        return iter([self.opaque(f"item:{loop.span.row}", "<item>") for _ in range(min(wanted, _QUIET_TURNS))])

    def _limited(self, pull: Iterator[Value], limit: int, loop: Loop, endless: bool = False) -> Iterator[Value]:
        for turn, item in enumerate(pull):
            if turn >= limit:
                loop.cut = True
                return
            yield item
        loop.cut = endless

    def _last_marked(self, items: list[Value], feeds: bool) -> Iterator[Value]:
        for i, item in enumerate(items):
            if feeds:
                self.last_batch = i + 1 == len(items)
            yield item

    def iterate_unknown(self, value: Opaque, loop: Loop, wanted: int) -> Iterator[Value]:
        loaderish = names.is_loader_name(value.name) or value.hint == "loader"
        if loop.level in ("micro", "window") and (loaderish or loop.level == "micro") and not value.graph:
            loop.kind = "loader" if loaderish else "other"
            loop.fetched = True
            loop.named = loaderish
            value.hint = "loader"
            wants = wanted if loop.level == "micro" or not loaderish else self.world.turns(self.assignment)
            if loop.level == "window" and loaderish:
                # A whole pass over a loader before the update.
                wants = self.world.turns(self.assignment)
            length = self.number(f"len({value.key})", "length", "length" if loop.level == "micro" or loaderish else "")
            return self.batches_of(Loader(value.key, length if wants == length.v else wants))
        loop.kind = "other"
        loop.fetched = value.batch or not value.graph
        count = wanted
        if loop.level == "quiet" and loaderish and not value.graph and not value.batch:
            loop.kind, loop.named = "loader", True
            return self.batches_of(Loader(value.key, _QUIET_TURNS))
        if loop.level == "quiet":
            count = _QUIET_TURNS if loaderish else 1
        return iter([self.item_of(value) for _ in range(count)])

    def item_of(self, value: Opaque) -> Opaque:
        return self.opaque(f"item({value.key})", value.name, owners=value.owners, graph=value.graph, batch=value.batch)

    def iterate_range(self, value: Range, loop: Loop, wanted: int) -> Iterator[Value]:
        loop.kind = "count"
        loop.count = value.stop
        start = 0 if roots_of(self.as_number(value.start)) else numeric(self.as_number(value.start))
        stop_value = self.as_number(value.stop)
        stop, step = numeric(stop_value), numeric(self.as_number(value.step))
        if start is None or stop is None or step is None or int(step) == 0:
            return iter(range(wanted))
        count = len(range(int(start), int(stop), int(step)))
        loop.total = count
        roots = roots_of(stop_value) | roots_of(value.start) | roots_of(value.step)
        strided = step != 1 or bool(roots_of(value.step))
        loop.fetched = strided
        loop.named = self.is_k(stop_value)
        loop.known_length = not roots
        if roots and loop.level != "quiet":
            role = {"micro": "length", "window": "k", "outer": "epochs"}[loop.level]
            known_roles = {self.world.role_of(root, root.rpartition(".")[2].strip("'\"[]")) for root in roots}
            fits = count == wanted or (loop.level == "window" and "k" in known_roles and count > 1)
            if loop.level == "window" and strided:
                fits = fits or count > 1
            if loop.level == "outer":
                fits = 1 < count <= 8
            if loop.level == "micro" and "length" in known_roles and count <= 70:
                fits = True
            if not fits:
                if strided:
                    return self._strided(int(start), int(step), wanted)
                single = next(iter(roots)) if len(roots) == 1 else None
                if single is not None and type(stop_value) is Num and stop_value.born == NOWHERE:
                    if self.world.role_of(single, single.rpartition(".")[2]) in ("", "limit", "interval"):
                        self.world.learn(self.world.roles, single, role)
                elif type(stop_value) is Num and stop_value.born != NOWHERE:
                    self.world.learn(self.world.overrides, stop_value.born, role)
                if loop.level == "window" and single is not None:
                    loop.count = stop_value
                    return iter(range(int(start), int(start) + min(count, 24)))
                cut = min(count, wanted) if count else wanted
                loop.cut = cut != count
                return iter(range(int(start), int(start) + cut))
            return iter(range(int(start), int(stop), int(step)))
        if loop.level == "quiet":
            shown = _QUIET_TURNS if count > 8 else count
            loop.cut = shown != count
            return iter(range(int(start), int(start) + shown * int(step), int(step)))
        if loop.level == "outer" and count > 8:
            loop.cut = True
            return iter(range(int(start), int(start) + wanted * int(step), int(step)))
        if count > 64:
            # A literal count: run fewer turns with the same remainder, and end with the true last index.
            k = max([1, *self.world.literal_ks])
            fewer = 2 * k + count % k if k > 1 else wanted
            loop.cut = True
            last = int(start) + (count - 1) * int(step)
            head = [int(start) + i * int(step) for i in range(fewer - 1)]
            return iter([*head, last])
        return iter(range(int(start), int(stop), int(step)))

    @staticmethod
    def _strided(start: int, step: int, wanted: int) -> Iterator[Value]:
        return iter([start + i * step for i in range(wanted)])

    # --- expressions -------------------------------------------------------------------------------------------------

    def eval(self, expr: p.Expr, frame: Frame) -> Value:
        return _EXPRESSIONS[type(expr)](self, expr, frame)

    def eval_const(self, expr: p.Const, frame: Frame) -> Value:
        return expr.value

    def eval_name(self, expr: p.Name, frame: Frame) -> Value:
        return self.lookup(expr.id, frame)

    def eval_extern(self, expr: p.Extern, frame: Frame) -> Value:
        return Imported(expr.path)

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

    def leaf(self, value: Param) -> Tensor:
        """A parameter as the tensor it is in a formula."""
        return Tensor(frozenset((value.owner,)) if self.grad_enabled else NOBODY, self.grad_enabled, size=value.size)

    def binary(self, op: str, left: Value, right: Value, span: Span, augmented: bool = False) -> Value:
        a, b = numeric(left), numeric(right)
        if a is not None and b is not None:
            return self.arithmetic(op, left, right, a, b, span)
        lt, rt = type(left), type(right)
        if op in ("/", "*") and (b is not None or a is not None):
            self.promote_loss(left if b is not None else right)
        if not augmented and Param in (lt, rt) and (lt in (Tensor, Opaque) or rt in (Tensor, Opaque)):
            # A leaf parameter in a formula.
            left = self.leaf(left) if lt is Param else left
            right = self.leaf(right) if rt is Param else right
            lt, rt = type(left), type(right)
        if op in ("+", "-") and (lt is v.Grad or rt is v.Grad) and (lt is Tensor or rt is Tensor):
            return self.grad_binary(op, left, right, span)
        if lt in _TENSORS or rt in _TENSORS or (lt is Opaque and left.graph) or (rt is Opaque and right.graph):
            return self.tensor_binary(op, left, right, span, augmented)
        if lt is v.Grad or rt is v.Grad or lt is v.Delta or rt is v.Delta or lt is Param or rt is Param:
            return self.grad_binary(op, left, right, span)
        if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)) and op == "+":
            return list(left) + list(right) if isinstance(left, list) else tuple(left) + tuple(right)
        if isinstance(left, (list, tuple)) and op == "*" and b is not None:
            return (list(left) * min(int(b), _LIST_TURNS))[:_LIST_TURNS]
        if isinstance(left, str) or isinstance(right, str):
            return left + right if isinstance(left, str) and isinstance(right, str) and op == "+" else "<text>"
        if isinstance(left, dict) and isinstance(right, dict) and op == "|":
            return {**left, **right}
        if (
            lt is ParamSet
            or rt is ParamSet
            or (isinstance(left, list) and op == "+")
            or (isinstance(right, list) and op == "+")
        ):
            return ParamSet(self.owners_of(left) | self.owners_of(right))
        data = self.is_data(left) or self.is_data(right)
        if not data:
            x, y = self.as_number(left), self.as_number(right)
            if x is not None and y is not None:
                return self.arithmetic(op, x, y, numeric(x), numeric(y), span)
        if lt is Opaque or rt is Opaque:
            key = f"({self.key(left)} {op} {self.key(right)})"
            made = self.opaque(key, "<value>", batch=self.batch_of(left) or self.batch_of(right))
            return made
        return self.opaque(f"value:{span.row}:{span.column}", "<value>")

    def arithmetic(self, op: str, left: Value, right: Value, a: Any, b: Any, span: Span) -> Value:
        try:
            if op == "/":
                if span in self.world.k_divisions and not roots_of(left) and not roots_of(right) and b not in (0, 1):
                    return Num(a / b if isinstance(a, float) else Fraction(a) / Fraction(b), OVER_K, span)
                result: Any = (
                    Fraction(a, b) if isinstance(a, (int, Fraction)) and isinstance(b, (int, Fraction)) else a / b
                )
            else:
                if op == "**" and (abs(a) > 1e6 or abs(b) > 64):
                    return self.opaque(f"value:{span.row}:{span.column}", "<value>")
                result = _ARITHMETIC[op](a, b)
        except (ZeroDivisionError, TypeError, ValueError, OverflowError, KeyError):
            return self.opaque(f"value:{span.row}:{span.column}", "<value>")
        if op == "%":
            made = self.derived(result, span, left, right)
            if type(made) is Num:
                return Num(made.v, made.roots, made.born, (b, roots_of(right), left))
            return Num(result, NO_ROOTS, span, (b, roots_of(right), left))
        if op == "*" and self.world.overrides.get(span) == "length":
            # A number of micro-batches that is a product with k is a multiple of k.
            k = next((n for n, one in ((a, left), (b, right)) if self.is_k(one) or n in self.world.literal_ks), None)
            if isinstance(k, int) and k > 1:
                return Num(3 * k, roots_of(left) | roots_of(right), span)
        made = self.derived(result, span, left, right)
        modulus = _modulus(left) or _modulus(right)
        if modulus is not None:
            return Num(numeric(made), roots_of(made), span, modulus)
        return made

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
            if kind in _TENSORS or kind in (v.Module, Instance, v.Optimizer):
                return False
            try:
                return not value
            except TypeError:
                return False
        number = numeric(value)
        if number is not None:
            if expr.op == "-":
                return Num(-number, roots_of(value), expr.span, _modulus(value)) if type(value) is Num else -number
            return value
        if type(value) is Tensor and expr.op == "-" and value.terms is not None:
            made = self.scaled(value, -1)
            return made
        return value

    def eval_compare(self, expr: p.Compare, frame: Frame) -> Value:
        left = self.eval(expr.left, frame)
        result: Value = True
        for op, right_expr in zip(expr.ops, expr.rights, strict=True):
            right = self.eval(right_expr, frame)
            one = self.compare(op, left, right, expr)
            if one is False or (type(one) is Num and not one.v):
                return one
            if type(one) in (Maybe, Num) and result is True:
                result = one
            left = right
        return result

    def compare(self, op: str, left: Value, right: Value, expr: p.Compare) -> Value:
        if op in ("is", "is not"):
            same = self.identical(left, right)
            if same is None:
                key = f"{self.key(left)} is {self.key(right)}"
                return Maybe(key, op == "is not", expr.span)
            return same if op == "is" else not same
        if op in ("in", "not in"):
            if isinstance(right, dict) and type(left) is Param:
                left = self.dict_key(left)
            if isinstance(right, (list, tuple, set, dict, str)) and isinstance(
                left, (str, int, float, bool, type(None), Param)
            ):
                try:
                    found = left in right
                except TypeError:
                    found = False
                return found if op == "in" else not found
            return Maybe(f"{self.key(left)} in {self.key(right)}", op == "not in", expr.span)
        if self.is_data(left) or self.is_data(right):
            batch = self.batch_of(left) | self.batch_of(right)
            return self.opaque(text(expr), "<mask>", batch=batch)
        a, b = numeric(left), numeric(right)
        if (a is None) != (b is None):
            other = left if a is None else right
            if (
                type(other) is Opaque
                and not other.graph
                and not other.batch
                and not isinstance(a if b is None else b, bool)
            ):
                made = self.number(other.key, other.name)
                a, b = (made.v, b) if a is None else (a, made.v)
                left, right = (made, right) if other is left else (left, made)
        elif a is None and b is None and type(left) is Opaque and type(right) is Opaque and op not in ("==", "!="):
            if not (self.is_data(left) or self.is_data(right)):
                left, right = self.number(left.key, left.name), self.number(right.key, right.name)
                a, b = left.v, right.v
        if a is not None and b is not None:
            self.compared[expr.span] = (left, right)
            outcome = _COMPARE[op](a, b)
            modulus = _modulus(left) or _modulus(right)
            roots = roots_of(left) | roots_of(right)
            if modulus is not None:
                return Num(outcome, roots, expr.span, modulus)
            if self.is_k(left) or self.is_k(right):
                # A counter against k.
                k, said, counter = (left, expr.left, right) if self.is_k(left) else (right, expr.rights[-1], left)
                less = isinstance(said, p.Binary) and said.op == "-" and text(said.right) == "1"
                period = numeric(k) + 1 if less else numeric(k)  # A counter from 0 is compared with k - 1.
                return Num(outcome, roots, expr.span, (period, roots_of(k), counter))
            return Num(outcome, roots, expr.span) if roots else outcome
        if isinstance(left, (str, bool, type(None), tuple, list)) and isinstance(
            right, (str, bool, type(None), tuple, list)
        ):
            if "<text>" in (left, right):
                return Maybe(f"{text(expr)}", False, expr.span)
            return (left == right) if op == "==" else (left != right) if op == "!=" else Maybe(text(expr))
        negated = op == "!="
        return Maybe(f"{self.key(left)} {'==' if negated else op} {self.key(right)}", negated, expr.span)

    def identical(self, left: Value, right: Value) -> bool | None:
        """Whether two values are the same object, None if unknown."""
        for one, other in ((left, right), (right, left)):
            if other is None:
                if one is None:
                    return True
                if type(one) is Opaque and self.world.is_accumulation(one.name):
                    return False
                if type(one) in (Opaque, Maybe):
                    if type(one) is Opaque and (one.graph or one.owners or one.batch or one.hint):
                        return False
                    return None
                return False
        if isinstance(left, (bool, int, str)) and isinstance(right, (bool, int, str)):
            return left == right
        if type(left) is Opaque or type(right) is Opaque:
            return None
        return left is right

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
            if len(unknown) == 1 and type(unknown[0]) is Opaque and not is_and:
                return unknown[0]
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
                    result[len(result)] = pair[1] if isinstance(pair, tuple) and len(pair) == 2 else pair
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
        for item in self.listed(value):
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
            if len(made) >= _LIST_TURNS:
                return

    def listed(self, value: Value) -> list[Value]:
        """The items of a value that a comprehension or a builtin goes through."""
        if isinstance(value, (list, tuple)):
            return list(value[:_LIST_TURNS])
        if isinstance(value, dict):
            return list(value)[:_LIST_TURNS]
        if type(value) is Range:
            start, stop, step = (numeric(self.as_number(one)) for one in (value.start, value.stop, value.step))
            if start is None or stop is None or not step:
                return [0, 1]
            return list(range(int(start), int(stop), int(step))[:_LIST_TURNS])
        if type(value) is Stream:
            return self.drain(value, _LIST_TURNS)
        if type(value) in (ParamSet, Param):
            return self.parameters_of(value)
        if type(value) is Loader:
            return list(self.batches_of(value))[:_LIST_TURNS]
        if type(value) is v.Module and value.items:
            return list(value.items)
        if type(value) is Opaque:
            return [self.item_of(value), self.item_of(value)] if value.batch else [self.item_of(value)]
        if type(value) is Tensor:
            return [Tensor(value.owners, value.graph, batch=value.batch)]
        return [self.opaque("item", "<item>")]

    def drain(self, stream: Stream, limit: int) -> list[Value]:
        made = []
        for item in stream.pull:
            made.append(item)
            if len(made) >= limit:
                break
        return made

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
                raise _Enough
        return None

    def eval_star(self, expr: p.Star, frame: Frame) -> Value:
        return self.eval(expr.value, frame)

    def eval_unknown(self, expr: p.Expr, frame: Frame) -> Value:
        return self.opaque(f"value:{expr.span.row}:{expr.span.column}", "<value>")

    # --- keys and helpers --------------------------------------------------------------------------------------------

    def key(self, value: Value) -> str:
        kind = type(value)
        if kind in (Opaque, Maybe, Instance, Loader):
            return str(value.key)
        if kind is Num:
            return "+".join(sorted(value.roots)) or str(value.v)
        if kind is Imported:
            return str(value.path)
        if isinstance(value, (str, int, float, bool, type(None))):
            return repr(value)
        if isinstance(value, tuple):
            return "(" + ",".join(self.key(one) for one in value[:4]) + ")"
        return str(getattr(value, "name", kind.__name__))

    # --- calls -------------------------------------------------------------------------------------------------------

    def call(self, callee: Value, args: list[Value], keywords: dict[str, Value], expr: p.Call, frame: Frame) -> Value:
        kind = type(callee)
        if kind is Closure:
            return self.invoke(callee, args, keywords, expr.span)
        if kind is ClassValue:
            return self.instantiate(callee, args, keywords, expr.span)
        if kind is v.Partial:
            return self.call(callee.func, [*callee.args, *args], {**dict(callee.keywords), **keywords}, expr, frame)
        return self.library_call(callee, args, keywords, expr, frame)

    def call_value(self, callee: Value, args: list[Value], span: Span) -> Value:
        """Call a value that is at hand (a callback, a closure)."""
        expr = p.Call(span, p.Unknown(span), (), ())
        return self.call(callee, args, {}, expr, self.globals)

    def invoke(self, closure: Closure, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
        function = closure.function
        self.called.add(id(function))
        if len(self.stack) >= DEPTH or self.stack.count(function) > 1:
            return self.opaque(
                f"{function.name}()", function.name, owners=self.owners_of(args), graph=self.grad_enabled
            )
        frame = Frame(closure.scope, function)
        frame.cls = closure.owner_class
        if closure.bound is not None and closure.kind != "static":
            args = [closure.bound, *args]
            frame.self_value = closure.bound
        elif closure.scope is not None:
            frame.self_value = closure.scope.self_value
            frame.cls = frame.cls or closure.scope.cls
        self.bind(function, closure, args, keywords, frame)
        if function.generator:
            return self.generate(closure, frame)
        return self.run_body(closure, frame, span)

    def run_body(self, closure: Closure, frame: Frame, span: Span) -> Value:
        function = closure.function
        self.stack.append(function)
        self.path.append(span)
        grad = self.grad_enabled
        if closure.no_grad:
            self.grad_enabled = False
        try:
            self.block(function.body, frame)
        finally:
            self.stack.pop()
            self.path.pop()
            if closure.no_grad:
                self.grad_enabled = grad
        return frame.result

    def generate(self, closure: Closure, frame: Frame) -> Value:
        frame.yields = []
        if closure.kind == "context":
            return ("context", closure, frame)
        ended = True
        try:
            self.run_body(closure, frame, closure.function.span)
        except _Enough:
            ended = False
        own = [self.run.loops.get(loop.span) for loop in self.scanner.scan(closure.function.body).loops]
        ended = ended and not any(loop is not None and loop.cut for loop in own)
        items = frame.yields
        feeds = bool(items) and (self.batch_of(items[0]) or isinstance(items[0], (list, tuple)))
        stream = Stream(iter(items), len(items) if ended else None, bool(feeds))
        stream.endless = not ended
        return stream

    def bind(
        self, function: p.Function, closure: Closure, args: list[Value], keywords: dict[str, Value], frame: Frame
    ) -> None:
        left = list(args)
        rest = dict(keywords)
        for parameter in function.parameters:
            name = parameter.name
            if parameter.kind == "args":
                frame.vars[name] = tuple(left)
                left = []
            elif parameter.kind == "kwargs":
                frame.vars[name] = rest
                rest = {}
            elif parameter.kind == "plain" and left:
                frame.vars[name] = left.pop(0)
            elif name in rest:
                frame.vars[name] = rest.pop(name)
            elif name in closure.defaults:
                frame.vars[name] = self.tunable(closure.defaults[name], f"{function.name}.{name}", name)
            else:
                frame.vars[name] = self.opaque(f"{function.name}.{name}", name)

    def instantiate(self, cls: ClassValue, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
        for base in cls.bases:
            kind = optimizers.optimizer_kind(base.path) if isinstance(base, Imported) else None
            if kind is not None:
                # The file's own optimizer class: what its step does besides is not looked at.
                made = self.make_optimizer(base.path, kind, args, keywords, span)
                made.replays = made.replays or "step" in cls.members or "zero_grad" in cls.members
                return made
        key = f"{cls.name}@{span.row}"
        owner = Owner(cls.name) if self.is_module_class(cls) else None
        made = Instance(cls, owner, key)
        if owner is not None and any(is_batchnorm_layer(base.path) for base in cls.bases if isinstance(base, Imported)):
            made.batchnorm = span
            self.layers.setdefault(span, []).append(owner)
        init = self.member(cls, "__init__")
        if type(init) is Closure:
            bound = Closure(init.function, init.scope, made, owner_class=init.owner_class, defaults=init.defaults)
            try:
                self.invoke(bound, args, keywords, span)
            except PyRaise:
                pass
        else:
            fields = [name for name, value in cls.members.items() if type(value) is not Closure]
            for name, value in zip(fields, args, strict=False):
                made.attrs[name] = value
            made.attrs.update(keywords)
        return made

    def is_module_class(self, cls: ClassValue) -> bool:
        return cls.module or any(isinstance(base, ClassValue) and self.is_module_class(base) for base in cls.bases)

    def member(self, cls: ClassValue, name: str) -> Value:
        found = cls.members.get(name)
        if found is not None:
            return found
        for base in cls.bases:
            if isinstance(base, ClassValue):
                found = self.member(base, name)
                if found is not None:
                    return found
        return None


class _Enough(Exception):
    """A generator has yielded as much as is worth running."""


def _modulus(value: Value) -> v.Remainder | None:
    return value.modulus if type(value) is Num else None


def _ends_in_jump(body: tuple[p.Stmt, ...]) -> bool:
    if not body:
        return False
    last = body[-1]
    if isinstance(last, (p.Break, p.Continue, p.Return, p.Raise)):
        return True
    if isinstance(last, p.Do) and isinstance(last.value, p.Call):
        return text(last.value.func) in ("sys.exit", "exit", "quit")
    return isinstance(last, p.If) and bool(last.orelse) and _ends_in_jump(last.body) and _ends_in_jump(last.orelse)


def _catches(kind: p.Expr | None, name: str) -> bool:
    if kind is None:
        return True
    names_text = text(kind)
    return name in names_text or "Exception" in names_text


_RESUMING = re.compile(r"resum|checkpoint|ckpt|exists|isfile|isdir|restore|eval_only|test_only|debug|profil|dry_run|is_sweep|environ|TEST")
MAX_K = 64
OVER_K = frozenset(("over k",))
_TENSORS = (Tensor,)
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
_BUILTINS = frozenset(
    "range len enumerate zip min max sum abs int float bool str list tuple dict set print isinstance hasattr getattr "
    "setattr iter next round map filter sorted reversed any all super type open input id repr object callable vars "
    "divmod pow Exception ValueError RuntimeError StopIteration KeyError slice frozenset property staticmethod "
    "classmethod exit quit NotImplementedError KeyboardInterrupt TypeError dir format __name__ "
    "__file__ globals locals complex bytes chr ord hash issubclass".split()
)

_STATEMENTS: dict[type, Callable[[Machine, Any, Frame], str | None]] = {
    p.Assign: Machine.do_assign,
    p.Augment: Machine.do_augment,
    p.Do: Machine.do_expression,
    p.If: Machine.do_if,
    p.For: Machine.do_for,
    p.While: Machine.do_while,
    p.With: Machine.do_with,
    p.Try: Machine.do_try,
    p.Match: Machine.do_match,
    p.Return: Machine.do_return,
    p.Break: lambda machine, stmt, frame: BREAK,
    p.Continue: lambda machine, stmt, frame: CONTINUE,
    p.Raise: Machine.do_raise,
    p.Delete: Machine.do_delete,
    p.Import: Machine.do_import,
    p.Scope: Machine.do_scope,
    p.Define: Machine.do_define,
    p.Class: Machine.do_class,
}
_EXPRESSIONS: dict[type, Callable[[Machine, Any, Frame], Value]] = {
    p.Const: Machine.eval_const,
    p.Name: Machine.eval_name,
    p.Extern: Machine.eval_extern,
    p.Attr: Machine.eval_attr,
    p.Index: Machine.eval_index,
    p.Slice: Machine.eval_slice,
    p.Call: Machine.eval_call,
    p.Binary: Machine.eval_binary,
    p.Unary: Machine.eval_unary,
    p.Compare: Machine.eval_compare,
    p.Bool: Machine.eval_bool,
    p.IfElse: Machine.eval_ifelse,
    p.Sequence: Machine.eval_sequence,
    p.Mapping: Machine.eval_mapping,
    p.Comprehension: Machine.eval_comprehension,
    p.Lambda: Machine.eval_lambda,
    p.Text: Machine.eval_text,
    p.Walrus: Machine.eval_walrus,
    p.Await: Machine.eval_await,
    p.Yield: Machine.eval_yield,
    p.Star: Machine.eval_star,
    p.Unknown: Machine.eval_unknown,
}
assert NOBODY is not None
