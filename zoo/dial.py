"""The sparsity dial: which k a projected level takes. Needs no torch, since the ONNX runtime reads it too."""

from collections.abc import Sequence
from dataclasses import dataclass

from sparsegen.common.checks import check_integer


@dataclass(frozen=True)
class Dial:
    """The dial of one projected level: k non-zeros, of `limit`, in each unit ("needle" or "code") of Γ."""

    level: int
    unit: str
    k: int
    limit: int


def resolve(k: int | Sequence[int] | None, dials: Sequence[Dial]) -> list[int]:
    """Checks a dial setting and returns one k for each projected level, Γ1 first.

    Args:
        k: One number for every projected level, or one for each, also as an array or a tensor; None for the
            k of training.

    Raises: TypeError, ValueError naming the level, its range and the value got.
    """
    if k is None:
        return [dial.k for dial in dials]
    if not dials:
        raise ValueError(
            f"this model was trained without a projection and has no k to set: leave k out; got k={k!r}"
        )
    given = k.tolist() if hasattr(k, "tolist") else k
    several = isinstance(given, Sequence) and not isinstance(given, str | bytes | bytearray)
    values = list(given) if several else [given] * len(dials)
    if len(values) != len(dials):
        levels = ", ".join(f"Γ{dial.level}" for dial in dials)
        raise ValueError(f"k is one number, or one for each of {levels}; got {len(values)} of them: {k!r}")
    return [
        check_integer("k", value, 1, dial.limit, f"the non-zeros kept in each {dial.unit} of Γ{dial.level}")
        for value, dial in zip(values, dials, strict=True)
    ]
