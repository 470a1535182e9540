"""One mistake, one finding: where two rules see the same mistake, the more specific one speaks alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from acclint.rules.base import Report, Rule

# code -> the rules that it speaks before.
BEFORE: dict[str, frozenset[str]] = {
    "ACC006": frozenset({"ACC007"}),
    "ACC014": frozenset({"ACC001"}),
    "ACC016": frozenset({"ACC015"}),
    "ACC021": frozenset({"ACC001"}),
    "ACC023": frozenset({"ACC006", "ACC007"}),
    "ACC030": frozenset({"ACC001"}),
    "ACC031": frozenset({"ACC005"}),
}


def alone(reports: Sequence[tuple[Rule, Report]]) -> list[tuple[Rule, Report]]:
    """The reports of one text without those that repeat what a more specific rule says.

    A report never silences one that is surer than itself.
    """
    return [
        (rule, report)
        for rule, report in reports
        if not any(
            rule.code in BEFORE.get(other.code, ())
            and report.evidence.get("tail") != "zeroed"  # a mistake of its own, wherever the window begins
            and first.confidence.rank >= report.confidence.rank
            and same_mistake(first, report)
            for other, first in reports
        )
    ]


def same_mistake(one: Report, other: Report) -> bool:
    """Whether two reports are about the same place, or the same parameters in the same loop over micro-batches."""
    if one.span == other.span or other.span in {span for _, span in one.notes}:
        return True
    scope = one.evidence.get("scope")
    if scope is None or scope != other.evidence.get("scope"):
        return False
    mine, theirs = owners(one), owners(other)
    return not mine or not theirs or bool(mine & theirs)


def owners(report: Report) -> set[object]:
    """The optimizers or parameter owners that a report is about; empty if it does not say."""
    found = report.evidence.get("contributions")
    if not isinstance(found, (list, tuple)):
        return set()
    return {one["owner"] for one in found if isinstance(one, dict) and "owner" in one}
