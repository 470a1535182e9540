"""The rules. A module `accNNN_name.py` in this package exposes `RULE`; adding the file adds the rule."""

from __future__ import annotations

import importlib
import pkgutil
import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from acclint.rules.base import Rule

_MODULE = re.compile(r"acc\d{3}_\w+")


@cache
def all_rules() -> dict[str, Rule]:
    """Every rule by its code, in the order of the codes."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if _MODULE.fullmatch(module.name))
    rules: list[Rule] = [importlib.import_module(f"{__name__}.{name}").RULE for name in names]
    return {rule.code: rule for rule in rules}
