"""Requests as pydantic models: one definition gives the checks, the sentences of errors, the schema and its help."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, TypeVar, get_args

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from sparsegen.service.errors import Refused

Parsed = TypeVar("Parsed", bound="RequestModel")


class RequestModel(BaseModel):
    """The fields of a request. Unknown ones are refused.

    The description of a field states what it is; its bounds and its type give the rest of an error.
    """

    old_names: ClassVar[Collection[str]] = ()  # of fields; replaced before `parse`
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def parse(cls: type[Parsed], values: Mapping[str, object]) -> Parsed:
        """Checks the values of a request.

        Raises:
            Refused: With 422 and a sentence on the first error.
        """
        needed = {name for name, field in cls.model_fields.items() if field.is_required()}
        given = {name: value for name, value in values.items() if value is not None or name not in needed}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise Refused(422, cls._sentence(error.errors(include_url=False)[0])) from None

    @classmethod
    def _sentence(cls, error: ErrorDetails) -> str:
        name = str(error["loc"][0])
        if error["type"] == "extra_forbidden":
            return f"unknown field {name[:60]!r}: the fields are {', '.join(cls.model_fields)}"
        field = cls.model_fields[name]
        if error["type"] == "missing":
            return f"{name} is missing: {_lower(field.description or '')}"
        return f"{name} must be {_allowed(field)}; got {clip(repr(error['input']), 60)}"


def schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a request, without the titles that pydantic makes of the names."""
    made = model.model_json_schema()
    for part in (made, *made["properties"].values()):
        part.pop("title", None)
    made.pop("description", None)  # the docstring is for readers of the code
    return made


def clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _allowed(field: FieldInfo) -> str:
    """The allowed values of a field in words, e.g. "an integer from 1 to 64"."""
    types = {type(None)} ^ {field.annotation, *get_args(field.annotation)}
    if names := [value for value in get_args(field.annotation) if isinstance(value, str)]:
        return f"one of {', '.join(names)}"
    if not types & {int, float}:
        return "text"
    kind = "an integer" if int in types else "a number"
    low = next((f"from {bound.ge}" for bound in field.metadata if isinstance(bound, Ge)), "")
    above = next((f"above {bound.gt}" for bound in field.metadata if isinstance(bound, Gt)), "")
    high = next((f"{bound.le}" for bound in field.metadata if isinstance(bound, Le)), "")
    to = f"to {high}" if low else f"and at most {high}"
    return f"{kind} {low}{above} {to}" if high else kind


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")
