"""The probe with frameworks: who divides, zeroes and steps is theirs, and the numbers are read all the same.

Each framework has a right script and wrong ones. Those whose package is not installed are skipped; `make frameworks`
installs them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from acclint import lint
from acclint.findings import Confidence, Severity
from acclint.probe import Oracle
from acclint.probe.confirm import Confirmer
from acclint.probe.watch import Request, Watched, judge, limits_of
from acclint.settings import Finder, Overrides

EVERYTHING = Finder(Overrides(min_severity=Severity.INFO, min_confidence=Confidence.LOW), None, True)
ROOT = Path(__file__).parents[2]

HEAD = """\
import contextlib
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(1)
data = TensorDataset(torch.randn(240, 6), torch.randn(240, 1))
loader = DataLoader(data, batch_size=5)
net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
"""

ACCELERATE = """
from accelerate import Accelerator

accelerator = Accelerator(gradient_accumulation_steps=4, cpu=True)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
net, optimizer, loader = accelerator.prepare(net, optimizer, loader)
for epoch in range(2):
    for x, y in loader:
        with accelerator.accumulate(net):
            loss = F.mse_loss(net(x), y)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(net.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
"""

LIGHTNING = """
import lightning

class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = net

    def training_step(self, batch, index):
        x, y = batch
        loss = F.mse_loss(self.net(x), y)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

trainer = lightning.Trainer(
    max_epochs=2, accumulate_grad_batches=4, accelerator="cpu", logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False,
)
trainer.fit(Module(), loader)
"""

MANUAL = LIGHTNING.replace(", accumulate_grad_batches=4", "").replace(
    "        self.net = net", "        self.net, self.automatic_optimization = net, False"
)
MANUAL = MANUAL.replace(
    "        return loss\n",
    """\
        optimizer = self.optimizers()
        self.manual_backward(loss / 4)
        if (index + 1) % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
""",
)

TRAINER = """
from transformers import Trainer, TrainingArguments

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net

    def forward(self, x, labels):
        output = self.net(x)
        return {"loss": F.mse_loss(output, labels), "logits": output}

class Mine(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        output = model(**inputs)
        loss = F.mse_loss(output["logits"], inputs["labels"])
        return (loss, output) if return_outputs else loss

arguments = TrainingArguments(
    output_dir="out", gradient_accumulation_steps=4, per_device_train_batch_size=5, num_train_epochs=2,
    report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
)
Trainer(model=Net(), args=arguments, train_dataset=[{"x": x, "labels": y} for x, y in data]).train()
"""

COMPILED = """
model = torch.compile(net)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

@torch.compile
def micro(x, y):
    return F.mse_loss(model(x), y) / 4

for i, (x, y) in enumerate(loader):
    micro(x, y).backward()
    if (i + 1) % 4 == 0:
        optimizer.step()
        optimizer.zero_grad()
"""

# (name, package, what is confirmed, text)
SCRIPTS = [
    ("accelerate", "accelerate", set(), ACCELERATE),
    (
        "accelerate_backward",
        "accelerate",
        {"ACC001"},
        ACCELERATE.replace("accelerator.backward(loss)", "loss.backward()"),
    ),
    ("lightning", "lightning", set(), LIGHTNING),
    (
        "lightning_closure_zeroes",
        "lightning",
        {"ACC002"},
        LIGHTNING.replace("x, y = batch", "self.zero_grad(); x, y = batch"),
    ),
    ("lightning_manual", "lightning", set(), MANUAL),
    ("lightning_manual_undivided", "lightning", {"ACC001"}, MANUAL.replace("(loss / 4)", "(loss)")),
    ("lightning_manual_unzeroed", "lightning", {"ACC015"}, MANUAL.replace("optimizer.zero_grad()", "pass")),
    ("trainer", "transformers", set(), TRAINER),
    ("trainer_own_loss", "transformers", set(), TRAINER.replace("\nTrainer(", "\nMine(")),
    # a model that takes further arguments is trusted to divide by num_items_in_batch itself
    ("trainer_items_ignored", "transformers", {"ACC001"}, TRAINER.replace("labels):", "labels, **others):")),
    ("compiled", "torch", set(), COMPILED),
    ("compiled_undivided", "torch", {"ACC001"}, COMPILED.replace(" / 4\n", "\n")),
]


def watched(script: Path) -> Watched:
    static = lint.check([str(script)])
    with Oracle() as oracle:
        measured = oracle.watch(script, limits_of(Request(str(script)), static))
    return judge(str(script), measured, [static])


@pytest.mark.parametrize(("package", "codes", "text"), [one[1:] for one in SCRIPTS], ids=[name for name, *_ in SCRIPTS])
def test_scripts_of_frameworks(package: str, codes: set[str], text: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    script = tmp_path / "train.py"
    script.write_text(HEAD + textwrap.dedent(text))
    found = watched(script)
    assert found.measured.outcome in ("finished", "stopped"), (found.measured.error, found.measured.stderr)
    assert {one.finding.code for one in found.judged if one.verdict == "confirmed"} == codes, found.judged
    assert not codes & {one.finding.code for one in found.judged if one.verdict == "refuted"}
    if not codes:
        rows = [row for row in found.measured.relative(0, 4) if len(row) == 4]
        clips = [event.data for event in found.measured.events if event.kind == "clip"]
        limits = [min(1.0, clip["limit"] / (clip["norm"] + 1e-6)) for clip in clips] or [1.0] * len(rows)
        assert len(rows) >= 6
        for row, limit in zip(rows, limits, strict=True):
            assert list(row.values()) == pytest.approx([limit] * 4, rel=1e-4)
        # one batch of all samples gives the same gradient; some of these fetch their batches ahead
        compared = found.measured.comparison
        assert compared is not None
        assert compared.reason == ""
        assert compared.error < 1e-5


@pytest.mark.parametrize(("package", "codes", "text"), [one[1:] for one in SCRIPTS], ids=[name for name, *_ in SCRIPTS])
def test_loops_of_frameworks_on_their_own_statements(package: str, codes: set[str], text: str, tmp_path: Path) -> None:
    """`--confirm` has the installed frameworks, and refutes nothing that a run of the whole script confirms."""
    pytest.importorskip(package)
    script = tmp_path / "train.py"
    script.write_text(HEAD + textwrap.dedent(text))
    findings = lint.check([str(script)], EVERYTHING).findings
    with Confirmer() as confirmer:
        judged = confirmer.judge(str(script), findings)
    assert {one.finding.code for one in judged if one.verdict == "confirmed"} <= codes
    assert not codes & {one.finding.code for one in judged if one.verdict == "refuted"}
    if package in ("accelerate", "torch"):  # the others call the loop's statements themselves
        assert {one.finding.code for one in judged if one.verdict == "confirmed"} == codes


# --- several processes -----------------------------------------------------------------------------------------------

REPLICAS = """
import torch.distributed as dist

dist.init_process_group("gloo")
torch.manual_seed(dist.get_rank())
model = nn.parallel.DistributedDataParallel(net)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for update in range(5):
    for i in range(4):
        with model.no_sync() if i < 3 else contextlib.nullcontext():
            loss = F.mse_loss(model(torch.randn(5, 6)), torch.randn(5, 1))
            (loss / 4).backward()
    optimizer.step()
    optimizer.zero_grad()
dist.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("change", "code", "row"),
    [
        (("", ""), 0, "1-5 | 1 1 1 1"),
        (("with model.no_sync() if i < 3 else contextlib.nullcontext()", "if True"), 0, "1-5 | 1 1 1 1"),
        (("(loss / 4)", "(loss)"), 1, "1-5 | 4 4 4 4"),
    ],
)
def test_two_processes_under_torchrun(change: tuple[str, str], code: int, row: str, tmp_path: Path) -> None:
    """Each has its own data, and their mean is what is stepped: it is explained by the means of what both brought."""
    script = tmp_path / "train.py"
    script.write_text(HEAD + REPLICAS.replace(*change))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    done = subprocess.run(
        [*launch, "acclint", "probe", "--timeout", "60", "train.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == code, done.stderr
    assert done.stdout.count(row) == 1, done.stdout  # one of the two speaks
    assert done.stdout.count("20 backward calls, 5 updates; the script came to its end.") == 1
    assert ("ACC001" in done.stdout) == bool(code)
