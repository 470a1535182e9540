"""The user's own accumulation window, measured while it runs: what every backward call contributes to each update.

The instruments are put in when the window begins and taken out when it ends. As in the ledger, two numbers are measured
and none is guessed: the factor with which the gradient of a backward call is in `.grad` when the optimizer steps, and
the weight with which its loss was sent backward.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from acclint.probe.difference import RESIDUAL, explain_factor, listed, number
from acclint.probe.equivalence import EquivalenceError, Sampler

# How losses are told from what scales and adds them: the same reading as the ledger's.
from acclint.probe.instruments.terms import describe, glue_inputs, own_divisor, uniform
from acclint.probe.state import untouched

TOLERANCE = 0.02  # a factor is confirmed within 2 %
_CLIPS = ("clip_grad_norm_", "clip_grad_value_")


@dataclass(frozen=True)
class BackwardCall:
    """One backward call: the weight of its loss, what a mean or sum was taken over, and where the call stands."""

    weight: float
    reduction: str
    elements: float | None
    place: tuple[str, int]


@dataclass(frozen=True)
class StepTaken:
    """One optimizer update: backward call -> factor in `.grad`; `stale` is what was there before the window began.

    `residual` is the relative distance of the gradient from that combination; `clipped` how often it was clipped.
    """

    factors: dict[int, float]
    stale: float
    residual: float
    first: int
    last: int
    clipped: int


class Window:
    """What happened in the window; complete once the `with` block is left."""

    def __init__(self, accumulation_steps: int | None = None, reduction: str | None = None) -> None:
        self.reduction = reduction
        self.accumulation_steps = accumulation_steps
        self.calls: list[BackwardCall] = []
        self.steps: list[StepTaken] = []
        self.left = 0  # backward calls after the last update
        self.done = False

    @property
    def contributions(self) -> list[list[float]]:
        """A row per update, a column per backward call; 1 is right, 0 is nothing.

        The window of an update is all backward calls since the update before, or `accumulation_steps` of them where
        that was given; calls that stand in different lines are further terms of one loss. Right is n/N of the elements
        of the window for mean losses. It is 1 for sums, or the one weight that they all have: what a sum is divided by
        is the user's choice (the tokens of the whole window, say).
        """
        return [self._row(step) for step in self.steps]

    def assert_right(self, scale: float = 1.0, tolerance: float = TOLERANCE) -> None:
        """Raise AssertionError, and name the cause, unless every update is the mean (or sum) of its whole window.

        `scale` is a factor that the loss has on purpose, `tolerance` how far a contribution may be from it.
        """
        __tracebackhide__ = True
        problem = self.problem(scale, tolerance)
        if problem is not None:
            rows = "\n".join(f"  update {i + 1}: {listed(row, 16)}" for i, row in enumerate(self.contributions))
            raise AssertionError(f"{problem}\ncontributions of the backward calls (1 is right):\n{rows or '  none'}")

    def problem(self, scale: float = 1.0, tolerance: float = TOLERANCE) -> str | None:
        """What is wrong with the window in one sentence, or None."""
        if not self.done:
            return "the window is still open: ask after the `with` block"
        if not self.calls:
            return "no backward call reached the optimizer's parameters in the window"
        if not self.steps:
            return f"the optimizer made no update in the window, after {_calls(len(self.calls))}"
        for at, step in enumerate(self.steps):
            problem = self._problem_of(step, scale, tolerance)
            if problem is not None:
                return problem if len(self.steps) == 1 else f"update {at + 1} of {len(self.steps)}: {problem}"
        if self.left:
            return f"{_calls(self.left)} after the last update: their gradients are in no update"
        return None

    def _problem_of(self, step: StepTaken, scale: float, tolerance: float) -> str | None:
        row = [value / scale for value in self._row(step)]
        inside = row[step.first : step.last]
        if not inside:
            return "the optimizer stepped without a backward call since the last update"
        if math.isnan(step.residual):
            return "the gradient is not finite"
        if step.residual > RESIDUAL:
            return (
                f"the gradient is no weighted sum of the micro-batches' gradients (residual {number(step.residual)}): "
                "parameters are zeroed, scaled or clipped one by one, or something else was added"
            )
        if abs(step.stale) > tolerance:
            return "gradients from before the window are in the update: nothing zeroed them"
        outside = [t for t, value in enumerate(row) if abs(value) > tolerance and not step.first <= t < step.last]
        if outside:
            return f"gradients of {_calls(len(outside))} of earlier updates are in it again: they were not zeroed"
        lengths = {len(group) for group in self._groups(step)}
        if self.accumulation_steps is not None and lengths != {self.accumulation_steps}:
            return f"it holds {_calls(max(lengths))} instead of {self.accumulation_steps}"
        if all(abs(value - 1) <= tolerance for value in inside):
            return None
        return self._explain(step, inside, max(lengths), tolerance)

    def _explain(self, step: StepTaken, inside: list[float], k: int, tolerance: float) -> str | None:
        lost = sum(t not in step.factors for t in range(step.first, step.last))
        if lost:
            return f"{lost} of {_calls(len(inside))} lost: the gradient is zeroed inside the window"
        if max(inside) - min(inside) <= tolerance * abs(max(inside)):
            if step.clipped and 0 < max(inside) < 1:
                return None  # the window as a whole was clipped, which is no mistake
            about = explain_factor(sum(inside) / len(inside), k)
            return f"{about}; if the loss has that factor on purpose: assert_right(scale=...)"
        if step.clipped:
            return (
                "the micro-batches count unequally: the gradient is clipped inside the window, not once before the step"
            )
        sizes = [self.calls[t].elements for t in range(step.first, step.last)]
        known = [size for size in sizes if size is not None]
        if len(set(sizes)) > 1:
            return (
                f"micro-batches of {', '.join(map(number, known[:8]))} elements do not count as their "
                "elements do: divide each loss by the elements of the whole window"
            )
        return "the micro-batches count unequally"

    def _groups(self, step: StepTaken) -> list[list[int]]:
        """The backward calls of an update's window, those of one place together."""
        inside = list(range(step.first, step.last))
        if len(inside) == self.accumulation_steps:
            return [inside]
        places: dict[tuple[str, int], list[int]] = {}
        for t in inside:
            places.setdefault(self.calls[t].place, []).append(t)
        return list(places.values())

    def _row(self, step: StepTaken) -> list[float]:
        row = [step.factors.get(t, 0.0) * call.weight for t, call in enumerate(self.calls)]
        inside = range(step.first, step.last)
        for group in self._groups(step):
            k = self.accumulation_steps or len(group)
            sizes = [self.calls[t].elements or 0 for t in group]
            mean = sum(sizes) / len(sizes) if all(sizes) else 0.0
            sums = [row[t] for t in group if self.calls[t].reduction == "sum" and row[t]]
            for t in group:
                if self.calls[t].reduction == "sum":
                    row[t] /= _own_scale(sums, k)
                else:
                    row[t] *= k * (mean / sizes[group.index(t)] if mean else 1.0)
            for t, call in enumerate(self.calls):  # what came in from other windows, in the same measure
                if t not in inside and call.place == self.calls[group[0]].place and call.reduction != "sum":
                    row[t] *= k
        return row


def _own_scale(weights: list[float], k: int) -> float:
    """What sums are multiplied with on purpose: their one weight, unless that is 1 or the 1/k of a mistake."""
    if not weights or max(weights) - min(weights) > 1e-4 * abs(max(weights)):
        return 1.0
    return 1.0 if any(abs(weights[0] - common) <= 1e-4 for common in (1.0, 1 / k)) else weights[0]


def _calls(count: int) -> str:
    return f"{count} backward call{'s' if count != 1 else ''}"


@contextmanager
def watch(
    model: nn.Module,
    optimizer: Any,
    accumulation_steps: int | None = None,
    reduction: str | None = None,
    restore: bool = True,
) -> Iterator[Window]:
    """Record what happens inside; see `acclint.testing.window`."""
    if not isinstance(model, nn.Module):
        raise EquivalenceError(f"the model must be a torch.nn.Module, not {type(model).__name__}")
    inner = optimizer
    while not isinstance(inner, Optimizer) or not hasattr(inner, "_optimizer_step_pre_hooks"):
        inner = getattr(inner, "optimizer", None)  # accelerate's and others wrap it
        if inner is None:
            raise EquivalenceError(f"the optimizer must be a torch.optim.Optimizer, not {type(optimizer).__name__}")
    window = Window(accumulation_steps, reduction)
    recorder = _Recorder(window, inner)
    with untouched(model, inner) if restore else ExitStack(), recorder.installed():
        yield window
    window.done = True


class _Recorder:
    """Follows `.grad` of sampled parameters from look to look, as a combination of the backward calls so far."""

    def __init__(self, window: Window, optimizer: Any) -> None:
        self.window = window
        self.optimizer = optimizer
        self.params = {str(i): p for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
        if not self.params:
            raise EquivalenceError("the optimizer has no parameters")
        self.sampler = Sampler({name: p.detach() for name, p in self.params.items()}, 64)
        self.eps = max(torch.finfo(p.dtype).eps for p in self.params.values() if p.is_floating_point())
        self.value = self._look()
        self.stale = self.value.clone()
        self.factors: dict[int, float] = {}
        self.stale_factor = 1.0 if bool(self.value.any()) else 0.0
        self.gradients: list[Tensor] = []
        self.incoming: dict[str, Tensor] = {}
        self.residual = 0.0
        self.clipped = 0
        self.depth = 0
        self.first = 0
        self.replaying = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name, p in self.params.items():
                if p.requires_grad:
                    stack.callback(p.register_hook(functools.partial(self._receive, name)).remove)
            stack.callback(register_optimizer_step_pre_hook(self._before_step).remove)
            stack.enter_context(_replaced(torch.autograd, "backward", self._backward(torch.autograd.backward)))
            for name in _CLIPS:
                original = getattr(nn.utils, name)
                stack.enter_context(_replaced_everywhere(original, self._clip(original)))
            yield
            self.window.left = len(self.gradients) - self.first

    def _look(self) -> Tensor:
        return self.sampler({name: p.grad for name, p in self.params.items()})

    def _is_close(self, a: Tensor, b: Tensor) -> bool:
        """Equal up to the rounding of one addition in the gradients' own dtype."""
        return bool(torch.isfinite(a).all()) and float((a - b).norm()) <= 8 * self.eps * float(b.norm())

    def _receive(self, name: str, grad: Tensor) -> None:
        if self.depth:
            known = self.incoming.get(name)  # several times under reentrant checkpointing
            self.incoming[name] = grad.detach() if known is None else known + grad.detach()

    def _backward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            if self.depth or self.replaying:
                return original(tensors, *args, **kwargs)
            self._observe()
            self.incoming = {}
            roots = [tensors] if isinstance(tensors, Tensor) else list(tensors)
            terms = _Terms(roots)
            self.depth += 1
            try:
                result = original(tensors, *args, **kwargs)
            finally:
                self.depth -= 1
                terms.remove()
            if self.incoming:
                self._add(terms)
            return result

        return backward

    def _add(self, terms: _Terms) -> None:
        new = self.sampler(self.incoming)
        self.incoming = {}
        t = len(self.gradients)
        self.gradients.append(new)
        call = terms.call(_place())
        if self.window.reduction is not None:
            call = replace(call, reduction=self.window.reduction)
        self.window.calls.append(call)
        expected = self.value + new
        self.factors[t] = 1.0
        now = self._look()
        self.value = expected
        if not self._is_close(now, expected):  # zeroed, scaled or stepped in a hook of backward
            self._explain(now)
        self.value = now

    def _observe(self) -> None:
        """Account for what happened to `.grad` since the last look."""
        now = self._look()
        if not self._is_close(now, self.value):
            self._explain(now)
        self.value = now

    def _explain(self, now: Tensor) -> None:
        if not bool(torch.isfinite(now).all()):
            self.residual = math.nan
            return
        if not bool(now.any()):
            self.factors, self.stale_factor, self.residual = {}, 0.0, 0.0
            return
        square = float(self.value @ self.value)
        ratio = float(now @ self.value) / square if square else 0.0
        if float((now - ratio * self.value).norm()) <= RESIDUAL / 10 * float(now.norm()):
            self.factors = {t: ratio * a for t, a in self.factors.items()}
            self.stale_factor *= ratio
            return
        self._regress(now)

    def _regress(self, now: Tensor) -> None:
        """As a combination of all gradients so far and of what was there before the window."""
        columns = [*self.gradients, self.stale]
        norms = [float(c.norm()) for c in columns]
        used = [i for i, norm in enumerate(norms) if norm > 0]
        matrix = torch.stack([columns[i] / norms[i] for i in used], dim=1)
        solution = torch.linalg.lstsq(matrix, now.unsqueeze(1), driver="gelsd").solution
        self.residual = float((matrix @ solution - now.unsqueeze(1)).norm() / now.norm())
        found = {i: float(solution[at, 0]) / norms[i] for at, i in enumerate(used)}
        self.stale_factor = found.pop(len(self.gradients), 0.0)
        self.factors = {t: a for t, a in found.items() if abs(a) > 1e-6}

    def _clip(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def clip(*args: Any, **kwargs: Any) -> Any:
            self._observe()
            result = original(*args, **kwargs)
            if not self._is_close(self._look(), self.value):
                self.clipped += 1
            return result

        return clip

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        if optimizer is not self.optimizer:
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            self._step()
            return None
        evaluated = False

        @functools.wraps(closure)
        def measured(*a: Any, **k: Any) -> Any:
            nonlocal evaluated
            if not evaluated:
                evaluated = True
                value = closure(*a, **k)
                self._step()
                return value
            self.replaying = True  # what LBFGS evaluates again is no other update
            try:
                return closure(*a, **k)
            finally:
                self.replaying = False
                self.value = self._look()

        if "closure" in kwargs:
            return args, {**kwargs, "closure": measured}
        return (args[0], measured, *args[2:]), kwargs

    def _step(self) -> None:
        self._observe()
        scale = getattr(self.optimizer, "grad_scale", None)  # a fused optimizer unscales by itself
        unscale = 1 / float(scale) if scale is not None else 1.0
        self.window.steps.append(
            StepTaken(
                {t: a * unscale for t, a in self.factors.items()},
                self.stale_factor,
                self.residual,
                self.first,
                len(self.gradients),
                self.clipped,
            )
        )
        self.first = len(self.gradients)
        self.clipped = 0


class _Terms:
    """The scalars that a backward call starts from, with hooks on their nodes that see the weights."""

    def __init__(self, roots: list[Tensor]) -> None:
        self.weights: dict[Any, float] = {}
        self.found: list[tuple[Any, tuple[Any, ...], tuple[str, str, float | None, list[float], int]]] = []
        self.hooks: list[Any] = []
        seen: set[Any] = set()
        stack: list[tuple[Any, tuple[Any, ...]]] = [(root.grad_fn, ()) for root in roots if root.grad_fn is not None]
        while stack:
            node, path = stack.pop()
            if node in seen or hasattr(node, "variable"):
                continue
            seen.add(node)
            self.hooks.append(node.register_prehook(functools.partial(self._see, node)))
            below = glue_inputs(node)
            if below is None:
                self.found.append((node, path, describe(node)))
            else:
                stack += [(n, (node, *path)) for n in below]

    def _see(self, node: Any, grads: tuple[Tensor | None, ...]) -> None:
        grad = next((g for g in grads if g is not None), None)
        if grad is not None:
            self.weights[node] = uniform(grad)

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def call(self, place: tuple[str, int]) -> BackwardCall:
        """The loss of the largest weight speaks for the call; further terms weigh as the user chose."""
        terms: list[BackwardCall] = []
        for node, path, (_, reduction, elements, divisors, _) in self.found:
            weight = self.weights.get(node)
            if weight is None:
                continue
            if reduction == "sum":
                divisor = self._own_division(node, path, divisors)
                if divisor is not None:
                    reduction, weight = "mean", weight * divisor
                    elements = round(divisor)
            terms.append(BackwardCall(weight, reduction, elements, place))
        return max(terms, key=lambda term: abs(term.weight), default=BackwardCall(1.0, "other", None, place))

    def _own_division(self, node: Any, path: tuple[Any, ...], divisors: list[float]) -> float | None:
        """A sum that is divided by the number of what it sums is a mean."""
        below = self.weights[node]
        for above in path:
            weight = self.weights.get(above)
            if not weight:
                return None
            factor = below / weight
            if factor and abs(abs(factor) - 1) > 1e-7:
                return own_divisor(1 / factor, divisors)
            below = weight
        return None


def _place() -> tuple[str, int]:
    """File and line of the innermost frame of the user's own code."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_library(frame):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def _is_library(frame: FrameType) -> bool:
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return package in ("torch", "acclint", "contextlib") or "site-packages" in frame.f_code.co_filename


@contextmanager
def _replaced(target: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(target, name)
    setattr(target, name, value)
    try:
        yield
    finally:
        setattr(target, name, original)


@contextmanager
def _replaced_everywhere(original: Any, value: Any) -> Iterator[None]:
    """In every module that holds the function under any name, as `from torch.nn.utils import ...` does."""
    with ExitStack() as stack:
        for module in list(sys.modules.values()):
            for name in [n for n, v in list(getattr(module, "__dict__", {}).items()) if v is original]:
                stack.enter_context(_replaced(module, name, value))
        yield
