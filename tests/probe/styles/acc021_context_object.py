"""A context object that was meant to scale the loss: backward comes first, then the division for nobody.

Measured by hand: the gradient is 5.000 times that of the window's mean (cosine 1).
"""

import torch
from torch import nn


class Micro:
    def __init__(self, owner):
        self.owner = owner
        self.loss = None

    def __enter__(self):
        return self

    def __exit__(self, kind, value, tb):
        if kind is None:
            self.loss.backward()
            self.loss = self.loss / self.owner.parts
            self.owner.done(self.loss.item())
        return False


class Session:
    def __init__(self, params, parts):
        self.opt = torch.optim.SGD(params, lr=0.02, weight_decay=1e-3)
        self.parts = parts
        self.count = 0
        self.value = 0.0

    def micro(self):
        return Micro(self)

    def done(self, value):
        self.value += value
        self.count += 1
        if self.count == self.parts:
            self.opt.step()
            self.opt.zero_grad()
            self.count = 0


torch.manual_seed(31)
score = nn.Sequential(nn.Linear(5, 20), nn.Softplus(), nn.Linear(20, 1))
session = Session(score.parameters(), parts=5)
items = torch.randn(400, 5)
worth = items[:, 0] - items[:, 1] ** 2
for epoch in range(2):
    session.value = 0.0
    for rows in torch.randperm(400).split(8):
        with session.micro() as m:
            s = score(items[rows]).squeeze(-1)
            gap, sign = s[:4] - s[4:], (worth[rows][:4] - worth[rows][4:]).sign()
            m.loss = nn.functional.soft_margin_loss(gap, sign)
    print(epoch, session.value / 10)
