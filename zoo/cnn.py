"""The plain convolutional networks: a generator and a discriminator, each defined by its layers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sparsegen.zoo.blocks import (
    BatchNorm,
    Conv,
    ConvScore,
    Dense,
    Down,
    Init,
    Norm,
    Stage,
    Up,
    doublings,
    needed,
    no_norm,
    normal_init,
    one_hot,
    unconstrained,
)
from sparsegen.zoo.discriminator import Discriminator, identity, with_label_maps
from sparsegen.zoo.generator import Generator

WIDEST = 8  # maximum channels of an additional layer, as a multiple of the atoms


class Coder(nn.Module):
    """G^S: maps noise, concatenated with the one-hot label, to Γ_L.

    Shape: z (B, z_dim), labels (B,) or None -> Γ_L (B, C, H, W) before its projection, and None: it has no bypass.
    """

    bypasses = False

    def __init__(self, stages: Sequence[Stage], classes: int):
        super().__init__()
        self.stages, self.classes = nn.Sequential(*stages), classes

    def forward(self, z: Tensor, labels: Tensor | None) -> tuple[Tensor, None]:
        if self.classes:
            z = torch.cat([z, one_hot(needed(labels), self.classes, z.dtype)], 1)
        return self.stages(z[:, :, None, None]), None


@dataclass(frozen=True)
class GeneratorBody:
    """Conv-norm-ReLU layers, and the output dictionary with its tanh.

    The outputs of the last layers are the codes; Γ1 is that of the last layer. The layers up to the deepest code are
    the coder.

    Args:
        layers: The layers for images of 32 x 32. For each doubling of the size, one more layer that doubles the side
            follows the first, whose channels are doubled up to `WIDEST` times the atoms (Radford et al., 2015).
    """

    layers: Sequence[Conv | Dense]
    output: Conv
    bias: bool = False

    def layers_for(self, image_size: int) -> list[Conv | Dense]:
        """Returns the layers for images of this side."""
        first, *others = self.layers
        for _ in range(doublings(image_size)):
            others.insert(0, Up(first.width))
            first = replace(first, width=max(first.width, min(2 * first.width, WIDEST)))
        return [first, *others]

    def code_shapes(self, atoms: int, image_size: int) -> list[tuple[int, int, int]]:
        """Returns (C, H, W) of the output of each layer, the last first."""
        shapes, side = [], 1
        for layer in self.layers_for(image_size):
            side = layer.side(side)
            shapes.append((layer.width * atoms, side, side))
        return shapes[::-1]

    def build(
        self, atoms: int, z_dim: int, classes: int, image_size: int, projections: Sequence[nn.Module]
    ) -> Generator:
        """Builds the generator, with as many codes as there are projections."""
        stages, channels = [], z_dim + classes
        for layer in self.layers_for(image_size):
            width = layer.width * atoms
            stages.append(Stage(layer.build(channels, width, self.bias), BatchNorm(width), nn.ReLU()))
            channels = width
        image = Stage(self.output.build(channels, 3, bias=True), nn.Identity(), nn.Tanh())
        first = len(stages) - len(projections) + 1
        built = Generator(
            Coder(stages[:first], classes),
            [image, *reversed(stages[first:])],
            projections,
            self.code_shapes(atoms, image_size)[: len(projections)],
            z_dim,
            classes,
        )
        normal_init(built)
        return built


def discriminator(
    layers: Sequence[Conv],
    head: Conv,
    *,
    atoms: int,
    classes: int,
    image_size: int,
    norm: Norm = no_norm,
    bias: bool = True,
    slope: float = 0.2,
    constrain: Init = unconstrained,
) -> Discriminator:
    """Builds convolutions with leaky ReLUs, then one score; no norm on the first layer (Radford et al., 2015).

    Args:
        layers: The layers for images of 32 x 32. For each doubling of the size, one more that halves the side follows.
        bias: Whether layers with a norm have a bias; layers without a norm have one.
        constrain: Called after the initialization, e.g. `apply_spectral_norm`.
    """
    layers = list(layers)
    for _ in range(doublings(image_size)):
        layers.append(Down(max(layers[-1].width, min(2 * layers[-1].width, WIDEST))))
    stages, channels = [], 3 + classes
    for index, layer in enumerate(layers):
        width = layer.width * atoms
        after = norm(width) if index else no_norm(width)
        conv = layer.build(channels, width, bias=bias or isinstance(after, nn.Identity))
        stages.append(Stage(conv, after, nn.LeakyReLU(slope)))
        channels = width
    preprocess = with_label_maps(classes) if classes else identity
    built = Discriminator(nn.Sequential(*stages), ConvScore(head.build(channels, 1, bias=True)), preprocess)
    normal_init(built)
    constrain(built)
    return built
