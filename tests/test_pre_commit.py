"""The hook under the real pre-commit, on a git repository made for the purpose."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WRONG = "for x in loader:\n    model(x).backward(\n"
UNDIVIDED = """\
import torch
from torch import nn

net = nn.Linear(3, 1)
opt = torch.optim.SGD(net.parameters(), lr=0.1)
K = 4
for i, (x, y) in enumerate(loader):
    loss = nn.functional.mse_loss(net(x), y)
    loss.backward()
    if (i + 1) % K == 0:
        opt.step()
        opt.zero_grad()
"""


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    # A hook that runs these tests has set GIT_DIR and the like for its own repository.
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    identity = {
        f"GIT_{role}_{what}": "test@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        encoding="utf-8",
        env={**inherited, **identity, **environment},
        check=False,
        timeout=600,
    )


def git(folder: Path, *arguments: str) -> str:
    done = run("git", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def hook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that offers the hook: what an installation needs, as it is in the checkout now."""
    folder = tmp_path_factory.mktemp("hook")
    for name in ("pyproject.toml", "README.md", ".pre-commit-hooks.yaml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "acclint", folder / "acclint", ignore=shutil.ignore_patterns("__pycache__"))
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "the hook")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pre-commit keeps its environments: apart from the user's, and shared by the tests of this module."""
    return tmp_path_factory.mktemp("pre-commit")


@pytest.fixture
def user(tmp_path: Path, hook: Path, home: Path) -> Path:
    """A user's repository with the hook configured and its environment installed."""
    pytest.importorskip("pre_commit")
    config = {
        "repos": [
            {
                "repo": str(hook),
                "rev": git(hook, "rev-parse", "HEAD"),
                "hooks": [{"id": "acclint"}, {"id": "acclint-fix"}],
            }
        ]
    }
    (tmp_path / ".pre-commit-config.yaml").write_text(json.dumps(config))  # JSON is YAML
    git(tmp_path, "init", "-q")
    done = pre_commit(tmp_path, home, "install-hooks")
    if done.returncode != 0:
        # Without a package index nothing can be installed; anything else is a fault of the hook.
        offline = run(
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "-d",
            str(tmp_path / "probe"),
            "click",
            cwd=tmp_path,
        )
        if offline.returncode != 0:
            pytest.skip(f"pip cannot install packages here: {offline.stderr.strip().splitlines()[-1:]}")
        pytest.fail(done.stdout + done.stderr)
    return tmp_path


def pre_commit(folder: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "pre_commit", *arguments, cwd=folder, PRE_COMMIT_HOME=str(home))


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    git(folder, "add", "-A", "-f")


def test_clean_files_pass(user: Path, home: Path) -> None:
    write(user, "train.py", "x = 1\n")
    done = pre_commit(user, home, "run")
    assert done.returncode == 0, done.stdout
    assert "Passed" in done.stdout


def test_findings_fail_with_their_place(user: Path, home: Path) -> None:
    write(user, "src/train.py", WRONG)
    write(user, "notes.txt", WRONG)
    done = pre_commit(user, home, "run")
    assert done.returncode == 1
    assert "src/train.py:2:" in done.stdout
    assert "invalid-syntax" in done.stdout
    assert "notes.txt" not in done.stdout


def test_notebooks_are_checked(user: Path, home: Path) -> None:
    write(user, "train.ipynb", json.dumps({"cells": [{"cell_type": "code", "source": WRONG}]}))
    done = pre_commit(user, home, "run")
    assert done.returncode == 1
    assert "train.ipynb:cell 1:2:" in done.stdout


def test_excluded_files_pass_though_they_are_given_by_name(user: Path, home: Path) -> None:
    write(user, "pyproject.toml", '[tool.acclint]\nextend-exclude = ["old"]\n')
    write(user, "old/train.py", WRONG)
    done = pre_commit(user, home, "run")
    assert done.returncode == 0, done.stdout


def test_wrong_settings_fail_with_the_remedy(user: Path, home: Path) -> None:
    write(user, "pyproject.toml", "[tool.acclint]\nselct = []\n")
    write(user, "train.py", "x = 1\n")
    done = pre_commit(user, home, "run")
    assert done.returncode == 1
    assert "did you mean select?" in done.stdout


def test_a_commit_is_stopped(user: Path, home: Path) -> None:
    assert pre_commit(user, home, "install").returncode == 0
    write(user, "train.py", WRONG)
    done = run("git", "commit", "-q", "-m", "wrong", cwd=user, PRE_COMMIT_HOME=str(home))
    assert done.returncode != 0
    assert "invalid-syntax" in done.stdout + done.stderr
    write(user, "train.py", "x = 1\n")
    assert run("git", "commit", "-q", "-m", "right", cwd=user, PRE_COMMIT_HOME=str(home)).returncode == 0


def test_the_fixing_hook_rewrites_and_stops_the_commit(user: Path, home: Path) -> None:
    write(user, "train.py", UNDIVIDED)
    done = pre_commit(user, home, "run", "acclint-fix")
    assert done.returncode == 1
    assert "files were modified by this hook" in done.stdout
    assert "(loss / K).backward()" in (user / "train.py").read_text()
    git(user, "add", "-A")
    assert pre_commit(user, home, "run", "acclint-fix").returncode == 0
