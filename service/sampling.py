"""Requests for samples: decoding, checks and refusals."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsegen.service.errors import Refused
from sparsegen.service.models import Model
from sparsegen.zoo import noise
from sparsegen.zoo.k_range import resolve

MAX_COUNT = 64
FORMATS = {
    "grid": "one PNG with all images side by side",
    "png": "JSON with one base64 PNG per image",
    "npy": "a NumPy file, uint8 (count, H, W, 3)",
}
DEFAULTS: dict[str, Any] = {"count": 16, "seed": 0, "k": None, "labels": None, "format": "grid"}


@dataclass(frozen=True)
class SampleRequest:
    """A checked request; `k` has one number per projected level.

    Shape: labels int64 (count,), or None if the model is unconditional.
    """

    model: Model
    count: int
    seed: int
    k: tuple[int, ...]
    labels: np.ndarray | None
    format: str

    @classmethod
    def of(cls, body: object, models: Mapping[str, Model]) -> "SampleRequest":
        """Checks the decoded JSON of a request.

        Raises:
            Refused: With 422, or with 404 for an unknown model.
        """
        if not isinstance(body, dict):
            raise Refused(
                422, f'the body must be a JSON object such as {{"model": "dcgan.ml"}}; got {_kind(body)}'
            )
        for key in body:
            if key not in {"model", *DEFAULTS}:
                raise Refused(422, f"unknown key {_short(key)}: the keys are model, {', '.join(DEFAULTS)}")
        given = DEFAULTS | body
        model = _model(given.get("model"), models)
        if not isinstance(given["format"], str) or given["format"] not in FORMATS:
            raise Refused(422, f"format must be one of {', '.join(FORMATS)}; got {_short(given['format'])}")
        sampler = model.sampler
        try:
            count, seed = noise.check_count(given["count"], MAX_COUNT), noise.check_seed(given["seed"])
            k = tuple(resolve(given["k"], sampler.k_ranges))
            labels = noise.labels(count, sampler.classes, seed, given["labels"], sampler.class_names)
        except (TypeError, ValueError) as error:
            raise Refused(422, _clip(str(error), 300)) from None
        return cls(model, count, seed, k, labels, given["format"])

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


def read_json(body: bytes, content_type: str) -> object:
    """Decodes the JSON of a request.

    Raises:
        Refused: With 415 or 400.
    """
    media = content_type.split(";")[0].strip().lower()
    if media != "application/json":
        hint = "send JSON with the header Content-Type: application/json"
        raise Refused(415, f"{hint}; got {_short(media) if media else 'no content type'}")
    if not body.strip():
        raise Refused(400, 'the body is empty; send JSON such as {"model": "dcgan.ml"}')
    try:
        return json.loads(body, parse_constant=_no_constant, parse_int=_integer)
    except RecursionError:
        raise Refused(400, "the JSON of the body is nested too deeply") from None
    except UnicodeDecodeError:
        raise Refused(400, "the body is not UTF-8, the encoding of JSON") from None
    except ValueError as error:
        raise Refused(400, f"the body is not valid JSON: {_clip(str(error), 200)}") from None


def request_schema(models: Mapping[str, Model]) -> dict[str, Any]:
    """The JSON schema of a request, with the names, ranges of k and classes of these models."""
    ranges = "; ".join(f"{name}: {_ranges(model)}" for name, model in models.items())
    classes = "; ".join(f"{name}: {', '.join(model.classes) or 'none'}" for name, model in models.items())
    k, label = {"type": "integer", "minimum": 1}, {"type": ["integer", "string"], "minimum": 0}
    return {
        "type": "object",
        "required": ["model"],
        "additionalProperties": False,
        "properties": {
            "model": {"type": "string", "enum": list(models), "description": "A name of GET /models."},
            "count": {
                "type": "integer",
                "minimum": 1,
                "maximum": MAX_COUNT,
                "default": DEFAULTS["count"],
                "description": "The number of images. Image i of a seed does not depend on the count.",
            },
            "seed": {
                "type": "integer",
                "minimum": 0,
                "maximum": noise.MAX_SEED,
                "default": DEFAULTS["seed"],
                "description": "Seed of the noise; the same seed gives the same images.",
            },
            "k": {
                "anyOf": [{"type": "null"}, k, {"type": "array", "items": k, "minItems": 1, "maxItems": 2}],
                "default": DEFAULTS["k"],
                "description": "Sparsity (k): the non-zeros kept, one number for all projected levels "
                f"or one per level, Γ1 first; null: the k of training. Ranges: {ranges}.",
            },
            "labels": {
                "anyOf": [
                    {"type": "null"},
                    label,
                    {"type": "array", "items": label, "minItems": 1, "maxItems": MAX_COUNT},
                ],
                "default": DEFAULTS["labels"],
                "description": "For conditional models: one class for all images, or a list of `count` classes, "
                "as numbers from 0 or names; null: drawn from the seed. "
                f"Classes: {classes}.",
            },
            "format": {
                "type": "string",
                "enum": list(FORMATS),
                "default": DEFAULTS["format"],
                "description": "; ".join(f"{name}: {meaning}" for name, meaning in FORMATS.items()) + ".",
            },
        },
        "example": {"model": next(iter(models), "dcgan.ml"), "count": 16, "seed": 7, "format": "grid"},
    }


def _ranges(model: Model) -> str:
    return (
        ", ".join(
            f"1 to {k_range.limit} per {k_range.unit} of Γ{k_range.level}"
            for k_range in model.sampler.k_ranges
        )
        or "none"
    )


def _model(name: object, models: Mapping[str, Model]) -> Model:
    if name is None:
        raise Refused(422, f"model is missing: the models are {', '.join(models)}")
    if not isinstance(name, str):
        raise Refused(
            422, f"model must be a name such as {next(iter(models), 'dcgan.ml')!r}; got {_short(name)}"
        )
    if name not in models:
        near = difflib.get_close_matches(_clip(name, 100), models, 3, 0.4)
        hint = f"similar names: {', '.join(near)}" if near else f"the models are {', '.join(models)}"
        raise Refused(404, f"no model {_short(name)}; {hint}")
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


def _short(value: object) -> str:
    return _clip(repr(value), 60)


def _clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
