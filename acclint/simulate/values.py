"""The values of an abstract run.

Numbers that the text fixes are plain Python numbers; a number that depends on something unknown is a `Num`, which has a
concrete value all the same and remembers the unknowns it came from. Whatever else is unknown is an `Opaque`. Loss
values are sums of loss terms with exact weights; modules are parameter owners.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar

from acclint.program import NOWHERE, Class, Function, Span

if TYPE_CHECKING:
    from acclint.simulate.core import Frame

# A root of numbers of batches that were made by dividing a number of samples.
BATCHES = "<batches>"
SOME_DATA = frozenset((0,))  # of no micro-batch in particular
Number = int | float | Fraction
Value = Any
NO_ROOTS: frozenset[str] = frozenset()
Remainder = tuple[Number, frozenset[str], Value, Span]


@dataclass(frozen=True, slots=True)
class AnyKey:
    """The key of a dict's item where the text does not tell it. Names that are not in the dict stand for the last."""

    name: str


class Num:
    """A number (or truth value) that depends on something unknown, or on a remainder.

    `v` is what it counts as in this run, `roots` are the unknowns it depends on, `born` is the expression that made it,
    `modulus` the (divisor, its roots, the number that was divided, its place) of the remainder it was made from.
    """

    __slots__ = ("born", "modulus", "roots", "v")

    def __init__(
        self,
        v: Number,
        roots: frozenset[str] = NO_ROOTS,
        born: Span = NOWHERE,
        modulus: Remainder | None = None,
    ) -> None:
        self.v = v
        self.roots = roots
        self.born = born
        self.modulus = modulus

    def __repr__(self) -> str:
        return f"Num({self.v}, {set(self.roots)})"


class Owner:
    """A set of parameters: a module, a parameter tensor, or whatever unknown object holds them.

    `guessed`: it is an unknown function that is given data, and nothing says that it has parameters. `empty`: the
    program gives it neither parameters nor parts of its own; it may be made elsewhere. `unseen`: it is something
    unknown, and nobody knows which parts it has.
    """

    __slots__ = ("asked", "empty", "guessed", "name", "number", "parents", "unseen")
    _made: ClassVar[count[int]] = count()
    regrouped: ClassVar[int] = 0  # how often parameters of which it was asked have become a part of others

    def __init__(self, name: str, parent: Owner | None = None) -> None:
        self.name = name
        self.guessed = self.empty = self.unseen = False
        self.asked = False  # whether somebody remembers what it is a part of
        self.number = next(Owner._made)  # sets of owners are gone through in this order
        self.parents: list[Owner] = [parent] if parent is not None else []

    def join(self, parent: Owner) -> None:
        """Become a part of other parameters."""
        self.parents.append(parent)
        parent.empty = False
        if self.asked:
            parent.ask()
            Owner.regrouped += 1

    def ask(self) -> None:
        """Note that what these parameters are a part of is remembered, until that changes."""
        todo = [self]
        while todo:
            one = todo.pop()
            if not one.asked:
                one.asked = True
                todo += one.parents

    def within(self, other: Owner) -> bool:
        """Whether these parameters are the other's or a part of them."""
        if self is other or not self.parents:
            return self is other
        todo, seen = [self], set()
        while todo:
            one = todo.pop()
            if one is other:
                return True
            if id(one) not in seen:
                seen.add(id(one))
                todo += one.parents
        return False

    def overlaps(self, other: Owner) -> bool:
        return self.within(other) or other.within(self)

    def __repr__(self) -> str:
        return f"<{self.name}>"


Owners = frozenset[Owner]
NOBODY: Owners = frozenset()


class Term:
    """One loss term: the value one loss expression had at one time.

    `reduction` is "mean", "sum", "none" or "unknown"; `why` says what the reduction was inferred from.
    `scaled` is False where an unknown factor may be part of the term.
    """

    __slots__ = (
        "data", "fetch", "guessed", "loops", "number", "origins", "owners", "reduction", "sent", "site", "span", "why",
    )  # fmt: skip

    def __init__(
        self, number: int, span: Span, site: tuple[Span, ...], owners: Owners, reduction: str, why: str, loops: Any
    ) -> None:
        self.number = number
        self.span = span
        self.site = site
        self.owners = owners
        self.reduction = reduction
        self.why = why
        self.loops = loops
        self.sent = 0  # how many backward calls it took part in
        self.fetch = 0  # how many micro-batches had been fetched when it was made
        self.data: frozenset[int] = frozenset()  # the data that it was computed from
        self.origins: tuple[Term, ...] = ()  # what it is another view of, a sum divided by its count, say
        self.guessed = False  # whether its graph is only supposed: something unknown returned it


VECTOR = "vector"  # what a tensor is called that holds the parameters of modules in one piece


class Tensor:
    """A tensor: the loss terms it is a weighted sum of, if it is a loss, and the parameters its graph reaches.

    `terms` maps Term to weight; None for a tensor that is no loss yet. `size` is the length of the first axis if known.
    `reduction` is what a loss expression has done so far ("none": per-sample values). `name` helps messages.
    `divisors` are the numbers it was divided by: (value, whether it is the accumulation steps by name or role, place).
    `sure` is False where an unknown factor may be part of it. `rest` are the lengths of the other axes, if known.
    """

    __slots__ = (
        "batch",
        "divisors",
        "doubtful",
        "factor",
        "graph",
        "name",
        "owners",
        "reduction",
        "rest",
        "size",
        "sure",
        "terms",
        "times",
    )

    def __init__(
        self,
        owners: Owners = NOBODY,
        graph: bool = False,
        terms: dict[Term, Number] | None = None,
        size: Value = None,
        reduction: str = "",
        name: str = "",
        batch: frozenset[int] = frozenset(),
        sure: bool = True,
        divisors: tuple[tuple[Number, bool, Span], ...] = (),
        doubtful: frozenset[Term] = frozenset(),
    ) -> None:
        self.divisors = divisors
        self.doubtful = doubtful
        self.factor: Number = 1  # of what is not reduced yet: its losses are multiplied by it
        self.times: tuple[Value, str, Value] | None = None  # of plain data: what it is a multiple of
        self.rest: tuple[Value, ...] = ()
        self.owners = owners
        self.graph = graph
        self.terms = terms
        self.size = size
        self.reduction = reduction
        self.name = name
        self.batch = batch
        self.sure = sure


class Grad:
    """What `p.grad` held when it was read, or a value made from it: {backward number: coefficient}.

    `shared` is the `.grad` itself, `read` it or a (scaled) copy of it. `added` are the places where a growing `.grad`
    was added to it.
    """

    __slots__ = ("added", "owner", "read", "row", "shared")

    def __init__(
        self,
        owner: Owner,
        row: dict[int, Number],
        shared: bool = False,
        *,
        read: bool = False,
        added: frozenset[Span] = frozenset(),
    ) -> None:
        self.owner = owner
        self.row = row
        self.shared = shared
        self.read = read or shared
        self.added = added


class Delta:
    """A multiple of gradients that an in-place operation may subtract from a parameter."""

    __slots__ = ("row",)

    def __init__(self, row: dict[int, Number]) -> None:
        self.row = row


class Param:
    """One parameter tensor standing for all of its owner's."""

    __slots__ = ("leaf", "owner", "size")

    def __init__(self, owner: Owner, leaf: bool = False, size: Value = None) -> None:
        self.owner = owner
        self.leaf = leaf
        self.size = size


class ParamSet:
    """`model.parameters()` and the like. `named` yields (name, parameter) pairs."""

    __slots__ = ("named", "owners")

    def __init__(self, owners: Owners, named: bool = False) -> None:
        self.owners = owners
        self.named = named


class Module:
    """A torch module built from a library class. `batchnorm` is the span that made a BatchNorm layer inside it."""

    __slots__ = ("attrs", "batchnorm", "items", "name", "owner", "path", "training")

    def __init__(self, path: str, owner: Owner, batchnorm: Span | None = None, items: tuple[Value, ...] = ()) -> None:
        self.path = path
        self.owner = owner
        self.batchnorm = batchnorm
        self.items = items
        self.attrs: dict[str, Value] = {}
        self.training = True
        self.name = path.rpartition(".")[2]


class LossFunction:
    """A loss object or function with a known reduction."""

    __slots__ = ("name", "owner", "reduction", "why")

    def __init__(self, name: str, reduction: str, why: str, owner: Owner | None = None) -> None:
        self.name = name
        self.reduction = reduction
        self.why = why
        self.owner = owner


class Optimizer:
    """An optimizer. `parts` are the parameters it owns, None if that is unknown; `guessed`: whose they are is unknown.

    `gate` is the accelerator whose window gates it, if it is prepared by one.
    """

    __slots__ = (
        "attrs",
        "gate",
        "guessed",
        "invariant",
        "kind",
        "known",
        "lr",
        "name",
        "number",
        "own",
        "parts",
        "plain_sgd",
        "replays",
        "span",
    )

    def __init__(self, number: int, name: str, kind: str, parts: Owners | None, span: Span, known: bool) -> None:
        self.number = number
        self.name = name
        self.kind = kind
        self.parts = parts
        self.span = span
        self.known = known
        self.guessed = not known
        self.invariant = False
        self.plain_sgd = False
        self.replays = False
        self.own = False  # of a class of the project whose step() does what one of torch does
        self.lr: Value = None
        self.gate: Accelerator | None = None
        self.attrs: dict[str, Value] = {}


class Scheduler:
    """A learning-rate scheduler. `horizon` is the length of its schedule in calls of step(), if known.

    `floor`: the rate is not down to zero there, so that the length may be that of a part.
    """

    __slots__ = ("attrs", "cadence", "floor", "gate", "horizon", "kind", "name", "number", "optimizer", "span")

    def __init__(self, number: int, name: str, kind: str, cadence: str, span: Span) -> None:
        self.number = number
        self.name = name
        self.kind = kind
        self.cadence = cadence
        self.span = span
        self.horizon: Value = None
        self.floor = False
        self.optimizer: Optimizer | None = None
        self.gate: Accelerator | None = None
        self.attrs: dict[str, Value] = {}

    def gated(self, gate: Accelerator | None) -> Scheduler:
        """The same schedule as another object, which steps only where an accelerator's window ends."""
        made = Scheduler(self.number, self.name, self.kind, self.cadence, self.span)
        made.horizon, made.floor = self.horizon, self.floor
        made.optimizer, made.gate, made.attrs = self.optimizer, gate, self.attrs
        return made


class Scaler:
    """torch.amp.GradScaler, or an object like it, perhaps called with loss and optimizer (timm)."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Accelerator:
    """accelerate's Accelerator. `steps` is its own window; `count` how many blocks of accumulate() it has seen.

    `engine` says that what it prepares is DeepSpeed's, which zeroes behind its updates and at no other time;
    `schedules` that prepared schedulers are stepped with the updates only; `told` that the program says or reads its
    steps, which the launcher may set as well; `prepares` that the file prepares something with it.
    """

    __slots__ = (
        "attrs", "count", "engine", "entered", "known", "name", "prepares", "schedules", "steps", "sync", "told"
    )  # fmt: skip

    def __init__(self, name: str, steps: Value, known: bool) -> None:
        self.name = name
        self.steps = steps
        self.known = known
        self.count = 0
        self.sync = True
        self.entered = False
        self.engine = False
        self.schedules = True
        self.told = True
        self.prepares = False
        self.attrs: dict[str, Value] = {}


class Fabric:
    """lightning.Fabric: backward only, no division."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Engine:
    """A DeepSpeed engine, or another framework object that divides, zeroes and steps by itself."""

    __slots__ = ("attrs", "name", "owner")

    def __init__(self, name: str, owner: Owner) -> None:
        self.name = name
        self.owner = owner
        self.attrs: dict[str, Value] = {}


class Dataset:
    """Something with a length that a loader is made from."""

    __slots__ = ("size",)

    def __init__(self, size: Value) -> None:
        self.size = size


class Loader:
    """A DataLoader or another source of micro-batches. `length` is its number of batches, `batch_size` their size."""

    __slots__ = ("attrs", "batch_size", "batch_span", "key", "length", "micro", "name")

    def __init__(self, key: str, length: Value, batch_size: Value = None, batch_span: Span | None = None) -> None:
        self.key = key
        self.name = key
        self.length = length
        self.batch_size = batch_size
        self.batch_span = batch_span
        self.micro = True
        self.attrs: dict[str, Value] = {}


class Stream:
    """An iterator over something: a started loader, a generator, zip, enumerate, cycle.

    `pull` yields the items; `length` is how many there are, None if endless or unknown. `feeds` says whether the items
    are micro-batches; `endless` whether it never stops.
    """

    __slots__ = ("endless", "feeds", "last", "length", "loader", "pull")

    def __init__(
        self, pull: Iterator[Value], length: Value = None, feeds: bool = False, loader: Loader | None = None
    ) -> None:
        self.pull = pull
        self.length = length
        self.feeds = feeds
        self.loader = loader
        self.endless = False


class Opaque:
    """An unknown value with an identity.

    `key` names it the same way on every path; `owners` are the parameters it may hold or be computed from; `graph`
    says whether it may be a differentiable result. `attrs` remembers what was stored on it.
    """

    __slots__ = ("attrs", "batch", "graph", "hint", "key", "name", "owner", "owners")

    def __init__(
        self,
        key: str,
        name: str,
        owners: Owners = NOBODY,
        graph: bool = False,
        owner: Owner | None = None,
        batch: frozenset[int] = frozenset(),
    ) -> None:
        self.key = key
        self.name = name
        self.owners = owners
        self.graph = graph
        self.owner = owner
        self.batch = batch
        self.hint = ""
        self.attrs: dict[str, Value] = {}

    def __repr__(self) -> str:
        return f"Opaque({self.key})"


@dataclass(frozen=True, slots=True)
class Imported:
    """Something imported, by its full dotted name."""

    path: str


@dataclass(eq=False, slots=True)
class Closure:
    """A function of the file, with the scope it was made in; `bound` is its self."""

    function: Function
    scope: Frame | None
    bound: Value = None
    no_grad: bool = False
    owner_class: ClassValue | None = None
    defaults: dict[str, Value] = field(default_factory=dict)
    kind: str = ""  # "", "property", "static", "class", "context"

    def bind(self, to: Value) -> Closure:
        """The same function as a method of `to`."""
        return replace(self, bound=to)


@dataclass(eq=False, slots=True)
class ClassValue:
    """A class of the file."""

    node: Class
    scope: Frame | None
    members: dict[str, Value]
    bases: tuple[Value, ...]
    name: str
    module: bool = False
    dataclass: bool = False
    dataset: bool = False


def resolution_order(cls: ClassValue) -> list[ClassValue]:
    """A class and its bases of the file in the order of method resolution: a shared base behind all that have it."""
    order: list[ClassValue] = []
    pending = [cls]
    while pending and len(order) < 64:
        one = pending.pop()
        order = [*(other for other in order if other is not one), one]
        pending += [base for base in reversed(one.bases) if type(base) is ClassValue]
    return order


class Instance:
    """An object of a class of the file. A module has an owner."""

    __slots__ = ("attrs", "batchnorm", "cls", "forward", "key", "name", "owner", "training")

    def __init__(self, cls: ClassValue, owner: Owner | None, key: str) -> None:
        self.cls = cls
        self.owner = owner
        self.key = key
        self.name = cls.name
        self.attrs: dict[str, Value] = {}
        self.batchnorm: Span | None = None
        self.training = True
        self.forward: Value = None


def replaced(instance: Instance, changes: dict[str, Value]) -> Instance:
    """What `_replace` of a named tuple and `dataclasses.replace` make: another object with some other fields."""
    made = Instance(instance.cls, instance.owner, instance.key)
    made.attrs = {**instance.attrs, **changes}
    return made


class Exits:
    """contextlib.ExitStack: what to do when it is left, the last first."""

    def __init__(self) -> None:
        self.leave: list[Callable[[], object]] = []


@dataclass(frozen=True, slots=True)
class Bound:
    """A method of a library value: called by name."""

    owner: Value
    name: str


@dataclass(frozen=True, slots=True)
class Partial:
    """functools.partial of something."""

    func: Value
    args: tuple[Value, ...]
    keywords: tuple[tuple[str, Value], ...]


class PyRaise(Exception):
    """An exception of the program itself; the argument is its type's name."""


class Range:
    """range(): bounds may depend on unknowns."""

    __slots__ = ("start", "step", "stop")

    def __init__(self, start: Value, stop: Value, step: Value) -> None:
        self.start = start
        self.stop = stop
        self.step = step


class Maybe:
    """A truth value that the text does not decide; the same key is decided the same way everywhere."""

    __slots__ = ("key", "negated", "span")

    def __init__(self, key: str, negated: bool = False, span: Span = NOWHERE) -> None:
        self.key = key
        self.negated = negated
        self.span = span


def switch(value: Value) -> Value:
    """A flag as a plain boolean, whatever test it was set under."""
    return value.v if type(value) is Num and isinstance(value.v, bool) else value


def numeric(value: Value) -> Any:
    """The number a value counts as in this run, or None."""
    if type(value) is Num:
        return value.v
    if isinstance(value, (int, float, Fraction)):
        return value
    return None


def roots_of(value: Value) -> frozenset[str]:
    return value.roots if type(value) is Num else NO_ROOTS
