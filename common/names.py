"""Suggestions for unknown names. Imports no torch, because the ONNX runtime uses it too."""

import difflib
from collections.abc import Iterable

MAX_LISTED = 12


def known_names(name: str, known: Iterable[str]) -> str:
    """Lists the known names, the most similar ones first: "a, b, c; did you mean 'b'?".

    More than `MAX_LISTED` names are not listed if some are similar.
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, 3, 0.4)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else ""
    if near and len(known) > MAX_LISTED:
        return f"{len(known)} names, {hint}"
    return (", ".join(known) or "none") + (f"; {hint}" if hint else "")
