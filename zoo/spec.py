"""A model as data: its architecture, regularizer, width, k and recipe; its name; and the networks built from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from sparsegen.common.checks import check_integer
from sparsegen.common.names import known_names
from sparsegen.zoo.architectures import ARCHITECTURES
from sparsegen.zoo.dial import Dial
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.regularizers import REGULARIZERS

# How a model may be trained: as its row of Table 1, or with heads on the features of a frozen network beside that.
RECIPES = ("paper", "projected")
Entry = TypeVar("Entry")


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

        Raises: TypeError, ValueError listing what is known, or if k has not one fitting entry a projected level.
        """
        row = _known("architecture", architecture, ARCHITECTURES)
        column = _known("regularizer", regularizer, REGULARIZERS)
        if recipe not in RECIPES:
            raise ValueError(f"no recipe {recipe!r}: there are {known_names(recipe, RECIPES)}")
        atoms = check_integer("atoms", row.atoms if atoms is None else atoms, 4, 1024, "the filters of D1")
        if k is not None and len(k) != column.levels:
            raise ValueError(
                f"k has one entry a projected level, {column.levels} in {regularizer}; got {list(k)}"
            )
        column.dials(row.code_shapes(atoms), k)
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

    @property
    def dials(self) -> list[Dial]:
        """The sparsity dial of each projected level, Γ1 first; builds nothing.

        Raises: TypeError, ValueError if k does not fit.
        """
        shapes = ARCHITECTURES[self.architecture].code_shapes(self.atoms)
        return REGULARIZERS[self.regularizer].dials(shapes, self.k)

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


def _known(what: str, name: str, table: Mapping[str, Entry]) -> Entry:
    if name not in table:
        raise ValueError(f"no {what} {name!r}: there are {known_names(name, table)}")
    return table[name]
