"""Execution of statements: control flow, loops, contexts, definitions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

from acclint import program as p
from acclint.knowledge.frameworks import is_module_base
from acclint.program import NOWHERE, Span
from acclint.simulate import values as v
from acclint.simulate.conditions import ends_in_jump, exits
from acclint.simulate.core import Frame, top_of
from acclint.simulate.expressions import Expressions
from acclint.simulate.iteration import LIST_TURNS, QUIET_TURNS
from acclint.simulate.losses import leaves
from acclint.simulate.scan import bodies, plain_test, text
from acclint.simulate.trace import Condition, Guard, Loop
from acclint.simulate.values import (
    ClassValue,
    Closure,
    Imported,
    Instance,
    Loader,
    Num,
    Opaque,
    Param,
    ParamSet,
    PyRaise,
    Stream,
    Tensor,
    Value,
    numeric,
)
from acclint.simulate.world import Stop

_IN_PLACE = {"+": "__iadd__", "-": "__isub__", "*": "__imul__", "/": "__itruediv__"}
_VIEWS = frozenset(("range", "len", "enumerate", "zip", "reversed", "sorted", "list", "iter", "tqdm"))
BREAK, CONTINUE, RETURN = "break", "continue", "return"

Leave = Callable[[], object]


class Statements(Expressions):
    """The statements of the small program."""

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
        outer, self.storing = self.storing, text(stmt.targets[0])
        value = self.eval(stmt.value, frame)
        self.storing = outer
        if isinstance(value, bool) and text(stmt.targets[0]) in self.world.flags:
            value = self.flag(value, stmt.span)
        target = stmt.targets[0]
        if p.file_of(stmt.span) and isinstance(target, p.Attr) and text(target.value) != "self":
            # `_C.TRAIN.ACCUMULATION_STEPS = 1` in a file of defaults: what the settings of a run change.
            value = self.tunable(value, text(target), target.name)
        if type(value) is Tensor and self.gradient_view(stmt, frame):
            return
        if type(value) is Tensor or type(value) is Opaque:
            self.watch_division(stmt, value, frame)
        for target in stmt.targets:
            self.assign(target, value, frame)
            for name, one in _bound(target, value):
                if type(one) is Tensor:
                    self.watch_growth(stmt.span, name, one)
            if isinstance(value, list) and isinstance(stmt.value, p.Binary):
                self.watch_kept(stmt.span, value[-4:], value, text(target))  # `losses = losses + [loss]`

    def flag(self, value: bool, span: Span) -> Value:
        """`update = True` under a window test: who asks for it asks for that test."""
        guard = self.guards[-1] if self.guards and self.loops else None
        if guard is None or guard.modulus is None or guard.unknown:
            return value
        where = guard.remainder or guard.bound_span or NOWHERE
        return Num(value, guard.roots, span, (guard.modulus, guard.k_roots, guard.counter, where))

    def gradient_view(self, stmt: p.Assign, frame: Frame) -> bool:
        """`p.grad = flat[i:j].view_as(p)`: the gradient is a part of another tensor, which zeroes it too."""
        target, source = stmt.targets[0], stmt.value
        if not (isinstance(target, p.Attr) and target.name == "grad"):
            return False
        while isinstance(source, (p.Call, p.Attr)):
            source = source.func if isinstance(source, p.Call) else source.value
        owner, whole = self.eval(target.value, frame), None
        if isinstance(source, p.Index) and isinstance(source.value, p.Name):
            whole = self.eval(source.value, frame)
        if type(owner) is not Param or type(whole) is not Tensor or whole.graph:
            return False
        self.buffers.setdefault(id(whole), (whole, set()))[1].add(owner.owner)
        return True

    def do_augment(self, stmt: p.Augment, frame: Frame) -> None:
        target = stmt.target
        if type(target) is p.Attr and target.name in ("grad", "data"):
            base = self.eval(target.value, frame)
            if self.augment_gradient(base, target.name, stmt.op, self.eval(stmt.value, frame), stmt.span):
                return
        old = self.eval(target, frame)
        new = self.eval(stmt.value, frame)
        if type(old) is Param and self.augment_parameter(old, stmt.op, new, stmt.span):
            return
        method = self.member(old.cls, _IN_PLACE.get(stmt.op, "")) if type(old) is Instance else None
        if type(method) is Closure:
            bound = method.bind(old)
            result = self.call_value(bound, [new], stmt.span)
            if getattr(result, "name", "") != "NotImplemented":
                self.assign(target, result, frame)
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
                old.extend(new[:LIST_TURNS])
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
            self.tested(stmt, guard)
        self.guards.append(guard)
        signal = self.block(taken, frame)
        self.guards.pop()
        # `if not boundary: continue` guards the rest of the block.
        if signal is None and other and ends_in_jump(other):
            self.guards.append(guard)
        return signal

    def tested(self, stmt: p.If, guard: Guard) -> None:
        """A window test was made. `steps`, `trains`, `sets` and `raises` say what waits for it (`scan.Waiting`),
        `unknown` whether a part of it is a condition that the text does not decide.
        """
        self.event(
            "test",
            stmt.test.span,
            outcome=guard.outcome,
            modulus=guard.modulus,
            counter=guard.counter,
            roots=guard.roots,
            unknown=guard.unknown,
            **self.scanner.waiting(stmt)._asdict(),
        )

    def do_for(self, stmt: p.For, frame: Frame) -> str | None:
        iterable = self.eval(stmt.iterable, frame)
        level = self.level(stmt)
        loop = self.new_loop(stmt, "other", level)
        self.entries += 1
        items = self.iterate(iterable, loop, stmt)
        loop.named |= loop.kind == "count" and self._counts_steps(stmt.iterable)
        if level != "quiet" and type(iterable) in (Loader, Stream, Instance):
            items = self.not_empty(items, loop, type(iterable) is not Loader)
        loop.target, loop.over = text(stmt.target), _gone_through(stmt.iterable)
        signal = self.turn(loop, stmt, frame, items)
        if type(iterable) is ParamSet:
            self.note_frozen(stmt, iterable, frame)
        return signal

    def new_loop(self, stmt: p.For | p.While, kind: str, level: str) -> Loop:
        loop = Loop(stmt.span, self.entries, kind, level, updates="step" in self.scanner.reach(stmt.body))
        loop.clears = loop.updates and level != "quiet" and self.scanner.may_clear(stmt.body)
        return loop

    def _counts_steps(self, iterable: p.Expr) -> bool:
        """Whether a loop goes through `range(accumulation_steps)` by name, whatever that number is made from."""
        while isinstance(iterable, p.Call) and iterable.args and text(iterable.func) != "range":
            iterable = iterable.args[0]  # tqdm(range(...))
        if not isinstance(iterable, p.Call) or len(iterable.args) != 1:
            return False
        count = iterable.args[0]
        return isinstance(count, (p.Name, p.Attr)) and self.world.is_accumulation(text(count).rpartition(".")[2])

    def note_frozen(self, stmt: p.For, parameters: ParamSet, frame: Frame) -> None:
        """`for p in net.parameters(): p.requires_grad = flag`, without a test: where False, no part has a gradient.

        The flag is the same for all: `"head" in name` is none.
        """
        target = stmt.target.items[-1] if isinstance(stmt.target, p.Sequence) and stmt.target.items else stmt.target
        if self.scanner.scan(stmt.body).jumps:
            return
        for inner in stmt.body:
            value: Value = None
            if isinstance(inner, p.Assign) and text(inner.targets[0]) == f"{text(target)}.requires_grad":
                value = None if isinstance(inner.value, (p.Compare, p.Bool)) else self.eval(inner.value, frame)
            elif isinstance(inner, p.Do) and isinstance(inner.value, p.Call):
                call = inner.value
                given = [*call.args, *(value for name, value in call.keywords if name == "requires_grad")]
                if text(call.func) == f"{text(target)}.requires_grad_" and len(given) == 1:
                    value = self.eval(given[0], frame)
            if v.switch(value) is False:
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
        if self.stack and self.stack[-1].generator and _feeds(stmt.body):
            return "micro"
        if stmt.span in self.world.loud and not scanner.has_backward(stmt.body):
            inner = any(
                loop.span in self.world.loud or scanner.has_backward(loop.body)
                for loop in scanner.scan(stmt.body).loops
            )
            return "outer" if inner else "micro"
        if not scanner.has_backward(stmt.body):
            return "quiet"
        if scanner.has_nested_backward(stmt.body):
            if scanner.accumulates(stmt.body):
                self.detours |= {loop.span for loop in scanner.scan(stmt.body).loops}
                return "micro"
            return "micro" if scanner.gates_step(stmt.body) and not self._nested_steps(stmt.body) else "outer"
        if "step" in scanner.reach(stmt.body):
            return "micro"
        return "window"

    def _nested_steps(self, body: tuple[p.Stmt, ...]) -> bool:
        return any("step" in self.scanner.reach(loop.body) for loop in self.scanner.scan(body).loops)

    def do_while(self, stmt: p.While, frame: Frame) -> str | None:
        level = self.level(stmt)
        key, negated = plain_test(stmt.test)
        loop = self.new_loop(stmt, "while", level)
        if key.replace(".", "").isidentifier():
            loop.flag = key, negated
            loop.depth = -1 if "." in key else len(self.stack)
        self.entries += 1
        cap = {
            "micro": 3 * max([self.assignment.k, *self.world.literal_ks]) + 2,
            "outer": self.wanted_turns("outer") + 1,
        }
        limit = cap.get(level, 3 * self.world.turns(self.assignment) if level == "window" else QUIET_TURNS)
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
                    self.counted_down(stmt.test, frame)
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

    def counted_down(self, test: p.Expr, frame: Frame) -> None:
        """Behind `while left > 0`, which was cut short, nothing is left."""
        counts = isinstance(test, p.Compare) and test.ops in ((">",), ("!=",)) and text(test.rights[0]) == "0"
        if counts and isinstance(test, p.Compare) and isinstance(test.left, (p.Name, p.Attr)):
            self.assign(test.left, 0, frame)

    def do_with(self, stmt: p.With, frame: Frame) -> str | None:
        exits = self.entered(stmt, frame)
        try:
            return self.block(stmt.body, frame)
        finally:
            for leave in reversed(exits):
                leave()

    def entered(self, stmt: p.With, frame: Frame) -> list[Leave]:
        """Enter the items of a `with`: what to do on leaving, the last one first."""
        exits: list[Leave] = []
        for manager, target in stmt.items:
            value = self.eval(manager, frame)
            bound, leave = self.enter(value, manager)
            if leave is not None:
                exits.append(leave)
            if target is not None:
                self.assign(target, bound, frame)
        return exits

    def enter(self, value: Value, manager: p.Expr) -> tuple[Value, Leave | None]:
        """Enter a `with` item: what `as` binds, and what to do on leaving."""
        if isinstance(value, tuple) and value and isinstance(value[0], str):
            what = value[0]
            if what == "grad":
                before = value[2] if len(value) > 2 else self.grad_enabled
                self.grad_enabled = bool(value[1])

                def restore() -> None:
                    self.grad_enabled = before

                return None, restore
            if what == "accumulate":
                self.accumulate(value[1])
                return None, None
            if what == "scaled":
                return value[1], None
            if what == "context":
                return self.enter_generator(value[1], value[2], manager.span)
            return (value[1] if len(value) > 1 else None), None
        kind = type(value)
        if kind is v.Exits:
            return value, lambda: self.unwind(value)
        if kind is Instance:
            method = self.member(value.cls, "__enter__")
            leave = self.member(value.cls, "__exit__")

            def out() -> None:
                if type(leave) is Closure:
                    bound = leave.bind(value)
                    self.invoke(bound, [None, None, None], {}, manager.span)

            if type(method) is Closure:
                bound = method.bind(value)
                return self.invoke(bound, [], {}, manager.span), out
            return value, out
        if kind is Opaque:
            last = value.name
            if last in ("no_grad", "inference_mode"):
                return self.enter(("grad", False), manager)
        if kind is Imported and value.path.rpartition(".")[2] in ("no_grad", "inference_mode"):
            return self.enter(("grad", False), manager)
        return value, None

    def unwind(self, exits: v.Exits) -> None:
        """Do what an ExitStack was told, the last first."""
        while exits.leave:
            exits.leave.pop()()

    def exits_method(
        self, owner: v.Exits, name: str, args: list[Value], keywords: dict[str, Value], expr: p.Call, frame: Frame
    ) -> Value:
        if name == "enter_context" and args:
            bound, leave = self.enter(args[0], expr)
            if leave is not None:
                owner.leave.append(leave)
            return bound
        if name in ("callback", "push") and args:
            callee, given = args[0], args[1:] if name == "callback" else [None, None, None]
            owner.leave.append(lambda: self.call(callee, given, keywords, expr, frame))
            return callee
        if name == "close":
            self.unwind(owner)
        if name == "pop_all":
            made = v.Exits()
            made.leave, owner.leave = owner.leave, []
            return made
        return None

    def enter_generator(self, closure: Closure, frame: Frame, span: Span) -> tuple[Value, Leave | None]:
        """A @contextmanager function of the file: what stands before its yield, the value, and what stands behind."""

        def within(work: Callable[[], Any]) -> Any:
            self.stack.append(closure.function)
            self.path.append(span)
            try:
                return work()
            finally:
                self.stack.pop()
                self.path.pop()

        bound, leave = within(lambda: self.until_yield(closure.function.body, frame))
        return bound, (lambda: within(leave)) if leave is not None else None

    def until_yield(self, body: tuple[p.Stmt, ...], frame: Frame) -> tuple[Value, Leave | None]:
        """Run a body up to its yield, into the blocks around it: the value that it yields, and what runs on leaving."""
        at = next((at for at, stmt in enumerate(body) if _yields(stmt)), len(body))
        signal = self.block(body[:at], frame)
        if signal is not None or at == len(body):
            return None, None
        stmt, behind = body[at], body[at + 1 :]
        leaving: list[Leave] = [lambda: self.block(behind, frame)] if behind else []
        bound: Value = None
        inner: tuple[p.Stmt, ...] = ()
        if isinstance(stmt, p.Do) and isinstance(stmt.value, p.Yield):
            bound = self.eval(stmt.value.value, frame) if stmt.value.value is not None else None
        elif isinstance(stmt, p.With):
            leaving += self.entered(stmt, frame)
            inner = stmt.body
        elif isinstance(stmt, p.Try):
            final = stmt.final
            leaving += [lambda: self.block(final, frame)] if final else []
            inner = stmt.body
        elif isinstance(stmt, p.If):
            outcome, _ = self.condition(stmt.test, frame, lambda: True, stmt)
            inner = stmt.body if outcome else stmt.orelse
        if inner:
            bound, leave = self.until_yield(inner, frame)
            leaving += [leave] if leave is not None else []

        def out() -> None:
            for one in reversed(leaving):
                one()

        return bound, out if leaving else None

    def is_one(self, target: p.Name, owner: str) -> bool:
        """Whether accumulation steps that are 1 are left so: the other side shows what k > 1 would do."""
        key = f"{owner}.{target.id} is 1"
        chosen = self.choices.get(key, True)
        self.run.conditions.setdefault(key, Condition(key, target.span, chosen, True, False))
        return chosen

    def do_try(self, stmt: p.Try, frame: Frame) -> str | None:
        signal = None
        try:
            try:
                signal = self._handled(stmt, frame)
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

    def _handled(self, stmt: p.Try, frame: Frame) -> str | None:
        """The body of a `try`, during which an exception has somebody to go to."""
        handled = any(not _gives_up(body) for _, _, body in stmt.handlers)
        self.handlers += handled
        try:
            return self.block(stmt.body, frame)
        finally:
            self.handlers -= handled

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

    def do_raise(self, stmt: p.Raise, frame: Frame) -> None:
        self.give_up(stmt.span)
        guard = self.guards[-1] if self.guards else None
        if self.loops and not self.handlers and guard is not None and guard.key not in self.choices:
            # A program that is run as it stands does not fail: it was the abstract numbers and answers that led here.
            return
        raise PyRaise("Exception")

    def do_delete(self, stmt: p.Delete, frame: Frame) -> None:
        for target in stmt.targets:
            if type(target) is p.Name:
                frame.vars.pop(target.id, None)
            elif type(target) is p.Attr and target.name == "grad":
                self.store_attribute(self.eval(target.value, frame), "grad", None, target.span)
            elif type(target) is p.Index and isinstance(held := self.eval(target.value, frame), list):
                self.drop(held, self.eval(target.index, frame))

    def do_import(self, stmt: p.Import, frame: Frame) -> None:
        if stmt.name != "*":
            frame.vars[stmt.name] = Imported(stmt.path)
        else:
            frame.vars.update(self.everything(p.file_of(stmt.span), stmt.path))

    def do_scope(self, stmt: p.Scope, frame: Frame) -> None:
        for name in stmt.names:
            if stmt.kind == "global":
                frame.outer[name] = top_of(frame)
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
        return made if made.kind or not stmt.decorators else self.decorated(made, stmt.decorators, frame)

    def decorated(self, made: Value, decorators: tuple[p.Expr, ...], frame: Frame) -> Value:
        """What the decorators of the file make of a function or class: a wrapper counts if it trains."""
        for decorator in reversed(decorators):
            callee = decorator.func if isinstance(decorator, p.Call) else decorator
            root = callee
            while isinstance(root, p.Attr):
                root = root.value
            if not isinstance(root, p.Name) or type(self.eval(root, frame)) not in (Closure, ClassValue, Instance):
                continue
            with suppress(PyRaise):
                wrapper = self.eval(decorator, frame)
                result = self.call_value(wrapper, [made], decorator.span) if type(wrapper) is Closure else None
                if type(result) is Closure and self.scanner.has_events(result.function.body):
                    made = result
        return made

    def do_class(self, stmt: p.Class, frame: Frame) -> None:
        bases = tuple(self.eval(base, frame) for base in stmt.bases)
        cls = ClassValue(stmt, frame, {}, bases, stmt.name)
        passes = any(isinstance(one, p.Define) and one.function.name == "forward" for one in stmt.body)
        for base in bases:
            path = base.path if isinstance(base, Imported) else getattr(base, "name", "")
            last = path.rpartition(".")[2]
            cls.module |= base.module if isinstance(base, ClassValue) else is_module_base(path, passes)
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
                made = self.eval(one.value, body)
                for target, value in _each(one.targets, made):
                    # That a plain class of settings does not accumulate is meant so, as a constant is.
                    plain = numeric(value) == 1 and all(getattr(base, "path", "")[-6:] == "object" for base in bases)
                    steps = self.world.is_accumulation(target.id)
                    # Without a type it is no field, and no caller can set it.
                    if (cls.dataclass and one.annotated) or (steps and not (plain and self.is_one(target, stmt.name))):
                        value = self.tunable(value, f"{stmt.name}.{target.id}", target.id)
                    elif type(value) is int and value and target.id in self.world.class_settings:
                        value = self.setting(value, f"{stmt.name}.{target.id}", target.id)
                    cls.members[target.id] = body.vars[target.id] = value
        frame.vars[stmt.name] = cls
        if stmt.decorators:
            self.decorated(cls, stmt.decorators, frame)


def _each(targets: tuple[p.Expr, ...], value: Value) -> Iterator[tuple[p.Name, Value]]:
    """The names of an assignment in a class, with what each is given: `k, within = 4, 0`."""
    for target in targets:
        if isinstance(target, p.Name):
            yield target, value
        elif isinstance(target, p.Sequence) and isinstance(value, (tuple, list)):
            yield from ((one, part) for one, part in zip(target.items, value, strict=False) if isinstance(one, p.Name))


def _yields(stmt: p.Stmt) -> bool:
    """Whether a statement of a context manager's function is its yield, or a block around it."""
    if isinstance(stmt, p.Do):
        return isinstance(stmt.value, p.Yield)
    if isinstance(stmt, p.If):
        return any(map(_yields, (*stmt.body, *stmt.orelse)))
    return isinstance(stmt, (p.Try, p.With)) and any(map(_yields, stmt.body))


def _feeds(body: tuple[p.Stmt, ...]) -> bool:
    """Whether a block of a generator yields, or a loop in it does."""
    return any(
        isinstance(getattr(one, "value", None), p.Yield) or any(map(_feeds, bodies(one)))  # also `x = yield y`
        for one in body
    )


def _gives_up(body: tuple[p.Stmt, ...]) -> bool:
    """Whether an exception ends the program here, too: `except Exception: log(); sys.exit(1)`."""
    return bool(body) and (isinstance(body[-1], p.Raise) or exits(body[-1]))


def _catches(kind: p.Expr | None, name: str) -> bool:
    if kind is None:
        return True
    names_text = text(kind)
    return name in names_text or "Exception" in names_text


def _gone_through(iterable: p.Expr) -> frozenset[str]:
    """The texts of what a loop goes through: of `enumerate(zip(a, b))` a and b, of `range(len(a))` a."""
    if isinstance(iterable, p.Call) and text(iterable.func) in _VIEWS:
        return frozenset().union(*map(_gone_through, iterable.args))
    if isinstance(iterable, p.Call) and isinstance(iterable.func, p.Attr) and not iterable.args:
        return frozenset((text(iterable.func.value),))  # losses.items()
    return frozenset((text(iterable),))


def _bound(target: p.Expr, value: Value) -> Iterator[tuple[str, Value]]:
    """What an assignment binds, by name: `a, b = x, y` is two, `mean = (0.9 * mean[0] + loss, n)` one of a pair."""
    parts: Iterable[tuple[p.Expr, Value]] = ((target, value),)
    if isinstance(target, p.Sequence) and isinstance(value, (list, tuple)) and len(target.items) == len(value):
        parts = zip(target.items, value, strict=True)
    for name, one in parts:
        for inner in leaves(one):
            yield text(name), inner


_STATEMENTS: dict[type, Callable[[Statements, Any, Frame], str | None]] = {
    p.Assign: Statements.do_assign,
    p.Augment: Statements.do_augment,
    p.Do: Statements.do_expression,
    p.If: Statements.do_if,
    p.For: Statements.do_for,
    p.While: Statements.do_while,
    p.With: Statements.do_with,
    p.Try: Statements.do_try,
    p.Match: Statements.do_match,
    p.Return: Statements.do_return,
    p.Break: lambda machine, stmt, frame: BREAK,
    p.Continue: lambda machine, stmt, frame: CONTINUE,
    p.Raise: Statements.do_raise,
    p.Delete: Statements.do_delete,
    p.Import: Statements.do_import,
    p.Scope: Statements.do_scope,
    p.Define: Statements.do_define,
    p.Class: Statements.do_class,
}
