"""What single statements of a file name, write and do, and how they are taken out of its text. No torch, no libcst."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator

from acclint.knowledge.names import is_optimizer_name, words
from acclint.probe.slices.allowed import word_set

Function = ast.FunctionDef | ast.AsyncFunctionDef
Block = ast.Module | ast.ClassDef | Function
LOOPS = (ast.For, ast.AsyncFor, ast.While)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
JUMPS = (ast.Break, ast.Continue, ast.Return)

# Methods and functions that move gradients.
EVENTS = word_set(
    "backward manual_backward step zero_grad clip_grad_norm_ clip_grad_value_ clip_grad_norm clip_gradients "
    "unscale_ no_sync accumulate register_hook register_post_accumulate_grad_hook register_step_pre_hook "
    "register_step_post_hook register_optimizer_step_pre_hook register_optimizer_step_post_hook "
    "register_full_backward_hook _foreach_zero_ _foreach_div_ _foreach_mul_"
)

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


def first_row(statement: ast.stmt) -> int:
    decorators = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(int(decorator.lineno) for decorator in decorators)])


def last_row(statement: ast.stmt) -> int:
    return statement.end_lineno or statement.lineno


def expressions(statement: ast.stmt) -> Iterator[ast.AST]:
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


def name_of(node: ast.AST) -> str:
    """What a name or an attribute is called; empty for another node."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


@functools.lru_cache(1 << 14)
def attribute_names(statement: ast.stmt) -> frozenset[str]:
    """The attributes and in-place functions that a statement itself names."""
    if isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
        return frozenset()
    nodes = list(expressions(statement))
    found = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return frozenset(found | {n.id for n in nodes if isinstance(n, ast.Name) and n.id.endswith("_")})


def key_of(node: ast.expr) -> str:
    """The name under which a value is read and written: `x`, or `.x` for an attribute; `x[0]` and `x()` are x."""
    while isinstance(node, (ast.Subscript, ast.Call, ast.Starred)):
        node = node.func if isinstance(node, ast.Call) else node.value
    if isinstance(node, ast.Attribute):
        return "." + node.attr
    return node.id if isinstance(node, ast.Name) else ""


def keys_written(statement: ast.stmt) -> set[str]:
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
            names.add(key_of(target))
    names |= {
        node.target.id
        for node in expressions(statement)
        if isinstance(node, ast.NamedExpr) and isinstance(node.target, ast.Name)
    }
    return names - {""}


def is_telling(call: ast.Call) -> bool:
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


def gets_optimizer(call: ast.Call) -> bool:
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    return any(isinstance(one, (ast.Name, ast.Attribute)) and is_optimizer_name(key_of(one)) for one in given)


def tells(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call) and is_telling(statement.value)


_PLAIN = re.compile(
    r"(torch\.|functools\.|contextlib\.|dataclasses\.)?"
    r"(staticmethod|classmethod|property|\w+\.setter|no_grad|inference_mode|enable_grad|contextmanager|dataclass|wraps|"
    r"cached_property|lru_cache|cache|abstractmethod|overload)(\(.*\))?",
    re.DOTALL,
)


def is_plain(decorator: ast.expr) -> bool:
    """Whether a decorator is one of Python's or torch's that leaves a function what it is."""
    return _PLAIN.fullmatch(ast.unparse(decorator)) is not None


def blank_out(lines: list[bytearray], statement: ast.stmt) -> None:
    """Overwrite a statement with `pass` and spaces."""
    first, last = statement.lineno - 1, (statement.end_lineno or statement.lineno) - 1
    for row in range(first, last + 1):
        line = lines[row]
        start = statement.col_offset if row == first else 0
        end = clear(line, start, statement.end_col_offset or len(line) if row == last else len(line))
        if row == first:
            line[start : min(end, start + 4)] = b"pass"  # longer than what stood there, perhaps


def clear(line: bytearray, start: int, end: int) -> int:
    """Overwrite a part of a line with spaces, but not its end; returns where they end."""
    end = min(end, len(line.rstrip(b"\r\n")))
    line[start:end] = b" " * (end - start)
    return end
