"""From a program to what its training loops do: abstract runs, and the facts the rules judge.

`analyze` runs the program under two assignments of numbers and, where a condition is unknown and holds events, once
more with each such condition flipped (bounded). A rule's finding must hold under both assignments.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from acclint import program as p
from acclint.program import Span, file_of
from acclint.simulate.entries import drive
from acclint.simulate.facts import LoopFacts, describe
from acclint.simulate.machine import Machine
from acclint.simulate.scan import Scanner
from acclint.simulate.survey import survey
from acclint.simulate.trace import Event, Run
from acclint.simulate.values import PyRaise, numeric, roots_of
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
    moving: set[str] = field(default_factory=set)  # what a loop over micro-batches computes anew by calls
    counts: dict[Span, str] = field(default_factory=dict)  # of a loop: how many turns it makes, in the text's words
    scaled_rate: bool = False  # whether a learning rate is scaled with the size of a micro-batch
    functions: dict[str, list[p.Function]] = field(default_factory=dict)

    @property
    def base(self) -> Run | None:
        return self.paths[0].first if self.paths else None

    def own_place(self, span: Span) -> Span | None:
        """Where in the file itself something happens: at `span`, or at the call that leads to another file.

        None for what is done in a loop of another file.
        """
        if not file_of(span):
            return span
        return next((path.first.sites[span] for path in self.paths if span in path.first.sites), None)

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
    world.texts = analysis.texts
    survey(world, analysis)
    base = _settled(world, ASSIGNMENTS[0], {})
    if base is None:
        return analysis
    paths = [Path(base, "", world, {})]
    asked = [one for one in base.conditions.values() if one.matters]
    for condition in sorted(asked, key=lambda one: not one.divides)[:MAX_FLIPS]:
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
    machine.settle_schedules()
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
        _learn_batch(world, events)
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


def _learn_batch(world: World, events: list[Event]) -> None:
    """An update each `batch_size` turns: the batch is made of so many micro-batches, one sample each."""
    first, roots = events[0], events[0].data["roots"]
    if len(roots) != 1 or not first.data["steps"] or any(event.data["outcome"] for event in events):
        return
    (root,) = roots
    counters = [event.data["counter"] for event in events if event.loops[-1][0] is first.loops[-1][0]]
    if any(numeric(one) is None or roots_of(one) for one in counters):
        return
    steps = {numeric(later) - numeric(one) for one, later in pairwise(counters)}
    if steps == {1} and world.role_of(root, root.rpartition(".")[2]) == "batch":
        world.learn(world.roles, root, "k")


def _lengthen(world: World, run: Run, events: list[Event]) -> None:
    """A window test that all training waits for, in a loop that was not run for as long: run on for three windows."""
    last, k = events[-1], events[0].data["modulus"]
    if run.backwards or len({event.data["outcome"] for event in events}) > 1 or not last.data["trains"]:
        return
    if last.loops[-1][0].level == "outer" and isinstance(k, int) and world.outer_turns < 3 * k <= MAX_PERIOD:
        world.outer_turns = 3 * k
        raise Restart
