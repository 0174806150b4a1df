"""What every discriminator of the zoo is: features of an image, and a score of them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparsegen.zoo.blocks import needed, one_hot

Entry = Callable[[Tensor, Tensor | None], Tensor]


class Discriminator(nn.Module):
    """Scores images: the higher, the more real they look, and the better they fit their labels.

    Args:
        stages: From what `entry` makes to the features (B, C, H, W).
        head: From the features and the labels to scores (B,).
        entry: What is seen of an image and its label.
        turns: From the flattened features to the logits of what else is asked (SSGAN: which of four turns
            was done to the image, or whether it is generated); None if nothing is.

    Shape: image (B, 3, H, W) in [-1, 1], labels (B,) where it is conditional -> scores (B,).
    """

    def __init__(self, stages: nn.Module, head: nn.Module, entry: Entry, turns: nn.Module | None = None):
        super().__init__()
        self.stages, self.head, self.entry, self.turns = stages, head, entry, turns

    def forward(self, image: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.head(self.features(image, labels), labels)

    def features(self, image: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.stages(self.entry(image, labels))


def alone(image: Tensor, labels: Tensor | None) -> Tensor:
    """The image as it is."""
    return image


def in_unit_range(image: Tensor, labels: Tensor | None) -> Tensor:
    """The image in [0, 1]."""
    return (image + 1) / 2


def with_label_maps(classes: int) -> Entry:
    """The image, and for each class a map that is 1 everywhere if it is the label's (Mirza & Osindero, 2014)."""

    def entry(image: Tensor, labels: Tensor | None) -> Tensor:
        maps = one_hot(needed(labels), classes, image.dtype)[:, :, None, None].expand(
            -1, -1, *image.shape[2:]
        )
        return torch.cat([image, maps], 1)

    return entry
