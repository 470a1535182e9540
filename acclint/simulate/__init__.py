"""From a program to what its training loops do: abstract runs, and the facts the rules judge.

`analyze` runs the program under two assignments of numbers and, where a condition is unknown and holds events, once
more with each such condition flipped (bounded). A rule's finding must hold under both assignments.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

from acclint import program as p
from acclint.knowledge import names
from acclint.program import Span
from acclint.simulate import values as v
from acclint.simulate.entries import drive
from acclint.simulate.facts import LoopFacts, describe
from acclint.simulate.machine import Machine
from acclint.simulate.scan import Scanner, bodies, children, counted, expressions, plain_test, text
from acclint.simulate.trace import Event, Run
from acclint.simulate.values import PyRaise
from acclint.simulate.vocabulary import ZEROING
from acclint.simulate.world import ASSIGNMENTS, Assignment, Restart, Stop, World

__all__ = ["Analysis", "LoopFacts", "Path", "analyze", "execute"]

MAX_RESTARTS = 10
MAX_FLIPS = 6
MAX_PERIOD = 100


class Path:
    """One choice of the unknown conditions. `flipped` is the condition that differs from the base path, or "".

    `first` is the run under the first assignment of numbers; the one under the second is made when it is asked for,
    since most loops give nothing to confirm.
    """

    def __init__(self, first: Run, flipped: str, world: World, choices: dict[str, bool]) -> None:
        self.first = first
        self.flipped = flipped
        self._world = world
        self._choices = choices

    @cached_property
    def second(self) -> Run | None:
        """The run under the other assignment, None if it could not be made."""
        return _settled(self._world, ASSIGNMENTS[1], self._choices)


@dataclass
class Analysis:
    """What the rules look at."""

    program: p.Program
    paths: tuple[Path, ...] = ()
    loops: tuple[LoopFacts, ...] = ()
    texts: dict[Span, str] = field(default_factory=dict)
    divisors: dict[Span, str] = field(default_factory=dict)
    moduli: dict[Span, str] = field(default_factory=dict)
    receivers: dict[Span, str] = field(default_factory=dict)
    operands: dict[Span, Span] = field(default_factory=dict)  # of a remainder: the place of its modulus
    divided: dict[Span, Span] = field(default_factory=dict)  # of a division: the place of its divisor
    counts: dict[Span, str] = field(default_factory=dict)  # of a loop: how many turns it makes, in the text's words
    functions: dict[str, list[p.Function]] = field(default_factory=dict)

    @property
    def base(self) -> Run | None:
        return self.paths[0].first if self.paths else None

    def text(self, span: Span) -> str:
        """The short rendering of the expression at `span`, "" if there is none."""
        return self.texts.get(span, "")


def analyze(
    program: p.Program,
    accumulation_names: frozenset[str] = frozenset(),
    reductions: dict[str, str] | None = None,
) -> Analysis:
    """Run the training loops of one module. `reductions` maps the user's own loss callables to "mean" or "sum"."""
    scanner = Scanner(program)
    analysis = Analysis(program)
    if not scanner.has_backward(program.body) and not _any_function_backward(scanner) and not _may_keep(scanner):
        return analysis
    world = World(program, scanner, accumulation_names, reductions or {})
    _prepare(world, program, analysis)
    world.texts = analysis.texts
    base = _settled(world, ASSIGNMENTS[0], {})
    if base is None:
        return analysis
    paths = [Path(base, "", world, {})]
    for condition in [one for one in base.conditions.values() if one.matters][:MAX_FLIPS]:
        choices = {condition.key: not condition.value}
        flipped = _settled(world, ASSIGNMENTS[0], choices)
        if flipped is not None:
            paths.append(Path(flipped, condition.key, world, choices))
    analysis.paths = tuple(paths)
    analysis.functions = scanner.functions
    analysis.loops = describe(analysis, scanner)
    return analysis


def _any_function_backward(scanner: Scanner) -> bool:
    return any(
        scanner.has_backward(function.body)
        for group in (*scanner.functions.values(), *scanner.methods.values())
        for function in group
    )


def _may_keep(scanner: Scanner) -> bool:
    """Whether a program that never calls backward may still add up tensors with a graph (an evaluation)."""
    if not scanner.scan(scanner.program.body).torch:
        return False
    inside = [function.body for group in (*scanner.functions.values(), *scanner.methods.values()) for function in group]
    return any(scanner.keeps(body) for body in (scanner.program.body, *inside))


def _settled(world: World, assignment: Assignment, choices: dict[str, bool]) -> Run | None:
    """A run in which nothing new was learnt about the numbers; None if that does not come to an end."""
    for _ in range(MAX_RESTARTS):
        try:
            return execute(world, assignment, choices)
        except Restart:
            continue
    return None


def execute(world: World, assignment: Assignment, choices: dict[str, bool]) -> Run:
    """One abstract run of the module and its entries. Raises Restart if a role was learnt."""
    machine = Machine(world, assignment, choices)
    try:
        with suppress(PyRaise):
            machine.block(world.program.body, machine.globals)
        drive(machine)
    except Stop as stop:
        machine.run.stopped = str(stop)
    except RecursionError:
        machine.run.stopped = "too deeply nested"
    _stretch(world, machine)
    machine.run.lanes = machine.ledger.finish()
    machine.run.hints = world.hints
    return machine.run


def _stretch(world: World, machine: Machine) -> None:
    """A window test inside another one that was never true: run on for the product of both."""
    run = machine.run
    tests: dict[Span, list[Event]] = {}
    for event in run.of("test"):
        if event.loops:
            tests.setdefault(event.span, []).append(event)
    for events in tests.values():
        _lengthen(world, run, events)
        outer = [guard for guard in events[0].guards if guard.modulus is not None and guard.outcome]
        product = events[0].data["modulus"]
        if not outer or any(event.data["outcome"] for event in events) or not isinstance(product, int):
            continue
        if not events[0].data["steps"]:
            continue
        for guard in outer:
            product *= guard.modulus if isinstance(guard.modulus, int) else 1
        if 1 < product <= MAX_PERIOD and product not in world.literal_ks:
            world.literal_ks.add(product)
            raise Restart


def _lengthen(world: World, run: Run, events: list[Event]) -> None:
    """A window test that all training waits for, in a loop that was not run for as long: run on for three windows."""
    last, k = events[-1], events[0].data["modulus"]
    if run.backwards or len({event.data["outcome"] for event in events}) > 1 or not last.data["trains"]:
        return
    if last.loops[-1][0].level == "outer" and isinstance(k, int) and world.outer_turns < 3 * k <= MAX_PERIOD:
        world.outer_turns = 3 * k
        raise Restart


def _prepare(world: World, program: p.Program, analysis: Analysis) -> None:
    """One walk over the program: names that are zeroed (optimizers by use), divisions by k, texts of expressions."""
    todo: list[tuple[p.Stmt, ...]] = [program.body]
    sizes: set[str] = set()
    quotients: list[tuple[Span, str]] = []
    gates: list[p.Expr] = []
    assigned: dict[str, p.Expr] = {}
    while todo:
        block = todo.pop()
        for at, stmt in enumerate(block):
            todo += bodies(stmt)
            sizes |= _loop_sizes(stmt, world.scanner)
            if isinstance(stmt, p.If) and _gates_step(stmt, block[at + 1 :], world.scanner):
                gates.append(stmt.test)
            if isinstance(stmt, p.Assign):
                assigned.update((one.id, stmt.value) for one in stmt.targets if isinstance(one, p.Name))
            if isinstance(stmt, p.Define):
                todo.append(stmt.function.body)
            elif isinstance(stmt, p.Class):
                todo.append(stmt.body)
            if isinstance(stmt, p.If):
                _note_updates(stmt, world)
            if isinstance(stmt, (p.If, p.While)):
                analysis.texts[stmt.test.span] = text(stmt.test)
            if isinstance(stmt, p.For):
                analysis.texts[stmt.span] = text(stmt.iterable)
                analysis.texts[stmt.iterable.span] = text(stmt.iterable)
                analysis.counts[stmt.span] = counted(stmt.iterable)
            if isinstance(stmt, p.Augment):
                analysis.texts[stmt.span] = f"{text(stmt.target)} {stmt.op}= {text(stmt.value)}"
                if stmt.op == "/" and world.is_accumulation(text(stmt.value).rpartition(".")[2]):
                    world.k_divisions.add(stmt.span)
                if stmt.op == "/":
                    quotients.append((stmt.span, text(stmt.value)))
                analysis.divisors[stmt.span] = text(stmt.value)
                if stmt.op in ("+", "-"):
                    world.counters.add(text(stmt.target))
                if stmt.op == "+" and isinstance(stmt.value, p.Const):
                    last = text(stmt.target).rpartition(".")[2]
                    world.raised.add(last if isinstance(stmt.target, p.Name) else f".{last}")
            if isinstance(stmt, p.Assign) and isinstance(stmt.value, p.Binary) and stmt.value.op in ("+", "-"):
                world.counters.update(text(one) for one in stmt.targets if text(one) == text(stmt.value.left))
            exprs = list(expressions(stmt))
            while exprs:
                one = exprs.pop()
                exprs += children(one)
                kind = type(one)
                if kind is p.Binary:
                    analysis.texts[one.span] = text(one)
                    if one.op in ("/", "*"):  # type: ignore[attr-defined]
                        analysis.divisors[one.span] = _divisor(one.right)  # type: ignore[attr-defined]
                        if one.op == "/":  # type: ignore[attr-defined]
                            analysis.divided[one.span] = one.right.span  # type: ignore[attr-defined]
                            sizes |= _micro_batches_over(one, world)
                            quotients.append((one.span, text(one.right)))  # type: ignore[attr-defined]
                        if world.is_accumulation(text(one.right).rpartition(".")[2]):  # type: ignore[attr-defined]
                            world.k_divisions.add(one.span)
                    if one.op == "//":  # type: ignore[attr-defined]
                        sizes |= _micro_batches_over(one, world)
                    if one.op == "%":  # type: ignore[attr-defined]
                        analysis.operands[one.span] = one.right.span  # type: ignore[attr-defined]
                        analysis.moduli[one.span] = text(one.right)  # type: ignore[attr-defined]
                elif kind is p.Call:
                    assert isinstance(one, p.Call)
                    analysis.texts[one.span] = text(one)
                    func = one.func
                    if isinstance(func, p.Attr) and func.name in ZEROING:
                        name = text(func.value).rpartition(".")[2]
                        world.zeroed_names.add(name)
                    if isinstance(func, p.Attr):
                        analysis.receivers[one.span] = text(func.value)
                        if func.name == "append":
                            world.filled.add(text(func.value))
                        if func.name in _CUTS and len(one.args) > 0:
                            sizes |= _names_of(one.args[0])
                        if func.name in ("div", "div_") and len(one.args) == 1:
                            quotients.append((one.span, text(one.args[0])))
                    elif isinstance(func, p.Extern) and len(one.args) == 2:
                        last = func.path.rpartition(".")[2]
                        if last in _CUTS:
                            sizes |= _names_of(one.args[1])
                        elif func.path in ("torch.div", "torch.true_divide"):
                            quotients.append((one.span, text(one.args[1])))
                elif kind is p.Lambda:
                    assert isinstance(one, p.Lambda)
                    todo.append(one.function.body)
    # Whatever it is called: a division by the very expression that sizes the windows is a division by k.
    for gate in gates:
        sizes |= _gate_sizes(gate, assigned, world.counters)
    world.k_divisions.update(span for span, divisor in quotients if divisor in sizes)
    tested = {divisor.rpartition(".")[2] for _, divisor in quotients if divisor in sizes}
    world.accumulation_names |= {name for name in tested if not names.is_batch_size_name(name)}
    for span, divisor in quotients:
        analysis.divisors.setdefault(span, divisor)


def _note_updates(stmt: p.If, world: World) -> None:
    """Under which outcome of a test updates happen; None where two places differ."""
    body, orelse = ("step" in world.scanner.reach(part) for part in (stmt.body, stmt.orelse))
    if body != orelse:
        key, negated = plain_test(stmt.test)
        known = world.updating.setdefault(key, body != negated)
        if known != (body != negated):
            world.updating[key] = None


def _divisor(expr: p.Expr) -> str:
    """What a product or quotient divides by: `k` in `loss / k` and in `loss * (1 / k)`."""
    whole = isinstance(expr, p.Binary) and expr.op == "/" and text(expr.left) in ("1", "1.0")
    return text(expr.right) if whole and isinstance(expr, p.Binary) else text(expr)


# Calls that cut a batch into as many parts as their argument says.
_CUTS = frozenset({"chunk", "tensor_split"})


def _names_of(expr: p.Expr) -> set[str]:
    return {text(expr)} if isinstance(expr, (p.Name, p.Attr)) else set()


def _micro_batches_over(expr: p.Expr, world: World) -> set[str]:
    """What the length of a loader is divided by, to count updates: k, unless its name says something else."""
    assert isinstance(expr, p.Binary)
    length, divisor = expr.left, text(expr.right)
    if not (isinstance(length, p.Call) and text(length.func) in ("len", "builtins.len") and len(length.args) == 1):
        return set()
    if not names.is_loader_name(text(length.args[0]).rpartition(".")[2]):
        return set()
    role = world.role_of(divisor, divisor.rpartition(".")[2])
    return {divisor} if role == "" and isinstance(expr.right, (p.Name, p.Attr, p.Index)) else set()


def _loop_sizes(stmt: p.Stmt, scanner: Scanner) -> set[str]:
    """The name that says how many micro-batches a loop without an update goes through."""
    if not (isinstance(stmt, p.For) and isinstance(stmt.iterable, p.Call) and len(stmt.iterable.args) == 1):
        return set()
    inside = scanner.reach(stmt.body)
    if text(stmt.iterable.func) in ("range", "builtins.range") and "backward" in inside and "step" not in inside:
        return _names_of(stmt.iterable.args[0])
    return set()


def _gates_step(stmt: p.If, rest: tuple[p.Stmt, ...], scanner: Scanner) -> bool:
    """Whether a test decides about a `step`: in its block, or behind the jump that it guards."""
    if "step" in scanner.scan(stmt.body).attrs:
        return True
    jumps = bool(stmt.body) and isinstance(stmt.body[-1], (p.Continue, p.Return)) and not stmt.orelse
    return jumps and "step" in scanner.scan(rest).attrs


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


__all__ = ["Analysis", "LoopFacts", "Path", "analyze", "execute", "v"]
