"""How settings, countdowns, toggles and records of losses are understood: forms seen in public training code."""

from __future__ import annotations

import dataclasses

import pytest

from acclint.findings import Confidence, Severity
from acclint.lint import check_text
from acclint.settings import Settings

SHOWN = dataclasses.replace(Settings(), min_severity=Severity.WARNING, min_confidence=Confidence.MEDIUM)


def codes(text: str) -> set[str]:
    return {one.code for one in check_text(text, "train.py", SHOWN).findings}


# eastonYi/OpenASR, src/solvers/cif.py: how many micro-batches an update takes is set by a class of another file.
COUNTDOWN = """\
import torch.nn.functional as F
from solvers import Solver

class Net(Solver):
    def epoch(self):
        n_accu_batch = self.accumulate_grad_batch
        total = len(self.loader)
        for i, (x, y) in enumerate(self.loader):
            i += 1
            loss = F.mse_loss(self.model(x), y){division}
            if {first}:
                self.optimizer.zero_grad()
            loss.backward()
            n_accu_batch -= 1
            if n_accu_batch == 0 or i == total:
                self.optimizer.step()
                n_accu_batch = self.accumulate_grad_batch
"""


@pytest.mark.parametrize(
    ("first", "division", "expected"),
    [
        ("n_accu_batch == self.accumulate_grad_batch", " / self.accumulate_grad_batch", set()),
        ("n_accu_batch == self.accumulate_grad_batch", "", {"ACC001"}),
        ("n_accu_batch != 0", " / self.accumulate_grad_batch", {"ACC002"}),
    ],
)
def test_a_countdown_starts_from_k(first: str, division: str, expected: set[str]) -> None:
    assert codes(COUNTDOWN.format(first=first, division=division)) == expected


# brendanartley/CZII-Competition, src/modules/train.py: the setting is asked for twice, before and in the loop.
ONE_BATCH = """\
import torch.nn.functional as F
from parts import make_optimizer, make_model

def main(cfg, loader):
    if cfg.{setting}:
        cfg.epochs = 1
    model = make_model(cfg)
    optimizer = make_optimizer(model, cfg)
    for epoch in range(cfg.epochs):
        for i, (x, y) in enumerate(loader):
            F.mse_loss(model(x), y).backward()
            if (i + 1) % cfg.grad_accumulation == 0:
                optimizer.step()
                optimizer.zero_grad()
            if cfg.{setting}:
                break
"""


@pytest.mark.parametrize("setting", ["fast_dev_run", "one_batch_only"])
def test_a_setting_that_ends_each_pass_at_once_is_off(setting: str) -> None:
    assert codes(ONE_BATCH.format(setting=setting)) == {"ACC001"}


# Oran-Ac/LOT-CRS, src/train_conv.py: the quotient of something unknown is not undivided.
QUOTIENT = """\
import torch
from accelerate import Accelerator
from encoders import make_encoder
from transformers import GPT2LMHeadModel

class Talker(GPT2LMHeadModel):
    def forward(self, ids=None, labels=None):
        return self.transformer(ids)

def main(args, loader):
    accelerator = Accelerator()
    model = Talker.from_pretrained(args.model)
    for param in model.parameters():
        param.requires_grad = False
    encoder = make_encoder(args)
    optimizer = torch.optim.SGD([p for n, p in encoder.named_parameters()], lr=1e-3)
    model, encoder, optimizer = accelerator.prepare(model, encoder, optimizer)
    for step, batch in enumerate(loader):
        batch["context"]["embeds"] = encoder(batch["prompt"], mode="talk")
        loss = model(**batch["context"], labels=batch["answer"]).conv_loss{division}
        accelerator.backward(loss)
        if (step + 1) % args.gradient_accumulation_steps == 0:
            optimizer.step()
            optimizer.zero_grad()
"""


def test_a_loss_of_something_unknown_may_be_divided_where_it_is_read() -> None:
    assert codes(QUOTIENT.format(division=" / args.gradient_accumulation_steps")) == set()
    assert codes(QUOTIENT.format(division="")) == {"ACC001"}


# aklein4/MonArc, src/trainers/base_xla_trainer.py: a dictionary whose items are attributes, too.
RECORD = """\
import torch

def train(trainer, model, loader):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for x in loader:
        parts = torch.split(x, 4)
        for i in range(len(parts)):
            results = trainer.compute_losses(model, parts[i])
            for k, v in results.items():
                results[k] = v{division}
            results.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
"""


def test_what_a_loop_over_the_items_divides_is_divided_as_an_attribute_too() -> None:
    assert codes(RECORD.format(division=" / len(parts)")) == set()
    assert codes(RECORD.format(division="")) == {"ACC001"}


# facefusion/facefusion-labs, hyperswap/src/training.py: the generator's loss comes through the discriminator.
TOGGLED = """\
import torch
import lightning as L
from torch import nn

class Swap(L.LightningModule):
    def __init__(self, accumulate_size):
        super().__init__()
        self.automatic_optimization = False
        self.accumulate_size = accumulate_size
        self.generator, self.discriminator = nn.Linear(4, 4), nn.Linear(4, 1)

    def configure_optimizers(self):
        return (
            torch.optim.SGD(self.generator.parameters(), lr=0.1),
            torch.optim.SGD(self.discriminator.parameters(), lr=0.1),
        )

    def training_step(self, batch, batch_idx):
        x, y = batch
        ends = (batch_idx + 1) % self.accumulate_size == 0
        one, two = self.optimizers()
        fake = self.generator(x)
        first = (1 - self.discriminator(fake)).mean(){division}
        second = (self.discriminator(fake.detach()) - self.discriminator(y)).mean(){division}
        {toggle}(one)
        self.manual_backward(first)
        if ends:
            one.step()
            one.zero_grad()
        self.untoggle_optimizer(one)
        self.manual_backward(second)
        if ends:
            two.step()
            two.zero_grad()
"""


def rows(text: str) -> list[list[tuple[float, ...]]]:
    (loop,) = check_text(text, "train.py", SHOWN).loops
    return [sorted({tuple(row) for row in updates}) for _, updates in loop.contributions]


def test_a_toggled_optimizer_alone_gets_gradients() -> None:
    text = TOGGLED.format(division=" / self.accumulate_size", toggle="self.toggle_optimizer")
    assert codes(text) == set()
    assert rows(text) == [[(1.0,) * 4], [(1.0,) * 4]]
    assert rows(text.replace("self.toggle_optimizer(one)", "pass"))[1] == [(1.0,) * 8]


def test_the_window_test_of_a_training_step_makes_it_a_loop_over_micro_batches() -> None:
    assert codes(TOGGLED.format(division="", toggle="self.toggle_optimizer")) == {"ACC001"}


# ECMWFCode4Earth/DeepR, deepr/model/configs.py: without a type it is no field of the dataclass.
FIELD = """\
import torch
import torch.nn.functional as F
from dataclasses import dataclass

@dataclass
class Config:
    lr: float = 0.1
    gradient_accumulation_steps{kind} = 1

config = Config()

def train(model, loader):
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr)
    for i, (x, y) in enumerate(loader):
        F.mse_loss(model(x), y).backward()
        if (i + 1) % config.gradient_accumulation_steps == 0:
            optimizer.step()
            optimizer.zero_grad()
"""


def test_what_has_no_type_in_a_dataclass_is_a_constant() -> None:
    assert codes(FIELD.format(kind=": int")) == {"ACC001"}
    assert codes(FIELD.format(kind="")) == set()


# Orion-AI-Lab/KuroSiwo, training/train_mae.py: that accumulation can be off is no doubt about what it does when on.
SWITCHED = """\
def train(configs, model, optimizer, scaler, loader):
    k = configs["accumulate_gradients"]
    for i, x in enumerate(loader):
        if configs["accumulate_gradients"] is None or (i + 1) % k == 0:
            optimizer.zero_grad()
        loss = model(x)
        if configs["accumulate_gradients"] is not None:
            loss = loss / k
        if configs["accumulate_gradients"] is None or (i + 1) % k == 0:
            if configs["mixed_precision"]:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            else:
                loss.backward()
                optimizer.step()
"""


def test_that_accumulation_can_be_off_is_no_doubt() -> None:
    assert codes(SWITCHED) == {"ACC030"}


# The same mistake with and without mixed precision is as sure in both branches.
BOTH = """\
def train(args, model, optimizer, scaler, loader):
    for i, (x, y) in enumerate(loader):
        loss = model(x, y)["loss"]
        if args.fp16:
            scaler.scale(loss).backward()
            if (i + 1) % args.accum_steps == 0:
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
        else:
            loss.backward()
            if (i + 1) % args.accum_steps == 0:
                optimizer.step()
                optimizer.zero_grad()
"""


def test_a_mistake_of_both_ways_of_computing_is_told_at_both() -> None:
    assert [one.place.row for one in check_text(BOTH, "train.py", SHOWN).findings] == [5, 11]


# openpifpaf/openpifpaf, src/openpifpaf/network/trainer.py: the command line sets what the class has as 1.
CLASS_SETTING = """\
import torch
import torch.nn.functional as F

class Trainer:
    stride = 1

    def __init__(self, model):
        self.model = model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    @classmethod
    def configure(cls, args):
        {configured}

    def epoch(self, loader):
        for i, (x, y) in enumerate(loader):
            F.mse_loss(self.model(x), y).backward()
            if (i + 1) % self.stride == 0:
                self.optimizer.step()
                self.optimizer.zero_grad()
"""


@pytest.mark.parametrize(("configured", "expected"), [("cls.stride = args.stride", {"ACC001"}), ("pass", set())])
def test_what_the_command_line_sets_on_a_class_is_a_setting(configured: str, expected: set[str]) -> None:
    assert codes(CLASS_SETTING.format(configured=configured)) == expected


# yjh0410/RT-ODLab, engine.py: each trainer has a model and an optimizer that other files make.
TWO_TRAINERS = """\
from builders import build_optimizer

class First:
    def __init__(self, args, model):
        self.args = args
        self.optimizer = build_optimizer(model)

    def train(self, net, loader, criterion):
        for i, (x, y) in enumerate(loader):
            (criterion(net(x), y) / self.args.accum).backward()
            if i % self.args.accum == 0:
                self.optimizer.step()
                self.optimizer.zero_grad()

class Second(First):
    def __init__(self, args, model):
        self.args = args
        self.optimizer = build_optimizer(model)

    def train(self, net, loader, criterion):
        for i, (x, y) in enumerate(loader):
            (criterion(net(x), y) / self.args.accum).backward()
            if i % self.args.accum == 0:
                self.optimizer.step()
                self.optimizer.zero_grad()
"""


def test_a_loss_is_meant_for_the_optimizer_of_its_own_object() -> None:
    made = TWO_TRAINERS.replace("from builders import build_optimizer", "from torch.optim import SGD")
    made = made.replace("build_optimizer(model)", "SGD(model.parameters(), lr=0.1)")
    rows = [one.place.row for one in check_text(made, "train.py", SHOWN).findings if one.code == "ACC006"]
    assert rows == [11, 23]


# awmthink/pytorch-in-action, trainer/image_classification_trainer.py
RESUMED = """\
import torch
import torch.nn.functional as F

class Trainer:
    def __init__(self, args, model, scaler):
        self.args, self.model, self.scaler, self.steps = args, model, scaler, 0
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def load(self):
        states = torch.load(self.args.resume)
        self.steps = int(states["name"].replace("checkpoint-", ""))
        scaler_states = torch.load("scaler.pt")
        self.scaler.load_state_dict(scaler_states)

    def train(self, loader):
        if self.args.resume is not None:
            self.load()
        done = self.steps * self.args.accum
        for x, y in loader:
            F.mse_loss(self.model(x), y).backward()
            done += 1
            if done % self.args.accum != 0:
                continue
            self.optimizer.step()
            self.optimizer.zero_grad()
"""


def test_a_training_begins_from_nothing_whatever_a_resumed_one_loads() -> None:
    assert codes(RESUMED) == {"ACC001"}


# Georgetown-IR-Lab/cedr, cedr/train.py: samples are counted, two in each micro-batch.
SAMPLES = """\
import torch
import torch.nn.functional as F
BATCH_SIZE, PART = 16, 2

def train(model, loader):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    total = 0
    for x, y in loader:
        F.mse_loss(model(x), y).backward()
        total += PART
        if total % BATCH_SIZE == 0:
            optimizer.step()
            optimizer.zero_grad()
"""


def test_a_window_of_samples_is_as_long_as_the_micro_batches_in_it() -> None:
    (finding,) = [one for one in check_text(SAMPLES, "train.py", SHOWN).findings if one.code == "ACC001"]
    assert "BATCH_SIZE" not in finding.message
    assert "8.00x" in finding.message


# j-min/VL-T5, src/caption.py and many copies: the window test sets a flag, and the flag gates the update.
FLAGGED = """\
import torch
import torch.nn.functional as F

def train(args, model, loader):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i, (x, y) in enumerate(loader):
        F.mse_loss(model(x), y).backward()
        update = True
        if args.gradient_accumulation_steps > 1:
            if i == 0:
                update = False
            elif i % args.gradient_accumulation_steps == 0 or i == len(loader) - 1:
                update = True
            else:
                update = False
        if update:
            optimizer.step()
            for param in model.parameters():
                param.grad = None
"""


def test_a_flag_that_a_window_test_sets_is_the_window_test() -> None:
    (finding,) = [one for one in check_text(FLAGGED, "train.py", SHOWN).findings if one.code == "ACC001"]
    assert "`args.gradient_accumulation_steps` times too large" in finding.message
    assert finding.confidence is Confidence.HIGH


# vishal-burman/PyTorch-Architectures, toolkit/trainer.py: an object with a schedule for the training that train() is.
TRAINER = """\
import torch
from transformers import get_linear_schedule_with_warmup

class Trainer:
    def __init__(self, model, loader, epochs=10, k=1):
        self.model, self.loader, self.epochs, self.k = model, loader, epochs, k
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        steps = epochs * len(self.loader){over}
        self.scheduler = get_linear_schedule_with_warmup(self.optimizer, 0, steps)

    def train(self):
        for epoch in range(self.epochs):
            for i, sample in enumerate(self.loader):
                (self.model(**sample).loss / self.k).backward()
                if (i + 1) % self.k == 0 or i + 1 == len(self.loader):
                    self.optimizer.step()
                    self.scheduler.step()
                    self.optimizer.zero_grad()
"""


@pytest.mark.parametrize("epochs", ["epochs=10", "epochs"])
@pytest.mark.parametrize(("over", "expected"), [("", {"ACC004"}), (" // k", set())])
def test_the_schedule_of_an_object_is_for_one_call_that_goes_through_all_epochs(
    epochs: str, over: str, expected: set[str]
) -> None:
    text = TRAINER.format(over=over).replace("epochs=10", epochs)
    assert codes(text) == expected


# rgsk/ml-tracks, 05_advanced_topics.py: the loop over the parameters is not the loop that trains.
OWN_OPTIMIZER = """\
import torch
import torch.nn.functional as F
from torch import nn

class Momentum:
    def __init__(self, parameters):
        self.parameters = list(parameters)
        self.velocities = [torch.zeros_like(p) for p in self.parameters]

    def step(self):
        for p, v in zip(self.parameters, self.velocities):
            v.mul_(0.9).add_(p.grad, alpha=1)
            p.data.add_(v, alpha=-0.1)

    def zero_grad(self):
        for p in self.parameters:
            if p.grad is not None:
                p.grad.zero_()

model = nn.Linear(2, 1)
optimizer = Momentum(model.parameters())
x, y = torch.randn(10, 2), torch.randn(10, 1)
for epoch in range(5):
    loss = F.mse_loss(model(x), y)
    {zero}
    loss.backward()
    optimizer.step()
"""


def test_an_optimizer_by_hand_is_zeroed_in_the_loop_that_trains() -> None:
    assert codes(OWN_OPTIMIZER.replace("{zero}", "optimizer.zero_grad()")) == set()
    assert "ACC015" in codes(OWN_OPTIMIZER.replace("{zero}", "pass"))


# keonlee9420/Comprehensive-Transformer-TTS, train.py: a sum of several losses is divided, and each batch updates.
SEVERAL = """\
import torch
import torch.nn.functional as F
from torch import nn

def train(loader, grad_acc_step):
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step, (x, y) in enumerate(loader, 1):
        out = model(x)
        loss = (F.l1_loss(out, y) + 0.1 * F.mse_loss(out, y)) / grad_acc_step
        loss.backward()
        {guard}
            optimizer.step()
            optimizer.zero_grad()
"""


@pytest.mark.parametrize(("guard", "expected"), [("if step % grad_acc_step == 0:", set()), ("if True:", {"ACC016"})])
def test_a_sum_of_losses_that_is_divided_for_a_window_that_is_none(guard: str, expected: set[str]) -> None:
    assert codes(SEVERAL.format(guard=guard)) == expected


# A model that is given the labels returns their loss; torchvision's detectors return a dictionary of losses.
GIVES_LOSS = """\
def train(model, optimizer, loader, accum_steps):
    for i, (x, y) in enumerate(loader, 1):
        {loss}
        loss.backward()
        if i % accum_steps == 0:
            optimizer.step()
            optimizer.zero_grad()
"""


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("loss = model(input_ids=x, labels=y)", {"ACC001"}),
        ("losses = model(x, y); loss = sum(loss for loss in losses.values())", {"ACC001"}),
        ("loss = model(input_ids=x, labels=y, scale=1 / accum_steps)", set()),
        ("loss = model(input_ids=x, labels=y) / accum_steps", set()),
        ("losses = model(x, y); loss = sum(one / accum_steps for one in losses.values())", set()),
    ],
)
def test_what_a_model_returns_under_the_name_of_a_loss_is_a_mean(loss: str, expected: set[str]) -> None:
    assert codes(GIVES_LOSS.format(loss=loss)) == expected


# jolibrain/wheatley, alg/pretrain.py: what is left over is from another call of the function, and no window.
CALLED_AGAIN = """\
import torch
import torch.nn.functional as F

PAIRS = [(torch.randn(4, 2), torch.randn(4, 1)), (torch.randn(4, 2), torch.randn(4, 1))]

def pretrain(model, make):
    optimizer = make(model.parameters())
    for x, y in PAIRS:
        F.mse_loss(model(x), y).backward()
        optimizer.step()
"""


def test_what_another_call_of_the_function_has_left_over_is_no_window() -> None:
    every = dataclasses.replace(SHOWN, min_confidence=Confidence.LOW)
    assert "ACC001" not in {one.code for one in check_text(CALLED_AGAIN, "train.py", every).findings}


# Found by a review of the forms above: what looks like them and is something else.
ALIKE = {
    "a flag is asked for by identity": """\
accum = 4
model = nn.Linear(10, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = DataLoader(TensorDataset(torch.randn(64, 10), torch.randint(0, 2, (64,))), batch_size=4)
for i, (x, y) in enumerate(loader):
    if (i + 1) % accum == 0:
        boundary = True
    else:
        boundary = False
    (F.cross_entropy(model(x), y) / accum).backward()
    if boundary is False:
        continue
    optimizer.step()
    optimizer.zero_grad()
""",
    "a flag says whose turn it is, and who asks for gradients": """\
gen, critic = nn.Linear(8, 10), nn.Linear(10, 1)
opt_g = torch.optim.SGD(gen.parameters(), lr=0.1)
opt_c = torch.optim.SGD(critic.parameters(), lr=0.1)
loader = DataLoader(TensorDataset(torch.randn(64, 10)), batch_size=4)
for i, (x,) in enumerate(loader):
    if i % 2 == 0:
        critics_turn = True
    else:
        critics_turn = False
    critic.requires_grad_(critics_turn)
    gen.requires_grad_(not critics_turn)
    fake = gen(torch.randn(4, 8))
    if critics_turn:
        (critic(fake).mean() - critic(x).mean()).backward()
        opt_c.step()
        opt_c.zero_grad()
    else:
        (-critic(fake).mean()).backward()
        opt_g.step()
        opt_g.zero_grad()
""",
    "a class counts its micro-batches": """\
class Trainer:
    micro, k = 0, 4

    def __init__(self, model):
        self.model = model
        self.opt = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def run(self, loader):
        for x, y in loader:
            (F.mse_loss(self.model(x), y) / Trainer.k).backward()
            Trainer.micro = (Trainer.micro + 1) % Trainer.k
            if Trainer.micro == 0:
                self.opt.step()
                self.opt.zero_grad()

Trainer(nn.Linear(4, 1)).run(DataLoader(TensorDataset(torch.randn(64, 4), torch.randn(64, 1)), batch_size=4))
""",
    "an object's method also trains what another optimizer holds": """\
class Trainer:
    def __init__(self, k):
        self.model, self.k = nn.Linear(4, 4), k
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)

    def fit(self, loader, probe, probe_opt):
        for i, (x, y) in enumerate(loader):
            (F.mse_loss(self.model(x), x) / self.k).backward()
            if (i + 1) % self.k == 0:
                self.optimizer.step()
                self.optimizer.zero_grad()
            probe_opt.zero_grad()
            F.mse_loss(probe(self.model(x).detach()), y).backward()
            probe_opt.step()

probe = nn.Linear(4, 1)
loader = DataLoader(TensorDataset(torch.randn(64, 4), torch.randn(64, 1)), batch_size=4)
Trainer(4).fit(loader, probe, torch.optim.SGD(probe.parameters(), lr=0.1))
""",
    "the mean of k passes over a batch": """\
def train(model, optimizer, loader, accum_steps):
    for x, y in loader:
        loss = sum(F.mse_loss(model(x + torch.randn_like(x)), y) for _ in range(accum_steps)) / accum_steps
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
""",
    "a model that is told to sum": """\
from flows import Flow

def train(args, loader):
    model = Flow(args.dim, reduction="sum")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i, x in enumerate(loader):
        loss = model(x)
        loss.backward()
        if (i + 1) % args.accum == 0:
            optimizer.step()
            optimizer.zero_grad()
""",
}


@pytest.mark.parametrize("name", ALIKE)
def test_what_is_like_these_forms_is_something_else(name: str) -> None:
    head = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n"
    head += "from torch.utils.data import DataLoader, TensorDataset\n\n"
    assert codes(head + ALIKE[name]) == set()


RESET_TO_TWO = """\
import torch
import torch.nn.functional as F

def train(args, model, loader):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    n = 0
    for epoch in range(3):
        for x, y in loader:
            (F.cross_entropy(model(x), y) / args.accum_steps).backward()
            n += 1
            if n % args.accum_steps == 0:
                optimizer.step()
                optimizer.zero_grad()
                n = 2
"""


def test_a_counter_of_micro_batches_keeps_the_name_of_its_window_where_that_is_wrong() -> None:
    (finding,) = check_text(RESET_TO_TWO, "train.py", SHOWN).findings
    assert finding.code == "ACC006"
    assert "every `args.accum_steps` micro-batches" in finding.message


def test_a_hook_before_the_update_may_divide_the_gradients() -> None:
    hook = """
    def on_before_optimizer_step(self, optimizer):
        for p in self.parameters():
            p.grad.div_(self.accumulate_size)
"""
    assert codes(TOGGLED.format(division="", toggle="self.toggle_optimizer") + hook) == set()
