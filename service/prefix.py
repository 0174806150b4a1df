"""The path below which a proxy shows the server, e.g. /images: in the header X-Forwarded-Prefix."""

import re

from starlette.datastructures import Headers

HEADER = "x-forwarded-prefix"
PREFIX = re.compile(r"(/[A-Za-z0-9._~-]{1,64}){1,8}", re.ASCII)


def check_prefix(text: str) -> str:
    """Returns a prefix without the slash at its end; "" stands for none.

    Raises:
        ValueError: Unless it is a path of one to eight plain names, such as /images.
    """
    prefix = text.rstrip("/")
    if prefix and not (PREFIX.fullmatch(prefix) and not {".", ".."} & set(prefix.split("/"))):
        raise ValueError(
            f"a root path is a path such as /images, of at most eight plain names; got {text[:60]!r}"
        )
    return prefix


def prefix_of(headers: Headers) -> str:
    """The prefix of a request; "" without one, or if the header is not a prefix."""
    try:
        return check_prefix(headers.get(HEADER, ""))
    except ValueError:
        return ""
