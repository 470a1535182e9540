"""Every fixture under --fix: what is repaired is right by torch's measure, what is right does not change by a byte."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")

from acclint.discover import Target
from acclint.findings import Severity
from acclint.probe import Oracle
from acclint.repair import Repair, fix_bytes
from acclint.rules import all_rules
from acclint.settings import Settings
from tests.test_fixture_truth import claims, name_of, shown

ROOT = Path(__file__).parents[2] / "fixtures"
EVERYTHING = dataclasses.replace(Settings(), min_severity=Severity.INFO)
SAFE = sorted(code for code, rule in all_rules().items() if rule.fix == "safe")
BAD = [path for code in SAFE for path in sorted((ROOT / code).glob("bad_*.py"))]
FROZEN = sorted((ROOT / "ACC023").glob("bad_*.py"))
GOOD = sorted(ROOT.glob("ACC*/good_*.py"))

# Mistakes in a form that --fix leaves alone, with the reason.
BY_HAND = {
    "ACC001/bad_closure_counts_down": "k is only a parameter of the function around",
    "ACC001/bad_zeroed_between_passes": "the window that a pass has zeroed is too short for the division",
    "ACC004/bad_cosine_of_a_helper": "the length is inside a function",
    "ACC004/bad_cosine_sized_in_micro_batches": "resizing is unsafe",
    "ACC004/bad_lambda_over_micro_batches": "the length is inside a function",
    "ACC004/bad_onecycle_sized_in_micro_batches": "resizing is unsafe",
    "ACC004/bad_own_scheduler_in_micro_batches": "the length is that of a class of the script",
    "ACC004/bad_plateau_per_micro_batch": "the metric has to change",
    "ACC004/bad_plateau_per_update": "the metric has to change",
    "ACC004/bad_restarts_sized_in_micro_batches": "resizing is unsafe",
    "ACC004/bad_samples_over_batch_size": "resizing is unsafe",
    "ACC004/bad_warmup_of_one_epoch": "resizing is unsafe",
    "ACC004/bad_warmup_then_cosine_in_micro_batches": "resizing is unsafe",
    "ACC005/bad_evaluation_over_slices": "nothing calls backward",
    "ACC005/bad_predictions_with_graph": "nothing calls backward",
    "ACC005/bad_validation_with_graph": "nothing calls backward",
    "ACC015/bad_generator_left_in_discriminator": "the windows of the proof would change",
    "ACC021/bad_divided_by_the_caller": "k is only a variable of the caller",
    "ACC006/bad_modulus_changes": "what was meant is not clear",
    "ACC006/bad_under_logging_test": "what was meant is not clear",
}

# What the numbers of a right rewrite cannot tell from a mistake.
MEANT = {
    "ACC002/bad_parts_of_a_contrastive_loss": {"ACC001", "ACC021"},  # each loss is that of the whole window
    "ACC006/bad_zero_left_out": {"ACC007"},  # what the longer first window took in is left over now
}


def fixed(path: Path, *, unsafe: bool = False) -> Repair:
    return fix_bytes(path.read_bytes(), Target(path, str(path), EVERYTHING), unsafe)


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with Oracle() as one:
        yield one


@pytest.mark.parametrize("path", BAD, ids=name_of)
def test_a_safe_rewrite_is_right(path: Path, oracle: Oracle) -> None:
    repair = fixed(path)
    assert not repair.error
    if name_of(path) in BY_HAND:
        assert repair.new == path.read_bytes()
        return
    code = path.parent.name
    assert code in {finding.code for finding in repair.fixed}
    assert code not in {finding.code for finding in repair.outcome.result.findings}
    measured = oracle.measure(repair.new.decode())
    assert measured.outcome == "finished", measured.error
    wrong = shown(measured) - MEANT.get(name_of(path), set())
    # What the script has besides, at the level of mere information.
    assert wrong <= {rule for rule in claims(path) if rule != code} - {finding.code for finding in repair.fixed}


ELSEWHERE = {"ACC023/bad_attribute_frozen", "ACC023/bad_nonlocal_frozen"}  # raised in another function than backward


@pytest.mark.parametrize("path", FROZEN, ids=name_of)
def test_a_frozen_counter_counts_micro_batches(path: Path, oracle: Oracle) -> None:
    assert fixed(path).new == path.read_bytes()
    repair = fixed(path, unsafe=True)
    assert not repair.error
    if name_of(path) in ELSEWHERE:
        assert not repair.fixed
        return
    assert "ACC023" in {finding.code for finding in repair.fixed}
    measured = oracle.measure(repair.new.decode())
    assert measured.outcome == "finished", measured.error
    assert not shown(measured) & {"ACC006", "ACC023"}


@pytest.mark.parametrize("path", GOOD, ids=name_of)
def test_a_right_script_is_not_touched(path: Path) -> None:
    repair = fixed(path, unsafe=True)
    assert repair.new == path.read_bytes()
    assert not repair.fixed


def test_each_safe_rule_has_four_fixtures_that_are_repaired() -> None:
    counts = Counter(path.parent.name for path in BAD if name_of(path) not in BY_HAND)
    assert all(counts[code] >= 4 for code in SAFE), counts
    assert BY_HAND.keys() <= {name_of(path) for path in BAD}


@pytest.mark.parametrize("path", [*BAD, *FROZEN, *sorted(ROOT.glob("ACC0[01][67]/bad_*.py"))], ids=name_of)
def test_fixing_twice_is_fixing_once(path: Path) -> None:
    once = fixed(path, unsafe=True)
    again = fix_bytes(once.new, Target(path, str(path), EVERYTHING), unsafe=True)
    assert again.new == once.new
    assert not again.fixed
