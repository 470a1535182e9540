"""The terms of a loss: which scalars a backward call was a sum of, and with which weight each was sent backward.

The walk goes from the loss down through scalar glue (sums, factors, reshapes) to the nodes that made scalars out of
data. A pre-hook on such a node sees the gradient that is sent into it: that is the weight, whatever made it.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from acclint.probe.instruments.nodes import LOSS, SCALE, SENTINEL, metadata_of, node_kind, output_size
from acclint.probe.instruments.records import Call

_GLUE = {  # nodes through which the weight of a scalar loss passes linearly
    "Add",
    "Alias",
    "Cat",
    "Clone",
    "Div",
    "Expand",
    "Mul",
    "Neg",
    "ReshapeAlias",
    "Rsub",
    "Squeeze",
    "Stack",
    "Sub",
    "ToCopy",
    "UnsafeView",
    "Unsqueeze",
    "View",
}


class Probe:
    """A term of a loss: its node, the glue nodes above it (nearest first), the leaves and model calls below it."""

    def __init__(self, node: Any, path: tuple[Any, ...]) -> None:
        self.node = node
        self.path = path
        self.described = describe(node)  # now, since the call frees the saved tensors
        self.scale = math.prod(metadata_of(n).get(SCALE, 1.0) for n in (node, *path))
        self.leaves: set[int] = set()
        self.forwards: set[int] = set()


class Terms:
    """Finds the terms of the calls and weighs them."""

    def __init__(self) -> None:
        self.weights: dict[Any, Tensor] = {}  # node -> the gradient that the running call sent into it
        self.kept: list[Any] = []  # leaves whose id() is used as a key

    def find(self, root: Any, call: Call) -> list[Probe]:
        """Walk down from the root through scalar glue to the nodes that made scalars; hook all of them."""
        probes: list[Probe] = []
        seen: set[Any] = set()
        stack: list[tuple[Any, tuple[Any, ...]]] = [(root, ())]
        values: dict[Any, Any] = self.weights
        while stack:
            node, path = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if hasattr(node, "variable"):  # a scalar parameter: no data in it
                continue

            def hook(grads: tuple[Tensor | None, ...], node: Any = node) -> None:
                values[node] = next((g for g in grads if g is not None), None)

            call.hooks.append(node.register_prehook(hook))
            below = glue_inputs(node)
            if below is None or LOSS in metadata_of(node):
                probes.append(Probe(node, path))
            else:
                stack += [(n, (node, *path)) for n in below]
        return probes

    def descend(self, probe: Probe, call: Call) -> None:
        """The leaves and the model calls below a term."""
        seen: set[Any] = {probe.node}
        stack = [probe.node]
        while stack and len(seen) < 50_000:
            node = stack.pop()
            variable = getattr(node, "variable", None)
            if variable is not None:
                call.leaves[id(variable)] = variable
                probe.leaves.add(id(variable))
                self.kept.append(variable)
                continue
            sentinel = metadata_of(node).get(SENTINEL)
            if sentinel is not None and sentinel.forward is not None:
                probe.forwards.add(sentinel.forward)
            for below, _ in node.next_functions:
                if below is not None and below not in seen:
                    seen.add(below)
                    stack.append(below)

    def weigh(self, call: Call) -> list[dict[str, Any]]:
        """Turn what the hooks saw into weights."""
        terms = []
        modelled = any(probe.forwards for probe in call.probes)
        for probe in call.probes:
            value = self.weights.get(probe.node)
            if value is None:
                continue
            weight = uniform(value) / probe.scale
            name, reduction, elements, divisors, line = probe.described
            if reduction == "sum":
                factor = self._nearest_factor(probe)
                if factor is not None:
                    divisor = own_divisor(1 / factor, divisors)
                    if divisor is not None:
                        reduction, weight = "mean", weight * divisor
                        elements = elements if elements and abs(elements - divisor) < 0.5 else round(divisor)
                per_element: float | None = uniform(value) / probe.scale
            else:
                per_element = weight / elements if elements else None
            marked = LOSS in metadata_of(probe.node)
            terms.append(
                {
                    "weight": weight,
                    "reduction": reduction,
                    "elements": elements,
                    "per_element": per_element,
                    "function": name,
                    "line": line,
                    "data": bool(marked or probe.forwards or not modelled),
                    "forwards": sorted(probe.forwards),
                    "leaves": probe.leaves,
                }
            )
        if terms and not any(t["data"] for t in terms):
            for t in terms:
                t["data"] = True
        self.weights.clear()
        return terms

    def _nearest_factor(self, probe: Probe) -> float | None:
        """What the first glue node above a term multiplies it with, passing those that do nothing."""
        below = uniform(self.weights[probe.node])
        for node in probe.path:
            above = self.weights.get(node)
            if above is None:
                return None
            above_value = uniform(above)
            if not above_value or SCALE in metadata_of(node):
                return None
            factor = below / above_value
            if abs(factor) and abs(abs(factor) - 1) > 1e-7:
                return factor
            below = above_value
        return None


def glue_inputs(node: Any) -> list[Any] | None:
    """The nodes below, if this node only scales, adds or reshapes scalars; None if it is a term itself."""
    kind = node_kind(node)
    below = [(n, i) for n, i in node.next_functions if n is not None]
    if not below:
        return None
    if kind in ("Sum", "Mean"):  # of losses that were stacked; everything else is a reduction of data
        inner = below[0][0]
        if len(below) == 1 and node_kind(inner) in ("Stack", "Cat") and glue_inputs(inner) is not None:
            return [inner]
        return None
    if kind in _GLUE and all(output_size(n, i) == 1 for n, i in below):
        return [n for n, _ in below]
    return None


def describe(node: Any) -> tuple[str, str, float | None, list[float], int]:
    """Name, reduction, elements, divisors that would make a sum a mean, and line of a term's node."""
    mark = metadata_of(node).get(LOSS)
    if mark is not None:
        described: tuple[str, str, float | None, list[float], int] = mark
        return described
    name, kind = str(node.name()), node_kind(node)
    sizes = getattr(node, "_saved_self_sym_sizes", None)
    shape = [int(n) for n in sizes] if sizes is not None else []
    elements: int | None = math.prod(shape) if sizes is not None else None
    if kind == "Mean":
        return name, "mean", elements, [], 0
    if kind == "Sum":
        return name, "sum", elements, [*_divisors(shape), *_mask_sums(node)], 0
    saved = getattr(node, "_saved_reduction", None)
    if saved in (1, 2):
        target = getattr(node, "_saved_self", None)
        if isinstance(target, Tensor):
            shape = [int(n) for n in target.shape]
        total = float(t) if isinstance(t := getattr(node, "_saved_total_weight", None), Tensor) else None
        count = total or (math.prod(shape) if shape else None)
        return name, ("mean" if saved == 1 else "sum"), count, [*_divisors(shape), *([total] if total else [])], 0
    return name, ("sum" if kind == "Dot" else "other"), None, [], 0


def _divisors(shape: list[int]) -> list[float]:
    """All elements, each dimension, each product of leading dimensions; 1 says nothing."""
    products = [float(math.prod(shape[:i])) for i in range(1, len(shape) + 1)]
    return [n for n in [*reversed(products), *(float(n) for n in shape)] if n > 1]


def _mask_sums(node: Any) -> list[float]:
    """`(per * mask).sum()`: what the mask sums to."""
    sums = []
    for below, _ in node.next_functions:
        if below is not None and node_kind(below) == "Mul":
            for name in ("_saved_other", "_saved_self"):
                mask = getattr(below, name, None)
                if isinstance(mask, Tensor) and mask.numel() > 1 and not mask.requires_grad:
                    sums.append(float(mask.double().sum()))
    return [n for n in sums if n > 0]


def own_divisor(n: float, divisors: list[float]) -> float | None:
    """The divisor of `divisors` in n: n itself, or the first (all elements, else the batch) that n is a multiple of."""
    for divisor in divisors:
        if abs(n - divisor) <= 1e-5 * divisor:
            return divisor
    for divisor in divisors[:1]:
        if n / divisor > 1.5 and abs(n / divisor - round(n / divisor)) <= 1e-5:
            return divisor
    return None


def loss_shape(name: str, given: dict[str, Any]) -> tuple[str, float | None, list[float]]:
    """Reduction, number of reduced elements (or sum of weights) and natural divisors of a call of a torch loss."""
    reduction = "mean" if given["reduction"] == "batchmean" else str(given["reduction"])
    first = next((v for v in given.values() if isinstance(v, Tensor)), None)
    target = given.get("target", given.get("targets"))
    shape = list(first.shape) if first is not None else []
    elements: float | None = math.prod(shape) if shape else 1
    if name in ("cross_entropy", "nll_loss") and isinstance(target, Tensor):
        if target.is_floating_point():  # class probabilities
            shape = shape[:1] + shape[2:] if len(shape) > 1 else []
            elements = math.prod(shape) if shape else 1
        else:
            shape = list(target.shape)
            counting = target != given.get("ignore_index", -100)
            elements = int(counting.sum())
            if isinstance(given.get("weight"), Tensor):  # what the mean is divided by
                elements = float(given["weight"].double()[target[counting]].sum())
    elif name in ("ctc_loss", "triplet_margin_loss", "cosine_embedding_loss", "multi_margin_loss"):
        shape = shape[:1] if name != "ctc_loss" else shape[1:2]
        elements = shape[0] if shape else 1
    elif name in ("multilabel_margin_loss", "multilabel_soft_margin_loss", "triplet_margin_with_distance_loss"):
        shape = shape[:1]
        elements = shape[0] if shape else 1
    elif isinstance(target, Tensor) and given["reduction"] != "batchmean":
        with suppress(RuntimeError):
            shape = list(torch.broadcast_shapes(tuple(shape), target.shape))
        elements = math.prod(shape) if shape else 1
    if given["reduction"] == "batchmean":
        elements = shape[0] if shape else 1
    extra = [float(elements)] if elements and elements > 1 else []
    return reduction, elements, [*extra, *_divisors(shape)]


def uniform(grad: Tensor) -> float:
    """The factor that a gradient sends into a term: its value, or the mean of its entries."""
    value: float = grad.detach().double().mean().item()
    return value
