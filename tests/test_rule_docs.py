"""Each rule's module agrees with the table of rules, and its documentation has its parts and runs."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re

import pytest

import acclint.rules
from acclint.findings import Severity
from acclint.rules.base import Rule

# code, name, category, default severity, fix. Codes and names are relied on by users: they never change.
TABLE = (
    ("ACC001", "missing-loss-division", "gradient", "error", "safe"),
    ("ACC002", "zero-grad-in-micro-loop", "window", "error", "safe"),
    ("ACC003", "batchnorm-tiny-micro-batch", "batch", "error", "display"),
    ("ACC004", "scheduler-step-per-micro-batch", "schedule", "error", "safe"),
    ("ACC005", "graph-growing-loss", "memory", "warning", "safe"),
    ("ACC006", "shifted-window", "window", "warning", "safe"),
    ("ACC007", "leftover-micro-batches", "window", "info", "unsafe"),
    ("ACC014", "gradients-added-by-hand", "gradient", "error", "display"),
    ("ACC015", "gradients-never-zeroed", "window", "error", "safe"),
    ("ACC016", "update-without-window", "window", "error", "unsafe"),
    ("ACC021", "division-after-backward", "gradient", "error", "safe"),
    ("ACC023", "frozen-window-counter", "window", "error", "unsafe"),
    ("ACC030", "backward-skipped", "window", "error", "display"),
    ("ACC031", "deferred-backward", "memory", "info", "display"),
)

HEADINGS = (
    "What it does",
    "Why is this bad?",
    "Example",
    "Use instead",
    "When it stays silent",
    "Fix safety",
    "References",
)

CODES = [row[0] for row in TABLE]


def load(code: str) -> Rule:
    name = next(row[1] for row in TABLE if row[0] == code)
    module = importlib.import_module(f"acclint.rules.{code.lower()}_{name.replace('-', '_')}")
    rule = module.RULE
    assert isinstance(rule, Rule)
    return rule


def sections(rule: Rule) -> dict[str, str]:
    parts = re.split(r"^## (.+)\n", rule.documentation, flags=re.MULTILINE)
    assert parts[0] == "", "text before the first heading"
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def example(code: str, heading: str) -> str:
    (block,) = blocks(sections(load(code))[heading])
    return block


def test_every_rule_module_is_in_the_table() -> None:
    modules = {m.name for m in pkgutil.iter_modules(acclint.rules.__path__) if re.match(r"acc\d{3}_", m.name)}
    expected = {f"{code.lower()}_{name.replace('-', '_')}" for code, name, *_ in TABLE}
    assert modules == expected


@pytest.mark.parametrize("row", TABLE, ids=CODES)
def test_rule_equals_the_table(row: tuple[str, str, str, str, str]) -> None:
    rule = load(row[0])
    assert (rule.code, rule.name, rule.category, rule.severity.value, rule.fix) == row
    assert rule.severity is Severity(row[3])
    assert callable(rule.check)


@pytest.mark.parametrize("code", CODES)
def test_documentation_has_its_headings_in_order(code: str) -> None:
    rule = load(code)
    found = sections(rule)
    assert tuple(found) == HEADINGS
    for heading, text in found.items():
        assert text.strip(), heading
    assert rule.documentation.endswith("\n")
    assert rule.documentation.count("```") % 2 == 0


@pytest.mark.parametrize("code", CODES)
def test_summary_is_one_sentence(code: str) -> None:
    summary = load(code).summary
    assert summary == summary.strip()
    assert summary.endswith(".")
    assert "\n" not in summary
    assert len(summary) <= 120


@pytest.mark.parametrize("code", CODES)
def test_fix_safety_names_the_applicability(code: str) -> None:
    rule = load(code)
    first = sections(rule)["Fix safety"].split(maxsplit=1)[0].rstrip(".:,;").lower()
    assert first == {"safe": "safe", "unsafe": "unsafe", "display": "advice"}[rule.fix]


@pytest.mark.parametrize("code", CODES)
def test_references_are_links(code: str) -> None:
    lines = [line for line in sections(load(code))["References"].splitlines() if line.startswith("- ")]
    assert lines
    assert all(re.match(r"- \[[^\]]+\]\(https://[^)\s]+\)", line) for line in lines)


@pytest.mark.parametrize("heading", ["Example", "Use instead"])
@pytest.mark.parametrize("code", CODES)
def test_examples_are_whole_training_loops(code: str, heading: str) -> None:
    tree = ast.parse(example(code, heading))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert {"DataLoader", "model", "optimizer", "criterion", "backward", "step"} <= names
    assert any(isinstance(node, ast.For) for node in ast.walk(tree))


@pytest.mark.parametrize("code", CODES)
def test_example_and_cure_differ(code: str) -> None:
    assert example(code, "Example") != example(code, "Use instead")


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own about scheduler.step() before optimizer.step()
@pytest.mark.parametrize("heading", ["Example", "Use instead"])
@pytest.mark.parametrize("code", CODES)
def test_examples_run(code: str, heading: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The cure must run; so must each mistake here, since none of them announces itself by an exception."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    exec(compile(example(code, heading), f"<{code} {heading}>", "exec"), {"__name__": "__main__"})
