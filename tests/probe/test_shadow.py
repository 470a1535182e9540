"""A window beside the same samples as one batch: BatchNorm, token means and losses that couple samples."""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from acclint import lint
from acclint.cli import cli
from acclint.findings import Severity
from acclint.probe import Comparison, Measurement, Oracle
from acclint.probe.instruments.shadow import Pass, Unlike, joined
from acclint.probe.readings import read
from acclint.probe.watch import Request, judge, limits_of
from acclint.settings import Settings

HEAD = """\
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(1)
data = TensorDataset(torch.randn(384, 6), torch.randint(0, 3, (384,)))
loader = DataLoader(data, batch_size=8)
"""

LOOP = """\
net = nn.Sequential({layers})
optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
for i, (x, y) in enumerate(loader):
    out = net(x)
    loss = {loss}
    (loss / 4).backward()
    if (i + 1) % 4 == 0:
        optimizer.step()
        optimizer.zero_grad()
"""

LAYERS = "nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)"
NORMALIZED = "nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3)"
CONTRASTIVE = "F.cross_entropy(F.normalize(out) @ F.normalize(out.roll(1, 1)).T / 0.1, torch.arange(len(x)))"


def loop(loss: str = "F.cross_entropy(out, y)", layers: str = LAYERS) -> str:
    return HEAD + LOOP.format(loss=loss, layers=layers)


def collated(batch: str) -> str:
    """Arguments of a loader whose batches are made of random numbers, of sequences of `n` tokens."""
    return f"batch_size=8, collate_fn=lambda rows, n=3: [n := int(torch.randint(3, 9, ())), {batch}][1]"


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with Oracle() as one:
        yield one


@pytest.fixture
def compare(oracle: Oracle, tmp_path: Path):
    """Watches a script as `acclint probe` does: what was measured, and the confirmed codes, info findings too."""

    def run(text: str) -> tuple[Measurement, set[str]]:
        script = tmp_path / "train.py"
        script.write_text(text)
        static = lint.check([str(script)])
        measured = oracle.watch(script, limits_of(Request(str(script)), static))
        assert measured.outcome in ("finished", "stopped"), (measured.error, measured.stderr)
        found = judge(str(script), measured, [static], Settings(min_severity=Severity.INFO))
        return measured, {one.finding.code for one in found.judged if one.verdict == "confirmed"}

    return run


def compared(measured: Measurement) -> Comparison:
    assert measured.comparison is not None
    assert measured.comparison.reason == ""
    assert measured.comparison.noise < 1e-5
    return measured.comparison


def test_a_mean_over_samples_is_the_same(compare) -> None:
    measured, codes = compare(loop())
    found = compared(measured)
    assert found.micro_batches == 4
    assert found.ratio == pytest.approx(1.0, rel=1e-5)
    assert found.error < 1e-5
    assert read("ACC017", measured, [0]).shown is False
    assert codes == set()


@pytest.mark.parametrize(
    "changes",
    [
        ("nn.Tanh()", "nn.Tanh(), nn.Dropout(0.5)"),  # dropout is off in the forks
        ("F.cross_entropy(out, y)", "F.cross_entropy(out, y, reduction='sum')"),
        (
            "(loss / 4).backward()",
            "(loss / 4).backward(); nn.utils.clip_grad_norm_(net.parameters(), 0.01 if i % 4 == 3 else 9)",
        ),
        ("(x, y) in enumerate(loader):", "(x, y) in enumerate(loader):\n    x.mul_(2)"),  # in place
        ("DataLoader(data, batch_size=8)", "DataLoader(data, batch_size=8, shuffle=True, num_workers=2)"),
        # an evaluation within each window
        (
            "    out = net(x)",
            "    with torch.no_grad():\n        for v, _ in loader if i % 4 == 1 else (): net(v)\n    out = net(x)",
        ),
        (
            "DataLoader(data, batch_size=8)",
            "DataLoader(data, batch_size=8, collate_fn=lambda rows: [torch.stack(c) for c in zip(*rows)])",
        ),
    ],
)
def test_right_code_is_the_same(compare, changes: tuple[str, str]) -> None:
    text = loop()
    assert changes[0] in text
    measured, codes = compare(text.replace(*changes))
    assert compared(measured).error < 1e-5
    assert codes == set()


def test_a_factor_is_no_difference(compare) -> None:
    measured, codes = compare(loop().replace("(loss / 4)", "loss"))
    assert compared(measured).ratio == pytest.approx(1.0, rel=1e-5)
    assert compared(measured).error < 1e-5
    assert codes == {"ACC001"}


@pytest.mark.parametrize(("samples", "code"), [(4, {"ACC003"}), (8, {"ACC003"}), (16, set())])
def test_batch_norm_is_the_difference(compare, samples: int, code: set[str]) -> None:
    measured, codes = compare(loop(layers=NORMALIZED).replace("batch_size=8", f"batch_size={samples}"))
    found = compared(measured)
    assert found.error > 0.05
    assert found.frozen is not None
    assert found.frozen < 1e-5
    assert codes == code
    assert read("ACC017", measured, [0]).shown is False
    text = read("ACC003", measured, [0]).text
    assert f"the gradient is another by {100 * found.error:.2g} %" in text


def test_a_loss_that_couples_samples(compare) -> None:
    measured, codes = compare(loop(CONTRASTIVE))
    assert compared(measured).error > 0.05
    assert codes == {"ACC017"}
    assert "differs from that of the same samples in one batch by" in read("ACC017", measured, [0]).text


def test_a_loss_that_couples_samples_beside_batch_norm(compare) -> None:
    measured, codes = compare(loop(CONTRASTIVE, NORMALIZED).replace("batch_size=8", "batch_size=16"))
    found = compared(measured)
    assert found.frozen is not None
    assert found.frozen > 0.05
    assert codes == {"ACC017"}


@pytest.mark.parametrize(
    "loss",
    [
        "F.cross_entropy(out, torch.where(x[:, 0] > x[:, 1], y, -100))",
        "F.cross_entropy(out, y, ignore_index=0)",
        "F.cross_entropy(out, y, weight=torch.tensor([1.0, 5.0, 20.0]))",
        "(F.cross_entropy(out, y, reduction='none') * (x[:, 0] > -0.5)).sum() / (x[:, 0] > -0.5).sum()",
    ],
)
def test_means_over_different_numbers_of_elements(compare, loss: str) -> None:
    measured, codes = compare(loop(loss))
    assert compared(measured).error > 0.02
    assert codes == {"ACC011"}
    assert measured.optimizers[0].updates[2].counted > 0.02
    assert compared(measured).counted < 1e-5
    assert read("ACC017", measured, [0]).shown is None


def test_elements_of_the_whole_window_are_right(compare) -> None:
    """Each micro-batch weighs as much as it has elements: the sum by the number in the window."""
    text = (
        HEAD
        + """\
net = nn.Linear(6, 3)
optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
batches = []
for x, y in loader:
    batches.append((x, y))
    if len(batches) == 4:
        tokens = sum(int((y > 0).sum()) for _, y in batches)
        for x, y in batches:
            (F.cross_entropy(net(x), y, ignore_index=0, reduction="sum") / tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
        batches = []
"""
    )
    measured, codes = compare(text)
    assert compared(measured).error < 1e-5
    assert codes == set()


# --- what is not compared, and why -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            loop("F.mse_loss(out, torch.randn_like(out))"),
            "random numbers, or on the order",
        ),
        (loop("F.cross_entropy(out, (y + i) % 3)"), "random numbers, or on the order"),
        (
            loop().replace(
                "DataLoader(data, batch_size=8)", "[(torch.randn(8, 6), torch.randint(0, 3, (8,))) for _ in range(40)]"
            ),
            "no window was run again",
        ),
        (
            loop("F.cross_entropy(out.view(8, 3), y)"),
            "did not come to its update with all samples in one batch",
        ),
        (
            loop("F.cross_entropy(out.flatten(0, 1), y.flatten())").replace(
                "batch_size=8",
                collated("(torch.randn(n, 8, 6), torch.randint(0, 3, (n, 8)))"),
            ),
            "the first dimension of the tensors",
        ),
        (
            loop("F.cross_entropy(out.flatten(0, 1), y.flatten())").replace(
                "batch_size=8",
                collated("(torch.randn(8, n, 6), torch.randint(0, 3, (8, n)))"),
            ),
            "different shapes",
        ),
    ],
)
def test_what_cannot_be_compared_is_said(compare, text: str, reason: str) -> None:
    measured, codes = compare(text)
    reading = read("ACC017", measured, [0])
    assert reading.shown is None
    assert reason in reading.text, measured.comparison
    assert "ACC017" not in codes


@pytest.mark.parametrize(
    "body",
    [
        "if len(x) > 8: time.sleep(600)",
        "if len(x) > 8: os.kill(os.getpid(), 9)",
        "if len(x) > 8: os._exit(3)",
        "if len(x) > 8: bytearray(1 << 40)",
        "if len(x) > 8: signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32)); os.fork(); time.sleep(600)",
    ],
)
def test_a_fork_that_ends_badly_is_no_end_of_the_script(compare, body: str) -> None:
    text = "import os, signal, time\n" + loop().replace("    out = net(x)", f"    {body}\n    out = net(x)")
    measured, codes = compare(text)
    assert measured.outcome == "finished"
    assert len(measured.optimizers[0].updates) == 6
    assert measured.seconds < 30
    assert "did not come to its update" in read("ACC017", measured, [0]).text
    assert codes == set()


def test_a_script_that_reaps_its_children(compare) -> None:
    text = "import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n" + loop()
    assert compared(compare(text)[0]).error < 1e-5


def test_the_script_goes_on_as_without_the_forks(oracle: Oracle, tmp_path: Path) -> None:
    """The same batches, updates and output; nothing of the forks is left."""
    script = tmp_path / "train.py"
    script.write_text(loop(layers=NORMALIZED) + "    print(i, x.sum().item(), loss.item())\n")
    limits = limits_of(Request(str(script)), lint.check([str(script)]))
    plain = oracle.watch(script, type(limits)(limits.timeout, limits.backwards, limits.updates, limits.batches))
    shadowed = oracle.watch(script, limits)
    assert plain.comparison is None
    assert compared(shadowed)
    assert shadowed.stdout == plain.stdout
    assert shadowed.optimizers == plain.optimizers
    assert len(shadowed.events) == len(plain.events)


def test_the_comparison_is_in_the_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(loop(CONTRASTIVE))
    result = CliRunner().invoke(cli, ["probe", "train.py", "--output-format", "json"])
    assert result.exit_code == 1
    (entry,) = json.loads(result.stdout, parse_constant=pytest.fail)  # a NaN is no JSON
    assert (entry["code"], entry["name"], entry["severity"]) == ("ACC017", "batch-coupled-loss", "warning")
    assert entry["location"]["row"] == loop(CONTRASTIVE).splitlines().index("    (loss / 4).backward()") + 1
    assert entry["evidence"]["measured"]["comparison"]["error"] > 0.05
    told = CliRunner().invoke(cli, ["probe", "train.py"]).stdout
    assert "only the run shows this" in told
    assert "please report" not in told  # the source is not searched for it


# --- the parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "delivered", "due"),
    [
        ([4, 8], 8, 1),
        ([4, 8], 9, 0),
        ([4], 4, 0),  # one window tells no size
        ([4, 9], 9, 0),
        ([5, 9], 12, 2),  # one batch ahead: it is fetched before the update before
        ([5, 9], 9, 0),
        ([1, 2, 3], 3, 0),
        ([2, 6, 10], 10, 0),  # two were left from the pass before
    ],
)
def test_when_a_window_begins(steps: list[int], delivered: int, due: int) -> None:
    assert Pass(8, delivered, steps).due() == due


def test_batches_are_put_together() -> None:
    Batch = namedtuple("Batch", "x names")
    made = [
        {"x": torch.full((2, 3), float(n)), "more": (torch.arange(2), ["a", str(n)]), "size": 7, "none": None}
        for n in range(2)
    ]
    whole = joined(made, 2)
    assert whole["x"].tolist() == [[0.0] * 3] * 2 + [[1.0] * 3] * 2
    assert whole["more"][0].tolist() == [0, 1, 0, 1]
    assert whole["more"][1] == ["a", "0", "a", "1"]
    assert (whole["size"], whole["none"]) == (7, None)
    named = joined([Batch(torch.zeros(2), ["a", "b"]), Batch(torch.ones(2), ["c", "d"])], None)
    assert isinstance(named, Batch)
    assert named.names == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "batches",
    [
        [torch.zeros(3, 2)],  # not 2 samples
        [torch.zeros(2, 3), torch.zeros(2, 4)],
        [(torch.zeros(2), torch.zeros(3))] * 2,
        [{"x": torch.zeros(2)}, {"y": torch.zeros(2)}],
        [(torch.zeros(2), 3), (torch.zeros(2), 4)],
        [(torch.zeros(2), object()), (torch.zeros(2), object())],
        ["text", "text"],
    ],
)
def test_batches_that_are_not_put_together(batches: list[object]) -> None:
    with pytest.raises(Unlike):
        joined(batches, 2)
