"""Seed 001, an article on mini-batching and loss accumulation: its three training loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from acclint.probe.equivalence import difference
from acclint.probe.tables import Claim, Experiment, Number, Table, about, between, exactly, rounding
from acclint.probe.window import Window, watch

K = 4
EPOCHS = 15
BATCHES = 40


def run() -> Experiment:
    right, hand, zeroed = _example_1(), _example_2(), _example_3()
    return Experiment(
        key="001",
        title="An article's three loops",
        question="How does mini-batching affect PyTorch loss accumulation?",
        answer="`.grad` is a plain sum. Example 1 is right and does not accumulate; examples 2 and 3 do it wrongly.",
        claims=(
            Claim("per-batch gradients are typically averaged in .grad", False, "they are summed; nothing averages"),
            Claim("dividing prevents inflated losses", False, "the summed gradient is what is inflated, not the loss"),
            Claim("example 2's hand-made sum is analogous to the average gradient", False,
                  "p.grad is never zeroed, so micro-batch i counts 6 - i times: 15 in all instead of 1"),
            Claim("example 3 accumulates over 4 batches", False,
                  "zero_grad stands inside the micro-batch loop: three of four gradients are thrown away"),
        ),
        tables=(
            Table("What each backward call contributes (1 is right)",
                  ("example", *(f"call {i}" for i in range(1, 6))), (right, hand["weights"], zeroed["weights"])),
            hand["table"],
            zeroed["table"],
            _training(),
            _plateau(),
        ),
    )  # fmt: skip


def _example_1() -> tuple[Any, ...]:
    """Zeroed and stepped with every batch: each update is its own batch, whole."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.randn(160, 1)
    with watch(model, optimizer) as w:
        for i in range(0, len(x), 32):
            optimizer.zero_grad()
            F.mse_loss(model(x[i : i + 32]), 2 * x[i : i + 32] + 1).backward()
            optimizer.step()
    own = [row[i] for i, row in enumerate(w.contributions)]
    return ("1: plain loop, its own update", *(Number(value, exactly(1)) for value in own))


def _example_2() -> dict[str, Any]:
    """`accumulated_grad[i] += p.grad` while p.grad itself goes on accumulating."""
    torch.manual_seed(0)
    model = nn.Linear(10, 1).double()
    samples = [(torch.randn(1, 10).double(), torch.randn(1, 1).double()) for _ in range(16)]

    def by_hand(k: int) -> tuple[Window, dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        names = [name for name, _ in model.named_parameters()]
        model.zero_grad()
        with watch(model, optimizer, reduction="sum") as w:  # whole gradients, not 1/k of them, count as 1
            total: list[Tensor] = []
            for x, y in samples[:k]:
                F.mse_loss(model(x), y).backward()
                grads = [p.grad.detach().clone() for p in model.parameters()]
                total = [a + b for a, b in zip(total, grads, strict=True)] if total else grads
            left = dict(zip(names, grads, strict=True))
            for p, g in zip(model.parameters(), total, strict=True):
                p.grad = g
            optimizer.step()
        xs, ys = (torch.cat(part) for part in zip(*samples[:k], strict=True))
        mean = torch.autograd.grad(F.mse_loss(model(xs), ys), list(model.parameters()))
        return w, dict(zip(names, total, strict=True)), left, dict(zip(names, mean, strict=True))

    w, total, left, mean = by_hand(5)
    found, _ = difference(total, mean)
    plain, _ = difference(left, {name: 5 * g for name, g in mean.items()})
    totals = {k: sum(by_hand(k)[0].contributions[0]) for k in (2, 4, 8)}
    rows: list[tuple[Any, ...]] = [
        ("against the mean gradient: ratio", Number(found.ratio, between(9.50, 5, 15))),
        ("against the mean gradient: cosine", Number(found.cosine, between(0.857, 0.5, 0.999))),
        ("p.grad left behind against the sum: relative error", Number(plain.relative, rounding(1e-16, 1e-12))),
        ("sum of the weights, k = 5", Number(sum(w.contributions[0]), exactly(15))),
    ]
    for k, total_weight in totals.items():
        rows.append((f"sum of the weights, k = {k}", Number(total_weight, exactly(k * (k + 1) / 2))))
    weights = [Number(value, exactly(5.0 - i)) for i, value in enumerate(w.contributions[0])]
    return {
        "weights": ("2: p.grad added by hand", *weights),
        "table": Table("Example 2: the sum made by hand", ("", "measured"), tuple(rows),
                       "the weights are k, k-1, ... 1, in all k(k+1)/2"),
    }  # fmt: skip


def _regression() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    x = torch.randn(BATCHES * 16, 10)
    y = 2 * x[:, :1] + 1 + 0.1 * torch.randn(len(x), 1)
    model = nn.Sequential(nn.Linear(10, 50), nn.ReLU(), nn.Linear(50, 1))
    return model, list(zip(x.split(16), y.split(16), strict=True))


def _example_3() -> dict[str, Any]:
    model, batches = _regression()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    logged = []
    with watch(model, optimizer, accumulation_steps=K) as w:
        for i, (x, y) in enumerate(batches[:K]):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y) / K
            loss.backward()
            if (i + 1) % K == 0:
                stepped = {name: p.grad.detach().clone() for name, p in model.named_parameters()}
                optimizer.step()
            logged.append(loss.item())
    contributions = w.contributions[0] if w.contributions else [0.0] * K
    right = _mean_gradient(model, batches[:K])
    last = {name: g / K for name, g in _mean_gradient(model, batches[K - 1 : K]).items()}
    found, _ = difference(stepped, right)
    exact, _ = difference(stepped, last)
    with torch.no_grad():
        true = sum(float(F.mse_loss(model(x), y)) for x, y in batches[:K]) / K
    return {
        "weights": ("3: zero_grad in the micro-batch loop",
                    *(Number(v, exactly(1) if i == K - 1 else rounding(0, 1e-6)) for i, v in enumerate(contributions)),
                    ""),
        "table": Table(
            "Example 3: the gradient of the first update",
            ("", "measured"),
            (
                ("against the last micro-batch's / 4: relative error", Number(exact.relative, rounding(0, 1e-6))),
                ("against the right one: ratio", Number(found.ratio, between(0.400, 0.1, 0.8))),
                ("against the right one: cosine", Number(found.cosine, between(0.831, 0.4, 0.98))),
                ("against the right one: relative error", Number(found.relative, between(0.657, 0.3, 1.0))),
                ("logged `Average Loss` / true mean loss", Number(sum(logged) / K / true, exactly(0.25))),
                ("of 41 micro-batches, in no update", Number(float(_left_over(41)), exactly(1))),
            ),
        ),
    }  # fmt: skip


def _left_over(count: int) -> int:
    """Micro-batches of an epoch that no update holds."""
    model, batches = _regression()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    with watch(model, optimizer) as w:
        for i in range(count):
            x, y = batches[i % len(batches)]
            (F.mse_loss(model(x), y) / K).backward()
            if (i + 1) % K == 0:
                optimizer.step()
                optimizer.zero_grad()
    return w.left


def _mean_gradient(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    xs, ys = (torch.cat(part) for part in zip(*batches, strict=True))
    grads = torch.autograd.grad(F.mse_loss(model(xs), ys), list(model.parameters()))
    return {name: g for (name, _), g in zip(model.named_parameters(), grads, strict=True)}


def _training() -> Table:
    """15 epochs of 40 micro-batches: what the mistakes do to the training loss."""
    rows: list[tuple[Any, ...]] = []
    makers: list[tuple[str, Callable[[Any], Any], tuple[float, float, float]]] = [
        ("Adam, lr 0.001", lambda p: torch.optim.Adam(p, lr=1e-3), (1.795, 1.201, 1.201)),
        ("SGD, lr 0.02", lambda p: torch.optim.SGD(p, lr=0.02), (0.366, 0.0515, 0.0193)),
    ]
    for name, make, expected in makers:
        losses = [_train(make, zero_inside, divisor) for zero_inside, divisor in ((True, K), (False, K), (False, 1))]
        seed, right, undivided = losses
        adam = name.startswith("Adam")
        rows.append((
            name,
            *(Number(loss, about(value, 2)) for loss, value in zip(losses, expected, strict=True)),
            Number(seed / right, between(expected[0] / expected[1], 1.2, 15)),
            Number(undivided / right, exactly(1, 1e-2) if adam else between(expected[2] / expected[1], 0.1, 0.9)),
        ))  # fmt: skip
    return Table(
        "Example 3: true loss after 15 epochs of 40 micro-batches",
        ("optimizer", "article", "right", "right, not divided", "article / right", "not divided / right"),
        tuple(rows),
        "an undivided loss cancels in Adam, and looks better with SGD where the lr is too small: a falling loss proves "
        "nothing",
    )


def _train(make: Callable[[Any], Any], zero_inside: bool, divisor: int) -> float:
    model, batches = _regression()
    optimizer = make(model.parameters())
    for _ in range(EPOCHS):
        for i, (x, y) in enumerate(batches):
            if zero_inside:
                optimizer.zero_grad()
            (F.mse_loss(model(x), y) / divisor).backward()
            if (i + 1) % K == 0:
                optimizer.step()
                if not zero_inside:
                    optimizer.zero_grad()
    with torch.no_grad():
        return sum(float(F.mse_loss(model(x), y)) for x, y in batches) / len(batches)


def _plateau() -> Table:
    """ReduceLROnPlateau on a noisy loss at its floor, 100 updates an epoch: stepped with each update, or each epoch."""

    def rate(per_update: bool, epochs: int) -> float:
        torch.manual_seed(0)
        optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=1e-3)
        scheduler = ReduceLROnPlateau(optimizer, "min", patience=10)
        for epoch in range(epochs):
            losses = 1 + 0.1 * torch.rand(100)
            for loss in losses.tolist() if per_update else [1 - 1e-3 * epoch]:
                scheduler.step(loss)
        return float(optimizer.param_groups[0]["lr"])

    return Table(
        "Example 3: ReduceLROnPlateau, patience 10",
        ("stepped", "lr after"),
        (
            ("per update, after 1 epoch of 100 updates", Number(rate(True, 1), between(1e-8, 1e-8 * 0.9, 2e-8))),
            ("per epoch, after 16 epochs", Number(rate(False, 16), exactly(1e-3))),
        ),
    )
