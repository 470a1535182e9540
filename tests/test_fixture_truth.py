"""The labels of the fixtures are true: torch alone decides, no rule of acclint is asked.

Each rule has a reading of what an unchanged run of the script did. It must show the defect for every code that a
fixture expects, and in a good fixture it must show no other one. In a bad one it may: one defect can be seen in several
ways, and which rule speaks up is a matter of precedence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from acclint.probe import Measurement, Oracle
from acclint.probe.readings import CHECKS, read

ROOT = Path(__file__).parents[1] / "fixtures"
FILES = sorted(ROOT.glob("*/*.py"))

# Where the numbers cannot decide, with the reason.
EXEMPT = {
    "ACC001/good_lr_over_k_plain_sgd": ({"ACC001", "ACC021"}, "the learning rate is divided instead of the loss"),
    "ACC001/good_cached_features_in_settings": (
        {"ACC001", "ACC021"},
        "each loss is that of all samples of the window",
    ),
    "ACC001/good_several_models_of_a_batch": ({"ACC001", "ACC021"}, "several losses of one batch, summed by design"),
    "ACC001/good_window_wide_contrastive_loss": ({"ACC001", "ACC021"}, "each loss is that of the whole window"),
    "ACC002/bad_backward_in_both_branches": ({"ACC002"}, "nothing measured says that two calls are for one loss"),
    "ACC002/good_no_grad_pass_then_replay": ({"ACC001", "ACC021"}, "each loss is that of all samples of the window"),
    "ACC016/good_mean_over_views": ({"ACC031"}, "views of one batch look like micro-batches"),
    "ACC021/good_lr_holds_the_division": ({"ACC001", "ACC021"}, "the learning rate is divided instead of the loss"),
    "seeds/003_same_learning_rate": ({"ACC001"}, "micro-batches written out look like several losses of one batch"),
}


# --- the tests -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with Oracle() as one:
        yield one


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def claims(path: Path) -> dict[str, bool]:
    """{code: whether it is true} as far as the fixture says: what it expects, and in a good one nothing else."""
    said = dict.fromkeys(CHECKS, False) if path.name.startswith("good_") else {}
    for codes in re.findall(r"# expect(?:-info)?: ([A-Z0-9, ]+)", path.read_text()):
        said.update(dict.fromkeys(re.findall(r"ACC\d{3}", codes), True))
    return said


def shown(measured: Measurement) -> set[str]:
    """The codes whose defect the numbers show, for any optimizer."""
    owners = range(len(measured.optimizers))
    return {code for code in CHECKS if read(code, measured, owners).shown}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_a_fixture_says_is_measured(path: Path, oracle: Oracle) -> None:
    measured = oracle.measure(path)
    assert measured.outcome in ("finished", "stopped"), measured.error
    found = shown(measured)
    wrong = {code for code, true in claims(path).items() if (code in found) != true}
    undecided, _ = EXEMPT.get(name_of(path), (set(), ""))
    assert wrong == undecided


def test_every_rule_with_fixtures_has_a_reading() -> None:
    assert {path.parent.name for path in FILES} - {"seeds"} <= CHECKS.keys()


def test_exemptions_are_few_and_name_fixtures() -> None:
    assert EXEMPT.keys() <= {name_of(path) for path in FILES}
    assert len(EXEMPT) * 20 < len(FILES)
