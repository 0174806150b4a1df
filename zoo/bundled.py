"""The bundled models: folders under zoo/models. Imports no torch, because the ONNX runtime uses it too."""

import fnmatch
import logging
from pathlib import Path

logger = logging.getLogger(__name__)

MODELS = Path(__file__).resolve().parent / "models"
CONFIG, WEIGHTS = "config.json", "generator.safetensors"
# Files of the networks that are needed only for training, by the name of the network.
AUXILIARY = {
    name: f"{name}.safetensors" for name in ("discriminator", "encoder", "projected")
}  # projected: heads on features of the frozen network named in config.json
PICKLES = (
    ".bin",
    ".ckpt",
    ".pickle",
    ".pkl",
    ".pt",
    ".pth",
)  # they run code when opened, so they are never read
GRAPH, SYNTHESIS = "generator.onnx", "synthesis.onnx"


def list_models(pattern: str = "*") -> list[str]:
    """Names of the bundled models that match a shell pattern, e.g. `dcgan*.ml`."""
    names = sorted(path.parent.name for path in MODELS.glob(f"*/{CONFIG}"))
    return fnmatch.filter(names, pattern)


def warn_of_folder(path: Path) -> None:
    """Warns if there is a folder of the same name as the bundled model that is opened instead of it."""
    if path.is_dir():
        logger.warning("%s is the bundled model; to open the folder of this name, give ./%s", path, path)
