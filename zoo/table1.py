"""Table 1 as data: its rows (architectures), its columns (regularizers) and the FIDs that the paper gives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from sparsegen.zoo import cnn
from sparsegen.zoo.blocks import Conv, Down, Up
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.names import known_names
from sparsegen.zoo.noise import check_integer
from sparsegen.zoo.projections import GlobalProjection, NeedleProjection, Projection


@dataclass(frozen=True)
class Architecture:
    """A row of Table 1: what the two networks are, never how they are trained."""

    generator: Callable[..., Generator]
    discriminator: Callable[..., nn.Module]
    atoms: int  # filters of D1 at full width = channels of Γ1; every other width is a multiple of it
    levels: int = 2  # codes that are handed out, and that a regularizer may project
    z_dim: int = 128
    classes: int = 0  # 0: unconditional


@dataclass(frozen=True)
class Regularizer:
    """A column of Table 1: which projection sits on how many codes, Γ1 first.

    Choice: the paper gives no k. `density` sets it for both kinds, so that L0 and L0,∞ have the same budget:
    density·C non-zeros in each needle, density·C·H·W in each code.
    """

    projection: type[Projection] | None = None
    levels: int = 0
    density: float = 0.25


# DCGAN, design A: D2 works at the resolution of Γ1, so that an atom of D1 D2 is 8 x 8 (App. E). The network
# is the same in all five columns, so that depth explains no difference between them.
ARCHITECTURES = {
    "dcgan": Architecture(
        generator=partial(
            cnn.generator, layers=(Up(4, stride=1, padding=0), Up(2), Up(1), Conv(1)), output=Up()
        ),
        discriminator=partial(
            cnn.Discriminator, layers=(Down(1), Down(2), Down(4)), head=Conv(kernel=4, padding=0)
        ),
        atoms=128,
    ),
}
REGULARIZERS = {
    "baseline": Regularizer(),
    "l0_inf": Regularizer(NeedleProjection, levels=1),
    "l0": Regularizer(GlobalProjection, levels=1),
    "l1": Regularizer(),  # a penalty in the loss, so nothing in the network
    "ml": Regularizer(NeedleProjection, levels=2),
}
PAPER_FID = {
    "dcgan": {"baseline": 37.75, "l0_inf": 34.45, "l0": 35.53, "l1": 35.52, "ml": 22.30},
}


@dataclass(frozen=True)
class ModelSpec:
    """One cell of Table 1 at some width: `dcgan.ml`, or `dcgan-64.ml` with 64 atoms in place of 128.

    `k` holds the non-zeros kept at each projected level, Γ1 first; None for those of the column's density.
    """

    architecture: str
    regularizer: str
    atoms: int
    k: tuple[int, ...] | None = None

    @classmethod
    def parse(cls, name: str) -> "ModelSpec":
        """Reads a model name, `architecture[-atoms].regularizer`.

        Raises: ValueError listing what is known.
        """
        row, dot, regularizer = name.partition(".")
        if not dot:
            raise ValueError(f"a model is architecture.regularizer, as dcgan.ml or dcgan-64.ml; got {name!r}")
        architecture, _, atoms = row.rpartition("-")
        if architecture and atoms.isdecimal():
            return cls.of(architecture, regularizer, int(atoms))
        return cls.of(row, regularizer)

    @classmethod
    def of(
        cls, architecture: str, regularizer: str, atoms: int | None = None, k: Sequence[int] | None = None
    ) -> "ModelSpec":
        """Checks that there is such a cell, and such a width of it.

        Raises: TypeError, ValueError listing what is known, or if k has not one entry a projected level.
        """
        row = _known("architecture", architecture, ARCHITECTURES)
        levels = _known("regularizer", regularizer, REGULARIZERS).levels
        atoms = check_integer("atoms", row.atoms if atoms is None else atoms, 4, 1024, "the filters of D1")
        if k is not None and len(k) != levels:
            raise ValueError(f"k has one entry a projected level, {levels} in {regularizer}; got {list(k)}")
        return cls(architecture, regularizer, atoms, None if k is None else tuple(k))

    @property
    def name(self) -> str:
        full = self.atoms == ARCHITECTURES[self.architecture].atoms
        return f"{self.architecture}{'' if full else f'-{self.atoms}'}.{self.regularizer}"

    def generator(self) -> Generator:
        row, column = ARCHITECTURES[self.architecture], REGULARIZERS[self.regularizer]
        projections = [
            column.projection(1) if level <= column.levels else nn.Identity()
            for level in range(1, row.levels + 1)
        ]
        built = row.generator(atoms=self.atoms, z_dim=row.z_dim, projections=projections)
        k = self.k
        if k is None:
            k = [max(1, round(column.density * dial.limit)) for dial in built.dials]
        if k or built.dials:
            built.set_k(k)
        built.spec = self
        return built

    def discriminator(self) -> nn.Module:
        return ARCHITECTURES[self.architecture].discriminator(atoms=self.atoms)


def build(architecture: str, regularizer: str = "baseline", atoms: int | None = None) -> Generator:
    """Builds the untrained generator of one cell of Table 1."""
    return ModelSpec.of(architecture, regularizer, atoms).generator()


def _known(what: str, name: str, table: dict) -> object:
    if name not in table:
        raise ValueError(f"no {what} {name!r}: there are {known_names(name, table)}")
    return table[name]
