"""What a rule is: its documentation, its place in the table, and its check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from acclint.findings import Confidence, Severity

if TYPE_CHECKING:
    from acclint.program import Span
    from acclint.simulate import Analysis


# --- what a fix wants done: each action names places by their spans; acclint.fix turns it into edits -----------------


@dataclass(frozen=True)
class Divide:
    """Send `loss / by` backward instead of the loss. `call` is the backward call.

    `argument` says whether the loss is the first argument of the call (`accelerator.backward(loss)`) or what backward
    is called on. `by` is the expression in the user's own words, or the place where it is written.
    """

    call: Span
    by: Span | str
    argument: bool = False


@dataclass(frozen=True)
class Move:
    """Put the statement at `target` behind the statement, or the loop, at `behind`, or before the one at `before`.

    Where `target` is the test of an `if`, the whole `if` moves. With `level` the statement stays in its block: it goes
    beside the statement there that holds the other place, as an `if` always does.
    """

    target: Span
    behind: Span | None = None
    before: Span | None = None
    level: bool = False


@dataclass(frozen=True)
class Remove:
    """Take the statement at `target` away."""

    target: Span


@dataclass(frozen=True)
class Zero:
    """Zero the gradients of `optimizer` behind the update at `update` (`opt.step()`, `scaler.step(opt)`)."""

    update: Span
    optimizer: str


@dataclass(frozen=True)
class Detach:
    """Cut the graph off what the statement or call at `target` keeps: off the value number `part` written in it."""

    target: Span
    part: int = 0


@dataclass(frozen=True)
class Shift:
    """Make the window test at `test` come true `by` micro-batches later than its counter says.

    `everywhere` also shifts the same test where it stands again in the loop.
    """

    test: Span
    by: int
    everywhere: bool = False


@dataclass(frozen=True)
class Negate:
    """Turn the condition at `test` round."""

    test: Span


@dataclass(frozen=True)
class Gate:
    """Put the update at `update` under a window test: every `by` turns of the loop at `loop`.

    The statements `first` go before it under the test, those of `then` behind it; what calls the same gradient scaler
    goes with it.
    """

    update: Span
    loop: Span
    by: Span | str
    first: tuple[Span, ...] = ()
    then: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Flush:
    """Let the window test at `test` also come true at the end of the loop at `loop`, None if it does so already.

    The divisions by `by` at `divisions` are then by the number of micro-batches that the window really holds.
    """

    loop: Span
    by: Span | str
    test: Span | None = None
    divisions: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Resize:
    """Divide a length that is given to the call at `call` by `by`, rounded up.

    The length is the argument called `argument`, or the one at `position` (from 0).
    """

    call: Span
    argument: str
    position: int | None
    by: Span | str


Action = Divide | Move | Remove | Zero | Detach | Shift | Negate | Gate | Flush | Resize


@dataclass(frozen=True)
class Intent:
    """One rewrite: its actions only make sense together.

    `applicability` is safe, unsafe or display (advice, without actions); `message` says what changes. `regroups` says
    that micro-batches come into other windows than before.
    """

    applicability: str
    message: str
    actions: tuple[Action, ...] = ()
    regroups: bool = False


@dataclass(frozen=True)
class Report:
    """What a check yields: where, what happens, how sure; acclint.lint makes a Finding of it.

    `notes` are related places, `assumptions` what was taken for granted (with the place, or None). `intents` are ways
    to put it right, the best one first: the first that can be proven is the fix.
    """

    span: Span
    message: str
    severity: Severity
    confidence: Confidence = Confidence.HIGH
    notes: tuple[tuple[str, Span], ...] = ()
    assumptions: tuple[tuple[str, Span | None], ...] = ()
    intents: tuple[Intent, ...] = ()
    evidence: dict[str, object] = field(default_factory=dict, compare=False, hash=False)


@dataclass(frozen=True)
class Rule:
    """One pitfall. `fix` is the applicability in the table; `documentation` is Markdown with fixed headings."""

    code: str
    name: str
    category: str
    severity: Severity
    fix: str
    summary: str
    documentation: str
    check: Callable[[Analysis], Iterator[Report]]
