"""The guard: what a measured script cannot do, and that nothing of it stays behind. Accidents only; it is no jail."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from acclint.probe import Limits, Measurement, Oracle, OracleError, guard

TRAIN = """
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

def window(k=2):
    for _ in range(k):
        (model(torch.randn(3, 4)).square().mean() / k).backward()
    optimizer.step()
    optimizer.zero_grad()

for _ in range(3):
    window()
"""

Watch = Callable[..., Measurement]


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with Oracle() as one:
        yield one


@pytest.fixture
def watch(oracle: Oracle, tmp_path: Path) -> Watch:
    """Runs three windows of training and then `body`, in a folder of the user's."""

    def run(body: str, timeout: float = 20.0, allow_write: tuple[Path, ...] = (), **limits: object) -> Measurement:
        script = tmp_path / "train.py"
        script.write_text(TRAIN + textwrap.dedent(body))
        return oracle.watch(script, Limits(timeout=timeout, **limits), cwd=tmp_path, allow_write=allow_write)

    return run


def updates(m: Measurement) -> int:
    return len(m.optimizers[0].updates) if m.optimizers else 0


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


def test_writes_land_in_the_scratch_folder_and_can_be_read_again(watch: Watch, tmp_path: Path) -> None:
    best = tmp_path / "best.pt"
    best.write_bytes(b"a week of training")
    m = watch(
        """
        import os
        from pathlib import Path
        torch.save(model.state_dict(), "best.pt")
        print(sorted(torch.load("best.pt")))
        torch.save({}, "last.tmp")
        os.replace("last.tmp", "last.pt")
        print(torch.load("last.pt"))
        Path("log.txt").write_text("x")
        os.remove("log.txt")
        os.makedirs("runs/1", exist_ok=True)
        open("runs/1/events", "wb").write(b"1")
        """
    )
    assert m.outcome == "finished", m.stderr
    assert m.stdout.splitlines() == ["['bias', 'weight']", "{}"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "train.py"]
    assert best.read_bytes() == b"a week of training"


@pytest.mark.parametrize(
    "body",
    [
        "import os; os.remove('best.pt')",
        "import os; os.rename('best.pt', 'old.pt')",
        "import os; os.truncate('best.pt', 0)",
        "import os; os.open('new', os.O_CREAT | os.O_WRONLY)",
        "import shutil; shutil.rmtree('.')",
        "import os; os.system('touch new')",
        "import subprocess; subprocess.run(['touch', 'new'])",
        "import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)",
    ],
)
def test_the_rest_is_refused(watch: Watch, tmp_path: Path, body: str) -> None:
    (tmp_path / "best.pt").write_text("old")
    m = watch(body)
    assert m.outcome == "crashed"
    assert "refused" in (m.error or "")
    assert updates(m) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "train.py"]
    assert (tmp_path / "best.pt").read_text() == "old"


def test_the_kernel_refuses_what_python_does_not_see(watch: Watch, tmp_path: Path) -> None:
    from acclint.probe import guard

    if guard._LIBC.syscall(guard._CREATE_RULESET, None, 0, 1) < 1:
        pytest.skip("no Landlock in this kernel")
    m = watch(
        """
        import ctypes, multiprocessing, os
        libc = ctypes.CDLL(None, use_errno=True)
        print(libc.open(b"new", os.O_CREAT | os.O_WRONLY, 0o600), os.strerror(ctypes.get_errno()))
        print(libc.unlink(b"train.py"))
        """
    )
    assert m.outcome == "finished", m.stderr
    assert m.stdout.splitlines() == ["-1 Permission denied", "-1"]
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]


def test_folders_can_be_allowed(watch: Watch, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    m = watch("torch.save(model, 'out/model.pt'); open('other', 'w')", allow_write=(tmp_path / "out",))
    assert m.outcome == "finished", m.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "train.py"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.pt"]


def test_loopback_works(watch: Watch) -> None:
    m = watch(
        """
        import socket
        server = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(server.getsockname(), timeout=5)
        print("connected")
        """
    )
    assert m.stdout == "connected\n", m.stderr


def test_a_script_that_hangs_is_ended_with_what_it_did(watch: Watch) -> None:
    began = time.monotonic()
    m = watch("import time\nwhile True: time.sleep(1)", timeout=1.0)
    assert time.monotonic() - began < 10
    assert (m.outcome, updates(m)) == ("timeout", 3)


def test_a_script_that_blocks_signals_is_ended_with_what_it_did(watch: Watch) -> None:
    m = watch("import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))\nwhile True: pass", timeout=1.0)
    assert (m.outcome, updates(m)) == ("timeout", 3)


def test_a_script_that_is_killed_is_known_up_to_then(watch: Watch) -> None:
    m = watch("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert m.outcome == "crashed"
    assert m.error == "killed by SIGKILL"
    assert updates(m) == 3


def test_what_daemons_it_leaves_is_ended(watch: Watch) -> None:
    m = watch(
        """
        import os, sys, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                print(os.getpid(), flush=True)
                time.sleep(600)
            os._exit(0)
        os.wait()
        while not os.path.getsize("/proc/self/fd/1"): time.sleep(0.01)
        """
    )
    assert m.outcome == "finished", m.stderr
    assert gone(int(m.stdout.split()[0]))


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
def test_a_process_that_ends_while_it_is_looked_at_does_not_end_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = os.stat

    def stat(path: str, **options: Any) -> os.stat_result:
        if str(path).startswith("/proc/") and str(path).endswith("/stat"):
            raise ProcessLookupError(errno.ESRCH, "No such process", str(path))
        return ask(path, **options)

    monkeypatch.setattr(os, "stat", stat)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert child.pid in guard._descendants(os.getpid())
    finally:
        child.kill()
        child.wait()


def test_the_script_ends_with_the_one_who_measures(tmp_path: Path) -> None:
    """Also if that one is killed and can do nothing about it."""
    script = tmp_path / "sleep.py"
    script.write_text("import time; time.sleep(600)")
    with Oracle() as oracle:
        assert oracle._server is not None
        server = oracle._server.pid

        def measure() -> None:
            with contextlib.suppress(OracleError):
                oracle.measure(script, timeout=600)

        threading.Thread(target=measure).start()
        deadline = time.monotonic() + 20
        children: list[int] = []
        while not children and time.monotonic() < deadline:
            children = [int(pid) for pid in Path(f"/proc/{server}/task/{server}/children").read_text().split()]
        assert children
        time.sleep(0.5)  # until the script runs
        os.kill(server, 9)
        assert gone(children[0])


CLIENT = """
import signal, sys
from acclint.probe import Oracle

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
with Oracle() as oracle:
    print(oracle._server.pid, flush=True)
    print(oracle.measure(sys.argv[1], timeout=600).outcome, flush=True)
"""


def client_of(script: Path, folder: Path) -> subprocess.Popen[str]:
    """A process that measures a script, with `folder` for temporary files."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(folder)}
    command = [sys.executable, "-c", CLIENT, str(script)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)


def emptied(folder: Path) -> bool:
    deadline = time.monotonic() + 10
    while any(folder.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(folder.iterdir())


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_file_and_no_process_stays_behind_a_killed_measurement(tmp_path: Path, end: signal.Signals) -> None:
    """The whole process group is killed, as a terminal or a test runner does."""
    script, folder = tmp_path / "train.py", tmp_path / "temporary"
    folder.mkdir()
    script.write_text("import torch, time\ntorch.save(1, 'x.pt')\nprint('on', flush=True)\ntime.sleep(600)")
    with client_of(script, folder) as client:
        assert client.stdout is not None
        server = int(client.stdout.readline())
        deadline = time.monotonic() + 20
        while not any(file.stat().st_size for file in folder.glob("*/*/stdout")) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(client.pid, end)
    assert gone(server)
    assert emptied(folder)


def test_no_file_stays_behind_a_measurement(tmp_path: Path) -> None:
    script, folder = tmp_path / "train.py", tmp_path / "temporary"
    folder.mkdir()
    script.write_text("import os, torch\nos.mkdir('closed', 0)\ntorch.save(1, 'x.pt')")
    with client_of(script, folder) as client:
        assert client.stdout is not None
        server = int(client.stdout.readline())
        assert client.stdout.readline() == "finished\n"
    assert gone(server)
    assert not any(folder.iterdir())


def test_memory_is_limited(watch: Watch) -> None:
    m = watch("bytearray(16 << 30)")
    assert (m.outcome, m.error) == ("crashed", "MemoryError")
    assert updates(m) == 3


def test_binary_output_and_exits_are_no_trouble(watch: Watch) -> None:
    m = watch("import sys\nsys.stdout.buffer.write(bytes(range(256)))\nsys.exit(3)")
    assert (m.outcome, m.error) == ("crashed", "SystemExit: 3")
    assert updates(m) == 3


# --- a run is cut short consistently ---------------------------------------------------------------------------------

LOADER = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = DataLoader(TensorDataset(torch.arange(4 * 998.0).reshape(-1, 4)), batch_size=3)
print(len(loader))
seen = []
for epoch in range(1000):
    for i, (x,) in enumerate(loader):
        seen.append(len(x))
        (model(x).square().mean() / 4).backward()
        if (i + 1) % 4 == 0 or i + 1 == len(loader):
            optimizer.step()
            optimizer.zero_grad()
    if epoch == 0:
        print(i + 1, seen[-1], flush=True)
"""


def test_loaders_are_shortened_and_keep_their_rest(oracle: Oracle, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(LOADER)
    m = oracle.watch(script, Limits(updates=8, batches=(4, 12)))
    assert m.outcome == "stopped", m.stderr
    # 333 batches, the last one of 2 samples: 13 is as many modulo 4, and its last batch is that of the loader
    assert m.stdout.splitlines() == ["13", "13 2"]
    begun = [event.data for event in m.events if event.kind == "loader_begin"]
    assert begun[0] == {"length": 13, "real_length": 333, "batch_size": 3}
    assert len(begun) >= 2  # the end of an epoch was reached
    assert 8 <= updates(m) <= 9


def test_short_loaders_are_left_alone(oracle: Oracle, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(LOADER.replace("998.0", "30.0"))
    m = oracle.watch(script, Limits(updates=8, batches=(4, 12)))
    assert m.stdout.splitlines() == ["10", "10 3"]


def test_a_function_can_be_called_instead(oracle: Oracle, tmp_path: Path) -> None:
    script = tmp_path / "trainer.py"
    script.write_text(
        TRAIN.replace("for _ in range(3):", "def main(n):\n    for _ in range(n):").replace(
            "    window()", "        window()"
        )
        + "def small():\n    return main, (2,), {}\n\nif __name__ == '__main__':\n    raise SystemExit(9)\n"
    )
    m = oracle.watch(script, Limits(), entry="trainer:small", cwd=tmp_path)
    assert (m.outcome, updates(m)) == ("finished", 2), m.stderr
    assert m.backwards[0].file == ""
