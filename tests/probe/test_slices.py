"""The statements of a loop, cut from a file: what is kept, what is not, and that it stays in its place."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

import pytest

from acclint.probe.slices.cutting import CannotSlice, Slice, cut

FILES = sorted((Path(__file__).parents[2] / "fixtures").glob("*/*.py"))


def sliced(text: str, word: str = "backward") -> tuple[Slice, list[str]]:
    """The slice for the first row with a word, and its lines without what was taken out."""
    text = textwrap.dedent(text)
    row = next(row for row, line in enumerate(text.splitlines(), 1) if word in line)
    found = cut(text, [row])
    ast.parse(found.text)
    return found, [line.strip() for line in found.text.splitlines() if line.strip() not in ("", "pass")]


def test_what_feeds_the_loop_is_kept_in_its_place_and_telling_is_taken_out() -> None:
    text = """\
        import torch
        import wandb
        from tqdm import tqdm
        SEED = 1
        RATE = 0.1
        model = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        history = []
        for i, x in enumerate(data):
            loss = model(x).mean()
            print("loss", loss.item(),
                  flush=True)
            loss.backward()
            history.append(loss.item())
            if i % 4 == 3: optimizer.step(); wandb.log({"loss": loss})
            elif i == 2:
                print(i)
        """
    found, lines = sliced(text)
    assert [line for line in lines if line != "elif i == 2:"] == [
        "import torch",
        "RATE = 0.1",
        "model = torch.nn.Linear(1, 1)",
        "optimizer = torch.optim.SGD(model.parameters(), lr=RATE)",
        "for i, x in enumerate(data):",
        "loss = model(x).mean()",
        "loss.backward()",
        "if i % 4 == 3: optimizer.step(); pass",
    ]
    kept = found.text.splitlines()
    assert kept[12] == textwrap.dedent(text).splitlines()[12] == "    loss.backward()"
    assert kept[10].strip() == "pass" and not kept[11].strip()
    assert not found.whole  # it imports wandb


def test_a_function_of_the_file_that_moves_gradients_is_kept_with_its_calls() -> None:
    _, lines = sliced("""\
        def flush(optim):
            optim.step()
            optim.zero_grad()
        def show(value):
            print(value)
        def train(net, opt, data):
            for i, x in enumerate(data):
                net(x).mean().backward()
                if i % 4 == 3:
                    flush(opt)
                    show(i)
        """)
    assert "flush(opt)" in lines and "optim.zero_grad()" in lines
    assert "show(i)" not in lines


def test_what_is_done_to_each_parameter_is_kept() -> None:
    _, lines = sliced("""\
        for x in data:
            net(x).mean().backward()
            for p in net.parameters():
                p.data.sub_(rate)
                print(p)
            for name in names:
                seen = name
        """)
    assert "p.data.sub_(rate)" in lines
    assert "print(p)" not in lines and "seen = name" not in lines


def test_callers_lead_to_the_loop_but_model_train_is_not_the_files_own() -> None:
    found, lines = sliced("""\
        class Trainer:
            def __init__(self, args):
                self.k = args.k
                self.name = args.name
            def train(self, data):
                self.model.train()
                for i, x in enumerate(data):
                    self.model(x).mean().backward()
                    if (i + 1) % self.k == 0:
                        self.optimizer.step()
        def fit(args):
            Trainer(args).train(load(args))
        def evaluate(model):
            model.train()
            return model
        """)
    assert [entry for entry, _ in found.entries] == ["fit", "Trainer.train"]
    assert "self.k = args.k" in lines and "self.name = args.name" not in lines
    assert "def evaluate(model):" not in lines


def test_jumps_of_kept_loops_and_decorators() -> None:
    found, lines = sliced("""\
        import hydra
        @hydra.main(config_path="conf")
        def main(cfg):
            for i, x in enumerate(data):
                if x is None:
                    continue
                net(x).mean().backward()
                if i > cfg.limit:
                    break
        @torch.no_grad()
        def net(x):
            return x
        """)
    assert "continue" in lines and "break" in lines
    assert found.decorated == ("main",)
    assert "@torch.no_grad()" in lines
    assert not any("hydra.main" in line for line in lines)


def test_the_result_of_a_factory_leads_to_the_loop() -> None:
    _, lines = sliced("""\
        def make(net, opt):
            def step(x):
                net(x).mean().backward()
            return step
        go = make(net, opt)
        while more():
            go(batch())
        """)
    assert "go(batch())" in lines and "while more():" in lines


def test_a_file_that_imports_torch_only_may_be_run_whole() -> None:
    found, _ = sliced("import torch\nimport math\nprint(math.pi)\nloss.backward()\n")
    assert "print(math.pi)" in found.whole and "print" not in found.text


def test_what_ends_a_loop_by_an_exception_is_kept() -> None:
    _, lines = sliced(
        """\
        stream = iter(range(8))
        while True:
            try:
                _ = next(stream)
                print("next")
            except StopIteration:
                break
            model(x).mean().backward()
        """
    )
    assert "stream = iter(range(8))" in lines
    assert "_ = next(stream)" in lines
    assert 'print("next")' not in lines


def test_functions_that_call_each_other() -> None:
    found, _ = sliced(
        """\
        def step(n, model, data):
            model(next(data)).mean().backward()
            again(n - 1, model, data)
        def again(n, model, data):
            if n:
                step(n, model, data)
        """
    )
    assert {loops for _, loops in found.entries} == {False}


def test_decorators_in_parentheses_are_taken_out_whole() -> None:
    found, lines = sliced(
        """\
        @(lambda f: f)
        @(
            watched
        )
        def step(model, x):
            model(x).mean().backward()
        """
    )
    assert lines == ["def step(model, x):", "model(x).mean().backward()"]
    assert found.decorated == ("step",)


def test_what_cannot_be_parsed_is_said() -> None:
    with pytest.raises(CannotSlice, match="cannot parse"):
        cut("for x in y", [1])


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_statements_of_a_slice_are_those_of_the_file(path: Path) -> None:
    text = path.read_text()
    rows = [row for row, line in enumerate(text.splitlines(), 1) if "backward(" in line or "expect" in line]
    found = cut(text, rows)

    def simple(source: str) -> set[tuple[int, int, str]]:
        kinds = (ast.Assign, ast.AugAssign, ast.Expr, ast.Return, ast.Import, ast.ImportFrom)
        nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
        return {(node.lineno, node.col_offset, ast.unparse(node)) for node in nodes}

    assert simple(found.text) <= simple(text)
    assert len(found.text.splitlines()) == len(text.splitlines())
