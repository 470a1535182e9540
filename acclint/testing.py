"""For your own test-suite: is gradient accumulation right for this model, and in this training loop?

    from acclint.testing import assert_accumulation_equivalent, window

    def test_accumulation():
        assert_accumulation_equivalent(model, loss_fn, batch, micro_batch_size=8)

    def test_my_window():
        with window(model, optimizer) as w:
            train_one_window(model, optimizer, micro_batches)
        w.assert_right()

Both leave the model, the optimizer and the random number generators as they were. With pytest, the fixture
`accumulation` offers the same two and shows what was measured when a test fails. Needs torch: `pip install
acclint[probe]`; it is imported when a function is called, not with this module.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

from acclint.probe.difference import Cause, Difference, Equivalence, Layer, number

if TYPE_CHECKING:
    from torch import Tensor, nn

    from acclint.probe.window import Window

__all__ = [
    "AccumulationError",
    "AccumulationWarning",
    "Cause",
    "Difference",
    "Equivalence",
    "Layer",
    "assert_accumulation_equivalent",
    "window",
]


class AccumulationError(AssertionError):
    """Accumulation is not the same as the large batch. `result` holds the numbers, `result.causes` the causes."""

    def __init__(self, result: Equivalence) -> None:
        super().__init__(describe(result))
        self.result = result


class AccumulationWarning(UserWarning):
    """Only a coarse dtype could be measured, in which rounding and a small mistake look alike."""


def assert_accumulation_equivalent(
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Any], Tensor],
    batch: Any,
    micro_batch_size: int,
    *,
    normalize: Literal["mean", "samples", "none"] | Callable[[Any, Any], float] = "mean",
    batchnorm: Literal["train", "frozen"] = "train",
    dropout: Literal["off", "on"] = "off",
    split: Callable[[Any, int], Sequence[Any]] | None = None,
    dtype: str | None = None,
    rtol: float | None = None,
) -> Equivalence:
    """Assert that accumulating over micro-batches gives the gradient of the whole batch; return what was measured.

    `loss_fn(model, batch)` returns the scalar loss that the training loop takes. `normalize` is what the loop does to
    the loss of a micro-batch: "mean" divides it by the number of micro-batches, "samples" weighs it with its share of
    the samples, "none" leaves it (losses that are sums), a callable `(micro_batch, batch) -> factor` does as it likes.

    The batch may be tensors in any nesting of dictionaries, lists, tuples and dataclasses, samples in the first
    dimension; for anything else pass `split(batch, micro_batch_size) -> micro-batches`. Dropout is off in the
    comparison; `batchnorm="frozen"` compares with running statistics, for models whose BatchNorm is known to differ.

    float64 decides: equal up to a relative error of 1e-6. Where it does not run, the model's own dtype is taken, and
    what can be rounding as well as a mistake passes with an `AccumulationWarning`. `dtype` names another one, `rtol`
    another bound.

    Raises `AccumulationError`, which names the cause: a wrong scale and its factor, micro-batches that count unequally,
    BatchNorm, a loss that is not a sum of per-sample terms, dropout. Raises `acclint.Problem` where nothing can be
    measured, ImportError without torch.
    """
    __tracebackhide__ = True
    _need_torch()
    from acclint.probe.equivalence import measure

    result = measure(
        model,
        loss_fn,
        batch,
        micro_batch_size,
        normalize=normalize,
        batchnorm=batchnorm,
        dropout=dropout,
        split=split,
        dtype=dtype,
    )
    if rtol is not None:
        if not result.difference.relative <= rtol:
            raise AccumulationError(result)
    elif result.verdict == "inconclusive" and "dropout" not in result.causes:
        warnings.warn(
            f"relative error {number(result.difference.relative)} in {result.dtype} may be rounding or a small mistake",
            AccumulationWarning,
            stacklevel=2,
        )
    elif result.verdict != "equal":
        raise AccumulationError(result)
    return result


def window(
    model: nn.Module,
    optimizer: Any,
    *,
    accumulation_steps: int | None = None,
    reduction: Literal["mean", "sum"] | None = None,
    restore: bool = True,
) -> AbstractContextManager[Window]:
    """Measure your own accumulation window: run it inside, then ask `w.contributions` or `w.assert_right()`.

    Inside the `with` block goes the code that makes one update or several: forward, backward, clipping, step, zeroing,
    as it is. `w.contributions` has a row per update and a column per backward call; 1 is right. `w.assert_right()`
    raises AssertionError with the cause: the loss not divided or divided twice, gradients zeroed inside the window or
    never, gradients added by hand, clipping inside the window, micro-batches of different sizes that count alike.

    `accumulation_steps` says how many micro-batches an update should have; without it, all backward calls of one line
    since the update before are its window. `reduction` says what the loss is where the graph does not show it (a loss
    in an autograd function of its own counts as a mean). With `restore=False` the training goes on from the window;
    otherwise model, optimizer and random numbers are put back. Schedulers and scalers are not.

    Raises `acclint.Problem` for a model or optimizer that is none, ImportError without torch.
    """
    _need_torch()
    from acclint.probe.window import watch

    return watch(model, optimizer, accumulation_steps, reduction, restore)


def describe(result: Equivalence) -> str:
    """The cause, the numbers and the layers that differ most, as an assertion shows them."""
    found = result.difference
    lines = [
        result.message,
        f"  {result.batch_size} samples in micro-batches of {result.micro_batch_size} "
        f"({len(result.sizes)}, normalize={result.normalize!r}), measured in {result.dtype}",
        f"  relative error {number(found.relative)}, ratio {number(found.ratio)}, cosine {number(found.cosine)}, "
        f"largest difference {number(found.maximum)}",
    ]
    for layer in result.differing[:5]:
        part = layer.difference
        lines.append(f"  {layer.name}: relative error {number(part.relative)}, ratio {number(part.ratio)}")
    if len(result.differing) > 5:
        lines.append(f"  and {len(result.differing) - 5} more")
    return "\n".join(lines)


def _need_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise ImportError(f"acclint.testing needs torch ({error}): pip install acclint[probe]") from error
