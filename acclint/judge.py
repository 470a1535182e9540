"""One text judged: its program, what its loops do, and what every rule says about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acclint.lift import lift
from acclint.program import Span, file_of
from acclint.project import link
from acclint.rules import all_rules
from acclint.simulate import Analysis, analyze

if TYPE_CHECKING:
    from acclint.rules.base import Report, Rule
    from acclint.settings import Settings


@dataclass(frozen=True)
class Judged:
    """A text and its analysis. `settings` are those it was analysed with, `path` is where it lies, if anywhere."""

    text: str
    filename: str
    settings: Settings
    analysis: Analysis
    path: Path | None = None

    @cached_property
    def reports(self) -> tuple[tuple[Rule, Report], ...]:
        """What all rules report, at every severity and confidence, before precedence."""
        return tuple(self.reports_of(all_rules().values()))

    def reports_of(self, rules: Iterable[Rule]) -> Iterator[tuple[Rule, Report]]:
        """What some rules report about the file itself: what another file does is told at the call that leads there.

        Of several mistakes of one rule that a call leads to, the first one is told.
        """
        for rule in rules:
            led = set[Span]()
            for report in rule.check(self.analysis):
                place = self.analysis.own_place(report.span)
                if place is not None and place not in led:
                    if place != report.span:
                        led.add(place)
                    intents = tuple(one for one in report.intents if not _elsewhere(one.actions))
                    notes = report.notes if place == report.span else (("happens here", report.span), *report.notes)
                    yield rule, replace(report, span=place, intents=intents, notes=notes)


def judge(text: str, filename: str, settings: Settings, path: Path | None = None) -> Judged:
    """Analyse one module. Raises `lift.LiftError` or RecursionError for what cannot be analysed.

    With `path`, the imports from other files of its project are followed.
    """
    program = lift(text, filename)
    analysis = analyze(
        link(program, path) if path is not None else program,
        accumulation_names=frozenset(settings.accumulation_names),
        reductions={**dict.fromkeys(settings.mean_losses, "mean"), **dict.fromkeys(settings.sum_losses, "sum")},
    )
    return Judged(text, filename, settings, analysis, path)


def _elsewhere(value: Any) -> bool:
    """Whether the actions of a fix name a place in another file."""
    if isinstance(value, Span):
        return file_of(value) > 0
    if isinstance(value, tuple):
        return any(map(_elsewhere, value))
    return is_dataclass(value) and any(_elsewhere(getattr(value, one.name)) for one in fields(value))
