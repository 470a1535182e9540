"""Cuts from a file the statements that a training loop consists of, so that they can be run without the rest.

The slice is the file itself with everything else taken out: what stays keeps its row and column. It is cut by names:
starting from what moves gradients (backward, step, zero_grad, `.grad`, clipping, hooks) and from the places of the
findings, everything that writes a name or attribute which is read by what is kept is kept, too; so is each `if`, loop
and `with` around it, and each jump in a kept loop. Printing, logging, saving and evaluating are taken out. Whatever is
still there and must not run, such as an import of another package, is replaced when the slice is run (`standins.py`).

No torch is imported here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass

from acclint.probe.slices.allowed import FRAMEWORKS, is_open, obstacle
from acclint.probe.slices.statements import (
    EVENTS,
    FUNCTIONS,
    JUMPS,
    LOOPS,
    Block,
    Function,
    attribute_names,
    blank_out,
    clear,
    expressions,
    first_row,
    gets_optimizer,
    is_plain,
    is_telling,
    key_of,
    keys_written,
    last_row,
    name_of,
    tells,
)

# Attributes that hold gradients, and what goes through all of them.
_HOLDERS = frozenset({"grad", "param_groups"})
_EACH = frozenset({"parameters", "named_parameters", "param_groups"})


class CannotSlice(Exception):
    """The file holds no slice for these rows; the message says why in a few words."""


@dataclass(frozen=True)
class Slice:
    """`text` has the rows and columns of the file. `entries` are the functions to call, outermost first, where running
    the file as a script does not reach the loop: (qualified name, whether a loop of its own holds its backward calls).
    `chain` are the names of all functions that lead to the loops. `whole` is the text of the file if all of it may be
    run as it is, since it imports nothing that is not on the allow-list; else it is empty. `decorated` are functions
    that have lost a decorator, which may have given them arguments.
    """

    text: str
    entries: tuple[tuple[str, bool], ...]
    chain: tuple[str, ...]
    whole: str
    decorated: tuple[str, ...] = ()


def cut(text: str, rows: Iterable[int]) -> Slice:
    """The slice for the loops at these rows of a Python file."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        raise CannotSlice("this Python cannot parse the file") from None
    return _Slicer(tree, text).cut(sorted(set(rows)))


class _Slicer:
    def __init__(self, tree: ast.Module, text: str) -> None:
        self.tree = tree
        self.lines = text.encode().splitlines(keepends=True)
        self.parent: dict[ast.AST, ast.stmt | ast.Module] = {}  # of each statement: the statement around it
        self.block: dict[ast.AST, Block] = {}  # of each statement: the module, class or function whose body it is in
        self.statements: list[ast.stmt] = []
        self.functions: dict[str, list[Function]] = {}
        self.classes: dict[str, ast.ClassDef] = {}
        self._visit(tree, tree, tree)
        self.moving = self._moving()
        self.live: set[Block] = set()
        self.chain: set[Block] = set()  # the blocks that lead to the loops
        self.kept: set[ast.stmt] = set()
        self.read: set[str] = set()
        self.pending: list[ast.stmt] = []

    def _visit(self, node: ast.AST, parent: ast.stmt | ast.Module, block: Block) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                self.statements.append(child)
                self.parent[child], self.block[child] = parent, block
                if isinstance(child, FUNCTIONS):
                    self.functions.setdefault(child.name, []).append(child)
                    self._visit(child, child, child)
                elif isinstance(child, ast.ClassDef):
                    self.classes[child.name] = child
                    self._visit(child, child, child)
                else:
                    self._visit(child, child, block)
            elif isinstance(child, (ast.excepthandler, ast.match_case)):
                self._visit(child, parent, block)

    def _moving(self) -> frozenset[str]:
        """What moves gradients: the events, and the file's own functions that name one of them."""
        found = set(EVENTS | _HOLDERS)
        named: dict[Function, set[str]] = {f: set() for functions in self.functions.values() for f in functions}
        for statement in self.statements:
            block = self.block[statement]
            if isinstance(block, FUNCTIONS) and not isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
                named[block] |= {"grad"} if self._changes_parameters(statement) else set()
                named[block] |= attribute_names(statement)
                named[block] |= {node.id for node in expressions(statement) if isinstance(node, ast.Name)}
        own = {f.name: names for f, names in named.items() if f.name not in ("train", "eval", "forward", "__init__")}
        while more := {name for name, names in own.items() if name not in found and not names.isdisjoint(found)}:
            found |= more
        return frozenset(found)

    # --- what is kept ---

    def cut(self, rows: list[int]) -> Slice:
        units = {self._unit(row) for row in rows}
        for unit in units:
            self._lead_to(unit)
        self._go_live(self.tree)
        for statement in self._own(rows):
            self._keep(statement)
        while True:
            while self.pending:
                self._follow(self.pending.pop())
            before = len(self.kept)
            self._close()
            if len(self.kept) == before and not self.pending:
                break
        chain = {block.name for block in self.chain if isinstance(block, FUNCTIONS)}
        text = self._render()
        try:
            what = obstacle(ast.parse(text))
        except SyntaxError:
            raise CannotSlice("the statements of the loop cannot be cut out of the others") from None
        if what:
            raise CannotSlice(f"statements of the loop name {what}, which can lead out of it")
        return Slice(text, self._entries(), tuple(sorted(chain)), self._whole(), self._decorated())

    def _unit(self, row: int) -> Block:
        """The innermost function around a row, else the module; of a class body, the module."""
        around = [s for s in self.statements if isinstance(s, FUNCTIONS) and first_row(s) <= row <= last_row(s)]
        return min(around, key=lambda s: last_row(s) - first_row(s)) if around else self.tree

    def _lead_to(self, unit: Block) -> None:
        """The unit and, again and again, whatever calls it: all of that is live."""
        if unit in self.chain:
            return
        self.chain.add(unit)
        self._go_live(unit)
        if not isinstance(unit, FUNCTIONS):
            return
        outer = self.block[unit]
        method = isinstance(outer, ast.ClassDef)
        if isinstance(outer, FUNCTIONS):
            self._lead_to(outer)
        for statement in self.statements:
            if self.block[statement] is unit or isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
                continue
            if any(self._names_it(node, unit, method) for node in expressions(statement)):
                block = self.block[statement]
                if isinstance(block, ast.ClassDef):
                    continue
                self._keep(statement)
                self._lead_to(block)
                self._lead_to_calls(keys_written(statement))

    def _names_it(self, node: ast.AST, function: Function, method: bool) -> bool:
        if isinstance(node, ast.Name):
            return node.id == function.name and not method
        return isinstance(node, ast.Attribute) and node.attr == function.name and self._may_be(node, function)

    def _lead_to_calls(self, made: set[str]) -> None:
        """Calls of what was made of a function: a factory's result, an engine that got it."""
        for statement in self.statements:
            if not made or statement in self.kept or isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
                continue
            block = self.block[statement]
            for node in expressions(statement):
                called = node.func if isinstance(node, ast.Call) else None
                while isinstance(called, ast.Attribute) and key_of(called) not in made:
                    called = called.value
                if called is not None and key_of(called) in made and not isinstance(block, ast.ClassDef):
                    self._keep(statement)
                    self._lead_to(block)
                    self._lead_to_calls(keys_written(statement) - made)
                    break

    def _may_be(self, node: ast.Attribute, method: Function) -> bool:
        """Whether `x.name` can be this method: `model.train()` is not the file's own `train()`."""
        cls = self.block[method]
        if not isinstance(cls, ast.ClassDef):
            return False
        receiver = node.value
        if isinstance(receiver, ast.Name) and receiver.id in ("self", "cls"):
            return True
        if isinstance(receiver, ast.Call):
            return isinstance(receiver.func, ast.Name) and receiver.func.id == cls.name
        if node.attr in ("train", "eval", "step", "backward", "forward", "update"):  # methods of torch's own, too
            name = receiver.id if isinstance(receiver, ast.Name) else ""
            return any(
                isinstance(s, ast.Assign)
                and any(isinstance(t, ast.Name) and t.id == name for t in s.targets)
                and any(isinstance(n, ast.Name) and n.id == cls.name for n in ast.walk(s.value))
                for s in self.statements
            )
        return True

    def _own(self, rows: list[int]) -> list[ast.stmt]:
        """The innermost statements at the rows."""
        found = []
        for row in rows:
            around = [s for s in self.statements if first_row(s) <= row <= last_row(s)]
            if around:
                best = min(around, key=lambda s: (last_row(s) - first_row(s), -s.col_offset))
                if not isinstance(best, (*FUNCTIONS, ast.ClassDef)) and not tells(best):
                    found.append(best)
        return found

    def _go_live(self, block: Block) -> None:
        """The statements of this function, class or module count from now on."""
        if block in self.live:
            return
        self.live.add(block)
        if isinstance(block, ast.stmt):
            self._keep(block)
        for statement in self.statements:
            if self.block[statement] is not block:
                continue
            if isinstance(block, ast.ClassDef):
                if isinstance(statement, FUNCTIONS):
                    if statement.name.startswith("__") or statement.name == "forward":
                        self._go_live(statement)
                else:
                    self._keep(statement)
            elif self._is_seed(statement):
                self._keep(statement)

    def _is_seed(self, statement: ast.stmt) -> bool:
        if isinstance(statement, (ast.Global, ast.Nonlocal)) or (
            isinstance(statement, ast.ImportFrom) and any(alias.name == "*" for alias in statement.names)
        ):
            return True
        if isinstance(statement, (ast.Import, ast.ImportFrom, *FUNCTIONS, ast.ClassDef)):
            return False
        if tells(statement):
            return False
        if self._changes_parameters(statement):
            return True
        if (
            isinstance(statement, ast.Expr)
            and isinstance(statement.value, ast.Call)
            and gets_optimizer(statement.value)
        ):
            return True
        names = {*attribute_names(statement), *(n.id for n in expressions(statement) if isinstance(n, ast.Name))}
        return not names.isdisjoint(self.moving)

    def _changes_parameters(self, statement: ast.stmt) -> bool:
        """Whether it is done to each parameter: an update by hand, noise, a decay, a copy."""
        parent = self.parent[statement]
        while isinstance(parent, ast.stmt) and not isinstance(parent, (*FUNCTIONS, ast.ClassDef)):
            if isinstance(parent, LOOPS) and not attribute_names(parent).isdisjoint(_EACH):
                return True
            parent = self.parent[parent]
        return False

    def _keep(self, statement: ast.stmt) -> None:
        if statement in self.kept:
            return
        self.kept.add(statement)
        self.pending.append(statement)

    def _follow(self, statement: ast.stmt) -> None:
        """What a kept statement needs: the statements around it, the names that it reads."""
        parent = self.parent[statement]
        if isinstance(parent, ast.stmt):
            self._keep(parent)
        block = self.block[statement]
        if block not in self.live:
            self._go_live(block)
        if isinstance(statement, FUNCTIONS):
            defaults = [*statement.args.defaults, *(d for d in statement.args.kw_defaults if d is not None)]
            self._reads(node for default in defaults for node in ast.walk(default))
        elif isinstance(statement, ast.ClassDef):
            self._reads(node for base in statement.bases for node in ast.walk(base))
        else:
            self._reads(expressions(statement))

    def _reads(self, nodes: Iterable[ast.AST]) -> None:
        for node in nodes:
            if isinstance(node, ast.Name):
                self.read.add(node.id)
            elif isinstance(node, ast.Attribute):
                self.read.add("." + node.attr)

    def _close(self) -> None:
        """Keep what writes something that is read, the functions that are named, and the jumps of kept loops."""
        for name, found in self.functions.items():
            for function in found:
                method = isinstance(self.block[function], ast.ClassDef)
                if ("." if method else "") + name in self.read and (
                    not method or self.block[function] in self.live or self.block[function] in self.kept
                ):
                    self._go_live(function)
        for name, cls in self.classes.items():
            if name in self.read:
                self._go_live(cls)
        for statement in self.statements:
            if statement in self.kept or self.block[statement] not in self.live:
                continue
            if isinstance(statement, JUMPS):
                if isinstance(statement, ast.Return) or self._loop(statement) in self.kept:
                    self._keep(statement)
            elif isinstance(statement, ast.Raise):
                if self._in_handler(statement):
                    self._keep(statement)
            elif self._matters(statement) or self._ends_a_loop(statement):
                self._keep(statement)

    def _loop(self, statement: ast.stmt) -> ast.stmt | None:
        parent = self.parent[statement]
        while isinstance(parent, ast.stmt) and not isinstance(parent, LOOPS):
            parent = self.parent[parent]
        return parent if isinstance(parent, ast.stmt) else None

    def _in_handler(self, statement: ast.stmt) -> bool:
        parent = self.parent[statement]
        return (
            isinstance(parent, ast.Try)
            and parent in self.kept
            and any(statement in handler.body for handler in parent.handlers)
        )

    def _ends_a_loop(self, statement: ast.stmt) -> bool:
        """Whether an exception of a statement, as of `next()`, leads to a jump that is kept."""
        parent = self.parent[statement]
        if not isinstance(parent, ast.Try) or statement not in parent.body or tells(statement):
            return False
        return any(isinstance(one, JUMPS) and one in self.kept for handler in parent.handlers for one in handler.body)

    def _matters(self, statement: ast.stmt) -> bool:
        """Whether a statement writes or changes something that is read by what is kept."""
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            return any((alias.asname or alias.name.partition(".")[0]) in self.read for alias in statement.names)
        if isinstance(statement, ast.Expr):
            return self._acts(statement.value)
        if isinstance(statement, ast.Return | ast.Pass | ast.Assert):
            return False
        if isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
            return False
        return not self.read.isdisjoint(keys_written(statement))

    def _acts(self, value: ast.expr) -> bool:
        """Whether an expression statement changes something that is read."""
        while isinstance(value, (ast.Await, ast.Yield, ast.YieldFrom)):
            if isinstance(value, (ast.Yield, ast.YieldFrom)):
                return True
            value = value.value
        if isinstance(value, ast.NamedExpr):
            return isinstance(value.target, ast.Name) and value.target.id in self.read
        if isinstance(value, (ast.ListComp, ast.GeneratorExp)):
            return self._acts(value.elt)
        if not isinstance(value, ast.Call) or is_telling(value):
            return False
        if isinstance(value.func, ast.Attribute):
            if key_of(value.func.value) in {*self.read, "super"}:
                return True
        elif key_of(value.func) in self.read:
            return True
        given = [*value.args, *(keyword.value for keyword in value.keywords)]
        return any(isinstance(one, (ast.Name, ast.Attribute)) and key_of(one) in self.read for one in given)

    def _entries(self) -> tuple[tuple[str, bool], ...]:
        """The functions that lead to the loops, the outermost first."""
        found: list[Function] = [block for block in self.chain if isinstance(block, FUNCTIONS)]
        called = {f: self._callers(f) for f in found}
        order: list[Function] = []
        while len(order) < len(found):
            ready = [f for f in found if f not in order and called[f] <= set(order)]
            order += sorted(ready or [f for f in found if f not in order], key=lambda f: f.lineno)
        outer = [f for f in order if not isinstance(self.block[f], FUNCTIONS)]
        return tuple((self._qualified(f), self._loops_itself(f)) for f in outer)

    def _callers(self, function: Function) -> set[Function]:
        found = set()
        for statement in self.kept:
            block = self.block[statement]
            if isinstance(block, FUNCTIONS) and block in self.chain and block is not function:
                method = isinstance(self.block[function], ast.ClassDef)
                nodes = () if isinstance(statement, (*FUNCTIONS, ast.ClassDef)) else expressions(statement)
                if any(self._names_it(node, function, method) for node in nodes):
                    found.add(block)
        return found

    def _loops_itself(self, function: Function, callers: frozenset[Function] = frozenset()) -> bool:
        """Whether a loop in it, or in what it calls, leads to backward calls."""
        led = [f for f in self.chain if isinstance(f, FUNCTIONS)]
        moving = {"backward", "manual_backward", *(f.name for f in led)}
        loops = [s for s in self.kept if isinstance(s, LOOPS) and self.block[s] is function]
        if any(name in moving for loop in loops for name in map(name_of, ast.walk(loop))):
            return True
        callers |= {function}
        return any(
            function in self._callers(other) and self._loops_itself(other, callers)
            for other in led
            if other not in callers
        )

    def _qualified(self, function: Function) -> str:
        block = self.block[function]
        return f"{block.name}.{function.name}" if isinstance(block, ast.ClassDef) else function.name

    def _decorated(self) -> tuple[str, ...]:
        kept = [statement for statement in self.kept if isinstance(statement, FUNCTIONS)]
        return tuple(sorted({f.name for f in kept if not all(map(is_plain, f.decorator_list))}))

    def _whole(self) -> str:
        names: list[str] = []
        for statement in self.statements:
            if isinstance(statement, ast.Import):
                names += [alias.name for alias in statement.names]
            elif isinstance(statement, ast.ImportFrom):
                names.append("" if statement.level else statement.module or "")
        own = all(is_open(name) and name.partition(".")[0] not in FRAMEWORKS for name in names)
        return b"".join(self.lines).decode() if own and not obstacle(self.tree) else ""

    # --- text ---

    def _render(self) -> str:
        lines = [bytearray(line) for line in self.lines]
        if lines and lines[0].startswith(b"\xef\xbb\xbf"):
            lines[0][:3] = b""
        for statement in self.statements:
            if isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
                rows = [*map(self._first_row_of, statement.decorator_list), statement.lineno]
                for decorator, row, following in zip(statement.decorator_list, rows, rows[1:], strict=False):
                    if statement not in self.kept or not is_plain(decorator):
                        for line in lines[row - 1 : following - 1]:
                            clear(line, 0, len(line))
            if statement in self.kept or self._is_elif(statement):
                continue
            parent = self.parent[statement]
            if parent in self.kept or isinstance(parent, ast.Module) or self._is_elif(parent):
                blank_out(lines, statement)
        return b"".join(lines).decode()

    def _first_row_of(self, decorator: ast.expr) -> int:
        """The row of its `@`, which may stand before a parenthesis."""
        row = decorator.lineno
        while not self.lines[row - 1].lstrip().startswith(b"@"):
            row -= 1
        return row

    def _is_elif(self, statement: ast.AST) -> bool:
        """An `elif` of an `if` that is kept has to stay, with its test."""
        parent = self.parent.get(statement)
        if not (isinstance(statement, ast.If) and isinstance(parent, ast.If) and parent.orelse == [statement]):
            return False
        if parent not in self.kept and not self._is_elif(parent):
            return False
        line = self.lines[statement.lineno - 1][statement.col_offset :]
        return line.startswith(b"elif")
