"""What code that nobody had looked at has shown, reduced: each case names the project that it came up in."""

from __future__ import annotations

import dataclasses

import pytest

from acclint.findings import Confidence, Severity
from acclint.lint import check_text
from acclint.settings import Settings

SHOWN = dataclasses.replace(Settings(), min_severity=Severity.WARNING, min_confidence=Confidence.MEDIUM)
ALL = dataclasses.replace(Settings(), min_severity=Severity.INFO, min_confidence=Confidence.MEDIUM)


def codes(text: str, settings: Settings = SHOWN) -> set[str]:
    return {one.code for one in check_text(text, "train.py", settings).findings}


# gyunggyung/KoGPT2-FineTuning, main.py: the first of a pair grows. The others are its relatives.
KEPT = """\
import torch

def main(model, loader, crit):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
    {before}
    for x, y in loader:
        optimizer.zero_grad()
        loss = crit(model(x), y)
        loss.backward()
        optimizer.step()
        {kept}
    print({before_name})
"""


@pytest.mark.parametrize(
    ("before", "kept", "expected"),
    [
        ("avg = (0.0, 0.0)", "avg = (avg[0] * 0.99 + loss, avg[1] * 0.99 + 1.0)", {"ACC005"}),
        ("avg = (0.0, 0.0)", "avg = (avg[0] * 0.99 + loss.item(), avg[1] * 0.99 + 1.0)", set()),
        ("avg = n = 0", "avg, n = avg + loss, n + 1", {"ACC005"}),
        ("avg = n = 0", "avg, n = avg + loss.detach(), n + 1", set()),
        ("avg = []", "avg = avg + [loss]", {"ACC005"}),
        ("avg = []", "avg = [loss]", set()),
        ("avg = {'n': 0, 'sum': 0}", "avg = {'n': avg['n'] + 1, 'sum': avg['sum'] + loss}", {"ACC005"}),
    ],
)
def test_what_grows_within_a_pair_or_a_list(before: str, kept: str, expected: set[str]) -> None:
    text = KEPT.replace("{before}", before).replace("{kept}", kept).replace("{before_name}", "avg")
    assert codes(text) == expected
    (found,) = [*check_text(text, "train.py", SHOWN).findings, None][:1]
    assert found is None or "`avg` keeps" in found.message


# rampasek/GraphGPS, graphgps/loss/subtoken_prediction_loss.py: one loss a head, divided by the number of heads.
@pytest.mark.parametrize(
    "summed",
    [
        "for i in range(len(heads)): loss += crit(heads[i], ys[:, i])",
        "for head, y in zip(heads, ys): loss += crit(head, y)",
        "for i, head in enumerate(heads): loss = loss + crit(head, ys[i])",
        "for i in range(len(heads)): loss = loss + calculate_loss(heads[i], ys[i])",
    ],
)
def test_the_mean_over_what_a_loop_goes_through(summed: str) -> None:
    text = f"""\
import torch
from torch import nn

crit = nn.CrossEntropyLoss()

def heads_loss(heads, ys):
    loss = 0
    {summed}
    return loss / len(heads)

def train(model, loader, optimizer, batch_accumulation):
    for it, (x, y) in enumerate(loader):
        loss = heads_loss(model(x), y)
        loss.backward()
        if (it + 1) % batch_accumulation == 0:
            optimizer.step()
            optimizer.zero_grad()
"""
    assert codes(text) == {"ACC001"}
    assert codes(text.replace("loss.backward()", "(loss / batch_accumulation).backward()")) == set()


# EvolvingLMMs-Lab/OneVision-Encoder, training/train.py: a flag ends the loop, a checkpoint may set the counter.
ENDED = """\
import torch
from torch import nn
from checkpoints import load_checkpoint

def main(args, model, loader):
    opt = torch.optim.AdamW(model.parameters())
    result = load_checkpoint(args.output, model, opt)
    if result is not None:
        global_step = result["global_step"]
    else:
        global_step = 0
    it = iter(loader)
    end = False
    while not end:
        x, y = next(it)
        loss = nn.functional.cross_entropy(model(x), y) / args.backward_passes_per_step
        if {test} != 0:
            with model.no_sync():
                loss.backward()
        else:
            loss.backward()
            opt.step()
            opt.zero_grad()
        global_step += 1
        if global_step > args.total_steps:
            end = True
"""


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        ("global_step % args.backward_passes_per_step", {"ACC006"}),
        ("(global_step + 1) % args.backward_passes_per_step", set()),
    ],
)
def test_a_loop_that_a_flag_ends_and_a_counter_from_a_checkpoint(test: str, expected: set[str]) -> None:
    assert codes(ENDED.replace("{test}", test)) == expected


# Project-MONAI/GenerativeModels, tutorials/generative/2d_vqgan: a loss that is chosen by a member of an Enum.
def test_the_value_of_a_member_of_an_enum() -> None:
    text = """\
import torch
from enum import Enum
from torch import nn

class Kind(Enum):
    HINGE = "hinge"
    SQUARES = "least_squares"

class Adversarial(nn.Module):
    def __init__(self, kind=Kind.SQUARES.value):
        super().__init__()
        self.kind = kind
        self.mse = nn.MSELoss()

    def forward(self, out, real):
        if self.kind == Kind.SQUARES.value:
            return self.mse(out, torch.full_like(out, float(real)))
        elif self.kind == Kind.HINGE.value:
            return torch.relu(1 - out).mean()
        return None

def train(model, disc, loader):
    adv = Adversarial(kind="least_squares")
    opt_g = torch.optim.Adam(model.parameters())
    opt_d = torch.optim.Adam(disc.parameters())
    for x in loader:
        opt_g.zero_grad()
        fake = model(x)
        adv(disc(fake), True).backward()
        opt_g.step()
        opt_d.zero_grad()
        (adv(disc(fake.detach()), False) + adv(disc(x), True)).backward()
        opt_d.step()
"""
    assert codes(text) == set()
    assert codes(text.replace("        opt_d.zero_grad()\n", "")) == {"ACC015"}


# dmlc/dgl, examples/multigpu/graphbolt/node_classification.py: what is called DataLoader yields batches.
def test_a_loader_made_of_something_unknown_that_works_on_data() -> None:
    text = """\
import torch
import dgl.graphbolt as gb
import torch.nn.functional as F

def create(graph, features, items, device):
    pipe = gb.ItemSampler(items, batch_size=4)
    pipe = pipe.sample_neighbor(graph, [10]).fetch_feature(features)
    pipe = pipe.copy_to(device)
    return gb.DataLoader(pipe, num_workers=2)

def run(args, model, dataset, device):
    loader = create(dataset.graph, dataset.feature, dataset.train, device)
    train(args, model, loader, device)

def train(args, model, loader, device):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for epoch in range(args.epochs):
        total = torch.tensor(0.0).to(device)
        for step, data in enumerate(loader):
            loss = F.cross_entropy(model(data.blocks, data.x), data.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss
        print(total / (step + 1))
"""
    assert codes(text) == {"ACC005"}
    assert codes(text.replace("total += loss", "total += loss.detach()")) == set()


# natolambert/rlhf-book, code/direct_alignment/train.py: the last update of an epoch is behind the loop.
@pytest.mark.parametrize(
    ("length", "expected"), [("len(loader)", {"ACC004"}), ("(len(loader) // cfg.accum_steps)", set())]
)
def test_a_schedule_whose_last_step_is_flushed(length: str, expected: set[str]) -> None:
    text = f"""\
import torch
from torch import nn

def main(cfg, model, loader):
    opt = torch.optim.AdamW(model.parameters())
    steps = {length} * cfg.num_epochs
    sched = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: max(0.0, 1 - step / steps))
    for epoch in range(cfg.num_epochs):
        for i, (x, y) in enumerate(loader):
            (nn.functional.mse_loss(model(x), y) / cfg.accum_steps).backward()
            if (i + 1) % cfg.accum_steps == 0:
                opt.step()
                opt.zero_grad()
                sched.step()
        if len(loader) % cfg.accum_steps != 0:
            opt.step()
            opt.zero_grad()
            sched.step()
"""
    assert codes(text) == expected


# srijanshk/rag_pw, misc/train_retriever.py: records out of loops within loops over what a file holds.
@pytest.mark.parametrize(
    ("length", "expected"),
    [("len(load('x.json')) // BATCH_SIZE", {"ACC004"}), ("len(load('x.json')) // BATCH_SIZE // 4", set())],
)
def test_a_schedule_sized_by_records_of_a_file(length: str, expected: set[str]) -> None:
    text = f"""\
import json
import torch
from torch import nn

EPOCHS = 10
BATCH_SIZE = 8

def load(path):
    with open(path) as f:
        data = json.load(f)
    examples = []
    for row in data:
        for pos in row.get("positive", [])[:1]:
            examples.append({{"query": row["question"], "positive": pos["text"]}})
    return examples

def main(net):
    data = load("x.json")
    opt = torch.optim.AdamW(net.parameters())
    sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=EPOCHS * ({length}))
    for epoch in range(EPOCHS):
        loader = torch.utils.data.DataLoader(data, batch_size=BATCH_SIZE)
        for step, (x, y) in enumerate(loader):
            (nn.functional.mse_loss(net(x), y) / 4).backward()
            if (step + 1) % 4 == 0:
                opt.step()
                opt.zero_grad()
                sched.step()

main(nn.Linear(3, 3))
"""
    assert codes(text) == expected


# Dongun-code/mask-rcnn-simple, train_one.py: the method is named, not called.
@pytest.mark.parametrize(("call", "expected"), [("optimizer.zero_grad", {"ACC015"}), ("optimizer.zero_grad()", set())])
def test_zero_grad_that_is_not_called(call: str, expected: set[str]) -> None:
    text = f"""\
def train_one_epoch(model, optimizer, data_loader, device):
    for i, (image, target) in enumerate(data_loader):
        losses = model(image.to(device), target)
        sum(losses.values()).backward()
        optimizer.step()
        {call}
"""
    assert codes(text) == expected


# jionie/Bengaliai, train.py: CutMix's share, and a division in one of two ways to compute the same thing.
@pytest.mark.parametrize(("plain", "expected"), [("loss", {"ACC001"}), ("(loss / accum_steps)", set())])
def test_the_share_of_cutmix_and_a_branch_without_the_division(plain: str, expected: set[str]) -> None:
    settings = "\n".join(f"    if args.flag{i}: model.train()" for i in range(8))
    text = f"""\
import numpy as np
import torch
from torch import nn
from apex import amp
from utils import rand_bbox

def train(model, loader, args, accum_steps=4):
    crit = nn.CrossEntropyLoss()
    opt = torch.optim.Adam(model.parameters())
    for i, (x, y) in enumerate(loader):
{settings.replace("    if", "        if")}
        lam = np.random.beta(1.0, 1.0)
        idx = torch.randperm(x.size(0))
        x1, y1, x2, y2 = rand_bbox(x.size(), lam)
        x[:, :, x1:x2, y1:y2] = x[idx, :, x1:x2, y1:y2]
        lam = 1 - ((x2 - x1) * (y2 - y1) / (x.size(-1) * x.size(-2)))
        out = model(x)
        loss = crit(out, y) * lam + crit(out, y[idx]) * (1.0 - lam)
        if args.apex:
            with amp.scale_loss(loss / accum_steps, opt) as scaled:
                scaled.backward()
        else:
            {plain}.backward()
        if (i + 1) % accum_steps == 0:
            opt.step()
            opt.zero_grad()
"""
    assert codes(text) == expected


# jolibrain/joliGEN, models/cut_model.py: whoever calls it makes the loop; the object counts, here or there.
OBJECT = """\
import torch
from torch import nn

class Model:
    def __init__(self, net, opt):
        self.net = net.to(opt.device)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=opt.lr)
        self.opt = opt
        self.niter = 0
{elsewhere}
    def optimize_parameters(self, batch):
        {first}
        loss = nn.functional.mse_loss(self.net(batch["A"]), batch["B"])
        {loss}.backward()
        if self.niter % self.opt.iter_size == 0:
            self.optimizer.step()
            self.optimizer.zero_grad()
        {last}
"""
SET_INPUT = "\n    def set_input(self, batch):\n        self.batch = batch\n        self.niter += 1\n"


@pytest.mark.parametrize(
    ("first", "last", "elsewhere", "expected"),
    [
        ("pass", "self.niter = self.niter + 1", "", {"ACC006"}),
        ("self.niter += 1", "pass", "", set()),
        ("pass", "pass", SET_INPUT, set()),
    ],
)
def test_a_counter_of_the_object_that_is_called(first: str, last: str, elsewhere: str, expected: set[str]) -> None:
    parts = {"{first}": first, "{last}": last, "{elsewhere}": elsewhere}
    text = OBJECT
    for name, part in parts.items():
        text = text.replace(name, part)
    assert codes(text.replace("{loss}", "(loss / self.opt.iter_size)")) == expected


# hirofumi0810/neural_sp, neural_sp/bin/lm/train.py: the data set tells the end of an epoch.
@pytest.mark.parametrize(("loss", "expected"), [("loss", {"ACC001"}), ("(loss / args.accum_grad_n_steps)", set())])
def test_an_end_that_the_data_tell_beside_a_count_of_the_window(loss: str, expected: set[str]) -> None:
    text = f"""\
import torch
from models import build
from data import Dataset

def main(args):
    train_set = Dataset(args)
    model = build(args)
    optimizer = torch.optim.Adam(model.parameters())
    n = 0
    for epoch in range(args.n_epochs):
        for batch, is_new_epoch in train_set:
            n += 1
            loss, observation = model(batch)
            {loss}.backward()
            if n >= args.accum_grad_n_steps or is_new_epoch:
                optimizer.step()
                optimizer.zero_grad()
                n = 0
"""
    assert codes(text) == expected


# emonosuke/emoASR, asr/train_asr.py: a loss of several parts, made in either of two calls.
def test_parts_of_a_loss_that_are_used_together_only() -> None:
    text = """\
import torch
from torch import nn

def parts(out, y):
    loss = 0
    for head in out:
        loss = loss + nn.functional.ctc_loss(head, y, y, y, reduction="sum") / y.size(0)
    return loss

def train_step(model, optimizer, data, params, hold=False):
    loss = parts(model(data["x"]), data["y"])
    loss /= params.accum_grad
    loss.backward()
    if not hold:
        optimizer.step()
        optimizer.zero_grad()

def train(model, loader, params):
    optimizer = torch.optim.Adam(model.parameters())
    for i, data in enumerate(loader):
        if (i + 1) % params.accum_grad == 0:
            train_step(model, optimizer, data, params, hold=False)
        else:
            train_step(model, optimizer, data, params, hold=True)
"""
    assert codes(text) == set()


# baleato/atcs-project, k_shot_testing.py: NumPy comes out of `import *`.
def test_numpy_by_its_usual_name() -> None:
    text = """\
import torch
from tasks import *

def test(model, episodes, task, crit):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    scores = []
    for episode in episodes:
        for x, y in episode:
            opt.zero_grad()
            crit(model(x), y).backward()
            opt.step()
        found = []
        with torch.no_grad():
            for x, y in task.get_iter():
                found.append(task.accuracy(model(x), y))
        scores.append(np.asarray(found).mean())
    return scores
"""
    assert codes(text) == set()


# boschresearch/BCAI_kaggle_CHAMPS, src/train.py: a sum over a part of a batch, divided by a count of the whole batch.
def test_a_part_of_a_batch_by_a_slice_object() -> None:
    text = """\
import torch

def train(args, model, loader):
    opt = torch.optim.Adam(model.parameters())
    for x, y, bonds in loader:
        opt.zero_grad()
        size = args.batch_size // args.batch_chunk
        count = (bonds > 0).sum()
        for i in range(args.batch_chunk):
            part = slice(i * size, (i + 1) * size)
            err = (model(x[part]) - y[part]).abs().masked_select(bonds[part] > 0).sum()
            (err / count.float()).backward()
        opt.step()
"""
    assert codes(text) == set()


# BCV-Uniandes/DMS, train.py: the losses of a window are summed for one backward call, and the window is shifted.
@pytest.mark.parametrize(("test", "expected"), [("i", {"ACC006"}), ("(i + 1)", set())])
def test_a_shifted_window_of_a_deferred_sum(test: str, expected: set[str]) -> None:
    text = f"""\
import torch

def train(net, loader, criterion, args):
    optimizer = torch.optim.Adam(net.parameters())
    loss = 0
    for i, (x, y) in enumerate(loader):
        loss += criterion(net(x), y)
        if {test} % args.accum_iters == 0:
            loss = loss / args.accum_iters
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss = 0
"""
    assert codes(text) == expected


# minhmanminhman/stock-env, stock_env/algos/maml.py: the losses of the tasks of one update, summed for the log.
def test_a_sum_that_starts_anew_with_each_update() -> None:
    text = """\
import torch
from torch import nn

class Algo:
    def __init__(self, agent, args, envs):
        self.agent, self.args, self.envs = agent, args, envs
        self.meta_optimizer = torch.optim.Adam(agent.parameters())

    def _train(self):
        for x in self.envs.get():
            loss = nn.functional.mse_loss(self.agent(x), x)
            loss.backward()
        return loss

    def learn(self):
        for epoch in range(self.args.epochs):
            tasks = self.envs.sample_task(self.args.num_tasks)
            outer_loss = torch.tensor(0.0)
            self.meta_optimizer.zero_grad()
            for task in tasks:
                outer_loss += self._train()
            self.meta_optimizer.step()
            print(outer_loss / len(tasks))
"""
    assert codes(text) == set()


# opendp/smartnoise-sdk, whitenoise/synthesizers/pytorch/nn: gradients that nothing ever zeroes are no window.
def test_what_is_never_zeroed_is_no_undivided_window() -> None:
    text = """\
import torch
from torch import nn

def train(gen, student, teachers, loader, args):
    crit = nn.BCELoss()
    opt_g = torch.optim.Adam(gen.parameters())
    opts = [torch.optim.Adam(one.parameters()) for one in teachers]
    while True:
        for _ in range(args.teacher_iters):
            for teacher, opt in zip(teachers, opts):
                opt.zero_grad()
                fake = gen(torch.rand(4, 8))
                crit(teacher(fake), torch.zeros(4)).backward()
                opt.step()
        crit(student(gen(torch.rand(4, 8))), torch.ones(4)).backward()
        opt_g.step()
"""
    assert codes(text) == {"ACC015"}


# pyaf/siim-acr-pneumothorax-segmentation, train.py: k is a quotient, which comes out as 2.
def test_left_over_micro_batches_of_a_computed_window() -> None:
    text = """\
import torch
from torch import nn
from data import provider

class Trainer:
    def __init__(self, cfg, net):
        self.batch_size = cfg["batch_size"]
        self.accumulation_steps = {phase: 64 // size for phase, size in self.batch_size.items()}
        self.net = net
        self.optimizer = torch.optim.Adam(net.parameters())
        self.loaders = {phase: provider(phase, cfg) for phase in ("train", "val")}

    def iterate(self, phase):
        steps = self.accumulation_steps[phase]
        self.optimizer.zero_grad()
        for i, (x, y) in enumerate(self.loaders[phase]):
            loss = nn.functional.mse_loss(self.net(x), y) / steps
            if phase == "train":
                loss.backward()
                if (i + 1) % steps == 0:
                    self.optimizer.step()
                    self.optimizer.zero_grad()

    def train(self):
        for epoch in range(10):
            self.iterate("train")
"""
    assert codes(text, ALL) == {"ACC007"}


# mims-harvard/UniTS, exp/exp_pretrain.py: a scaler that is called, for parts of a batch and at the end of it.
def test_a_scaler_that_is_called_for_parts_of_a_batch() -> None:
    text = """\
import torch
from torch import nn
from utils import NativeScaler

def train(args, model, loader, acc_it):
    opt = torch.optim.Adam(model.parameters())
    scaler = NativeScaler()
    for i, batch in enumerate(loader):
        parts = torch.split(batch, 4)
        n = len(parts)
        for j in range(n):
            loss = nn.functional.mse_loss(model(parts[j]), parts[j])
            loss = loss / acc_it / n
            if j < n - 1:
                scaler(loss, opt, parameters=model.parameters(), update_grad=False)
        scaler(loss, opt, parameters=model.parameters(), update_grad=(i + 1) % acc_it == 0)
        if (i + 1) % acc_it == 0:
            opt.zero_grad()
"""
    found = check_text(text, "train.py", SHOWN)
    assert found.findings == () and {loop.state for loop in found.loops} == {"accumulates"}


# Losses of one batch, of which one is made from the outputs alone: still one micro-batch each.
def test_several_losses_of_one_batch_divided_without_a_window() -> None:
    text = """\
import timm
import torch
import torch.nn.functional as F

def train(loader, update_freq=4):
    model = timm.create_model("resnet18")
    opt = torch.optim.AdamW(model.parameters())
    for x, y in loader:
        out = model(x)
        losses = {"ce": F.cross_entropy(out, y), "l2": out.pow(2).mean()}
        loss = sum(losses.values()) / update_freq
        loss.backward()
        opt.step()
        opt.zero_grad()
"""
    assert codes(text) == {"ACC016"}


# laiguokun/LSTNet, main.py: the outputs of an evaluation are joined one after the other, with their graphs.
@pytest.mark.parametrize(
    ("kept", "expected"), [("output", {"ACC005"}), ("output.detach()", set()), ("output.data", set())]
)
def test_outputs_joined_batch_after_batch(kept: str, expected: set[str]) -> None:
    text = f"""\
import torch

def evaluate(data, model, batch_size):
    model.eval()
    predict = None
    for x, y in data.get_batches(batch_size, False):
        output = model(x)
        if predict is None:
            predict = {kept}
        else:
            predict = torch.cat((predict, {kept}))
    return predict.cpu().numpy()

def main(data, model, criterion):
    optim = torch.optim.Adam(model.parameters())
    for epoch in range(10):
        for x, y in data.get_batches(32, True):
            optim.zero_grad()
            criterion(model(x), y).backward()
            optim.step()
        evaluate(data, model, 32)
"""
    assert codes(text) == expected


# quancore/social-lstm, train.py: what `import *` has brought may be a function: nobody trains or evaluates it.
def test_what_nobody_trains_and_nobody_evaluates() -> None:
    text = """\
import torch
from helper import *

def train(net, batches, valid, crit):
    opt = torch.optim.Adam(net.parameters())
    for x in batches:
        opt.zero_grad()
        crit(net(x), x).backward()
        opt.step()
    error = 0
    for x in valid:
        out = net(x)
        picked = sample_gaussian(out.data)
        error += torch.norm(picked - x, p=2)
    return error
"""
    assert codes(text) == set()
