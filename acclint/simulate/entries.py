"""Where runs begin besides the module itself: functions, methods and closures that nobody in the file calls.

A training step or a whole loop is often called from another file, or handed to an engine. Each such function is called
again and again with unknown arguments that stay the same from call to call, so that what outlives a call can be seen.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from acclint import program as p
from acclint.knowledge import names
from acclint.knowledge.frameworks import ENGINES, is_trainer_package
from acclint.program import file_of
from acclint.simulate.callers import Callers
from acclint.simulate.scan import bodies, text
from acclint.simulate.trace import Loop
from acclint.simulate.values import (
    ClassValue,
    Closure,
    Imported,
    Instance,
    PyRaise,
    Value,
    numeric,
    resolution_order,
    roots_of,
)

if TYPE_CHECKING:
    from acclint.simulate.machine import Machine

_SETTERS = tuple((word,) for word in ("set", "setup", "build", "init", "create", "prepare", "configure", "make"))
# What a constructor cannot make itself where it is not given.
_GIVEN = frozenset({"dataset", "datasets", "data", "scaler"})
# Lightning calls these without gradients.
_NO_GRAD_HOOKS = ("validation_", "test_", "predict_", "on_validation", "on_test", "on_predict")
_GRADIENT_HOOKS = ("on_before_optimizer_step", "on_after_backward", "optimizer_step")
_FRAMEWORK_BASES = ("Callback", "Hook", "Function")  # whoever has them calls their methods


def drive(machine: Machine) -> None:
    """Call what can train and has not been called."""
    _engines(machine)
    for closure, owner in _entries(machine):
        if id(closure.function) not in machine.called:
            _repeat(machine, closure, owner, engine=False)
            _engines(machine)
    _evaluations(machine)


def _engines(machine: Machine) -> None:
    """Call what was handed to an engine, and what that hands on."""
    for closure, driver in machine.engine_driven:  # grows on the way
        if id(closure.function) not in machine.called:
            _repeat(machine, closure, None, engine=True, driver=driver if driver in ENGINES else "")


def _note_hooks(machine: Machine, cls: ClassValue) -> None:
    """Methods by which Lightning lets a module change gradients before an update."""
    for name in _GRADIENT_HOOKS:
        method = machine.member(cls, name)
        if type(method) is Closure and machine.scanner.scan(method.function.body).grad:
            machine.may_zero(name, method.function.span)


def _evaluations(machine: Machine) -> None:
    """Functions that add something up in a loop without training, were not reached and may run with gradients."""
    scanner = machine.scanner
    callers: Callers | None = None
    for closure, owner in _closures(machine):
        function = closure.function
        if id(function) in machine.called or closure.no_grad or function.generator or not scanner.keeps(function.body):
            continue
        if function.name in ("forward", "__init__", "__call__", "__iter__") or function.name.startswith(_NO_GRAD_HOOKS):
            continue
        callers = callers or Callers(machine.world.program)
        if not callers.off(function.name):
            _repeat(machine, closure, owner, engine=False, evaluation=True, certain=callers.on(function.name))


def _closures(machine: Machine) -> list[tuple[Closure, ClassValue | None]]:
    found: list[tuple[Closure, ClassValue | None]] = []
    for value in list(machine.globals.vars.values()):
        if type(value) is Closure:
            found.append((value, None))
        elif type(value) is ClassValue and not _belongs_to_framework(value):
            found += [(member, value) for member in value.members.values() if type(member) is Closure]
    return found


def _entries(machine: Machine) -> list[tuple[Closure, ClassValue | None]]:
    """Uncalled functions and methods that reach a backward call, callers before what they call."""
    scanner = machine.scanner
    found: list[tuple[Closure, ClassValue | None]] = []
    for value in list(machine.globals.vars.values()):
        if type(value) is Closure and scanner.has_backward(value.function.body):
            found.append((value, None))
        elif type(value) is ClassValue and not _belongs_to_framework(value):
            for member in _methods(value):
                if scanner.has_backward(member.function.body):
                    found.append((member, value))
    mentioned: dict[str, set[int]] = {}
    for closure, _ in found:
        inside = scanner.scan(closure.function.body)
        for name in inside.calls | inside.own:
            mentioned.setdefault(name, set()).add(id(closure.function))
    roots = [one for one in found if not (mentioned.get(one[0].function.name, set()) - {id(one[0].function)})]
    rest = [one for one in found if one not in roots]
    return roots + rest


def _methods(cls: ClassValue) -> list[Closure]:
    """The methods of a class of the file, and those that it inherits from classes of other files."""
    found = {name: one for name, one in cls.members.items() if type(one) is Closure}
    for base in resolution_order(cls):
        if file_of(base.node.span):
            for name, one in base.members.items():
                if type(one) is Closure:
                    found.setdefault(name, one)
    return list(found.values())


def _belongs_to_framework(cls: ClassValue) -> bool:
    for base in cls.bases:
        name = base.path if isinstance(base, Imported) else getattr(base, "name", "")
        last = name.rpartition(".")[2]
        if last.endswith(_FRAMEWORK_BASES) or (last.endswith("Trainer") and is_trainer_package(name)):
            return True
        if isinstance(base, ClassValue) and _belongs_to_framework(base):
            return True
    return False


def _repeat(
    machine: Machine,
    closure: Closure,
    cls: ClassValue | None,
    *,
    engine: bool,
    evaluation: bool = False,
    certain: bool = True,
    driver: str = "",
) -> None:
    """Call one entry several times; an evaluation once. `certain` says whether the file itself calls it like this.

    `driver` is what is known to call it with one batch after the other.
    """
    function = closure.function
    if function.name == "__init__":
        return
    scanner = machine.scanner
    target = closure
    counters: dict[str, Value] = {}
    if cls is not None and closure.kind not in ("static", "class"):
        instance = _instance(machine, cls)
        if machine.is_lightning(instance):
            if instance.attrs.get("automatic_optimization") is not False:
                return
            driver = "lightning" if function.name == "training_step" else ""
            _note_hooks(machine, cls)
        target = closure.bind(instance)
        counters = _counted_elsewhere(machine, closure, cls, instance)
    elif cls is not None:
        target = closure.bind(cls)
    has_loop = any(scanner.has_backward(loop.body) for loop in scanner.scan(function.body).loops) or (
        scanner.has_nested_backward(function.body)
    )
    rounds = 2 if has_loop else machine.world.turns(machine.assignment)
    parameters = function.parameters[(0 if target.bound is None or closure.kind == "static" else 1) :]
    values = {
        one.name: _argument(machine, function, one, engine) for one in parameters if one.kind in ("plain", "keyword")
    }
    loop = Loop(function.span, machine.entries, "call", "outer" if has_loop else "micro", target=driver)
    if evaluation:
        rounds, loop.level, loop.named = 1, "quiet", certain
    machine.entries += 1
    machine.run.loops.setdefault(function.span, loop)
    machine.loops.append(loop)
    optimizers = sum(one.known for one in machine.run.optimizers)
    counted = scanner.scan(function.body).counted
    own = target.bound.attrs if isinstance(target.bound, Instance) else {}
    before = dict(own)
    own.update(counters)
    try:
        for turn in range(rounds):
            if has_loop and sum(one.known for one in machine.run.optimizers) > optimizers:
                break  # A whole training, with an optimizer of its own: it is not called again and again.
            given = dict(values)
            for name in given:
                if names.is_turn_name(name) and (name in counted or not names.is_loader_name(name)):
                    given[name] = turn
                elif not has_loop and name in ("batch", "data", "inputs", "x", "samples", "sample"):
                    machine.batches += 1
                    given[name] = machine.opaque(f"{function.name}.{name}", name, batch=frozenset((machine.batches,)))
            loop.turns += 1
            try:
                result = machine.invoke(target, [], given, function.span)
            except PyRaise:
                break
            if type(result) is Closure and scanner.has_backward(result.function.body):
                machine.engine_driven.append((result, ""))  # A factory: whoever gets it calls it.
            loop.turn += 1
    finally:
        machine.loops.pop()
        for name in counters:
            own.pop(name, None)
            if name in before:
                own[name] = before[name]


def _counted_elsewhere(machine: Machine, closure: Closure, cls: ClassValue, instance: Instance) -> dict[str, Value]:
    """Unknown numbers for the counters that only others raise: `set_input()` before each `optimize()`, a callback."""
    scanner = machine.scanner
    mine = scanner.raised(closure.function.body)
    inherited = [one for base in resolution_order(cls) for one in base.members.values() if type(one) is Closure]
    raised = {name[1:] for name in machine.world.raised if name[:1] == "."}
    raised |= set().union(*(scanner.raised(one.function.body) for one in inherited if one is not closure))
    found: dict[str, Value] = {}
    for name in sorted(raised - mine):
        value = instance.attrs[name] if name in instance.attrs else machine.member(cls, name)
        if numeric(value) is not None and not roots_of(value):
            found[name] = machine.opaque(f"{instance.key}.{name}", name)
            machine.world.elsewhere.add(f"{instance.key}.{name}")
    return found


def _instance(machine: Machine, cls: ClassValue) -> Instance:
    """An object of a class, made with unknown arguments; one per class and run."""
    kept = machine.instances.get(cls.name)
    if kept is None:
        made = machine.instantiate(cls, [], _expected(machine, cls), cls.node.span)
        # The file's own optimizer class makes an optimizer; its methods still need a `self`.
        kept = made if isinstance(made, Instance) else Instance(cls, None, f"{cls.name}@{cls.node.span.row}")
        machine.instances[cls.name] = kept
        _set_up(machine, cls, kept)
    return kept


def _expected(machine: Machine, cls: ClassValue) -> dict[str, Value]:
    """Arguments of a constructor that are None by default, but that a training cannot do without."""
    init = machine.member(cls, "__init__")
    if type(init) is not Closure:
        return {}
    names_given = [one.name for one in init.function.parameters if init.defaults.get(one.name, 0) is None]
    kept = [text(value) for stmt in init.function.body if isinstance(stmt, p.Assign) for value in _kept(stmt)]
    expected = [one for one in names_given if _is_of_training(one) or (names.is_optimizer_name(one) and one in kept)]
    return {name: machine.opaque(f"__init__.{name}", name) for name in expected}


def _kept(stmt: p.Assign) -> list[p.Expr]:
    """What an assignment keeps in attributes, several at once perhaps."""
    target, value = stmt.targets[0], stmt.value
    pairs = [(target, value)]
    if isinstance(target, p.Sequence) and isinstance(value, p.Sequence):
        pairs = list(zip(target.items, value.items, strict=False))
    return [value for target, value in pairs if isinstance(target, p.Attr)]


def _is_of_training(name: str) -> bool:
    last = names.words(name)[-1:]
    return names.is_loader_name(name) or names.is_scheduler_name(name) or (bool(last) and last[0] in _GIVEN)


def _set_up(machine: Machine, cls: ClassValue, instance: Instance) -> None:
    """Call the methods that are to be called before it trains: those that set what is not set yet, by their names.

    Where two of them set the same, it is not known which is called.
    """
    known = set(instance.attrs)
    setters = [
        (method, _sets(method.function.body) - known)
        for method in _methods(cls)
        if names.words(method.function.name)[:1] in _SETTERS
        and id(method.function) not in machine.called
        and not machine.scanner.has_events(method.function.body)
    ]
    for method, own in setters:
        if own and all(other is method or own.isdisjoint(sets) for other, sets in setters):
            bound = method.bind(instance)
            with suppress(PyRaise):
                machine.invoke(bound, [], {}, method.function.span)


def _sets(body: tuple[p.Stmt, ...]) -> set[str]:
    """The attributes of `self` that statements assign."""
    found = set()
    for stmt in body:
        if isinstance(stmt, p.Assign):
            targets = [one for target in stmt.targets for one in getattr(target, "items", (target,))]
            found |= {one.name for one in targets if isinstance(one, p.Attr) and text(one.value) == "self"}
        found |= {name for part in bodies(stmt) for name in _sets(part)}
    return found


def _argument(machine: Machine, function: p.Function, parameter: p.Parameter, engine: bool) -> Value:
    name = parameter.name
    if engine and name in ("batch", "data"):
        machine.batches += 1
        return machine.opaque(f"{function.name}.{name}", name, batch=frozenset((machine.batches,)))
    return machine.opaque(f"{function.name}.{name}", name)
