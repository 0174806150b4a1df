"""The bundled models: folders under zoo/models. Imports no torch, because the ONNX runtime uses it too."""

import fnmatch
from pathlib import Path

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
