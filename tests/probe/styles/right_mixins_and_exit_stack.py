"""Trainer of mixins with abstract methods; an ExitStack enters no_sync where the model has it.

Measured by hand: before clipping, the gradient of each update is that of the window's mean (ratio 1, cosine 1).
"""

import abc
import contextlib

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Replica(nn.Module):
    """Like a data-parallel wrapper: counts how often gradients would have been sent."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        self.require_sync = True
        self.sent = 0

    def forward(self, *args):
        self.sent += self.require_sync and self.training
        return self.module(*args)

    @contextlib.contextmanager
    def no_sync(self):
        self.require_sync, old = False, self.require_sync
        try:
            yield
        finally:
            self.require_sync = old


class LoopMixin(abc.ABC):
    grad_steps = 1

    @abc.abstractmethod
    def configure(self): ...

    @abc.abstractmethod
    def loss_of(self, batch): ...

    def run(self, loader, epochs):
        self.model, self.opt = self.configure()
        for _ in range(epochs):
            self.model.train()
            for step, batch in enumerate(loader, 1):
                last = step % self.grad_steps == 0
                with contextlib.ExitStack() as stack:
                    if not last:
                        stack.enter_context(self.model.no_sync())
                    self.micro(batch)
                if last:
                    self.apply()

    def micro(self, batch):
        scaled = self.loss_of(batch) / self.grad_steps
        scaled.backward()

    def apply(self):
        self.opt.step()
        self.opt.zero_grad(set_to_none=True)


class ClipMixin:
    max_norm = 1.0

    def apply(self):
        nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)
        super().apply()


class Regression(ClipMixin, LoopMixin):
    grad_steps = 3

    def configure(self):
        net = Replica(nn.Sequential(nn.Linear(4, 10), nn.GELU(), nn.Linear(10, 2)))
        return net, torch.optim.NAdam(net.parameters(), lr=2e-3)

    def loss_of(self, batch):
        x, y = batch
        return nn.functional.huber_loss(self.model(x), y)


torch.manual_seed(9)
x = torch.randn(108, 4)
job = Regression()
job.run(DataLoader(TensorDataset(x, x[:, :2] ** 2), batch_size=6, shuffle=True), 4)
print(job.model.sent)
