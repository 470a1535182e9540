"""The last lines of a run: what was found, what is hidden, what was looked at and what was not understood."""

from __future__ import annotations

from collections import Counter

from acclint.findings import LoopReport
from acclint.lint import Hidden, Result
from acclint.report.style import counted, plural

# More places than this are counted, unless all are asked for.
_PLACES = 5


def render(result: Result, verbose: bool = False) -> str:
    """One paragraph; with `verbose` each loop that was not understood has a line of its own."""
    found = result.findings
    if found:
        files = len({finding.place.filename for finding in found})
        fixable = sum(1 for finding in found if finding.fix is not None and finding.fix.edits)
        told = f" ({fixable} fixable)" if fixable else ""
        measured = counted(finding.verdict for finding in found)
        first = f"{plural(len(found), 'finding')}{told} in {plural(files, 'file')}{': ' if measured else ''}{measured}"
    else:
        first = "No findings"
    parts = [first, *_hidden(result.hidden)]
    return f"{'; '.join(parts)}. {_looked(result, verbose)}"


def _hidden(hidden: tuple[Hidden, ...]) -> list[str]:
    """What the thresholds hide, with the options that show it."""
    counts: Counter[tuple[str, str]] = Counter()
    for finding, by_severity, by_confidence in hidden:
        severity, confidence = finding.severity.value, finding.confidence.value
        kinds = [severity] * by_severity + [f"{confidence}-confidence"] * by_confidence
        options = [f"--min-severity {severity}"] * by_severity + [f"--min-confidence {confidence}"] * by_confidence
        counts[" ".join(kinds), " ".join(options)] += 1
    return [f"{plural(count, f'{kind} finding')} hidden ({option})" for (kind, option), count in sorted(counts.items())]


def _looked(result: Result, verbose: bool) -> str:
    loops = result.loops
    lost = [loop for loop in loops if loop.state == "not-understood"]
    accumulating = sum(loop.state == "accumulates" for loop in loops)
    looked = sum(not outcome.error for outcome in result.outcomes)
    text = f"Looked at {plural(looked, 'file')}: {plural(len(loops), 'training loop')}"
    if loops:
        text += f", {accumulating} {'accumulates' if accumulating == 1 else 'accumulate'}"
    if not lost:
        return text + "."
    text += f"; {len(lost)} not understood: "
    shown = lost if verbose else lost[:_PLACES]
    if verbose and len(lost) > 1:
        return text.rstrip() + "".join(f"\n  {_place(loop)}" for loop in shown)
    text += ", ".join(_place(loop) for loop in shown)
    if len(shown) < len(lost):
        text += f" and {len(lost) - len(shown)} more (--verbose)"
    return text + "."


def _place(loop: LoopReport) -> str:
    cell = f":cell {loop.place.cell}" if loop.place.cell is not None and loop.place.filename.endswith(".ipynb") else ""
    reason = f" ({loop.reason})" if loop.reason else ""
    return f"{loop.place.filename}{cell}:{loop.place.row}{reason}"
