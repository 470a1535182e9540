"""The files of one project: what a training loop uses of other files counts as if it stood in its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from acclint.findings import Finding
from acclint.lift import lift
from acclint.lint import Result, check
from acclint.probe import Oracle
from acclint.project import link
from acclint.simulate import analyze
from tests.test_matrix import differences

FIXTURES = Path(__file__).parents[1] / "fixtures"

MAIN = """\
import torch
from torch import nn
{imports}

torch.manual_seed(0)
data = [(torch.randn(4, 3), torch.randn(4, 2)) for _ in range(10)]
net = nn.Linear(3, 2)
opt = torch.optim.SGD(net.parameters(), lr=0.1)
for epoch in range(2):
    opt.zero_grad()
    for i, (x, y) in enumerate(data):
        loss = {loss}
        {backward}
        if (i + 1) % {k} == 0:
            {update}
"""
PLAIN = {
    "imports": "",
    "loss": "nn.functional.mse_loss(net(x), y)",
    "backward": "(loss / 5).backward()",
    "k": "5",
    "update": "opt.step(); opt.zero_grad()",
}


def project(folder: Path, files: dict[str, str]) -> Path:
    """Write the files of a project; returns its folder."""
    (folder / "pyproject.toml").write_text("")
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def main(**parts: str) -> str:
    return MAIN.format(**{**PLAIN, **parts})


def codes(result: Result) -> list[str]:
    assert result.errors == ()
    return [finding.code for finding in result.findings]


def findings(folder: Path, files: dict[str, str]) -> tuple[Finding, ...]:
    """What is found in train.py of a project."""
    result = check([str(project(folder, files) / "train.py")])
    assert result.errors == ()
    return result.findings


# --- right: silence ---


HELPER = "def send(loss, k):\n    (loss / k).backward()\n"
RIGHT = {
    "the accumulation steps are 1 in a settings file": {
        "train.py": main(imports="import config", k="config.ACCUM", backward="loss.backward()"),
        "config.py": "ACCUM = 1\n",
    },
    "a helper divides": {
        "train.py": main(imports="from utils.steps import send", backward="send(loss, 5)"),
        "utils/__init__.py": "",
        "utils/steps.py": HELPER,
    },
    "a helper of a package without __init__ divides": {
        "train.py": main(imports="import utils.steps as steps", backward="steps.send(loss, 5)"),
        "utils/steps.py": HELPER,
    },
    "a helper that another file hands on divides": {
        "train.py": main(imports="from utils import send", backward="send(loss, 5)"),
        "utils/__init__.py": "from .steps import send\n",
        "utils/steps.py": HELPER,
    },
    "a helper of a wildcard import divides": {
        "train.py": main(imports="from steps import *", backward="send(loss, 5)"),
        "steps.py": HELPER,
    },
    "a loss of another file is a sum": {
        "train.py": main(imports="from losses import Squares\ncrit = Squares()", loss="crit(net(x), y)",
                         backward="loss.backward()"),
        "losses.py": "from torch import nn\n\nclass Squares(nn.Module):\n"
                     "    def forward(self, out, y):\n        return ((out - y) ** 2).sum()\n",
    },
    "a loss of another file divides": {
        "train.py": main(imports="from losses import squares", loss="squares(net(x), y, 5)",
                         backward="loss.backward()"),
        "losses.py": "def squares(out, y, k):\n    return ((out - y) ** 2).mean() / k\n",
    },
    "a helper zeroes under another name": {
        "train.py": main(imports="from steps import finish", update="finish(opt)"),
        "steps.py": "def finish(o):\n    o.step()\n    for group in o.param_groups:\n"
                    "        for p in group['params']:\n            p.grad = None\n",
    },
    "a meter of another file takes the number out": {
        "train.py": main(imports="from meters import Meter\nmeter = Meter()",
                         backward="(loss / 5).backward(); meter.add(loss)"),
        "meters.py": "class Meter:\n    total = 0\n\n    def add(self, value):\n        self.total += value.item()\n",
    },
    # bonlime/pytorch-tools, fit_wrapper/wrapper.py
    "a helper of another file makes arrays of tensors": {
        "train.py": main(
            imports="from meters import Meter, to_numpy\nmeter = Meter()",
            backward="(loss / 5).backward(); meter.add(to_numpy(loss))",
        ),
        "meters.py": "import numpy as np\nimport torch\n\ndef to_numpy(x):\n    if isinstance(x, np.ndarray):\n"
        "        return x\n    elif isinstance(x, torch.Tensor):\n        return x.detach().cpu().numpy()\n"
        "    else:\n        raise ValueError\n\nclass Meter:\n    total = 0\n\n"
        "    def add(self, value):\n        self.total += value\n",
    },
    "gradients are divided in another file before the update": {
        "train.py": main(imports="from steps import average", backward="loss.backward()",
                         update="average(net, 5); opt.step(); opt.zero_grad()"),
        "steps.py": "def average(net, k):\n    for p in net.parameters():\n        p.grad /= k\n",
    },
    "a function of another file counts in a global": {
        "train.py": main(imports="import state", backward="state.bump(); (loss / 5).backward()",
                         k="5", update="opt.step(); opt.zero_grad()").replace("(i + 1)", "state.step"),
        "state.py": "step = 0\n\ndef bump():\n    global step\n    step += 1\n",
    },
    "another file's settings are changed": {
        "train.py": main(imports="import cfg\ncfg.K = 5", backward="(loss / cfg.K).backward()"),
        "cfg.py": "K = 1\n",
    },
    "another file's class is changed": {
        "train.py": main(imports="from cfg import C\nC.K = 5", backward="(loss / C.K).backward()"),
        "cfg.py": "class C:\n    K = 1\n",
    },
    "another file's function is replaced": {
        "train.py": main(imports="import steps\ndef send(loss, k):\n    (loss / k).backward()\nsteps.send = send",
                         backward="steps.send(loss, 5)"),
        "steps.py": "def send(loss, k):\n    loss.backward()\n",
    },
    "a wildcard import offers what __all__ says": {
        "train.py": main(imports="SCALE = 5\nfrom config import *", backward="(loss / SCALE).backward()"),
        "config.py": "__all__ = ['K']\nK = 5\nSCALE = 1\n",
    },
    "a decorator of another file divides": {
        "train.py": main(imports="from losses import objective", loss="objective(net(x), y)",
                         backward="loss.backward()"),
        "losses.py": "import torch.nn.functional as F\n\ndef over(k):\n    def wrap(f):\n"
                     "        return lambda *a: f(*a) / k\n    return wrap\n\n"
                     "@over(5)\ndef objective(out, y):\n    return F.mse_loss(out, y)\n",
    },
    "a helper zeroes under a condition": {
        "train.py": main(imports="from steps import zero_grad", backward="zero_grad(opt, i, 5); (loss / 5).backward()",
                         update="opt.step()"),
        "steps.py": "def zero_grad(o, i, k):\n    if i % k == 0:\n        o.zero_grad()\n",
    },
    "a helper only computes the weight": {
        "train.py": main(imports="from steps import weight", backward="(loss * weight(5)).backward()"),
        "steps.py": "def weight(k):\n    return 1.0 / k\n",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_what_other_files_do_is_right(tmp_path: Path, name: str) -> None:
    assert findings(tmp_path, RIGHT[name]) == ()


UNSETTLED = {
    "a script's own block": "SCALE = 5\nif __name__ == '__main__':\n    SCALE = 1\n",
    "a condition": "import sys\nSCALE = 5\nif '--debug' in sys.argv:\n    SCALE = 1\n",
    "an augmented assignment": "SCALE = 1\nSCALE *= 5\n",
    "a loop": "SCALE = 1\nfor _ in range(4):\n    SCALE += 1\n",
    "a context": "from contextlib import suppress\nSCALE = 1\nwith suppress(Exception):\n    SCALE = 5\n",
    "a match": "SCALE = 1\nmatch 1:\n    case 1:\n        SCALE = 5\n",
    "a call": "SCALE = 1\n\ndef f():\n    global SCALE\n    SCALE = 5\n\nf()\n",
    "an attribute of a class": "class C:\n    S = 1\n\nC.S = 5\nSCALE = C.S\n",
    "setattr": "import sys\nSCALE = 1\nsetattr(sys.modules[__name__], 'SCALE', 5)\n",
}


@pytest.mark.parametrize("name", UNSETTLED)
def test_a_name_that_is_bound_again_is_not_what_it_was(tmp_path: Path, name: str) -> None:
    train = main(imports="import config", backward="(loss / config.SCALE).backward()")
    assert findings(tmp_path, {"train.py": train, "config.py": UNSETTLED[name]}) == ()


# --- wrong: found, at a place of the file itself ---


WRONG = {
    "a helper zeroes inside the window": ("ACC002", "clear(opt)", {
        "train.py": main(imports="from steps import clear", backward="clear(opt); (loss / 5).backward()"),
        "steps.py": "def clear(o):\n    o.zero_grad()\n",
    }),
    "a helper calls backward and does not divide": ("ACC001", "send(loss)", {
        "train.py": main(imports="from steps import send", backward="send(loss)"),
        "steps.py": "def send(loss):\n    loss.backward()\n",
    }),
    "a loss of another file is a mean": ("ACC001", "loss.backward()", {
        "train.py": main(
            imports="from losses import objective", loss="objective(net(x), y)", backward="loss.backward()"
        ),
        "losses.py": "def objective(out, y):\n    return ((out - y) ** 2).mean()\n",
    }),
    # keonlee9420/Comprehensive-Transformer-TTS: utils/model.py imports the package `model`, not itself.
    "a file is called like the package that it imports": ("ACC001", "send(loss)", {
        "train.py": main(imports="from utils.steps import send", backward="send(loss)"),
        "utils/steps.py": "from steps import back\n\ndef send(loss):\n    back(loss)\n",
        "steps/__init__.py": "from .sending import back\n",
        "steps/sending.py": "def back(loss):\n    loss.backward()\n",
    }),
    "a meter of another file keeps the graph": ("ACC005", "meter.add(loss)", {
        "train.py": main(imports="from meters import Meter\nmeter = Meter()",
                         backward="(loss / 5).backward(); meter.add(loss)"),
        "meters.py": "class Meter:\n    total = 0\n\n    def add(self, value):\n        self.total += value\n",
    }),
    "a base class of another file runs the loop": ("ACC001", "loss.backward()", {
        "train.py": "from torch import nn\nfrom base import Runner\n\nclass Mine(Runner):\n"
                    "    def one(self, x, y):\n        loss = nn.functional.mse_loss(self.net(x), y)\n"
                    "        loss.backward()\n",
        "base.py": "import torch\nfrom torch import nn\n\nclass Runner:\n    def __init__(self, data):\n"
                   "        self.data, self.net = data, nn.Linear(3, 2)\n"
                   "        self.opt = torch.optim.SGD(self.net.parameters(), lr=0.1)\n\n"
                   "    def run(self):\n        for i, (x, y) in enumerate(self.data):\n"
                   "            self.one(x, y)\n            if (i + 1) % 5 == 0:\n"
                   "                self.opt.step()\n                self.opt.zero_grad()\n",
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_other_files_do_is_wrong(tmp_path: Path, name: str) -> None:
    code, where, files = WRONG[name]
    (found,) = findings(tmp_path, files)
    assert found.code == code
    assert found.place.filename.endswith("train.py")
    row = files["train.py"].splitlines()[found.place.row - 1]
    assert where in row


def test_the_place_in_the_other_file_is_told(tmp_path: Path) -> None:
    _, _, files = WRONG["a helper zeroes inside the window"]
    (found,) = findings(tmp_path, files)
    other = [one.place for one in found.related if one.place.filename.endswith("steps.py")]
    assert [(place.row, place.column) for place in other] == [(2, 5)]


def test_a_loop_of_another_file_is_left_to_that_file(tmp_path: Path) -> None:
    loop = "import torch\n\ndef fit(net, opt, data, k):\n    for i, (x, y) in enumerate(data):\n"
    loop += "        loss = torch.nn.functional.mse_loss(net(x), y)\n        loss.backward()\n"
    loop += "        if (i + 1) % k == 0:\n            opt.step()\n            opt.zero_grad()\n"
    files = {"train.py": "from engine import fit\n\ndef main(net, opt, data):\n    opt.zero_grad()\n"
                         "    fit(net, opt, data, 5)\n", "engine.py": loop}  # fmt: skip
    assert findings(tmp_path, files) == ()
    assert codes(check([str(tmp_path)])) == ["ACC001"]


# --- what cannot be read is no error ---


@pytest.mark.parametrize(
    "helper",
    [b"def send(loss, k:\n", b"\xff\xfe\x00", b"def send(loss, k):\n    raise ValueError\n", b"from train import *\n",
     b"import steps\nsend = steps.send\n", b"send = 3\n", b"x = " + b"(" * 300 + b"\n",
     b"# loss\n" * 40_000],
)  # fmt: skip
def test_another_file_that_cannot_be_understood(tmp_path: Path, helper: bytes) -> None:
    folder = project(tmp_path, {"train.py": main(imports="from steps import send", backward="send(loss, 5)")})
    (folder / "steps.py").write_bytes(helper)
    result = check([str(folder / "train.py")])
    assert result.errors == ()


def test_files_that_import_each_other(tmp_path: Path) -> None:
    files = {
        "train.py": main(imports="from a import send", backward="send(loss, 5)"),
        "a.py": "from b import other\n\ndef send(loss, k):\n    other(loss / k)\n",
        "b.py": "from a import send\nimport train\n\ndef other(loss):\n    loss.backward()\n",
    }
    assert findings(tmp_path, files) == ()


def test_wildcards_of_many_files(tmp_path: Path) -> None:
    names = [f"m{n}" for n in range(16)]
    every = "".join(f"from {name} import *\n" for name in names)
    files = {f"{name}.py": every + "loss = 1\n" for name in names}
    files["train.py"] = main(imports=every.strip(), backward="send(loss, 5)")
    assert findings(tmp_path, files) == ()


def test_names_and_folders_that_cannot_be_asked_for(tmp_path: Path) -> None:
    files = {"train.py": main(imports=f"import {'a' * 300}\nimport locked.x", backward="(loss / 5).backward()")}
    folder = project(tmp_path, files)
    (folder / "locked").mkdir(mode=0)
    try:
        assert codes(check([str(folder / "train.py")])) == []
    finally:
        (folder / "locked").chmod(0o700)


def test_files_above_the_project_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text("ACCUM = 1\n")
    inner = tmp_path / "inner"
    inner.mkdir()
    files = {"train.py": main(imports="import config", k="config.ACCUM", backward="loss.backward()")}
    assert [one.code for one in findings(inner, files)] == ["ACC001"]


# --- as torch measures it ---


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with Oracle() as one:
        yield one


@pytest.mark.parametrize(
    "name", [*RIGHT, *(name for name, (_, _, files) in WRONG.items() if "for epoch" in files["train.py"])]
)
def test_the_prediction_over_several_files_is_what_torch_measures(tmp_path: Path, oracle: Oracle, name: str) -> None:
    files = RIGHT[name] if name in RIGHT else WRONG[name][2]
    script = project(tmp_path, files) / "train.py"
    run = analyze(link(lift(script.read_text(), str(script)), script)).base
    assert run is not None
    assert differences(run, oracle.measure(str(script))) == []


# --- the fixtures, cut in two ---


def cut(text: str) -> tuple[str, str] | None:
    """A script with the functions and classes moved away that need no global of it, and the file they moved to."""
    tree = ast.parse(text)
    lines = text.splitlines(keepends=True)
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    moved = {node.name: node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    every = set(moved)
    others = [node for node in tree.body if node not in moved.values()]
    bound = {name for node in others for name in _stored(node)}
    while True:
        needed = {name: _free(node) for name, node in moved.items()}
        stay = [name for name, free in needed.items() if free is None or free & (bound | (every - set(moved)))]
        if not stay:
            break
        for name in stay:
            del moved[name]
    if not moved or not imports:
        return None
    away = [f"{ast.unparse(node)}\n" for node in imports]
    for definition in moved.values():
        first = min([definition.lineno, *(one.lineno for one in definition.decorator_list)]) - 1
        end = definition.end_lineno or 0
        away.append("".join(lines[first:end]) + "\n")
        lines[first:end] = ["\n"] * (end - first)
    last = max(node.end_lineno or 0 for node in imports) - 1
    lines[last] = lines[last].rstrip("\n") + f"; from helpers import {', '.join(moved)}\n"
    return "".join(lines), "".join(away)


def _stored(node: ast.AST) -> set[str]:
    names = [one for one in ast.walk(node) if isinstance(one, ast.Name)]
    return {one.id for one in names if isinstance(one.ctx, ast.Store)}


def _free(node: ast.AST) -> set[str] | None:
    """The names that a definition reads and does not bind; None if it changes a global."""
    inside = list(ast.walk(node))
    if any(isinstance(one, ast.Global) for one in inside):
        return None
    names = {one.id for one in inside if isinstance(one, ast.Name)}
    return names - _stored(node) - {one.arg for one in inside if isinstance(one, ast.arg)}


HALVES = [path for path in sorted(FIXTURES.glob("*/*.py")) if cut(path.read_text()) is not None]
# The loop stands in the other half, and who calls it is not known there.
LOOP_ELSEWHERE = {
    "ACC002/bad_zero_in_closure_helper",
    "ACC003/bad_class_four_rows",
    "ACC004/bad_stepped_in_a_method",
    "ACC015/bad_loop_in_a_class",
    "ACC030/bad_in_the_method_that_steps",
}


@pytest.mark.parametrize("path", HALVES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_script_cut_in_two_is_judged_as_before(path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    halves = cut(text)
    assert halves is not None
    project(tmp_path, {"train.py": halves[0], "helpers.py": halves[1]})
    found = set(codes(check([str(tmp_path)])))
    assert found == set(codes(check([str(path)]))) or (
        found == set() and f"{path.parent.name}/{path.stem}" in LOOP_ELSEWHERE
    )
