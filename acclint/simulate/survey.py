"""One walk over a program before it is run: the texts of expressions, and what names and places are by their use."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeGuard

from acclint import program as p
from acclint.knowledge import names
from acclint.program import Span
from acclint.simulate.scan import Scanner, bodies, children, counted, expressions, plain_test, text
from acclint.simulate.vocabulary import ZEROING
from acclint.simulate.world import World

if TYPE_CHECKING:
    from acclint.simulate import Analysis

# Calls that cut a batch into as many parts as their argument says.
_CUTS = frozenset({"chunk", "tensor_split"})


def survey(world: World, analysis: Analysis) -> None:
    """Notes texts in the analysis; in the world what is zeroed, raised or filled, and which divisions are by k.

    Another file is looked at when a run comes to it, and only for what is known by its place: its names are not the
    program's.
    """
    _walk(world.program.body, world, analysis)

    def look_at(module: p.Module) -> None:
        apart = replace(
            world,
            raised=set(),
            counters=set(),
            filled=set(),
            zeroed_names=set(),
            updating={},
            class_settings=set(),
            flags=set(),
        )
        _walk(module.body, apart, replace(analysis, moving=set()))

    world.on_meeting = look_at


def _walk(body: tuple[p.Stmt, ...], world: World, analysis: Analysis) -> None:
    walk = _Survey(world, analysis)
    todo: list[tuple[p.Stmt, ...]] = [body]
    while todo:
        for stmt in todo.pop():
            todo += bodies(stmt)
            if isinstance(stmt, p.Define):
                todo.append(stmt.function.body)
            elif isinstance(stmt, p.Class):
                todo.append(stmt.body)
            walk.statement(stmt)
            exprs = list(expressions(stmt))
            while exprs:
                one = exprs.pop()
                exprs += children(one)
                if isinstance(one, p.Lambda):
                    todo.append(one.function.body)
                walk.expression(one)
    walk.conclude()


class _Survey:
    """What the walk has met: `sizes` are texts of what sizes the windows, `quotients` divisions with their texts."""

    def __init__(self, world: World, analysis: Analysis) -> None:
        self.world = world
        self.analysis = analysis
        self.sizes: set[str] = set()
        self.quotients: list[tuple[Span, str]] = []
        self.gates: list[p.Expr] = []
        self.assigned: dict[str, p.Expr] = {}

    def statement(self, stmt: p.Stmt) -> None:
        texts = self.analysis.texts
        if isinstance(stmt, p.If):
            self._note_updates(stmt)
            if self.world.scanner.waiting(stmt).steps:
                self.gates.append(stmt.test)
        if isinstance(stmt, (p.For, p.While)):
            self._note_moving(stmt)
            self.world.flags |= _flags(stmt)
        if isinstance(stmt, (p.If, p.While)):
            texts[stmt.test.span] = text(stmt.test)
        elif isinstance(stmt, p.For):
            texts[stmt.span] = texts[stmt.iterable.span] = text(stmt.iterable)
            self.analysis.counts[stmt.span] = counted(stmt.iterable)
            self.sizes |= _loop_sizes(stmt, self.world.scanner)
        elif isinstance(stmt, p.Assign):
            self.assigned.update((one.id, stmt.value) for one in stmt.targets if isinstance(one, p.Name))
            if isinstance(stmt.value, (p.Attr, p.Index)):
                self.world.class_settings.update(one.name for one in stmt.targets if _is_of_class(one))
            if isinstance(stmt.value, p.Binary) and stmt.value.op in ("+", "-"):
                self.world.counters.update(text(one) for one in stmt.targets if text(one) == text(stmt.value.left))
        elif isinstance(stmt, p.Augment):
            self._augment(stmt)

    def _note_moving(self, loop: p.For | p.While) -> None:
        """What a loop over micro-batches computes anew by calls of something, a warm-up of k for instance."""
        scanner = self.world.scanner
        if not scanner.has_backward(loop.body) or scanner.has_nested_backward(loop.body):
            return
        todo = list(loop.body)
        while todo:
            stmt = todo.pop()
            todo += [one for body in bodies(stmt) for one in body]
            if isinstance(stmt, p.Assign) and isinstance(stmt.value, p.Call):
                self.analysis.moving.update(text(target) for target in stmt.targets)

    def _augment(self, stmt: p.Augment) -> None:
        target = text(stmt.target)
        self.analysis.texts[stmt.span] = f"{target} {stmt.op}= {text(stmt.value)}"
        self.analysis.divisors[stmt.span] = text(stmt.value)
        if stmt.op == "/":
            self.quotients.append((stmt.span, text(stmt.value)))
        if stmt.op == "*" and isinstance(stmt.value, p.Binary) and stmt.value.op == "/" and names.is_rate_name(target):
            size = text(stmt.value.left).rpartition(".")[2]
            self.analysis.scaled_rate |= names.is_loader_batch_size_name(size)
        if stmt.op in ("+", "-"):
            self.world.counters.add(target)
        if stmt.op == "+" and isinstance(stmt.value, p.Const):
            last = target.rpartition(".")[2]
            self.world.raised.add(last if isinstance(stmt.target, p.Name) else f".{last}")

    def expression(self, one: p.Expr) -> None:
        if isinstance(one, p.Binary):
            self._binary(one)
        elif isinstance(one, p.Call):
            self._call(one)
        elif isinstance(one, p.Bool):
            self.analysis.texts.update((part.span, text(part)) for part in one.values)
        elif isinstance(one, p.Unary) and one.op == "not":
            self.analysis.texts[one.operand.span] = text(one.operand)

    def _binary(self, one: p.Binary) -> None:
        self.analysis.texts[one.span] = text(one)
        if one.op in ("/", "*"):
            self.analysis.divisors[one.span] = _divisor(one.right)
        if one.op in ("/", "//"):
            self.sizes |= _micro_batches_over(one, self.world)
            if isinstance(one.right, (p.Name, p.Attr, p.Extern)) and names.is_loader_batch_size_name(
                text(one.right).rpartition(".")[2]
            ):
                self.world.sample_divisions.add(one.span)
        if one.op == "/":
            self._quotient(one, one.right)
        elif one.op == "*" and self._is_accumulation(text(one.right)):
            self.world.k_divisions.add(one.span)
        elif one.op == "%":
            self._remainder(one, one.right)

    def _call(self, one: p.Call) -> None:
        self.analysis.texts[one.span] = text(one)
        func = one.func
        if text(func) == "divmod" and len(one.args) == 2:
            self._remainder(one, one.args[1])
        if isinstance(func, p.Attr):
            receiver = self.analysis.receivers[one.span] = text(func.value)
            if func.name in ZEROING:
                self.world.zeroed_names.add(receiver.rpartition(".")[2])
            elif func.name == "accumulate":
                self.world.accumulates = True
            elif func.name == "append":
                self.world.filled.add(receiver)
            elif func.name in _CUTS and one.args:
                self.sizes |= _names_of(one.args[0])
            elif func.name in ("div", "div_") and len(one.args) == 1:
                self._quotient(one, one.args[0])
        elif isinstance(func, p.Extern) and len(one.args) == 2:
            if func.path.rpartition(".")[2] in _CUTS:
                self.sizes |= _names_of(one.args[1])
            elif func.path in ("torch.div", "torch.true_divide"):
                self._quotient(one, one.args[1])

    def _remainder(self, whole: p.Expr, modulus: p.Expr) -> None:
        self.analysis.operands[whole.span] = modulus.span
        self.analysis.moduli[whole.span] = text(modulus)

    def _quotient(self, whole: p.Expr, divisor: p.Expr) -> None:
        self.quotients.append((whole.span, text(divisor)))
        self.analysis.divided[whole.span] = divisor.span

    def _is_accumulation(self, name: str) -> bool:
        return self.world.is_accumulation(name.rpartition(".")[2])

    def conclude(self) -> None:
        """Whatever it is called: a division by the very expression that sizes the windows is a division by k."""
        for gate in self.gates:
            self.sizes |= _gate_sizes(gate, self.assigned, self.world.counters)
        tested = {divisor.rpartition(".")[2] for _, divisor in self.quotients if divisor in self.sizes}
        for span, divisor in self.quotients:
            self.analysis.divisors.setdefault(span, divisor)
            if divisor in self.sizes or self._is_accumulation(divisor):
                self.world.k_divisions.add(span)
        self.world.accumulation_names |= {name for name in tested if not names.is_batch_size_name(name)}

    def _note_updates(self, stmt: p.If) -> None:
        """Under which outcome of a test updates happen, or go on; None where two places differ."""
        body, orelse = ("step" in self.world.scanner.reach(part) for part in (stmt.body, stmt.orelse))
        key, negated = plain_test(stmt.test)
        if len(stmt.body) == 1 and isinstance(stmt.body[0], p.Break) and key.replace(".", "").isidentifier():
            body, orelse = False, True  # `if args.one_batch: break`: a setting that ends each pass
        if body != orelse and (negated or not names.is_trial(key)):
            known = self.world.updating.setdefault(key, body != negated)
            if known != (body != negated):
                self.world.updating[key] = None


def _flags(loop: p.For | p.While) -> set[str]:
    """The names that the body of a loop sets to True in one place and to False in another."""
    found: dict[str, set[object]] = {}
    todo = list(loop.body)
    while todo:
        stmt = todo.pop()
        todo += [one for body in bodies(stmt) for one in body]
        if isinstance(stmt, p.Assign) and isinstance(stmt.value, p.Const) and isinstance(stmt.value.value, bool):
            found.setdefault(text(stmt.targets[0]), set()).add(stmt.value.value)
    return {name for name, values in found.items() if len(values) == 2}


def _is_of_class(target: p.Expr) -> TypeGuard[p.Attr]:
    """Whether an attribute of a class is set, to a setting: `cls.accumulate = args.accumulate`."""
    base = target.value if isinstance(target, p.Attr) else None
    return isinstance(base, p.Name) and (base.id == "cls" or base.id[:1].isupper())


def _divisor(expr: p.Expr) -> str:
    """What a product or quotient divides by: `k` in `loss / k` and in `loss * (1 / k)`."""
    whole = isinstance(expr, p.Binary) and expr.op == "/" and text(expr.left) in ("1", "1.0")
    return text(expr.right) if whole and isinstance(expr, p.Binary) else text(expr)


def _names_of(expr: p.Expr) -> set[str]:
    return {text(expr)} if isinstance(expr, (p.Name, p.Attr)) else set()


def _micro_batches_over(expr: p.Binary, world: World) -> set[str]:
    """What the length of a loader is divided by, to count updates: k, unless its name says something else."""
    length, divisor = expr.left, text(expr.right)
    if not (isinstance(length, p.Call) and text(length.func) in ("len", "builtins.len") and len(length.args) == 1):
        return set()
    if not names.is_loader_name(text(length.args[0]).rpartition(".")[2]):
        return set()
    role = world.role_of(divisor, divisor.rpartition(".")[2])
    return {divisor} if role == "" and isinstance(expr.right, (p.Name, p.Attr, p.Index)) else set()


def _loop_sizes(stmt: p.For, scanner: Scanner) -> set[str]:
    """The name that says how many micro-batches a loop without an update goes through."""
    if not (isinstance(stmt.iterable, p.Call) and len(stmt.iterable.args) == 1):
        return set()
    inside = scanner.reach(stmt.body)
    if text(stmt.iterable.func) in ("range", "builtins.range") and "backward" in inside and "step" not in inside:
        return _names_of(stmt.iterable.args[0])
    return set()


def _gate_sizes(test: p.Expr, assigned: dict[str, p.Expr], counters: set[str]) -> set[str]:
    """The names that a window test takes for k: a modulus, or what a counter is compared with."""
    found: set[str] = set()
    exprs, followed = [test], set[str]()
    while exprs:
        one = exprs.pop()
        exprs += children(one)
        if isinstance(one, p.Name) and one.id in assigned and one.id not in followed:
            followed.add(one.id)
            if isinstance(assigned[one.id], (p.Binary, p.Compare, p.Bool, p.Unary)):
                exprs.append(assigned[one.id])
        elif isinstance(one, p.Binary) and one.op == "%":
            found |= _names_of(one.right)
        elif isinstance(one, p.Compare) and len(one.ops) == 1:
            left, right = _counts(one.left, counters), _counts(one.rights[0], counters)
            if left != right:
                found |= _names_of(one.rights[0] if left else one.left)
    return found


def _counts(expr: p.Expr, counters: set[str]) -> bool:
    if isinstance(expr, p.Binary) and expr.op in ("+", "-"):
        return _counts(expr.left, counters) or _counts(expr.right, counters)
    return text(expr) in counters
