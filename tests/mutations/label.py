"""From what torch measured to the findings that are right: a label, derived from numbers alone.

A mutant is compared with the script that it was made from. The same contributions, live graphs and scheduler steps mean
that nothing is wrong, whatever the operator meant. Otherwise the way in which the numbers differ names the defect, as
the set of rules that say it. Where a rule outside of acclint's present set could be the right one, or where the numbers
leave the intention open, the defect may be reported and need not be.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from acclint.probe import Measurement

# rules-table thresholds: equal up to 1e-4 in float32; everything that mutations do is far above 5e-3.
EQUAL = 1e-4
RESIDUAL = 1e-3


@dataclass(frozen=True)
class Call:
    """A backward call as one optimizer sees it: `size` micro-batches of `weight` each, `total` over all its terms."""

    site: tuple[int, ...]
    size: int
    weight: float
    total: float
    mean: bool


@dataclass(frozen=True)
class Step:
    """An update: how many backward calls of this owner lie before it, the factor of each in it, the learning rate."""

    position: int
    factors: tuple[tuple[int, float], ...]
    rate: float | None = None


@dataclass(frozen=True)
class Owner:
    """An optimizer: the backward calls that reach it (renumbered from 0) and its updates."""

    calls: tuple[Call, ...]
    steps: tuple[Step, ...]
    left: int


@dataclass(frozen=True)
class Schedule:
    """A scheduler: how often it stepped, its length where it has one, the mean and the last learning rate."""

    name: str
    steps: int
    horizon: int | None
    mean: float
    last: float


@dataclass(frozen=True)
class Summary:
    """The part of a measurement that labels are made from; plain data, so that it can be kept in a file."""

    problem: str
    owners: tuple[Owner, ...]
    schedules: tuple[Schedule, ...]
    growing: bool
    spread: int  # of the number of live graphs, and by how much it rises over the run
    rise: int
    clipped: bool
    closure: bool
    epochs: int

    @classmethod
    def of(cls, measured: Measurement) -> Summary:
        problem = "" if measured.outcome == "finished" else f"{measured.outcome}: {measured.error or ''}"
        closure = any(call.replay or call.closure for call in measured.backwards)
        owners = []
        for j, record in enumerate(measured.optimizers):
            mine = [t for t, call in enumerate(measured.backwards) if j in call.owners]
            number = {t: index for index, t in enumerate(mine)}
            calls = []
            for t in mine:
                backward = measured.backwards[t]
                main = backward.main_terms(j)
                total = sum(term.weight for term in backward.terms if term.data and j in term.owners)
                weight = sum(term.weight for term in main) / len(main) if main else 1.0
                reduction = main[0].reduction if main else "other"
                if reduction == "other" and not problem:
                    reduction = "mean"  # its weight is what counts; only equality with the original is judged
                calls.append(Call(backward.site, max(1, len(main)), weight, total or 1.0, reduction == "mean"))
            positions = _positions(measured, j, set(mine))
            if len(positions) != len(record.updates):
                problem = problem or "the steps and the updates of an optimizer differ"
                positions = positions[: len(record.updates)]
            for update in record.updates:
                if not update.residual <= RESIDUAL:  # NaN too
                    problem = problem or "the gradient is no combination of the backward calls"
            steps = [
                Step(
                    position,
                    tuple((number[t], a) for t, a in sorted(update.coefficients.items()) if t in number),
                    update.lr,
                )
                for position, update in zip(positions, record.updates, strict=False)
            ]
            owners.append(Owner(tuple(calls), tuple(steps), len(measured.leftover[j].backwards)))
        schedules = tuple(
            Schedule(s.name, s.steps, s.horizon, sum(s.lrs) / max(1, len(s.lrs)), s.lrs[-1] if s.lrs else 0.0)
            for s in measured.schedulers
        )
        clipped = any(
            event.kind == "clip" and _active(event.data.get("limit"), event.data.get("norm"))
            for event in measured.events
        )
        epochs = sum(event.kind == "loader_begin" for event in measured.events)
        return cls(problem, tuple(owners), schedules, measured.growing, *_live(measured), clipped, closure, epochs)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Summary:
        owners = tuple(
            Owner(
                tuple(Call(**{**call, "site": tuple(call["site"])}) for call in owner["calls"]),
                tuple(
                    Step(**{**step, "factors": tuple((t, a) for t, a in step["factors"])}) for step in owner["steps"]
                ),
                owner["left"],
            )
            for owner in data["owners"]
        )
        schedules = tuple(Schedule(**schedule) for schedule in data["schedules"])
        return cls(**{**data, "owners": owners, "schedules": schedules})


def _positions(measured: Measurement, owner: int, mine: set[int]) -> list[int]:
    positions, seen = [], 0
    for event in measured.events:
        if event.kind in ("backward", "grad") and event.ordinal in mine:
            seen += 1
        elif event.kind == "step" and owner in event.owners:
            positions.append(seen)
    return positions


def _live(measured: Measurement) -> tuple[int, int]:
    """How far the numbers of live graphs behind a backward call lie apart, and how much they rise over the run.

    The first number does not count: from the second on, names may still hold the graphs of the call before.
    """
    counts: dict[int, list[int]] = {}
    for count in measured.live_graphs:
        if count.event == "backward":
            counts.setdefault(count.line, []).append(count.graphs)
    spread = max((max(graphs[1:]) - min(graphs[1:]) for graphs in counts.values() if graphs[1:]), default=0)
    third = [graphs for graphs in counts.values() if len(graphs) >= 6]
    rise = max((max(graphs[-len(graphs) // 3 :]) - max(graphs[: len(graphs) // 3]) for graphs in third), default=0)
    return spread, rise


def _active(limit: float | None, norm: float | None) -> bool:
    return limit is not None and math.isfinite(limit) and (norm is None or norm > limit)


# --- labels ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Defect:
    """What is wrong: one of `codes` says it, the likeliest first. Unless `sure`, silence is right too."""

    codes: tuple[str, ...]
    what: str
    sure: bool = True


@dataclass(frozen=True)
class Label:
    """`dropped` says why the numbers decide nothing; else the defects, none of them if the script is right."""

    defects: tuple[Defect, ...] = ()
    tolerated: frozenset[str] = frozenset()
    dropped: str = ""

    @property
    def kind(self) -> str:
        if self.dropped:
            return "dropped"
        if not self.defects:
            return "right"
        return "wrong" if any(defect.sure for defect in self.defects) else "open"

    @property
    def rule(self) -> str:
        """The first code of each sure defect, for the table."""
        sure = [defect.codes[0] for defect in self.defects if defect.sure]
        return " + ".join(sorted(dict.fromkeys(sure))) or self.kind

    @property
    def allowed(self) -> frozenset[str]:
        return self.tolerated.union(*(defect.codes for defect in self.defects))

    def agrees(self, found: Collection[str]) -> bool:
        """Whether these codes are right: every sure defect is named, and nothing else is."""
        named = all(set(found).intersection(defect.codes) for defect in self.defects if defect.sure)
        return named and set(found) <= self.allowed

    def __str__(self) -> str:
        if self.dropped:
            return f"dropped ({self.dropped})"
        parts = [f"{'/'.join(d.codes)}{'' if d.sure else '?'} ({d.what})" for d in self.defects]
        return "; ".join(parts) or "right"


def label(mutant: Summary, original: Summary, rules: Collection[str]) -> Label:
    """What a mutant of `original` deserves. `rules` are the codes that acclint has."""
    if mutant.problem or original.problem:
        return Label(dropped=mutant.problem or f"original: {original.problem}")
    if len(mutant.owners) != len(original.owners):
        return Label(dropped="another number of optimizers")
    found: list[Defect] = []
    tolerated: set[str] = set()
    for new, old in zip(mutant.owners, original.owners, strict=True):
        if same(new, old):
            continue
        defect = None if mutant.closure else _defect(new, old, mutant, original)
        if defect is None:
            return Label(dropped="the numbers are undecidable")
        if mutant.clipped and defect.what.startswith("scale"):
            return Label(dropped="clipping hides the scale")
        found.append(defect)
    # What is left over is ACC007's business, which speaks up only where the loader is known to be too short.
    if any(owner.left or not owner.steps or _uneven(_sizes(owner)) for owner in mutant.owners):
        tolerated.add("ACC007")
    # Batch statistics are not in the numbers; they are another matter where more micro-batches are summed than before.
    pairs = zip(mutant.owners, original.owners, strict=True)
    if any(_usual(_sizes(new)) > _usual(_sizes(old)) for new, old in pairs):
        tolerated.add("ACC003")
    found = [defect for defect in found if defect.codes]
    piled = mutant.growing or mutant.rise > original.rise or mutant.spread > 2 * original.spread + 2
    if piled and not original.growing:
        # Graphs that only one window keeps are a matter of taste.
        window = max((_usual(_sizes(owner)) for owner in original.owners), default=1)
        sure = mutant.growing and mutant.spread >= max(3, 2 * window) and not found
        found.append(Defect(("ACC005", "ACC031"), "graphs pile up", sure=sure))
        tolerated.add("ACC018")
    found += _schedule_defects(mutant, original, bool(found))
    known = frozenset(rules)
    unique: dict[tuple[str, ...], Defect] = {}
    for defect in found:
        sure = defect.sure and known.issuperset(defect.codes)
        before = unique.get(defect.codes)
        unique[defect.codes] = Defect(defect.codes, defect.what, sure or (before is not None and before.sure))
    return Label(tuple(unique.values()), frozenset(tolerated))


def same(new: Owner, old: Owner) -> bool:
    """Equal contributions, update by update."""
    if len(new.steps) != len(old.steps) or len(new.calls) != len(old.calls):
        return False
    for mine, other in zip(new.steps, old.steps, strict=True):
        a, b = _contributions(new, mine), _contributions(old, other)
        if a.keys() != b.keys() or mine.position != other.position:
            return False
        if any(not math.isclose(a[t], b[t], rel_tol=EQUAL) for t in a):
            return False
    return True


def all_ones(summary: Summary) -> bool:
    """Whether every micro-batch of every update has its right weight: a mean 1/k of its window, a sum 1."""
    for owner in summary.owners:
        for window in _windows(owner):
            right = 1 / window.size if window.size and all(call.mean for call in owner.calls) else 1.0
            if window.stale or not all(math.isclose(share, right, rel_tol=EQUAL) for share in window.shares):
                return False
    return True


def _contributions(owner: Owner, step: Step) -> dict[int, float]:
    return {t: a * owner.calls[t].total for t, a in step.factors if abs(a) > 1e-6}


@dataclass(frozen=True)
class _Window:
    """One update: `size` micro-batches since the one before, the sum and the shares of their contributions."""

    size: int
    total: float
    shares: tuple[float, ...]
    weights: tuple[float, ...]
    zeroed: int
    stale: bool


def _windows(owner: Owner) -> list[_Window]:
    windows, begin, stepped = [], 0, set[int]()
    for step in owner.steps:
        factors = {t: a for t, a in step.factors if abs(a) > 1e-6}
        fresh = range(begin, step.position)
        sizes: Counter[tuple[int, ...]] = Counter()
        for t in fresh:
            sizes[owner.calls[t].site] += owner.calls[t].size
        size = max(sizes.values(), default=0)
        total = sum(factors.get(t, 0.0) * owner.calls[t].total for t in fresh)
        if size == 1 and len(sizes) > 1 and math.isclose(total, 1.0, rel_tol=EQUAL):
            size = len(sizes)  # the window is written out, call for call
        shares = tuple(factors.get(t, 0.0) * owner.calls[t].weight for t in fresh)
        weights = tuple(owner.calls[t].weight for t in fresh)
        zeroed = sum(t not in factors for t in fresh)
        windows.append(_Window(size, total, shares, weights, zeroed, bool(stepped & factors.keys())))
        stepped |= factors.keys()
        begin = step.position
    return windows


def _counts_down(window: _Window) -> bool:
    """Factors like 4, 3, 2, 1 (or 3, 2, 1, 0): each look at `.grad` added what was already in it."""
    factors = [share / weight for share, weight in zip(window.shares, window.weights, strict=True) if weight]
    if factors and not factors[-1]:
        factors.pop()
    count, last = len(factors), factors[-1] if factors else 0.0
    return count > 1 and last > 0 and all(_close(factor / last, count - i) for i, factor in enumerate(factors))


def _sizes(owner: Owner) -> list[int]:
    return [window.size for window in _windows(owner)]


def _one_call(owner: Owner) -> bool:
    """Whether there is at most one backward call before each update."""
    positions = [0, *(step.position for step in owner.steps)]
    return all(at - before <= 1 for before, at in pairwise(positions))


def _leaking(owner: Owner, n: int) -> bool:
    """Whether the updates come after every n-th micro-batch of a pass, and what is left of a pass stays for the next.

    The length of a pass is not measured: there has to be one under which all updates are where they should be.
    """
    positions, total = [step.position for step in owner.steps], len(owner.calls)
    if any(call.size > 1 for call in owner.calls) or len({call.site for call in owner.calls}) > 1:
        return False
    lengths = [length for length in range(n, total + 1) if total % length == 0]
    return any(
        positions == [at for at in range(1, total + 1) if ((at - 1) % length + 1) % n == 0] for length in lengths
    )


def _at_ends(owner: Owner, n: int) -> int:
    """How many of the windows that are not n long end where a pass could: behind the same number of calls each time."""
    sizes = _sizes(owner)
    odd = [step.position for step, size in zip(owner.steps, sizes, strict=True) if size != n]
    total = owner.steps[-1].position + owner.left
    return sum(total % (total // len(odd)) == 0 and at % (total // len(odd)) in (0, sizes[0]) for at in odd)


def _uneven(sizes: Sequence[int]) -> bool:
    return len(set(sizes)) > 1


def _usual(values: Sequence[int]) -> int:
    return Counter(values).most_common(1)[0][0] if values else 0


def _close(value: float, other: float) -> bool:
    return math.isclose(value, other, rel_tol=0.02)


def _defect(new: Owner, old: Owner, mutant: Summary, original: Summary) -> Defect | None:
    """How the contributions of a mutant are wrong: empty codes if they are not, None if that is undecidable."""
    before, after = _windows(old), _windows(new)
    k = _usual([window.size for window in before])
    if not before:
        return None
    clean = not any(window.stale or window.zeroed for window in before)
    first = new.steps[0].position if new.steps else 0
    stopped = first <= k < new.left or (len(before) > 2 and first <= max(k, len(new.calls) // 2))
    if not after or (len(after) == 1 and stopped):
        return Defect(("ACC023", "ACC006", "ACC007", "ACC030", "ACC002"), "the update is never reached", sure=k > 1)
    sizes = [window.size for window in after]
    usual = k if sizes.count(k) * 2 >= len(sizes) else _usual(sizes)
    moved = [step.position for step in new.steps] != [step.position for step in old.steps]

    steps_each = _one_call(new) and not _one_call(old)

    # In the order of the table in rules.md: what is in an update that should not be, then what lacks, then the scale.
    if clean and sum(_counts_down(window) for window in after) * 2 > len(after):
        codes = ("ACC014", "ACC015") if any(window.stale for window in after) else ("ACC014",)
        return Defect(codes, "earlier micro-batches weigh more")
    stale = sum(window.stale for window in after[1:])
    zeroed = sum(window.zeroed > 0 for window in after)
    shifted = ("ACC006",) if moved else ()
    if clean and stale:
        if (usual == 1 or steps_each) and k > 1:
            return Defect(("ACC015", "ACC016", *shifted), "every micro-batch steps, old ones again")
        fresh = sum(window.size > 0 for window in after)
        codes = ("ACC015", *(("ACC002",) if zeroed * 2 > fresh else ()), *shifted)
        return Defect(codes, "old micro-batches are in later updates", sure=stale * 2 > len(after) - 1)
    if clean and zeroed:
        if zeroed * 2 <= len(after):
            return Defect(("ACC002", "ACC006", "ACC007"), "some micro-batches are zeroed", sure=False)
        if usual == 1 < k:
            return Defect(("ACC002", "ACC016", "ACC006"), "every update is zeroed", sure=False)
        return Defect(("ACC002", *shifted), "zeroed within the window", sure=k > 1)
    if not clean or stale or zeroed:
        return None

    mean = all(call.mean for call in new.calls)
    scale = _total(before, k)
    if scale is None:
        return None
    used, there = (sum(call.size for call in owner.calls) for owner in (new, old))
    if steps_each and used * 2 <= there and mutant.epochs == original.epochs:
        return Defect(("ACC030",), "backward on the boundary only")
    # A call of several losses counts as that many micro-batches.
    alone = len(after) == len(new.calls) and all(call.size == usual for call in new.calls)
    if usual == 1 < k or (alone and usual < k):
        if all(_close(window.total, scale) for window in after) or (not mean and len(set(sizes)) == 1):
            return Defect((), "a plain loop")
        if len(set(sizes)) == 1:
            codes = ("ACC016",) if len(after) == len(new.calls) else ("ACC006", "ACC016")
            return Defect(codes, "every micro-batch steps")
    full = [window for window in after if window.size == usual]
    ratios = [window.total / scale for window in full]
    even = all(_close(ratio, ratios[0]) for ratio in ratios)
    if not even:
        return Defect(("ACC026", "ACC027", "ACC006"), "scale differs between updates", sure=False)
    if len({call.site for call in new.calls}) == 1 and not all(
        _close(share, window.shares[0]) for window in full for share in window.shares
    ):
        return Defect(("ACC026", "ACC027"), "scale differs within an update", sure=False)
    if usual == k:
        if not _close(ratios[0], 1.0):
            if mean and k > 1 and _close(ratios[0], k):
                # One call for the sum instead of the mean of what it is made from is another loss, perhaps a meant one;
                # so is a sum in which a part that weighed little has grown.
                sure = _grown(full, before, k) and not _one_call(old)
                return Defect(("ACC001", "ACC021"), f"scale {ratios[0]:.3g}: not divided", sure)
            if _close(ratios[0] * k, 1.0):
                return Defect(("ACC010", "ACC026"), f"scale {ratios[0]:.3g}: divided twice", sure=False)
            # Some of the calls are divided, or some are left out.
            partly = ("ACC021",) if ratios[0] > 1 else ("ACC030",) if len(new.calls) < len(old.calls) else ()
            return Defect(("ACC026", "ACC001", "ACC027", *partly), f"scale {ratios[0]:.3g}", sure=False)
        return _shape(sizes, [window.size for window in before], k, mutant.epochs)
    if all(_close(window.total, scale) for window in after):
        return Defect((), "another window, rightly divided")
    odd = len(sizes) - sizes.count(usual)
    epoch = len(new.calls) // max(mutant.epochs, 1)
    if len(set(sizes[1:])) == 1 and sizes[0] < sizes[1] == epoch:  # a window, then always with the rest of an epoch
        return Defect(("ACC006", "ACC026", "ACC007"), f"windows of {sizes[0]} divided for {k}", sure=False)
    regular = sizes[0] == usual and (odd == 0 or (odd <= mutant.epochs < len(sizes) and odd == _at_ends(new, usual)))
    if sizes[0] and _leaking(new, sizes[0]):
        regular, usual = True, sizes[0]
    if regular and not mean:
        return Defect((), "another window of sums")
    if regular and all(_close(share, 1.0) for window in after for share in window.shares):
        return Defect(("ACC001", "ACC006", "ACC026"), f"windows of {usual} not divided", sure=False)
    if regular:
        return Defect(("ACC006", "ACC026"), f"windows of {usual} divided for {k}", sure=False)
    return _shape(sizes, [window.size for window in before], k, mutant.epochs)


def _grown(windows: Sequence[_Window], before: Sequence[_Window], by: int) -> bool:
    """Whether the main part of the losses weighs `by` times what it did too, not their sum alone."""
    old = next((window.shares for window in before if window.size == windows[0].size), ())
    return all(_close(share, by * other) for share, other in zip(windows[0].shares, old, strict=False))


def _total(windows: Sequence[_Window], k: int) -> float | None:
    """The sum of contributions of a full window of the original, if it has one."""
    totals = [window.total for window in windows if window.size == k]
    if totals and all(_close(total, totals[0]) for total in totals) and totals[0]:
        return totals[0]
    return None


def _shape(sizes: Sequence[int], before: Sequence[int], k: int, epochs: int) -> Defect:
    """What windows of other lengths than the original's mean, where the scale of a full one is right."""
    if list(sizes) == list(before[: len(sizes)]):
        return Defect((), "fewer updates of the same windows")
    odd = sum(size != k for size in sizes)
    if sizes[0] == k and odd <= max(1, epochs):
        return Defect(("ACC007", "ACC006"), "windows differ at the end of an epoch", sure=False)
    if all(size % k == 0 for size in sizes):
        return Defect(("ACC006", "ACC024", *(("ACC001",) if k == 1 else ())), "windows merge", sure=False)
    codes: tuple[str, ...] = ("ACC006",)
    if len(set(sizes[1:])) == 1 and sizes[0] == k:  # what every later window has is not the one that is divided for
        codes = ("ACC006", "ACC016") if sizes[1] == 1 else ("ACC006", "ACC026") if sizes[1] > k else codes
    return Defect(codes, f"windows of {', '.join(map(str, sizes[:6]))} micro-batches instead of {k}")


def _same_rates(mutant: Summary, original: Summary) -> bool:
    """Whether all updates have the learning rates of the original, which a schedule by the epoch or update has changed.

    A plateau that the short run does not reach says nothing.
    """
    if any(one.name == "ReduceLROnPlateau" for one in original.schedules):
        return False
    mine, other = ([[step.rate for step in owner.steps] for owner in one.owners] for one in (mutant, original))
    if [len(rates) for rates in mine] != [len(rates) for rates in other]:
        return False
    pairs = [pair for a, b in zip(mine, other, strict=True) for pair in zip(a, b, strict=True)]
    changing = any(len(set(rates)) > 1 for rates in other)
    return changing and all(a is not None and b is not None and math.isclose(a, b, rel_tol=1e-6) for a, b in pairs)


def _schedule_defects(mutant: Summary, original: Summary, broken: bool) -> list[Defect]:
    if len(mutant.schedules) != len(original.schedules):
        return []
    if _same_rates(mutant, original):
        return []
    defects = []
    for new, old in zip(mutant.schedules, original.schedules, strict=True):
        if (new.steps, new.horizon) == (old.steps, old.horizon):
            alike = math.isclose(new.mean, old.mean, rel_tol=0.01) and math.isclose(new.last, old.last, rel_tol=0.01)
            if not alike and new.name != "ReduceLROnPlateau":
                defects.append(Defect(("ACC004",), "as many scheduler steps, other learning rates", sure=False))
            continue
        what = f"{new.steps} scheduler steps for {new.horizon}, {old.steps} for {old.horizon} before"
        if new.horizon and old.horizon and 0.8 <= old.steps / old.horizon <= 1.25:
            used = new.steps / new.horizon
            if not 0.67 < used < 1.5:
                codes = ("ACC004", "ACC023") if new.steps <= 1 else ("ACC004",)
                defects.append(Defect(codes, what, sure=not broken and new.steps > 1))
        else:
            plateau = new.name == "ReduceLROnPlateau" and new.steps > 2 * old.steps
            defects.append(Defect(("ACC004",), what, sure=plateau and not broken))
    return defects
