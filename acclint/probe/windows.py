"""A measurement seen update by update: which backward calls were in it, and what each weighed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from acclint.probe import Event, Measurement, Term, Update
from acclint.probe.difference import BANDS, RESIDUAL
from acclint.simulate.facts import nominal_size

_HALVES = 0.5  # half types tell only factors of 2 apart
_FACTORS = {"float64": 0.02, "float32": 0.02}


def bands(precision: str) -> tuple[float, float]:
    """Equal up to the first relative difference, different from the second on; between them, it may be rounding."""
    equal, different = BANDS.get(precision, BANDS["float32"])
    return equal, min(different, _HALVES)


@dataclass(frozen=True)
class Window:
    """An update of one optimizer and the backward calls that reached it since the update before.

    `begin` and `end` are how many backward calls of the run came before its first and after its last one. `spent` are
    the calls that another optimizer had stepped with before this one's own loss was sent backward. `clipped` is
    what clipping the norm of the whole gradient multiplied it with, right before the step: that changes the size of an
    update on purpose, and is taken out of the factors.
    """

    measured: Measurement
    optimizer: int
    update: Update
    fresh: tuple[int, ...]
    begin: int
    end: int
    clipped: float = 1.0
    spent: tuple[int, ...] = ()

    def factor(self, call: int) -> float:
        factor = self.update.coefficients.get(call, 0.0) / self.clipped
        return factor if abs(factor) > 1e-6 else 0.0

    def terms(self, call: int) -> tuple[Term, ...]:
        return self.measured.backwards[call].main_terms(self.optimizer)

    def place(self, call: int) -> tuple[object, ...]:
        """Where the call is made and of which loss function."""
        return self.measured.backwards[call].site, *(term.function for term in self.terms(call)[:1])

    @property
    def used(self) -> list[int]:
        return [call for call in self.fresh if self.factor(call)]

    @property
    def stale(self) -> list[int]:
        """Calls from before the update before that are in this one, too."""
        return [call for call in self.update.coefficients if self.factor(call) and call not in self.fresh]

    @property
    def foreign(self) -> list[int]:
        """Calls in it that another optimizer had stepped with before: the generator's, in its discriminator."""
        return [call for call in self.spent if self.factor(call)]

    @property
    def main(self) -> list[int]:
        """One call per micro-batch: those of the busiest place, as several places are several losses of one batch."""
        (place, _), *_ = Counter(self.place(call) for call in self.fresh).most_common(1)
        return [call for call in self.fresh if self.place(call) == place]

    @property
    def size(self) -> int:
        """How many micro-batches it holds."""
        return len(self.main)

    @property
    def means(self) -> bool:
        """Whether the losses are means, so that their weights in an update should sum up to 1."""
        return all(term.reduction == "mean" for call in self.main for term in self.terms(call))

    def weight(self, call: int) -> float:
        """What all terms of the main loss weigh together in the update; of a difference, one side counts."""
        weights = [term.weight for term in self.terms(call)] or [1.0]
        return self.factor(call) * max(sum(w for w in weights if w > 0), -sum(w for w in weights if w < 0))

    @property
    def weights(self) -> list[float]:
        """The weight of each micro-batch."""
        return [self.weight(call) for call in self.main]

    @property
    def largest(self) -> list[float]:
        """The weight of each micro-batch's largest term: a mean by hand has no line that tells it from another one."""
        return [
            self.factor(call) * max((abs(term.weight) for term in self.terms(call)), default=1.0) for call in self.main
        ]

    @property
    def total(self) -> float:
        """What the micro-batches weigh together; 1 is right for means."""
        return sum(self.weights)

    @property
    def explained(self) -> bool:
        return self.update.residual < RESIDUAL

    @property
    def distance(self) -> float:
        """How far the weights are from summing up to 1, as is right for means.

        Several places may be branches for one loss, and several terms of one call may be several losses: then the sum
        of all, of one term each, or of the largest terms, may be meant.
        """
        one_each = sum(self.weight(call) / max(1, len(self.terms(call))) for call in self.main)
        totals = (self.total, sum(map(self.weight, self.fresh)), one_each, sum(self.largest))
        return min(abs(total - 1) for total in totals)

    @property
    def full(self) -> bool:
        return self.distance <= bands(self.measured.precision)[0]

    @property
    def different(self) -> bool:
        """Surely not full."""
        return self.distance >= bands(self.measured.precision)[1]

    def is_factor(self, value: float, factor: float) -> bool:
        """Whether a number is this factor: within 2 %, with half types 10 %."""
        return abs(value - factor) <= _FACTORS.get(self.measured.precision, 0.1) * abs(factor)


def usual_size(found: Sequence[Window]) -> int:
    """How many micro-batches most windows hold: k as it was run. 0 without a window."""
    return nominal_size(window.size for window in found)


def windows(measured: Measurement, optimizer: int) -> list[Window]:
    """The updates of an optimizer, in order; without those that no backward call came before."""
    record = measured.optimizers[optimizer]
    mine = {t for t, call in enumerate(measured.backwards) if optimizer in call.owners}
    mine |= {t for update in record.updates for t in update.coefficients}  # gradients that were copied
    spans, count, inside = [_Span(0)], 0, False  # before the first step, after it, after the second one, ...
    for event in measured.events:
        # what a step's closure does is part of its update, not of the next
        within = inside and bool(event.data.get("closure"))
        span = spans[-2] if within else spans[-1]
        if event.kind in ("backward", "grad") and event.ordinal is not None:
            count += 1
            if within:
                spans[-1].begin = count
            if event.ordinal in mine and not measured.backwards[event.ordinal].replay:
                span.calls.append(event.ordinal)
                span.clipped = 1.0
                span.spent |= span.stepped
        elif event.kind == "clip" and optimizer in event.owners:
            span.clipped *= _clip_factor(event)
        elif event.kind == "step":
            inside = optimizer in event.owners
            if inside:
                spans.append(_Span(count))
            else:
                other = set(event.owners)
                span.stepped |= {call for call in span.calls if other.intersection(measured.backwards[call].owners)}
    ends = [span.begin for span in spans[1:]] + [count] * (len(record.updates) + 1)
    return [
        Window(measured, optimizer, update, tuple(span.calls), span.begin, end, span.clipped, tuple(sorted(span.spent)))
        for update, span, end in zip(record.updates, spans, ends, strict=False)
        if span.calls  # else a subclass whose step() calls its parent's: one update, seen twice
    ]


@dataclass
class _Span:
    """The calls of an optimizer from one step to the next, as `Window` has them.

    `stepped` are those that another optimizer has stepped with, whether or not a call comes behind that.
    """

    begin: int
    calls: list[int] = field(default_factory=list)
    clipped: float = 1.0
    stepped: set[int] = field(default_factory=set)
    spent: set[int] = field(default_factory=set)


def _clip_factor(event: Event) -> float:
    """What torch's clip_grad_norm_ multiplied a gradient with; 1 for other functions and norms below the limit."""
    limit, norm = event.data.get("limit"), event.data.get("norm")
    if event.data.get("function") != "clip_grad_norm_" or limit is None or norm is None or not 0 < norm < math.inf:
        return 1.0
    return min(1.0, float(limit) / (float(norm) + 1e-6)) or 1.0
