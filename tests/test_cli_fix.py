"""`acclint check` with --fix, --unsafe-fixes and --diff, as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from acclint.cli import cli
from acclint.findings import Edit, Place
from acclint.fix.edits import apply

TRAIN = """\
import torch
from torch import nn

net = nn.Linear(3, 1)
opt = torch.optim.SGD(net.parameters(), lr=0.1)
K = 4
for epoch in range(3):
    opt.zero_grad()
    for i, (x, y) in enumerate(loader):
        loss = nn.functional.mse_loss(net(x), y)
        loss.backward()
        if (i + 1) % K == 0:
            opt.step()
            opt.zero_grad()
"""
FIXED = TRAIN.replace("loss.backward()", "(loss / K).backward()")
# The second mistake has no safe rewrite: updates per micro-batch, or no division?
EVERY = """\
import torch
from torch import nn

net = nn.Linear(3, 1)
opt = torch.optim.SGD(net.parameters(), lr=0.1)
accumulation_steps = 4
for x, y in loader:
    loss = nn.functional.mse_loss(net(x), y) / accumulation_steps
    loss.backward()
    opt.step()
    opt.zero_grad()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(TRAIN)
    return tmp_path


def run(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(cli, list(arguments), input=text)


def test_fix_writes_and_says_what_it_did() -> None:
    result = run("check", "--fix", "train.py")
    assert result.exit_code == 0
    assert Path("train.py").read_text() == FIXED
    assert result.stdout.splitlines() == [
        "No findings; 1 info finding hidden (--min-severity info). Looked at 1 file: 1 training loop, 1 accumulates.",
        "Fixed 1 finding in 1 file (ACC001 x1).",
    ]
    again = run("check", "--fix", "train.py")
    assert again.stdout.endswith("Fixed 0 findings.\n")


def test_exit_non_zero_on_fix() -> None:
    assert run("check", "--fix", "--exit-non-zero-on-fix").exit_code == 1
    assert run("check", "--fix", "--exit-non-zero-on-fix").exit_code == 0


def test_diff_writes_nothing_and_exits_with_1() -> None:
    result = run("check", "--diff", "train.py")
    assert result.exit_code == 1
    assert Path("train.py").read_text() == TRAIN
    assert result.stdout.splitlines() == [
        "--- train.py",
        "+++ train.py",
        "@@ -8,7 +8,7 @@",
        "     opt.zero_grad()",
        "     for i, (x, y) in enumerate(loader):",
        "         loss = nn.functional.mse_loss(net(x), y)",
        "-        loss.backward()",
        "+        (loss / K).backward()",
        "         if (i + 1) % K == 0:",
        "             opt.step()",
        "             opt.zero_grad()",
    ]
    assert result.stderr == "Would fix 1 finding in 1 file (ACC001 x1).\n"
    Path("train.py").write_text(FIXED)
    assert run("check", "--diff", "train.py").exit_code == 0


def test_the_diff_is_a_patch(folder: Path) -> None:
    patch = run("check", "--diff", "train.py").stdout
    subprocess.run(["git", "init", "-q", "."], check=True)
    subprocess.run(["git", "apply", "-p0", "-"], input=patch, text=True, check=True)
    assert Path("train.py").read_text() == FIXED


def test_diff_is_coloured_on_demand() -> None:
    assert "\x1b[32m+        (loss / K).backward()\x1b[0m" in run("check", "--diff", "--color", "always").stdout
    assert "\x1b" not in run("check", "--diff").stdout


def test_unsafe_rewrites_are_only_made_on_demand() -> None:
    Path("every.py").write_text(EVERY)
    result = run("check", "--fix", "every.py")
    assert result.exit_code == 1
    assert "Fixed 0 findings; 1 more with --unsafe-fixes." in result.stdout
    assert "(--fix --unsafe-fixes)" in " ".join(result.stdout.split())
    assert Path("every.py").read_text() == EVERY
    assert run("check", "--fix", "--unsafe-fixes", "every.py").exit_code == 0
    assert "for micro_step, (x, y) in enumerate(loader):" in Path("every.py").read_text()


def test_unsafe_fixes_alone_is_an_error() -> None:
    result = run("check", "--unsafe-fixes")
    assert result.exit_code == 2
    assert result.stderr == "acclint: error: --unsafe-fixes goes with --fix or --diff\n"


def test_standard_input_comes_back_fixed() -> None:
    result = run("check", "--fix", "-", text=TRAIN)
    assert result.exit_code == 0
    assert result.stdout == FIXED
    assert "Fixed 1 finding" in result.stderr
    broken = run("check", "--fix", "-", text="def f(:\n    loss.backward()\n")
    assert broken.exit_code == 1
    assert broken.stdout == "def f(:\n    loss.backward()\n"
    assert "invalid-syntax" in broken.stderr


def test_the_edits_in_json_are_what_fix_writes() -> None:
    (finding,) = json.loads(run("check", "--output-format", "json", "train.py").stdout)
    fix = finding["fix"]
    assert fix["applicability"] == "safe"
    edits = [
        Edit(
            edit["content"],
            Place(
                "train.py",
                edit["location"]["row"],
                edit["location"]["column"],
                edit["end_location"]["row"],
                edit["end_location"]["column"],
            ),
        )
        for edit in fix["edits"]
    ]
    assert apply(TRAIN, edits) == FIXED


def test_suppressed_findings_are_not_fixed() -> None:
    text = TRAIN.replace("loss.backward()", "loss.backward()  # acclint: ignore[ACC001] summed on purpose")
    Path("train.py").write_text(text)
    assert run("check", "--fix").exit_code == 0
    assert Path("train.py").read_text() == text


def test_an_unused_ignore_is_removed() -> None:
    Path("train.py").write_text(FIXED.replace("opt.step()", "opt.step()  # acclint: ignore[ACC002]"))
    assert run("check", "--fix").exit_code == 0
    assert Path("train.py").read_text() == FIXED


def test_a_read_only_file_is_reported_and_the_others_are_fixed() -> None:
    Path("other.py").write_text(TRAIN)
    Path("train.py").chmod(0o444)
    result = run("check", "--fix")
    assert result.exit_code == 2
    assert "acclint: error: train.py: not fixed: the file is read-only\n" in result.stderr
    assert Path("other.py").read_text() == FIXED
    assert Path("train.py").read_text() == TRAIN


def test_a_form_that_cannot_be_rewritten_is_left_with_the_reason() -> None:
    text = TRAIN.replace("        loss.backward()\n", "        torch.autograd.backward([loss])\n")
    Path("train.py").write_text(text)
    result = run("check", "--fix")
    assert result.exit_code == 1
    assert "not fixed: train.py:11:9 ACC001: backward is given several losses at once" in result.stdout
    assert Path("train.py").read_text() == text


def test_many_files_in_several_processes(folder: Path) -> None:
    for number in range(26):
        (folder / f"train{number}.py").write_text(TRAIN)
    done = subprocess.run(
        [sys.executable, "-m", "acclint", "check", "--fix", "--jobs", "2", "."],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "Fixed 27 findings in 27 files (ACC001 x27)." in done.stdout
    assert all(path.read_text() == FIXED for path in folder.glob("train*.py"))
