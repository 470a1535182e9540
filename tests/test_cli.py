"""The commands as a user meets them: what is printed where, and with which exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import acclint
import acclint.judge
import acclint.lift
from acclint.cli import cli
from acclint.findings import Confidence, FileResult, LoopReport, Place, Severity
from acclint.gate import may_train
from acclint.lint import Outcome, check, collect
from acclint.program import Span
from acclint.report import contributions, summary
from acclint.rules import all_rules
from acclint.rules.base import Intent, Report

LOOP = """\
for i, (x, y) in enumerate(loader):
    loss = criterion(model(x), y)
    loss.backward()
    if (i + 1) % k == 0:
        optimizer.step()
        optimizer.zero_grad()
"""


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(acclint.__file__).parent.parent)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return tmp_path


@pytest.fixture
def fake(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules that look at the text: `backward` is an error (medium confidence), `zero_grad` an info, `low` a guess.

    `crash` is an internal error, `deep` a recursion without end, `killed` the end of the process, `interrupt` a Ctrl-C.
    """
    real_lift = acclint.lift.lift

    def lift(text: str, filename: str) -> Any:
        real_lift(text, filename)
        return text

    def analyze(text: str, **options: Any) -> Any:
        if "crash" in text:
            raise KeyError("crash")
        if "deep" in text:
            raise RecursionError
        if "killed" in text:
            os._exit(1)
        if "interrupt" in text:
            raise KeyboardInterrupt
        matrix = ((Fraction(4),) * 4, (Fraction(0),) * 4 + (Fraction(4),) * 4)
        loop = types.SimpleNamespace(
            span=Span(1, 1, 6, 30), state="accumulates", reason="", k="k", contributions=(("optimizer", matrix),)
        )
        lost = types.SimpleNamespace(
            span=Span(1, 1, 6, 30),
            state="not-understood",
            reason="optimizer comes from `build()`",
            k="",
            contributions=(),
        )
        return types.SimpleNamespace(
            text=text,
            loops=(lost,) if "build" in text else (loop,),
            program=types.SimpleNamespace(others={}),
            own_place=lambda span: span,
        )

    def finds(word: str, severity: Severity, confidence: Confidence = Confidence.HIGH) -> Any:
        def check(analysis: Any) -> Iterator[Report]:
            for row, line in enumerate(analysis.text.split("\n"), start=1):
                at = line.find(word)
                if at < 0:
                    continue
                yield Report(
                    Span(row, at + 1, row, at + 1 + len(word)),
                    f"{word} is wrong",
                    severity,
                    confidence,
                    notes=(("the window test", Span(row + 1, 8, row + 1, 24)),),
                    assumptions=(("`criterion` is taken as a mean", Span(2, 5, 2, 9)), ("k is 2 or more", None)),
                    intents=(Intent("display", "divide the loss by `k`"),),
                    evidence={"k": {"expression": "k", "value": None, "simulated_as": 4}, "half": Fraction(1, 2)},
                )

        return check

    monkeypatch.setattr(acclint.judge, "analyze", analyze)
    monkeypatch.setattr(acclint.judge, "lift", lift)
    monkeypatch.setattr(acclint.judge, "link", lambda program, path: program)
    for code, rule in list(all_rules().items()):
        monkeypatch.setitem(all_rules(), code, replace(rule, check=lambda analysis: iter(())))
    checks = {
        "ACC001": finds("loss.backward()", Severity.ERROR, Confidence.MEDIUM),
        "ACC007": finds("zero_grad", Severity.INFO),
        "ACC002": finds("low", Severity.ERROR, Confidence.LOW),
    }
    for code, find in checks.items():
        monkeypatch.setitem(all_rules(), code, replace(all_rules()[code], check=find))


def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(cli, arguments, input=stdin, prog_name="acclint")


def real(*arguments: str, cwd: Path, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "acclint", *arguments],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        env={**ENVIRONMENT, **environment},
        timeout=120,
        check=False,
    )


# --- exit codes of the real program ---


def test_exit_0_without_findings(folder: Path) -> None:
    (folder / "a.py").write_text("x = 1\n")
    done = real("check", cwd=folder)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().strip() == "No findings. Looked at 1 file: 0 training loops."


def test_exit_1_with_findings(folder: Path) -> None:
    (folder / "a.py").write_text("x = (\n")
    assert real("check", cwd=folder).returncode == 1
    assert real("check", "--exit-zero", cwd=folder).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["check", "nope.py"], "nope.py: no such file or folder"),
        (["check", "--select", "ACC901"], "unknown rule 'ACC901'; did you mean ACC001?"),
        (["check", "--selct", "ACC001"], "--select"),
        (["check", "--min-severity", "bad"], "'error', 'warning', 'info'"),
        (["check", "--config", "nope.toml"], "nope.toml: cannot read the configuration"),
        (["check", "--config", "a.toml", "--isolated"], "exclude each other"),
        (["check", "--jobs", "0"], "--jobs"),
        (["check", "-", "a.py"], "cannot be combined"),
        (["check", "--stdin-filename", "a.py"], "`-` is not among the paths"),
        (["check", "--fix", "--stdin-filename", "a.py"], "`-` is not among the paths"),
        (["explain", "ACC901"], "did you mean ACC001?"),
        (["explain"], "Missing argument"),
        (["train.py"], "did you mean `acclint check train.py`?"),
        (["src/"], "did you mean `acclint check src/`?"),
        (["folder", "--select", "ACC001"], "did you mean `acclint check folder --select ACC001`?"),
        (["chek"], "did you mean check?"),
        (["xyzzy"], "the commands are check, equivalence, explain, probe, rules"),
    ],
)
def test_exit_2_for_what_cannot_be_done(folder: Path, arguments: list[str], says: str) -> None:
    (folder / "a.py").write_text("x = 1\n")
    (folder / "folder").mkdir()
    done = real(*arguments, cwd=folder)
    assert done.returncode == 2
    assert says in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_exit_2_for_wrong_settings_names_file_and_key(folder: Path) -> None:
    (folder / "pyproject.toml").write_text('[tool.acclint]\nselct = ["ACC001"]\n')
    (folder / "a.py").write_text("x = 1\n")
    done = real("check", cwd=folder)
    assert done.returncode == 2
    assert done.stderr.decode().splitlines() == [
        f"acclint: error: {folder / 'pyproject.toml'}: unknown key tool.acclint.selct; did you mean select?"
    ]
    assert real("check", "--isolated", cwd=folder).returncode == 0


def test_exit_2_keeps_the_findings_of_the_other_files(folder: Path) -> None:
    (folder / "a.py").write_text("x = (\n")
    done = real("check", "nope.py", "a.py", "--output-format", "json", cwd=folder)
    assert done.returncode == 2
    assert [item["code"] for item in json.loads(done.stdout)] == ["invalid-syntax"]
    assert done.stderr.decode().splitlines() == ["acclint: error: nope.py: no such file or folder"]


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_exit_130_when_interrupted(folder: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "acclint", "check", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    try:
        time.sleep(1.5)  # by then it waits for its input
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130
    assert b"Traceback" not in errors


def test_the_reader_of_the_output_may_go_away(folder: Path) -> None:
    (folder / "a.py").write_text("x = (\n")
    done = subprocess.run(
        f"{sys.executable} -m acclint check a.py | true",
        shell=True,
        cwd=folder,
        capture_output=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert b"Traceback" not in done.stderr


def test_version_and_help() -> None:
    assert run("--version").output == f"acclint {acclint.__version__}\n"
    for arguments in (["--help"], ["-h"], ["check", "--help"], ["explain", "--help"], ["rules", "--help"]):
        result = run(*arguments)
        assert result.exit_code == 0
        assert "Usage: acclint" in result.output


def test_torch_is_never_imported_and_libcst_only_for_training_code(folder: Path) -> None:
    (folder / "a.py").write_text("x = 1\n")
    code = (
        "import sys\nfrom acclint.cli import cli\n"
        "try:\n    cli(['check', 'a.py'])\nexcept SystemExit as done:\n    assert done.code == 0\n"
        "print(sorted({'torch', 'libcst', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert done.stdout.splitlines()[-1] == "[]"


# --- findings as text ---


def test_full_output(fake: None) -> None:
    Path("train.py").write_text(LOOP)
    result = run("check", "train.py")
    assert result.exit_code == 1
    assert result.stderr == ""
    assert (
        result.stdout
        == """\
train.py:3:5: error[ACC001] missing-loss-division: loss.backward() is wrong
  |
3 |     loss.backward()
  |     ^^^^^^^^^^^^^^^
4 |     if (i + 1) % k == 0:
  |        ---------------- the window test
  |
  = medium confidence, assuming that:
      - `criterion` is taken as a mean (line 2)
      - k is 2 or more
  = help: divide the loss by `k`

1 finding in 1 file; 1 info finding hidden (--min-severity info). Looked at 1 file: 1 training loop, 1 accumulates.
"""
    )


def test_concise_output(fake: None) -> None:
    Path("train.py").write_text(LOOP)
    result = run("check", "train.py", "--output-format", "concise", "--quiet")
    assert result.stdout == "train.py:3:5: error[ACC001] loss.backward() is wrong\n"


def test_statistics(fake: None) -> None:
    Path("train.py").write_text(LOOP + LOOP)
    result = run("check", "--statistics", "--min-severity", "info", "--quiet")
    assert result.exit_code == 1
    assert result.stdout == "2  ACC001  missing-loss-division\n2  ACC007  leftover-micro-batches\n"
    as_json = json.loads(run("check", "--statistics", "--output-format", "json").stdout)
    assert as_json == [{"code": "ACC001", "name": "missing-loss-division", "count": 2}]


@pytest.mark.parametrize(
    ("arguments", "codes"),
    [
        ([], ["ACC001"]),
        (["--min-severity", "info"], ["ACC001", "ACC007"]),
        (["--min-confidence", "high"], []),
        (["--min-confidence", "low"], ["ACC002", "ACC001"]),
        (["--select", "ACC007,ACC002"], []),
        (["--select", "ACC007", "--select", "ACC001"], ["ACC001"]),
        (["--ignore", "gradient"], []),
        (["--ignore", "ACC001", "--extend-select", "ACC001"], []),
        (["--select", "window", "--min-severity", "info", "--min-confidence", "low"], ["ACC002", "ACC007"]),
    ],
)
def test_filters(fake: None, arguments: list[str], codes: list[str]) -> None:
    Path("train.py").write_text("low = 1\n" + LOOP)
    result = run("check", "--output-format", "json", *arguments)
    assert [item["code"] for item in json.loads(result.stdout)] == codes
    severe = {"ACC001", "ACC002"} & set(codes)
    assert result.exit_code == (1 if severe else 0)


def test_info_findings_never_change_the_exit_code(fake: None) -> None:
    Path("train.py").write_text("optimizer.zero_grad()\n")
    result = run("check", "--min-severity", "info")
    assert "info[ACC007]" in result.stdout
    assert result.exit_code == 0


def test_the_summary_counts_what_is_hidden(fake: None) -> None:
    Path("train.py").write_text("low = 1\n" + LOOP)
    last = run("check").stdout.splitlines()[-1]
    assert "1 info finding hidden (--min-severity info)" in last
    assert "1 low-confidence finding hidden (--min-confidence low)" in last
    last = run("check", "--min-confidence", "high").stdout.splitlines()[-1]
    assert "1 medium-confidence finding hidden (--min-confidence medium)" in last
    last = run("check", "--min-severity", "error", "--min-confidence", "low", "--select", "ACC007").stdout.splitlines()[
        -1
    ]
    assert last.startswith("No findings; 1 info finding hidden (--min-severity info). Looked at")
    last = run("check", "--min-severity", "info", "--min-confidence", "low").stdout.splitlines()[-1]
    assert "hidden" not in last


def test_the_summary_names_loops_not_understood(fake: None) -> None:
    Path("train.py").write_text("optimizer = build()\n" + LOOP)
    last = run("check").stdout.splitlines()[-1]
    assert last.endswith(
        "1 training loop, 0 accumulate; 1 not understood: train.py:1 (optimizer comes from `build()`)."
    )


def test_tabs_wide_letters_and_long_lines_keep_their_carets(fake: None) -> None:
    Path("train.py").write_text(
        "if x:\n\tloss.backward()\n\ts = '損失'; loss.backward()\n" + "y = 1; " * 40 + "loss.backward()\n"
    )
    lines = run("check", "--quiet").stdout.splitlines()
    sources = [index for index, line in enumerate(lines) if "^" in line]
    for index in sources[:2]:
        caret = lines[index].index("^")
        above = lines[index - 1]
        if "損" in above:
            caret -= 2  # two letters that take two columns each
        assert above[caret:].startswith("loss.backward()")
    assert all(len(line) <= 100 for line in lines)


def test_show_contributions(fake: None) -> None:
    Path("train.py").write_text("x.grad\n")
    assert run("check", "--show-contributions", "--quiet").stdout == (
        "What each backward term (column) contributes to each update (row): 1 is right, · is nothing.\n\n"
        "train.py:1:1: accumulates (k is `k`)\n"
        "  optimizer\n"
        "      1 | 4 4 4 4\n"
        "      2 | · · · · 4 4 4 4\n"
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "·"),
        (1, "1"),
        (1.0, "1"),
        (Fraction(1, 4), "¼"),
        (0.25, "¼"),
        (1 / 3, "⅓"),
        (1.5, "1½"),
        (-1, "-1"),
        (Fraction(-1, 2), "-½"),
        (Fraction(3, 11), "3/11"),
        (2.0001, "2"),
        (3.14159265, "3.1"),
        (1e6, "1000000"),
        (float("nan"), "?"),
        (float("inf"), "?"),
        (Fraction(7, 901), "7/901"),
    ],
)
def test_a_cell_is_short(value: float, shown: str) -> None:
    assert contributions.cell(value) == shown


def test_a_wide_matrix_is_cut_with_an_ellipsis() -> None:
    updates = [[0] * (4 * row) + [1] * 4 for row in range(40)]
    lines = contributions.matrix(updates, 60)
    assert all(len(click.unstyle(line)) <= 60 for line in lines)
    assert click.unstyle(lines[0]).split() == ["1", "|", "1", "1", "1", "1"]
    assert "more updates" in lines[-1]
    assert contributions.matrix([[1] * 300], 60)[0].endswith("…")
    assert contributions.matrix([], 60) == []
    same = [click.unstyle(line).strip() for line in contributions.matrix([[4, 4]] * 3 + [[1, 1]], 60)]
    assert same == ["1-3 | 4 4", "4 | 1 1"]


def test_colours(fake: None) -> None:
    Path("train.py").write_text(LOOP)
    assert "\x1b[" not in run("check").stdout
    assert "\x1b[31m" in run("check", "--color", "always").stdout
    assert "\x1b[" not in run("check", "--color", "never").stdout
    plain = click.unstyle(run("check", "--color", "always").stdout)
    assert plain == run("check", "--color", "never").stdout


def test_a_terminal_without_unicode_is_no_reason_to_fail(folder: Path) -> None:
    (folder / "a.py").write_text("é = (\n", encoding="utf-8")
    done = real("check", cwd=folder, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr


# --- JSON ---


def test_json_has_the_pinned_keys(fake: None) -> None:
    Path("train.py").write_text(LOOP)
    (item,) = json.loads(run("check", "--output-format", "json").stdout)
    assert list(item) == [
        "code",
        "name",
        "severity",
        "confidence",
        "message",
        "filename",
        "cell",
        "location",
        "end_location",
        "related",
        "assumptions",
        "fix",
        "evidence",
        "url",
    ]
    assert item["severity"] == "error"
    assert item["confidence"] == "medium"
    assert (item["filename"], item["cell"]) == ("train.py", None)
    assert item["location"] == {"row": 3, "column": 5}
    assert item["end_location"] == {"row": 3, "column": 20}
    assert item["related"] == [
        {
            "message": "the window test",
            "filename": "train.py",
            "location": {"row": 4, "column": 8},
            "end_location": {"row": 4, "column": 24},
        }
    ]
    assert item["assumptions"][0]["location"] == {"row": 2, "column": 5}
    assert item["assumptions"][1] == {"message": "k is 2 or more", "filename": None, "location": None}
    assert item["evidence"]["k"] == {"expression": "k", "value": None, "simulated_as": 4}
    assert item["evidence"]["half"] == 0.5
    assert {"contributions", "trace", "measured"} <= set(item["evidence"])


def test_json_of_a_notebook_counts_rows_inside_the_cell(fake: None) -> None:
    cells = [{"cell_type": "code", "source": text} for text in ("!pip install torch", "x = 1\nloss.backward()")]
    Path("a.ipynb").write_text(json.dumps({"cells": cells}))
    (item,) = json.loads(run("check", "--output-format", "json").stdout)
    assert (item["cell"], item["location"]["row"]) == (2, 2)
    full = run("check", "--quiet").stdout
    assert full.startswith("a.ipynb:cell 2:2:1: ")
    assert "2 | loss.backward()" in full


def test_json_of_a_page_counts_rows_from_its_top(fake: None) -> None:
    Path("a.md").write_text("# Title\n\n```python\nloss.backward()\n```\n")
    (item,) = json.loads(run("check", "--output-format", "json").stdout)
    assert (item["cell"], item["location"]["row"]) == (1, 4)
    full = run("check", "--quiet").stdout
    assert full.startswith("a.md:4:1: ")
    assert "4 | loss.backward()" in full


def test_json_without_findings_is_an_empty_array(folder: Path) -> None:
    (folder / "a.py").write_text("x = 1\n")
    assert json.loads(run("check", "--output-format", "json").stdout) == []
    (folder / "a.py").unlink()
    result = run("check", "--output-format", "json")
    assert json.loads(result.stdout) == []
    assert "no Python files found" in result.stderr
    assert result.exit_code == 0


# --- bad input: each is a finding or a line, the others are still checked ---


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"x = (\n", "invalid-syntax"),
        (b"print 'hello'\n", "invalid-syntax"),
        (b"  x = 1\n", "invalid-syntax"),
        (b"x = 1\n\ty = 2\n", "invalid-syntax"),
        (b"x = '\xff'\n", "invalid-syntax"),
        (b"# coding: martian\n", "invalid-syntax"),
        (b"x = 1\0\n", "invalid-syntax"),
        (b"\x89PNG\r\n\x1a\n\0\0", "invalid-syntax"),
        (b"(" * 5000 + b")" * 5000, "too-complex"),
        (b"x = " + b"+".join([b"a"] * 30_000), "too-complex"),
        (b"x = " + b"-" * 30_000 + b"1", "too-complex"),
        (b"loss.backward(" + b"(" * 5000 + b")" * 5000 + b")", "too-complex"),
        (b"loss.backward(\n", "invalid-syntax"),
        (b"<<<<<<< HEAD\nloss.backward()\n", "invalid-syntax"),
    ],
)
def test_files_that_do_not_parse(folder: Path, data: bytes, code: str) -> None:
    (folder / "a.py").write_bytes(data)
    (folder / "b.py").write_bytes(b"x = (\n")
    done = real("check", "--output-format", "json", cwd=folder)
    assert done.returncode == 1
    assert done.stderr == b""
    found = [(item["filename"], item["code"], item["severity"]) for item in json.loads(done.stdout)]
    severity = "warning" if code == "too-complex" else "error"
    assert found == [("a.py", code, severity), ("b.py", "invalid-syntax", "error")]


def test_notebooks_that_do_not_parse(folder: Path) -> None:
    (folder / "a.ipynb").write_text("{")
    (folder / "b.ipynb").write_text(json.dumps({"cells": [{"cell_type": "code", "source": "x = 1\ny = ("}]}))
    result = run("check", "--output-format", "json")
    found = [(item["filename"], item["code"], item["cell"]) for item in json.loads(result.stdout)]
    assert found == [("a.ipynb", "invalid-syntax", None), ("b.ipynb", "invalid-syntax", 1)]
    assert "2 | y = (" in run("check", "b.ipynb").stdout


@pytest.mark.parametrize("data", [b"", b"\n", b"\xef\xbb\xbf", b"# only a comment", b"\x0c\n", b"x = 1\r\ny = 2\r"])
def test_files_with_nothing_in_them(folder: Path, data: bytes) -> None:
    (folder / "a.py").write_bytes(data)
    assert run("check").exit_code == 0


def test_syntax_newer_than_the_running_python_is_fine(folder: Path) -> None:
    (folder / "a.py").write_text("type Pair[T] = tuple[T, T]\ndef f[T](x: T) -> T: ...\n")
    assert run("check").exit_code == 0


def test_an_internal_error_is_one_line_and_the_others_are_checked(fake: None) -> None:
    Path("a.py").write_text("crash.backward()\n")
    Path("b.py").write_text(LOOP)
    result = run("check", "--output-format", "json")
    assert result.exit_code == 2
    assert [item["filename"] for item in json.loads(result.stdout)] == ["b.py"]
    (line,) = result.stderr.splitlines()
    assert line.startswith("acclint: error: internal error in a.py: KeyError: 'crash'; please report it")
    assert "Traceback" in run("check", "--verbose").stderr
    assert run("check", "--exit-zero").exit_code == 2
    assert "Looked at 1 file:" in run("check").stdout


def test_a_recursion_without_end_is_too_complex(fake: None) -> None:
    Path("a.py").write_text("deep.backward()\n")
    assert "warning[too-complex]" in run("check").stdout


def test_an_interrupt_in_the_analysis(fake: None) -> None:
    Path("a.py").write_text("interrupt.backward()\n")
    result = run("check")
    assert result.exit_code == 130
    assert result.stderr.strip() == "acclint: interrupted"


def test_a_file_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "a.py").write_text("x = 1\n")
    (folder / "b.py").write_text("x = (\n")
    read_bytes = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "a.py":
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    result = run("check")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == ["acclint: error: a.py: cannot be read: permission denied"]
    assert "b.py:1:5" in result.stdout or "b.py:1:" in result.stdout


# --- paths, standard input, processes ---


def test_standard_input(fake: None) -> None:
    result = run("check", "-", "--output-format", "json", stdin=LOOP)
    assert [item["filename"] for item in json.loads(result.stdout)] == ["-"]
    result = run("check", "-", "--stdin-filename", "src/train.py", "--output-format", "json", stdin=LOOP)
    assert [item["filename"] for item in json.loads(result.stdout)] == ["src/train.py"]
    cells = json.dumps({"cells": [{"cell_type": "code", "source": "loss.backward()"}]})
    result = run("check", "-", "--stdin-filename", "a.ipynb", "--output-format", "json", stdin=cells)
    assert [item["cell"] for item in json.loads(result.stdout)] == [1]


def test_standard_input_has_the_settings_of_its_name(fake: None) -> None:
    Path("pyproject.toml").write_text('[tool.acclint.per-file-ignores]\n"old/*" = ["ACC001"]\n')
    assert run("check", "-", "--stdin-filename", "old/train.py", stdin=LOOP).exit_code == 0
    assert run("check", "-", "--stdin-filename", "new/train.py", stdin=LOOP).exit_code == 1


def test_standard_input_that_is_excluded(fake: None) -> None:
    arguments = ("check", "-", "--stdin-filename", "build/train.py", "--force-exclude", "--output-format", "json")
    result = run(*arguments, stdin=LOOP)
    assert json.loads(result.stdout) == []


def test_standard_input_that_is_no_text(folder: Path) -> None:
    result = run("check", "-", stdin=b"x = '\xff'\n")
    assert result.exit_code == 1
    assert "-:1:6: error[invalid-syntax] byte 0xff is not valid UTF-8" in result.stdout


def test_show_files(folder: Path) -> None:
    for name in ("b.py", "a.ipynb", "build/c.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x = (")
    result = run("check", "--show-files")
    assert (result.exit_code, result.stdout) == (0, "a.ipynb\nb.py\n")
    assert run("check", "--show-files", "nope").exit_code == 2


def test_the_cache_options_are_accepted(folder: Path) -> None:
    (folder / "a.py").write_text("x = 1\n")
    assert run("check", "--no-cache", "--cache-dir", "x").exit_code == 0


def test_many_files_in_several_processes_give_the_same_result(folder: Path) -> None:
    for number in range(60):
        (folder / f"m{number:02}.py").write_text("x = (\n" if number % 7 == 0 else "x = 1\n")
    alone = run("check", "--jobs", "1")
    assert alone.exit_code == 1
    done = real("check", "--jobs", "4", cwd=folder)
    assert done.returncode == 1
    assert done.stdout.decode() == alone.stdout
    assert "9 findings in 9 files. Looked at 60 files: 0 training loops." in alone.stdout


@pytest.mark.skipif(sys.version_info >= (3, 14) or sys.platform != "linux", reason="the fake rules need a fork")
def test_a_file_that_kills_its_process_is_one_line_and_the_others_are_checked(fake: None) -> None:
    for number in range(40):
        Path(f"m{number:02}.py").write_text("killed.backward()\n" if number == 5 else "x = (\n")
    result = run("check", "--jobs", "3", "--output-format", "json")
    assert result.exit_code == 2
    assert len(json.loads(result.stdout)) == 39
    (line,) = result.stderr.splitlines()
    assert line.startswith("acclint: error: internal error in m05.py: the process died")


def test_the_library_has_one_front_door(folder: Path) -> None:
    (folder / "a.py").write_text("x = (\n")
    result = check(["a.py", "nope.py"])
    assert [finding.code for finding in result.findings] == ["invalid-syntax"]
    assert result.errors == ("nope.py: no such file or folder",)


# --- the summary ---


def loop(state: str, row: int = 88, reason: str = "") -> LoopReport:
    return LoopReport(Place("train.py", row, 1, row, 2), state, reason)


def test_the_summary_reads_as_documented() -> None:
    loops = (loop("plain"), loop("accumulates"), loop("accumulates"))
    lost = loop("not-understood", reason="optimizer comes from `build()`")
    result = collect([Outcome(FileResult("train.py", loops=(*loops, lost)))])
    assert summary.render(result) == (
        "No findings. Looked at 1 file: 4 training loops, 2 accumulate; "
        "1 not understood: train.py:88 (optimizer comes from `build()`)."
    )


def test_the_summary_names_some_places_and_counts_the_rest() -> None:
    lost = tuple(loop("not-understood", row) for row in range(1, 10))
    result = collect([Outcome(FileResult("train.py", loops=lost))])
    assert summary.render(result).endswith("train.py:4, train.py:5 and 4 more (--verbose).")
    assert len(summary.render(result, verbose=True).splitlines()) == 10


# --- the gate ---


@pytest.mark.parametrize(
    "text",
    [
        "loss.backward()",
        "accelerator.backward(loss)",
        "self.manual_backward(loss)",
        "torch.autograd.grad(loss, parameters)",
        "parameter.grad = total / k",
        "def training_step(self, batch):",
        "def compute_loss(self, model, inputs):",
        "TrainingArguments(output_dir='x')",
        "trainer = Trainer(model)",
        "SFTTrainer(model)",
        "L.Trainer(accumulate_grad_batches=4)",
        "optim_wrapper.update_params(loss)",
        "ACCUM_ITER = 4",
        "GradientAccumulation(n_acc=32)",
        "microbatches = batch.split(4)",
        "engine, *_ = deepspeed.initialize(model=model)",
    ],
)
def test_the_gate_lets_training_through(text: str) -> None:
    assert may_train(text.encode())


@pytest.mark.parametrize("text", ["", "print('hello')", "model.eval()", "import torch\nx = torch.ones(3)"])
def test_the_gate_holds_back_what_cannot_train(text: str) -> None:
    assert not may_train(text.encode())


# --- rules and explain ---


def test_rules_lists_every_rule() -> None:
    lines = run("rules").stdout.splitlines()
    assert [line.split()[0] for line in lines] == sorted(all_rules())
    listed = json.loads(run("rules", "--output-format", "json").stdout)
    assert {"code", "name", "category", "severity", "fix", "summary"} <= set(listed[0])


@pytest.mark.parametrize("name", ["ACC001", "acc001", "missing-loss-division"])
def test_explain(name: str) -> None:
    result = run("explain", name)
    assert result.exit_code == 0
    assert result.stdout.startswith("# missing-loss-division (ACC001)\n\n")
