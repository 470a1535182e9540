"""`acclint equivalence`: the numbers of a comparison, the study of a user's model, and clear errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from acclint import Problem  # noqa: E402
from acclint.cli import cli  # noqa: E402
from acclint.probe.difference import Difference, explain_factor, number  # noqa: E402
from acclint.probe.equivalence import difference  # noqa: E402
from acclint.probe.factory import Setup, load  # noqa: E402
from acclint.probe.study import divisors, study  # noqa: E402
from acclint.probe.tables import Number, Table, about, exactly, rounding  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_difference_is_what_its_words_say() -> None:
    a = {"x": torch.tensor([3.0, 4.0]), "y": torch.tensor([[0.0]])}
    b = {"x": torch.tensor([1.0, 4.0]), "y": torch.tensor([[2.0]])}
    total, layers = difference(a, b)
    assert total.maximum == 2
    assert total.average == pytest.approx((1 + 2) / 2)  # the mean of the tensors' means
    assert total.relative == pytest.approx((8 / 21) ** 0.5)
    assert total.ratio == pytest.approx(19 / 21)
    assert total.cosine == pytest.approx(19 / (25 * 21) ** 0.5)
    left = 25 - 19**2 / 21
    assert total.rescaled == pytest.approx((left / (19**2 / 21)) ** 0.5)
    assert [layer.name for layer in layers] == ["x", "y"]
    assert [layer.share for layer in layers] == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("factor", [8.0, 0.125, -1.0, 1e4])
def test_a_common_factor_is_seen_and_the_order_matters(factor: float) -> None:
    b = {"x": torch.randn(50, dtype=torch.float64)}
    found, _ = difference({"x": factor * b["x"]}, b)
    assert found.ratio == pytest.approx(factor)
    assert found.cosine == pytest.approx(1 if factor > 0 else -1)
    assert found.relative == pytest.approx(abs(factor - 1))
    assert found.is_scaled("float64")


def test_what_one_side_lacks_counts_as_zero() -> None:
    found, layers = difference({"x": torch.ones(2)}, {"x": torch.ones(2), "y": torch.ones(2)})
    assert found.relative == pytest.approx(0.5**0.5)
    assert layers[1].difference.relative == 1
    same, _ = difference({"x": torch.zeros(2)}, {"x": torch.zeros(2)})
    assert (same.relative, same.ratio, same.cosine) == (0, 1, 1)


@pytest.mark.parametrize(
    ("relative", "dtype", "verdict"),
    [
        (9e-7, "float64", "equal"),
        (2e-6, "float64", "small difference"),
        (2e-4, "float64", "different"),
        (9e-5, "float32", "equal"),
        (1.1e-3, "float32", "inconclusive"),
        (6e-3, "float32", "different"),
        (9e-2, "bfloat16", "equal"),
        (0.3, "bfloat16", "inconclusive"),
        (1.9e-2, "float16", "equal"),
        (0.3, "float16", "inconclusive"),
    ],
)
def test_bands(relative: float, dtype: str, verdict: str) -> None:
    assert Difference(1, 1, relative, 1.0, 1.0, relative).verdict(dtype) == verdict


def test_half_types_differ_only_by_a_factor_of_two() -> None:
    assert Difference(1, 1, 1.0, 2.0, 1.0, 1e-3).verdict("bfloat16") == "different"
    assert Difference(1, 1, 0.5, 0.5, 1.0, 1e-3).verdict("float16") == "different"
    assert Difference(1, 1, 0.5, 1.5, 1.0, 1e-3).verdict("bfloat16") == "inconclusive"
    assert Difference(1, 1, 1.0, 2.0, 0.7, 0.9).verdict("bfloat16") == "inconclusive"


def test_factors_are_explained() -> None:
    assert "not divided by the 8" in explain_factor(8.0, 8)
    assert "divided twice" in explain_factor(0.125, 8)
    assert "wrong sign" in explain_factor(-1.0, 8)
    assert explain_factor(3.0, 8) == "the gradient is 3 times too large"
    assert [number(v) for v in (8, 0.25, 2.41e-7, 0, 0.0573, float("nan"))] == [
        "8",
        "0.25",
        "2.41e-07",
        "0",
        "0.0573",
        "?",
    ]


@pytest.mark.parametrize(("good", "bad"), [(8.0, -8.0), (8.0, 0.125), (8.0, 4.0)])
def test_a_wrong_sign_factor_or_order_fails_a_table(good: float, bad: float) -> None:
    for reference in (exactly(good), about(good, 1.9)):
        assert Table("t", ("", "a"), (("row", Number(good, reference)),)).failures == []
        failures = Table("t", ("", "a"), (("row", Number(bad, reference)),)).failures
        assert len(failures) == 1
        assert "row, a" in failures[0]
    assert not Number(float("nan"), rounding(0, 1)).holds
    assert not Number(-1e-3, rounding(0, 1)).holds


# --- a study ---------------------------------------------------------------------------------------------------------


def setup(*norm: nn.Module, reduction: str = "mean", samples: int = 16) -> Setup:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), *norm, nn.Tanh(), nn.Linear(16, 3))
    batch = (torch.randn(samples, 6), torch.randint(0, 3, (samples,)))
    return Setup(model, lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction=reduction), batch)


def by_title(found: Any, beginning: str) -> dict[str, tuple[Any, ...]]:
    table = next(t for t in found.tables if t.title.startswith(beginning))
    return {row[0]: row[1:] for row in table.rows}


def test_study_of_a_model_that_is_right() -> None:
    found = study(setup())
    assert found.equal
    assert found.answer.startswith("Accumulation is the same")
    assert found.details == ()
    assert [row[-1] for row in by_title(found, "By micro-batch size").values()] == ["equal"] * 4
    assert [row[-1] for row in by_title(found, "By dtype").values()] == ["equal"] * 4
    division = by_title(found, "By what is done")
    assert division["not divided"][3].measured == pytest.approx(4)
    assert division["not divided"][-1] == "different (scale)"
    assert division["divided by k"][-1] == division["by samples"][-1] == "equal"
    updates = by_title(found, "By number of updates")
    assert updates["float64, 10"][2].measured < 1e-12
    assert 0 < updates["float32, 10"][2].measured < 1e-4


def test_study_takes_a_sum_for_a_sum() -> None:
    found = study(setup(reduction="sum"))
    assert found.equal
    assert "not divided" in found.tables[0].title
    assert study(setup(), (4,), normalize="none").equal is False


def test_study_of_batchnorm() -> None:
    found = study(setup(nn.BatchNorm1d(16)))
    assert not found.equal
    assert "only through BatchNorm" in found.answer
    assert any("ValueError: Expected more than 1 value per channel" in detail for detail in found.details)
    norm = by_title(found, "By normalisation layer")
    assert [row[-1] for row in norm.values()] == ["different (batchnorm)", "equal", "equal"]
    assert by_title(found, "Where it differs")
    assert [curve.name for curve in found.curves] == ["as it is", "BatchNorm frozen"]
    assert found.curves[0].y[-1] is None


def test_study_uses_the_factory_s_optimizer_and_leaves_the_model_alone() -> None:
    made = setup()
    steps = []

    class Counting(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            steps.append(1)
            return super().step(closure)

    before = [p.tolist() for p in made.model.parameters()]
    study(Setup(made.model, made.loss_fn, made.batch, lambda params: Counting(params, lr=0.1)), (4,))
    assert len(steps) == 4 * 10
    assert [p.tolist() for p in made.model.parameters()] == before
    assert all(p.grad is None for p in made.model.parameters())


def test_micro_batch_sizes() -> None:
    assert divisors(32) == (16, 8, 4, 2, 1)
    assert divisors(7) == (1,)
    assert len(divisors(360)) == 6
    with pytest.raises(Problem, match="smaller than the batch, which has 16"):
        study(setup(), (16,))
    with pytest.raises(Problem, match="first dimension"):
        study(Setup(nn.Linear(1, 1), lambda m, b: m(b), "no tensor"))


# --- the command -----------------------------------------------------------------------------------------------------

CASES = """
    import torch
    from torch import nn
    torch.manual_seed(0)
    x = torch.randn(8, 4)
    loss = lambda m, b: m(b).square().mean()
    def right(): return nn.Linear(4, 2), loss, x
    def mapping(): return {"model": nn.Linear(4, 2), "loss_fn": loss, "batch": x}
    def norm(): return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), lambda m, b: m(b).abs().mean(), x
    def fails(): raise RuntimeError("no data\\nhere")
    def leaves(): raise SystemExit(3)
    def three(): return 3
    def two(): return nn.Linear(4, 2), loss
    def keys(): return {"model": 1, "loss": 2}
    def misfit(): return nn.Linear(5, 2), loss, x
    def uneven(): return nn.Linear(4, 2), lambda m, b: m(b[0]).mean(), (x, x[:3])
    def no_model(): return 3, loss, x
    value = 3
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "equivalence_cases.py").write_text(textwrap.dedent(CASES))
    (tmp_path / "equivalence_broken.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("equivalence_cases", "equivalence_broken"):
        sys.modules.pop(name, None)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["equivalence", *arguments])


def test_command_on_right_and_wrong_models(project: Path) -> None:
    done = run("equivalence_cases:right")
    assert done.exit_code == 0, done.output
    assert done.output.startswith("Accumulation is the same")
    assert "By dtype" in done.output
    assert run("equivalence_cases:mapping").exit_code == 0
    assert run("equivalence_cases.py:right", "--micro-batch-sizes", "4,2").exit_code == 0
    done = run("equivalence_cases:norm")
    assert done.exit_code == 1
    assert "only through BatchNorm" in done.output


def test_command_writes_json(project: Path) -> None:
    done = run("equivalence_cases:right", "--output-format", "json")
    parsed = json.loads(done.output)
    assert parsed["equal"] is True
    assert parsed["tables"][0]["rows"][0][3]["measured"] < 1e-12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["equivalence_cases:fails"], "RuntimeError: no data here"),
        (["equivalence_cases:leaves"], "SystemExit: 3"),
        (["equivalence_cases:three"], "must return (model, loss_fn, batch) or"),
        (["equivalence_cases:two"], "not 2 values"),
        (["equivalence_cases:keys"], "a dictionary with unknown loss"),
        (["equivalence_cases:value"], "is a int, not a function"),
        (["equivalence_cases:absent"], "has no 'absent'"),
        (["equivalence_cases:misfit"], "shapes cannot be multiplied"),
        (["equivalence_cases:uneven"], "different first dimensions (3, 8)"),
        (["equivalence_cases:no_model"], "must be a torch.nn.Module, not int"),
        (["equivalence_broken:f"], "importing equivalence_broken failed: SyntaxError"),
        (["equivalence_absent:f"], "no module 'equivalence_absent'"),
        (["absent.py:f"], "no such file: absent.py"),
        (["equivalence_cases"], "is not MODULE:FACTORY"),
        ([], "give MODULE:FACTORY, or --demo"),
        (["--demo", "equivalence_cases:right"], "--demo needs no MODULE:FACTORY"),
        (["equivalence_cases:right", "--micro-batch-sizes", "0"], "'0' is not a positive integer"),
        (["equivalence_cases:right", "--micro-batch-sizes", "99"], "smaller than the batch"),
    ],
)
def test_what_goes_wrong_is_one_line(project: Path, arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("acclint: error: ")


def test_plots(project: Path) -> None:
    pytest.importorskip("matplotlib")
    assert run("equivalence_cases:norm", "--plot", "norm.png").exit_code == 1
    assert (project / "norm.png").read_bytes().startswith(b"\x89PNG")
    assert run("equivalence_cases:right", "--plot", "right.png").exit_code == 0
    (project / "folder.png").mkdir()
    for path, message in (
        ("norm.pdf", "must end in .png"),
        ("absent/norm.png", "no folder absent"),
        ("folder.png", "it is a folder"),
    ):
        done = run("equivalence_cases:right", "--plot", path)
        assert done.exit_code == 2
        assert message in done.stderr
        assert done.stdout == ""  # said before the work is done


@pytest.mark.parametrize(("missing", "extra"), [("torch", "acclint[probe]"), ("matplotlib", "acclint[plot]")])
def test_missing_packages_are_named(project: Path, missing: str, extra: str) -> None:
    (project / f"{missing}.py").write_text(f"raise ImportError('No module named {missing}')\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "acclint",
            "equivalence",
            "--demo",
            *(["--plot", "x.png"] if extra.endswith("[plot]") else []),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(project), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert f"pip install {extra}" in done.stderr
    assert done.stderr.count("\n") == 1


def test_factories_may_be_attributes_and_setups(project: Path) -> None:
    (project / "equivalence_more.py").write_text(
        "from acclint.probe.factory import Setup\nclass A:\n    make = staticmethod(lambda: Setup(1, print, 2))\n"
    )
    assert load("equivalence_more:A.make") == Setup(1, print, 2)
