"""Scripts in styles that the fixtures do not have, with long loaders; written after the readings that judge them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from acclint import lint
from acclint.probe import Oracle
from acclint.probe.confirm import Confirmer
from acclint.probe.readings import CHECKS, read
from acclint.probe.verdict import contributions
from acclint.probe.watch import Request, judge, limits_of

HEAD = """\
import math
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

torch.manual_seed(1)
"""
DATA = """\
N = 8000
data = TensorDataset(torch.randn(N, 5), torch.randint(0, 3, (N,)))
loader = DataLoader(data, batch_size=4, shuffle=True)
model = nn.Sequential(nn.Linear(5, 16), nn.GELU(), nn.Linear(16, 3))
"""

# (name, codes that are confirmed, text)
STYLES = [
    (
        "long_loader_right_with_schedule",
        set(),
        DATA.replace("8000", "8003")
        + """
opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
k, epochs = 5, 2
sched = torch.optim.lr_scheduler.OneCycleLR(opt, 1e-2, total_steps=epochs * math.ceil(len(loader) / k))
for epoch in range(epochs):
    for i, (x, y) in enumerate(loader):
        left = len(loader) % k
        size = left if left and i >= len(loader) - left else k
        (F.cross_entropy(model(x), y) / size).backward()
        if (i + 1) % k == 0 or i + 1 == len(loader):
            opt.step(); sched.step(); opt.zero_grad()
""",
    ),
    (
        "schedule_sized_by_the_data_set",
        set(),
        DATA
        + """
opt = torch.optim.SGD(model.parameters(), lr=0.1)
total = 1 * (len(data) // 4 // 4)
sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=total)
for i, (x, y) in enumerate(loader):
    (F.cross_entropy(model(x), y) / 4).backward()
    if i % 4 == 3:
        opt.step(); sched.step(); opt.zero_grad()
""",
    ),
    (
        "long_loader_not_divided",
        {"ACC001"},
        DATA
        + """
opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for epoch in range(100):
    for i, (x, y) in enumerate(loader, 1):
        F.cross_entropy(model(x), y).backward()
        if not i % 6:
            opt.step()
            opt.zero_grad(set_to_none=False)
""",
    ),
    (
        "schedule_sized_in_micro_batches",
        {"ACC004"},
        DATA
        + """
opt = torch.optim.SGD(model.parameters(), lr=0.1)
sched = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.0, total_iters=3 * len(loader))
for epoch in range(3):
    for i, (x, y) in enumerate(loader):
        (F.cross_entropy(model(x), y) / 4).backward()
        if i % 4 == 3:
            opt.step(); sched.step(); opt.zero_grad()
""",
    ),
    (
        "get_batch_right",
        set(),
        """
def get_batch():
    x = torch.randn(8, 5)
    return x, x.sum(1)
model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 1))
opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
it = 0
x, y = get_batch()
while True:
    for micro in range(3):
        loss = F.mse_loss(model(x).squeeze(1), y) / 3
        x, y = get_batch()
        loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    opt.step()
    opt.zero_grad(set_to_none=True)
    it += 1
    if it > 500:
        break
""",
    ),
    (
        "autocast_bfloat16_right",
        set(),
        DATA
        + """
opt = torch.optim.SGD(model.parameters(), lr=0.05)
scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=256.0)
for i, (x, y) in enumerate(loader):
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(model(x), y) / 4
    scaler.scale(loss).backward()
    if i % 4 == 3:
        scaler.unscale_(opt)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
""",
    ),
    (
        "adversarial_pair_right",
        set(),
        """
G, D = nn.Linear(3, 5), nn.Sequential(nn.Linear(5, 8), nn.LeakyReLU(), nn.Linear(8, 1))
og, od = torch.optim.Adam(G.parameters(), 1e-3), torch.optim.Adam(D.parameters(), 1e-3)
bce = nn.BCEWithLogitsLoss()
for step in range(12):
    od.zero_grad()
    for _ in range(2):
        real, fake = torch.randn(4, 5), G(torch.randn(4, 3))
        (bce(D(real), torch.ones(4, 1)) / 2).backward()
        (bce(D(fake.detach()), torch.zeros(4, 1)) / 2).backward()
    od.step()
    og.zero_grad()
    for _ in range(2):
        (bce(D(G(torch.randn(4, 3))), torch.ones(4, 1)) / 2).backward()
    og.step()
""",
    ),
    (
        "stream_right",
        set(),
        """
class Stream(IterableDataset):
    def __iter__(self):
        while True:
            x = torch.randn(5)
            yield x, x.sum()
model = nn.Linear(5, 1)
opt = torch.optim.RMSprop(model.parameters(), lr=1e-3)
pending = 0
for x, y in DataLoader(Stream(), batch_size=2):
    F.l1_loss(model(x).squeeze(1), y).div(8).backward()
    pending += 1
    if pending == 8:
        opt.step(); opt.zero_grad(); pending = 0
""",
    ),
    (
        "lbfgs_closure_right",
        set(),
        """
xs = [torch.randn(6, 3) for _ in range(4)]
model = nn.Linear(3, 1)
opt = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
def closure():
    opt.zero_grad()
    total = 0.0
    for x in xs:
        loss = (model(x) - x.prod(1, keepdim=True)).square().mean() / len(xs)
        loss.backward()
        total += loss.item()
    return total
for _ in range(5):
    opt.step(closure)
""",
    ),
    (
        "closure_that_only_reports",
        set(),
        DATA
        + """
opt = torch.optim.SGD(model.parameters(), lr=0.1)
losses = []
for i, (x, y) in enumerate(loader):
    loss = F.cross_entropy(model(x), y)
    (loss / 4).backward()
    losses.append(loss.item())
    if i % 4 == 3:
        opt.step(lambda: sum(losses[-4:]) / 4)
        opt.zero_grad()
""",
    ),
    (
        "closure_runs_the_last_backward_and_clips",
        set(),
        DATA
        + """
opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
for i, batch in enumerate(loader):
    def closure():
        x, y = batch
        if i % 4 == 0:
            opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        (loss / 4).backward()
        if i % 4 == 3:
            nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        return loss
    if i % 4 == 3:
        opt.step(closure)
    else:
        closure()
""",
    ),
    (
        "closures_and_old_gradients",
        {"ACC015"},
        DATA
        + """
opt = torch.optim.SGD(model.parameters(), lr=1e-3)
for i, batch in enumerate(loader):
    def closure():
        x, y = batch
        loss = F.cross_entropy(model(x), y)
        (loss / 4).backward()
        return loss
    if i % 4 == 3:
        opt.step(closure)
    else:
        closure()
""",
    ),
    (
        "clipped_and_not_divided",
        {"ACC001"},
        DATA
        + """
opt = torch.optim.SGD(model.parameters(), lr=0.1)
for i, (x, y) in enumerate(loader):
    F.cross_entropy(model(x), y).backward()
    if i % 4 == 3:
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        opt.step(); opt.zero_grad()
""",
    ),
    (
        "trainer_object_zeroes_too_soon",
        {"ACC002"},
        DATA
        + """
class Trainer:
    def __init__(self, net, every):
        self.net, self.every, self.n = net, every, 0
        self.optim = torch.optim.SGD(net.parameters(), lr=0.1)
    def micro(self, batch):
        self.net.zero_grad()
        x, y = batch
        (F.cross_entropy(self.net(x), y) / self.every).backward()
        self.n += 1
        if self.n % self.every == 0:
            self.optim.step()
trainer = Trainer(model, 4)
for epoch in range(3):
    for batch in loader:
        trainer.micro(batch)
""",
    ),
    (
        "losses_kept_for_the_log",
        {"ACC005"},
        DATA
        + """
opt = torch.optim.SGD(model.parameters(), lr=0.1)
history = []
for i, (x, y) in enumerate(loader):
    loss = F.cross_entropy(model(x), y) / 4
    loss.backward()
    history.append(loss)
    if i % 4 == 3:
        opt.step(); opt.zero_grad()
""",
    ),
    (
        "conv_with_batch_norm_of_two",
        {"ACC003"},
        """
net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
images = DataLoader(TensorDataset(torch.randn(96, 1, 8, 8), torch.randint(0, 2, (96,))), batch_size=2, drop_last=True)
opt = torch.optim.SGD(net.parameters(), lr=0.01)
for epoch in range(2):
    for i, (x, y) in enumerate(images):
        (F.cross_entropy(net(x), y) / 8).backward()
        if (i + 1) % 8 == 0:
            opt.step(); opt.zero_grad()
""",
    ),
    (
        "rest_leaks_into_the_next_epoch",
        {"ACC007"},
        DATA.replace("8000", "8003")
        + """
opt = torch.optim.SGD(model.parameters(), lr=0.1)
k = 4
for epoch in range(9):
    for i, (x, y) in enumerate(loader):
        (F.cross_entropy(model(x), y) / k).backward()
        if (i + 1) % k == 0:
            opt.step(); opt.zero_grad()
""",
    ),
    (
        "stateful_queue_right",
        set(),
        DATA
        + """
k = 4
net = nn.Linear(5, 16)
queue = F.normalize(torch.randn(64, 16))
opt = torch.optim.SGD(net.parameters(), lr=0.05)
for i, (x, _) in enumerate(loader):
    q = F.normalize(net(x))
    with torch.no_grad(): key = F.normalize(net(x + 0.1))
    logits = torch.cat([(q * key).sum(1, keepdim=True), q @ queue.T], 1) / 0.2
    (F.cross_entropy(logits, torch.zeros(len(x), dtype=torch.long)) / k).backward()
    queue = torch.cat([key, queue])[:64]
    if (i + 1) % k == 0:
        opt.step(); opt.zero_grad()
""",
    ),
    (
        "stochastic_depth_right",
        set(),
        DATA
        + """
k = 4
class Block(nn.Module):
    def __init__(self): super().__init__(); self.f = nn.Linear(5, 5)
    def forward(self, x):
        keep = (torch.rand(len(x), 1) < 0.7).float()
        return x + self.f(x).tanh() * keep / 0.7
net = nn.Sequential(Block(), Block(), nn.Linear(5, 3))
opt = torch.optim.AdamW(net.parameters(), lr=1e-3)
for i, (x, y) in enumerate(loader):
    (F.cross_entropy(net(x), y) / k).backward()
    if (i + 1) % k == 0:
        nn.utils.clip_grad_norm_(net.parameters(), 1.0); opt.step(); opt.zero_grad()
""",
    ),
    (
        "two_loaders_right",
        set(),
        DATA
        + """
k = 4
other = DataLoader(TensorDataset(torch.randn(N, 5)), batch_size=8)
net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))
opt = torch.optim.SGD(net.parameters(), lr=0.1)
for i, ((x, y), (u,)) in enumerate(zip(loader, other)):
    loss = F.cross_entropy(net(x), y) + 0.5 * (net(u).softmax(1) ** 2).sum(1).mean()
    (loss / k).backward()
    if (i + 1) % k == 0:
        opt.step(); opt.zero_grad()
""",
    ),
    (
        "statistics_kept_by_hand_right",
        set(),
        DATA
        + """
k = 4
class Obs(nn.Module):
    def __init__(self): super().__init__(); self.register_buffer("m", torch.ones(1))
    def forward(self, x):
        if self.training: self.m.mul_(0.9).add_(0.1 * x.detach().abs().max())
        return x / self.m
net = nn.Sequential(nn.Linear(5, 16), Obs(), nn.ReLU(), nn.Linear(16, 3))
opt = torch.optim.SGD(net.parameters(), lr=0.1)
for i, (x, y) in enumerate(loader):
    (F.cross_entropy(net(x), y) / k).backward()
    if (i + 1) % k == 0:
        opt.step(); opt.zero_grad()
""",
    ),
    (
        "two_players_right",
        set(),
        DATA
        + """
k = 4
G, D = nn.Linear(4, 5), nn.Sequential(nn.Linear(5, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
og, od = torch.optim.Adam(G.parameters(), 1e-3), torch.optim.Adam(D.parameters(), 1e-3)
bce = F.binary_cross_entropy_with_logits
for i, (x, _) in enumerate(loader):
    fake = G(torch.randn(len(x), 4))
    ld = bce(D(x), torch.ones(len(x), 1)) + bce(D(fake.detach()), torch.zeros(len(x), 1))
    (ld / k).backward()
    if (i + 1) % k == 0:
        od.step(); od.zero_grad()
    D.requires_grad_(False)
    (bce(D(fake), torch.ones(len(x), 1)) / k).backward()
    D.requires_grad_(True)
    if (i + 1) % k == 0:
        og.step(); og.zero_grad()
""",
    ),
    (
        "scaler_and_clipping_right",
        set(),
        DATA
        + """
k = 4
net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))
opt = torch.optim.SGD(net.parameters(), lr=0.1)
scaler = torch.amp.GradScaler("cpu")
for i, (x, y) in enumerate(loader):
    scaler.scale(F.cross_entropy(net(x), y) / k).backward()
    if (i + 1) % k == 0:
        scaler.unscale_(opt)
        nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        scaler.step(opt); scaler.update(); opt.zero_grad()
""",
    ),
    (
        "supervised_contrastive",
        {"ACC017"},
        DATA
        + """
k = 4
class T:
    def __init__(self):
        self.net = nn.Linear(5, 8); self.opt = torch.optim.SGD(self.net.parameters(), lr=0.1)
    def loss(self, z, y):
        s = z @ z.T / 0.5; s = s - torch.eye(len(z)) * 1e9
        m = (y[:, None] == y[None]).float() * (1 - torch.eye(len(z)))
        return -((m * s.log_softmax(1)).sum(1) / m.sum(1).clamp(min=1)).mean()
    def fit(self):
        for i, (x, y) in enumerate(loader):
            l = self.loss(F.normalize(self.net(x)), y)
            (l / k).backward()
            if (i + 1) % k == 0: self.opt.step(); self.opt.zero_grad()
T().fit()
""",
    ),
]


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with Oracle() as one:
        yield one


@pytest.mark.parametrize(("name", "codes", "text"), STYLES, ids=[name for name, _, _ in STYLES])
def test_styles_are_judged_right(name: str, codes: set[str], text: str, oracle: Oracle, tmp_path: Path) -> None:
    script = tmp_path / f"{name}.py"
    script.write_text(HEAD + textwrap.dedent(text))
    static = lint.check([str(script)])
    measured = oracle.watch(script, limits_of(Request(str(script)), static))
    assert measured.outcome in ("finished", "stopped"), (measured.error, measured.stderr)
    assert measured.seconds < 20
    found = judge(str(script), measured, [static])
    assert {one.finding.code for one in found.judged if one.verdict == "confirmed"} == codes, found.judged
    assert not codes & {one.finding.code for one in found.judged if one.verdict == "refuted"}


# Whole scripts: an engine with events, functional calls, recursion, generators, mixins, decorators, exit stacks.
SCRIPTS = sorted((Path(__file__).parent / "styles").glob("*.py"))


def expected(script: Path) -> set[str]:
    """The code that a script's name begins with, none for `right_...`."""
    code = script.stem.partition("_")[0].upper()
    return {code} if code.startswith("ACC") else set()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_are_judged_right(script: Path, oracle: Oracle) -> None:
    static = lint.check([str(script)])
    measured = oracle.watch(script, limits_of(Request(str(script)), static))
    assert measured.outcome == "finished", (measured.error, measured.stderr)
    found = judge(str(script), measured, [static])
    assert {one.finding.code for one in found.judged if one.verdict == "confirmed"} == expected(script), found.judged
    assert all(one.verdict != "refuted" for one in found.judged), found.judged


@pytest.mark.parametrize("script", [one for one in SCRIPTS if not expected(one)], ids=lambda path: path.stem)
def test_right_scripts_show_no_defect(script: Path, oracle: Oracle) -> None:
    """Whatever rule asks: none of its numbers is there, and each contribution is 1."""
    measured = oracle.watch(script, limits_of(Request(str(script)), lint.check([str(script)])))
    owners = range(len(measured.optimizers))
    assert not [code for code in CHECKS if read(code, measured, owners).shown]
    cells = [value for one in contributions(measured, owners) for row in one["updates"] for value in row]
    assert cells and cells == pytest.approx([1.0] * len(cells), rel=1e-3)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_are_confirmed_right(script: Path) -> None:
    """Found in the source, and confirmed by the loop's own statements."""
    findings = lint.check([str(script)]).findings
    assert {one.code for one in findings} == expected(script)
    with Confirmer() as confirmer:
        assert all(one.verdict == "confirmed" for one in confirmer.judge(str(script), findings))


def test_a_first_window_of_one_is_told_without_a_finding(oracle: Oracle, tmp_path: Path) -> None:
    script = tmp_path / "resumed.py"
    text = """\
        k, opt = 4, torch.optim.SGD(model.parameters(), lr=0.1)
        flags = open(__file__ + ".flags").read().split() if Path(__file__ + ".flags").exists() else ["1", "0", "0", "0"]
        for i, (x, y) in enumerate(loader):
            (F.cross_entropy(model(x), y) / k).backward()
            if flags[i % k] == "1":
                opt.step()
                opt.zero_grad()
    """
    script.write_text(HEAD + "from pathlib import Path\n" + DATA + textwrap.dedent(text))
    static = lint.check([str(script)])
    assert not static.findings
    found = judge(str(script), oracle.watch(script, limits_of(Request(str(script)), static)), [static])
    (told,) = found.judged
    assert (told.finding.code, told.verdict, told.predicted) == ("ACC006", "confirmed", False)
