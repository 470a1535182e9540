"""Gradients that a loop takes into its own hands: copied away, or carried to another copy of the parameters."""

from __future__ import annotations

import dataclasses

import pytest

from acclint.findings import Confidence, Severity
from acclint.lint import check_text
from acclint.settings import Settings

SHOWN = dataclasses.replace(Settings(), min_severity=Severity.WARNING, min_confidence=Confidence.MEDIUM)

SEVERAL_LOSSES = """\
import numpy as np
import torch


class Trainer:
    def __init__(self, model, losses, loader, direction):
        self.model = model
        self.losses = losses
        self.loader = loader
        self.direction = direction
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)

    def gradient(self):
        return np.concatenate([p.grad.{taken} for p in self.model.parameters()])

    def train(self):
        for x, y in self.loader:
            gradients = []
            for i, loss in enumerate(self.losses):
                value = loss.compute(y, self.model(x))
                self.optimizer.zero_grad()
                value.backward()
                gradients.append(self.gradient())
            out = self.model(x)
            computed = []
            for i, loss in enumerate(self.losses):
                computed.append(loss.compute(y, out))
            final, weights = self.direction.combine(computed, gradients)
            self.optimizer.zero_grad()
            final.backward()
            self.optimizer.step()
"""


# swisscom/ai-research-mamo-framework, trainer.py: each loss's gradient is copied, then it makes way for the next one.
@pytest.mark.parametrize(
    ("taken", "expected"),
    [("cpu().detach().numpy().ravel()", set()), ("clone()", set()), ("norm().item()", {"ACC002"})],
)
def test_gradients_that_were_copied_are_not_lost(taken: str, expected: set[str]) -> None:
    findings = check_text(SEVERAL_LOSSES.format(taken=taken), "trainer.py", SHOWN).findings
    assert {finding.code for finding in findings} == expected


IN_ONE_PIECE = """\
import torch
from torch import nn
from torch._utils import _flatten_dense_tensors


def zero_grad(params):
    for p in params:
        if p.grad is not None:
            p.grad.detach_()
            p.grad.zero_()


def train(model, loader, k):
    params = [p for p in model.parameters() if p.requires_grad]
    flat = nn.Parameter(_flatten_dense_tensors([p.detach().float() for p in params]))
    optimizer = torch.optim.SGD([flat], lr=0.1)
    for i, (x, y) in enumerate(loader):
        loss = nn.functional.mse_loss(model(x), y) / {by}
        loss.backward()
        if (i + 1) % k == 0:
            flat.grad = _flatten_dense_tensors([p.grad.data.detach().float() for p in params])
            optimizer.step()
            {zero}
"""


# stevenGetsby/XGRAVER, graver/trainers/basic.py: the optimizer holds a full-precision copy of the model's parameters.
@pytest.mark.parametrize(
    ("by", "zero", "expected"),
    [
        ("k", "zero_grad(params)", set()),
        ("k", "model.zero_grad()", set()),
        ("1", "zero_grad(params)", {"ACC001"}),
        ("k", "optimizer.zero_grad(); print(i)", set()),
        ("k", "pass", {"ACC015"}),
    ],
)
def test_a_copy_of_the_parameters_is_updated_in_their_place(by: str, zero: str, expected: set[str]) -> None:
    findings = check_text(IN_ONE_PIECE.format(by=by, zero=zero), "train.py", SHOWN).findings
    assert {finding.code for finding in findings} == expected


ADVERSARIAL = """\
import torch
from helpers import requires_grad, losses


def train(maker, critic, loader):
    opt_m = torch.optim.Adam(maker.parameters(), lr=2e-4)
    opt_c = torch.optim.Adam(critic.parameters(), lr=2e-4)
    for real in loader:
        fake = maker(torch.randn(len(real), 8))
        loss_c = torch.mean((1 - critic(real)) ** 2) + torch.mean(critic(fake.detach()) ** 2)
        loss_c.backward()
        opt_c.step()
        opt_c.zero_grad()
        {off}
        loss_m = {loss}
        loss_m.backward({given})
        opt_m.step()
        opt_m.zero_grad()
        {on}
"""
FOOLED = "torch.mean((1 - critic(fake)) ** 2)"


@pytest.mark.parametrize(
    ("off", "loss", "given", "on", "expected"),
    [
        ("pass", FOOLED, "", "pass", {"ACC015"}),
        ("requires_grad(critic, False)", FOOLED, "", "requires_grad(critic, True)", set()),
        ("critic.freeze()", FOOLED, "", "critic.unfreeze()", set()),
        ("[p.requires_grad_(False) for p in critic.parameters()]", FOOLED, "", "pass", set()),
        ("pass", FOOLED, "inputs=list(maker.parameters())", "pass", set()),
        ("pass", "losses(maker, critic, fake)", "", "pass", set()),
        ("pass", FOOLED, "", "opt_c.zero_grad()", set()),
    ],
)
def test_a_critic_that_takes_no_gradients_keeps_none(
    off: str, loss: str, given: str, on: str, expected: set[str]
) -> None:
    text = ADVERSARIAL.format(off=off, loss=loss, given=given, on=on)
    assert {finding.code for finding in check_text(text, "train.py", SHOWN).findings} == expected


SLOW_TRUNK = """\
import torch
import torch.nn.functional as F


def train(trunk, head, rebuilt, loader):
    opt_t = torch.optim.SGD(trunk.parameters(), lr=0.1)
    opt_h = torch.optim.SGD(head.parameters(), lr=0.1)
    for i, (x, y) in enumerate(loader):
        features = trunk(x)
        (F.cross_entropy(head(features), y) / 2).backward()
        opt_h.step()
        opt_h.zero_grad()
        if (i + 1) % 2 == 0:
            F.mse_loss(rebuilt(trunk(x)), x).backward()
            opt_t.step()
            opt_t.zero_grad()
"""


def test_a_trunk_that_is_updated_more_slowly_than_its_head_has_both_losses() -> None:
    assert "ACC015" not in {finding.code for finding in check_text(SLOW_TRUNK, "train.py", SHOWN).findings}


@pytest.mark.parametrize("taken", ["view(-1)", "flatten()"])
def test_a_view_of_a_gradient_takes_nothing_away(taken: str) -> None:
    findings = check_text(SEVERAL_LOSSES.format(taken=f"{taken}.norm().item()"), "trainer.py", SHOWN).findings
    assert {finding.code for finding in findings} == {"ACC002"}
