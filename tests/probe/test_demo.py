"""The founding experiments: every reference value within its tolerance, and the tolerances catch mistakes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from acclint.probe.demo import (  # noqa: E402
    article_averaging,
    article_loss,
    forum_accumulated,
    forum_full_batch,
    forum_learning_rate,
)
from acclint.probe.equivalence import difference  # noqa: E402
from acclint.probe.tables import Experiment, Number  # noqa: E402
from acclint.report import equivalence as report  # noqa: E402
from acclint.report import plot  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def experiments() -> dict[str, Experiment]:
    """All five; 002 with 64 samples instead of 256, which takes a third of the time."""
    found = [
        forum_full_batch.run(),
        article_loss.run(),
        article_averaging.run(samples=64),
        forum_learning_rate.run(),
        forum_accumulated.run(),
    ]
    return {e.key: e for e in found}


@pytest.mark.parametrize(("key", "references"), [("000", 30), ("001", 39), ("002", 130), ("003", 20), ("004", 40)])
def test_reference_values_are_reproduced(experiments: dict[str, Experiment], key: str, references: int) -> None:
    experiment = experiments[key]
    assert experiment.failures == []
    assert sum(table.references for table in experiment.tables) >= references


def value(experiment: Experiment, title: str, row: str, column: str) -> float:
    table = next(t for t in experiment.tables if t.title.startswith(title))
    cells = next(r for r in table.rows if r[0] == row)
    cell = cells[table.columns.index(column)]
    assert isinstance(cell, Number)
    return cell.measured


def test_000_rounding_only(experiments: dict[str, Experiment]) -> None:
    title = "Relative error"
    same = [value(experiments["000"], title, "float32, at identical weights", f"t={t}") for t in (0, 10, 100, 499)]
    assert max(same) < 1e-6
    own = [value(experiments["000"], title, "float32, own trajectories", f"t={t}") for t in (0, 10, 100, 499)]
    assert own == sorted(own)
    assert own[-1] > 0.05 > 1e-4 > value(experiments["000"], title, "float64, own trajectories", "t=499")


def test_002_momentum_is_not_what_differs(experiments: dict[str, Experiment]) -> None:
    for column in ("max diff", "avg diff", "ratio"):
        plain = value(experiments["002"], "A.", "SGD+BatchNorm, float64", column)
        assert value(experiments["002"], "A.", "SGD+Momentum+BatchNorm, float64", column) == pytest.approx(
            plain, rel=1e-9
        )


def test_002_batchnorm_is_worse_the_smaller_the_micro_batch(experiments: dict[str, Experiment]) -> None:
    for name in ("BN2d + BN1d, at start", "BN2d, at start"):
        errors = [value(experiments["002"], "C.", name, f"b={b}") for b in (32, 16, 8, 4, 2)]
        assert errors == sorted(errors)
    last = experiments["002"].tables[2].rows[0][-1]
    assert last == "ValueError"  # BatchNorm1d with one value per channel


def test_claims_are_named_wrong_and_right(experiments: dict[str, Experiment]) -> None:
    wrong = {key: sum(not claim.right for claim in e.claims) for key, e in experiments.items()}
    assert wrong == {"000": 1, "001": 4, "002": 6, "003": 3, "004": 4}


# --- the tolerances catch mistakes -----------------------------------------------------------------------------------


def swapped(a: Any, b: Any) -> Any:
    return difference(b, a)


def negated(a: Any, b: Any) -> Any:
    return difference({name: -t for name, t in a.items()}, b)


def doubled(a: Any, b: Any) -> Any:
    return difference({name: 2 * t for name, t in a.items()}, b)


@pytest.mark.parametrize("module", [article_loss, forum_learning_rate, forum_accumulated])
@pytest.mark.parametrize("mistake", [swapped, negated, doubled])
def test_a_wrong_order_sign_or_factor_is_caught(
    module: ModuleType, mistake: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "difference", mistake)
    if module is article_loss:
        monkeypatch.setattr(module, "EPOCHS", 0)
        assert any("against" in failure for failure in module.run().failures)
    else:
        assert module.run().failures


# --- as text and picture ---------------------------------------------------------------------------------------------


def test_text(experiments: dict[str, Experiment]) -> None:
    for experiment in experiments.values():
        text = report.render_experiment(experiment, 100)
        assert experiment.question in " ".join(text.split())
        assert "\n\n" in text
    assert report.summary(list(experiments.values())).startswith("All ")


def test_a_failure_is_named(experiments: dict[str, Experiment]) -> None:
    experiment = experiments["004"]
    table = experiment.tables[0]
    row = tuple(dataclasses.replace(c, measured=-8.0) if isinstance(c, Number) else c for c in table.rows[-1])
    broken = dataclasses.replace(experiment, tables=(dataclasses.replace(table, rows=(row,)),))
    text = report.summary([broken])
    assert text.startswith("2 reference values of 2 not reproduced:")
    assert "form 2, mean loss not divided, ratio: -8, expected 8 to 8" in text
    assert "-8 (8)" in report.render_experiment(broken, 100)


def test_picture(experiments: dict[str, Experiment], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot.plot_demo(list(experiments.values()), str(tmp_path / "demo.png"))
    assert (tmp_path / "demo.png").stat().st_size > 20_000
