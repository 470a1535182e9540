"""Seed 003, a forum thread: shall the learning rate be halved when accumulation goes from 1 to 2?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from acclint.probe.equivalence import difference
from acclint.probe.tables import Cell, Claim, Experiment, Number, Reference, Table, about, exactly, rounding

K = 2
STEPS = 20

Reduction = Callable[[Tensor], Tensor]


def run() -> Experiment:
    return Experiment(
        key="003",
        title="Scale the loss or the learning rate?",
        question="Half the batch and accumulate_grad_batches=2: shall the learning rate be halved?",
        answer="Divide the loss; the rate does the same for plain SGD only. Lightning divides the loss already.",
        claims=(
            Claim("with a summed loss the two are equivalent", True, "gradient and parameters equal"),
            Claim("with a mean loss the gradients need to be scaled", True, "the gradient is twice as large"),
            Claim("the same can be achieved with the learning rate", False,
                  "for plain SGD only; with Adam it halves the step, since the gradient's scale cancels"),
            Claim("the answer is for Lightning", False,
                  "Lightning divides the loss by accumulate_grad_batches itself: the advice halves the rate"),
            Claim('both lines print "gradients equal"', False,
                  "the second of each pair compares parameters; of the last pair the first prints False"),
        ),
        tables=(_thread(), _optimizers()),
    )  # fmt: skip


def _thread() -> Table:
    """The thread's own script: two samples at once, or one after the other."""
    torch.manual_seed(1)
    batch, label = torch.rand(2, 4), torch.rand(2, 2)

    def once(reduction: Reduction, lr: float, parts: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        for x, y in zip(batch.chunk(parts), label.chunk(parts), strict=True):
            reduction((model(x) - y).abs()).backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
        return {name: p.detach() for name, p in model.named_parameters()}, gradients

    rows: list[tuple[Cell, ...]] = []
    for name, reduction, rates, ratio in (
        ("sum, lr 0.1 and 0.1", torch.sum, (0.1, 0.1), 1.0),
        ("mean, lr 1.0 and 0.5", torch.mean, (1.0, 0.5), 2.0),
        ("mean, lr 0.1 and 0.1", torch.mean, (0.1, 0.1), 2.0),
    ):
        (p0, g0), (p1, g1) = once(reduction, rates[0], 1), once(reduction, rates[1], 2)
        gradients, _ = difference(g1, g0)
        parameters, _ = difference(p1, p0)
        equal = rates[0] / rates[1] == ratio
        rows.append((
            name,
            Number(gradients.ratio, exactly(ratio, 1e-5)),
            "True" if all(torch.allclose(g0[n], g1[n]) for n in g0) else "False",
            Number(parameters.relative, rounding(0, 1e-6)) if equal else Number(parameters.relative),
            "True" if all(torch.allclose(p0[n], p1[n]) for n in p0) else "False",
        ))  # fmt: skip
    return Table(
        "The thread's script: accumulated against batched",
        ("loss", "ratio of the gradients", "allclose", "rel. error of the parameters", "allclose"),
        tuple(rows),
    )


def _optimizers() -> Table:
    """How far 20 updates move the weights, compared with the batch's updates (1: the same)."""
    makers: tuple[tuple[str, Callable[[Any, float], Any], tuple[Reference, ...]], ...] = (
        ("SGD", lambda p, lr: torch.optim.SGD(p, lr=lr),
         (exactly(1, 1e-5), exactly(1, 1e-6), about(1.147, 1.6))),
        ("SGD, momentum 0.9", lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
         (exactly(1, 1e-5), exactly(1, 1e-6), about(1.385, 1.6))),
        ("SGD, weight decay 0.1", lambda p, lr: torch.optim.SGD(p, lr=lr, weight_decay=0.1),
         (about(0.8465, 1.17), exactly(1, 1e-6), about(1.098, 1.6))),
        ("Adam", lambda p, lr: torch.optim.Adam(p, lr=lr / 10),
         (about(0.5608, 1.2), exactly(1, 1e-6), exactly(1, 1e-4))),
        ("AdamW, weight decay 0.1", lambda p, lr: torch.optim.AdamW(p, lr=lr / 10, weight_decay=0.1),
         (about(0.5599, 1.2), exactly(1, 1e-6), exactly(1, 1e-4))),
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for name, make, references in makers:
        reference = _displacement(make, 1, 1.0, 1.0)
        cells: list[Cell] = []
        for lr, loss, wanted in zip((1 / K, 1.0, 1.0), (1.0, 1 / K, 1.0), references, strict=True):
            found, _ = difference(_displacement(make, K, lr, loss), reference)
            cells.append(Number(found.ratio, wanted))
        once, _ = difference(_displacement(make, K, 1.0, 1.0, 1), _displacement(make, 1, 1.0, 1.0, 1))
        plain = name in ("SGD", "SGD, momentum 0.9")
        rows.append((name, *cells, Number(once.ratio, exactly(2, 1e-5) if plain else None)))
    return Table(
        f"Displacement after {STEPS} updates with k = {K}, relative to the batch's (1 is the same)",
        ("optimizer", "lr / k", "loss / k", "neither", "neither, 1 update"),
        tuple(rows),
        "dividing the loss is right for every optimizer; with Adam dividing the lr is a mistake, neither harmless",
    )


def _displacement(
    make: Callable[[Any, float], Any], parts: int, lr: float, loss_scale: float, steps: int = STEPS
) -> dict[str, Tensor]:
    torch.manual_seed(0)
    x, y = torch.randn(32, 4).double(), torch.randn(32, 2).double()
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make(model.parameters(), 0.1 * lr)
    for _ in range(steps):
        optimizer.zero_grad()
        for xs, ys in zip(x.chunk(parts), y.chunk(parts), strict=True):
            (nn.functional.mse_loss(model(xs), ys) * loss_scale).backward()
        optimizer.step()
    return {name: p.detach() - start[name] for name, p in model.named_parameters()}
