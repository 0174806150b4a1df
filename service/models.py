"""The models of a server: bundled ones, folders, and models on the Hub."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparsegen.export.runtime import OnnxSampler, encoding_path, open_graph
from sparsegen.zoo import hub, noise
from sparsegen.zoo.bundled import CONFIG, GRAPH, MODELS, SYNTHESIS, list_models
from sparsegen.zoo.config import read_entries

ENVIRONMENT = "SPARSEGEN_MODELS"
BUNDLED = "bundled"
REMEDY = f"Give models with sparsegen serve --models, or with {ENVIRONMENT}"


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
            "provider": self.sampler.provider,
            "steps": self.config.get("training", {}).get("steps"),
            "evaluation": self.config.get("evaluation"),
        }


def sources(given: str | None = None) -> list[str]:
    """Splits a list of models at its commas; paths become absolute.

    Args:
        given: See `open_models`; None: that of the environment variable SPARSEGEN_MODELS, or the bundled models.
    """
    given = given or os.environ.get(ENVIRONMENT) or BUNDLED
    # The name of a folder may contain a comma.
    parts = [given] if Path(given).expanduser().is_dir() else [part.strip() for part in given.split(",")]
    folders = {part: Path(part).expanduser() for part in parts if part}
    return [
        str(path.resolve()) if path.is_dir() and part not in (BUNDLED, *list_models()) else part
        for part, path in folders.items()
    ]


def sampling_device(device: str) -> str:
    """The device of `OnnxSampler` for the device of a server: "auto" if onnxruntime does not know its kind."""
    return "auto" if device.startswith(("mps", "xpu")) else device


def open_models(*given: str | Path, device: str = "auto") -> tuple[dict[str, Model], list[str]]:
    """Opens models.

    Args:
        given: Each is "bundled" for all bundled models, the name of one, the folder of an exported model, a folder of
            such folders (hidden ones are left out), or owner/name or owner/name@revision on the Hub.
        device: As in `OnnxSampler`.

    Returns:
        The models by name, and a sentence per subfolder that is not a model, with the reason. A model on the Hub is
        named by its id.

    Raises:
        FileNotFoundError: If there is no model, with these sentences.
        OSError, ValueError: If a model that was named cannot be opened.
    """
    models: dict[str, Model] = {}
    refused = []
    for source in given:
        folders = _subfolders(source)
        for folder in folders or [_find(source)]:
            name = folder.name if folders or Path(source).expanduser().is_dir() else str(source)
            try:
                if name in models:
                    raise ValueError("another model has the same name: rename its folder")
                models[name] = replace(open_model(folder, device), name=name)
            except (OSError, ValueError) as error:
                sentence = f"{name} is not served: {error}"
                if not folders:
                    kind = OSError if isinstance(error, OSError) else ValueError
                    raise kind(sentence) from None
                refused.append(sentence)
    if not models:
        reasons = "".join(f" {reason}." for reason in refused)
        raise FileNotFoundError(
            f"no models to serve: no subfolder of {', '.join(map(str, given))} has a valid {CONFIG}, {GRAPH} and "
            f"{SYNTHESIS}.{reasons} {REMEDY}"
        )
    return models, refused


def _subfolders(source: str | Path) -> list[Path]:
    """Returns the models in a folder of models; none if the source is one model.

    Raises:
        FileNotFoundError: If the folder is empty.
    """
    path = MODELS if str(source) == BUNDLED else Path(source).expanduser()
    if str(source) in list_models() or not path.is_dir() or (path / CONFIG).is_file():
        return []
    found = [each for each in sorted(path.iterdir()) if each.is_dir() and not each.name.startswith(".")]
    if not found:
        raise FileNotFoundError(f"no models to serve: {path} has no subfolders. {REMEDY}")
    return found


def _find(source: str | Path) -> Path:
    """Returns the folder of one model.

    Raises:
        OSError, ValueError: If there is none.
    """
    given, path = str(source), Path(source).expanduser()
    if given in list_models():
        return MODELS / given
    if path.is_dir():
        return path
    if hub.may_be_id(given) and not path.parent.is_dir():
        return hub.download(given)
    raise FileNotFoundError(
        f"no models to serve: {given} is not a bundled model, a folder, or owner/name on the Hub. {REMEDY}"
    )


def open_model(folder: Path, device: str = "auto") -> Model:
    """Opens the files of a model.

    Raises:
        OSError, ValueError: With the file and the reason.
    """
    config = read_entries(folder)
    sampler = OnnxSampler(folder / GRAPH, device=device)
    sampler.divide()
    sampler.dictionary()  # opens the synthesis graph, used by the code inspector
    encoding = encoding_path(folder / GRAPH)
    if encoding.is_file() and folder.parent != MODELS:  # those of the package are opened when they are used
        open_graph(encoding)
    return Model(folder.name, sampler, config)
