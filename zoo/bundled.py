"""The bundled models: folders under zoo/models. Imports no torch, because the ONNX runtime uses it too."""

import fnmatch
import logging
from pathlib import Path

logger = logging.getLogger(__name__)

MODELS = Path(__file__).resolve().parent / "models"
CONFIG, WEIGHTS = "config.json", "generator.safetensors"
# Files of the networks that are needed only for training, by the name of the network.
# "projected": the heads on features of the frozen network named in config.json.
AUXILIARY = {name: f"{name}.safetensors" for name in ("discriminator", "encoder", "projected")}
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")  # never read, because opening one may run code
GRAPH, SYNTHESIS, ENCODING = "generator.onnx", "synthesis.onnx", "encoding.onnx"


def list_models(pattern: str = "*") -> list[str]:
    """Lists the bundled models whose names match a shell pattern, e.g. `dcgan*.ml`."""
    names = sorted(path.parent.name for path in MODELS.glob(f"*/{CONFIG}"))
    return fnmatch.filter(names, pattern)


def warn_of_folder(path: Path) -> None:
    """Warns if a folder has the name of the bundled model, because the bundled model is opened."""
    if path.is_dir():
        logger.warning("%s is the bundled model; to open the folder of this name, give ./%s", path, path)
