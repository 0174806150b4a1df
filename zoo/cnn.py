"""The plain convolutional body: a generator and a discriminator, parametrized by rows of layers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsegen.zoo.blocks import (
    BatchNorm,
    Conv,
    ConvScore,
    Dense,
    Init,
    Norm,
    Stage,
    no_norm,
    normal_init,
    one_hot,
    unconstrained,
)
from sparsegen.zoo.discriminator import Discriminator, alone, with_label_maps
from sparsegen.zoo.generator import Generator


class Coder(nn.Module):
    """G^S: noise, with the label beside it as a one-hot vector, taken as a 1 x 1 map, to Γ_L.

    Shape: z (B, z_dim), labels (B,) or None -> Γ_L (B, C, H, W), before its projection; and None, since
    nothing goes around Γ_L.
    """

    bypasses = False

    def __init__(self, stages: Sequence[Stage], classes: int):
        super().__init__()
        self.stages, self.classes = nn.Sequential(*stages), classes

    def forward(self, z: Tensor, labels: Tensor | None) -> tuple[Tensor, None]:
        if self.classes:
            z = torch.cat([z, one_hot(labels, self.classes, z.dtype)], 1)
        return self.stages(z[:, :, None, None]), None


@dataclass(frozen=True)
class GeneratorBody:
    """Conv-norm-ReLU layers, and the output dictionary with its tanh.

    The outputs of the last layers are the codes, Γ1 that of the last; what lies before the deepest projected one is
    the coder.
    """

    layers: Sequence[Conv | Dense]
    output: Conv
    bias: bool = False

    def code_shapes(self, atoms: int) -> list[tuple[int, int, int]]:
        """Returns (C, H, W) of the output of each layer, the last first."""
        shapes, side = [], 1
        for layer in self.layers:
            side = layer.side(side)
            shapes.append((layer.width * atoms, side, side))
        return shapes[::-1]

    def build(self, atoms: int, z_dim: int, classes: int, projections: Sequence[nn.Module]) -> Generator:
        """Builds the generator, with as many codes as there are projections."""
        stages, channels = [], z_dim + classes
        for layer in self.layers:
            width = layer.width * atoms
            stages.append(Stage(layer.build(channels, width, self.bias), BatchNorm(width), nn.ReLU()))
            channels = width
        image = Stage(self.output.build(channels, 3, bias=True), nn.Identity(), nn.Tanh())
        first = len(stages) - len(projections) + 1
        built = Generator(
            Coder(stages[:first], classes),
            [image, *reversed(stages[first:])],
            projections,
            self.code_shapes(atoms)[: len(projections)],
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
    norm: Norm = no_norm,
    bias: bool = True,
    slope: float = 0.2,
    constrain: Init = unconstrained,
) -> Discriminator:
    """Builds convolutions with leaky ReLUs, then one score; no norm on the first layer (Radford et al., 2015).

    Args:
        bias: Of layers that have a norm; the others have one anyway.
        constrain: Called once the weights are drawn, as `normalize_spectrum`.
    """
    stages, channels = [], 3 + classes
    for index, layer in enumerate(layers):
        width = layer.width * atoms
        after = norm(width) if index else no_norm(width)
        conv = layer.build(channels, width, bias=bias or isinstance(after, nn.Identity))
        stages.append(Stage(conv, after, nn.LeakyReLU(slope)))
        channels = width
    entry = with_label_maps(classes) if classes else alone
    built = Discriminator(nn.Sequential(*stages), ConvScore(head.build(channels, 1, bias=True)), entry)
    normal_init(built)
    constrain(built)
    return built
