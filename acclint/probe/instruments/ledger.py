"""The ledger: what every optimizer update of a running script was made of.

Nothing is recorded until `start()` in the child that runs the script. Three things are measured, never guessed:

- how much of each backward call is in `.grad` at a step (`leaves.py`);
- with which weight each loss was sent backward (`terms.py`);
- which autograd graphs are alive (`graphs.py`).

`patches.py` puts the instruments into torch.
"""

from __future__ import annotations

import math
import os
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor

from acclint.probe.difference import RESIDUAL
from acclint.probe.instruments.graphs import Graphs
from acclint.probe.instruments.leaves import Explanation, Item, Leaf, get_grad, has_gradient, ratio
from acclint.probe.instruments.nodes import number
from acclint.probe.instruments.places import Places
from acclint.probe.instruments.ranks import Ranks
from acclint.probe.instruments.records import Call, Optimizer, Scheduler, rate_of, scheduler_result
from acclint.probe.instruments.shadow import Shadow, apart
from acclint.probe.instruments.terms import Terms

SAMPLED_TENSORS = 8  # per parameter group: enough to see one group that is treated differently
POOL_TENSORS = 16  # leaves that belong to no optimizer
NEGLIGIBLE = 1e-6  # a coefficient below this is no contribution
CHECKED_TERMS = 16  # above this many calls in one step the residual is that of the tracking, not of the whole sum
POOL = -1

register_hook: Callable[..., Any] = Tensor.register_hook  # torch's own, before it is patched


_exit = os._exit  # before a script's process replaces it


def _leave(_: str) -> NoReturn:
    _exit(0)


def _is_stepping(optimizer: Any) -> bool:
    """Whether a `step` of this very optimizer is running, of a class of the script's own."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_name == "step" and frame.f_locals.get("self") is optimizer:
            return True
        frame = frame.f_back
    return False


class Ledger:
    """All recording. One per process; inactive until `start`."""

    def __init__(self) -> None:
        self.active = False
        self.places = Places()
        self.terms = Terms()
        self.graphs = Graphs(self.places)
        self.ranks = Ranks()
        self.shadow = Shadow(self)
        self.failure = ""  # the traceback of a mistake in the ledger itself
        self.quiet = 0  # inside torch's own zeroing and stepping: no events of single gradients
        self.call_depth = 0
        self.scheduler_depth = 0
        self.max_backwards = 400
        self.max_updates: int | None = None
        self.batches: tuple[int, int] | None = None
        self.within = False  # a step() was called by the step() of the same optimizer
        self.stepped_at: tuple[str, int] = ("", 0)
        self.stop: Callable[[str], None] = lambda _: None
        self.leave: Callable[[str], NoReturn] = _leave
        self.progress: Callable[[], None] = lambda: None
        self.events: list[dict[str, Any]] = []
        self.calls: list[Call] = []
        self.current: Call | None = None
        self.optimizers: list[Optimizer] = []
        self.optimizer_ids: dict[int, int] = {}
        self.kept: dict[int, Any] = {}  # objects whose id() is used as a key
        self.hooked: set[int] = set()
        self.manual: int | None = None  # the owner of the parameters that the script updates by hand
        self.in_scaler_step = False
        self.param_owners: dict[int, set[int]] = {}
        self.leaves: dict[int, Leaf] = {}
        self.reads: list[tuple[str, int]] = []  # where the script read the gradient of a parameter without optimizer
        self.zero_place: tuple[str, int] | None = None
        self.closure_of: int | None = None
        self.schedulers: dict[int, Scheduler] = {}
        self.loaders: dict[int, int] = {}
        self.iterators: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()
        self.batch_norms: dict[tuple[int, int], int] = {}
        self.precision = ""
        self.began = 0.0

    # --- life ---

    def start(
        self,
        script: str,
        limits: Mapping[str, Any],
        stop: Callable[[str], None],
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin to record; `limits` are the fields of `Limits`.

        `stop(outcome)` is called, and must not return, when a limit is reached; `progress()` after each step.
        """
        self.places.script = script
        self.max_backwards = limits["backwards"]
        self.max_updates = limits["updates"]
        self.batches = limits["batches"]
        self.stop = stop
        self.progress = progress
        self.began = time.monotonic()
        self.shadow.wanted = limits["shadow"]
        self.shadow.deadline = self.began + limits["timeout"]
        self.active = True
        # a process that the script forks records nothing
        os.register_at_fork(after_in_child=self.pause)

    def pause(self) -> None:
        self.active = False

    def close(self) -> None:
        """Take a last look and record nothing more."""
        if self.active and self.current is None and not self.quiet:  # a timeout may come at any point
            with self.own_work():
                self.observe()
        self.active = False

    def result(self) -> dict[str, Any]:
        """What is known now; the keys are those of `Measurement` as far as the ledger knows them."""
        seconds = time.monotonic() - self.began
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
                    "moved": o.moved,
                    "updates": o.updates,
                }
                for o in self.optimizers
            ],
            "schedulers": [scheduler_result(s) for s in self.schedulers.values()],
            "leftover": [self._leftover_result(i) for i in range(len(self.optimizers))],
            "live_graphs": self.graphs.live_result(),
            **self.graphs.growth_result(),
            "comparison": self.shadow.compared,
            "batch_norms": [{"samples": s, "values": v, "count": n} for (s, v), n in self.batch_norms.items()],
            "precision": self.precision or str(torch.get_default_dtype()).removeprefix("torch."),
            "torch": torch.__version__,
            "seconds": seconds,
        }

    def _owners_of(self, call: Call) -> list[int]:
        reached = {o for key in {*call.leaves, *call.fired} for o in self.param_owners.get(key, ())}
        return sorted(reached)

    def _event_results(self, owners: dict[int, list[int]]) -> list[dict[str, Any]]:
        for event in self.events:
            if event["kind"] in ("backward", "grad"):
                event["owners"] = owners.get(event["ordinal"], [])
        return self.events

    def _backward_result(self, call: Call, owners: list[int]) -> dict[str, Any]:
        terms = []
        for term in call.terms:
            shown = {key: value for key, value in term.items() if key != "leaves"}
            keys = term["leaves"]
            reached = {o for key in keys for o in self.param_owners.get(key, ())}
            # under reentrant checkpointing the walk does not see the leaves: then every owner counts
            terms.append({**shown, "owners": sorted(reached) if keys else owners})
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

    # --- events ---

    @contextmanager
    def own_work(self) -> Iterator[None]:
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

    def event(
        self,
        kind: str,
        place: tuple[str, int] | None = None,
        owners: Iterable[int] = (),
        ordinal: int | None = None,
        **data: Any,
    ) -> dict[str, Any]:
        file, line = self.places.place() if place is None else place
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
                Optimizer(
                    type(optimizer).__name__,
                    self.places.place()[1],
                    number(first.get("lr")),
                    number(first.get("weight_decay")),
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
        self.leaves[id(param)] = leaf = Leaf(param, owner)
        grad = get_grad(param)
        if grad is not None:
            leaf.value = leaf.sample(grad)
        if param.requires_grad:
            self._hook(leaf)

    def _hook(self, leaf: Leaf) -> None:
        def hook(grad: Tensor) -> None:
            call = self.current
            if self.active and call is not None and call.via == "backward":
                with self.own_work():
                    leaf.receive(call.ordinal, grad)
                call.fired.add(id(leaf.param))
                self._note_precision(grad.dtype)

        register_hook(leaf.param, hook)
        self.hooked.add(id(leaf.param))

    def _note_precision(self, dtype: torch.dtype) -> None:
        order = ("float64", "float32", "float16", "bfloat16")
        name = str(dtype).removeprefix("torch.")
        if name in order and (not self.precision or order.index(name) > order.index(self.precision)):
            self.precision = name

    def _leaves_of(self, owner: int) -> list[Leaf]:
        return [leaf for leaf in self.leaves.values() if owner in self.param_owners.get(id(leaf.param), ())]

    def _watch_leaves(self, call: Call) -> None:
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
        if moved and not all(has_gradient(leaf) for leaf, _ in moved):  # zeroed since, out of sight
            self._take_manual_update(moved)
            moved = []
        odd: dict[int, list[Item]] = {}
        nought: list[tuple[Leaf, Tensor]] = []  # sums that are exactly 0: every factor keeps them so, and zeroing does
        unseen: set[int] = set()
        for leaf in self.leaves.values():
            pending, leaf.pending = leaf.pending, None
            grad = get_grad(leaf.param)
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
                elif leaf.coefs and not bool(now.any()):
                    nought.append((leaf, now))
                leaf.value = now
            elif not bool(now.any()):
                self._drop(leaf, now, pending, unseen)
            else:
                odd.setdefault(leaf.owner, []).append((leaf, now, pending))
        for leaf, now in nought:  # what happened to the other gradients of its optimizer
            if leaf.owner in odd:
                odd[leaf.owner].append((leaf, now, None))
            elif leaf.owner in unseen:
                self._drop(leaf, now, None, unseen)
        for items in odd.values():
            owner = items[0][0].owner
            since = -1 if owner == POOL else self.optimizers[owner].last_step
            Explanation(self.leaves.values(), since).explain(items)
        if unseen and self.zero_place is None:
            self._zero_event("unseen", ("", 0), unseen - {POOL})
        if moved:
            self._take_manual_update(moved)

    def _drop(self, leaf: Leaf, now: Tensor | None, pending: int | None, unseen: set[int]) -> None:
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
                "counted": self._counted_distance(owner, raw),
                "lr": lr,
                "closure": self.closure_of == owner,
            }
        )

    def gradient(self, owner: int) -> Tensor:
        """The sampled entries of `.grad` at the last look."""
        values = [leaf.value.double() for leaf in self._leaves_of(owner) if leaf.value is not None]
        return torch.cat(values) if values else torch.zeros(0, dtype=torch.float64)

    def counted(self, owner: int, calls: Iterable[int]) -> Tensor | None:
        """The gradient of these calls, each as often as its loss has elements; None if that is not known of all.

        The mean over all elements of a window is that, up to a factor.
        """
        factors: dict[int, float] = {}
        for t in calls:
            call = self.calls[t] if t < len(self.calls) else None
            terms = [term for term in call.terms if term["data"]] if call is not None else []
            if len(terms) != 1 or terms[0]["reduction"] != "mean" or not terms[0]["elements"] or not terms[0]["weight"]:
                return None
            factors[t] = terms[0]["elements"] / terms[0]["weight"]
        sums = []
        for leaf in self._leaves_of(owner):
            if leaf.value is not None:
                total = torch.zeros_like(leaf.value).double()
                for t, factor in factors.items():
                    if t in leaf.history:
                        total += factor * leaf.history[t].double()
                sums.append(total)
        return torch.cat(sums) if sums else None

    def _counted_distance(self, owner: int, calls: Collection[int]) -> float | None:
        if len(calls) < 2 or len(calls) > CHECKED_TERMS:
            return None
        counted = self.counted(owner, calls)
        return None if counted is None else apart(self.gradient(owner), counted)[1]

    def _scale_of(self, t: int) -> float:
        call = self.calls[t] if t < len(self.calls) else self.current  # a step inside backward
        return call.scale if call is not None else 1.0

    def _residual(self, leaves: list[Leaf], raw: dict[int, float]) -> float:
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
        return math.nan if broken and residual <= RESIDUAL else residual

    def _moved_by_hand(self) -> list[tuple[Leaf, Tensor]]:
        """Parameters of no optimizer that have changed since the last look, and their change.

        Of an optimizer that has not stepped it is only noted that there are such.
        """
        moved: list[tuple[Leaf, Tensor]] = []
        for leaf in self.leaves.values():
            free = leaf.owner == POOL or leaf.owner == self.manual
            if not free and self.optimizers[leaf.owner].updates:
                continue
            data = leaf.sample(leaf.param)
            if leaf.data is not None and leaf.data.shape == data.shape and not torch.equal(data, leaf.data):
                if free:
                    moved.append((leaf, data.double() - leaf.data.double()))
                for owner in self.param_owners.get(id(leaf.param), ()):
                    self.optimizers[owner].moved |= not self.optimizers[owner].updates
            leaf.data = data
        return moved

    def _take_manual_update(self, moved: list[tuple[Leaf, Tensor]]) -> None:
        """Parameters that changed after the script read their gradient were updated by hand."""
        returned: list[Leaf] = []
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
        rate = -ratio(grad, delta)
        parallel = float((delta + rate * grad).norm()) <= 1e-3 * float(delta.norm())  # no momentum, no weight decay
        lr = rate if parallel else None
        if self.manual is None:
            self.optimizers.append(Optimizer("manual", 0, lr, None))
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
        place = self.places.place()
        owners = {o for p in params for o in self.param_owners.get(id(p), ())}
        last = self.events[-1] if self.events else None
        continued = last is not None and last["kind"] == "zero" and (last["file"], last["line"]) == place
        outer, self.zero_place = self.zero_place, place
        try:
            with self.own_work():
                if not continued:  # nothing has happened since the last look in a loop over parameters
                    self.observe()
            self._zero_event(via, place, owners)
            self.quiet += 1
            try:
                yield
            finally:
                self.quiet -= 1
            with self.own_work():
                for leaf in [self.leaves[id(p)] for p in params if id(p) in self.leaves]:
                    grad = get_grad(leaf.param)
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
            grad = get_grad(leaf.param)
            if grad is not None and grad.layout is torch.strided and grad.data_ptr() == pointer != 0:
                return leaf.param
        return None

    def note_read(self, param: Tensor) -> None:
        leaf = self.leaves.get(id(param))
        if leaf is None or (leaf.owner != POOL and leaf.owner != self.manual):
            return
        place = self.places.place()
        if not self.reads or self.reads[-1] != place:
            self.reads.append(place)
            del self.reads[:-8]

    # --- backward ---

    def begin_backward(self, roots: list[Tensor], via: str, retain_graph: bool) -> Call:
        if len(self.calls) >= self.max_backwards or self._has_enough():
            self.stop("stopped")
        with self.own_work():
            self.observe()
        self.reads.clear()
        call = Call(len(self.calls), self.places.place(), self.places.site(), via)
        call.retain_graph = retain_graph
        if self.closure_of is not None:
            call.closure = True
            call.replay = self.optimizers[self.closure_of].evaluations > 1
        nodes = [r.grad_fn for r in roots if isinstance(r, Tensor) and r.grad_fn is not None]
        with self.own_work(), suppress(RuntimeError):  # a graph whose tensors are freed: the call itself will raise
            for node in nodes:
                call.probes += self.terms.find(node, call)
            for probe in call.probes:
                self.terms.descend(probe, call)
        scales = {probe.scale for probe in call.probes}
        call.scale = scales.pop() if len(scales) == 1 else 1.0
        if not any(probe.forwards for probe in call.probes):
            for node in nodes:
                self.graphs.mark([node], None)
        self._watch_leaves(call)
        self.current = call
        return call

    def _has_enough(self) -> bool:
        """The limit of updates is reached, and the end of an epoch too, unless that is a long way off."""
        if self.max_updates is None:
            return False
        updates = max((len(optimizer.updates) for optimizer in self.optimizers), default=0)
        if updates < self.max_updates or updates >= 4 * self.max_updates:
            return updates >= self.max_updates
        begun = [event["ordinal"] for event in self.events if event["kind"] == "loader_begin"]
        return not begun or len(set(begun)) < len(begun)

    def shortened(self, length: int) -> int:
        """How many batches of a loader of `length` are used: with (base, least) at least `least`, and as many modulo
        `base` as the loader has, so that what is left over at the end of an epoch stays the same."""
        if self.batches is None:
            return length
        base, least = self.batches
        short = least + (length - least) % base
        return min(length, short)

    def end_backward(self, call: Call) -> None:
        self.current = None
        for hook in call.hooks:
            hook.remove()
        self.calls.append(call)
        owners = self._owners_of(call)
        with self.own_work():
            call.terms = self.terms.weigh(call)
            event = self.event("backward" if call.via == "backward" else "grad", call.place, owners, call.ordinal)
            if call.closure:
                event["data"]["closure"] = True
            self.ranks.after_backward(self.leaves.values(), call.fired)
            self.observe()
        call.probes.clear()
        call.hooks.clear()
        for term in call.terms:
            self.graphs.consumed.update(term["forwards"])
        if call.via == "backward":
            with self.own_work():
                self.graphs.count("backward", call.place[1], call.site)

    def abandon_backward(self, call: Call) -> None:
        """The call raised: what its hooks saw may be in `.grad` in part, so keep it as a call without terms."""
        self.current = None
        for hook in call.hooks:
            hook.remove()
        call.probes.clear()
        self.calls.append(call)

    # --- steps ---

    def before_step(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        if not self.active:
            return None
        owner = self.optimizer_ids.get(id(optimizer))
        if owner is None:  # unpickled or copied
            with self.own_work():
                owner = self.register_group(optimizer)
        record = self.optimizers[owner]
        self.within = within = _is_stepping(optimizer)  # `super().step()`: what `.grad` holds by now is stepped with
        place = self.stepped_at if within else self.places.place()
        if within and record.taken:
            record.updates.pop()
        elif not within:
            self.stepped_at = place
        record.evaluations, record.taken = 0, False
        with self.own_work():
            self.observe()
        if not within:
            self.event("step", place, (owner,), len(record.updates))
        arguments = list(args)
        position = next((i for i, a in enumerate(arguments) if i > 0 and callable(a)), None)
        closure = kwargs.get("closure") if position is None else arguments[position]
        if closure is None:
            self.step_now(optimizer, owner, place)
            return None

        def wrapped(*a: Any, **k: Any) -> Any:
            record.evaluations += 1
            self.event("closure", place, (owner,), record.evaluations - 1)
            outer, self.closure_of = self.closure_of, owner
            try:
                result = closure(*a, **k)
                if record.evaluations == 1 and self.active:
                    self.step_now(optimizer, owner, place)
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
            self.step_now(optimizer, owner, self.places.place())  # a closure that the optimizer never called
        if self.active:
            self.progress()

    def step_now(self, optimizer: Any, owner: int, place: tuple[str, int]) -> None:
        with self.own_work():
            self.observe()
            scale = number(getattr(optimizer, "grad_scale", None))  # fused optimizers unscale inside the step
            lr = number(optimizer.param_groups[0].get("lr")) if optimizer.param_groups else None
            self.take_update(owner, place, lr, 1 / scale if scale else 1.0)
        self.optimizers[owner].taken = True
        if not self.within:
            self.shadow.stepped(owner)

    def scheduler(self, scheduler: Any) -> Scheduler:
        record = self.schedulers.get(id(scheduler))
        if record is None:
            optimizer = getattr(scheduler, "optimizer", None)
            owner = self.optimizer_ids.get(id(optimizer))
            record = Scheduler(scheduler, owner, self.places.place()[1], rate_of(scheduler))
            self.schedulers[id(scheduler)] = record
        return record
