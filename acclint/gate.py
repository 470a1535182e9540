"""A first look at the bytes of a file: can it hold a training loop at all?

Recall comes first: a file that is let through costs some milliseconds, one that is held back is never analysed. So the
words are those that every way to train has to contain, not those of accumulation.
"""

from __future__ import annotations

import re

# How a training loop is entered: a backward call in any spelling (`.backward(`, `manual_backward`, mmengine's
# `update_params`), gradients handled by hand, or a framework's entry points and options.
_VOCABULARY = re.compile(
    rb"backward"
    rb"|autograd\s*\.\s*grad|\.grad\b"
    rb"|zero_grad"
    rb"|training_step|train_step|compute_loss|update_params|optim_wrapper|OptimWrapper"
    rb"|TrainingArguments|TrainingArgs|Trainer\b"
    rb"|(?i:accum)"
    rb"|iter_size|update_freq|subdivisions|(?i:micro_?batch)|n_acc\b"
    rb"|deepspeed|fairscale"
)


# An evaluation that adds up or collects what still has its graph: the ways to write it that acclint understands.
_KEEPS = re.compile(
    rb"(?i:loss\w*(?:\[[^\]\n]*\])?\s*\+=|\+=\s*[\w.]*(?:loss|criterion))"
    rb"|\.append\(\s*(?i:[\w.]*(?:loss|criterion|model|net|logits?|outs?|outputs?|preds?|scores?))\b"
)


def may_train(data: bytes) -> bool:
    """Whether `data`, the raw bytes of a source file, has a word without which no training loop is written.

    Or, in a file about torch, one that an evaluation which keeps its losses' graphs has.
    """
    return _VOCABULARY.search(data) is not None or (b"torch" in data and _KEEPS.search(data) is not None)
