"""Who counts the micro-batches of a window, and what else its test or its loop may ask for."""

from __future__ import annotations

import dataclasses

import pytest

from acclint.findings import Confidence, Severity
from acclint.lint import check_text
from acclint.settings import Settings

SHOWN = dataclasses.replace(Settings(), min_severity=Severity.WARNING, min_confidence=Confidence.MEDIUM)


def codes(text: str, settings: Settings = SHOWN) -> set[str]:
    return {one.code for one in check_text(text, "train.py", settings).findings}


# The object that is called does not count; the spellings of its tests are in phase all the same.
CALLED = """\
import torch
from torch import nn

class Model:
    def __init__(self, net, k):
        self.net, self.k = net, k
        self.opt = torch.optim.Adam(net.parameters())
        self.it = 0

    def before(self):
        self.it += 1

    def learn(self, x, y):
        {zero}
        {loss}.backward()
        {step}
"""
ENDS = [
    "self.it % self.k == 0",
    "not self.it % self.k",
    "self.it > 0 and self.it % self.k == 0",
]
SHIFTED = [
    ("if self.it % self.k == 0: self.opt.zero_grad()", "if self.it % self.k == self.k - 1: self.opt.step()"),
    ("if self.it % self.k == 1: self.opt.zero_grad()", "if self.it % self.k == 0: self.opt.step()"),
    ("if (self.it + self.k - 1) % self.k == 0: self.opt.zero_grad()", "if not self.it % self.k: self.opt.step()"),
    (
        "first = self.it % self.k == 0\n        if first: self.opt.zero_grad()",
        "if self.it % self.k + 1 == self.k: self.opt.step()",
    ),
]


def called(zero: str, step: str, loss: str = "(nn.functional.mse_loss(self.net(x), y) / self.k)") -> str:
    return CALLED.replace("{zero}", zero).replace("{step}", step).replace("{loss}", loss)


@pytest.mark.parametrize("end", ENDS)
def test_the_end_of_a_window_that_others_count(end: str) -> None:
    step = f"if {end}:\n            self.opt.step()\n            self.opt.zero_grad()"
    assert codes(called("pass", step)) == set()
    assert codes(called("self.opt.zero_grad()", step)) == {"ACC002"}


@pytest.mark.parametrize(("zero", "step"), SHIFTED)
def test_the_begin_and_the_end_of_a_window_that_others_count(zero: str, step: str) -> None:
    assert codes(called(zero, step)) == set()


# The counter of a base class, of a callback, of the class itself.
@pytest.mark.parametrize(
    ("head", "raised"),
    [
        ("class Model(Base):", "class Base:\n    def before(self):\n        self.it += 1\n\n"),
        ("class Model:", "class Callback:\n    def on_batch(self, model):\n        model.it += 1\n\n"),
        ("class Model(Elsewhere):", "from base import Elsewhere\n\n"),
    ],
)
def test_whoever_counts(head: str, raised: str) -> None:
    text = called("pass", "if self.it % self.k == 0:\n            self.opt.step()\n            self.opt.zero_grad()")
    text = text.replace("    def before(self):\n        self.it += 1\n\n", "")
    assert codes(text.replace("class Model:", raised + head)) == set()


# A flag that has been asked for before the window test is still what it was there.
@pytest.mark.parametrize(
    ("before", "test", "expected"),
    [
        (
            "if args.online: loss.backward()\n        else: (loss / accum_steps).backward()",
            "args.online or n == accum_steps",
            set(),
        ),
        (
            "if args.online: loss.backward()\n        else: (loss / accum_steps).backward()",
            "args.online or n % accum_steps == 0",
            set(),
        ),
        ("loss.backward()", "n == accum_steps or batch['last']", {"ACC001"}),
        ("loss.backward()", "accum_steps == 1 or n == accum_steps", {"ACC001"}),
    ],
)
def test_a_flag_beside_the_window_test(before: str, test: str, expected: set[str]) -> None:
    text = f"""\
import torch
from torch import nn

def train(args, model, loader, accum_steps=4):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    n = 0
    for batch in loader:
        loss = nn.functional.mse_loss(model(batch["x"]), batch["y"])
        {before}
        n += 1
        if {test}:
            opt.step()
            opt.zero_grad()
            n = 0
"""
    assert codes(text) == expected


# Losses of single micro-batches, summed and divided by the samples of all of them.
@pytest.mark.parametrize("until", ["while not full:", "while True:", "while total < args.samples:"])
def test_samples_counted_over_a_window(until: str) -> None:
    text = f"""\
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

def main(args, model, data):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    it = iter(DataLoader(data, batch_size=4))
    for step in range(args.max_steps):
        group, total, full = [], 0, False
        {until}
            x, y = next(it)
            group.append((x, y))
            total += len(x)
            if total >= args.samples:
                full = True
                {"break" if until == "while True:" else ""}
        opt.zero_grad()
        for x, y in group:
            (F.cross_entropy(model(x), y, reduction="sum") / total).backward()
        opt.step()
"""
    assert codes(text) == set()


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        ("if has_nan(model):\n            opt.zero_grad()\n            n = 0", set()),
        ("loss = crit(model(x), y) if mask.any() else 0", set()),
    ],
)
def test_a_window_that_is_given_up(inside: str, expected: set[str]) -> None:
    text = f"""\
import torch
from checks import has_nan

def train(model, loader, crit, mask, k):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    n = 0
    for x, y in loader:
        (crit(model(x), y) / k).backward()
        n += 1
        {inside}
        if n == k:
            opt.step()
            opt.zero_grad()
            n = 0
"""
    assert codes(text) == expected


# A block that updates and sets the flag of the loop is gone into.
def test_a_flag_that_is_set_with_the_update() -> None:
    text = """\
import torch

def train(model, loader, crit):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(9):
        it, updated = iter(loader), False
        while not updated:
            batch = next(it)
            (crit(model(batch["x"]), batch["y"]) / 4).backward()
            if batch["last_of_window"]:
                opt.step()
                updated = True
"""
    assert codes(text) == {"ACC015"}


# A bounded list, however it is bounded.
@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ("queue = queue + [loss]\n        if len(queue) > 5: queue.pop(0)", set()),
        ("queue = queue + [loss]\n        if len(queue) > 5: del queue[0]", set()),
        ("queue.append(loss)\n        if len(queue) > 5: del queue[0]", set()),
        ("queue = [loss] + queue\n        del queue[5:]", set()),
        ("queue = queue + [loss]", {"ACC005"}),
    ],
)
def test_a_list_that_is_bounded(kept: str, expected: set[str]) -> None:
    text = f"""\
import torch
from torch import nn

def train(model, loader):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    queue = []
    for x, y in loader:
        loss = nn.functional.mse_loss(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        {kept}
    return queue
"""
    assert codes(text) == expected
