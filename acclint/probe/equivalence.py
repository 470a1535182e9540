"""Is accumulation the same as the large batch? One model, one batch, two gradients at the same weights, and the cause.

Both gradients are taken at identical weights and before any update: two trajectories drift apart by rounding alone
(docs/equivalence.md). float64 decides, where the model and the loss can be run in it. Nothing of the model is changed:
see `acclint.probe.state`.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from acclint import Problem
from acclint.probe.difference import (
    BANDS,
    RESIDUAL,
    Cause,
    Difference,
    Equivalence,
    Layer,
    explain_factor,
    listed,
    number,
)
from acclint.probe.state import untouched

LossFunction = Callable[[nn.Module, Any], Tensor]
Split = Callable[[Any, int], Sequence[Any]]
Normalize = Literal["mean", "samples", "none"] | Callable[[Any, Any], float]
Gradients = dict[str, Tensor]

SAMPLED_ENTRIES = 4096  # of all parameters together, or 32 for each micro-batch if that is more
_EVEN = 0.02  # contributions that differ by less count as equal


class EquivalenceError(Problem):
    """The two gradients cannot be computed or compared as asked."""


def measure(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: Any,
    micro_batch_size: int,
    *,
    normalize: Normalize = "mean",
    batchnorm: Literal["train", "frozen"] = "train",
    dropout: Literal["off", "on"] = "off",
    split: Split | None = None,
    dtype: str | None = None,
) -> Equivalence:
    """Compare the gradient accumulated over micro-batches with that of the whole batch.

    `loss_fn(model, batch)` returns the scalar loss. `normalize` is what the training loop does with the loss of a
    micro-batch: "mean" divides it by the number of micro-batches, "samples" weighs it with its share of the samples,
    "none" leaves it, a callable `(part, batch) -> factor` does something else. `batchnorm="frozen"` uses running
    statistics, `dropout="on"` leaves dropout as the model has it. `split(batch, micro_batch_size)` returns the
    micro-batches where the batch is more than tensors with the samples in their first dimension. `dtype` is the name of
    the one to compute in; by default float64, else the model's own where float64 does not run.

    Raises `EquivalenceError` where nothing can be measured; what `loss_fn` raises in the model's own dtype comes out.
    """
    case = _Case(model, loss_fn, batch, micro_batch_size, normalize, batchnorm, dropout, split)
    if dtype is not None:
        return case.measure(dtype_named(dtype))
    try:
        return case.measure(torch.float64)
    except EquivalenceError:
        raise
    except Exception:
        return case.measure(None)


class _Case:
    """One question, and the way to its answer."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        batch: Any,
        micro_batch_size: int,
        normalize: Normalize,
        batchnorm: str,
        dropout: str,
        split: Split | None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise EquivalenceError(f"the model must be a torch.nn.Module, not {type(model).__name__}")
        if not callable(loss_fn):
            raise EquivalenceError(f"the loss must be a function (model, batch) -> loss, not {type(loss_fn).__name__}")
        if normalize not in ("mean", "samples", "none") and not callable(normalize):
            raise EquivalenceError(f'normalize must be "mean", "samples", "none" or a callable, not {normalize!r}')
        if any(nn.parameter.is_lazy(p) for p in model.parameters()):
            raise EquivalenceError("the model has lazy parameters: call it once before it is measured")
        self.model = model
        self.loss_fn = loss_fn
        self.batch = batch
        self.normalize = normalize
        self.batchnorm = batchnorm
        self.dropout = dropout
        self.parts = split_batch(batch, micro_batch_size, split)
        self.sizes = self._measure_sizes(split is not None)

    def _measure_sizes(self, lenient: bool) -> tuple[int, ...]:
        """Samples of each micro-batch; of those that the user cut, they need only be known if they are weighed."""
        try:
            return tuple(_size_of(part) for part in self.parts)
        except EquivalenceError:
            if not lenient or self.normalize == "samples":
                raise
            return (1,) * len(self.parts)

    def measure(self, dtype: torch.dtype | None) -> Equivalence:
        """In this dtype; None is the model's own."""
        with untouched(self.model):
            name = _prepare(self.model, dtype)
            batch = converted(self.batch, dtype)
            parts = [converted(part, dtype) for part in self.parts]
            with _eager():
                return self._compare(batch, parts, name)

    def _compare(self, batch: Any, parts: list[Any], dtype: str) -> Equivalence:
        weights = self._weights(batch, parts)
        whole, accumulated, micro, used_batchnorm = self._run(batch, parts, weights, self.batchnorm == "frozen")
        total, layers = difference(accumulated, whole)
        result = Equivalence(
            batch_size=sum(self.sizes),
            sizes=self.sizes,
            normalize=self.normalize if isinstance(self.normalize, str) else "custom",
            dtype=dtype,
            verdict=total.verdict(dtype),
            causes=("rounding",),
            message="accumulation is the same as the large batch, up to rounding" + self._mode_note(),
            difference=total,
            layers=layers,
            contributions=_contributions(micro, weights),
            factor=None,
            frozen=None,
        )
        if result.verdict == "equal":
            return dataclasses.replace(result, contributions=(1.0,) * len(parts))
        if self._is_random(batch, dtype):
            return self._explain_randomness(result, batch)
        if used_batchnorm:
            frozen, accumulated, micro, _ = self._run(batch, parts, weights, True)
            without, _ = difference(accumulated, frozen)
            result = dataclasses.replace(result, frozen=without, contributions=_contributions(micro, weights))
            if without.verdict(dtype) == "equal":
                return _explained(
                    dataclasses.replace(result, contributions=(1.0,) * len(parts)),
                    ("batchnorm",),
                    f"differs only through BatchNorm, which sees {self.sizes[0]} samples at a time instead of "
                    f"{result.batch_size}: relative error {number(total.relative)}, and "
                    f"{number(without.relative)} with frozen statistics",
                )
            rest = self._explain(result, without)
            return _explained(
                rest, (*rest.causes, "batchnorm"), f"{rest.message}; it differs through BatchNorm besides"
            )
        return self._explain(result, total)

    def _explain(self, result: Equivalence, found: Difference) -> Equivalence:
        """Why two deterministic gradients differ that no batch statistics separate."""
        k = len(self.parts)
        if found.is_scaled(result.dtype):
            message = explain_factor(found.ratio, k)
            if result.contributions is None:
                result = dataclasses.replace(result, contributions=(found.ratio,) * k)
            return dataclasses.replace(_explained(result, ("scale",), message), factor=found.ratio)
        shares = result.contributions
        if shares is not None:
            by_samples = [share * size for share, size in zip(shares, self.sizes, strict=True)]
            text = f"the micro-batches count {listed(shares)} times as much as they should"
            if _is_even(by_samples) and not _is_even(self.sizes):
                why = f'of {listed(self.sizes)} samples count alike; weigh them by samples (normalize="samples")'
                return _explained(result, ("weights",), f"{text}: micro-batches {why}")
            why = "is divided by its own number of elements (tokens, class weights); divide by that of the whole batch"
            return _explained(result, ("weights",), f"{text}: each {why}")
        return _explained(
            result,
            ("coupled",),
            "the loss is not a sum of per-sample terms: the gradient of the whole batch is no weighted sum of those "
            f"of the micro-batches (relative error {number(found.relative)}, cosine {number(found.cosine)})",
        )

    def _explain_randomness(self, result: Equivalence, batch: Any) -> Equivalence:
        if self.dropout == "off":
            raise EquivalenceError(
                "two runs of the same batch give different gradients with dropout off: something else in the model or "
                "the loss is random; seed it inside the loss function"
            )
        self.dropout = "off"
        try:
            still = self._is_random(batch, result.dtype)
        finally:
            self.dropout = "on"
        if still:
            raise EquivalenceError("the model or the loss is random, and not only through dropout; seed it")
        return dataclasses.replace(
            result,
            verdict="inconclusive",
            causes=("dropout",),
            contributions=None,
            message="dropout was on: two runs of the same batch differ already, so nothing can be said; "
            'compare with dropout="off"',
        )

    def _mode_note(self) -> str:
        layers = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
        quiet = not any(m.training for m in self.model.modules() if isinstance(m, layers))
        return " (the model is in eval mode)" if quiet and not self.model.training else ""

    def _weights(self, batch: Any, parts: list[Any]) -> list[float]:
        if self.normalize == "none":
            return [1.0] * len(parts)
        if self.normalize == "mean":
            return [1 / len(parts)] * len(parts)
        if self.normalize == "samples":
            return [size / sum(self.sizes) for size in self.sizes]
        assert callable(self.normalize)
        return [float(self.normalize(part, batch)) for part in parts]

    def _run(
        self, batch: Any, parts: list[Any], weights: list[float], frozen: bool
    ) -> tuple[Gradients, Gradients, list[Tensor], bool]:
        """The whole gradient, the accumulated one, samples of the whole and each micro-batch's, was BatchNorm used."""
        with self._modes(frozen) as batchnorm:
            whole, _ = self._gradient([batch], [1.0])
            sampler = Sampler(whole, len(parts))
            accumulated, micro = self._gradient(parts, weights, sampler)
        if not any(bool(g.any()) for g in whole.values()):
            raise EquivalenceError("the gradient of the whole batch is zero: there is nothing to compare")
        return whole, accumulated, [sampler(whole), *micro], batchnorm.used

    def _gradient(
        self, parts: list[Any], weights: list[float], sampler: Sampler | None = None
    ) -> tuple[Gradients, list[Tensor]]:
        """Accumulate as a training loop does. Buffers start from the same values each time."""
        model = self.model
        params = [p for p in model.parameters() if p.requires_grad]
        buffers = [(b, b.detach().clone()) for b in model.buffers()]
        for p in params:
            p.grad = None
        micro: list[Tensor] = []
        before: Tensor | float = 0.0
        try:
            for part, weight in zip(parts, weights, strict=True):
                loss = self.loss_fn(model, part)
                _check_loss(loss)
                torch.autograd.backward(loss * weight)
                found = {name: p.grad.detach() for name, p in model.named_parameters() if p.grad is not None}
                if sampler is not None:
                    after = sampler(found)
                    micro.append(after - before)
                    before = after
        finally:
            with torch.no_grad():
                for buffer, values in buffers:
                    buffer.copy_(values)
            for p in params:
                p.grad = None
        if not found:
            raise EquivalenceError(
                "no parameter of the model got a gradient: the loss function must use the model that it is given"
            )
        for name, grad in found.items():
            if not bool(torch.isfinite(grad).all()):
                raise EquivalenceError(f"the gradient of {name} is not finite")
        return found, micro

    def _is_random(self, batch: Any, dtype: str) -> bool:
        """Whether the same batch gives two gradients under two seeds, farther apart than rounding."""
        found = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            with self._modes(self.batchnorm == "frozen"):
                found.append(self._gradient([batch], [1.0])[0])
        return difference(*found)[0].verdict(dtype) != "equal"

    @contextmanager
    def _modes(self, frozen: bool) -> Iterator[_Deterministic]:
        off = self.dropout == "off"
        with (
            _no_inner_dropout(self.model) if off else contextlib.nullcontext(),
            _Deterministic(dropout=off, frozen=frozen) as mode,
        ):
            yield mode


# --- two gradients ---------------------------------------------------------------------------------------------------


def difference(a: Gradients, b: Gradients) -> tuple[Difference, tuple[Layer, ...]]:
    """How far a is from the reference b: as a whole and per tensor. A tensor that one lacks counts as zero."""
    pairs = {}
    for name in dict.fromkeys((*b, *a)):
        like = b[name] if name in b else a[name]
        zero = torch.zeros_like(like)
        pairs[name] = (_flat(a.get(name, zero)), _flat(b.get(name, zero)))
    sums = {name: _Sums.of(x, y) for name, (x, y) in pairs.items()}
    total = _Sums.joined(list(sums.values()))
    squared = total.squared or 1.0
    layers = tuple(Layer(name, s.difference(), s.squared / squared) for name, s in sums.items())
    return total.difference(), layers


def _flat(tensor: Tensor) -> Tensor:
    dense = tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()
    if dense.is_complex():
        dense = torch.view_as_real(dense.resolve_conj())
    return dense.reshape(-1).double()


@dataclasses.dataclass(frozen=True)
class _Sums:
    """What a difference is computed from; sums of several tensors can be added."""

    maximum: float
    averages: tuple[float, ...]
    squared: float
    aa: float
    ab: float
    bb: float

    @classmethod
    def of(cls, a: Tensor, b: Tensor) -> _Sums:
        gap = (a - b).abs()
        empty = not gap.numel()
        return cls(
            0.0 if empty else float(gap.max()),
            (0.0 if empty else float(gap.mean()),),
            float(gap @ gap),
            float(a @ a),
            float(a @ b),
            float(b @ b),
        )

    @classmethod
    def joined(cls, parts: Sequence[_Sums]) -> _Sums:
        return cls(
            max((p.maximum for p in parts), default=0.0),
            tuple(average for p in parts for average in p.averages),
            math.fsum(p.squared for p in parts),
            math.fsum(p.aa for p in parts),
            math.fsum(p.ab for p in parts),
            math.fsum(p.bb for p in parts),
        )

    def difference(self) -> Difference:
        same = self.squared == 0
        ratio = self.ab / self.bb if self.bb else (1.0 if same else math.inf)
        norms = math.sqrt(self.aa * self.bb)
        cosine = min(max(self.ab / norms, -1.0), 1.0) if norms else (1.0 if same else 0.0)
        # |a - ratio b|^2 = |a - b|^2 - (ratio - 1)^2 |b|^2, since both differ by a multiple of b from the same foot
        left = max(self.squared - (ratio - 1) ** 2 * self.bb, 0.0) if self.bb else self.aa
        scaled = ratio * ratio * self.bb
        return Difference(
            maximum=self.maximum,
            average=math.fsum(self.averages) / max(len(self.averages), 1),
            relative=math.sqrt(self.squared / self.bb) if self.bb else (0.0 if same else math.inf),
            ratio=ratio,
            cosine=cosine,
            rescaled=math.sqrt(left / scaled) if scaled else (0.0 if same else math.inf),
        )


# --- contributions ---------------------------------------------------------------------------------------------------


class Sampler:
    """Evenly spread entries of named gradients, as one float64 vector on the CPU; 0 where there is no gradient."""

    def __init__(self, like: Mapping[str, Tensor], k: int) -> None:
        total = sum(tensor.numel() for tensor in like.values())
        stride = max(total // max(SAMPLED_ENTRIES, 32 * k), 1)
        self.indices = {name: _spread(tensor.numel(), stride) for name, tensor in like.items()}

    def __call__(self, gradients: Mapping[str, Tensor | None]) -> Tensor:
        pieces = []
        for name, index in self.indices.items():
            grad = gradients.get(name)
            if grad is None:
                pieces.append(torch.zeros(len(index), dtype=torch.float64))
            else:
                dense = grad.detach().to_dense() if grad.layout is not torch.strided else grad.detach()
                dense = torch.view_as_real(dense)[..., 0] if dense.is_complex() else dense
                pieces.append(dense.reshape(-1)[index.to(dense.device)].double().cpu())
        return torch.cat(pieces)


def _spread(size: int, stride: int) -> Tensor:
    """Indices of one in `stride` entries, at least one in golden ratio steps, which hit no column of a matrix alone."""
    if stride == 1 or size <= 1:
        return torch.arange(size)
    step = int(size * 0.6180339887) | 1
    while math.gcd(step, size) != 1:
        step += 1
    return torch.arange(max(size // stride, 1)) * step % size


def _contributions(samples: list[Tensor], weights: list[float]) -> tuple[float, ...] | None:
    """How much each micro-batch counts, relative to what it should: 1/c from whole = sum of c * (weighted micro).

    `samples` are those of the whole gradient and of each weighted micro-batch gradient. None where no such positive c
    exist, or where they are not unique.
    """
    target, *micro = samples
    columns = torch.stack(micro, dim=1)
    norms = columns.norm(dim=0)
    if len(target) < 2 * len(micro) or not bool((norms > 0).all()) or not bool(target.any()):
        return None
    solution = torch.linalg.lstsq(columns / norms, target.unsqueeze(1), driver="gelsd")
    if int(solution.rank) < len(micro):
        return None
    residual = float((columns / norms @ solution.solution - target.unsqueeze(1)).norm() / target.norm())
    factors = (solution.solution.squeeze(1) / norms).tolist()
    if residual > RESIDUAL or any(factor <= 0 for factor in factors):
        return None
    return tuple(1 / factor for factor in factors)


def _is_even(values: Sequence[float]) -> bool:
    return max(values) - min(values) <= _EVEN * abs(max(values))


def _explained(result: Equivalence, causes: tuple[Cause, ...], message: str) -> Equivalence:
    return dataclasses.replace(result, causes=causes, message=message)


# --- what must not differ between the two runs -----------------------------------------------------------------------


def _dropout_functions() -> dict[Any, inspect.Signature]:
    names = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
    found = {function: inspect.signature(function) for name in names if (function := getattr(F, name, None))}
    plain = inspect.signature(lambda input, p, train: None)
    for name in ("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"):
        found[getattr(torch, name)] = plain
    return found


_DROPOUTS = _dropout_functions()
_BATCH_NORM = inspect.signature(F.batch_norm)
_ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p")


class _Deterministic(TorchFunctionMode):  # type: ignore[misc]  # torch is untyped here
    """Switches functions of torch: dropout does nothing, batch_norm does not look at the batch.

    Functions, not modules, since models call `F.dropout(x, training=self.training)` as well.
    """

    def __init__(self, dropout: bool, frozen: bool) -> None:
        super().__init__()
        self.dropout = dropout
        self.frozen = frozen
        self.used = False  # BatchNorm with the statistics of the batch, frozen or not

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.dropout and func in _DROPOUTS:
            given = _DROPOUTS[func].bind(*args, **kwargs).arguments
            given["train" if "train" in _DROPOUTS[func].parameters else "training"] = False
            return func(**given)
        if self.dropout and func is F.scaled_dot_product_attention:
            named = dict(zip(_ATTENTION, args, strict=False))
            return func(*args[len(_ATTENTION) :], **{**named, **kwargs, "dropout_p": 0.0})
        if func is F.batch_norm:
            bound = _BATCH_NORM.bind(*args, **kwargs)
            bound.apply_defaults()
            given = bound.arguments
            if given["training"]:
                self.used = True
                if self.frozen:
                    return func(**_frozen(given))
        return func(*args, **kwargs)


def _frozen(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of batch_norm with running statistics; mean 0 and variance 1 where none are kept."""
    channels = given["input"].shape[1]
    like = given["input"].detach()
    mean = given["running_mean"] if given["running_mean"] is not None else like.new_zeros(channels)
    var = given["running_var"] if given["running_var"] is not None else like.new_ones(channels)
    return {**given, "running_mean": mean, "running_var": var, "training": False}


@contextmanager
def _no_inner_dropout(model: nn.Module) -> Iterator[None]:
    """Dropout that happens inside one call of torch, where no mode sees it."""
    inner = [m for m in model.modules() if isinstance(m, (nn.RNNBase, nn.MultiheadAttention))]
    saved = [m.dropout for m in inner]
    try:
        for m in inner:
            m.dropout = 0.0
        yield
    finally:
        for m, value in zip(inner, saved, strict=True):
            m.dropout = value


@contextmanager
def _eager() -> Iterator[None]:
    """Compiled models run uncompiled, where this torch can be told so."""
    stance = getattr(torch.compiler, "set_stance", None)
    with stance("force_eager") if stance is not None else contextlib.nullcontext():
        yield


def _prepare(model: nn.Module, dtype: torch.dtype | None) -> str:
    """Give the model other storage of this dtype, for `untouched` to take back; return the dtype's name."""
    own = [p.dtype for p in model.parameters() if p.requires_grad and p.is_floating_point()]
    if not own:
        raise EquivalenceError("the model has no parameter that requires a gradient")
    for p in (*model.parameters(), *model.buffers()):
        if getattr(p, "_post_accumulate_grad_hooks", None):
            p._post_accumulate_grad_hooks.clear()  # an optimizer that steps in backward
        if p.is_floating_point():
            p.grad = None
            p.data = p.data.to(dtype or p.dtype, copy=True)
    if dtype is not None:
        torch.set_default_dtype(dtype)
    coarsest = dtype or max(own, key=lambda d: torch.finfo(d).eps)
    name = str(coarsest).removeprefix("torch.")
    if name not in BANDS:
        raise EquivalenceError(f"gradients in {name} cannot be judged; use one of {', '.join(BANDS)}")
    return name


def dtype_named(name: str) -> torch.dtype:
    if name not in BANDS:
        raise EquivalenceError(f"unknown dtype {name!r}; use one of {', '.join(BANDS)}")
    found: torch.dtype = getattr(torch, name)
    return found


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor):
        raise EquivalenceError(f"the loss function must return a tensor, not {type(loss).__name__}")
    if loss.numel() != 1:
        raise EquivalenceError(f"the loss must be one number, not a tensor of shape {tuple(loss.shape)}; reduce it")
    if not loss.requires_grad:
        raise EquivalenceError("the loss does not depend on the model's parameters (detached, or under no_grad)")
    if not bool(torch.isfinite(loss.detach()).all()):
        raise EquivalenceError("the loss is not finite")


# --- batches ---------------------------------------------------------------------------------------------------------


def split_batch(batch: Any, micro_batch_size: int, split: Split | None = None) -> list[Any]:
    """The micro-batches of a batch: every tensor in it cut along the first dimension, the last one may be smaller."""
    if not isinstance(micro_batch_size, int) or micro_batch_size < 1:
        raise EquivalenceError(f"the micro-batch size must be a positive integer, not {micro_batch_size!r}")
    if split is not None:
        parts = list(split(batch, micro_batch_size))
        if not parts:
            raise EquivalenceError("split returned no micro-batches")
        return parts
    size = _size_of(batch)
    return [_cut(batch, start, min(start + micro_batch_size, size), size) for start in range(0, size, micro_batch_size)]


def batch_size(batch: Any) -> int:
    """Samples of a batch: the first dimension that all its tensors share."""
    return _size_of(batch)


def _size_of(batch: Any) -> int:
    sizes = {tensor.shape[0] for tensor in _tensors(batch) if tensor.dim()}
    if len(sizes) != 1:
        what = "holds no tensor" if not sizes else f"holds tensors of different first dimensions ({_ordered(sizes)})"
        raise EquivalenceError(f"the batch {what}: pass split=, a function (batch, micro_batch_size) -> micro-batches")
    size = int(next(iter(sizes)))
    if not size:
        raise EquivalenceError("the batch is empty")
    return size


def _ordered(sizes: set[int]) -> str:
    return ", ".join(str(size) for size in sorted(sizes))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same containers with `change` applied to everything in them; what it changes is not entered."""
    changed = change(value)
    if changed is not value:
        return changed
    if isinstance(value, Mapping):
        items = {key: _mapped(item, change) for key, item in value.items()}
        if type(value) is dict:
            return items
        new: Any = copy.copy(value)  # BatchEncoding and its like, which are no plain dict
        new.update(items)
        return new
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(item, change) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(item, change) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        return dataclasses.replace(value, **{name: _mapped(getattr(value, name), change) for name in fields})
    return value


def _cut(batch: Any, start: int, stop: int, size: int) -> Any:
    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[start:stop] if value.dim() else value
        if isinstance(value, list) and len(value) == size and next(_tensors(value), None) is None:
            return value[start:stop]  # texts or numbers, one a sample
        return value

    return _mapped(batch, cut)


def converted(batch: Any, dtype: torch.dtype | None) -> Any:
    """The batch with its floating point tensors in this dtype; None leaves them."""
    if dtype is None:
        return batch
    return _mapped(batch, lambda v: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v)


# --- several updates -------------------------------------------------------------------------------------------------


class Trajectory:
    """The weights of a model while it is trained on one batch again and again, as a whole or in parts."""

    def __init__(
        self, model: nn.Module, loss_fn: LossFunction, make_optimizer: Callable[[Any], Any], dtype: str
    ) -> None:
        self.model = model
        self.loss_fn = loss_fn
        self.make_optimizer = make_optimizer
        self.dtype = dtype_named(dtype)

    def run(self, parts: Sequence[Any], weights: Sequence[float], updates: Sequence[int]) -> dict[int, Gradients]:
        """The weights before the first update (0) and after each number of `updates`; the model stays as it was."""
        model = self.model
        with untouched(model), _eager():
            _prepare(model, self.dtype)
            torch.manual_seed(0)
            optimizer = self.make_optimizer([p for p in model.parameters() if p.requires_grad])
            parts = [converted(part, self.dtype) for part in parts]
            found = {0: _values(model)}
            for update in range(1, max(updates) + 1):
                optimizer.zero_grad()
                with _no_inner_dropout(model), _Deterministic(dropout=True, frozen=False):
                    for part, weight in zip(parts, weights, strict=True):
                        loss = self.loss_fn(model, part)
                        _check_loss(loss)
                        torch.autograd.backward(loss * weight)
                optimizer.step()
                if update in updates:
                    found[update] = _values(model)
        return found


def _values(model: nn.Module) -> Gradients:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
