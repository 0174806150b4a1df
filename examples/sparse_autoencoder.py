"""Trains a TopK sparse autoencoder (Gao et al., 2024) on activations whose features are known, with a needle projection
and with a layer of plain torch."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsegen import NeedleProjection

WIDTH, FEATURES, ACTIVE, LATENTS, BATCH, STEPS = 64, 256, 5, 512, 512, 400

torch.manual_seed(0)
features = F.normalize(torch.randn(FEATURES, WIDTH), dim=1)


def activations(count: int) -> Tensor:
    """Sums of `ACTIVE` features with random positive coefficients. Shape: (count, WIDTH)."""
    chosen = torch.rand(count, FEATURES).topk(ACTIVE).indices
    coefficients = torch.zeros(count, FEATURES).scatter(1, chosen, 0.5 + torch.rand(count, ACTIVE))
    return coefficients @ features


def plain(code: Tensor) -> Tensor:
    """The usual layer: topk and scatter."""
    values, index = code.topk(ACTIVE)
    return torch.zeros_like(code).scatter(1, index, values)


def train(project: Callable[[Tensor], Tensor]) -> tuple[float, float, float]:
    """Returns the share of unexplained variance, the share of recovered features, and the seconds."""
    torch.manual_seed(1)
    encoder, decoder = nn.Linear(WIDTH, LATENTS), nn.Linear(LATENTS, WIDTH)
    decoder.weight.data = F.normalize(encoder.weight.data.T.clone(), dim=0)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-3)
    began = time.perf_counter()
    for _ in range(STEPS):
        x = activations(BATCH)
        loss = F.mse_loss(decoder(project(encoder(x - decoder.bias).relu())), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decoder.weight.data = F.normalize(decoder.weight.data, dim=0)
    seconds = time.perf_counter() - began
    x = activations(BATCH)
    with torch.no_grad():
        missing = F.mse_loss(decoder(project(encoder(x - decoder.bias).relu())), x) / x.var()
        nearest = (features @ decoder.weight).amax(1)  # cosine of each feature with its nearest atom
    return missing.item(), (nearest > 0.9).float().mean().item(), seconds


for name, project in (("topk and scatter", plain), ("NeedleProjection", NeedleProjection(ACTIVE))):
    missing, recovered, seconds = train(project)
    print(
        f"{name}: {missing:.1%} of the variance unexplained, {recovered:.0%} of the features found, {seconds:.1f} s"
    )
