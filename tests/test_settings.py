"""`[tool.acclint]`: what it may hold, how it is merged with the command line, and what is said about mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from acclint import Problem
from acclint.findings import Confidence, Severity
from acclint.rules import all_rules
from acclint.settings import SPECIAL, Finder, Overrides, Selection, Settings, build, expand, read_table

GRADIENT = {rule.code for rule in all_rules().values() if rule.category == "gradient"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pyproject.toml"
    path.write_text(text, encoding="utf-8")
    return path


def chosen(*layers: Selection) -> set[str]:
    """The ACC rules that remain when the second layer, if any, is the command line's."""
    table = {
        key: list(values)
        for key, values in (("select", layers[0].select), ("ignore", layers[0].ignore))
        if values is not None
    }
    if layers[0].extend_select:
        table["extend-select"] = list(layers[0].extend_select)
    overrides = Overrides(selection=layers[1]) if len(layers) > 1 else Overrides()
    return set(build(table, None, overrides).rules) - set(SPECIAL)


# --- selectors ---


def test_by_default_every_rule_runs() -> None:
    assert Settings().rules == {*all_rules(), *SPECIAL}


@pytest.mark.parametrize(
    ("selector", "codes"),
    [
        ("ACC001", {"ACC001"}),
        ("acc001", {"ACC001"}),
        (" ACC001 ", {"ACC001"}),
        ("ACC00", {code for code in all_rules() if code.startswith("ACC00")}),
        ("ACC", set(all_rules())),
        ("missing-loss-division", {"ACC001"}),
        ("gradient", GRADIENT),
        ("unused-ignore", {"unused-ignore"}),
        ("ALL", {*all_rules(), *SPECIAL}),
        ("all", {*all_rules(), *SPECIAL}),
    ],
)
def test_a_selector_is_a_code_a_prefix_a_name_or_a_category(selector: str, codes: set[str]) -> None:
    assert expand(selector) == codes


@pytest.mark.parametrize(
    ("selector", "says"),
    [
        ("ACC0011", "unknown rule 'ACC0011'; did you mean ACC001?"),
        ("ACC901", "did you mean ACC001?"),
        ("missing-loss-divison", "did you mean missing-loss-division?"),
        ("gradients", "did you mean gradient?"),
        ("E501", "unknown rule 'E501'; `acclint rules` lists them"),
        ("", "unknown rule ''"),
        ("1", "unknown rule '1'"),
    ],
)
def test_an_unknown_selector_gets_a_suggestion(selector: str, says: str) -> None:
    with pytest.raises(Problem) as caught:
        expand(selector)
    assert says in str(caught.value)


def test_the_more_specific_choice_wins() -> None:
    assert chosen(Selection(select=("ACC001",), ignore=("ACC",))) == {"ACC001"}
    assert "ACC001" not in chosen(Selection(select=("ALL",), ignore=("ACC001",)))
    assert chosen(Selection(select=("gradient",), ignore=("ACC001",))) == GRADIENT - {"ACC001"}
    assert chosen(Selection(select=("ACC001",), ignore=("gradient",))) == {"ACC001"}


def test_at_the_same_specificity_ignore_wins() -> None:
    assert chosen(Selection(select=("ACC001", "ACC002"), ignore=("ACC001",))) == {"ACC002"}


def test_select_on_the_command_line_starts_over() -> None:
    assert chosen(Selection(select=("ACC002",), ignore=("ACC001",)), Selection(select=("ACC001",))) == {"ACC001"}


def test_ignore_and_extend_select_on_the_command_line_are_added() -> None:
    base = Selection(select=("ACC001", "ACC002"))
    assert chosen(base, Selection(ignore=("ACC001",))) == {"ACC002"}
    assert chosen(base, Selection(extend_select=("ACC003",))) == {"ACC001", "ACC002", "ACC003"}
    assert chosen(Selection(select=("ACC002",), ignore=("ACC001",)), Selection(extend_select=("ACC001",))) == {
        "ACC001",
        "ACC002",
    }


def test_special_findings_stay_unless_ignored() -> None:
    assert set(SPECIAL) <= build({"select": ["ACC001"]}, None).rules
    assert "unused-ignore" not in build({"ignore": ["unused-ignore"]}, None).rules


# --- the table ---

FULL = """
[tool.acclint]
select = ["ALL"]
ignore = ["ACC003"]
extend-select = ["ACC007"]
exclude = ["old"]
extend-exclude = ["data/*"]
min-severity = "info"
min-confidence = "low"
accumulation-names = ["n_micro"]
mean-losses = ["project.losses.Focal"]
sum-losses = ["project.losses.total"]

[tool.acclint.per-file-ignores]
"tests/*" = ["ACC001", "window"]

[tool.acclint.framework-versions]
transformers = "4.46.0"
accelerate = "1.0"
"""


def test_every_key(folder: Path) -> None:
    path = written(folder, FULL)
    settings = Finder().find(folder)
    assert "ACC003" not in settings.rules
    assert [glob.pattern for glob in settings.exclude] == ["old", "data/*"]
    assert settings.min_severity is Severity.INFO
    assert settings.min_confidence is Confidence.LOW
    assert settings.accumulation_names == ("n_micro",)
    assert settings.mean_losses == ("project.losses.Focal",)
    assert settings.sum_losses == ("project.losses.total",)
    assert settings.framework_versions == (("accelerate", "1.0"), ("transformers", "4.46.0"))
    assert settings.root == path.parent
    assert "ACC001" in settings.rules_for(folder / "train.py")
    assert "ACC001" not in settings.rules_for(folder / "tests" / "unit" / "test_train.py")
    assert "ACC002" not in settings.rules_for(folder / "tests" / "test_train.py")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('selct = ["ACC001"]', "unknown key tool.acclint.selct; did you mean select?"),
        ("min_severity = 'info'", "unknown key tool.acclint.min_severity; did you mean min-severity?"),
        ("line-length = 3", "unknown key tool.acclint.line-length"),
        ("xyzzy = 3", "the keys are accumulation-names, exclude"),
        ('select = "ACC001"', "tool.acclint.select must be a list of strings, not a string"),
        ("select = [1]", "tool.acclint.select must be a list of strings, but holds an integer"),
        ("select = true", "not a boolean"),
        ("exclude = 2020-01-01", "not a date or time"),
        ('min-severity = "eror"', "must be one of error, warning, info, not 'eror'; did you mean error?"),
        ("min-severity = 3", "tool.acclint.min-severity must be one of error, warning, info, not an integer"),
        ('min-severity = ["info"]', "not a list"),
        ('min-confidence = "sure"', "must be one of high, medium, low"),
        ("per-file-ignores = []", "tool.acclint.per-file-ignores must be a table, not a list"),
        ('per-file-ignores = {"a.py" = "ACC001"}', 'per-file-ignores."a.py" must be a list of strings'),
        ("framework-versions = {torch = 2.1}", "framework-versions.torch must be a string"),
        ("framework-versions = 1.5", "must be a table, not a float"),
    ],
)
def test_a_mistake_names_file_key_and_remedy(folder: Path, line: str, says: str) -> None:
    path = written(folder, f"[tool.acclint]\n{line}\n")
    with pytest.raises(Problem) as caught:
        Finder().find(folder)
    assert str(caught.value).startswith(f"{path}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line", ['ignore = ["ACC901"]', 'per-file-ignores = {"*.py" = ["ACC901"]}', 'extend-select = ["ACC901"]']
)
def test_an_unknown_rule_in_the_file_names_the_file(folder: Path, line: str) -> None:
    path = written(folder, f"[tool.acclint]\n{line}\n")
    with pytest.raises(Problem, match=r"unknown rule 'ACC901'; did you mean ACC001\?") as caught:
        Finder().find(folder)
    assert str(caught.value).startswith(f"{path}: ")


def test_broken_toml_is_said_where_it_is_ours(folder: Path) -> None:
    path = written(folder, "[tool.acclint\n")
    with pytest.raises(Problem, match="not valid TOML"):
        read_table(path)
    path.write_bytes(b"[tool.acclint]\nselect = ['\xff']\n")
    with pytest.raises(Problem, match="not valid TOML"):
        read_table(path)


def test_a_table_that_is_none(folder: Path) -> None:
    with pytest.raises(Problem, match=r"tool\.acclint must be a table, not an integer"):
        read_table(written(folder, "[tool]\nacclint = 3\n"))
    assert read_table(written(folder, "tool = 3 # acclint\n")) is None


# --- the nearest file ---


def test_the_nearest_file_with_a_table_counts(folder: Path) -> None:
    written(folder, '[tool.acclint]\nselect = ["ACC001"]\n')
    written(folder / "a", "[project]\nname = 'a'\n")
    written(folder / "a" / "b", '[tool.acclint]\nselect = ["ACC002"]\n')
    finder = Finder()
    assert "ACC001" in finder.find(folder / "a").rules
    assert "ACC001" in finder.find(folder / "a" / "other" / "deep").rules
    assert "ACC001" not in finder.find(folder / "a" / "b" / "c").rules


def test_somebody_elses_broken_toml_is_no_matter(folder: Path) -> None:
    written(folder, "[project\n")
    assert Finder().find(folder).rules == Settings().rules


def test_isolated_looks_at_no_file(folder: Path) -> None:
    written(folder, "[tool.acclint]\nnonsense = 1\n")
    assert Finder(isolated=True).find(folder).rules == Settings().rules


def test_config_names_one_file_for_all(folder: Path) -> None:
    written(folder / "src", "[tool.acclint]\nnonsense = 1\n")
    other = folder / "acc.toml"
    other.write_text('[tool.acclint]\nselect = ["ACC001"]\n')
    settings = Finder(config=other).find(folder / "src")
    assert settings.rules - set(SPECIAL) == {"ACC001"}
    other.write_text("")
    assert Finder(config=other).find(folder).rules == Settings().rules


def test_config_that_cannot_be_read(folder: Path) -> None:
    with pytest.raises(Problem, match=r"nope\.toml: cannot read the configuration: No such file"):
        Finder(config=Path("nope.toml"))
    with pytest.raises(Problem, match="cannot read the configuration"):
        Finder(config=folder)


def test_the_command_line_wins(folder: Path) -> None:
    written(folder, '[tool.acclint]\nmin-severity = "info"\nmin-confidence = "low"\nexclude = ["a"]\n')
    overrides = Overrides(
        exclude=("b",), extend_exclude=("c",), min_severity=Severity.ERROR, min_confidence=Confidence.HIGH
    )
    settings = Finder(overrides).find(folder)
    assert settings.min_severity is Severity.ERROR
    assert settings.min_confidence is Confidence.HIGH
    assert [glob.pattern for glob in settings.exclude] == ["b", "c"]
