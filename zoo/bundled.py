"""The bundled models: folders under zoo/models. Needs no torch, since the ONNX runtime finds them too."""

import fnmatch
import logging
from pathlib import Path

logger = logging.getLogger(__name__)

MODELS = Path(__file__).resolve().parent / "models"
CONFIG, WEIGHTS = "config.json", "generator.safetensors"
# What a checkpoint may bring along for fine-tuning, by the names that the training has for the networks.
COMPANIONS = {
    name: f"{name}.safetensors" for name in ("discriminator", "encoder", "projected")
}  # projected: heads over the features of a frozen network, which config.json names
PICKLES = (
    ".bin",
    ".ckpt",
    ".pickle",
    ".pkl",
    ".pt",
    ".pth",
)  # run code when they are opened, so none is read
GRAPH, SYNTHESIS = "generator.onnx", "synthesis.onnx"


def list_models(pattern: str = "*") -> list[str]:
    """Names of the bundled models that match a shell pattern, as `dcgan*.ml`."""
    names = sorted(path.parent.name for path in MODELS.glob(f"*/{CONFIG}"))
    return fnmatch.filter(names, pattern)


def warn_of_folder(path: Path) -> None:
    """Warns if there is a folder of the same name as the bundled model that is opened instead of it."""
    if path.is_dir():
        logger.warning("%s is the bundled model; to open the folder of this name, give ./%s", path, path)
