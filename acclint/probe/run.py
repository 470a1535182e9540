"""The measuring process: a fork server with torch and the instruments loaded, and the children that run scripts.

`serve()` reads one JSON request a line from standard input and answers with one JSON line. Each script runs in a forked
child with its own process group, limits on time, memory and file sizes, fixed seeds, captured output and a scratch
directory that takes every write. The child sends its measurement through a pipe and ends with `os._exit`, so that
neither a hang nor an exit handler of the script can lose it.

The guards are against accidents (overwritten checkpoints, downloads, a fork bomb of loaders), not against hostile code.
"""

from __future__ import annotations

import builtins
import contextlib
import gc
import io
import json
import os
import random
import re
import resource
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

from acclint.probe import patches
from acclint.probe.ledger import Ledger

MEMORY = 6 << 30  # bytes of address space beyond what the server has mapped
FILE_SIZE = 256 << 20  # bytes a script may write to one file
OUTPUT = 64 << 10  # bytes of standard output and standard error that are kept
GRACE = 3.0  # seconds between the soft and the hard end of a run

# A script that names a floating dtype, numpy or autocast keeps torch's default dtype.
_NAMES_DTYPE = re.compile(
    r"float16|float32|float64|bfloat16|torch\.(?:float|half|double)\b|\.(?:float|half|double|bfloat16)\(|"
    r"(?:Float|Double|Half)Tensor|default_dtype|autocast|numpy|\bnp\.|from_pretrained"
)
_DTYPE_ERROR = re.compile(r"dtype|Double|Float|float64|double|scalar type")

Reply = dict[str, Any]


def serve(scratch: str) -> None:
    """Answer requests until standard input ends; `scratch` is a directory for what scripts write."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the client gets it too, and ends this process
    tempfile.tempdir = scratch
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    ledger = _warm_up()
    _send_line(replies, {"ready": True, "torch": torch.__version__})
    for line in requests:
        request = json.loads(line)
        try:
            reply = _answer(ledger, request)
        except Exception as error:
            reply = {"failure": f"the script could not be started: {type(error).__name__}: {error}"}
        _send_line(replies, reply)


def _send_line(stream: Any, reply: Reply) -> None:
    stream.write(json.dumps(reply).encode() + b"\n")
    stream.flush()


def _warm_up() -> Ledger:
    """Pay for every slow import here, but start no thread: a backward call would, and forked children could not."""
    torch.set_num_threads(1)
    ledger = Ledger()
    patches.install(ledger)
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)  # imports torch._dynamo
    try:
        import numpy as np

        np.random.seed(0)
    except ImportError:
        pass
    gc.collect()
    gc.freeze()  # the children's collector leaves these pages alone, so they stay shared
    return ledger


def _answer(ledger: Ledger, request: Reply) -> Reply:
    """Measure, in float64 if the script does not mind."""
    text = request["text"]
    if text is None:
        text = Path(request["path"]).read_text(encoding="utf-8", errors="replace")
    force = _NAMES_DTYPE.search(text) is None
    reply = _run_in_child(ledger, request, text, force)
    if force and reply.get("outcome") == "crashed" and _DTYPE_ERROR.search(reply["error"] or ""):
        reply = _run_in_child(ledger, request, text, False)
    return reply


# --- the server's side of a run --------------------------------------------------------------------------------------


def _run_in_child(ledger: Ledger, request: Reply, text: str, force_double: bool) -> Reply:
    scratch = Path(tempfile.mkdtemp(prefix="acclint-"))
    try:
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
            reply = _read_reply(reader, began + request["timeout"] + GRACE)
        finally:
            os.close(reader)
            status = _end(pid, patient=True)
        timed_out = time.monotonic() - began >= request["timeout"]
        if reply is not None and "failure" in reply:
            return reply
        if reply is None:
            reply = _empty_reply("timeout" if timed_out else "crashed", _death(status), time.monotonic() - began)
        reply["forced_double"] = force_double
        reply["stdout"] = _tail(scratch / "stdout")
        reply["stderr"] = _tail(scratch / "stderr")
        if reply["outcome"] == "crashed" and (reply["error"] or "").startswith("SystemExit"):
            last = reply["stderr"].strip().rpartition("\n")[2]
            reply["error"] += f": {last}" if last else ""
        return reply
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _read_reply(reader: int, deadline: float) -> Reply | None:
    """The length-prefixed JSON of the child; None if it died or hung. Its own children may hold the pipe open."""
    data = b""
    while (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([reader], [], [], left)
        if not ready:
            return None
        chunk = os.read(reader, 1 << 20)
        if not chunk:
            return None
        data += chunk
        if len(data) >= 8 and len(data) >= 8 + struct.unpack("<Q", data[:8])[0]:
            reply = json.loads(data[8:])
            assert isinstance(reply, dict)
            return reply
    return None


def _end(pid: int, patient: bool) -> int:
    """Reap the child and whatever it left in its process group."""
    deadline = time.monotonic() + (0.5 if patient else 0.0)
    status = 0
    done = 0
    while not done and time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if not done:
            time.sleep(0.001)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    if not done:
        _, status = os.waitpid(pid, 0)
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


def _empty_reply(outcome: str, error: str, seconds: float) -> Reply:
    reply = Ledger().result()
    return {**reply, "outcome": outcome, "error": error, "error_line": 0, "seconds": seconds}


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

    def run(self) -> NoReturn:
        os.setsid()
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
                reply = {**self.ledger.result(), "outcome": outcome, "error": error, "error_line": line}
            except Exception:
                reply = {"failure": traceback.format_exc()}
            if self.ledger.failure:
                reply = {"failure": self.ledger.failure}
            if "failure" in reply:
                reply["failure"] = f"the instruments failed: {reply['failure'].strip()}"
            body = json.dumps(reply).encode()
            data = memoryview(struct.pack("<Q", len(body)) + body)
            while data:
                data = data[os.write(self.writer, data) :]
        self.exit(0)

    def _prepare(self) -> str:
        timeout = self.request["timeout"]
        out = os.open(self.scratch / "stdout", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        err = os.open(self.scratch / "stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(err, 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
        cpu = int(timeout + GRACE) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
        memory = _mapped() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing too much raises OSError instead
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, lambda *_: self.send("timeout", f"no end within {timeout:g} seconds"))

        path: str | None = self.request["path"]
        if path is None:
            path = str(self.scratch / "script.py")
            Path(path).write_text(self.text, encoding="utf-8")
        os.chdir(self.request["cwd"] or self.scratch / "cwd")
        tempfile.tempdir = os.environ["TMPDIR"] = str(self.scratch)
        sys.argv = [path, *self.request["argv"]]
        sys.path[0:1] = [str(Path(path).parent), *(entry for entry in sys.path[:1] if entry)]
        random.seed(0)
        torch.manual_seed(0)
        if self.force_double:
            torch.set_default_dtype(torch.float64)
        os._exit = self._script_exits
        _Guard(str(self.scratch)).install()
        signal.setitimer(signal.ITIMER_REAL, timeout)
        return path

    def _script_exits(self, status: int) -> NoReturn:
        if os.getpid() != self.pid:
            self.exit(status)
        self.send("crashed" if status else "finished", f"os._exit({status})" if status else None)

    def _execute(self, path: str) -> tuple[str, str | None, int]:
        module = types.ModuleType("__main__")
        module.__dict__.update(__file__=path, __builtins__=builtins, __cached__=None)
        try:
            code = compile(self.text, path, "exec")
            sys.modules["__main__"] = module
            self.ledger.start(path, self.request["max_backwards"], self.send)
            exec(code, module.__dict__)
        except SystemExit as error:
            if error.code is None or error.code == 0:
                return "finished", None, 0
            return "crashed", f"SystemExit: {error.code}", _error_line(error, path)
        except BaseException as error:
            if os.getpid() == self.pid:
                traceback.print_exc()
            last = traceback.format_exception_only(type(error), error)[-1].strip()
            line = error.lineno or 0 if isinstance(error, SyntaxError) else _error_line(error, path)
            return "crashed", last, line
        return "finished", None, 0


def _error_line(error: BaseException, path: str) -> int:
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == path]
    return lines[-1] if lines else 0


def _mapped() -> int:
    """Bytes of address space in use."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (OSError, ValueError):
        return 8 << 30


class _Guard:
    """Keeps writes in the scratch directory: redirects what goes through Python, refuses the rest."""

    def __init__(self, scratch: str) -> None:
        self.scratch = os.path.realpath(scratch)
        self.inside = (self.scratch + os.sep, "/dev/", "/proc/self/")

    def install(self) -> None:
        self._redirect_open()
        self._redirect_torch()
        sys.addaudithook(self.audit)

    def is_inside(self, path: str) -> bool:
        return os.path.abspath(path).startswith(self.inside) or os.path.realpath(path).startswith(self.inside)

    def overlay(self, path: Any) -> Path:
        """Where a path outside the scratch directory is kept."""
        return Path(self.scratch, "overlay", os.path.abspath(os.fsdecode(path)).lstrip(os.sep))

    def is_outside(self, path: Any) -> bool:
        return isinstance(path, (str, bytes, os.PathLike)) and not self.is_inside(os.fsdecode(path))

    def to_read(self, path: Any) -> Any:
        if self.is_outside(path) and (kept := self.overlay(path)).exists():
            return str(kept)
        return path

    def to_write(self, path: Any) -> Any:
        if not self.is_outside(path):
            return path
        kept = self.overlay(path)
        kept.parent.mkdir(parents=True, exist_ok=True)
        return str(kept)

    def _redirect_open(self) -> None:
        original = io.open

        def guarded(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not any(c in mode for c in "wax+"):
                return original(self.to_read(file), mode, *args, **kwargs)
            kept = self.to_write(file)
            changes = kept is not file and ("a" in mode or "r" in mode)  # the file that is there, not a new one
            if changes and not Path(kept).exists() and Path(os.fsdecode(file)).is_file():
                shutil.copyfile(file, kept)
            return original(kept, mode, *args, **kwargs)

        setattr(builtins, "open", guarded)  # noqa: B010
        setattr(io, "open", guarded)  # noqa: B010
        mkdir = os.mkdir

        def guarded_mkdir(path: Any, *args: Any, **kwargs: Any) -> None:
            if self.is_outside(path) and not Path(os.fsdecode(path)).exists():
                self.overlay(path).mkdir(parents=True, exist_ok=True)
            else:
                mkdir(path, *args, **kwargs)

        os.mkdir = guarded_mkdir

    def _redirect_torch(self) -> None:
        """torch.save writes in C++, which no audit hook sees."""
        save, load = torch.save, torch.load

        def guarded_save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
            save(obj, self.to_write(f), *args, **kwargs)

        def guarded_load(f: Any, *args: Any, **kwargs: Any) -> Any:
            return load(self.to_read(f), *args, **kwargs)

        torch.save, torch.load = guarded_save, guarded_load

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        check = _GUARDED.get(event)
        if check is not None:
            check(self, event, args)

    def refuse(self, event: str, args: tuple[Any, ...]) -> None:
        raise PermissionError(f"{event} is refused while a script is measured")

    def check_open(self, event: str, args: tuple[Any, ...]) -> None:
        path, _, flags = args
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        if writes and self.is_outside(path):
            raise PermissionError(f"writing {os.fsdecode(path)} is refused while a script is measured")

    def check_path(self, event: str, args: tuple[Any, ...]) -> None:
        for path in args[:2]:
            if self.is_outside(path):
                raise PermissionError(f"{event} of {os.fsdecode(path)} is refused while a script is measured")

    def check_connect(self, event: str, args: tuple[Any, ...]) -> None:
        address = args[1] if event == "socket.connect" else args  # a name that is looked up comes with its port
        host = address[0] if isinstance(address, tuple) else None
        if host not in (None, "", "127.0.0.1", "localhost", "::1"):
            raise PermissionError(f"a connection to {host} is refused while a script is measured")


_GUARDED: dict[str, Callable[[_Guard, str, tuple[Any, ...]], None]] = {
    "open": _Guard.check_open,
    "os.remove": _Guard.check_path,
    "os.rename": _Guard.check_path,
    "os.rmdir": _Guard.check_path,
    "os.mkdir": _Guard.check_path,
    "os.link": _Guard.check_path,
    "os.symlink": _Guard.check_path,
    "os.truncate": _Guard.check_path,
    "os.chmod": _Guard.check_path,
    "shutil.rmtree": _Guard.check_path,
    "socket.connect": _Guard.check_connect,
    "socket.getaddrinfo": _Guard.check_connect,
    "subprocess.Popen": _Guard.refuse,
    "os.system": _Guard.refuse,
    "os.exec": _Guard.refuse,
    "os.posix_spawn": _Guard.refuse,
}
