"""The files of one project seen together: what the imports of a file lead to, where they lead to its other files.

Only what can matter is read: files that a training loop may be built from, found beside the importing file or in one of
the folders above it, up to the root of the project. What is installed is never read.
"""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from acclint.lift import LiftError, lift
from acclint.lift.names import Lowered
from acclint.program import ROWS, Module, Program, Span
from acclint.source import SourceError, read

_MARKERS = (".git", ".hg", "pyproject.toml", "setup.py", "setup.cfg", "requirements.txt")
_LEVELS = 8  # folders above a file in which the root of its project is looked for
_MAX_FILES = 24
_MAX_BYTES = 120_000  # of one file; what is longer is generated or a library of its own
_SETTINGS_BYTES = 8_000  # a file without a word of training may still hold constants
# What is known by its name (`acclint.knowledge`), and the standard library, is not looked for in the project.
_KNOWN = frozenset(sys.stdlib_module_names) | {
    "accelerate", "apex", "deepspeed", "diffusers", "lightning", "numpy", "peft", "pytorch_lightning", "tensorflow",
    "timm", "torch", "torchvision", "tqdm", "transformers",
}  # fmt: skip
_TRAINING = re.compile(
    rb"backward|zero_grad|\.step\(|\boptim\b|Optimizer|DataLoader|[Ss]cheduler|(?i:accum)|nn\.Module|(?i:loss)|BatchNorm"
)


def link(program: Program, path: Path) -> Program:
    """The program of the file at `path`, together with the other files of its project that it imports from."""
    root = _root(path.parent)
    others: dict[int, Module] = {}
    links: dict[str, int] = {}
    todo = deque([(path, program.imports, links)])
    while todo:
        file, imports, leads = todo.popleft()
        for name in sorted(imports):
            try:
                found = _find(file, root, name)
            except OSError:  # a folder that must not be read, a name that is too long
                continue
            if found is None or found[0] == path:
                continue
            other, prefix = found
            number = _number(other)
            if number not in others:
                lifted = _lifted(str(other), number, *_stamp(other)) if len(others) < _MAX_FILES else None
                if lifted is None:
                    continue
                others[number] = Module(number, str(other), lifted.body, {})
                todo.append((other, lifted.imports, others[number].links))
            leads[prefix] = number
    return replace(program, others=others, links=links) if others else program


_numbers: dict[Path, int] = {}


def _number(path: Path) -> int:
    return _numbers.setdefault(path, len(_numbers) + 1)


@lru_cache(maxsize=256)
def _root(folder: Path) -> Path:
    """The topmost folder in which the imports of a file in `folder` are looked for."""
    for above in (folder, *folder.parents[:_LEVELS]):
        with suppress(OSError):
            if any((above / marker).exists() for marker in _MARKERS):
                return above
    while (folder / "__init__.py").is_file() and folder.parent != folder:
        folder = folder.parent
    return folder


@lru_cache(maxsize=4096)
def _find(file: Path, root: Path, name: str) -> tuple[Path, str] | None:
    """The file that the dotted name leads to from a file, and the part of the name that is its own."""
    folder = file.parent
    dots = len(name) - len(name.lstrip("."))
    parts = name[dots:].split(".")
    if dots:
        base = folder
        for _ in range(dots - 1):
            base = base.parent
        return _below(base, "." * dots, parts)
    if parts[0] in _KNOWN:
        return None
    for base in (folder, *folder.parents):
        for start in (base, base / "src"):
            found = _below(start, "", parts)
            if found is not None and found[0] != file:  # `utils/model.py` that imports `model`, the package
                return found
        if base == root:
            break
    for base in (folder, *folder.parents[:_LEVELS]):
        if base.name == parts[0]:  # `from train.losses import ...` in train/, in a project without a marker
            return _below(base.parent, "", parts)
    return None


def _below(folder: Path, prefix: str, parts: list[str]) -> tuple[Path, str] | None:
    found = None
    for at, part in enumerate(parts):
        if not part:
            break
        own = prefix + ".".join(parts[: at + 1])
        folder = folder / part
        if (folder / "__init__.py").is_file():
            found = folder / "__init__.py", own
        elif folder.with_name(part + ".py").is_file():
            return folder.with_name(part + ".py"), own
        elif not folder.is_dir():
            break
    if found is None and prefix and parts == [""] and (folder / "__init__.py").is_file():
        return folder / "__init__.py", prefix
    return found


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=512)
def _lifted(path: str, number: int, changed: int, size: int) -> Lowered | None:
    """The program of another file as it was when it was `changed`; None if there is nothing in it to know."""
    if size > _MAX_BYTES:
        return None
    try:
        data = Path(path).read_bytes()
        if not _TRAINING.search(data) and size > _SETTINGS_BYTES:
            return None
        units = read(data, path).units
        program = lift(units[0].text, path) if len(units) == 1 else None
        return Lowered(_moved(program.body, number * ROWS), program.imports) if program is not None else None
    except (OSError, SourceError, LiftError, RecursionError):
        return None


def _moved(node: Any, rows: int) -> Any:
    """A part of a program with all its places moved down."""
    kind = type(node)
    if kind is tuple:
        return tuple([_moved(one, rows) for one in node])
    if kind is Span:
        return Span(node.row + rows, node.column, node.end_row + rows, node.end_column)
    names = _fields(kind)  # type: ignore[arg-type]
    if names:
        return kind(*[_moved(getattr(node, name), rows) for name in names])
    return node


@lru_cache(maxsize=64)
def _fields(kind: Hashable) -> tuple[str, ...]:
    return tuple(one.name for one in fields(kind)) if isinstance(kind, type) and is_dataclass(kind) else ()
