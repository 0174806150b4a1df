"""Noise from a seed, in numpy alone: one seed is one draw in Python, ONNX, HTTP and the page."""

import re
from collections.abc import Iterator, Sequence
from numbers import Real

import numpy as np

from sparsegen.common.checks import check_integer
from sparsegen.common.names import known_names

MAX_SEED = 2**64 - 1
MAX_COUNT = 100_000
BATCH = 64  # images drawn at once


def check_seed(seed: object) -> int:
    return check_integer("seed", seed, 0, MAX_SEED, "the number that fixes the noise")


def check_count(count: object, limit: int = MAX_COUNT) -> int:
    return check_integer("count", count, 1, limit, "the number of images")


def z(count: int, z_dim: int, seed: int = 0, first: int = 0, truncation: float | None = None) -> np.ndarray:
    """Draws noise z ~ N(0, I), image by image, so that image i of a seed is the same whatever the count.

    Args:
        first: Index of the first image; rows are images `first` to `first + count - 1` of this seed.
        truncation: Bound of the truncated normal (entries beyond it are drawn again), None for no bound.

    Shape: float32 (count, z_dim).  Raises: TypeError, ValueError on a value out of range.
    """
    count, seed = check_count(count), check_seed(seed)
    if truncation is not None and (isinstance(truncation, bool) or not isinstance(truncation, Real)):
        raise TypeError(f"truncation bounds |z|: a number, or None for no bound; got {truncation!r}")
    if truncation is not None and not truncation >= 0.05:
        raise ValueError(f"truncation bounds |z|: at least 0.05, or None for no bound; got {truncation!r}")
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
    given: int | str | Sequence[int | str] | None = None,
    names: Sequence[str] = (),
    first: int = 0,
) -> np.ndarray | None:
    """The class of each image: those given, or drawn uniformly, image i of a seed the same whatever the count.

    Args:
        classes: How many there are; 0 for an unconditional generator, which has no labels.
        given: One class for all images, or one for each of them, by number or by name; None draws them.
        names: Of the classes 0, 1, …; where they are known, there are no others, since none was trained.
        first: As in `z`.

    Shape: int64 (count,), or None.  Raises: TypeError, ValueError on labels that do not fit.
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
    given = given.tolist() if hasattr(given, "tolist") else given
    several = isinstance(given, Sequence) and not isinstance(given, str | bytes | bytearray)
    given = list(given) if several else [given] * count
    called = titles(classes, names)
    return np.array(
        check_labels([_number(label, called) for label in given], count, classes, names), np.int64
    )


def titles(classes: int, names: Sequence[str]) -> list[str]:
    """What each class is called: by its name, or by its number where names are not known."""
    return list(names[:classes]) or [str(label) for label in range(classes)]


def _number(label: object, called: Sequence[str]) -> object:
    """The label of a class that may be called by its name; a string is a name or, if no class has it, a number.

    Raises: ValueError listing the classes if none is called so.
    """
    if not isinstance(label, str):
        return label
    if label in called:
        return called.index(label)
    if re.fullmatch(r"-?[0-9]{1,9}", label):
        return int(label)
    label = label[:100]  # whatever was sent
    raise ValueError(f"no class {label!r}: there are {known_names(label, called)}")


def check_conditional(labeled: bool, classes: int, names: Sequence[str] = ()) -> None:
    """Raises: ValueError if an unconditional generator gets labels, or a conditional one none."""
    if labeled and not classes:
        raise ValueError(
            "labels choose a class of a conditional generator; this one has none: leave them out"
        )
    if classes and not labeled:
        raise ValueError(
            f"this generator is conditional: give labels, {_named(names) or f'0 to {classes - 1}'}, one for each z"
        )


def check_labels(labels: Sequence[object], count: int, classes: int, names: Sequence[str] = ()) -> list[int]:
    """Raises: TypeError, ValueError naming the classes, unless there are `count` integers, each a known class."""
    if len(labels) != count:
        raise ValueError(f"labels are one class for all images or one for each of {count}; got {len(labels)}")
    highest, meaning = len(titles(classes, names)) - 1, _named(names) or "a class"
    return [check_integer("a label", label, 0, highest, meaning) for label in labels]


def _named(names: Sequence[str]) -> str:
    return ", ".join(f"{label} {name}" for label, name in enumerate(names))


def batches(
    count: int, z_dim: int, seed: int = 0, truncation: float | None = None, batch: int = BATCH
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the noise of images 0 to `count - 1` of a seed in batches, each with the index of its first image.

    Shape: z float32 (B, z_dim).  Raises: as `z`, before any work, once the first batch is asked for.
    """
    for first in range(0, check_count(count), batch):
        yield first, z(min(batch, count - first), z_dim, seed, first, truncation)
