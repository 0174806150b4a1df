"""Requests for samples: their definition, decoding, checks and refusals."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, SkipValidation

from sparsegen.service.errors import Refused
from sparsegen.service.models import Model
from sparsegen.service.requests import RequestModel, clip, schema
from sparsegen.zoo import noise
from sparsegen.zoo.k_range import resolve

MAX_COUNT = 64
K = Annotated[int, Field(ge=1)]
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
    k: SkipValidation[K | Annotated[list[K], Field(min_length=1, max_length=2)] | None] = Field(
        None,
        description="Sparsity (k): the non-zeros kept, one number for all projected levels or one per level, Γ1 first; "
        "null: the k of training.",
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
            k = tuple(resolve(self.k, sampler.k_ranges))
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
    """A checked request; `k` has one number per projected level.

    Shape: labels int64 (count,), or None if the model is unconditional.
    """

    model: Model
    count: int
    seed: int
    k: tuple[int, ...]
    labels: np.ndarray | None

    def rows(self) -> np.ndarray:
        """The input of the network per image, as one array, so that requests with different labels can be merged.

        Shape: (count,) of the fields z, float32 (z_dim,), and label, int64, 0 for an unconditional model.
        """
        z_dim = self.model.sampler.z_dim
        rows = np.zeros(self.count, [("z", np.float32, z_dim), ("label", np.int64)])
        rows["z"] = noise.z(self.count, z_dim, self.seed)
        if self.labels is not None:
            rows["label"] = self.labels
        return rows


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
