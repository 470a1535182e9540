"""A generator yields windows (lists of batches); padded tokens are counted before the window is run.

Measured by hand: the gradient of each update is the token-weighted mean of the window (ratio 1, cosine 1).
"""

from itertools import islice

import torch
import torch.nn.functional as F
from torch import nn

PAD = 0


def corpus(n, vocab, seed):
    g = torch.Generator().manual_seed(seed)
    for _ in range(n):
        length = int(torch.randint(4, 12, (1,), generator=g))
        yield torch.randint(1, vocab, (length,), generator=g)


def batches(stream, rows):
    stream = iter(stream)
    while rows_ := list(islice(stream, rows)):
        yield nn.utils.rnn.pad_sequence(rows_, batch_first=True, padding_value=PAD)


def windows(stream, k):
    stream = iter(stream)
    while group := list(islice(stream, k)):
        yield group


class Bigram(nn.Module):
    def __init__(self, vocab, width):
        super().__init__()
        self.emb = nn.Embedding(vocab, width, padding_idx=PAD)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(width, vocab)

    def forward(self, ids):
        return self.out(self.rnn(self.emb(ids))[0])


torch.manual_seed(2)
lm = Bigram(30, 16)
opt = torch.optim.AdamW(lm.parameters(), lr=2e-3, weight_decay=0.01)
for epoch in range(2):
    for group in windows(batches(corpus(120, 30, epoch), 6), 3):
        wanted = sum(int((ids[:, 1:] != PAD).sum()) for ids in group)
        nll = 0.0
        for ids in group:
            scores = lm(ids[:, :-1])
            part = F.cross_entropy(scores.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=PAD, reduction="sum")
            (part / wanted).backward()
            nll += part.item()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        opt.step()
        opt.zero_grad()
    print(epoch, nll / wanted)
