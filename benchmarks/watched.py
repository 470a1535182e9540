"""What `acclint probe` costs: an update of 4 micro-batches under the instruments against the same one without them.

    python benchmarks/watched.py

CPU time; both run in the same kind of process (one thread, dynamo off), in turns. The ratio is that of the medians.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from acclint.probe import Limits, Oracle

ROUNDS = 3
K, UPDATES = 4, 12

TRAIN = """\
import time
import torch
import torch.nn.functional as F
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)
{model}
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for _ in range({updates}):
    began = time.process_time()
    for _ in range({k}):
        loss = F.mse_loss(model(data), torch.zeros(())) / {k}
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(time.process_time() - began, flush=True)
"""

MODELS = {
    "transformer, 6 layers of 128": """
layer = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True)
model = nn.TransformerEncoder(layer, 6)
data = torch.randn(8, 64, 128)
""",
    "MLP, 100 layers of 256": """
model = nn.Sequential(*(m for _ in range(100) for m in (nn.Linear(256, 256), nn.ReLU())))
data = torch.randn(32, 256)
""",
    "convolutions, 9 layers with BatchNorm": """
model = nn.Sequential(*(m for i in range(9) for m in (nn.Conv2d(3 if i == 0 else 32, 32, 3, padding=1),
                                                      nn.BatchNorm2d(32), nn.ReLU())))
data = torch.randn(16, 3, 32, 32)
""",
}


def seconds(output: str) -> list[float]:
    """The times of the updates, without the first two."""
    return [float(line) for line in output.split()][2:]


def main() -> None:
    plain_environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""}
    print("| model | plain | watched | ratio |\n|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder, Oracle() as oracle:
        script = Path(folder, "train.py")
        for name, model in MODELS.items():
            script.write_text(TRAIN.format(model=model, k=K, updates=UPDATES))
            plain: list[float] = []
            watched: list[float] = []
            for _ in range(ROUNDS):
                command = [sys.executable, str(script)]
                done = subprocess.run(command, env=plain_environment, capture_output=True, text=True, check=True)
                plain += seconds(done.stdout)
                watched += seconds(oracle.watch(script, Limits(timeout=120)).stdout)
            one, other = statistics.median(plain), statistics.median(watched)
            print(f"| {name} | {one * 1000:.0f} ms | {other * 1000:.0f} ms | {other / one:.2f} |", flush=True)


if __name__ == "__main__":
    main()
