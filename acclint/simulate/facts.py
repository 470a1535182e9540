"""Facts about runs that several rules and the summary share: which lanes accumulate, over how many micro-batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from acclint.program import Span, file_of
from acclint.simulate.scan import Scanner
from acclint.simulate.trace import Backward, Lane, Loop, Run, Window

if TYPE_CHECKING:
    from acclint.simulate import Analysis


_NEARLY = 0.75


@dataclass(frozen=True)
class LoopFacts:
    """One training loop as acclint understood it (see findings.LoopReport)."""

    span: Span
    state: str
    reason: str = ""
    k: str = ""
    contributions: tuple[tuple[str, tuple[tuple[float, ...], ...]], ...] = ()


def site_counts(run: Run, numbers: list[int]) -> dict[tuple[Span, ...], int]:
    """How many turns of its loops made a backward call, per loop nest; replays of a closure are left out.

    Several backward calls of one turn serve one micro-batch (a GAN's two halves, several losses); calls in two branches
    of one condition belong to different turns.
    """
    turns: dict[tuple[Span, ...], set[tuple[tuple[int, int], ...]]] = {}
    for number in numbers:
        backward = run.backwards[number]
        if not backward.replay:
            loops = backward.event.loops
            nest = tuple(loop.span for loop, _ in loops)
            turns.setdefault(nest, set()).add(tuple((loop.entry, turn) for loop, turn in loops))
    return {nest: len(found) for nest, found in turns.items()}


def window_size(run: Run, window: Window) -> int:
    """The number of micro-batches of a window: the most backward calls that one site made in it.

    What another optimizer has used before it was zeroed here (a generator's loss, in a discriminator) is none of them.
    """
    own = [n for n in window.seen if n in window.row or n not in window.lost or n not in run.used]
    return max(site_counts(run, own or window.seen).values(), default=0)


def common_size(run: Run, lane: Lane) -> int:
    """The nominal window of the lane's closed windows."""
    sizes: list[int] = []
    tested: set[object] = set()  # what the innermost window tests around the updates say
    for window in lane.windows:
        if window.update is not None:
            sizes.append(window_size(run, window))
            tested.update([one.modulus for one in window.update.guards if one.modulus is not None][-1:])
    return nominal_size(sizes, tested)


def nominal_size(sizes: Iterable[int], tested: Collection[object] = ()) -> int:
    """The most frequent size of windows; of near equals one of `tested` or a part of it, or the larger one; else 0.

    A counter of samples comes to the number that is tested in steps. Of a pass with two full windows, the first and the
    last one may be of one micro-batch each.
    """
    counts = Counter(sizes)
    usual = max(counts.values(), default=0)
    likely = [size for size, count in counts.items() if count >= _NEARLY * usual]
    parts = [size for size in likely if size > 1 and any(isinstance(one, int) and one % size == 0 for one in tested)]
    return max([size for size in likely if size in tested] or parts or likely, default=0)


def micro_loops(run: Run, lane: Lane) -> set[Span]:
    """The innermost loops around the lane's backward calls."""
    return {
        loops[-1][0].span
        for window in lane.windows
        for number in window.seen
        if (loops := run.backwards[number].event.loops)
    }


def innermost(backward: Backward) -> Loop | None:
    return backward.event.loops[-1][0] if backward.event.loops else None


def describe(analysis: Analysis, scanner: Scanner) -> tuple[LoopFacts, ...]:
    """Every training loop of the module and what was made of it."""
    found: dict[Span, LoopFacts] = {}
    touched: set[Span] = set()
    for path in analysis.paths:
        # A loop that only the other side of a condition comes to is told of as it is there.
        found = {**_seen(path.first), **found}
        touched |= {loop.span for backward in path.first.backwards for loop, _ in backward.event.loops}
        for event in path.first.of("engine"):
            if event.data.get("known") and event.loops and not file_of(event.loops[-1][0].span):
                # DeepSpeed's engine divides, steps and zeroes by itself.
                found.setdefault(event.loops[-1][0].span, LoopFacts(event.loops[-1][0].span, "plain"))
    functions = [one for group in (*scanner.functions.values(), *scanner.methods.values()) for one in group]
    for body in (*(function.body for function in functions), analysis.program.body):
        for loop in scanner.scan(body).loops:
            trains = scanner.has_backward(loop.body) and not scanner.has_nested_backward(loop.body)
            if trains and loop.span not in touched and loop.span not in found:
                reason = analysis.paths[0].first.stopped or "no backward call was reached in the abstract run"
                found[loop.span] = LoopFacts(loop.span, "not-understood", reason)
    return tuple(found[span] for span in sorted(found))


def _seen(run: Run) -> dict[Span, LoopFacts]:
    """The training loops of the module that one run came to."""
    found: dict[Span, LoopFacts] = {}
    for lane in run.lanes:
        size = common_size(run, lane)
        for span in micro_loops(run, lane):
            if file_of(span):
                continue
            state = "accumulates" if size > 1 else "plain"
            if span in found and found[span].state == "accumulates":
                state = "accumulates"
            # What a step that calls its closure, or is the file's own, makes of the gradients is not told.
            told = () if lane.optimizer is not None and lane.optimizer.replays else lane.windows
            updates = tuple(_relative(run, window, size) for window in told if window.update)
            before = found[span].contributions if span in found else ()
            contributions = (*before, (lane.name, updates)) if updates else before
            found[span] = LoopFacts(span, state, "", "", contributions)
    return found


def right_size(run: Run, window: Window, size: int) -> int:
    """The number of micro-batches that the means of a window are to be divided by, where `size` is the usual one.

    A shorter or longer window may be divided by its own: then its weights sum up to 1.
    """
    weights: dict[tuple[Span, ...], list[float]] = {}
    whole: list[float] = []
    for number in window.seen:
        call = run.backwards[number]
        weight = max((abs(float(weight)) for _, weight in call.terms), default=1.0)
        whole.append(weight * float(window.row.get(number, 0)))
        weights.setdefault(call.site, []).append(whole[-1])
    # Several places are branches for one loss, or several losses of each micro-batch.
    for group in (whole, *weights.values()):
        if abs(sum(group) - 1) < 1e-6:
            return len(group) - thrown_away(group, size)
    return max(size, 1)


def thrown_away(weights: Sequence[float], size: int) -> int:
    """How many backward calls at the beginning of a window of `size` were zeroed before it: what a pass has left over.

    `weights` are those of all calls since the update before.
    """
    lost = next((at for at, weight in enumerate(weights) if weight), 0)
    return min(lost, max(0, len(weights) - size))


def _relative(run: Run, window: Window, size: int) -> tuple[float, ...]:
    numbers = sorted({*window.seen, *window.row})
    size = right_size(run, window, size)
    row = []
    for number in numbers:
        backward = run.backwards[number]
        a = window.row.get(number, 0)
        for term, weight in backward.terms:
            right = 1 if term.reduction == "sum" else size
            row.append(float(a * weight * right))
    return tuple(row)
