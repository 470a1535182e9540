"""functional_call and autograd.grad; the window's gradients are summed in a dict and put into .grad once.

Measured by hand: the gradient of each update is that of SLICES = 1 (ratio 1, cosine 1).
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

torch.manual_seed(5)


class Net(nn.Module):
    def __init__(self, d, h):
        super().__init__()
        self.up = nn.Linear(d, h)
        self.norm = nn.LayerNorm(h)
        self.down = nn.Linear(h, 1)

    def forward(self, x):
        return self.down(F.silu(self.norm(self.up(x)))).squeeze(-1)


def objective(theta, module, x, y):
    return F.mse_loss(functional_call(module, theta, (x,)), y)


def micro_gradients(module, x, y):
    theta = dict(module.named_parameters())
    value = objective(theta, module, x, y)
    grads = torch.autograd.grad(value, tuple(theta.values()))
    return value.detach(), dict(zip(theta, grads, strict=True))


def merge(total, part, weight):
    if total is None:
        return {name: weight * g for name, g in part.items()}
    return {name: total[name] + weight * g for name, g in part.items()}


module = Net(6, 24)
adam = torch.optim.Adam(module.parameters(), lr=3e-3)
X = torch.randn(240, 6)
Y = X[:, 0] * X[:, 1]
SLICES = 5
for epoch in range(3):
    order = torch.randperm(len(X))
    for big in order.split(40):
        total, seen = None, 0.0
        for small in big.chunk(SLICES):
            value, part = micro_gradients(module, X[small], Y[small])
            total = merge(total, part, len(small) / len(big))
            seen += value.item() / SLICES
        for name, p in module.named_parameters():
            p.grad = total[name]
        adam.step()
        adam.zero_grad()
    print(epoch, round(seen, 4))
