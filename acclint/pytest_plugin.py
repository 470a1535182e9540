"""The pytest plugin: the fixture `accumulation`, found by pytest wherever acclint is installed.

A plugin and not a fixture to import, since that is how pytest users get fixtures: an imported one has to be repeated
in every conftest.py and looks unused to linters. It costs a run nothing: torch is imported by the first test that
measures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from acclint.probe.difference import listed

if TYPE_CHECKING:
    from acclint.probe.difference import Equivalence
    from acclint.probe.window import Window


class Accumulation:
    """The helpers of `acclint.testing`, which note what they measured for the report of a failing test."""

    def __init__(self, node: pytest.Item) -> None:
        self.node = node

    def assert_equivalent(self, *args: Any, **options: Any) -> Equivalence:
        """`acclint.testing.assert_accumulation_equivalent`."""
        __tracebackhide__ = True
        from acclint.testing import AccumulationError, assert_accumulation_equivalent, describe

        try:
            result = assert_accumulation_equivalent(*args, **options)
        except AccumulationError as error:
            self._note(describe(error.result))
            raise
        self._note(describe(result))
        return result

    @contextmanager
    def window(self, *args: Any, **options: Any) -> Iterator[Window]:
        """`acclint.testing.window`, asserted to be right when the block is left without an exception."""
        __tracebackhide__ = True
        from acclint.testing import window

        with window(*args, **options) as w:
            yield w
        rows = [f"update {i + 1}: {listed(row, 16)}" for i, row in enumerate(w.contributions)]
        self._note("\n".join(["contributions of the backward calls (1 is right):", *rows]))
        w.assert_right()

    def _note(self, text: str) -> None:
        """Shown under "Captured acclint" if the test fails, at whichever assertion."""
        self.node.add_report_section("call", "acclint", text)


@pytest.fixture
def accumulation(request: pytest.FixtureRequest) -> Accumulation:
    """`accumulation.assert_equivalent(...)` and `with accumulation.window(model, optimizer):`, see acclint.testing."""
    return Accumulation(request.node)
