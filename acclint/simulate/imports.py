"""What the imports of a program lead to in the other files of its project: functions, classes and their methods."""

from __future__ import annotations

from collections import deque

from acclint import program as p

_BASES = 6  # classes that derive from each other


class Table:
    """What one file defines or imports at its top level, by name. `wild` are the files it imports everything from."""

    def __init__(self, body: tuple[p.Stmt, ...]) -> None:
        self.functions: dict[str, p.Function] = {}
        self.classes: dict[str, p.Class] = {}
        self.methods: dict[str, list[p.Function]] = {}
        self.imported: dict[str, str] = {}
        self.wild: list[str] = []
        self._collect(body)

    def _collect(self, body: tuple[p.Stmt, ...]) -> None:
        for stmt in body:
            if isinstance(stmt, p.Define):
                self.functions[stmt.function.name] = stmt.function
            elif isinstance(stmt, p.Class):
                self.classes[stmt.name] = stmt
                for one in stmt.body:
                    if isinstance(one, p.Define):
                        self.methods.setdefault(one.function.name, []).append(one.function)
            elif isinstance(stmt, p.Import):
                if stmt.name == "*":
                    self.wild.append(stmt.path)
                else:
                    self.imported.setdefault(stmt.name, stmt.path)
            elif isinstance(stmt, p.If):
                self._collect(stmt.body)
                self._collect(stmt.orelse)
            elif isinstance(stmt, p.Try):
                self._collect(stmt.body)
                for _, _, handler in stmt.handlers:
                    self._collect(handler)


class Imports:
    """The definitions that a program reaches in other files.

    `methods` are those of all their classes, `inherited` those of the classes that classes of the file itself derive
    from.
    """

    def __init__(self, program: p.Program) -> None:
        self.program = program
        self._tables: dict[int, Table] = {}
        self._defined: dict[tuple[int, str], tuple[int, p.Function | p.Class] | None] = {}
        self.methods: dict[str, list[p.Function]] = {}
        self.inherited: dict[str, list[p.Function]] = {}
        if not program.others:
            return
        for number in program.others:
            for name, found in self.table(number).methods.items():
                self.methods.setdefault(name, []).extend(found)
        for cls in self.table(0).classes.values():
            self._inherit(0, cls)

    def table(self, number: int) -> Table:
        kept = self._tables.get(number)
        if kept is None:
            body = self.program.others[number].body if number else self.program.body
            kept = self._tables[number] = Table(body)
        return kept

    def _inherit(self, number: int, cls: p.Class, hops: int = _BASES) -> None:
        for base in cls.bases:
            found = self.defined(number, base.path) if isinstance(base, p.Extern) else None
            if isinstance(base, p.Name) and number and base.id in self.table(number).classes:
                found = number, self.table(number).classes[base.id]
            node = found[1] if found is not None else None
            if found is None or not isinstance(node, p.Class) or not hops:
                continue
            for one in node.body:
                if isinstance(one, p.Define):
                    self.inherited.setdefault(one.function.name, []).append(one.function)
            self._inherit(found[0], node, hops - 1)

    def defined(self, number: int, path: str) -> tuple[int, p.Function | p.Class] | None:
        """The function or class that a dotted name leads to, as seen from file `number`, and the file it stands in."""
        if not self.program.others:
            return None
        key = number, path
        if key not in self._defined:
            self._defined[key] = self._search(number, path)
        return self._defined[key]

    def _search(self, number: int, path: str) -> tuple[int, p.Function | p.Class] | None:
        todo, seen = deque([(number, path)]), set[tuple[int, str]]()
        while todo:
            found = self.program.find(*todo.popleft())
            if found is None or len(found[1]) != 1:
                continue
            module, (name,) = found
            if (module.number, name) in seen:
                continue  # Files may hand a name on to each other.
            seen.add((module.number, name))
            table = self.table(module.number)
            node = table.functions.get(name) or table.classes.get(name)
            if node is not None:
                return module.number, node
            if name in table.imported:
                todo.appendleft((module.number, table.imported[name]))
            else:
                todo.extend((module.number, f"{wild}.{name}") for wild in table.wild)
        return None

    def function(self, number: int, path: str) -> p.Function | None:
        """The function that a dotted name leads to, as seen from file `number`."""
        found = self.defined(number, path)
        return found[1] if found is not None and isinstance(found[1], p.Function) else None

    def called(self, number: int, name: str) -> list[p.Function]:
        """The functions that a plain name may be in file `number`, where they are not the program's own."""
        if not self.program.others:
            return []
        table = self.table(number)
        if number and name in table.functions:
            return [table.functions[name]]
        handed_on = [self.function(number, f"{wild}.{name}") for wild in table.wild]
        return [one for one in handed_on if one is not None]
