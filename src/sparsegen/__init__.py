"""sparsegen: image generators whose inner representation is a sparse code.

Everything public is here and is loaded when first used, so that `import sparsegen` is quick and the parts
that need no torch (`sparsegen.export.runtime`, `sparsegen.zoo.noise`) work where torch is not installed.
"""

import os
from typing import Any

import lazy_loader

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

# The public names, and where they are, stand in __init__.pyi.
_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    try:
        return _load(name)
    except ModuleNotFoundError as error:
        from sparsegen.common.extras import explain

        raise explain(error, f"sparsegen.{name}") from error
