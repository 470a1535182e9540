"""One text judged: its program, what its loops do, and what every rule says about them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from acclint.lift import lift
from acclint.rules import all_rules
from acclint.simulate import Analysis, analyze

if TYPE_CHECKING:
    from acclint.rules.base import Report, Rule
    from acclint.settings import Settings


@dataclass(frozen=True)
class Judged:
    """A text and its analysis. `settings` are those it was analysed with."""

    text: str
    filename: str
    settings: Settings
    analysis: Analysis

    @cached_property
    def reports(self) -> tuple[tuple[Rule, Report], ...]:
        """What all rules report, at every severity and confidence, before precedence."""
        return tuple((rule, report) for rule in all_rules().values() for report in rule.check(self.analysis))


def judge(text: str, filename: str, settings: Settings) -> Judged:
    """Analyse one module. Raises `lift.LiftError` or RecursionError for what cannot be analysed."""
    analysis = analyze(
        lift(text, filename),
        accumulation_names=frozenset(settings.accumulation_names),
        reductions={**dict.fromkeys(settings.mean_losses, "mean"), **dict.fromkeys(settings.sum_losses, "sum")},
    )
    return Judged(text, filename, settings, analysis)
