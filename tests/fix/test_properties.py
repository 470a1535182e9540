"""What holds for every rewrite: once is enough, the order does not matter, and nothing else is lost."""

from __future__ import annotations

import random
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

import acclint.repair
from acclint.discover import Target
from acclint.lint import Outcome, check_bytes
from acclint.repair import Repair, fix_bytes
from acclint.settings import Settings
from tests.mutations.operators import HARMFUL
from tests.mutations.run import Mutant, sample, sources

HEAD = """
import torch
from torch import nn
x, y, model = torch.randn(4, 6), torch.randn(4, 1), nn.Linear(6, 1)
opt = torch.optim.SGD(model.parameters(), lr=0.02)
"""
TARGET = Target(Path("train.py"), "train.py", Settings())
MUTANTS = [mutant for mutant in sample(sources(), 220, 3) if mutant.operator in HARMFUL]


def fixed(text: str) -> Repair:
    return fix_bytes(text.encode(), TARGET, unsafe=True)


REPAIRED = [(mutant, repair) for mutant in MUTANTS if (repair := fixed(mutant.text)).fixed]


def test_enough_mutants_are_rewritten_for_these_tests() -> None:
    assert len(REPAIRED) >= 40


@pytest.mark.parametrize(("mutant", "repair"), REPAIRED, ids=lambda one: one.name if isinstance(one, Mutant) else "")
def test_fixing_twice_is_fixing_once(mutant: Mutant, repair: Repair) -> None:
    assert not repair.error
    assert not fixed(repair.new.decode()).fixed


@given(st.sampled_from(REPAIRED), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_order_of_the_findings_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, case: tuple[Mutant, Repair], shuffle: random.Random
) -> None:
    mutant, repair = case

    def shuffled(data: bytes, target: Target) -> Outcome:
        outcome = check_bytes(data, target)
        findings = list(outcome.result.findings)
        shuffle.shuffle(findings)
        return replace(outcome, result=replace(outcome.result, findings=tuple(findings)))

    with monkeypatch.context() as patch:
        patch.setattr(acclint.repair, "check_bytes", shuffled)
        assert fixed(mutant.text).new == repair.new


@given(st.sampled_from(REPAIRED), st.data())
@settings(max_examples=60, deadline=None)
def test_comments_and_blank_lines_stay(case: tuple[Mutant, Repair], data: st.DataObject) -> None:
    """A script with remarks is rewritten as the one without them, and every remark is still there."""
    mutant, repair = case
    lines = mutant.text.splitlines()
    starts = _statements(mutant.text)
    chosen = data.draw(st.lists(st.sampled_from(starts), min_size=1, max_size=6, unique=True))
    remarks = []
    for at in sorted(chosen, reverse=True):
        indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
        remark = data.draw(st.sampled_from(["", f"{indent}# remark {at}", f"# remark {at}"]))
        remarks.append(remark.strip())
        lines.insert(at, remark)
    noisy = fixed("\n".join(lines) + "\n")
    new = noisy.new.decode().splitlines()
    assert [one.code for one in noisy.fixed] == [one.code for one in repair.fixed]
    assert sorted(line.strip() for line in new if "# remark" in line) == sorted(filter(None, remarks))
    code = [line for line in new if line.strip() and "# remark" not in line]
    assert code == [line for line in repair.new.decode().splitlines() if line.strip()]


def _statements(text: str) -> list[int]:
    """The rows (from 0) on which a statement of a block begins, where a line may be put before it."""
    import ast

    rows = {
        node.lineno - 1
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.stmt) and not isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }
    lines = text.splitlines()
    clauses = ("elif", "else", "except", "finally")
    return sorted(row for row in rows if not lines[row].lstrip().startswith(clauses))


def test_comments_stay_where_a_condition_goes_with_its_statement() -> None:
    text = """
        for i in range(48):
            loss = nn.functional.mse_loss(model(x), y)
            (loss / 4).backward()
            if (i + 1) % 4 == 0:
                # remark 1

                # remark 2
                if (i + 1) % 5 == 0:
                    # remark 3
                    opt.step()
                    # remark 4
                opt.zero_grad()
    """
    new = fixed(HEAD + textwrap.dedent(text)).new.decode()
    assert new == HEAD + textwrap.dedent(
        """
        for i in range(48):
            loss = nn.functional.mse_loss(model(x), y)
            (loss / 4).backward()
            if (i + 1) % 4 == 0:
                opt.step()
                # remark 1

                # remark 2
                # remark 3
                # remark 4
                opt.zero_grad()
        """
    )
