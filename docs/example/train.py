import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

ACCUMULATION_STEPS = 4
EPOCHS = 3

data = TensorDataset(torch.randn(256, 16), torch.randint(0, 3, (256,)))
loader = DataLoader(data, batch_size=8, shuffle=True)
model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
scheduler = OneCycleLR(optimizer, 0.1, total_steps=len(loader) * EPOCHS)

for epoch in range(EPOCHS):
    running_loss = 0.0
    for step, (inputs, targets) in enumerate(loader):
        loss = criterion(model(inputs), targets)
        loss.backward()
        running_loss += loss
        if (step + 1) % ACCUMULATION_STEPS == 0:
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
    print(f"epoch {epoch}: loss {running_loss / len(loader):.3f}")
