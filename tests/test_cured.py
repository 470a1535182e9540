"""Mistakes that commits of public projects have made or cured, reduced: each names the project and the commit."""

from __future__ import annotations

import dataclasses

import pytest

from acclint.findings import Confidence, Severity
from acclint.lint import check_text
from acclint.settings import Settings

SHOWN = dataclasses.replace(Settings(), min_severity=Severity.WARNING, min_confidence=Confidence.MEDIUM)


def codes(text: str) -> set[str]:
    return {one.code for one in check_text(text, "train.py", SHOWN).findings}


# lopuhin/kaggle-kuzushiji-2019, kuzushiji/classify/main.py before "zero grad after step": ignite calls it.
ITERATION = """\
from ignite.engine import Engine

def create_trainer(model, optimizer, loss_fn, accumulation_steps):
    def update(engine, batch):
        {before}
        x, y = batch
        loss = loss_fn(model(x), y) / accumulation_steps
        loss.backward()
        if engine.state.iteration % accumulation_steps == 0:
            optimizer.step()
            {behind}
        return loss.item()
    return Engine(update)
"""


@pytest.mark.parametrize(
    ("before", "behind", "expected"),
    [
        ("pass", "optimizer.zero_grad()", set()),
        ("if engine.state.iteration % accumulation_steps == 1: optimizer.zero_grad()", "pass", set()),
        ("if engine.state.iteration % accumulation_steps == 0: optimizer.zero_grad()", "pass", {"ACC002"}),
        ("optimizer.zero_grad()", "pass", {"ACC002"}),
    ],
)
def test_the_loop_of_an_engine(before: str, behind: str, expected: set[str]) -> None:
    assert codes(ITERATION.format(before=before, behind=behind)) == expected


# KatasonovEugene/vesuvius-challenge-surface-detection, src/trainer/trainer.py: the project's base class has the loop.
STEP = """\
class Trainer:
    def __init__(self, model, criterion, optimizer, grad_accum_steps=1):
        self.model, self.criterion, self.optimizer = model, criterion, optimizer
        self.grad_accum_steps = grad_accum_steps

    def process_batch(self, batch, {index}, metrics):
        if ({index} + {begin}) % self.grad_accum_steps == 0:
            self.optimizer.zero_grad()
        batch.update(self.model(**batch))
        losses = self.criterion(**batch)
        for name in losses.keys():
            losses[name] = losses[name] / self.grad_accum_steps
        batch.update(losses)
        batch["loss"].backward()
        if ({index} + 1) % self.grad_accum_steps == 0:
            self.optimizer.step()
        return batch
"""


@pytest.mark.parametrize("index", ["batch_idx", "train_iter", "current_step", "n_iter"])
@pytest.mark.parametrize(("begin", "expected"), [("0", set()), ("1", {"ACC002"})])
def test_the_loop_of_a_caller(index: str, begin: str, expected: set[str]) -> None:
    assert codes(STEP.format(index=index, begin=begin)) == expected


# speechbrain/speechbrain, speechbrain/core.py: subclasses compute the loss; it reaches the same optimizer each time.
ABSTRACT = """\
class Brain:
    def compute_objectives(self, batch):
        raise NotImplementedError

    def fit_batch(self, batch):
        should_step = self.step % self.grad_accumulation_factor == 0
        {before}
        loss = self.compute_objectives(batch)
        (loss / self.grad_accumulation_factor).backward()
        if should_step:
            self.optimizer.step()
            {behind}
        return loss.detach()

    def fit(self, loader):
        self.step = 0
        for batch in loader:
            self.step += 1
            self.fit_batch(batch)
"""


@pytest.mark.parametrize(
    ("before", "behind", "expected"),
    [("pass", "self.optimizer.zero_grad()", set()), ("self.optimizer.zero_grad()", "pass", {"ACC002"})],
)
def test_an_abstract_loss(before: str, behind: str, expected: set[str]) -> None:
    assert codes(ABSTRACT.format(before=before, behind=behind)) == expected


# Kamil2601/nanoGPT-chess and Aphoh/nanoGPT-playground, train.py: what a script sets, its command line overrides.
OVERRIDDEN = """\
import torch
from model import GPT

{k}
batch_size = 12
{configured}
model = GPT()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for iter_num in range(1000):
    optimizer.zero_grad()
    for micro_step in range(gradient_accumulation_steps):
        logits, loss = model(*get_batch("train"))
        loss{division}.backward()
    optimizer.step()
"""
CONFIGURED = "exec(open('configurator.py').read())"


@pytest.mark.parametrize(
    ("k", "configured", "division", "expected"),
    [
        ("gradient_accumulation_steps = 1", CONFIGURED, "", {"ACC001"}),
        ("gradient_accumulation_steps = 1", CONFIGURED, "/gradient_accumulation_steps", set()),
        ("gradient_accumulation_steps = 1", "", "", set()),
        ("gradient_accumulation_steps = 5", "", "", {"ACC001"}),
        ("gradient_accumulation_steps = 5", "", "/gradient_accumulation_steps", set()),
    ],
)
def test_settings_that_are_overridden(k: str, configured: str, division: str, expected: set[str]) -> None:
    division = f".mul(1 {division})" if division else ""
    assert codes(OVERRIDDEN.format(k=k, configured=configured, division=division)) == expected


# DianDYu/MIDAS_dialog_act, run_classifier.py, and EMBEDDIA/morphological-BERT: the optimizer's own schedule.
OWN_SCHEDULE = """\
import csv
import torch
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

class BERTAdam(Optimizer):
    def __init__(self, params, lr, warmup=-1, t_total=-1):
        super().__init__(params, dict(lr=lr, warmup=warmup, t_total=t_total))

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                rate = group["lr"] * max(0, 1 - self.state[p]["step"] / group["t_total"])
                p.data.add_(p.grad, alpha=-rate)
                self.state[p]["step"] += 1

class Processor:
    def read(self, path):
        lines = []
        for line in csv.reader(open(path)):
            lines.append(line)
        return lines

    def examples(self, path):
        found = []
        for i, line in enumerate(self.read(path)):
            if i == 0:
                continue
            found.append(line)
        return found

def main(args, model):
    args.train_batch_size = int(args.train_batch_size / args.gradient_accumulation_steps)
    examples = Processor().examples(args.path)
    steps = int(len(examples) / args.train_batch_size{division} * args.num_train_epochs)
    optimizer = BERTAdam(model.parameters(), lr=args.lr, warmup=0.1, t_total=steps)
    data = TensorDataset(torch.tensor([one.ids for one in examples]))
    loader = DataLoader(data, batch_size=args.train_batch_size)
    for _ in range(int(args.num_train_epochs)):
        for step, batch in enumerate(loader):
            loss = model(batch) / args.gradient_accumulation_steps
            loss.backward()
            if (step + 1) % args.gradient_accumulation_steps == 0:
                optimizer.step()
                model.zero_grad()
"""


@pytest.mark.parametrize(("division", "expected"), [(" / args.gradient_accumulation_steps", set()), ("", {"ACC004"})])
def test_the_schedule_of_an_optimizer_of_the_project(division: str, expected: set[str]) -> None:
    assert codes(OWN_SCHEDULE.format(division=division)) == expected


# facebookresearch/dlrm, dlrm_s_pytorch.py: a run may go on where another has ended; sparse gradients are made dense.
RESUMED = """\
import argparse
import torch
from torch import nn

def densify(model):
    for p in model.parameters():
        if p.grad.is_sparse:
            p.grad = p.grad.to_dense()

parser = argparse.ArgumentParser()
parser.add_argument("--load-model", type=str, default="")
parser.add_argument("--nepochs", type=int, default=1)
parser.add_argument("--grad-accum-iter", type=int, default=1)
args = parser.parse_args()
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
skip = 0
if not (args.load_model == ""):
    state = torch.load(args.load_model)
    model.load_state_dict(state["model"])
    skip = state["epoch"]
k = 0
while k < args.nepochs:
    if k < skip:
        k += 1
        continue
    for j, (x, y) in enumerate(loader):
        loss = nn.functional.mse_loss(model(x), y) / args.grad_accum_iter
        if (j + {begin}) % args.grad_accum_iter == 0:
            optimizer.zero_grad()
        loss.backward()
        densify(model)
        if (j + 1) % args.grad_accum_iter == 0:
            optimizer.step()
    k += 1
"""


@pytest.mark.parametrize(("begin", "expected"), [("0", set()), ("1", {"ACC002"})])
def test_a_run_that_is_not_resumed(begin: str, expected: set[str]) -> None:
    assert codes(RESUMED.format(begin=begin)) == expected


# rasoolims/ImageTranslate, utils.py: the step of torch's optimizer, and rates set beside it.
DERIVED = """\
import torch
from torch import nn

class Warmup(torch.optim.SGD):
    def step(self, closure=None):
        {before}
        super().step(closure)
        for group in self.param_groups:
            group["updates"] = group.get("updates", 0) + 1
            group["lr"] = 0.1 / group["updates"]

def train(model, loader, accum):
    optimizer = Warmup(model.parameters(), lr=0.1)
    step = 0
    for x, y in loader:
        nn.functional.mse_loss(model(x), y){division}.backward()
        step += 1
        if step % accum == 0:
            optimizer.step()
            optimizer.zero_grad()
"""


@pytest.mark.parametrize(
    ("before", "division", "expected"),
    [
        ("pass", ".div(accum)", set()),
        ("pass", "", {"ACC001"}),
        ("[p.grad.div_(self.steps) for group in self.param_groups for p in group['params']]", "", set()),
    ],
)
def test_an_optimizer_derived_from_one_of_torch(before: str, division: str, expected: set[str]) -> None:
    assert codes(DERIVED.format(before=before, division=division)) == expected


# eladhoffer/convNet.pytorch, trainer.py: an optimizer that the constructor is given, None by default.
CHUNKS = """\
class Trainer:
    def __init__(self, model, criterion, optimizer=None):
        self.model, self.criterion = model, criterion
        self.optimizer = optimizer

    def _step(self, inputs_batch, target_batch, training=False, chunk_batch=1):
        if training:
            self.optimizer.zero_grad()
        for inputs, target in zip(inputs_batch.chunk(chunk_batch, dim=0), target_batch.chunk(chunk_batch, dim=0)):
            loss = self.criterion(self.model(inputs), target) / chunk_batch
            if training:
                loss.backward()
                {inside}
        {behind}

    def forward(self, loader, training=False, chunk_batch=1):
        for inputs, target in loader:
            self._step(inputs, target, training=training, chunk_batch=chunk_batch)

    def train(self, loader, chunk_batch=1):
        return self.forward(loader, training=True, chunk_batch=chunk_batch)
"""


@pytest.mark.parametrize(
    ("inside", "behind", "found"), [("pass", "self.optimizer.step()", False), ("self.optimizer.step()", "pass", True)]
)
def test_an_optimizer_that_is_handed_in(inside: str, behind: str, found: bool) -> None:
    assert bool(codes(CHUNKS.format(inside=inside, behind=behind))) is found


# yingkunwu/R-YOLOv4, train.py: a weighted sum of means, none of which is divided.
WEIGHTED = """\
import torch
from torch import nn

def train(model, loader, subdivisions):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    mse, l1 = nn.MSELoss(), nn.L1Loss()
    for i, (x, y, z) in enumerate(loader):
        a, b = model(x)
        loss = 10 * mse(a, y) + l1(b, z){weight}
        loss{division}.backward()
        if (i + 1) % subdivisions == 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
"""


@pytest.mark.parametrize(
    ("weight", "division", "expected"),
    [("", "", {"ACC001"}), ("", ".div(subdivisions)", set()), (" * 0.5", "", set())],
)
def test_a_weighted_sum_that_is_not_divided(weight: str, division: str, expected: set[str]) -> None:
    assert codes(WEIGHTED.format(weight=weight, division=division)) == expected


# huggingface/open-muse, training/train_vqgan.py: whose turn it is depends on a remainder and on a warm-up.
TURNS = """\
import torch
from torch import nn

def train(config, model, critic, loader):
    k = config.gradient_accumulation_steps
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    other = torch.optim.SGD(critic.parameters(), lr=0.1)
    for i, (x, y) in enumerate(loader):
        mine = ((i // k) % 2) == 0 and i > config.discriminator_warmup
        if mine:
            (nn.functional.mse_loss(model(x), y) / k).backward()
            if (i + 1) % k == 0:
                optimizer.step()
                optimizer.zero_grad()
        else:
            (nn.functional.l1_loss(critic(x), y) / k).backward()
            if (i + 1) % k == 0:
                other.step()
                other.zero_grad()
"""


def test_a_warm_up_is_no_window() -> None:
    assert codes(TURNS) == set()


# RVC-Boss/GPT-SoVITS, AR/models/t2s_model.py: a sum over tokens, and the mean of another loss.
SUMMED = """\
import torch.nn.functional as F

def train(model, optimizer, loader):
    for i, (x, y) in enumerate(loader):
        logits = model(x)
        loss = F.cross_entropy(logits, y, reduction="{reduction}") + F.mse_loss(logits, x)
        loss.backward()
        if (i + 1) % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
"""


@pytest.mark.parametrize(("reduction", "expected"), [("sum", set()), ("mean", {"ACC001"})])
def test_a_mean_beside_a_sum(reduction: str, expected: set[str]) -> None:
    assert codes(SUMMED.format(reduction=reduction)) == expected


# uclanlp/visualbert, visualbert/models/model_wrapper.py: a step that evaluates or trains.
MODES = """\
import torch

class Wrapper:
    def __init__(self, args, model, optimizer):
        self.args, self.model, self.optimizer = args, model, optimizer
        self.called_time = 0

    def step(self, batch, eval_mode=False):
        if eval_mode:
            with torch.no_grad():
                output = self.model(**batch)
                return output
        {before}
        loss = self.model(**batch)["loss"].mean() / self.args.gradient_accumulation_steps
        loss.backward()
        if (self.called_time + 1) % self.args.gradient_accumulation_steps == 0:
            self.optimizer.step()
            {behind}
        self.called_time += 1
"""


@pytest.mark.parametrize(
    ("before", "behind", "expected"),
    [("pass", "self.optimizer.zero_grad()", set()), ("self.optimizer.zero_grad()", "pass", {"ACC002"})],
)
def test_a_step_that_evaluates_or_trains(before: str, behind: str, expected: set[str]) -> None:
    assert codes(MODES.format(before=before, behind=behind)) == expected


# huggingface/pytorch-image-models, a branch of train.py: the project's own scaler object counts the micro-batches.
SCALER = """\
import torch
from torch import nn
from timm.utils import NativeScaler

def train(model, loader, k):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = NativeScaler()
    for i, (x, y) in enumerate(loader):
        loss = nn.functional.mse_loss(model(x), y) / k
        scaler(loss, optimizer{more})
        {zero}
"""


@pytest.mark.parametrize(
    ("more", "zero", "expected"),
    [
        (", batch_idx=i, iters_to_accumulate=k", "pass", set()),
        ("", "optimizer.zero_grad()", {"ACC016"}),
        (", need_update=(i + 1) % k == 0", "(i + 1) % k == 0 and optimizer.zero_grad()", set()),
    ],
)
def test_a_scaler_that_counts(more: str, zero: str, expected: set[str]) -> None:
    text = (
        SCALER.format(more=more, zero=zero)
        .replace("/ k", "/ accumulation_steps")
        .replace("loader, k", "loader, k, accumulation_steps")
    )
    assert codes(text) == expected


# facebookresearch/SLIP, main.py: a meter that is given the loss with each update, and made anew for each epoch.
METERED = """\
import torch.nn.functional as F

class AverageMeter:
    def __init__(self):
        self.sum, self.count = 0, 0

    def update(self, value, n=1):
        self.sum += value * n
        self.count += n

def train(model, optimizer, loader, k):
    meter = AverageMeter()
    for i, (x, y) in enumerate(loader):
        loss = F.mse_loss(model(x), y) / k
        loss.backward()
        if (i + 1) % k != 0:
            continue
        optimizer.step()
        optimizer.zero_grad()
        meter.update(loss{value}, len(x))
    return meter.sum / meter.count

def main(model, optimizer, loader, k):
    for epoch in range(3):
        train(model, optimizer, loader, k)
"""


@pytest.mark.parametrize(("value", "expected"), [(".item()", set()), (".detach()", set()), ("", {"ACC005"})])
def test_a_meter_of_updates(value: str, expected: set[str]) -> None:
    assert codes(METERED.format(value=value)) == expected


# facebookresearch/dino, main_dino.py: a sum over pairs of views that is divided behind the loops that made it.
VIEWS = """\
import torch
import torch.nn.functional as F

class Loss(torch.nn.Module):
    def forward(self, student, teacher):
        total, n = 0, 0
        for i, q in enumerate(teacher.chunk(2)):
            for j, v in enumerate(student.chunk(4)):
                if i != j:
                    total += F.mse_loss(v, q)
                    n += 1
        total /= n
        return total

def train(student, teacher, optimizer, loader):
    criterion = Loss()
    for x in loader:
        loss = criterion(student(x), teacher(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


def test_a_sum_that_is_divided_behind_its_loops() -> None:
    assert codes(VIEWS) == set()


# What a review of these cures has found.
LAST = """\
class Engine:
    def __init__(self, model, optimizer, k):
        self.model, self.optimizer, self.k = model, optimizer, k

    def training_step(self, batch, batch_idx, last_batch=False):
        if batch_idx % self.k == 0:
            self.optimizer.zero_grad()
        loss = self.model(batch).loss{division}
        loss.backward()
        if (batch_idx + 1) % self.k == 0 or {last}:
            self.optimizer.step()
"""


@pytest.mark.parametrize("last", ["last_batch", "self.trainer.is_last_batch", "self.last(batch_idx)", "batch.force"])
def test_an_end_that_somebody_else_tells(last: str) -> None:
    assert codes(LAST.format(last=last, division=" / self.k")) == set()
    assert codes(LAST.format(last=last, division="")) == {"ACC001"}


CALLED_BACK = """\
import torch.nn.functional as F

class Trainer:
    def __init__(self, net, opt, callbacks, k):
        self.net, self.opt, self.callbacks, self.k = net, opt, callbacks, k

    def fit(self, loader, on_update):
        for i, (x, y) in enumerate(loader):
            (F.cross_entropy(self.net(x), y) / self.k).backward()
            if i % self.k == self.k - 1:
                self.opt.step()
                {called}
"""


@pytest.mark.parametrize(
    ("called", "expected"),
    [
        ("pass", {"ACC015"}),
        ("self.log(i)", {"ACC015"}),
        ("on_update()", set()),
        ("self.call_hook('after_step')", set()),
        ("for one in self.callbacks: one.on_step_end(self)", set()),
    ],
)
def test_code_that_is_called_back_may_zero(called: str, expected: set[str]) -> None:
    assert codes(CALLED_BACK.format(called=called)) == expected


TOLD = """\
class Base:
    def __init__(self, model, optimizer=None, accum_steps=4):
        self.model, self.optimizer, self.accum_steps = model, optimizer, accum_steps

    def compute_loss(self, batch, accum=1):
        raise NotImplementedError

    def train(self, loader):
        for i, batch in enumerate(loader):
            loss = self.compute_loss(batch{told})
            loss.backward()
            if (i + 1) % self.accum_steps == 0:
                self.optimizer.step()
                self.optimizer.zero_grad()
"""


@pytest.mark.parametrize(("told", "expected"), [(", self.accum_steps", set()), ("", {"ACC001"})])
def test_whoever_makes_the_loss_is_told_k(told: str, expected: set[str]) -> None:
    assert codes(TOLD.format(told=told)) == expected


TARGET = """\
import torch.nn.functional as F

def train(model, loader, optimizer, {limit}, micro=8):
    seen = 0
    for x, y in loader:
        bs = x.shape[0]
        {loss}.backward()
        seen += bs
        if {test}:
            for p in model.parameters():
                p.grad {edit}
            optimizer.step()
            optimizer.zero_grad()
            seen = 0
"""


@pytest.mark.parametrize("limit", ["target_bs", "effective_batch_size", "limit", "tokens_per_step", "target"])
@pytest.mark.parametrize(
    ("loss", "edit"),
    [
        ("(F.cross_entropy(model(x), y, reduction='sum') / LIMIT)", "/= 1"),
        ("(F.cross_entropy(model(x), y) * bs / LIMIT)", "/= 1"),
        ("F.cross_entropy(model(x), y, reduction='sum')", "/= LIMIT"),
    ],
)
@pytest.mark.parametrize("test", ["seen >= LIMIT", "seen // LIMIT > 0"])
def test_as_many_samples_as_a_target(limit: str, loss: str, edit: str, test: str) -> None:
    text = TARGET.format(limit=limit, loss=loss, edit=edit, test=test)
    assert codes(text.replace("LIMIT", limit)) == set()


def test_records_that_are_put_into_one_another() -> None:
    text = """
def train(model, optimizer, loader, k):
    for i, batch in enumerate(loader):
        out = model(batch)
        batch.update(out)
        out.update(batch)
        batch.update(batch)
        (batch["loss"] / k).backward()
        if (i + 1) % k == 0:
            optimizer.step()
            optimizer.zero_grad()
"""
    assert codes(text) == set()
    assert codes(text.replace(" / k", " / 1")) == {"ACC001"}
