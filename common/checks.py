"""Checks of single numbers, with errors that name the argument, its meaning, its range and the value."""

from numbers import Integral, Real


def check_integer(name: str, value: object, low: int, high: int, meaning: str) -> int:
    """Returns `value` as an int from `low` to `high`.

    Raises:
        TypeError: If it is not an integer (bool and float included).
        ValueError: If it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is {meaning}, an integer from {low} to {high}; got {value!r}")
    number = int(value)
    if not low <= number <= high:
        raise ValueError(f"{name} is {meaning}, from {low} to {high}; got {value}")
    return number


def check_real(name: str, value: object, low: float, high: float, meaning: str) -> None:
    """Raises: TypeError if `value` is not a number (bool included), ValueError unless it is from `low` to `high`."""
    allowed = f"{name} is {meaning}, {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{allowed}; got {value!r}")
    if not low <= float(value) <= high:  # false for NaN, too
        raise ValueError(f"{allowed}; got {value}")
