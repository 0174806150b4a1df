"""The specification of a model (architecture, regularizer, width, k, recipe), its name and its networks."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from sparsegen.common.checks import check_integer
from sparsegen.zoo.architectures import ARCHITECTURES, Architecture
from sparsegen.zoo.blocks import IMAGE_SIZES
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.k_range import KRange, resolve
from sparsegen.zoo.registry import get_architecture, get_regularizer, known
from sparsegen.zoo.regularizers import REGULARIZERS

# Training recipes: that of the row of Table 1, or the same with additional heads on features of a frozen network.
RECIPES = ("paper", "projected")
MAX_CLASSES = 10_000


@dataclass(frozen=True)
class ModelSpec:
    """One cell of Table 1 at a width and image size, e.g. `dcgan.ml`, or `dcgan-64-64px.ml` with 64 atoms instead of
    128 and images of 64 x 64.

    Attributes:
        atoms: Filters of D1.
        k: Non-zeros kept at each projected level, Γ1 first; None: those of the regularizer's density.
        recipe: How the model is trained. It is the last part of the name unless it is the architecture's own:
            `biggan-64.ml.projected`.
        image_size: Side of the square images in pixels; it is part of the name unless it is 32.
        classes: Number of labels, 0 if unconditional; None: the architecture's. It is not part of the name.
    """

    architecture: str
    regularizer: str
    atoms: int
    k: tuple[int, ...] | None = None
    recipe: str = RECIPES[0]
    image_size: int = IMAGE_SIZES[0]
    classes: int | None = None

    @classmethod
    def parse(cls, name: str) -> "ModelSpec":
        """Reads a model name, `architecture[-atoms][-SIZEpx].regularizer[.recipe]`.

        Raises:
            ValueError: Listing the known names.
        """
        body, dot, column = name.partition(".")
        if not dot:
            raise ValueError(
                f"a model is architecture.regularizer, e.g. dcgan.ml, dcgan-64.ml or biggan-64-64px.ml.projected; "
                f"got {name!r}"
            )
        regularizer, _, recipe = column.partition(".")
        found = re.fullmatch(
            r"(?P<architecture>.+?)(-(?P<atoms>\d{1,9}))?(-(?P<size>\d{1,9})px)?", body, re.ASCII
        )
        architecture, atoms, size = (
            found.group("architecture", "atoms", "size") if found else (body, None, None)
        )
        return cls.of(
            str(architecture),
            regularizer,
            int(atoms) if atoms else None,
            recipe=recipe or RECIPES[0],
            image_size=int(size or IMAGE_SIZES[0]),
        )

    @classmethod
    def of(
        cls,
        architecture: str,
        regularizer: str,
        atoms: int | None = None,
        k: Sequence[int] | None = None,
        recipe: str = RECIPES[0],
        image_size: int = IMAGE_SIZES[0],
        classes: int | None = None,
    ) -> "ModelSpec":
        """Checks that there is such an architecture, regularizer and recipe, and that the numbers fit them.

        Raises:
            TypeError, ValueError: Listing the known names or the allowed range.
        """
        row, column = get_architecture(architecture), get_regularizer(regularizer)
        known("recipe", recipe, dict.fromkeys(RECIPES))
        atoms = check_integer("atoms", row.atoms if atoms is None else atoms, 4, 1024, "the filters of D1")
        if image_size not in IMAGE_SIZES or isinstance(image_size, bool):
            sizes = ", ".join(map(str, IMAGE_SIZES))
            raise ValueError(
                f"image_size is the side of the images in pixels, one of {sizes}; got {image_size!r}"
            )
        if classes is not None:
            check_integer("classes", classes, 0, MAX_CLASSES, "the number of labels, 0 for none")
            if classes and not row.classes:
                others = ", ".join(name for name, other in ARCHITECTURES.items() if other.classes)
                raise ValueError(
                    f"{architecture} has no labels: set classes to 0, or use one of {others}; got {classes}"
                )
        if k is not None and len(k) != column.levels:
            raise ValueError(
                f"k has one entry per projected level, {column.levels} in {regularizer}; got {list(k)}"
            )
        column.k_ranges(row.code_shapes(atoms, image_size), k)
        own = None if classes == row.classes else classes
        return cls(architecture, regularizer, atoms, None if k is None else tuple(k), recipe, image_size, own)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ModelSpec":
        """Returns the model of a checkpoint's config.json. Raises: As `of`."""
        entries = [config[entry] for entry in ("architecture", "regularizer", "atoms", "k")]
        optional = {name: config[name] for name in ("recipe", "image_size", "classes") if name in config}
        return cls.of(*entries, **optional)

    def with_classes(self, classes: int | None) -> "ModelSpec":
        """Returns the same model with this number of labels. Raises: As `of`."""
        return ModelSpec.of(
            self.architecture, self.regularizer, self.atoms, self.k, self.recipe, self.image_size, classes
        )

    @property
    def name(self) -> str:
        full = self.atoms == self._row.atoms
        size = "" if self.image_size == IMAGE_SIZES[0] else f"-{self.image_size}px"
        cell = f"{self.architecture}{'' if full else f'-{self.atoms}'}{size}.{self.regularizer}"
        return cell if self.recipe == RECIPES[0] else f"{cell}.{self.recipe}"

    @property
    def labels(self) -> int:
        """Number of labels; 0 if unconditional."""
        return self._row.classes if self.classes is None else self.classes

    @property
    def code_shapes(self) -> list[tuple[int, int, int]]:
        """(C, H, W) of each code, Γ1 first; builds nothing."""
        return self._row.code_shapes(self.atoms, self.image_size)

    @property
    def k_ranges(self) -> list[KRange]:
        """Level, unit, k and largest k of each projected level, Γ1 first; builds nothing.

        Raises:
            TypeError, ValueError: If k does not fit.
        """
        return REGULARIZERS[self.regularizer].k_ranges(self.code_shapes, self.k)

    def generator(self) -> Generator:
        """Builds the untrained generator."""
        projections = REGULARIZERS[self.regularizer].projections(self.code_shapes, self.k)
        sizes = (self.atoms, self._row.z_dim, self.labels, self.image_size)
        built = self._row.generator.build(*sizes, projections)
        built.spec = self
        return built

    def auxiliary_networks(self) -> dict[str, nn.Module]:
        """Builds the networks used only in training: "discriminator" and, for SSGAN, "encoder" (image to z)."""
        sizes = {"atoms": self.atoms, "image_size": self.image_size}
        built = {"discriminator": self._row.discriminator(classes=self.labels, **sizes)}
        if self._row.encoder:
            built["encoder"] = self._row.encoder(z_dim=self._row.z_dim, **sizes)
        return built

    @property
    def _row(self) -> Architecture:
        return ARCHITECTURES[self.architecture]


def create_model(
    architecture: str,
    regularizer: str = "baseline",
    *,
    width: int | None = None,
    image_size: int = IMAGE_SIZES[0],
    classes: int | None = None,
    k: int | Sequence[int] | None = None,
) -> Generator:
    """Builds an untrained generator.

    Args:
        architecture: One of `list_architectures()`.
        regularizer: One of `list_regularizers()`.
        width: Atoms, i.e. filters of D1, 4 to 1,024; other layers are multiples of it. None: the paper's.
        image_size: Side of the square images in pixels: 32, 64 or 128.
        classes: Number of labels, 0 for none; None: the architecture's.
        k: Non-zeros kept: one number for all projected levels, or one per level, Γ1 first; None: a quarter.

    Raises:
        TypeError, ValueError: If there is no such model.

    >>> import sparsegen
    >>> generator = sparsegen.create_model("biggan", "ml", width=8, image_size=64, classes=3)
    >>> generator.sample(2).shape
    (2, 64, 64, 3)
    """
    spec = ModelSpec.of(architecture, regularizer, width, image_size=image_size, classes=classes)
    if k is not None:
        spec = replace(spec, k=tuple(resolve(k, spec.k_ranges)))
    return spec.generator()
