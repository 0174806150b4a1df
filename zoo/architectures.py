"""The architectures: the rows of the paper's Table 1 and three more, defined as data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import nn

from sparsegen.zoo import cnn, residual
from sparsegen.zoo.blocks import (
    IMAGE_SIZES,
    BatchNorm,
    CenteredSigmoid,
    Conv,
    Dense,
    Down,
    SelfAttention,
    StridedConv,
    Up,
    apply_spectral_norm,
    normal_init,
    orthogonal_init,
    residual_init,
    xavier_init,
    zero_init_score,
)
from sparsegen.zoo.discriminator import in_unit_range
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.regularizers import LEVELS


class Body(Protocol):
    """The definition of a generator's layers."""

    def code_shapes(self, atoms: int, image_size: int) -> list[tuple[int, int, int]]:
        """Returns (C, H, W) of each code, Γ1 first, at least `LEVELS` of them; builds nothing."""
        ...

    def build(
        self, atoms: int, z_dim: int, classes: int, image_size: int, projections: Sequence[nn.Module]
    ) -> Generator:
        """Builds the generator; `projections[i]` is applied to Γ_{i+1}."""
        ...


@dataclass(frozen=True)
class Architecture:
    """A row of Table 1: its networks, without their training.

    Attributes:
        generator: Its body.
        discriminator: Builds the discriminator from atoms, classes and image_size.
        atoms: Filters of D1 at full width, i.e. the channels of Γ1; other layers have multiples of it.
        z_dim: Entries of z.
        classes: Default number of labels; 0: always unconditional.
        encoder: Builds an encoder from an image to z, from atoms, z_dim and image_size; None: no encoder.
        recipe: Name of the architecture whose training recipe is used, if this one has no recipe of its own.
    """

    generator: Body
    discriminator: Callable[..., nn.Module]
    atoms: int
    z_dim: int = 128
    classes: int = 0
    encoder: Callable[..., nn.Module] | None = None
    recipe: str | None = None

    def code_shapes(self, atoms: int, image_size: int = IMAGE_SIZES[0]) -> list[tuple[int, int, int]]:
        """Returns (C, H, W) of each code that a regularizer may project, Γ1 first; builds nothing."""
        return self.generator.code_shapes(atoms, image_size)[:LEVELS]


# DCGAN, design A: D2 works at the resolution of Γ1, so that an atom of D1 D2 is 8 x 8 (App. E). The network
# is the same in all five columns, so depth does not explain differences between them.
DCGAN = Architecture(
    cnn.GeneratorBody(layers=(Up(4, stride=1, padding=0), Up(2), Up(1), Conv(1)), output=Up()),
    partial(
        cnn.discriminator,
        layers=(Down(1), Down(2), Down(4)),
        head=Conv(kernel=4, padding=0),
        norm=BatchNorm,
        bias=False,
    ),
    atoms=128,
)
# Choice: the paper does not name its networks. These are those of public code whose scores fit its baselines best:
# the DCGAN of Mao et al. (2019) for cgan and msgan; the plain CNN of Miyato et al. (2018, table 3) for wgan_gp and
# sngan.
CGAN = Architecture(
    cnn.GeneratorBody(layers=(Up(4, stride=1, padding=0), Up(2), Up(1)), output=Up(), bias=True),
    partial(
        cnn.discriminator, layers=(Down(1), Down(2), Down(4)), head=Conv(kernel=4, padding=0), norm=BatchNorm
    ),
    atoms=128,
    z_dim=100,
    classes=10,
)
PLAIN_CNN = partial(
    cnn.discriminator,
    layers=(Conv(1), Down(2), Conv(2), Down(4), Conv(4), Down(8), Conv(8)),
    head=Conv(kernel=4, padding=0),
    slope=0.1,
)
WGAN_GP = Architecture(
    cnn.GeneratorBody(layers=(Dense(8), Up(4), Up(2), Up(1)), output=Conv(), bias=True),
    PLAIN_CNN,
    atoms=64,
)
SNGAN = replace(WGAN_GP, discriminator=partial(PLAIN_CNN, constrain=apply_spectral_norm))
SAGAN = Architecture(
    residual.GeneratorBody(init=orthogonal_init, constrain=apply_spectral_norm, attention=SelfAttention),
    partial(
        residual.discriminator, init=orthogonal_init, constrain=apply_spectral_norm, attention=SelfAttention
    ),
    atoms=256,
    classes=10,
)
# The residual networks that wgan_gp and sngan are more often used with. The paper's figures fit the plain ones, so
# these are not rows of its table.
WGAN_GP_RESNET = Architecture(
    residual.GeneratorBody(init=residual_init),
    partial(residual.discriminator, init=residual_init, pooling=torch.mean),
    atoms=256,
)
SNGAN_RESNET = replace(
    WGAN_GP_RESNET,
    discriminator=partial(residual.discriminator, init=residual_init, constrain=apply_spectral_norm),
)
# SSGAN works on images in [0, 1] and uniform noise. Both are converted inside the networks, so that images are in
# [-1, 1] and z is normal in every interface.
# Choice: a discriminator of at least 32 channels. With 8, the number for 16 atoms, its scores did not separate real
# from generated images (hinge 2.00): the distance after 2,000 steps at four times the rate was 1,620. With 32 channels
# it was 857 (baseline, seed 0).
SSGAN = Architecture(
    residual.GeneratorBody(init=xavier_init, output_activation=CenteredSigmoid, prior=residual.uniform_prior),
    partial(
        residual.discriminator,
        init=zero_init_score(xavier_init),
        at_least=32,
        pool=StridedConv,
        rotation_classes=5,
        preprocess=in_unit_range,
    ),
    atoms=256,
    encoder=partial(residual.Encoder, init=xavier_init, preprocess=in_unit_range),
)
BIGGAN = Architecture(
    residual.GeneratorBody(init=normal_init, constrain=apply_spectral_norm),
    partial(residual.discriminator, init=normal_init, constrain=apply_spectral_norm, width=1),
    atoms=256,
    classes=10,
)
# More channels where maps are small: at 64 atoms, six times the weights of biggan's generator for three times the
# operations. Not a row of the paper's table.
BIGGAN_TAPERED = replace(
    BIGGAN,
    generator=residual.GeneratorBody(init=normal_init, constrain=apply_spectral_norm, widths=(4, 4, 2)),
    atoms=64,
)
ARCHITECTURES = {
    "dcgan": DCGAN,
    "cgan": CGAN,
    "wgan_gp": WGAN_GP,
    "msgan": CGAN,
    "sngan": SNGAN,
    "sagan": SAGAN,
    "ssgan": SSGAN,
    "biggan": BIGGAN,
    "diffcr_biggan": BIGGAN,
    "wgan_gp_resnet": WGAN_GP_RESNET,
    "sngan_resnet": SNGAN_RESNET,
    "biggan_tapered": BIGGAN_TAPERED,
}
