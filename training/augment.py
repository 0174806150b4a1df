"""Differentiable augmentations of the discriminator's input (DiffAugment, Zhao et al., 2020).

Each image has its own random numbers. An augmentation draws them with `draw_rows`, so that they do not depend on the
number of processes.

Shape: images (B, C, H, W) in [-1, 1] -> the same.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsegen.training.processes import draw_rows

Augment = Callable[[Tensor, torch.Generator], Tensor]


def nothing(images: Tensor, random: torch.Generator) -> Tensor:
    """Returns the images unchanged."""
    return images


def flip(images: Tensor, random: torch.Generator) -> Tensor:
    """Mirrors each image with probability 1/2."""
    mirrored = _uniform(images, random) < 0.5
    return torch.where(mirrored, images.flip(3), images)


def translate(images: Tensor, random: torch.Generator) -> Tensor:
    """Shifts each image by whole pixels, up to an eighth of the side in each direction, and pads with 0."""
    height, width = images.shape[2:]
    rows = _source_rows(height, _integers(images, random, -round(height / 8), round(height / 8)))
    columns = _source_rows(width, _integers(images, random, -round(width / 8), round(width / 8)))
    # A border of one 0 on each side; all positions outside the image are read from it.
    padded = F.pad(images, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    index = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cutout(images: Tensor, random: torch.Generator) -> Tensor:
    """Zeroes a square of half the side around a random center; parts outside the image are cut off."""
    height, width = images.shape[2:]
    inside = []
    for side in (height, width):
        size = round(side / 2)
        first = _integers(images, random, 0, side - size % 2) - size // 2
        position = torch.arange(side, device=images.device)
        inside.append((position >= first[:, None]) & (position < first[:, None] + size))
    rows, columns = inside
    return images * ~(rows[:, None, :, None] & columns[:, None, None, :])


@dataclass(frozen=True)
class Color:
    """Adds up to ±0.5 to the brightness, then multiplies the saturation by 0 to 2 and the contrast by 0.5 to 1.5.

    `strength` scales the three ranges.
    """

    strength: float = 1.0

    def __call__(self, images: Tensor, random: torch.Generator) -> Tensor:
        images = images + self._around(0, 0.5, images, random)
        gray = images.mean(1, keepdim=True)
        images = gray + (images - gray) * self._around(1, 1, images, random)
        mean = images.mean((1, 2, 3), keepdim=True)
        return mean + (images - mean) * self._around(1, 0.5, images, random)

    def _around(self, center: float, reach: float, images: Tensor, random: torch.Generator) -> Tensor:
        return center + self.strength * reach * (2 * _uniform(images, random) - 1)


def chain(*parts: Augment) -> Augment:
    """Returns an augmentation that applies several in order."""

    def augment(images: Tensor, random: torch.Generator) -> Tensor:
        for part in parts:
            images = part(images, random)
        return images

    return augment


def _uniform(images: Tensor, random: torch.Generator) -> Tensor:
    """Draws a number in [0, 1) for each image. Shape: (B, 1, 1, 1)."""
    return draw_rows(lambda count: torch.rand(count, 1, 1, 1, generator=random), images, random).to(
        images.dtype
    )


def _integers(images: Tensor, random: torch.Generator, low: int, high: int) -> Tensor:
    """Draws an integer from `low` to `high` for each image. Shape: (B,)."""
    return draw_rows(lambda count: torch.randint(low, high + 1, (count,), generator=random), images, random)


def _source_rows(side: int, shift: Tensor) -> Tensor:
    """Returns the row of the image padded by 1 that each row of the shifted image is read from. Shape: (B, side)."""
    return (torch.arange(side, device=shift.device) - shift[:, None]).clamp(-1, side) + 1
