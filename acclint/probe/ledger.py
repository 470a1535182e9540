"""The ledger: instruments on torch that record what every optimizer update was made of.

`Ledger.install()` patches torch once, in the server; nothing is recorded until `start()` in the child that runs the
script. Three things are measured, never guessed:

- how much of each backward call is in `.grad` at a step. Hooks on sampled parameters see the gradient g_t that call t
  brings; between two looks at `.grad` the ledger finds the factors by which old and new gradient entered it (1 and 1
  in plain accumulation, 1/k after a division, the clip coefficient ...), and only where no such factors exist does it
  regress `.grad` on the gradients of all calls so far. Tracking from look to look stays well conditioned however many
  calls there are;
- with which weight each loss was sent backward: a pre-hook on the autograd node that made the loss a scalar;
- which autograd graphs are alive: a sentinel object in the metadata of graph nodes dies with its graph.

Private attributes of torch (`Node.metadata`, `_input_metadata`, `_saved_*`) are used where they exist.
"""

from __future__ import annotations

import ast
import functools
import gc
import inspect
import math
import os
import re
import sys
import sysconfig
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
import torch.optim.lr_scheduler
import torch.optim.swa_utils
import torch.utils.data.dataloader
from torch import Tensor

SAMPLED_TENSORS = 8  # per parameter group: enough to see one group that is treated differently
SAMPLED_ENTRIES = 256  # per tensor: 2,048 rows hold up to about a thousand unknowns
POOL_TENSORS = 16  # leaves that belong to no optimizer
NEGLIGIBLE = 1e-6  # a coefficient below this is no contribution
CHECKED_TERMS = 16  # above this many calls in one step the residual is that of the tracking, not of the whole sum
RISES = 3  # so many increases in a row at one site count as growing
POOL = -1

# How far `.grad` may be from its explanation, relative to its norm (rounding of a few operations in that dtype).
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}

_GLUE = {  # nodes through which the weight of a scalar loss passes linearly
    "Add",
    "Alias",
    "Cat",
    "Clone",
    "Div",
    "Expand",
    "Mul",
    "Neg",
    "ReshapeAlias",
    "Rsub",
    "Squeeze",
    "Stack",
    "Sub",
    "ToCopy",
    "UnsafeView",
    "Unsqueeze",
    "View",
}
_LOSS, _SCALE, _SENTINEL = "acclint.loss", "acclint.scale", "acclint.graph"

_get_grad: Callable[[Tensor], Tensor | None] = Tensor.grad.__get__
_set_grad: Callable[[Tensor, Tensor | None], None] = Tensor.grad.__set__


class _Sentinel:
    """Lives in a graph node's metadata; `forward` is the ordinal of the model call, None for a loss."""

    __slots__ = ("__weakref__", "forward")

    def __init__(self, forward: int | None) -> None:
        self.forward = forward


class _Leaf:
    """A sampled parameter: what its `.grad` was at the last look, and of which backward calls that consists."""

    __slots__ = ("broken", "coefs", "data", "error", "history", "index", "norms", "owner", "param", "pending", "value")

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
        self.norms[t] = float(now.double().square().sum())
        self.pending = t


class _Call:
    """A backward call while it runs and after it."""

    def __init__(self, ordinal: int, place: tuple[str, int], site: tuple[int, ...], via: str) -> None:
        self.ordinal = ordinal
        self.place = place
        self.site = site
        self.via = via
        self.retain_graph = False
        self.closure = False
        self.replay = False
        self.probes: list[_Probe] = []
        self.hooks: list[Any] = []
        self.leaves: dict[int, Tensor] = {}
        self.fired: set[int] = set()
        self.scale = 1.0
        self.terms: list[dict[str, Any]] = []


class _Probe:
    """A term of a loss: its node, the glue nodes above it (nearest first), the leaves and model calls below it."""

    def __init__(self, node: Any, path: tuple[Any, ...]) -> None:
        self.node = node
        self.path = path
        self.described = _describe(node)  # now, since the call frees the saved tensors
        self.scale = math.prod(_metadata(n).get(_SCALE, 1.0) for n in (node, *path))
        self.leaves: set[int] = set()
        self.forwards: set[int] = set()


class _Optimizer:
    def __init__(self, name: str, line: int, lr: float | None, weight_decay: float | None) -> None:
        self.name = name
        self.line = line
        self.lr = lr
        self.weight_decay = weight_decay
        self.parameters = 0
        self.updates: list[dict[str, Any]] = []
        self.stepped: set[int] = set()
        self.discards: dict[int, int] = {}
        self.last_step = -1  # the last backward call before the last step
        self.evaluations = 0  # of the closure in the step that runs
        self.taken = False


class _Scheduler:
    def __init__(self, scheduler: Any, optimizer: int | None, line: int, lr: float | None) -> None:
        self.scheduler = scheduler
        self.optimizer = optimizer
        self.line = line
        self.initial_lr = lr
        self.lrs: list[float] = []
        self.lines: list[int] = []


class Ledger:
    """All recording. One per process; inactive until `start`."""

    def __init__(self) -> None:
        self.active = False
        self.failure = ""  # the traceback of a mistake in the ledger itself
        self.quiet = 0  # inside torch's own zeroing and stepping: no events of single gradients
        self.call_depth = 0
        self.scheduler_depth = 0
        self.script = ""
        self.max_backwards = 400
        self.stop: Callable[[str], None] = lambda _: None
        self.events: list[dict[str, Any]] = []
        self.calls: list[_Call] = []
        self.current: _Call | None = None
        self.optimizers: list[_Optimizer] = []
        self.optimizer_ids: dict[int, int] = {}
        self.kept: dict[int, Any] = {}  # objects whose id() is used as a key
        self.hooked: set[int] = set()
        self.manual: int | None = None  # the owner of the parameters that the script updates by hand
        self.weights: dict[Any, Tensor] = {}  # node -> the gradient that the running call sent into it
        self.in_scaler_step = False
        self.param_owners: dict[int, set[int]] = {}
        self.leaves: dict[int, _Leaf] = {}
        self.reads: list[tuple[str, int]] = []  # where the script read the gradient of a parameter without optimizer
        self.zero_place: tuple[str, int] | None = None
        self.closure_of: int | None = None
        self.schedulers: dict[int, _Scheduler] = {}
        self.loaders: dict[int, int] = {}
        self.iterators: weakref.WeakKeyDictionary[Any, list[int]] = weakref.WeakKeyDictionary()
        self.forwards = 0
        self.alive: weakref.WeakSet[_Sentinel] = weakref.WeakSet()
        self.consumed: set[int] = set()
        self.live: list[dict[str, Any]] = []
        self.rises: dict[tuple[str, tuple[int, ...]], tuple[int, int]] = {}
        self.growing = False
        self.forward_growth: tuple[list[int], dict[str, Any] | None] | None = None
        self.holder: dict[str, Any] | None = None
        self.batch_norms: dict[tuple[int, int], int] = {}
        self.precision = ""
        self.began = 0.0

    # --- life ---

    def start(self, script: str, max_backwards: int, stop: Callable[[str], None]) -> None:
        """Begin to record. `stop(outcome)` is called, and must not return, when the limit of calls is reached."""
        self.script = script
        self.max_backwards = max_backwards
        self.stop = stop
        self.began = time.monotonic()
        self.active = True
        # a process that the script forks records nothing
        os.register_at_fork(after_in_child=self.pause)

    def pause(self) -> None:
        self.active = False

    def result(self) -> dict[str, Any]:
        """Close the books; the keys are those of `Measurement` as far as the ledger knows them."""
        seconds = time.monotonic() - self.began
        if self.active and self.current is None and not self.quiet:  # a timeout may come at any point
            with self._own_work():
                self.observe()
        self.active = False
        owners = {call.ordinal: self._owners_of(call) for call in self.calls}
        return {
            "events": self._event_results(owners),
            "backwards": [self._backward_result(call, owners[call.ordinal]) for call in self.calls],
            "optimizers": [
                {
                    "name": o.name,
                    "line": o.line,
                    "lr": o.lr,
                    "weight_decay": o.weight_decay,
                    "parameters": o.parameters,
                    "updates": o.updates,
                }
                for o in self.optimizers
            ],
            "schedulers": [_scheduler_result(s) for s in self.schedulers.values()],
            "leftover": [self._leftover_result(i) for i in range(len(self.optimizers))],
            "live_graphs": self._live_result(),
            **self._growth_result(),
            "batch_norms": [{"samples": s, "values": v, "count": n} for (s, v), n in self.batch_norms.items()],
            "precision": self.precision or str(torch.get_default_dtype()).removeprefix("torch."),
            "torch": torch.__version__,
            "seconds": seconds,
        }

    def _owners_of(self, call: _Call) -> list[int]:
        reached = {o for key in {*call.leaves, *call.fired} for o in self.param_owners.get(key, ())}
        return sorted(reached)

    def _event_results(self, owners: dict[int, list[int]]) -> list[dict[str, Any]]:
        for event in self.events:
            if event["kind"] in ("backward", "grad"):
                event["owners"] = owners.get(event["ordinal"], [])
        return self.events

    def _backward_result(self, call: _Call, owners: list[int]) -> dict[str, Any]:
        terms = []
        for term in call.terms:
            keys = term.pop("leaves", set())
            reached = {o for key in keys for o in self.param_owners.get(key, ())}
            # under reentrant checkpointing the walk does not see the leaves: then every owner counts
            terms.append({**term, "owners": sorted(reached) if keys else owners})
        return {
            "line": call.place[1],
            "file": call.place[0],
            "site": list(call.site),
            "terms": terms,
            "owners": owners,
            "scale": call.scale,
            "retain_graph": call.retain_graph,
            "via": call.via,
            "closure": call.closure,
            "replay": call.replay,
        }

    def _leftover_result(self, owner: int) -> dict[str, Any]:
        optimizer = self.optimizers[owner]
        replays = {c.ordinal for c in self.calls if c.replay}
        held = {t for leaf in self._leaves_of(owner) for t, a in leaf.coefs.items() if abs(a) > NEGLIGIBLE}
        left = held - optimizer.stepped - replays
        lost = sorted(optimizer.discards.keys() - optimizer.stepped - left - replays)
        return {
            "backwards": sorted(left),
            "discarded": [{"backward": t, "line": optimizer.discards[t]} for t in lost],
        }

    def _live_result(self) -> list[dict[str, Any]]:
        """A call of a model counts on its own only if no backward call follows it."""
        following = [count["event"] for count in self.live[1:]] + ["forward"]
        return [
            count
            for count, after in zip(self.live, following, strict=False)
            if count["event"] == "backward" or after == "forward"
        ]

    def _growth_result(self) -> dict[str, Any]:
        growing, holder = self.growing, self.holder
        if not growing and self.forward_growth is not None:
            forwards, found = self.forward_growth
            # graphs that a later backward call uses up were summed over the window on purpose
            if not self.consumed.intersection(forwards):
                growing, holder = True, found
        return {"growing": growing, "holder": holder}

    # --- places ---

    @contextmanager
    def _own_work(self) -> Iterator[None]:
        """The ledger's own tensor operations: no graph, no events."""
        self.quiet += 1
        try:
            with torch.no_grad():
                yield
        except Exception as error:  # must not pass for a crash of the script, which might even catch it
            self.failure = self.failure or "".join(traceback.format_exception(error))
            raise
        finally:
            self.quiet -= 1

    def _is_user(self, filename: str) -> bool:
        return filename == self.script or _is_project_file(filename)

    def _frames(self) -> Iterator[FrameType]:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if self._is_user(frame.f_code.co_filename):
                yield frame
            frame = frame.f_back

    def place(self) -> tuple[str, int]:
        """(file, line) of the innermost user frame; the file is empty for the script itself."""
        for frame in self._frames():
            name = frame.f_code.co_filename
            return ("" if name == self.script else name), frame.f_lineno
        return "", 0

    def site(self) -> tuple[int, ...]:
        lines = []
        for frame in self._frames():
            lines.append(frame.f_lineno)
            if len(lines) == 4:
                break
        return tuple(lines)

    def event(
        self,
        kind: str,
        place: tuple[str, int] | None = None,
        owners: Iterable[int] = (),
        ordinal: int | None = None,
        **data: Any,
    ) -> dict[str, Any]:
        file, line = self.place() if place is None else place
        event = {"kind": kind, "line": line, "file": file, "owners": sorted(owners), "ordinal": ordinal, "data": data}
        self.events.append(event)
        return event

    # --- parameters and optimizers ---

    def register_group(self, optimizer: Any) -> int:
        """Note the newest parameter group of an optimizer, and the optimizer itself at its first group."""
        owner = self.optimizer_ids.get(id(optimizer))
        groups = optimizer.param_groups
        if owner is None:
            first = groups[0] if groups else {}
            owner = len(self.optimizers)
            self.optimizers.append(
                _Optimizer(
                    type(optimizer).__name__,
                    self.place()[1],
                    _number(first.get("lr")),
                    _number(first.get("weight_decay")),
                )
            )
            self.optimizer_ids[id(optimizer)] = owner
            self.kept[id(optimizer)] = optimizer
            new = [p for group in groups for p in group["params"]]
        else:
            new = list(groups[-1]["params"])
        self.optimizers[owner].parameters += len(new)
        for param in new:
            self.param_owners.setdefault(id(param), set()).add(owner)
        chosen = [p for p in new if p.requires_grad] or new
        count = min(SAMPLED_TENSORS, len(chosen))
        for i in range(count):
            self.track(chosen[i * (len(chosen) - 1) // max(count - 1, 1)], owner)
        return owner

    def track(self, param: Tensor, owner: int) -> None:
        """Sample this parameter from now on; a later optimizer takes it over with its history."""
        leaf = self.leaves.get(id(param))
        if leaf is not None:
            leaf.owner = owner
            return
        if not isinstance(param, Tensor) or param.is_meta or not param.is_floating_point():
            return
        self.leaves[id(param)] = leaf = _Leaf(param, owner)
        grad = _get_grad(param)
        if grad is not None:
            leaf.value = leaf.sample(grad)
        if param.requires_grad:
            self._hook(leaf)

    def _hook(self, leaf: _Leaf) -> None:
        def hook(grad: Tensor) -> None:
            call = self.current
            if self.active and call is not None and call.via == "backward":
                with self._own_work():
                    leaf.receive(call.ordinal, grad)
                call.fired.add(id(leaf.param))
                self._note_precision(grad.dtype)

        _register_hook(leaf.param, hook)
        self.hooked.add(id(leaf.param))

    def _note_precision(self, dtype: torch.dtype) -> None:
        order = ("float64", "float32", "float16", "bfloat16")
        name = str(dtype).removeprefix("torch.")
        if name in order and (not self.precision or order.index(name) > order.index(self.precision)):
            self.precision = name

    def _leaves_of(self, owner: int) -> list[_Leaf]:
        return [leaf for leaf in self.leaves.values() if owner in self.param_owners.get(id(leaf.param), ())]

    def _watch_leaves(self, call: _Call) -> None:
        """See to it that what this call reaches is sampled: late unfrozen parameters and those of no optimizer."""
        seen: set[int] = set()
        pool = sum(leaf.owner == POOL for leaf in self.leaves.values())
        for key, param in call.leaves.items():
            leaf = self.leaves.get(key)
            if leaf is None:
                owners = self.param_owners.get(key)
                if owners is None and pool < POOL_TENSORS:
                    self.track(param, POOL)
                    pool += 1
                continue
            if key not in self.hooked and param.requires_grad:
                self._hook(leaf)
            seen.update(self.param_owners.get(key, ()))
        reached: dict[int, list[Tensor]] = {}
        for key, param in call.leaves.items():
            for owner in self.param_owners.get(key, set()) - seen:
                reached.setdefault(owner, []).append(param)
        for owner, params in reached.items():
            for param in params[:SAMPLED_TENSORS]:
                self.track(param, owner)

    # --- looking at the gradients ---

    def observe(self) -> None:
        """Look at every sampled `.grad` and account for what happened to it since the last look."""
        moved = self._moved_by_hand()
        if moved and not all(_has_gradient(leaf) for leaf, _ in moved):  # zeroed since, out of sight
            self._take_manual_update(moved)
            moved = []
        odd: dict[int, list[tuple[_Leaf, Tensor, int | None]]] = {}
        unseen: set[int] = set()
        for leaf in self.leaves.values():
            pending, leaf.pending = leaf.pending, None
            grad = _get_grad(leaf.param)
            if grad is None:
                if leaf.value is not None or pending is not None:
                    self._drop(leaf, None, pending, unseen)
                continue
            now = leaf.sample(grad)
            expected = leaf.value
            if pending is not None:
                new = leaf.history[pending]
                expected = new if expected is None else expected + new
            if expected is not None and now.shape == expected.shape and torch.equal(now, expected.to(now.dtype)):
                if pending is not None:
                    leaf.coefs[pending] = leaf.coefs.get(pending, 0.0) + 1.0
                leaf.value = now
            elif not bool(now.any()):
                self._drop(leaf, now, pending, unseen)
            else:
                odd.setdefault(leaf.owner, []).append((leaf, now, pending))
        for items in odd.values():
            self._explain(items)
        if unseen and self.zero_place is None:
            self._zero_event("unseen", ("", 0), unseen - {POOL})
        if moved:
            self._take_manual_update(moved)

    def _drop(self, leaf: _Leaf, now: Tensor | None, pending: int | None, unseen: set[int]) -> None:
        """`.grad` is gone or all zero."""
        coefs = dict(leaf.coefs)
        if pending is not None:
            coefs.setdefault(pending, 1.0)
        for owner in self.param_owners.get(id(leaf.param), ()):
            record = self.optimizers[owner]
            for t in coefs:
                if t not in record.stepped:
                    record.discards[t] = self.zero_place[1] if self.zero_place else 0
        if coefs:
            unseen.add(leaf.owner)
        leaf.value, leaf.coefs, leaf.error, leaf.broken = now, {}, 0.0, False

    def _explain(self, items: list[tuple[_Leaf, Tensor, int | None]]) -> None:
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

    def _fit_factors(self, items: list[tuple[_Leaf, Tensor, int | None]]) -> bool:
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
            c = _ratio(total, now)
            fits.append((c, c, float((now - c * total).norm()), 1))
        if has_old and has_new:
            f = _ratio(new, now - old)
            fits.append((1.0, f, float((now - old - f * new).norm()), 1))
            c = _ratio(old, now - new)
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

    def _columns(self, items: list[tuple[_Leaf, Tensor, int | None]]) -> tuple[Tensor, Tensor, Tensor]:
        now = torch.cat([n.double() for _, n, _ in items])
        old = torch.cat([torch.zeros_like(n).double() if x.value is None else x.value.double() for x, n, _ in items])
        new = torch.cat([torch.zeros_like(n).double() if t is None else x.history[t].double() for x, n, t in items])
        return now, old, new

    def _apply(
        self, items: list[tuple[_Leaf, Tensor, int | None]], c: float, f: float, error: float, broken: bool
    ) -> None:
        for leaf, now, pending in items:
            leaf.coefs = {t: c * a for t, a in leaf.coefs.items()}
            if pending is not None:
                leaf.coefs[pending] = leaf.coefs.get(pending, 0.0) + f
            leaf.value = now
            leaf.error = max(leaf.error, error)
            leaf.broken = leaf.broken or broken

    def _fit_calls(self, items: list[tuple[_Leaf, Tensor, int | None]], anyway: bool = False) -> bool:
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

    def _history_with_twins(self, leaf: _Leaf) -> dict[int, Tensor]:
        """The gradients of a leaf, and of the only other leaf of that shape in calls that did not reach it.

        Replicas hand their gradients to the parameters that are stepped.
        """
        history: dict[int, Tensor | None] = {}
        for other in self.leaves.values():
            if other is not leaf and other.param.shape == leaf.param.shape:
                for t, grad in other.history.items():
                    history[t] = None if t in history else grad
        return {**{t: g for t, g in history.items() if g is not None}, **leaf.history}

    def _candidates(
        self, items: list[tuple[_Leaf, Tensor, int | None]], histories: list[dict[int, Tensor]]
    ) -> list[list[int]]:
        """Sets of calls to try, the likeliest first."""
        own = sorted({t for leaf, _, _ in items for t in leaf.history})
        every = sorted({t for history in histories for t in history})
        since = max((self.optimizers[leaf.owner].last_step for leaf, _, _ in items if leaf.owner != POOL), default=-1)
        held = {t for leaf, _, _ in items for t in leaf.coefs}
        sets = [[t for t in own if t > since or t in held], [t for t in every if t > since or t in held]]
        sets += [own[-n:] for n in (8, 16, 32, 64, 128, 256, len(own)) if n <= len(own)]
        sets.append(every)
        return [list(chosen) for chosen in dict.fromkeys(map(tuple, sets)) if chosen]

    # --- updates ---

    def take_update(self, owner: int, place: tuple[str, int], lr: float | None, unscale: float = 1.0) -> None:
        """The optimizer steps with what is in `.grad` now."""
        record = self.optimizers[owner]
        leaves = [leaf for leaf in self._leaves_of(owner) if leaf.value is not None]
        raw: dict[int, float] = {}
        uneven: dict[int, tuple[float, float]] = {}
        for t in sorted({t for leaf in leaves for t in leaf.coefs}):
            weighed = [(leaf.coefs.get(t, 0.0), leaf.norms.get(t, 0.0)) for leaf in leaves if t in leaf.history]
            norm = sum(n for _, n in weighed)
            # a gradient without a sampled entry (rows of an embedding) was only tracked
            raw[t] = sum(a * n for a, n in weighed) / norm if norm else sum(a for a, _ in weighed) / len(weighed)
            factors = [a for a, n in weighed if n > 0]
            if factors and max(factors) - min(factors) > 1e-3 * max(map(abs, factors)):
                scale = self._scale_of(t) * unscale
                uneven[t] = (min(factors) * scale, max(factors) * scale)
        coefficients = {}
        for t, a in raw.items():
            scaled = a * self._scale_of(t) * unscale
            if abs(scaled) >= NEGLIGIBLE:
                coefficients[t] = scaled
        record.stepped.update(coefficients)
        record.last_step = len(self.calls) - 1
        record.updates.append(
            {
                "line": place[1],
                "file": place[0],
                "coefficients": coefficients,
                "residual": self._residual(leaves, raw),
                "uneven": uneven,
                "lr": lr,
                "closure": self.closure_of == owner,
            }
        )

    def _scale_of(self, t: int) -> float:
        call = self.calls[t] if t < len(self.calls) else self.current  # a step inside backward
        return call.scale if call is not None else 1.0

    def _residual(self, leaves: list[_Leaf], raw: dict[int, float]) -> float:
        error = max((leaf.error for leaf in leaves), default=0.0)
        alike = all(
            abs(leaf.coefs.get(t, 0.0) - a) <= 1e-6 * abs(a)
            for leaf in leaves
            for t, a in raw.items()
            if leaf.norms.get(t, 0.0) > 0
        )
        broken = any(leaf.broken for leaf in leaves)
        if alike and len(raw) > CHECKED_TERMS:
            return math.nan if broken else error
        distance = norm = 0.0
        for leaf in leaves:
            assert leaf.value is not None
            value = leaf.value.double()
            norm += float(value.square().sum())
            for t, a in raw.items():
                if t in leaf.history:
                    value = value - a * leaf.history[t].double()
            distance += float(value.square().sum())
        residual = math.sqrt(distance / norm) if norm else 0.0
        return math.nan if broken and residual <= 1e-3 else residual

    def _moved_by_hand(self) -> list[tuple[_Leaf, Tensor]]:
        """Parameters of no optimizer that have changed since the last look, and their change."""
        moved: list[tuple[_Leaf, Tensor]] = []
        for leaf in self.leaves.values():
            if leaf.owner != POOL and leaf.owner != self.manual:
                continue
            data = leaf.sample(leaf.param)
            if leaf.data is not None and leaf.data.shape == data.shape and not torch.equal(data, leaf.data):
                moved.append((leaf, data.double() - leaf.data.double()))
            leaf.data = data
        return moved

    def _take_manual_update(self, moved: list[tuple[_Leaf, Tensor]]) -> None:
        """Parameters that changed after the script read their gradient were updated by hand."""
        returned: list[_Leaf] = []
        for leaf, _ in moved:
            last = max(leaf.history, default=-1)
            if not leaf.coefs and last >= 0 and self.calls[last].via == "grad" and last > self._last_manual_step():
                leaf.value, leaf.coefs = leaf.history[last], {last: 1.0}  # what torch.autograd.grad returned
                returned.append(leaf)
        moved = [(leaf, delta) for leaf, delta in moved if leaf.value is not None and leaf.coefs]
        if not moved or not (self.reads or returned):
            return
        delta = torch.cat([d for _, d in moved])
        grad = torch.cat([leaf.value.double() for leaf, _ in moved if leaf.value is not None])
        rate = -_ratio(grad, delta)
        parallel = float((delta + rate * grad).norm()) <= 1e-3 * float(delta.norm())  # no momentum, no weight decay
        lr = rate if parallel else None
        if self.manual is None:
            self.optimizers.append(_Optimizer("manual", 0, lr, None))
            self.manual = len(self.optimizers) - 1
        owner = self.manual
        record = self.optimizers[owner]
        for leaf, _ in moved:
            if leaf.owner == POOL:
                leaf.owner = owner
                record.parameters += 1
                self.param_owners.setdefault(id(leaf.param), set()).add(owner)
        zeroing = self.zero_place
        places = [p for p in self.reads if p != zeroing] or self.reads or [("", 0)]
        place = places[-1]
        record.line = record.line or place[1]
        self.take_update(owner, place, lr)
        self.event("step", place, (owner,), len(record.updates) - 1, manual=True)
        self.reads.clear()
        for leaf in returned:
            leaf.value, leaf.coefs = None, {}

    def _last_manual_step(self) -> int:
        return -1 if self.manual is None else self.optimizers[self.manual].last_step

    # --- zeroing ---

    def _zero_event(self, via: str, place: tuple[str, int], owners: Iterable[int]) -> None:
        last = self.events[-1] if self.events else None
        again = last is not None and last["kind"] == "zero" and (last["file"], last["line"]) == place
        if last is not None and again and last["data"]["via"] == via not in ("optimizer", "module"):
            last["owners"] = sorted({*last["owners"], *owners})  # a loop over parameters is one zeroing
            return
        self.event("zero", place, owners, via=via)

    @contextmanager
    def zeroing(self, via: str, params: list[Tensor]) -> Iterator[None]:
        """Around something that clears gradients of `params`."""
        place = self.place()
        owners = {o for p in params for o in self.param_owners.get(id(p), ())}
        last = self.events[-1] if self.events else None
        continued = last is not None and last["kind"] == "zero" and (last["file"], last["line"]) == place
        outer, self.zero_place = self.zero_place, place
        try:
            with self._own_work():
                if not continued:  # nothing has happened since the last look in a loop over parameters
                    self.observe()
            self._zero_event(via, place, owners)
            self.quiet += 1
            try:
                yield
            finally:
                self.quiet -= 1
            with self._own_work():
                for leaf in [self.leaves[id(p)] for p in params if id(p) in self.leaves]:
                    grad = _get_grad(leaf.param)
                    now = None if grad is None else leaf.sample(grad)
                    if now is None or not bool(now.any()):
                        self._drop(leaf, now, None, set())
        finally:
            self.zero_place = outer

    def owner_of_grad(self, tensor: Tensor) -> Tensor | None:
        """The sampled parameter whose gradient shares the memory of `tensor`."""
        if not self.leaves or tensor.requires_grad or tensor.is_meta or tensor.layout is not torch.strided:
            return None
        pointer = tensor.data_ptr()
        for leaf in self.leaves.values():
            grad = _get_grad(leaf.param)
            if grad is not None and grad.layout is torch.strided and grad.data_ptr() == pointer != 0:
                return leaf.param
        return None

    def note_read(self, param: Tensor) -> None:
        leaf = self.leaves.get(id(param))
        if leaf is None or (leaf.owner != POOL and leaf.owner != self.manual):
            return
        place = self.place()
        if not self.reads or self.reads[-1] != place:
            self.reads.append(place)
            del self.reads[:-8]

    # --- backward ---

    def begin_backward(self, roots: list[Tensor], via: str, retain_graph: bool) -> _Call:
        if len(self.calls) >= self.max_backwards:
            self.stop("stopped")
        with self._own_work():
            self.observe()
        self.reads.clear()
        call = _Call(len(self.calls), self.place(), self.site(), via)
        call.retain_graph = retain_graph
        if self.closure_of is not None:
            call.closure = True
            call.replay = self.optimizers[self.closure_of].evaluations > 1
        nodes = [r.grad_fn for r in roots if isinstance(r, Tensor) and r.grad_fn is not None]
        with self._own_work(), suppress(RuntimeError):  # a graph whose tensors are freed: the call itself will raise
            for node in nodes:
                call.probes += self._terms(node, call)
            for probe in call.probes:
                self._descend(probe, call)
        scales = {probe.scale for probe in call.probes}
        call.scale = scales.pop() if len(scales) == 1 else 1.0
        if not any(probe.forwards for probe in call.probes):
            for node in nodes:
                self._mark_graph(node, None)
        self._watch_leaves(call)
        self.current = call
        return call

    def end_backward(self, call: _Call) -> None:
        self.current = None
        for hook in call.hooks:
            hook.remove()
        self.calls.append(call)
        owners = self._owners_of(call)
        with self._own_work():
            call.terms = self._weigh(call)
            event = self.event("backward" if call.via == "backward" else "grad", call.place, owners, call.ordinal)
            if call.closure:
                event["data"]["closure"] = True
            self.observe()
        call.probes.clear()
        call.hooks.clear()
        for term in call.terms:
            self.consumed.update(term["forwards"])
        if call.via == "backward":
            with self._own_work():
                self._count_graphs("backward", call.place[1], call.site)

    def abandon_backward(self, call: _Call) -> None:
        """The call raised: what its hooks saw may be in `.grad` in part, so keep it as a call without terms."""
        self.current = None
        for hook in call.hooks:
            hook.remove()
        call.probes.clear()
        self.calls.append(call)

    def _terms(self, root: Any, call: _Call) -> list[_Probe]:
        """Walk down from the root through scalar glue to the nodes that made scalars; hook all of them."""
        probes: list[_Probe] = []
        seen: set[Any] = set()
        stack: list[tuple[Any, tuple[Any, ...]]] = [(root, ())]
        values: dict[Any, Any] = self.weights
        while stack:
            node, path = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if hasattr(node, "variable"):  # a scalar parameter: no data in it
                continue

            def hook(grads: tuple[Tensor | None, ...], node: Any = node) -> None:
                values[node] = next((g for g in grads if g is not None), None)

            call.hooks.append(node.register_prehook(hook))
            below = _glue_inputs(node)
            if below is None or _LOSS in _metadata(node):
                probes.append(_Probe(node, path))
            else:
                stack += [(n, (node, *path)) for n in below]
        return probes

    def _descend(self, probe: _Probe, call: _Call) -> None:
        """The leaves and the model calls below a term."""
        seen: set[Any] = {probe.node}
        stack = [probe.node]
        while stack and len(seen) < 50_000:
            node = stack.pop()
            variable = getattr(node, "variable", None)
            if variable is not None:
                call.leaves[id(variable)] = variable
                probe.leaves.add(id(variable))
                self.kept[id(variable)] = variable
                continue
            sentinel = _metadata(node).get(_SENTINEL)
            if sentinel is not None and sentinel.forward is not None:
                probe.forwards.add(sentinel.forward)
            for below, _ in node.next_functions:
                if below is not None and below not in seen:
                    seen.add(below)
                    stack.append(below)

    def _weigh(self, call: _Call) -> list[dict[str, Any]]:
        """Turn what the hooks saw into weights."""
        terms = []
        modelled = any(probe.forwards for probe in call.probes)
        for probe in call.probes:
            value = self.weights.get(probe.node)
            if value is None:
                continue
            weight = _uniform(value) / probe.scale
            name, reduction, elements, divisors, line = probe.described
            if reduction == "sum":
                factor = self._nearest_factor(probe)
                if factor is not None:
                    divisor = _own_divisor(1 / factor, divisors)
                    if divisor is not None:
                        reduction, weight = "mean", weight * divisor
                        elements = elements if elements and abs(elements - divisor) < 0.5 else round(divisor)
                per_element: float | None = _uniform(value) / probe.scale
            else:
                per_element = weight / elements if elements else None
            marked = _LOSS in _metadata(probe.node)
            terms.append(
                {
                    "weight": weight,
                    "reduction": reduction,
                    "elements": elements,
                    "per_element": per_element,
                    "function": name,
                    "line": line,
                    "data": bool(marked or probe.forwards or not modelled),
                    "forwards": sorted(probe.forwards),
                    "leaves": probe.leaves,
                }
            )
        if terms and not any(t["data"] for t in terms):
            for t in terms:
                t["data"] = True
        self.weights.clear()
        return terms

    def _nearest_factor(self, probe: _Probe) -> float | None:
        """What the first glue node above a term multiplies it with, passing those that do nothing."""
        below = _uniform(self.weights[probe.node])
        for node in probe.path:
            above = self.weights.get(node)
            if above is None:
                return None
            above_value = _uniform(above)
            if not above_value or _SCALE in _metadata(node):
                return None
            factor = below / above_value
            if abs(factor) and abs(abs(factor) - 1) > 1e-7:
                return factor
            below = above_value
        return None

    # --- autograd graphs ---

    def _mark_graph(self, node: Any, forward: int | None) -> bool:
        metadata = _metadata(node)
        if _SENTINEL in metadata:
            return False
        sentinel = _Sentinel(forward)
        metadata[_SENTINEL] = sentinel
        self.alive.add(sentinel)
        return True

    def after_forward(self, output: Any) -> None:
        """A model was called (not from inside another one)."""
        tensors = list(_graph_tensors(output))
        if not tensors or all(t.numel() == 1 and _LOSS in _metadata(t.grad_fn) for t in tensors):
            return  # without gradients, or a loss module
        forward = self.forwards
        self.forwards += 1
        if self._mark_graph(tensors[0].grad_fn, forward):
            self._count_graphs("forward", self.place()[1], self.site())

    def _count_graphs(self, kind: str, line: int, site: tuple[int, ...]) -> None:
        count = len(self.alive)
        self.live.append({"event": kind, "line": line, "graphs": count})
        last, rises = self.rises.get((kind, site), (count, 0))
        rises = rises + 1 if count > last else 0
        if rises == RISES:  # cyclic garbage is not held
            gc.collect()
            count = len(self.alive)
            rises = rises if count > last else 0
        self.rises[(kind, site)] = (count, rises)
        if kind == "backward":
            # forwards count on their own only as long as no backward call comes between
            self.rises = {key: value for key, value in self.rises.items() if key[0] == "backward"}
        if rises < RISES:
            return
        if kind == "backward":
            if not self.growing:
                self.growing = True
                self.holder = self._find_holder()
        else:
            last_forward = self.forwards - 1
            forwards = list(range(max(0, last_forward - RISES), last_forward))
            if self.forward_growth is None or self.consumed.intersection(self.forward_growth[0]):
                self.forward_growth = (forwards, self._find_holder())

    def _find_holder(self) -> dict[str, Any] | None:
        """The variable of a user frame from which the most graphs can be reached."""
        best: tuple[int, str, str, FrameType] | None = None
        for frame in self._frames():
            for name, value in list(frame.f_locals.items()):
                if name.startswith("__"):
                    continue
                entries = [(name, value)]
                if hasattr(value, "__dict__") and not isinstance(value, (type, Tensor, torch.nn.Module)):
                    entries += [(f"{name}.{k}", v) for k, v in list(vars(value).items())[:50]]
                elif isinstance(value, torch.nn.Module):
                    entries += [(f"{name}.{k}", v) for k, v in list(vars(value).items()) if not k.startswith("_")]
                for label, entry in entries:
                    found = _count_sentinels(entry)
                    if found > 2 and (best is None or found > best[0]):
                        best = (found, label, type(entry).__name__, frame)
        if best is None:
            return None
        _, label, container, frame = best
        return {"name": label, "container": container, "line": _augmenting_line(frame, label)}

    # --- patches ---

    def install(self) -> None:
        """Patch torch. Harmless while the ledger is not active."""
        self._patch_autograd()
        self._patch_gradients()
        self._patch_optimizers()
        self._patch_schedulers()
        self._patch_losses()
        self._patch_tools()
        self._patch_loaders()
        self._patch_modules()

    def _patch_autograd(self) -> None:
        def backward(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(tensors: Any, *args: Any, **kwargs: Any) -> Any:
                if not self.active or self.current is not None or self.quiet:
                    return original(tensors, *args, **kwargs)
                roots = [tensors] if isinstance(tensors, Tensor) else list(tensors)
                retain = bool(kwargs.get("retain_graph", args[1] if len(args) > 1 else False))
                call = self.begin_backward(roots, "backward", retain)
                try:
                    original(tensors if isinstance(tensors, Tensor) else roots, *args, **kwargs)
                except BaseException:
                    self.abandon_backward(call)
                    raise
                roots.clear()
                self.end_backward(call)
                return None

            return wrapper

        def grad(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
                wanted = [inputs] if isinstance(inputs, Tensor) else list(inputs)
                leaves = [p for p in wanted if isinstance(p, Tensor) and p.is_leaf and id(p) in self.param_owners]
                leaves += [p for p in wanted if isinstance(p, torch.nn.Parameter) and id(p) not in self.param_owners]
                inputs = inputs if isinstance(inputs, Tensor) else wanted
                if not self.active or self.current is not None or self.quiet or not leaves:
                    return original(outputs, inputs, *args, **kwargs)
                roots = [outputs] if isinstance(outputs, Tensor) else list(outputs)
                call = self.begin_backward(roots, "grad", bool(kwargs.get("retain_graph", False)))
                try:
                    result = original(outputs if isinstance(outputs, Tensor) else roots, inputs, *args, **kwargs)
                except BaseException:
                    self.abandon_backward(call)
                    raise
                with self._own_work():
                    for param, value in zip(wanted, result, strict=False):
                        leaf = self.leaves.get(id(param))
                        if leaf is not None and isinstance(value, Tensor):
                            leaf.receive(call.ordinal, value)
                            leaf.pending = None  # it is only returned; the script may add it to `.grad` itself
                            call.fired.add(id(param))
                call.leaves = {k: v for k, v in call.leaves.items() if any(v is p for p in wanted)}
                self.end_backward(call)
                return result

            return wrapper

        _patch(torch.autograd, "backward", backward)
        _patch(torch.autograd, "grad", grad)

    def _patch_gradients(self) -> None:
        def read(param: Tensor) -> Tensor | None:
            if self.active and not self.quiet and self.leaves and id(param) in self.leaves:
                self.note_read(param)
            return _get_grad(param)

        def write(param: Tensor, value: Tensor | None) -> None:
            seen = self.active and not self.quiet and id(param) in self.leaves
            if value is None and seen and _get_grad(param) is not None:
                with self.zeroing("none", [param]):
                    _set_grad(param, None)
            else:
                _set_grad(param, value)

        def delete(param: Tensor) -> None:
            write(param, None)

        Tensor.grad = property(read, write, delete)

        def clearing(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
                value = args[0] if args else kwargs.get("value", 0)
                param = self.owner_of_grad(tensor) if self.active and not self.quiet else None
                if param is None or bool(value != 0):
                    return original(tensor, *args, **kwargs)
                with self.zeroing("zero_", [param]):
                    return original(tensor, *args, **kwargs)

            return wrapper

        _patch(Tensor, "zero_", clearing)
        _patch(Tensor, "fill_", clearing)

        def clearing_all(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(tensors: Any, *args: Any, **kwargs: Any) -> Any:
                params: list[Tensor] = []
                if self.active and not self.quiet:
                    tensors = list(tensors)
                    params = [p for p in (self.owner_of_grad(t) for t in tensors) if p is not None]
                if not params:
                    return original(tensors, *args, **kwargs)
                with self.zeroing("zero_", params):
                    return original(tensors, *args, **kwargs)

            return wrapper

        _patch(torch, "_foreach_zero_", clearing_all)

        def hooking(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(tensor: Tensor, hook: Any) -> Any:
                # the ledger's own hook must come first, to see what the loss brings and not what this hook makes of it
                parameter = isinstance(tensor, torch.nn.Parameter) and tensor.requires_grad and tensor.is_leaf
                if self.active and parameter and id(tensor) not in self.leaves:
                    self.track(tensor, POOL)
                return original(tensor, hook)

            return wrapper

        _patch(Tensor, "register_hook", hooking)

    def _patch_optimizers(self) -> None:
        optimizer_class = torch.optim.Optimizer

        def add_group(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
                result = original(optimizer, *args, **kwargs)
                if self.active:
                    with self._own_work():
                        self.register_group(optimizer)
                return result

            return wrapper

        _patch(optimizer_class, "add_param_group", add_group)

        def zero_optimizer(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
                if not self.active or self.quiet:
                    return original(optimizer, *args, **kwargs)
                with self.zeroing("optimizer", [p for g in optimizer.param_groups for p in g["params"]]):
                    return original(optimizer, *args, **kwargs)

            return wrapper

        _patch(optimizer_class, "zero_grad", zero_optimizer)

        def zero_module(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(module: Any, *args: Any, **kwargs: Any) -> Any:
                if not self.active or self.quiet:
                    return original(module, *args, **kwargs)
                with self.zeroing("module", list(module.parameters())):
                    return original(module, *args, **kwargs)

            return wrapper

        _patch(torch.nn.Module, "zero_grad", zero_module)

        from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

        register_optimizer_step_pre_hook(self.before_step)
        register_optimizer_step_post_hook(self.after_step)

    def before_step(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        if not self.active:
            return None
        owner = self.optimizer_ids.get(id(optimizer))
        if owner is None:  # unpickled or copied
            with self._own_work():
                owner = self.register_group(optimizer)
        record = self.optimizers[owner]
        record.evaluations, record.taken = 0, False
        place = self.place()
        with self._own_work():
            self.observe()
        self.event("step", place, (owner,), len(record.updates))
        arguments = list(args)
        position = next((i for i, a in enumerate(arguments) if i > 0 and callable(a)), None)
        closure = kwargs.get("closure") if position is None else arguments[position]
        if closure is None:
            self._step_now(optimizer, owner, place)
            return None

        def wrapped(*a: Any, **k: Any) -> Any:
            record.evaluations += 1
            self.event("closure", place, (owner,), record.evaluations - 1)
            outer, self.closure_of = self.closure_of, owner
            try:
                result = closure(*a, **k)
                if record.evaluations == 1 and self.active:
                    self._step_now(optimizer, owner, place)
                return result
            finally:
                self.closure_of = outer

        if position is None:
            return args, {**kwargs, "closure": wrapped}
        arguments[position] = wrapped
        return tuple(arguments), kwargs

    def after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        owner = self.optimizer_ids.get(id(optimizer))
        if self.active and owner is not None and not self.optimizers[owner].taken:
            self._step_now(optimizer, owner, self.place())  # a closure that the optimizer never called

    def _step_now(self, optimizer: Any, owner: int, place: tuple[str, int]) -> None:
        with self._own_work():
            self.observe()
            scale = _number(getattr(optimizer, "grad_scale", None))  # fused optimizers unscale inside the step
            lr = _number(optimizer.param_groups[0].get("lr")) if optimizer.param_groups else None
            self.take_update(owner, place, lr, 1 / scale if scale else 1.0)
        self.optimizers[owner].taken = True

    def _patch_schedulers(self) -> None:
        module = torch.optim.lr_scheduler

        def init(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
                if not self.active:
                    return original(scheduler, *args, **kwargs)
                self.scheduler_depth += 1
                try:
                    original(scheduler, *args, **kwargs)
                finally:
                    self.scheduler_depth -= 1
                if self.scheduler_depth == 0:
                    self._scheduler(scheduler)
                return None

            return wrapper

        def step(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
                if not self.active or self.scheduler_depth:
                    return original(scheduler, *args, **kwargs)
                record = self._scheduler(scheduler)
                before = _rate(scheduler)
                place = self.place()
                self.scheduler_depth += 1
                try:
                    result = original(scheduler, *args, **kwargs)
                finally:
                    self.scheduler_depth -= 1
                after = _rate(scheduler)
                record.lines.append(place[1])
                record.lrs.append(math.nan if after is None else after)
                ordinal = list(self.schedulers).index(id(scheduler))
                owners = () if record.optimizer is None else (record.optimizer,)
                self.event("scheduler", place, owners, ordinal, before=before, after=after)
                return result

            return wrapper

        def instrument(cls: type) -> None:
            for name, wrapper in (("__init__", init), ("step", step)):
                if name in vars(cls):
                    _patch(cls, name, wrapper)

        def init_subclass(cls: type, /, **kwargs: Any) -> None:
            object.__init_subclass__(**kwargs)
            instrument(cls)

        classes = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, module.LRScheduler)]
        for cls in [*dict.fromkeys(classes), torch.optim.swa_utils.SWALR]:
            instrument(cls)
        if "ReduceLROnPlateau" in vars(module) and module.ReduceLROnPlateau not in classes:  # before torch 2.2
            instrument(module.ReduceLROnPlateau)
        module.LRScheduler.__init_subclass__ = classmethod(init_subclass)

    def _scheduler(self, scheduler: Any) -> _Scheduler:
        record = self.schedulers.get(id(scheduler))
        if record is None:
            optimizer = getattr(scheduler, "optimizer", None)
            owner = self.optimizer_ids.get(id(optimizer))
            record = _Scheduler(scheduler, owner, self.place()[1], _rate(scheduler))
            self.schedulers[id(scheduler)] = record
        return record

    def _patch_losses(self) -> None:
        for name, function in list(vars(F).items()):
            if name.startswith("_") or not inspect.isfunction(function):
                continue
            try:
                signature = inspect.signature(function)
            except (TypeError, ValueError):
                continue
            if "reduction" in signature.parameters:
                _patch(F, name, functools.partial(self._marking, name, signature))

    def _marking(self, name: str, signature: inspect.Signature, original: Callable[..., Any]) -> Callable[..., Any]:
        """A loss function whose result remembers what it is."""

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if not self.active or not isinstance(result, Tensor) or result.grad_fn is None:
                return result
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            given = bound.arguments
            legacy = given.get("size_average") is not None or given.get("reduce") is not None
            if given["reduction"] != "none" and not legacy:
                with self._own_work():
                    mark = (f"F.{name}", *_loss_shape(name, given), self.place()[1])
                _metadata(result.grad_fn)[_LOSS] = mark
            return result

        return wrapper

    def _patch_tools(self) -> None:
        def clip(original: Callable[..., Any]) -> Callable[..., Any]:
            signature = inspect.signature(original)

            def wrapper(*args: Any, **kwargs: Any) -> Any:
                if not self.active or self.quiet:
                    return original(*args, **kwargs)
                given = signature.bind(*args, **kwargs).arguments
                params = given["parameters"]
                params = [params] if isinstance(params, Tensor) else list(params)
                given["parameters"] = params
                owners = {o for p in params for o in self.param_owners.get(id(p), ())}
                limit = _number(given.get("max_norm", given.get("clip_value")))
                event = self.event("clip", None, owners, limit=limit, function=original.__name__)
                result = original(**given)
                event["data"]["norm"] = _number(result)
                return result

            return wrapper

        for name in ("clip_grad_norm_", "clip_grad_value_"):
            _patch(torch.nn.utils.clip_grad, name, clip)
            setattr(torch.nn.utils, name, getattr(torch.nn.utils.clip_grad, name))

        def tell(kind: str, original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(tool: Any, *args: Any, **kwargs: Any) -> Any:
                # a scaler's step unscales by itself: that is not the script's own unscale_
                if not self.active or not getattr(tool, "_enabled", True) or self.in_scaler_step:
                    return original(tool, *args, **kwargs)
                owner = self.optimizer_ids.get(id(args[0])) if args else None
                scale = _number(getattr(tool, "_scale", None))
                self.event(kind, None, () if owner is None else (owner,), scale=scale)
                self.in_scaler_step = kind == "scaler_step"
                try:
                    return original(tool, *args, **kwargs)
                finally:
                    self.in_scaler_step = False

            return wrapper

        def scale(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(scaler: Any, outputs: Any) -> Any:
                result = original(scaler, outputs)
                factor = _number(getattr(scaler, "_scale", None))
                if self.active and getattr(scaler, "_enabled", False) and factor:
                    for tensor in _graph_tensors(result):
                        if tensor.grad_fn is not None:
                            _metadata(tensor.grad_fn)[_SCALE] = factor
                return result

            return wrapper

        scaler = torch.amp.GradScaler
        _patch(scaler, "scale", scale)
        _patch(scaler, "unscale_", functools.partial(tell, "unscale"))
        _patch(scaler, "step", functools.partial(tell, "scaler_step"))
        _patch(scaler, "update", functools.partial(tell, "scaler_update"))
        _patch(torch.optim.swa_utils.AveragedModel, "update_parameters", functools.partial(tell, "ema"))

        def batch_norm(original: Callable[..., Any]) -> Callable[..., Any]:
            signature = inspect.signature(original)

            def wrapper(*args: Any, **kwargs: Any) -> Any:
                if self.active and torch.is_grad_enabled():
                    given = signature.bind(*args, **kwargs)
                    given.apply_defaults()
                    x = given.arguments["input"]
                    if given.arguments["training"] and isinstance(x, Tensor) and x.dim() >= 2:
                        key = (x.shape[0], x.numel() // max(x.shape[1], 1))
                        self.batch_norms[key] = self.batch_norms.get(key, 0) + 1
                return original(*args, **kwargs)

            return wrapper

        _patch(F, "batch_norm", batch_norm)

    def _patch_loaders(self) -> None:
        module = torch.utils.data.dataloader

        def init(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(loader: Any, *args: Any, **kwargs: Any) -> Any:
                original(loader, *args, **kwargs)
                if self.active and loader.num_workers:  # the same batches, in this process
                    for name, value in (("num_workers", 0), ("timeout", 0), ("persistent_workers", False)):
                        object.__setattr__(loader, name, value)

            return wrapper

        def begin(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(loader: Any) -> Any:
                iterator = original(loader)
                if self.active:
                    ordinal = self.loaders.setdefault(id(loader), len(self.loaders))
                    self.kept[id(loader)] = loader
                    try:
                        length: int | None = len(loader)
                    except (TypeError, NotImplementedError):
                        length = None
                    self.event("loader_begin", None, (), ordinal, length=length, batch_size=loader.batch_size)
                    self.iterators[iterator] = [ordinal, 0]
                return iterator

            return wrapper

        def advance(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(iterator: Any) -> Any:
                try:
                    batch = original(iterator)
                except StopIteration:
                    state = self.iterators.pop(iterator, None) if self.active else None
                    if state is not None:
                        self.event("loader_end", None, (), state[0], batches=state[1])
                    raise
                if self.active and iterator in self.iterators:
                    self.iterators[iterator][1] += 1
                return batch

            return wrapper

        _patch(module.DataLoader, "__init__", init)
        _patch(module.DataLoader, "__iter__", begin)
        _patch(module._BaseDataLoaderIter, "__next__", advance)

    def _patch_modules(self) -> None:
        def call(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(module: Any, *args: Any, **kwargs: Any) -> Any:
                if self.call_depth or not self.active:
                    return original(module, *args, **kwargs)
                self.call_depth += 1
                try:
                    output = original(module, *args, **kwargs)
                finally:
                    self.call_depth -= 1
                if self.active and torch.is_grad_enabled():
                    with self._own_work():
                        self.after_forward(output)
                return output

            return wrapper

        _patch(torch.nn.Module, "__call__", call)

        def load(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(module: Any, *args: Any, **kwargs: Any) -> Any:
                result = original(module, *args, **kwargs)
                for leaf in self.leaves.values():  # loading is no update by hand
                    leaf.data = None
                return result

            return wrapper

        _patch(torch.nn.Module, "load_state_dict", load)


# --- small helpers ---------------------------------------------------------------------------------------------------

_register_hook: Callable[..., Any] = Tensor.register_hook


def _patch(target: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    original = getattr(target, name)
    setattr(target, name, functools.wraps(original)(make(original)))


_LIBRARIES = tuple(
    os.path.abspath(folder) + os.sep
    for folder in {
        str(Path(__file__).parent),
        str(Path(torch.__file__).parent),
        *(
            path
            for name, path in sysconfig.get_paths().items()
            if name in ("stdlib", "platstdlib", "purelib", "platlib")
        ),
    }
)


@functools.cache
def _is_project_file(filename: str) -> bool:
    """Code of the user: no library, no torch, not the instruments."""
    path = os.path.abspath(filename)
    folders = Path(path).parts
    library = path.startswith(_LIBRARIES) or "site-packages" in folders or "dist-packages" in folders
    return not filename.startswith("<") and not library


def _metadata(node: Any) -> dict[str, Any]:
    metadata = getattr(node, "metadata", None)
    return metadata if isinstance(metadata, dict) else {}


def _has_gradient(leaf: _Leaf) -> bool:
    grad = _get_grad(leaf.param)
    return grad is not None and bool(leaf.sample(grad).any())


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _rate(scheduler: Any) -> float | None:
    groups = getattr(getattr(scheduler, "optimizer", None), "param_groups", None)
    return _number(groups[0].get("lr")) if groups else None


def _ratio(column: Tensor, target: Tensor) -> float:
    square = float(column @ column)
    return float(column @ target) / square if square else 0.0


def _eps(items: list[tuple[_Leaf, Tensor, int | None]]) -> float:
    eps: float = max(torch.finfo(now.dtype).eps for _, now, _ in items)
    return eps


def _uniform(grad: Tensor) -> float:
    """The factor that a gradient sends into a term: its value, or the mean of its entries."""
    value: float = grad.detach().double().mean().item()
    return value


def _node_kind(node: Any) -> str:
    return re.sub(r"Backward\d*$", "", str(node.name()))


def _output_size(node: Any, index: int) -> int:
    """Elements of a node's output; 1 where torch does not tell."""
    metadata = getattr(node, "_input_metadata", None)
    if not metadata or index >= len(metadata):
        return 1
    return math.prod(int(n) for n in metadata[index].shape)


def _glue_inputs(node: Any) -> list[Any] | None:
    """The nodes below, if this node only scales, adds or reshapes scalars; None if it is a term itself."""
    kind = _node_kind(node)
    below = [(n, i) for n, i in node.next_functions if n is not None]
    if not below:
        return None
    if kind in ("Sum", "Mean"):  # of losses that were stacked; everything else is a reduction of data
        inner = below[0][0]
        if len(below) == 1 and _node_kind(inner) in ("Stack", "Cat") and _glue_inputs(inner) is not None:
            return [inner]
        return None
    if kind in _GLUE and all(_output_size(n, i) == 1 for n, i in below):
        return [n for n, _ in below]
    return None


def _describe(node: Any) -> tuple[str, str, int | None, list[float], int]:
    """Name, reduction, elements, divisors that would make a sum a mean, and line of a term's node."""
    mark = _metadata(node).get(_LOSS)
    if mark is not None:
        described: tuple[str, str, int | None, list[float], int] = mark
        return described
    name, kind = str(node.name()), _node_kind(node)
    sizes = getattr(node, "_saved_self_sym_sizes", None)
    shape = [int(n) for n in sizes] if sizes is not None else []
    elements: int | None = math.prod(shape) if sizes is not None else None
    if kind == "Mean":
        return name, "mean", elements, [], 0
    if kind == "Sum":
        return name, "sum", elements, [*_divisors(shape), *_mask_sums(node)], 0
    saved = getattr(node, "_saved_reduction", None)
    if saved in (1, 2):
        target = getattr(node, "_saved_self", None)
        if isinstance(target, Tensor):
            shape = [int(n) for n in target.shape]
        total = float(t) if isinstance(t := getattr(node, "_saved_total_weight", None), Tensor) else None
        count = round(total) if total else (math.prod(shape) if shape else None)
        return name, ("mean" if saved == 1 else "sum"), count, [*_divisors(shape), *([total] if total else [])], 0
    return name, ("sum" if kind == "Dot" else "other"), None, [], 0


def _divisors(shape: list[int]) -> list[float]:
    """All elements, each dimension, each product of leading dimensions; 1 says nothing."""
    products = [float(math.prod(shape[:i])) for i in range(1, len(shape) + 1)]
    return [n for n in [*reversed(products), *(float(n) for n in shape)] if n > 1]


def _mask_sums(node: Any) -> list[float]:
    """`(per * mask).sum()`: what the mask sums to."""
    sums = []
    for below, _ in node.next_functions:
        if below is not None and _node_kind(below) == "Mul":
            for name in ("_saved_other", "_saved_self"):
                mask = getattr(below, name, None)
                if isinstance(mask, Tensor) and mask.numel() > 1 and not mask.requires_grad:
                    sums.append(float(mask.double().sum()))
    return [n for n in sums if n > 0]


def _own_divisor(n: float, divisors: list[float]) -> float | None:
    """The divisor of `divisors` in n: n itself, or the first (all elements, else the batch) that n is a multiple of."""
    for divisor in divisors:
        if abs(n - divisor) <= 1e-5 * divisor:
            return divisor
    for divisor in divisors[:1]:
        if n / divisor > 1.5 and abs(n / divisor - round(n / divisor)) <= 1e-5:
            return divisor
    return None


def _loss_shape(name: str, given: dict[str, Any]) -> tuple[str, int | None, list[float]]:
    """Reduction, number of reduced elements and natural divisors of a call of a torch loss function."""
    reduction = "mean" if given["reduction"] == "batchmean" else str(given["reduction"])
    first = next((v for v in given.values() if isinstance(v, Tensor)), None)
    target = given.get("target", given.get("targets"))
    shape = list(first.shape) if first is not None else []
    elements: int | None = math.prod(shape) if shape else 1
    if name in ("cross_entropy", "nll_loss") and isinstance(target, Tensor):
        if target.is_floating_point():  # class probabilities
            shape = shape[:1] + shape[2:] if len(shape) > 1 else []
            elements = math.prod(shape) if shape else 1
        else:
            shape = list(target.shape)
            elements = int((target != given.get("ignore_index", -100)).sum())
    elif name in ("ctc_loss", "triplet_margin_loss", "cosine_embedding_loss", "multi_margin_loss"):
        shape = shape[:1] if name != "ctc_loss" else shape[1:2]
        elements = shape[0] if shape else 1
    elif name in ("multilabel_margin_loss", "multilabel_soft_margin_loss", "triplet_margin_with_distance_loss"):
        shape = shape[:1]
        elements = shape[0] if shape else 1
    elif isinstance(target, Tensor) and given["reduction"] != "batchmean":
        with suppress(RuntimeError):
            shape = list(torch.broadcast_shapes(tuple(shape), target.shape))
        elements = math.prod(shape) if shape else 1
    if given["reduction"] == "batchmean":
        elements = shape[0] if shape else 1
    extra = [float(elements)] if elements and elements > 1 else []
    return reduction, elements, [*extra, *_divisors(shape)]


def _graph_tensors(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """Tensors with a graph in an output: a tensor, or containers of tensors."""
    if isinstance(value, Tensor):
        if value.grad_fn is not None:
            yield value
    elif depth < 3:
        if isinstance(value, dict):
            inner: Iterable[Any] = list(value.values())
        elif isinstance(value, (list, tuple, set)):
            inner = list(value)
        elif hasattr(value, "__dataclass_fields__"):
            inner = list(vars(value).values()) if hasattr(value, "__dict__") else ()
        else:
            return
        for item in inner:
            yield from _graph_tensors(item, depth + 1)


def _count_sentinels(value: Any) -> int:
    """How many graphs a variable keeps alive."""
    found: set[int] = set()
    seen: set[Any] = set()
    stack = [t.grad_fn for t in _graph_tensors(value)]
    while stack and len(seen) < 20_000:
        node: Any = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        sentinel = _metadata(node).get(_SENTINEL)
        if sentinel is not None:
            found.add(id(sentinel))
        stack += [n for n, _ in node.next_functions if n is not None]
    return len(found)


_ADDING = ("add", "add_", "append", "appendleft", "extend", "insert", "setdefault", "update")


def _augmenting_line(frame: FrameType, label: str) -> int:
    """The line that adds to a variable: `x += ...`, `x = x + ...`, `x.append(...)`, `x[...] = ...`; 0 if not found."""
    try:
        lines, first = inspect.getsourcelines(frame.f_code) if frame.f_code.co_name != "<module>" else ([], 1)
        if not lines:
            lines = Path(frame.f_code.co_filename).read_text(encoding="utf-8").splitlines(keepends=True)
        indent = len(lines[0]) - len(lines[0].lstrip())
        tree = ast.parse("".join(line[indent:] if line[:indent].isspace() else line for line in lines))
    except (OSError, SyntaxError, TypeError, IndexError, UnicodeDecodeError):
        return 0
    names = {label, label.rpartition(".")[2]}

    def is_holder(node: ast.AST) -> bool:
        while isinstance(node, ast.Subscript):
            node = node.value
        return ast.unparse(node) in names or (isinstance(node, ast.Attribute) and "." in label and node.attr in names)

    for node in ast.walk(tree):
        match node:
            case ast.AugAssign(target=target) if is_holder(target):
                return node.lineno + first - 1
            case ast.Assign(targets=[target], value=value) if is_holder(target):
                kept = isinstance(target, ast.Subscript) or any(
                    is_holder(n) for n in ast.walk(value) if isinstance(n, (ast.Name, ast.Attribute))
                )
                if kept:
                    return node.lineno + first - 1
            case ast.Call(func=ast.Attribute(value=value, attr=method)):
                if method in _ADDING and is_holder(value):
                    return node.lineno + first - 1
    return 0


_HORIZONS = ("total_steps", "T_max", "num_training_steps", "total_iters", "max_steps", "max_iters", "max_iter")


def _scheduler_result(record: _Scheduler) -> dict[str, Any]:
    scheduler = record.scheduler
    found: dict[str, Any] = dict(vars(scheduler))
    for function in getattr(scheduler, "lr_lambdas", ()):
        found.update(getattr(function, "keywords", None) or {})
        inner = getattr(function, "func", function)
        code, cells = getattr(inner, "__code__", None), getattr(inner, "__closure__", None)
        if code is not None and cells:
            for name, cell in zip(code.co_freevars, cells, strict=False):
                with suppress(ValueError):  # an empty cell
                    found[name] = cell.cell_contents
    sizes = {
        name: int(value)
        for name, value in found.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and float(value).is_integer()
        if not name.startswith("_") and name not in ("last_epoch", "verbose", "base_lrs", "num_bad_epochs", "best")
    }
    horizon = next((sizes[name] for name in _HORIZONS if name in sizes), None)
    return {
        "name": type(scheduler).__name__,
        "optimizer": record.optimizer,
        "line": record.line,
        "horizon": horizon,
        "sizes": sizes,
        "initial_lr": record.initial_lr,
        "lrs": record.lrs,
        "lines": record.lines,
    }
