"""Rewrites: intents of rules become edits, and an edit is offered only where it is proven to be right."""

from __future__ import annotations

from acclint.findings import Edit, Fix
from acclint.fix.edits import edits
from acclint.fix.proof import refusal
from acclint.fix.rewrite import rewrite
from acclint.fix.tree import Refused
from acclint.judge import Judged, judge
from acclint.lift import LiftError
from acclint.rules.base import Intent, Report, Rule
from acclint.source import Unit

__all__ = ["fix_of"]


def fix_of(
    judged: Judged, rule: Rule, report: Report, unit: Unit, shown: dict[int | None, tuple[str, ...]]
) -> Fix | None:
    """The fix of a report: the first of its intents that is proven, else advice with the reason; None without any.

    `shown` is the text of the file as an editor shows it, by cell.
    """
    reason = ""
    for intent in report.intents:
        if not intent.actions:
            return Fix("display", intent.message, reason=reason)
        try:
            return Fix(intent.applicability, intent.message, _proven(judged, rule, report, intent, unit, shown))
        except Refused as refused:
            reason = reason or str(refused)
    return Fix("display", report.intents[0].message, reason=reason) if report.intents else None


def _proven(
    judged: Judged, rule: Rule, report: Report, intent: Intent, unit: Unit, shown: dict[int | None, tuple[str, ...]]
) -> tuple[Edit, ...]:
    """The edits of an intent. Raises Refused if they cannot be made or proven."""
    try:
        new = rewrite(judged.text, intent.actions)
        after = judge(new, judged.filename, judged.settings, judged.path)
    except LiftError as error:
        raise Refused(error.message) from error
    except RecursionError as error:
        raise Refused("the code is nested too deeply") from error
    reason = refusal(judged, after, rule, report, intent)
    if reason:
        raise Refused(reason)
    return edits(unit, new, shown)
