"""The plain convolutional body: a generator and a discriminator, parametrized by rows of layers."""

from collections.abc import Sequence

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


def generator(
    layers: Sequence[Conv | Dense],
    output: Conv,
    *,
    atoms: int,
    z_dim: int,
    classes: int,
    projections: Sequence[nn.Module],
    bias: bool = False,
) -> Generator:
    """Builds conv-norm-ReLU layers and the output dictionary with its tanh into a generator.

    The outputs of the last `len(projections)` layers are Γ_L … Γ1; what lies before is the coder.
    """
    stages, shapes, channels, side = [], [], z_dim + classes, 1
    for layer in layers:
        width = layer.width * atoms
        stages.append(Stage(layer.build(channels, width, bias), BatchNorm(width), nn.ReLU()))
        channels, side = width, layer.side(side)
        shapes.append((channels, side, side))
    image = Stage(output.build(channels, 3, bias=True), nn.Identity(), nn.Tanh())
    first = len(layers) - len(projections) + 1
    built = Generator(
        Coder(stages[:first], classes),
        [image, *reversed(stages[first:])],
        projections,
        list(reversed(shapes[first - 1 :])),
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
