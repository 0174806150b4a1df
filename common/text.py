"""Text of other people, e.g. of a downloaded model, in messages, on terminals and in model cards."""

import re

LONGEST = 1000  # characters
# Control characters, which a terminal may obey, and those that reorder the text around them.
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def escape_controls(text: str, keep: str = "") -> str:
    r"""Replaces control characters by escapes that can be read, e.g. \x1b, but for the characters in `keep`.

    >>> escape_controls("a\x1b[31m\n", keep="\n")
    'a\\x1b[31m\n'
    """
    return CONTROLS.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


def check_text(name: str, value: object, longest: int = LONGEST) -> str:
    """Returns a text of one line.

    Raises:
        TypeError: If it is not a string.
        ValueError: If it is empty, longer than `longest` characters, or has control characters.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string; got {value!r:.80}")
    if not 0 < len(value) <= longest or CONTROLS.search(value):
        raise ValueError(
            f"{name} must be 1 to {longest:,} characters without control characters; got {value!r:.80}"
        )
    return value
