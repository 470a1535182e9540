"""Who calls a function of the file, and whether with gradients: for functions that the abstract run did not reach."""

from __future__ import annotations

from acclint import program as p
from acclint.simulate.scan import bodies, children, expressions, text

_MODULE = ""


class Callers:
    """The call sites of every name in a program: (name of the function around it, whether gradients are off there)."""

    def __init__(self, program: p.Program) -> None:
        self.sites: dict[str, set[tuple[str, bool]]] = {}
        self.switched = False
        self._walk(program.body, _MODULE, False)

    def _walk(self, body: tuple[p.Stmt, ...], around: str, off: bool) -> None:
        for stmt in body:
            for expr in expressions(stmt):
                self._calls(expr, around, off)
            if isinstance(stmt, p.Do) and "set_grad_enabled" in text(stmt.value):
                self.switched = True
            if isinstance(stmt, p.Define):
                quiet = any(_turns_off(one) for one in stmt.decorators)
                self._walk(stmt.function.body, stmt.function.name, quiet)
            elif isinstance(stmt, p.Class):
                self._walk(stmt.body, around, off)
            inside = off or (isinstance(stmt, p.With) and any(_turns_off(one) for one, _ in stmt.items))
            for part in bodies(stmt):
                self._walk(part, around, inside)

    def _calls(self, expr: p.Expr, around: str, off: bool) -> None:
        todo = [expr]
        while todo:
            one = todo.pop()
            if isinstance(one, p.Call):
                name = text(one.func).rpartition(".")[2]
                self.sites.setdefault(name, set()).add((around, off))
                for arg in one.args:
                    # Handed on: whoever gets it may call it in any way.
                    if isinstance(arg, (p.Name, p.Attr)):
                        self.sites.setdefault(text(arg).rpartition(".")[2], set()).add((around, True))
            elif isinstance(one, p.Lambda):
                self._walk(one.function.body, around, off)
            todo += children(one)

    def off(self, name: str, seen: frozenset[str] = frozenset()) -> bool:
        """Whether some call of `name` runs without gradients."""
        if self.switched:
            return True
        return any(
            off or (around not in seen and around != _MODULE and self.off(around, seen | {name}))
            for around, off in self.sites.get(name, ())
        )

    def on(self, name: str, seen: frozenset[str] = frozenset()) -> bool:
        """Whether some call of `name` is known to run with gradients: one that the module itself leads to."""
        return any(
            not off and (around == _MODULE or (around not in seen and self.on(around, seen | {name})))
            for around, off in self.sites.get(name, ())
        )


def _turns_off(expr: p.Expr) -> bool:
    words = text(expr)
    return any(word in words for word in ("no_grad", "inference_mode", "set_grad_enabled"))
