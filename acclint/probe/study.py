"""`acclint equivalence MODULE:FACTORY`: one model under every condition that accumulation may depend on."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from acclint import Problem
from acclint.probe.difference import BANDS, Difference, Equivalence, number
from acclint.probe.equivalence import (
    EquivalenceError,
    Gradients,
    Trajectory,
    batch_size,
    difference,
    measure,
    split_batch,
)
from acclint.probe.factory import Setup, described
from acclint.probe.tables import Cell, Curve, Number, Table

UPDATES = (1, 2, 5, 10)
LAYERS = 10
SIZES = 6
_HEAD = ("max diff", "avg diff", "rel. error", "ratio", "cosine", "verdict")

Measured = Equivalence | str  # a string is why it could not be measured


@dataclass(frozen=True)
class Study:
    """The tables, the answer in one sentence, and whether accumulation is the same at every micro-batch size."""

    equal: bool
    answer: str
    details: tuple[str, ...]
    tables: tuple[Table, ...]
    curves: tuple[Curve, ...]
    layers: tuple[tuple[str, float], ...]  # name and relative error, where it differs


def study(setup: Setup, sizes: Sequence[int] = (), normalize: str = "auto") -> Study:
    """Compare at several micro-batch sizes, dtypes, normalisations and numbers of updates.

    `sizes` are micro-batch sizes, by default divisors of the batch size. `normalize` is what the training loop does to
    the loss (see `acclint.probe.equivalence.measure`); "auto" takes a loss for a mean unless it behaves like a sum.
    Raises `Problem` where nothing can be measured.
    """
    try:
        whole = batch_size(setup.batch)
    except EquivalenceError as error:
        reason = str(error).partition(":")[0]
        raise Problem(f"{reason}: each of its tensors needs the samples in its first dimension") from None
    sizes = tuple(sizes) or divisors(whole)
    too_large = [size for size in sizes if size >= whole]
    if too_large or not sizes:
        raise Problem(f"a micro-batch must be smaller than the batch, which has {whole} samples")
    middle = next((size for size in sizes if size <= whole / 4), sizes[-1])
    run = _Runner(setup, normalize if normalize != "auto" else _kind_of_loss(setup, sizes[0]))
    by_size = {size: run(size) for size in sizes}
    found = [m for m in by_size.values() if isinstance(m, Equivalence)]
    if not found:
        raise Problem(f"nothing could be measured: {next(m for m in by_size.values() if isinstance(m, str))}")
    at = by_size[middle]
    typical = at if isinstance(at, Equivalence) else found[0]
    middle = typical.micro_batch_size
    coupled_by_norm = any("batchnorm" in m.causes for m in found)
    tables = [_by_size(by_size, run.normalize), _by_dtype(run, middle), _by_division(run, middle)]
    if coupled_by_norm:
        tables.append(_by_norm(run, middle))
    tables.append(_by_updates(run, middle))
    if typical.differing:
        tables.append(_by_layer(typical))
    curves = [_curve("as it is", by_size)]
    if coupled_by_norm:
        curves.append(_curve("BatchNorm frozen", {size: run(size, batchnorm="frozen") for size in sizes}))
    bad = [m for m in found if m.verdict != "equal"]
    return Study(
        equal=not bad and len(found) == len(by_size),
        answer=_answer(found, bad),
        details=tuple(_details(by_size)),
        tables=tuple(tables),
        curves=tuple(curves),
        layers=tuple((layer.name, layer.difference.relative) for layer in typical.differing[:LAYERS]),
    )


def divisors(n: int) -> tuple[int, ...]:
    """At most six micro-batch sizes that divide the batch, largest first, 1 included; (1,) for a prime."""
    found = [d for d in range(n - 1, 0, -1) if n % d == 0]
    if len(found) <= SIZES:
        return tuple(found)
    steps = (len(found) - 1) / (SIZES - 1)
    return tuple(found[round(i * steps)] for i in range(SIZES))


class _Runner:
    """Measures the setup under changed conditions; what the model raises becomes a reason."""

    def __init__(self, setup: Setup, normalize: str) -> None:
        self.setup = setup
        self.normalize = normalize

    def __call__(self, size: int, model: nn.Module | None = None, **options: Any) -> Measured:
        given: dict[str, Any] = {"normalize": self.normalize, **options}
        try:
            return measure(model or self.setup.model, self.setup.loss_fn, self.setup.batch, size, **given)
        except EquivalenceError as error:
            return str(error)
        except Exception as error:
            return described(error)


def _kind_of_loss(setup: Setup, size: int) -> str:
    """ "none" for a loss that behaves like a sum, else "mean"."""
    errors = {}
    for normalize in ("mean", "none"):
        found = _Runner(setup, normalize)(size, batchnorm="frozen")
        errors[normalize] = found.difference.relative if isinstance(found, Equivalence) else math.inf
    return "none" if errors["none"] < errors["mean"] / 2 else "mean"


def _answer(found: list[Equivalence], bad: list[Equivalence]) -> str:
    if not bad:
        worst = max(m.difference.relative for m in found)
        return f"Accumulation is the same as the large batch for this model (relative error at most {number(worst)})."
    if all(m.verdict == "inconclusive" for m in bad):
        return f"It cannot be told whether accumulation is the same: only {bad[0].dtype} could be measured."
    if all(m.causes == ("batchnorm",) for m in bad):
        return "Accumulation is not the same as the large batch for this model, only through BatchNorm."
    return "Accumulation is not the same as the large batch for this model."


def _details(by_size: dict[int, Measured]) -> list[str]:
    """The cause at each micro-batch size, once for those that share it."""
    lines: dict[object, tuple[list[str], str]] = {}
    for size, m in by_size.items():
        key: object = m if isinstance(m, str) else m.causes
        text = m if isinstance(m, str) else m.message
        lines.setdefault(key, ([], text))[0].append(str(size))
    details = []
    for key, (sizes, text) in lines.items():
        if key != ("rounding",):
            others = f" (and {', '.join(sizes[1:])})" if sizes[1:] else ""
            details.append(f"micro-batch size {sizes[0]}{others}: {text}")
    return details


# --- tables ----------------------------------------------------------------------------------------------------------


def _cells(measured: Measured) -> tuple[Cell, ...]:
    if isinstance(measured, str):
        return ("", "", "", "", "", f"not measured: {measured.partition(':')[0][:40]}")
    verdict: str = measured.verdict
    if measured.causes != ("rounding",):
        verdict += f" ({', '.join(measured.causes)})"
    return (*_numbers(measured.difference), verdict)


def _numbers(found: Difference) -> tuple[Cell, ...]:
    return tuple(Number(v) for v in (found.maximum, found.average, found.relative, found.ratio, found.cosine))


def _divided(normalize: str) -> str:
    return {"mean": "loss / k", "none": "sum loss, not divided", "samples": "loss weighed by samples"}[normalize]


def _by_size(by_size: dict[int, Measured], normalize: str) -> Table:
    dtypes = {m.dtype for m in by_size.values() if isinstance(m, Equivalence)}
    rows = tuple((str(size), *_cells(measured)) for size, measured in by_size.items())
    return Table(f"By micro-batch size ({', '.join(dtypes)}, {_divided(normalize)})", ("size", *_HEAD), rows)


def _by_dtype(run: _Runner, size: int) -> Table:
    rows = tuple((dtype, *_cells(run(size, dtype=dtype))) for dtype in BANDS)
    bands = ", ".join(f"{dtype} {equal:.0e}" for dtype, (equal, _) in BANDS.items())
    return Table(f"By dtype (micro-batch size {size})", ("dtype", *_HEAD), rows, f"equal up to: {bands}")


def _by_division(run: _Runner, size: int) -> Table:
    names = {"none": "not divided", "mean": "divided by k", "samples": "by samples"}
    rows = tuple((name, *_cells(run(size, normalize=normalize))) for normalize, name in names.items())
    return Table(f"By what is done to the loss (micro-batch size {size})", ("loss", *_HEAD), rows)


def _by_norm(run: _Runner, size: int) -> Table:
    rows: list[tuple[Cell, ...]] = [
        ("BatchNorm as it is", *_cells(run(size))),
        ("BatchNorm frozen", *_cells(run(size, batchnorm="frozen"))),
    ]
    swapped = _with_group_norm(run.setup.model)
    if swapped is not None:
        rows.append(("GroupNorm instead", *_cells(run(size, model=swapped))))
    return Table(f"By normalisation layer (micro-batch size {size})", ("", *_HEAD), tuple(rows))


def _with_group_norm(model: nn.Module) -> nn.Module | None:
    """A copy with a GroupNorm in place of every BatchNorm; None where the model cannot be copied."""
    try:
        new = copy.deepcopy(model)
    except Exception:
        return None
    for parent in list(new.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                groups = math.gcd(32, child.num_features)
                like = next(iter(child.parameters()), None)
                norm = nn.GroupNorm(groups, child.num_features)
                setattr(parent, name, norm if like is None else norm.to(like))
    return new


def _by_updates(run: _Runner, size: int) -> Table:
    """Two trainings on the same batch, from the same weights: how far apart the weights are after n updates."""
    make = run.setup.make_optimizer
    name = "SGD, lr 0.01, momentum 0.9" if make is None else "the factory's optimizer"
    make = make or (lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9))
    rows: list[tuple[Cell, ...]] = []
    for dtype in ("float64", "float32"):
        try:
            found = _apart(run, make, size, dtype)
        except Exception as error:
            rows.append((dtype, "", "", "", "", f"not measured: {described(error)}"))
            continue
        for updates, (weights, moved) in found.items():
            cells = (weights.maximum, weights.average, moved.relative, moved.ratio, moved.cosine)
            rows.append((f"{dtype}, {updates}", *(Number(v) for v in cells)))
    return Table(
        f"By number of updates (micro-batch size {size}, {name})",
        ("updates", "max diff", "avg diff", "rel. error", "ratio", "cosine"),
        tuple(rows),
        "differences of the weights; relative error, ratio and cosine of the way that they went",
    )


def _apart(run: _Runner, make: Callable[[Any], Any], size: int, dtype: str) -> dict[int, tuple[Difference, Difference]]:
    setup = run.setup
    parts = split_batch(setup.batch, size)
    whole = batch_size(setup.batch)
    weights = {
        "mean": [1 / len(parts)] * len(parts),
        "none": [1.0] * len(parts),
        "samples": [batch_size(part) / whole for part in parts],
    }[run.normalize]
    trajectory = Trajectory(setup.model, setup.loss_fn, make, dtype)
    large = trajectory.run([setup.batch], [1.0], UPDATES)
    small = trajectory.run(parts, weights, UPDATES)
    start = large[0]

    def moved(state: Gradients) -> Gradients:
        return {name: state[name] - start[name] for name in start}

    return {
        n: (difference(small[n], large[n])[0], difference(moved(small[n]), moved(large[n]))[0]) for n in UPDATES
    }  # fmt: skip


def _by_layer(measured: Equivalence) -> Table:
    layers = sorted(measured.differing, key=lambda layer: -layer.share)
    rows = tuple(
        (layer.name, *_numbers(layer.difference), f"{layer.share:.1%}") for layer in layers[:LAYERS]
    )  # fmt: skip
    more = len(layers) - LAYERS
    return Table(
        f"Where it differs (micro-batch size {measured.micro_batch_size})",
        ("parameter", *_HEAD[:-1], "share"),
        rows,
        f"and {more} more parameters" if more > 0 else "share: of the whole squared difference",
    )


def _curve(name: str, by_size: dict[int, Measured]) -> Curve:
    values = [m.difference.relative if isinstance(m, Equivalence) else None for m in by_size.values()]
    return Curve(name, tuple(float(size) for size in by_size), tuple(values))
