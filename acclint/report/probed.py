"""What `acclint probe` prints: each finding with its verdict, the measured matrix, and what was run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from acclint.report import contributions, full, json
from acclint.report.style import PREDICTED_OTHERWISE, bold, counted, location, plural, verdict

if TYPE_CHECKING:
    from acclint.probe.agreement import Agreement
    from acclint.probe.watch import Watched


def render(watched: Watched, width: int = 100, quiet: bool = False) -> str:
    """All findings of a watched run with their verdicts, then, unless `quiet`, the matrix that was measured."""
    parts = [
        full.finding(one.finding, watched.lines.get(one.finding.place.filename, {}), width) for one in watched.judged
    ]
    return "\n\n".join([*parts, *([] if quiet else _matrix(watched, width))])


def render_concise(watched: Watched) -> str:
    """A line per finding: place, code, verdict, number or reason."""
    return "\n".join(
        f"{bold(location(one.finding.place))}: {one.finding.code} {verdict(one.verdict)}: {one.text}"
        for one in watched.judged
    )


def render_json(watched: Watched) -> str:
    """The array of `check --output-format json`, with `evidence.measured` filled."""
    return json.render(one.finding for one in watched.judged)


def summary(watched: Watched) -> str:
    """One paragraph: how many findings have which verdict, and what was run."""
    measured = watched.measured
    verdicts = counted(one.verdict for one in watched.judged)
    first = f"{plural(len(watched.judged), 'finding')}: {verdicts}" if watched.judged else "No findings"
    updates = sum(len(optimizer.updates) for optimizer in measured.optimizers)
    seen = f"{plural(len(measured.backwards), 'backward call')}, {plural(updates, 'update')}"
    return f"{first}. Measured {seen}; {ending(watched)}."


def nothing(watched: Watched) -> str:
    """Why a run measured nothing, and what may help; empty if it measured something."""
    measured = watched.measured
    if measured.backwards or any(optimizer.updates for optimizer in measured.optimizers):
        return ""
    remedy = ""
    if (measured.error or "").startswith("SystemExit: 2"):
        remedy = "; arguments of the script go behind `--`: acclint probe SCRIPT -- ARGS"
    elif measured.outcome == "finished":
        remedy = "; processes that it starts are not measured"
    return f"nothing was measured, since no backward call was made: {ending(watched)}{remedy}"


def ending(watched: Watched) -> str:
    """How the run ended, in one line."""
    measured = watched.measured
    if measured.outcome == "finished":
        begun = [event.data for event in measured.events if event.kind == "loader_begin"]
        cut = any(one["length"] is not None and one["length"] < one["real_length"] for one in begun)
        return "the script came to its end" + (", its epochs shortened (--max-batches)" if cut else "")
    if measured.outcome == "stopped":
        return "ended there on purpose (--max-updates)"
    if measured.outcome == "timeout":
        return f"ended by the time limit (--timeout): {measured.error}"
    where = f" at line {measured.error_line}" if measured.error_line else ""
    return f"the script failed{where}: {measured.error}"


def output_of_failure(watched: Watched, lines: int = 8) -> str:
    """The last lines that a script wrote to standard error before it failed; empty for one that did not."""
    if watched.measured.outcome != "crashed":
        return ""
    last = watched.measured.stderr.rstrip().splitlines()[-lines:]
    return "\n".join("  | " + "".join(c if c.isprintable() else "�" for c in line) for line in last)


def _matrix(watched: Watched, width: int) -> Sequence[str]:
    from acclint.probe.verdict import contributions as measured_contributions

    measured = watched.measured
    if not measured.optimizers or not measured.backwards:
        return []
    owners = [j for j, optimizer in enumerate(measured.optimizers) if optimizer.updates]
    compared = {one.optimizer: one for one in watched.agreements}
    lines = ["Measured: what each backward call (column) contributes to each update (row): 1 is right, · is nothing."]
    for optimizer in measured.optimizers:
        if not optimizer.updates:
            lines.append(f"  {optimizer.name}{_made_at(optimizer.line)}: no update")
    for matrix in measured_contributions(measured, owners):
        lines.append(
            f"  {matrix['owner']}{_made_at(matrix['line'])}, {plural(matrix['k'], 'micro-batch', 'micro-batches')}"
        )
        lines += contributions.matrix([[_rounded(value) for value in row] for row in matrix["updates"]], width)
        lines += _agreement(compared.get(matrix["optimizer"]), width)
    return ["\n".join(lines)]


def _agreement(compared: Agreement | None, width: int) -> list[str]:
    """Whether the source predicted what was measured; a difference is a bug of acclint."""
    if compared is None:
        return []
    updates = plural(len(compared.predicted), "update")
    if not compared.differences:
        return [f"  as predicted ({updates} compared)"]
    (update, call), *more = compared.differences
    cells = f"{update + 1}, column {call + 1}" + (f", and {len(more)} more" if more else "")
    return [
        f"  predicted otherwise ({updates} compared; they differ in row {cells}):",
        *contributions.matrix(compared.predicted, width),
        f"  {PREDICTED_OTHERWISE}",
    ]


def _made_at(line: int) -> str:
    return f" made at line {line}" if line else ""


def _rounded(value: float) -> float:
    """Three digits say all that float32 can: 0.3333 is drawn as it is, 3.9999998 as 4."""
    if not math.isfinite(value):
        return value
    near = round(value * 840) / 840  # all fractions up to 1/8
    return near if abs(value - near) < 2e-4 * max(1.0, abs(value)) else float(f"{value:.3g}")
