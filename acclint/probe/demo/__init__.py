"""The founding experiments, run again on synthetic data, with the values they are known to give.

Five texts that people are sent to when they ask about gradient accumulation; each module here holds one.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from acclint.probe.demo import (
    article_averaging,
    article_loss,
    forum_accumulated,
    forum_full_batch,
    forum_learning_rate,
)
from acclint.probe.tables import Experiment


def run() -> Iterator[Experiment]:
    """Each experiment as soon as it is done; about a minute for all, on one thread so that rounding is the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for module in (forum_full_batch, article_loss, article_averaging, forum_learning_rate, forum_accumulated):
            yield module.run()
    finally:
        torch.set_num_threads(threads)
