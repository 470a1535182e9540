"""Ways to divide, to zero and to test for a window, crossed with what is known of the loss and the optimizer.

Each cell is right as it stands, however it is spelled: a report on one is false. Where a part is taken away, the
mistake is to be found.
"""

from __future__ import annotations

import dataclasses
import textwrap

import pytest

from acclint.findings import Confidence, Severity
from acclint.lint import check_text
from acclint.settings import Settings

SHOWN = dataclasses.replace(Settings(), min_severity=Severity.WARNING, min_confidence=Confidence.MEDIUM)
EVERY = dataclasses.replace(SHOWN, min_confidence=Confidence.LOW)


def codes(text: str, settings: Settings = SHOWN) -> set[str]:
    return {one.code for one in check_text(text, "train.py", settings).findings}


def indented(text: str, depth: int) -> str:
    return textwrap.indent(text, "    " * depth)


LOSSES = [
    "F.mse_loss(model(x), y)",
    "-model.log_prob(x).mean()",
    "crit(model(x), y)",
    "self.criterion(self.model(x), y)",
    "crit(model(x), y) + 0.1 * penalty(model)",
    "crit(model(x))['total_loss']",
    "sum(crit(model(x), y).values())",
    "model(x, labels=y).loss",
    "model(x, labels=y)[0]",
    "model(x, y)",
    "compute_loss(model, x, y)",
    "self.compute_loss(x, y)",
    "elbo(model, x)",
    "step(model, x, y)['losses']['all']",
]
DIVISIONS = [
    "loss = loss / k",
    "loss /= k",
    "loss = loss.div(k)",
    "loss.div_(k)",
    "loss = loss.true_divide(k)",
    "loss = loss.multiply(1 / k)",
    "loss *= 1 / k",
    "loss.mul_(1 / k)",
    "loss = torch.div(loss, k)",
    "loss = loss.mean().div(k)",
    "loss = loss if k == 1 else loss.div(k)",
    "if k > 1: loss.div_(k)",
    "loss = loss / torch.tensor(float(k))",
    "loss = {'all': loss / k}['all']",
    "loss = (lambda value: value / k)(loss)",
]
DIVIDED = """\
import torch
import torch.nn.functional as F
from helpers import compute_loss, elbo, penalty, step

def train(self, model, crit, optimizer, loader, k):
    for i, (x, y) in enumerate(loader):
        loss = {loss}
        {division}
        loss.backward()
        if (i + 1) % k == 0:
            optimizer.step()
            optimizer.zero_grad()
"""


@pytest.mark.parametrize("loss", LOSSES)
def test_a_division_of_whatever_loss(loss: str) -> None:
    found = {one: codes(DIVIDED.format(loss=loss, division=one), EVERY) for one in DIVISIONS}
    assert {one: what for one, what in found.items() if what} == {}
    assert codes(DIVIDED.format(loss=loss, division="pass"), EVERY) == {"ACC001"}


OPTIMIZERS = [
    "torch.optim.SGD(model.parameters(), lr=0.1)",
    "torch.optim.AdamW([{'params': model.body.parameters()}, {'params': model.head.parameters(), 'lr': 1}])",
    "torch.optim.Adam(filter(lambda p: p.requires_grad, model.parameters()))",
    "getattr(torch.optim, cfg.name)(model.parameters(), lr=1)",
    "make_optimizer(model)",
    "Noam(512, torch.optim.Adam(model.parameters()))",
    "optimizer",
    "self.optimizer",
]
ZEROINGS = [
    "opt.zero_grad()",
    "opt.zero_grad(set_to_none=True)",
    "model.zero_grad()",
    "model.module.zero_grad()",
    "self.zero_grad()",
    "getattr(opt, 'zero_grad')()",
    "clear = opt.zero_grad; clear()",
    "model.body.zero_grad(); model.head.zero_grad()",
    "for part in (model.body, model.head): part.zero_grad()",
    "for p in model.parameters(): p.grad = None",
    "for p in parameters: p.grad = None",
    "for p in held: p.grad = None",
    "for p in model.parameters(): p.grad.zero_()",
    "for p in model.parameters(): p.grad.data.zero_()",
    "for p in model.parameters(): p.grad.fill_(0)",
    "for p in model.parameters(): p.grad.mul_(0)",
    "for p in model.parameters(): p.grad *= 0",
    "for p in model.parameters(): p.grad[:] = 0",
    "for p in model.parameters(): p.grad = torch.zeros_like(p)",
    "for p in model.parameters(): p.grad.data = torch.zeros_like(p.grad)",
    "for p in model.parameters(): setattr(p, 'grad', None)",
    "[p.grad.zero_() for p in model.parameters() if p.grad is not None]",
    "torch._foreach_zero_([p.grad for p in model.parameters()])",
    "zero_gradients(model)",
    "set_grad(parameters, None)",
    "del_grads(model)",
    "reset(opt, model)",
    "Helper.clear(opt)",
]
ZEROED = """\
import torch
import torch.nn.functional as F
from helpers import Helper, Noam, del_grads, make_optimizer, reset, set_grad, zero_gradients

def train(self, cfg, model, optimizer, loader, k):
    opt = {optimizer}
    parameters = list(model.parameters())
    held = [p for group in opt.param_groups for p in group["params"]]
    for i, (x, y) in enumerate(loader):
        if i % k == 0:
            {before}
        (F.mse_loss(model(x), y) / k).backward()
        if (i + 1) % k == 0:
            opt.step()
            {behind}
"""


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_zeroing_of_whatever_optimizer(optimizer: str) -> None:
    found = {}
    for one in ZEROINGS:
        found[one, "before"] = codes(ZEROED.format(optimizer=optimizer, before=one, behind="pass"))
        found[one, "behind"] = codes(ZEROED.format(optimizer=optimizer, before="pass", behind=one))
    assert {one: what for one, what in found.items() if what} == {}
    never = codes(ZEROED.format(optimizer=optimizer, before="pass", behind="pass"), EVERY)
    assert never == (set() if optimizer.startswith("Noam") else {"ACC015"})  # What wraps an optimizer may zero.


# Before the loop, its header, before the test, the test, behind the update.
WINDOWS = {
    "i + 1": ("pass", "for i, (x, y) in enumerate(loader):", "pass", "(i + 1) % k == 0", "pass"),
    "k - 1": ("pass", "for i, (x, y) in enumerate(loader):", "pass", "i % k == k - 1", "pass"),
    "not": ("pass", "for i, (x, y) in enumerate(loader):", "pass", "not (i + 1) % k", "pass"),
    "less": ("pass", "for i, (x, y) in enumerate(loader):", "pass", "(i + 1) % max(1, k) < 1", "pass"),
    "last": (
        "n = len(loader)",
        "for i, (x, y) in enumerate(loader):",
        "pass",
        "(i + 1) % k == 0 or i + 1 == n",
        "pass",
    ),
    "from 1": ("pass", "for i, (x, y) in enumerate(loader, 1):", "pass", "i % k == 0", "pass"),
    "counted": ("c = 0", "for x, y in loader:", "c += 1", "c % k == 0", "pass"),
    "reset": ("c = 0", "for x, y in loader:", "c += 1", "c >= k", "c = 0"),
    "around": ("c = 0", "for x, y in loader:", "c = (c + 1) % k", "c == 0", "pass"),
    "down": ("c = k", "for x, y in loader:", "c -= 1", "c == 0", "c = k"),
    "since": ("last = -1", "for i, (x, y) in enumerate(loader):", "pass", "i - last >= k", "last = i"),
    "list": ("c = []", "for x, y in loader:", "c.append(i)", "len(c) == k", "c = []"),
    "count": ("c = itertools.count(1)", "for x, y in loader:", "pass", "next(c) % k == 0", "pass"),
    "cycle": ("c = itertools.cycle([False] * (k - 1) + [True])", "for x, y in loader:", "pass", "next(c)", "pass"),
    "flag": ("pass", "for i, (x, y) in enumerate(loader):", "waits = (i + 1) % k != 0", "not waits", "pass"),
    "divmod": ("pass", "for i, (x, y) in enumerate(loader):", "_, r = divmod(i + 1, k)", "r == 0", "pass"),
    "fmod": ("pass", "for i, (x, y) in enumerate(loader):", "pass", "math.fmod(i + 1, k) == 0", "pass"),
    "numpy": ("pass", "for i, (x, y) in enumerate(loader):", "pass", "np.mod(i + 1, k) == 0", "pass"),
    "quotient": ("pass", "for i, (x, y) in enumerate(loader):", "pass", "(i + 1) // k > i // k", "pass"),
    "function": ("due = lambda i: (i + 1) % k == 0", "for i, (x, y) in enumerate(loader):", "pass", "due(i)", "pass"),
    "while": ("c, it = 0, iter(loader)", "while c < 1000:", "x, y = next(it); c += 1", "c % k == 0", "pass"),
    "samples": ("c = 0", "for x, y in loader:", "c += len(x)", "c >= k * loader.batch_size", "c = 0"),
    "sizes": ("c = 0", "for x, y in loader:", "c += x.shape[0]", "c >= k * batch_size", "c = 0"),
}
WINDOWED = """\
import itertools, math
import numpy as np
import torch.nn.functional as F

def train(model, optimizer, loader, accumulation_steps, batch_size, i=0):
    k = accumulation_steps
    {start}
    {header}
        {first}
        {before}
        (F.mse_loss(model(x), y){division}).backward()
        if {test}:
            optimizer.step()
            {zero}
            {end}
"""


@pytest.mark.parametrize("window", WINDOWS)
def test_a_window_test_of_whatever_form(window: str) -> None:
    start, header, before, test, end = WINDOWS[window]
    cells = {
        (" / k", "optimizer.zero_grad()", "pass"): set(),
        ("", "optimizer.zero_grad()", "pass"): {"ACC001"},
        (" / k", "pass", "optimizer.zero_grad()"): {"ACC002"},
        (" / k", "pass", "pass"): {"ACC015"},
    }
    found = {}
    for division, zero, first in cells:
        parts = {"start": start, "header": header, "before": before, "test": test, "end": end}
        found[division, zero, first] = codes(WINDOWED.format(**parts, division=division, zero=zero, first=first))
    assert found == cells


SIZES = ["len(x)", "x.size(0)", "x.shape[0]", "y.numel()", "(y != 0).sum().item()"]
LIMITS = ["k * batch_size", "virtual_batch_size", "self.cfg.effective_batch", "64", "tokens_per_update", "nbs"]


@pytest.mark.parametrize("size", SIZES)
def test_samples_and_tokens_that_are_counted(size: str) -> None:
    """Whatever is counted, and up to what: nobody knows how many micro-batches that is, so that nothing is wrong."""
    text = """\
import torch.nn.functional as F

def train(self, model, optimizer, loader, k, batch_size, virtual_batch_size, tokens_per_update, nbs):
    seen = 0
    for x, y in loader:
        seen += {size}
        (F.mse_loss(model(x), y) / k).backward()
        if seen {operator} {limit}:
            optimizer.step()
            optimizer.zero_grad()
            seen = 0
"""
    cells = [(operator, limit) for operator in (">=", "==", ">") for limit in LIMITS]
    found = {cell: codes(text.format(size=size, operator=cell[0], limit=cell[1])) for cell in cells}
    assert {cell: what for cell, what in found.items() if what} == {}
