"""Keeps a measured script away from the user's files, the network and other programs.

There are two layers. The kernel's holds for everything the script does, C code and its own children included, where the
kernel has it: Landlock refuses writes outside the scratch folder (Linux 5.13, man 7 landlock), a network namespace has
only the loopback (man 7 network_namespaces). Python's layer redirects what the script writes into the scratch folder,
so that it can go on and read it again, and refuses the rest by an audit hook.

All of it is against accidents (overwritten checkpoints, uploads, a fork bomb of loaders), not against hostile code.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import fcntl
import io
import os
import resource
import shutil
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

FILE_SIZE = 256 << 20  # bytes a script may write to one file

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1

# Landlock: system calls (the same on all architectures) and access rights by their first ABI version.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_WRITE_FILE, _REFER, _TRUNCATE = 1 << 1, 1 << 13, 1 << 14
_CHANGE_FOLDER = sum(1 << bit for bit in range(4, 13))  # remove and make entries of all kinds

_LIBC = ctypes.CDLL(None, use_errno=True)


# --- processes and limits --------------------------------------------------------------------------------------------


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends (Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def adopt_orphans() -> None:
    """Processes that a script leaves behind become children of this one, so that they can be found (Linux)."""
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_descendants(group: int) -> None:
    """Kill a process group, and whatever else descends from this process; reap what becomes a child of it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
    for _ in range(100):  # a process may fork while it is looked for
        found = _descendants(os.getpid())
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _descendants(ancestor: int) -> list[int]:
    """Living descendants of a process, by /proc; none where there is no /proc."""
    parents: dict[int, int] = {}
    # Not the glob `[0-9]*/stat`, which asks for the state of the file and fails where a process ends at that moment.
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(entry.name)] = int(parent)
    found: list[int] = []
    wanted = {ancestor}
    while wanted:
        wanted = {pid for pid, parent in parents.items() if parent in wanted and pid not in found}
        found += wanted
    return found


def set_limits(cpu: int, memory: int | None) -> None:
    """`cpu` in seconds, `memory` in bytes of address space beyond what is mapped now (None: no limit)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing too much raises OSError instead
    mapped = _mapped()
    if memory is not None and mapped is not None:
        resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, mapped + memory))


def _mapped() -> int | None:
    """Bytes of address space in use; None where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (OSError, ValueError):
        return None


# --- the kernel's layer ----------------------------------------------------------------------------------------------


def isolate_network() -> bool:
    """Leave this process only the loopback interface. Whether that was possible; only without other threads."""
    if sys.platform != "linux":
        return False
    user, group = os.geteuid(), os.getegid()
    if _LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return False
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))
    except OSError:
        pass  # without the loopback, or under another user's number: still no network
    return True


def restrict_writes(folders: Iterable[str]) -> bool:
    """Refuse every write outside `folders` and /dev, in this process and its children. Whether the kernel can."""
    if sys.platform != "linux":
        return False
    version = _LIBC.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    writes = _WRITE_FILE | _CHANGE_FOLDER | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    handled = struct.pack("Q", writes)
    ruleset = _LIBC.syscall(_CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), 0)
    if ruleset < 0:
        return False
    try:
        allowed = dict.fromkeys(folders, writes)
        into = _WRITE_FILE | (writes & _TRUNCATE)
        for folder, access in {**allowed, "/dev/shm": writes, "/dev": into, "/proc": into}.items():
            with contextlib.suppress(FileNotFoundError):
                beneath = os.open(folder, os.O_PATH | os.O_CLOEXEC)
                rule = struct.pack("=Qi", access, beneath)
                failed = _LIBC.syscall(_ADD_RULE, ruleset, 1, rule, 0)
                os.close(beneath)
                if failed:
                    return False
        _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        return bool(_LIBC.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


# --- Python's layer --------------------------------------------------------------------------------------------------


class Guard:
    """Keeps writes in the scratch folder and in `allowed` folders.

    What goes through Python's `open`, torch.save and the like is redirected into the scratch folder, the rest refused.
    """

    def __init__(self, scratch: str, allowed: Iterable[str] = ()) -> None:
        self.scratch = os.path.realpath(scratch)
        self.folders = (self.scratch, *(os.path.realpath(folder) for folder in allowed))
        self.inside = (*(folder.rstrip(os.sep) + os.sep for folder in self.folders), "/dev/", "/proc/self/")
        self.kernel = False

    def install(self) -> None:
        self._redirect_open()
        self._redirect_files()
        self._redirect_torch()
        if "MASTER_ADDR" not in os.environ:  # processes that torchrun started have to find each other
            isolate_network()
        self.kernel = restrict_writes(self.folders)
        self._refuse_programs()
        sys.addaudithook(self.audit)

    def is_inside(self, path: str) -> bool:
        # the folder is resolved, but not a link in it: what is renamed or removed is the link
        folder, name = os.path.split(os.path.abspath(path))
        return any(
            one.startswith(self.inside) or one in self.folders
            for one in (str(Path(os.path.realpath(folder), name)), os.path.realpath(path))
        )

    def overlay(self, path: Any) -> Path:
        """Where a path outside the scratch folder is kept."""
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

    def _redirect_files(self) -> None:
        """Folders made, and files renamed and removed, that the script itself has written."""
        mkdir = os.mkdir

        def guarded_mkdir(path: Any, *args: Any, **kwargs: Any) -> None:
            if self.is_outside(path) and not Path(os.fsdecode(path)).exists():
                self.overlay(path).mkdir(parents=True, exist_ok=True)
            else:
                mkdir(path, *args, **kwargs)

        os.mkdir = guarded_mkdir

        def moving(original: Callable[..., None]) -> Callable[..., None]:
            def guarded(source: Any, target: Any, **kwargs: Any) -> None:
                mine = self.is_outside(source) and self.overlay(source).exists()
                if mine or (not self.is_outside(source) and self.is_outside(target)):
                    original(self.to_read(source), self.to_write(target), **kwargs)
                else:
                    original(source, target, **kwargs)

            return guarded

        def removing(original: Callable[..., None]) -> Callable[..., None]:
            def guarded(path: Any, **kwargs: Any) -> None:
                original(self.to_read(path), **kwargs)

            return guarded

        os.rename, os.replace = moving(os.rename), moving(os.replace)
        os.remove, os.unlink, os.rmdir = removing(os.remove), removing(os.unlink), removing(os.rmdir)

    def _redirect_torch(self) -> None:
        """torch.save writes in C++, which no audit hook sees."""
        import torch

        save, load = torch.save, torch.load

        def guarded_save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
            save(obj, self.to_write(f), *args, **kwargs)

        def guarded_load(f: Any, *args: Any, **kwargs: Any) -> Any:
            return load(self.to_read(f), *args, **kwargs)

        torch.save, torch.load = guarded_save, guarded_load

    def _refuse_programs(self) -> None:
        """Without the kernel's layer, the helper processes of multiprocessing would be unguarded; no event tells."""
        if self.kernel:
            return
        with contextlib.suppress(ImportError):
            import _posixsubprocess

            def refused(*args: Any) -> Any:
                raise PermissionError("starting a program is refused while a script is measured")

            setattr(_posixsubprocess, "fork_exec", refused)  # noqa: B010

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


_GUARDED: dict[str, Callable[[Guard, str, tuple[Any, ...]], None]] = {
    "open": Guard.check_open,
    "os.remove": Guard.check_path,
    "os.rename": Guard.check_path,
    "os.rmdir": Guard.check_path,
    "os.mkdir": Guard.check_path,
    "os.link": Guard.check_path,
    "os.symlink": Guard.check_path,
    "os.truncate": Guard.check_path,
    "os.chmod": Guard.check_path,
    "shutil.rmtree": Guard.check_path,
    "socket.connect": Guard.check_connect,
    "socket.getaddrinfo": Guard.check_connect,
    "subprocess.Popen": Guard.refuse,
    "os.system": Guard.refuse,
    "os.exec": Guard.refuse,
    "os.posix_spawn": Guard.refuse,
}
