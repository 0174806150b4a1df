"""Addresses of the page: the part after the # names the tab and its settings, e.g. #sample&model=dcgan.ml&seed=7&k=16.

It is never sent to the server with a request of the page, so it is in no log.
"""

from collections.abc import Mapping
from urllib.parse import parse_qsl, urlencode

MAX_LENGTH = 2000  # characters of an address that is read


def fragment(tab: str, settings: Mapping[str, object]) -> str:
    """The part of an address after the path; settings that are None are omitted."""
    given = {name: value for name, value in settings.items() if value is not None}
    return "#" + "&".join(filter(None, (tab, urlencode(given, safe=","))))


def read(anchor: object) -> dict[str, str]:
    """The names and values in an address; a name without a value has "". Unknown names are kept."""
    if not isinstance(anchor, str):
        return {}
    return dict(parse_qsl(anchor[:MAX_LENGTH].removeprefix("#"), keep_blank_values=True))
