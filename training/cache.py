"""A cache of computed tensors in safetensors files, written atomically."""

import logging
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsegen.common.files import atomic_write

log = logging.getLogger(__name__)


def keep(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    """Writes tensors with metadata. If the file cannot be written, a warning is logged: the tensors remain valid."""
    try:
        with atomic_write(path) as temporary:
            save_file(tensors, temporary, metadata=about)
    except OSError as error:
        log.warning("%s is not cached and will be computed again: %s", path.stem, error)


def kept(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Returns the tensors, memory-mapped, and the metadata of a file written by `keep`.

    None if there is no file, or, with a warning, if it is damaged.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        log.warning("%s is damaged and will be computed again: %s", path, error)
        return None


def computed_once(path: Path, version: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the tensors of a file, or computes and writes them if it is missing, damaged or of another version."""
    tensors, about = kept(path) or ({}, {})
    if about.get("format") != version:
        tensors = compute()
        keep(path, tensors, {"format": version})
    return tensors
