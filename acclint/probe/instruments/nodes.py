"""Autograd nodes and tensors: the little that several instruments ask of them.

Private attributes of torch (`Node.metadata`, `_input_metadata`) are used where they exist.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

# Keys in the metadata of a node: what loss made it, the GradScaler's factor, and whether its graph is alive.
LOSS, SCALE, SENTINEL = "acclint.loss", "acclint.scale", "acclint.graph"


def metadata_of(node: Any) -> dict[str, Any]:
    metadata = getattr(node, "metadata", None)
    return metadata if isinstance(metadata, dict) else {}


def node_kind(node: Any) -> str:
    return re.sub(r"Backward\d*$", "", str(node.name()))


def output_size(node: Any, index: int) -> int:
    """Elements of a node's output; 1 where torch does not tell."""
    metadata = getattr(node, "_input_metadata", None)
    if not metadata or index >= len(metadata):
        return 1
    return math.prod(int(n) for n in metadata[index].shape)


def graph_tensors(value: Any, depth: int = 0, objects: bool = False) -> Iterator[Tensor]:
    """Tensors with a graph in an output: a tensor, containers of tensors, with `objects` a distribution or the like."""
    if isinstance(value, Tensor):
        if value.grad_fn is not None:
            yield value
    elif depth < 3:
        if isinstance(value, dict):
            inner: Iterable[Any] = list(value.values())
        elif isinstance(value, (list, tuple, set)):
            inner = list(value)
        elif hasattr(value, "__dataclass_fields__"):
            inner = list(vars(value).values()) if hasattr(value, "__dict__") else ()
        elif objects and hasattr(value, "__dict__") and not isinstance(value, (type, nn.Module)):
            inner = list(vars(value).values())
        else:
            return
        for item in inner:
            yield from graph_tensors(item, depth + 1, objects)


def number(value: Any) -> float | None:
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
