"""What a comparison of two gradients says, and what follows from it. Pure Python: no torch.

The bands are measured: 1,260 comparisons of right accumulation (depth 1 to 16, k = 2 to 32, linear, convolution and
transformer nets) had a relative error of at most 9.5e-15 in float64, 5.2e-6 in float32, 3.5e-3 in float16 and 2.3e-2 in
bfloat16, while the smallest real mistake (one token too many of 2,047) had 1.2e-3. The float64 bound leaves room for
constants that user code holds in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["equal", "small difference", "different", "inconclusive"]
Cause = Literal["rounding", "scale", "weights", "batchnorm", "coupled", "dropout"]

# Relative error up to which two gradients are equal, and from which they differ; half types alone never differ by it.
BANDS: dict[str, tuple[float, float]] = {
    "float64": (1e-6, 1e-4),
    "float32": (1e-4, 5e-3),
    "bfloat16": (1e-1, math.inf),
    "float16": (2e-2, math.inf),
}
RESIDUAL = 1e-3  # contributions that explain less than this of a gradient count for nothing
_HALF = ("bfloat16", "float16")


@dataclass(frozen=True)
class Difference:
    """How far gradient a is from reference b, over all entries.

    `maximum` and `average` are of |a - b|; the average is the mean of the tensors' means, so that a small layer counts
    as much as a large one. `relative` is |a - b| / |b| in L2. `ratio` is the factor <a, b> / <b, b> by which a fits b
    best, `cosine` the direction, `rescaled` the relative error that is left when a is divided by the ratio.
    """

    maximum: float
    average: float
    relative: float
    ratio: float
    cosine: float
    rescaled: float

    def verdict(self, dtype: str) -> Verdict:
        """Equal, different or neither, by the bands of the dtype ("float64") in which both gradients were computed."""
        equal, different = BANDS[dtype]
        if self.relative <= equal:
            return "equal"
        if self.relative >= different or (dtype in _HALF and self.is_scaled(dtype) and not 0.55 < self.ratio < 1.8):
            return "different"
        return "small difference" if dtype == "float64" else "inconclusive"

    def is_scaled(self, dtype: str) -> bool:
        """Whether a is b times one factor, up to rounding."""
        return self.ratio != 0 and self.rescaled <= BANDS[dtype][0]


@dataclass(frozen=True)
class Layer:
    """The difference in one parameter, and its share of the whole squared difference (0 to 1)."""

    name: str
    difference: Difference
    share: float


@dataclass(frozen=True)
class Equivalence:
    """Whether accumulating over micro-batches gives the gradient of the whole batch, for one model and batch.

    `causes` says why not, the gravest first ("rounding" alone: it does). `contributions` is one number per micro-batch,
    relative to the weight that would be right, so 1 is right; None where the whole gradient is no weighted sum of the
    micro-batches' gradients, or where the model has too few parameters to tell. `factor` is the common factor of cause
    "scale". `frozen` is the difference with frozen BatchNorm statistics, where training statistics were used.
    `dtype` is the one that decided ("float64").
    """

    batch_size: int
    sizes: tuple[int, ...]
    normalize: str
    dtype: str
    verdict: Verdict
    causes: tuple[Cause, ...]
    message: str
    difference: Difference
    layers: tuple[Layer, ...]
    contributions: tuple[float, ...] | None
    factor: float | None
    frozen: Difference | None

    @property
    def micro_batch_size(self) -> int:
        return self.sizes[0]

    @property
    def differing(self) -> tuple[Layer, ...]:
        """The layers that differ, those with the largest share of the difference first."""
        bound = BANDS[self.dtype][0] ** 2 / max(len(self.layers), 1)
        total = self.difference.relative**2
        return tuple(layer for layer in self.layers if layer.share * total > bound)


def explain_factor(factor: float, k: int) -> str:
    """What a gradient that is `factor` times the right one is likely due to, in a window of k micro-batches."""

    def near(value: float) -> bool:
        return abs(factor / value - 1) <= 0.02

    size = f"{number(factor)} times too large" if factor > 1 else f"only {number(factor)} of what it should be"
    if k > 1 and near(k):
        return f"the gradient is {size}: a mean loss is not divided by the {k} micro-batches"
    if k > 1 and near(1 / k):
        return f"the gradient is {size} (1/{k}): the loss is divided twice, or it is a sum, which needs no division"
    if factor < 0:
        return f"the gradient has the wrong sign (factor {number(factor)})"
    return f"the gradient is {size}"


def number(value: float) -> str:
    """Three or four digits: 8, 0.25, 1.003, 2.41e-07."""
    if not math.isfinite(value):
        return "?"
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.2e}" if value else "0"
    return f"{value:.4g}" if abs(value) >= 0.1 else f"{value:.3g}"


def listed(values: Sequence[float], limit: int = 8) -> str:
    """`[1, 1, 0.5]`, cut after `limit` numbers."""
    shown = [f"{value:.3g}" for value in values[:limit]]
    return f"[{', '.join(shown)}{', ...' if len(values) > limit else ''}]"
