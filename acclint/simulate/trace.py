"""What one abstract run did: the ordered events, and the contribution matrix that follows from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from acclint.program import Span
from acclint.simulate.values import Number, Optimizer, Owner, Owners, Scheduler, Term


@dataclass(eq=False, slots=True)
class Loop:
    """One entry into a loop: `turn` counts its iterations while it runs.

    `kind` says what is iterated: "loader" (micro-batches of a loader), "chunks" (parts of a batch), "count"
    (a range), "while", "call" (an entry function called again and again), "list" or "other". `target` is the text of
    its target; of a call, what is known to make it once per batch. `over` are the texts of what it goes through, and of
    what its range is as long as; `flag` is what a `while` waits for: the text of a name, and the value that ends it;
    `depth` is how many functions deep a local one is.
    `bounds` are the unknowns that a range with a stride depends on; `end` is its end where the run goes through more or
    fewer chunks than its numbers say: the number that stands for it, and the one at which this run ends. `updates`: its
    body steps an optimizer; `clears`: something in
    it, or in what it calls, may zero gradients, whether the run came to it or not.
    """

    span: Span
    entry: int
    kind: str
    level: str
    count: Any = None
    total: int | None = None
    turn: int = 0
    turns: int = 0
    cut: bool = False
    ended: bool = False
    fetched: bool = False
    named: bool = False
    known_length: bool = False
    target: str = ""
    over: frozenset[str] = frozenset()
    flag: tuple[str, bool] | None = None
    depth: int = -1
    bounds: frozenset[str] = frozenset()
    end: tuple[Any, Number] | None = None
    updates: bool = False
    clears: bool = False


@dataclass(eq=False, slots=True)
class Guard:
    """A condition under which an event happened: the test, its outcome, and what its window arithmetic was.

    `k_roots` are the unknowns that the modulus depends on, `roots` those of the test; `bound` is the text of the
    modulus where it is the other side of a comparison with a counter; `remainder` is where the remainder is written
    that the test was made from, perhaps in another statement; without one, the modulus.
    """

    span: Span
    outcome: bool
    modulus: Number | None = None
    roots: frozenset[str] = frozenset()
    k_roots: frozenset[str] = frozenset()
    counter: Any = None
    bound: str = ""
    bound_span: Span | None = None
    remainder: Span | None = None
    unknown: bool = False
    key: str = ""


@dataclass(eq=False, slots=True)
class Event:
    """`path` is the call stack (spans of calls), `loops` the (loop, turn) pairs around it, `guards` the tests."""

    kind: str
    number: int
    span: Span
    path: tuple[Span, ...]
    loops: tuple[tuple[Loop, int], ...]
    guards: tuple[Guard, ...]
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class Backward:
    """One backward call: the loss terms and the weight each was sent with."""

    number: int
    event: Event
    terms: tuple[tuple[Term, Number], ...]
    owners: Owners
    known_scale: bool
    divisors: tuple[tuple[Number, bool, Span], ...] = ()
    replay: bool = False

    @property
    def site(self) -> tuple[Span, ...]:
        return (*self.event.path, self.event.span)

    @property
    def span(self) -> Span:
        return self.event.span


@dataclass(eq=False, slots=True)
class Window:
    """What lies between two updates of the same parameters.

    `row` maps backward number to the coefficient with which it enters the update, `seen` lists the backward calls
    since the last update, `lost` those zeroed away unused (with the zeroing event). `update` is None for what is left
    at the end of the run.
    """

    update: Event | None
    row: dict[int, Number]
    seen: list[int]
    lost: dict[int, Event]
    zeros: list[Event]
    edits: list[Event] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Lane:
    """The updates of one parameter owner by one optimizer. `optimizer` is None for updates written by hand."""

    optimizer: Optimizer | None
    owner: Owner
    windows: list[Window] = field(default_factory=list)
    sure: bool = True

    @property
    def name(self) -> str:
        return self.optimizer.name if self.optimizer is not None else self.owner.name

    @property
    def parts_unknown(self) -> bool:
        """Whether nothing is known about the optimizer, not even which parameters it holds."""
        return self.optimizer is not None and not self.optimizer.known and self.optimizer.parts is None


@dataclass(eq=False, slots=True)
class Condition:
    """A condition the text does not decide. `matters` says whether a branch holds events.

    `divides`: one of its branches divides by the accumulation steps, and the other does not.
    """

    key: str
    text_span: Span
    value: bool
    matters: bool
    divides: bool = False


# Numbers from here down are rows taken by their index: data of their own only where every row is told apart.
TAKEN = -1_000_000


class Part(NamedTuple):
    """A part of some data along its first axis: from `lower` up to `upper` of `whole`.

    A bound is a number or the key of an unknown one; `upper` is None for the end, `whole` None if it is not known.
    """

    source: int
    lower: Number | str
    upper: Number | str | None
    whole: Number | None


class Limit(NamedTuple):
    """A comparison of a counter with a larger number, and the number of events before it."""

    limit: Number
    roots: frozenset[str]
    counter: Number
    events: int


@dataclass(eq=False)
class Run:
    """One abstract run under one assignment of numbers and one choice of unknown conditions."""

    events: list[Event] = field(default_factory=list)
    backwards: list[Backward] = field(default_factory=list)
    lanes: list[Lane] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)
    batch_sizes: set[Number] = field(default_factory=set)  # of the loaders
    sample_divisors: set[Number] = field(default_factory=set)  # batch sizes by which numbers of samples are divided
    schedulers: list[Scheduler] = field(default_factory=list)
    optimizers: list[Optimizer] = field(default_factory=list)
    kept: set[int] = field(default_factory=set)  # backward calls whose gradients a model has kept elsewhere
    conditions: dict[str, Condition] = field(default_factory=dict)
    loops: dict[Span, Loop] = field(default_factory=dict)
    terms: list[Term] = field(default_factory=list)
    parts: dict[int, Part] = field(default_factory=dict)  # cuts and single rows by their numbers
    cuts: set[int] = field(
        default_factory=set
    )  # the numbers of data that are a part of other data: chunks, slices, rows
    numbers: dict[str, Number] = field(default_factory=dict)
    window_values: set[Number] = field(default_factory=set)
    k_names: dict[str, Number] = field(default_factory=dict)
    holders: dict[int, Any] = field(default_factory=dict)  # lists and dicts that keep losses, by their id
    popped: set[int] = field(default_factory=set)  # the ids of lists that items were taken from in a loop
    notes: list[tuple[str, Span]] = field(default_factory=list)
    hints: dict[str, Number] = field(default_factory=dict)
    sites: dict[Span, Span] = field(default_factory=dict)  # of what happens in other files: the calls that lead there
    freezes: bool = False  # whether the file says, somewhere, which parameters take (or are given) gradients
    stopped: str = ""
    flipped: str = ""

    @cached_property
    def used(self) -> frozenset[int]:
        """The backward calls that have reached an update of any optimizer, or are kept; known when the run is over."""
        closed = (window for lane in self.lanes for window in lane.windows if window.update)
        return frozenset(number for window in closed for number in window.row) | self.kept

    def of(self, *kinds: str) -> list[Event]:
        return [event for event in self.events if event.kind in kinds]

    def backward(self, number: int) -> Backward:
        return self.backwards[number]
