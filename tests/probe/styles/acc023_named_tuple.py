"""Immutable state: only the branch that updates carries a new counter on.

Measured by hand: 1 update in 40 backward calls.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class State(NamedTuple):
    micro: int = 0
    updates: int = 0
    best: float = float("inf")


def advance(state, net, opt, batch, every):
    x, y = batch
    loss = nn.functional.gaussian_nll_loss(net(x)[:, :1], y, net(x)[:, 1:].exp())
    (loss / every).backward()
    if state.micro % every == 0:
        opt.step()
        opt.zero_grad()
        state = state._replace(micro=state.micro + 1, updates=state.updates + 1)
    return state._replace(best=min(state.best, loss.item()))


def train(loader, epochs, every):
    net = nn.Sequential(nn.Linear(3, 16), nn.Mish(), nn.Linear(16, 2))
    opt = torch.optim.RAdam(net.parameters(), lr=1e-2)
    state = State()
    for _ in range(epochs):
        for batch in loader:
            state = advance(state, net, opt, batch, every)
    return state


torch.manual_seed(32)
x = torch.randn(120, 3)
y = x.sum(1, keepdim=True) + 0.2 * torch.randn(120, 1)
print(train(DataLoader(TensorDataset(x, y), batch_size=6, shuffle=True), 2, every=4))
