"""The state of an abstract run, and what every layer of the machine needs: numbers, events, names, learnt roles.

The machine that runs the small program with abstract values is a stack of layers, one class and one file each. A layer
is a subclass of the one below and calls only itself and what is below; the methods that everything below also needs
(`eval`, `call`, `invoke` and the like) are declared here and defined further up. From the bottom: core,
ownership, losses, updates, gradients, iteration, items, attributes, tensors, operators, frameworks, modules, unknown,
methods, conditions, expressions, statements, linking, machine.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

from acclint import program as p
from acclint.knowledge import names
from acclint.program import NOWHERE, Span
from acclint.simulate import values as v
from acclint.simulate.ledger import Ledger
from acclint.simulate.trace import Event, Guard, Loop, Run
from acclint.simulate.values import (
    NO_ROOTS,
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
    Stream,
    Tensor,
    Value,
    numeric,
    roots_of,
)
from acclint.simulate.vocabulary import word_set
from acclint.simulate.world import Assignment, Restart, World

STEP_BUDGET = 60_000
KEY_LENGTH = 240
MAX_K = 64


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


def top_of(frame: Frame) -> Frame:
    """The globals that a frame sees."""
    while frame.parent is not None:
        frame = frame.parent
    return frame


# Used where the end of a schedule is sought.
_CONSTANTS = {"math.pi": math.pi, "numpy.pi": math.pi, "math.e": math.e}
_BUILTINS = word_set(
    "range len enumerate zip min max sum abs int float bool str list tuple dict set print isinstance hasattr getattr "
    "setattr iter next round map filter sorted reversed any all super type open input id repr object callable vars "
    "divmod pow Exception ValueError RuntimeError StopIteration KeyError slice frozenset property staticmethod "
    "classmethod exec exit quit NotImplementedError KeyboardInterrupt TypeError dir format __name__ "
    "__file__ globals locals complex bytes chr ord hash issubclass"
)


class Core:
    """The state of one run under one assignment of numbers and one set of choices."""

    def __init__(self, world: World, assignment: Assignment, choices: dict[str, bool]) -> None:
        self.world = world
        self.scanner = world.scanner
        self.assignment = assignment
        self.choices = choices
        self.run = Run()
        said = self.scanner.scan(world.program.body)
        self.run.freezes = any(map(names.freezes, said.calls | said.attrs | said.own))
        self.ledger = Ledger()
        self.path: list[Span] = []
        self.loops: list[Loop] = []
        self.guards: list[Guard] = []
        self.handlers = 0  # how many `try` with a handler are being run
        self.grad_enabled = True
        self.numbers: dict[str, Num] = {}
        self.chosen_parts: dict[tuple[Owner, str], Owner] = {}
        self.unseen: dict[tuple[Any, ...], Owner] = {}  # the parameters behind losses of unknown making
        self.undefined: dict[int, Opaque] = {}  # what stands for an abstract method
        self.called: set[int] = set()
        self.stack: list[p.Function] = []
        self.selves: list[Value] = []  # the objects whose methods run
        self.budget = STEP_BUDGET
        self.entries = 0
        self.batches = 0
        self.inventions = 0
        self.asked = 0  # how often an unknown condition was
        self.deciding = True
        self.buffers: dict[int, tuple[Tensor, set[v.Owner]]] = {}  # tensors that gradients are views of
        self.compared: dict[Span, tuple[Value, Value]] = {}
        self.globals = Frame(None)
        self.defining = 0  # files whose globals are being made
        self.links: dict[tuple[int, str], tuple[Frame, str, tuple[str, ...]]] = {}
        self.modules: dict[int, Frame] = {}  # the globals of other files, by their numbers
        self.templates: dict[Any, tuple[Value, list[Event]]] = {}
        self.last_batch = False
        self.evaluations: dict[Span, int] = {}
        self.counters: dict[Span, Value] = {}  # the first that a window test had, where it begins somewhere
        self.wild: dict[Owner, v.Optimizer] = {}
        self.replaying = 0
        self.sent: dict[int, tuple[Tensor, int]] = {}
        self.engine_driven: list[tuple[Closure, str]] = []  # and by what
        self.instances: dict[str, Instance] = {}
        self.parameters: dict[Owner, Param] = {}
        self.attached: dict[tuple[Owner, str], Value] = {}
        self.sources: dict[int, tuple[int, Value]] = {}  # what parts were cut from, by identity
        self.grown: dict[int, tuple[list[Value], str]] = {}  # lists filled from something unknown, and their names
        self.joins: dict[int, tuple[Value, list[Value]]] = {}  # what torch.cat made, and the parts of it
        self.lists: dict[int, tuple[list[Value], int]] = {}  # lists made by `+`, and the first one of each
        self.shares: dict[v.Term, str] = {}  # the unknown data that a loss was multiplied by
        self.storing = ""  # the text of what the value at hand is assigned to
        self.taken: dict[tuple[int, v.Number], int] = {}
        self.frozen: set[Owner] = set()
        self.untoggled: set[Owner] | None = None  # what was frozen before an optimizer was toggled
        self.hooked: set[Owner] = set()  # parameters whose gradients a hook may scale before they are added
        self.lent: v.Accelerator | None = None  # one that the file is given
        self.layers: dict[Span, list[Owner]] = {}  # BatchNorm layers by the place that makes them
        self.always: set[Span] = set()  # those without running statistics
        self.norms_off: set[Owner] = set()  # modules whose BatchNorm layers a loop puts into eval mode
        self.normless: set[Owner] = set()  # modules whose BatchNorm layers are replaced
        self.evaluating: set[Owner] = set()
        self.detours: set[Span] = set()  # loops inside a micro-batch of a loop that accumulates by itself
        self.outputs: dict[int, tuple[Value, v.Term]] = {}

    def number(self, key: str, name: str, role: str = "") -> Num:
        """The number of the unknown `key` in this run."""
        if not self.deciding and "warmup" in key.lower():
            return Num(1, frozenset((key,)))  # Where the end of a schedule is sought, its beginning is short.
        kept = self.numbers.get(key)
        if kept is None:
            if role:
                self.world.roles.setdefault(key, role)
            kind = self.world.role_of(key, name) or self.role_of_root(key)
            kept = Num(self.world.number(key, kind, self.assignment, len(self.numbers)), frozenset((key,)))
            self.numbers[key] = kept
            self.run.numbers[key] = kept.v
            if kind == "k":
                self.world.roles.setdefault(key, kind)  # Its name may be that of a variable, not in its key.
                self.run.k_names[key] = kept.v
        return kept

    def as_number(self, value: Value) -> Value:
        """`value` if it is a number; an unknown without a graph, or what another file holds, becomes one; else None."""
        if numeric(value) is not None:
            return value
        if type(value) is Opaque and not value.graph:
            return self.number(value.key, value.name)
        if type(value) is Imported:
            constant = _CONSTANTS.get(value.path) if not self.deciding else None
            return constant if constant is not None else self.number(value.path, value.path.rpartition(".")[2])
        return None

    def is_k(self, value: Value) -> bool:
        """Whether a number is the accumulation steps by name or by role."""
        return any(map(self.is_k_root, roots_of(value)))

    def is_k_root(self, root: str) -> bool:
        return self.role_of_root(root) == "k"

    def derived(self, result: Any, span: Span, *sources: Value) -> Value:
        """A number computed from others: a plain one if no source depends on an unknown."""
        roots = NO_ROOTS.union(*(roots_of(source) for source in sources))
        if not roots:
            return result
        role = self.world.overrides.get(self.world.expression(span))
        if role is not None:
            return self.number(f"@{self.world.expression(span)}", "", role)
        return Num(result, roots, span)

    def role_of_root(self, root: str) -> str:
        return self.world.role_of(root, root.rpartition(".")[2].strip("'\"[]"))

    def event(self, kind: str, span: Span, **data: Any) -> Event:
        event = Event(kind, len(self.run.events), span, tuple(self.path), self.turns_now(), tuple(self.guards), data)
        self.run.events.append(event)
        self.note_site(span)
        return event

    def note_site(self, span: Span) -> None:
        """Remember which call of the file itself led to a place in another file, outside the training loops of that."""
        if not p.file_of(span) or span in self.run.sites:
            return
        around = next((loop.span for loop in reversed(self.loops) if loop.level != "quiet"), None)
        own = next((one for one in reversed(self.path) if not p.file_of(one)), None)
        if own is not None and not (around is not None and p.file_of(around)):
            self.run.sites[span] = own

    def opaque(self, key: str, name: str, **options: Any) -> Opaque:
        if len(key) > KEY_LENGTH:
            key = f"{key[:80]}...{zlib.crc32(key.encode()):08x}"
        return Opaque(key, name, **options)

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
        if isinstance(value, (tuple, list)):
            return "(" + ",".join(self.key(one) for one in value[:4]) + ")"
        return str(getattr(value, "name", kind.__name__))

    def measured(self, key: str, batch: frozenset[int]) -> Opaque:
        """A plain number read off a tensor: it carries no graph, whatever it is called."""
        made = self.opaque(key, "<number>", batch=batch)
        made.hint = "number"
        return made

    @staticmethod
    def data_size(size: Value) -> Value:
        """A batch's number of samples: known, but not to be mistaken for k or for a number that was written down."""
        return Num(size, frozenset(("<size>",))) if isinstance(size, int) else size

    def made_up(self) -> frozenset[int]:
        """A number for data that the program makes itself (torch.randn): negative, to tell it from fetched data."""
        self.inventions += 1
        return frozenset((-self.inventions,))

    def turns_now(self) -> tuple[tuple[Loop, int], ...]:
        return tuple((loop, loop.turn) for loop in self.loops)

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

    def is_lightning(self, value: Instance) -> bool:
        todo = list(value.cls.bases)
        while todo:
            base = todo.pop()
            if isinstance(base, ClassValue):
                todo += base.bases
            elif "LightningModule" in (base.path if isinstance(base, Imported) else getattr(base, "name", "")):
                return True
        return False

    def lookup(self, name: str, frame: Frame) -> Value:
        scope: Frame | None = frame
        while scope is not None:
            outer = scope.outer.get(name)
            if outer is not None:
                scope = outer
            if name in scope.vars:
                return scope.vars[name]
            scope = scope.parent
        top = top_of(frame)
        if name == "__name__":
            return "__main__" if top is self.globals else "<imported>"
        if name in _BUILTINS:
            return Imported("builtins." + name)
        kept = top.vars[name] = self.opaque(f"{name}", name)
        return kept

    def first_of(self, made: list[Value]) -> int:
        """The identity of a list, or of the one that it goes on from: `queue = queue + [loss]`."""
        return self.lists[id(made)][1] if id(made) in self.lists else id(made)

    def drain(self, stream: Stream, limit: int) -> list[Value]:
        made = []
        for item in stream.pull:
            made.append(item)
            if len(made) >= limit:
                break
        return made

    def is_module_class(self, cls: ClassValue) -> bool:
        return cls.module or any(isinstance(base, ClassValue) and self.is_module_class(base) for base in cls.bases)

    def tunable(self, value: Value, key: str, name: str, *, only_steps: bool = False) -> Value:
        """A number that a user is meant to change (a default, a settings item): its value is only a hint."""
        if (
            isinstance(value, int)
            and not isinstance(value, bool)
            and (self.world.is_accumulation(name) or (names.is_batch_size_name(name) and not only_steps))
        ):
            return self.setting(value, key, name)
        if value is None and self.world.is_accumulation(name):
            return self.number(key, name)  # `accumulation_steps=None`: what is interesting is when it is given.
        return value

    def setting(self, value: int, key: str, name: str) -> Value:
        """A number that is only the default of a setting."""
        self.world.hints.setdefault(key, value)
        return self.number(key, name)

    def as_steps(self, value: Num) -> Value:
        """A computed number that is given the name of the accumulation steps: it must be a usable window."""
        if value.roots and value.born != NOWHERE and value.modulus is None and not 2 <= value.v <= 12:
            self.world.learn(self.world.overrides, self.world.expression(value.born), "k")
        return value

    def learn_k(self, value: v.Number, roots: frozenset[str], *, in_test: bool = False) -> None:
        if not roots:
            if isinstance(value, int) and value > 1:
                if value > MAX_K:
                    if in_test:
                        return
                elif value not in self.world.literal_ks and self.loops:
                    self.world.literal_ks.add(value)
                    self.run.window_values.add(value)
                    if value > self.assignment.k:
                        raise Restart
            if isinstance(value, int):
                self.run.window_values.add(value)
            return
        self.run.window_values.add(value)
        if len(roots) == 1:
            (root,) = roots
            role = self.role_of_root(root)
            if role == "" and 1 < self.numbers[root].v != self.assignment.k and self.numbers[root].v == value:
                self.world.learn(self.world.roles, root, "k")

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
        if "step" not in inside and isinstance(stmt.body[-1], p.Break) and self.loops[-1].updates:
            return  # Where updates wait for another test, this one ends the pass.
        self.learn_k(modulus[0], modulus[1], in_test=True)

    # Defined by the layers above.

    def eval(self, expr: p.Expr, frame: Frame) -> Value:
        raise NotImplementedError

    def linked(self, number: int, path: str) -> Value:
        raise NotImplementedError

    def store_linked(self, number: int, path: str, name: str, value: Value) -> None:
        raise NotImplementedError

    def everything(self, number: int, path: str) -> dict[str, Value]:
        raise NotImplementedError

    def as_optimizer(self, value: Opaque, span: Span = NOWHERE) -> v.Optimizer:
        raise NotImplementedError

    def call(self, callee: Value, args: list[Value], keywords: dict[str, Value], expr: p.Call, frame: Frame) -> Value:
        raise NotImplementedError

    def call_value(self, callee: Value, args: list[Value], span: Span) -> Value:
        raise NotImplementedError

    def exits_method(
        self, owner: v.Exits, name: str, args: list[Value], keywords: dict[str, Value], expr: p.Call, frame: Frame
    ) -> Value:
        raise NotImplementedError

    def invoke(self, closure: Closure, args: list[Value], keywords: dict[str, Value], span: Span) -> Value:
        raise NotImplementedError
