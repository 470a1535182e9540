"""What users call in their own tests: the verdicts, the named causes, and that everything is left as it was."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from acclint import Problem  # noqa: E402
from acclint.testing import (  # noqa: E402
    AccumulationError,
    AccumulationWarning,
    assert_accumulation_equivalent,
    window,
)

K = 4


def mlp(*between: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), *between, nn.Tanh(), nn.Linear(16, 3))


def data(samples: int = 32) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(samples, 6, generator=generator), torch.randint(0, 3, (samples,), generator=generator)


def cross_entropy(model: nn.Module, batch: Any) -> Any:
    return F.cross_entropy(model(batch[0]), batch[1])


def contrastive(model: nn.Module, batch: Any) -> Any:
    z = F.normalize(model(batch[0]), dim=1)
    return F.cross_entropy(z @ z.T / 0.1, torch.arange(len(z)))


def failure(*args: Any, **options: Any) -> AccumulationError:
    with pytest.raises(AccumulationError) as caught:
        assert_accumulation_equivalent(*args, **options)
    return caught.value


# --- equivalence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "loss", "options"),
    [
        (mlp(), cross_entropy, {}),
        (mlp(nn.LayerNorm(16)), cross_entropy, {}),
        (mlp(nn.Dropout(0.5)), cross_entropy, {}),
        (mlp(nn.BatchNorm1d(16)), cross_entropy, {"batchnorm": "frozen"}),
        (mlp(nn.BatchNorm1d(16)).eval(), cross_entropy, {}),
        (mlp(), lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="sum"), {"normalize": "none"}),
        (mlp(), lambda m, b: F.dropout(m(b[0]), 0.3, m.training).square().mean(), {}),
        (mlp(), cross_entropy, {"dtype": "float32"}),
        (mlp(), lambda m, b: F.cross_entropy(m(b[0].float()), b[1]), {}),  # does not run in float64
    ],
)
def test_right_accumulation_is_equal(model: nn.Module, loss: Any, options: dict[str, Any]) -> None:
    result = assert_accumulation_equivalent(model, loss, data(), 8, **options)
    assert result.verdict == "equal"
    assert result.causes == ("rounding",)
    assert result.contributions == (1,) * 4


def test_undivided_loss_names_the_factor() -> None:
    error = failure(mlp(), cross_entropy, data(), 4, normalize="none")
    assert error.result.causes == ("scale",)
    assert error.result.factor == pytest.approx(8)
    assert error.result.contributions == pytest.approx([8] * 8)
    assert "8 times too large" in str(error)
    assert "not divided by the 8 micro-batches" in str(error)


def test_divided_sum_names_the_factor() -> None:
    error = failure(mlp(), lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="sum"), data(), 8)
    assert error.result.factor == pytest.approx(1 / 4)
    assert "divided twice, or it is a sum" in str(error)


def test_smaller_last_micro_batch() -> None:
    error = failure(mlp(), cross_entropy, data(30), 7)  # 7 7 7 7 2
    assert error.result.causes == ("weights",)
    assert error.result.contributions == pytest.approx([30 / 35] * 4 + [3])
    assert 'normalize="samples"' in str(error)
    assert_accumulation_equivalent(mlp(), cross_entropy, data(30), 7, normalize="samples")


def test_mean_of_token_means_and_its_cure() -> None:
    x, y = data()
    y[:6] = -100  # ignored: the first micro-batch of 8 has 2 tokens, the others 8
    error = failure(mlp(), cross_entropy, (x, y), 8)
    assert error.result.causes == ("weights",)
    assert error.result.contributions == pytest.approx([26 / 8] + [26 / 32] * 3)
    tokens = lambda part, batch: int((part[1] >= 0).sum()) / int((batch[1] >= 0).sum())  # noqa: E731
    assert_accumulation_equivalent(mlp(), cross_entropy, (x, y), 8, normalize=tokens)


def test_batchnorm_is_told_apart() -> None:
    error = failure(mlp(nn.BatchNorm1d(16)), cross_entropy, data(), 4)
    assert error.result.causes == ("batchnorm",)
    assert error.result.frozen is not None
    assert error.result.frozen.relative < 1e-12
    assert error.result.difference.relative > 0.1
    assert "differs only through BatchNorm" in str(error)


def test_batchnorm_does_not_hide_a_wrong_scale() -> None:
    error = failure(mlp(nn.BatchNorm1d(16)), cross_entropy, data(), 4, normalize="none")
    assert error.result.causes == ("scale", "batchnorm")
    assert error.result.factor == pytest.approx(8)


def test_batchnorm_without_running_statistics() -> None:
    error = failure(mlp(nn.BatchNorm1d(16, track_running_stats=False)).eval(), cross_entropy, data(), 4)
    assert error.result.causes == ("batchnorm",)


def test_batch_coupled_loss() -> None:
    error = failure(mlp(), contrastive, data(), 8)
    assert error.result.causes == ("coupled",)
    assert error.result.contributions is None
    assert "not a sum of per-sample terms" in str(error)


@pytest.mark.parametrize(
    ("model", "loss", "batch"),
    [
        (mlp(nn.Dropout(0.5)), cross_entropy, data()),
        (nn.LSTM(6, 7, 2, dropout=0.5, batch_first=True), lambda m, b: m(b)[0].square().mean(), torch.randn(32, 5, 6)),
        (nn.TransformerEncoderLayer(8, 2, 16, 0.2, batch_first=True), lambda m, b: m(b)[:, 0].abs().mean(),
         torch.randn(32, 5, 8)),
    ],
)  # fmt: skip
def test_dropout_is_named_and_switched_off(model: nn.Module, loss: Any, batch: Any) -> None:
    error = failure(model, loss, batch, 8, dropout="on")
    assert error.result.causes == ("dropout",)
    assert "dropout was on" in str(error)
    assert_accumulation_equivalent(model, loss, batch, 8)


def test_float32_alone_does_not_accuse_a_small_difference() -> None:
    x, y = data()

    def slightly_off(part: Any, batch: Any) -> float:
        return 0.25 * (1.004 if bool((part[0][0] == x[0].to(part[0].dtype)).all()) else 1.0)

    with pytest.warns(AccumulationWarning, match="may be rounding"):
        result = assert_accumulation_equivalent(
            mlp(), cross_entropy, (x, y), 8, normalize=slightly_off, dtype="float32"
        )
    assert result.verdict == "inconclusive"
    assert failure(mlp(), cross_entropy, (x, y), 8, normalize=slightly_off).result.verdict == "different"


def test_rtol_is_the_bound_where_given() -> None:
    model = mlp(nn.BatchNorm1d(16))
    assert_accumulation_equivalent(model, cross_entropy, data(), 16, rtol=2.0)
    with pytest.raises(AccumulationError):
        assert_accumulation_equivalent(mlp(), cross_entropy, data(), 16, rtol=0.0)


def test_batches_of_any_shape() -> None:
    x, y = data(8)
    batch = {"inputs": [x, {"again": x}], "labels": y, "texts": ["a"] * 8, "flag": True}
    seen: list[tuple[int, int]] = []

    def loss(model: nn.Module, part: Any) -> Any:
        seen.append((len(part["labels"]), len(part["texts"])))
        assert part["flag"] is True
        return F.cross_entropy(model(part["inputs"][1]["again"]), part["labels"])

    assert_accumulation_equivalent(mlp(), loss, batch, 3, normalize="samples")
    assert seen == [(8, 8), (3, 3), (3, 3), (2, 2)]


def test_split_by_the_user() -> None:
    batch = [(torch.randn(n, 6), torch.tensor(n % 3)) for n in (3, 5, 2, 4)]  # samples of different lengths
    split = lambda whole, size: [whole[i : i + size] for i in range(0, len(whole), size)]  # noqa: E731
    loss = lambda m, part: sum(F.cross_entropy(m(x).mean(0), y) for x, y in part) / len(part)  # noqa: E731
    assert assert_accumulation_equivalent(mlp(), loss, batch, 2, split=split).sizes == (1, 1)
    with pytest.raises(Problem, match="pass split="):
        assert_accumulation_equivalent(mlp(), loss, batch, 2)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda m, b: 1.0, "must return a tensor, not float"),
        (lambda m, b: m(b[0]), r"one number, not a tensor of shape \(32, 3\)"),
        (lambda m, b: m(b[0]).mean().detach(), "does not depend on the model"),
        (lambda m, b: nn.Linear(6, 1)(b[0]).mean(), "no parameter of the model got a gradient"),
        (lambda m, b: m(b[0]).mean() / 0, "not finite"),
        (lambda m, b: m(b[0]).mean() * 0, "is zero"),
        (lambda m, b: (m(b[0]) * torch.rand(())).mean(), "something else .* is random"),
    ],
)
def test_what_cannot_be_measured_is_said(loss: Any, message: str) -> None:
    with pytest.raises(Problem, match=message):
        assert_accumulation_equivalent(mlp(), loss, data(), 8)


def test_bad_arguments_are_said() -> None:
    with pytest.raises(Problem, match="positive integer, not 0"):
        assert_accumulation_equivalent(mlp(), cross_entropy, data(), 0)
    with pytest.raises(Problem, match="unknown dtype 'float8'"):
        assert_accumulation_equivalent(mlp(), cross_entropy, data(), 8, dtype="float8")
    with pytest.raises(Problem, match=r"must be a torch\.nn\.Module"):
        assert_accumulation_equivalent(lambda x: x, cross_entropy, data(), 8)  # type: ignore[arg-type]
    with pytest.raises(Problem, match="lazy"):
        assert_accumulation_equivalent(nn.LazyLinear(3), cross_entropy, data(), 8)


# --- left as it was --------------------------------------------------------------------------------------------------


class Counting(nn.Module):
    """BatchNorm, a frozen and a tied parameter, a counter, and a gradient that is there already."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(6)
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.Linear(6, 3).requires_grad_(False)
        self.calls = 0
        self.eval()
        self.norm.train()

    def forward(self, x: Any) -> Any:
        self.calls += 1
        return self.frozen(self.dropout(self.norm(self.second(self.first(x)))))


@contextmanager
def nothing_changes(model: nn.Module, optimizer: Any = None) -> Iterator[None]:
    """Identities, values, modes, state and random numbers before and after."""

    def look() -> Any:
        tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
        return {
            "ids": {n: (id(t), t.data_ptr(), t.dtype, t.requires_grad, id(t.grad)) for n, t in tensors.items()},
            "values": {n: t.detach().tolist() for n, t in tensors.items()},
            "grads": {n: None if t.grad is None else t.grad.tolist() for n, t in tensors.items()},
            "modes": [m.training for m in model.modules()],
            "calls": getattr(model, "calls", None),
            "optimizer": None if optimizer is None else repr(optimizer.state_dict()),
            "random": (torch.get_rng_state().tolist(), random.getstate(), torch.get_default_dtype()),
        }

    before = look()
    yield
    assert look() == before


def prepared() -> tuple[Counting, Any]:
    model = Counting()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.randn(8, 6)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_equivalence_leaves_everything_as_it_was() -> None:
    model, optimizer = prepared()
    with nothing_changes(model, optimizer):
        failure(model, cross_entropy, data(), 8)


def test_equivalence_leaves_everything_as_it_was_after_an_exception() -> None:
    model, optimizer = prepared()

    def fails(model: nn.Module, batch: Any) -> Any:
        random.random()
        torch.rand(3)
        if len(batch[0]) < 32:
            raise RuntimeError("out of luck")
        return cross_entropy(model, batch)

    with nothing_changes(model, optimizer), pytest.raises(RuntimeError, match="out of luck"):
        assert_accumulation_equivalent(model, fails, data(), 8)


def test_the_loss_may_use_the_model_of_the_enclosing_scope() -> None:
    model, _ = prepared()
    with nothing_changes(model):
        assert_accumulation_equivalent(model, lambda _, b: cross_entropy(model, b), data(), 8, batchnorm="frozen")


def test_an_optimizer_that_steps_in_backward_does_not_step() -> None:
    model = mlp()
    steps = []
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: steps.append(p))
    assert_accumulation_equivalent(model, cross_entropy, data(), 8)
    assert not steps
    cross_entropy(model, data()).backward()
    assert len(steps) == 4


# --- the user's own window -------------------------------------------------------------------------------------------


def loop(model: nn.Module, optimizer: Any, body: Callable[[Any, int], None] | None = None) -> None:
    """A right window of K micro-batches of 8."""
    x, y = data()
    optimizer.zero_grad()
    for i in range(K):
        (F.cross_entropy(model(x[8 * i : 8 * i + 8]), y[8 * i : 8 * i + 8]) / K).backward()
    optimizer.step()


def measured(text: str, make: Callable[[Any], Any] | None = None, **options: Any) -> Any:
    """Run the lines of a training loop as a user writes them, under `window`."""
    model = mlp()
    optimizer = (make or (lambda params: torch.optim.SGD(params, lr=0.1)))(model.parameters())
    x, y = data()
    batches = [(x[i : i + 8], y[i : i + 8]) for i in range(0, len(x), 8)]
    scope = {"model": model, "optimizer": optimizer, "batches": batches, "F": F, "torch": torch, "k": K, "nn": nn}
    code = compile(textwrap.dedent(text), "loop.py", "exec")
    with nothing_changes(model, optimizer), window(model, optimizer, **options) as w:
        exec(code, scope)
    return w


RIGHT = """
    for i, (x, y) in enumerate(batches):
        (F.cross_entropy(model(x), y) / k).backward()
        if (i + 1) % k == 0:
            optimizer.step()
            optimizer.zero_grad()
"""


@pytest.mark.parametrize(
    "text",
    [
        RIGHT,
        RIGHT.replace("cross_entropy(model(x), y) / k", 'cross_entropy(model(x), y, reduction="sum")'),
        RIGHT.replace("cross_entropy(model(x), y) / k", 'cross_entropy(model(x), y, reduction="sum") / 32'),
        RIGHT.replace("F.cross_entropy(model(x), y) / k", "model(x).square().sum() / x.size(0) / k"),
        RIGHT.replace("optimizer.step()", "nn.utils.clip_grad_norm_(model.parameters(), 1e-3); optimizer.step()"),
        RIGHT.replace("i + 1) % k", "i + 1) % 2").replace("/ k", "/ 2"),
        RIGHT.replace(" / k)", ")").replace("optimizer", "[p.grad.div_(k) for p in model.parameters()]; optimizer", 1),
        RIGHT.replace("optimizer.zero_grad()", "[setattr(p, 'grad', None) for p in model.parameters()]"),
    ],
    ids=["mean", "sum", "sum/N", "own mean", "clip", "two updates", "grads divided", "zeroed by hand"],
)  # fmt: skip
def test_right_windows(text: str) -> None:
    w = measured(text)
    w.assert_right()
    assert all(step.residual < 1e-3 for step in w.steps)


def test_right_window_has_ones() -> None:
    assert measured(RIGHT).contributions == [pytest.approx([1] * K)]
    assert measured(RIGHT, accumulation_steps=4).contributions == [pytest.approx([1] * K)]


@pytest.mark.parametrize(
    ("text", "rows", "message"),
    [
        (RIGHT.replace(" / k", ""), [[4, 4, 4, 4]], "4 times too large: a mean loss is not divided by the 4"),
        (RIGHT.replace("/ k", "/ k / k"), [[0.25] * 4], r"only 0.25 .*divided twice"),
        (RIGHT.replace("/ k", "* 0.5 / k"), [[0.5] * 4], r"only 0.5 .*assert_right\(scale="),
        (RIGHT.replace("        (F.", "        optimizer.zero_grad(); (F."), [[0, 0, 0, 1]], "3 of 4 .* lost"),
        (RIGHT.replace("            optimizer.zero_grad()\n", "").replace("% k", "% 2").replace("/ k", "/ 2"),
         [[1, 1, 0, 0], [1, 1, 1, 1]], "update 2 of 2: gradients of 2 backward calls of earlier updates"),
        (RIGHT.replace("(i + 1) % k", "i % k"), [[0.25, 0, 0, 0]], "only 0.25 of"),
        (RIGHT.replace("(i + 1) % k == 0", "False"), [], "no update in the window, after 4 backward calls"),
        (RIGHT.replace("        if", "        nn.utils.clip_grad_norm_(model.parameters(), 0.01)\n        if"),
         None, "clipped inside the window"),
        (RIGHT.replace("batches)", "[*batches[:3], (batches[3][0][:2], batches[3][1][:2])])"),
         [[0.8125] * 3 + [3.25]], "micro-batches of 8, 8, 8, 2 elements"),
        ("""
         total = None
         for x, y in batches:
             (F.cross_entropy(model(x), y) / k).backward()
             grads = [p.grad.clone() for p in model.parameters()]
             total = grads if total is None else [a + b for a, b in zip(total, grads)]
         for p, g in zip(model.parameters(), total):
             p.grad = g
         optimizer.step()
         """, [[4, 3, 2, 1]], "count unequally"),
        ("optimizer.step()", [[]], "no backward call reached"),
    ],
    ids=["ACC001", "ACC010", "own scale", "ACC002", "ACC015", "ACC006", "no step", "ACC008", "ACC007", "ACC014", ""],
)  # fmt: skip
def test_wrong_windows(text: str, rows: Any, message: str) -> None:
    w = measured(text)
    if rows is not None:
        assert w.contributions == [pytest.approx(row, abs=1e-4) for row in rows]
    with pytest.raises(AssertionError, match=message):
        w.assert_right()


def test_a_scale_on_purpose() -> None:
    w = measured(RIGHT.replace("/ k", "* 0.5 / k"))
    w.assert_right(scale=0.5)


def test_the_expected_number_of_micro_batches() -> None:
    w = measured(RIGHT.replace("(i + 1) % k", "i % k"), accumulation_steps=4)
    assert w.contributions == [pytest.approx([1, 0, 0, 0])]
    assert w.left == 3
    w = measured(RIGHT.replace("% k", "% 2"), accumulation_steps=4)
    with pytest.raises(AssertionError, match="update 1 of 2: it holds 2 backward calls instead of 4"):
        w.assert_right()


def test_two_losses_of_one_batch_are_no_two_micro_batches() -> None:
    w = measured("""
        for x, y in batches:
            out = model(x)
            (F.cross_entropy(out, y) / k).backward(retain_graph=True)
            (out.square().mean() / k).backward()
        optimizer.step()
    """)
    w.assert_right()


def test_straight_line_calls_with_the_number_given() -> None:
    text = """
        (x, y), (x2, y2) = batches[:2]
        F.cross_entropy(model(x), y).backward()
        F.cross_entropy(model(x2), y2).backward()
        optimizer.step()
    """
    with pytest.raises(AssertionError, match="2 times too large"):
        measured(text, accumulation_steps=2).assert_right()


def test_gradients_from_before_the_window() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(5, 6)).sum().backward()
    x, y = data()
    with window(model, optimizer) as w:
        for i in range(K):
            (F.cross_entropy(model(x[8 * i : 8 * i + 8]), y[8 * i : 8 * i + 8]) / K).backward()
        optimizer.step()
    with pytest.raises(AssertionError, match="from before the window"):
        w.assert_right()


def test_closures_and_lbfgs() -> None:
    text = """
        def closure():
            optimizer.zero_grad()
            total = 0.0
            for x, y in batches:
                loss = F.cross_entropy(model(x), y) / k
                loss.backward()
                total += loss.item()
            return total
        optimizer.step(closure)
    """
    w = measured(text, lambda params: torch.optim.LBFGS(params, max_iter=3))
    assert len(w.steps) == 1
    w.assert_right()


def test_grad_scaler() -> None:
    w = measured("""
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for i, (x, y) in enumerate(batches):
            scaler.scale(F.cross_entropy(model(x), y) / k).backward()
            if (i + 1) % k == 0:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 100.0)
                scaler.step(optimizer)
                scaler.update()
    """)
    assert w.contributions == [pytest.approx([1] * K)]


def test_bfloat16_gradients() -> None:
    model = mlp().to(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = data()
    with window(model, optimizer) as w:
        for i in range(K):
            (F.cross_entropy(model(x[8 * i : 8 * i + 8].bfloat16()), y[8 * i : 8 * i + 8]) / K).backward()
        optimizer.step()
    w.assert_right()


def test_restore_is_optional_and_instruments_are_taken_out() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.tolist() for p in model.parameters()]
    backward, clip = torch.autograd.backward, nn.utils.clip_grad_norm_
    with window(model, optimizer, restore=False) as w:
        loop(model, optimizer)
        assert torch.autograd.backward is not backward
    w.assert_right()
    assert [p.tolist() for p in model.parameters()] != before
    assert (torch.autograd.backward, nn.utils.clip_grad_norm_) == (backward, clip)
    loop(model, optimizer)
    assert len(w.calls) == K


def test_an_exception_in_the_window_comes_out_and_all_is_put_back() -> None:
    model, optimizer = prepared()
    backward = torch.autograd.backward
    with nothing_changes(model, optimizer), pytest.raises(ZeroDivisionError), window(model, optimizer):
        loop(model, optimizer)
        model.train()
        raise ZeroDivisionError
    assert torch.autograd.backward is backward


def test_asked_too_early_or_wrongly() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with window(model, optimizer) as w, pytest.raises(AssertionError, match="still open"):
        w.assert_right()
    with pytest.raises(Problem, match=r"must be a torch\.optim\.Optimizer, not int"), window(model, 3):
        pass
    with pytest.raises(Problem, match=r"must be a torch\.nn\.Module, not int"), window(3, optimizer):  # type: ignore[arg-type]
        pass


# --- pytest and a missing torch --------------------------------------------------------------------------------------


def run(tmp_path: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(__file__).resolve().parent.parent), environment.pop("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_fixture_shows_what_was_measured(tmp_path: Path) -> None:
    (tmp_path / "test_user.py").write_text(
        textwrap.dedent("""
            import torch
            from torch import nn
            torch.manual_seed(0)
            model = nn.Linear(4, 2)
            x = torch.randn(8, 4)
            loss = lambda m, b: m(b).square().mean()

            def test_equal(accumulation):
                assert accumulation.assert_equivalent(model, loss, x, 2).verdict == "equal"

            def test_undivided(accumulation):
                accumulation.assert_equivalent(model, loss, x, 2, normalize="none")

            def test_window(accumulation):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                with accumulation.window(model, optimizer):
                    for part in x.split(2):
                        loss(model, part).backward()
                    optimizer.step()
        """)
    )
    done = run(tmp_path, "-m", "pytest", "-q", "-p", "acclint.pytest_plugin", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert "2 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "Captured acclint call" in done.stdout
    assert "update 1: [4, 4, 4, 4]" in done.stdout
    assert "the gradient is 4 times too large" in done.stdout


def test_the_plugin_costs_no_import_of_torch(tmp_path: Path) -> None:
    code = "import sys, acclint.testing, acclint.pytest_plugin; sys.exit('torch' in sys.modules)"
    assert run(tmp_path, "-c", code).returncode == 0


def test_missing_torch_is_said(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('No module named torch')\n")
    code = "from acclint.testing import window\ntry: window(1, 2)\nexcept ImportError as error: print(error)"
    done = run(tmp_path, "-c", code, PYTHONPATH=str(tmp_path))
    assert "pip install acclint[probe]" in done.stdout, done.stderr
