"""Seed 000, a forum thread: one batch of 64 against 8 accumulated micro-batches of 8, 500 steps of plain descent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from acclint.probe.difference import Difference
from acclint.probe.equivalence import difference
from acclint.probe.tables import Claim, Curve, Experiment, Number, Table, about, exactly, rounding

STEPS = 500
SHOWN = (0, 1, 10, 100, 494, 499)
PARTS = 8
RATE = 1e-6

Weights = dict[str, Tensor]


def run() -> Experiment:
    x, y, start = _problem()
    f32 = _trajectories(x, y, start)
    f64 = _trajectories(x.double(), y.double(), {name: w.double() for name, w in start.items()})
    own = {t: difference(acc, full)[0] for t, (full, acc) in f32["gradients"].items()}
    weights = {t: difference(acc, full)[0] for t, (full, acc) in f32["weights"].items()}
    double = {t: difference(acc, full)[0] for t, (full, acc) in f64["gradients"].items()}
    same, noise = {}, {}
    for t in SHOWN:
        at = f32["weights"][t][0]
        full = _gradient(x, y, at, 1)
        same[t] = difference(_gradient(x, y, at, PARTS), full)[0]
        exact = _gradient(x.double(), y.double(), {name: w.double() for name, w in at.items()}, 1)
        noise[t] = difference(full, exact)[0]
    rows = (
        _row("float32, own trajectories", own, (1.1e-7, 1.2e-7, 2.9e-7, 1.6e-4, 2.1e-1, 2.4e-1), 20.0),
        _row("float32, the weights", weights, (0, 7e-9, 2.7e-8, 7.8e-8, 1.7e-7, 1.7e-7), 3.0),
        _row("float64, own trajectories", double, (1.9e-16, 2.3e-16, 5.5e-16, 4.8e-13, 3.2e-8, 2.4e-8), 100.0),
        _row("float32, at identical weights", same, (1.1e-7, None, 9.3e-8, 1.6e-7, None, 1.5e-7), 4.0),
        _row("float32 against float64, full batch", noise,
             (2.1e-7, None, 3.5e-7, 1.4e-4, None, 4.8e-1), 3.0),
    )  # fmt: skip
    end, last = own[STEPS - 1], {"float32": f32["losses"], "float64": f64["losses"]}
    return Experiment(
        key="000",
        title="Full batch against 8 accumulated micro-batches, sum reduction",
        question="The gradients printed after 500 steps differ. A mistake, or rounding?",
        answer="Rounding. At identical weights the gradients agree to seven digits in float32 and sixteen in float64.",
        claims=(
            Claim("the code accumulates rightly", True, "sum reduction, no division, zeroed once per window"),
            Claim("the gradients at step 499 show whether accumulation is right", False,
                  "they belong to two trajectories, and near the optimum the float32 gradient itself is half noise"),
        ),
        tables=(
            Table("Relative error, accumulated against full batch", ("", *(f"t={t}" for t in SHOWN)), rows),
            Table(
                "At t=499",
                ("", "full batch", "accumulated"),
                (
                    ("loss, float32", *(Number(v, exactly(3.03e-5, 0.03)) for v in last["float32"])),
                    ("loss, float64", *(Number(v, exactly(2.661e-7, 0.01)) for v in last["float64"])),
                    ("cosine of the gradients, float32", "", Number(end.cosine, about(0.971, 1.03))),
                    ("ratio of the gradients, float32", "", Number(end.ratio, about(0.964, 1.1))),
                ),
                "float32 has hit its noise floor, a hundred times above the float64 loss",
            ),
        ),
        curves=tuple(
            Curve(name, SHOWN, tuple(found[t].relative for t in SHOWN))
            for name, found in (("float32, own trajectories", own), ("float64, own trajectories", double),
                                ("float32, identical weights", same))
        ),
    )  # fmt: skip


def _row(name: str, found: dict[int, Difference], expected: tuple[float | None, ...], factor: float) -> tuple[Any, ...]:
    """Rounding grows along a trajectory; how fast is the machine's business (between two processors the float32 one
    differed five times at t=100), so only the bound is checked there."""
    cells = []
    for t, value in zip(SHOWN, expected, strict=True):
        reference = None if value is None else rounding(value, max(value * factor, 1e-30))
        if value is not None and value > 1e-5:  # far above the rounding of one step
            reference = about(value, factor)
        cells.append(Number(found[t].relative, reference))
    return (name, *cells)


def _problem() -> tuple[Tensor, Tensor, Weights]:
    torch.manual_seed(0)
    x, y = torch.randn(64, 1000), torch.randn(64, 10)
    return x, y, {"w1": torch.randn(1000, 100), "w2": torch.randn(100, 10)}


def _trajectories(x: Tensor, y: Tensor, start: Weights) -> dict[str, Any]:
    """Descend twice from the same start; keep gradients and weights at the steps shown, and the last losses."""
    found: dict[str, Any] = {"gradients": {}, "weights": {}, "losses": []}
    both = [{name: w.clone() for name, w in start.items()} for _ in range(2)]
    for t in range(STEPS):
        pair = [_gradient(x, y, w, parts) for w, parts in zip(both, (1, PARTS), strict=True)]
        if t in SHOWN:
            found["gradients"][t] = tuple(pair)
            found["weights"][t] = tuple({name: w.clone() for name, w in weights.items()} for weights in both)
        if t == STEPS - 1:
            found["losses"] = [float(_loss(x, y, w)) for w in both]
        for weights, gradient in zip(both, pair, strict=True):
            for name, w in weights.items():
                w -= RATE * gradient[name]
    return found


def _gradient(x: Tensor, y: Tensor, weights: Weights, parts: int) -> Weights:
    leaves = {name: w.detach().clone().requires_grad_() for name, w in weights.items()}
    for xs, ys in zip(x.chunk(parts), y.chunk(parts), strict=True):
        _loss(xs, ys, leaves).backward()
    return {name: w.grad for name, w in leaves.items() if w.grad is not None}


def _loss(x: Tensor, y: Tensor, weights: Weights) -> Tensor:
    loss: Tensor = nn.functional.mse_loss(x.mm(weights["w1"]).clamp(min=0).mm(weights["w2"]), y, reduction="sum")
    return loss
