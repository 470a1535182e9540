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


def test_an_unknown_module_is_zeroed_whatever_it_was_made_with() -> None:
    text = """\
import torch
from torch import nn
from models import Judge
from losses import calc_gradient_penalty

def train(loader, opt, args):
    judge = Judge(args, act=nn.LeakyReLU(0.2)).to(args.device)
    optimizer = torch.optim.Adam(judge.parameters(), lr=args.lr)
    for x, made in loader:
        judge.zero_grad()
        loss = judge(made).mean() - judge(x).mean() + calc_gradient_penalty(judge, x, made, args.weight, args.device)
        loss.backward()
        optimizer.step()
"""
    assert codes(text) == set()
    assert codes(text.replace("        judge.zero_grad()\n", "")) == {"ACC015"}


def test_a_generator_without_its_discriminator_is_a_part_of_the_model() -> None:
    text = """\
import torch

class Trainer:
    def __init__(self, vae, loader, every):
        self.vae, self.loader, self.every = vae, loader, every
        rest = set(vae.parameters()) - set(vae.discr.parameters())
        self.optim = torch.optim.Adam(rest)
        self.discr_optim = torch.optim.Adam(vae.discr.parameters())

    def train_step(self):
        for _ in range(self.every):
            loss = self.vae(next(self.loader), return_loss=True)
            (loss / self.every).backward()
        self.optim.step()
        self.optim.zero_grad()
        self.discr_optim.zero_grad()
        for _ in range(self.every):
            loss = self.vae(next(self.loader), return_discr_loss=True)
            (loss / self.every).backward()
        self.discr_optim.step()
"""
    assert codes(text) == set()
    method = text.replace(
        "rest = set(vae.parameters()) - set(vae.discr.parameters())", "rest = vae.non_discr_parameters()"
    )
    assert codes(method) == set()


WINDOW = """\
import numpy as np
import torch

def train(model, loader, tasks, args):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    accumulate = max(round(64 / args.batch_size), 1)
    for epoch in range(args.epochs):
        for i, (x, y) in enumerate(loader):
            {before}
            loss = torch.nn.functional.mse_loss(model(x), y) / accumulate
            loss.backward()
            if i % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
"""


def test_a_k_that_warms_up_may_be_shorter_at_first() -> None:
    warm = "accumulate = max(1, np.interp(i, [0, 1000], [1, 64 / args.batch_size]).round())"
    assert codes(WINDOW.format(before="pass")) == {"ACC006"}
    assert codes(WINDOW.format(before=warm)) == set()


def test_a_counter_of_an_outer_loop_takes_more_values_than_are_run() -> None:
    text = """\
import torch

def train(model, loaders, args):
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(args.steps):
        for loader in loaders:
            x, y = next(loader)
            loss = torch.nn.functional.mse_loss(model(x), y) / args.accumulation_steps
            loss.backward()
            if (step + 1) % args.accumulation_steps == 0:
                optimizer.step()
                model.zero_grad()
"""
    assert "ACC006" not in codes(text)


def test_layers_and_scales_of_one_batch_are_no_growing_sum() -> None:
    text = """\
import torch
from nets import features, pyramid

image, made = torch.rand(8, 3, 64, 64), torch.rand(8, 3, 64, 64)
total = 0
for scale in pyramid.scales:
    a, b = features(image * scale), features(made * scale)
    for i, weight in enumerate(pyramid.weights):
        total += weight * torch.abs(a[i] - b[i].detach()).mean()
print(total)
"""
    assert codes(text) == set()


def test_a_constant_rate_does_not_come_to_an_end() -> None:
    text = """\
import torch
from diffusers.optimization import get_scheduler

def train(model, loader, args):
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = get_scheduler(name="linear", optimizer=optimizer, num_training_steps=args.max_steps)
    done = 0
    for i, (x, y) in enumerate(loader):
        (torch.nn.functional.mse_loss(model(x), y) / args.accum).backward()
        scheduler.step()
        if (i + 1) % args.accum == 0:
            optimizer.step()
            optimizer.zero_grad()
            done += 1
        if done >= args.max_steps:
            break
"""
    assert codes(text) == {"ACC004"}
    assert codes(text.replace('"linear"', '"constant"')) == set()


def test_one_growing_sum_is_told_once() -> None:
    text = """\
import torch

def train(model, loader, optimizer):
    for i, (x, y) in enumerate(loader):
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        total = loss if i == 0 else total + loss
        shown = total
        optimizer.step()
        optimizer.zero_grad()
    print(shown)
"""
    found = [one for one in check_text(text, "train.py", EVERYTHING).findings if one.code == "ACC005"]
    assert len(found) == 1


def test_a_window_that_is_left_out_on_purpose_is_no_mistake() -> None:
    text = """\
import torch

def train(model, loader, args):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    usual = 0.0
    for i, (x, y) in enumerate(loader):
        loss = torch.nn.functional.mse_loss(model(x), y) / args.accum
        loss.backward()
        if (i + 1) % args.accum == 0:
            skip = False
            if usual > 0 and loss.item() > usual * args.limit:
                skip = True
                optimizer.zero_grad()
            if not skip:
                optimizer.step()
                optimizer.zero_grad()
            usual = 0.9 * usual + 0.1 * loss.item()
    if len(loader) % args.accum:
        optimizer.step()
        optimizer.zero_grad()
"""
    assert "ACC002" not in codes(text)


def test_what_data_parallel_has_around_is_the_model() -> None:
    text = """\
import torch
from nets import load

def train(args, loader):
    model = load(args)
    optimizer = torch.optim.AdamW([p for n, p in model.named_parameters() if "bias" not in n])
    for i, (x, y) in enumerate(loader):
        model = model.module if hasattr(model, "module") else model
        (model(x, y)[0] / args.accum).backward()
        if (i + 1) % args.accum == 0:
            optimizer.step()
            model.zero_grad()
"""
    assert codes(text) == set()
