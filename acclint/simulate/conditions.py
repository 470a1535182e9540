"""The truth of tests: window tests are recognised, unknown conditions chosen and remembered."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from acclint import program as p
from acclint.knowledge import names
from acclint.program import Span
from acclint.simulate.core import Frame
from acclint.simulate.methods import Methods
from acclint.simulate.scan import plain_test, text, within
from acclint.simulate.trace import Condition, Guard
from acclint.simulate.values import Imported, Maybe, Num, Number, Opaque, Stream, Tensor, Value, numeric, roots_of
from acclint.simulate.vocabulary import word_set
from acclint.simulate.world import Restart

_RESUMING = re.compile(r"resum|continu|restor", re.IGNORECASE)
# What a training that just begins finds false: it is not the evaluation, nor stopped, nor is there a checkpoint.
_LATER = re.compile(
    rf"{_RESUMING.pattern}|checkpoint|ckpt|exists|isfile|isdir|eval_only|test_only|is_sweep|environ|(?-i:TEST)"
    r"|stop(?!\w*_(?:grad|gradient|words?|tokens?|iters?|steps?|epochs?|ids?|at))|abort|suspend|terminat|interrupt|preempt",
    re.IGNORECASE,
)
_ABSENT = re.compile(r"\bNone\b|== (?:0|''|-1|False)$")  # of a setting that is not given
MAX_AVOIDED = 4  # answers that are given up because they led to an error

_TRAINING = re.compile(r"train|eval|val|test|phase|mode|split|grad_enabled", re.IGNORECASE)

_LAST = word_set("last final end done finished")
_CONSTANT = word_set("zeros zeros_like new_zeros tensor new_tensor full")  # what stands for a loss where there is none
_OF_WINDOWS = frozenset({"step", "zero_grad"})  # what waits for a window test


def _is_constant(value: p.Expr | None) -> bool:
    """Whether an expression is a tensor of a constant: `torch.zeros(1).cuda()`, `Variable(torch.zeros(1))`."""
    if not isinstance(value, p.Call):
        return False
    name = text(value.func).rpartition(".")[2]
    inner = value.func.value if isinstance(value.func, p.Attr) else None
    return name in _CONSTANT or _is_constant(inner) or (name == "Variable" and any(map(_is_constant, value.args)))


class Conditions(Methods):
    """Deciding conditions."""

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
        test = bare(test)
        if type(test) is p.Unary and test.op == "not":
            inner = test.operand
            flipped = None if want is None else not want
            return not self.decide(inner, frame, flipped, guard, lambda: not desired(), stmt)
        if type(test) is p.Bool:
            is_and = test.op == "and"
            refuses = is_and and isinstance(stmt, p.If) and bool(stmt.body) and isinstance(stmt.body[-1], p.Raise)
            for part in test.values:
                if not is_and and self._beside_remainder(part, test):
                    value = self.eval(part, frame)
                    open_end = self._is_open(value)
                    if self._is_last(part) if open_end else self.truth(value, part, guard, desired, stmt):
                        return True
                    continue
                if (
                    not is_and
                    and isinstance(part, (p.Name, p.Attr, p.Call, p.Index))
                    and self._beside_window(part, test)
                ):
                    value = self.eval(part, frame)
                    if type(value) in (Opaque, Maybe):
                        # `or last_batch`: of an end that is not known, only the last of a pass is one.
                        if self.last_batch and not _LAST.isdisjoint(names.words(text(part))):
                            return True
                        if self.known_answer(value, part):
                            return True
                        continue
                # `if args.train and length > limit: raise`: the last part is what is wrong, not that it trains.
                trains = refuses and part is not test.values[-1] and self._updates_if(part)
                outcome = self.decide(part, frame, want, guard, (lambda: True) if trains else desired, stmt)
                if outcome != is_and:
                    return outcome
            return is_and
        if type(test) is p.IfElse:
            chosen = self.decide(test.test, frame, None, guard, desired, stmt)
            part = test.body if chosen else test.orelse
            if type(part) is p.Const:
                return bool(part.value)
            return self.decide(part, frame, want, guard, desired, stmt)
        value = self.eval(test, frame)
        return self.truth(value, test, guard, desired if want is None else (lambda: bool(want)), stmt)

    def _beside_remainder(self, part: p.Expr, test: p.Bool) -> bool:
        """Whether a part of a test is `i + 1 == total`, and another one a remainder of the same counter."""
        if not self.loops or not isinstance(part, p.Compare) or part.ops not in (("==",), (">=",)):
            return False
        names_here = {text(one) for one in within(part) if isinstance(one, (p.Name, p.Attr))}
        remainders = [
            one
            for other in test.values
            if other is not part
            for one in within(other)
            if isinstance(one, p.Binary) and one.op == "%"
        ]
        return any(text(one) in names_here for remainder in remainders for one in within(remainder.left))

    def known_answer(self, value: Opaque | Maybe, test: p.Expr) -> bool:
        """What is known of an unknown condition; from now on that it is false, if nothing is."""
        negated = type(value) is Maybe and value.negated
        return self.choose(value.key, test.span, lambda: negated, None) != negated

    def _beside_window(self, part: p.Expr, test: p.Bool) -> bool:
        """Whether another part of a test takes a remainder, or compares with the accumulation steps by their name."""
        for one in (inner for other in test.values if other is not part for inner in within(other)):
            if isinstance(one, p.Binary) and one.op == "%":
                return True
            sides = (one.left, *one.rights) if isinstance(one, p.Compare) else ()
            counts = not any(isinstance(side, p.Const) for side in sides)  # `accum_steps == 1` is no window test.
            if counts and any(self.world.is_accumulation(text(side).rpartition(".")[2]) for side in sides):
                return True
        return False

    def _is_open(self, value: Value) -> bool:
        """Whether a comparison is with something of which nothing is known."""
        if type(value) is Num:
            roles = {self.role_of_root(root) for root in value.roots}
            return value.modulus is None and bool(roles) and roles <= {"", "limit"}
        return type(value) is Maybe

    def _is_last(self, part: p.Expr) -> bool:
        """Whether a counter of the innermost loop has come to its unknown total, with the last item of a pass."""
        target = self.loops[-1].target.strip("()").partition(",")[0]
        counted = any(isinstance(one, p.Name) and one.id == target for one in within(part))
        return counted and self.last_batch

    def _updates_if(self, test: p.Expr) -> bool:
        """Whether updates elsewhere in the file wait for the same test."""
        key, negated = plain_test(test)
        known = self.world.updating.get(key)
        return known is not None and known != negated

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
        checks = isinstance(stmt, p.If) and bool(stmt.body) and type(stmt.body[-1]) is p.Raise
        if kind is Num and value.roots and checks and not self.loops:
            return desired()  # A check of settings: the numbers of this run are no reason to fail.
        if kind is Num:
            if guard is not None:
                guard.roots |= value.roots
                if value.modulus is not None:
                    guard.modulus, guard.k_roots = value.modulus[:2]
                    guard.roots |= guard.k_roots
                    guard.counter = value.modulus[2]
                    guard.remainder = value.modulus[3]
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
            return bool(chosen != value.negated)
        if kind is Opaque:
            if guard is not None:
                guard.unknown, guard.key = True, value.key
            known = self.numbers.get(value.key)
            if known is not None and known.v != 0:
                return True
            return self.choose(value.key, test.span, desired, stmt)
        if kind is Imported:  # a setting of another file
            if guard is not None:
                guard.unknown, guard.key = True, value.path
            return self.choose(value.path, test.span, desired, stmt)
        if kind is Tensor:
            # `if torch.isnan(loss): continue`
            key = text(test)
            if guard is not None:
                guard.unknown, guard.key = True, key
            return self.choose(key, test.span, desired, stmt)
        if kind is Stream:
            return True
        return True

    def truth_of_size(
        self, value: Num, test: p.Expr, guard: Guard | None, desired: Callable[[], bool], stmt: p.If
    ) -> bool:
        """A comparison with an unknown size: its outcome in this run says nothing, unless the size is the window's."""
        branches = ((True, stmt.body), (False, stmt.orelse))
        for outcome, block in branches:
            if bool(value.v) is outcome and block and isinstance(block[-1], p.Raise):
                return not outcome  # The numbers of a run that works are not those that it refuses.
        if any(value.roots == loop.bounds for loop in self.loops):
            return bool(value.v)  # Whether a loop is at its end: `if start + size < len(x)` in range(0, len(x), size).
        roles = {self.role_of_root(root) for root in value.roots}
        if not roles <= {"", "limit", "batch", "interval", "world"}:
            return bool(value.v)
        loop = self.loops[-1] if self.loops else None
        if loop is not None and loop.level != "quiet" and loop.span not in self.detours and not self.run.backwards:
            for outcome, block in branches:
                leaves = bool(block) and not isinstance(block[-1], (p.Return, p.Raise)) and self.leaves_loop(block)
                if leaves and not self.scanner.has_backward(block):
                    return not outcome  # Nor does it stop before it has trained.
        scanner = self.scanner
        steps = "step" in scanner.reach(stmt.body) or "step" in scanner.reach(stmt.orelse)
        if steps and not scanner.has_backward(stmt.body) and not scanner.has_backward(stmt.orelse):
            counts = isinstance(test, p.Compare) and _remainder_of(text(test.left), stmt.test)
            if roles == {""} and len(value.roots) == 1 and self.loops and not counts:
                self.world.learn(self.world.roles, next(iter(value.roots)), "k")
            if "batch" in roles or "" in roles:
                return bool(value.v)
        key, negated = plain_test(test)
        if guard is not None:
            guard.unknown, guard.key = True, key
        return self.choose(key, test.span, lambda: desired() != negated, stmt) != negated

    def frozen_counter(
        self, value: Num, test: p.Expr, guard: Guard, desired: Callable[[], bool], stmt: p.Stmt | None
    ) -> bool | None:
        """A remainder of a counter that this file never raises: somebody else counts.

        Where it gates an update it is taken to be true on every k-th evaluation; elsewhere it is an unknown condition.
        """
        assert value.modulus is not None
        divisor, _, counter, _ = value.modulus
        unknown = {root for root in roots_of(counter) if self.role_of_root(root) in ("", "limit", "epochs")}
        if not unknown or not isinstance(stmt, p.If) or test.span in self.world.counting:
            return None
        guard.unknown, guard.key = True, text(test)
        reached = self.scanner.reach(stmt.body) | self.scanner.reach(stmt.orelse)
        if _OF_WINDOWS.isdisjoint(reached) or not self.loops or self.scanner.has_backward(stmt.body):
            return self.choose(guard.key, test.span, desired, None)  # Now true, now false: it is no setting to flip.
        moved = numeric(self.counters.setdefault(test.span, counter)) != numeric(counter)
        if moved and self.loops[-1].level == "micro":
            self.world.counting.add(test.span)  # `epoch * len(data) + i`: only where it begins is not known.
            raise Restart
        turn = self.evaluations[test.span] = self.evaluations.get(test.span, 0) + 1
        # `if it % k: continue` is true where there is a remainder.
        bare = not isinstance(test, p.Compare) and not isinstance(value.v, bool)
        unequal = bare or (isinstance(test, p.Compare) and test.ops != ("==",))
        if not isinstance(divisor, int) or divisor < 1:
            return unequal if "step" in reached else self.choose(guard.key, test.span, desired, None)
        kept = self.world.phases.get(frozenset(unknown))
        phase = self._phase(value, next(iter(unknown)), test) if len(unknown) == 1 else None
        if "step" in reached:
            if phase is not None and kept is None:
                self.world.phases[frozenset(unknown)] = phase
                raise Restart
            return (turn % divisor == 0) != unequal
        if phase is None or kept is None:
            return self.choose(guard.key, test.span, desired, None)
        # So many turns after the update's test, which reads the same counter.
        return ((turn + phase - kept) % divisor == 0) != unequal

    def _phase(self, value: Num, root: str, test: p.Expr) -> int | None:
        """How many turns before a remainder is the one asked for an unknown counter is a multiple of the divisor."""
        assert value.modulus is not None
        divisor, _, counter, place = value.modulus
        number, begin = numeric(counter), self.numbers.get(root)
        asked: Number = 0
        if isinstance(test, p.Compare) or isinstance(value.v, bool):
            spans = [test.span, *(one for one in self.compared if place.within(one))]
            sides = next((self.compared[one] for one in spans if one in self.compared), (None, None))
            other = [one for one in sides if type(one) is not Num or one.modulus is None]
            taken = [one for one in sides if type(one) is Num and one.modulus is not None]
            if len(other) != 1 or len(taken) != 1 or number is None:
                return None
            # `it % k + 1 == k` asks for k - 1.
            asked = (numeric(other[0]) or 0) - (taken[0].v - number % divisor)
        if number is None or begin is None or int(asked) != asked:
            return None
        return int(number - begin.v - asked) % int(divisor)

    def choose(self, key: str, span: Span, desired: Callable[[], bool], stmt: p.Stmt | None) -> bool:
        known = self.run.conditions.get(key)
        self.asked += 1
        matters = divides = False
        if stmt is not None and isinstance(stmt, p.If):
            body, orelse = self.scanner.has_events(stmt.body), self.scanner.has_events(stmt.orelse)
            divides = bool(self.loops and stmt.body and stmt.orelse) and self._divides_one(stmt)
            matters = (body and orelse) or (bool(self.loops) and (body or orelse)) or divides
        if known is not None:
            known.matters |= matters
            known.divides |= divides
            return known.value
        chosen = self.choices.get(key, self.world.avoiding.get(key))
        if chosen is None and stmt is None and _RESUMING.search(key):
            chosen = _at_first(key)  # `fresh = args.resume is None`
        if chosen is None and key.endswith(" is None") and names.is_accumulation_switch(key):
            chosen = False  # What is interesting is when it accumulates.
        if chosen is None:
            chosen = desired()
        self.run.conditions[key] = Condition(key, span, chosen, matters, divides)
        return chosen

    def give_up(self, span: Span) -> None:
        """The run is about to end before it has trained: answers that were right one by one do not go together.

        The last one in the file of `span` is given up, and the run begins anew.
        """
        if self.run.backwards or self.choices or len(self.world.avoiding) >= MAX_AVOIDED:
            return
        for guard in reversed(self.guards):
            if p.file_of(guard.span) != p.file_of(span):
                break  # Another file's errors say nothing about the answers of this one.
            known = self.run.conditions.get(guard.key) if guard.unknown else None
            if known is not None and guard.key not in self.world.avoiding:
                self.world.avoiding[guard.key] = not known.value
                raise Restart

    def _divides_one(self, stmt: p.If) -> bool:
        """Whether one branch of two divides by the accumulation steps, and the other does not.

        That an evaluation does not divide says nothing.
        """
        return not _TRAINING.search(text(stmt.test)) and self._divides(stmt.body) != self._divides(stmt.orelse)

    def _divides(self, body: tuple[p.Stmt, ...]) -> bool:
        first, last = body[0].span, body[-1].span
        block = Span(first.row, first.column, last.end_row, last.end_column)
        return any(division.within(block) for division in self.world.k_divisions)

    def desired(self, stmt: p.If) -> bool:
        """The branch of an unknown condition to follow first: the one with events; no jumps."""
        scanner = self.scanner
        body_jumps, else_jumps = self.leaves_loop(stmt.body), bool(stmt.orelse) and self.leaves_loop(stmt.orelse)
        body_events, else_events = scanner.has_events(stmt.body), scanner.has_events(stmt.orelse)
        if body_jumps and else_jumps:
            return not isinstance(stmt.body[-1], p.Raise)
        if body_jumps and self._returns_choice(stmt.body):
            return True
        if body_jumps and type(stmt.body[-1]) is p.Break and self.loops and self.loops[-1].span in self.detours:
            return True
        key, negated = plain_test(stmt.test)
        if body_jumps:
            return scanner.has_backward(stmt.body) and (not names.is_trial(key) or _at_first(key) != negated)
        if else_jumps:
            return True
        if key.endswith("== 0") and ".grad" in key:
            return negated  # Parameters that a loss does not reach.
        if else_events and not body_events:
            return False
        if else_events and "step" in scanner.reach(stmt.orelse) and "step" not in scanner.reach(stmt.body):
            return False  # `if overflow: optimizer.zero_grad() else: optimizer.step()`
        trains = {"backward", "step"} & (scanner.reach(stmt.body) | scanner.reach(stmt.orelse))
        if _RESUMING.search(key) and not trains and (stmt.orelse or not body_events):
            return _at_first(key) != negated  # A training begins, from nothing.
        if not trains and "load_state_dict" in scanner.reach(stmt.body) - scanner.reach(stmt.orelse):
            return False  # Nor does it go on where another has ended.
        if not trains and not any(loop.level in ("micro", "window") for loop in self.loops):
            given = _zeros(stmt.orelse) & _given(stmt.body)
            if any(not names.is_loss_name(one) and not self.world.is_accumulation(one) for one in given):
                return False  # `step = saved["step"] if saved else 0`, written as a statement
        given_up = "zero_grad" in scanner.reach(stmt.body) and "step" not in scanner.reach(stmt.body)
        if given_up and not stmt.orelse and _zeros(stmt.body) & self.world.counters:
            return False  # `if has_nan(model): optimizer.zero_grad(); n = 0`
        if not body_events:
            # The same test elsewhere: the outcome under which the updates happen.
            known = self.world.updating.get(key)
            if known is not None:
                return known != negated
        if not body_events and not stmt.orelse:
            return _at_first(key) != negated if names.is_trial(key) or _LATER.search(key) else True
        return True

    def leaves_loop(self, body: tuple[p.Stmt, ...]) -> bool:
        """Whether a block ends in a jump, or sets the flag that a `while` around it waits for, without an update."""
        flags = [loop.flag for loop in self.loops if loop.flag is not None and loop.depth in (-1, len(self.stack))]
        return ends_in_jump(body) or (
            "step" not in self.scanner.reach(body)
            and any(
                isinstance(one, p.Assign)
                and isinstance(one.value, p.Const)
                and any((text(target), one.value.value) in flags for target in one.targets)
                for one in body
            )
        )

    def _returns_choice(self, body: tuple[p.Stmt, ...]) -> bool:
        """`if name == "adam": return Adam(...)` in a factory: the first choice will do; not `return torch.zeros(1)`."""
        last = body[-1]
        value = last.value if isinstance(last, p.Return) else None
        if _is_constant(value):
            return False
        made = isinstance(value, p.Sequence) and not all(isinstance(one, p.Const) for one in value.items)
        return (
            (isinstance(value, p.Call) or made)
            and bool(self.stack)
            and not self.scanner.has_backward(self.stack[-1].body)
        )

    def threshold(self, stmt: p.If, guard: Guard) -> None:
        """A comparison of a counter of the file with a number, where it gates an update, is a window test."""
        jumps = ends_in_jump(stmt.body)
        if "%" in text(stmt.test):
            return  # The remainder is the window test, the comparison beside it is something else.
        steps = "step" in self.scanner.reach(stmt.body) or "step" in self.scanner.reach(stmt.orelse)
        if not steps and not (jumps and not self.scanner.has_events(stmt.body)):
            return
        todo: list[p.Expr] = [stmt.test]
        while todo:
            one = bare(todo.pop(0))
            if isinstance(one, p.Unary) and one.op == "not":
                todo.append(one.operand)
            elif isinstance(one, p.Bool):
                todo += one.values
            elif isinstance(one, p.Compare) and len(one.ops) == 1 and one.span in self.compared:
                left, right = self.compared[one.span]
                ours, theirs = (self.counts(side) or since(side, stmt) for side in (one.left, one.rights[0]))
                if ours == theirs:
                    continue
                counter, bound, said = (left, right, one.rights[0]) if ours else (right, left, one.left)
                limit = numeric(bound)
                if not isinstance(limit, int) or isinstance(limit, bool) or limit < 2 or numeric(counter) is None:
                    continue
                if isinstance(said, p.Binary) and said.op == "-" and text(said.right) == "1":
                    # A counter from 0 that is compared with k - 1.
                    limit, said = limit + 1, said.left
                counted = not isinstance(one.left, p.Call) and not isinstance(one.rights[0], p.Call)
                if counted and not jumps and not roots_of(counter) and self.loops[-1].level == "micro":
                    self.learn_k(limit, roots_of(bound), in_test=True)
                guard.modulus, guard.counter, guard.bound = limit, counter, text(said)
                guard.bound_span, guard.k_roots = said.span, roots_of(bound)
                guard.roots |= roots_of(bound) | roots_of(counter)
                return

    def counts(self, expr: p.Expr) -> bool:
        """Whether an expression is a counter of the file, or one and a number."""
        if isinstance(expr, p.Binary) and expr.op in ("+", "-"):
            return self.counts(expr.left) or self.counts(expr.right)
        if isinstance(expr, p.Call) and text(expr.func) in ("len", "builtins.len") and len(expr.args) == 1:
            return text(expr.args[0]) in self.world.filled
        return isinstance(expr, (p.Name, p.Attr)) and text(expr) in self.world.counters


def since(expr: p.Expr, stmt: p.If) -> bool:
    """Whether `i - last` is the distance from the last time that the test was true: its block sets `last = i`."""
    if not (isinstance(expr, p.Binary) and expr.op == "-"):
        return False
    now, last = text(expr.left), text(expr.right)
    return any(
        isinstance(one, p.Assign) and text(one.value) == now and text(one.targets[0]) == last for one in stmt.body
    )


def bare(test: p.Expr) -> p.Expr:
    """A test without `bool(...)`, `True if ... else False` (and the other way round) around it."""
    while True:
        if isinstance(test, p.Call) and len(test.args) == 1 and text(test.func) in ("bool", "builtins.bool"):
            test = test.args[0]
        elif isinstance(test, p.IfElse) and (text(test.body), text(test.orelse)) == ("True", "False"):
            test = test.test
        elif isinstance(test, p.IfElse) and (text(test.body), text(test.orelse)) == ("False", "True"):
            return p.Unary(test.span, "not", test.test)
        else:
            return test


def _at_first(key: str) -> bool:
    """Whether a test of a resumption or a trial is true where there is none: `args.resume is None`."""
    return _ABSENT.search(key) is not None


def exits(stmt: p.Stmt) -> bool:
    """Whether a statement ends the program."""
    called = stmt.value if isinstance(stmt, p.Do) else None
    return isinstance(called, p.Call) and text(called.func) in ("sys.exit", "exit", "quit", "os._exit")


def _remainder_of(counter: str, test: p.Expr) -> bool:
    """Whether a test also takes the remainder of what one of its parts compares: `it > 0 and it % k == 0`."""
    return any(isinstance(one, p.Binary) and one.op == "%" and counter in text(one.left) for one in within(test))


def _given(body: tuple[p.Stmt, ...]) -> set[str]:
    """What a block gives a value that is no literal, by text."""
    assigned = [one for one in body if isinstance(one, p.Assign) and not isinstance(one.value, p.Const)]
    return {text(target) for one in assigned for target in one.targets}


def _zeros(body: tuple[p.Stmt, ...]) -> set[str]:
    """What a block sets to 0, by text."""
    assigned = [one for one in body if isinstance(one, p.Assign) and _is_zero(one.value)]
    return {text(target) for one in assigned for target in one.targets}


def _is_zero(value: p.Expr) -> bool:
    return isinstance(value, p.Const) and type(value.value) is int and value.value == 0


def ends_in_jump(body: tuple[p.Stmt, ...]) -> bool:
    if not body:
        return False
    last = body[-1]
    if isinstance(last, (p.Break, p.Continue, p.Return, p.Raise)):
        return True
    if exits(last):
        return True
    if isinstance(last, p.With):
        return ends_in_jump(last.body)
    return isinstance(last, p.If) and bool(last.orelse) and ends_in_jump(last.body) and ends_in_jump(last.orelse)
