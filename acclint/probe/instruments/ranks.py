"""Several processes of one training: what DistributedDataParallel makes of the gradients of each.

A backward call of a replica that synchronizes leaves the mean over all processes in `.grad`: of its own gradient and of
those that were summed before without synchronizing. The samples that the ledger compares with `.grad` are averaged in
the same way, by one collective call right after DDP's own, so that all processes make the same ones.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

from acclint.probe.instruments.leaves import Leaf


class Ranks:
    """The replicas that were called, and whether their next backward call synchronizes."""

    def __init__(self) -> None:
        self.synchronize: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()

    def called(self, replica: Any) -> None:
        """A DistributedDataParallel module was called with gradients on."""
        self.synchronize[replica] = bool(replica.require_backward_grad_sync)

    def after_backward(self, leaves: Iterable[Leaf], fired: set[int]) -> None:
        """Average the samples of the leaves in `fired`, if their replica has synchronized."""
        leaves = [leaf for leaf in leaves if id(leaf.param) in fired]
        for replica, due in list(self.synchronize.items()):
            parameters = {id(param) for param in replica.parameters()}
            mine = [leaf for leaf in leaves if id(leaf.param) in parameters]
            if due and mine and dist.get_world_size(replica.process_group) > 1:
                self.synchronize[replica] = False
                _average(mine, replica.process_group)


def _average(leaves: list[Leaf], group: Any) -> None:
    parts = [part for leaf in leaves for part in _parts(leaf)]
    means = torch.cat(parts)
    dist.all_reduce(means, group=group)
    means /= dist.get_world_size(group)
    for part, mean in zip(parts, means.split([len(part) for part in parts]), strict=True):
        part.copy_(mean)
    for leaf in leaves:
        leaf.norms.update({t: float(leaf.history[t].double().square().sum()) for t in leaf.local})
        leaf.local.clear()


def _parts(leaf: Leaf) -> list[torch.Tensor]:
    """What `.grad` held before, and the gradients in it that no other process has seen."""
    before = [] if leaf.value is None else [leaf.value]
    return [*before, *(leaf.history[t] for t in sorted(leaf.local))]
