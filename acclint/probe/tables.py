"""Tables of measured numbers, with the values they are expected to have. Pure Python: no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from acclint.probe.difference import number


@dataclass(frozen=True)
class Reference:
    """The value that a number had before, and the range that it must be in."""

    value: float
    low: float
    high: float

    def holds(self, measured: float) -> bool:
        return self.low <= measured <= self.high


def exactly(value: float, relative: float = 1e-3) -> Reference:
    """Theory fixes the value; only rounding may move it."""
    margin = abs(value) * relative
    return Reference(value, value - margin, value + margin)


def about(value: float, factor: float = 2.0) -> Reference:
    """The data decides the value: between value / factor and value * factor, with the same sign."""
    ends = (value / factor, value * factor)
    return Reference(value, min(ends), max(ends))


def between(value: float, low: float, high: float) -> Reference:
    return Reference(value, low, high)


def rounding(value: float, at_most: float) -> Reference:
    """Rounding error, which no two machines share: anything from 0 to the bound."""
    return Reference(value, 0.0, at_most)


@dataclass(frozen=True)
class Number:
    """A measured number beside its reference."""

    measured: float
    reference: Reference | None = None

    @property
    def holds(self) -> bool:
        return self.reference is None or (math.isfinite(self.measured) and self.reference.holds(self.measured))


Cell = str | Number


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    @property
    def failures(self) -> list[str]:
        """Where a number is not what it should be: row, column, measured and expected."""
        found = []
        for row in self.rows:
            for name, cell in zip(self.columns, row, strict=True):
                if isinstance(cell, Number) and not cell.holds and cell.reference is not None:
                    wanted = f"{number(cell.reference.low)} to {number(cell.reference.high)}"
                    found.append(f"{self.title}: {row[0]}, {name}: {number(cell.measured)}, expected {wanted}")
        return found

    @property
    def references(self) -> int:
        return sum(isinstance(cell, Number) and cell.reference is not None for row in self.rows for cell in row)


@dataclass(frozen=True)
class Claim:
    """What a text says, whether it is right, and what was measured."""

    text: str
    right: bool
    because: str


@dataclass(frozen=True)
class Experiment:
    """One text's experiment, run again."""

    key: str
    title: str
    question: str
    answer: str
    claims: tuple[Claim, ...]
    tables: tuple[Table, ...]
    curves: tuple[Curve, ...] = ()

    @property
    def failures(self) -> list[str]:
        return [f"{self.key} {failure}" for table in self.tables for failure in table.failures]


@dataclass(frozen=True)
class Curve:
    """A line of a plot: name, x and y; None where nothing could be measured."""

    name: str
    x: tuple[float, ...]
    y: tuple[float | None, ...] = field(default=())
