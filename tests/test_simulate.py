"""What the abstract run makes of whole scripts: settings, numbers it must learn, what it did not understand."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acclint.findings import Severity
from acclint.lift import lift
from acclint.lint import check_text
from acclint.settings import Settings
from acclint.simulate import analyze

EVERYTHING = dataclasses.replace(Settings(), min_severity=Severity.INFO)

LOOP = """\
import torch
from losses import my_loss

def train(model, loader, args):
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)
    for epoch in range(args.epochs):
        optimizer.zero_grad()
        for i, (x, y) in enumerate(loader):
            loss = my_loss(model(x), y){division}
            loss.backward()
            if (i + 1) % {k} == 0:
                optimizer.step()
                optimizer.zero_grad()
"""


def codes(text: str, chosen: Settings = EVERYTHING) -> set[str]:
    return {finding.code for finding in check_text(text, "train.py", chosen).findings}


def test_a_loss_that_the_user_calls_a_sum_needs_no_division() -> None:
    text = LOOP.format(division="", k="args.accum")
    assert "ACC001" in codes(text)
    assert "ACC001" not in codes(text, dataclasses.replace(EVERYTHING, sum_losses=("losses.my_loss",)))


def test_a_loss_that_the_user_calls_a_mean_makes_the_finding_sure() -> None:
    text = LOOP.format(division="", k="args.accum")
    chosen = dataclasses.replace(EVERYTHING, mean_losses=("losses.my_loss",))
    (found,) = (one for one in check_text(text, "train.py", chosen).findings if one.code == "ACC001")
    (before,) = (one for one in check_text(text, "train.py", EVERYTHING).findings if one.code == "ACC001")
    assert found.confidence.rank > before.confidence.rank


@pytest.mark.parametrize("k", ["args.accum", "args.n", "cfg['every']", "4", "STEPS", "args.total // args.small"])
def test_k_is_known_by_its_name_or_by_its_use(k: str) -> None:
    assert "ACC001" in codes(LOOP.format(division="", k=f"({k})"))
    assert "ACC001" not in codes(LOOP.format(division=f" / ({k})", k=f"({k})"))


FROZEN_BY_A_FLAG = """\
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce


def freeze(module, flag):
    for p in module.parameters():
        p.requires_grad_(not flag)


torch.manual_seed(0)
G, D = nn.Linear(3, 2), nn.Linear(2, 1)
g_opt = torch.optim.Adam(G.parameters(), lr=1e-3)
d_opt = torch.optim.Adam(D.parameters(), lr=1e-3)
ones = torch.ones(8, 1)
for turn in range(32):
    noise = torch.randn(8, 3)
    (bce(D(torch.randn(8, 2)), ones) / 4).backward()
    if turn % 4 == 3:
        d_opt.step()
        d_opt.zero_grad()
    freeze(D, True)
    (bce(D(G(noise)), ones) / 2).backward()
    freeze(D, False)
    if turn % 2 == 1:
        g_opt.step()
        g_opt.zero_grad()
"""
PLAN_OF_FLAGS = """\
import os

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
plan = os.environ.get("UPDATE_PLAN", "0 0 0 1").split()
k = 4
net = nn.Linear(6, 1)
opt = torch.optim.SGD(net.parameters(), lr=0.05)
for i, (x, y) in enumerate(DataLoader(TensorDataset(torch.randn(64, 6), torch.randn(64, 1)), batch_size=4)):
    (nn.functional.mse_loss(net(x), y) / k).backward()
    if plan[i % k] == "1":
        opt.step()
        opt.zero_grad()
"""


@pytest.mark.parametrize("text", [FROZEN_BY_A_FLAG, PLAN_OF_FLAGS])
def test_a_flag_freezes_and_a_table_of_flags_is_a_window_test(text: str) -> None:
    assert not codes(text)


def test_a_setting_of_an_imported_file_is_not_always_true() -> None:
    text = LOOP.format(division="", k="args.accum").replace("import torch\n", "import torch\nimport config\n")
    step = "            loss = my"
    skipped = text.replace(step, f"            if config.skip:\n                continue\n{step}")
    assert skipped != text
    assert "ACC001" in codes(skipped)


def test_a_window_of_one_is_no_accumulation() -> None:
    assert codes(LOOP.format(division="", k="1")) == set()


def test_a_loop_that_was_not_reached_is_said_to_be_not_understood() -> None:
    text = "def train(engine, loader):\n    for batch in loader:\n        engine.backward(engine(batch))\n"
    (loop,) = check_text("import torch\n" + text, "train.py", EVERYTHING).loops
    assert loop.state == "not-understood"
    assert loop.reason


def test_right_loops_are_reported_as_looked_at() -> None:
    (loop,) = check_text(LOOP.format(division=" / args.accum", k="args.accum"), "train.py", EVERYTHING).loops
    assert loop.state == "accumulates"
    updates = loop.contributions[0][1]
    assert updates[0] == (1.0, 1.0, 1.0, 1.0)


NAMES = st.sampled_from(["loss", "opt", "model", "loader", "i", "args", "x", "print", "range", "k"])
EXPRESSIONS = st.recursive(
    NAMES | st.integers(-3, 9).map("({})".format),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "/", "%", "*", "//", "=="]), inner).map(" ".join).map("({})".format),
        st.tuples(inner, st.sampled_from(["backward", "step", "zero_grad", "item", "grad", "mean"])).map(".".join),
        st.tuples(inner, inner).map(lambda pair: f"{pair[0]}({pair[1]})"),
        st.tuples(inner, inner).map(lambda pair: f"{pair[0]}[{pair[1]}]"),
        inner.map("[{}]".format),
    ),
    max_leaves=6,
)


def indented(lines: list[str]) -> str:
    return "\n".join("    " + line for block in lines for line in block.split("\n"))


STATEMENTS = st.recursive(
    st.one_of(
        EXPRESSIONS,
        st.tuples(NAMES, st.sampled_from(["=", "+=", "/="]), EXPRESSIONS).map(" ".join),
        st.sampled_from(["pass", "loss.backward()", "opt.step()", "opt.zero_grad()", "del x", "import torch as k"]),
    ),
    lambda inner: st.one_of(
        st.tuples(NAMES, EXPRESSIONS, st.lists(inner, min_size=1, max_size=3)).map(
            lambda parts: f"for {parts[0]} in {parts[1]}:\n{indented(parts[2])}"
        ),
        st.tuples(EXPRESSIONS, st.lists(inner, min_size=1, max_size=3)).map(
            lambda parts: f"while {parts[0]}:\n{indented(parts[1])}\n    break"
        ),
        st.tuples(EXPRESSIONS, st.lists(inner, min_size=1, max_size=3)).map(
            lambda parts: f"if {parts[0]}:\n{indented(parts[1])}"
        ),
        st.tuples(NAMES, st.lists(inner, min_size=1, max_size=3)).map(
            lambda parts: f"def {parts[0]}(x, *args):\n{indented(parts[1])}"
        ),
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(STATEMENTS, min_size=1, max_size=6))
def test_no_script_breaks_the_run(statements: list[str]) -> None:
    text = "import torch\n" + "\n".join(statements) + "\nloss.backward()\nopt.step()\n"
    assert analyze(lift(text)).paths
