"""A model as a folder for serving: weights in half precision and two small graphs that read them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from sparsegen.common.files import atomic_folder, check_utf8
from sparsegen.export.onnx_file import bundle
from sparsegen.export.parity import ParityReport
from sparsegen.zoo.bundled import AUXILIARY, CONFIG, GRAPH
from sparsegen.zoo.checkpoint import from_pretrained, save_auxiliary_networks
from sparsegen.zoo.hub import HUB_FILES


def export_folder(
    source: Path,
    folder: Path,
    discriminator: bool = False,
    progress: Callable[[int, str], object] | None = None,
    license_id: str | None = None,
) -> ParityReport:
    """Writes the checkpoint in `source` as a folder for `serve`, atomically.

    Args:
        discriminator: Whether to include the discriminator (and encoder) for fine-tuning.
        progress: As in `export_onnx`.
        license_id: License of the weights, e.g. "mit"; None: that of the model, if any.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: As `check_target`, `from_pretrained`,
            `save_auxiliary_networks` and `export_onnx`.
    """
    check_utf8(folder)
    check_target(folder, source)
    generator = from_pretrained(source)
    generator.config |= {"license": license_id} if license_id else {}
    with atomic_folder(folder) as temporary:
        generator.save_pretrained(temporary, dtype=torch.float16)
        if discriminator:
            save_auxiliary_networks(source, temporary, generator.spec, torch.float16)
        return replace(bundle(temporary, progress=progress), path=folder / GRAPH)


def check_target(folder: Path, source: Path) -> None:
    """Checks before any work that the export of `source` may replace `folder`.

    Raises:
        FileExistsError: If `folder` is the source itself, or not an older export.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if folder.resolve() == source.resolve():
        raise FileExistsError(
            f"{folder} is the model itself, and the export would overwrite its weights: choose another folder"
        )
    if names and not {CONFIG, GRAPH} <= names <= {*HUB_FILES, *AUXILIARY.values()}:
        raise FileExistsError(
            f"{folder} holds other files than those of an exported model: choose another folder"
        )
