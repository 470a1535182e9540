"""Loops that other packages shape: what is not in the file is judged by its name and use, or not at all."""

from __future__ import annotations

import dataclasses

import pytest

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


HELPERS = """\
import torch
from torch import nn
import helpers
from helpers import Base, Net, clear

class Run(Base):
    def __init__(self, loader):
        super().__init__()
        self.loader = loader
        self.model = Net()
        self.opt = torch.optim.Adam(self.model.parameters())

    def train(self):
        for epoch in range(3):
            for x in self.loader:
                ZEROED
                self.model(x).mean().backward()
                self.opt.step()
"""


@pytest.mark.parametrize(
    "zeroed",
    [
        "helpers.reset_grad([self.model])",
        "helpers.zero_gradients(self.model.parameters())",
        "clear(self.opt)",
        "clear([self.model])",
        "self.opt.clear_all()",
        "self.model.clear_all()",
        "self.clear()",
        "self.reset_grad()",
    ],
)
def test_what_another_file_zeroes_by_its_name_is_zeroed(zeroed: str) -> None:
    assert codes(HELPERS.replace("ZEROED", zeroed)) == set()


@pytest.mark.parametrize("other", ["self.memory.clear()", "helpers.reset_states(self.model)", "self.opt.clear_cache"])
def test_what_another_file_clears_besides_is_no_gradient(other: str) -> None:
    assert codes(HELPERS.replace("ZEROED", other)) == {"ACC015"}


def test_an_optimizer_that_takes_the_gradients_over_loses_none() -> None:
    text = """\
from bgd import BGD
from torch import nn

class Learner(nn.Module):
    def __init__(self, passes):
        super().__init__()
        self.net = nn.Linear(8, 1)
        self.passes = passes
        self.optimizer = BGD(self.net.parameters(), passes=passes)

    def observe(self, x, y):
        for _ in range(self.passes):
            self.optimizer.zero_grad()
            (self.net(x) - y).square().mean().backward()
            self.optimizer.aggregate_grads(batch_size=x.shape[0])
        self.optimizer.step()
"""
    assert codes(text) == set()
    assert codes(text.replace("aggregate_grads", "report")) == {"ACC002"}


ITEMS = """\
import torch

class Run:
    def __init__(self, model, criterion, config, loader):
        self.model, self.criterion, self.loader = model, criterion, loader
        self.k = config.accumulation_steps
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def run(self):
        for i, batch in enumerate(self.loader):
            losses = self.criterion(self.model(batch), batch)
            DIVIDED
            loss = TAKEN
            loss.backward()
            if (i + 1) % self.k == 0:
                self.optimizer.step()
                self.optimizer.zero_grad()
"""


@pytest.mark.parametrize("taken", ['losses["loss"]', 'losses.get("loss", 0)', "sum(losses.values())"])
@pytest.mark.parametrize(
    "divided",
    [
        "losses = {name: value / self.k for name, value in losses.items()}",
        "for name, value in losses.items(): losses[name] = value / self.k",
        "for name in losses: losses[name] = losses[name] / self.k",
        "for name in losses.keys(): losses[name] /= self.k",
    ],
)
def test_a_record_of_losses_is_divided_item_by_item(divided: str, taken: str) -> None:
    text = ITEMS.replace("DIVIDED", divided).replace("TAKEN", taken)
    assert codes(text) == set()
    if "sum" not in taken:
        assert codes(text.replace("/ self.k", "+ 0").replace("/= self.k", "+= 0")) == {"ACC001"}


def test_one_of_the_kept_losses_may_be_chosen_for_backward() -> None:
    text = """\
import torch
from torch import nn

class Meta(nn.Module):
    def __init__(self, net, steps):
        super().__init__()
        self.net, self.steps = net, steps
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3)

    def forward(self, x, y, query, wanted):
        kept, last = [], 0
        for k in range(self.steps):
            loss = nn.functional.cross_entropy(self.net(x), y)
            grads = torch.autograd.grad(loss, list(self.net.parameters()), create_graph=True)
            for weight, grad in zip(self.net.parameters(), grads):
                weight.fast = weight - 0.01 * grad
            kept.append(nn.functional.cross_entropy(self.net(query), wanted))
            last = k
        chosen = kept[last]
        chosen.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
"""
    assert "ACC005" not in codes(text)


def test_what_an_optimizer_of_another_call_has_used_is_in_no_window() -> None:
    text = """\
import torch
from torch import autograd

def penalty(critic, real, fake):
    mixed = 0.3 * real + 0.7 * fake
    grads = autograd.grad(outputs=critic(mixed).sum(), inputs=mixed, create_graph=True)[0]
    return ((grads.norm(2, dim=1) - 1) ** 2).mean()

def train(loader, gen, critic, args):
    g_opt = torch.optim.Adam(gen.parameters(), lr=1e-4)
    c_opt = torch.optim.Adam(critic.parameters(), lr=1e-4)
    done = 0
    for epoch in range(args.epochs):
        for i, x in enumerate(loader):
            fake = gen(x)
            d_loss = critic(fake.detach()).mean() - critic(x).mean() + penalty(critic, x, fake)
            c_opt.zero_grad()
            d_loss.backward()
            c_opt.step()
            if done % args.each == 0:
                g_loss = -critic(gen(x)).mean()
                g_opt.zero_grad()
                g_loss.backward()
                g_opt.step()
            done += 1
            if i == 999:
                break
"""
    assert codes(text) == set()


def test_a_counter_that_is_passed_along_runs_on_over_the_epochs() -> None:
    text = """\
class Run:
    def __init__(self, model, optimizer, loader, accum, epochs):
        self.model, self.optimizer, self.loader = model, optimizer, loader
        self.accum, self.epochs = accum, epochs

    def step(self, x, done=1):
        self.model(x).mean().div(self.accum).backward()
        if done % self.accum == 0:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def train(self):
        RESET
        for epoch in range(self.epochs):
            again
            for x in self.loader:
                done += 1
                self.step(x, done=done)
"""
    info = dataclasses.replace(EVERYTHING, min_severity=Severity.INFO)
    on = text.replace("RESET", "done = 0").replace("again", "pass")
    anew = text.replace("RESET", "pass").replace("again", "done = 0")
    assert {one.code for one in check_text(on, "train.py", info).findings} == set()
    assert {one.code for one in check_text(anew, "train.py", info).findings} == {"ACC007"}


def test_a_loop_in_a_class_of_an_imported_base_is_run() -> None:
    text = """\
import torch.nn.functional as F
from base_trainer import Trainer

class Smooth(Trainer):
    def _train_epoch(self, epoch):
        for step, batch in enumerate(self.loader):
            loss = F.cross_entropy(self.model(**batch).logits, batch["labels"]) / self.config["accumulation_steps"]
            loss.backward()
            if step % self.config["accumulation_steps"] == 0 or step == len(self.loader) - 1:
                self.optimizer.step()
                self.optimizer.zero_grad()
"""
    assert codes(text) == {"ACC006"}
    assert codes(text.replace("base_trainer", "transformers")) == set()


def test_losses_with_weights_of_each_item_of_a_setting_are_no_growing_list() -> None:
    text = """\
import torch
from torch import nn

class Quantiles(nn.Module):
    def __init__(self, quantiles):
        super().__init__()
        self.quantiles = quantiles

    def forward(self, guess, wanted):
        losses = []
        for i, q in enumerate(self.quantiles):
            errors = wanted - guess[:, i]
            losses.append(torch.max((q - 1) * errors, q * errors).unsqueeze(1))
        return torch.mean(torch.sum(torch.cat(losses, dim=1), dim=1))

def train(args, model, loader, valid):
    optimizer = torch.optim.Adam(model.parameters())
    criterion = Quantiles(args.quantiles)
    for epoch in range(args.epochs):
        for x, y in loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
        model.eval()
        print(sum(criterion(model(x), y).item() for x, y in valid))
"""
    assert codes(text) == set()


def test_a_range_may_be_longer_than_python_can_count() -> None:
    text = """\
def train(model, loader, optimizer):
    for _ in range(49 ** 24):
        pass
    for x in loader:
        optimizer.zero_grad()
        model(x).mean().backward()
        optimizer.step()
"""
    assert codes(text) == set()


SETTINGS = """\
import torch
BASE

def train(loader, model, criterion, optimizer):
    for step, (x, y) in enumerate(loader):
        loss = criterion(model(x), y)
        loss.backward()
        if step % CFG.gradient_accumulation_steps == 0:
            optimizer.step()
            optimizer.zero_grad()
"""


def test_a_plain_class_of_settings_says_whether_there_is_accumulation() -> None:
    one = SETTINGS.replace("BASE", "class CFG:\n    gradient_accumulation_steps = 1")
    assert codes(one) == set()
    assert codes(one.replace("= 1", "= 4")) == {"ACC001", "ACC006"}
    # what a command line may set, or another class, is only a default
    other = SETTINGS.replace("BASE", "from settings import Base\nclass CFG(Base):\n    gradient_accumulation_steps = 1")
    assert codes(other) == {"ACC001", "ACC006"}


HELPED = """\
import torch
import torch.nn.functional as F
from helpers import finish, normalize_gradients

def train(args, model, loader, n_gpu):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step, (x, mask, y) in enumerate(loader):
        LOSS
        loss.backward()
        if (step + 1) % args.gradient_accumulation_steps == 0:
            optimizer.step()
            model.zero_grad()
"""


@pytest.mark.parametrize(
    "loss",
    [
        "loss = finish(args, n_gpu, model(x, mask, y).mean())",
        "loss = model(x, mask, y)\n        loss = finish(args, n_gpu, loss)",
        "loss = 0\n        for i in range(len(x)):\n            loss += F.mse_loss(model(x[i]), y[i])",
    ],
)
def test_a_loss_that_a_helper_may_divide_or_that_sums_over_samples(loss: str) -> None:
    assert "ACC001" not in codes(HELPED.replace("LOSS", loss))
    plain = HELPED.replace("LOSS", "loss = torch.nn.functional.mse_loss(model(x), y)")
    assert codes(plain) == {"ACC001"}


def test_outputs_that_are_taken_out_again_one_by_one_are_no_growing_list() -> None:
    text = """\
import torch
import torch.nn.functional as F

def train_step(stage, loader, is_last, steps):
    inputs, outputs = [], []
    for _ in range(steps):
        batch = next(loader)
        out = stage.forward(batch["hidden"])
        if is_last:
            out = F.cross_entropy(out.flatten(0, 1), batch["target"].flatten())
        inputs.append(batch["hidden"])
        outputs.append(out)
    for _ in range(steps):
        stage.backward(inputs.pop(0), outputs.pop(0), None)

def train(stage, loader, optimizer, steps):
    for _ in range(100):
        optimizer.zero_grad()
        train_step(stage, loader, True, steps)
        optimizer.step()
"""
    assert codes(text) == set()


def test_scores_from_arrays_keep_no_graph() -> None:
    text = """\
import torch
from metrics import *

def train(model, loss_fn, loader, optimizer):
    total = 0.0
    for x, y in loader:
        logits = model(x)
        optimizer.zero_grad()
        loss_fn(logits, y).backward()
        optimizer.step()
        total += iou_score(y.cpu().numpy(), logits.detach().cpu().numpy() > 0.5).sum()
    return total
"""
    assert codes(text) == set()


def test_a_wrapper_called_scheduler_that_is_zeroed_is_the_optimizer() -> None:
    text = """\
import torch
from lr_scheduler import LRScheduler

def train(model, loss_fn, batches, valid, reporter, args):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = LRScheduler(optimizer, args.lr)
    print_step = args.print_step // 2
    accum = 0
    while True:
        batch, last = batches.next()
        accum += 1
        loss, observed = model(batch)
        (loss / args.accum).backward()
        if accum >= args.accum or last:
            scheduler.step()
            scheduler.zero_grad(set_to_none=True)
            accum = 0
        if reporter.n_steps > 0 and reporter.n_steps % print_step == 0:
            model(next(iter(valid)))
            reporter.step(is_eval=True)
        if last:
            break
"""
    assert codes(text) == set()


def test_a_test_in_a_loop_that_does_not_train_stops_no_update() -> None:
    text = """\
import torch

def run(args, model, loss_fn, loader, begin=0):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    k = 0
    while k < args.epochs:
        if k < begin:
            continue
        for x, y in loader:
            optimizer.zero_grad()
            loss_fn(model(x), y).backward()
            optimizer.step()
        k += 1
"""
    assert codes(text) == set()


LIMITED = """\
import torch

def train(opt, model, loader):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: max(0.0, 1 - s / opt.total_steps))
    step = done = 0
    while COUNTED < opt.total_steps:
        for batch in loader:
            step += 1
            (model(**batch)[0] / opt.accumulation_steps).backward()
            if step % opt.accumulation_steps == 0:
                optimizer.step()
                schedule.step()
                model.zero_grad()
                done += 1
"""


def test_a_schedule_as_long_as_a_limit_has_the_unit_of_what_is_limited() -> None:
    assert codes(LIMITED.replace("COUNTED", "step")) == {"ACC004"}
    assert codes(LIMITED.replace("COUNTED", "done")) == set()


BERT = """\
import torch
from pytorch_pretrained_bert.optimization import BertAdam
from settings import Config
from torch.utils.data import DataLoader

def train(args, model, train_data):
    loader = DataLoader(train_data, batch_size=Config.TRAIN_BS)
    steps = int(len(train_data) / Config.TRAIN_BS DIVIDED * args.epochs)
    optimizer = BertAdam(model.parameters(), lr=args.lr, warmup=0.1, t_total=steps)
    for epoch in range(args.epochs):
        for step, batch in enumerate(loader):
            loss = model(*batch)
            if args.accumulation_steps > 1:
                loss = loss / args.accumulation_steps
            loss.backward()
            if (step + 1) % args.accumulation_steps == 0:
                optimizer.step()
                model.zero_grad()
"""


def test_an_optimizer_may_have_a_schedule_of_its_own() -> None:
    assert codes(BERT.replace("DIVIDED", "")) == {"ACC004"}
    assert codes(BERT.replace("DIVIDED", "/ args.accumulation_steps")) == set()


def test_a_first_and_a_last_window_of_one_do_not_hide_the_shift() -> None:
    text = """\
import math
import torch

def train(args, model, loader):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    limit = 3 * math.ceil(len(loader) / args.accumulation_steps)
    done = 0
    for epoch in range(3):
        for step, batch in enumerate(loader):
            (model(**batch).loss / args.accumulation_steps).backward()
            if step % args.accumulation_steps == 0 or step == len(loader) - 1:
                optimizer.step()
                optimizer.zero_grad()
                done += 1
            if done >= limit:
                break
"""
    assert codes(text) == {"ACC006"}


def test_what_fills_missing_gradients_zeroes_none() -> None:
    text = HELPED.replace("LOSS", "loss = torch.nn.functional.mse_loss(model(x), y)")
    assert codes(text.replace("        loss.backward()", "        loss.backward()\n        zero_none_grad(model)")) == {
        "ACC001"
    }


def test_the_optimizers_of_a_group_are_the_same_each_time() -> None:
    text = """\
import torch.nn.functional as F

class Run:
    def __init__(self, model, optimizers, schedulers, k):
        self.model, self.optimizers, self.schedulers, self.k = model, optimizers, schedulers, k

    def epoch(self, loader):
        for i, (x, y) in enumerate(loader):
            (F.mse_loss(self.model(x), y) / self.k).backward()
            if (i + 1) % self.k == 0:
                for optimizer, scheduler in zip(self.optimizers, self.schedulers):
                    optimizer.step()
                    scheduler.step()
                for optimizer in self.optimizers:
                    optimizer.zero_grad()
"""
    assert codes(text) == set()
    assert codes(text.replace(" / self.k", "")) == {"ACC001"}
    assert codes(text.replace("optimizer.zero_grad()", "pass")) == {"ACC015"}


BESIDE = """\
import torch
import torch.nn.functional as F
from helpers import Net, Tracker, clean, log_zero_grads, zero_frozen_grads

class Config(object):
    k = 4

def train(loader):
    model, tracker = Net(), Tracker()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i, (x, y) in enumerate(loader):
        loss = F.mse_loss(model(x), y) / Config.k
        loss.backward()
        CALL
        if (i + 1) % Config.k == 0:
            optimizer.step()
            optimizer.zero_grad()
"""


@pytest.mark.parametrize(
    "call",
    [
        "zero_frozen_grads(model)",
        "log_zero_grads(model)",
        "model.reset_gradient_checkpointing()",
        "tracker.clear_grad_stats()",
        "tracker.clear_gradients()",
        "clean(loss)",
    ],
)
def test_names_that_say_more_than_zeroing_zero_nothing(call: str) -> None:
    assert codes(BESIDE.replace("CALL", call)) == set()


RECORDS = """\
import torch

def train(model, loader, k):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    total = 0
    for i, (x, y) in enumerate(loader):
        found = model(x, y)
        CHANGED
        loss.backward()
        if (i + 1) % k == 0:
            optimizer.step()
            optimizer.zero_grad()
"""


def test_what_a_record_counts_has_no_graph_after_a_change_of_all_items_either() -> None:
    counted = """\
for name, value in found.items():
            found[name] = value.float()
        loss = found["loss"] / k
        total += found["correct"]"""
    assert codes(RECORDS.replace("CHANGED", counted)) == set()


@pytest.mark.parametrize(("by", "expected"), [(" / k", set()), ("", {"ACC001"})])
def test_items_are_chosen_by_their_names(by: str, expected: set[str]) -> None:
    chosen = f"""\
means = {{name: value.mean() for name, value in found.items()}}
        loss = sum(value for name, value in means.items() if "loss" in name){by}"""
    assert codes(RECORDS.replace("CHANGED", chosen)) == expected


def test_what_is_kept_grows_whatever_other_lists_are_popped() -> None:
    text = """\
import torch

def train(model, loader, optimizer):
    kept, other = [], []
    for x, y in loader:
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        kept.append(loss)
        other.append(1)
        other.pop()
    print(kept.pop())
"""
    assert codes(text) == {"ACC005"}


def test_backward_in_both_branches_of_a_resumed_counter() -> None:
    text = """\
import torch

def train(args, model, load, batches):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ddp = torch.nn.parallel.DistributedDataParallel(model)
    step = 0
    kept = load(args.output)
    if kept is not None:
        step = kept["step"]
    while step < args.total:
        waiting = (step + 1) % args.k != 0
        loss = ddp(next(batches)).mean() / args.k
        if waiting:
            with ddp.no_sync():
                loss.backward()
        else:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
"""
    assert codes(text) == set()


def test_a_sum_of_a_shifted_window_is_not_thrown_away() -> None:
    text = """\
import torch

def train(net, loader, args):
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    loss = 0
    for i, (x, y) in enumerate(loader):
        loss += torch.nn.functional.mse_loss(net(x), y)
        if i % args.k == 0:
            (loss / args.k).backward()
            optimizer.step()
            optimizer.zero_grad()
            loss = 0
"""
    assert "ACC030" not in codes(text)


def test_a_method_of_deepspeeds_engine_tells_who_zeroes() -> None:
    text = """\
import torch
from accelerate import Accelerator

def train(args, net, loader):
    accelerator = Accelerator(gradient_accumulation_steps=args.k)
    optimizer = torch.optim.AdamW(net.parameters(), lr=args.lr)
    net, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    for x, y in loader:
        with accelerator.accumulate(net):
            optimizer.zero_grad()
            accelerator.backward(torch.nn.functional.mse_loss(net(x), y))
            if accelerator.sync_gradients:
                print(net.get_global_grad_norm())
            optimizer.step()
"""
    assert codes(text) == set()
    assert codes(text.replace("get_global_grad_norm", "named_modules")) == {"ACC002"}


PAIRS = """\
import torch

def train(model, loader, optimizer, args):
    criterion = torch.nn.CrossEntropyLoss()
    for i, batch in enumerate(loader):
        outputs = model(batch["images"])
        LOSS
        loss.backward()
        if (i + 1) % args.accumulation_steps == 0:
            optimizer.step()
            optimizer.zero_grad()
"""


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("loss = sum(criterion(x, y) for x, y in zip(outputs, batch['labels'])) / args.accumulation_steps", set()),
        ("loss = sum([criterion(x, y) for x, y in zip(outputs, batch['labels'])])", {"ACC001"}),
        ("loss = (criterion(outputs[0], batch['a']) + criterion(outputs[1], batch['b'])) / 2", {"ACC001"}),
        (
            "loss = (criterion(outputs[0], batch['a']) + criterion(outputs[1], batch['b'])) / args.accumulation_steps",
            set(),
        ),
    ],
)
def test_several_losses_of_one_output(loss: str, expected: set[str]) -> None:
    assert codes(PAIRS.replace("LOSS", loss)) == expected


def test_a_sum_that_autograd_grad_is_called_on_is_no_growing_one() -> None:
    text = """\
import torch
from learners import MetaLearner

class Learner(MetaLearner):
    def forward(self, support, masks, query):
        for i, (x, y) in enumerate(zip(*self.split([support, masks]))):
            one = self.loss(self.net(x), y) * x.size(0)
            if i == 0:
                total = one
            else:
                total += one
        return self.net(query, params=self.adapted(total))

    def adapted(self, loss):
        grads = torch.autograd.grad(loss, self.net.meta_parameters(), create_graph=True)
        return [p - 0.1 * g for p, g in zip(self.net.meta_parameters(), grads)]

    def step(self, batch):
        loss = self.loss(self.forward(*batch[:3]), batch[3])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
"""
    assert codes(text) == set()


@pytest.mark.parametrize(
    "zeroed", ["optimizer.zero_grad(True)", "model.zero_grad(True)", "optimizer.zero_grad(set_to_none=True)"]
)
def test_zeroing_may_be_given_arguments(zeroed: str) -> None:
    text = f"""\
import torch

def train(model, loader, optimizer, k):
    for i, (x, y) in enumerate(loader):
        torch.nn.functional.mse_loss(model(x), y).backward()
        if (i + 1) % k == 0:
            optimizer.step()
            {zeroed}
"""
    assert codes(text) == {"ACC001"}


# dbiir/UER-py, finetune/run_classifier.py: the gradients of all attacks but the last are only for the attack.
ATTACKS = """\
import torch

def step(args, model, optimizer, src, tgt):
    model.zero_grad()
    loss, _ = model(src, tgt)
    loss.backward()
    args.method.{save}()
    for t in range(args.steps):
        args.method.{act}(first=t == 0)
        if t != args.steps - 1:
            model.zero_grad()
        else:
            args.method.restore_grad()
        other, _ = model(src, tgt)
        other.backward()
    optimizer.step()
"""


def test_an_attack_throws_its_gradients_away() -> None:
    assert codes(ATTACKS.format(save="backup_grad", act="attack")) == set()
    assert codes(ATTACKS.format(save="begin", act="proceed")) == {"ACC002"}


# roytseng-tw/Detectron.pytorch, tools/train_net_step.py: the sum of k gradients has the rate of one micro-batch.
RATE = """\
import torch

def main(args, cfg, model, loader):
    cfg.BASE_LR *= args.{size} / cfg.ORIGINAL
    optimizer = torch.optim.SGD(model.parameters(), lr=cfg.BASE_LR, momentum=0.9)
    batches = iter(loader)
    for step in range(args.steps):
        optimizer.zero_grad()
        for inner in range(args.iter_size):
            model(**next(batches))["total_loss"].mean().backward()
        optimizer.step()
"""


def test_a_rate_that_is_scaled_with_the_micro_batch_wants_a_sum() -> None:
    assert codes(RATE.format(size="batch_size")) == set()
    assert codes(RATE.format(size="effective_batch_size")) == {"ACC001"}


# okolenmi/B580-diffusion-training, core/train_step.py: whoever calls it counts the micro-steps.
CALLED = """\
import torch

def train_step(model, optimizer, batch, config, micro_step):
    if micro_step % config.grad_accum == 0:
        optimizer.zero_grad()
    (model(**batch).loss / config.grad_accum).backward()
    if (micro_step + 1) % config.grad_accum == 0:
        optimizer.step()
"""


def test_a_micro_step_is_counted_by_the_caller() -> None:
    assert codes(CALLED) == set()


PREPARED = """\
import torch
from accelerate import Accelerator, DeepSpeedPlugin

accelerator = Accelerator(gradient_accumulation_steps=4{plugin})


def train(model, loader):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for batch in loader:
        with accelerator.accumulate(model):
            optimizer.zero_grad()
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
"""


# zhangfaen/finetune-Qwen2-VL, finetune_distributed.py: zero_grad() of DeepSpeed's wrapper does nothing.
def test_deepspeed_under_accelerate_zeroes_behind_its_own_updates() -> None:
    assert codes(PREPARED.format(plugin="")) == {"ACC002"}
    assert codes(PREPARED.format(plugin=", deepspeed_plugin=DeepSpeedPlugin(zero_stage=3)")) == set()
    assert codes(PREPARED.format(plugin=", deepspeed_plugin=None")) == {"ACC002"}


LENT = """\
from accelerate import Accelerator
from torch.optim import Optimizer


class Trainer:
    def __init__(self, model, optimizer: Optimizer, loader, accelerator: Accelerator):
        self.model, self.optimizer, self.loader, self.accelerator = model, optimizer, loader, accelerator

    def train(self):
        for batch in self.loader:
            with self.accelerator.accumulate(self.model):
                {first}
                loss = self.model(**batch)["loss"]
                self.accelerator.backward(loss)
                self.optimizer.step()
                {last}
"""


# wangyuxinwhy/uniem, uniem/trainer.py
def test_what_comes_with_an_accelerator_is_prepared_by_it() -> None:
    zero = "self.optimizer.zero_grad()"
    assert codes(LENT.format(first=zero, last="pass")) == {"ACC002"}
    assert codes(LENT.format(first="pass", last=zero)) == set()


SUMS = """\
import torch


def main(args, trainer, loader, net, crit):
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    batches = iter(loader)
    for step in range(args.num_steps):
        shown = 0
        for part in range(args.iter_size):
            x, y = next(batches)
            opt.zero_grad()
            loss = crit(net(x), y)
            loss.backward()
            opt.step()
            shown += loss / args.iter_size
        print(step, float(shown))
"""


# layumi/Seg-Uncertainty, train_ms.py
def test_a_sum_of_as_many_as_a_window_has_is_no_growing_one() -> None:
    assert codes(SUMS) == set()
    assert codes(SUMS.replace("        shown = 0\n", "").replace("    batches", "    shown = 0\n    batches")) == {
        "ACC005"
    }


KEPT = """\
import torch


def train(model, data, crit, args):
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    outer = torch.optim.Adam(model.parameters(), lr=0.1)
    for step in range(args.max_steps):
        outer.zero_grad()
        tasks = [data[0].sample(), data[1].sample()]
        for task in range(len(tasks)):
            support, query = tasks.pop()
            inner.zero_grad()
            crit(model(support[0]), support[1]).backward()
            inner.step()
            crit(model(query[0]), query[1]).backward()
            {kept}
        {back}
        outer.step()
"""


# audioku/cross-accent-maml-asr, trainer/asr/meta_trainer.py
def test_gradients_that_a_model_keeps_are_not_lost() -> None:
    assert codes(KEPT.format(kept="model.add_copy_grad()", back="model.from_copy_grad()")) == set()
    assert codes(KEPT.format(kept="pass", back="pass")) == {"ACC002"}


def test_a_scheduler_that_is_stepped_apart_counts_micro_batches() -> None:
    text = ACCELERATE.format(length=WHOLE, left=ALL).replace(
        "Accelerator()", "Accelerator(gradient_accumulation_steps=4, step_scheduler_with_optimizer=False)"
    )
    apart = text.replace("                if not accelerator.optimizer_step_was_skipped:\n    ", "")
    assert codes(apart) == set()
    assert codes(apart.replace(", step_scheduler_with_optimizer=False", "")) == {"ACC004"}


TASKS = """\
import torch
from accelerate import Accelerator
from transformers import AutoConfig, BertForSequenceClassification


def train(args, tasks):
    accelerator = Accelerator()
    for task in tasks:
        data = load(task)
        labels = len(data["train"].unique("label"))
        config = AutoConfig.from_pretrained(args.name, num_labels=labels)
        model = BertForSequenceClassification.from_pretrained(args.path, config=config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        loader = torch.utils.data.DataLoader(data["train"], batch_size=args.batch_size)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        for step, batch in enumerate(loader):
            loss = model(**batch).loss / args.gradient_accumulation_steps
            accelerator.backward(loss)
            if (step + 1) % args.gradient_accumulation_steps == 0:
                optimizer.step()
                optimizer.zero_grad()
"""


# cofe-ai/MSG, glue_eval/run_glue_together_with_stat.py: a model for each task, with as many labels as its data have.
def test_a_model_made_for_the_labels_of_each_task_is_no_data() -> None:
    assert codes(TASKS) == set()
    assert codes(TASKS.replace(" / args.gradient_accumulation_steps", "")) == {"ACC001"}


COPIES = """\
import torch


def hand_over(target, source):
    for shared, own in zip(target.parameters(), source.parameters()):
        if own.grad is not None:
            {copied}


def work(shared_model, make, episodes, crit):
    model = make()
    optimiser = torch.optim.Adam(shared_model.parameters(), lr=1e-3)
    for states, rewards in episodes:
        model.load_state_dict(shared_model.state_dict())
        crit(model(states), rewards).backward()
        hand_over(shared_model, model)
        optimiser.step()
        model.zero_grad()
"""


# dixantmittal/a3c-pytorch-gpu, utils.py
def test_a_gradient_that_is_replaced_needs_no_zeroing() -> None:
    assert codes(COPIES.format(copied="shared._grad = own.grad.clone().cpu()")) == set()
    assert codes(COPIES.format(copied="shared.grad += own.grad")) == {"ACC015"}


CHUNKED = """\
import torch


def train(net, loader, crit, args):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for x, y in loader:
        optimizer.zero_grad()
        {kept} = []
        for part, wanted in zip(torch.chunk(x, args.parts), torch.chunk(y, args.parts)):
            out = net(part)
            {kept}.append(out)
            (crit(out, wanted) / args.parts).backward()
        report(torch.cat({kept}))
        optimizer.step()
"""


# hysts/pytorch_image_classification, train.py: the outputs of one batch's parts.
def test_outputs_of_the_parts_of_one_batch_are_no_growing_list() -> None:
    assert codes(CHUNKED.format(kept="outputs")) == set()


METER = """\
import torch


class Mean:
    def __init__(self):
        self.values = []

    def __iadd__(self, value):
        self.values.append(value{detached})
        return self


def train(net, loader, crit):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    tracks = {{"loss": Mean()}}
    for x, y in loader:
        loss = crit(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tracks["loss"] += loss
"""


# taldatech/soft-intro-vae-pytorch, style_soft_intro_vae/tracker.py
def test_what_an_object_makes_of_an_addition() -> None:
    assert codes(METER.format(detached=".detach().cpu()")) == set()
    assert codes(METER.format(detached="")) == {"ACC005"}


VIRTUAL = """\
import torch


def train_batch(net, criteria, x, y, multiplier):
    out = net(x)
    losses = {name: crit(out, y) for name, crit in criteria.items()}
    loss = sum(losses.values()) / multiplier
    loss.backward()
    return loss


def train(net, batches, criteria, args):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    while True:
        loss = 0
        for _ in range(args.virtual_batch_multiplier):
            x, y = batches.next()
            loss += train_batch(net, criteria, x, y, args.virtual_batch_multiplier)
        print(float(loss))
        optimizer.step()
        optimizer.zero_grad()
"""


# tstandley/taskgrouping, train_taskonomy.py
def test_the_sum_of_a_window_of_several_losses_is_no_growing_one() -> None:
    assert codes(VIRTUAL) == set()


PIECES = """\
def train(net, loader, optimizer, args):
    for x, y in loader:
        optimizer.zero_grad()
        for i in range(0, len(x), args.microbatch):
            net(x[i : i + args.microbatch], y[i : i + args.microbatch]).loss.backward()
        optimizer.step()
"""


def test_a_number_of_the_simulation_is_told_as_one() -> None:
    (finding,) = check_text(PIECES, "train.py", dataclasses.replace(EVERYTHING, min_confidence=Confidence.LOW)).findings
    assert finding.code == "ACC001"
    assert "is k times too large; with k = " in finding.message


COUNTED = """\
import torch


def train(net, loader, crit, {k}=4):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for epoch in range(9):
        for step, (x, y) in enumerate(loader):
            optimizer.zero_grad()
            (crit(net(x), y) / {k}).backward()
            if (step + 1) % {k} == 0:
                optimizer.step()
                optimizer.zero_grad()
"""


def test_the_others_of_a_window_are_counted_without_an_earlier_rest() -> None:
    text = COUNTED.format(k="accumulation_steps")
    (finding,) = check_text(text, "train.py", EVERYTHING).findings
    assert finding.code == "ACC002"
    assert "only 1 of 4 micro-batches" in finding.message


HEADS = """\
import torch
from torch import nn


class Darknet(nn.Module):
    def __init__(self, parts):
        super().__init__()
        self.parts = nn.ModuleList(make(one) for one in parts)

    def forward(self, x, targets):
        loss, outputs = 0, []
        for part in self.parts:
            if part.kind == "head":
                x, part_loss = part(x, targets)
                loss += part_loss
                outputs.append(x)
        return loss, outputs


def train(parts, loader, args):
    model = Darknet(parts)
    optimizer = torch.optim.Adam(model.parameters())
    for i, (x, y) in enumerate(loader):
        loss, outputs = model(x, y)
        loss.backward()
        if {test}:
            optimizer.step()
            optimizer.zero_grad()
"""


# ghimiredhikura/Complex-YOLOv3, train.py: the parts of the model come out of a file of settings.
def test_a_loss_that_nothing_was_added_to_in_the_abstract_is_one() -> None:
    assert codes(HEADS.format(test="i % args.gradient_accumulations")) == {"ACC006"}


UNPACKED = """\
import torch


def train(model, loader, args):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i, batch in enumerate(loader, 1):
        _, _, {name} = model(**batch)
        {name}.backward()
        if i % args.accumulation_steps == 0:
            optimizer.step()
            optimizer.zero_grad()
"""


# facebookresearch/FiD, train_retriever.py
def test_what_a_model_returns_under_the_name_of_a_loss_is_one() -> None:
    assert codes(UNPACKED.format(name="train_loss")) == {"ACC001"}
    assert codes(UNPACKED.format(name="third")) == set()


STARTED = """\
import torch


def train(model, loader, args, crit):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(args.start_epoch, args.epochs + 1):
        for i, (x, y) in enumerate(loader):
            step = len(loader) * (epoch - 1) + i + 1
            (crit(model(x), y) / args.subdivisions).backward()
            if step % args.subdivisions == 0:
                optimizer.step()
                optimizer.zero_grad()
"""


# maudzung/Complex-YOLOv4-Pytorch, src/train.py: its epochs are counted from 1.
def test_a_counter_below_zero_has_begun_elsewhere() -> None:
    assert codes(STARTED) == set()


GIVEN = """\
import torch
from transformers import get_linear_schedule_with_warmup


class Trainer:
    def __init__(self, model, config, train_dataset=None, scheduler=None):
        self.model, self.config = model, config
        self.samples, self.scheduler = train_dataset, scheduler
        if self.samples is not None:
            self.loader = torch.utils.data.DataLoader(self.samples, batch_size=config.batch_size)

    def train(self):
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        each = len(self.samples) // self.config.batch_size
        schedule = get_linear_schedule_with_warmup(optimizer, 0, self.config.epochs * each{updates})
        for epoch in range(self.config.epochs):
            for i, batch in enumerate(self.loader, 1):
                (self.model(**batch).loss / self.config.grad_accumulation).backward()
                if i % self.config.grad_accumulation == 0:
                    optimizer.step()
                    optimizer.zero_grad()
                schedule.step()
"""


# st81/kaggle-feedback-prize-effectiveness, src/trainer/trainer_native_pytorch.py
def test_what_a_training_is_made_of_is_given_to_a_constructor() -> None:
    assert codes(GIVEN.format(updates="")) == set()
    assert codes(GIVEN.format(updates=" // self.config.grad_accumulation")) == {"ACC004"}


TASKS_BY_DESIGN = """\
import higher
import torch


def step(model, tasks, crit, args):
    outer = torch.optim.Adam(model.parameters(), lr=args.lr)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    for tasks in args.rounds:
        outer.zero_grad()
        for task in range(tasks.size(0)):
            with higher.innerloop_ctx(model, inner, copy_initial_weights=False) as (fast, optimizer):
                optimizer.step(crit(fast(tasks[task][0]), tasks[task][1]))
                crit(fast(tasks[task][2]), tasks[task][3]).backward()
        outer.step()
"""


# schlagercollin/meta-learning-music, train_maml.py: the meta-gradient of MAML is a sum over tasks.
def test_the_sum_over_tasks_of_a_differentiable_inner_loop_is_meant() -> None:
    assert codes(TASKS_BY_DESIGN) == set()


XLA = """\
import torch
import torch_xla.core.xla_model as xm


def train(model, loader, args):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for step, batch in enumerate(loader, 1):
        loss = model(**batch).loss{divided}
        loss.backward()
        if step % args.gradient_accumulation_steps == 0:
            xm.optimizer_step(optimizer)
            optimizer.zero_grad()
"""


# allenai/tpu_pretrain, pretrain.py
def test_xla_steps_the_optimizer_that_it_is_given() -> None:
    assert codes(XLA.format(divided=" / args.gradient_accumulation_steps")) == set()
    assert codes(XLA.format(divided="")) == {"ACC001"}


PARTLY = """\
import torch
import torch.nn.functional as F


def masked_loss(model, x, y):
    if not y.any():
        return None, 0.0
    loss = F.cross_entropy(model(x), y, reduction="none")
    return loss.sum() / y.numel(), 1.0


def train(model, loader, args):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    accum_steps = args.batch_size // args.local_batch_size
    for step, (x, y) in enumerate(loader, 1):
        loss, shown = masked_loss(model, x, y)
        if loss is not None:
            {backward}
        if step % accum_steps == 0:
            optimizer.step()
            optimizer.zero_grad()
"""


# QuentinFitteRey/LLada-Reasoning, sft_training/sft_train_new_dataset.py
def test_a_loss_that_may_be_none_is_there() -> None:
    assert codes(PARTLY.format(backward="(loss / accum_steps).backward()")) == set()
    assert codes(PARTLY.format(backward="loss.backward()")) == {"ACC001"}


SCHEDULED_LATER = """\
import torch
from accelerate import Accelerator
import torch.nn.functional as F
from torch.optim.lr_scheduler import LinearLR
from torch.utils.data import DataLoader


class Trainer:
    def __init__(self, model, k=4):
        self.accelerator = Accelerator(gradient_accumulation_steps=k)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        self.model, self.optimizer = self.accelerator.prepare(model, self.optimizer)
        self.k = k

    def train(self, data, epochs, batch_size):
        loader = DataLoader(data, batch_size=batch_size)
        self.scheduler = LinearLR(self.optimizer, 1.0, 0.1, total_iters={length})
        loader, self.scheduler = self.accelerator.prepare(loader, self.scheduler)
        for epoch in range(epochs):
            for x, y in loader:
                with self.accelerator.accumulate(self.model):
                    loss = F.cross_entropy(self.model(x), y)
                    self.accelerator.backward(loss)
                    self.optimizer.step()
                    self.scheduler.step()
                    self.optimizer.zero_grad()
"""


# lucidrains/e2-tts-pytorch, trainer.py: each call of train() makes a schedule of its own for the one optimizer.
@pytest.mark.parametrize(
    ("length", "expected"),
    [("len(loader) * epochs", {"ACC004"}), ("-(-len(loader) // self.k) * epochs", set())],
)
def test_a_schedule_is_as_long_as_the_call_that_makes_it(length: str, expected: set[str]) -> None:
    assert codes(SCHEDULED_LATER.replace("{length}", length)) == expected


OWN_OPTIMIZER = """\
import torch
from torch import nn
import torch.nn.functional as F


class Momentum(torch.optim.Optimizer):
    def __init__(self, params, lr=0.1, decay=0.0):
        super().__init__(params, dict(lr=lr, decay=decay))
        self.steps = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.steps += 1
        {before}
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if len(state) == 0:
                    state["m"] = torch.zeros_like(p.grad)
                state["m"].mul_(0.9).add_(p.grad, alpha=0.1)
                if group["decay"] > 0:
                    p.mul_(1 - group["lr"] * group["decay"])
                p.add_(state["m"], alpha=-group["lr"])
        {after}


class Trainer:
    def __init__(self, config, model):
        self.model = model
        self.k = config.get("gradient_accumulation_steps", 8)
        self.limit = config.get("limit", 1.0)
        self.opt = Momentum(model.parameters())
        self.step = 0

    def log(self, text):
        print(self.step, text)

    def train(self, loader, total):
        data = iter(loader)
        while self.step < total:
            for _ in range(self.k):
                x, y = next(data)
                F.cross_entropy(self.model(x), y).backward()
            if self.limit > 0:
                self.log(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.limit))
            self.opt.step()
            self.model.zero_grad()
            self.step += 1
"""


# atandra2000/FusionLLM, training: an optimizer class of the project, and `self.step`, which is a counter.
@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("pass", "pass", {"ACC001"}),
        ("pass", "self.zero_grad()", set()),
        ("pass", "for p in self.param_groups[0]['params']: p.grad = None", set()),
        ("if self.steps % 4: return", "pass", set()),
    ],
)
def test_an_optimizer_class_that_only_updates_is_an_optimizer(before: str, after: str, expected: set[str]) -> None:
    findings = check_text(OWN_OPTIMIZER.format(before=before, after=after), "train.py", EVERYTHING).findings
    assert {finding.code for finding in findings} == expected
    assert all("`self.k` times too large" in finding.message for finding in findings)
