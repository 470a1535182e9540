"""The ledger against the numbers that theory and measurements give for each pattern of gradient accumulation."""

from __future__ import annotations

import json
import math
import random
import textwrap
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

pytest.importorskip("torch")

from acclint.probe import Measurement, Oracle, OracleError, measure

K = 4

PRELUDE = """\
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(3)
model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
criterion = nn.CrossEntropyLoss()
loader = [(torch.randn(5, 6), torch.randint(0, 3, (5,))) for _ in range(N)]
k = 4
"""
OFFSET = PRELUDE.count("\n")


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with Oracle() as server:
        yield server


@pytest.fixture
def run(oracle: Oracle):  # type: ignore[no-untyped-def]
    def run_body(body: str, batches: int = 8, **options: object) -> Measurement:
        text = PRELUDE.replace("N)]", f"{batches})]") + textwrap.dedent(body).lstrip("\n")
        m = oracle.measure(text, **options)
        assert m.outcome == "finished", (m.error, m.stderr)
        return m

    return run_body


def rows(m: Measurement, optimizer: int = 0, k: int = K) -> list[dict[int, float]]:
    """The relative matrix, rounded so that equality says what is meant."""
    assert all(u.residual < 1e-6 for u in m.optimizers[optimizer].updates)
    return [{t: round(w, 6) for t, w in row.items()} for row in m.relative(optimizer, k)]


def ones(*ordinals: int) -> dict[int, float]:
    return dict.fromkeys(ordinals, 1.0)


def times(weight: float, *ordinals: int) -> dict[int, float]:
    return dict.fromkeys(ordinals, weight)


# --- the matrix ------------------------------------------------------------------------------------------------------


def test_right_accumulation(run) -> None:
    m = run(
        """
        for i, (x, y) in enumerate(loader):
            loss = criterion(model(x), y) / k
            loss.backward()
            if (i + 1) % k == 0:
                optimizer.step()
                optimizer.zero_grad()
        """
    )
    assert rows(m) == [ones(0, 1, 2, 3), ones(4, 5, 6, 7)]
    assert m.matrix(0) == [pytest.approx(times(0.25, 0, 1, 2, 3)), pytest.approx(times(0.25, 4, 5, 6, 7))]
    assert m.totals(0) == [pytest.approx({OFFSET + 3: 1.0})] * 2
    term = m.backwards[0].terms[0]
    assert (term.reduction, term.elements, term.weight, term.line) == ("mean", 5, 0.25, OFFSET + 2)
    assert term.per_element == pytest.approx(0.05)
    assert [b.line for b in m.backwards] == [OFFSET + 3] * 8
    assert [u.line for u in m.optimizers[0].updates] == [OFFSET + 5] * 2
    assert m.lines("zero") == [OFFSET + 6] * 2
    assert m.leftover[0].backwards == () and m.leftover[0].discarded == ()
    assert m.lost(0) == ()
    assert not m.growing and m.holder is None
    assert (m.precision, m.forced_double) == ("float64", True)
    assert (m.optimizers[0].name, m.optimizers[0].lr, m.optimizers[0].parameters) == ("SGD", 0.1, 4)


def test_loss_not_divided(run) -> None:
    m = run(
        """
        for i, (x, y) in enumerate(loader):
            criterion(model(x), y).backward()
            if (i + 1) % k == 0:
                optimizer.step()
                optimizer.zero_grad()
        """
    )
    assert rows(m) == [times(4.0, 0, 1, 2, 3), times(4.0, 4, 5, 6, 7)]
    assert m.totals(0)[0] == pytest.approx({OFFSET + 2: 4.0})


def test_division_after_backward_changes_nothing(run) -> None:
    m = run(
        """
        for i, (x, y) in enumerate(loader):
            loss = criterion(model(x), y)
            loss.backward()
            loss = loss / k
            if (i + 1) % k == 0:
                optimizer.step()
                optimizer.zero_grad()
        """
    )
    assert rows(m) == [times(4.0, 0, 1, 2, 3), times(4.0, 4, 5, 6, 7)]


def test_double_division(run) -> None:
    m = run(
        """
        for i, (x, y) in enumerate(loader):
            loss = criterion(model(x), y)
            loss = loss / k
            (loss / k).backward()
            if (i + 1) % k == 0:
                optimizer.step()
                optimizer.zero_grad()
        """
    )
    assert rows(m) == [times(0.25, 0, 1, 2, 3), times(0.25, 4, 5, 6, 7)]


@pytest.mark.parametrize("where", ["first", "last"])
def test_zeroed_every_micro_batch(run, where: str) -> None:
    first, last = ("optimizer.zero_grad()", "pass") if where == "first" else ("pass", "optimizer.zero_grad()")
    m = run(
        f"""
        for i, (x, y) in enumerate(loader):
            {first}
            (criterion(model(x), y) / k).backward()
            if (i + 1) % k == 0:
                optimizer.step()
            {last}
        """
    )
    assert rows(m) == [ones(3), ones(7)]
    line = OFFSET + (2 if where == "first" else 6)
    assert [(d.backward, d.line) for d in m.leftover[0].discarded] == [(t, line) for t in (0, 1, 2, 4, 5, 6)]
    assert m.lost(0) == (0, 1, 2, 4, 5, 6)


def test_zero_between_backward_and_step(run) -> None:
    m = run(
        """
        for i, (x, y) in enumerate(loader):
            (criterion(model(x), y) / k).backward()
            if (i + 1) % k == 0:
                optimizer.zero_grad()
                optimizer.step()
        """
    )
    assert rows(m) == [{}, {}]
    assert m.lost(0) == tuple(range(8))


def test_shifted_window(run) -> None:
    m = run(
        """
        for i, (x, y) in enumerate(loader):
            (criterion(model(x), y) / k).backward()
            if i % k == 0:
                optimizer.step()
                optimizer.zero_grad()
        """,
        batches=9,
    )
    assert rows(m) == [ones(0), ones(1, 2, 3, 4), ones(5, 6, 7, 8)]


def test_tail_stepped_short(run) -> None:
    m = run(
        """
        for i, (x, y) in enumerate(loader):
            (criterion(model(x), y) / k).backward()
            if (i + 1) % k == 0 or i + 1 == len(loader):
                optimizer.step()
                optimizer.zero_grad()
        """,
        batches=6,
    )
    assert rows(m) == [ones(0, 1, 2, 3), ones(4, 5)]
    assert m.totals(0)[1] == pytest.approx({OFFSET + 2: 0.5})


def test_tail_leaks_into_the_next_epoch(run) -> None:
    m = run(
        """
        for epoch in range(2):
            for i, (x, y) in enumerate(loader):
                (criterion(model(x), y) / k).backward()
                if (i + 1) % k == 0:
                    optimizer.step()
                    optimizer.zero_grad()
        """,
        batches=6,
    )
    assert rows(m) == [ones(0, 1, 2, 3), ones(4, 5, 6, 7, 8, 9)]
    assert m.leftover[0].backwards == (10, 11)


def test_tail_dropped_by_zero_at_epoch_start(run) -> None:
    m = run(
        """
        for epoch in range(2):
            optimizer.zero_grad()
            for i, (x, y) in enumerate(loader):
                (criterion(model(x), y) / k).backward()
                if (i + 1) % k == 0:
                    optimizer.step()
                    optimizer.zero_grad()
        """,
        batches=6,
    )
    assert rows(m) == [ones(0, 1, 2, 3), ones(6, 7, 8, 9)]
    assert [(d.backward, d.line) for d in m.leftover[0].discarded] == [(4, OFFSET + 2), (5, OFFSET + 2)]
    assert m.leftover[0].backwards == (10, 11)


def test_never_zeroed(run) -> None:
    m = run(
        """
        for i, (x, y) in enumerate(loader):
            (criterion(model(x), y) / k).backward()
            if (i + 1) % k == 0:
                optimizer.step()
        """,
        batches=100,
    )
    found = rows(m)
    assert found == [ones(*range(n)) for n in range(4, 101, 4)]


def test_step_every_micro_batch(run) -> None:
    m = run(
        """
        for i, (x, y) in enumerate(loader):
            (criterion(model(x), y) / k).backward()
            optimizer.step()
            optimizer.zero_grad()
        """
    )
    assert rows(m) == [ones(t) for t in range(8)]


def test_step_every_micro_batch_zero_every_window(run) -> None:
    m = run(
        """
        for i, (x, y) in enumerate(loader):
            (criterion(model(x), y) / k).backward()
            optimizer.step()
            if (i + 1) % k == 0:
                optimizer.zero_grad()
        """
    )
    window = [ones(0), ones(0, 1), ones(0, 1, 2), ones(0, 1, 2, 3)]
    assert rows(m) == window + [{t + 4: w for t, w in row.items()} for row in window]


def test_continue_on_the_boundary(run) -> None:
    m = run(
        """
        for i, (x, y) in enumerate(loader):
            if i == 3:
                continue
            (criterion(model(x), y) / k).backward()
            if (i + 1) % k == 0:
                optimizer.step()
                optimizer.zero_grad()
        """
    )
    assert rows(m) == [ones(*range(7))]


@pytest.mark.parametrize(("test", "steps"), [("(step + 1) % k == 0", 0), ("step % k == 0", 1)])
def test_frozen_counter(run, test: str, steps: int) -> None:
    m = run(
        f"""
        step = 0
        for x, y in loader:
            (criterion(model(x), y) / k).backward()
            if {test}:
                optimizer.step()
                optimizer.zero_grad()
                step += 1
        """
    )
    assert len(m.optimizers[0].updates) == steps
    assert m.leftover[0].backwards == tuple(range(steps, 8))


DIVIDING = {
    "in place": "p.grad /= k",
    "method": "p.grad.div_(k)",
    "data": "p.grad.data.mul_(1 / k)",
    "rebound": "p.grad = p.grad / k",
}


@pytest.mark.parametrize("how", DIVIDING)
def test_gradients_divided_before_the_step(run, how: str) -> None:
    m = run(
        f"""
        for i, (x, y) in enumerate(loader):
            criterion(model(x), y).backward()
            if (i + 1) % k == 0:
                for p in model.parameters():
                    {DIVIDING[how]}
                optimizer.step()
                optimizer.zero_grad()
        """
    )
    assert rows(m) == [ones(0, 1, 2, 3), ones(4, 5, 6, 7)]
    assert m.optimizers[0].updates[0].coefficients == pytest.approx(times(0.25, 0, 1, 2, 3))


def test_gradients_divided_every_micro_batch(run) -> None:
    m = run(
        """
        for i, (x, y) in enumerate(loader):
            criterion(model(x), y).backward()
            for p in model.parameters():
                p.grad /= k
            if (i + 1) % k == 0:
                optimizer.step()
                optimizer.zero_grad()
        """
    )
    assert rows(m)[0] == {0: round(4 / 256, 6), 1: round(4 / 64, 6), 2: 0.25, 3: 1.0}


def test_gradients_scaled_in_a_hook(run) -> None:
    m = run(
        """
        for p in model.parameters():
            p.register_hook(lambda g: g / k)
        for i, (x, y) in enumerate(loader):
            criterion(model(x), y).backward()
            if (i + 1) % k == 0:
                optimizer.step()
                optimizer.zero_grad()
        """
    )
    assert rows(m) == [ones(0, 1, 2, 3), ones(4, 5, 6, 7)]


def test_gradients_added_by_hand(run) -> None:
    m = run(
        """
        sums = [torch.zeros_like(p) for p in model.parameters()]
        for i, (x, y) in enumerate(loader):
            criterion(model(x), y).backward()
            for s, p in zip(sums, model.parameters()):
                s += p.grad
            if (i + 1) % k == 0:
                for s, p in zip(sums, model.parameters()):
                    p.grad = s.clone()
                    s.zero_()
                optimizer.step()
                optimizer.zero_grad()
        """
    )
    assert rows(m) == [{0: 16, 1: 12, 2: 8, 3: 4}, {4: 16, 5: 12, 6: 8, 7: 4}]


def test_gradients_copied_and_zeroed(run) -> None:
    m = run(
        """
        sums = [torch.zeros_like(p) for p in model.parameters()]
        for i, (x, y) in enumerate(loader):
            for p in model.parameters():
                p.grad = None
            criterion(model(x), y).backward()
            for s, p in zip(sums, model.parameters()):
                s += p.grad / k
            if (i + 1) % k == 0:
                for s, p in zip(sums, model.parameters()):
                    p.grad.copy_(s)
                    s.zero_()
                optimizer.step()
        """
    )
    assert rows(m) == [ones(0, 1, 2, 3), ones(4, 5, 6, 7)]
    assert m.leftover[0].discarded == ()
    assert len(m.lines("zero")) == 7  # a loop over the parameters is one zeroing; at first there was nothing


def test_gradients_by_autograd_grad(run) -> None:
    m = run(
        """
        params = list(model.parameters())
        for i, (x, y) in enumerate(loader):
            found = torch.autograd.grad(criterion(model(x), y) / k, params)
            for p, g in zip(params, found):
                p.grad = g if p.grad is None else p.grad + g
            if (i + 1) % k == 0:
                optimizer.step()
                optimizer.zero_grad()
        """
    )
    assert rows(m) == [ones(0, 1, 2, 3), ones(4, 5, 6, 7)]
    assert {b.via for b in m.backwards} == {"grad"}


def test_zeroed_by_hand(run) -> None:
    m = run(
        """
        for i, (x, y) in enumerate(loader):
            (criterion(model(x), y) / k).backward()
            if (i + 1) % k == 0:
                optimizer.step()
                for p in model.parameters():
                    p.grad.zero_()
        """
    )
    assert rows(m) == [ones(0, 1, 2, 3), ones(4, 5, 6, 7)]
    assert m.lines("zero") == [OFFSET + 6] * 2


@pytest.mark.parametrize("how", ["model.zero_grad()", "optimizer.zero_grad(set_to_none=False)"])
def test_other_zeroings(run, how: str) -> None:
    m = run(
        f"""
        for i, (x, y) in enumerate(loader):
            (criterion(model(x), y) / k).backward()
            if (i + 1) % k == 0:
                optimizer.step()
                {how}
        """
    )
    assert rows(m) == [ones(0, 1, 2, 3), ones(4, 5, 6, 7)]
    assert m.lines("zero") == [OFFSET + 5] * 2


def test_zeroing_out_of_sight_is_still_found(run) -> None:
    m = run(
        """
        for i, (x, y) in enumerate(loader):
            (criterion(model(x), y) / k).backward()
            if (i + 1) % k == 0:
                optimizer.step()
                for p in model.parameters():
                    p.grad.data *= 0
        """
    )
    assert rows(m) == [ones(0, 1, 2, 3), ones(4, 5, 6, 7)]
    assert m.events[-1].kind == "zero" and m.events[-1].data["via"] == "unseen"


def test_only_one_of_two_groups_zeroed(run) -> None:
    m = run(
        """
        for i, (x, y) in enumerate(loader):
            (criterion(model(x), y) / k).backward()
            if (i + 1) % k == 0:
                optimizer.step()
                model[0].zero_grad()
        """
    )
    first, second = m.optimizers[0].updates
    assert first.residual < 1e-6 and first.uneven == {}
    assert second.residual > 1e-3
    assert second.uneven == {t: pytest.approx((0.0, 1.0)) for t in range(4)}


@pytest.mark.parametrize("max_norm", [0.2, 0.05])
def test_clip_every_micro_batch(run, max_norm: float) -> None:
    m = run(
        f"""
        for i, (x, y) in enumerate(loader):
            (criterion(3 * model(x), y) / k).backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), {max_norm})
            print(float(norm))
            if (i + 1) % k == 0:
                optimizer.step()
                optimizer.zero_grad()
        """
    )
    norms = [float(line) for line in m.stdout.split()]
    assert [e.data["norm"] for e in m.events if e.kind == "clip"] == pytest.approx(norms)
    factors = [min(1.0, max_norm / (n + 1e-6)) for n in norms[:4]]
    expected = {t: math.prod(factors[t:]) for t in range(4)}
    assert m.optimizers[0].updates[0].coefficients == pytest.approx(expected, rel=1e-6)
    assert expected[0] < expected[3]


def test_clip_on_the_boundary(run) -> None:
    m = run(
        """
        for i, (x, y) in enumerate(loader):
            (criterion(model(x), y) / k).backward()
            if (i + 1) % k == 0:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
                optimizer.step()
                optimizer.zero_grad()
        """
    )
    values = list(m.optimizers[0].updates[0].coefficients.values())
    assert values == pytest.approx([values[0]] * 4) and values[0] < 0.5


def test_clip_by_value_is_no_factor(run) -> None:
    m = run(
        """
        for i, (x, y) in enumerate(loader):
            (criterion(model(x), y) / k).backward()
            if (i + 1) % k == 0:
                torch.nn.utils.clip_grad_value_(model.parameters(), 0.01)
                optimizer.step()
                optimizer.zero_grad()
        """
    )
    assert all(u.residual > 1e-3 for u in m.optimizers[0].updates)


def test_gradients_of_replicas(run) -> None:
    m = run(
        """
        import copy
        replicas = [copy.deepcopy(model) for _ in range(2)]
        for i in range(0, 8, 2):
            for j, r in enumerate(replicas):
                r.load_state_dict(model.state_dict())
                r.zero_grad()
                x, y = loader[i + j]
                criterion(r(x), y).backward()
            for p, a, b in zip(model.parameters(), *(r.parameters() for r in replicas)):
                p.grad = (a.grad + b.grad) / 2
            optimizer.step()
        """
    )
    assert rows(m, k=2) == [ones(0, 1), ones(2, 3), ones(4, 5), ones(6, 7)]
    assert len(m.optimizers) == 1  # loading weights is no update by hand


def test_rows_that_were_not_sampled(run) -> None:
    m = run(
        """
        table = nn.Embedding(5000, 8, sparse=True)
        optimizer = torch.optim.SparseAdam(table.parameters())
        for i in range(8):
            (table(torch.tensor([i * 600])).pow(2).mean() / k).backward()
            if (i + 1) % k == 0:
                optimizer.step()
                optimizer.zero_grad()
        """
    )
    assert rows(m, 1) == [ones(0, 1, 2, 3), ones(4, 5, 6, 7)]


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(run, reentrant: bool) -> None:
    m = run(
        f"""
        from torch.utils.checkpoint import checkpoint
        for i, (x, y) in enumerate(loader):
            x.requires_grad_()
            (criterion(checkpoint(model, x, use_reentrant={reentrant}), y) / k).backward()
            if (i + 1) % k == 0:
                optimizer.step()
                optimizer.zero_grad()
        """
    )
    assert rows(m) == [ones(0, 1, 2, 3), ones(4, 5, 6, 7)]


def test_optimizer_made_anew_every_epoch(run) -> None:
    m = run(
        """
        for epoch in range(2):
            optimizer = torch.optim.AdamW(model.parameters())
            for i, (x, y) in enumerate(loader):
                (criterion(model(x), y) / k).backward()
            optimizer.step()
            model.zero_grad()
        """,
        batches=4,
    )
    assert rows(m, 1) == [ones(0, 1, 2, 3)] and rows(m, 2) == [ones(4, 5, 6, 7)]


def test_one_loss_per_owner_in_one_call(run) -> None:
    m = run(
        """
        actor, critic = nn.Linear(6, 3), nn.Linear(6, 3)
        a = torch.optim.SGD(actor.parameters(), lr=0.1)
        c = torch.optim.SGD(critic.parameters(), lr=0.1)
        for i, (x, y) in enumerate(loader):
            loss = criterion(actor(x), y) + 0.5 * F.mse_loss(critic(x), x[:, :3])
            (loss / k).backward()
        a.step()
        c.step()
        """,
        batches=4,
    )
    assert rows(m, 1) == [ones(0, 1, 2, 3)] and rows(m, 2) == [times(0.5, 0, 1, 2, 3)]


@pytest.mark.parametrize("seed", range(12))
def test_random_programs(run, seed: int) -> None:
    """Any order of backward calls, scalings, zeroings, copies and steps, against the same in exact fractions."""
    choose = random.Random(seed)
    grad: dict[int, Fraction] | None = None
    kept: dict[int, Fraction] | None = None
    expected: list[dict[int, Fraction]] = []
    lines = ["params = list(model.parameters())"]
    calls = 0
    for _ in range(60):
        op = choose.choice(["backward"] * 6 + ["step"] * 2 + ["scale", "zero", "keep", "add", "put", "flip"])
        if op == "backward":
            weight = Fraction(choose.choice([1, 2, 3]), choose.choice([1, 2, 4, 5]))
            lines.append(f"x, y = loader[{calls}]; (criterion(model(x), y) * {float(weight)}).backward()")
            grad = {**(grad or {}), calls: weight}
            calls += 1
        elif op == "step":
            lines.append("optimizer.step()")
            expected.append(dict(grad or {}))
        elif op == "zero":
            how = ["optimizer.zero_grad()", "model.zero_grad(set_to_none=False)", "for p in params: p.grad = None"]
            lines.append(choose.choice(how))
            grad = None
        elif op in ("scale", "keep", "flip") and grad:
            factor = {"scale": Fraction(1, choose.choice([2, 3, 7])), "keep": Fraction(1), "flip": Fraction(-1)}[op]
            if op == "keep":
                lines.append("kept = [p.grad.clone() for p in params]")
                kept = dict(grad)
            else:
                lines.append(f"for p in params: p.grad.mul_({float(factor)!r})")
                grad = {t: factor * a for t, a in grad.items()}
        elif op in ("add", "put") and kept and grad:
            lines.append(f"for p, s in zip(params, kept): p.grad.{'add_' if op == 'add' else 'copy_'}(s)")
            if op == "put":
                grad = dict(kept)
            else:
                grad = {t: grad.get(t, Fraction(0)) + kept.get(t, Fraction(0)) for t in grad.keys() | kept.keys()}
    m = run("\n".join(lines) + "\n", batches=60)
    found = m.matrix(0)
    assert len(found) == len(expected)
    for row, right in zip(found, expected, strict=True):
        assert row == pytest.approx({t: float(a) for t, a in right.items() if a}, rel=1e-6)
    assert all(u.residual < 1e-6 for u in m.optimizers[0].updates)


# --- losses ----------------------------------------------------------------------------------------------------------

LOSSES = {
    "F mean": ("F.mse_loss(out, t)", "mean", 1.0, 15),
    "F sum": ("F.mse_loss(out, t, reduction='sum')", "sum", 1.0, 15),
    "module sum": ("nn.L1Loss(reduction='sum')(out, t)", "sum", 1.0, 15),
    "hand mean": ("(out - t).pow(2).mean()", "mean", 1.0, 15),
    "hand sum": ("(out - t).pow(2).sum()", "sum", 1.0, 15),
    "sum over batch": ("(out - t).pow(2).sum() / x.size(0)", "mean", 1.0, 5),
    "sum over elements": ("(out - t).abs().sum() / out.numel()", "mean", 1.0, 15),
    "F sum over batch": ("F.cross_entropy(out, y, reduction='sum') / len(y)", "mean", 1.0, 5),
    "mean of rows": ("F.cross_entropy(out, y, reduction='none').mean()", "mean", 1.0, 5),
    "masked": ("((out - t).pow(2).mean(1) * mask).sum() / mask.sum()", "mean", 1.0, 3),
    "label smoothing": ("F.cross_entropy(out, y, label_smoothing=0.1)", "mean", 1.0, 5),
    "ignored targets": ("F.cross_entropy(out, torch.where(mask > 0, y, -100))", "mean", 1.0, 3),
    "batchmean": ("F.kl_div(out.log_softmax(1), t.softmax(1), reduction='batchmean')", "mean", 1.0, 5),
    "summed and weighted": ("0.5 * F.mse_loss(out, t, reduction='sum')", "sum", 0.5, 15),
    "token sum over a constant": ("F.cross_entropy(out, y, reduction='sum') / 37", "sum", 1 / 37, 5),
    "sum over a window": ("F.cross_entropy(out, y, reduction='sum') / 20", "mean", 0.25, 5),
    "root": ("F.mse_loss(out, t).sqrt()", "other", 1.0, None),
}


@pytest.mark.parametrize("name", LOSSES)
def test_reductions(run, name: str) -> None:
    loss, reduction, weight, elements = LOSSES[name]
    m = run(
        f"""
        mask = torch.tensor([1., 0., 1., 1., 0.])
        for i, (x, y) in enumerate(loader):
            out, t = model(x), x[:, :3]
            loss = {loss}
            (loss / 7).backward()
        """,
        batches=2,
    )
    (term,) = m.backwards[1].terms
    assert (term.reduction, term.elements) == (reduction, elements)
    assert term.weight == pytest.approx(weight / 7)
    assert term.data and term.forwards == (1,)


def test_sum_reduction_needs_no_division(run) -> None:
    m = run(
        """
        criterion = nn.CrossEntropyLoss(reduction="sum")
        for i, (x, y) in enumerate(loader):
            criterion(model(x), y).backward()
            if (i + 1) % k == 0:
                optimizer.step()
                optimizer.zero_grad()
        """
    )
    assert rows(m) == [ones(0, 1, 2, 3), ones(4, 5, 6, 7)]


def test_gradient_argument(run) -> None:
    m = run(
        """
        for i, (x, y) in enumerate(loader):
            criterion(model(x), y).backward(gradient=torch.tensor(1 / k))
            if (i + 1) % k == 0:
                optimizer.step()
                optimizer.zero_grad()
        """
    )
    assert rows(m) == [ones(0, 1, 2, 3), ones(4, 5, 6, 7)]


def test_regulariser_is_no_data_term(run) -> None:
    m = run(
        """
        for i, (x, y) in enumerate(loader):
            loss = criterion(model(x), y) / k + 0.01 * sum(p.pow(2).sum() for p in model.parameters())
            loss.backward()
            if (i + 1) % k == 0:
                optimizer.step()
                optimizer.zero_grad()
        """
    )
    assert rows(m) == [ones(0, 1, 2, 3), ones(4, 5, 6, 7)]
    assert [t.data for t in m.backwards[0].terms].count(False) == 4


def test_auxiliary_loss_left_undivided(run) -> None:
    m = run(
        """
        for i, (x, y) in enumerate(loader):
            out = model(x)
            loss = criterion(out, y) / k + 0.1 * out.pow(2).mean()
            loss.backward()
            if (i + 1) % k == 0:
                optimizer.step()
                optimizer.zero_grad()
        """
    )
    weights = {t.function: t.weight for t in m.backwards[0].terms}
    assert weights == pytest.approx({"F.cross_entropy": 0.25, "MeanBackward0": 0.1})
    assert rows(m)[0] == ones(0, 1, 2, 3)


def test_deferred_backward(run) -> None:
    m = run(
        """
        total = 0.0
        for i, (x, y) in enumerate(loader):
            total = total + criterion(model(x), y) / k
            if (i + 1) % k == 0:
                total.backward()
                optimizer.step()
                optimizer.zero_grad()
                total = 0.0
        """
    )
    assert len(m.backwards) == 2
    assert [t.forwards for t in sorted(m.backwards[0].terms, key=lambda t: t.forwards)] == [(0,), (1,), (2,), (3,)]
    assert rows(m) == [ones(0), ones(1)]
    assert m.totals(0)[0] == pytest.approx({OFFSET + 5: 1.0})
    assert [c.graphs for c in m.live_graphs[:3]] == [1, 2, 3] and not m.growing


def test_stacked_losses(run) -> None:
    m = run(
        """
        losses = [criterion(model(x), y) for x, y in loader]
        torch.stack(losses).mean().backward()
        optimizer.step()
        """,
        batches=3,
    )
    assert [t.weight for t in m.backwards[0].terms] == pytest.approx([1 / 3] * 3)
    assert m.totals(0)[0] == pytest.approx({OFFSET + 2: 1.0})


# --- several optimizers, closures, scaler ----------------------------------------------------------------------------


def test_gan_with_two_optimizers(run) -> None:
    m = run(
        """
        g, d = nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
        opt_g = torch.optim.Adam(g.parameters(), lr=1e-3)
        opt_d = torch.optim.Adam(d.parameters(), lr=1e-3)
        bce = nn.BCEWithLogitsLoss()
        for x, _ in loader:
            opt_d.zero_grad()
            bce(d(x), torch.ones(5, 1)).backward()
            fake = g(torch.randn(5, 4))
            bce(d(fake.detach()), torch.zeros(5, 1)).backward()
            opt_d.step()
            opt_g.zero_grad()
            bce(d(fake), torch.ones(5, 1)).backward()
            opt_g.step()
        """,
        batches=3,
    )
    assert [o.name for o in m.optimizers] == ["SGD", "Adam", "Adam"]
    assert rows(m, 1, 1) == [ones(2), ones(5), ones(8)]
    assert rows(m, 2, 1) == [ones(0, 1), ones(3, 4), ones(6, 7)]
    assert m.backwards[0].owners == (2,) and m.backwards[2].owners == (1, 2)
    assert [d.backward for d in m.leftover[2].discarded] == [2, 5]  # what the generator's loss left in d
    assert m.lost(2) == ()
    assert not m.growing


def test_lbfgs_closure_is_one_update(run) -> None:
    m = run(
        """
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=5)
        x, y = loader[0]
        def closure():
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            return loss
        for _ in range(2):
            optimizer.step(closure)
        """
    )
    updates = m.optimizers[1].updates
    assert len(updates) == 2 and all(u.closure for u in updates)
    assert rows(m, 1, 1)[0] == ones(0)
    replays = [b.replay for b in m.backwards]
    assert replays.count(False) == 2 and len(replays) > 4
    assert m.lost(1) == ()
    assert len(m.lines("closure")) == len(m.backwards)


def test_closure_that_accumulates(run) -> None:
    m = run(
        """
        def closure():
            optimizer.zero_grad()
            for x, y in loader:
                (criterion(model(x), y) / k).backward()
        optimizer.step(closure)
        """,
        batches=4,
    )
    assert rows(m) == [ones(0, 1, 2, 3)]
    assert all(b.closure and not b.replay for b in m.backwards)


SCALER = """
scaler = torch.amp.GradScaler("cpu")
for i, (x, y) in enumerate(loader):
    scaler.scale(criterion(model(x), y) / k).backward()
"""


def test_scaler_right(run) -> None:
    m = run(
        SCALER
        + """\
    if (i + 1) % k == 0:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 100.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
"""
    )
    assert rows(m) == [ones(0, 1, 2, 3), ones(4, 5, 6, 7)]
    assert m.backwards[0].scale == 65536 and m.backwards[0].terms[0].weight == 0.25
    assert [e.kind for e in m.events if e.kind != "backward"][:6] == [
        "unscale",
        "clip",
        "scaler_step",
        "step",
        "scaler_update",
        "zero",
    ]


def test_scaler_steps_every_micro_batch(run) -> None:
    m = run(
        SCALER
        + """\
    scaler.step(optimizer)
    scaler.update()
    if (i + 1) % k == 0:
        optimizer.zero_grad()
"""
    )
    assert rows(m)[0] == ones(0)
    assert m.relative(0, K)[1] == pytest.approx({0: 1 / 65536, 1: 1.0})


def test_scaler_unscales_every_micro_batch(run) -> None:
    m = run(
        SCALER
        + """\
    scaler.unscale_(optimizer)
    scaler.update()
    if (i + 1) % k == 0:
        optimizer.step()
        optimizer.zero_grad()
"""
    )
    assert m.relative(0, K)[0] == pytest.approx({2: 1 / 65536, 3: 1.0}, rel=1e-6)


def test_clip_before_unscale(run) -> None:
    m = run(
        SCALER
        + """\
    if (i + 1) % k == 0:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 100.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
"""
    )
    values = list(m.relative(0, K)[0].values())
    assert values == pytest.approx([values[0]] * 4) and values[0] < 0.01


def test_optimizer_step_on_scaled_gradients(run) -> None:
    m = run(
        SCALER
        + """\
    if (i + 1) % k == 0:
        optimizer.step()
        optimizer.zero_grad()
"""
    )
    assert m.relative(0, K)[0] == pytest.approx(times(65536, 0, 1, 2, 3))


def test_manual_sgd(run) -> None:
    m = run(
        """
        del optimizer
        w = torch.randn(6, 3, requires_grad=True)
        b = torch.zeros(3, requires_grad=True)
        for i, (x, y) in enumerate(loader):
            (F.cross_entropy(x @ w + b, y) / k).backward()
            if (i + 1) % k == 0:
                with torch.no_grad():
                    for p in (w, b):
                        p -= 0.1 * p.grad
                        p.grad = None
        """
    )
    assert [o.name for o in m.optimizers] == ["SGD", "manual"]
    assert rows(m, 1) == [ones(0, 1, 2, 3), ones(4, 5, 6, 7)]
    assert m.optimizers[1].lr == pytest.approx(0.1)
    assert [u.line for u in m.optimizers[1].updates] == [OFFSET + 9] * 2
    assert m.leftover[1].backwards == () and m.leftover[1].discarded == ()


def test_manual_sgd_through_data(run) -> None:
    m = run(
        """
        net = nn.Linear(6, 3)
        for i, (x, y) in enumerate(loader):
            criterion(net(x), y).backward()
            for p in net.parameters():
                p.data.add_(p.grad, alpha=-0.2)
            net.zero_grad()
        """,
        batches=3,
    )
    assert rows(m, 1, 1) == [ones(0), ones(1), ones(2)]
    assert [u.lr for u in m.optimizers[1].updates] == pytest.approx([0.2] * 3)
    assert [u.line for u in m.optimizers[1].updates] == [OFFSET + 5] * 3


def test_manual_momentum_and_autograd_grad(run) -> None:
    m = run(
        """
        model = nn.Linear(6, 3)
        params, speed = list(model.parameters()), [0.0] * 4
        for x, y in loader[:3]:
            criterion(model(x), y).backward()
            with torch.no_grad():
                for i, p in enumerate(params):
                    speed[i] = 0.9 * speed[i] + p.grad
                    p.sub_(0.1 * speed[i])
            model.zero_grad()
        for x, y in loader[3:5]:
            found = torch.autograd.grad(criterion(model(x), y), params)
            with torch.no_grad():
                for p, g in zip(params, found):
                    p.add_(g, alpha=-0.3)
        """
    )
    assert rows(m, 1, 1) == [ones(t) for t in range(5)]
    assert [u.lr for u in m.optimizers[1].updates] == [pytest.approx(0.1), None, None] + [pytest.approx(0.3)] * 2


def test_optimizer_in_backward(run) -> None:
    m = run(
        """
        singles = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}
        def hook(p):
            singles[p].step()
            singles[p].zero_grad()
        for p in model.parameters():
            p.register_post_accumulate_grad_hook(hook)
        for x, y in loader:
            (criterion(model(x), y) / k).backward()
        """,
        batches=3,
    )
    assert rows(m, 1) == [ones(0), ones(1), ones(2)]


# --- schedulers, batch norm, loaders ---------------------------------------------------------------------------------


def test_scheduler_per_update(run) -> None:
    m = run(
        """
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=2)
        for i, (x, y) in enumerate(loader):
            (criterion(model(x), y) / k).backward()
            if (i + 1) % k == 0:
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        """
    )
    (s,) = m.schedulers
    assert (s.name, s.optimizer, s.steps, s.horizon, s.line) == ("LinearLR", 0, 2, 2, OFFSET + 1)
    assert s.lrs == pytest.approx((0.05, 0.0)) and s.lines == (OFFSET + 6,) * 2
    assert s.initial_lr == pytest.approx(0.1)
    events = [e for e in m.events if e.kind == "scheduler"]
    assert [(e.data["before"], e.data["after"]) for e in events] == [
        pytest.approx((0.1, 0.05)),
        pytest.approx((0.05, 0)),
    ]


def test_scheduler_per_micro_batch_and_other_kinds(run) -> None:
    m = run(
        """
        from functools import partial
        S = torch.optim.lr_scheduler
        def decay(step, *, num_training_steps):
            return max(0.0, 1 - step / num_training_steps)
        class Own(S.LRScheduler):
            def get_lr(self):
                return [0.1 / (1 + self.last_epoch)]
            def step(self, epoch=None):
                super().step()
        schedulers = [
            S.CosineAnnealingLR(optimizer, T_max=20),
            S.LambdaLR(optimizer, partial(decay, num_training_steps=30)),
            S.SequentialLR(optimizer, [S.ConstantLR(optimizer), S.StepLR(optimizer, step_size=3)], milestones=[2]),
            S.ReduceLROnPlateau(optimizer, patience=7),
            S.OneCycleLR(optimizer, max_lr=0.1, epochs=2, steps_per_epoch=25),
            Own(optimizer),
        ]
        for i, (x, y) in enumerate(loader):
            loss = criterion(model(x), y)
            loss.backward()
            for s in schedulers:
                s.step(loss.detach()) if isinstance(s, S.ReduceLROnPlateau) else s.step()
        """,
        batches=5,
    )
    steps = {s.name: s.steps for s in m.schedulers}
    horizons = {s.name: s.horizon for s in m.schedulers}
    assert {n for n, c in steps.items() if c == 0} == {"ConstantLR", "StepLR"}  # only their parent was stepped
    assert all(c == 5 for n, c in steps.items() if n not in ("ConstantLR", "StepLR"))
    assert horizons["CosineAnnealingLR"] == 20 and horizons["LambdaLR"] == 30 and horizons["OneCycleLR"] == 50
    assert next(s for s in m.schedulers if s.name == "ReduceLROnPlateau").sizes["patience"] == 7


def test_batch_norm_sizes(run) -> None:
    m = run(
        """
        net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 3), nn.BatchNorm1d(3))
        for _ in range(2):
            criterion(net(torch.randn(2, 1, 6, 6)), torch.tensor([0, 1])).backward()
        with torch.no_grad():
            net(torch.randn(7, 1, 6, 6))
        net.eval()
        net(torch.randn(9, 1, 6, 6))
        """
    )
    assert [(b.samples, b.values, b.count) for b in m.batch_norms] == [(2, 32, 2), (2, 2, 2)]


def test_batch_norm_of_one_sample_crashes(oracle: Oracle) -> None:
    m = oracle.measure(
        "import torch\nnet = torch.nn.BatchNorm1d(3)\nnet(torch.randn(1, 3))\n",
    )
    assert m.outcome == "crashed" and m.error_line == 3
    assert (
        m.error == "ValueError: Expected more than 1 value per channel when training, got input size torch.Size([1, 3])"
    )
    assert [(b.samples, b.values) for b in m.batch_norms] == [(1, 1)]


def test_loader_events(run) -> None:
    m = run(
        """
        from torch.utils.data import DataLoader, TensorDataset
        data = TensorDataset(torch.randn(14, 6), torch.randint(0, 3, (14,)))
        loader = DataLoader(data, batch_size=5, shuffle=True, num_workers=2, persistent_workers=True)
        for epoch in range(2):
            for x, y in loader:
                criterion(model(x), y).backward()
        next(iter(loader))
        """
    )
    events = [(e.kind, e.line - OFFSET, e.ordinal) for e in m.events if e.kind.startswith("loader")]
    assert events == [("loader_begin", 5, 0), ("loader_end", 5, 0)] * 2 + [("loader_begin", 7, 0)]
    assert m.events[0].data == {"length": 3, "real_length": 3, "batch_size": 5}
    assert [e.data["batches"] for e in m.events if e.kind == "loader_end"] == [3, 3]


# --- live graphs -----------------------------------------------------------------------------------------------------

HOLDING = {
    "augmented": ("total = 0.0", "total += loss", "total", "Tensor"),
    "reassigned": ("total = 0.0", "total = total + loss", "total", "Tensor"),
    "appended": ("history = []", "history.append(loss)", "history", "list"),
    "dict": ("logs = {}", "logs[i] = loss", "logs", "dict"),
    "attribute": ("class Box: pass\nbox = Box(); box.total = 0.0", "box.total += loss", "box.total", "Tensor"),
    "outputs": ("outs = []", "outs.append(out)", "outs", "list"),
}


@pytest.mark.parametrize("how", HOLDING)
def test_graphs_held(oracle: Oracle, how: str) -> None:
    before, inside, name, container = HOLDING[how]
    body = f"""{before}
for i, (x, y) in enumerate(loader):
    out = model(x)
    loss = criterion(out, y) / k
    loss.backward()
    {inside}
    if (i + 1) % k == 0:
        optimizer.step()
        optimizer.zero_grad()
"""
    m = oracle.measure(PRELUDE.replace("N)]", "8)]") + body)
    assert m.growing
    assert m.holder is not None
    line = OFFSET + 1 + body.splitlines().index(f"    {inside}")
    assert (m.holder.name, m.holder.container, m.holder.line) == (name, container, line)
    counts = [c.graphs for c in m.live_graphs if c.event == "backward"]
    assert counts[-1] - counts[0] == 7


@pytest.mark.parametrize(
    "inside",
    ["total += loss.item()", "total += loss.detach()", "total = loss", "history.append(float(loss))", "pass"],
)
def test_graphs_not_held(run, inside: str) -> None:
    m = run(
        f"""
        total, history = 0.0, []
        for i, (x, y) in enumerate(loader):
            loss = criterion(model(x), y) / k
            loss.backward()
            {inside}
        """
    )
    assert not m.growing and m.holder is None
    assert max(c.graphs for c in m.live_graphs) <= 2


def test_graphs_held_in_a_function(run) -> None:
    m = run(
        """
        def train():
            running = 0.0
            for x, y in loader:
                loss = criterion(model(x), y)
                loss.backward()
                running += loss
            return running
        train()
        """
    )
    assert m.growing and m.holder is not None
    assert (m.holder.name, m.holder.line) == ("running", OFFSET + 6)


def test_validation_without_no_grad(run) -> None:
    m = run(
        """
        total = 0.0
        for x, y in loader:
            total += criterion(model(x), y)
        """
    )
    assert m.growing and m.holder is not None and m.holder.name == "total"
    assert [c.graphs for c in m.live_graphs] == list(range(1, 9))


def test_recurrent_steps_of_one_batch_are_no_growth(run) -> None:
    m = run(
        """
        cell = nn.RNNCell(6, 6)
        for x, y in loader:
            h = torch.zeros(5, 6)
            for _ in range(6):
                h = cell(x, h)
            h.pow(2).mean().backward()
        """
    )
    assert not m.growing


# --- how a run ends --------------------------------------------------------------------------------------------------


def test_hang_keeps_what_was_measured(oracle: Oracle) -> None:
    text = PRELUDE.replace("N)]", "3)]") + "criterion(model(loader[0][0]), loader[0][1]).backward()\nwhile True: pass\n"
    m = oracle.measure(text, timeout=0.5)
    assert m.outcome == "timeout" and m.error == "no end within 0.5 seconds"
    assert len(m.backwards) == 1


def test_hang_that_swallows_everything(oracle: Oracle) -> None:
    text = "import time\nwhile True:\n    try:\n        time.sleep(9)\n    except BaseException:\n        pass\n"
    assert oracle.measure(text, timeout=0.5).outcome == "timeout"


def test_crash(oracle: Oracle) -> None:
    m = oracle.measure("import sys\nprint('here')\nsys.stderr.write('there\\n')\nraise KeyError('lost')\n")
    assert (m.outcome, m.error, m.error_line) == ("crashed", "KeyError: 'lost'", 4)
    assert m.stdout == "here\n" and m.stderr.startswith("there\nTraceback")


def test_syntax_error(oracle: Oracle) -> None:
    m = oracle.measure("x = 1\nif x\n    pass\n")
    assert m.outcome == "crashed" and m.error is not None and m.error.startswith("SyntaxError") and m.error_line == 2


def test_hard_death(oracle: Oracle) -> None:
    m = oracle.measure("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    assert (m.outcome, m.error) == ("crashed", "killed by SIGKILL")


@pytest.mark.parametrize(
    ("code", "outcome", "error"),
    [
        ("sys.exit()", "finished", None),
        ("sys.exit(0)", "finished", None),
        ("sys.exit(3)", "crashed", "SystemExit: 3"),
        ("os._exit(0)", "finished", None),
        ("os._exit(2)", "crashed", "os._exit(2)"),
    ],
)
def test_exits(oracle: Oracle, code: str, outcome: str, error: str | None) -> None:
    m = oracle.measure(f"import os, sys\n{code}\n")
    assert (m.outcome, m.error) == (outcome, error)


def test_limit_of_backward_calls(oracle: Oracle) -> None:
    text = PRELUDE.replace("N)]", "3)]") + "while True:\n    criterion(model(loader[0][0]), loader[0][1]).backward()\n"
    m = oracle.measure(text, max_backwards=7)
    assert m.outcome == "stopped" and len(m.backwards) == 7


def test_forks_of_the_script_do_not_speak(run) -> None:
    m = run(
        """
        import os
        pid = os.fork()
        x, y = loader[0]
        criterion(model(x), y).backward()
        optimizer.step()
        if pid:
            os.waitpid(pid, 0)
        """
    )
    assert len(m.backwards) == 1 and len(m.optimizers[0].updates) == 1


def test_arguments_and_main(tmp_path: Path, oracle: Oracle) -> None:
    (tmp_path / "helper.py").write_text("def name():\n    return 'helper'\n")
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, helper\nif __name__ == '__main__':\n    print(sys.argv[1:], helper.name(), __file__)\n"
    )
    m = oracle.measure(script, argv=["--k", "4"])
    assert m.outcome == "finished" and m.stdout == f"['--k', '4'] helper {script}\n"


def test_argparse_error_is_told(oracle: Oracle) -> None:
    m = oracle.measure("import argparse\np = argparse.ArgumentParser()\np.add_argument('data')\np.parse_args()\n")
    assert m.outcome == "crashed" and m.error is not None
    assert m.error.endswith("error: the following arguments are required: data")


def test_dtypes(oracle: Oracle) -> None:
    # old versions of torch have no mse_loss of bfloat16 on the CPU
    loop = "((model(loader[0][0]) - loader[0][0][:, :3]).square().mean() / 2).backward()\n" * 2 + "optimizer.step()\n"
    text = PRELUDE.replace("N)]", "3)]")
    named = oracle.measure(text + "z = torch.zeros(1, dtype=torch.float32)\n" + loop)
    assert (named.forced_double, named.precision) == (False, "float32")
    assert named.relative(0, 2)[0] == pytest.approx({0: 1.0, 1: 1.0}, rel=1e-5)
    half = oracle.measure(text + "model.bfloat16()\nloader = [(x.bfloat16(), y) for x, y in loader]\n" + loop)
    assert half.precision == "bfloat16"
    assert half.relative(0, 2)[0] == pytest.approx({0: 1.0, 1: 1.0}, rel=5e-2)
    # a dtype that comes from elsewhere: measured again as it is
    retried = oracle.measure("import torch\na = torch.ones(2) @ getattr(torch.zeros(2), 'flo' + 'at')()\n")
    assert retried.outcome == "finished" and not retried.forced_double


def test_files_are_kept_away(tmp_path: Path, oracle: Oracle) -> None:
    target = tmp_path / "ckpt"
    text = f"""
import os, pathlib, torch
folder = {str(target)!r}
os.makedirs(folder, exist_ok=True)
torch.save({{"a": torch.ones(2)}}, folder + "/model.pt")
print(torch.load(folder + "/model.pt")["a"].sum().item())
pathlib.Path(folder, "log.txt").write_text("x")
print(open(folder + "/log.txt").read())
open("relative.txt", "w").write("y")
try:
    os.remove({str(tmp_path / "precious")!r})
except PermissionError as e:
    print("refused")
try:
    os.system("true")
except PermissionError as e:
    print("refused")
"""
    (tmp_path / "precious").write_text("p")
    m = oracle.measure(text)
    assert m.outcome == "finished", m.stderr
    assert m.stdout.split() == ["2.0", "x", "refused", "refused"]
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]
    assert not Path("relative.txt").exists()


def test_memory_is_limited(oracle: Oracle) -> None:
    m = oracle.measure("import torch\nx = torch.empty(40 << 30, dtype=torch.uint8)\n")
    assert m.outcome == "crashed"


def test_runs_do_not_touch_each_other(oracle: Oracle) -> None:
    first = oracle.measure("import torch, random\nprint(torch.rand(1).item(), random.random())\n")
    oracle.measure("import torch\ntorch.Tensor.backward = None\n")
    again = oracle.measure("import torch, random\nprint(torch.rand(1).item(), random.random())\n")
    assert first.stdout == again.stdout


def test_json_round_trip(run) -> None:
    m = run("criterion(model(loader[0][0]), loader[0][1]).backward()\noptimizer.step()\n")
    assert Measurement.from_json(json.loads(json.dumps(m.to_json()))) == m


def test_missing_script_and_missing_torch(tmp_path: Path) -> None:
    with pytest.raises(OracleError, match=r"no such script: nowhere\.py"):
        measure("nowhere.py")
    with pytest.raises(OracleError, match="cannot start"):
        Oracle(tmp_path / "python").measure("pass\n")


def test_the_shared_oracle(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("print('hello')\n")
    assert measure(script).stdout == measure(str(script)).stdout == "hello\n"


def test_server_that_dies_is_replaced(oracle: Oracle) -> None:
    assert oracle._server is not None
    oracle._server.kill()
    with pytest.raises(OracleError):
        for _ in range(2):
            oracle.measure("x = 1\n\n")
            break
        else:
            pytest.fail("no error")
        raise OracleError  # the kill may be noticed before the request: then a new server has answered
    assert oracle.measure("x = 1\n\n").outcome == "finished"
