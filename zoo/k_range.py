"""The sparsity (k) of projected levels: values and ranges. Needs no torch, since the ONNX runtime uses it too."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from sparsegen.common.checks import check_integer

UNITS = ("needle", "code")


@dataclass(frozen=True)
class KRange:
    """The k of one projected level: k non-zeros, of `limit`, in each unit ("needle" or "code") of Γ."""

    level: int
    unit: str
    k: int
    limit: int


def resolve(k: int | Sequence[int] | np.ndarray | None, k_ranges: Sequence[KRange]) -> list[int]:
    """Checks a setting of k and returns one k for each projected level, Γ1 first.

    Args:
        k: One number for all projected levels or one per level, also as an array or a tensor of one dim; None: the
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
            f"k must be one number, or one for each of {levels}; got {len(values)} numbers: {k!r}. One k per image is "
            "an array (images, levels), over HTTP a list of lists"
        )
    return [
        check_integer(
            "k", value, 1, k_range.limit, f"the non-zeros kept in each {k_range.unit} of Γ{k_range.level}"
        )
        for value, k_range in zip(values, k_ranges, strict=True)
    ]


def is_per_image(k: object) -> TypeGuard[np.ndarray]:
    """Returns whether k holds one number per image and level: an array of two or more dims. A list is per level."""
    return isinstance(k, np.ndarray) and k.ndim > 1


def resolve_per_image(k: np.ndarray, k_ranges: Sequence[KRange], count: int) -> NDArray[np.int64]:
    """Checks the k of each of `count` images.

    Shape: integers (count, levels), the projected levels, Γ1 first -> int64, the same.

    Raises:
        TypeError, ValueError: Naming the image, the level, its range and the value; or the shape.
    """
    levels = (
        ", ".join(f"Γ{k_range.level}" for k_range in k_ranges) or "no level, since there is no projection"
    )
    if k.dtype.kind not in "iu":
        raise TypeError(f"k of each image must be integers; got an array of {k.dtype}")
    if not k_ranges or k.shape != (count, len(k_ranges)):
        raise ValueError(
            f"k of each image must have the shape ({count}, {len(k_ranges)}): images, and {levels}; got {k.shape}"
        )
    limits = np.array([k_range.limit for k_range in k_ranges])
    wrong = np.argwhere((k < 1) | (k > limits))
    if len(wrong):
        image, column = wrong[0]
        k_range = k_ranges[column]
        check_integer(
            f"k of image {image}",
            k[image, column],
            1,
            k_range.limit,
            f"the non-zeros kept in each {k_range.unit} of Γ{k_range.level}",
        )
    return k.astype(np.int64)
