"""What a piece of the program mentions, found once and kept: which calls, jumps and loops are inside.

A loop's level (how many iterations are worth running) and the default branch of an unknown condition depend on whether
events can happen inside, through the functions and methods that are called: those of the file, and those that it
imports from other files of the project. Receivers count: `model.train()` is no call of the file's own `train()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from acclint import program as p
from acclint.knowledge import losses, names, optimizers, schedulers
from acclint.knowledge.norms import is_batchnorm_layer
from acclint.program import Span
from acclint.simulate.imports import Imports
from acclint.simulate.vocabulary import ZEROING, word_set

BACKWARD = frozenset({"backward", "manual_backward", "scale_loss", "accumulate_gradients"})
UPDATE = ZEROING | {"step"}
EVENTS = BACKWARD | UPDATE | {"step_update", "unscale_", "clip_grad_norm_", "clip_grad_value_", "_foreach_div_"}
# Methods that every torch or Python object has: a call of one on another receiver is no call into the file.
_COMMON = word_set(
    "train eval forward step update zero_grad backward to cuda cpu append add get items keys values parameters reset "
    "load save log run fit evaluate test validate compute close write format join split copy pop extend main"
)

_MODES = frozenset({"eval", "requires_grad", "requires_grad_"})
_SHORT = 6  # statements of a function that is run whatever it does
_REDUCES = frozenset({"mean", "sum"})
_JUMPS = (p.Continue, p.Return)


class Waiting(NamedTuple):
    """What waits for a test: whether an optimizer is stepped and backward called, and what the test reads assigned.

    `both` says that backward is called whichever way the test goes; `raises` are the statements that add to what the
    test reads.
    """

    steps: bool
    trains: bool
    both: bool
    sets: bool
    raises: tuple[Span, ...]


def _stepped(stmt: p.Stmt) -> p.Expr | None:
    """What a statement `x.step(...)` steps; None for other statements."""
    func = stmt.value.func if isinstance(stmt, p.Do) and isinstance(stmt.value, p.Call) else None
    return func.value if isinstance(func, p.Attr) and func.name == "step" else None


class Scan:
    """Names in a piece of code: plain calls, calls on self, other attributes; its jumps, loops and remainders."""

    __slots__ = (
        "attrs", "calls", "counted", "externs", "gates", "grad", "grows", "jumps", "loops", "own", "raises",
        "remainder", "returns", "sets_grad", "sums", "torch",
    )  # fmt: skip

    def __init__(self) -> None:
        self.calls: set[str] = set()
        self.own: set[str] = set()
        self.attrs: set[str] = set()
        self.externs: set[str] = set()
        self.loops: list[p.For | p.While] = []
        self.jumps = False
        self.returns = False
        self.raises = False
        self.gates: list[p.If] = []
        self.grad = False
        self.grows = False
        self.sums = False
        self.remainder = False
        self.counted: set[str] = set()  # names of which a remainder is taken
        self.sets_grad = False
        self.torch = False


class Scanner:
    """Scans pieces of one program, with a memory."""

    def __init__(self, program: p.Program) -> None:
        self.program = program
        self.functions: dict[str, list[p.Function]] = {}
        self.methods: dict[str, list[p.Function]] = {}
        self._scans: dict[int, tuple[object, Scan]] = {}
        self._reach: dict[int, tuple[object, frozenset[str]]] = {}
        self._matters: dict[int, tuple[object, bool]] = {}
        self._calls: dict[int, tuple[object, list[p.Function]]] = {}
        self._clears: dict[int, tuple[object, bool]] = {}
        self._named: list[tuple[str, str]] = []
        self._behind: dict[Span, tuple[p.Stmt, ...]] = {}
        self._waiting: dict[Span, Waiting] = {}
        self.imports = Imports(program)
        self._collect(program.body, None)
        for name, other in self._named:
            # `backward_pass = amp_backward_pass`
            if other in self.functions and name not in self.functions:
                self.functions[name] = []
        for name, other in self._named:
            if name in self.functions and other in self.functions:
                self.functions[name] += [one for one in self.functions[other] if one not in self.functions[name]]

    def _collect(self, body: tuple[p.Stmt, ...], cls: p.Class | None) -> None:
        for at, stmt in enumerate(body):
            kind = type(stmt)
            if isinstance(stmt, p.If) and not stmt.orelse and stmt.body and isinstance(stmt.body[-1], _JUMPS):
                self._behind[stmt.span] = body[at + 1 :]
            if kind is p.Define:
                assert isinstance(stmt, p.Define)
                where = self.methods if cls is not None else self.functions
                where.setdefault(stmt.function.name, []).append(stmt.function)
                self._collect(stmt.function.body, None)
            elif kind is p.Class:
                assert isinstance(stmt, p.Class)
                self._collect(stmt.body, stmt)
            elif kind is p.Assign and isinstance(stmt.value, p.Name):  # type: ignore[attr-defined]
                self._named += [(one.id, stmt.value.id) for one in stmt.targets if isinstance(one, p.Name)]  # type: ignore[attr-defined]
            else:
                for part in bodies(stmt):
                    self._collect(part, cls)

    def scan(self, body: tuple[p.Stmt, ...]) -> Scan:
        """What `body` itself mentions (nested functions included, called ones not)."""
        kept = self._scans.get(id(body))
        if kept is not None:
            return kept[1]
        found = Scan()
        for stmt in body:
            self._statement(stmt, found)
        self._scans[id(body)] = (body, found)
        return found

    def _statement(self, stmt: p.Stmt, found: Scan) -> None:
        kind = type(stmt)
        if kind is p.If:
            assert isinstance(stmt, p.If)
            if _has_remainder(stmt.test):
                found.gates.append(stmt)
        elif kind in (p.For, p.While):
            found.loops.append(stmt)  # type: ignore[arg-type]
        elif kind in (p.Break, p.Continue):
            found.jumps = True
        elif kind is p.Return:
            found.returns = True
        elif kind is p.Raise:
            found.raises = True
        elif kind is p.Augment:
            assert isinstance(stmt, p.Augment)
            found.grows |= stmt.op == "+" and not isinstance(stmt.value, p.Const)
            found.sums |= found.grows and isinstance(stmt.target, p.Attr)
        elif kind is p.Assign:
            assert isinstance(stmt, p.Assign)
            if isinstance(stmt.value, p.Binary):
                found.grows |= stmt.value.op == "+" and text(stmt.value.left) == text(stmt.targets[0])
            found.grows |= _joins(stmt)
            found.grows |= isinstance(stmt.targets[0], p.Index)
            found.sets_grad |= any(isinstance(one, p.Attr) and one.name in ("grad", "_grad") for one in stmt.targets)
            if isinstance(stmt.value, p.Name):
                found.calls.add(stmt.value.id)  # a function under another name is there to be called
        elif kind is p.Class:
            assert isinstance(stmt, p.Class)
            found.torch |= self.scan(stmt.body).torch
        # `optimizer.zero_grad` alone is no call.
        uncalled = stmt.value if isinstance(stmt, p.Do) and isinstance(stmt.value, p.Attr) else None
        for expr in expressions(stmt) if uncalled is None else (uncalled.value,):
            self._expression(expr, found)
        if kind is p.Define:
            assert isinstance(stmt, p.Define)
            self._merge(found, self.scan(stmt.function.body), jumps=False)
        for part in bodies(stmt):
            self._merge(found, self.scan(part), jumps=True)

    @staticmethod
    def _merge(found: Scan, inside: Scan, *, jumps: bool) -> None:
        found.calls |= inside.calls
        found.own |= inside.own
        found.attrs |= inside.attrs
        found.externs |= inside.externs
        found.gates += inside.gates
        found.grad |= inside.grad
        found.grows |= inside.grows
        found.sums |= inside.sums
        found.remainder |= inside.remainder
        found.counted |= inside.counted
        found.sets_grad |= inside.sets_grad
        found.torch |= inside.torch
        if jumps:
            found.loops += inside.loops
            found.jumps |= inside.jumps
            found.returns |= inside.returns
            found.raises |= inside.raises

    def _expression(self, expr: p.Expr, found: Scan) -> None:
        todo = [expr]
        while todo:
            one = todo.pop()
            kind = type(one)
            if kind is p.Call:
                assert isinstance(one, p.Call)
                func = one.func
                if isinstance(func, p.Name):
                    found.calls.add(func.id)
                elif isinstance(func, p.Attr):
                    found.attrs.add(func.name)
                    if isinstance(func.value, p.Name) and func.value.id in ("self", "cls"):
                        found.own.add(func.name)
                for arg in one.args:
                    if isinstance(arg, p.Name):
                        found.calls.add(arg.id)
                for _, arg in one.keywords:
                    if isinstance(arg, p.Name):
                        found.calls.add(arg.id)
            elif kind is p.Attr:
                assert isinstance(one, p.Attr)
                if one.name != "step" or names.is_optimizer_name(text(one.value).rpartition(".")[2]):
                    found.attrs.add(one.name)  # `self.step` is a counter if it is not called.
                found.grows |= one.name in ("append", "extend", "add_")
                found.grad |= one.name in ("grad", "_grad")
            elif kind is p.Binary:
                assert isinstance(one, p.Binary)
                if one.op == "%":
                    found.remainder = True
                    found.counted |= {name.id for name in within(one.left) if isinstance(name, p.Name)}
            elif kind is p.Extern:
                assert isinstance(one, p.Extern)
                found.attrs.add(one.path.rpartition(".")[2])
                found.externs.add(one.path)
                found.torch |= one.path.startswith("torch")
            elif kind is p.Lambda:
                assert isinstance(one, p.Lambda)
                self._merge(found, self.scan(one.function.body), jumps=False)
            todo += children(one)

    def reach(self, body: tuple[p.Stmt, ...]) -> frozenset[str]:
        """Attribute names, dotted imports and scaler-like calls in `body` and in the functions that it calls."""
        kept = self._reach.get(id(body))
        if kept is not None:
            return kept[1]
        words: set[str] = set()
        for part in self._called(body):
            found = self.scan(part)
            words |= found.attrs
            words |= found.externs
            scalers = [name for name in found.calls if names.is_scaler_name(name)]
            scalers += [name for name in found.own if names.is_scaler_name(name) and name not in self.methods]
            if scalers:
                words |= {"backward", "step"}
        if "optimizer_step" in words:
            words.add("step")  # `xm.optimizer_step(optimizer)` of torch_xla
        result = frozenset(words)
        self._reach[id(body)] = (body, result)
        return result

    def _called(self, body: tuple[p.Stmt, ...]) -> Iterator[tuple[p.Stmt, ...]]:
        """A body and those of the functions and methods that it calls, and so on."""
        todo, seen = [body], set[int]()
        while todo:
            part = todo.pop()
            if id(part) not in seen:
                seen.add(id(part))
                yield part
                todo += [function.body for function in self._callees(part)]

    def _callees(self, part: tuple[p.Stmt, ...]) -> list[p.Function]:
        """The functions and methods that a body itself may call."""
        kept = self._calls.get(id(part))
        if kept is None:
            unique = {id(function): function for function in self._find_callees(part)}
            kept = self._calls[id(part)] = part, list(unique.values())
        return kept[1]

    def _find_callees(self, part: tuple[p.Stmt, ...]) -> Iterator[p.Function]:
        found = self.scan(part)
        number = p.file_of(part[0].span) if part else 0
        for name in found.calls:
            if number == 0:
                yield from self.functions.get(name, ())
                yield from self.methods.get("__init__", ()) if name in self.methods else ()
            yield from self.imports.called(number, name)
        for name in found.own:
            yield from self.methods.get(name, ())
            yield from self.imports.inherited.get(name, ())
            yield from self.imports.table(number).methods.get(name, ()) if number else ()
        for name in found.attrs - found.own - _COMMON:
            yield from self.methods.get(name, ())
            yield from self.imports.methods.get(name, ())
        for path in found.externs:
            function = self.imports.function(number, path)
            if function is not None:
                yield function

    def matters(self, function: p.Function) -> bool:
        """Whether what a function of another file does can matter to a training loop: events, or what they are of."""
        kept = self._matters.get(id(function))
        if kept is None:
            words = self.reach(function.body)
            matters = function.generator or self.scan(function.body).sums or not (EVENTS | _MODES).isdisjoint(words)
            matters = matters or any(self.scan(part).grad for part in self._called(function.body))
            matters = matters or any("." in word and _is_known(word) for word in words)
            matters = matters or (len(function.body) <= _SHORT and not self.scan(function.body).loops)
            matters = matters or (self.reduces(function) and not names.is_metric_name(function.name))
            kept = self._matters[id(function)] = (function, matters)
        return kept[1]

    def reduces(self, function: p.Function) -> bool:
        """Whether a mean or a sum is taken in a function."""
        return not _REDUCES.isdisjoint(self.reach(function.body))

    def zeroes(self, function: p.Function) -> bool:
        """Whether a function has a way to zero gradients in it, perhaps under a condition."""
        return self.handles_gradients(function.body)

    def handles_gradients(self, body: tuple[p.Stmt, ...]) -> bool:
        """Whether a body, or what it calls, zeroes gradients or reads `.grad`, perhaps under a condition."""
        return not ZEROING.isdisjoint(self.reach(body)) or any(self.scan(part).grad for part in self._called(body))

    def may_clear(self, body: tuple[p.Stmt, ...]) -> bool:
        """The same, or whether a name in it may mean zeroing, or code of the user that is called back."""
        kept = self._clears.get(id(body))
        if kept is None:
            said = self.reach(body).union(*(self.scan(part).calls for part in self._called(body)))
            may = any(names.may_zero(one) or names.may_call_back(one) for one in said)
            kept = self._clears[id(body)] = (body, may or self.handles_gradients(body))
        return kept[1]

    def class_matters(self, cls: p.Class) -> bool:
        """The same for a class: for one of its methods, or since it holds nothing but settings."""
        methods = [one.function for one in cls.body if isinstance(one, p.Define)]
        return any(map(self.matters, methods)) or (not methods and any(isinstance(one, p.Assign) for one in cls.body))

    def has_backward(self, body: tuple[p.Stmt, ...]) -> bool:
        return not BACKWARD.isdisjoint(self.reach(body))

    def gates_step(self, body: tuple[p.Stmt, ...]) -> bool:
        """Whether a test of a remainder in `body` decides about a step, or about a jump."""
        gates = self.scan(body).gates
        return any("step" in self.reach(gate.body) or self.scan(gate.body).jumps for gate in gates)

    def keeps(self, body: tuple[p.Stmt, ...]) -> bool:
        """Whether a loop in `body` adds to something, and nothing in it trains."""
        return any(self.scan(loop.body).grows for loop in self.scan(body).loops) and not self.has_events(body)

    def has_events(self, body: tuple[p.Stmt, ...]) -> bool:
        return not EVENTS.isdisjoint(self.reach(body)) or self.scan(body).grad

    def accumulates(self, body: tuple[p.Stmt, ...]) -> bool:
        """Whether `body` calls backward and tests a remainder before a step, both outside of the loops in it.

        A scaler that is called may do both (timm's), and only the zeroing be under the test.
        """
        backward = gate = False
        todo = [body]
        while todo:
            for stmt in todo.pop():
                if isinstance(stmt, (p.For, p.While, p.Define, p.Class)):
                    continue
                todo += bodies(stmt)
                if isinstance(stmt, (p.Do, p.Assign)):
                    said = self.scan((stmt,))
                    backward |= not BACKWARD.isdisjoint(said.attrs) or any(map(names.is_scaler_name, said.calls))
                elif isinstance(stmt, p.If) and _has_remainder(stmt.test):
                    gate |= not {"step", "zero_grad"}.isdisjoint(self.scan(stmt.body).attrs)
        return backward and gate

    def waiting(self, stmt: p.If) -> Waiting:
        """What waits for a test: in its blocks or, where it guards a jump, behind it; with the functions called."""
        kept = self._waiting.get(stmt.span)
        if kept is None:
            behind = self._behind.get(stmt.span)
            blocks = (stmt.body, stmt.orelse) if behind is None else (behind,)
            read = _variables(stmt.test)
            reached = [one for block in blocks for one in self._reached(block)]
            sets = [one for one in reached if not read.isdisjoint(map(text, _assigned(one)))]
            stepped = [text(one) for one in map(_stepped, reached) if one is not None]
            steps = any("step" in self.reach(block) for block in blocks)
            steps = steps and not (stepped and all(map(names.has_idle_step, stepped)))
            called = [self.has_backward(block) for block in blocks]
            raises = tuple(one.span for one in sets if _adds(one))
            kept = self._waiting[stmt.span] = Waiting(
                steps, any(called), len(called) > 1 and all(called), bool(sets), raises
            )
        return kept

    def raised(self, body: tuple[p.Stmt, ...]) -> set[str]:
        """The attributes of `self` that `body`, with what it calls, counts up."""
        found = set()
        for stmt in self._reached(body):
            target = stmt.target if isinstance(stmt, p.Augment) and stmt.op == "+" else None
            if isinstance(stmt, p.Assign) and isinstance(stmt.value, p.Binary) and stmt.value.op == "+":
                target = stmt.targets[0] if text(stmt.value.left) == text(stmt.targets[0]) else None
            if isinstance(target, p.Attr) and text(target.value) == "self":
                found.add(target.name)
        return found

    def _reached(self, block: tuple[p.Stmt, ...]) -> list[p.Stmt]:
        """The statements of a block, nested ones too, and those of the functions and methods of the file it calls."""
        found: list[p.Stmt] = []
        todo, seen = [block], set[int]()
        while todo:
            part = todo.pop()
            if id(part) in seen:
                continue
            seen.add(id(part))
            for stmt in part:
                found.append(stmt)
                todo += bodies(stmt)
            todo += [function.body for function in self._callees(part)]
        return found

    def has_nested_backward(self, body: tuple[p.Stmt, ...]) -> bool:
        """Whether a loop inside, here or in a function called from here, reaches a backward call."""
        return any(self.has_backward(loop.body) for part in self._called(body) for loop in self.scan(part).loops)


def _is_known(path: str) -> bool:
    """Whether a dotted name is an optimizer, a scheduler, a loss, a BatchNorm layer or a loader of torch."""
    return (
        is_batchnorm_layer(path)
        or path.endswith(("DataLoader", "GradScaler", "Accelerator"))
        or optimizers.optimizer_kind(path) is not None
        or schedulers.scheduler_kind(path) is not None
        or losses.reduction_of(path) is not None
    )


def _assigned(stmt: p.Stmt) -> list[p.Expr]:
    """What a statement assigns to, the items of a tuple each; of `state = state._replace(n=...)` also `state.n`."""
    if isinstance(stmt, p.Augment):
        return [stmt.target]
    if not isinstance(stmt, p.Assign):
        return []
    found = [one for target in stmt.targets for one in (target.items if isinstance(target, p.Sequence) else (target,))]
    value = stmt.value
    if isinstance(value, p.Call) and value.keywords and len(found) == 1:
        (target,) = found
        known = {f"{text(target)}._replace", "replace", "dataclasses.replace"}
        if text(value.func) in known and all(text(one) == text(target) for one in value.args):
            found += [p.Attr(stmt.span, target, name) for name, _ in value.keywords if name is not None]
    return found


def _adds(stmt: p.Stmt) -> bool:
    """Whether a statement adds to what it assigns: `n += 1`, `n = n + 1`."""
    if isinstance(stmt, p.Augment):
        return stmt.op == "+"
    return isinstance(stmt, p.Assign) and isinstance(stmt.value, p.Binary) and stmt.value.op == "+"


def _variables(test: p.Expr) -> set[str]:
    """The names, attributes and entries that a test reads."""
    found: set[str] = set()
    todo = [test]
    while todo:
        one = todo.pop()
        if isinstance(one, (p.Name, p.Attr, p.Index)):
            found.add(text(one))
        if not isinstance(one, p.Attr):
            todo += children(one)
    return found


def _has_remainder(expr: p.Expr) -> bool:
    todo = [expr]
    while todo:
        one = todo.pop()
        if isinstance(one, p.Binary) and one.op == "%":
            return True
        todo += children(one)
    return False


# By the kind of node: these are asked for each node of each file, and a chain of isinstance would be most of the time.
_BODIES: dict[type, Callable[[Any], list[tuple[p.Stmt, ...]]]] = {
    p.If: lambda stmt: [stmt.body, stmt.orelse],
    p.For: lambda stmt: [stmt.body, stmt.orelse],
    p.While: lambda stmt: [stmt.body, stmt.orelse],
    p.With: lambda stmt: [stmt.body],
    p.Try: lambda stmt: [stmt.body, stmt.orelse, stmt.final, *(handler[2] for handler in stmt.handlers)],
    p.Match: lambda stmt: [case[2] for case in stmt.cases],
}
_EXPRESSIONS: dict[type, Callable[[Any], list[p.Expr]]] = {
    p.Assign: lambda stmt: [*stmt.targets, stmt.value],
    p.Augment: lambda stmt: [stmt.target, stmt.value],
    p.Do: lambda stmt: [stmt.value],
    p.If: lambda stmt: [stmt.test],
    p.While: lambda stmt: [stmt.test],
    p.For: lambda stmt: [stmt.target, stmt.iterable],
    p.With: lambda stmt: [part for item in stmt.items for part in item if part is not None],
    p.Return: lambda stmt: [stmt.value] if stmt.value is not None else [],
    p.Match: lambda stmt: [stmt.subject],
    p.Delete: lambda stmt: list(stmt.targets),
}
_CHILDREN: dict[type, Callable[[Any], list[p.Expr]]] = {
    p.Attr: lambda expr: [expr.value],
    p.Star: lambda expr: [expr.value],
    p.Await: lambda expr: [expr.value],
    p.Call: lambda expr: [expr.func, *expr.args, *(value for _, value in expr.keywords)],
    p.Binary: lambda expr: [expr.left, expr.right],
    p.Index: lambda expr: [expr.value, expr.index],
    p.Unary: lambda expr: [expr.operand],
    p.Compare: lambda expr: [expr.left, *expr.rights],
    p.Bool: lambda expr: list(expr.values),
    p.IfElse: lambda expr: [expr.test, expr.body, expr.orelse],
    p.Sequence: lambda expr: list(expr.items),
    p.Mapping: lambda expr: [part for item in expr.items for part in item if part is not None],
    p.Comprehension: lambda expr: [
        expr.element,
        *(part for clause in expr.clauses for part in (clause.target, clause.iterable, *clause.tests)),
    ],
    p.Text: lambda expr: list(expr.parts),
    p.Slice: lambda expr: [part for part in (expr.lower, expr.upper, expr.step) if part is not None],
    p.Walrus: lambda expr: [expr.target, expr.value],
    p.Yield: lambda expr: [expr.value] if expr.value is not None else [],
}


def bodies(stmt: p.Stmt) -> list[tuple[p.Stmt, ...]]:
    """The blocks of a statement."""
    found = _BODIES.get(type(stmt))
    return found(stmt) if found is not None else []


def expressions(stmt: p.Stmt) -> list[p.Expr]:
    """The expressions of a statement itself, those of its blocks left out."""
    found = _EXPRESSIONS.get(type(stmt))
    return found(stmt) if found is not None else []


def children(expr: p.Expr) -> list[p.Expr]:
    """The expressions directly inside `expr`."""
    found = _CHILDREN.get(type(expr))
    return found(expr) if found is not None else []


def within(expr: p.Expr) -> list[p.Expr]:
    """An expression and all that is inside it."""
    found = [expr]
    for one in found:  # grows on the way
        found += children(one)
    return found


def counted(iterable: p.Expr) -> str:
    """How many turns a loop over `iterable` makes, in the words of the text; "" if they do not say."""
    if isinstance(iterable, (p.Name, p.Attr)):
        return f"len({text(iterable)})"
    if not isinstance(iterable, p.Call) or not iterable.args:
        return ""
    name = text(iterable.func).rpartition(".")[2]
    if name in ("chunk", "tensor_split"):
        own = isinstance(iterable.func, p.Attr)
        return text(iterable.args[0]) if own else text(iterable.args[1]) if len(iterable.args) > 1 else ""
    if name == "range":
        return text(iterable.args[0]) if len(iterable.args) == 1 else ""
    return counted(iterable.args[0]) if name in ("enumerate", "zip", "tqdm", "trange", "list", "reversed") else ""


_TURNED = {"!=": "==", "is not": "is", "not in": "in"}


def _joins(stmt: p.Assign) -> bool:
    """Whether a statement joins something to what its target holds: `preds = torch.cat((preds, out))`."""
    call = stmt.value
    if not (isinstance(call, p.Call) and call.args and isinstance(call.args[0], p.Sequence)):
        return False
    joined = text(call.func).rpartition(".")[2] in ("cat", "concat")
    return joined and text(stmt.targets[0]) in map(text, call.args[0].items)


def plain_test(test: p.Expr) -> tuple[str, bool]:
    """The text of a test without its `not`s, and whether they turn it around: `a != b` is `a == b`, turned."""
    negated = False
    while isinstance(test, p.Unary) and test.op == "not":
        test, negated = test.operand, not negated
    if isinstance(test, p.Compare) and len(test.ops) == 1 and test.ops[0] in _TURNED:
        return f"{text(test.left)} {_TURNED[test.ops[0]]} {text(test.rights[0])}", not negated
    return text(test), negated


def text(expr: p.Expr) -> str:
    """A short rendering of an expression, the same for the same text: for names and keys."""
    render = _TEXTS.get(type(expr))
    return render(expr) if render is not None else f"<{type(expr).__name__}>"


def _text_of_call(expr: p.Call) -> str:
    inside = [*map(text, expr.args), *(f"{name}={text(value)}" for name, value in expr.keywords)]
    return f"{text(expr.func)}({', '.join(inside)})"


def _text_of_comparison(expr: p.Compare) -> str:
    pairs = zip(expr.ops, expr.rights, strict=True)
    return text(expr.left) + "".join(f" {op} {text(right)}" for op, right in pairs)


_TEXTS: dict[type, Callable[[Any], str]] = {
    p.Name: lambda expr: str(expr.id),
    p.Attr: lambda expr: f"{text(expr.value)}.{expr.name}",
    p.Extern: lambda expr: str(expr.path),
    p.Const: lambda expr: repr(expr.value),
    p.Call: _text_of_call,
    p.Index: lambda expr: f"{text(expr.value)}[{text(expr.index)}]",
    p.Binary: lambda expr: f"{text(expr.left)} {expr.op} {text(expr.right)}",
    p.Unary: lambda expr: f"not {text(expr.operand)}" if expr.op == "not" else f"{expr.op}{text(expr.operand)}",
    p.Compare: _text_of_comparison,
    p.Bool: lambda expr: f" {expr.op} ".join(map(text, expr.values)),
    p.Star: lambda expr: f"*{text(expr.value)}",
    p.Sequence: lambda expr: "(" + ", ".join(map(text, expr.items)) + ")",
}
