"""The labels of the fixtures are true: torch alone decides, no rule of acclint is asked.

Each rule has a predicate over what an unchanged run of the script did. It must hold for every code that a fixture
expects, and in a good fixture no other one may hold. In a bad one it may: one defect can be seen in several ways, and
which rule speaks up is a matter of precedence.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from acclint.probe import Measurement, Oracle, SchedulerRecord, Term, Update

ROOT = Path(__file__).parents[1] / "fixtures"
FILES = sorted(ROOT.glob("*/*.py"))

# The coefficients of an update explain its gradient only below this relative distance.
RESIDUAL = 1e-3

# Where the numbers cannot decide, with the reason.
EXEMPT = {
    "ACC001/good_lr_over_k_plain_sgd": ({"ACC001", "ACC021"}, "the learning rate is divided instead of the loss"),
    "ACC001/good_cached_features_in_settings": (
        {"ACC001", "ACC021"},
        "each loss is that of all samples of the window",
    ),
    "ACC001/good_undivided_penalty": ({"ACC006"}, "two losses of one call, weighed as the user chose"),
    "ACC001/good_window_wide_contrastive_loss": (
        {"ACC001", "ACC021"},
        "each loss is that of all samples of the window",
    ),
    "ACC002/good_no_grad_pass_then_replay": ({"ACC001", "ACC021"}, "each loss is that of all samples of the window"),
    "ACC016/good_mean_over_views": ({"ACC031"}, "views of one batch look like micro-batches"),
    "ACC021/good_lr_holds_the_division": ({"ACC001", "ACC021"}, "the learning rate is divided instead of the loss"),
    "ACC031/good_losses_over_scales": ({"ACC006"}, "two losses of one call, weighed as the user chose"),
    "seeds/003_same_learning_rate": ({"ACC001"}, "micro-batches written out look like several losses of one batch"),
}


# --- what an update consists of --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """An update of one optimizer and the backward calls that reached it since the update before.

    `begin` and `end` are how many backward calls of the run came before its first and after its last one.
    """

    measured: Measurement
    optimizer: int
    update: Update
    fresh: tuple[int, ...]
    begin: int
    end: int

    def factor(self, call: int) -> float:
        factor = self.update.coefficients.get(call, 0.0)
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
    def explained(self) -> bool:
        return self.update.residual < RESIDUAL

    @property
    def full(self) -> bool:
        """Whether the weights sum up to 1, as is right for means.

        Several places may be branches for one loss, and several terms of one call may be several losses: then the sum
        of all, or of one term each, may be meant.
        """
        one_each = sum(self.weight(call) / max(1, len(self.terms(call))) for call in self.main)
        return any(close(s, 1.0) for s in (sum(self.weights), sum(map(self.weight, self.fresh)), one_each))


def windows(measured: Measurement, optimizer: int) -> list[Window]:
    record = measured.optimizers[optimizer]
    mine = {t for t, call in enumerate(measured.backwards) if optimizer in call.owners}
    mine |= {t for update in record.updates for t in update.coefficients}  # gradients that were copied
    between: list[list[int]] = [[]]  # the calls before the first step, after it, after the second one, ...
    starts, count = [0], 0
    for event in measured.events:
        if event.kind in ("backward", "grad") and event.ordinal is not None:
            count += 1
            if event.ordinal in mine and not measured.backwards[event.ordinal].replay:
                between[-1].append(event.ordinal)
        elif event.kind == "step" and optimizer in event.owners:
            between.append([])
            starts.append(count)
    starts.append(count)
    assert len(between) == len(record.updates) + 1
    found = []
    for index, update in enumerate(record.updates):
        turn = index + update.closure  # the calls of a closure come after its step began
        if between[turn]:  # else a subclass whose step() calls its parent's: one update, seen twice
            found.append(Window(measured, optimizer, update, tuple(between[turn]), starts[turn], starts[turn + 1]))
    return found


def all_windows(measured: Measurement) -> list[list[Window]]:
    return [windows(measured, j) for j in range(len(measured.optimizers))]


def close(value: float, other: float) -> bool:
    return math.isclose(value, other, rel_tol=1e-3)


def most(answers: list[bool]) -> bool:
    return sum(answers) * 2 > len(answers)


# --- one predicate per rule ------------------------------------------------------------------------------------------


def not_divided(measured: Measurement) -> bool:
    """Most windows hold several micro-batches, and each of their mean losses weighs 1 instead of 1/k."""

    def whole(window: Window) -> bool:
        return all(close(weight, 1.0) for weight in window.weights)

    return any(most([w.size > 1 and w.means and whole(w) for w in found]) for found in all_windows(measured) if found)


def zeroed_within_window(measured: Measurement) -> bool:
    """Most updates are empty or lack a call, used nowhere else, of a place from which they hold another call."""

    def zeroed(window: Window) -> bool:
        lost = set(measured.lost(window.optimizer)) & set(window.fresh)
        places = {window.place(call) for call in window.used}
        return bool(lost) and (not window.used or any(window.place(call) in places for call in lost))

    return any(most([zeroed(w) for w in found]) for found in all_windows(measured) if found)


def tiny_batch_norm(measured: Measurement) -> bool:
    """A BatchNorm in training saw at most 8 samples at once, and windows hold several micro-batches."""
    tiny = any(use.samples <= 8 for use in measured.batch_norms)
    return tiny and any(w.size > 1 for found in all_windows(measured) for w in found)


def schedule_mixes_units(measured: Measurement) -> bool:
    """A schedule is over too early or never, or a plateau scheduler counts updates or micro-batches."""
    return any(_mixes_units(measured, s) for s in measured.schedulers if s.steps and s.optimizer is not None)


def _mixes_units(measured: Measurement, scheduler: SchedulerRecord) -> bool:
    assert scheduler.optimizer is not None
    updates = len(measured.optimizers[scheduler.optimizer].updates)
    steps, lrs = scheduler.steps, scheduler.lrs
    if scheduler.name == "ReduceLROnPlateau":
        return steps >= updates
    if steps > updates:  # per micro-batch: over in the first half, by its horizon or by its learning rates
        return (scheduler.horizon or steps) * 2 <= steps or len(set(lrs[steps // 2 :])) == 1
    if steps < updates:  # per epoch
        return False
    length = scheduler.horizon or scheduler.sizes.get("T_0")
    if length is not None:
        return length > steps
    return scheduler.name == "LambdaLR" and lrs[-1] > 0.5 * max(lrs)  # a decay that does not come to its end


def graphs_pile_up(measured: Measurement) -> bool:
    """The graphs of earlier micro-batches are alive, and more of them with each one: at least three in the end."""
    return measured.growing and max(count.graphs for count in measured.live_graphs) >= 3


def windows_shifted(measured: Measurement) -> bool:
    """The first window, or every third one, holds another number of micro-batches than its losses are divided for."""

    def wrong(window: Window) -> bool:
        divided = all(0 < weight < 0.9 for weight in window.weights)
        return window.means and window.explained and divided and not window.full

    found = [[wrong(w) for w in some] for some in all_windows(measured) if some]
    return any(some[0] or sum(some) * 3 >= len(some) for some in found)


def tail_left_over(measured: Measurement) -> bool:
    """Calls at the end of an epoch are lost, or the first window sums up to 1 and the one at that end does not."""
    ends, count = [], 0
    for event in measured.events:
        count += event.kind in ("backward", "grad")
        if event.kind == "loader_begin" and count:
            ends.append(count)
    ends.append(len(measured.backwards))

    def wrong(window: Window) -> bool:
        at_end = any(window.begin < end <= window.end for end in ends)
        return at_end and window.means and window.explained and not window.full

    for optimizer, found in enumerate(all_windows(measured)):
        lost = measured.lost(optimizer)
        if any(end - 1 in lost for end in ends):
            return True
        if found and found[0].full and any(wrong(w) for w in found):
            return True
    return False


def counts_down(measured: Measurement) -> bool:
    """In most updates the first of k micro-batches weighs k times the last, the second k - 1 times, and so on.

    Without any update: nothing is zeroed between the backward calls after each of which `.grad` is added up.
    """
    if not measured.optimizers:
        return len(measured.backwards) > 1 and not measured.lines("zero")

    def falling(window: Window) -> bool:
        weights = window.weights
        k, last = len(weights), weights[-1]
        return k > 1 and last != 0 and all(close(w / last, k - i) for i, w in enumerate(weights))

    return any(most([falling(w) for w in found]) for found in all_windows(measured) if found)


def old_gradients(measured: Measurement) -> bool:
    """Half of the later updates also hold calls from before the update before."""
    later = [[bool(w.stale) for w in found[1:]] for found in all_windows(measured)]
    return any(some and sum(some) * 2 >= len(some) for some in later)


def update_per_micro_batch(measured: Measurement) -> bool:
    """Each backward call has its update, with weight 1/k, or with those before it in a window of k."""

    def fraction(window: Window) -> bool:
        k = 1 / window.weights[0] if window.weights[0] > 0 else 1.0
        return k > 1.5 and close(k, round(k))

    for found in all_windows(measured):
        single = len(found) > 1 and all(len(w.fresh) == 1 for w in found)
        if single and (all(fraction(w) for w in found) or most([bool(w.stale) for w in found])):
            return True
    return False


def hardly_ever_updated(measured: Measurement) -> bool:
    """At most one update, and most backward calls are in none."""
    return any(
        len(optimizer.updates) <= 1 and len(measured.lost(j)) * 2 > len(measured.backwards)
        for j, optimizer in enumerate(measured.optimizers)
    )


def losses_without_backward(measured: Measurement) -> bool:
    """At the line of the loss, models are called without a backward call, at least once per backward call."""
    terms = [term for call in measured.backwards for term in call.data_terms()]
    lines = {term.line for term in terms if term.line}
    used = {forward for term in terms for forward in term.forwards}
    unused = set(range(max(used, default=-1) + 1)) - used
    idle = sum(count.event == "forward" and count.line in lines for count in measured.live_graphs)
    return min(idle, len(unused)) >= len(measured.backwards) > 0


def one_backward_for_a_window(measured: Measurement) -> bool:
    """Most updates are one backward call on a sum of losses of one place, no two from the same model call."""

    def deferred(window: Window) -> bool:
        if len(window.fresh) != 1:
            return False
        forwards = [forward for term in window.terms(window.fresh[0]) for forward in term.forwards]
        alike = len({round(term.weight, 6) for term in window.terms(window.fresh[0])}) == 1  # no difference of two
        return len(window.terms(window.fresh[0])) > 1 and alike and len(set(forwards)) == len(forwards)

    return any(most([deferred(w) for w in found]) for found in all_windows(measured) if found)


PREDICATES: dict[str, Callable[[Measurement], bool]] = {
    "ACC001": not_divided,
    "ACC002": zeroed_within_window,
    "ACC003": tiny_batch_norm,
    "ACC004": schedule_mixes_units,
    "ACC005": graphs_pile_up,
    "ACC006": windows_shifted,
    "ACC007": tail_left_over,
    "ACC014": counts_down,
    "ACC015": old_gradients,
    "ACC016": update_per_micro_batch,
    "ACC021": not_divided,
    "ACC023": hardly_ever_updated,
    "ACC030": losses_without_backward,
    "ACC031": one_backward_for_a_window,
}


# --- the tests -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with Oracle() as one:
        yield one


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def claims(path: Path) -> dict[str, bool]:
    """{code: whether it is true} as far as the fixture says: what it expects, and in a good one nothing else."""
    said = dict.fromkeys(PREDICATES, False) if path.name.startswith("good_") else {}
    for codes in re.findall(r"# expect(?:-info)?: ([A-Z0-9, ]+)", path.read_text()):
        said.update(dict.fromkeys(re.findall(r"ACC\d{3}", codes), True))
    return said


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_a_fixture_says_is_measured(path: Path, oracle: Oracle) -> None:
    measured = oracle.measure(path)
    assert measured.outcome in ("finished", "stopped"), measured.error
    wrong = {code for code, true in claims(path).items() if PREDICATES[code](measured) != true}
    undecided, _ = EXEMPT.get(name_of(path), (set(), ""))
    assert wrong == undecided


def test_every_rule_with_fixtures_has_a_predicate() -> None:
    assert {path.parent.name for path in FILES} - {"seeds"} == PREDICATES.keys()


def test_exemptions_are_few_and_name_fixtures() -> None:
    assert EXEMPT.keys() <= {name_of(path) for path in FILES}
    assert len(EXEMPT) * 20 < len(FILES)
