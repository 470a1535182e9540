"""Sampled parameters, and the explanation of their `.grad` by the gradients that backward calls brought.

Hooks on sampled parameters see the gradient g_t that call t brings; between two looks at `.grad` the factors are found
by which old and new gradient entered it (1 and 1 in plain accumulation, 1/k after a division, the clip coefficient
...), and only where no such factors exist is `.grad` regressed on the gradients of all calls so far. Tracking from look
to look stays well conditioned however many calls there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

SAMPLED_ENTRIES = 256  # per tensor: 2,048 rows hold up to about a thousand unknowns

# How far `.grad` may be from its explanation, relative to its norm (rounding of a few operations in that dtype).
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}

get_grad: Callable[[Tensor], Tensor | None] = Tensor.grad.__get__
set_grad: Callable[[Tensor, Tensor | None], None] = Tensor.grad.__set__


class Leaf:
    """A sampled parameter: what its `.grad` was at the last look, and of which backward calls that consists."""

    __slots__ = (
        "broken",
        "coefs",
        "data",
        "error",
        "history",
        "index",
        "local",
        "norms",
        "owner",
        "param",
        "pending",
        "value",
    )

    def __init__(self, param: Tensor, owner: int) -> None:
        self.param = param
        self.owner = owner
        size = param.numel()
        # evenly spread entries; the golden ratio step avoids hitting one column of a matrix only
        self.index: Tensor | None = None
        if size > SAMPLED_ENTRIES:
            step = int(size * 0.6180339887) | 1
            while math.gcd(step, size) != 1:
                step += 1
            self.index = torch.tensor([i * step % size for i in range(SAMPLED_ENTRIES)], device=param.device)
        self.value: Tensor | None = None
        self.coefs: dict[int, float] = {}
        self.pending: int | None = None  # the call whose gradient is being added right now
        self.history: dict[int, Tensor] = {}
        self.norms: dict[int, float] = {}
        self.local: set[int] = set()  # calls whose gradients were not averaged over the processes
        self.error = 0.0
        self.broken = False  # too few entries to check the last explanation
        self.data: Tensor | None = None  # the parameter itself, for those updated by hand

    def sample(self, tensor: Tensor) -> Tensor:
        flat = tensor.detach()
        if flat.layout is not torch.strided:
            flat = flat.to_dense()
        flat = flat.reshape(-1)
        return flat.clone() if self.index is None else flat[self.index]

    def receive(self, t: int, grad: Tensor) -> None:
        """Backward call t brings `grad`; several times per call under reentrant checkpointing."""
        now = self.sample(grad)
        if t in self.history:
            now = now + self.history[t]
        self.history[t] = now
        self.local.add(t)
        self.norms[t] = float(now.double().square().sum())
        self.pending = t


# A leaf, its `.grad` now, and the call whose gradient is being added.
Item = tuple[Leaf, Tensor, int | None]


class Explanation:
    """Accounts for the `.grad` of several leaves at once.

    `everyone` are all sampled leaves, as replicas hand their gradients to others; `since` is the last backward call
    before the last step of the optimizer of these leaves, -1 before its first.
    """

    def __init__(self, everyone: Iterable[Leaf], since: int) -> None:
        self.everyone = list(everyone)
        self.since = since

    def explain(self, items: list[Item]) -> None:
        """Find the factors with which old and new gradients entered `.grad`, jointly, else leaf by leaf."""
        finite = []
        for leaf, now, pending in items:
            if bool(torch.isfinite(now).all()):
                finite.append((leaf, now, pending))
            else:  # an overflow that the scaler will skip: nothing to fit
                if pending is not None:
                    leaf.coefs[pending] = leaf.coefs.get(pending, 0.0) + 1.0
                leaf.value, leaf.error = now, math.nan
        if not finite or self._fit_factors(finite) or self._fit_calls(finite):
            return
        rest = [item for item in finite if item[1].numel() < 3 or not self._fit_factors([item])]
        if rest:
            self._fit_calls(rest, anyway=True)

    def _fit_factors(self, items: list[Item]) -> bool:
        """`.grad` = c * old + f * new for one pair (c, f)."""
        now, old, new = self._columns(items)
        tolerance = max(_TOLERANCE.get(n.dtype, 5e-2) for _, n, _ in items)
        scale = float(now.norm())
        rows = now.numel()
        total = old + new
        # plain accumulation first, as it is rounded
        if float((now - total).norm()) <= 4 * _eps(items) * (float(old.norm()) + float(new.norm())):
            self._apply(items, 1.0, 1.0, 0.0, broken=False)
            return True
        has_old, has_new = bool(old.any()), bool(new.any())
        fits: list[tuple[float, float, float, int]] = []
        if has_old or has_new:
            c = ratio(total, now)
            fits.append((c, c, float((now - c * total).norm()), 1))
        if has_old and has_new:
            f = ratio(new, now - old)
            fits.append((1.0, f, float((now - old - f * new).norm()), 1))
            c = ratio(old, now - new)
            fits.append((c, 1.0, float((now - new - c * old).norm()), 1))
            matrix = torch.stack([old / old.norm(), new / new.norm()], dim=1)
            solution = torch.linalg.lstsq(matrix, now, driver="gelsd")
            if rows > 2 and int(solution.rank) == 2:
                c, f = (float(x) for x in solution.solution)
                c, f = c / float(old.norm()), f / float(new.norm())
                fits.append((c, f, float((now - c * old - f * new).norm()), 2))
        for c, f, distance, unknowns in fits:
            if distance <= tolerance * scale and (rows > unknowns or len(items) == len(fits) == 1):
                self._apply(items, c, f, distance / scale, broken=rows <= unknowns)
                return True
        return False

    def _columns(self, items: list[Item]) -> tuple[Tensor, Tensor, Tensor]:
        now = torch.cat([n.double() for _, n, _ in items])
        old = torch.cat([torch.zeros_like(n).double() if x.value is None else x.value.double() for x, n, _ in items])
        new = torch.cat([torch.zeros_like(n).double() if t is None else x.history[t].double() for x, n, t in items])
        return now, old, new

    def _apply(self, items: list[Item], c: float, f: float, error: float, broken: bool) -> None:
        for leaf, now, pending in items:
            leaf.coefs = {t: c * a for t, a in leaf.coefs.items()}
            if pending is not None:
                leaf.coefs[pending] = leaf.coefs.get(pending, 0.0) + f
            leaf.value = now
            leaf.error = max(leaf.error, error)
            leaf.broken = leaf.broken or broken

    def _fit_calls(self, items: list[Item], anyway: bool = False) -> bool:
        """Regress `.grad` on the gradients of the calls of this window, then of more and more calls before it."""
        now = torch.cat([n.double() for _, n, _ in items])
        scale = float(now.norm())
        tolerance = 10 * max(_TOLERANCE.get(n.dtype, 5e-2) for _, n, _ in items)
        histories = [self._history_with_twins(leaf) for leaf, _, _ in items]
        best: tuple[float, dict[int, float], bool] | None = None
        for chosen in self._candidates(items, histories):
            columns = [
                torch.cat(
                    [h.get(t, torch.zeros_like(n)).double() for h, (_, n, _) in zip(histories, items, strict=True)]
                )
                for t in chosen
            ]
            matrix = torch.stack(columns, dim=1)
            norms = matrix.norm(dim=0)
            used = norms > 0
            if not bool(used.any()):
                continue
            matrix, norms = matrix[:, used] / norms[used], norms[used]
            ts = [t for t, u in zip(chosen, used.tolist(), strict=True) if u]
            if len(ts) >= now.numel() and not (anyway and best is None):
                break
            solution = torch.linalg.lstsq(matrix, now, driver="gelsd")
            distance = float((now - matrix @ solution.solution).norm()) / scale
            coefs = dict(zip(ts, (solution.solution / norms).tolist(), strict=True))
            checked = int(solution.rank) == len(ts) < now.numel()
            if best is None or (distance < best[0] and checked):
                best = (distance, coefs, checked)
            if distance <= tolerance and checked:
                break
        if best is None:
            best = (1.0, {}, True)
        distance, coefs, checked = best
        if (distance > tolerance or not checked) and not anyway:
            return False
        for (leaf, value, _), history in zip(items, histories, strict=True):
            leaf.coefs = {t: a for t, a in coefs.items() if abs(a) > 1e-9 and t in history}
            for t in leaf.coefs.keys() - leaf.history.keys():  # a twin's gradient counts as its own from now on
                leaf.history[t] = history[t]
                leaf.norms[t] = float(history[t].double().square().sum())
            leaf.value, leaf.error, leaf.broken = value, distance, not checked
        return True

    def _history_with_twins(self, leaf: Leaf) -> dict[int, Tensor]:
        """The gradients of a leaf, and of the only other leaf of that shape in calls that did not reach it.

        Replicas hand their gradients to the parameters that are stepped.
        """
        history: dict[int, Tensor | None] = {}
        for other in self.everyone:
            if other is not leaf and other.param.shape == leaf.param.shape:
                for t, grad in other.history.items():
                    history[t] = None if t in history else grad
        return {**{t: g for t, g in history.items() if g is not None}, **leaf.history}

    def _candidates(self, items: list[Item], histories: list[dict[int, Tensor]]) -> list[list[int]]:
        """Sets of calls to try, the likeliest first."""
        own = sorted({t for leaf, _, _ in items for t in leaf.history})
        every = sorted({t for history in histories for t in history})
        since = self.since
        held = {t for leaf, _, _ in items for t in leaf.coefs}
        sets = [[t for t in own if t > since or t in held], [t for t in every if t > since or t in held]]
        sets += [own[-n:] for n in (8, 16, 32, 64, 128, 256, len(own)) if n <= len(own)]
        sets.append(every)
        return [list(chosen) for chosen in dict.fromkeys(map(tuple, sets)) if chosen]


def has_gradient(leaf: Leaf) -> bool:
    grad = get_grad(leaf.param)
    return grad is not None and bool(leaf.sample(grad).any())


def ratio(column: Tensor, target: Tensor) -> float:
    square = float(column @ column)
    return float(column @ target) / square if square else 0.0


def _eps(items: list[Item]) -> float:
    eps: float = max(torch.finfo(now.dtype).eps for _, now, _ in items)
    return eps
