"""Loops that other packages shape: what is not in the file is judged by its name and use, or not at all."""

from __future__ import annotations

import dataclasses

from acclint.findings import Confidence, Severity
from acclint.lint import check_text
from acclint.settings import Settings

EVERYTHING = dataclasses.replace(Settings(), min_severity=Severity.WARNING, min_confidence=Confidence.MEDIUM)

ACCELERATE = """\
import math
import torch
from accelerate import Accelerator
from transformers import get_linear_schedule_with_warmup
from torch.utils.data import DataLoader

def train(model, dataset, args):
    accelerator = Accelerator()
    loader = DataLoader(dataset, batch_size=16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = get_linear_schedule_with_warmup(optimizer, 100, {length})
    {left} = accelerator.prepare(model, optimizer, loader, scheduler)
    done = 0
    for epoch in range(args.epochs):
        for batch in loader:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                optimizer.step()
                if not accelerator.optimizer_step_was_skipped:
                    scheduler.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                done += 1
            if done >= args.max_steps:
                return
"""
ALL = "model, optimizer, loader, scheduler"
WHOLE = "len(loader) * args.epochs"


def codes(text: str) -> set[str]:
    return {finding.code for finding in check_text(text, "train.py", EVERYTHING).findings}


def test_the_steps_of_an_accelerator_are_k_wherever_they_are_read() -> None:
    divided = f"math.ceil({WHOLE} / accelerator.gradient_accumulation_steps)"
    assert codes(ACCELERATE.format(length=WHOLE, left=ALL)) == {"ACC004"}
    assert codes(ACCELERATE.format(length=divided, left=ALL)) == set()


def test_a_scheduler_whose_prepared_one_is_thrown_away_steps_on_every_micro_batch() -> None:
    limit = "args.max_steps * accelerator.num_processes"
    assert codes(ACCELERATE.format(length=limit, left=ALL)) == set()
    assert codes(ACCELERATE.format(length=limit, left="model, optimizer, loader, _")) == {"ACC004"}


LOOP = """\
import torch
from somewhere import model, loader, tokens, fields

def train(model, loader, optimizer, args):
    for i, batch in enumerate(loader):
        {mask}
        loss = model(batch["ids"], {given}).loss
        loss.backward()
        if (i + 1) % args.accumulation_steps == 0:
            optimizer.step()
            model.zero_grad()
"""


def test_a_loss_that_the_model_divides_by_the_items_of_a_window_is_no_mean() -> None:
    assert codes(LOOP.format(mask="", given="labels=batch['y']")) == {"ACC001"}
    assert codes(LOOP.format(mask="", given="labels=batch['y'], num_items_in_batch=args.items")) == set()


def test_a_function_that_is_given_data_need_not_be_a_model() -> None:
    given = "labels=batch['y'], mask=mask, where=where"
    mask = "mask = tokens.get_mask(batch['ids']); where = fields.positions(batch['ids'])"
    assert codes(LOOP.format(mask=mask, given=given)) == {"ACC001"}
    assert (
        codes(LOOP.format(mask=mask, given=given).replace("loss.backward", "(loss / args.accumulation_steps).backward"))
        == set()
    )
