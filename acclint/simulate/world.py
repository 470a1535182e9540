"""What is fixed for all runs over one program: how unknown numbers are named, sized and told apart.

A run needs concrete numbers for the unknowns of a script: the accumulation steps k, the number of micro-batches, of
epochs, the batch size, intervals and limits. Each unknown gets a number of its own, so that a division by the batch
size never looks like one by k. What an unknown *is* comes from its name or from how the first run uses it: a number
that gates the update as a modulus is k, whatever it is called. Learning such a role restarts the run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from acclint import program as p
from acclint.knowledge import names
from acclint.program import Span
from acclint.simulate.scan import Scanner
from acclint.simulate.values import Number

_PRIMES = (13, 17, 19, 23, 37, 41, 43, 47, 61, 67, 71, 73, 79, 83, 89)


class Restart(Exception):
    """A role was learnt that changes the numbers of the run."""


class Stop(Exception):
    """The run is given up; the argument says why."""


@dataclass(frozen=True)
class Assignment:
    """The numbers of one run: accumulation steps, remainder of a loader over a window, epochs, batch size."""

    k: int
    remainder: int
    epochs: int
    batch: int
    interval: int
    shift: int = 0


ASSIGNMENTS = (
    Assignment(k=4, remainder=3, epochs=2, batch=29, interval=53),
    Assignment(k=3, remainder=2, epochs=2, batch=31, interval=59, shift=5),
)


@dataclass
class World:
    """One program and what has been learnt about its numbers so far."""

    program: p.Program
    scanner: Scanner
    accumulation_names: frozenset[str] = frozenset()
    reductions: dict[str, str] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=lambda: {"over k": "over k", "<size>": "batch"})
    overrides: dict[str, str] = field(default_factory=dict)
    texts: dict[Span, str] = field(default_factory=dict)
    hints: dict[str, Number] = field(default_factory=dict)
    literal_ks: set[int] = field(default_factory=set)
    outer_turns: int = 0  # of loops around loops that train, where more than the epochs are worth running
    loud: set[Span] = field(default_factory=set)
    accumulates: bool = False  # whether a method `accumulate()` is called somewhere
    raised: set[str] = field(default_factory=set)
    counters: set[str] = field(default_factory=set)
    elsewhere: set[str] = field(default_factory=set)  # counters that a method raises which nobody in the file calls
    class_settings: set[str] = field(default_factory=set)  # attributes of classes that the file sets
    flags: set[str] = field(default_factory=set)  # names that one turn of a loop sets to True and to False
    filled: set[str] = field(default_factory=set)  # lists that the file appends to
    zeroed_names: set[str] = field(default_factory=set)
    k_divisions: set[Span] = field(default_factory=set)
    # What is added to a counter that is raised elsewhere, less the remainder, in the test of the update.
    phases: dict[frozenset[str], int] = field(default_factory=dict)
    sample_divisions: set[Span] = field(default_factory=set)  # by a batch size, by its name
    avoiding: dict[str, bool] = field(default_factory=dict)  # answers without which a run ended in an error
    updating: dict[str, bool | None] = field(default_factory=dict)  # outcome of a test under which updates happen
    counting: set[Span] = field(default_factory=set)  # window tests whose counter counts from an unknown number
    met: set[int] = field(default_factory=set)  # the other files that a run has come to
    on_meeting: Callable[[p.Module], None] | None = None

    def meet(self, module: p.Module) -> None:
        """A run comes to another file: the first time it is looked at."""
        if module.number not in self.met:
            self.met.add(module.number)
            if self.on_meeting is not None:
                self.on_meeting(module)

    def reduction(self, name: str) -> str:
        """The reduction of a loss callable by the user's settings, by its full dotted name or the last part of it."""
        for key, reduction in self.reductions.items():
            if name in (key, key.rpartition(".")[2]):
                return reduction
        return "unknown"

    def expression(self, span: Span) -> str:
        """The text of a computed number: the same text is the same number wherever it stands."""
        return self.texts.get(span) or f"{span.row}:{span.column}"

    def learn(self, table: dict[str, str] | dict[Span, str], key: str | Span, role: str) -> None:
        if role == "k" and isinstance(key, str) and names.is_start_name(key):
            return  # `step > cfg.warmup`: from when on, not how many.
        if table.get(key) != role:  # type: ignore[arg-type]
            table[key] = role  # type: ignore[index]
            raise Restart

    def is_accumulation(self, name: str) -> bool:
        return name in self.accumulation_names or names.is_accumulation_name(name)

    def is_raised(self, key: str, name: str) -> bool:
        """Whether the file itself counts this unknown up: the same attribute, or the same local name."""
        if name in ("size", "shape"):
            return False
        head = key.rpartition(".")[0]
        local = not head or head in self.scanner.functions or head in self.scanner.methods
        return name in self.raised if local else f".{name}" in self.raised

    def role_of(self, key: str, name: str) -> str:
        """k, epochs, batch, limit, interval, world, length or "" for the unknown `key`, called `name`."""
        known = self.roles.get(key)
        if known:
            return known
        if self.is_accumulation(name):
            return "k"
        if key in self.elsewhere:
            return ""
        if self.is_raised(key, name):
            return "counter"
        if names.is_batch_size_name(name) or names.is_micro_batch_size_name(name) or name in ("size", "shape"):
            return "batch"
        if names.is_epoch_name(name):
            return "epochs"
        if names.is_interval_name(name):
            return "interval"
        if names.is_world_size_name(name):
            return "world"
        if names.is_limit_name(name):
            return "limit"
        return ""

    def turns(self, assignment: Assignment) -> int:
        """The number of micro-batches of a loader of unknown length: two full windows and a remainder.

        It is odd: a window may be computed from other numbers (`64 // batch_size`), and come out as 2.
        """
        hinted = [
            hint
            for key, hint in self.hints.items()
            if isinstance(hint, int) and 2 <= hint <= 16 and self.role_of(key, key.rpartition(".")[2]) == "k"
        ]
        k = max([assignment.k, *self.literal_ks, *hinted])
        count = 2 * k + assignment.remainder
        while any(count % other == 0 for other in (2, assignment.k, *self.literal_ks) if other > 1):
            count += 1
        return count

    def number(self, key: str, role: str, assignment: Assignment, order: int) -> Number:
        hint = self.hints.get(key)
        if role == "k":
            if assignment is ASSIGNMENTS[0] and isinstance(hint, int) and 2 < hint <= 16:
                return hint
            return assignment.k
        if role == "epochs":
            return hint if isinstance(hint, int) and 1 < hint <= 3 else assignment.epochs
        if role == "batch":
            if isinstance(hint, int) and hint > 0:
                return hint
            # About k micro-batches are in a batch.
            parts = assignment.k if names.is_micro_batch_size_name(key.rpartition(".")[2]) else 1
            return assignment.batch // parts
        if role == "length":
            return self.turns(assignment)
        if role == "interval":
            return assignment.interval
        if role == "world":
            return 1
        if role == "counter":
            return 0
        if role == "limit":
            return 100_003
        return _PRIMES[(order + assignment.shift) % len(_PRIMES)]
