"""Plain accumulation at module level: enumerate, a schedule in updates, a running loss."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
K = 4
EPOCHS = 2
BATCH = 6
dataset = TensorDataset(torch.randn(72, 5), torch.randn(72, 1))
loader = DataLoader(dataset, batch_size=BATCH)
model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))
criterion = nn.MSELoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
updates = len(loader) // K * EPOCHS
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.1, total_iters=updates)

for epoch in range(EPOCHS):
    seen = 0.0
    for i, (inputs, targets) in enumerate(loader):
        outputs = model(inputs)
        loss = criterion(outputs, targets)
        seen += loss.item()
        loss = loss / K
        loss.backward()
        if (i + 1) % K == 0:
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    print(epoch, seen / len(loader))
