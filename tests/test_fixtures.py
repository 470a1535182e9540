"""The fixtures are the specification: what acclint must say about each, and what torch measures."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from acclint.findings import Severity
from acclint.lint import check_text
from acclint.settings import Settings

ROOT = Path(__file__).parents[1] / "fixtures"
FILES = sorted(ROOT.glob("*/*.py"))
EVERYTHING = dataclasses.replace(Settings(), min_severity=Severity.INFO)

# What the engine cannot tell yet, with the reason: listed, so that it is not forgotten.
KNOWN_MISSES: dict[str, str] = {}


def expected(text: str, word: str) -> set[tuple[str, int]]:
    """The (code, row) pairs of the `# expect: ACC001, ACC002` comments."""
    return {
        (code.strip(), row)
        for row, line in enumerate(text.splitlines(), 1)
        for match in re.finditer(rf"# {word}: ([A-Z0-9, ]+)", line)
        for code in match[1].split(",")
        if code.strip()
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_fixture_is_judged_as_its_comments_say(path: Path) -> None:
    name = f"{path.parent.name}/{path.stem}"
    if name in KNOWN_MISSES:
        pytest.xfail(KNOWN_MISSES[name])
    text = path.read_text()
    found = check_text(text, str(path), EVERYTHING).findings
    shown = {(one.code, one.place.row) for one in found if one.severity is not Severity.INFO}
    quiet = {(one.code, one.place.row) for one in found if one.severity is Severity.INFO}
    assert shown == expected(text, "expect")
    assert quiet == expected(text, "expect-info")


def test_every_rule_has_enough_fixtures() -> None:
    folders = [folder for folder in ROOT.iterdir() if re.fullmatch(r"ACC\d{3}", folder.name)]
    assert len(folders) >= 14
    for folder in folders:
        assert len(list(folder.glob("good_*.py"))) >= 5, folder
        assert len(list(folder.glob("bad_*.py"))) >= 4, folder


def test_good_fixtures_expect_nothing_and_bad_ones_their_own_rule() -> None:
    for path in FILES:
        text = path.read_text()
        codes = {code for code, _ in expected(text, "expect") | expected(text, "expect-info")}
        if path.name.startswith("bad_"):
            assert path.parent.name in codes, path
        elif path.name.startswith("good_"):
            assert path.parent.name not in codes, path
