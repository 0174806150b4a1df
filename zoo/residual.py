"""The residual networks: a generator, a discriminator and an encoder.

Choice: the paper does not say where the codes of a residual generator are. Here Γ1 is the input of the last
convolution, after the last norm and ReLU. Γ2 is the input of the second convolution of the last block, after its
norm and ReLU, so that this convolution is D2. The output of the block's shortcut is the bypass of Γ2. The input of the
last block would be an alternative, but a (conditional) norm and two convolutions separate it from Γ1, so that Γ1 would
not be the product of that code and one dictionary.

    Γ1 = ReLU(norm(D2 Γ2 + bypass)),   image = tanh(D1 Γ1)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsegen.zoo.blocks import (
    BatchNorm,
    ConditionalBatchNorm,
    DenseMap,
    DownBlock,
    Init,
    Norm,
    Score,
    Stage,
    UpBlock,
    UpCode,
    average_pool,
    doublings,
    unconstrained,
)
from sparsegen.zoo.discriminator import Discriminator, Preprocess, identity
from sparsegen.zoo.generator import Generator

SIDE = 4  # of the smallest map
ATTENTION_SIDE = 16  # of the map with attention


class Coder(nn.Module):
    """G^S: maps noise to Γ2 by a dense layer and residual blocks.

    Shape: z (B, z_dim), labels (B,) or None -> Γ2 (B, C, H, W), before its projection, and the bypass.
    """

    bypasses = True

    def __init__(
        self, dense: DenseMap, blocks: Sequence[nn.Module], last: UpCode, prior: Callable[[Tensor], Tensor]
    ):
        super().__init__()
        self.dense, self.blocks, self.last, self.prior = dense, nn.ModuleList(blocks), last, prior

    def forward(self, z: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        features = self.dense(self.prior(z))
        for block in self.blocks:
            features = block(features, labels)
        return self.last(features, labels)


def normal_prior(z: Tensor) -> Tensor:
    """Returns z unchanged."""
    return z


def uniform_prior(z: Tensor) -> Tensor:
    """Maps a normal z to a uniform one in [-1, 1]: 2 Φ(z) - 1, so that z is normal in every interface."""
    return torch.erf(z / 2**0.5)


@dataclass(frozen=True)
class GeneratorBody:
    """A dense layer, residual blocks, a norm and the output dictionary.

    With classes, the norms in the blocks are `ConditionalBatchNorm`s; the last norm is plain.

    Args:
        constrain: Called after `init`, e.g. `apply_spectral_norm`.
        widths: Input channels of each block as multiples of the atoms, for images of 32 x 32. For each doubling of the
            size, one more block with the width of the first is put first. The last block has `atoms` output channels.
        attention: Builds an attention layer from a number of channels; it is applied at 16 x 16.
        output_activation: Builds the activation that maps the sum of atoms to the image.
    """

    init: Init
    constrain: Init = unconstrained
    widths: Sequence[int] = (1, 1, 1)
    attention: Callable[[int], nn.Module] | None = None
    output_activation: Callable[[], nn.Module] = nn.Tanh
    prior: Callable[[Tensor], Tensor] = normal_prior

    def code_shapes(self, atoms: int, image_size: int) -> list[tuple[int, int, int]]:
        """Returns (C, H, W) of Γ1 and Γ2."""
        return [(atoms, image_size, image_size)] * 2

    def build(
        self, atoms: int, z_dim: int, classes: int, image_size: int, projections: Sequence[nn.Module]
    ) -> Generator:
        """Builds the generator; it has two codes."""
        norm: Norm = partial(ConditionalBatchNorm, classes=classes) if classes else BatchNorm
        widths = (*[self.widths[0]] * doublings(image_size), *self.widths)
        channels = [width * atoms for width in widths]
        blocks: list[nn.Module] = [
            UpBlock(inputs, outputs, norm) for inputs, outputs in zip(channels, channels[1:], strict=False)
        ]
        if self.attention:
            before = _halvings(ATTENTION_SIDE, SIDE)
            blocks.insert(before, self.attention(channels[before]))
        dense = DenseMap(z_dim, channels[0], SIDE)
        coder = Coder(dense, blocks, UpCode(channels[-1], atoms, norm), self.prior)
        second = Stage(nn.Conv2d(atoms, atoms, 3, padding=1), BatchNorm(atoms), nn.ReLU())
        image = Stage(nn.Conv2d(atoms, 3, 3, padding=1), nn.Identity(), self.output_activation())
        shapes = self.code_shapes(atoms, image_size)
        built = Generator(coder, [image, second], projections, shapes, z_dim, classes)
        self.init(built)
        self.constrain(built)
        return built


def _halvings(side: int, to: int) -> int:
    return (side // to).bit_length() - 1


def discriminator(
    *,
    atoms: int,
    classes: int,
    image_size: int,
    init: Init,
    constrain: Init = unconstrained,
    width: float = 0.5,
    at_least: int = 1,
    pool: Callable[[int], nn.Module] = average_pool,
    attention: Callable[[int], nn.Module] | None = None,
    pooling: Callable[..., Tensor] = torch.sum,
    rotation_classes: int = 0,
    preprocess: Preprocess = identity,
) -> Discriminator:
    """Builds residual blocks that halve the side to 8, two more that keep it, and a score of their pooled features.

    Args:
        width: Of the blocks, times the atoms.
        at_least: Minimum number of channels of the blocks.
        attention: Builds an attention layer from a number of channels; it is applied at 16 x 16.
        pooling: Over all positions, see `Score`.
        rotation_classes: Classes of a second head on the features at 8 x 8; 0: no such head.
    """
    channels = max(at_least, round(width * atoms))
    blocks = [
        DownBlock(3, channels, pool, first=True),
        *(DownBlock(channels, channels, pool) for _ in range(_halvings(image_size, 8) - 1)),
        DownBlock(channels, channels),
        DownBlock(channels, channels),
        nn.ReLU(),
    ]
    if attention:
        blocks.insert(_halvings(image_size, ATTENTION_SIDE), attention(channels))
    second = (
        nn.Sequential(nn.Flatten(), nn.Linear(channels * 8 * 8, rotation_classes))
        if rotation_classes
        else None
    )
    built = Discriminator(nn.Sequential(*blocks), Score(channels, classes, pooling), preprocess, second)
    init(built)
    constrain(built)
    return built


class Encoder(nn.Module):
    """Maps an image to a z that may have generated it (Tran et al., 2019).

    Shape: image (B, 3, image_size, image_size) in [-1, 1] -> z (B, z_dim).
    """

    def __init__(
        self, *, atoms: int, z_dim: int, image_size: int, init: Init, preprocess: Preprocess = identity
    ):
        super().__init__()
        leaky = partial(F.leaky_relu, negative_slope=0.2)
        self.preprocess = preprocess
        self.conv = nn.Conv2d(3, atoms, 3, padding=1)
        self.blocks = nn.Sequential(
            *(
                DownBlock(atoms, atoms, average_pool, norm=BatchNorm, activation=leaky)
                for _ in range(_halvings(image_size, SIDE))
            )
        )
        self.norm, self.linear = BatchNorm(atoms), nn.Linear(atoms * SIDE**2, z_dim)
        init(self)

    def forward(self, image: Tensor) -> Tensor:
        features = self.blocks(self.conv(self.preprocess(image, None)))
        return self.linear(F.leaky_relu(self.norm(features), 0.2).flatten(1))
