"""The sparsity (k) of projected levels: values and ranges. Needs no torch, since the ONNX runtime uses it too."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparsegen.common.checks import check_integer

UNITS = ("needle", "code")


@dataclass(frozen=True)
class KRange:
    """The k of one projected level: k non-zeros, of `limit`, in each unit ("needle" or "code") of Γ."""

    level: int
    unit: str
    k: int
    limit: int


def resolve(k: int | Sequence[int] | None, k_ranges: Sequence[KRange]) -> list[int]:
    """Checks a setting of k and returns one k for each projected level, Γ1 first.

    Args:
        k: One number for all projected levels or one per level, also as an array or a tensor; None: the
            k of training.

    Raises:
        TypeError, ValueError: Naming the level, its range and the value.
    """
    if k is None:
        return [k_range.k for k_range in k_ranges]
    if not k_ranges:
        raise ValueError(
            f"this model was trained without a projection and has no k to set: omit k; got k={k!r}"
        )
    given: Any = k.tolist() if hasattr(k, "tolist") else k
    several = isinstance(given, Sequence) and not isinstance(given, str | bytes | bytearray)
    values = list(given) if several else [given] * len(k_ranges)
    if len(values) != len(k_ranges):
        levels = ", ".join(f"Γ{k_range.level}" for k_range in k_ranges)
        raise ValueError(
            f"k must be one number, or one for each of {levels}; got {len(values)} numbers: {k!r}"
        )
    return [
        check_integer(
            "k", value, 1, k_range.limit, f"the non-zeros kept in each {k_range.unit} of Γ{k_range.level}"
        )
        for value, k_range in zip(values, k_ranges, strict=True)
    ]
