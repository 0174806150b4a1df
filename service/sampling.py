"""Requests for samples: their definition, decoding, checks and refusals."""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, SkipValidation

from sparsegen.export.runtime import OnnxSampler
from sparsegen.pictures import images
from sparsegen.service.errors import Refused
from sparsegen.service.models import Model
from sparsegen.service.requests import RequestModel, clip, schema
from sparsegen.zoo import noise
from sparsegen.zoo.k_range import KRange, resolve

MAX_COUNT = 64
K = Annotated[int, Field(ge=1)]
PerLevel = Annotated[list[K], Field(min_length=1, max_length=2)]
Label = Annotated[int, Field(ge=0)] | str
FORMATS = {
    "grid": "one PNG with all images side by side",
    "png": "JSON with one base64 PNG per image",
    "npy": "a NumPy file, uint8 (count, H, W, 3)",
}


class ArrayRequest(RequestModel):
    """A request for images as an array. `resolve` checks what depends on the model: k and labels."""

    model_config = ConfigDict(strict=True)

    model: str = Field(description="A name from GET /models.")
    count: int = Field(
        16,
        ge=1,
        le=MAX_COUNT,
        description="The number of images. Image i of a seed does not depend on the count.",
    )
    seed: int = Field(
        0,
        ge=0,
        le=noise.MAX_SEED,
        description="Seed of the noise; the same seed gives the same images.",
    )
    k: SkipValidation[
        K | PerLevel | Annotated[list[PerLevel], Field(min_length=1, max_length=MAX_COUNT)] | None
    ] = Field(
        None,
        description="Sparsity (k): the non-zeros kept, one number for all projected levels or one per level, Γ1 first; "
        "or a list of `count` such lists, one per image; null: the k of training.",
    )
    labels: SkipValidation[
        Label | Annotated[list[Label], Field(min_length=1, max_length=MAX_COUNT)] | None
    ] = Field(
        None,
        description="For conditional models: one class for all images, or a list of `count` classes, as numbers "
        "from 0 or names; null: drawn from the seed.",
    )

    def resolve(self, models: Mapping[str, Model]) -> "SampleOrder":
        """Finds the model, and checks k and labels against it.

        Raises:
            Refused: With 422, or with 404 for an unknown model.
        """
        model = find_model(self.model, models)
        sampler = model.sampler
        try:
            k = _resolve_k(self.k, sampler.k_ranges, self.count)
            labels = noise.labels(self.count, sampler.classes, self.seed, self.labels, sampler.class_names)
        except (TypeError, ValueError) as error:
            raise Refused(422, clip(str(error), 300)) from None
        return SampleOrder(model, self.count, self.seed, k, labels)


class SampleRequest(ArrayRequest):
    """A request for images in one of the FORMATS."""

    format: Literal["grid", "png", "npy"] = Field(
        "grid", description="; ".join(f"{name}: {meaning}" for name, meaning in FORMATS.items()) + "."
    )


@dataclass(frozen=True)
class SampleOrder:
    """A checked request.

    Shape: k int64 (count, levels), the projected ones; labels int64 (count,), or None if the model is unconditional.
    """

    model: Model
    count: int
    seed: int
    k: NDArray[np.int64]
    labels: np.ndarray | None

    def rows(self) -> np.ndarray:
        """The input of the network per image, as one array, so that requests with other labels and k can be merged.

        Shape: (count,) of the fields z, float32 (z_dim,), k, int64 (levels,), and label, int64, 0 for an unconditional
        model.
        """
        z_dim, levels = self.model.sampler.z_dim, self.k.shape[1]
        rows = np.zeros(
            self.count, [("z", np.float32, (z_dim,)), ("k", np.int64, (levels,)), ("label", np.int64)]
        )
        rows["z"], rows["k"] = noise.z(self.count, z_dim, self.seed), self.k
        if self.labels is not None:
            rows["label"] = self.labels
        return rows


def draw(sampler: OnnxSampler, rows: np.ndarray) -> NDArray[np.uint8]:
    """Draws the images of `SampleOrder.rows`.  Shape: uint8 (count, H, W, 3)."""
    k = rows["k"]
    one = (k == k[0]).all()  # faster than one per image, where the graph is not divided
    labels = rows["label"] if sampler.classes else None
    image, _ = sampler.run(
        rows["z"], (k[0] if one else k) if k.shape[1] else None, codes=False, labels=labels
    )
    return images.to_uint8(image)


def _resolve_k(given: object, k_ranges: Sequence[KRange], count: int) -> NDArray[np.int64]:
    """Checks k: one for all images, or a list of lists, one per image.  Shape: (count, levels).

    Raises:
        TypeError, ValueError: As `resolve`, with the image.
    """
    if not (isinstance(given, list) and any(isinstance(each, list) for each in given)):
        return np.array([resolve(given, k_ranges)] * count, np.int64)  # type: ignore[arg-type]  # `resolve` checks it
    if len(given) != count:
        raise ValueError(f"k of each image must be {count} lists, one per image; got {len(given)}")
    rows = []
    for index, each in enumerate(given):
        try:
            if not isinstance(each, list):
                raise TypeError(f"k must be a list, as that of the other images; got {each!r:.60}")
            rows.append(resolve(each, k_ranges))
        except (TypeError, ValueError) as error:
            raise type(error)(f"image {index}: {error}") from None
    return np.array(rows, np.int64)


def read_json(body: bytes, content_type: str) -> dict[str, object]:
    """Decodes the JSON object of a request.

    Raises:
        Refused: With 415, 400 or, for other JSON than an object, 422.
    """
    media = content_type.split(";")[0].strip().lower()
    if media != "application/json":
        hint = "send JSON with the header Content-Type: application/json"
        raise Refused(415, f"{hint}; got {clip(repr(media), 60) if media else 'no content type'}")
    if not body.strip():
        raise Refused(400, 'the body is empty; send JSON such as {"model": "dcgan.ml"}')
    try:
        value = json.loads(body, parse_constant=_no_constant, parse_int=_integer)
    except RecursionError:
        raise Refused(400, "the JSON of the body is nested too deeply") from None
    except UnicodeDecodeError:
        raise Refused(400, "the body is not UTF-8, the encoding of JSON") from None
    except ValueError as error:
        raise Refused(400, f"the body is not valid JSON: {clip(str(error), 200)}") from None
    if not isinstance(value, dict):
        raise Refused(
            422, f'the body must be a JSON object such as {{"model": "dcgan.ml"}}; got {_kind(value)}'
        )
    return value


def request_schema(request: type[ArrayRequest], models: Mapping[str, Model]) -> dict[str, Any]:
    """The JSON schema of a request, with the names, ranges of k and classes of these models."""
    made = schema(request)
    ranges = "; ".join(f"{name}: {_ranges(model)}" for name, model in models.items())
    classes = "; ".join(f"{name}: {', '.join(model.classes) or 'none'}" for name, model in models.items())
    made["properties"]["model"]["enum"] = list(models)
    made["properties"]["k"]["description"] += f" Ranges: {ranges}."
    made["properties"]["labels"]["description"] += f" Classes: {classes}."
    return made | {"example": {"model": next(iter(models), "dcgan.ml"), "count": 16, "seed": 7}}


def _ranges(model: Model) -> str:
    return (
        ", ".join(
            f"1 to {k_range.limit} per {k_range.unit} of Γ{k_range.level}"
            for k_range in model.sampler.k_ranges
        )
        or "none"
    )


def find_model(name: str, models: Mapping[str, Model]) -> Model:
    """Returns a model by its name.  Raises: Refused with 404 if there is none."""
    if name not in models:
        near = difflib.get_close_matches(clip(name, 100), models, 3, 0.4)
        hint = f"similar names: {', '.join(near)}" if near else f"the models are {', '.join(models)}"
        raise Refused(404, f"no model {clip(repr(name), 60)}; {hint}")
    return models[name]


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _integer(digits: str) -> int:
    if len(digits) > 40:
        raise ValueError(f"a number has {len(digits)} digits; at most 40 are allowed")
    return int(digits)


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
