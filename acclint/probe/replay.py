"""The lifted events of a finding as a program for torch, for loops whose own statements cannot be run.

What is measured of it checks the arithmetic of acclint, not its reading of the source: that the events are those of the
loop is taken for granted. So it can only be consistent with a finding.

No torch is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_HEAD = (
    "import torch; torch.manual_seed(0); _net = torch.nn.Linear(3, 1).double(); "
    "_optimizer = torch.optim.SGD(_net.parameters(), lr=0.01); "
    "_loss = lambda how: torch.nn.functional.mse_loss("
    "_net(torch.randn(5, 3).double()), torch.randn(5, 1).double(), reduction=how)"
)
# What an event does to the gradients, as the body of a function of its weight.
_BODIES = {
    "backward": "(_loss('mean') * weight).backward()",
    "backward of a sum": "(_loss('sum') * weight).backward()",
    "zero_grad": "_optimizer.zero_grad()",
    "edit": "[p.grad.mul_(weight) for p in _net.parameters() if p.grad is not None]",
    "update": "_optimizer.step()",
}


def program(trace: Mapping[str, Any], rows: Mapping[tuple[int | None, int], int] | None = None) -> str:
    """A script that makes the events of a finding's trace in order, each at its row; empty if that cannot be told.

    Every backward call is of a loss over five samples of its own. `rows` gives the row of the script for the cell and
    row of an event in a notebook or page.
    """
    lines: dict[int, list[str]] = {}
    calls = []
    for event in trace.get("events", ()):
        kind = event["event"]
        weight = event.get("weight", event.get("factor", 1.0))
        if weight is None:
            return ""
        if kind == "backward" and event["reduction"] == "sum":
            kind = "backward of a sum"
        row = event["location"]["row"]
        row = (rows or {}).get((event.get("cell"), row), row)
        name = f"_{kind.replace(' ', '_')}_{row}"
        defined = f"{name} = lambda weight: {_BODIES[kind]}"
        if defined not in lines.setdefault(max(row, 2), []):
            lines[max(row, 2)].append(defined)
        calls.append(f"({name}, {weight!r})")
    if not any("_backward" in call for call in calls) or not any("_update" in call for call in calls):
        return ""
    text = [_HEAD, *("; ".join(lines.get(row, ["pass"])) for row in range(2, max(lines) + 1))]
    return "\n".join([*text, f"for _do, _weight in [{', '.join(calls)}]: _do(_weight)", ""])
