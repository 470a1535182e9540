"""The measuring process: a fork server with torch and the instruments loaded, and the children that run scripts.

`serve()` reads one JSON request a line from standard input and answers with JSON lines: progress, if it was asked for,
and the measurement last. Each script runs in a forked child with its own process group, limits on time, memory and
file sizes, fixed seeds, captured output and a scratch folder that takes every write (`guard.py`). The child sends what
it has measured so far again and again, then all of it and ends with `os._exit`, so that neither a hang nor an exit
handler nor a kill of the script loses more than the last moment.
"""

from __future__ import annotations

import builtins
import contextlib
import gc
import importlib
import json
import os
import random
import re
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from acclint.probe import guard
from acclint.probe.instruments import patches
from acclint.probe.instruments.ledger import Ledger
from acclint.probe.slices import program

MEMORY = 6 << 30  # bytes of address space beyond what the server has mapped
OUTPUT = 64 << 10  # bytes of standard output and standard error that are kept
GRACE = 3.0  # seconds between the soft and the hard end of a run
POLL = 1.0  # seconds between two looks whether the client lives
FIRST_REPORTS = 16  # so many measurements of a running script are sent whatever they cost,
REPORTING = 0.05  # the others may take this share of the time

# A script that names a floating dtype, numpy or autocast keeps torch's default dtype.
_NAMES_DTYPE = re.compile(
    r"float16|float32|float64|bfloat16|torch\.(?:float|half|double)\b|\.(?:float|half|double|bfloat16)\(|"
    r"(?:Float|Double|Half)Tensor|default_dtype|autocast|numpy|\bnp\.|from_pretrained"
)
_DTYPE_ERROR = re.compile(r"dtype|Double|Float|float64|double|scalar type")

Reply = dict[str, Any]


class _ClientGone(Exception):
    """Nobody waits for the answer any more."""


class _Client:
    """The process that asks. It sends nothing while it waits for an answer."""

    def __init__(self) -> None:
        self.pid = os.getppid()
        self.requests, self.replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)

    def receive(self) -> Reply:
        while not select.select([self.requests], [], [], POLL)[0]:
            self.check()
        line = self.requests.readline()
        if not line:
            raise _ClientGone
        request = json.loads(line)
        assert isinstance(request, dict)
        return request

    def send(self, reply: Reply) -> None:
        try:
            self.replies.write(json.dumps(reply).encode() + b"\n")
            self.replies.flush()
        except BrokenPipeError:
            raise _ClientGone from None

    def wait_for(self, reader: int, seconds: float) -> bool:
        """Whether there is something to read within that time."""
        requests = self.requests.fileno()
        ready = select.select([reader, requests], [], [], min(seconds, POLL))[0]
        if requests in ready:
            raise _ClientGone
        self.check()
        return reader in ready

    def check(self) -> None:
        """The end of its pipe tells that a client is gone, but not if a fork of it lives on."""
        if os.getppid() != self.pid:
            raise _ClientGone


def serve(scratch: str) -> None:
    """Answer requests until the client ends; `scratch` is a directory for what scripts write, deleted then."""
    guard.adopt_orphans()
    tempfile.tempdir = scratch
    client = _Client()
    try:
        ledger = _warm_up()
        client.send({"ready": True, "torch": torch.__version__})
        while True:
            request = client.receive()
            try:
                reply = _answer(ledger, request, client)
            except _ClientGone:
                raise
            except Exception as error:
                reply = {"failure": f"the script could not be started: {type(error).__name__}: {error}"}
            client.send(reply)
    except _ClientGone:
        pass
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _warm_up() -> Ledger:
    """Pay for every slow import here, but start no thread: a backward call would, and forked children could not."""
    torch.set_num_threads(1)
    ledger = Ledger()
    # imports torch._dynamo, which in old versions looks into what is patched
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    patches.install(ledger)
    try:
        import numpy as np

        np.random.seed(0)
    except ImportError:
        pass
    gc.collect()
    gc.freeze()  # the children's collector leaves these pages alone, so they stay shared
    return ledger


def _answer(ledger: Ledger, request: Reply, client: _Client) -> Reply:
    """Measure, in float64 if that is asked for and the script does not mind."""
    text = request["text"]
    if text is None:
        text = Path(request["path"]).read_text(encoding="utf-8", errors="replace")
    force = request["double"] and _NAMES_DTYPE.search(text) is None
    reply = _run_in_child(ledger, request, text, force, client)
    if force and reply.get("outcome") == "crashed" and _DTYPE_ERROR.search(reply["error"] or ""):
        reply = _run_in_child(ledger, request, text, False, client)
    return reply


# --- the server's side of a run --------------------------------------------------------------------------------------


def _run_in_child(ledger: Ledger, request: Reply, text: str, force_double: bool, client: _Client) -> Reply:
    with tempfile.TemporaryDirectory(prefix="run-", ignore_cleanup_errors=True) as folder:
        scratch = Path(folder)
        (scratch / "cwd").mkdir()
        reader, writer = os.pipe()
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(reader)
                _Child(ledger, request, text, force_double, scratch, writer).run()
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(70)
        os.close(writer)
        try:
            reply = _read_reply(reader, began + request["timeout"] + GRACE, client, request["progress"])
        finally:
            os.close(reader)
            status = _end(pid)
        timed_out = time.monotonic() - began >= request["timeout"]
        if reply is not None and "failure" in reply:
            return reply
        if reply is None or reply["outcome"] == "running":
            reply = reply or Ledger().result()
            outcome = "timeout" if timed_out else "crashed"
            seconds = time.monotonic() - began
            reply |= {"outcome": outcome, "error": _death(status), "error_line": 0, "seconds": seconds}
        reply["forced_double"] = force_double
        reply["stdout"] = _tail(scratch / "stdout")
        reply["stderr"] = _tail(scratch / "stderr")
        if reply["outcome"] == "crashed" and (reply["error"] or "").startswith("SystemExit"):
            last = reply["stderr"].strip().rpartition("\n")[2]
            reply["error"] += f": {last}" if last else ""
        return reply


def _read_reply(reader: int, deadline: float, client: _Client, progress: bool) -> Reply | None:
    """The last of the length-prefixed JSON messages of the child: the final one, or one of outcome "running".

    None if it never sent any. The child's own children may hold the pipe open.
    """
    data = b""
    reply: Reply | None = None
    while (left := deadline - time.monotonic()) > 0:
        if not client.wait_for(reader, left):
            continue
        chunk = os.read(reader, 1 << 20)
        if not chunk:
            return reply
        data += chunk
        while len(data) >= 8 and len(data) >= (end := 8 + struct.unpack("<Q", data[:8])[0]):
            reply = json.loads(data[8:end])
            assert isinstance(reply, dict)
            data = data[end:]
            if reply.get("outcome") != "running":
                return reply
            if progress:
                updates = sum(len(optimizer["updates"]) for optimizer in reply["optimizers"])
                client.send({"updates": updates, "backwards": len(reply["backwards"]), "seconds": reply["seconds"]})
    return reply


def _end(pid: int) -> int:
    """Reap the child and end whatever it has left."""
    deadline = time.monotonic() + 0.5
    status = 0
    done = 0
    while not done and time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if not done:
            time.sleep(0.001)
    if not done:
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    guard.end_descendants(pid)
    return status


def _death(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"the process ended with status {os.waitstatus_to_exitcode(status)}"


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - OUTPUT))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


# --- the child -------------------------------------------------------------------------------------------------------


class _Child:
    """Runs one script in this process and sends what the ledger says."""

    def __init__(
        self, ledger: Ledger, request: Reply, text: str, force_double: bool, scratch: Path, writer: int
    ) -> None:
        self.ledger = ledger
        self.request = request
        self.text = text
        self.force_double = force_double
        self.scratch = scratch
        self.writer = writer
        self.pid = os.getpid()
        self.exit = os._exit
        self.sent = False
        self.sent_at = time.monotonic()
        self.cost = 0.0  # seconds that the last message took
        self.reports = 0

    def run(self) -> NoReturn:
        os.setsid()
        os.closerange(3, self.writer)  # the server's own pipes, so that its client sees when it ends
        os.closerange(self.writer + 1, 256)
        path = self._prepare()
        outcome, error, line = self._execute(path)
        if os.getpid() != self.pid:  # a process that the script forked ran to the end of the script
            self.exit(0)
        self.send(outcome, error, line)

    def send(self, outcome: str, error: str | None = None, line: int = 0) -> NoReturn:
        """Send the measurement and end the process, whatever the script is doing."""
        if not self.sent:
            self.sent = True
            signal.setitimer(signal.ITIMER_REAL, 0)
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError, AttributeError):
                    stream.flush()
            try:
                self.ledger.close()
                reply = {**self.ledger.result(), "outcome": outcome, "error": error, "error_line": line}
                if self.request.get("slice"):
                    reply["slice"] = program.notes(reply, self.ledger.optimizer_ids)
            except Exception:
                reply = {"failure": traceback.format_exc()}
            if self.ledger.failure:
                reply = {"failure": self.ledger.failure}
            if "failure" in reply:
                reply["failure"] = f"the instruments failed: {reply['failure'].strip()}"
            self._write(reply)
        self.exit(0)

    def progress(self) -> None:
        """Send the measurement so far, if the last one is old enough for what it costs."""
        began = time.monotonic()
        if self.sent or os.getpid() != self.pid:
            return
        if self.reports >= FIRST_REPORTS and (began - self.sent_at) * REPORTING < self.cost:
            return
        self.reports += 1
        # a message cut in two by the alarm's would make both unreadable
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        try:
            self._write({**self.ledger.result(), "outcome": "running", "error": None, "error_line": 0})
        finally:
            self.sent_at = time.monotonic()
            self.cost = self.sent_at - began
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})

    def _write(self, message: Reply) -> None:
        body = json.dumps(message).encode()
        data = memoryview(struct.pack("<Q", len(body)) + body)
        while data:
            data = data[os.write(self.writer, data) :]

    def _prepare(self) -> str:
        timeout = self.request["timeout"]
        out = os.open(self.scratch / "stdout", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        err = os.open(self.scratch / "stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(err, 2)
        guard.set_limits(int(timeout + GRACE) + 1, None if torch.cuda.is_available() else MEMORY)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, lambda *_: self.send("timeout", f"no end within {timeout:g} seconds"))

        path: str | None = self.request["path"]
        if path is None:
            path = str(self.scratch / "script.py")
            Path(path).write_text(self.text, encoding="utf-8")
        os.chdir(self.request["cwd"] or self.scratch / "cwd")
        tempfile.tempdir = os.environ["TMPDIR"] = str(self.scratch)
        sys.argv = [path, *self.request["argv"]]
        if not self.request.get("slice"):  # which imports none of the user's files
            sys.path.insert(0, str(Path(path).parent))
        random.seed(0)
        torch.manual_seed(0)
        if self.force_double:
            torch.set_default_dtype(torch.float64)
        os._exit = self._script_exits
        guard.Guard(str(self.scratch), self.request["allow_write"]).install()
        guard.die_with_parent()  # not before: a change of user namespace takes it back
        signal.setitimer(signal.ITIMER_REAL, timeout)
        return path

    def _script_exits(self, status: int) -> NoReturn:
        if os.getpid() != self.pid:
            self.exit(status)
        self.send("crashed" if status else "finished", f"os._exit({status})" if status else None)

    def _execute(self, path: str) -> tuple[str, str | None, int]:
        try:
            run = self._entry() if self.request["entry"] else self._script(path)
            self.ledger.start(path, self.request["limits"], self.send, self.progress)
            run()
        except SystemExit as error:
            if error.code is None or error.code == 0:
                return "finished", None, 0
            return "crashed", " ".join(f"SystemExit: {error.code}".split()), _error_line(error, path)
        except BaseException as error:
            if os.getpid() == self.pid:
                _print(error)
            last = " ".join(traceback.format_exception_only(type(error), error)[-1].split())
            line = error.lineno or 0 if isinstance(error, SyntaxError) else _error_line(error, path)
            return "crashed", last, line
        return "finished", None, 0

    def _script(self, path: str) -> Callable[[], None]:
        if self.request.get("slice"):
            return program.program({**self.request["slice"], "path": path}, self.text)
        module = types.ModuleType("__main__")
        module.__dict__.update(__file__=path, __builtins__=builtins, __cached__=None)
        code = compile(self.text, path, "exec")
        sys.modules["__main__"] = module
        return lambda: exec(code, module.__dict__)

    def _entry(self) -> Callable[[], None]:
        """MODULE:FUNCTION, called without arguments; what it returns as (callable, args, kwargs) is called, too."""
        name, _, function = self.request["entry"].partition(":")

        def run() -> None:
            made = getattr(importlib.import_module(name), function)()
            if isinstance(made, tuple) and len(made) == 3 and callable(made[0]):
                call, args, kwargs = made
                call(*args, **kwargs)

        return run


def _print(error: BaseException) -> None:
    """The traceback of a script, without the frames that ran it."""
    here = str(Path(__file__).parent)
    frames = [
        one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith((here, "<frozen"))
    ]
    shown = traceback.TracebackException.from_exception(error)
    shown.stack = traceback.StackSummary.from_list(frames)
    print("".join(shown.format()), end="", file=sys.stderr)


def _error_line(error: BaseException, path: str) -> int:
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == path]
    return lines[-1] if lines else 0
