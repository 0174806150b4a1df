"""What to answer when a name is not known. Needs no torch, since the ONNX runtime answers too."""

import difflib
from collections.abc import Iterable


def known_names(name: str, known: Iterable[str]) -> str:
    """Lists the known names, and which of them was probably meant: "a, b, c; did you mean 'b'?"."""
    known = list(known)
    near = difflib.get_close_matches(name, known, 3, 0.4)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return (", ".join(known) or "none") + hint
