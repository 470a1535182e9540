"""A decorator keeps the window; nobody divides.

Measured by hand: the gradient is 4.000 times that of the window's mean (cosine 1).
"""

import functools

import torch
from torch import nn


def accumulate(n):
    def wrap(fn):
        state = {"seen": 0}

        @functools.wraps(fn)
        def inner(self, *args, **kwargs):
            out = fn(self, *args, **kwargs)
            out.backward()
            state["seen"] += 1
            if state["seen"] == n:
                self.optim.step()
                self.optim.zero_grad()
                state["seen"] = 0
            return out.item()

        return inner

    return wrap


class Forecaster:
    def __init__(self, lags):
        self.net = nn.Sequential(nn.Linear(lags, 12), nn.Tanh(), nn.Linear(12, 1))
        self.optim = torch.optim.SGD(self.net.parameters(), lr=0.01, momentum=0.8)

    @accumulate(4)
    def train_step(self, series, target):
        return nn.functional.mse_loss(self.net(series).squeeze(-1), target)


def segments(signal, lags, rows):
    windows = signal.unfold(0, lags + 1, 1)
    for part in windows[torch.randperm(len(windows))].split(rows):
        if len(part) == rows:
            yield part[:, :-1], part[:, -1]


torch.manual_seed(21)
t = torch.arange(0, 40, 0.1)
signal = torch.sin(t) + 0.1 * torch.randn_like(t)
model = Forecaster(8)
for epoch in range(2):
    losses = [model.train_step(a, b) for a, b in segments(signal, 8, 10)]
    print(epoch, sum(losses) / len(losses))
