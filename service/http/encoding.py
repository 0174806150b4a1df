"""The HTTP route POST /encode: the sparse code of a picture. Does not import torch."""

import asyncio
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from sparsegen.common.hardware import processors
from sparsegen.service import metrics
from sparsegen.service.clients import client_of
from sparsegen.service.encoding import Encoded, EncodeOrder, EncodeRequest, order
from sparsegen.service.http.batching import Overloaded
from sparsegen.service.http.forms import form_body, read_form
from sparsegen.service.http.openapi import answers
from sparsegen.service.http.restoration import turn
from sparsegen.service.jobs.orders import BINARY

PATH = "/encode"
WAITING = 4  # searches that may wait for a processor
RETRY_AFTER = 5.0

PICTURE = {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png"}
NUMBERS = {"type": "array", "items": {"type": "number"}}
FOUND: dict[str, Any] = {
    "type": "object",
    "required": ["model", "k", "psnr", "nonzeros", "density", "image", "reconstruction"],
    "properties": {
        "model": {"type": "string"},
        "k": NUMBERS,
        "psnr": {"type": ["number", "null"], "description": "In dB; null if both images are equal."},
        "nonzeros": NUMBERS | {"description": "Of each code, Γ1 first."},
        "density": NUMBERS,
        "image": PICTURE | {"description": "The given picture, as large as the images of the model."},
        "reconstruction": PICTURE | {"description": "The image of the code."},
    },
}
ANSWER = {
    "description": "The code of the picture in the requested format.",
    "content": {
        "application/json": {"schema": FOUND},
        "image/png": {"schema": BINARY},
        "application/octet-stream": {"schema": BINARY},
    },
}

router = APIRouter()


class Searches:
    """Runs searches in threads, one per processor; some wait, further ones are refused."""

    def __init__(self) -> None:
        self._processors = CapacityLimiter(processors())

    def check_room(self) -> None:
        """Raises: Overloaded if too many searches wait."""
        if self._processors.statistics().tasks_waiting >= WAITING:
            raise Overloaded(RETRY_AFTER, "codes")

    async def __call__(self, checked: EncodeOrder) -> Encoded:
        self.check_room()
        return await to_thread.run_sync(checked.run, limiter=self._processors)


@router.post(
    PATH,
    summary="Finds the sparse code of a picture",
    response_class=Response,
    responses=answers(
        200,
        ANSWER,
        **{"400": "The body or a picture in it cannot be read.", "404": "The model is unknown."},
        **{"413": "The body is too large.", "415": "The body is not a form."},
        **{
            "422": "A value is missing, unknown or out of range.",
            "429": "The client has too many concurrent requests.",
        },
        **{
            "503": "The server is overloaded; Retry-After gives the seconds to wait.",
            "504": "The server did not answer within its time limit.",
        },
    ),
    openapi_extra=form_body(EncodeRequest),
)
async def encode(request: Request) -> Response:
    """Finds the sparse code whose image under the dictionaries of a model is nearest to a picture."""
    state = request.app.state
    state.searches.check_room()  # before the body is read
    async with read_form(request, EncodeRequest) as form, turn(request, client_of(request)):
        given = {**form.texts, **await form.files()}
        form_wanted = EncodeRequest.parse(given).format
        values = {name: value for name, value in given.items() if name != "format"}
        checked = await asyncio.to_thread(order, values, state.models)
    metrics.note_model(request.scope, checked.model.name)
    found = await state.searches(checked)
    return await asyncio.to_thread(_answer, found, form_wanted)


def _answer(found: Encoded, form: str) -> Response:
    if form == "png":
        return Response(found.png(), media_type="image/png")
    if form == "npz":
        headers = {"content-disposition": 'attachment; filename="codes.npz"'}
        return Response(found.npz(), media_type="application/octet-stream", headers=headers)
    return JSONResponse(found.describe())
