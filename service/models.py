"""The models that a server offers: every folder with a config and an ONNX file below one models folder."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from sparsegen.export.runtime import OnnxSampler, open_sampler
from sparsegen.zoo.bundled import CONFIG, GRAPH, MODELS

ENVIRONMENT = "SPARSEGEN_MODELS"


@dataclass(frozen=True)
class Model:
    """A model that is being served: its sampler, and what its config tells of it."""

    name: str
    sampler: OnnxSampler
    config: dict

    def describe(self) -> dict:
        """What GET /models says of it."""
        return {
            "name": self.name,
            "regularizer": self.sampler.regularizer,
            "k": [
                {"level": dial.level, "unit": dial.unit, "trained": dial.k, "min": 1, "max": dial.limit}
                for dial in self.sampler.dials
            ],
            "license": self.sampler.license,
            "steps": self.config.get("training", {}).get("steps"),
            "evaluation": self.config.get("evaluation"),
        }


def models_folder() -> Path:
    """The folder named by the environment variable SPARSEGEN_MODELS, or that of the bundled models."""
    given = os.environ.get(ENVIRONMENT)
    return Path(given).expanduser() if given else MODELS


def find_models(folder: Path) -> list[Path]:
    """The folders of the models below `folder`.

    Raises: FileNotFoundError if there is none.
    """
    found = sorted(path.parent for path in folder.glob(f"*/{GRAPH}") if (path.parent / CONFIG).is_file())
    if not found:
        raise FileNotFoundError(
            f"no models to serve: {folder} holds no folder with {CONFIG} and {GRAPH}. "
            f"Set {ENVIRONMENT} to a folder that does"
        )
    return found


def open_models(folder: Path) -> dict[str, Model]:
    """Opens every model below `folder`, by name."""
    return {
        path.name: Model(path.name, open_sampler(path), json.loads((path / CONFIG).read_text()))
        for path in find_models(folder)
    }
