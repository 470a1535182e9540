"""What a factor in the gradient does to the updates of the optimizer at hand: measured on copies of it.

While a slice runs, the gradients of a few parameters are kept at each step. Afterwards two copies of the optimizer,
with its own settings and learning rates, are fed with them: once as they were, once divided by the factor. A
GradScaler's scale and gradient clipping are out of them by then; where the gradients are those of the user's own model,
they are clipped again, and the copies compared once more.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

ENTRIES = 20_000  # of the parameters of one optimizer, at most
STEPS = 32

Gradients = list[Tensor | None]


class Steps:
    """The kept steps of one optimizer: parameters at the first one, gradients and rates at each."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.groups: list[list[Tensor]] = []
        room = ENTRIES
        for group in optimizer.param_groups:
            taken = []
            for param in group["params"]:
                if param.numel() <= room:
                    taken.append(param)
                    room -= param.numel()
            self.groups.append(taken)
        self.begin = [[param.detach().clone() for param in group] for group in self.groups]
        self.gradients: list[list[Gradients]] = []
        self.rates: list[list[Any]] = []

    def keep(self, unclip: float) -> None:
        if len(self.gradients) < STEPS:
            self.gradients.append(
                [[None if p.grad is None else p.grad.detach() * unclip for p in group] for group in self.groups]
            )
            self.rates.append([group.get("lr") for group in self.optimizer.param_groups])


class Harm:
    """Keeps the steps of all optimizers from now on; one per process."""

    def __init__(self, clips: bool) -> None:
        self.steps: dict[int, Steps] = {}
        self.clips = clips  # else gradients are as they were before
        self.done = False
        self.limit: float | None = None
        self._unclip = 1.0
        clip = nn.utils.clip_grad_norm_

        def clipping(parameters: Any, max_norm: Any, *args: Any, **kwargs: Any) -> Any:
            norm = clip(parameters, max_norm, *args, **kwargs)
            if isinstance(max_norm, (int, float)) and isinstance(norm, Tensor) and args in ((), (2,), (2.0,)):
                self.limit = float(max_norm)
                self._unclip = max(1.0, float(norm) / (self.limit + 1e-6)) if self.clips and self.limit else 1.0
            return norm

        nn.utils.clip_grad_norm_ = clipping
        nn.utils.clip_grad.clip_grad_norm_ = clipping
        register_optimizer_step_pre_hook(self._step)

    def _step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self.done or len(args) > 1 or kwargs.get("closure") is not None:
            return
        found = self.steps.setdefault(id(optimizer), Steps(optimizer))
        found.keep(self._unclip)
        self._unclip = 1.0

    def result(self, factors: Mapping[int, int]) -> list[dict[str, Any]]:
        """Per optimizer: how large its updates are beside those with the gradients divided by the factor.

        `factors` are by the id of an optimizer. `ratio` is that of the sums of the norms of all updates, `difference`
        the sum of the norms of their differences relative to those that they should be, both without clipping; `clip`
        is the limit of the norm and `clipped_ratio` the ratio with it, None where it is not known.
        """
        self.done = True
        found = []
        with torch.no_grad():
            for key, steps in self.steps.items():
                factor = factors.get(key, 1)
                if factor == 1 or len(steps.gradients) < 2:
                    continue
                try:
                    ratio, difference = _compare(steps, factor, None)
                    clipped = _compare(steps, factor, self.limit)[0] if self.clips and self.limit else None
                except Exception:  # an optimizer that needs more than its settings
                    continue
                found.append(
                    {
                        "optimizer": type(steps.optimizer).__name__,
                        "factor": factor,
                        "updates": len(steps.gradients),
                        "ratio": ratio,
                        "difference": difference,
                        "clip": self.limit,
                        "clipped_ratio": clipped,
                    }
                )
        return found


def _compare(steps: Steps, factor: float, limit: float | None) -> tuple[float, float]:
    """`ratio` and `difference` of `Harm.result`."""
    as_is, right = _replay(steps, 1.0, limit), _replay(steps, 1 / factor, limit)
    total, other = (sum(float(update.norm()) for update in updates) for updates in (as_is, right))
    apart = sum(float((a - b).norm()) for a, b in zip(as_is, right, strict=True))
    return total / other, apart / other


def _replay(steps: Steps, scale: float, limit: float | None) -> list[Tensor]:
    """The update of each step by a copy of the optimizer that gets the gradients times `scale`, then clipped."""
    params = [[nn.Parameter(value.clone()) for value in group] for group in steps.begin]
    groups = [
        {**{k: v for k, v in old.items() if k not in ("params", "initial_lr")}, "params": new}
        for old, new in zip(steps.optimizer.param_groups, params, strict=True)
        if new
    ]
    make: Callable[..., torch.optim.Optimizer] = type(steps.optimizer)
    options = {} if "lr" not in inspect.signature(make).parameters else {"lr": float(steps.rates[0][0])}
    optimizer = make(groups, **options)
    every = [param for group in params for param in group]
    updates = []
    for gradients, rates in zip(steps.gradients, steps.rates, strict=True):
        flat: Sequence[Tensor | None] = [g for group in gradients for g in group]
        for param, gradient in zip(every, flat, strict=True):
            param.grad = None if gradient is None else gradient * scale
        if limit is not None:
            _clip(every, limit)
        for group, rate in zip(
            optimizer.param_groups, [r for r, new in zip(rates, params, strict=True) if new], strict=True
        ):
            group["lr"] = rate
        before = torch.cat([param.detach().flatten() for param in every])
        optimizer.step()
        updates.append(torch.cat([param.detach().flatten() for param in every]) - before)
    return updates


def _clip(params: Sequence[Tensor], limit: float) -> None:
    """As `clip_grad_norm_` does, without being seen by the instruments."""
    norm = sum(float(p.grad.square().sum()) for p in params if p.grad is not None) ** 0.5
    for param in params:
        if param.grad is not None and norm > limit:
            param.grad.mul_(limit / (norm + 1e-6))
