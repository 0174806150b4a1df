"""sparsegen: image generators whose inner representation is a sparse code.

Everything public is here and is loaded when first used, so that `import sparsegen` is quick and the parts
that need no torch (`sparsegen.export.runtime`, `sparsegen.zoo.noise`) work where torch is not installed.
"""

import os
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# The libraries below send usage reports, and onnxruntime keeps a device id, unless these are set before they are
# imported. Every process of ours imports this package first. A value that the user has set is kept.
NO_TRACKING = {
    "BENTOML_DO_NOT_TRACK": "True",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
}
for _name, _value in NO_TRACKING.items():
    os.environ.setdefault(_name, _value)

_PUBLIC = {
    "GlobalProjection": "sparsegen.zoo.projections",
    "NeedleProjection": "sparsegen.zoo.projections",
    "from_pretrained": "sparsegen.zoo.checkpoint",
    "list_models": "sparsegen.zoo.bundled",
    "restore": "sparsegen.restoration.restore",
    "sparsify": "sparsegen.zoo.projections",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sparsegen' has no attribute {name!r}; it has {sorted(__all__)}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
