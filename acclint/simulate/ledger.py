"""Who holds which gradient: backward calls, zeroing, edits and updates, kept exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from acclint.simulate.trace import Event, Lane, Window
from acclint.simulate.values import Number, Optimizer, Owner, Owners


class _Pending:
    """What a lane has seen since its last update."""

    __slots__ = ("edits", "lost", "seen", "zeros")

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.lost: dict[int, Event] = {}
        self.zeros: list[Event] = []
        self.edits: list[Event] = []


class Ledger:
    """The gradients of every owner as {backward number: coefficient}, and the lanes that updates run in."""

    def __init__(self) -> None:
        self.rows: dict[Owner, dict[int, Number]] = {}
        self.factors: dict[Owner, Number] = {}  # by which hooks multiply each gradient
        self.optimizers: list[Optimizer] = []
        self.lanes: dict[tuple[Optimizer | None, Owner], Lane] = {}
        self.used: set[int] = set()
        self._regrouped = Owner.regrouped
        self._holders: dict[Owner, list[Optimizer]] = {}
        self._pending: dict[tuple[Optimizer | None, Owner], _Pending] = {}
        self._history: dict[Owner, list[int]] = {}
        self._reaching: dict[Owners, list[int]] = {}  # backward calls by what they reached, before that is booked

    # --- who owns what ---

    def add(self, optimizer: Optimizer) -> None:
        self.optimizers.append(optimizer)
        for owner, held in self._holders.items():
            if optimizer.parts is None:
                if not held or held[0].parts is None:
                    held.append(optimizer)
            elif any(owner.within(part) for part in optimizer.parts):
                if held and held[0].parts is None:
                    held.clear()
                held.append(optimizer)

    def hand(self, optimizer: Optimizer, parts: Owners | None) -> None:
        """Give an optimizer other parameters than it was made with."""
        optimizer.parts = parts
        self._holders.clear()

    def owns(self, optimizer: Optimizer, owner: Owner) -> bool:
        return optimizer in self._held_by(owner)

    def _held_by(self, owner: Owner) -> list[Optimizer]:
        """The optimizers that hold parameters; those that hold nobody knows which hold what no other one does."""
        if self._regrouped != Owner.regrouped:
            self._holders.clear()
            self._regrouped = Owner.regrouped
        found = self._holders.get(owner)
        if found is None:
            owner.ask()
            told = [one for one in self.optimizers if one.parts and any(owner.within(part) for part in one.parts)]
            found = told or [one for one in self.optimizers if one.parts is None]
            self._holders[owner] = found
        return found

    def _targets(self, owners: Owners) -> set[Owner]:
        """The owners a backward call is booked on: the finest that some optimizer tells apart."""
        targets: set[Owner] = set()
        parts = {part for optimizer in self.optimizers if optimizer.parts for part in optimizer.parts}
        for owner in owners:
            around = [part for part in parts if owner.within(part)]
            if around:
                # A module's parameters are held as one: the smallest group of an optimizer that has them.
                targets.add(min(around, key=lambda part: (sum(other.within(part) for other in around), part.number)))
            inside = {part for part in parts if part.within(owner)}
            targets |= inside if inside or around else {owner}
        return targets

    def _lanes_on(self, owner: Owner) -> Iterable[tuple[Optimizer | None, Owner]]:
        for optimizer in self._held_by(owner):
            yield optimizer, owner
        if (None, owner) in self.lanes:
            yield None, owner

    def _wait(self, key: tuple[Optimizer | None, Owner]) -> _Pending:
        pending = self._pending.get(key)
        if pending is None:
            pending = self._pending[key] = _Pending()
            if key not in self.lanes:
                # The optimizer is known only from now on: what came before counts as seen, but for what another one
                # has used up (an optimizer that the last call of the function made).
                row = self.rows.get(key[1], {})
                pending.seen += [one for one in self._history.get(key[1], []) if one not in self.used or row.get(one)]
        return pending

    # --- what happens ---

    def backward(self, number: int, owners: Owners) -> None:
        if owners:
            self._reaching.setdefault(owners, []).append(number)
        for owner in sorted(self._targets(owners), key=lambda one: one.number):
            row = self.rows.setdefault(owner, {})
            row[number] = row.get(number, 0) + math.prod(
                factor for hooked, factor in self.factors.items() if owner.within(hooked)
            )
            for key in self._lanes_on(owner):
                self._wait(key).seen.append(number)
            self._history.setdefault(owner, []).append(number)

    def covered(self, covers: Callable[[Owner], bool]) -> list[Owner]:
        return [owner for owner in self.rows if covers(owner)]

    def zero(self, covers: Callable[[Owner], bool], event: Event) -> None:
        # A backward call that reached nothing but what is covered, of a whole module perhaps one part, is zeroed whole.
        inside = {
            number for reached, numbers in self._reaching.items() if all(map(covers, reached)) for number in numbers
        }
        for owner, row in self.rows.items():
            covered = covers(owner)
            zeroed = set(row) if covered else inside.intersection(row)
            if not zeroed and not covered:
                continue
            for key in self._lanes_on(owner):
                pending = self._wait(key)
                pending.zeros.append(event)
                for number in pending.seen:
                    if number in zeroed and row[number] and number not in pending.lost:
                        pending.lost[number] = event
            for number in zeroed:
                del row[number]

    def edit(self, covers: Callable[[Owner], bool], change: Callable[[Number], Number], event: Event) -> None:
        for owner in self.covered(covers):
            row = self.rows[owner]
            for number in row:
                row[number] = change(row[number])
            for key in self._lanes_on(owner):
                self._wait(key).edits.append(event)

    def held(self, covers: Callable[[Owner], bool]) -> set[int]:
        """The backward calls whose gradients are there now."""
        return {number for owner in self.covered(covers) for number in self.rows[owner]}

    def replace(self, owner: Owner, row: dict[int, Number]) -> None:
        for one in self.covered(lambda other: other.within(owner)) or [owner]:
            self.rows[one] = dict(row)

    def step(self, optimizer: Optimizer, event: Event) -> list[Lane]:
        owners = self.covered(lambda owner: self.owns(optimizer, owner))
        if not owners and optimizer.parts:
            owners = [min(optimizer.parts, key=lambda part: part.number)]
        return [self._close((optimizer, owner), event, self.rows.get(owner, {})) for owner in owners]

    def manual_step(self, owner: Owner, row: dict[int, Number], event: Event) -> Lane:
        """An update written by hand: `p -= lr * p.grad`."""
        key = (None, owner)
        self._wait(key)
        self.lanes.setdefault(key, Lane(None, owner))
        return self._close(key, event, row)

    def _close(self, key: tuple[Optimizer | None, Owner], event: Event, row: dict[int, Number]) -> Lane:
        pending = self._wait(key)
        del self._pending[key]
        lane = self.lanes.get(key)
        if lane is None:
            lane = self.lanes[key] = Lane(key[0], key[1])
        lane.windows.append(
            Window(event, {n: a for n, a in row.items() if a}, pending.seen, pending.lost, pending.zeros, pending.edits)
        )
        self.used.update(n for n, a in row.items() if a)
        return lane

    def finish(self) -> list[Lane]:
        """The lanes, each closed by the window that was still open at the end of the run."""
        for key, pending in self._pending.items():
            lane = self.lanes.get(key)
            if lane is None:
                lane = self.lanes[key] = Lane(key[0], key[1])
            row = self.rows.get(key[1], {})
            lane.windows.append(
                Window(
                    None, {n: a for n, a in row.items() if a}, pending.seen, pending.lost, pending.zeros, pending.edits
                )
            )
        self._pending.clear()
        return list(self.lanes.values())
