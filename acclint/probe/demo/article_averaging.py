"""Seed 002, an article: one update with a batch of 256 against the average of 256 updates with one sample each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acclint.probe.difference import Difference
from acclint.probe.equivalence import difference, measure
from acclint.probe.tables import (
    Cell,
    Claim,
    Curve,
    Experiment,
    Number,
    Reference,
    Table,
    about,
    between,
    exactly,
    rounding,
)

SAMPLES = 256
VALIDATION = 200  # images; the article has 10,000
MICRO = (32, 16, 8, 4, 2, 1)
STEPS = (2, 5, 10)

State = dict[str, Tensor]
MakeOptimizer = Callable[[Any], Any]


def run(samples: int = SAMPLES) -> Experiment:
    """All four tables; fewer samples make A and B quicker and change little in them."""
    c, curves = _table_c()
    return Experiment(
        key="002",
        title="Batch of 256 against the average of 256 one-sample updates",
        question="Is the average of 256 one-sample updates, all from the same weights, the update of the batch?",
        answer="Yes for SGD, whatever the network. BatchNorm, kept optimizer state and Adam's arithmetic differ.",
        claims=(
            Claim("the equivalence needs a gradient that is linear in the weights", False,
                  "all 256 gradients are taken at the same weights, so it holds for any network"),
            Claim("momentum shows differences in one step", False,
                  "in a fresh optimizer's first step the momentum buffer is the gradient: the same numbers as without"),
            Claim("momentum with BatchNorm differs most", False, "it differs exactly as BatchNorm alone"),
            Claim("the BatchNorm row shows the effect of batch size 1", False,
                  "it compares batch statistics with untrained running statistics: two different functions"),
            Claim("with one sample BatchNorm would raise an error", False,
                  "BatchNorm1d on (1, C) does; BatchNorm2d normalises over the pixels"),
            Claim("averaging gradients differs from batch training over several steps", False,
                  "approach 3 leaves the momentum out; with it the difference is rounding"),
        ),
        tables=(_table_a(samples), _table_b(samples), c, _table_d()),
        curves=curves,
    )  # fmt: skip


# --- networks and data -----------------------------------------------------------------------------------------------


def network(norm: str = "none") -> nn.Module:
    """The article's network for 28x28 images: "none", "bn", "bn2d" (not on the flat features) or "gn"."""

    def norm2d(channels: int) -> list[nn.Module]:
        if norm == "gn":
            return [nn.GroupNorm(8, channels)]
        return [nn.BatchNorm2d(channels)] if norm != "none" else []

    flat: dict[str, list[nn.Module]] = {"bn": [nn.BatchNorm1d(128)], "gn": [nn.LayerNorm(128)]}
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), *norm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), *norm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 128), *flat.get(norm, []), nn.ReLU(),
        nn.Linear(128, 10),
    )  # fmt: skip


def glyphs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ten blurred glyphs, shifted and noisy, in place of the article's digits: (count, 1, 28, 28) and labels."""
    shapes = torch.Generator().manual_seed(7)
    strokes = (torch.rand(10, 1, 7, 7, generator=shapes) > 0.6).float()
    blurred = F.avg_pool2d(F.interpolate(strokes, scale_factor=4.0), 5, 1, 2)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (count,), generator=generator)
    shifts = torch.randint(-3, 4, (count, 2), generator=generator).tolist()
    images = torch.stack([
        torch.roll(blurred[label], shift, (1, 2)) for label, shift in zip(labels.tolist(), shifts, strict=True)
    ])  # fmt: skip
    return (images + 0.1 * torch.randn(images.shape, generator=generator)).clamp(0, 1), labels


def _start(norm: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(42)
    return network(norm).to(dtype)


def _sgd(momentum: float = 0.0, lr: float = 0.1) -> MakeOptimizer:
    return lambda params: torch.optim.SGD(params, lr=lr, momentum=momentum)


def _params(model: nn.Module) -> State:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _minus(a: State, b: State) -> State:
    return {name: a[name] - b[name] for name in a}


# --- one step: tables A and B ----------------------------------------------------------------------------------------


class _OneStep:
    """One update of the whole batch, and the average of one-sample updates from the same weights."""

    def __init__(
        self,
        samples: int,
        norm: str,
        make: MakeOptimizer,
        dtype: torch.dtype,
        keep_state: bool = False,
        frozen: bool = True,
    ) -> None:
        x, y = glyphs(samples, seed=0)
        x = x.to(dtype)
        model = _start(norm, dtype)
        before = copy.deepcopy(model.state_dict())
        optimizer = make(model.parameters())
        self._step(model, optimizer, x, y)
        batch = copy.deepcopy(model.state_dict())
        optimizer = make(model.parameters())
        total: State = {}
        for i in range(len(x)):
            model.load_state_dict(before)
            if not keep_state:
                optimizer = make(model.parameters())
            if frozen:  # as the article does: running statistics, which are those of initialisation
                for module in model.modules():
                    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                        module.eval()
            self._step(model, optimizer, x[i : i + 1], y[i : i + 1])
            for name, value in model.state_dict().items():
                total[name] = total[name] + value if name in total else value.clone()
        averaged = {name: value / len(x) for name, value in total.items()}
        names = [name for name, _ in model.named_parameters()]
        pick: Callable[[State], State] = lambda state: {name: state[name] for name in names}  # noqa: E731
        self.weights, _ = difference(pick(averaged), pick(batch))
        self.update, _ = difference(_minus(pick(averaged), pick(before)), _minus(pick(batch), pick(before)))
        self.losses = [self._validate(model, state, dtype) for state in (batch, averaged)]

    def _step(self, model: nn.Module, optimizer: Any, x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    def _validate(self, model: nn.Module, state: State, dtype: torch.dtype) -> float:
        x, y = glyphs(VALIDATION, seed=1)
        model.load_state_dict({name: value.to(model.state_dict()[name].dtype) for name, value in state.items()})
        model.eval()
        with torch.no_grad():
            loss = float(F.cross_entropy(model(x.to(dtype)), y))
        model.train()
        return loss


def _table_a(samples: int) -> Table:
    rows = []
    sgd32 = (rounding(1.103e-6, 1e-5), rounding(3.363e-8, 3e-7), rounding(4.1e-4, 4e-3), exactly(1, 1e-3))
    sgd64 = (rounding(3.3e-16, 1e-14), rounding(1.6e-17, 1e-15), rounding(8.7e-14, 1e-11), exactly(1, 1e-9))
    batchnorm = (about(1.806e-2, 4), about(9.024e-4, 4), between(0.992, 0.9, 1.1), between(0.00897, -0.1, 0.1))
    for name, norm, momentum in (
        ("SGD", "none", 0.0),
        ("SGD+Momentum", "none", 0.9),
        ("SGD+BatchNorm", "bn", 0.0),
        ("SGD+Momentum+BatchNorm", "bn", 0.9),
    ):
        for dtype, references in ((torch.float32, sgd32), (torch.float64, sgd64)):
            found = _OneStep(samples, norm, _sgd(momentum), dtype)
            cells = _cells(found, batchnorm if norm == "bn" else references)
            losses = f"{found.losses[0]:.4f} / {found.losses[1]:.4f}"
            rows.append((f"{name}, {str(dtype).removeprefix('torch.')}", *cells, losses))
    return Table(
        "A. The article's four configurations, one step, lr 0.1",
        ("configuration", "max diff", "avg diff", "rel. of the update", "ratio", "val. loss batch / averaged"),
        tuple(rows),
        "the article lets the single samples use BatchNorm's untrained running statistics",
    )


def _cells(found: _OneStep, references: tuple[Reference, Reference, Reference, Reference]) -> tuple[Cell, ...]:
    values = (found.weights.maximum, found.weights.average, found.update.relative, found.update.ratio)
    return tuple(Number(value, reference) for value, reference in zip(values, references, strict=True))


def _table_b(samples: int) -> Table:
    adam: MakeOptimizer = lambda params: torch.optim.Adam(params, lr=1e-3)  # noqa: E731
    double = torch.float64
    # what momentum kept over n updates multiplies the mean update with, if all gradients were alike: 9.648 for n = 256
    kept = 10 - 90 * (1 - 0.9**samples) / samples
    equal = (rounding(1.1e-15, 1e-13), rounding(6.3e-17, 1e-14), rounding(1.0e-14, 1e-11), exactly(1, 1e-9))
    configurations = (
        ("GroupNorm + LayerNorm, SGD", _OneStep(samples, "gn", _sgd(), double), equal),
        ("SGD momentum 0.9, state kept", _OneStep(samples, "none", _sgd(0.9), double, keep_state=True),
         (about(4.755e-2, 4), about(2.589e-3, 4), about(8.42 * (kept - 1) / 8.648, 1.1),
          about(9.396 * kept / 9.648, 1.06))),
        ("Adam lr 0.001, fresh state each", _OneStep(samples, "none", adam, double),
         (about(1.812e-3, 1.3), about(7.977e-4, 1.5), between(0.949, 0.8, 1.05), between(0.0605, 0.0, 0.5))),
        ("BatchNorm2d, single samples in train mode, SGD", _OneStep(samples, "bn2d", _sgd(), double, frozen=False),
         (about(3.840e-3, 5), about(1.407e-4, 5), about(0.297, 2.5), about(0.956, 1.25))),
    )  # fmt: skip
    return Table(
        "B. What should have been run, float64",
        ("configuration", "max diff", "avg diff", "rel. of the update", "ratio"),
        tuple((name, *_cells(found, references)) for name, found, references in configurations),
        "kept momentum adds up to ten times the update; Adam's steps are nearly signs, whose average is small",
    )


# --- accumulation with BatchNorm: table C ----------------------------------------------------------------------------

_C = {
    ("BN2d + BN1d", 0): (0.23, 0.31, 0.53, 0.81, 3.10),
    ("BN2d + BN1d", 20): (0.47, 1.11, 1.74, 4.17, 35.7),
    ("BN2d", 0): (0.035, 0.054, 0.097, 0.152, 0.193, 0.267),
    ("BN2d", 20): (0.19, 0.12, 0.19, 0.27, 0.33, 0.57),
}


_COSINES = {
    ("BN2d + BN1d", 0): (0.973, 0.952, 0.857, 0.656, 0.114),
    ("BN2d + BN1d", 20): (0.931, 0.823, 0.587, 0.148, -0.009),
    ("BN2d", 0): (0.999, 0.999, 0.995, 0.989, 0.982, 0.965),
    ("BN2d", 20): (0.982, 0.993, 0.982, 0.964, 0.956, 0.897),
}


def _table_c() -> tuple[Table, tuple[Curve, ...]]:
    """64 samples in micro-batches of b: relative error (cosine) of the accumulated gradient."""
    x, y = glyphs(64, seed=2)
    rows: list[tuple[Cell, ...]] = []
    curves = []
    for name, norm in (("BN2d + BN1d", "bn"), ("BN2d", "bn2d"), ("GroupNorm + LayerNorm", "gn")):
        for steps in (0, 20):
            model = _trained(norm, steps, x, y)
            whole = _gradient(model, x, y, len(x))
            found = [_against(whole, model, x, y, b) for b in MICRO]
            references: list[Reference | None] = [rounding(0, 1e-12) for _ in MICRO]
            if name in ("BN2d + BN1d", "BN2d"):
                expected = _C[name, steps]
                factor = 2.5 if steps == 0 else 6.0
                references = [about(value, factor) for value in expected] + [None] * (6 - len(expected))
            label = f"{name}, {'at start' if not steps else f'after {steps} steps'}"
            cells: list[Cell] = [
                f if isinstance(f, str) else Number(f.relative, r) for f, r in zip(found, references, strict=True)
            ]
            rows.append((label, *cells))
            rows.append(("   cosine", *_cosines(found, _COSINES.get((name, steps)), steps)))
            curves.append(Curve(label, tuple(map(float, MICRO)), tuple(
                None if isinstance(f, str) else f.relative for f in found)))  # fmt: skip
    loss: Callable[[nn.Module, Any], Tensor] = lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])  # noqa: E731
    frozen = measure(_trained("bn", 0, x, y), loss, (x, y), 4).frozen
    assert frozen is not None
    rows.append(
        ("BN2d + BN1d, statistics frozen", "", "", "", Number(frozen.relative, rounding(3.9e-16, 1e-12)), "", "")
    )
    table = Table(
        "C. 64 samples accumulated in micro-batches of b, float64: relative error and cosine",
        ("network", *(f"b={b}" for b in MICRO)),
        tuple(rows),
        "BatchNorm1d on flat features has b values per channel, BatchNorm2d b * H * W: that is why it is hit harder",
    )
    return table, tuple(curves)


def _cosines(found: list[Difference | str], expected: tuple[float, ...] | None, steps: int) -> tuple[Cell, ...]:
    """Without BatchNorm the cosine is 1; a trained network depends on the data more than a fresh one."""
    margin = 0.35 if steps else 0.06
    cells: list[Cell] = []
    for f, wanted in zip(found, (*(expected or ()), *(1.0,) * len(MICRO)), strict=False):
        if isinstance(f, str):
            cells.append("")
        else:
            reference = between(wanted, wanted - margin, wanted + margin) if expected else exactly(1, 1e-12)
            cells.append(Number(f.cosine, reference))
    return tuple(cells)


def _against(whole: State, model: nn.Module, x: Tensor, y: Tensor, size: int) -> Difference | str:
    try:
        return difference(_gradient(model, x, y, size), whole)[0]
    except ValueError as error:  # "Expected more than 1 value per channel when training"
        return type(error).__name__


def _gradient(model: nn.Module, x: Tensor, y: Tensor, size: int) -> State:
    """Of the mean loss, accumulated over micro-batches of this size."""
    model.zero_grad()
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        (F.cross_entropy(model(x[part].double()), y[part]) * size / len(x)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def _trained(norm: str, steps: int, x: Tensor, y: Tensor) -> nn.Module:
    model = _start(norm, torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x.double()), y).backward()
        optimizer.step()
    return model


# --- several steps: table D ------------------------------------------------------------------------------------------


def _table_d() -> Table:
    batches = [glyphs(64, seed=10 + i) for i in range(max(STEPS))]
    single = torch.float32
    whole = _train(batches, single, "whole")
    approaches = {
        "individual": (_train(batches, single, "individual"), whole),
        "article": (_train(batches, single, "article"), whole),
        "averaged32": (_train(batches, single, "averaged"), whole),
        "averaged64": (_train(batches, torch.float64, "averaged"), _train(batches, torch.float64, "whole")),
    }
    expected: dict[int, tuple[Reference, ...]] = {
        2: (about(4.25e-1, 10), about(2.77e-2, 10), about(1.02e-3, 3), about(6.1e-5, 3)),
        5: (about(1.15, 10), about(9.89e-2, 10), about(4.41e-3, 3), about(3.3e-4, 3)),
        10: (about(1.29, 10), about(1.46e-1, 10), about(1.01e-2, 3), about(8.6e-4, 3)),
    }
    fixed = (rounding(7.5e-9, 1e-6), rounding(9.7e-11, 1e-7), rounding(1.4e-17, 1e-14), rounding(1.4e-20, 1e-15))
    rows: list[tuple[Cell, ...]] = []
    for steps in STEPS:
        values: list[float] = []
        for ours, reference in approaches.values():
            found, _ = difference(ours[steps], reference[steps])
            values += [found.maximum, found.average]
        cells = [Number(v, r) for v, r in zip(values, (*expected[steps], *fixed), strict=True)]
        rows.append((f"{steps} steps", *cells))
    return Table(
        "D. Several steps of batch 64, momentum 0.9, lr 0.01: max and avg difference to batch training",
        ("", "individual", "(avg)", "article's averaging", "(avg)", "momentum, float32", "(avg)", "float64", "(avg)"),
        tuple(rows),
        "individual: 64 times as many updates; the article's averaging applies param -= lr * grad, without momentum",
    )  # fmt: skip


def _train(batches: list[tuple[Tensor, Tensor]], dtype: torch.dtype, approach: str) -> dict[int, State]:
    """The weights after each number of steps."""
    model = _start("none", dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    found = {}
    for step, (x, y) in enumerate(batches, 1):
        x = x.to(dtype)
        optimizer.zero_grad()
        if approach == "whole":
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        elif approach == "individual":
            for i in range(len(x)):
                optimizer.zero_grad()
                F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
                optimizer.step()
        else:
            for i in range(len(x)):
                (F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]) / len(x)).backward()
            if approach == "averaged":
                optimizer.step()
            else:
                with torch.no_grad():
                    for p in model.parameters():
                        p -= 0.01 * p.grad
        if step in STEPS:
            found[step] = _params(model)
    return found
