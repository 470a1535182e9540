"""The predicted contribution matrix is the measured one: acclint's run of a fixture against torch's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from acclint.lift import lift
from acclint.probe import Measurement, Oracle
from acclint.simulate import analyze
from acclint.simulate.trace import Run

ROOT = Path(__file__).parents[1] / "fixtures"
FILES = sorted(ROOT.glob("*/*.py"))
# A regression of gradients counts only below this residual.
RESIDUAL = 1e-3
# The place of updates that are written by hand, without an optimizer.
BY_HAND = -1

# What the simulator does not model: where such a script is judged rightly all the same, confidence is low.
NOT_MODELLED = {
    "ACC001/good_hook_divides": "a gradient hook divides",
    "ACC014/good_average_over_replicas": "the gradients of copies are moved to the model that steps",
    "ACC014/good_hook_sees_one_micro_batch": "a gradient hook collects",
    "ACC015/good_flat_buffer": "gradients are views of a buffer that is zeroed",
    "ACC015/good_optimizer_that_clears": "an optimizer class of the file zeroes in its own step",
    "ACC015/good_step_hook": "a step hook zeroes",
    "ACC016/bad_pass_of_another_backend": "the script takes the branch that is not the first to be looked at",
}


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with Oracle() as one:
        yield one


def predicted(run: Run) -> dict[int, list[list[dict[int, float]]]]:
    """{optimizer number: [update: [coefficients by backward call, one per parameter owner]]}."""
    found: dict[int, list[list[dict[int, float]]]] = {}
    for lane in run.lanes:
        updates = found.setdefault(BY_HAND if lane.optimizer is None else lane.optimizer.number, [])
        for turn, window in enumerate(window for window in lane.windows if window.update is not None):
            while len(updates) <= turn:
                updates.append([])
            updates[turn].append({number: float(weight) for number, weight in window.row.items()})
    return found


def differences(run: Run, measured: Measurement) -> list[str]:
    """Where the two matrices differ; updates that torch could not resolve are left out."""
    ours = predicted(run)
    found = []
    for index, optimizer in enumerate(measured.optimizers):
        updates = ours.get(BY_HAND if optimizer.name == "manual" else index, [])
        if len(updates) != len(optimizer.updates):
            found.append(f"optimizer {index}: {len(updates)} updates predicted, {len(optimizer.updates)} measured")
            continue
        for turn, update in enumerate(optimizer.updates):
            if update.residual is None or not update.residual < RESIDUAL:
                continue
            theirs = {int(number): float(weight) for number, weight in update.coefficients.items()}
            # An update by hand contains the learning rate.
            rate = update.lr if optimizer.name == "manual" and update.lr else 1.0
            close = any(
                set(row) == set(theirs)
                and all(row[n] / rate == pytest.approx(theirs[n], rel=1e-4, abs=1e-6) for n in row)
                for row in updates[turn]
            )
            if not close:
                found.append(f"optimizer {index}, update {turn}: predicted {updates[turn]}, measured {theirs}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_predicted_matrix_is_the_measured_one(path: Path, oracle: Oracle) -> None:
    analysis = analyze(lift(path.read_text()))
    run = analysis.base
    measured = oracle.measure(path)
    assert measured.outcome in ("finished", "stopped")
    if run is None or len(run.backwards) != len(measured.backwards):
        pytest.skip("the abstract run is shorter than the script: its loops are cut")
    if measured.events and any(event.kind == "hook" for event in measured.events):
        pytest.skip("a hook changes the gradients")
    name = f"{path.parent.name}/{path.stem}"
    if name in NOT_MODELLED:
        pytest.xfail(NOT_MODELLED[name])
    assert differences(run, measured) == []
