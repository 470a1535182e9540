"""What a run may report and where it may look: `[tool.acclint]` of pyproject.toml, merged with the command line.

The command line wins over the file. As in ruff, `select` given on the command line starts over and drops what the file
selects and ignores; `ignore` and `extend-select` given there are added to the file's.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from acclint import Problem
from acclint.discover import DEFAULT_EXCLUDES, Glob
from acclint.findings import Confidence, Severity
from acclint.rules import all_rules

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Findings that are no ACC rule. They are on unless ignored by name.
SPECIAL = ("invalid-ignore", "invalid-syntax", "too-complex", "unused-ignore")


@dataclass(frozen=True)
class Selection:
    """One layer of choices: the file's or the command line's. `select` None leaves the choice below as it is."""

    select: tuple[str, ...] | None = None
    extend_select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """The settings of one file, checked. `rules` holds the codes that may be reported, special ones included.

    `root` is the folder that the globs are relative to.
    """

    rules: frozenset[str] = field(default_factory=lambda: resolve(()))
    exclude: tuple[Glob, ...] = tuple(Glob(pattern) for pattern in DEFAULT_EXCLUDES)
    per_file_ignores: tuple[tuple[Glob, frozenset[str]], ...] = ()
    min_severity: Severity = Severity.WARNING
    min_confidence: Confidence = Confidence.MEDIUM
    accumulation_names: tuple[str, ...] = ()
    mean_losses: tuple[str, ...] = ()
    sum_losses: tuple[str, ...] = ()
    framework_versions: tuple[tuple[str, str], ...] = ()
    root: Path = field(default_factory=Path.cwd)

    def rules_for(self, path: Path) -> frozenset[str]:
        """The codes that may be reported in `path` (absolute), per-file-ignores applied."""
        ignored = [codes for glob, codes in self.per_file_ignores if glob.matches(path, self.root)]
        return self.rules.difference(*ignored)


# --- selectors -------------------------------------------------------------------------------------------------------


def expand(selector: str, where: str = "") -> frozenset[str]:
    """The codes that a selector names: a code, a prefix of codes, a rule's name, a category, or ALL.

    Raises Problem for a selector that names nothing; `where` says in the message where it was written.
    """
    text = selector.strip()
    rules = all_rules()
    if text.upper() == "ALL":
        return frozenset(rules) | frozenset(SPECIAL)
    if text.lower() in SPECIAL:
        return frozenset({text.lower()})
    codes = frozenset(
        rule.code
        for rule in rules.values()
        if text.lower() in (rule.name, rule.category)
        or (text.upper().startswith("ACC") and rule.code.startswith(text.upper()))
    )
    if codes or text.upper() == "ACC":
        return codes
    raise Problem(f"{where}unknown rule {selector!r}{suggest_rule(text)}; `acclint rules` lists them")


def suggest_rule(text: str) -> str:
    """`; did you mean ACC009?` for a code or name that is nearly a rule, else an empty text."""
    rules = all_rules()
    if re.fullmatch(r"(?i)acc\d+", text):
        near = _nearest_code(text.upper())
        return f"; did you mean {near}?" if near else ""
    known = [
        *rules,
        *(rule.name for rule in rules.values()),
        *sorted({rule.category for rule in rules.values()}),
        *SPECIAL,
    ]
    return did_you_mean(text.upper() if text.upper().startswith("ACC") else text.lower(), known)


def _nearest_code(text: str) -> str | None:
    """The code with the most digits in common with `text`, place by place: ACC999 is more likely ACC009 than ACC031."""
    scores = {code: sum(a == b for a, b in zip(text[3:], code[3:], strict=False)) for code in all_rules()}
    best = max(scores, key=lambda code: scores[code], default=None)
    return best if best is not None and scores[best] else None


def did_you_mean(text: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(text, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _specificity(selector: str) -> int:
    """ALL < ACC < ACC0 < ... < a category < a full code or name: the more specific choice wins."""
    text = selector.strip().upper()
    if text == "ALL":
        return 0
    if text.startswith("ACC") and text not in all_rules():
        return len(text)
    if text.lower() in {rule.category for rule in all_rules().values()}:
        return 6
    return 7


def resolve(layers: Iterable[tuple[Selection, str]]) -> frozenset[str]:
    """The codes that remain when each layer, with its place for error messages, is applied over the one before."""
    enabled = expand("ALL")
    for layer, where in layers:
        if layer.select is not None:
            enabled = frozenset(SPECIAL)
        adds = [*(layer.select or ()), *layer.extend_select]
        choices = [(_specificity(item), False, expand(item, where)) for item in adds]
        choices += [(_specificity(item), True, expand(item, where)) for item in layer.ignore]
        # At the same specificity `ignore` wins, so it is applied last.
        for _, ignored, codes in sorted(choices, key=lambda choice: choice[:2]):
            enabled = enabled - codes if ignored else enabled | codes
    return enabled


# --- the file --------------------------------------------------------------------------------------------------------

_LISTS = (
    "select",
    "ignore",
    "extend-select",
    "exclude",
    "extend-exclude",
    "accumulation-names",
    "mean-losses",
    "sum-losses",
)
_KEYS = (*_LISTS, "per-file-ignores", "min-severity", "min-confidence", "framework-versions")


def read_table(path: Path, required: bool = False) -> dict[str, Any] | None:
    """The `[tool.acclint]` table of a pyproject.toml, checked; None where it has none.

    With `required` (`--config FILE`) a file without the table counts as an empty table, and any file name will do.
    Raises Problem for a file that cannot be read, is no TOML, or holds an unknown key or a wrong type.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Problem(f"{path}: cannot read the configuration: {error.strerror or error}") from error
    if not required and b"acclint" not in data:
        return None
    try:
        document = tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Problem(f"{path}: not valid TOML: {error}") from error
    tool = document.get("tool", {})
    table = tool.get("acclint") if isinstance(tool, dict) else None
    if table is None:
        return {} if required else None
    if not isinstance(table, dict):
        raise Problem(f"{path}: tool.acclint must be a table, not {_kind(table)}")
    for key, value in table.items():
        _check(path, key, value)
    return table


def _check(path: Path, key: str, value: object) -> None:
    if key not in _KEYS:
        near = did_you_mean(key.replace("_", "-"), _KEYS) or f"; the keys are {', '.join(sorted(_KEYS))}"
        raise Problem(f"{path}: unknown key tool.acclint.{key}{near}")
    if key in _LISTS:
        _check_list(path, key, value)
    elif key == "per-file-ignores":
        for pattern, codes in _mapping(path, key, value).items():
            _check_list(path, f'{key}."{pattern}"', codes)
    elif key == "framework-versions":
        for name, version in _mapping(path, key, value).items():
            if not isinstance(version, str):
                raise Problem(
                    f'{path}: tool.acclint.{key}.{name} must be a string such as "4.46.0", not {_kind(version)}'
                )
    else:
        allowed = [item.value for item in (Severity if key == "min-severity" else Confidence)]
        if value not in allowed:
            shown = repr(value) if isinstance(value, str) else _kind(value)
            near = did_you_mean(value, allowed) if isinstance(value, str) else ""
            raise Problem(f"{path}: tool.acclint.{key} must be one of {', '.join(allowed)}, not {shown}{near}")


def _check_list(path: Path, key: str, value: object) -> None:
    if not isinstance(value, list):
        raise Problem(f"{path}: tool.acclint.{key} must be a list of strings, not {_kind(value)}")
    for item in value:
        if not isinstance(item, str):
            raise Problem(f"{path}: tool.acclint.{key} must be a list of strings, but holds {_kind(item)}")


def _mapping(path: Path, key: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise Problem(f"{path}: tool.acclint.{key} must be a table, not {_kind(value)}")
    return value


def _kind(value: object) -> str:
    """The TOML name of a value's type, with its article."""
    kinds = (
        (bool, "a boolean"),
        (int, "an integer"),
        (float, "a float"),
        (str, "a string"),
        (list, "a list"),
        (dict, "a table"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), "a date or time")


# --- merging ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overrides:
    """What the command line says. None or () where it says nothing."""

    selection: Selection = Selection()
    exclude: tuple[str, ...] | None = None
    extend_exclude: tuple[str, ...] = ()
    min_severity: Severity | None = None
    min_confidence: Confidence | None = None


def build(table: Mapping[str, Any], path: Path | None, overrides: Overrides = Overrides()) -> Settings:
    """Settings from a checked table (of the file `path`, None for no file) and the command line."""
    where = f"{path}: tool.acclint: " if path else ""
    from_file = Selection(
        select=tuple(table["select"]) if "select" in table else None,
        extend_select=tuple(table.get("extend-select", ())),
        ignore=tuple(table.get("ignore", ())),
    )
    root = path.parent if path else Path.cwd()
    excludes = [Glob(item) for item in (*table.get("exclude", DEFAULT_EXCLUDES), *table.get("extend-exclude", ()))]
    if overrides.exclude is not None:
        excludes = [Glob(item, Path.cwd()) for item in overrides.exclude]
    excludes += [Glob(item, Path.cwd()) for item in overrides.extend_exclude]
    per_file = tuple(
        (Glob(pattern), frozenset[str]().union(*(expand(code, f"{where}per-file-ignores: ") for code in codes)))
        for pattern, codes in table.get("per-file-ignores", {}).items()
    )
    settings = Settings(
        rules=resolve([(from_file, where), (overrides.selection, "")]),
        exclude=tuple(excludes),
        per_file_ignores=per_file,
        min_severity=Severity(table.get("min-severity", Severity.WARNING)),
        min_confidence=Confidence(table.get("min-confidence", Confidence.MEDIUM)),
        accumulation_names=tuple(table.get("accumulation-names", ())),
        mean_losses=tuple(table.get("mean-losses", ())),
        sum_losses=tuple(table.get("sum-losses", ())),
        framework_versions=tuple(sorted(table.get("framework-versions", {}).items())),
        root=root,
    )
    if overrides.min_severity is not None:
        settings = replace(settings, min_severity=overrides.min_severity)
    if overrides.min_confidence is not None:
        settings = replace(settings, min_confidence=overrides.min_confidence)
    return settings


class Finder:
    """Finds the settings of each file: the nearest pyproject.toml above it that has a `[tool.acclint]` table.

    `config` names one file for all; `isolated` looks at none.
    """

    def __init__(self, overrides: Overrides = Overrides(), config: Path | None = None, isolated: bool = False) -> None:
        self._overrides = overrides
        self._folders: dict[Path, Settings] = {}
        self._default = build({}, None, overrides)
        self._fixed: Settings | None = None
        if config is not None:
            self._fixed = build(read_table(config, required=True) or {}, config.absolute(), overrides)
        elif isolated:
            self._fixed = self._default

    def find(self, folder: Path) -> Settings:
        """The settings of files in `folder` (absolute). Raises Problem if the pyproject.toml found there is wrong."""
        if self._fixed is not None:
            return self._fixed
        if folder not in self._folders:
            path = folder / "pyproject.toml"
            table = read_table(path) if path.is_file() else None
            if table is not None:
                self._folders[folder] = build(table, path, self._overrides)
            elif folder.parent == folder:
                self._folders[folder] = self._default
            else:
                self._folders[folder] = self.find(folder.parent)
        return self._folders[folder]
