"""Autograd graphs that are alive: a sentinel object in the metadata of a graph's node dies with the graph."""

from __future__ import annotations

import ast
import gc
import inspect
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from acclint.probe.instruments.nodes import LOSS, SENTINEL, graph_tensors, metadata_of
from acclint.probe.instruments.places import Places

RISES = 3  # so many increases in a row at one site count as growing


class Sentinel:
    """Lives in a graph node's metadata; `forward` is the ordinal of the model call, None for a loss."""

    __slots__ = ("__weakref__", "forward")

    def __init__(self, forward: int | None) -> None:
        self.forward = forward


class Graphs:
    """Counts the graphs alive after each model call and backward call, and finds what holds them."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.forwards = 0
        self.alive: weakref.WeakSet[Sentinel] = weakref.WeakSet()
        self.consumed: set[int] = set()
        self.live: list[dict[str, Any]] = []
        self.rises: dict[tuple[str, tuple[int, ...]], tuple[int, int]] = {}
        self.growing = False
        self.forward_growth: tuple[list[int], dict[str, Any] | None] | None = None
        self.holder: dict[str, Any] | None = None

    def live_result(self) -> list[dict[str, Any]]:
        """A call of a model counts on its own only if no backward call follows it."""
        following = [count["event"] for count in self.live[1:]] + ["forward"]
        return [
            count
            for count, after in zip(self.live, following, strict=False)
            if count["event"] == "backward" or after == "forward"
        ]

    def growth_result(self) -> dict[str, Any]:
        growing, holder = self.growing, self.holder
        if not growing and self.forward_growth is not None:
            forwards, found = self.forward_growth
            # graphs that a later backward call uses up were summed over the window on purpose
            if not self.consumed.intersection(forwards):
                growing, holder = True, found
        return {"growing": growing, "holder": holder}

    def mark(self, nodes: Sequence[Any], forward: int | None) -> bool:
        """Mark what a call made with one sentinel: its graph is alive as long as one of these nodes is."""
        new = [metadata for metadata in map(metadata_of, nodes) if SENTINEL not in metadata]
        if not new:
            return False
        sentinel = Sentinel(forward)
        for metadata in new:
            metadata[SENTINEL] = sentinel
        self.alive.add(sentinel)
        return True

    def after_forward(self, output: Any) -> None:
        """A model was called (not from inside another one). Any of its outputs may be what a loss is made of."""
        tensors = list(graph_tensors(output, objects=True))
        if not tensors or all(t.numel() == 1 and LOSS in metadata_of(t.grad_fn) for t in tensors):
            return  # without gradients, or a loss module
        forward = self.forwards
        self.forwards += 1
        if self.mark([tensor.grad_fn for tensor in tensors], forward):
            self.count("forward", self.places.place()[1], self.places.site())

    def count(self, kind: str, line: int, site: tuple[int, ...]) -> None:
        count = len(self.alive)
        self.live.append({"event": kind, "line": line, "graphs": count})
        last, rises = self.rises.get((kind, site), (count, 0))
        rises = rises + 1 if count > last else 0
        if rises == RISES:  # cyclic garbage is not held
            gc.collect()
            count = len(self.alive)
            rises = rises if count > last else 0
        self.rises[(kind, site)] = (count, rises)
        if kind == "backward":
            # forwards count on their own only as long as no backward call comes between
            self.rises = {key: value for key, value in self.rises.items() if key[0] == "backward"}
        if rises < RISES:
            return
        if kind == "backward":
            if not self.growing:
                self.growing = True
                self.holder = self._find_holder()
        else:
            last_forward = self.forwards - 1
            forwards = list(range(max(0, last_forward - RISES), last_forward))
            if self.forward_growth is None or self.consumed.intersection(self.forward_growth[0]):
                self.forward_growth = (forwards, self._find_holder())

    def _find_holder(self) -> dict[str, Any] | None:
        """The variable of a user frame from which the most graphs can be reached."""
        best: tuple[int, str, str, FrameType] | None = None
        for frame in self.places.frames():
            for name, value in list(frame.f_locals.items()):
                if name.startswith("__"):
                    continue
                entries = [(name, value)]
                if hasattr(value, "__dict__") and not isinstance(value, (type, Tensor, torch.nn.Module)):
                    entries += [(f"{name}.{k}", v) for k, v in list(vars(value).items())[:50]]
                elif isinstance(value, torch.nn.Module):
                    entries += [(f"{name}.{k}", v) for k, v in list(vars(value).items()) if not k.startswith("_")]
                for label, entry in entries:
                    found = _count_sentinels(entry)
                    if found > 2 and (best is None or found > best[0]):
                        best = (found, label, type(entry).__name__, frame)
        if best is None:
            return None
        _, label, container, frame = best
        return {"name": label, "container": container, "line": _augmenting_line(frame, label)}


def _count_sentinels(value: Any) -> int:
    """How many graphs a variable keeps alive."""
    found: set[int] = set()
    seen: set[Any] = set()
    stack = [t.grad_fn for t in graph_tensors(value)]
    while stack and len(seen) < 20_000:
        node: Any = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        sentinel = metadata_of(node).get(SENTINEL)
        if sentinel is not None:
            found.add(id(sentinel))
        stack += [n for n, _ in node.next_functions if n is not None]
    return len(found)


_ADDING = ("add", "add_", "append", "appendleft", "extend", "insert", "setdefault", "update")


def _augmenting_line(frame: FrameType, label: str) -> int:
    """The line that adds to a variable: `x += ...`, `x = x + ...`, `x.append(...)`, `x[...] = ...`; 0 if not found."""
    try:
        lines, first = inspect.getsourcelines(frame.f_code) if frame.f_code.co_name != "<module>" else ([], 1)
        if not lines:
            lines = Path(frame.f_code.co_filename).read_text(encoding="utf-8").splitlines(keepends=True)
        indent = len(lines[0]) - len(lines[0].lstrip())
        tree = ast.parse("".join(line[indent:] if line[:indent].isspace() else line for line in lines))
    except (OSError, SyntaxError, TypeError, IndexError, UnicodeDecodeError):
        return 0
    names = {label, label.rpartition(".")[2]}

    def is_holder(node: ast.AST) -> bool:
        while isinstance(node, ast.Subscript):
            node = node.value
        return ast.unparse(node) in names or (isinstance(node, ast.Attribute) and "." in label and node.attr in names)

    for node in ast.walk(tree):
        match node:
            case ast.AugAssign(target=target) if is_holder(target):
                return node.lineno + first - 1
            case ast.Assign(targets=[target], value=value) if is_holder(target):
                kept = isinstance(target, ast.Subscript) or any(
                    is_holder(n) for n in ast.walk(value) if isinstance(n, (ast.Name, ast.Attribute))
                )
                if kept:
                    return node.lineno + first - 1
            case ast.Call(func=ast.Attribute(value=value, attr=method)):
                if method in _ADDING and is_holder(value):
                    return node.lineno + first - 1
    return 0
