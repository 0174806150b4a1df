"""Suggestions for unknown names. Imports no torch, because the ONNX runtime uses it too."""

import difflib
from collections.abc import Iterable


def known_names(name: str, known: Iterable[str]) -> str:
    """Lists the known names and the most similar ones: "a, b, c; did you mean 'b'?"."""
    known = list(known)
    near = difflib.get_close_matches(name, known, 3, 0.4)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return (", ".join(known) or "none") + hint
