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
import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from acclint.knowledge.names import is_optimizer_name, words
from acclint.probe.allowed import FRAMEWORKS, is_open, obstacle, word_set

Function = ast.FunctionDef | ast.AsyncFunctionDef
Block = ast.Module | ast.ClassDef | Function
_LOOPS = (ast.For, ast.AsyncFor, ast.While)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_JUMPS = (ast.Break, ast.Continue, ast.Return)

# Methods and functions that move gradients, and attributes that hold them.
EVENTS = word_set(
    "backward manual_backward step zero_grad clip_grad_norm_ clip_grad_value_ clip_grad_norm clip_gradients "
    "unscale_ no_sync accumulate register_hook register_post_accumulate_grad_hook register_step_pre_hook "
    "register_step_post_hook register_optimizer_step_pre_hook register_optimizer_step_post_hook "
    "register_full_backward_hook _foreach_zero_ _foreach_div_ _foreach_mul_"
)
_HOLDERS = frozenset({"grad", "param_groups"})
_EACH = frozenset({"parameters", "named_parameters", "param_groups"})

# Calls that tell, keep or look at something and do nothing to the training.
_TELLING = word_set(
    "print log logs logger logging info debug warning warn error critical write writer print_ pprint echo report "
    "add_scalar add_scalars add_image add_images add_histogram add_text set_postfix set_postfix_str "
    "set_description set_description_str display refresh show plot savefig save dump checkpoint record track "
    "wandb visualize evaluate eval evaluation validate validation valid val test tests testing sample generate "
    "inference infer benchmark profile timer"
)
# ... but not these methods, which change what is trained: model.eval(), loader.dataset.sample().
_NOT_TELLING = frozenset({"eval"})


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
                if isinstance(child, _FUNCTIONS):
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
            if isinstance(block, _FUNCTIONS) and not isinstance(statement, (*_FUNCTIONS, ast.ClassDef)):
                named[block] |= {"grad"} if self._changes_parameters(statement) else set()
                named[block] |= _names(statement)
                named[block] |= {node.id for node in _expressions(statement) if isinstance(node, ast.Name)}
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
        chain = {block.name for block in self.chain if isinstance(block, _FUNCTIONS)}
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
        around = [s for s in self.statements if isinstance(s, _FUNCTIONS) and _first_row(s) <= row <= _last_row(s)]
        return min(around, key=lambda s: _last_row(s) - _first_row(s)) if around else self.tree

    def _lead_to(self, unit: Block) -> None:
        """The unit and, again and again, whatever calls it: all of that is live."""
        if unit in self.chain:
            return
        self.chain.add(unit)
        self._go_live(unit)
        if not isinstance(unit, _FUNCTIONS):
            return
        outer = self.block[unit]
        method = isinstance(outer, ast.ClassDef)
        if isinstance(outer, _FUNCTIONS):
            self._lead_to(outer)
        for statement in self.statements:
            if self.block[statement] is unit or isinstance(statement, (*_FUNCTIONS, ast.ClassDef)):
                continue
            if any(self._names_it(node, unit, method) for node in _expressions(statement)):
                block = self.block[statement]
                if isinstance(block, ast.ClassDef):
                    continue
                self._keep(statement)
                self._lead_to(block)
                self._lead_to_calls(_written(statement))

    def _names_it(self, node: ast.AST, function: Function, method: bool) -> bool:
        if isinstance(node, ast.Name):
            return node.id == function.name and not method
        return isinstance(node, ast.Attribute) and node.attr == function.name and self._may_be(node, function)

    def _lead_to_calls(self, made: set[str]) -> None:
        """Calls of what was made of a function: a factory's result, an engine that got it."""
        for statement in self.statements:
            if not made or statement in self.kept or isinstance(statement, (*_FUNCTIONS, ast.ClassDef)):
                continue
            for node in _expressions(statement):
                called = node.func if isinstance(node, ast.Call) else None
                while isinstance(called, ast.Attribute) and _key(called) not in made:
                    called = called.value
                if called is not None and _key(called) in made and not isinstance(self.block[statement], ast.ClassDef):
                    self._keep(statement)
                    self._lead_to(self.block[statement])
                    self._lead_to_calls(_written(statement) - made)
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
            around = [s for s in self.statements if _first_row(s) <= row <= _last_row(s)]
            if around:
                best = min(around, key=lambda s: (_last_row(s) - _first_row(s), -s.col_offset))
                if not isinstance(best, (*_FUNCTIONS, ast.ClassDef)) and not _tells(best):
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
                if isinstance(statement, _FUNCTIONS):
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
        if isinstance(statement, (ast.Import, ast.ImportFrom, *_FUNCTIONS, ast.ClassDef)):
            return False
        if _tells(statement):
            return False
        if self._changes_parameters(statement):
            return True
        if (
            isinstance(statement, ast.Expr)
            and isinstance(statement.value, ast.Call)
            and _gets_optimizer(statement.value)
        ):
            return True
        names = {*_names(statement), *(n.id for n in _expressions(statement) if isinstance(n, ast.Name))}
        return not names.isdisjoint(self.moving)

    def _changes_parameters(self, statement: ast.stmt) -> bool:
        """Whether it is done to each parameter: an update by hand, noise, a decay, a copy."""
        parent = self.parent[statement]
        while isinstance(parent, ast.stmt) and not isinstance(parent, (*_FUNCTIONS, ast.ClassDef)):
            if isinstance(parent, _LOOPS) and not _names(parent).isdisjoint(_EACH):
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
        if isinstance(statement, _FUNCTIONS):
            defaults = [*statement.args.defaults, *(d for d in statement.args.kw_defaults if d is not None)]
            self._reads(node for default in defaults for node in ast.walk(default))
        elif isinstance(statement, ast.ClassDef):
            self._reads(node for base in statement.bases for node in ast.walk(base))
        else:
            self._reads(_expressions(statement))

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
            if isinstance(statement, _JUMPS):
                if isinstance(statement, ast.Return) or self._loop(statement) in self.kept:
                    self._keep(statement)
            elif isinstance(statement, ast.Raise):
                if self._in_handler(statement):
                    self._keep(statement)
            elif self._matters(statement):
                self._keep(statement)

    def _loop(self, statement: ast.stmt) -> ast.stmt | None:
        parent = self.parent[statement]
        while isinstance(parent, ast.stmt) and not isinstance(parent, _LOOPS):
            parent = self.parent[parent]
        return parent if isinstance(parent, ast.stmt) else None

    def _in_handler(self, statement: ast.stmt) -> bool:
        parent = self.parent[statement]
        return (
            isinstance(parent, ast.Try)
            and parent in self.kept
            and any(statement in handler.body for handler in parent.handlers)
        )

    def _matters(self, statement: ast.stmt) -> bool:
        """Whether a statement writes or changes something that is read by what is kept."""
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            return any((alias.asname or alias.name.partition(".")[0]) in self.read for alias in statement.names)
        if isinstance(statement, ast.Expr):
            return self._acts(statement.value)
        if isinstance(statement, ast.Return | ast.Pass | ast.Assert):
            return False
        if isinstance(statement, (*_FUNCTIONS, ast.ClassDef)):
            return False
        return not self.read.isdisjoint(_written(statement))

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
        if not isinstance(value, ast.Call) or _is_telling(value):
            return False
        if isinstance(value.func, ast.Attribute):
            if _key(value.func.value) in {*self.read, "super"}:
                return True
        elif _key(value.func) in self.read:
            return True
        given = [*value.args, *(keyword.value for keyword in value.keywords)]
        return any(isinstance(one, (ast.Name, ast.Attribute)) and _key(one) in self.read for one in given)

    def _entries(self) -> tuple[tuple[str, bool], ...]:
        """The functions that lead to the loops, the outermost first."""
        found: list[Function] = [block for block in self.chain if isinstance(block, _FUNCTIONS)]
        called = {f: self._callers(f) for f in found}
        order: list[Function] = []
        while len(order) < len(found):
            ready = [f for f in found if f not in order and called[f] <= set(order)]
            order += sorted(ready or [f for f in found if f not in order], key=lambda f: f.lineno)
        outer = [f for f in order if not isinstance(self.block[f], _FUNCTIONS)]
        return tuple((self._qualified(f), self._loops_itself(f)) for f in outer)

    def _callers(self, function: Function) -> set[Function]:
        found = set()
        for statement in self.kept:
            block = self.block[statement]
            if isinstance(block, _FUNCTIONS) and block in self.chain and block is not function:
                method = isinstance(self.block[function], ast.ClassDef)
                nodes = () if isinstance(statement, (*_FUNCTIONS, ast.ClassDef)) else _expressions(statement)
                if any(self._names_it(node, function, method) for node in nodes):
                    found.add(block)
        return found

    def _loops_itself(self, function: Function) -> bool:
        """Whether a loop in it leads to backward calls."""
        chain = {f.name for f in self.chain if isinstance(f, _FUNCTIONS)}
        for statement in self.statements:
            if isinstance(statement, _LOOPS) and self.block[statement] is function and statement in self.kept:
                for node in ast.walk(statement):
                    name = (
                        node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
                    )
                    if name in ("backward", "manual_backward") or name in chain:
                        return True
        return any(
            isinstance(node, (ast.Name, ast.Attribute))
            and any(
                other is not function
                and other.name == (node.id if isinstance(node, ast.Name) else node.attr)
                and self._loops_itself(other)
                for other in self.chain
                if isinstance(other, _FUNCTIONS) and function in self._callers(other)
            )
            for node in ast.walk(function)
        )

    def _qualified(self, function: Function) -> str:
        block = self.block[function]
        return f"{block.name}.{function.name}" if isinstance(block, ast.ClassDef) else function.name

    def _decorated(self) -> tuple[str, ...]:
        kept = [statement for statement in self.kept if isinstance(statement, _FUNCTIONS)]
        return tuple(sorted({f.name for f in kept if not all(map(_is_plain, f.decorator_list))}))

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
            if isinstance(statement, (*_FUNCTIONS, ast.ClassDef)):
                rows = [*(int(decorator.lineno) for decorator in statement.decorator_list), statement.lineno]
                for decorator, following in zip(statement.decorator_list, rows[1:], strict=True):
                    if statement not in self.kept or not _is_plain(decorator):
                        _blank_decorator(lines, decorator, following)
            if statement in self.kept or self._is_elif(statement):
                continue
            parent = self.parent[statement]
            if parent in self.kept or isinstance(parent, ast.Module) or self._is_elif(parent):
                _blank(lines, statement)
        return b"".join(lines).decode()

    def _is_elif(self, statement: ast.AST) -> bool:
        """An `elif` of an `if` that is kept has to stay, with its test."""
        parent = self.parent.get(statement)
        if not (isinstance(statement, ast.If) and isinstance(parent, ast.If) and parent.orelse == [statement]):
            return False
        if parent not in self.kept and not self._is_elif(parent):
            return False
        line = self.lines[statement.lineno - 1][statement.col_offset :]
        return line.startswith(b"elif")


# --- syntax ----------------------------------------------------------------------------------------------------------


def _first_row(statement: ast.stmt) -> int:
    decorators = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(int(decorator.lineno) for decorator in decorators)])


def _last_row(statement: ast.stmt) -> int:
    return statement.end_lineno or statement.lineno


def _expressions(statement: ast.stmt) -> Iterator[ast.AST]:
    """The nodes of a statement itself: of a compound one, those of its header."""
    stack: list[ast.AST] = []
    for child in ast.iter_child_nodes(statement):
        if isinstance(child, ast.excepthandler):
            stack += [] if (kind := getattr(child, "type", None)) is None else [kind]
        elif isinstance(child, ast.match_case):
            stack += [child.pattern, *([child.guard] if child.guard is not None else [])]
        elif not isinstance(child, ast.stmt):
            stack.append(child)
    while stack:
        node = stack.pop()
        yield node
        stack += ast.iter_child_nodes(node)


@functools.cache
def _names(statement: ast.stmt) -> frozenset[str]:
    """The attributes and in-place functions that a statement itself names."""
    if isinstance(statement, (*_FUNCTIONS, ast.ClassDef)):
        return frozenset()
    nodes = list(_expressions(statement))
    found = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return frozenset(found | {n.id for n in nodes if isinstance(n, ast.Name) and n.id.endswith("_")})


def _key(node: ast.expr) -> str:
    """The name under which a value is read and written: `x`, or `.x` for an attribute; `x[0]` and `x()` are x."""
    while isinstance(node, (ast.Subscript, ast.Call, ast.Starred)):
        node = node.func if isinstance(node, ast.Call) else node.value
    if isinstance(node, ast.Attribute):
        return "." + node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _written(statement: ast.stmt) -> set[str]:
    """The keys that a statement itself writes. A loop or `with` alone is not kept for its target."""
    targets: list[ast.expr] = []
    names: set[str] = set()
    if isinstance(statement, (ast.Assign, ast.Delete)):
        targets += statement.targets
    elif isinstance(statement, (ast.AugAssign, ast.AnnAssign)):
        targets.append(statement.target)
    while targets:
        target = targets.pop()
        if isinstance(target, (ast.Tuple, ast.List)):
            targets += target.elts
        else:
            names.add(_key(target))
    names |= {
        node.target.id
        for node in _expressions(statement)
        if isinstance(node, ast.NamedExpr) and isinstance(node.target, ast.Name)
    }
    return names - {""}


def _is_telling(call: ast.Call) -> bool:
    """Whether a call prints, logs, saves or evaluates, by its name."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in EVENTS or (isinstance(call.func, ast.Attribute) and name in _NOT_TELLING):
        return False
    if name in _TELLING:
        return True
    parts = words(name)
    if isinstance(call.func, ast.Attribute):
        root = call.func.value
        while isinstance(root, ast.Attribute):
            root = root.value
        if isinstance(root, ast.Name) and words(root.id)[:1] in (("logger",), ("logging",), ("wandb",), ("writer",)):
            return True
    return bool(parts) and (parts[0] in _TELLING or parts[-1] in ("log", "logs", "checkpoint", "metrics"))


def _gets_optimizer(call: ast.Call) -> bool:
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    return any(isinstance(one, (ast.Name, ast.Attribute)) and is_optimizer_name(_key(one)) for one in given)


def _tells(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call) and _is_telling(statement.value)


_PLAIN = re.compile(
    r"(torch\.|functools\.|contextlib\.|dataclasses\.)?"
    r"(staticmethod|classmethod|property|\w+\.setter|no_grad|inference_mode|enable_grad|contextmanager|dataclass|wraps|"
    r"cached_property|lru_cache|cache|cache|abstractmethod|overload)(\(.*\))?",
    re.DOTALL,
)


def _is_plain(decorator: ast.expr) -> bool:
    """Whether a decorator is one of Python's or torch's that leaves a function what it is."""
    return _PLAIN.fullmatch(ast.unparse(decorator)) is not None


def _blank(lines: list[bytearray], statement: ast.stmt) -> None:
    """Overwrite a statement with `pass` and spaces."""
    first, last = statement.lineno - 1, (statement.end_lineno or statement.lineno) - 1
    begin = statement.col_offset
    for row in range(first, last + 1):
        line = lines[row]
        stop = len(line.rstrip(b"\r\n"))
        start = begin if row == first else 0
        end = min(statement.end_col_offset or stop, stop) if row == last else stop
        line[start:end] = b" " * (end - start)
        if row == first:
            line[start : min(end, start + 4)] = b"pass"  # longer than what stood there, perhaps


def _blank_decorator(lines: list[bytearray], decorator: ast.expr, following: int) -> None:
    """Overwrite a decorator, its `@` and parentheses too, with spaces; `following` is the row of what comes after."""
    first = decorator.lineno - 1
    while not lines[first].lstrip().startswith(b"@"):
        first -= 1
    for line in lines[first : following - 1]:
        stop = len(line.rstrip(b"\r\n"))
        line[:stop] = b" " * stop
