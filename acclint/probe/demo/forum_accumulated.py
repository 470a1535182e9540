"""Seed 004, a forum thread: two forms of accumulation, their memory, BatchNorm and uneven micro-batches."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acclint.probe.equivalence import difference
from acclint.probe.tables import Cell, Claim, Curve, Experiment, Number, Table, about, exactly, rounding
from acclint.probe.window import watch

K = 8
SHOWN = (1, 2, 4, 8)
SAMPLES = 60  # in a micro-batch whose activations are weighed
BETWEEN = 0.7  # of the variance of a channel, the part that is between samples

Gradients = dict[str, Tensor]


def run() -> Experiment:
    memory, curves = _memory()
    return Experiment(
        key="004",
        title="How to implement accumulated gradient: two forms, memory, BatchNorm",
        question="Is dividing by iter_size necessary, and which of the two forms is preferable?",
        answer="A mean loss must be divided. Calling backward each time gives the same gradient and keeps no graphs.",
        claims=(
            Claim("there is no necessity to divide by iter_size", False, "only for sums; a mean is 8 times too large"),
            Claim("form 1 keeps the whole graph, form 2 frees it", True, "and the gradients are equal"),
            Claim("loss_sum += loss is harmless", False,
                  "activations are freed, but the graph's nodes are kept until loss_sum goes"),
            Claim("low accuracy at micro-batch size 1 is a matter of gradient normalisation", False,
                  "it is BatchNorm, see 002, table C"),
            Claim("changing BatchNorm's momentum helps", False,
                  "m' = 1 - (1 - m)^(1/k) restores the running mean; running_var stays too low"),
            Claim("CrossEntropyLoss(reduction='sum') divided by n is right", True, "equal up to rounding"),
            Claim("GroupNorm or InstanceNorm instead", True, "then accumulation is exact"),
        ),
        tables=(_forms(), memory, _uneven(), _momentum(), _running_variance()),
        curves=curves,
    )  # fmt: skip


def _network() -> nn.Module:
    """Four linear layers with activations between."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Linear(64, 64), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(64, 10)).double()


def _data(count: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(count, 64, generator=generator).double(),
        torch.randint(0, 10, (count,), generator=generator),
    )


def _gradient(compute: Callable[[nn.Module], Any]) -> Gradients:
    model = _network()
    compute(model)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _form_1(model: nn.Module, parts: list[tuple[Tensor, Tensor]]) -> None:
    loss = torch.zeros((), dtype=torch.float64)
    for x, y in parts:
        loss = loss + F.cross_entropy(model(x), y)
    (loss / len(parts)).backward()


def _form_2(model: nn.Module, parts: list[tuple[Tensor, Tensor]], divisor: int) -> None:
    for x, y in parts:
        (F.cross_entropy(model(x), y) / divisor).backward()


def _forms() -> Table:
    x, y = _data()
    parts = list(zip(x.chunk(K), y.chunk(K), strict=True))
    whole = _gradient(lambda model: F.cross_entropy(model(x), y).backward())

    def summed(model: nn.Module) -> None:
        for xs, ys in parts:
            (F.cross_entropy(model(xs), ys, reduction="sum") / len(x)).backward()

    rows: list[tuple[Cell, ...]] = []
    for name, compute in (
        ("form 1: losses summed, / k, one backward", lambda model: _form_1(model, parts)),
        ("form 2: each loss / k, backward each", lambda model: _form_2(model, parts, K)),
        ("form 2, sum reduction / n", summed),
    ):
        found, _ = difference(_gradient(compute), whole)
        rows.append((name, Number(found.relative, rounding(1.8e-16, 1e-13)), Number(found.ratio, exactly(1, 1e-9))))
    found, _ = difference(_gradient(lambda model: _form_2(model, parts, 1)), whole)
    rows.append(("form 2, mean loss not divided", Number(found.relative, exactly(7, 1e-6)),
                 Number(found.ratio, exactly(8, 1e-6))))  # fmt: skip
    return Table(
        "Against the gradient of the whole batch, k = 8, float64",
        ("", "relative error", "ratio"),
        tuple(rows),
    )


# --- memory ----------------------------------------------------------------------------------------------------------


class _Saved:
    """Bytes that autograd keeps for backward; parameters, which are there anyway, not counted."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = {p.data_ptr() for p in model.parameters()}
        self.alive: dict[int, int] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.parameters:
            held = tensor.detach()
            key = id(held)
            self.alive[key] = held.numel() * held.element_size()
            weakref.finalize(held, self.alive.pop, key, None)
            return held
        return tensor

    @property
    def megabytes(self) -> float:
        return sum(self.alive.values()) / 1e6


def _memory() -> tuple[Table, tuple[Curve, ...]]:
    """A convolutional net of 9 layers; what is alive after each micro-batch of 60 images."""
    rows: list[tuple[Cell, ...]] = []
    curves = []
    for name, form in (
        ("form 1: losses summed, one backward at the end", "sum"),
        ("form 2: backward each", "each"),
        ("form 2, loss_sum += loss", "kept"),
        ("validation without no_grad, loss_sum += loss", "validation"),
    ):
        saved, nodes = _run_form(form)
        grows = form in ("sum", "validation")
        cells = [
            Number(v, exactly(7.7 * n, 0.02) if grows else rounding(0, 0)) for v, n in zip(saved, SHOWN, strict=True)
        ]
        rows.append((name, *cells, Number(nodes, exactly(0, 0) if form == "each" else about(146, 1.5))))
        curves.append(Curve(name, tuple(map(float, SHOWN)), tuple(saved)))
    table = Table(
        "MB of activations kept after micro-batch 1, 2, 4 and 8; autograd nodes kept at the end",
        ("", *(f"after {n}" for n in SHOWN), "nodes"),
        tuple(rows),
        "loss_sum += loss leaks no activations but the nodes, in host memory; .item() or .detach() keeps nothing",
    )
    return table, tuple(curves)


def _run_form(form: str) -> tuple[list[float], float]:
    torch.manual_seed(0)
    convolutions: list[nn.Module] = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()]
    for _ in range(2):
        convolutions += [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    x, y = torch.randn(SAMPLES * K, 1, 28, 28), torch.randint(0, 10, (SAMPLES * K,))
    saved = _Saved(model)
    seen = []
    kept: Tensor | None = None
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        for i in range(K):
            part = slice(SAMPLES * i, SAMPLES * (i + 1))
            loss = F.cross_entropy(model(x[part]), y[part]) / K
            if form in ("each", "kept"):
                loss.backward()
            if form != "each":
                kept = loss if kept is None else kept + loss
            del loss
            if i + 1 in SHOWN:
                seen.append(saved.megabytes)
    return seen, float(_count_nodes(kept))


def _count_nodes(root: Tensor | None) -> int:
    seen: set[Any] = set()
    stack = [] if root is None or root.grad_fn is None else [root.grad_fn]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack += [below for below, _ in node.next_functions if below is not None]
    return len(seen)


# --- uneven micro-batches --------------------------------------------------------------------------------------------


def _uneven() -> Table:
    """The last micro-batch has 2 samples instead of 4; the tail of an epoch has 3 micro-batches instead of 8."""
    x, y = _data()
    model = _network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer) as w:
        for start in range(0, 30, 4):
            (F.cross_entropy(model(x[start : min(start + 4, 30)]), y[start : min(start + 4, 30)]) / K).backward()
        optimizer.step()
    full, short = w.contributions[0][0], w.contributions[0][-1]
    tail = list(zip(x.chunk(K)[:3], y.chunk(K)[:3], strict=True))
    right = _gradient(lambda m: _form_2(m, tail, 3))
    found, _ = difference(_gradient(lambda m: _form_2(m, tail, K)), right)
    return Table(
        "Weights of samples where micro-batches are uneven",
        ("", "measured"),
        (
            ("a sample of the last micro-batch (2 of 4 samples)", Number(short, exactly(1.875))),
            ("a sample of the others", Number(full, exactly(0.9375))),
            ("a tail of 3 micro-batches, each / 8", Number(found.ratio, exactly(3 / 8))),
        ),
    )


# --- BatchNorm's running statistics ----------------------------------------------------------------------------------


def _momentum() -> Table:
    """What a window's data weighs in the running mean after k micro-batches, momentum 0.1."""
    rows: list[tuple[Cell, ...]] = []
    for k, weight in ((4, 0.344), (8, 0.570), (16, 0.815), (64, 0.999)):
        cells: list[Cell] = []
        for momentum, wanted in ((0.1, weight), (1 - 0.9 ** (1 / k), 0.1)):
            norm = nn.BatchNorm1d(1, momentum=momentum).double()
            for _ in range(k):
                norm(torch.ones(2, 1, dtype=torch.float64))
            assert norm.running_mean is not None
            cells.append(Number(float(norm.running_mean), exactly(wanted, 2e-3)))
        rows.append((f"k={k}", *cells))
    return Table(
        "Weight of one window in BatchNorm's running mean",
        ("", "momentum 0.1", "1 - 0.9^(1/k)"),
        tuple(rows),
        "1 - (1 - m)^k; a batch as large as the window has 0.1",
    )


def _running_variance() -> Table:
    """Long-run running_var over the true variance, 70 % of which is between samples."""
    references = {64: 1.000, 32: 0.990, 16: 0.967, 8: 0.922, 4: 0.826, 2: 0.658, 1: 0.304}
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(4096, 1, 1, 1, generator=generator) * BETWEEN**0.5
    images = samples + torch.randn(4096, 1, 8, 8, generator=generator) * (1 - BETWEEN) ** 0.5
    cells = []
    for b, expected in references.items():
        norm = nn.BatchNorm2d(1, momentum=None)  # the mean over all batches, which is where any momentum ends
        with torch.no_grad():
            for part in images.split(b):
                norm(part)
        assert norm.running_var is not None
        cells.append(Number(float(norm.running_var) / float(images.var()), about(expected, 1.03)))
    return Table(
        "BatchNorm2d: long-run running_var / true variance, by micro-batch size",
        ("", *(f"b={b}" for b in references)),
        (("running_var / variance", *cells),),
        "the variance between samples is invisible within a small micro-batch",
    )
