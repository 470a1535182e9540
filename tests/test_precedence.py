"""Where two rules see the same mistake, the more specific one speaks alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from acclint.findings import Confidence, Severity
from acclint.lint import check_text
from acclint.program import Span
from acclint.rules import all_rules
from acclint.rules.base import Report, Rule
from acclint.rules.precedence import BEFORE, alone
from acclint.settings import Settings

LOOP, OTHER_LOOP = [10, 5, 10, 30], [40, 5, 40, 30]
PAIRS = [(first, second) for first, others in sorted(BEFORE.items()) for second in sorted(others)]


def report(row: int, scope: list[int] | None = None, owner: str = "", **options: object) -> Report:
    evidence: dict[str, object] = {"scope": scope}
    if owner:
        evidence["contributions"] = [{"owner": owner, "updates": []}]
    made = Report(Span(row, 1, row, 9), "", Severity.ERROR, evidence=evidence)
    return replace(made, **options)  # type: ignore[arg-type]


def rule(code: str) -> Rule:
    return all_rules()[code]


def codes(*reports: tuple[str, Report]) -> list[str]:
    return [one.code for one, _ in alone([(rule(code), found) for code, found in reports])]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_the_specific_rule_speaks_alone_in_a_loop(first: str, second: str) -> None:
    assert codes((second, report(12, LOOP)), (first, report(13, LOOP))) == [first]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_two_loops_are_two_mistakes(first: str, second: str) -> None:
    assert codes((first, report(13, LOOP)), (second, report(42, OTHER_LOOP))) == [first, second]


def test_two_optimizers_of_one_loop_are_two_mistakes() -> None:
    assert codes(("ACC001", report(12, LOOP, "opt_d")), ("ACC021", report(15, LOOP, "opt_g"))) == ["ACC001", "ACC021"]
    assert codes(("ACC001", report(12, LOOP, "opt_d")), ("ACC021", report(15, LOOP, "opt_d"))) == ["ACC021"]


def test_the_same_place_is_the_same_mistake_in_any_loop() -> None:
    assert codes(("ACC006", report(14, LOOP)), ("ACC007", report(14, OTHER_LOOP))) == ["ACC006"]
    late = report(15, notes=(("backward runs here", Span(12, 1, 12, 9)),))
    assert codes(("ACC001", report(12)), ("ACC021", late)) == ["ACC021"]


def test_without_a_loop_nothing_is_the_same() -> None:
    assert codes(("ACC001", report(12)), ("ACC021", report(15))) == ["ACC001", "ACC021"]


def test_rules_without_precedence_speak_both() -> None:
    assert codes(("ACC001", report(12, LOOP)), ("ACC004", report(12, LOOP))) == ["ACC001", "ACC004"]


def test_an_unsure_report_does_not_silence_a_sure_one() -> None:
    unsure = report(15, LOOP, confidence=Confidence.LOW)
    assert codes(("ACC001", report(12, LOOP)), ("ACC021", unsure)) == ["ACC001", "ACC021"]


LATE = """\
import torch

net = torch.nn.Linear(3, 1)
opt = torch.optim.SGD(net.parameters(), lr=0.1)
accumulation_steps = 4
for i in range(16):
    loss = torch.nn.functional.mse_loss(net(torch.randn(4, 3)), torch.randn(4, 1))
    loss.backward()
    loss = loss / accumulation_steps
    if (i + 1) % accumulation_steps == 0:
        opt.step()
        opt.zero_grad()
"""


def test_in_a_file() -> None:
    assert [(one.code, one.place.row) for one in check_text(LATE, "late.py").findings] == [("ACC021", 9)]


def test_a_rule_that_is_off_silences_nothing() -> None:
    only = replace(Settings(), rules=Settings().rules - {"ACC021"})
    assert [(one.code, one.place.row) for one in check_text(LATE, "late.py", only).findings] == [("ACC001", 8)]


def test_a_suppressed_finding_still_silences_the_general_one() -> None:
    text = LATE.replace(
        "loss = loss / accumulation_steps", "loss = loss / accumulation_steps  # acclint: ignore[ACC021]"
    )
    assert [one.code for one in check_text(text, "late.py").findings] == []
