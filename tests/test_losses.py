"""Arithmetic on losses: what a loss is divided by, wherever and however it is written, and what is no division."""

from __future__ import annotations

import pytest

from acclint.lint import check_text

LOOP = """\
import torch
from torch import nn
import torch.nn.functional as F
import settings

batch_size = settings.batch_size
data = [(torch.randn(batch_size, 3), torch.randn(batch_size, 2)) for _ in range(10)]
net = nn.Linear(3, 2)
opt = torch.optim.SGD(net.parameters(), lr=0.1)
mask = torch.ones(4, 2)
for epoch in range(2):
    opt.zero_grad()
    for i, (x, y) in enumerate(data):
        each = F.mse_loss(net(x), y, reduction="none")
        loss = {loss}
        loss.backward()
        if (i + 1) % 5 == 0:
            opt.step()
            opt.zero_grad()
"""

DIVIDED = (
    'F.mse_loss(net(x), y, reduction="sum") / (5 * y.numel())',
    'F.mse_loss(net(x), y, reduction="sum").div(y.numel() * 5)',
    "each.mean() / 5",
    "(each / 5).mean()",
    "(each * 0.2).mean()",
    "(0.2 * each).mean()",
    "each.mul(0.2).mean()",
    "(each.mean(1) * 0.2).mean()",
    "(each * mask / 5).mean()",
    "each.sum() / y.numel() / 5",
    "(each * mask).sum() / (mask.sum() * 5)",
    "(each * mask).sum() / mask.sum() / 5",
    "-(torch.log_softmax(net(x), 1) * y).sum(1).mean() / 5",
    "((1 - F.cosine_similarity(net(x), y)) / 5).mean()",
    'F.mse_loss(net(x), y, reduction="sum") / (5 * batch_size)',
)
UNDIVIDED = (
    'F.mse_loss(net(x), y, reduction="sum") / y.numel()',
    'F.mse_loss(net(x), y, reduction="sum") / (batch_size * 2)',
    "each.mean()",
    "(each * 1.0).mean()",
    "(each * mask).sum() / mask.sum()",
    "(1 - F.cosine_similarity(net(x), y)).mean()",
    "each.mean() + 0.1 * (net.weight ** 2).sum()",
    "each.mean() + (each * mask).sum() / (mask.sum() + 1e-8)",
    "each.mean() + 0.01 * net.weight.norm() / x.std()",
    "each.mean() / torch.exp(net.bias[0]) + net.bias[0] / 2",
    "each.mean() * torch.exp(-net.bias[1]) + net.bias[1] / 2",
)


def codes(loss: str) -> list[str]:
    return [finding.code for finding in check_text(LOOP.format(loss=loss), "train.py").findings]


@pytest.mark.parametrize("loss", DIVIDED)
def test_a_division_is_seen_wherever_it_is_written(loss: str) -> None:
    assert codes(loss) == []


@pytest.mark.parametrize("loss", UNDIVIDED)
def test_what_is_no_division_by_the_window_is_none(loss: str) -> None:
    assert codes(loss) == ["ACC001"]


BRANCHES = """\
import torch
from torch import nn


def train(net, loader, args):
    opt = torch.optim.Adam(net.parameters(), lr=1e-3)
    for i, (x, y) in enumerate(loader):
        if args.weighting == "learned":
            loss = nn.functional.mse_loss(net(x), y)
        else:
            loss = nn.functional.l1_loss(net(x), y) / args.accumulation_steps
        loss.backward()
        if (i + 1) % args.accumulation_steps == 0:
            opt.step()
            opt.zero_grad()
"""


# txsun1997/Multi-Task-Learning-using-Uncertainty-to-Weigh-Losses, train.py
def test_a_division_in_one_branch_of_two() -> None:
    (finding,) = check_text(BRANCHES, "train.py").findings
    assert finding.code == "ACC001"
    both = BRANCHES.replace("mse_loss(net(x), y)", "mse_loss(net(x), y) / args.accumulation_steps")
    assert not check_text(both, "train.py").findings


CHUNKS = """\
import torch
from torch import nn
from torch.utils.data import DataLoader


def train(dataset, net, k):
    score = nn.L1Loss(reduction="sum")
    opt = torch.optim.Adam(net.parameters(), lr=1e-3)
    for samples, _ in DataLoader(dataset, batch_size=64):
        count = {count}
        opt.zero_grad()
        xs = torch.chunk(samples[:, :3], k)
        ys = torch.chunk(samples[:, 3:], k)
        for i in range(k):
            (score(net(xs[i]), ys[i]) / {by}).backward()
        opt.step()
"""


# facebookresearch/DeepSDF, train_deep_sdf.py: the sums of the parts are divided by the size of the whole.
def test_a_sum_over_a_part_divided_by_the_size_of_the_whole() -> None:
    text = CHUNKS.format(count="samples.shape[0]", by="count")
    assert [finding.code for finding in check_text(text, "train.py").findings] == []
