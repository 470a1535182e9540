"""What the objects and functions of torch and Python are to the machine: data, modules, optimizers, keys, choices."""

from __future__ import annotations

import dataclasses

import pytest

from acclint.findings import Confidence, Severity
from acclint.lint import check_text
from acclint.settings import Settings

SHOWN = dataclasses.replace(Settings(), min_severity=Severity.WARNING, min_confidence=Confidence.MEDIUM)


def codes(text: str) -> set[str]:
    return {finding.code for finding in check_text(text, "train.py", SHOWN).findings}


OLD_CODE = """\
import torch
import torch.nn.functional as F
from torch.autograd import Variable


def train(net, critic, loader, k):
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    other = torch.optim.SGD(critic.parameters(), lr=0.1)
    for i, (x, y) in enumerate(loader):
        x, y = Variable(x).cuda(), Variable(y, requires_grad=False).cuda()
        real = Variable(torch.FloatTensor(x.size(0)).fill_(1))
        loss = F.cross_entropy(net(x), y) + F.mse_loss(net(x), real)
        {backward}
        if (i + 1) % k == 0:
            opt.step()
            {zero}
"""


@pytest.mark.parametrize(
    ("backward", "zero", "expected"),
    [
        ("(loss / k).backward()", "opt.zero_grad()", set()),
        ("loss.backward()", "opt.zero_grad()", {"ACC001"}),
        ("(loss / k).backward()", "other.zero_grad()", {"ACC015"}),
    ],
)
def test_a_variable_is_what_it_was_made_of(backward: str, zero: str, expected: set[str]) -> None:
    assert codes(OLD_CODE.format(backward=backward, zero=zero)) == expected


POLICY = """\
import torch
from torch import nn
from torch.distributions import Categorical


def train(env, episodes, k):
    policy, critic = nn.Linear(4, 2), nn.Linear(4, 1)
    opt = torch.optim.Adam(policy.parameters(), lr=1e-3)
    critic_opt = torch.optim.Adam(critic.parameters(), lr=1e-3)
    for i in range(episodes):
        state, reward = env.episode()
        dist = Categorical(logits=policy(state))
        loss = -(dist.log_prob(dist.sample()) * reward).mean()
        (loss / k).backward()
        if (i + 1) % k == 0:
            opt.step()
            {zeroed}.zero_grad()
"""


@pytest.mark.parametrize(("zeroed", "expected"), [("opt", set()), ("critic_opt", {"ACC015"})])
def test_a_distribution_has_the_graph_of_its_parameters(zeroed: str, expected: set[str]) -> None:
    assert codes(POLICY.format(zeroed=zeroed)) == expected


PAIRS = """\
import itertools
import torch
from torch import nn


class Pairs(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(8, 8)
        self.loss = nn.CosineEmbeddingLoss()

    def forward(self, x):
        loss = torch.tensor(0.0)
        for a, b in itertools.combinations(zip(self.body(x), [1, 1, 2, 2]), 2):
            loss += self.loss(a[0], b[0], torch.tensor(1 if a[1] == b[1] else -1))
        return loss, x


def train(loader):
    model = Pairs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(3):
        total = torch.tensor(0.0)
        for x in loader:
            optimizer.zero_grad()
            loss, _ = model(x)
            total += {kept}
            loss.backward()
            optimizer.step()
"""


# jerpelhan/DAVE, train_similarity.py: the loss is a sum over pairs of what the model returns.
@pytest.mark.parametrize(("kept", "expected"), [("loss.item()", set()), ("loss", {"ACC005"})])
def test_pairs_of_outputs_have_their_graph(kept: str, expected: set[str]) -> None:
    assert codes(PAIRS.format(kept=kept)) == expected


NO_TARGETS = """\
import torch
from torch import nn
import torch.nn.functional as F
from torch.autograd import Variable


class Masked(nn.Module):
    def forward(self, predict, target):
        mask = (target >= 0) * (target != 255)
        target = target[mask]
        if not target.data.dim():
            return Variable(torch.zeros(1))
        return F.cross_entropy(predict[mask], target)


def train(net, critic, loader, steps):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    optimizer_d = torch.optim.Adam(critic.parameters(), lr=1e-4)
    criterion, bce = Masked().cuda(), nn.BCEWithLogitsLoss()
    data = iter(loader)
    for i in range(steps):
        optimizer.zero_grad()
        optimizer_d.zero_grad()
        for p in critic.parameters():
            p.requires_grad = False
        x, y = next(data)
        out = net(x)
        criterion(out, y.long().cuda()).backward()
        optimizer.step()
        x, _ = next(data)
        fooled = critic(F.softmax(net(x)))
        bce(fooled, torch.zeros_like(fooled)).backward()
        for p in critic.parameters():
            p.requires_grad = True
        told = critic(F.softmax(out.detach()))
        bce(told, torch.zeros_like(told)).backward()
        optimizer_d.step()
"""


# MyeongJin-Kim/Learning-Texture-Invariant-Representation: a constant is returned where a batch has no targets.
def test_a_loss_is_not_the_constant_for_an_empty_batch() -> None:
    assert codes(NO_TARGETS) == set()


RECORDS = """\
import torch


class Trainer:
    def __init__(self, model, loader, optimizer, criterion):
        self.model, self.loader, self.optimizer, self.criterion = model, loader, optimizer, criterion
        self.results = {{}}

    def on_step(self, batch):
        out = self.model(batch[0])
        losses = {{"ce": torch.sum(out["logits"]) * 0.0}}
        for key, value in self.criterion(out, batch[1]).items():
            losses[key] = losses[key] + value if key in losses else value
        self.results["losses"] = 0.0
        for key in losses.keys():
            self.results["losses"] += losses[key]
            self.results[{name}] = losses[key]
        self.optimizer.zero_grad()
        self.results["losses"].backward()
        self.optimizer.step()

    def run_epoch(self):
        for step, batch in enumerate(self.loader):
            self.step = step
            self.on_step(batch)
"""


# davidnvq/grit, engine/det_solver.py: each step's losses take the place of those of the step before.
@pytest.mark.parametrize(("name", "expected"), [("key", set()), ("key, self.step", {"ACC005"})])
def test_losses_that_are_replaced_are_not_kept(name: str, expected: set[str]) -> None:
    assert codes(RECORDS.format(name=name)) == expected


METHODS = """\
import torch

CONFIG = {}


def train(model, loader, criterion, optimizer):
    integrated = CONFIG["method"] in ["deepspeed", "patrickstar"]
    wrapped = CONFIG["method"] in ["colossalai"]
    total = torch.zeros(())
    for x, y in loader:
        loss = criterion(model(x), y)
        total += loss
        optimizer.zero_grad()
        if wrapped:
            optimizer.backward(loss)
            optimizer.step()
        elif integrated:
            model.backward(loss)
            model.step()
    return total
"""


# hpcaitech/ColossalAI-Examples, benchmark/zero/common/train.py: backward is called by one or the other.
def test_a_loss_that_an_engine_sends_backward_is_no_whole_graph() -> None:
    findings = check_text(METHODS, "train.py", SHOWN).findings
    assert [finding.code for finding in findings] == ["ACC005"]
    assert "activations are freed by backward" in findings[0].message


RESUMED = """\
import sys
import torch
import torch.nn.functional as F


def train_epoch(model, optimizer, hp, step, loader):
    scaler = torch.cuda.amp.GradScaler()
    for batch in loader:
        step += 1
        loss = F.cross_entropy(model(batch["x"]), batch["y"])
        if torch.isnan(loss):
            sys.exit(1)
        scaler.scale(loss / hp.accum_grad).backward()
        if step % hp.accum_grad == 0:
            scaler.step(optimizer)
            scaler.update()
        if step % hp.accum_grad == 0 and (hp.optimizer_type == "Noam" or hp.optimizer_type == "AdamW"):
            optimizer.zero_grad()
    return step


def main(model, loader, hp):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step = torch.load(hp.load)["step"] if hp.load else 0
    for epoch in range(hp.epochs):
        step = train_epoch(model, optimizer, hp, step, loader)
"""


# syoamakase/Transformer_ASR, train.py: the counter comes from a checkpoint; update and zeroing wait for the same.
def test_update_and_zeroing_wait_for_one_counter() -> None:
    assert codes(RESUMED) == set()


NAMED = """\
import helpers
import torch


def main(args, model, loader, criterion):
    rates = helpers.lr_values(args, loader)
    optimizer = helpers.build_optimizer(args, model, rates, loader)
    for i, (x, y) in enumerate(loader):
        (criterion(model(x), y) / args.accum_iter).backward()
        optimizer.step()
        optimizer.zero_grad()
"""


# zhaoliangzhang/St4RTrack, dust3r/training_jacobian.py: what is built with a loader is not always one.
def test_an_optimizer_is_not_called_a_loader() -> None:
    findings = check_text(NAMED, "train.py", SHOWN).findings
    assert all("`loader`" not in finding.message for finding in findings)
    assert [finding.code for finding in findings] == ["ACC016"]


BATCHED = """\
import random
import torch
import torch.nn.functional as F


def batches(data, size):
    random.shuffle(data)
    {made}


def train(model, data, args):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(args.epochs):
        for i, rows in enumerate(batches(data, args.batch_size)):
            x, y = zip(*rows)
            loss = F.cross_entropy(model(x), torch.tensor(y)){by}
            loss.backward()
            if (i + 1) % args.accum == 0:
                opt.step()
                opt.zero_grad()
"""
LISTED = "return [data[i : i + size] for i in range(0, len(data), size)]"
FILLED = "made = []\n    for i in range(0, len(data), size):\n        made.append(data[i : i + size])\n    return made"


# Batches cut from a list before training are as many as a loader has, whatever the numbers of the run are.
@pytest.mark.parametrize("made", [LISTED, FILLED])
@pytest.mark.parametrize(("by", "expected"), [(" / args.accum", set()), ("", {"ACC001"})])
def test_batches_made_beforehand(made: str, by: str, expected: set[str]) -> None:
    assert codes(BATCHED.format(made=made, by=by)) == expected


PARTS = """\
import torch
import torch.nn.functional as F


def train(model, loader, args):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    {before}
    for x in loader:
        parts = [x[i : i + {size}] for i in range(0, {whole}, {size})]
        for part in parts:
            loss = F.mse_loss(model(part), part) {by}
            loss.backward()
        opt.step()
        opt.zero_grad()
"""


@pytest.mark.parametrize(
    ("before", "size", "whole", "by"),
    [
        ("n = args.batch_size // args.micro", "args.micro", "args.batch_size", "/ n"),
        ("size = args.batch_size // args.k", "size", "x.size(0)", "/ args.k"),
        ("n = args.batch_size // args.micro_batch_size", "args.micro_batch_size", "len(x)", "/ n"),
        ("pass", "args.chunk", "len(x)", "* len(part) / len(x)"),
        ("pass", "args.chunk", "len(x)", "/ len(parts)"),
    ],
)
def test_parts_of_a_batch_are_divided_by_their_number(before: str, size: str, whole: str, by: str) -> None:
    assert codes(PARTS.format(before=before, size=size, whole=whole, by=by)) == set()


PER_SAMPLE = """\
import torch


def main(args, model, diffusion, loader, world_size):
    opt = torch.optim.AdamW(model.parameters(), lr=1e-4)
    local_batch_size = args.global_batch_size // world_size
    for step, (x, y) in enumerate(loader):
        opt.zero_grad()
        for at in range((local_batch_size - 1) // args.micro_batch_size + 1):
            start = at * args.micro_batch_size
            end = min((at + 1) * args.micro_batch_size, local_batch_size)
            losses = diffusion.training_losses(model, x[start:end], y[start:end])
            (losses["loss"].sum() / local_batch_size).backward()
        opt.step()
"""


# lavinal712/EDiT, train_large_dit.py: the sum over a micro-batch is divided by the size of the whole batch.
def test_a_sum_over_a_part_is_divided_by_the_size_of_the_whole() -> None:
    assert codes(PER_SAMPLE) == set()


FUSED = """\
import torch
import amp_C
from apex import amp


def train(model, loader, k):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    model, opt = amp.initialize(model, opt)
    for i, (x, y) in enumerate(loader):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        with amp.scale_loss(loss, opt) as scaled:
            scaled.backward()
        if (i + 1) % k == 0:
            grads = [p.grad for p in amp.master_params(opt) if p.grad is not None]
            {fused}
            opt.step()
            opt.zero_grad()
"""


# songlab-cal/tape, tape/training.py: a fused kernel that nobody can look into scales the gradients.
@pytest.mark.parametrize(
    ("fused", "expected"),
    [
        ("amp_C.multi_tensor_scale(65536, None, [grads, grads], 1.0 / k)", set()),
        ("print(len(grads))", {"ACC001"}),
    ],
)
def test_a_kernel_that_is_given_the_gradients_may_divide_them(fused: str, expected: set[str]) -> None:
    assert codes(FUSED.format(fused=fused)) == expected


ENVIRONMENT = """\
import os
import torch
import torch.nn.functional as F

GRADIENT_ACCUMULATION = int(os.getenv("GRADIENT_ACCUMULATION", "4"))
SAVE_EVERY = int(os.getenv("SAVE_EVERY", "500"))


def train(model, loader, scheduler):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    step = 0
    while step < 1000:
        for batch in loader:
            loss = F.mse_loss(model(batch), batch) / {by}
            loss.backward()
            if (step + 1) % GRADIENT_ACCUMULATION == 0:
                optimizer.step()
                optimizer.zero_grad()
            if step % SAVE_EVERY == 0:
                with torch.no_grad():
                    x = torch.randn(3)
                    for t in scheduler.timesteps:
                        x = scheduler.step(model(x), t, x)
            step += 1
"""


# Web3-League/inl-diffusion, train_dit.py: the accumulation steps are known by the name of the variable they come from.
@pytest.mark.parametrize(("by", "expected"), [("GRADIENT_ACCUMULATION", set()), ("1", {"ACC001"})])
def test_accumulation_steps_from_the_environment(by: str, expected: set[str]) -> None:
    assert codes(ENVIRONMENT.format(by=by)) == expected


REWARDS = """\
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader


def train(dataset, k):
    loader = DataLoader(dataset, batch_size=8)
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    total = 0.0
    for i, data in enumerate(loader):
        scores = model(torch.cat((data["chosen"], data["rejected"]), dim=0))
        good, bad = scores[: len(data["chosen"])], scores[len(data["chosen"]) :]
        loss = -F.logsigmoid(good - bad).mean() / k
        loss.backward()
        total += good.mean()
        if (i + 1) % k == 0:
            optimizer.step()
            optimizer.zero_grad()
"""


# vwxyzjn/summarize_from_feedback_details, reward.py: what is kept is a part of what backward was called on.
def test_a_part_of_a_loss_is_no_whole_graph() -> None:
    unsure = dataclasses.replace(SHOWN, min_confidence=Confidence.LOW)
    findings = check_text(REWARDS, "train.py", unsure).findings
    assert [finding.code for finding in findings] == ["ACC005"]
    assert "activations are freed by backward" in findings[0].message


CACHED = """\
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader


def train(model, {given}, epochs):
    {made}
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    cache = []
    for b in loader:
        {kept}
    for epoch in range(epochs):
        for i, (x, y) in enumerate(cache):
            (F.cross_entropy(model(x), y) / 4).backward()
            if (i + 1) % 4 == 0:
                opt.step()
                opt.zero_grad()
"""


@pytest.mark.parametrize(("given", "made"), [("loader", "pass"), ("data", "loader = DataLoader(data, batch_size=8)")])
@pytest.mark.parametrize(
    "kept",
    [
        "cache.append(b)",
        "cache.append(tuple(t.cuda() for t in b))",
        "cache += [(b[0], b[1])]",
        "cache = cache + [b]",
        "x, y = b; cache.append((x, y))",
    ],
)
def test_micro_batches_that_are_kept_are_all_there(given: str, made: str, kept: str) -> None:
    assert codes(CACHED.format(given=given, made=made, kept=kept)) == set()


CHUNKS = """\
import torch
import torch.nn.functional as F


def train(model, loader, micro):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in loader:
        n = x.size(0)
        opt.zero_grad()
        k = (n + micro - 1) // micro
        for j, s in enumerate({starts}):
            (F.cross_entropy(model(x[s : s + micro]), y[s : s + micro]) / k).backward()
            if {last}:
                opt.step()
"""


@pytest.mark.parametrize("starts", ["range(0, n, micro)", "list(range(0, n, micro))"])
@pytest.mark.parametrize("last", ["s + micro >= n", "j + 1 == k"])
def test_the_last_of_counted_chunks_updates(starts: str, last: str) -> None:
    assert codes(CHUNKS.format(starts=starts, last=last)) == set()


SLICED = """\
import torch
import torch.nn.functional as F


def train(model, loader, batch_size, k):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    size = batch_size // k
    for x, y in loader:
        opt.zero_grad()
        for j in range(k):
            loss = F.cross_entropy(model(x[j * size : (j + 1) * size]), y[j * size : (j + 1) * size]){by}
            loss.backward()
        opt.step()
"""


@pytest.mark.parametrize(("by", "expected"), [(" / k", set()), ("", {"ACC001"})])
def test_slices_of_a_batch_are_micro_batches(by: str, expected: set[str]) -> None:
    assert codes(SLICED.format(by=by)) == expected


FACTORY = """\
import torch
import torch.nn.functional as F


def make(model, name):
    if name == "adam":
        return torch.optim.Adam(model.parameters(), lr=torch.tensor(1e-3))
    return torch.optim.SGD(model.parameters(), lr=0.1)


def train(model, loader, k, name):
    opt = make(model, name)
    history = {i: None for i in range(len(loader))}
    for i, (x, y) in enumerate(loader):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        history[i] = loss
        if (i + 1) % k == 0:
            opt.step()
            opt.zero_grad()
"""


def test_the_first_choice_of_a_factory_and_a_dict_that_is_filled() -> None:
    found = {one.code: one.severity for one in check_text(FACTORY, "train.py", SHOWN).findings}
    assert found == {"ACC001": Severity.WARNING, "ACC005": Severity.WARNING}
