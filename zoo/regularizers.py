"""The regularizers, i.e. the columns of the paper's Table 1: the projections of the codes, defined as data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from sparsegen.zoo.k_range import KRange, resolve
from sparsegen.zoo.projections import GlobalProjection, NeedleProjection, Projection

LEVELS = 2  # codes that a generator returns and a regularizer may project


@dataclass(frozen=True)
class Regularizer:
    """A column of Table 1: a projection and the number of codes that it is applied to, Γ1 first.

    Choice: the paper does not give k. `density` sets it for both kinds, so that L0 and L0,∞ have the same budget:
    density·C non-zeros in each needle, density·C·H·W in each code.

    Attributes:
        about: Its effect on the codes, a sentence for the model card.
    """

    projection: type[Projection] | None = None
    levels: int = 0
    density: float = 0.25
    about: str = ""

    @property
    def _projection(self) -> type[Projection]:
        if self.projection is None:
            raise ValueError(
                f"a regularizer of {self.levels} levels needs a projection: give one, or set levels to 0"
            )
        return self.projection

    def k_ranges(
        self, code_shapes: Sequence[tuple[int, int, int]], k: Sequence[int] | None = None
    ) -> list[KRange]:
        """Returns the k and its range of each projected level, Γ1 first, computed from the shapes of the codes.

        Args:
            code_shapes: (C, H, W) of each code, Γ1 first.
            k: Of each projected level; None: those of the density.

        Raises:
            TypeError, ValueError: If k does not fit.
        """
        k_ranges: list[KRange] = []
        for level, shape in enumerate(code_shapes[: self.levels], 1):
            limit = self._projection.max_k(shape)
            k_ranges.append(KRange(level, self._projection.unit, max(1, round(self.density * limit)), limit))
        if k is None or not (k_ranges or k):
            return k_ranges
        return [
            replace(k_range, k=value) for k_range, value in zip(k_ranges, resolve(k, k_ranges), strict=True)
        ]

    def projections(
        self, code_shapes: Sequence[tuple[int, int, int]], k: Sequence[int] | None = None
    ) -> list[nn.Module]:
        """Returns one module per code: a projection, or an identity. Args, Raises: As `k_ranges`."""
        projected = [self._projection(k_range.k) for k_range in self.k_ranges(code_shapes, k)]
        return projected + [nn.Identity() for _ in code_shapes[self.levels :]]


REGULARIZERS = {
    "baseline": Regularizer(about="Its codes are not made sparse; the other columns are compared with it."),
    "l0_inf": Regularizer(
        NeedleProjection,
        levels=1,
        about="Each needle of Γ1, the entries of one pixel over all channels, keeps its k largest magnitudes\n(L0,∞).",
    ),
    "l0": Regularizer(
        GlobalProjection, levels=1, about="Γ1 keeps the k largest magnitudes of each image (L0)."
    ),
    "l1": Regularizer(  # a penalty in the loss; the network does not change
        about="Trained with a penalty on the L1 norm of Γ1; nothing is set to zero when it samples."
    ),
    "ml": Regularizer(
        NeedleProjection,
        levels=2,
        about="Each needle of Γ1 and of Γ2, the entries of one pixel over all channels, keeps its k largest\n"
        "magnitudes (L0,∞ on two levels: ML-CSC).",
    ),
}
