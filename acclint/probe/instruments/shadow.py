"""One accumulation window beside the same data as one batch: what no weight shows.

The gradient of k micro-batches is that of the whole batch only if the loss is a mean over samples, each by itself.
Batch statistics, means over varying numbers of tokens and losses that compare the samples of a batch are no such thing.
At the beginning of a window its batches are fetched, and forks of the process run the window to its update and tell its
gradient, at the same weights, without dropout:

- alone: the micro-batches as they are;
- again: the same in another order, with other random numbers. No difference below that counts;
- whole: each micro-batch is all of them in one;
- frozen: alone and whole with BatchNorm on its stored statistics, if there is one in training.

A factor that all forks have (a division that is missing) cancels. The process itself goes on with the batches that were
fetched, as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import random
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from acclint.probe import guard
from acclint.probe.difference import RESIDUAL

if TYPE_CHECKING:
    from acclint.probe.instruments.ledger import Ledger

LONGEST = 60.0  # seconds that all forks together may take by estimate
WAITING, PATIENCE = 5.0, 5.0  # seconds, and times its estimate, that a fork is waited for
TRIES = 3  # windows that are looked at, if their batches cannot be put together


class Unlike(Exception):
    """Batches that cannot be put together; the message says why."""


class _InFork(Exception):
    """Raised in a fork, to go on with the script."""


@dataclass(eq=False)
class Pass:
    """One pass over a loader: how many batches were handed out, and at which of them the optimizer stepped."""

    samples: int | None  # in a batch, where the loader tells
    delivered: int = 0
    steps: list[int] = field(default_factory=list)
    buffer: deque[Any] = field(default_factory=deque)
    ended: bool = False

    @property
    def size(self) -> int:
        """Micro-batches per window, if all windows so far have as many; else 0."""
        sizes = {later - earlier for earlier, later in pairwise(self.steps)}
        if len(sizes) != 1:
            return 0
        size = sizes.pop()
        return size if self.steps[0] - size in (0, 1) else 0  # 1: the loader is one batch ahead (accelerate)

    def due(self) -> int:
        """How many updates away is the end of the window that begins with the next batch; 0 if none begins."""
        size = self.size
        if size < 2 or self.delivered % size:
            return 0
        updates = self.delivered // size + 1 - len(self.steps)
        return updates if updates in (1, 2) else 0


class Shadow:
    """Finds a window that can be repeated, and repeats it once."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.wanted = False
        self.deadline = 0.0
        self.done = False
        self.compared: dict[str, Any] | None = None
        self.tries = 0
        self.passes: dict[int, Pass] = {}
        self.read: list[Pass] = []  # since the last update
        self.owner: int | None = None
        self.began = 0.0  # the window that runs
        self.seconds = 0.0  # that the last one took
        self.uses = 0  # of BatchNorm so far
        self.normalized = False  # whether it was used in the last window
        self.mine: tuple[int, int] | None = None  # in a fork: the pipe and the updates to go

    # --- what the script does ---

    def begin(self, iterator: Any, samples: int | None) -> None:
        """A pass over a loader begins."""
        if self.wanted:
            self.passes[id(iterator)] = Pass(samples)

    def fetch(self, iterator: Any, original: Callable[[Any], Any]) -> Any:
        """The next batch of a loader; before it, perhaps, the forks."""
        at = self.passes.get(id(iterator))
        if at is None:
            return original(iterator)
        if not (at.buffer or at.ended or self.done) and at.due() and self._ready():
            self._fill(at, iterator, original)
            if len(at.buffer) == at.size:
                self._repeat(at)
        if at.ended and not at.buffer:
            raise StopIteration
        batch = at.buffer.popleft() if at.buffer else original(iterator)
        at.delivered += 1
        if at not in self.read and torch.is_grad_enabled():  # else it is an evaluation
            self.read.append(at)
        return batch if self.mine is None else copy.deepcopy(batch)  # the script may change it in place

    def stepped(self, owner: int) -> None:
        """An optimizer has taken an update; in a fork, this may be the end of it."""
        if self.mine is not None:
            pipe, left = self.mine
            self.mine = (pipe, left - 1)
            if left == 1:
                self._tell(pipe, owner)
        if self.done or not self.passes:
            return
        if self.owner not in (None, owner):
            self._give_up("several optimizers are stepped")
        elif len(self.read) > 1:
            self._give_up("several loaders are read")
        self.owner = owner
        for at in self.read:
            at.steps.append(at.delivered)
        self.read.clear()
        now, uses = time.monotonic(), sum(self.ledger.batch_norms.values())
        self.seconds, self.began = now - self.began, now
        self.normalized, self.uses = uses > self.uses, uses

    def _fill(self, at: Pass, iterator: Any, original: Callable[[Any], Any]) -> None:
        try:
            while len(at.buffer) < at.size:
                at.buffer.append(original(iterator))
        except StopIteration:
            at.ended = True

    def _ready(self) -> bool:
        """Whether the last two updates were what windows should be: all micro-batches alike, and nothing else."""
        assert self.owner is not None
        updates = self.ledger.optimizers[self.owner].updates[-2:]
        for update in updates:
            factors = list(update["coefficients"].values())
            alike = factors and max(factors) - min(factors) <= 0.01 * max(map(abs, factors))
            if not alike or update["uneven"] or not update["residual"] < RESIDUAL:
                return False
        return len({len(update["coefficients"]) for update in updates}) == 1

    def _give_up(self, reason: str) -> None:
        self.compared, self.done = {"reason": reason}, True

    # --- the forks ---

    def _repeat(self, at: Pass) -> None:
        parts = list(at.buffer)
        self.tries += 1
        began = time.monotonic()
        try:
            obstacle = self._obstacle(at.size)
            if obstacle:
                self._give_up(obstacle)
            else:
                self.compared = self._compare(at, parts, [joined(parts, at.samples)] * at.size)
                self.done = True
        except _InFork:
            self.done = True
        except Unlike as reason:
            self.compared, self.done = {"reason": str(reason)}, self.tries == TRIES
        except Exception as error:  # the script must not fail by what is done beside it
            self._give_up(f"it failed: {type(error).__name__}: {error}")
        self.began += time.monotonic() - began

    def _obstacle(self, size: int) -> str:
        """Why nothing can be forked here; empty if it can."""
        if torch.cuda.is_initialized():
            return "a process that uses a GPU cannot be forked"
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return "one of several processes cannot be repeated alone"
        forks = 2 + size + (1 + size) * self.normalized
        if self.seconds * forks > min(LONGEST, (self.deadline - time.monotonic()) / 2):
            return f"{forks} windows more would take too long"
        return ""

    def _compare(self, at: Pass, parts: list[Any], whole: list[Any]) -> dict[str, Any]:
        """The fields of `Comparison`."""
        alone = self._fork(at, parts)
        large = self._fork(at, whole) if alone else {}
        if not large:
            return {"reason": "the script did not come to its update with all samples in one batch"}
        again = self._fork(at, parts[::-1], other_seed=True)
        ratio, error = apart(alone["gradient"], large["gradient"])
        noise = apart(again.get("gradient"), alone["gradient"])[1]
        frozen = None
        if self.normalized:
            alone, large = self._fork(at, parts, frozen=True), self._fork(at, whole, frozen=True)
            frozen = apart(alone.get("gradient"), large.get("gradient"))[1]
        return {
            "reason": "",
            "optimizer": self.owner,
            "micro_batches": at.size,
            "ratio": ratio,
            "error": error,
            "noise": noise,
            "frozen": frozen,
            "counted": apart(alone.get("counted"), large.get("gradient"))[1],
        }

    def _fork(
        self, at: Pass, batches: Sequence[Any], other_seed: bool = False, frozen: bool = False
    ) -> dict[str, Tensor]:
        """What a fork says that runs the window with these batches; empty if it does not come to its update."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            self._become_fork(at, batches, writer, other_seed, frozen)
            raise _InFork
        os.close(writer)
        try:
            data = _read(reader, WAITING + PATIENCE * at.size * self.seconds)
        finally:
            os.close(reader)
            with contextlib.suppress(ProcessLookupError, ChildProcessError):  # where the script reaps them itself
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        try:
            told = json.loads(data or b"{}")
        except ValueError:  # it ended in the middle
            told = {}
        return {name: torch.tensor(values, dtype=torch.float64) for name, values in told.items()}

    def _become_fork(self, at: Pass, batches: Sequence[Any], writer: int, other_seed: bool, frozen: bool) -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        guard.die_with_parent()
        self.mine = (writer, at.due())
        ledger = self.ledger
        ledger.active = True  # what the script forks does not record, this does
        ledger.max_backwards, ledger.max_updates = sys.maxsize, None
        ledger.stop = ledger.leave
        ledger.progress = lambda: None
        at.buffer = deque(batches)
        without_dropout()
        if frozen:
            freeze_batch_norm(ledger.leave)
        if other_seed:
            random.seed(1)
            torch.manual_seed(1)
            if (numpy := sys.modules.get("numpy")) is not None:
                numpy.random.seed(1)

    def _tell(self, pipe: int, owner: int) -> NoReturn:
        update = self.ledger.optimizers[owner].updates[-1]
        with self.ledger.own_work():
            told = {"gradient": self.ledger.gradient(owner).tolist()}
            counted = self.ledger.counted(owner, update["coefficients"]) if update["residual"] < RESIDUAL else None
            if counted is not None:
                told["counted"] = counted.tolist()
        data = memoryview(json.dumps(told).encode())
        while data:
            data = data[os.write(pipe, data) :]
        self.ledger.leave("")


def _read(reader: int, seconds: float) -> bytes:
    deadline = time.monotonic() + seconds
    data = b""
    while (left := deadline - time.monotonic()) > 0:
        if select.select([reader], [], [], left)[0]:
            chunk = os.read(reader, 1 << 20)
            if not chunk:
                return data
            data += chunk
    return b""


def apart(gradient: Tensor | None, reference: Tensor | None) -> tuple[float, float]:
    """By which factor `gradient` fits `reference`, and its relative L2 distance from that; (nan, nan) if not known."""
    if gradient is None or reference is None or reference.shape != gradient.shape:
        return math.nan, math.nan
    square = float(reference @ reference)
    ratio = float(gradient @ reference) / square if square else 0.0
    norm = float(gradient.norm())
    return ratio, float((gradient - ratio * reference).norm()) / norm if norm else 0.0


# --- one batch of several --------------------------------------------------------------------------------------------


def joined(batches: Sequence[Any], samples: int | None) -> Any:
    """Micro-batches of a loader as one, along the first dimension of their tensors.

    That must be the batch dimension, of `samples` entries each: where the loader does not tell how many, of as many
    entries in all tensors of a batch. Raises Unlike.
    """
    for batch in batches:
        sizes = {len(tensor) for tensor in _tensors(batch) if tensor.dim()}
        if len(sizes) != 1 or (samples is not None and sizes != {samples}):
            raise Unlike("the first dimension of the tensors in a batch is not that of the samples")
    return _joined(list(batches))


def _tensors(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        return [tensor for value in batch.values() for tensor in _tensors(value)]
    if isinstance(batch, (list, tuple)):
        return [tensor for value in batch for tensor in _tensors(value)]
    return []


def _joined(values: list[Any]) -> Any:
    first = values[0]
    if any(type(value) is not type(first) for value in values):
        raise Unlike("the batches of a window are of several types")
    if isinstance(first, Tensor):
        if len({(value.shape[1:], value.dtype) for value in values}) > 1:
            raise Unlike("the micro-batches of a window have different shapes, and how to pad them is not known")
        if first.dim():
            return torch.cat(values)
    elif isinstance(first, Mapping):
        if all(value.keys() == first.keys() for value in values):
            made = {key: _joined([value[key] for value in values]) for key in first}
            kind: Any = type(first)
            return made if kind is dict else kind(made)
    elif isinstance(first, (list, tuple)):
        if not _tensors(first):  # an entry per sample: texts, names
            return type(first)([entry for value in values for entry in value])
        if all(len(value) == len(first) for value in values):
            parts = [_joined([value[i] for value in values]) for i in range(len(first))]
            return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    if isinstance(first, (str, bytes, int, float, Tensor, type(None))) and all(
        torch.equal(value, first) if isinstance(value, Tensor) else value == first for value in values
    ):
        return first
    raise Unlike(f"how to put batches of {type(first).__name__} together is not known")


# --- forks differ from the script ------------------------------------------------------------------------------------


def without_dropout() -> None:
    """Dropout does nothing from now on, in this process."""

    def unchanged(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return input

    for name in ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"):
        setattr(F, name, unchanged)
    setattr(torch, "dropout", unchanged)  # noqa: B010
    attention = F.scaled_dot_product_attention

    def attend(query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, **more: Any) -> Any:
        return attention(query, key, value, attn_mask, 0.0, **more)

    setattr(F, "scaled_dot_product_attention", attend)  # noqa: B010
    setattr(torch.nn.RNNBase, "dropout", property(lambda _: 0.0, lambda *_: None))  # noqa: B010


def freeze_batch_norm(leave: Callable[[str], NoReturn]) -> None:
    """BatchNorm takes its stored statistics from now on; without any, the process is left."""
    normalize = F.batch_norm

    def frozen(input: Tensor, running_mean: Any, running_var: Any, *args: Any, **kwargs: Any) -> Any:
        if running_mean is None or running_var is None:
            leave("")
        kwargs = dict(zip(("weight", "bias", "training", "momentum", "eps"), args, strict=False)) | kwargs
        return normalize(input, running_mean, running_var, **{**kwargs, "training": False})

    setattr(F, "batch_norm", frozen)  # noqa: B010
