"""Which side of an unknown condition a training takes, and what a report is worth that depends on it."""

from __future__ import annotations

import dataclasses

import pytest

from acclint.findings import Confidence, Finding, Severity
from acclint.lint import check_text
from acclint.settings import Settings

EVERY = dataclasses.replace(Settings(), min_severity=Severity.WARNING, min_confidence=Confidence.LOW)


def found(text: str) -> tuple[Finding, ...]:
    result = check_text(text, "train.py", EVERY)
    assert all(loop.state != "not-understood" for loop in result.loops)
    return tuple(result.findings)


def levels(text: str) -> list[tuple[str, Confidence]]:
    return [(one.code, one.confidence) for one in found(text)]


# What is in BEFORE must not keep the training from its loop, whose loss lacks its division.
BEGUN = """\
import os
import sys

import torch


def train(model, loader, args, cfg, teacher):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    {before}
    for epoch in range(args.epochs):
        {each_epoch}
        for i, (x, y) in enumerate(loader):
            {each_batch}
            torch.nn.functional.mse_loss(model(x), y).backward()
            if (i + 1) % args.k == 0:
                opt.step()
                opt.zero_grad()
"""


@pytest.mark.parametrize(
    ("before", "each_epoch", "each_batch"),
    [
        # michiyasunaga/dragon, dragon.py: epochs that a resumed training has behind it.
        (
            "resume = args.resume_from is not None and args.resume_from != 'None'\n"
            "    if resume:\n        last = torch.load(args.resume_from)['epoch']\n    else:\n        last = -1",
            "if last + 1 > epoch:\n            continue",
            "",
        ),
        # sebastian-hofstaetter/matchmaker, matchmaker/train.py
        (
            "fresh = True\n    if args.continue_folder:\n        fresh = False",
            "if not fresh:\n            continue",
            "",
        ),
        # NVlabs/edm2, training/training_loop.py
        (
            "done = False",
            "if teacher.should_stop() or teacher.should_suspend():\n            done = True",
            "if done: break",
        ),
        ("begin = cfg.start * args.size", "", "if begin >= args.limit // args.size:\n                break"),
    ],
)
def test_a_training_begins_at_its_beginning(before: str, each_epoch: str, each_batch: str) -> None:
    text = BEGUN.format(before=before, each_epoch=each_epoch or "pass", each_batch=each_batch or "pass")
    assert [code for code, _ in levels(text)] == ["ACC001"]


# microsoft/voxelpose-pytorch, lib/core/function.py: what a branch gives must be there, whatever its test is called.
def test_a_choice_of_data_is_made() -> None:
    text = """\
import torch


def train(config, model, loader, opt):
    for i, batch in enumerate(loader):
        if "panoptic" in config.DATASET.TEST_DATASET:
            loss = model(batch, mode=1)
        elif "campus" in config.DATASET.TEST_DATASET:
            loss = model(batch, mode=2)
        torch.nn.functional.mse_loss(loss, batch.y).backward()
        if (i + 1) % config.k == 0:
            opt.step()
            opt.zero_grad()
"""
    assert [code for code, _ in levels(text)] == ["ACC001"]


# sebastian-hofstaetter/matchmaker, utils/input_pipeline.py: a raise within a `try` whose handler leaves the program.
def test_an_exception_that_ends_the_program_has_nobody_to_go_to() -> None:
    text = """\
import sys

import torch


def batches(queue):
    for batch, error in iter(queue.get, (None, None)):
        if error is not None:
            raise RuntimeError(error)
        yield batch


def main(model, queue, args):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        for i, batch in enumerate(batches(queue)):
            torch.nn.functional.mse_loss(model(batch), args.goal).backward()
            if (i + 1) % args.k == 0:
                opt.step()
                opt.zero_grad()
    except Exception as error:
        print(error)
        sys.exit(1)
"""
    assert [code for code, _ in levels(text)] == ["ACC001"]


# thunlp/OpenBackdoor: a class that others fill in, and a dictionary of loaders under keys that are read elsewhere.
def test_a_method_that_does_nothing_gives_something() -> None:
    text = """\
from collections import defaultdict

import torch
from torch import nn
from torch.utils.data import DataLoader


class Victim(nn.Module):
    def forward(self, inputs):
        pass

    def process(self, batch):
        pass


def train(model: Victim, data, args):
    loaders = defaultdict(list)
    for name in data.keys():
        loaders[name] = DataLoader(data[name], batch_size=args.batch_size)
    model = Victim()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    for i, batch in enumerate(loaders["train"]):
        inputs, labels = model.process(batch)
        nn.functional.cross_entropy(model(inputs).logits, labels).backward()
        if (i + 1) % args.k == 0:
            opt.step()
            opt.zero_grad()
"""
    assert [code for code, _ in levels(text)] == ["ACC001"]


# hfxunlp/transformer, train_ape.py: the optimizer zeroes, or what is called behind it does.
DEPENDS = """\
import torch


def update(opt, model, {flag}):
    opt.step()
    if not {flag}:
        opt.zero_grad()
    model.sync()


def train(model, loader, args):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in loader:
        torch.nn.functional.mse_loss(model(x), y).backward()
        update(opt, model, args.{flag})
"""


@pytest.mark.parametrize(("flag", "level"), [("keep_sums", Confidence.LOW), ("multi_gpu", Confidence.MEDIUM)])
def test_a_report_that_the_other_side_takes_away_is_less_sure(flag: str, level: Confidence) -> None:
    (report,) = found(DEPENDS.format(flag=flag))
    assert (report.code, report.confidence) == ("ACC015", level)
    assert any("only where" in one.message for one in report.assumptions)


# lonePatient/BERT-NER-Pytorch, run_ner_span.py: that is no such choice if the mistake stands on that side itself.
def test_a_mistake_within_a_branch_is_as_sure_as_ever() -> None:
    text = """\
import torch


def train(model, loader, args, attack):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    for i, (x, y) in enumerate(loader):
        (torch.nn.functional.mse_loss(model(x), y) / args.k).backward()
        if args.do_adv:
            attack.attack()
            torch.nn.functional.mse_loss(model(x), y).backward()
            attack.restore()
        if (i + 1) % args.k == 0:
            opt.step()
            opt.zero_grad()
"""
    assert ("ACC001", Confidence.HIGH) in levels(text)


# facebookresearch/LaViLa, main_pretrain.py; NVIDIA/makani, ensemble_trainer.py: what is zeroed is all there is.
@pytest.mark.parametrize(
    "text",
    [
        """\
import torch
from project import losses


def train(model, loader, args):
    criterion = losses.make(args)
    params = [p for n, p in model.named_parameters()] + [p for n, p in criterion.named_parameters()]
    opt = torch.optim.SGD(params, lr=0.1)
    for x, y in loader:
        criterion(model(x), y).backward()
        opt.step()
        model.zero_grad()
""",
        """\
import numpy as np
from project import Trainer, registry


class EnsembleTrainer(Trainer):
    def setup(self):
        self.model = registry.get_model(self.params)
        self.optimizer = self.get_optimizer(self.model, self.params)
        self.wrap(self.model)

    def fit(self):
        for i, (x, y) in enumerate(self.loader):
            scale = 1.0
            if self.params["gradient_accumulation_steps"] > 1:
                scale = 1.0 / np.float32(self.params["gradient_accumulation_steps"])
            loss = self.loss_obj(self.model_train(x), y)
            (loss * scale).backward()
            if (i + 1) % self.params["gradient_accumulation_steps"] == 0:
                self.optimizer.step()
                self.model_train.zero_grad(set_to_none=True)
""",
    ],
)
def test_what_is_zeroed_is_what_the_loss_reaches(text: str) -> None:
    assert found(text) == ()


# capreolus-ir/capreolus, trainer/pytorch.py: where a pass is broken off has nothing to do with the window.
def test_the_window_has_the_name_of_its_test() -> None:
    text = """\
import torch


class Trainer:
    def __init__(self, config, optimizer):
        self.config, self.optimizer = config, optimizer
        self.per_iter = config["itersize"] // config["batch"]

    def train(self, model, loader):
        since = 0
        every = self.config["gradacc"]
        for i, (x, y) in enumerate(loader):
            torch.nn.functional.mse_loss(model(x), y).backward()
            since += 1
            if since == every:
                since = 0
                self.optimizer.step()
                self.optimizer.zero_grad()
            if (i + 1) % self.per_iter == 0:
                break
"""
    (report,) = found(text)
    assert report.code == "ACC001" and "per_iter" not in report.message and "gradacc" in report.message


# open-mmlab/Amphion, models/base/new_trainer.py: every k-th loss is kept, for a whole epoch.
def test_a_sum_of_some_losses_grows_as_long_as_one_of_all() -> None:
    text = """\
import torch


def train(model, loader, args):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(args.epochs):
        total, seen = 0.0, 0
        for x, y in loader:
            loss = torch.nn.functional.mse_loss(model(x), y)
            opt.zero_grad()
            loss.backward()
            opt.step()
            seen += 1
            if seen % 4 == 0:
                total += loss
        print(total)
"""
    (report,) = found(text)
    assert (report.code, report.severity) == ("ACC005", Severity.WARNING)
    anew = text.replace("total += loss", "print(total)\n                total = 0.0\n            total += loss")
    assert all(one.severity is Severity.INFO for one in found(anew))


# DIAGNijmegen/pathology-streaming-pipeline, torch_utils/trainer.py: what a pass has left over is not of this window.
# chaitjo/graph-convnet-tsp, main.ipynb: a single update in another cell. megvii-model/SinglePathOneShot, train.py:
# parts of a supernet that the loss does not reach.
@pytest.mark.parametrize(
    "text",
    [
        """\
import torch


class Trainer:
    def __init__(self, net, args):
        self.net, self.every = net, args.accumulate_batch
        self.opt = torch.optim.SGD(net.parameters(), lr=0.1)

    def epoch(self, data):
        self.opt.zero_grad()
        self.count = 0
        for i in range(5):
            x, y = next(data)
            (torch.nn.functional.mse_loss(self.net(x), y) / self.every).backward()
            self.count += 1
            if self.count == self.every:
                self.opt.step()
                self.opt.zero_grad()
                self.count = 0


def main(net, data, args):
    trainer = Trainer(net, args)
    for _ in range(args.epochs):
        trainer.epoch(data)
""",
        """\
import torch


def main(net, loader, config):
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    x, y = next(iter(loader))
    torch.nn.functional.mse_loss(net(x), y).backward()
    opt.step()
    opt.zero_grad()
    for epoch in range(config.epochs):
        for i, (x, y) in enumerate(loader):
            (torch.nn.functional.mse_loss(net(x), y) / config.k).backward()
            if (i + 1) % config.k == 0:
                opt.step()
                opt.zero_grad()
""",
        """\
import torch


def main(net, loader):
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    for x, y in loader:
        opt.zero_grad()
        torch.nn.functional.mse_loss(net(x), y).backward()
        for p in net.parameters():
            if p.grad is not None and p.grad.sum() == 0:
                p.grad = None
        opt.step()
""",
    ],
    ids=["rest of a pass", "update before", "unreached parts"],
)
def test_what_is_thrown_away_rightly(text: str) -> None:
    assert [code for code, level in levels(text) if level is not Confidence.LOW] == []


# Reviews of the cures above.
@pytest.mark.parametrize(
    "line",
    [
        "if not args.stop_event.is_set():\n                seen += 1",
        "if args.stop_grad:\n                x = x.detach()\n            seen += 1",
        "if (i + 1) % args.log_every != 0:\n                pass\n            seen += 1",
    ],
)
def test_a_window_that_is_right_whatever_stands_beside_it(line: str) -> None:
    text = f"""\
import torch


def train(model, loader, args):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = 0
    for epoch in range(args.epochs):
        for i, (x, y) in enumerate(loader):
            (torch.nn.functional.mse_loss(model(x), y) / args.k).backward()
            {line}
            if seen % args.k == 0:
                opt.step()
                opt.zero_grad()
"""
    assert [code for code, level in levels(text) if level is not Confidence.LOW] == []
