"""Measuring a training script with torch: `measure(script)` runs it unchanged and tells what its updates consist of.

The script runs in a forked child of a server process that has imported torch once, so one measurement costs about a
tenth of a second. This module itself needs no torch: it holds what a measurement says and the client of that server.

    m = measure(Path("train.py"))
    m.matrix(0)     # per update of the first optimizer: backward call -> factor times weight of the loss
    m.relative(0, k=4)      # the same so that 1 is right in windows of 4 micro-batches

Only POSIX systems can fork; elsewhere `measure` raises `OracleError`.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union

from acclint import Problem

__all__ = [
    "Backward",
    "BatchNormUse",
    "Comparison",
    "Discard",
    "Event",
    "Holder",
    "Leftover",
    "Limits",
    "LiveCount",
    "Measurement",
    "OptimizerRecord",
    "Oracle",
    "OracleError",
    "SchedulerRecord",
    "Term",
    "Update",
    "measure",
]

Outcome = Literal["finished", "stopped", "crashed", "timeout"]


@dataclass(frozen=True)
class Limits:
    """When a run is ended ("stopped"), and how long its epochs are.

    `timeout` is in seconds of wall time. `backwards` and `updates` are numbers of calls; after `updates` steps of an
    optimizer the run goes on to the end of the epoch, but not beyond four times as many. With `batches` = (base, least)
    each DataLoader has at least `least` batches and as many modulo `base` as it had; None leaves them alone. With
    `shadow` a window is run again in forks to compare it with the same data as one batch.
    """

    timeout: float = 20.0
    backwards: int = 400
    updates: int | None = None
    batches: tuple[int, int] | None = None
    shadow: bool = False


class OracleError(Problem):
    """The measurement itself could not be made: no torch, no fork, or the server died."""


# --- what a measurement says -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """One thing that happened, in order.

    `kind` is one of backward, grad (torch.autograd.grad on parameters), zero, step, closure, scheduler, clip, unscale,
    scaler_step, scaler_update, ema, loader_begin, loader_end. `line` is the script's line (0: not known), `file` is
    empty for the script itself. `owners` are indices into `Measurement.optimizers`. `ordinal` counts the thing itself:
    the backward call, the update of its optimizer, the scheduler, the loader.
    """

    kind: str
    line: int
    file: str = ""
    owners: tuple[int, ...] = ()
    ordinal: int | None = None
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Term:
    """A scalar that a backward call was a sum of: a loss of one micro-batch, or a regulariser (`data` is False).

    `weight` is the factor with which the undivided term was sent backward, a GradScaler's scale taken out. A sum that
    its own element count divides (`per.sum() / x.size(0)`, a masked mean) counts as "mean" and its weight is what
    stands besides that division. `elements` is what a mean is divided by: the number of its elements, or the sum of
    their class weights; `per_element` is the weight of one of them, free of that reading. `forwards` are the model
    calls the term was computed from, `owners` the optimizers whose parameters it reaches. `function` is the torch
    function or autograd node, `line` its line where known, else 0.
    """

    weight: float
    reduction: Literal["mean", "sum", "other"]
    elements: float | None
    per_element: float | None
    function: str
    line: int
    data: bool
    forwards: tuple[int, ...]
    owners: tuple[int, ...]


@dataclass(frozen=True)
class Backward:
    """One backward call. `site` holds the lines of the user's frames, innermost first.

    `replay` marks what an optimizer evaluated again within one step (LBFGS); `via` is "grad" for torch.autograd.grad.
    `scale` is the GradScaler's scale of the loss, 1 without one.
    """

    line: int
    file: str
    site: tuple[int, ...]
    terms: tuple[Term, ...]
    owners: tuple[int, ...]
    scale: float = 1.0
    retain_graph: bool = False
    via: Literal["backward", "grad"] = "backward"
    closure: bool = False
    replay: bool = False

    def data_terms(self, optimizer: int | None = None) -> tuple[Term, ...]:
        """The terms that are losses of data and reach the optimizer; all of them if none does (gradients copied)."""
        terms = tuple(t for t in self.terms if t.data)
        return tuple(t for t in terms if optimizer is None or optimizer in t.owners) or terms

    def main_terms(self, optimizer: int | None = None) -> tuple[Term, ...]:
        """The data terms of the call site with the largest weight: one per micro-batch that this call covers.

        Terms from other call sites are further losses of the same batch, whose factors are the user's choice.
        """
        terms = self.data_terms(optimizer)
        if not terms:
            return ()
        main = max(terms, key=lambda t: abs(t.weight))
        return tuple(t for t in terms if (t.function, t.line) == (main.function, main.line))


@dataclass(frozen=True)
class Update:
    """One optimizer step that was really taken.

    `coefficients[t]` is the factor with which the gradient brought by backward call t entered `.grad` at this step
    (1: untouched), relative to the loss before any GradScaler scaling. `residual` is the relative L2 distance of the
    gradient from that combination; above 1e-3 the coefficients explain nothing, NaN means that there were too few
    parameter entries to check them. `uneven[t]` is the range of that factor where it differs between parameters: one
    of two groups zeroed, clipping layer by layer; then `coefficients` holds its mean and `residual` is large. `counted`
    is the relative L2 distance, up to a factor, from the mean over all elements (tokens, say) of the losses; None where
    their numbers are not known.
    """

    line: int
    file: str
    coefficients: dict[int, float]
    residual: float
    uneven: dict[int, tuple[float, float]]
    lr: float | None
    closure: bool = False
    counted: float | None = None


@dataclass(frozen=True)
class OptimizerRecord:
    """An optimizer in order of construction, or "manual": parameters that the script updated by hand.

    `moved`: its parameters changed though it had taken no step.
    """

    name: str
    line: int
    lr: float | None
    weight_decay: float | None
    parameters: int
    updates: tuple[Update, ...]
    moved: bool = False


@dataclass(frozen=True)
class Discard:
    """A backward call whose gradient was zeroed (at `line`, 0: not known) before any step of this optimizer."""

    backward: int
    line: int


@dataclass(frozen=True)
class Leftover:
    """Gradients that no step of one optimizer ever used: still in `.grad` at the end, and zeroed before."""

    backwards: tuple[int, ...]
    discarded: tuple[Discard, ...]


@dataclass(frozen=True)
class SchedulerRecord:
    """A learning rate scheduler; `lrs` are the rates of the first parameter group after each step of `lines`.

    `horizon` is the number of steps after which the schedule is over, where it has one. `sizes` are all its integers.
    """

    name: str
    optimizer: int | None
    line: int
    horizon: int | None
    sizes: dict[str, int]
    initial_lr: float | None
    lrs: tuple[float, ...]
    lines: tuple[int, ...]

    @property
    def steps(self) -> int:
        return len(self.lines)


@dataclass(frozen=True)
class LiveCount:
    """How many autograd graphs were alive after this backward call, or after this call of a model."""

    event: Literal["backward", "forward"]
    line: int
    graphs: int


@dataclass(frozen=True)
class Holder:
    """The variable that keeps the graphs alive and the line that adds to it (0: not found)."""

    name: str
    container: str
    line: int


@dataclass(frozen=True)
class BatchNormUse:
    """Batch statistics taken with gradients on: `samples` in the batch, `values` per channel, `count` times."""

    samples: int
    values: int
    count: int


@dataclass(frozen=True)
class Comparison:
    """A window of `micro_batches` beside the same samples as one batch, at the same weights and without dropout.

    `ratio` is the size of the accumulated gradient relative to that of the whole batch; the others are relative L2
    distances with that factor taken out, NaN where they are not known: `error` between the two, `noise` with other
    random numbers and the micro-batches in another order, `frozen` with BatchNorm on its stored statistics (None where
    it was not used in training), `counted` from the whole batch to the micro-batches weighed by their numbers of
    elements. With a `reason` no window was compared.
    """

    reason: str
    optimizer: int | None = None
    micro_batches: int = 0
    ratio: float = math.nan
    error: float = math.nan
    noise: float = math.nan
    frozen: float | None = None
    counted: float = math.nan


@dataclass(frozen=True)
class Measurement:
    """What one run of a script did. `error` is the exception's last line, `precision` the coarsest gradient dtype.

    `forced_double`: the script named no dtype, so torch's default was set to float64 to make the numbers exact.
    `growing`: graphs pile up with the micro-batches of a loop. `seconds` is the script's wall time.
    """

    outcome: Outcome
    error: str | None
    error_line: int
    events: tuple[Event, ...]
    backwards: tuple[Backward, ...]
    optimizers: tuple[OptimizerRecord, ...]
    schedulers: tuple[SchedulerRecord, ...]
    leftover: tuple[Leftover, ...]
    live_graphs: tuple[LiveCount, ...]
    growing: bool
    holder: Holder | None
    batch_norms: tuple[BatchNormUse, ...]
    precision: str
    forced_double: bool
    torch: str
    seconds: float
    stdout: str
    stderr: str
    comparison: Comparison | None = None

    def matrix(self, optimizer: int) -> list[dict[int, float]]:
        """Per update: backward call -> its factor times the weights of its data terms that reach the optimizer."""
        rows = []
        for update in self.optimizers[optimizer].updates:
            row = {}
            for t, a in update.coefficients.items():
                terms = self.backwards[t].data_terms(optimizer)
                row[t] = a * sum(s.weight for s in terms) if terms else a
            rows.append(row)
        return rows

    def relative(self, optimizer: int, k: int) -> list[dict[int, float]]:
        """The matrix so that 1 is right for windows of `k` micro-batches: means times k, sums as they are.

        Only the main loss of each call counts (`Backward.main_terms`), as the mean of its micro-batches.
        """
        rows = []
        for update in self.optimizers[optimizer].updates:
            row = {}
            for t, a in update.coefficients.items():
                terms = self.backwards[t].main_terms(optimizer)
                weight = sum(s.weight for s in terms) / len(terms) if terms else 1.0
                row[t] = a * weight * (1 if terms and terms[0].reduction == "sum" else k)
            rows.append(row)
        return rows

    def totals(self, optimizer: int) -> list[dict[int, float]]:
        """Per update: line of the backward call -> sum of factor times main weight; 1 is right for mean losses."""
        rows = []
        for update in self.optimizers[optimizer].updates:
            row: dict[int, float] = {}
            for t, a in update.coefficients.items():
                terms = self.backwards[t].main_terms(optimizer)
                weight = sum(s.weight for s in terms) if terms else 1.0
                line = self.backwards[t].line
                row[line] = row.get(line, 0.0) + a * weight
            rows.append(row)
        return rows

    def lost(self, optimizer: int) -> tuple[int, ...]:
        """Backward calls that reached this optimizer and that no optimizer's step ever used."""
        used = {t for o in self.optimizers for u in o.updates for t in u.coefficients}
        left = self.leftover[optimizer]
        return tuple(sorted({*left.backwards, *(d.backward for d in left.discarded)} - used))

    def lines(self, kind: str) -> list[int]:
        """The lines of all events of one kind, in order."""
        return [e.line for e in self.events if e.kind == kind]

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists for `json.dumps`; `from_json` is the way back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurement:
        result = _build(cls, data)
        assert isinstance(result, cls)
        return result


_HINTS: dict[type, dict[str, Any]] = {}


def _build(hint: Any, value: Any) -> Any:
    """Turn JSON values back into the dataclasses, tuples and integer keys that `hint` names."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if hint not in _HINTS:
            _HINTS[hint] = typing.get_type_hints(hint)
        return hint(**{name: _build(_HINTS[hint][name], v) for name, v in value.items()})
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        hints = args if args[-1] is not Ellipsis else args[:1] * len(value)
        return tuple(_build(h, v) for h, v in zip(hints, value, strict=True))
    if origin is dict:
        return {(int(key) if args[0] is int else key): _build(args[1], v) for key, v in value.items()}
    if origin in (Union, types.UnionType) and value is not None:
        return _build(next(a for a in args if a is not type(None)), value)
    return value


# --- the client of the fork server -----------------------------------------------------------------------------------

# Quiet, offline, one thread, and no compiler: hooks that dynamo traces make scripts crash.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # else it starts a pool of processes
    "WANDB_MODE": "disabled",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "Agg",
    "PYTHONHASHSEED": "0",
    "PYTHONUNBUFFERED": "",
}

PATIENCE = 5.0  # seconds for the server to end a script and to delete its files

_START = """\
import sys
sys.path[:] = [sys.argv[1], *filter(None, sys.path)]  # a random.py in the working directory is not Python's
import acclint.probe.run
sys.path.remove(sys.argv[1])
acclint.probe.run.serve(sys.argv[2])
"""


class Oracle:
    """A server process with torch and the instruments loaded; forks one child per script. Thread-safe.

    Use it as a context manager, or `measure()`, which keeps one per process. `python` is the interpreter whose torch
    is used; without `gpu` scripts see none. Scripts run one after the other: for two cores, start two.
    """

    def __init__(self, python: str | os.PathLike[str] = sys.executable, *, gpu: bool = False) -> None:
        self._python = os.fspath(python)
        self._hidden = {} if gpu else {"CUDA_VISIBLE_DEVICES": ""}
        self._lock = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._log: Any = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Oracle:
        with self._lock:
            self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server, and with it what it is running."""
        server, self._server = self._server, None
        if server is None:
            return
        assert server.stdin is not None and server.stdout is not None and self._scratch is not None
        with contextlib.suppress(OSError):
            server.stdin.close()
        try:
            server.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        server.stdout.close()
        self._log.close()
        with contextlib.suppress(OSError):
            self._scratch.cleanup()

    def measure(
        self,
        path_or_text: str | os.PathLike[str],
        *,
        argv: Sequence[str] = (),
        timeout: float = 20.0,
        max_backwards: int = 400,
        cwd: str | os.PathLike[str] | None = None,
    ) -> Measurement:
        """Run a script under the instruments; see `measure`."""
        return self.watch(path_or_text, Limits(float(timeout), int(max_backwards)), argv=argv, cwd=cwd, double=True)

    def watch(
        self,
        path_or_text: str | os.PathLike[str],
        limits: Limits,
        *,
        argv: Sequence[str] = (),
        cwd: str | os.PathLike[str] | None = None,
        double: bool = False,
        entry: str = "",
        allow_write: Sequence[str | os.PathLike[str]] = (),
        progress: Callable[[Mapping[str, float]], None] | None = None,
    ) -> Measurement:
        """The same with more to choose from.

        `double` makes float64 torch's default where the script names no dtype. `entry` is a MODULE:FUNCTION to call
        instead of running the script from its top. Folders of `allow_write` may be written to. `progress` is called
        with the numbers of updates and backwards and the seconds so far.
        """
        text: str | None = None
        path: str | None = None
        if isinstance(path_or_text, str) and "\n" in path_or_text:
            text = path_or_text
        else:
            path = os.path.abspath(os.fspath(path_or_text))
            if not Path(path).is_file():
                raise OracleError(f"no such script: {os.fspath(path_or_text)}")
        request = {
            "text": text,
            "path": path,
            "argv": list(argv),
            "cwd": None if cwd is None else os.path.abspath(os.fspath(cwd)),
            "double": double,
            "entry": entry,
            "allow_write": [os.path.abspath(os.fspath(folder)) for folder in allow_write],
        }
        return Measurement.from_json(self._request(request, limits, progress))

    def run_slice(
        self, text: str, path: str | os.PathLike[str], limits: Limits, slice: Mapping[str, Any]
    ) -> tuple[Measurement, dict[str, Any]]:
        """Run the slice `text` of the file at `path` with stand-ins; also returns what those had to answer.

        `slice` is the `spec` of `slices.program.program`.
        """
        request: dict[str, Any] = {
            "text": text,
            "path": os.path.abspath(os.fspath(path)),
            "argv": [],
            "cwd": None,
            "double": True,
            "entry": "",
            "allow_write": [],
            "slice": dict(slice),
        }
        reply = self._request(request, limits, None)
        answered = reply.pop("slice", {})
        return Measurement.from_json(reply), answered

    def _request(
        self, request: Mapping[str, Any], limits: Limits, progress: Callable[[Mapping[str, float]], None] | None
    ) -> dict[str, Any]:
        """Send a request with these limits and wait for the measurement."""
        message: dict[str, Any] = {
            **request,
            "timeout": limits.timeout,
            "limits": dataclasses.asdict(limits),
            "progress": progress is not None,
        }
        with self._lock:
            self._start()
            try:
                reply = self._ask(message)
                while "outcome" not in reply and "failure" not in reply:
                    if progress is not None:
                        progress(reply)
                    reply = self._receive()
            except KeyboardInterrupt:  # the answer would be taken for that of the next request
                self.close()
                raise
        if "failure" in reply:
            raise OracleError(reply["failure"])
        return reply

    def _start(self) -> None:
        if self._server is not None and self._server.poll() is None:
            return
        self.close()
        if not hasattr(os, "fork"):
            raise OracleError("measuring needs os.fork, which this system does not have")
        root = str(Path(__file__).resolve().parents[2])
        self._scratch = tempfile.TemporaryDirectory(prefix="acclint-")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the server
        try:
            self._server = subprocess.Popen(
                [self._python, "-c", _START, root, self._scratch.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env={**os.environ, **_ENVIRONMENT, **self._hidden},
                start_new_session=True,  # neither a Ctrl-C nor a kill of the client's group keeps it from cleaning up
            )
        except OSError as error:
            self._log.close()
            self._scratch.cleanup()
            raise OracleError(f"cannot start {self._python}: {error.strerror}") from None
        hello = self._receive()
        if hello.get("ready") is not True:
            raise OracleError(str(hello.get("failure")))

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._server is not None and self._server.stdin is not None
        try:
            self._server.stdin.write(json.dumps(request).encode() + b"\n")
            self._server.stdin.flush()
        except OSError:
            pass  # the server is gone; the read below says so
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        assert self._server is not None and self._server.stdout is not None
        line = self._server.stdout.readline()
        if line:
            reply = json.loads(line)
            assert isinstance(reply, dict)
            return reply
        self._server.wait()
        self._log.seek(0)
        last = self._log.read().decode(errors="replace").strip().rpartition("\n")[2]
        self.close()
        if "No module named 'torch'" in last:
            raise OracleError(f"{self._python} has no torch; install it there: {self._python} -m pip install torch")
        raise OracleError(f"the measuring process ended: {last or 'no message'}")


_shared: tuple[int, Oracle] | None = None
_shared_lock = threading.Lock()


def measure(
    path_or_text: str | os.PathLike[str],
    *,
    argv: Sequence[str] = (),
    timeout: float = 20.0,
    max_backwards: int = 400,
    cwd: str | os.PathLike[str] | None = None,
) -> Measurement:
    """Run a training script unchanged and return what its updates were made of.

    A string with a line break is the script's text, anything else its path. `timeout` is in seconds of wall time;
    after `max_backwards` backward calls the run is ended ("stopped"). It runs in `cwd`, by default in an empty
    scratch directory; what it writes elsewhere is kept in the scratch directory, which is deleted afterwards. That
    guards against accidents, not against hostile code.

    Raises `OracleError` if the script is missing or no measurement can be made. What goes wrong inside the script is
    part of the result.
    """
    global _shared
    with _shared_lock:
        if _shared is None or _shared[0] != os.getpid():  # a forked process must not talk to its parent's server
            oracle = Oracle()
            atexit.register(oracle.close)
            _shared = (os.getpid(), oracle)
        oracle = _shared[1]
    return oracle.measure(path_or_text, argv=argv, timeout=timeout, max_backwards=max_backwards, cwd=cwd)
