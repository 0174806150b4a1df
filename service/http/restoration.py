"""The HTTP routes of restoration jobs: POST /restore, and the state, preview and result of a job. Without torch.

A restoration takes minutes, so submission, state and result are separate requests. The workers are other processes
(`sparsegen.service.jobs.worker`), on any machine that reaches the same store.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from fastapi import APIRouter, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from sparsegen.pictures.reading import read_picture
from sparsegen.service import metrics
from sparsegen.service.clients import client_of
from sparsegen.service.errors import Refused
from sparsegen.service.http.forms import form_body, read_form
from sparsegen.service.http.openapi import answers, described
from sparsegen.service.http.readiness import Health
from sparsegen.service.jobs.decoding import DecodersBusy
from sparsegen.service.jobs.errors import LEASE, Busy, NoWorker, StoreError, StoreFull
from sparsegen.service.jobs.orders import BINARY, RestoreRequest, Turns, check_room, order
from sparsegen.service.jobs.places import default_place, is_redis
from sparsegen.service.jobs.store import JOB_NOT_FOUND, STORED_PIXELS, Status, Store, open_store
from sparsegen.service.settings import ServiceSettings

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

FORMATS = {"png": "image/png", "jpeg": "image/jpeg", "tiff": "image/tiff", "webp": "image/webp"}
REFRESH_EVERY, SWEEP_EVERY = 5, 60

NULLABLE = {name: {"type": [kind, "null"]} for name, kind in (
    ("position", "integer"), ("iteration", "integer"), ("fraction", "number"), ("seconds", "number"),
    ("seconds_left", "number"), ("best_iteration", "integer"), ("stopped_because", "string"), ("error", "string"),
)}  # fmt: skip
STATUS = {
    "type": "object",
    "required": ["id", "status", "history", "notes", *NULLABLE],
    "properties": {
        "id": {"type": "string"},
        "status": {"type": "string", "enum": ["waiting", "running", "done", "failed", "canceled"]},
        "history": {
            "type": "array",
            "description": "Pairs of iteration and the statistic of the stopping rule.",
            "items": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
        },
        "notes": {"type": "array", "items": {"type": "string"}},
        **NULLABLE,
    },
}

STATE = described("application/json", STATUS, "The state of the job.")
UNKNOWN = "The job is unknown."


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Updates the gauges of /metrics and the health of the server, and removes old jobs, while the server runs."""
    app.state.jobs, app.state.health = Jobs(), Health()
    app.state.turns = Turns(ServiceSettings.from_environment())
    task = asyncio.create_task(_look_after(app.state.jobs, app.state.health))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        app.state.jobs.close()


router = APIRouter(prefix="/restore", lifespan=lifespan)


@router.post(
    "",
    status_code=202,
    summary="Submits a restoration",
    responses=answers(
        202,
        STATE
        | {
            "headers": {
                "Location": {"description": "The address of its state.", "schema": {"type": "string"}}
            }
        },
        **{"400": "The body or a picture in it cannot be read.", "413": "The body is too large."},
        **{"415": "The body is not a form.", "422": "A value is missing, unknown or out of range."},
        **{"429": "Too many jobs are waiting, or the client has too many."},
        **{
            "503": "No worker is running, the job store is not available, or too many pictures wait to be read."
        },
        **{"507": "The server has no room for another job."},
    ),
    openapi_extra=form_body(RestoreRequest),
)
async def submit(request: Request) -> JSONResponse:
    """Submits a picture and the settings of its restoration; answers with the id of the job."""
    client = client_of(request)
    await with_store(request, lambda store: check_room(store, client))  # before the body is read
    async with read_form(request, RestoreRequest) as form, turn(request, client):
        files = await form.files()
        status, _ = await with_store(request, lambda store: order(store, form.texts, files, client))
    return JSONResponse(status, 202, {"location": f"restore/{status['id']}"})


@router.get(
    "/{job_id}", summary="Shows the state of a job", responses=answers(200, STATE, **{"404": UNKNOWN})
)
async def state(request: Request, job_id: str) -> JSONResponse:
    """The position in the queue, the iteration, the progress, and the curve of the stopping statistic."""
    return JSONResponse(await _status(request, job_id))


@router.get(
    "/{job_id}/preview",
    summary="The current picture of a job",
    response_class=Response,
    responses=answers(
        200,
        described("image/png", BINARY, "The current picture."),
        **{"404": "The job is unknown or has no picture yet."},
    ),
)
async def preview(request: Request, job_id: str) -> Response:
    """The best picture so far, as a PNG."""
    status = await _status(request, job_id)
    content = await with_store(request, lambda store: store.preview(job_id))
    if content is None:
        _check_result_possible(status)
        _check_result_kept(status)
        raise HTTPException(404, "there is no picture yet: retry in a moment", {"retry-after": "2"})
    return Response(content, media_type="image/png", headers={"cache-control": "no-store"})


@router.get(
    "/{job_id}/result",
    summary="The restored picture",
    response_class=Response,
    responses=answers(
        200,
        {"description": "The picture.", "content": {kind: {"schema": BINARY} for kind in FORMATS.values()}},
        **{"404": UNKNOWN, "409": "The job is not done yet.", "410": "The job failed or was canceled."},
        **{"422": "The picture cannot be encoded in this format."},
    ),
    openapi_extra={
        "parameters": [
            {
                "name": "format",
                "in": "query",
                "required": False,
                "schema": {"type": "string", "enum": list(FORMATS), "default": "png"},
            }
        ]
    },
)
async def result(request: Request, job_id: str) -> Response:
    """The restored picture, with the bit depth and alpha of the given one."""
    form = request.query_params.get("format", "png")
    if form not in FORMATS:
        raise Refused(422, f"format must be one of {', '.join(FORMATS)}; got {form[:60]!r}")
    status = await _status(request, job_id)
    _check_result_possible(status)
    content = (
        await with_store(request, lambda store: store.result(job_id)) if status["status"] == "done" else None
    )
    if content is None:
        _check_result_kept(status)
        left = status["seconds_left"]
        raise HTTPException(
            409,
            f"the job is {status['status']}, not done: its state is at /restore/{job_id}",
            {"retry-after": str(min(max(round(left or 2), 1), 3600))},
        )
    if form != "png":
        content = await asyncio.to_thread(_encode, content, form)
    headers = {"content-disposition": f'inline; filename="restored.{form}"'}
    return Response(content, media_type=FORMATS[form], headers=headers)


@router.delete("/{job_id}", summary="Deletes a job", responses=answers(200, STATE, **{"404": UNKNOWN}))
async def delete(request: Request, job_id: str) -> JSONResponse:
    """Cancels an unfinished job; removes a finished one and its picture. Answers its last state."""
    return JSONResponse(await _status(request, job_id, lambda store: store.delete(job_id)))


class Jobs:
    """The job store of a server, opened on first use, so that the rest of the server works without it."""

    def __init__(self) -> None:
        self._store: Store | None = None
        self._lock = threading.Lock()

    def __call__(self) -> Store:
        with self._lock:
            if self._store is None:
                self._store = open_store()
            return self._store

    def close(self) -> None:
        with self._lock:
            if self._store is not None:
                self._store.close()


@asynccontextmanager
async def turn(request: Request, client: str) -> AsyncIterator[None]:
    """Waits for a turn of the client.  Raises: HTTPException 503 if too many requests wait."""
    try:
        async with request.app.state.turns.of(client):
            yield
    except DecodersBusy as error:
        raise _unavailable(error) from None


async def _status(
    request: Request, job_id: str, ask: Callable[[Store], Status | None] | None = None
) -> Status:
    """Raises: HTTPException 404 if the job is unknown."""
    status = await with_store(request, ask or (lambda store: store.status(job_id)))
    if status is None:
        raise HTTPException(404, JOB_NOT_FOUND.format(job_id[:40]))
    return status


def _check_result_possible(status: Status) -> None:
    if status["status"] in ("failed", "canceled"):
        reason = f": {status['error']}" if status["error"] else ""
        raise HTTPException(410, f"the job is {status['status']}, so it has no result{reason}")


def _check_result_kept(status: Status) -> None:
    if status["status"] == "done":
        raise HTTPException(
            410, "the job is done, but its picture was removed from the store: submit it again"
        )


async def with_store(request: Request, ask: Callable[[Store], Answer]) -> Answer:
    """Calls `ask` with the store, in a thread.

    Raises:
        HTTPException: If the store fails or accepts no job.
    """
    try:
        return await asyncio.to_thread(lambda: ask(request.app.state.jobs()))
    except Busy as error:
        raise _unavailable(error) from None
    except StoreError as error:
        logger.error("%s", error)
        status = 507 if isinstance(error, StoreFull) else 503
        raise HTTPException(status, error.public, {"retry-after": "10"}) from None


def _unavailable(error: Busy) -> HTTPException:
    return HTTPException(error.status, str(error), {"retry-after": str(error.retry_after)})


def _encode(content: bytes, form: str) -> bytes:
    picture = read_picture(content, "the result", STORED_PIXELS)
    try:
        return picture.encode(f".{form}")
    except ValueError as error:
        why = str(error).removeprefix(f".{form}: ").partition("; write")[0]
        raise Refused(
            422, f"the result cannot be encoded as {form} ({why}): use format=png or tiff"
        ) from None


async def _look_after(jobs: Jobs, health: Health) -> None:
    """Removes old jobs, and updates the metrics and the health of the server."""
    sweep_at, logged, began = 0.0, None, time.monotonic()
    while True:
        try:
            if time.monotonic() >= sweep_at:
                await asyncio.to_thread(lambda: jobs().sweep())
                sweep_at = time.monotonic() + SWEEP_EVERY
            problem = await asyncio.to_thread(lambda: _look(jobs()))
            public = problem
        except StoreError as error:
            problem, public = str(error), error.public
        health.see(public)
        starting = problem == str(NoWorker()) and time.monotonic() - began < LEASE
        if problem != logged and not starting:  # once, not every few seconds
            logger.warning("%s", problem) if problem else logger.info("restorations are available again")
            logged = problem
        await asyncio.sleep(REFRESH_EVERY if problem is None else min(1, REFRESH_EVERY))


def _look(store: Store) -> str | None:
    """Updates the metrics of the jobs; returns a sentence if there is a problem, else None.

    A missing worker is a problem only if one is expected: the server starts workers itself, or shares a Redis.

    Raises:
        StoreError: If the store cannot be read or written.
    """
    store.check_writable()
    waiting, running = store.counts()
    workers = store.workers_alive()
    metrics.JOBS_WAITING.set(waiting)
    metrics.JOBS_RUNNING.set(running)
    metrics.WORKERS.set(workers)
    metrics.OLDEST.set(store.oldest_waiting())
    metrics.OUTCOMES.counts = store.outcomes()
    expected = ServiceSettings.from_environment().workers > 0 or is_redis(default_place())
    return None if workers or not expected else str(NoWorker())
