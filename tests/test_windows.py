"""Whole loops in which the window, the zeroing or the division is written in an unusual way: damaged and right."""

from __future__ import annotations

import pytest

from acclint.lint import check_text

HEAD = """\
import itertools
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

K = 4
loader = DataLoader(TensorDataset(torch.randn(48, 6), torch.randn(48, 1)), batch_size=4)
net = nn.Linear(6, 1)
opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
"""


def codes(body: str) -> list[str]:
    return [finding.code for finding in check_text(HEAD + body, "train.py").findings]


HOOKED = """\
sched = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.0, total_iters={length} * 2)
opt.register_step_post_hook(lambda *_: sched.step())
for epoch in range(2):
    for i, (x, y) in enumerate(loader):
        (nn.functional.mse_loss(net(x), y) / K).backward()
        if (i + 1) % K == 0:
            opt.step()
            opt.zero_grad()
"""
UNBOUND = """\
for i, (x, y) in enumerate(loader):
    torch.Tensor.backward(nn.functional.mse_loss(net(x), y){division})
    if bool((i + 1) % K == 0):
        opt.step()
        opt.zero_grad()
"""
FLAT = """\
flat = torch.zeros(sum(p.numel() for p in net.parameters()))
at = 0
for p in net.parameters():
    p.grad = flat[at : at + p.numel()].view_as(p)
    at += p.numel()
for i, (x, y) in enumerate(loader):
    (nn.functional.mse_loss(net(x), y) / K).backward()
    if (i + 1) % K == 0:
        opt.step()
        {zero}
"""
SCALED_BY_HOOK = """\
for p in net.parameters():
    p.register_hook(lambda g: g / K)
for i, (x, y) in enumerate(loader):
    nn.functional.mse_loss(net(x), y).backward()
    if {count} % K == 0:
        opt.step()
        opt.zero_grad()
"""
CYCLE = """\
for position, (x, y) in zip(itertools.cycle(range(K)), loader):
    (nn.functional.mse_loss(net(x), y) / K).backward()
    if position == {last}:
        opt.step()
        opt.zero_grad()
"""
COUNTED = """\
i = 0
for x, y in loader:
    (nn.functional.mse_loss(net(x), y) / K).backward()
    i += {by}
    if i % K == 0:
        opt.step()
        opt.zero_grad()
"""
LENGTH = """\
held = []
for x, y in loader:
    loss = nn.functional.mse_loss(net(x), y) / K
    {early}
    held.append(loss.item())
    if len(held) == K:
        {late}
        opt.step()
        opt.zero_grad()
        held.clear()
"""
LATE_ZERO = """\
for i, (x, y) in enumerate(loader):
    loss = nn.functional.mse_loss(net(x), y) / K
    if (i + 1) % K == 0:
        loss.backward()
        opt.step()
        {right}
    else:
        loss.backward()
        {wrong}
"""
RUNNING = """\
running = 0.0
for _ in range(12):
    loss = 0.0
    for x, y in itertools.islice(loader, K):
        loss = loss + nn.functional.mse_loss(net(x), y) / K
    opt.zero_grad()
    loss.backward()
    opt.step()
    running += loss{kept}
"""
FLUSHED = """\
for epoch in range(3):
    i = 0
    for at, (x, y) in enumerate(loader):
        (nn.functional.mse_loss(net(x), y) / min(K, len(loader) - at // K * K)).backward()
        if (i + 1) % K == 0 or at + 1 == len(loader):
            opt.step()
            opt.zero_grad()
            {extra}
        i += 1
"""


RATE = """\
opt = torch.optim.SGD(net.parameters(), lr=0.2{division})
for i, (x, y) in enumerate(loader):
    nn.functional.mse_loss(net(x), y).backward()
    window, position = divmod(i + 1, K)
    if position == 0:
        opt.step()
        opt.zero_grad()
"""


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (RATE.format(division=""), "ACC001"),
        (HOOKED.format(length="len(loader)"), "ACC004"),
        (UNBOUND.format(division=""), "ACC001"),
        (FLAT.format(zero="pass"), "ACC015"),
        (SCALED_BY_HOOK.format(count="i"), "ACC006"),
        (CYCLE.format(last="0"), "ACC006"),
        (COUNTED.format(by="K"), "ACC016"),
        (COUNTED.format(by="K // 2"), "ACC006"),
        (LENGTH.format(early="pass", late="loss.backward()"), "ACC030"),
        (LATE_ZERO.format(right="pass", wrong="opt.zero_grad()"), "ACC002"),
        (RUNNING.format(kept=""), "ACC005"),
        (FLUSHED.format(extra="i += 1"), "ACC006"),
    ],
)
def test_damage_is_found(body: str, code: str) -> None:
    assert codes(body) == [code]


@pytest.mark.parametrize(
    "body",
    [
        RATE.format(division=" / K"),
        RATE.format(division=" / K").replace("position == 0", "(i + 1) // K * K == i + 1"),
        HOOKED.format(length="(len(loader) // K)"),
        UNBOUND.format(division=" / K"),
        FLAT.format(zero="flat.zero_()"),
        SCALED_BY_HOOK.format(count="(i + 1)"),
        CYCLE.format(last="K - 1"),
        COUNTED.format(by="1"),
        LENGTH.format(early="loss.backward()", late="pass"),
        LATE_ZERO.format(right="opt.zero_grad()", wrong="pass"),
        RUNNING.format(kept=".item()"),
        FLUSHED.format(extra="pass"),
    ],
)
def test_the_right_loop_is_silent(body: str) -> None:
    assert codes(body) == []


@pytest.mark.parametrize(("k", "expected"), [("20", ["ACC007"]), ("args.steps_per_update", [])])
def test_a_pass_is_shorter_than_a_window_only_where_both_are_known(k: str, expected: list[str]) -> None:
    body = """\
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--steps_per_update", type=int, default=4)
args = parser.parse_args()
for i, (x, y) in enumerate(loader):
    (nn.functional.mse_loss(net(x), y) / {k}).backward()
    if (i + 1) % {k} == 0:
        opt.step()
        opt.zero_grad()
"""
    assert codes(body.format(k=k)) == expected


def test_gradients_of_a_network_that_is_not_stepped_are_not_added_to_an_update() -> None:
    body = """\
nn.functional.mse_loss(net(torch.randn(4, 6)), torch.randn(4, 1)).backward()
head, held = nn.Linear(6, 1), {}
opt = torch.optim.SGD(head.parameters(), lr=0.1)
for i, (x, y) in enumerate(loader):
    (nn.functional.mse_loss(head(x), y) / K).backward()
    for p in net.parameters():
        held[p] = held.get(p, 0) + p.grad.clone()
    if (i + 1) % K == 0:
        for p in net.parameters():
            p.grad = held[p]
        opt.step()
        opt.zero_grad()
"""
    assert codes(body) == []


def test_a_plateau_once_a_pass_is_no_step_per_update() -> None:
    """Windows of five in passes of eight: as many updates as passes, but at other places."""
    body = """\
sched = torch.optim.lr_scheduler.ReduceLROnPlateau(opt)
for epoch in range(3):
    for i, (x, y) in enumerate(itertools.islice(loader, 8)):
        (nn.functional.mse_loss(net(x), y) / 5).backward()
        if (i + 1) % 5 == 0:
            opt.step()
            opt.zero_grad()
        if i == 7:
            sched.step(nn.functional.mse_loss(net(x), y).item())
"""
    assert "ACC004" not in codes(body)


IMPORTED = """\
{imports}
def train(loader, model, optimizer):
    for epoch in range({epochs}):
        for i, batch in enumerate(loader):
            loss = nn.functional.mse_loss(model(batch["x"]), batch["y"]){division}
            loss.backward()
            if (i + 1) % {k} == 0:
                optimizer.step()
                optimizer.zero_grad()
"""


@pytest.mark.parametrize(
    ("imports", "epochs", "k"),
    [
        ("import config", "config.EPOCHS", "config.ACCUMULATION"),
        ("import config", "config.EPOCHS", "config.train['accumulation']"),
        ("from config import EPOCHS, WINDOW", "EPOCHS", "WINDOW"),
        ("from settings import *", "EPOCHS", "WINDOW"),
    ],
)
def test_numbers_of_other_modules(imports: str, epochs: str, k: str) -> None:
    assert codes(IMPORTED.format(imports=imports, epochs=epochs, k=k, division=f" / {k}")) == []
    assert codes(IMPORTED.format(imports=imports, epochs=epochs, k=k, division="")) == ["ACC001"]


SEVERAL = """\
class A:
    def fit(self, loader, model, optimizer, k):
        for i, (x, y) in enumerate(loader):
            optimizer.zero_grad()
            (nn.functional.mse_loss(model(x), y) / k).backward()
            if (i + 1) % k == 0:
                optimizer.step()


class B:
    def fit(self, loader, model, optimizer, k):
        for i, (x, y) in enumerate(loader):
            (nn.functional.mse_loss(model(x), y) / k).backward()
            if (i + 1) % k == 0:
                optimizer.step()
                optimizer.zero_grad()
"""


def test_optimizers_of_different_loops_are_no_rivals() -> None:
    assert codes(SEVERAL) == ["ACC002"]


PRETRAINED = """\
from transformers import AutoModel
labels = raw_datasets["train"].features["label"].names
model = AutoModel.from_pretrained("name", num_labels=len(labels))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for i, batch in enumerate(loader):
    loss = model(**batch).loss
    loss = loss{division}
    loss.backward()
    if (i + 1) % args.accumulation_steps == 0:
        optimizer.step()
        optimizer.zero_grad()
"""
HELPER = """\
from helpers import zero_grad
class Loop:
    def __init__(self, model, loader):
        self.params = list(model.parameters())
        self.model, self.loader = model, loader
        self.optimizer = torch.optim.SGD(self.params, lr=0.1)

    def fit(self):
        for x, y in self.loader:
            {zero}
            nn.functional.mse_loss(self.model(x), y).backward()
            self.optimizer.step()
"""
REFUSING = """\
def main(args):
    limit = load_settings(args.name)
    if args.do_train and args.length > limit.max_length:
        raise ValueError("too long")
    if args.do_train:
        n = 0
        for x, y in loader:
            n += 1
            (nn.functional.mse_loss(net(x), y) / args.accumulation_steps).backward()
            if (n + {ahead}) % args.accumulation_steps == 0:
                opt.step()
                opt.zero_grad()
main(parse())
"""
MEASURED = """\
def epoch(model, data, optimizer):
    right = 0
    for x, y in data:
        record = model.measure(x, y)
        record["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        right += record["correct"]
    return right / len(data)
history = []
for _ in range(10):
    history.append({"accuracy": epoch(net, loader, opt)})
"""


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (PRETRAINED.format(division=" / args.accumulation_steps"), []),
        (PRETRAINED.format(division=""), ["ACC001"]),
        (HELPER.format(zero="zero_grad(self.params)"), []),
        (HELPER.format(zero="pass"), ["ACC015"]),
        (REFUSING.format(ahead=0), []),
        (REFUSING.format(ahead=1), ["ACC006"]),
        (MEASURED, []),
    ],
)
def test_what_other_files_return(body: str, expected: list[str]) -> None:
    assert codes(body) == expected
