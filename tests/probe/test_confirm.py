"""`acclint check --confirm`: findings are measured on the loop's own statements, and stand-ins decide nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from acclint import lint
from acclint.cli import cli
from acclint.findings import Confidence, Finding, Place, Severity
from acclint.probe import Oracle, OracleError
from acclint.probe.confirm import Confirmer
from acclint.probe.kept import Kept, versions_of
from acclint.probe.readings import CHECKS
from acclint.probe.verdict import Judged
from acclint.settings import Finder, Overrides

ROOT = Path(__file__).parents[2] / "fixtures"
FILES = sorted(ROOT.glob("*/*.py"))
EVERYTHING = Finder(Overrides(min_severity=Severity.INFO, min_confidence=Confidence.LOW), None, True)

# Micro-batches that are written out look like several losses of one batch: the run does not decide.
UNDECIDED = {"seeds/003_same_learning_rate", "ACC002/bad_backward_in_both_branches"}


@pytest.fixture(scope="module")
def confirmer() -> Iterator[Confirmer]:
    with Confirmer() as one:
        yield one


def confirmed(confirmer: Confirmer, path: Path) -> list[Judged]:
    return confirmer.judge(str(path), lint.check([str(path)], EVERYTHING).findings)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_fixtures_are_confirmed(path: Path, confirmer: Confirmer) -> None:
    """Each finding that a fixture expects is confirmed, and no other one."""
    told = " ".join(re.findall(r"# expect(?:-info)?: ([A-Z0-9, ]+)", path.read_text()))
    expected = set(re.findall(r"ACC\d{3}", told)) & CHECKS.keys()
    judged = confirmed(confirmer, path)
    verdicts = {code: {one.verdict for one in judged if one.finding.code == code} for code in expected}
    undecided = f"{path.parent.name}/{path.stem}" in UNDECIDED
    for code, seen in verdicts.items():
        assert seen == {"inconclusive" if undecided else "confirmed"}, (code, judged)
    assert {one.finding.code for one in judged if one.verdict == "confirmed"} <= expected, judged


# --- what a verdict rests on -----------------------------------------------------------------------------------------

TRAIN = """\
import torch
from torch import nn
from project.data import make_loader
from project.models import build
from project.log import tracker

def train(args, loader):
    model = build(args.model)
    criterion = nn.CrossEntropyLoss({reduction})
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    for epoch in range(args.epochs):
        for i, (x, y) in enumerate(loader):
            loss = {loss}
            {before}
            loss.backward()
            tracker.log(loss.item())
            if (i + 1) % args.accum_steps == 0:
                optimizer.step()
                optimizer.zero_grad()
"""


def train(loss: str = "criterion(model(x), y)", before: str = "", reduction: str = "") -> str:
    return TRAIN.format(loss=loss, before=before or "pass", reduction=reduction)


def judge(confirmer: Confirmer, folder: Path, text: str, code: str) -> Judged:
    """The verdict for the finding of that rule in a text."""
    path = folder / "train.py"
    path.write_text(text)
    found = [one for one in confirmed(confirmer, path) if one.finding.code == code]
    assert found, f"{code} is not reported"
    return found[0]


def asked(confirmer: Confirmer, folder: Path, text: str, code: str, row: int) -> Judged:
    """The verdict for a finding that the check does not report."""
    path = folder / "train.py"
    path.write_text(text)
    evidence = {"k": {"expression": "args.accum_steps", "value": None, "simulated_as": 4}}
    place = Place(str(path), row, 1, row, 40)
    finding = Finding(code, code.lower(), Severity.ERROR, Confidence.HIGH, "said", place, evidence=evidence)
    return confirmer.judge(str(path), [finding])[0]


def test_right_code_is_refuted(confirmer: Confirmer, tmp_path: Path) -> None:
    one = asked(confirmer, tmp_path, train(before="loss = loss / args.accum_steps"), "ACC001", 15)
    assert one.verdict == "refuted", one.text
    one = asked(confirmer, tmp_path, train(before="loss = loss / args.accum_steps"), "ACC002", 15)
    assert one.verdict == "refuted", one.text


def test_unknown_model_and_data_do_not_decide_about_the_division(confirmer: Confirmer, tmp_path: Path) -> None:
    one = judge(confirmer, tmp_path, train(), "ACC001")
    assert one.verdict == "confirmed", one.text
    assert "sum to 4.000" in one.text
    assert {"build", "tracker"} & set(one.finding.evidence["measured"]["stand_ins"])


def test_a_loss_of_the_model_is_only_consistent(confirmer: Confirmer, tmp_path: Path) -> None:
    one = judge(confirmer, tmp_path, train("model(x, labels=y).loss"), "ACC001")
    assert one.verdict == "consistent"
    assert "how the loss is reduced is not known (line 13)" in one.text


def test_a_condition_that_decides_is_named(confirmer: Confirmer, tmp_path: Path) -> None:
    text = train(before="loss = loss / (args.accum_steps if args.divide else 1)")
    one = asked(confirmer, tmp_path, text, "ACC001", 15)
    assert one.verdict == "inconclusive", one.text
    assert "`divide` decides (line 14)" in one.text
    text = train(before="loss = loss / (1 if args.sum else args.accum_steps)")
    one = asked(confirmer, tmp_path, text, "ACC001", 15)
    assert one.verdict == "consistent", one.text
    assert "`sum` decides (line 14)" in one.text


def test_a_condition_that_does_not_matter_does_not_count(confirmer: Confirmer, tmp_path: Path) -> None:
    one = judge(confirmer, tmp_path, train(before="loss = loss + 0 if args.half else loss"), "ACC001")
    assert one.verdict == "confirmed", one.text


TWO = """\
import torch
from torch import nn

encoder, head = nn.Linear(4, 6), nn.Linear(6, 2)
slow = torch.optim.SGD(encoder.parameters(), lr=0.01)
fast = torch.optim.SGD(head.parameters(), lr=0.1)
for update in range(6):
    slow.zero_grad()
    for _ in range(4):
        fast.zero_grad()
        loss = nn.functional.mse_loss(head(encoder(torch.randn(3, 4))), torch.randn(3, 2)) / 4
        loss.backward()
    slow.step()
    fast.step()
"""

WINDOWS = """\
import torch
from torch import nn

net = nn.Linear(4, 1)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for i in range(16):
    loss = nn.functional.mse_loss(net(torch.randn(3, 4)), torch.randn(3, 1)) / 4
    loss.backward()
    if (i + 1) % 4 == 0:
        optimizer.step()
        optimizer.zero_grad()
"""
FLUSHED = """\
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

loader = DataLoader(TensorDataset(torch.randn(21, 4), torch.randn(21, 1)), batch_size=3)
net = nn.Linear(4, 1)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for epoch in range(3):
    for i, (x, y) in enumerate(loader):
        (nn.functional.mse_loss(net(x), y) / 4).backward()
        if (i + 1) % 4 == 0 or i + 1 == len(loader):
            optimizer.step()
            optimizer.zero_grad()
"""
BY_HAND = """\
import torch
from torch import nn

net = nn.Linear(4, 1)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for step in range(4):
    kept = torch.zeros(1, 4)
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(torch.randn(3, 4)), torch.randn(3, 1)).backward()
        kept += net.weight.grad / 4
    with torch.no_grad():
        net.weight -= 0.1 * kept
"""

SUMS = """\
import torch
from torch import nn

net = nn.Linear(4, 1)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for i in range(16):
    loss = nn.functional.mse_loss(net(torch.randn(4, 4)), torch.randn(4, 1), reduction="sum")
    loss.backward()
    for p in net.parameters():
        p.grad.div_(4)
    optimizer.step()
    optimizer.zero_grad()
"""


@pytest.mark.parametrize("path", ["ACC001/good_undivided_penalty.py", "ACC031/good_losses_over_scales.py"])
def test_several_losses_of_one_batch_weigh_as_one(confirmer: Confirmer, tmp_path: Path, path: str) -> None:
    text = (ROOT / path).read_text()
    row = next(row for row, line in enumerate(text.splitlines(), 1) if "backward(" in line)
    assert asked(confirmer, tmp_path, text, "ACC006", row).verdict == "refuted"


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (TWO, "ACC002", "in no update of SGD, but in another's"),  # what is zeroed for one is used by the other
        (BY_HAND, "ACC006", ""),
        (BY_HAND, "ACC023", "its parameters were updated otherwise"),
        (WINDOWS.replace("if (i + 1) % 4 == 0:", "if True:"), "ACC006", "nothing was accumulated"),
        (FLUSHED, "ACC006", ""),  # the short windows are a question of ACC007
        (SUMS, "ACC016", ""),  # the 4 is the number of samples
    ],
)
def test_what_numbers_leave_open_is_inconclusive(
    confirmer: Confirmer, tmp_path: Path, text: str | Path, code: str, words: str
) -> None:
    text = text.read_text() if isinstance(text, Path) else text
    row = next(row for row, line in enumerate(text.splitlines(), 1) if "backward(" in line)
    one = asked(confirmer, tmp_path, text, code, row)
    assert one.verdict == "inconclusive", one.text
    assert words in one.text


WORKERS = """\
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

data = DataLoader(TensorDataset(torch.randn(32, 4), torch.randn(32, 1)), 2, False, None, None, 2)
net = nn.Linear(4, 1)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for i, (x, y) in enumerate(data):
    loss = nn.functional.mse_loss(net(x), y) / 4
    loss.backward()
    if (i + 1) % (4 + data.num_workers) == 0:
        optimizer.step()
        optimizer.zero_grad()
"""


def test_loaders_start_no_processes(confirmer: Confirmer, tmp_path: Path) -> None:
    one = asked(confirmer, tmp_path, WORKERS, "ACC001", 10)
    assert one.verdict == "refuted", one.text  # windows of 4: there are no workers


# --- the command -----------------------------------------------------------------------------------------------------

BAD = ROOT / "ACC001" / "bad_plain_modulo.py"


def invoke(*args: str) -> Result:
    return CliRunner().invoke(cli, ["check", "--isolated", "--confirm", "--no-cache", *args])


def test_full_output_says_what_was_measured() -> None:
    result = invoke(str(BAD))
    assert result.exit_code == 1
    assert "= confirmed: the weights of 4 mean losses sum to 4.000 in an update" in " ".join(result.output.split())
    assert "1 finding (1 fixable) in 1 file: 1 confirmed." in result.output


def test_concise_output_says_what_was_measured() -> None:
    result = invoke(str(BAD), "--output-format", "concise", "--quiet")
    assert "[confirmed: the weights of 4 mean losses sum to 4.000" in result.output


def test_json_output_has_the_measurement() -> None:
    data = json.loads(invoke(str(BAD), "--output-format", "json").output)
    measured = data[0]["evidence"]["measured"]
    assert measured["verdict"] == "confirmed"
    assert measured["contributions"][0]["updates"][0] == [4.0, 4.0, 4.0, 4.0]


def test_not_in_a_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRE_COMMIT", "1")
    result = invoke(str(BAD))
    assert result.exit_code == 2
    assert "not for hooks" in result.output


def test_not_by_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.acclint]\nconfirm = true\n")
    (tmp_path / "train.py").write_text(BAD.read_text())
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["check", "train.py"])
    assert result.exit_code == 2
    assert "confirm" in result.output


def test_not_with_standard_input() -> None:
    result = CliRunner().invoke(cli, ["check", "--confirm", "-"], input=BAD.read_text())
    assert result.exit_code == 2
    assert "does not go with `-`" in result.output


def test_help_says_that_code_is_run() -> None:
    text = " ".join(CliRunner().invoke(cli, ["check", "--help"]).output.split())
    assert "THIS RUNS STATEMENTS OF THE CHECKED FILES" in text


def test_not_with_fixes() -> None:
    result = invoke(str(BAD), "--fix")
    assert result.exit_code == 2
    assert "--fix" in result.output


def test_without_torch_the_findings_are_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = invoke(str(BAD), "--output-format", "concise")
    assert result.exit_code == 1
    assert "ACC001" in result.output
    assert "nothing was confirmed" in result.output and "pip install torch" in result.output


def test_a_clean_file_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acclint.probe.confirm.Oracle", None)
    assert invoke(str(ROOT / "ACC001" / "good_k_is_one.py")).exit_code == 0


def test_no_file_is_written_and_no_program_started(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    text = (
        BAD.read_text()
        .replace("import torch\n", "import os\nimport torch\n", 1)
        .replace("ACCUM = 4\n", f"ACCUM = 4\nos.system('touch {marker}')\nopen({str(marker)!r}, 'w')\n")
    )
    (tmp_path / "train.py").write_text(text)
    result = invoke(str(tmp_path / "train.py"), "--output-format", "concise")
    assert "confirmed" in result.output, result.output
    assert not marker.exists()


def test_an_instrument_that_fails_is_one_finding_without_verdict(
    confirmer: Confirmer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object) -> None:
        raise OracleError("the instruments failed: a traceback\nValueError: odd")

    monkeypatch.setattr(confirmer.oracle, "run_slice", fails)
    one = judge(confirmer, tmp_path, train(before="loss = loss + 0  # not seen yet"), "ACC001")
    assert (one.verdict, one.text) == ("inconclusive", "acclint could not measure it: ValueError: odd")


# --- the cache -------------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The slices that are really run from here on."""
    found: list[str] = []
    run_slice = Oracle.run_slice

    def counted(self: Oracle, text: str, *args: Any) -> Any:
        found.append(text)
        return run_slice(self, text, *args)

    monkeypatch.setattr(Oracle, "run_slice", counted)
    return found


def cached(*args: str) -> str:
    result = CliRunner().invoke(cli, ["check", "--isolated", "--confirm", "--output-format", "json", *args])
    assert result.exit_code == 1, result.output
    return str(json.loads(result.output)[0]["evidence"]["measured"])


def test_an_equal_slice_is_measured_once(runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(BAD.read_text())
    Path("other.py").write_text(BAD.read_text())
    first = cached("train.py")
    assert "confirmed" in first
    count = len(runs)
    assert count > 0
    assert Path(".acclint_cache", ".gitignore").read_text() == "*\n"
    assert all(json.loads(path.read_text()) for path in Path(".acclint_cache").rglob("*.json"))

    monkeypatch.setattr(Oracle, "__enter__", None)  # no server is started, torch is not imported
    assert cached("train.py") == first
    assert cached("other.py") == first
    assert len(runs) == count


def test_what_decides_a_measurement_is_in_its_name(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(BAD.read_text())
    cached("--cache-dir", "kept", "train.py")
    count = len(runs)
    monkeypatch.setattr("acclint.probe.confirm.versions_of", lambda python: "another torch")
    cached("--cache-dir", "kept", "train.py")
    assert len(runs) == 2 * count
    Path("train.py").write_text(BAD.read_text().replace("momentum=0.9", "momentum=0.8"))
    cached("--cache-dir", "kept", "train.py")
    assert len(runs) == 3 * count
    assert not Path(".acclint_cache").exists()


def test_without_the_cache_nothing_is_kept(runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(BAD.read_text())
    cached("train.py")
    count = len(runs)
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    cached("--no-cache", "train.py")
    assert len(runs) == 2 * count
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


def test_a_broken_entry_is_measured_again(runs: list[str], tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(BAD.read_text())
    folder = tmp_path / "kept"
    cached("--cache-dir", str(folder), str(tmp_path / "train.py"))
    count = len(runs)
    for path in folder.rglob("*.json"):
        path.write_text("{")
    cached("--cache-dir", str(folder), str(tmp_path / "train.py"))
    assert len(runs) == 2 * count


def test_a_folder_that_cannot_be_written_keeps_nothing(runs: list[str], tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(BAD.read_text())
    (tmp_path / "kept").write_text("a file")
    assert "confirmed" in cached("--cache-dir", str(tmp_path / "kept"), str(tmp_path / "train.py"))
    assert runs


def test_old_entries_are_removed(tmp_path: Path) -> None:
    kept = Kept(tmp_path, "versions")
    for name in ("old", "new"):
        kept.put(name, {"a": 1})
    os.utime(tmp_path / "slices" / "old.json", (1, 1))
    kept.tidy()
    assert kept.get("old") is None
    assert kept.get("new") == {"a": 1}


def test_versions_are_those_of_the_interpreter(tmp_path: Path) -> None:
    assert sys.version in versions_of(sys.executable)
    assert not versions_of(tmp_path / "no-python")


# --- notebooks and pages ---------------------------------------------------------------------------------------------

HEAD, BODY = BAD.read_text().split("net = ", 1)


def test_cells_of_a_notebook_are_measured_as_one_text(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": "# Training"},
        {"cell_type": "code", "source": "%matplotlib inline\n" + HEAD},
        {"cell_type": "code", "source": ["net = " + BODY]},
    ]
    path = tmp_path / "train.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    finding = json.loads(invoke(str(path), "--output-format", "json").output)[0]
    assert (finding["code"], finding["cell"]) == ("ACC001", 3)
    measured = finding["evidence"]["measured"]
    assert measured["verdict"] == "confirmed", measured
    assert measured["contributions"][0]["updates"][0] == [4.0, 4.0, 4.0, 4.0]
    made = next(row for row, line in enumerate(("net = " + BODY).splitlines(), 1) if "SGD" in line)
    assert measured["contributions"][0]["line"] == made


def test_what_is_said_of_a_notebook_names_the_cell(confirmer: Confirmer, tmp_path: Path) -> None:
    text = train("model(x, labels=y).loss")
    head, body = text.split("def train", 1)
    path = tmp_path / "train.ipynb"
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": one} for one in (head, "def train" + body)]}))
    one = next(one for one in confirmed(confirmer, path) if one.finding.code == "ACC001")
    row = next(row for row, line in enumerate(("def train" + body).splitlines(), 1) if "labels=y" in line)
    assert one.verdict == "consistent"
    assert f"how the loss is reduced is not known (cell 2, line {row})" in one.text
    assert one.finding.place.cell == 2


def test_blocks_of_a_page_are_measured_as_one_text(confirmer: Confirmer, tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"# Training\n\n```python\n{HEAD}```\n\nand then\n\n```python\nnet = {BODY}```\n")
    one = next(one for one in confirmed(confirmer, path) if one.finding.code == "ACC001")
    assert one.verdict == "confirmed", one.text
    assert "backward()" in path.read_text().splitlines()[one.finding.place.row - 1]


# --- harm ------------------------------------------------------------------------------------------------------------

PLAIN = (ROOT / "ACC001" / "bad_plain_modulo.py").read_text()
SGD = "torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)"


@pytest.mark.parametrize(
    ("optimizer", "clip", "words"),
    [
        (SGD, "", "with SGD the updates are 4.00x as large as they should be"),
        ("torch.optim.AdamW(net.parameters(), lr=0.01)", "", "with AdamW the factor 4 cancels in the updates (1.00x)"),
        ("torch.optim.RMSprop(net.parameters(), lr=0.01)", "", "with RMSprop the factor 4 cancels in the updates"),
        (
            "torch.optim.Adam(net.parameters(), lr=0.01, weight_decay=0.1)",
            "",
            "with Adam the updates are 0.9",  # the decay is part of the gradient: it weighs less beside a larger one
        ),
        (
            "torch.optim.AdamW(net.parameters(), lr=0.01)",
            "torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)",
            "cancels in the updates (1.00x), but the clipping threshold 1 is 4 times tighter",
        ),
        (
            SGD,
            "torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)",
            "4.00x as large as they should be, but the clipping threshold 0.1 is 4 times tighter: 1.00x after it",
        ),
    ],
)
def test_harm_is_told_for_the_optimizer_at_hand(
    confirmer: Confirmer, tmp_path: Path, optimizer: str, clip: str, words: str
) -> None:
    text = PLAIN.replace(SGD, optimizer).replace(
        "            opt.step()", f"            {clip or 'pass'}\n            opt.step()"
    )
    one = judge(confirmer, tmp_path, text, "ACC001")
    assert one.verdict == "confirmed", one.text
    assert words in one.text
    harm = one.finding.evidence["measured"]["harm"][0]
    assert harm["factor"] == 4 and harm["updates"] > 1


# --- blinded fixtures ------------------------------------------------------------------------------------------------

# Their models and data are elsewhere; then the number of batches and the shapes are stand-ins', too.
BLIND = (
    (r"from torch\.utils\.data import", "from project.data import"),
    (r"\bnn\.(Sequential|Linear|Conv2d|Embedding|LSTM|ModuleList)\(", r"project_model.\1("),
    (r"\bnn\.Module\b", "project_base.Module"),
)
# What torch's own numbers say of these, too; see test_fixture_truth.py.
TRUE_IN_GOOD = {
    "ACC001/good_cached_features_in_settings",
    "ACC001/good_lr_over_k_plain_sgd",
    "ACC001/good_several_models_of_a_batch",
    "ACC001/good_undivided_penalty",
    "ACC001/good_window_wide_contrastive_loss",
    "ACC021/good_lr_holds_the_division",
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_stand_ins_for_models_and_data_make_no_verdict_wrong(path: Path, confirmer: Confirmer, tmp_path: Path) -> None:
    """No bad fixture is refuted, and a good one is not confirmed to have the defect of its rule."""
    text = path.read_text()
    for pattern, other in BLIND:
        text = re.sub(pattern, other, text)
    blinded = tmp_path / path.name
    blinded.write_text(text)

    def moved(place: Place) -> Place:
        return dataclasses.replace(place, filename=str(blinded))

    rows = [row for row, line in enumerate(text.splitlines(), 1) if "backward(" in line]
    checked = lint.check([str(path)], EVERYTHING)
    if path.name.startswith("good_") and rows:
        code = path.parent.name
        k = next((loop.k for loop in checked.loops if loop.k), "")
        evidence = {"k": {"expression": k, "value": None, "simulated_as": 4}}
        place = Place(str(blinded), rows[0], 1, rows[0], 80)
        asked = Finding(code, code, Severity.ERROR, Confidence.HIGH, "said", place, evidence=evidence)
        verdict = confirmer.judge(str(blinded), [asked])[0]
        assert verdict.verdict != "confirmed" or f"{code}/{path.stem}" in TRUE_IN_GOOD, verdict.text
    if path.name.startswith("bad_"):
        findings = [
            dataclasses.replace(
                finding,
                place=moved(finding.place),
                related=tuple(dataclasses.replace(one, place=moved(one.place)) for one in finding.related),
            )
            for finding in checked.findings
            if finding.code == path.parent.name
        ]
        for one in confirmer.judge(str(blinded), findings):
            assert one.verdict != "refuted", one.text
