"""The models of a server: the subfolders of its models folder that can be opened."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsegen.export.runtime import OnnxSampler
from sparsegen.zoo import hub, noise
from sparsegen.zoo.bundled import CONFIG, GRAPH, MODELS, SYNTHESIS
from sparsegen.zoo.config import read_entries

ENVIRONMENT = "SPARSEGEN_MODELS"
REMEDY = f"Give another folder with sparsegen serve --models FOLDER or {ENVIRONMENT}"


@dataclass(frozen=True)
class Model:
    """A served model: its name, its sampler and its config."""

    name: str
    sampler: OnnxSampler
    config: dict[str, Any]

    @property
    def source(self) -> str:
        """The argument of `open_sampler` for it: its name if it is bundled or on the Hub, else its folder.

        Only the last part of the folder's path is shown to visitors.
        """
        if self.bundled or hub.may_be_id(self.name):
            return self.name
        return f"./{self.sampler.path.parent.resolve().name}"

    @property
    def bundled(self) -> bool:
        """Whether it is a model of this package."""
        return self.sampler.path.parent.resolve() == MODELS / self.name

    @property
    def classes(self) -> list[str]:
        """The names of its classes, in the order of their labels; empty if it is unconditional."""
        return noise.titles(self.sampler.classes, self.sampler.class_names)

    def describe(self) -> dict[str, Any]:
        """The entry of the model in GET /models."""
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
    """The folder named by the environment variable SPARSEGEN_MODELS, or the folder of the bundled models."""
    given = os.environ.get(ENVIRONMENT)
    return Path(given).expanduser() if given else MODELS


def open_models(folder: Path) -> tuple[dict[str, Model], list[str]]:
    """Opens the models in the subfolders of `folder`, except hidden ones.

    Returns:
        The models by name, and a sentence per subfolder that is not a model, with the reason.

    Raises:
        FileNotFoundError: With these sentences if there is no model.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no models to serve: the folder {folder} does not exist. {REMEDY}")
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
            f"no models to serve: no subfolder of {folder} has a valid {CONFIG}, {GRAPH} and {SYNTHESIS}."
            f"{reasons} {REMEDY}"
        )
    return models, refused


def open_model(folder: Path) -> Model:
    """Opens the files of a model.

    Raises:
        OSError, ValueError: With the file and the reason.
    """
    config = read_entries(folder)
    sampler = OnnxSampler(folder / GRAPH)
    sampler.dictionary()  # opens the synthesis graph, used by the code inspector
    return Model(folder.name, sampler, config)
