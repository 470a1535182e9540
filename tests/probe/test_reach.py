"""What the statements of a slice reach: torch and what touches nothing; detours to files and programs are closed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from acclint.findings import Confidence, Finding, Place, Severity
from acclint.probe.confirm import Confirmer
from acclint.probe.slices.allowed import is_open, obstacle
from acclint.probe.verdict import Judged

SECRET = "what-no-slice-may-read"
LOOP = """\
import torch
from torch import nn
{before}
net = nn.Linear(4, 1)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for i in range(16):
    loss = nn.functional.mse_loss(net(torch.randn(3, 4)), torch.randn(3, 1))
    loss = loss + {after}
    loss.backward()
    if (i + 1) % 4 == 0:
        optimizer.step()
        optimizer.zero_grad()
"""


@pytest.fixture(scope="module")
def confirmer() -> Iterator[Confirmer]:
    with Confirmer() as one:
        yield one


def judge(confirmer: Confirmer, path: Path, text: str) -> Judged:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    row = next(row for row, line in enumerate(text.splitlines(), 1) if "backward(" in line)
    place = Place(str(path), row, 1, row, 40)
    evidence = {"k": {"expression": "", "value": None, "simulated_as": 4}}
    finding = Finding("ACC001", "acc001", Severity.ERROR, Confidence.HIGH, "said", place, evidence=evidence)
    confirmer.runs.clear()
    return confirmer.judge(str(path), [finding])[0]


READ = ".read(torch.os.open(FILE, 0), 99).decode()"
OPEN = ".open(FILE).read()"
DETOURS = {
    "open": ("", "open(FILE).read()"),
    "an import": ("import io", f"io{OPEN}"),
    "pathlib": ("from pathlib import Path", "Path(FILE).read_text()"),
    "numpy": ("import numpy as np", "str(np.fromfile(FILE, dtype='S22')[0])"),
    "numpy of a tensor": ("", f"torch.ones(1).numpy().ctypes._ctypes._os.fdopen(torch.os.open(FILE, 0)){READ}"),
    "a module of torch": ("", f"torch.os{READ}"),
    "a module of a module": ("import typing", f"typing.sys.modules['builtins']{OPEN}"),
    "its private name": ("import random", "random._os.read(random._os.open(FILE, 0), 99).decode()"),
    "from ... import": ("from torch import os", "os.read(os.open(FILE, 0), 99).decode()"),
    "a star": ("from torch.serialization import *\nfrom contextlib import *", f"os{READ}"),
    "torch's own importlib": ("", f"torch.importlib.import_module('io'){OPEN}"),
    "torch.load": ("", "torch.load(FILE)"),
    "torch.hub": ("", f"torch.hub.os{READ}"),
    "cpp_extension": ("import torch.utils.cpp_extension as c", "c.os.read(c.os.open(FILE, 0), 99).decode()"),
    "from_file": ("", "bytes(torch.from_file(FILE, size=22, dtype=torch.uint8).tolist()).decode()"),
    "from_file by name": (
        "",
        "bytes(getattr(torch.UntypedStorage, 'from_' + 'file')(FILE, False, 22).tolist()).decode()",
    ),
    "getattr": ("", f"getattr(len, '__se' + 'lf__'){OPEN}"),
    "attrgetter": ("import operator", f"operator.attrgetter('__self__')(len){OPEN}"),
    "builtins by name": ("", "__builtins__['open'](FILE).read()"),
    "the loader": ("", f"__loader__.load_module('io'){OPEN}"),
    "a builtin's module": ("", f"len.__self__{OPEN}"),
    "subclasses": ("", "[c for c in type.__subclasses__(object) if 'wrap_close' in str(c)][0].__init__.__globals__"),
    "globals": ("", "nn.Linear.__init__.__globals__['__builtins__']['open'](FILE).read()"),
    "a stand-in's globals": ("import unknown", f"type(unknown).__init__.__globals__['sys'].modules['io']{OPEN}"),
    "a descriptor": (
        "",
        "vars(type(nn.Linear.forward))['__glo' + 'bals__']"
        ".__get__(torch.manual_seed)['__builtins__']['open'](FILE).read()",
    ),
    "a module behind a shown one": ("", f"torch._acc_module.os{READ}"),
    "attributes of a module": ("", f"[m for m in vars(torch).values() if hasattr(m, 'os')][0].os{READ}"),
    "attributes of a class": (
        "def all_of(x):\n    found = type.__dict__['__subclasses__'](x)\n"
        "    return found + [d for c in found if c is not type for d in all_of(c)]",
        "[c for c in all_of(object) if c.__name__ == 'FileIO'][0](FILE).readall().decode()",
    ),
    "attributes of a class by name": (
        "def all_of(x):\n    found = getattr(type, '__dict__')['__subclasses__'](x)\n"
        "    return found + [d for c in found if c is not type for d in all_of(c)]",
        "[c for c in all_of(object) if c.__name__ == 'FileIO'][0](FILE).readall().decode()",
    ),
    "vars of a class": (
        "def all_of(x):\n    found = vars(type)['__subclasses__'](x)\n"
        "    return found + [d for c in found if c is not type for d in all_of(c)]",
        "[c for c in all_of(object) if c.__name__ == 'FileIO'][0](FILE).readall().decode()",
    ),
    "a file of arguments": (
        "import argparse",
        "argparse.ArgumentParser(fromfile_prefix_chars='@')._read_args_from_files(['@' + FILE])[0]",
    ),
    "a decorator": (
        "@(lambda f: keep.append(open(FILE).read()) or f)\ndef g(keep):\n    return keep\nkeep = []",
        "g(keep)[0]",
    ),
    "a default argument": ("def g(secret=open(FILE).read()):\n    return secret", "g()"),
    "a class body": ("class C:\n    secret = open(FILE).read()", "C.secret"),
    "an f-string": ("", 'f"{open(FILE).read()}"'),
    "a pattern": (
        "def g(x):\n    match x:\n        case object(__self__=found):\n            return found",
        f"g(len){OPEN}",
    ),
    "a pattern by position": (
        "class M(type):\n    def __instancecheck__(cls, x):\n        return True\n"
        "A = M('A', (), {'__match_' + 'args__': ('__self__',)})\n"
        "def g(x):\n    match x:\n        case A(found):\n            return found",
        f"g(len){OPEN}",
    ),
    "a frame": (
        "found = []\ndef items():\n    found.append(it.gi_frame.f_back)\n    yield 1\nit = items()\nlist(it)",
        "found[0].f_back.f_builtins['open'](FILE).read()",
    ),
    "a traceback": (
        "found = []\ntry:\n    torch.ones(1).view(7)\nexcept Exception as e:\n    found.append(e.__traceback__)",
        "found[0].tb_frame.f_back.f_builtins['open'](FILE).read()",
    ),
    "annotations": (
        "import typing\nclass C:\n    secret: 'open(FILE).read()'",
        "str(typing.get_type_hints(C, {})['secret'])",
    ),
    "annotations of an object": (
        "import functools\nclass C:\n    def __call__(self):\n        pass\nc = C()\n"
        "c.__annotations__ = {'x': '[].y[open(FILE).read()]'}\n@functools.singledispatch\ndef g(x):\n    return x",
        "g.register(c)",
    ),
    "argparse": ("import argparse", "argparse.FileType('r')(FILE).read()"),
    "code of dataclasses": (
        "import dataclasses",
        "dataclasses._create_fn('f', ('p',), ['return open(p).read()'], globals={})(FILE)",
    ),
    "linecache": ("import warnings", "warnings.formatwarning('', UserWarning, FILE, 1)"),
    "exec": ("exec('secret = open(FILE).read()')", "secret"),
}


@pytest.mark.parametrize("name", DETOURS)
def test_no_detour_reads_a_file(confirmer: Confirmer, tmp_path: Path, name: str) -> None:
    """What is read would be the key that a dictionary misses, and so stand in the error."""
    file = tmp_path / "secret"
    file.write_text(SECRET)
    before, after = DETOURS[name]
    text = LOOP.format(before=f"FILE = {str(file)!r}\n{before}", after=f"{{}}[{after}]")
    ast.parse(text)
    one = judge(confirmer, tmp_path / "train.py", text)
    assert one.verdict == "inconclusive", one.text
    for run in confirmer.runs.values():
        assert SECRET not in str(run.measurement), run.way


def test_a_file_with_the_name_of_an_allowed_module_is_not_run(confirmer: Confirmer, tmp_path: Path) -> None:
    for name in ("statistics", "bisect", "accelerate"):
        (tmp_path / f"{name}.py").write_text(f"raise ValueError({SECRET!r})")
    text = LOOP.format(
        before="import statistics, bisect, accelerate", after="0 * statistics.mean([bisect.bisect([], 1)])"
    )
    one = judge(confirmer, tmp_path / "train.py", text)
    assert one.verdict == "confirmed", one.text


def test_a_file_in_the_working_directory_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("copy", "random", "torch"):
        Path(f"{name}.py").write_text(f"raise ValueError({SECRET!r})")
    with Confirmer() as confirmer:
        one = judge(confirmer, tmp_path / "sub" / "train.py", LOOP.format(before="import copy", after="0"))
    assert one.verdict == "confirmed", one.text


def test_a_secret_would_be_seen(confirmer: Confirmer, tmp_path: Path) -> None:
    judge(confirmer, tmp_path / "train.py", LOOP.format(before="", after=f"{{}}[{SECRET!r}]"))
    assert any(SECRET in str(run.measurement) for run in confirmer.runs.values())


def test_what_is_usual_is_not_refused(confirmer: Confirmer, tmp_path: Path) -> None:
    before = """\
import dataclasses, functools, math, random, typing, warnings
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset
from torch.optim.lr_scheduler import LambdaLR, _LRScheduler
from torch.cuda.amp import autocast

warnings.filterwarnings("ignore")
torch.backends.cudnn.benchmark = True
if torch.__version__ < "1.0":
    raise RuntimeError(torch.__name__)

@dataclasses.dataclass(frozen=True)
class Settings:
    steps: int = 4
    names: typing.Optional[list] = None
    def __post_init__(self):
        object.__setattr__(self, "half", self.steps // 2)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.__dict__["kind"] = self.__class__.__name__
        self.body = nn.Linear(4, 1)
    def __getattr__(self, name):
        return super().__getattr__(name)
    def forward(self, x):
        return getattr(F, "relu")(self.body(x))

args = Settings()
"""
    text = LOOP.format(before=before, after="0 * args.half").replace("net = nn.Linear(4, 1)", "net = Net()")
    one = judge(confirmer, tmp_path / "train.py", text)
    assert one.verdict == "confirmed", one.text
    assert all(run.pure for run in confirmer.runs.values())


def test_a_file_of_the_users_own_reader_is_a_stand_in(confirmer: Confirmer, tmp_path: Path) -> None:
    before = "from project.data import Template\ntemplate = Template().from_file('a.txt')"
    one = judge(confirmer, tmp_path / "train.py", LOOP.format(before=before, after="0 * len(template)"))
    assert one.verdict == "consistent", one.text
    assert "`len(template)` is not known (line 9)" in one.text


def test_the_list_of_modules() -> None:
    for name in (
        "torch",
        "torch.nn.functional",
        "torch.optim.lr_scheduler",
        "math",
        "collections.abc",
        "accelerate.utils",
    ):
        assert is_open(name), name
    for name in (
        "os",
        "torch.hub",
        "torch.utils.cpp_extension",
        "torch._C",
        "torch.serialization",
        "torchvision",
        "io",
    ):
        assert not is_open(name), name


def test_the_first_obstacle_is_named_with_its_row() -> None:
    assert obstacle(ast.parse("x = 1\ny = f.__globals__\nz = f.__code__\n")) == "`__globals__` (line 2)"
    assert not obstacle(ast.parse("x = super().__init__()\nmatch x:\n    case int(1) | str(): pass\n"))
