"""What the numbers of a run say about each rule, for one optimizer: the defect is there, it is not there, or neither.

"Not there" is said only where a number shows that it is right. Unexplained gradients, losses that are no means, or a
run that never came to the place in question decide nothing. No rule of acclint and no source is asked.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from acclint.probe import Measurement, SchedulerRecord
from acclint.probe.windows import Window, bands, usual_size, windows

BATCH_NORM = 8  # samples up to which batch statistics count as noisy
HELD = 3  # so many graphs alive at once are a pile
NEARLY = 0.8  # a schedule that came so far has only missed a tail
COUPLED = 0.05  # relative distance from the gradient of one batch, from which a loss couples its samples
UNCOUNTED = 0.02  # and from the mean over all elements, from which the mean of means is another


@dataclass(frozen=True)
class Reading:
    """`shown`: True if the numbers show the defect, False if they show that it is absent, None if they do not say.

    `text` tells the number, or why there is none. `line` (0: not known) and `file` (empty: the script) are the place.
    """

    shown: bool | None
    text: str
    line: int = 0
    file: str = ""


Check = Callable[[Measurement, int, list[Window]], Reading]


def read(code: str, measured: Measurement, optimizers: Sequence[int], *, alone: bool = False) -> Reading:
    """The reading for some optimizers together: shown if one shows it, absent only if all show its absence.

    `alone` asks for a reading that is sure enough without a finding of the source.
    """
    check = CERTAIN.get(code, CHECKS[code]) if alone else CHECKS[code]
    if code == "ACC014" and not measured.optimizers:
        return _summed_without_optimizer(measured)
    if code == "ACC005" and not measured.optimizers:
        return graphs_pile_up(measured, 0, [])  # an evaluation alone
    readings = [check(measured, o, windows(measured, o)) for o in optimizers]
    return _together(readings) or Reading(None, "no optimizer was made")


def _together(readings: Sequence[Reading]) -> Reading | None:
    """Shown if one shows it, absent only if all show its absence."""
    for wanted in (True, None, False):
        for reading in readings:
            if reading.shown is wanted:
                return reading
    return None


def _most(answers: Sequence[bool]) -> bool:
    return sum(answers) * 2 > len(answers)


def _name(measured: Measurement, optimizer: int) -> str:
    record = measured.optimizers[optimizer]
    return record.name if record.name != "manual" else "the parameters updated by hand"


def _undecided(measured: Measurement, optimizer: int, found: list[Window]) -> str:
    """Why the weights in the windows say nothing; empty if they do say something."""
    if not found:
        return f"no update of {_name(measured, optimizer)} was seen"
    if max(window.size for window in found) == 1:
        return f"each update of {_name(measured, optimizer)} held one backward call: nothing was accumulated"
    if not all(window.explained for window in found):
        worst = max(window.update.residual for window in found)
        return f"a gradient that was stepped is no combination of those that backward brought (residual {worst:.1g})"
    return ""


def _places(window: Window) -> tuple[int, str]:
    call = window.measured.backwards[window.main[0]]
    return call.line, call.file


def not_divided(measured: Measurement, optimizer: int, found: list[Window]) -> Reading:
    """Most windows hold several micro-batches, and each of their mean losses weighs 1 instead of 1/k."""

    def whole(window: Window) -> list[float]:
        """The weights, if each is 1."""
        if window.size < 2 or not window.means:
            return []
        either = (window.weights, window.largest)
        return next((one for one in either if all(window.is_factor(weight, 1.0) for weight in one)), [])

    if found and _most([bool(whole(w)) for w in found]):
        window = next(w for w in found if whole(w))
        total = sum(whole(window))
        text = (
            f"the weights of {window.size} mean losses sum to {total:.3f} in an update: the gradient is"
            f" {total:.2f}x that of their mean"
        )
        return Reading(True, text, *_places(window))
    return _right_sum(measured, optimizer, found)


def _right_sum(measured: Measurement, optimizer: int, found: list[Window]) -> Reading:
    """Absent where all windows of mean losses sum to 1."""
    reason = _undecided(measured, optimizer, found)
    if reason:
        return Reading(None, reason)
    if not all(window.means for window in found):
        return Reading(None, "the loss is no mean that is known, so its right weight is not known")
    if all(window.full for window in found if window.size > 1):
        return Reading(False, f"the weights of the micro-batches sum to 1.000 in {len(found)} updates")
    totals = sorted({round(window.total, 3) for window in found})
    return Reading(None, f"the weights of the micro-batches sum to {_listed(totals)} in an update")


def _listed(values: Sequence[object]) -> str:
    shown = [str(value) for value in values[:6]]
    return ", ".join(shown) + (", ..." if len(values) > 6 else "")


def zeroed_within_window(measured: Measurement, optimizer: int, found: list[Window]) -> Reading:
    """Most updates are empty or lack a call, used nowhere else, of a place from which they hold another call."""
    lost = set(measured.lost(optimizer))

    def zeroed(window: Window) -> bool:
        gone = lost & set(window.fresh)
        places = {window.place(call) for call in window.used}
        return bool(gone) and (not window.used or any(window.place(call) in places for call in gone))

    if found and _most([zeroed(w) for w in found]):
        calls = {call for window in found for call in window.fresh}
        lines = [d.line for d in measured.leftover[optimizer].discarded if d.backward in lost and d.line]
        line = max(set(lines), key=lines.count) if lines else 0
        where = f", zeroed at line {line}" if line else ""
        return Reading(True, f"{len(calls & lost)} of {len(calls)} backward calls are in no update{where}", line)
    reason = _undecided(measured, optimizer, found)
    if reason:
        return Reading(None, reason)
    if lost:
        return Reading(None, f"{len(lost)} backward calls are in no update, but not in most windows")
    if any(w.place(call) in {w.place(used) for used in w.used} for w in found for call in {*w.fresh} - {*w.used}):
        return Reading(None, f"some gradients are in no update of {_name(measured, optimizer)}, but in another's")
    return Reading(False, f"each backward call is in an update ({len(found)} updates)")


def tiny_batch_norm(measured: Measurement, optimizer: int, found: list[Window]) -> Reading:
    """A BatchNorm in training saw at most 8 samples at once, and windows hold several micro-batches."""
    if not any(window.size > 1 for window in found):
        return Reading(None, _undecided(measured, optimizer, found))
    if not measured.batch_norms:
        return Reading(False, "no BatchNorm took statistics of a training batch")
    samples = min(use.samples for use in measured.batch_norms)
    size = max(window.size for window in found)
    text = f"BatchNorm took its statistics of {samples} samples at a time, where an update sees {samples * size}"
    compared = measured.comparison
    equal, different = bands(measured.precision)
    mine = compared is not None and compared.optimizer == optimizer and compared.frozen is not None
    if compared is not None and mine and compared.error >= different and (compared.frozen or 0.0) <= equal:
        text += f"; with those of the whole batch the gradient is another by {_percent(compared.error)}"
    return Reading(samples <= BATCH_NORM, text)


def coupled_loss(measured: Measurement, optimizer: int, found: list[Window]) -> Reading:
    """The gradient of a window is not that of the same samples in one batch, and not by BatchNorm or counts."""
    compared = measured.comparison
    if compared is None or compared.reason or compared.optimizer != optimizer:
        why = compared.reason if compared is not None else ""
        return Reading(None, f"no window was run again as one batch{': ' + why if why else ''}")
    equal, different = bands(measured.precision)
    error = compared.error if compared.frozen is None else compared.frozen
    within = f"the gradient of {compared.micro_batches} micro-batches is that of the same samples in one batch"
    if not compared.noise <= equal:
        return Reading(None, "the gradient depends on random numbers, or on the order of the micro-batches")
    if error <= equal:
        return Reading(False, f"{within} (relative distance {error:.1g})")
    if not error >= max(COUPLED, different):
        return Reading(None, f"{within} up to {_percent(error)}")
    if not compared.counted >= max(COUPLED, different):
        known = "is not known" if math.isnan(compared.counted) else "differs, and is why"
        return Reading(None, f"over how many elements the losses are means {known}")
    text = f"the gradient of {compared.micro_batches} micro-batches differs from that of the same samples in one batch"
    window = found[-1] if found else None
    return Reading(True, f"{text} by {_percent(error)}", *(_places(window) if window is not None else ()))


def mean_of_means(measured: Measurement, optimizer: int, found: list[Window]) -> Reading:
    """Most windows weigh losses alike that are means over different numbers of elements, and that matters."""
    reason = _undecided(measured, optimizer, found)
    distances = [window.update.counted for window in found]
    if reason or any(distance is None for distance in distances):
        return Reading(None, reason or "over how many elements the losses are means is not known")

    def alike(window: Window) -> bool:
        return all(window.is_factor(weight, window.weights[0]) for weight in window.weights)

    def elements(window: Window) -> set[float | None]:
        return {term.elements for call in window.main for term in window.terms(call)}

    known = [distance for distance in distances if distance is not None]
    if not _most([len(elements(window)) > 1 for window in found]):
        return Reading(None, "the losses are means over the same number of elements")
    if all(alike(window) for window in found) and _most([distance >= UNCOUNTED for distance in known]):
        counts = _listed([f"{count:g}" for count in sorted(one for one in elements(found[-1]) if one is not None)])
        text = (
            f"means over {counts} elements weigh the same: the gradient is {_percent(sorted(known)[len(known) // 2])}"
            " off that of the mean over all elements"
        )
        return Reading(True, text, *_places(found[-1]))
    if max(known) <= bands(measured.precision)[0]:
        return Reading(False, "each loss weighs as much as it has elements")
    return Reading(None, f"the gradient is up to {_percent(max(known))} off that of the mean over all elements")


def _percent(distance: float) -> str:
    return f"{100 * distance:.2g} %"


def schedule_mixes_units(measured: Measurement, optimizer: int, found: list[Window]) -> Reading:
    """A schedule is over too early or never, or a plateau scheduler counts updates or micro-batches."""
    schedulers = [s for s in measured.schedulers if s.optimizer == optimizer]
    what = "was stepped" if schedulers else f"of {_name(measured, optimizer)} was seen"
    read = _together([_schedule(measured, s) for s in schedulers if s.steps])
    return read or Reading(None, f"no learning rate scheduler {what}")


def _schedule(measured: Measurement, scheduler: SchedulerRecord) -> Reading:
    assert scheduler.optimizer is not None
    updates = len(measured.optimizers[scheduler.optimizer].updates)
    steps, lrs = scheduler.steps, scheduler.lrs
    length = scheduler.horizon or scheduler.sizes.get("T_0")
    line = scheduler.lines[-1]
    took = f"{scheduler.name} took {steps} steps in {updates} updates"
    begun = Counter(event.ordinal for event in measured.events if event.kind == "loader_begin")
    if scheduler.name == "ReduceLROnPlateau" and steps <= max(begun.values(), default=0):
        return Reading(None if steps >= updates else False, f"{took}, once an epoch", line)
    if scheduler.name == "ReduceLROnPlateau":
        return Reading(
            steps >= updates, f"{took}: its patience counts " + ("them" if steps >= updates else "epochs"), line
        )
    if steps > updates:  # per micro-batch: over in the first half, by its horizon or by its learning rates
        flat = len(set(lrs[steps // 2 :])) == 1 and measured.outcome == "finished"
        if (scheduler.horizon or steps) * 2 <= steps or flat:
            over = f"over after {scheduler.horizon}" if scheduler.horizon else f"at lr {lrs[-1]:.3g} in the first half"
            return Reading(True, f"{took} and is {over}", line)
    calls = sum(scheduler.optimizer in call.owners for call in measured.backwards)
    # the epochs of a shortened run are as long as len(loader) says, but perhaps not as long as the script was told
    known = length is not None and length in (steps, calls)
    if measured.outcome != "finished" or (shortened(measured) and not known):
        return Reading(None, f"{took}, but the run was ended or shortened before its schedule could end", line)
    if steps < updates:  # per epoch
        return Reading(None, f"{took}: it counts something else than updates", line)
    if length is not None:
        if length * NEARLY > steps:
            text = f"{scheduler.name} took {steps} of its {length} steps in {updates} updates"
            return Reading(True, f"{text}: at the end of training the lr is still {lrs[-1]:.3g}", line)
        return Reading(False if length == steps else None, f"{took}, and its length is {length}", line)
    return Reading(None, f"{took}, and its length is not known", line)


def shortened(measured: Measurement) -> bool:
    """Whether a loader had fewer batches than it would have without the probe."""
    return any(
        event.data.get("real_length") != event.data.get("length")
        for event in measured.events
        if event.kind == "loader_begin"
    )


def graphs_pile_up(measured: Measurement, optimizer: int, found: list[Window]) -> Reading:
    """The graphs of earlier micro-batches are alive, and more of them with each one: at least three in the end."""
    graphs = [count.graphs for count in measured.live_graphs]
    if measured.growing and max(graphs) >= HELD:
        holder = measured.holder
        by = f", held by `{holder.name}` ({holder.container})" if holder else ""
        return Reading(True, f"{max(graphs)} autograd graphs are alive at once{by}", holder.line if holder else 0)
    third = len(graphs) // 3
    if third >= 3 and max(graphs[-third:]) <= max(graphs[:third]):
        return Reading(False, f"never more than {max(graphs)} autograd graphs are alive at once")
    return Reading(None, f"too few micro-batches to see whether graphs pile up ({len(graphs)} counts)")


def windows_shifted(measured: Measurement, optimizer: int, found: list[Window]) -> Reading:
    """The first window, or every third one, holds another number of micro-batches than its losses are divided for."""
    usual, ends = usual_size(found), _epoch_ends(measured)

    def wrong(window: Window) -> bool:
        if window.size < usual and window.end in ends:  # what is left of an epoch: a question of its own
            return False
        # of other factors (a penalty that is added, losses over scales) the sum that is right is not known
        divided = all(0 < w < 0.9 and window.is_factor(w, 1 / round(1 / w)) for w in window.weights)
        return window.means and window.explained and divided and window.different

    never = hardly_ever_updated(measured, optimizer, found)
    if never.shown:  # with one update there is no other to be shifted against
        return Reading(True if not found else None, never.text)
    if found and max(window.size for window in found) == 1:
        return Reading(None, _undecided(measured, optimizer, found))
    answers = [wrong(w) for w in found]
    sizes = [window.size for window in found]
    if found and max(sizes) == 1:
        return Reading(None, _undecided(measured, optimizer, found))
    if answers and (answers[0] or sum(answers) * 3 >= len(answers)):
        window = found[answers.index(True)]
        text = (
            f"the updates hold {_listed(sizes)} micro-batches; the weights of one sum to {window.total:.3f}, not to 1"
        )
        return Reading(True, text, window.update.line, window.update.file)
    if len(found) > 1 and len(set(sizes[:-1])) == 1 and sizes[0] > 1:
        right = _right_sum(measured, optimizer, found[:-1])
        if right.shown is False:
            return Reading(False, f"the updates hold {_listed(sizes)} micro-batches whose weights sum to 1.000")
    return Reading(None, _undecided(measured, optimizer, found) or f"the updates hold {_listed(sizes)} micro-batches")


def _epoch_ends(measured: Measurement) -> list[int]:
    """How many backward calls were made when the passes through loaders ended."""
    ends, count = [], 0
    for event in measured.events:
        count += event.kind in ("backward", "grad")
        if event.kind == "loader_begin" and count:
            ends.append(count)
    if measured.outcome == "finished":
        ends.append(len(measured.backwards))
    return ends


def tail_left_over(measured: Measurement, optimizer: int, found: list[Window]) -> Reading:
    """Calls at the end of an epoch are lost, or the first window sums up to 1 and the one at that end does not."""
    ends = _epoch_ends(measured)
    size = usual_size(found)
    for event in measured.events:
        if event.kind == "loader_begin" and size > 1:
            real, used = event.data.get("real_length"), event.data.get("length")
            if real is not None and used is not None and (real - used) % size:
                better = 2 * size + real % size
                text = f"{used} of {real} batches leave another rest than all of them: --max-batches {better}"
                return Reading(None, text)

    def at_end(window: Window) -> bool:
        return any(window.begin < end <= window.end for end in ends)

    lost = set(measured.lost(optimizer))
    gone = [call for call in lost if call + 1 in ends]
    if gone and zeroed_within_window(measured, optimizer, found).shown:  # then only a window of another size tells
        odd = [w for w in found if w.size != size and any(w.begin < end < w.end for end in ends)]
        gone = gone if odd else []
    if gone:
        return Reading(True, f"the last micro-batches of an epoch ({len(lost)} in all) are in no update")
    wrong = [w for w in found if at_end(w) and w.means and w.explained and w.different]
    if found and found[0].full and wrong:
        text = f"the weights of the update at the end of an epoch sum to {wrong[0].total:.3f}, elsewhere to 1.000"
        return Reading(True, text, wrong[0].update.line, wrong[0].update.file)
    reason = _undecided(measured, optimizer, found)
    rest = [w for w in found if at_end(w) and w.size != size]
    if not reason and not lost and rest and all(w.full and w.means for w in found):
        return Reading(False, f"the weights of the {rest[0].size} micro-batches at the end of an epoch sum to 1.000")
    return Reading(None, reason or "no epoch of this run leaves a rest")


def counts_down(measured: Measurement, optimizer: int, found: list[Window]) -> Reading:
    """In most updates the first of k micro-batches weighs k times the last, the second k - 1 times, and so on."""

    def falling(window: Window) -> bool:
        weights = window.weights
        k, last = len(weights), weights[-1]
        return k > 1 and last != 0 and all(window.is_factor(w / last, k - i) for i, w in enumerate(weights))

    if found and _most([falling(w) for w in found]):
        window = next(w for w in found if falling(w))
        ratios = [f"{w / window.weights[-1]:.3g}" for w in window.weights]
        return Reading(True, f"the micro-batches of an update weigh {_listed(ratios)}", *_places(window))
    reason = _undecided(measured, optimizer, found)
    if not reason and all(w.is_factor(a, w.weights[0]) and a for w in found for a in w.weights):
        return Reading(False, f"the micro-batches of an update weigh the same ({len(found)} updates)")
    return Reading(None, reason or "the micro-batches of an update weigh differently, but not k, k - 1, ..., 1")


def _summed_without_optimizer(measured: Measurement) -> Reading:
    """Nothing is zeroed between the backward calls after each of which `.grad` is added up."""
    shown = len(measured.backwards) > 1 and not measured.lines("zero")
    return Reading(shown or None, f"{len(measured.backwards)} backward calls add to gradients that nothing zeroes")


def old_gradients(measured: Measurement, optimizer: int, found: list[Window]) -> Reading:
    """Half of the later updates also hold calls from before the update before, or that another optimizer has used.

    What another one has used may be meant, if the first update holds it, too: two losses of a trunk.
    """

    def old(window: Window) -> bool:
        return bool(window.stale or (window.foreign and not found[0].foreign))

    later = [old(w) and bool(w.explained or w.update.uneven) for w in found[1:]]  # not in noise that was added
    if later and sum(later) * 2 >= len(later):
        window = next(w for w in found[1:] if old(w))
        text = f"{sum(later)} of {len(later)} later updates also hold gradients that were stepped before"
        return Reading(True, text, window.update.line, window.update.file)
    if len(later) > 1 and not any(later) and all(window.explained for window in found):
        return Reading(False, f"none of {len(found)} updates holds a gradient that was stepped before")
    return Reading(None, "too few updates were seen" if len(later) < 2 else "old gradients are in few updates only")


def update_per_micro_batch(measured: Measurement, optimizer: int, found: list[Window]) -> Reading:
    """Each backward call has its update, with weight 1/k, or with those before it in a window of k."""

    def fraction(window: Window) -> bool:
        k = 1 / window.weights[0] if window.weights[0] > 0 else 1.0
        return window.means and k > 1.5 and window.is_factor(k, round(k)) and abs(k - round(k)) < 1e-3 * k

    single = len(found) > 1 and all(len(w.fresh) == 1 for w in found)
    if single and losses_without_backward(measured, optimizer, found).shown:
        return Reading(None, "each backward call has an update of its own, but most losses were not sent backward")
    stepped = [w for w in found if w.weights[0]]  # the others are zeroed before the step
    if single and len(stepped) * 2 > len(found) and all(fraction(w) for w in stepped):
        text = f"each backward call has an update of its own, with weight {stepped[0].weights[0]:.3f}"
        return Reading(True, text, found[0].update.line, found[0].update.file)
    if single and sum(bool(w.stale) for w in found) * 2 >= len(found) - 1:  # with k = 2 every second one
        stale = max(len(w.stale) for w in found)
        text = f"each backward call has an update of its own, which also holds up to {stale} earlier ones"
        return Reading(True, text, found[0].update.line, found[0].update.file)
    if len(found) > 1 and all(w.size > 1 for w in found[:-1]):
        return Reading(False, f"the updates hold {_listed([w.size for w in found])} micro-batches")
    return Reading(
        None, "the updates hold one backward call each, of full weight" if single else "too few updates were seen"
    )


def hardly_ever_updated(measured: Measurement, optimizer: int, found: list[Window]) -> Reading:
    """At most one update, and most backward calls are in none."""
    updates, lost = len(measured.optimizers[optimizer].updates), len(measured.lost(optimizer))
    calls = len(measured.backwards)
    if measured.optimizers[optimizer].moved and not updates:
        return Reading(None, f"{_name(measured, optimizer)} took no step, but its parameters were updated otherwise")
    if updates <= 1 and lost * 2 > calls and measured.outcome in ("finished", "stopped"):
        text = (
            f"{_name(measured, optimizer)} took {updates} step{'' if updates == 1 else 's'} in {calls} backward calls"
        )
        return Reading(True, text)
    rare = [s.name for s in measured.schedulers if s.optimizer == optimizer and s.steps * 2 <= updates]
    if updates > 2 and lost * updates <= calls * 2 and not rare:
        return Reading(False, f"{_name(measured, optimizer)} took {updates} steps in {calls} backward calls")
    return Reading(None, f"{_name(measured, optimizer)} took {updates} steps in {calls} backward calls so far")


def losses_without_backward(measured: Measurement, optimizer: int, found: list[Window]) -> Reading:
    """At the line of the loss, models are called without a backward call, at least once per backward call."""
    terms = [term for call in measured.backwards for term in call.data_terms()]
    lines = {term.line for term in terms if term.line}
    used = {forward for term in terms for forward in term.forwards}
    unused = set(range(max(used, default=-1) + 1)) - used
    idle = sum(count.event == "forward" and count.line in lines for count in measured.live_graphs)
    calls = len(measured.backwards)
    if min(idle, len(unused)) >= calls > 0:
        return Reading(True, f"{len(unused)} of {len(unused) + len(used)} losses were never sent backward")
    batches = sum(event.data.get("length") or 0 for event in measured.events if event.kind == "loader_begin")
    if used and not unused and not 0 < batches <= calls:
        known = f"there were {batches} batches" if batches else "how many batches there were is not known"
        return Reading(None, f"each of {len(used)} losses was sent backward, but {known}")
    if used and not unused:
        return Reading(False, f"each of {len(used)} losses was sent backward")
    return Reading(None, f"{len(unused)} outputs of a model were not sent backward, {len(used)} were")


def one_backward_for_a_window(measured: Measurement, optimizer: int, found: list[Window]) -> Reading:
    """Most updates are one backward call on a sum of losses of one place, no two from the same model call."""

    def deferred(window: Window) -> bool:
        if len(window.fresh) != 1:
            return False
        forwards = [forward for term in window.terms(window.fresh[0]) for forward in term.forwards]
        alike = len({round(term.weight, 6) for term in window.terms(window.fresh[0])}) == 1  # no difference of two
        return len(window.terms(window.fresh[0])) > 1 and alike and len(set(forwards)) == len(forwards)

    if found and _most([deferred(w) for w in found]):
        window = next(w for w in found if deferred(w))
        text = f"one backward call holds the graphs of {len(window.terms(window.fresh[0]))} micro-batches"
        return Reading(True, text, *_places(window))
    if found and all(window.size > 1 for window in found):
        return Reading(
            False, f"each micro-batch has a backward call of its own ({_listed([w.size for w in found])} an update)"
        )
    return Reading(None, "no update was seen" if not found else "the backward calls hold one loss each")


# --- what a run may say without a finding of the source: where the numbers leave no other intention open ---


def first_window_cut(measured: Measurement, optimizer: int, found: list[Window]) -> Reading:
    """The first update holds one micro-batch, divided for as many as each of the others holds."""
    size = usual_size(found)
    rest = found[1:-1]  # the last one may be cut short
    if len(rest) < 2 or size < 2 or found[0].size != 1 or any(window.size != size for window in rest):
        return Reading(None, "the first update is as long as the others")
    if not _divided_alike(found[0], rest):
        return Reading(None, "the first update is no mean that is divided like the others")
    return windows_shifted(measured, optimizer, found)


def only_one_sent_backward(measured: Measurement, optimizer: int, found: list[Window]) -> Reading:
    """Each update holds one loss divided by k, and k - 1 losses of the same place were never sent backward."""
    reading = losses_without_backward(measured, optimizer, found)
    weights = [window.weights[0] for window in found if window.size == 1 and window.means and window.explained]
    if not reading.shown or len(weights) != len(found) or len(found) < 2 or weights[0] <= 0:
        return Reading(None, reading.text)
    k = round(1 / weights[0])
    fits = k > 1 and all(window.is_factor(weight, 1 / k) for window, weight in zip(found, weights, strict=True))
    terms = [term for call in measured.backwards for term in call.data_terms(optimizer)]
    used = {forward for term in terms for forward in term.forwards}
    if not fits or len(used) != len(found) or max(used) + 1 != k * len(found):
        return Reading(None, reading.text)
    call = measured.backwards[found[0].main[0]]
    return Reading(True, f"{reading.text}, and the others weigh 1/{k}", call.line, call.file)


def short_rest(measured: Measurement, optimizer: int, found: list[Window]) -> Reading:
    """The updates at the ends of epochs hold fewer micro-batches than all others, and are divided like those."""
    size = usual_size(found)
    rest = [window for window in found if window.size != size]
    others = [window for window in found if window.size == size]
    if len(rest) < 2 or len(others) < 2 or not all(_divided_alike(window, others) for window in rest):
        return Reading(None, "no update is cut short")
    reading = tail_left_over(measured, optimizer, found)
    return reading if reading.line else Reading(None, reading.text)


def _divided_alike(short: Window, others: Sequence[Window]) -> bool:
    """Whether a window does not sum to 1 since its losses weigh what those of the others do, which do sum to 1."""
    if not (short.means and short.explained and short.different and short.total < 1):
        return False
    weight = others[0].weights[0]
    alike = all(short.is_factor(one, weight) for window in (short, *others) for one in window.weights)
    return alike and all(window.means and window.explained and window.full for window in others)


CERTAIN: dict[str, Check] = {"ACC006": first_window_cut, "ACC007": short_rest, "ACC030": only_one_sent_backward}

CHECKS: dict[str, Check] = {
    "ACC001": not_divided,
    "ACC002": zeroed_within_window,
    "ACC003": tiny_batch_norm,
    "ACC004": schedule_mixes_units,
    "ACC005": graphs_pile_up,
    "ACC006": windows_shifted,
    "ACC007": tail_left_over,
    "ACC011": mean_of_means,
    "ACC014": counts_down,
    "ACC015": old_gradients,
    "ACC016": update_per_micro_batch,
    "ACC017": coupled_loss,
    "ACC021": not_divided,
    "ACC023": hardly_ever_updated,
    "ACC030": losses_without_backward,
    "ACC031": one_backward_for_a_window,
}
