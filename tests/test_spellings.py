"""Training code that is right, or wrong, in a way that a small change of spelling must not hide."""

from __future__ import annotations

import dataclasses

import pytest

from acclint.findings import Confidence, Severity
from acclint.lint import check_text
from acclint.settings import Settings

SHOWN = dataclasses.replace(Settings(), min_severity=Severity.WARNING, min_confidence=Confidence.MEDIUM)
LOOP = """\
import torch
from torch import nn
import torch.nn.functional as F
from torch.optim.lr_scheduler import {scheduler}

model = nn.Linear(8, 2)
opt = torch.optim.SGD(model.parameters(), lr=0.1)
sched = {made}
for i in range(10000):
    x, y = torch.randn(4, 8), torch.randint(0, 2, (4,))
    (F.cross_entropy(model(x), y) / 4).backward()
    if (i + 1) % 4 == 0:
        opt.step()
        opt.zero_grad()
    sched.step()
"""
TRAIN = """\
import torch
from torch import nn
import torch.nn.functional as F


def train(model, loader, opt, k, phase):
    for i, (x, y) in enumerate(loader):
        {loss}
        if (i + 1) % k == 0:
            opt.step()
            opt.zero_grad()
"""


def codes(text: str) -> set[str]:
    return {finding.code for finding in check_text(text, "train.py", SHOWN).findings}


@pytest.mark.parametrize(
    ("scheduler", "made"),
    [
        ("StepLR", "StepLR(opt, step_size=2500)"),
        ("LinearLR", "LinearLR(opt, total_iters=2500)"),
        ("CosineAnnealingWarmRestarts", "CosineAnnealingWarmRestarts(opt, T_0=2500)"),
        ("CosineAnnealingLR", "CosineAnnealingLR(opt, T_max=10000)"),
    ],
)
def test_a_period_or_a_warm_up_of_a_quarter_is_no_number_of_updates(scheduler: str, made: str) -> None:
    assert codes(LOOP.format(scheduler=scheduler, made=made)) == set()


def test_a_whole_schedule_of_a_quarter_is_the_number_of_updates() -> None:
    assert codes(LOOP.format(scheduler="CosineAnnealingLR", made="CosineAnnealingLR(opt, T_max=2500)")) == {"ACC004"}


@pytest.mark.parametrize(
    "loss",
    [
        "(F.cross_entropy(model(x), y, reduction='sum') / (len(y) * k)).backward()",
        "(F.cross_entropy(model(x), y, reduction='sum') / (k * y.numel())).backward()",
        "(F.cross_entropy(model(x), y) * (nn.Parameter(torch.ones(())) / k)).backward()",
        "logits, loss = model(x, loss_scale=1.0 / k); loss.backward()",
        "loss, scaled_loss = model(x, y); scaled_loss.backward()",
    ],
)
def test_divided_in_another_way(loss: str) -> None:
    assert codes(TRAIN.format(loss=loss)) == set()


def test_that_an_evaluation_does_not_divide_says_nothing() -> None:
    loss = """loss = F.cross_entropy(model(x), y)
        if model.training:
            loss = loss / k
        else:
            print(loss.item())
        if phase == "train":
            loss.backward()"""
    assert codes(TRAIN.format(loss=loss)) == set()


def test_no_product_with_a_batch_size_is_too_large() -> None:
    loss = """loss = F.cross_entropy(model(x), y, reduction="sum")
        print(loss / (1e400 * opt.batch_size))
        (loss / (opt.batch_size * k)).backward()"""
    assert codes(TRAIN.format(loss=loss)) == set()


def test_a_counter_is_raised_in_full_before_the_training() -> None:
    text = TRAIN.replace("def train(", "step = 0\nfor _ in range(5):\n    step += 1\n\n\ndef train(")
    text = text.replace("        {loss}\n", "        global step\n        {loss}\n        step += 1\n")
    text = text.replace("(i + 1) % k", "step % 5")
    assert codes(text.format(loss="(F.cross_entropy(model(x), y) / 5).backward()")) == set()


KEPT = """\
import torch
import torch.nn.functional as F


def train(model, opt, batches, accum):
    for epoch in range(10):
        kept = []
        for i in range({count}):
            x, y = next(batches)
            out = model(x)
            (F.cross_entropy(out, y) / accum).backward()
            kept.append(out)
            if (i + 1) % accum == 0:
                opt.step()
                opt.zero_grad()
"""


def test_a_multiple_of_a_window_is_no_window() -> None:
    assert codes(KEPT.format(count="len(batches) // accum * accum")) == {"ACC005"}


ZEROED = """\
import torch.nn.functional as F
from nets import Net


def train(loader, make, k):
    model = Net()
    opt = make(model.parameters())
    for i, (x, y) in enumerate(loader):
        opt.zero_grad()
        (F.cross_entropy(model(x), y) / k).backward()
        model.{method}()
        if (i + 1) % k == 0:
            opt.step()
"""


def test_only_who_keeps_gradients_keeps_them() -> None:
    assert codes(ZEROED.format(method="save_grad_stats")) == {"ACC002"}
    assert codes(ZEROED.format(method="store_grad_norm")) == {"ACC002"}
    assert codes(ZEROED.format(method="accumulate_grads")) == set()


PLUGIN = """\
import torch
from accelerate import Accelerator


def main(args, model, loader, ds_plugin=None):
    accelerator = Accelerator(gradient_accumulation_steps=4, deepspeed_plugin=ds_plugin)
    opt = torch.optim.AdamW(model.parameters())
    model, opt, loader = accelerator.prepare(model, opt, loader)
    for batch in loader:
        with accelerator.accumulate(model):
            opt.zero_grad()
            accelerator.backward(model(**batch).loss)
            opt.step()
"""


def test_a_plugin_that_may_be_none_is_no_deepspeed() -> None:
    assert codes(PLUGIN) == {"ACC002"}


LIMITED = """\
import torch.nn.functional as F


class Trainer:
    def __init__(self, model, opt, loader, k=4, dataset_limit=None):
        self.model, self.opt, self.loader, self.k = model, opt, loader, k
        if dataset_limit is not None:
            self.k = 1

    def fit(self):
        for i, (x, y) in enumerate(self.loader):
            F.cross_entropy(self.model(x), y).backward()
            if (i + 1) % self.k == 0:
                self.opt.step()
                self.opt.zero_grad()
"""


def test_a_limit_is_not_what_a_training_is_made_of() -> None:
    assert codes(LIMITED) == {"ACC001"}


BEGUN = """\
import torch
import torch.nn.functional as F


def train(model, loader, args):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    each = len(load(args.data)) // args.samples
    for epoch in range(args.start_epoch, args.max_epoch):
        for i, (x, y) in enumerate(loader):
            done = i + epoch * each
            (F.cross_entropy(model(x), y) / args.accumulate).backward()
            if {test} % args.accumulate == 0:
                opt.step()
                opt.zero_grad()
"""


# yjh0410/PyTorch_YOLO-Family, train.py
def test_a_counter_that_begins_at_an_unknown_number_counts() -> None:
    assert codes(BEGUN.format(test="done")) == {"ACC006"}
    assert codes(BEGUN.format(test="(done + 1)")) == set()


RECORD = """\
import torch
from torch import nn
from dataclasses import dataclass


@dataclass
class Output:
    loss: torch.Tensor
    logits: torch.Tensor


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 2)

    def forward(self, x, y):
        logits = self.head(x)
        return Output(loss=nn.functional.cross_entropy(logits, y).mean(), logits=logits)


def train(loader, args):
    model = Net()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    for i, (x, y) in enumerate(loader, 1):
        out = model(x, y)
        {backward}
        if i % args.accumulate == 0:
            opt.step()
            opt.zero_grad()
"""


def test_each_forward_pass_makes_a_record_of_its_own() -> None:
    assert codes(RECORD.format(backward="out.loss.backward()")) == {"ACC001"}
    assert codes(RECORD.format(backward="(out.loss / args.accumulate).backward()")) == set()


EITHER = """\
import torch.nn.functional as F


class Trainer:
    def __init__(self, model, opt, train_loader=None):
        self.model, self.opt, self.train_loader = model, opt, train_loader

    def train(self, train_loader=None, k=4):
        train_loader = train_loader or self.train_loader
        for i, (x, y) in enumerate(train_loader, 1):
            F.cross_entropy(self.model(x), y).backward()
            if i % k == 0:
                self.opt.step()
                self.opt.zero_grad()
"""


# 2796gaurav/tinyllm2, src/training/trainer.py
def test_one_loader_or_the_other() -> None:
    assert codes(EITHER) == {"ACC001"}


TRIAL = """\
import torch
from torch import nn
import torch.nn.functional as F
from torch.utils.data import DataLoader


def main(data, large):
    model = nn.Linear(8, 2)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in DataLoader(large):
        F.cross_entropy(model(x), y).backward()
        opt.zero_grad()
    for x, y in DataLoader(data):
        F.mse_loss(model(x), y).backward()
        opt.step()
        opt.zero_grad()
        break
"""


# k2-fsa/icefall, zipformer_lora/train.py: whether the largest batches fit into memory is tried before training.
def test_a_trial_of_backward_passes_before_training_throws_nothing_away() -> None:
    assert codes(TRIAL) == set()


PHASES = """\
import torch
from torch import nn
import torch.nn.functional as F
from torch.utils.data import DataLoader


class Trainer:
    def __init__(self, model, args):
        self.policy = model
        self.args = args
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        self.global_step = 0

    def imitate(self, pool):
        opt = torch.optim.AdamW(self.policy.parameters(), lr=1e-5)
        for x, y in DataLoader(pool, batch_size=8):
            loss = F.cross_entropy(self.policy(x), y)
            opt.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
            opt.step()

    def on_step_end(self, step):
        if self.args.interval > 0 and step > 0 and step % self.args.interval == 0:
            self.imitate(self.pool)

    def train(self, loader):
        accum_steps = self.args.gradient_accumulation_steps
        self.optimizer.zero_grad()
        for x, y in loader:
            loss = F.cross_entropy(self.policy(x), y)
            if accum_steps > 1:
                loss = loss / accum_steps
            loss.backward()
            if (self.global_step + 1) % accum_steps == 0:
                torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
                self.optimizer.step()
                self.optimizer.zero_grad()
            self.on_step_end(self.global_step)
            self.global_step += 1
"""


# ShaneLiu04/nanoGPT-Modern, training/iterative_grpo.py: now and then another optimizer trains the same parameters.
def test_another_optimizer_of_the_same_parameters_has_windows_of_its_own() -> None:
    assert codes(PHASES) == set()


SCORES = """\
import torch
from torch import nn
from metrics import inception_score
gen = nn.Linear(8, 8)
opt = torch.optim.Adam(gen.parameters())
disc = nn.Linear(8, 8)
noise = torch.randn(4, 8)


def fit(loader):
    scores = []
    for epoch in range(100):
        for real in loader:
            fake = gen(noise)
            loss = disc(fake).mean()
            loss.backward()
            opt.step()
            opt.zero_grad()
        gen.eval()
        image = gen(noise)
        score = inception_score(image, cuda=True)[0]
        scores.append(score)


fit(loader)
"""


# timmytonga/gans-vi, notebooks/avgadam_vanilla.ipynb: what an unknown metric returns first is no loss of the model.
def test_a_metric_of_outputs_keeps_no_graph() -> None:
    assert codes(SCORES) == set()


BUFFER = """\
import torch
from torch import nn
import torch.nn.functional as F
from torch.utils.data import DataLoader

TASKS = 3


def train(loaders, state):
    model = nn.Linear(8, 2)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    step = state["step"]
    task = 0
    losses = []
    for epoch in range(10):
        for _ in range(1000):
            task = (task + 1) % TASKS
            x, y = next(loaders[task])
            losses.append(F.cross_entropy(model(x), y))
            if step % TASKS == 0:
                for loss in losses:
                    loss.backward(retain_graph=True)
                opt.step()
                opt.zero_grad()
                losses = []
            step += 1
"""


# cyingliu/CS224n-Efficient-MT-BERT, multitask_classifier.py: backward where the losses of all tasks are there.
def test_a_window_test_of_an_unknown_step_is_not_flipped_to_keep_losses_for_ever() -> None:
    assert codes(BUFFER) == set()


KEPT_GRADIENTS = """\
import torch
from torch import nn
import torch.nn.functional as F


def train(loader, k):
    model = nn.Linear(8, 2)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    for i, (x, y) in enumerate(loader):
        (F.cross_entropy(model(x), y) / k).backward()
        opt.step()
        if (i + 1) % k == 0:
            opt.zero_grad()
"""


# huggingface/accelerate, test_utils/scripts/test_sync.py: the gradients do add up here.
def test_what_is_stepped_each_time_and_zeroed_each_kth_repeats_micro_batches() -> None:
    (finding,) = check_text(KEPT_GRADIENTS, "train.py", SHOWN).findings
    assert finding.code == "ACC016"
    assert "repeats the micro-batches" in finding.message


LAST_STEP = """\
import torch
from torch import nn
import torch.nn.functional as F

model = nn.Linear(8, 2)
opt = torch.optim.SGD(model.parameters(), lr=0.1)
for i in range(12):
    x, y = torch.randn(4, 8), torch.randint(0, 2, (4,))
    F.cross_entropy(model(x), y).backward()
    opt.step()
    opt.zero_grad()
F.cross_entropy(model(x), y).backward()
opt.step()
"""


# NVIDIA/DeepLearningExamples, PyTorch/LanguageModeling/BERT/run_pretraining.py: the last update is in no loop.
def test_an_update_behind_the_loop() -> None:
    assert codes(LAST_STEP) == set()


CHUNKS = """\
import torch
from torch import nn
import torch.nn.functional as F
from helpers import prepare


def train(model, loader, optimizer, scheduler, micro, k):
    for it, batch in enumerate(loader):
        model.zero_grad()
        x = batch["x"].to("cuda")
        y = batch["y"].to("cuda")
        x, y = prepare(x, y)
        scale = 1.0 / k
        for at in range(0, x.size(0), micro):
            if at + micro < x.size(0):
                loss = F.cross_entropy(model(x[at : at + micro]), y[at : at + micro])
                (scale * loss).backward()
            else:
                loss = F.cross_entropy(model(x[at:]), y[at:])
                (scale * loss).backward()
                optimizer.step()
                scheduler.step()
"""


# Edward-Sun/easy-to-hard, train_rm_pointwise.py: the last chunk of each batch updates.
def test_the_last_chunk_of_a_batch_is_told_by_where_it_ends() -> None:
    assert codes(CHUNKS) == set()


CHUNKS_OF_SETTINGS = """\
import argparse

parser = argparse.ArgumentParser()
parser.add_argument("--per_device_train_batch_size", type=int, default=4)
parser.add_argument("--micro_train_batch_size", type=int, default=None)
args = parser.parse_args()


def train(model, loader, optimizer, world):
    micro = args.micro_train_batch_size or args.per_device_train_batch_size
    accumulate_steps = args.per_device_train_batch_size // micro
    micro = micro * world
    scale = 1.0 / accumulate_steps
    for batch in loader:
        model.zero_grad()
        ids = batch["input_ids"].cuda()
        for at in range(0, ids.size(0), micro):
            if at + micro < ids.size(0):
                (scale * model(ids[at : at + micro]).loss).backward()
            else:
                (scale * model(ids[at:]).loss).backward()
                optimizer.step()
"""


# Edward-Sun/easy-to-hard, train_rm_pairwise.py: the sizes of batch and chunk are told by no text to fit each other.
def test_the_last_chunk_is_told_where_the_sizes_do_not_fit() -> None:
    assert codes(CHUNKS_OF_SETTINGS) == set()


WARM_UP = """\
import torch
from torch import nn
import torch.nn.functional as F
from apex.fp16_utils import FP16_Optimizer
from apex.optimizers import FusedAdam


def train_step(model, optimizer, x, y):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    optimizer.backward(loss)
    optimizer.step()
    return loss.item()


def main(loader, args):
    model = nn.Linear(8, 2)
    optimizer = FusedAdam(model.parameters(), lr=args.lr)
    optimizer = FP16_Optimizer(optimizer, dynamic_loss_scale=True, verbose=False)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    for x, y in loader:
        train_step(model, optimizer, x, y)
        if args.warmup != -1:
            scheduler.step()
"""


# DaehanKim/TransformerCVAE, train_dist_half.py: a setting that is compared with a constant is no window test.
def test_a_comparison_of_a_setting_with_a_constant_counts_nothing() -> None:
    assert codes(WARM_UP) == set()
