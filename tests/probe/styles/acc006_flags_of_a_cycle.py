"""Flags from itertools.cycle say when the window ends; they are one place off.

Measured by hand: the first update is .25 of one micro-batch's gradient, the others are full.
"""

from itertools import chain, cycle, repeat

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(26)
STEPS = 4
x = torch.rand(160, 9)
y = (x[:, :4].sum(1) > x[:, 4:8].sum(1)).long()
loader = DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True)


def flags(n):
    return cycle(chain([True], repeat(False, n - 1)))


class Mix(nn.Module):
    def __init__(self, d, experts):
        super().__init__()
        self.gate = nn.Linear(d, experts)
        self.experts = nn.ModuleList(nn.Linear(d, 2) for _ in range(experts))

    def forward(self, x):
        g = self.gate(x).softmax(-1)
        return sum(g[:, i : i + 1] * e(x) for i, e in enumerate(self.experts))


mix = Mix(9, 3)
opt = torch.optim.SGD(mix.parameters(), lr=0.3)
crit = nn.CrossEntropyLoss(label_smoothing=0.05)
for epoch in range(2):
    total = 0.0
    for (a, b), flush in zip(loader, flags(STEPS), strict=False):
        value = crit(mix(a), b)
        total += value.item()
        value.mul(1 / STEPS).backward()
        if flush:
            opt.step()
            opt.zero_grad()
    print(epoch, total / len(loader))
