"""A counter over epochs, zeroing at the window's first micro-batch, the division in the backward expression."""

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset


def build(width):
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(8, width), torch.nn.ReLU(), torch.nn.Linear(width, 3))


def fit(net, opt, batches, every, rounds):
    step = 0
    history = []
    opt.zero_grad()
    for _ in range(rounds):
        for x, y in batches:
            loss = F.cross_entropy(net(x), y)
            (loss / every).backward()
            step += 1
            history.append(loss.detach())
            if step % every == 0:
                torch.nn.utils.clip_grad_norm_(net.parameters(), 100.0)
                opt.step()
                opt.zero_grad()
    return torch.stack(history).mean()


def main():
    net = build(6)
    data = TensorDataset(torch.randn(50, 8), torch.randint(0, 3, (50,)))
    batches = DataLoader(data, batch_size=5)
    opt = torch.optim.AdamW(net.parameters(), lr=0.01)
    print(float(fit(net, opt, batches, every=5, rounds=3)))


if __name__ == "__main__":
    main()
