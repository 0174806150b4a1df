"""Restorations of small pictures in one request: POST /denoise, /inpaint, /upscale and /deblur.

A request is a job like those of POST /restore, with the same workers, limits and budgets. It is removed from the store
when the answer is sent, when the time is over, or when the client has gone.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from sparsegen.pictures.picture import Picture
from sparsegen.restoration.kinds import KINDS
from sparsegen.service.clients import client_of
from sparsegen.service.errors import Refused, busy
from sparsegen.service.http.forms import form_body, read_form
from sparsegen.service.http.openapi import answers, described
from sparsegen.service.http.restoration import turn, with_store
from sparsegen.service.jobs.orders import BINARY, METHODS, MethodRequest, check_room, order
from sparsegen.service.jobs.store import LIVE, Status, Store
from sparsegen.service.settings import ServiceSettings

LOOK_EVERY = 0.2  # seconds between two looks at the job
MARGIN = 10.0  # seconds that the answer of this module may be later than its limit
GONE = 499  # the status of nginx for a client that disconnected; nobody receives it

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

PATHS = [f"/{model.kind}" for model in METHODS]

router = APIRouter()


def longest_wait() -> float:
    """Maximum seconds until one of these routes answers."""
    return ServiceSettings.from_environment().sync_seconds + MARGIN


def _route(model: type[MethodRequest]) -> Handler:
    """Makes the handler of the route for one kind of restoration."""

    async def restore(request: Request) -> Response:
        client, settings = client_of(request), ServiceSettings.from_environment()
        began, seconds = asyncio.get_running_loop().time(), settings.sync_seconds
        job: _Job | None = None
        try:
            async with asyncio.timeout_at(began + seconds) as limit:
                await with_store(request, lambda store: check_room(store, client))  # before the body is read
                async with read_form(request, model) as form, turn(request, client):
                    files = await form.files()
                    asked = model.parse({**form.texts, **files})
                    seconds = asked.wait(settings)
                    limit.reschedule(began + seconds)
                    values = asked.model_dump(exclude={*files, "max_seconds"}, exclude_none=True)
                    values["kind"] = model.kind
                    job = _Job(request, lambda store: order(store, values, files, client, seconds))
                    await job.submitted()
                return await job.answer()
        except TimeoutError:
            return busy(
                504,
                f"{model.kind} was not done within {seconds:g} seconds: set a higher max_seconds (up to "
                f"{settings.sync_seconds:g}), use fewer iterations or a smaller picture, or submit a job with "
                "POST /restore",
                10,
            )
        finally:
            if job is not None:
                job.remove()

    return restore


class _Job:
    """A job that lives as long as its request."""

    def __init__(self, request: Request, submit: Callable[[Store], tuple[Status, Picture]]) -> None:
        self._request = request
        # Continues if the request is canceled, since the thread that submits the job does; `remove` then waits for it.
        self._submission = asyncio.ensure_future(with_store(request, submit))

    async def submitted(self) -> None:
        """Waits until the job is in the store."""
        await asyncio.shield(self._submission)

    async def answer(self) -> Response:
        """Waits for the end of the job; answers with its picture, or with the reason of its failure."""
        job_id = self._submission.result()[0]["id"]
        while not await self._request.is_disconnected():
            status = await with_store(self._request, lambda store: store.status(job_id))
            if status is not None and status["status"] in LIVE:
                await asyncio.sleep(LOOK_EVERY)
                continue
            content = await with_store(self._request, lambda store: store.result(job_id))
            if status is not None and content is not None:
                return Response(content, media_type="image/png", headers={"cache-control": "no-store"})
            if status is not None and status["error"]:
                raise HTTPException(500, status["error"])
            raise HTTPException(
                503, "the picture was removed from the store: try again", {"retry-after": "10"}
            )
        return JSONResponse({"error": "the client has disconnected"}, GONE)

    def remove(self) -> None:
        """Removes the job with its pictures, in the background."""
        task = asyncio.ensure_future(self._remove())
        removals.add(task)
        task.add_done_callback(removals.discard)

    async def _remove(self) -> None:
        try:
            job_id = (await self._submission)[0]["id"]
        except (Refused, HTTPException):  # the client has the reason
            return
        with suppress(HTTPException):  # the store cannot be used, and its log has the reason; the job expires
            for _ in LIVE:  # an unfinished job is first canceled, then removed
                await with_store(self._request, lambda store: store.delete(job_id))


removals: set[asyncio.Task[None]] = set()  # the event loop keeps weak references only


for _model in METHODS:
    router.add_api_route(
        f"/{_model.kind}",
        _route(_model),
        methods=["POST"],
        name=_model.kind,
        summary=f"{KINDS[_model.kind].label}: a small picture in one request",
        description=(
            "Restores a small picture in one request. The result is a PNG with the bit depth and alpha of the given "
            "picture. Larger pictures and longer restorations are jobs, see POST /restore."
        ),
        response_class=Response,
        responses=answers(
            200,
            described("image/png", BINARY, "The restored picture."),
            **{"400": "The body or a picture in it cannot be read.", "413": "The body is too large."},
            **{"415": "The body is not a form.", "422": "A value is missing, unknown or out of range."},
            **{"429": "Too many jobs are waiting or before this one, or the client has too many."},
            **{
                "500": "The restoration failed.",
                "503": "No worker is running, the job store is not available, or too many pictures wait to be read.",
                "504": "The restoration was not done in time.",
                "507": "The server has no room for another job.",
            },
        ),
        openapi_extra=form_body(_model),
    )
