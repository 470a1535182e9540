"""Two optimizers, an inner loop over the window, gradients divided before the update."""

import torch
from torch import nn, optim

torch.manual_seed(1)
WINDOW = 3
encoder = nn.Linear(4, 6)
head = nn.Linear(6, 2)
slow = optim.SGD(encoder.parameters(), lr=0.01)
fast = optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
stream = iter([(torch.randn(7, 4), torch.randn(7, 2)) for _ in range(18)])

for update in range(6):
    slow.zero_grad()
    fast.zero_grad()
    total = 0.0
    for _ in range(WINDOW):
        x, y = next(stream)
        error = nn.functional.mse_loss(head(encoder(x)), y)
        error.backward()
        total += float(error)
    for p in [*encoder.parameters(), *head.parameters()]:
        p.grad.div_(WINDOW)
    slow.step()
    fast.step()
    print(update, total / WINDOW)
