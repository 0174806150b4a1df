"""The models that a server offers: every folder below one models folder that opens."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsegen.export.runtime import OnnxSampler
from sparsegen.zoo import noise
from sparsegen.zoo.bundled import CONFIG, GRAPH, MODELS, SYNTHESIS
from sparsegen.zoo.config import read_entries

ENVIRONMENT = "SPARSEGEN_MODELS"
REMEDY = f"Give another folder: sparsegen serve --models FOLDER, or {ENVIRONMENT}"


@dataclass(frozen=True)
class Model:
    """A model that is being served: its sampler, and what its config tells of it."""

    name: str
    sampler: OnnxSampler
    config: dict[str, Any]

    @property
    def source(self) -> str:
        """What `open_sampler` opens it by: its name if it is bundled, else its folder.

        Where the folder lies is not shown to visitors.
        """
        folder = self.sampler.path.parent.resolve()
        return self.name if folder == MODELS / self.name else f"./{folder.name}"

    @property
    def classes(self) -> list[str]:
        """What its classes are called, in the order of their labels; empty if it is unconditional."""
        return noise.titles(self.sampler.classes, self.sampler.class_names)

    def describe(self) -> dict[str, Any]:
        """What GET /models says of it."""
        return {
            "name": self.name,
            "regularizer": self.sampler.regularizer,
            "k": [
                {
                    "level": k_range.level,
                    "unit": k_range.unit,
                    "trained": k_range.k,
                    "min": 1,
                    "max": k_range.limit,
                }
                for k_range in self.sampler.k_ranges
            ],
            "image_size": self.sampler.image_size,
            "classes": self.classes,
            "license": self.sampler.license,
            "steps": self.config.get("training", {}).get("steps"),
            "evaluation": self.config.get("evaluation"),
        }


def models_folder() -> Path:
    """The folder named by the environment variable SPARSEGEN_MODELS, or that of the bundled models."""
    given = os.environ.get(ENVIRONMENT)
    return Path(given).expanduser() if given else MODELS


def open_models(folder: Path) -> tuple[dict[str, Model], list[str]]:
    """Opens the models below `folder`, by name; and says of each other folder in a sentence why it is none.

    Hidden folders are left out.

    Raises:
        FileNotFoundError: With these sentences if there is no model.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no models to serve: there is no folder {folder}. {REMEDY}")
    models, refused = {}, []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            try:
                models[path.name] = open_model(path)
            except (OSError, ValueError) as error:
                refused.append(f"{path.name} is not served: {error}")
    if not models:
        reasons = "".join(f" {reason}." for reason in refused)
        raise FileNotFoundError(
            f"no models to serve: {folder} holds no folder with a sound {CONFIG}, {GRAPH} and {SYNTHESIS}."
            f"{reasons} {REMEDY}"
        )
    return models, refused


def open_model(folder: Path) -> Model:
    """Opens all that the server needs of a model.

    Raises:
        OSError, ValueError: Naming the file and what is wrong with it.
    """
    config = read_entries(folder)
    sampler = OnnxSampler(folder / GRAPH)
    sampler.dictionary()  # opens the synthesis graph, which the code inspector needs
    return Model(folder.name, sampler, config)
