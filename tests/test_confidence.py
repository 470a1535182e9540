"""What a report takes for granted lowers its confidence: the less is known, the quieter it is."""

from __future__ import annotations

import dataclasses
import textwrap

import pytest

from acclint.findings import Confidence, Severity
from acclint.lint import check_text
from acclint.settings import Settings

EVERY = dataclasses.replace(Settings(), min_severity=Severity.WARNING, min_confidence=Confidence.LOW)
KNOWN = "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)"
HEAD = """\
import torch
import torch.nn.functional as F
from torch import nn
from elsewhere import make_optimizer
model = nn.Linear(4, 1)
"""


def levels(text: str, optimizer: str = KNOWN) -> dict[str, Confidence]:
    found = check_text(f"{HEAD}{optimizer}\n{textwrap.dedent(text)}", "train.py", EVERY).findings
    return {one.code: one.confidence for one in found}


@pytest.mark.parametrize(
    ("optimizer", "elsewhere", "level"),
    [
        (KNOWN, "pass", Confidence.HIGH),
        ("optimizer = make_optimizer(model)", "pass", Confidence.MEDIUM),
        ("optimizer = make_optimizer(model)", "clear()", Confidence.LOW),
    ],
)
def test_that_nothing_zeroes_is_less_sure_of_an_unknown_optimizer(
    optimizer: str, elsewhere: str, level: Confidence
) -> None:
    """The less so where something in the loop zeroes, though the run does not come to it."""
    text = f"""
        def clear():
            model.zero_grad()

        NOAM = False

        def train(loader):
            for x, y in loader:
                F.mse_loss(model(x), y).backward()
                optimizer.step()
                if NOAM:
                    {elsewhere}
    """
    assert levels(text, optimizer) == {"ACC015": level}


# IDEA-Research/DINO, engine.py: one way of computing zeroes, the other does not.
@pytest.mark.parametrize(("test", "level"), [("args.amp", Confidence.MEDIUM), ("args.kind", Confidence.LOW)])
def test_zeroed_in_another_way_of_computing(test: str, level: Confidence) -> None:
    text = f"""
        def train(args, model, optimizer, scaler, loader):
            for x, y in loader:
                loss = F.mse_loss(model(x), y)
                if {test}:
                    optimizer.zero_grad()
                    scaler.scale(loss).backward()
                    scaler.step(optimizer)
                    scaler.update()
                else:
                    loss.backward()
                    optimizer.step()
    """
    assert levels(text) == {"ACC015": level}


@pytest.mark.parametrize(
    ("header", "level"),
    [
        ("for x, y in pairs:", Confidence.LOW),  # layers of one batch, pairs of a puzzle, tasks ...
        ("for x, y in zip(xs.split(4), ys.split(4)):", Confidence.MEDIUM),
    ],
)
def test_a_list_of_something_is_less_sure_than_parts_of_a_batch(header: str, level: Confidence) -> None:
    text = f"""
        def train(loader):
            for xs, ys, pairs in loader:
                optimizer.zero_grad()
                {header}
                    F.mse_loss(model(x), y).backward()
                optimizer.step()
    """
    assert levels(text) == {"ACC001": level}


BY_HAND = "for p in model.parameters():\n            p.grad = None"


@pytest.mark.parametrize(
    ("optimizer", "zeroing", "level"),
    [
        (KNOWN, "optimizer.zero_grad()", Confidence.HIGH),
        (KNOWN, BY_HAND, Confidence.HIGH),
        ("optimizer = make_optimizer(model)", "optimizer.zero_grad()", Confidence.MEDIUM),
        ("optimizer = make_optimizer(model)", BY_HAND, Confidence.LOW),  # perhaps it holds more than these
    ],
)
def test_gradients_dropped_one_by_one_before_the_update_may_be_meant_so(
    optimizer: str, zeroing: str, level: Confidence
) -> None:
    text = f"""
def train(loader):
    for x, y in loader:
        F.mse_loss(model(x), y).backward()
        {zeroing}
        optimizer.step()
"""
    assert levels(text, optimizer) == {"ACC002": level}


def test_a_metric_beside_the_loss_may_have_no_graph() -> None:
    text = """
        def train(loader, metrics):
            total = 0
            for x, y in loader:
                optimizer.zero_grad()
                out = model(x)
                F.mse_loss(out, y).backward()
                optimizer.step()
                total += metrics.criterion(out, y)
    """
    assert levels(text) == {"ACC005": Confidence.LOW}
