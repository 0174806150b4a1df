"""Noise and labels drawn from a seed with numpy: the same in Python, ONNX, HTTP and the web page."""

import re
from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Any

import numpy as np

from sparsegen.common.checks import check_integer
from sparsegen.common.names import known_names

MAX_SEED = 2**64 - 1
MAX_COUNT = 100_000
BATCH = 64  # images drawn at once


def check_seed(seed: object) -> int:
    """Returns the seed. Raises: TypeError, ValueError unless it is an integer from 0 to 2⁶⁴ - 1."""
    return check_integer("seed", seed, 0, MAX_SEED, "the seed of the noise")


def check_count(count: object, limit: int = MAX_COUNT) -> int:
    """Returns the count. Raises: TypeError, ValueError unless it is an integer from 1 to `limit`."""
    return check_integer("count", count, 1, limit, "the number of images")


def z(count: int, z_dim: int, seed: int = 0, first: int = 0, truncation: float | None = None) -> np.ndarray:
    """Draws noise z ~ N(0, I), image by image; image i of a seed does not depend on the count.

    Args:
        first: Index of the first image; rows are images `first` to `first + count - 1` of this seed.
        truncation: Bound of the truncated normal (entries beyond it are redrawn); None: no bound.

    Shape: float32 (count, z_dim).

    Raises:
        TypeError, ValueError: On a value out of range.
    """
    count, seed = check_count(count), check_seed(seed)
    if truncation is not None and (isinstance(truncation, bool) or not isinstance(truncation, Real)):
        raise TypeError(
            f"truncation, the bound of |z|, must be a number, or None for no bound; got {truncation!r}"
        )
    if truncation is not None and not truncation >= 0.05:
        raise ValueError(
            f"truncation, the bound of |z|, must be at least 0.05, or None for no bound; got {truncation!r}"
        )
    rows = np.empty((count, z_dim), np.float32)
    for row, index in zip(rows, range(first, first + count), strict=True):
        draws = np.random.Generator(np.random.PCG64([seed, index]))
        draws.standard_normal(dtype=np.float32, out=row)
        while truncation is not None and (beyond := np.abs(row) > truncation).any():
            row[beyond] = draws.standard_normal(int(beyond.sum()), dtype=np.float32)
    return rows


def labels(
    count: int,
    classes: int,
    seed: int = 0,
    given: int | str | Sequence[int | str] | np.ndarray | None = None,
    names: Sequence[str] = (),
    first: int = 0,
) -> np.ndarray | None:
    """Returns the class of each image, given or drawn uniformly; image i of a seed does not depend on the count.

    Args:
        classes: Number of classes; 0: an unconditional generator.
        given: One class for all images or one per image, as numbers or names; None: drawn.
        names: Names of the classes 0, 1, …. If there are any, only named classes are drawn; others were not trained.
        first: As in `z`.

    Shape: int64 (count,), or None.

    Raises:
        TypeError, ValueError: On labels that do not fit.
    """
    count, seed = check_count(count), check_seed(seed)
    check_conditional(given is not None or classes > 0, classes, names)
    if not classes:
        return None
    if given is None:
        known = len(titles(classes, names))
        draws = [
            np.random.default_rng([seed, index, 1]).integers(known) for index in range(first, first + count)
        ]
        return np.array(draws, np.int64)
    chosen: Any = given.tolist() if hasattr(given, "tolist") else given
    several = isinstance(chosen, Sequence) and not isinstance(chosen, str | bytes | bytearray)
    called = titles(classes, names)
    numbers = [_number(label, called) for label in (chosen if several else [chosen] * count)]
    return np.array(check_labels(numbers, count, classes, names), np.int64)


def titles(classes: int, names: Sequence[str]) -> list[str]:
    """Returns the name of each class, or its number if names are unknown."""
    return list(names[:classes]) or [str(label) for label in range(classes)]


def _number(label: object, called: Sequence[str]) -> object:
    """Converts a class name to its label. A string that is both a class name and a number is read as the name.

    Raises:
        ValueError: Listing the classes if the name is unknown.
    """
    if not isinstance(label, str):
        return label
    if label in called:
        return called.index(label)
    if re.fullmatch(r"-?[0-9]{1,9}", label):
        return int(label)
    label = label[:100]  # it may come from a request
    raise ValueError(f"no class {label!r}: there are {known_names(label, called)}")


def check_conditional(labeled: bool, classes: int, names: Sequence[str] = ()) -> None:
    """Raises: ValueError on labels for an unconditional generator, and on missing labels for a conditional one."""
    if labeled and not classes:
        raise ValueError("this generator is unconditional and has no labels: omit them")
    if classes and not labeled:
        raise ValueError(
            f"this generator is conditional: give labels ({_named(names) or f'0 to {classes - 1}'}), one per z"
        )


def check_labels(labels: Sequence[object], count: int, classes: int, names: Sequence[str] = ()) -> list[int]:
    """Returns the labels. Raises: TypeError, ValueError naming the classes, unless they are `count` known classes."""
    if len(labels) != count:
        raise ValueError(
            f"labels must be one class for all images or one for each of {count}; got {len(labels)}"
        )
    highest, meaning = len(titles(classes, names)) - 1, _named(names) or "a class"
    return [check_integer("a label", label, 0, highest, meaning) for label in labels]


def _named(names: Sequence[str]) -> str:
    return ", ".join(f"{label} {name}" for label, name in enumerate(names))


def batches(
    count: int, z_dim: int, seed: int = 0, truncation: float | None = None, batch: int = BATCH
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the noise of images 0 to `count - 1` of a seed in batches, each with the index of its first image.

    Shape: z float32 (B, z_dim).

    Raises:
        TypeError, ValueError: As `z`, when the first batch is requested.
    """
    for first in range(0, check_count(count), batch):
        yield first, z(min(batch, count - first), z_dim, seed, first, truncation)
