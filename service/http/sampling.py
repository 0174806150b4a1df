"""The HTTP routes of sampling: GET /models, POST /sample and POST /sample/array. Does not import torch."""

import asyncio
import base64
import io
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from sparsegen.common.hardware import processors
from sparsegen.pictures import images
from sparsegen.service import metrics
from sparsegen.service.http.batching import Batcher
from sparsegen.service.http.openapi import ERROR, described
from sparsegen.service.jobs.orders import BINARY
from sparsegen.service.models import Model
from sparsegen.service.sampling import (
    MAX_COUNT,
    ArrayRequest,
    SampleOrder,
    SampleRequest,
    draw,
    read_json,
)

AnySample = TypeVar("AnySample", bound=ArrayRequest)
BatchKey = tuple[str, tuple[int, ...]]  # the name of a model, and the k that a batch must have, if any

REFUSALS: dict[int | str, dict[str, Any]] = {
    status: described("application/json", ERROR, meaning)
    for status, meaning in {
        400: "The body is not JSON.",
        404: "The model is unknown.",
        413: "The body is too large.",
        415: "The body is not declared as JSON.",
        422: "A value is missing, unknown or out of range.",
        429: "The client has too many concurrent requests.",
        503: "The server is overloaded; Retry-After gives the seconds to wait.",
        504: "The server did not answer within its time limit.",
    }.items()
}
IMAGES = {
    "type": "object",
    "required": ["images"],
    "properties": {
        "images": {
            "type": "array",
            "items": {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png"},
        }
    },
}
PIXELS: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 255}
for _ in ("channels", "columns", "rows", "images"):
    PIXELS = {"type": "array", "items": PIXELS}
DRAWN = {
    "description": "The images in the requested format.",
    "content": {
        "image/png": {"schema": BINARY},
        "application/json": {"schema": IMAGES},
        "application/octet-stream": {"schema": BINARY},
    },
}

router = APIRouter()


@router.get("/models", summary="Lists the models", responses={200: {"content": {"application/json": {}}}})
async def list_models(request: Request) -> JSONResponse:
    """Lists the models of this server: regularizer, ranges of k, classes, training and evaluation."""
    return JSONResponse({"models": [model.describe() for model in request.app.state.models.values()]})


@router.post("/sample", summary="Draws images", responses={200: DRAWN, **REFUSALS}, response_class=Response)
async def sample(request: Request) -> Response:
    """Draws `count` images from one model. The same request gives the same pixels, bit for bit."""
    asked, pixels = await _draw(request, SampleRequest)
    return await asyncio.to_thread(_encode, pixels, asked.format)


@router.post(
    "/sample/array",
    summary="Draws images as an array",
    responses={200: described("application/json", PIXELS, "The images."), **REFUSALS},
    response_class=Response,
)
async def sample_array(request: Request) -> Response:
    """Draws the images of POST /sample as a JSON array (count, H, W, 3) of integers from 0 to 255."""
    _, pixels = await _draw(request, ArrayRequest)
    return await asyncio.to_thread(lambda: JSONResponse(pixels.tolist()))


async def _draw(request: Request, model: type[AnySample]) -> tuple[AnySample, np.ndarray]:
    """Reads a request, and draws its images: uint8 (count, H, W, 3)."""
    state = request.app.state
    state.batcher.check_room()  # before the body is read
    content, kind = await request.body(), request.headers.get("content-type", "")

    def check() -> tuple[AnySample, SampleOrder]:
        asked = model.parse(read_json(content, kind))
        return asked, asked.resolve(state.models)

    asked, order = await asyncio.to_thread(check)
    metrics.note_model(request.scope, order.model.name)
    return asked, await state.batcher(_key(order), order.rows())


def _key(order: SampleOrder) -> BatchKey:
    """Requests with different k share a batch if the compiled loops project; onnxruntime is slower at that."""
    return order.model.name, () if order.model.sampler.divided else tuple(order.k.ravel())


def _encode(pixels: np.ndarray, form: str) -> Response:
    """Encodes images, uint8 (count, H, W, 3), in the requested format."""
    if form == "png":
        return JSONResponse({"images": [base64.b64encode(images.png(image)).decode() for image in pixels]})
    if form == "npy":
        buffer = io.BytesIO()
        np.save(buffer, pixels)
        headers = {"content-disposition": 'attachment; filename="samples.npy"'}
        return Response(buffer.getvalue(), media_type="application/octet-stream", headers=headers)
    return Response(images.png(images.grid(pixels)), media_type="image/png")


def create_batcher(models: Mapping[str, Model]) -> Batcher[BatchKey]:
    """Makes a batcher that merges requests with the same model, and reports batch sizes in /metrics."""
    return Batcher(
        lambda key, rows: draw(models[key[0]].sampler, rows),
        MAX_COUNT,
        workers=processors(),
        observe=metrics.BATCH_IMAGES.observe,
        kind=lambda key: key[0],
    )
