"""Functions compiled by numba. Needs numba at import, so it is imported where numba is known to be there."""

from collections.abc import Callable
from typing import Any

from numba import njit  # noqa: TID253


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compiles a function at its first call, for use in several threads, and caches the code on the disk if possible.

    Args:
        options: Further options of `numba.njit`.
    """
    options = {"nogil": True, "error_model": "numpy", **options}
    made: Callable[..., Any]
    try:
        made = njit(function, cache=True, **options)
    except RuntimeError:  # neither the function's folder nor the user's cache folder can be written
        made = njit(function, **options)
    return made
