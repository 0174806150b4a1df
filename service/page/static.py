"""Access to the style sheet, scripts and HTML of the page, which are files in `static`."""

from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "static"


@cache
def read_static(name: str) -> str:
    """The text of a file in `static`."""
    return (FOLDER / name).read_text(encoding="utf-8")
