"""Forms with pictures: the fields and files of a multipart body, sorted by the definition of the request."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from sparsegen.service.errors import Refused
from sparsegen.service.jobs.store import FILES
from sparsegen.service.requests import RequestModel, schema

MAX_TEXT = 4096  # bytes of a field


@dataclass(frozen=True)
class Form:
    """The texts and the files of a form by their names."""

    texts: dict[str, str]
    uploads: dict[str, UploadFile]

    async def files(self) -> dict[str, bytes]:
        return {name: await upload.read() for name, upload in self.uploads.items()}


@asynccontextmanager
async def read_form(request: Request, model: type[RequestModel]) -> AsyncIterator[Form]:
    """Reads a form with the fields of `model`. Nothing is fetched or opened by a name or an address in it.

    Raises:
        Refused: With 415 for another body; with 422 for an unknown or repeated field, text in place of a file, or a
            file in place of text.
    """
    media = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media != "multipart/form-data":
        raise Refused(415, f"send the picture as multipart/form-data, e.g. with curl -F; got {media[:60]!r}")
    names = [*model.model_fields, *model.old_names]
    async with request.form(max_files=len(FILES), max_fields=len(names), max_part_size=MAX_TEXT) as form:
        yield _sort(form, model)


def form_body(model: type[RequestModel]) -> dict[str, Any]:
    """The body of a route that reads such a form, for OpenAPI."""
    content = {"multipart/form-data": {"schema": schema(model)}}
    return {"requestBody": {"required": True, "content": content}}


def _sort(form: FormData, model: type[RequestModel]) -> Form:
    texts: dict[str, str] = {}
    files: dict[str, UploadFile] = {}
    properties = schema(model)["properties"] | dict.fromkeys(model.old_names, {})
    for name, value in form.multi_items():
        if name not in properties:
            raise Refused(422, f"unknown field {name[:60]!r}: the fields are {', '.join(model.model_fields)}")
        if name in texts or name in files:
            raise Refused(422, f"{name} is given twice: give it once")
        parts = properties[name].get("anyOf", [properties[name]])
        binary = [part.get("format") == "binary" for part in parts if part.get("type") != "null"]
        if isinstance(value, UploadFile):
            if not any(binary):
                raise Refused(422, f"{name} must be text, not a file: omit the file name")
            files[name] = value
        elif all(binary):  # e.g. an address
            raise Refused(422, f"{name} must be a file of the form, as sent by curl -F {name}=@picture.png")
        elif (text := _plain(value)) is not None:
            texts[name] = text
    return Form(texts, files)


def _plain(text: str) -> str | None:
    """The value of a field. BentoML's client sends it as JSON: text in quotation marks, and null for None."""
    if text == "null":
        return None
    if text.startswith('"'):
        try:
            value = json.loads(text)
        except ValueError:
            return text
        return value if isinstance(value, str) else text
    return text
