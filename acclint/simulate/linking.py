"""Names that other files of the project define: their values, where those can matter to a training loop."""

from __future__ import annotations

from contextlib import suppress

from acclint import program as p
from acclint.knowledge import names, optimizers, schedulers
from acclint.program import NOWHERE
from acclint.simulate.core import Frame
from acclint.simulate.scan import bodies, text
from acclint.simulate.schedules import scheduler_base
from acclint.simulate.statements import Statements
from acclint.simulate.values import ClassValue, Closure, Imported, Opaque, PyRaise, Value
from acclint.simulate.vocabulary import word_set

_SCHEDULERS = ("LRScheduler", "Scheduler")
_HARMLESS = word_set(
    "no_grad inference_mode enable_grad property cached_property staticmethod classmethod contextmanager lru_cache "
    "cache wraps script compile overload ignore unused export typechecked jit main command record once rank_zero_only"
)
_CHANGES = word_set("append extend update add insert pop remove clear setdefault")
_HOPS = 6  # files that hand a name on to each other


class Linking(Statements):
    """The imports of the program, and those of the files that they lead to."""

    def linked(self, number: int, path: str) -> Value:
        """What the import `path` of file `number` is now; `Imported` where that is not known or cannot matter."""
        if not self.world.program.others:
            return Imported(path)
        where = self._where(number, path)
        if where is None:
            return Imported(path)
        frame, name, rest = where
        value = frame.vars[name]
        if type(value) is Imported:
            return Imported(path) if rest else value
        if not self._matters(value):
            return Imported(path)
        for one in rest:
            value = self.attribute(value, one, NOWHERE)
        return value

    def store_linked(self, number: int, path: str, name: str, value: Value) -> None:
        """`config.K = 8`: another file's global gets another value."""
        found = self.world.program.find(number, path)
        if found is not None and not found[1]:
            self._module(found[0]).vars[name] = value

    def _where(self, number: int, path: str) -> tuple[Frame, str, tuple[str, ...]] | None:
        """The globals and the name there that an import leads to, with the attributes that follow."""
        key = number, path
        kept = self.links.get(key)
        if kept is None:
            kept = self._search(number, path, _HOPS)
            if kept is not None and not self.defining:  # Files that import each other are not whole yet.
                self.links[key] = kept
        return kept

    def _search(self, number: int, path: str, hops: int) -> tuple[Frame, str, tuple[str, ...]] | None:
        found = self.world.program.find(number, path)
        if found is None or not found[1] or not hops:
            return None
        module, (name, *rest) = found
        frame = self._module(module)
        if name not in frame.vars:
            return None
        value = frame.vars[name]
        if type(value) is Imported:
            handed_on = self._search(module.number, ".".join((value.path, *rest)), hops - 1)
            return handed_on or (frame, name, tuple(rest))
        return frame, name, tuple(rest)

    def everything(self, number: int, path: str) -> dict[str, Value]:
        """What `from path import *` binds in file `number`, as far as it is known."""
        found = self.world.program.find(number, path)
        if found is None or found[1]:
            return {}
        known = self._module(found[0]).vars
        told = known.get("__all__")
        offered = told if isinstance(told, (list, tuple)) else [name for name in known if name[:1] != "_"]
        return {name: known[name] for name in offered if name in known and self._matters(known[name])}

    def _matters(self, value: Value) -> bool:
        kind = type(value)
        if kind is Closure:
            return self.scanner.matters(value.function)
        if kind is ClassValue:
            if _is_known(value):
                return self.updates_only(value) or bool(scheduler_base(value))
            return value.module or value.dataclass or self.scanner.class_matters(value.node)
        if kind is Opaque:
            return bool(value.attrs)  # settings that the file has written on it
        return kind is not Imported

    def _module(self, module: p.Module) -> Frame:
        """The globals of another file. Its own loops and calls for their effect are not run."""
        kept = self.modules.get(module.number)
        if kept is not None:
            return kept
        self.world.meet(module)
        frame = self.modules[module.number] = Frame(None)
        around = self.loops, self.guards, self.path, self.stack, self.grad_enabled
        self.loops, self.guards, self.path, self.stack, self.grad_enabled = [], [], [], [], True
        self.defining += 1
        try:
            self._define(module.body, frame)
            for name in unsettled(module.body):
                if not isinstance(frame.vars.get(name), (Imported, Opaque)):
                    frame.vars.pop(name, None)
        finally:
            self.defining -= 1
            self.loops, self.guards, self.path, self.stack, self.grad_enabled = around
        return frame

    def _define(self, body: tuple[p.Stmt, ...], frame: Frame) -> None:
        for stmt in body:
            if isinstance(stmt, p.If):
                if not _is_script(stmt.test):
                    self._define(stmt.orelse, frame)
                    self._define(stmt.body, frame)
            elif isinstance(stmt, p.Try):
                for _, _, handler in stmt.handlers:
                    self._define(handler, frame)
                self._define(stmt.body, frame)
            elif isinstance(stmt, p.Define) and not all(map(_is_harmless, stmt.decorators)):
                continue  # What the decorator makes of it is not known.
            elif (isinstance(stmt, p.Assign) and not self.scanner.has_events((stmt,))) or isinstance(
                stmt, (p.Import, p.Define, p.Class)
            ):
                with suppress(PyRaise):
                    self.statement(stmt, frame)


def _is_script(test: p.Expr) -> bool:
    """Whether a test asks if the file itself is run."""
    return text(test) in ("__name__ == '__main__'", "'__main__' == __name__")


def _is_harmless(decorator: p.Expr) -> bool:
    """Whether a decorator leaves what a function does as it is, by its name."""
    said = text(decorator.func if isinstance(decorator, p.Call) else decorator)
    return said.rpartition(".")[2] in _HARMLESS or not {"register", "registry"}.isdisjoint(names.words(said))


def unsettled(body: tuple[p.Stmt, ...]) -> set[str]:
    """The names of a file whose values are not those that its plain assignments give them.

    They are bound again under a condition, or changed by statements and calls that are not run.
    """
    bound: dict[str, int] = {}
    found: set[str] = set()
    changers: dict[str, set[str]] = {}  # functions that bind globals
    _look(body, False, bound, found, changers)
    return found


def _look(
    body: tuple[p.Stmt, ...], within: bool, bound: dict[str, int], found: set[str], changers: dict[str, set[str]]
) -> None:
    for stmt in body:
        if isinstance(stmt, p.If) and _is_script(stmt.test):
            continue
        names_bound: list[str] = []
        if isinstance(stmt, p.Assign):
            targets = [one for target in stmt.targets for one in getattr(target, "items", (target,))]
            names_bound = [one.id for one in targets if isinstance(one, p.Name)]
            found.update(text(one.value) for one in targets if isinstance(one, p.Index))
        elif isinstance(stmt, p.Define):
            names_bound = [stmt.function.name]
            scopes = [one for one in stmt.function.body if isinstance(one, p.Scope) and one.kind == "global"]
            changers[stmt.function.name] = {name for one in scopes for name in one.names}
        elif isinstance(stmt, p.Class):
            names_bound = [stmt.name]
        elif isinstance(stmt, p.Augment):
            found.add(text(stmt.target))
        elif isinstance(stmt, p.Delete):
            found.update(map(text, stmt.targets))
        elif isinstance(stmt, p.Do) and isinstance(stmt.value, p.Call):
            func = stmt.value.func
            found |= changers.get(text(func), set())
            if isinstance(func, p.Attr) and func.name in _CHANGES:
                found.add(text(func.value))
            if text(func) == "setattr" and len(stmt.value.args) == 3:
                found.add(str(getattr(stmt.value.args[1], "value", "")))
        for name in names_bound:
            if name in bound and (within or bound[name]):
                found.add(name)
            bound[name] = bound.get(name, 0) or int(within)
        if isinstance(stmt, (p.For, p.While, p.With, p.Match)):
            inside: set[str] = set()
            for part in bodies(stmt):
                fresh: dict[str, int] = {}
                _look(part, True, fresh, inside, changers)
                inside |= set(fresh)
            found |= inside
        else:
            for part in bodies(stmt):
                _look(part, within or isinstance(stmt, p.If), bound, found, changers)


def _is_known(cls: ClassValue) -> bool:
    """Whether a class is an optimizer or a scheduler: what these do is known without their code.

    One that is made from an optimizer of torch may do more.
    """
    for base in cls.bases:
        name = base.path if isinstance(base, Imported) else getattr(base, "name", "")
        if optimizers.optimizer_kind(name) is not None:
            return False
        if names.is_optimizer_class(name) or schedulers.scheduler_kind(name) or name.endswith(_SCHEDULERS):
            return True
    return names.is_optimizer_class(cls.name) and bool(cls.bases)
