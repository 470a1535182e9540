"""Scripts made to be hard on the abstract run: fifty unknown flags, ten nested calls, a thousand-line main().

    python benchmarks/stress.py

Prints the CPU time of lift and simulation of each, the same script's libcst parse beside it.
"""

from __future__ import annotations

import time

import libcst

from acclint.lift import lift
from acclint.simulate import analyze

HEAD = """\
import torch
from torch import nn
from torch.utils.data import DataLoader


"""
LOOP = """\
    for epoch in range(args.epochs):
        for i, (x, y) in enumerate(loader):
            loss = nn.functional.cross_entropy(model(x), y) / args.accum_steps
{body}
            loss.backward()
            if (i + 1) % args.accum_steps == 0:
                optimizer.step()
                optimizer.zero_grad()
"""
SETUP = """\
def main(args, model, dataset):
    loader = DataLoader(dataset, batch_size=args.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
"""


def fifty_flags() -> str:
    body = "\n".join(
        f"            if args.flag_{n}:\n                loss = loss + {n + 1} * model.extra_{n}(x).mean()\n"
        f"            if args.clip_{n}:\n                nn.utils.clip_grad_norm_(model.parameters(), {n + 1})"
        for n in range(25)
    )
    return HEAD + SETUP + LOOP.format(body=body)


def ten_nested_calls() -> str:
    functions = "".join(
        f"def step_{n}(loss, args, i):\n    return step_{n + 1}(loss * 1, args, i)\n\n\n" for n in range(10)
    )
    last = "def step_10(loss, args, i):\n    return loss\n\n\n"
    return HEAD + functions + last + SETUP + LOOP.format(body="            loss = step_0(loss, args, i)")


def thousand_lines() -> str:
    lines = "\n".join(f"    value_{n} = value_{n - 1} + {n} if args.use_{n % 7} else {n}" for n in range(1, 900))
    body = "\n".join(f"            total_{n} = float(loss) * {n}" for n in range(100))
    return HEAD + SETUP + "    value_0 = 0\n" + lines + "\n" + LOOP.format(body=body)


def main() -> None:
    for make in (fifty_flags, ten_nested_calls, thousand_lines):
        text = make()
        times = []
        for work in (lambda text=text: libcst.parse_module(text), lambda text=text: analyze(lift(text))):
            start = time.process_time()
            work()
            times.append(time.process_time() - start)
        print(f"{make.__name__:18} libcst parse {times[0]:.2f} s   lift and simulate {times[1]:.2f} s")


if __name__ == "__main__":
    main()
