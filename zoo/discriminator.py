"""The discriminator of all architectures: features of an image and a score of them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparsegen.zoo.blocks import needed, one_hot

Preprocess = Callable[[Tensor, Tensor | None], Tensor]


class Discriminator(nn.Module):
    """Scores images. A higher score means more realistic and a better fit to the label.

    Args:
        stages: From the output of `preprocess` to features (B, C, H, W).
        head: From the features and the labels to scores (B,).
        preprocess: From image and label to the input of the first stage.
        rotation_head: From the flattened features to logits (B, 5) of the rotation, a multiple of 90 degrees, or of
            a generated image (SSGAN); None in the other architectures.

    Shape: image (B, 3, H, W) in [-1, 1], labels (B,) if conditional -> scores (B,).
    """

    def __init__(
        self,
        stages: nn.Module,
        head: nn.Module,
        preprocess: Preprocess,
        rotation_head: nn.Module | None = None,
    ):
        super().__init__()
        self.stages, self.head, self.preprocess = stages, head, preprocess
        self.turns = rotation_head  # published weights have it under this key

    def forward(self, image: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.head(self.features(image, labels), labels)

    def rotation_logits(self, image: Tensor, labels: Tensor | None = None) -> Tensor:
        """Shape: image (B, 3, H, W) -> (B, 5). Raises: ValueError without a rotation head."""
        if self.turns is None:
            raise ValueError("this discriminator has no rotation head")
        return self.turns(self.features(image, labels))

    def features(self, image: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.stages(self.preprocess(image, labels))


def identity(image: Tensor, labels: Tensor | None) -> Tensor:
    """Returns the image unchanged."""
    return image


def in_unit_range(image: Tensor, labels: Tensor | None) -> Tensor:
    """Maps an image from [-1, 1] to [0, 1]."""
    return (image + 1) / 2


def with_label_maps(classes: int) -> Preprocess:
    """Appends one map per class to the image: 1 for the class of the label, else 0 (Mirza & Osindero, 2014)."""

    def preprocess(image: Tensor, labels: Tensor | None) -> Tensor:
        maps = one_hot(needed(labels), classes, image.dtype)[:, :, None, None].expand(
            -1, -1, *image.shape[2:]
        )
        return torch.cat([image, maps], 1)

    return preprocess
