"""Tensors that took long to compute, kept in a file: written whole or not at all."""

import logging
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsegen.common.files import atomic_write

log = logging.getLogger(__name__)


def keep(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    """Writes tensors and what is to be known about them; where that fails, warns, since they are still good."""
    try:
        with atomic_write(path) as temporary:
            save_file(tensors, temporary, metadata=about)
    except OSError as error:
        log.warning("%s is not cached, it will be computed again: %s", path.stem, error)


def kept(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """What `keep` wrote, the tensors memory-mapped; None if nothing, or, with a warning, if it is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        log.warning("%s is damaged, it will be computed again: %s", path, error)
        return None


def computed_once(path: Path, version: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors in a file of this version; computed, and kept there, if it is missing, damaged or of another."""
    tensors, about = kept(path) or ({}, {})
    if about.get("format") != version:
        tensors = compute()
        keep(path, tensors, {"format": version})
    return tensors
