"""Training loops that an abstract run must come to, and run for long enough, whatever stands before them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from acclint.findings import Confidence, Severity
from acclint.lift import lift
from acclint.lint import check_text
from acclint.settings import Settings
from acclint.simulate import analyze

SHOWN = dataclasses.replace(Settings(), min_severity=Severity.WARNING, min_confidence=Confidence.MEDIUM)
ALL = dataclasses.replace(Settings(), min_severity=Severity.INFO, min_confidence=Confidence.MEDIUM)


def codes(text: str, settings: Settings = SHOWN) -> set[str]:
    return {finding.code for finding in check_text(text, "train.py", settings).findings}


def windows(text: str) -> list[tuple[tuple[float, ...], ...]]:
    """Of each optimizer the contributions to its first two updates."""
    loops = analyze(lift(text)).loops
    assert all(loop.state != "not-understood" for loop in loops)
    return [updates[:2] for loop in loops for _, updates in loop.contributions]


WINDOW = ((1.0,) * 4,) * 2


# adamluo1995/Bert4CoQA, run_coqa.py: as many names as there are in a batch; the model's loss needs the last of them.
UNPACKED = """\
import torch
from torch import nn


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def forward(self, ids, mask, starts=None, ends=None):
        scores = self.layer(ids)
        if starts is not None and ends is not None:
            return nn.functional.cross_entropy(scores, starts) + nn.functional.cross_entropy(scores, ends)
        return scores, mask


def train(args, loader, examples):
    for example in examples:
        ids, mask, label, more = tuple(part for part in example)
        if more is None:
            continue
    model = Reader()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    for step, batch in enumerate(loader):
        batch = tuple(part.to(args.device) for part in batch)
        ids, mask, segments, starts, ends = batch
        loss = model(ids, mask, starts, ends)
        (loss / args.k).backward()
        if (step + 1) % args.k == 0:
            opt.step()
            opt.zero_grad()
"""


def test_items_beyond_those_of_an_unknown_batch() -> None:
    assert windows(UNPACKED) == [((1.0,) * 8,) * 2]
    assert codes(UNPACKED.replace("(loss / args.k)", "loss")) == {"ACC001"}


# kudep/ControllableGeneration, LSP_train.py; the tests of one setting, whichever way they are written, go together.
SETTINGS = """\
import sys
import torch


def train(args, model, loader):
    {before}
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    for step, (x, y) in enumerate(loader):
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        if (step + 1) % args.k == 0:
            opt.step()
            opt.zero_grad()
"""


@pytest.mark.parametrize(
    "before",
    [
        "if len(args.files) > 1 and not args.eval_only:\n        exit(0)\n"
        "    if args.eval_only:\n        args.report()\n        exit(0)",
        "if args.rank == -1:\n        data = loader\n    if args.rank != -1 and data is None:\n        sys.exit(1)",
        "if not args.file:\n        raise ValueError\n    if args.resume:\n        sys.exit()",
    ],
)
def test_what_ends_a_program_is_not_what_is_run(before: str) -> None:
    assert codes(SETTINGS.format(before=before)) == {"ACC001"}


def test_unequal_is_the_opposite_of_equal() -> None:
    text = SETTINGS.format(before="if args.rank == -1:\n        log(1)\n    if args.rank != -1:\n        log(2)")
    run = analyze(lift(text)).base
    assert run is not None
    assert [key for key in run.conditions if "rank" in key] == ["args.rank == -1"]


# facebookresearch/SpanBERT, code/run_glue.py: data that comes out empty by the numbers of the run; a list of batches.
EMPTY = """\
import random
import torch
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoModel


class Pairs(DataLoader):
    def __iter__(self):
        for pair in self.pairs.get("train", {{}}).values():
            yield pair


def features_of(lines):
    return [line for line in lines if len(line) > 10000]


def train(args, model):
    features = features_of([])
    data = TensorDataset(torch.tensor(features), torch.tensor(features))
    loader = DataLoader(data, batch_size=8)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [batch for batch in loader]
    for epoch in range(args.epochs):
        for step, (x, y) in enumerate({data}):
            loss = torch.nn.functional.mse_loss(model(x), y) / args.k
            loss.backward()
            if (step + 1) % args.k == 0:
                opt.step()
                opt.zero_grad()


train(args, AutoModel.from_pretrained(args.name))
"""


@pytest.mark.parametrize("data", ["loader", "batches", "Pairs(data)"])
def test_a_training_loop_has_data(data: str) -> None:
    assert windows(EMPTY.format(data=data)) == [WINDOW]
    assert codes(EMPTY.format(data=data).replace(" / args.k", "")) == {"ACC001"}


# yuvalkirstain/s2e-coref, coref_bucket_batch_sampler.py: an iterator of the project over an unknown number of things.
OWN_ITERATOR = """\
import torch


class Buckets:
    def __init__(self, source):
        self.source = source
        self.batches = self.prepare()

    def prepare(self):
        batches, batch = [], []
        for length, one in self.source:
            if len(batch) > 8:
                batches.append(self.collate(batch))
                batch = []
            batch.append(one)
        batches.append(self.collate(batch))
        return batches

    def collate(self, batch):
        return torch.stack(batch)

    def __iter__(self):
        for batch in self.batches:
            yield {item}


def train(args, source):
    model = torch.nn.Linear(4, 1)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = Buckets(source)
    for step, {target} in enumerate(loader):
        (model(x).mean() / args.k).backward()
        if (step + 1) % args.k == 0:
            opt.step()
            opt.zero_grad()
"""


@pytest.mark.parametrize(("item", "target"), [("batch", "x"), ("(batch, batch)", "(x, y)")])
def test_an_iterator_of_the_project_goes_on(item: str, target: str) -> None:
    assert windows(OWN_ITERATOR.format(item=item, target=target)) == [WINDOW]


# karpathy/llama2.c, train.py: the loss is what the model has kept, and the model is unwrapped.
KEPT = """\
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.last_loss = None

    def forward(self, x, y):
        out = self.layer(x)
        self.last_loss = nn.functional.cross_entropy(out, y)
        return out


model = Net()
opt = torch.optim.SGD(model.parameters(), lr=0.1)
if args.ddp:
    model = DDP(model)
raw = model.module if args.ddp else model
x, y = next(batches)
while True:
    for step in range(args.k):
        model(x, y)
        loss = raw.last_loss
        loss = loss / args.k
        x, y = next(batches)
        loss.backward()
    opt.step()
    opt.zero_grad()
"""


def test_a_wrapped_model_keeps_its_loss() -> None:
    assert windows(KEPT) == [WINDOW]
    assert codes(KEPT.replace("loss = loss / args.k", "pass")) == {"ACC001"}


# princeton-nlp/DensePhrases, train_rc.py: what was trained before is skipped.
SKIPPED = """\
import torch


def train(args, model, loader, last):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    to_skip = 0
    if args.load_dir:
        to_skip = int(args.load_dir.split("-")[-1]) % (len(loader) // args.k)
    for epoch in range(args.epochs):
        batches = iter(loader)
        while to_skip > 0:
            next(batches)
            to_skip -= 1
        for step, (x, y) in enumerate(loader):
            if to_skip > 0:
                to_skip -= 1
                continue
            (torch.nn.functional.mse_loss(model(x), y){by}).backward()
            if (step + 1) % args.k == 0:
                opt.step()
                opt.zero_grad()
"""


def test_what_is_left_to_skip_is_nothing_in_the_end() -> None:
    assert codes(SKIPPED.format(by=" / args.k")) == set()
    assert codes(SKIPPED.format(by="")) == {"ACC001"}


# yao8839836/kg-bert, run_bert_link_prediction.py, and many of its time: apex's optimizer around another one.
APEX = """\
import torch


def train(args, model, loader):
    params = [p for n, p in model.named_parameters()]
    if args.fp16:
        from apex.optimizers import FP16_Optimizer, FusedAdam
        optimizer = FusedAdam(params, lr=args.lr)
        optimizer = FP16_Optimizer(optimizer, static_loss_scale=args.loss_scale)
    else:
        optimizer = torch.optim.Adam(params, lr=args.lr)
    for step, (x, y) in enumerate(loader):
        loss = torch.nn.functional.mse_loss(model(x), y)
        if args.k > 1:
            loss = loss / args.k
        if args.fp16:
            optimizer.backward(loss)
        else:
            loss.backward()
        if (step + 1) % args.k == 0:
            optimizer.step()
            {zeroed}
"""


def test_an_optimizer_around_another_is_that_one() -> None:
    assert windows(APEX.format(zeroed="optimizer.zero_grad()")) == [WINDOW]
    assert codes(APEX.format(zeroed="optimizer.zero_grad()")) == set()
    assert codes(APEX.format(zeroed="pass")) == {"ACC015"}


# Parameters that are chosen by their names, or come from elsewhere: whoever zeroes the model zeroes them.
CHOSEN = """\
import torch
from project import groups, load_model, wanted


def trained(name):
    if name.endswith("embeddings.weight"):
        return False
    return not name.startswith("teacher")


def train(args, model, loader):
    some = []
    for name, p in model.named_parameters():
        if wanted(name) is False:
            continue
        if not name.startswith("head"):
            continue
        some.append(p)
    optimizer = torch.optim.SGD({params}, lr=0.1)
    for step, batch in enumerate(loader):
        loss = model(**batch)[0] / args.k
        loss.backward()
        if (step + 1) % args.k == 0:
            optimizer.step()
            {zeroed}


train(args, load_model(args), loader)
"""


@pytest.mark.parametrize(
    "params", ["[p for n, p in model.named_parameters() if trained(n)]", "some", "groups", "groups.of(args)"]
)
def test_chosen_parameters_are_zeroed_with_their_model(params: str) -> None:
    assert codes(CHOSEN.format(params=params, zeroed="model.zero_grad()")) == set()
    assert codes(CHOSEN.format(params=params, zeroed="pass")) == {"ACC015"}


# quantumiracle/transformers-pytorch, train_neuromem.py, and others: somewhere on the way the run loses the graph.
LOST = """\
import torch
from torch import nn

net = nn.Linear(4, 4)
opt = torch.optim.SGD(net.parameters(), lr=0.1)
for step, (x, y) in enumerate(loader):
    buffer = torch.empty_like(y)
    buffer.copy_(net(x))
    loss = nn.functional.mse_loss(buffer, y)
    {zeroed}
    loss.backward()
    if (step + 1) % 4 == 0:
        opt.step()
        opt.zero_grad()
"""


def test_what_is_sent_backward_has_a_graph() -> None:
    assert codes(LOST.format(zeroed="pass")) == set()  # what it weighs is not known
    assert codes(LOST.format(zeroed="opt.zero_grad()")) == {"ACC002"}


# FanAoCai/scMETH, engine_pretrain.py, and all engines like MAE's: the scaler is told when to update.
TOLD = """\
import torch


def train_one_epoch(model, criterion, loader, optimizer, args, loss_scaler):
    optimizer.zero_grad()
    for step, (x, y) in enumerate(loader):
        loss = criterion(model(x), y){by}
        loss_scaler(loss, optimizer, parameters=model.parameters(), update_grad=(step + {first}) % args.accum_iter == 0)
        if (step + {first}) % args.accum_iter == 0:
            optimizer.zero_grad()
"""


def test_a_scaler_that_is_told_when_to_update() -> None:
    assert codes(TOLD.format(by=" / args.accum_iter", first=1)) == set()
    assert codes(TOLD.format(by=" / args.accum_iter", first=1), ALL) == {"ACC007"}
    assert codes(TOLD.format(by="", first=1)) == {"ACC001"}
    assert "ACC006" in codes(TOLD.format(by=" / args.accum_iter", first=0))


def test_a_training_makes_its_optimizer_once() -> None:
    text = """\
import torch


class Trainer:
    def __init__(self, args, loader):
        self.args, self.loader = args, loader
        self.model = torch.nn.Linear(4, 1)

    def train(self):
        opt = torch.optim.SGD(self.model.parameters(), lr=0.1)
        for epoch in range(self.args.epochs):
            for step, x in enumerate(self.loader):
                (self.model(x).mean() / self.args.k).backward()
                if (step + 1) % self.args.k == 0:
                    opt.step()
                    self.model.zero_grad()
"""
    assert windows(text) == [WINDOW]


# awsm-research/LineVul, linevul_model.py; torch_geometric: models whose base classes are elsewhere.
@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("from transformers import RobertaForSequenceClassification as Base", "pass"),
        ("from transformers import RobertaPreTrainedModel as Base", "pass"),
        ("from torch_geometric.nn import MessagePassing as Base", "def forward(self, x):\n        return self.lin(x)"),
        ("from project import Base", "def forward(self, x):\n        return self.lin(x)"),
    ],
)
def test_a_model_by_its_base_class(head: str, body: str) -> None:
    text = f"""\
import torch
{head}


class Net(Base):
    {body}


def train(args, loader):
    net = Net(args.name)
    opt = torch.optim.SGD([p for n, p in net.named_parameters()], lr=0.1)
    for i, (x, y) in enumerate(loader):
        torch.nn.functional.mse_loss(net(x), y).backward()
        if (i + 1) % args.k == 0:
            opt.step()
            net.zero_grad()
"""
    assert codes(text) == {"ACC001"}
    assert codes(text.replace("y).backward", "y).div(args.k).backward")) == set()


# Diffusers' scripts for video: DeepSpeed is the launcher's choice.
def test_without_a_deepspeed_plugin_the_script_steps() -> None:
    text = """\
import torch
from accelerate import Accelerator


def main(args, model, loader):
    accelerator = Accelerator(gradient_accumulation_steps=args.k)
    opt = torch.optim.AdamW(model.parameters())
    model, opt, loader = accelerator.prepare(model, opt, loader)
    for batch in loader:
        models = [model]
        with accelerator.accumulate(models):
            loss = torch.nn.functional.mse_loss(model(batch["x"]), batch["y"])
            accelerator.backward(loss)
            if accelerator.state.deepspeed_plugin is None:
                opt.step()
                opt.zero_grad()
"""
    assert windows(text)[0][0] == (1.0,) * 4


def test_arrays_have_no_graph() -> None:
    text = """\
import numpy as np
import torch
from scipy.spatial.distance import cdist
from helpers import nearest


def train(args, model, loader):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    distances = []
    for x, y in loader:
        opt.zero_grad()
        out = model(x)
        torch.nn.functional.mse_loss(out, y).backward()
        opt.step()
        found = nearest(out, y, args.size)
        distances.append({kept}.mean())
"""
    unsure = dataclasses.replace(SHOWN, min_confidence=Confidence.LOW)
    assert codes(text.format(kept="cdist(np.array(found), np.array(y))"), unsure) == set()
    assert codes(text.format(kept="out"), unsure) == {"ACC005"}


# The mean over the samples of a micro-batch, one by one, is a mean.
@pytest.mark.parametrize(
    "mean",
    [
        "torch.stack([F.mse_loss(a, b) for a, b in zip(out, y)]).mean()",
        "sum(losses) / len(losses)",
    ],
)
def test_the_mean_over_samples(mean: str) -> None:
    text = f"""\
import torch
import torch.nn.functional as F


def train(args, loader):
    model = torch.nn.Linear(3, 3)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    for i, (x, y) in enumerate(loader):
        out = model(x)
        losses = [F.mse_loss(a, b) for a, b in zip(out, y)]
        ({mean}).backward()
        if (i + 1) % args.k == 0:
            opt.step()
            opt.zero_grad()
"""
    assert codes(text) == {"ACC001"}
    assert codes(text.replace(f"({mean})", f"({mean} / args.k)")) == set()


# huminghao16/SpanABSA, absa/run_cls_span.py: run from the project's folder, which has no mark of one.
def test_a_package_is_found_from_within(tmp_path: Path) -> None:
    package = tmp_path / "absa"
    package.mkdir()
    (package / "base.py").write_text("def scaled(loss, args):\n    return loss / args.k\n")
    text = """\
import torch
from absa.base import scaled


def train(args, model, loader):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    for i, (x, y) in enumerate(loader):
        loss = torch.nn.functional.mse_loss(model(x), y)
        scaled(loss, args).backward()
        if (i + 1) % args.k == 0:
            opt.step()
            opt.zero_grad()
"""
    (package / "run.py").write_text(text)
    assert check_text(text, str(package / "run.py"), SHOWN).findings == ()


# chaitanyamanem/TinyStories, trainer.py: the last micro-batch of a pass closes the window, whatever the number is.
LAST = """\
import torch


def train(model, loader, opt, args, max_iters=None):
    total = max_iters if max_iters is not None else len(loader)
    for i, (x, y) in enumerate(loader):
        if max_iters is not None and i >= max_iters:
            break
        torch.nn.functional.mse_loss(model(x), y){by}.backward()
        if (i + 1) % args.k == 0 or i + 1 == total:
            opt.step()
            opt.zero_grad()
"""


def test_an_unknown_total_is_the_end_of_a_pass() -> None:
    text = LAST.format(by=".div(args.k)")
    assert codes(text) == set()
    assert windows(text)[0] == WINDOW
    assert codes(LAST.format(by="")) == {"ACC001"}


# JackCai1206/superposition-distillation, distill_lm.py: how large a batch fits is tried out, in a mode of its own.
def test_a_trial_is_not_the_training() -> None:
    text = """\
import torch


def main(args, model, loader):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)

    def micro(batch):
        loss = torch.nn.functional.mse_loss(model(batch["x"]), batch["y"]) / args.grad_accum
        loss.backward()

    if args.find_micro:
        for size in [1, 2, 4, 8, 16]:
            opt.zero_grad()
            micro(make(size))
            opt.step()
        return
    for batches in loader:
        for step in range(args.grad_accum):
            micro(next(batches))
        opt.step()
        opt.zero_grad()
"""
    assert codes(text) == set()
    assert codes(text.replace(" / args.grad_accum", "")) == {"ACC001"}


# GitMonsters/octotetrahedral-agi, eval_arc_moe.py: the window is a list, not as long as a setting of elsewhere says.
def test_a_list_is_not_as_long_as_a_setting() -> None:
    text = """\
import torch
from dataclasses import dataclass


@dataclass
class Settings:
    gradient_accumulation_steps: int = 4


def adapt(model, examples, settings: Settings, rounds):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    pairs = [(examples, i) for i in range(len(examples))]
    log(Settings().gradient_accumulation_steps)
    for _ in range(rounds):
        for others, target in pairs:
            torch.nn.functional.mse_loss(model(others), others[target]).backward()
        opt.step()
        opt.zero_grad()
"""
    assert all("gradient_accumulation_steps" not in one.message for one in check_text(text, "train.py", ALL).findings)


def test_progress_over_numbers_is_a_range() -> None:
    text = """\
import torch
import tqdm


def train(model, batches, opt, k=64):
    while True:
        for _ in tqdm.trange(k):
            x, y = next(batches)
            (torch.nn.functional.mse_loss(model(x), y) / k).backward()
        opt.step()
        opt.zero_grad()
"""
    assert windows(text)[0] == WINDOW


# Orolol/gptoughts, train/train_moe.py: the update stands in the loop over the micro-batches, in the only pass of a run.
def test_an_update_inside_the_window_of_a_single_pass() -> None:
    text = """\
import torch

steps = 2


def train(model, batches, opt):
    opt.zero_grad()
    for micro_step in range(steps):
        x, y = next(batches)
        (torch.nn.functional.mse_loss(model(x), y) / steps).backward()
        opt.step()
"""
    assert codes(text) == {"ACC016"}


# ShaneTian/Att-Induction, src/train.py: episodes are counted from 1.
@pytest.mark.parametrize(
    ("loop", "test"),
    [("range(n)", "(i + 1) % k == 0"), ("range(1, n + 1)", "i % k == 0"), ("range(2, n + 2)", "i % k == 1")],
)
def test_a_schedule_as_long_as_a_loop_that_begins_anywhere(loop: str, test: str) -> None:
    text = f"""\
import torch
from transformers import get_linear_schedule_with_warmup


def train(model, batches, n=10000, k=1):
    opt = torch.optim.AdamW(model.parameters())
    scheduler = get_linear_schedule_with_warmup(opt, num_warmup_steps=100, num_training_steps=n)
    for i in {loop}:
        x, y = next(batches)
        (torch.nn.functional.mse_loss(model(x), y) / k).backward()
        if {test}:
            opt.step()
            scheduler.step()
            opt.zero_grad()
"""
    assert codes(text) == {"ACC004"}
    assert codes(text.replace("num_training_steps=n", "num_training_steps=n // k")) == set()


# Guitaricet/relora, torchrun_main.py: what is looked for once is raised for a second time, in a helper.
def test_a_training_does_not_fail_on_the_way() -> None:
    text = """\
import torch


def evaluate(model, loader):
    total = torch.zeros(1)
    for batch in loader:
        if torch.isnan(total[0]):
            print("not a number")
        total += model(batch).mean().detach()
    if torch.isnan(total[0]):
        raise RuntimeError("not a number")
    return total


def train(args, model, loader, data):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    for step, (x, y) in enumerate(loader):
        torch.nn.functional.mse_loss(model(x), y).backward()
        if (step + 1) % args.k == 0:
            opt.step()
            opt.zero_grad()
            evaluate(model, data)
"""
    assert codes(text) == {"ACC001"}
    assert windows(text)[0] == ((4.0,) * 4,) * 2


def test_of_several_modules_in_a_loss_none_is_the_optimizers() -> None:
    text = """\
import torch


def train(student, critic, loader, params, args):
    opt = torch.optim.Adam(params)
    for i, x in enumerate(loader):
        critic.zero_grad()
        (critic(student(x)).mean() / args.k).backward()
        if (i + 1) % args.k == 0:
            opt.step()
            opt.zero_grad()
"""
    assert codes(text) == set()


def test_what_is_no_trial_is_the_training() -> None:
    text = """\
import torch


def main(args, model, loader):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    if not args.find_lr:
        for i, (x, y) in enumerate(loader):
            torch.nn.functional.mse_loss(model(x), y).backward()
            if (i + 1) % args.k == 0:
                opt.step()
                opt.zero_grad()
        return
    for x, y in loader:
        opt.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        opt.step()
"""
    assert codes(text) == {"ACC001"}


# Adversarial examples and the like: a loss of a tensor that asks for a gradient itself reaches no optimizer.
def test_a_leaf_of_its_own_is_no_parameter() -> None:
    text = """\
import torch


def train(args, loader):
    model = torch.nn.Linear(4, 4)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    for i, (x, y) in enumerate(loader):
        noise = torch.zeros_like(x, requires_grad=True)
        (noise - y).pow(2).mean().backward()
        (torch.nn.functional.mse_loss(model(x + noise.detach()), y) / args.k).backward()
        if (i + 1) % args.k == 0:
            opt.step()
            opt.zero_grad()
"""
    assert windows(text) == [WINDOW]
    assert codes(text) == set()
