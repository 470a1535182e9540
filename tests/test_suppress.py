"""Suppression comments: which finding they hide, and when they are reported themselves."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import acclint.judge
import acclint.lift
from acclint.findings import Confidence, Severity
from acclint.lint import check_text, examine
from acclint.program import Span
from acclint.rules import all_rules
from acclint.rules.base import Report
from acclint.settings import Overrides, Selection, Settings, build
from acclint.source import read


@pytest.fixture(autouse=True)
def fake_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """ACC001 reports every line with `backward()`, ACC002 every line with `zero_grad()`, ACC005 hints at `append`."""
    real_lift = acclint.lift.lift

    def lift(text: str, filename: str) -> Any:
        real_lift(text, filename)
        return text

    def finds(word: str, severity: Severity, confidence: Confidence = Confidence.HIGH) -> Any:
        def check(analysis: Any) -> Iterator[Report]:
            for row, line in enumerate(analysis.text.split("\n"), start=1):
                at = line.find(word)
                if at >= 0 and "#" not in line[:at]:
                    yield Report(Span(row, at + 1, row, at + 1 + len(word)), f"{word}!", severity, confidence)

        return check

    def analyze(text: str, **options: Any) -> Any:
        program = types.SimpleNamespace(others={})
        return types.SimpleNamespace(text=text, loops=(), program=program, own_place=lambda span: span)

    monkeypatch.setattr(acclint.judge, "analyze", analyze)
    monkeypatch.setattr(acclint.judge, "lift", lift)
    monkeypatch.setattr(acclint.judge, "link", lambda program, path: program)
    for code, rule in list(all_rules().items()):
        monkeypatch.setitem(all_rules(), code, replace(rule, check=lambda analysis: iter(())))
    checks = {
        "ACC001": finds("backward()", Severity.ERROR),
        "ACC002": finds("zero_grad()", Severity.WARNING),
        "ACC005": finds("append", Severity.INFO),
    }
    for code, check in checks.items():
        monkeypatch.setitem(all_rules(), code, replace(all_rules()[code], check=check))


def codes(text: str, settings: Settings | None = None) -> list[str]:
    return [finding.code for finding in check_text(text, "train.py", settings).findings]


def test_without_a_comment_the_finding_stays() -> None:
    assert codes("loss.backward()\n") == ["ACC001"]


@pytest.mark.parametrize(
    "text",
    [
        "loss.backward()  # acclint: ignore[ACC001]",
        "loss.backward()  # acclint: ignore[ACC001] summed on purpose, lr is tuned for it",
        "loss.backward()  # acclint:ignore[acc001]",
        "loss.backward()  # ACCLINT: Ignore[ACC001]",
        "loss.backward()  #acclint: ignore [ ACC001 ]",
        "loss.backward()  # acclint: ignore[missing-loss-division]",
        "loss.backward()  # type: ignore # acclint: ignore[ACC001]",
        "loss.backward()  # acclint: ignore[ACC001] # fmt: skip",
        "# acclint: ignore[ACC001]\nloss.backward()",
        "if x:\n    # acclint: ignore[ACC001] why\n    loss.backward()",
        "# acclint: ignore[ACC001]\n# another comment\nloss.backward()",
        "(loss\n  .backward())  # acclint: ignore[ACC001]",
        "(loss\n  .backward()\n)  # acclint: ignore[ACC001]",
        "(loss  # acclint: ignore[ACC001]\n  .backward())",
        "(loss\n  # acclint: ignore[ACC001]\n  .backward())",
        "# acclint: ignore[ACC001]\n(loss\n  .backward())",
        "loss \\\n  .backward()  # acclint: ignore[ACC001]",
        "loss.backward()  # noqa: ACC001",
        "loss.backward()  # noqa",
        "loss.backward()  # NOQA",
        "loss.backward()  # noqa:E501,ACC001",
        "loss.backward()  # noqa: E501 ACC001",
        "# acclint: ignore-file\nloss.backward()",
        "# acclint: ignore-file[ACC001]\nloss.backward()",
        '"""Docs."""\n\n# acclint: ignore-file[ACC001] generated\nloss.backward()',
        "x = 1\r\nloss.backward()  # acclint: ignore[ACC001]\r\n",
        "s = '''\n'''; loss.backward()  # acclint: ignore[ACC001]",
    ],
)
def test_hides_the_finding_and_is_used(text: str) -> None:
    assert codes(text) == []


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("loss.backward()  # acclint: ignore[ACC002]", ["ACC001", "unused-ignore"]),
        ("# acclint: ignore[ACC001]\n\nloss.backward()", ["unused-ignore", "ACC001"]),
        ("x = 1  # acclint: ignore[ACC001]\nloss.backward()", ["unused-ignore", "ACC001"]),
        ("loss.backward()\n# acclint: ignore[ACC001]", ["ACC001", "unused-ignore"]),
        ("for x in y:  # acclint: ignore[ACC001]\n    loss.backward()", ["unused-ignore", "ACC001"]),
        ("loss.backward()  # noqa: E501", ["ACC001"]),
        ("loss.backward()  # noqa: ACC002", ["ACC001"]),
        ("# noqa: ACC001\nloss.backward()", ["ACC001"]),
        ("loss.backward()  # see acclint: it is right", ["ACC001"]),
        ('s = "# acclint: ignore-file"\nloss.backward()', ["ACC001"]),
        ("# acclint: ignore-file[ACC002]\nloss.backward()", ["unused-ignore", "ACC001"]),
    ],
)
def test_leaves_other_findings(text: str, left: list[str]) -> None:
    assert codes(text) == left


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("loss.backward()  # acclint: ignore", "name the rules"),
        ("loss.backward()  # acclint: ignore[]", "name the rules"),
        ("loss.backward()  # acclint: ignore because", "name the rules"),
        ("loss.backward()  # acclint: ignore[ACC0011]", "unknown rule 'ACC0011'; did you mean ACC001?"),
        ("loss.backward()  # acclint: ignore[missing-loss-divison]", "did you mean missing-loss-division?"),
        ("loss.backward()  # acclint: disable=ACC001", "no directive"),
        ("# acclint: ignore-file[]\nloss.backward()", "name the rules"),
        ("x = 1\n" * 30 + "# acclint: ignore-file\nloss.backward()", "first 25 lines"),
    ],
)
def test_a_malformed_comment_is_reported_and_hides_nothing(text: str, says: str) -> None:
    findings = check_text(text, "train.py").findings
    assert sorted(finding.code for finding in findings) == ["ACC001", "invalid-ignore"]
    assert says in next(finding.message for finding in findings if finding.code == "invalid-ignore")


def test_a_good_code_beside_an_unknown_one_counts() -> None:
    assert codes("loss.backward()  # acclint: ignore[ACC001, ACC999]") == ["invalid-ignore"]


def test_the_comment_is_what_the_fix_removes() -> None:
    def removed(text: str) -> tuple[int, int, int, int]:
        (finding,) = check_text(text, "train.py").findings
        assert finding.code == "unused-ignore"
        assert finding.fix is not None
        (edit,) = finding.fix.edits
        assert edit.content == ""
        return (edit.place.row, edit.place.column, edit.place.end_row, edit.place.end_column)

    assert removed("x = 1  # acclint: ignore[ACC001] why  # other") == (1, 8, 1, 37)
    assert removed("x = 1  # acclint: ignore[ACC001] why \ny = 2") == (1, 6, 1, 38)
    assert removed("if x:\n    # acclint: ignore[ACC001]\n    y = 2") == (2, 1, 3, 1)


def test_two_codes_need_one_finding() -> None:
    assert codes("loss.backward()  # acclint: ignore[ACC001, ACC002]") == []
    assert codes("loss.backward(), zero_grad()  # acclint: ignore[ACC001, ACC002]") == []


def test_a_comment_is_used_by_a_finding_below_the_threshold() -> None:
    assert codes("x.append(loss)  # acclint: ignore[ACC005]\nloss.backward(1)") == []


def test_a_comment_for_a_rule_that_did_not_run_is_not_unused() -> None:
    only_two = build({}, None, Overrides(selection=Selection(select=("ACC002",))))
    assert codes("loss.backward()  # acclint: ignore[ACC001]", only_two) == []
    assert codes("x = 1  # acclint: ignore[ACC002]\nbackward", only_two) == ["unused-ignore"]


def test_unused_ignore_can_be_ignored() -> None:
    settings = build({}, None, Overrides(selection=Selection(ignore=("unused-ignore", "invalid-ignore"))))
    assert codes("x = 1  # acclint: ignore[ACC001]\ny = 2  # acclint: ignore", settings) == []


def test_in_a_file_without_training_comments_are_checked_as_well() -> None:
    assert codes("x = 1  # acclint: ignore[ACC001]") == ["unused-ignore"]


def test_newer_syntax_than_the_running_python() -> None:
    # The tokenizer of an older Python may stop at the first line; the comments below it still count.
    text = 'x = f"{f"{1}"}"\nloss.backward()  # acclint: ignore[ACC001]\nloss.backward()'
    assert codes(text) == ["ACC001"]


def test_a_file_that_does_not_parse_has_no_unused_comments() -> None:
    assert codes("loss.backward(  # acclint: ignore[ACC001]") == ["invalid-syntax"]


def test_in_a_notebook_the_comment_applies_inside_its_cell() -> None:
    data = (
        b'{"cells": [{"cell_type": "code", "source": "loss.backward()"},'
        b'{"cell_type": "code", "source": "# acclint: ignore[ACC001]\\nloss.backward()"}]}'
    )
    findings = examine(read(data, "a.ipynb"), Settings(), Path("/a.ipynb")).result.findings
    assert [(finding.code, finding.place.cell, finding.place.row) for finding in findings] == [("ACC001", 1, 1)]
