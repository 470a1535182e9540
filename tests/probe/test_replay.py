"""The replay of lifted events: torch makes of them what the simulator did, which proves no reading of the source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from acclint import lint
from acclint.findings import Confidence, Finding, Severity
from acclint.probe import Oracle, replay
from acclint.probe.confirm import Confirmer
from acclint.probe.verdict import Judged, contributions
from acclint.settings import Finder, Overrides

ROOT = Path(__file__).parents[2] / "fixtures"
EVERYTHING = Finder(Overrides(min_severity=Severity.INFO, min_confidence=Confidence.LOW), None, True)


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with Oracle() as one:
        yield one


def found(path: Path) -> tuple[Finding, ...]:
    return lint.check([str(path)], EVERYTHING).findings


@pytest.mark.parametrize("path", sorted(ROOT.glob("*/bad_*.py")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_torch_gets_the_matrix_that_is_predicted(path: Path, oracle: Oracle, tmp_path: Path) -> None:
    """Of each finding whose events are all known; those that name no events are skipped."""
    programs = [(finding, replay.program(finding.evidence["trace"])) for finding in found(path)]
    known = [(finding, text) for finding, text in programs if text]
    if not known:
        pytest.skip("its findings name no events that can be replayed")
    for finding, text in known:
        script = tmp_path / "replay.py"
        script.write_text(text)
        measured = oracle.measure(script)
        assert measured.outcome == "finished", measured.error
        (rows,) = contributions(measured, [0])
        (predicted,) = finding.evidence["contributions"]
        size = finding.evidence["k"]["simulated_as"]
        for got, wanted in zip(rows["updates"], predicted["updates"], strict=False):
            told = [value for value in wanted if value]
            assert [value * size / rows["k"] for value in got if value] == pytest.approx(told, rel=1e-4), finding.code
        assert len(rows["updates"]) >= min(3, len(predicted["updates"]))


LOST = """\
import torch
from torch import nn
from mine import Model, loader

model = Model()
model.check_that_nobody_made_this_up()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for i, (x, y) in enumerate(loader):
    loss = nn.functional.mse_loss(model(x), y)
    {before}
    loss.backward()
    if (i + 1) % 4 == 0:
        optimizer.step()
        optimizer.zero_grad()
"""


def judged(folder: Path, before: str) -> Judged:
    path = folder / "train.py"
    path.write_text(LOST.format(before=before))
    (finding,) = [one for one in found(path) if one.code == "ACC001"]
    with Confirmer() as confirmer:
        return confirmer.judge(str(path), [finding])[0]


def test_statements_that_cannot_be_run_are_replayed(tmp_path: Path) -> None:
    one = judged(tmp_path, "loss = loss + unheard_of.frobnicate(loss.__globals__)")
    assert one.verdict == "consistent", one.text
    assert "the gradient is 4.00x that of their mean in a replay of what acclint reads" in one.text
    assert "`__globals__` (line 10)" in one.text


def test_statements_that_can_be_run_are_not(tmp_path: Path) -> None:
    one = judged(tmp_path, "pass")
    assert one.verdict == "confirmed", one.text


TRACE: dict[str, Any] = {
    "events": [
        {"event": "backward", "weight": 0.25, "reduction": "mean", "location": {"row": 9, "column": 1}},
        {"event": "edit", "factor": None, "location": {"row": 10, "column": 1}},
        {"event": "update", "location": {"row": 11, "column": 1}},
    ]
}


def test_unknown_edits_and_nothing_are_no_program() -> None:
    assert replay.program(TRACE) == ""
    assert replay.program({}) == ""
    assert replay.program({"events": TRACE["events"][:1]}) == ""


def test_events_stand_at_their_rows() -> None:
    trace = {"events": [{**event, "cell": 2} for event in (TRACE["events"][0], TRACE["events"][2])]}
    plain, moved = replay.program(trace), replay.program(trace, {(2, 9): 29, (2, 11): 31})
    assert [row for row, line in enumerate(plain.splitlines(), 1) if "lambda weight" in line] == [9, 11]
    assert [row for row, line in enumerate(moved.splitlines(), 1) if "lambda weight" in line] == [29, 31]
