"""Where a schedule ends, and in what unit: every way to write one, sized in micro-batches and in updates."""

from __future__ import annotations

import dataclasses

import pytest

from acclint.findings import Confidence, Severity
from acclint.lint import check_text
from acclint.settings import Settings

SHOWN = dataclasses.replace(Settings(), min_severity=Severity.WARNING, min_confidence=Confidence.MEDIUM)

# The scheduler sees the updates only. TOTAL is what its author took for the length of the training.
LOOP = """\
import math
from functools import partial

import numpy as np
import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LambdaLR, _LRScheduler


{define}

def train(model, loader, args):
    optimizer = torch.optim.AdamW(model.parameters())
    total = {total}
    scheduler = {make}
    for epoch in range(args.epochs):
        for i, (x, y) in enumerate(loader):
            loss = torch.nn.functional.mse_loss(model(x), y) / args.k
            loss.backward()
            if (i + 1) % args.k == 0:
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
"""

# GitMonsters/octotetrahedral-agi, finetune_targeted.py, and Thomasche69/SmallLLM, train_moe.py.
NESTED = """\
def cosine(optimizer, warmup_steps, total_steps):
    def factor(step):
        if step < warmup_steps:
            return step / max(1, warmup_steps)
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.1 + 0.45 * (1.0 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)
"""
CALLABLE = """\
class Decay:
    def __init__(self, total):
        self.total = total

    def __call__(self, step):
        return max(0.0, 1 - step / self.total)
"""
PARTIAL = """\
def decay(step, *, total):
    return (1 - step / total) ** 0.9 if step < total else 0.01
"""
OWN_LAMBDA = """\
class Linear(LambdaLR):
    def __init__(self, optimizer, warmup_steps, t_total, last_epoch=-1):
        self.warmup_steps, self.t_total = warmup_steps, t_total
        super(Linear, self).__init__(optimizer, self.factor, last_epoch=last_epoch)

    def factor(self, step):
        if step < self.warmup_steps:
            return float(step) / float(max(1, self.warmup_steps))
        return max(0.0, float(self.t_total - step) / float(max(1.0, self.t_total - self.warmup_steps)))
"""
OWN_RATES = """\
class Cosine(lr_scheduler._LRScheduler):
    def __init__(self, optimizer, warmup, total, last_epoch=-1):
        self.warmup, self.total = warmup, total
        super().__init__(optimizer, last_epoch)

    def get_lr(self):
        if self.last_epoch < self.warmup:
            factor = self.last_epoch / self.warmup
        else:
            factor = 0.5 * (1 + math.cos(math.pi * (self.last_epoch - self.warmup) / (self.total - self.warmup)))
        return [base * factor for base in self.base_lrs]
"""
FORMS = [
    pytest.param(NESTED, "cosine(optimizer, args.warmup_steps, total)", id="closure"),
    pytest.param(CALLABLE, "LambdaLR(optimizer, Decay(total))", id="object"),
    pytest.param(PARTIAL, "LambdaLR(optimizer, partial(decay, total=total))", id="partial"),
    pytest.param(
        OWN_LAMBDA, "Linear(optimizer, warmup_steps=args.warmup_steps, t_total=total)", id="class of LambdaLR"
    ),
    pytest.param(OWN_RATES, "Cosine(optimizer, args.warmup_steps, total)", id="class with get_lr"),
    pytest.param("", "LambdaLR(optimizer, lambda n: (1 - n / total) ** 0.9)", id="no value behind its end"),
    pytest.param("", "LambdaLR(optimizer, lambda n: math.pow(1 - n / total, 0.9))", id="no value in math"),
    pytest.param("", "LambdaLR(optimizer, lambda n: 0.5 * (1 + np.cos(n / total * np.pi)))", id="cosine"),
    pytest.param("", "LambdaLR(optimizer, [lambda n: max(1 - n / total, 0.0)])", id="list"),
]


@pytest.mark.parametrize(("define", "make"), FORMS)
def test_a_schedule_of_micro_batches_is_told_from_one_of_updates(define: str, make: str) -> None:
    def codes(total: str) -> set[str]:
        text = LOOP.format(define=define, make=make, total=total)
        return {finding.code for finding in check_text(text, "train.py", SHOWN).findings}

    assert codes("len(loader) * args.epochs") == {"ACC004"}
    assert codes("len(loader) // args.k * args.epochs") == set()


@pytest.mark.parametrize(
    "factor",
    [
        "lambda n: min(1.0, n / total)",  # a warm-up, which stays at its height
        "lambda n: 0.5 ** (n // total)",  # steps, without an end
        "lambda n: (n + total) ** -0.5",  # falls for ever
        "lambda n: max(0.1, 1 - n / total)",  # at its floor before the end: by design, in one unit or the other
        "lambda n: schedule(n, total)",
    ],
)
def test_a_factor_without_a_known_end_has_no_unit(factor: str) -> None:
    text = LOOP.format(define="", make=f"LambdaLR(optimizer, {factor})", total="len(loader) * args.epochs")
    assert not check_text(text, "train.py", SHOWN).findings


def test_a_scheduler_class_that_steps_by_itself_is_not_taken_for_one_of_torch() -> None:
    own = (
        OWN_LAMBDA + "\n    def step(self, epoch=None):\n        for _ in range(ARGS.k):\n            super().step()\n"
    )
    text = LOOP.format(define=own, make="Linear(optimizer, 0, total)", total="len(loader) * args.epochs")
    assert not check_text(text, "train.py", SHOWN).findings


# A factor that falls by steps, or to a floor that is come to early, says nothing of the length of a training: each of
# these is right as it stands, with its scheduler stepped once per micro-batch.
PER_MICRO_BATCH = LOOP.replace("                scheduler.step()\n", "").replace(
    "            if (i + 1)", "            scheduler.step()\n            if (i + 1)"
)
HALVES = """\
class Epochs(lr_scheduler.CosineAnnealingLR):
    def __init__(self, optimizer, epochs, iters):
        self.iters = iters
        super().__init__(optimizer, T_max=epochs)

    def get_lr(self):
        epoch = self.last_epoch / self.iters
        return [base * (1 + math.cos(math.pi * epoch / self.T_max)) / 2 for base in self.base_lrs]
"""
EXPLICIT = """\
class Warm(lr_scheduler.CosineAnnealingLR):
    def __init__(self, optimizer, warmup, total):
        lr_scheduler.CosineAnnealingLR.__init__(self, optimizer, T_max=total)
        self.warmup = warmup
"""


@pytest.mark.parametrize(
    ("define", "make"),
    [
        ("", "LambdaLR(optimizer, lambda n: 1.0 if n < total // 4 else 0.1)"),
        ("", "LambdaLR(optimizer, lambda n: max(0.25, 1 - n / total))"),
        ("", "LambdaLR(optimizer, lambda n: max(0.5, 1 - 2 * n / total))"),
        (HALVES, "Epochs(optimizer, args.epochs, len(loader))"),
        (EXPLICIT, "Warm(optimizer, len(loader) // args.k * args.epochs, total)"),
    ],
)
def test_a_part_of_a_schedule_is_not_its_end(define: str, make: str) -> None:
    text = PER_MICRO_BATCH.format(define=define, make=make, total="len(loader) * args.epochs")
    assert not check_text(text, "train.py", SHOWN).findings
