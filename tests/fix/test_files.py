"""Files under --fix: what is written is whole, and everything that is not a rewrite stays as it was."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from acclint.discover import Target
from acclint.findings import Edit, Place, Severity
from acclint.fix.files import Unwritable, edited, write
from acclint.fix.tree import Refused
from acclint.repair import fix_bytes, fix_file
from acclint.settings import Settings

LOOP = """\
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
FIXED = LOOP.replace("loss.backward()", "(loss / K).backward()")
SHIFTED = FIXED.replace("(i + 1) % K", "i % K").replace("loader", "range(10)").replace("i, (x, y)", "i, x")


def target(path: Path) -> Target:
    return Target(path, path.name, Settings())


def test_the_file_is_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(LOOP)
    repair = fix_file(target(path), unsafe=False, dry=False)
    assert [finding.code for finding in repair.fixed] == ["ACC001"]
    assert path.read_text() == FIXED
    assert [one.name for one in tmp_path.iterdir()] == ["train.py"]


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(LOOP)
    repair = fix_file(target(path), unsafe=False, dry=True)
    assert path.read_text() == LOOP
    assert "-    loss.backward()\n+    (loss / K).backward()" in repair.diff()


def test_a_file_that_is_no_text_has_no_difference(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_bytes(b"\xff\xfe\x00")
    repair = fix_file(target(path), unsafe=False, dry=True)
    assert repair.diff() == ""
    assert repair.outcome.result.findings or repair.outcome.error


def test_mere_information_that_a_rewrite_brings_does_not_hinder_it(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(SHIFTED)
    everything = Settings(min_severity=Severity.INFO)
    repair = fix_file(Target(path, path.name, everything), unsafe=False, dry=True)
    assert [finding.code for finding in repair.fixed] == ["ACC006"]
    assert [finding.code for finding in repair.outcome.result.findings] == ["ACC007"]


@pytest.mark.parametrize(
    "data",
    [
        LOOP.replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + LOOP.encode(),
        ("# -*- coding: latin-1 -*-\n# \u00e4\n" + LOOP).encode("latin-1"),
        LOOP.rstrip("\n").encode(),
        LOOP.replace("    ", "\t").encode(),
        ("# \u2028 form feed \x0c and \u4e2d\u6587\n" + LOOP).encode(),
        LOOP.replace("net = ", "x = 1 ;  y=2\nnet   =   ").encode(),
    ],
    ids=["crlf", "bom", "latin-1", "no final newline", "tabs", "separators", "odd spacing"],
)
def test_every_other_byte_stays(data: bytes) -> None:
    new = fix_bytes(data, target(Path("train.py")), unsafe=False).new
    assert new == data.replace(b"loss.backward()", b"(loss / K).backward()")


def test_a_moved_line_has_the_line_ends_of_the_file() -> None:
    bad = LOOP.replace("    loss =", "    opt.zero_grad()\n    loss =").replace("        opt.zero_grad()\n", "")
    new = fix_bytes(bad.replace("\n", "\r\n").encode(), target(Path("train.py")), unsafe=False).new
    assert new.decode() == FIXED.replace("\n", "\r\n")


def test_mode_links_and_attributes_stay(tmp_path: Path) -> None:
    path, link = tmp_path / "train.py", tmp_path / "link.py"
    path.write_text(LOOP)
    path.chmod(0o750)
    link.symlink_to(path)
    fix_file(target(link), unsafe=False, dry=False)
    assert link.is_symlink()
    assert path.read_text() == FIXED
    assert stat.S_IMODE(path.stat().st_mode) == 0o750


def test_a_read_only_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(LOOP)
    path.chmod(0o444)
    repair = fix_file(target(path), unsafe=False, dry=False)
    assert "read-only" in repair.error
    assert "read-only" in repair.outcome.error
    assert not repair.fixed
    assert path.read_text() == LOOP
    # It is not fixed, but still reported.
    assert [finding.code for finding in repair.outcome.result.findings] == ["ACC001"]


def test_a_file_with_hard_links_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(LOOP)
    os.link(path, tmp_path / "other.py")
    with pytest.raises(Unwritable, match="hard links"):
        write(path, path.read_bytes(), b"new")


def test_a_file_that_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_bytes(b"as it is now")
    with pytest.raises(Unwritable, match="changed in the meantime"):
        write(path, b"as it was read", b"new")
    assert path.read_bytes() == b"as it is now"
    assert [one.name for one in tmp_path.iterdir()] == ["train.py"]


def test_killed_at_any_moment_the_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    old, new = b"old" * 300_000, b"new" * 300_000
    code = (
        "import sys\nfrom pathlib import Path\nfrom acclint.fix.files import write\n"
        "path, old, new = Path(sys.argv[1]), b'old' * 300_000, b'new' * 300_000\n"
        "print('ready', flush=True)\n"
        "while True:\n    write(path, old, new)\n    write(path, new, old)\n"
    )
    for wait in (0.0, 0.004, 0.011, 0.03):
        path.write_bytes(old)
        with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(wait)
            child.kill()
        assert path.read_bytes() in (old, new)


# --- notebooks and Markdown ------------------------------------------------------------------------------------------


def notebook(cells: list[list[str]], **style: object) -> bytes:
    document = {
        "cells": [
            {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": source}
            for source in cells
        ],
        "metadata": {},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return (json.dumps(document, ensure_ascii=False, **({"indent": 1} | style)) + "\n").encode()  # type: ignore[arg-type]


CELLS = [LOOP[: LOOP.index("for i")].splitlines(keepends=True), LOOP[LOOP.index("for i") :].splitlines(keepends=True)]


@pytest.mark.parametrize("style", [{}, {"indent": 2}, {"indent": None}, {"indent": None, "separators": (",", ":")}])
def test_a_notebook_keeps_its_formatting(style: dict[str, object]) -> None:
    magic = ["%matplotlib inline\n", "# \u00e4\n", *CELLS[0]]
    data = notebook([magic, CELLS[1]], **style)
    new = fix_bytes(data, target(Path("train.ipynb")), unsafe=False).new
    assert new == data.replace(b"    loss.backward()", b"    (loss / K).backward()")


def test_a_statement_moves_within_its_cell_of_a_notebook() -> None:
    loop = [line for line in CELLS[1] if "zero_grad" not in line]
    loop.insert(1, "    opt.zero_grad()\n")
    data = notebook([CELLS[0], loop])
    new = json.loads(fix_bytes(data, target(Path("train.ipynb")), unsafe=False).new)
    assert "".join(new["cells"][0]["source"]) == "".join(CELLS[0])
    assert "".join(new["cells"][1]["source"]) == FIXED[FIXED.index("for i") :].removesuffix("\n") + "\n"


def test_a_notebook_whose_formatting_json_cannot_repeat_is_refused() -> None:
    data = notebook(CELLS).replace(b'"nbformat": 4', b'"nbformat":   4')
    edit = Edit("x", Place("train.ipynb", 1, 1, 1, 2, 1))
    with pytest.raises(Refused, match="formatting"):
        edited(data, "train.ipynb", [edit])
    assert fix_bytes(data, target(Path("train.ipynb")), unsafe=False).new == data


def test_a_block_of_a_markdown_page_keeps_its_indentation() -> None:
    bad = LOOP.replace("    loss =", "    opt.zero_grad()\n    loss =").replace("        opt.zero_grad()\n", "")
    page = (
        "# Guide\n\n- a list:\n\n  ```python\n"
        + "".join(f"  {line}" for line in bad.splitlines(True))
        + "  ```\n\nEnd\n"
    )
    new = fix_bytes(page.encode(), target(Path("guide.md")), unsafe=False).new.decode()
    assert (
        new
        == page[: page.index("  import")] + "".join(f"  {line}" for line in FIXED.splitlines(True)) + "  ```\n\nEnd\n"
    )
