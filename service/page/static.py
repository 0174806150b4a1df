"""The style sheets, scripts and pieces of HTML of the page, as files beside this module."""

from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "static"


@cache
def read_static(name: str) -> str:
    """The text of a file in `static`."""
    return (FOLDER / name).read_text(encoding="utf-8")
