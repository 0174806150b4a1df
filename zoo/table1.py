"""Table 1 as data: its rows (architectures, and two more), its columns (regularizers) and the paper's FIDs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from sparsegen.common.checks import check_integer
from sparsegen.common.names import known_names
from sparsegen.zoo import cnn, residual
from sparsegen.zoo.blocks import (
    BatchNorm,
    CenteredSigmoid,
    Conv,
    Dense,
    Down,
    SelfAttention,
    StridedConv,
    Up,
    normal_init,
    normalize_spectrum,
    orthogonal_init,
    residual_init,
    undecided,
    xavier_init,
)
from sparsegen.zoo.discriminator import in_unit_range
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.projections import GlobalProjection, NeedleProjection, Projection

# How a model may be trained: as its row of Table 1, or with heads on the features of a frozen network beside that.
RECIPES = ("paper", "projected")
LEVELS = 2  # codes that are handed out, and that a regularizer may project


@dataclass(frozen=True)
class Regularizer:
    """A column of Table 1: which projection sits on how many codes, Γ1 first.

    Choice: the paper gives no k. `density` sets it for both kinds, so that L0 and L0,∞ have the same budget:
    density·C non-zeros in each needle, density·C·H·W in each code.
    """

    projection: type[Projection] | None = None
    levels: int = 0
    density: float = 0.25


@dataclass(frozen=True)
class Architecture:
    """A row of Table 1: what the networks are, never how they are trained."""

    generator: Callable[..., Generator]
    discriminator: Callable[..., nn.Module]
    atoms: int  # filters of D1 at full width = channels of Γ1; every other width is a multiple of it
    z_dim: int = 128
    classes: int = 0  # 0: unconditional
    encoder: Callable[..., nn.Module] | None = None

    def sparse_generator(self, column: Regularizer, atoms: int, k: Sequence[int] | None = None) -> Generator:
        """Builds the generator with the projections of a column.

        Args:
            k: Of each projected level, Γ1 first; None: those of the column's density.

        Raises: TypeError, ValueError if k does not fit the projections.
        """
        projections = [
            column.projection(1) if level < column.levels else nn.Identity() for level in range(LEVELS)
        ]
        built = self.generator(atoms=atoms, z_dim=self.z_dim, classes=self.classes, projections=projections)
        if k is None:
            k = [max(1, round(column.density * dial.limit)) for dial in built.dials]
        if k or built.dials:
            built.set_k(k)
        return built

    def companions(self, atoms: int) -> dict[str, nn.Module]:
        """Builds what the generator is trained with: its "discriminator", and an "encoder" from an image to z where
        the training has one.
        """
        built = {"discriminator": self.discriminator(atoms=atoms, classes=self.classes)}
        if self.encoder:
            built["encoder"] = self.encoder(atoms=atoms, z_dim=self.z_dim)
        return built


# DCGAN, design A: D2 works at the resolution of Γ1, so that an atom of D1 D2 is 8 x 8 (App. E). The network
# is the same in all five columns, so that depth explains no difference between them.
DCGAN = Architecture(
    partial(cnn.generator, layers=(Up(4, stride=1, padding=0), Up(2), Up(1), Conv(1)), output=Up()),
    partial(
        cnn.discriminator,
        layers=(Down(1), Down(2), Down(4)),
        head=Conv(kernel=4, padding=0),
        norm=BatchNorm,
        bias=False,
    ),
    atoms=128,
)
# Choice: the paper names no networks. Those of the public code whose scores fit its baselines best: the DCGAN of
# Mao et al. (2019) for cgan and msgan; the plain CNN of Miyato et al. (2018, table 3) for wgan_gp and sngan.
CGAN = Architecture(
    partial(cnn.generator, layers=(Up(4, stride=1, padding=0), Up(2), Up(1)), output=Up(), bias=True),
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
    partial(cnn.generator, layers=(Dense(8), Up(4), Up(2), Up(1)), output=Conv(), bias=True),
    PLAIN_CNN,
    atoms=64,
)
SNGAN = replace(WGAN_GP, discriminator=partial(PLAIN_CNN, constrain=normalize_spectrum))
SAGAN = Architecture(
    partial(residual.generator, init=orthogonal_init, constrain=normalize_spectrum, attention=SelfAttention),
    partial(
        residual.discriminator, init=orthogonal_init, constrain=normalize_spectrum, attention=SelfAttention
    ),
    atoms=256,
    classes=10,
)
# The residual networks with which the two are met more often; the paper's figures fit the plain ones, so these are no
# rows of its table.
WGAN_GP_RESNET = Architecture(
    partial(residual.generator, init=residual_init),
    partial(residual.discriminator, init=residual_init, gather=torch.mean),
    atoms=256,
)
SNGAN_RESNET = replace(
    WGAN_GP_RESNET,
    discriminator=partial(residual.discriminator, init=residual_init, constrain=normalize_spectrum),
)
# SSGAN works on images in [0, 1], and its noise is uniform; both are turned inside the networks, so that images
# are in [-1, 1] and z is normal at every door.
# Choice: a discriminator of at least 32 channels. Of 8, as 16 atoms would have, scores told nothing (hinge 2.00) and
# 2,000 steps at four times the rate ended at a distance of 1,620; of 32, at 857 (baseline, seed 0).
SSGAN = Architecture(
    partial(residual.generator, init=xavier_init, squash=CenteredSigmoid, prior=residual.uniform_prior),
    partial(
        residual.discriminator,
        init=undecided(xavier_init),
        at_least=32,
        pool=StridedConv,
        turns=5,
        entry=in_unit_range,
    ),
    atoms=256,
    encoder=partial(residual.Encoder, init=xavier_init, entry=in_unit_range),
)
BIGGAN = Architecture(
    partial(residual.generator, init=normal_init, constrain=normalize_spectrum),
    partial(residual.discriminator, init=normal_init, constrain=normalize_spectrum, width=1),
    atoms=256,
    classes=10,
)
# More channels where maps are small and cheap: at 64 atoms six times the weights of biggan's generator for three times
# the work. No row of the paper's table.
BIGGAN_TAPERED = replace(
    BIGGAN,
    generator=partial(residual.generator, init=normal_init, constrain=normalize_spectrum, widths=(4, 4, 2)),
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
REGULARIZERS = {
    "baseline": Regularizer(),
    "l0_inf": Regularizer(NeedleProjection, levels=1),
    "l0": Regularizer(GlobalProjection, levels=1),
    "l1": Regularizer(),  # a penalty in the loss, so nothing in the network
    "ml": Regularizer(NeedleProjection, levels=2),
}
PAPER_FID = {
    row: dict(zip(REGULARIZERS, fids, strict=True))
    for row, fids in {
        "dcgan": (37.75, 34.45, 35.53, 35.52, 22.30),
        "cgan": (27.64, 26.43, 26.06, 26.48, 26.41),
        "wgan_gp": (30.06, 28.97, 28.51, 30.52, 28.04),
        "msgan": (24.32, 21.72, 23.80, 23.91, 21.86),
        "sngan": (25.50, 25.11, 24.81, 24.82, 23.63),
        "sagan": (18.39, 18.23, 18.37, 18.48, 18.09),
        "ssgan": (11.40, 11.19, 11.57, 11.11, 10.92),
        "biggan": (8.23, 7.58, 7.50, 7.68, 7.66),
        "diffcr_biggan": (6.66, 6.22, 6.20, 6.31, 5.95),
    }.items()
}


@dataclass(frozen=True)
class ModelSpec:
    """One cell of Table 1 at some width: `dcgan.ml`, or `dcgan-64.ml` with 64 atoms in place of 128.

    `k` holds the non-zeros kept at each projected level, Γ1 first; None for those of the column's density.
    `recipe` says how the model is trained, and is the last part of its name unless it is the row's own recipe:
    `biggan-64.ml.projected`.
    """

    architecture: str
    regularizer: str
    atoms: int
    k: tuple[int, ...] | None = None
    recipe: str = RECIPES[0]

    @classmethod
    def parse(cls, name: str) -> "ModelSpec":
        """Reads a model name, `architecture[-atoms].regularizer[.recipe]`.

        Raises: ValueError listing what is known.
        """
        row, dot, column = name.partition(".")
        if not dot:
            raise ValueError(
                f"a model is architecture.regularizer, e.g. dcgan.ml, dcgan-64.ml or biggan-64.ml.projected; "
                f"got {name!r}"
            )
        regularizer, _, recipe = column.partition(".")
        recipe = recipe or RECIPES[0]
        architecture, _, atoms = row.rpartition("-")
        if architecture and atoms.isdecimal():
            return cls.of(architecture, regularizer, int(atoms), recipe=recipe)
        return cls.of(row, regularizer, recipe=recipe)

    @classmethod
    def of(
        cls,
        architecture: str,
        regularizer: str,
        atoms: int | None = None,
        k: Sequence[int] | None = None,
        recipe: str = RECIPES[0],
    ) -> "ModelSpec":
        """Checks that there is such a cell, such a width of it, and such a recipe.

        Raises: TypeError, ValueError listing what is known, or if k has not one entry a projected level.
        """
        row = _known("architecture", architecture, ARCHITECTURES)
        levels = _known("regularizer", regularizer, REGULARIZERS).levels
        if recipe not in RECIPES:
            raise ValueError(f"no recipe {recipe!r}: there are {known_names(recipe, RECIPES)}")
        atoms = check_integer("atoms", row.atoms if atoms is None else atoms, 4, 1024, "the filters of D1")
        if k is not None and len(k) != levels:
            raise ValueError(f"k has one entry a projected level, {levels} in {regularizer}; got {list(k)}")
        return cls(architecture, regularizer, atoms, None if k is None else tuple(k), recipe)

    @classmethod
    def from_config(cls, config: Mapping) -> "ModelSpec":
        """The cell that a checkpoint's config.json tells of; raises as `of` does."""
        entries = [config[entry] for entry in ("architecture", "regularizer", "atoms", "k")]
        return cls.of(*entries, recipe=config.get("recipe", RECIPES[0]))

    @property
    def name(self) -> str:
        full = self.atoms == ARCHITECTURES[self.architecture].atoms
        cell = f"{self.architecture}{'' if full else f'-{self.atoms}'}.{self.regularizer}"
        return cell if self.recipe == RECIPES[0] else f"{cell}.{self.recipe}"

    def generator(self) -> Generator:
        row, column = ARCHITECTURES[self.architecture], REGULARIZERS[self.regularizer]
        built = row.sparse_generator(column, self.atoms, self.k)
        built.spec = self
        return built

    def companions(self) -> dict[str, nn.Module]:
        """Those of the architecture, at this width."""
        return ARCHITECTURES[self.architecture].companions(self.atoms)


def build(architecture: str, regularizer: str = "baseline", atoms: int | None = None) -> Generator:
    """Builds the untrained generator of one cell of Table 1."""
    return ModelSpec.of(architecture, regularizer, atoms).generator()


def _known(what: str, name: str, table: dict) -> object:
    if name not in table:
        raise ValueError(f"no {what} {name!r}: there are {known_names(name, table)}")
    return table[name]
