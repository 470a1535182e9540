"""How rules look at a run: lanes as views, with the evidence that they accumulate and what had to be assumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from acclint.findings import Confidence, Severity
from acclint.knowledge.names import is_accumulation_switch, is_batch_size_name, is_way_of_computing, words
from acclint.program import NOWHERE, Span
from acclint.rules.base import Report
from acclint.simulate import Analysis
from acclint.simulate.facts import common_size, right_size, site_counts, window_size
from acclint.simulate.trace import TAKEN, Backward, Event, Guard, Lane, Loop, Run, Window
from acclint.simulate.values import Term
from acclint.simulate.vocabulary import word_set

# What a function that is given the optimizer is for, by its name, when it is not zeroing or stepping.
_HARMLESS = word_set("lr rate schedule scheduler warmup log save checkpoint state print")
_TRACED = 3  # updates of which a finding's evidence tells the events
ORDER = (Confidence.LOW, Confidence.MEDIUM, Confidence.HIGH)


def weaker(*levels: Confidence) -> Confidence:
    return min(levels, key=lambda level: level.rank)


@dataclass
class View:
    """One lane of one run. `k` is its nominal window: how many micro-batches an update usually sums."""

    run: Run
    lane: Lane
    texts: Analysis
    k: int = 0
    windows: list[Window] = field(default_factory=list)

    @cached_property
    def closed(self) -> list[Window]:
        """The windows that an update ended."""
        return [window for window in self.windows if window.update is not None]

    @cached_property
    def sizes(self) -> list[int]:
        return [window_size(self.run, window) for window in self.closed]

    @cached_property
    def full(self) -> list[Window]:
        return [window for window, size in zip(self.closed, self.sizes, strict=True) if size == self.k]

    def backwards(self, window: Window) -> list[Backward]:
        return [self.run.backwards[number] for number in window.seen]

    @cached_property
    def update(self) -> Event | None:
        return self.closed[-1].update if self.closed else None

    # --- the loop over micro-batches ---

    @cached_property
    def micro(self) -> Loop | None:
        """The loop whose turns are the micro-batches: the outermost that turns between two backward calls of a site."""
        best: Loop | None = None
        for window in self.windows:
            by_site: dict[tuple[Span, ...], list[Backward]] = {}
            for backward in self.backwards(window):
                if not backward.replay:
                    by_site.setdefault(backward.site, []).append(backward)
            for group in by_site.values():
                for one, other in pairwise(group):
                    found = turning(one.event.loops, other.event.loops)
                    if found is not None and (best is None or found.level in ("micro", "window")):
                        best = found
                        if best.level in ("micro", "window"):
                            return best
        if best is None and self.windows:
            for window in self.windows:
                for backward in self.backwards(window):
                    if backward.event.loops:
                        return backward.event.loops[-1][0]
        return best

    @cached_property
    def fetches(self) -> bool:
        """Whether new data is fetched between two micro-batches of a window."""
        for window in self.windows:
            by_site: dict[tuple[Span, ...], list[Term]] = {}
            for backward in self.backwards(window):
                for term, _ in backward.terms:
                    by_site.setdefault(backward.site, []).append(term)
            for terms in by_site.values():
                if len({term.fetch for term in terms}) > 1 or len({own_data(term) for term in terms}) > 1:
                    return True
        return False

    @cached_property
    def gate(self) -> Guard | None:
        """The window test, if it is known where its counter begins."""
        return None if self.window_test is None or self.window_test.unknown else self.window_test

    @cached_property
    def window_test(self) -> Guard | None:
        """The innermost condition of the update with a modulus that is not one of the backward call's."""
        for window in self.closed:
            event = window.update
            if event is None or not window.seen:
                continue
            sets = [
                {(guard.span, guard.outcome) for guard in self.run.backwards[number].event.guards}
                for number in window.seen
            ]
            around = set.intersection(*sets)
            own = [guard for guard in event.guards if (guard.span, guard.outcome) not in around]
            with_window = [guard for guard in own if guard.modulus is not None]
            if with_window:
                return with_window[-1]
        return None

    @cached_property
    def evidence(self) -> Confidence:
        """How sure it is that several backward calls before an update are accumulation over micro-batches."""
        micro = self.micro
        if micro is None:
            return Confidence.LOW
        if micro.kind == "call":
            # The loop of whoever calls this is one over micro-batches if the update waits for a window test.
            return Confidence.MEDIUM if self.window_test is not None else Confidence.LOW
        if self.gate is not None and micro.level != "quiet":
            return (
                Confidence.HIGH
                if self.fetches or micro.fetched or micro.kind in ("count", "while")
                else Confidence.MEDIUM
            )
        if micro.named and micro.kind == "count":
            return Confidence.HIGH
        if micro.kind == "loader" and self.fetches:
            return Confidence.HIGH if micro.named else Confidence.MEDIUM
        if self.fetches and micro.kind in ("count", "list", "while"):
            return Confidence.MEDIUM
        return Confidence.LOW

    # --- confidence ---

    def _has_rivals(self) -> bool:
        """Whether another optimizer that nothing is known about is stepped in the same loop."""
        mine = self.lane.optimizer
        updates = [window.update for window in self.closed if window.update is not None]
        # A function that is called again makes its optimizer anew.
        loops = {loop for one in updates for loop, _ in one.loops if (loop.kind, loop.level) != ("call", "outer")}
        rivals = [lane for lane in self.run.lanes if lane.optimizer is not mine and lane.parts_unknown]
        steps = [window.update for lane in rivals for window in lane.windows if window.update is not None]
        return any(not loops.isdisjoint(loop for loop, _ in step.loops) for step in steps)

    @cached_property
    def assumptions(self) -> list[tuple[Confidence, str, Span | None]]:
        found: list[tuple[Confidence, str, Span | None]] = []
        optimizer = self.lane.optimizer
        if optimizer is not None and not (optimizer.known or optimizer.own):
            if self.lane.parts_unknown and self._has_rivals():
                found.append((Confidence.LOW, f"which parameters `{optimizer.name}` holds is not known", None))
            else:
                found.append(
                    (
                        Confidence.MEDIUM,
                        f"`{optimizer.name}` is taken for a torch optimizer over this loss's parameters",
                        None,
                    )
                )
        gate = optimizer.gate if optimizer is not None else None
        if gate is not None and not gate.told:
            found.append(
                (Confidence.MEDIUM, "the launcher sets gradient_accumulation_steps, which is 1 by default", None)
            )
        micro = self.micro
        if micro is not None and micro.kind == "call" and not micro.target:
            level = Confidence.MEDIUM if self.window_test is not None else Confidence.LOW
            found.append((level, "the loop over micro-batches is not in this file", micro.span))
        if self.run.notes:
            found.append((Confidence.LOW, self.run.notes[0][0], self.run.notes[0][1]))
        zeroed = any(window.zeros for window in self.windows)
        for event in [one for one in self.run.of("hook") if not (one.data.get("again") and zeroed)][:1]:
            what = event.data.get("what")
            told = f"`{what}` may zero gradients" if what else "a gradient hook may change the gradients"
            found.append((Confidence.LOW, told, event.span))
        return found

    @cached_property
    def handed_on(self) -> Event | None:
        """A call of something unknown, in the loop, that is given the optimizer and could use or zero its gradients."""
        micro = self.micro
        for event in self.run.of("opaque"):
            value = event.data.get("value")
            same = value is self.lane.optimizer or getattr(value, "attrs", {}).get("<optimizer>") is self.lane.optimizer
            inside_loop = micro is not None and any(loop.span == micro.span for loop, _ in event.loops)
            if same and inside_loop and not _HARMLESS & set(words(event.data["what"])):
                return event
        return None

    @cached_property
    def confidence(self) -> Confidence:
        return weaker(Confidence.HIGH, *(level for level, _, _ in self.assumptions))

    def notes(self) -> tuple[tuple[str, Span | None], ...]:
        return tuple((text, span) for _, text, span in self.assumptions)

    # --- numbers ---

    def effective(self, window: Window, backward: Backward) -> Any:
        """The weight with which the backward call's largest loss term enters the update: (term, weight)."""
        a = window.row.get(backward.number, 0)
        best: tuple[Term | None, Any] = (None, 0)
        for term, weight in backward.terms:
            if abs(weight) >= abs(best[1]):
                best = (term, weight)
        return best[0], best[1] * a

    @cached_property
    def scale_known(self) -> bool:
        for window in self.windows:
            if any(event.data.get("unsure") for event in window.edits):
                return False
            if any(not self.run.backwards[number].known_scale for number in window.seen):
                return False
        return True

    @cached_property
    def k_text(self) -> str:
        """k in the user's own words."""
        if not self._counts_in_ones():
            return ""
        if self.tested_text:
            return self.tested_text
        gate, micro = self.gate, self.micro
        if micro is not None and micro.kind == "count" and micro.level == "window":
            found = self.texts.text(micro.span)
            if found.startswith("range(") and found.endswith(")") and found.count(",") < 2:
                return found[6:-1]
        tested = gate.roots if gate is not None else ()
        for name in sorted(self.run.k_names, key=lambda name: name not in tested):
            if self.run.k_names[name] != self.k and gate is None:
                continue  # A loop over something else that is as long as it happens to be.
            head, _, rest = name.partition(".")
            if head == "__init__" or "@" in head:
                return f"self.{rest}"  # An argument that the object keeps, as is the custom under its name.
            if ":" in name:
                return name.rpartition(":")[2].partition(".")[2]  # An object without a name, by its place.
            read = name.rpartition(")")[2].lstrip(".")
            if read != name and read.replace(".", "").isidentifier():
                return read  # `parse_args(sys.argv).accumulation_steps`: what calls have returned has another name.
            return rest if head in self.texts.functions else name
        return ""

    @cached_property
    def tested_text(self) -> str:
        """The number in the window test, in the user's own words."""
        gate = self.gate
        if gate is None or gate.bound:
            return gate.bound if gate is not None else ""
        own = (text for span, text in self.texts.moduli.items() if span.within(gate.span) or span == gate.remainder)
        return next(own, "")

    def _counts_in_ones(self) -> bool:
        """Whether the window test counts micro-batches, not the samples in them: its number is the window's."""
        modulus = self.gate.modulus if self.gate is not None else None
        samples = is_batch_size_name(self.tested_text.rpartition(".")[2]) or self.tested_text.isdigit()
        return not (samples and isinstance(modulus, int) and abs(modulus - self.k) > 1)

    @cached_property
    def k_place(self) -> Span | str:
        """Where k is written in the window test or the loop over micro-batches; else its name, "" if it has none."""
        gate, micro = self.gate, self.micro
        if not self._counts_in_ones():
            return ""
        if gate is not None and gate.bound_span is not None:
            return gate.bound_span
        if gate is not None and gate.remainder is not None and gate.remainder != NOWHERE:
            return self.texts.operands.get(gate.remainder, gate.remainder)
        if micro is not None and micro.level == "window":
            return self.texts.counts.get(micro.span) or self.k_text
        return self.k_text

    def k_phrase(self) -> str:
        """`args.accum` (simulated as 4), or the number; "k" where the number is only that of the simulation."""
        if self.k_text and not self.k_text.isdigit():
            return f"`{self.k_text}`"
        made_up = not self.k_text and self.micro is not None and not self.micro.known_length
        return "k" if made_up else str(self.k)

    def related(self) -> list[tuple[str, Span]]:
        found: list[tuple[str, Span]] = []
        if self.gate is not None:
            found.append(("the window test", self.gate.span))
        elif self.micro is not None and self.micro.level == "window":
            found.append(("the loop over micro-batches", self.micro.span))
        if self.update is not None:
            found.append(("the optimizer update", self.update.span))
        return found

    def trace(self) -> list[dict[str, Any]]:
        """What happened to the gradients of this lane up to the end of its first updates, in order.

        `place` is a span; `weight` is that of the largest loss term of a backward call before any edit of gradients,
        `factor` what an edit multiplies gradients with, None if it is not known.
        """
        told = [window for window in self.closed if window.seen][:_TRACED]
        calls = [self.run.backwards[number] for number in sorted({n for window in told for n in window.seen})]
        found: dict[int, dict[str, Any]] = {}
        for call in calls:
            term, weight = max(call.terms, key=lambda one: abs(float(one[1])), default=(None, 1))
            reduction = term.reduction if term is not None else "unknown"
            found[call.event.number] = {"event": "backward", "weight": float(weight), "reduction": reduction}
        for window in told:
            found |= {event.number: {"event": "zero_grad"} for event in window.zeros}
            for event in window.edits:
                factor = event.data.get("factor")
                found[event.number] = {"event": "edit", "factor": None if factor is None else float(factor)}
            if window.update is not None:
                found[window.update.number] = {"event": "update"}
        return [{**found[number], "place": self.run.events[number].span} for number in sorted(found)]

    def proof(self) -> dict[str, Any]:
        """The evidence of a finding."""
        rows = []
        for window in self.closed[:8]:
            row = []
            size = right_size(self.run, window, self.k)
            for number in sorted({*window.seen, *window.row}):
                backward = self.run.backwards[number]
                term, _ = self.effective(window, backward)
                weight = max((w for _, w in backward.terms), key=lambda one: abs(float(one)), default=1)
                right = 1 if term is not None and term.reduction == "sum" else size
                row.append(round(float(window.row.get(number, 0) * weight * right), 6))
            rows.append(row)
        literal = self.k_text.isdigit()
        return {
            "k": {
                "expression": self.k_text,
                "value": int(self.k_text) if literal else None,
                "simulated_as": self.k,
            },
            "contributions": [{"owner": self.lane.name, "updates": rows}],
            "trace": {"owner": self.lane.name, "events": self.trace()},
            "scope": list(self.micro.span) if self.micro is not None else None,
        }


def own_data(term: Term) -> frozenset[int]:
    """The data that a loss was computed from: what was fetched, or else what the program made up."""
    fetched = frozenset(one for one in term.data if one > 0)
    return fetched or frozenset(one for one in term.data if one > TAKEN)


def same_turn(one: Event, update: Event | None) -> bool:
    """Whether the event is in the turn of the loops around the update, or in a loop inside it."""
    return update is not None and one.loops[: len(update.loops)] == update.loops


def turning(one: tuple[tuple[Loop, int], ...], other: tuple[tuple[Loop, int], ...]) -> Loop | None:
    """The outermost loop that is in another turn (or entry) in the second of two places."""
    for (loop, turn), (loop2, turn2) in zip(one, other, strict=False):
        if loop is not loop2:
            return None
        if turn != turn2:
            return loop
    return None


def views(analysis: Analysis, run: Run) -> list[View]:
    """The lanes of a run that hold at least one backward call, one view per distinct behaviour."""
    found: list[View] = []
    certain = {
        id(lane.optimizer) for lane in run.lanes if not lane.owner.guessed and any(one.seen for one in lane.windows)
    }
    for lane in run.lanes:
        if lane.optimizer is not None and lane.optimizer.replays:
            continue
        if lane.owner.guessed and lane.parts_unknown and id(lane.optimizer) in certain:
            continue  # Of what the optimizer may hold, it is the least likely.
        if not any(window.seen for window in lane.windows):
            continue
        found.append(View(run, lane, analysis, common_size(run, lane), lane.windows))
    return found


Judge = Callable[[Run], list[Report]]


def held(analysis: Analysis, judge: Judge) -> Iterator[Report]:
    """The reports that hold under both assignments of numbers.

    A report that only a flipped condition brings names the condition and is medium at most, a step less sure where it
    takes more for granted. It is of low confidence where the condition is a choice of what to do, not of how to compute
    it: the author may not have meant the two to go together, and half of such reports were wrong (a mere information
    stays medium). The same is true of
    one that a flipped condition takes away though the loop trains as before: nobody knows which side is meant.
    """
    seen: set[Span] = set()
    alike = False  # whether the same mistake is on the base path, too
    told = {path.flipped: judge(path.first) for path in analysis.paths if not (path.flipped and path.first.stopped)}
    for path in analysis.paths:
        # A run that was broken off says little about another choice.
        first = {report.span: report for report in told.get(path.flipped, ()) if report.span not in seen}
        if not first or path.second is None:
            continue
        again = {report.span: report for report in judge(path.second)}
        for span, report in first.items():
            if span not in again:
                continue
            seen.add(span)
            level = weaker(report.confidence, again[span].confidence)
            if path.flipped:
                # It is one more thing to assume: the first leaves the middle, another one does not, unless the same
                # mistake is there with the other way of computing, too.
                burdened = len(report.assumptions) > 1
                report, computing = _depending(analysis, report, path.first, path.flipped)
                if burdened and not (alike and computing):
                    level = ORDER[max(level.rank - 1, 0)]
                light = alike or computing or report.severity is Severity.INFO
                level = weaker(level, Confidence.MEDIUM if light else Confidence.LOW)
            else:
                for key in _decisive(report, path.first, analysis, told):
                    report, computing = _depending(analysis, report, path.first, key)
                    level = weaker(level, Confidence.MEDIUM if computing else Confidence.LOW)
            alike |= not path.flipped
            yield replace(report, confidence=level)


def _depending(analysis: Analysis, report: Report, run: Run, key: str) -> tuple[Report, bool]:
    """The report with a note of the side of a condition that it is true on; whether that is a way of computing."""
    condition = run.conditions.get(key)
    said = (analysis.text(condition.text_span) if condition is not None else "") or key
    note = (f"only where `{said}` is {'true' if condition and condition.value else 'false'}", None)
    return replace(report, assumptions=(*report.assumptions, note)), is_way_of_computing(said)


def _decisive(report: Report, run: Run, analysis: Analysis, told: dict[str, list[Report]]) -> list[str]:
    """The conditions that take a report of the base path away when they are flipped, though the loop trains as before.

    That a condition decides whether the place of the report, or one beside it, is come to at all is another matter.
    """
    places = {report.span, *(span for _, span in report.notes)}
    guards = {guard for event in run.events if event.span in places for guard in event.guards}
    found = []
    for path in analysis.paths:
        condition = run.conditions.get(path.flipped)
        if condition is None or told.get(path.flipped, True) or not _trains_alike(run, path.first):
            continue
        said = analysis.text(condition.text_span) or path.flipped
        if condition.divides or is_accumulation_switch(said):
            continue  # The mistake stands on one side itself; or it is asked whether to accumulate at all.
        if not any(guard.key == path.flipped or guard.span == condition.text_span for guard in guards):
            found.append(path.flipped)
    return found


def _trains_alike(run: Run, other: Run) -> bool:
    """Whether the same calls make the gradients and use them."""
    return all(
        {event.span for event in run.of(kind)} == {event.span for event in other.of(kind)}
        for kind in ("backward", "update")
    )


def scale_severity(view: View) -> Severity:
    """A wrong scale is an error, a warning where the optimizer is invariant to it."""
    optimizer = view.lane.optimizer
    invariant = optimizer is not None and optimizer.invariant and not view.run.of("clip")
    return Severity.WARNING if invariant else Severity.ERROR


def owner_phrase(view: View) -> str:
    optimizer = view.lane.optimizer
    return f"`{optimizer.name}`" if optimizer is not None else f"`{view.lane.owner.name}`"


__all__ = [
    "NOWHERE",
    "Judge",
    "View",
    "held",
    "owner_phrase",
    "same_turn",
    "scale_severity",
    "site_counts",
    "turning",
    "views",
    "weaker",
]
