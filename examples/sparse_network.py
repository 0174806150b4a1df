"""Trains an own network with a needle projection for a few steps, and changes k after training."""

import torch
from torch import nn
from torch.nn import functional as F

from sparsegen import NeedleProjection

torch.manual_seed(0)
projection = NeedleProjection(k=4)  # 4 of 32 channels per pixel
autoencoder = nn.Sequential(
    nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), projection, nn.ConvTranspose2d(32, 1, 5, padding=2)
)
optimizer = torch.optim.Adam(autoencoder.parameters(), lr=3e-3)


def stripes(count: int) -> torch.Tensor:
    """Images of horizontal waves with random frequency and phase. Shape: (count, 1, 16, 16), values in [-1, 1]."""
    frequency, phase = torch.rand(2, count, 1, 1, 1) * torch.tensor([2.0, 6.3]).view(2, 1, 1, 1, 1)
    rows = torch.arange(16.0).view(1, 1, 16, 1)
    return torch.sin(frequency * rows + phase).expand(-1, -1, -1, 16)


for step in range(301):
    images = stripes(32)
    loss = F.mse_loss(autoencoder(images), images)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        print(f"step {step}: mean squared error {loss.item():.4f}")

test = stripes(64)
for projection.k in (1, 2, 4, 8):
    with torch.no_grad():
        print(f"k = {projection.k}: mean squared error {F.mse_loss(autoencoder(test), test).item():.4f}")
