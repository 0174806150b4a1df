"""The HTTP routes of the restoration jobs: POST /restore, and the state, preview and result of each. No torch.

A restoration takes minutes, so it is asked for, looked after and fetched in requests of their own; the workers
that do it are other processes (`sparsegen.service.worker`), on any machine that reaches the same store.
"""

import asyncio
import logging
import os
import re
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

from anyio import CapacityLimiter
from fastapi import APIRouter, FastAPI, Request
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from sparsegen.pictures import picture as pictures
from sparsegen.pictures.picture import MIN_SIDE, Picture, TooLarge
from sparsegen.pictures.reading import read_picture
from sparsegen.restoration.damage import FACTORS
from sparsegen.restoration.kinds import KINDS, check_damage
from sparsegen.restoration.settings import (
    LOSSES,
    MAX_ENSEMBLE,
    MAX_ITERATIONS,
    MAX_SIGMA,
    OLD_NAMES,
    PRESETS,
    SPARSITIES,
    Task,
    rename_settings,
)
from sparsegen.service import metrics
from sparsegen.service.budget import check_budget
from sparsegen.service.clients import client_of
from sparsegen.service.decoding import DecodersBusy, decoders, patience
from sparsegen.service.errors import Refused
from sparsegen.service.jobs import (
    FILES,
    MAX_WAITING,
    STORED_PIXELS,
    UNHEARD,
    Busy,
    NoWorker,
    Store,
    StoreError,
    StoreFull,
    default_place,
    open_store,
)
from sparsegen.service.options import Options
from sparsegen.service.places import is_redis
from sparsegen.service.readiness import Health
from sparsegen.service.worker import WORKERS
from sparsegen.zoo.noise import MAX_SEED

logger = logging.getLogger(__name__)

MAX_UPLOAD = 32 << 20
MAX_PIXELS = STORED_PIXELS  # of the picture that is computed
TILED = f"{pictures.MAX_PIXELS / 1e6:g} million"  # pixels, of the command line
SCALARS = [field.name for field in fields(Task)]
TEXTS = {*SCALARS, *OLD_NAMES}
INTEGERS = ("seed", "iterations", "ensemble_size", "members", "by")
NUMBERS = {"density": float, "sigma": float, **dict.fromkeys(INTEGERS, int)}
FORMATS = {"png": "image/png", "jpeg": "image/jpeg", "tiff": "image/tiff", "webp": "image/webp"}
REFRESH_EVERY, SWEEP_EVERY = 5, 60
TURN_SECONDS = 20.0  # that an upload waits at most to be read
STORE_SECONDS = 20.0  # more than the store of the jobs takes, or Redis to be found away

ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
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
            "description": "Pairs of iteration and the statistic that decides when to stop.",
            "items": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
        },
        "notes": {"type": "array", "items": {"type": "string"}},
        **NULLABLE,
    },
}
BINARY = {"type": "string", "format": "binary"}
FORM = {
    "type": "object",
    "required": ["image"],
    "additionalProperties": False,
    "properties": {
        "image": BINARY | {"description": f"An image file of up to {MAX_PIXELS:,} pixels."},
        "mask": BINARY | {"description": "Of inpaint: an image of the same size, black outside the holes."},
        "kernel": {
            "description": "Of deblur: gaussian:SIGMA as text, or an image file of the kernel.",
            "anyOf": [{"type": "string", "pattern": "^gaussian:[0-9.]+$"}, BINARY],
        },
        "kind": {"type": "string", "enum": list(KINDS), "default": Task.kind},
        "preset": {"type": "string", "enum": list(PRESETS), "default": Task.preset},
        "regularizer": {"type": "string", "enum": list(SPARSITIES), "default": Task.regularizer},
        "density": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        "sigma": {"type": "number", "minimum": 0, "maximum": MAX_SIGMA},
        "loss": {"type": "string", "enum": list(LOSSES), "default": Task.loss},
        "seed": {"type": "integer", "minimum": 0, "maximum": MAX_SEED, "default": Task.seed},
        "iterations": {"type": "integer", "minimum": 1, "maximum": MAX_ITERATIONS},
        "ensemble_size": {"type": "integer", "minimum": 1, "maximum": MAX_ENSEMBLE},
        "by": {"type": "integer", "enum": list(FACTORS)},
    },
}


def described(content: str, schema: dict, meaning: str) -> dict:
    return {"description": meaning, "content": {content: {"schema": schema}}}


def _answers(status: int, answer: dict, **refusals: str) -> dict[int | str, dict[str, Any]]:
    """The answers of a route, as OpenAPI has them; `default` keeps FastAPI from adding errors of its own form."""
    meanings = refusals | {
        "503": "The jobs cannot be reached.",
        "default": "One sentence says what is wrong.",
    }
    others = {key: described("application/json", ERROR, meaning) for key, meaning in meanings.items()}
    return {status: answer} | {int(key) if key.isdigit() else key: value for key, value in others.items()}


STATE = described("application/json", STATUS, "Where the job is.")
UNKNOWN = "There is no such job."


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keeps the gauges of /metrics and the health of the server right, and old jobs swept, while it runs."""
    app.state.jobs, app.state.health = Jobs(), Health()
    app.state.turns = Turns(Options.from_environment())
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
    summary="Asks for a restoration",
    responses=_answers(
        202,
        STATE
        | {"headers": {"Location": {"description": "Where its state is.", "schema": {"type": "string"}}}},
        **{"400": "The body, or a picture in it, cannot be read.", "413": "The body is too large."},
        **{"415": "The body is no form.", "422": "A value is missing, unknown or out of range."},
        **{"429": "Too many jobs wait, or too many are this client's."},
        **{"503": "No worker lives, the jobs cannot be reached, or too many pictures wait to be read."},
        **{"507": "There is no room for a further job."},
    ),
    openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FORM}}}},
)
async def submit(request: Request) -> JSONResponse:
    """Takes a picture and what is to be done to it, and answers with the id of a job."""
    client = client_of(request)
    await _with(request, lambda store: check_room(store, client))  # before anything is read
    async with _form(request) as form, _turn(request, client):
        given, uploads = _sort(form)
        files = {name: await upload.read() for name, upload in uploads.items()}
        status, _ = await _with(request, lambda store: order(store, given, files, client))
    return JSONResponse(status, 202, {"location": f"restore/{status['id']}"})


@router.get("/{job_id}", summary="Where a job is", responses=_answers(200, STATE, **{"404": UNKNOWN}))
async def state(request: Request, job_id: str) -> JSONResponse:
    """Its place in the queue, its iteration, how much is done, and the curve so far."""
    return JSONResponse(await _status(request, job_id))


@router.get(
    "/{job_id}/preview",
    summary="The present picture of a job",
    response_class=Response,
    responses=_answers(
        200,
        described("image/png", BINARY, "The picture as it is now."),
        **{"404": "There is no such job, or no picture yet."},
    ),
)
async def preview(request: Request, job_id: str) -> Response:
    """The best picture so far, as a PNG."""
    status = await _status(request, job_id)
    content = await _with(request, lambda store: store.preview(job_id))
    if content is None:
        _check_result_possible(status)
        _check_result_kept(status)
        raise HTTPException(404, "there is no picture yet: ask again in a moment", {"retry-after": "2"})
    return Response(content, media_type="image/png", headers={"cache-control": "no-store"})


@router.get(
    "/{job_id}/result",
    summary="The restored picture",
    response_class=Response,
    responses=_answers(
        200,
        {"description": "The picture.", "content": {kind: {"schema": BINARY} for kind in FORMATS.values()}},
        **{"404": UNKNOWN, "409": "The job is not done yet.", "410": "The job failed or was canceled."},
        **{"422": "The picture cannot be had in this format."},
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
    """The restored picture, with the bit depth and the alpha of what was given."""
    form = request.query_params.get("format", "png")
    if form not in FORMATS:
        raise Refused(422, f"format is one of {', '.join(FORMATS)}; got {form[:60]!r}")
    status = await _status(request, job_id)
    _check_result_possible(status)
    content = await _with(request, lambda store: store.result(job_id)) if status["status"] == "done" else None
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


@router.delete("/{job_id}", summary="Deletes a job", responses=_answers(200, STATE, **{"404": UNKNOWN}))
async def delete(request: Request, job_id: str) -> JSONResponse:
    """Cancels a job that waits or runs; removes one that has ended, with its picture. Answers its last state."""
    return JSONResponse(await _status(request, job_id, lambda store: store.delete(job_id)))


class Jobs:
    """The store of a server, opened when it is first asked for, so that a bad place stops nothing else."""

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


class Turns:
    """Whose upload is held in memory and read: one of each client, a few at once; the others lie on the disk.

    One client's pictures, which may take long to decode, so keep no decoder from all others.
    """

    def __init__(self, options: Options) -> None:
        self._all, self._quota = CapacityLimiter(options.decoders), options.jobs_per_client
        self._clients: Counter[str] = Counter()
        self._own: dict[str, asyncio.Lock] = {}

    @asynccontextmanager
    async def of(self, client: str) -> AsyncIterator[None]:
        """Waits for a turn.  Raises: DecodersBusy if too many wait, of all or of this client, or it takes too long."""
        if self._all.statistics().tasks_waiting >= MAX_WAITING:
            raise DecodersBusy.at(MAX_WAITING)
        if self._clients[client] >= self._quota:
            raise DecodersBusy.at(self._quota, " of yours")
        self._clients[client] += 1
        try:
            async with self._waited_for(client):
                yield
        finally:
            self._clients[client] -= 1
            if not self._clients[client]:
                del self._clients[client], self._own[client]

    @asynccontextmanager
    async def _waited_for(self, client: str) -> AsyncIterator[None]:
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(TURN_SECONDS):
                    await held.enter_async_context(self._own.setdefault(client, asyncio.Lock()))
                    await held.enter_async_context(self._all)
            except TimeoutError:
                raise DecodersBusy(f"no picture was read within {TURN_SECONDS:g} seconds") from None
            yield


@dataclass(frozen=True)
class Order:
    """A request that was checked: its task, the picture, notes on it, and the height and width of the result."""

    task: Task
    image: Picture
    notes: list[str]
    size: tuple[int, int]


def longest_submission() -> float:
    """Seconds in which POST /restore answers whatever it is given: the sum of all that limits itself."""
    return TURN_SECONDS + len(FILES) * patience(Options.from_environment()) + STORE_SECONDS


def check_room(store: Store, client: str) -> None:
    """Raises: Busy, NoWorker, StoreError if `order` would refuse whatever this client asks."""
    store.check_room(client=client, quota=Options.from_environment().jobs_per_client)


def order(
    store: Store, given: Mapping[str, str], files: Mapping[str, bytes], client: str
) -> tuple[dict, Picture]:
    """Checks a request and submits it as a job; returns the status of the job, and the picture that was given.

    Raises: Refused as `check`, and with 422 above the budget; Busy, StoreError.
    """
    options, checked = Options.from_environment(), check(given, files)
    try:
        check_budget(checked.task, *checked.size, store.pace(), options)
    except ValueError as error:
        raise Refused(422, str(error)) from None
    effort = checked.task.effort(*checked.size)
    status = store.submit(
        asdict(checked.task),
        files,
        checked.notes,
        effort=effort,
        client=client,
        quota=options.jobs_per_client,
    )
    return status, checked.image


def check(given: Mapping[str, str], files: Mapping[str, bytes]) -> Order:
    """Checks all of a request.

    Raises: Refused with 400 for a picture that cannot be read, else with 422; DecodersBusy.
    """
    values = {name: _number(name, text) if name in NUMBERS else text for name, text in given.items()}
    if "kernel" in files:
        values["kernel"] = "file"
    try:
        values, renamed = rename_settings(values)
        task = Task.of(**values)
    except (TypeError, ValueError) as error:
        raise Refused(422, str(error)[:300]) from None
    _check_files(task, files)
    opened = {name: _read(name, content) for name, content in files.items()}
    image, scale = opened["image"], task.by or 1
    height, width = (side * scale for side in image.pixels.shape[:2])
    if height * width > MAX_PIXELS:
        raise Refused(
            422,
            f"enlarged by {scale} the image has {width} x {height} pixels, and the limit over HTTP is {MAX_PIXELS:,}: "
            f"cut a part out, or use the command line, which takes up to {TILED} in tiles",
        )
    try:
        check_damage(task, opened.get("mask"), opened.get("kernel"), image.pixels.shape[:2])
    except ValueError as error:
        raise Refused(422, str(error)) from None
    notes = renamed + [note for picture in opened.values() for note in picture.notes]
    notes += [task.sigma_warning] if task.sigma_warning else []
    return Order(task, image, notes, (height, width))


def _check_files(task: Task, files: Mapping[str, bytes]) -> None:
    wanted = {"image": True, "mask": task.kind == "inpaint", "kernel": task.kernel == "file"}
    for name, needed in wanted.items():
        if needed and name not in files:
            raise Refused(422, f"{name} is missing: {task.kind} takes it as a file of the form")
        if name in files and not needed:
            raise Refused(422, f"{task.kind} takes no {name}: leave it out, or say another kind")


def _read(name: str, content: bytes) -> Picture:
    try:
        return decoders().read(
            content, f"the {name}", MAX_PIXELS, min_side=1 if name == "kernel" else MIN_SIDE
        )
    except ImportError as error:
        raise Refused(415, str(error)) from None
    except TooLarge as error:
        raise Refused(400, f"{error}; the command line takes up to {TILED}, in tiles") from None
    except ValueError as error:
        raise Refused(400, str(error)) from None


def _number(name: str, text: str) -> int | float:
    kind = NUMBERS[name]
    pattern = r"-?\d{1,30}" if kind is int else r"-?\d{1,30}(\.\d{0,30})?([eE][+-]?\d{1,3})?"
    if not re.fullmatch(pattern, text, re.ASCII):
        what = "an integer" if kind is int else "a number"
        raise Refused(422, f"{name} is {what}, left out for the default; got {text[:60]!r}")
    return kind(text)


@asynccontextmanager
async def _form(request: Request) -> AsyncIterator[FormData]:
    media = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media != "multipart/form-data":
        raise Refused(415, f"send the picture as multipart/form-data, as curl -F does; got {media[:60]!r}")
    async with request.form(max_files=len(FILES), max_fields=len(TEXTS), max_part_size=4096) as form:
        yield form


@asynccontextmanager
async def _turn(request: Request, client: str) -> AsyncIterator[None]:
    """Raises: HTTPException 503 if too many wait, of all or of this client."""
    try:
        async with request.app.state.turns.of(client):
            yield
    except DecodersBusy as error:
        raise _unavailable(error) from None


def _sort(form: FormData) -> tuple[dict[str, str], dict[str, UploadFile]]:
    """Parts the text of a form from its files.

    Raises: Refused with 422 for what is unknown, there twice, or text where a file is to be and the reverse.
    """
    texts, files = {}, {}
    for name, value in form.multi_items():
        if name not in TEXTS and name not in FILES:
            names = ", ".join(dict.fromkeys((*FILES, *SCALARS)))
            raise Refused(422, f"unknown field {name[:60]!r}: a restoration has {names}")
        if name in texts or name in files:
            raise Refused(422, f"{name} is there twice: give it once")
        if isinstance(value, UploadFile):
            if name not in FILES:
                raise Refused(422, f"{name} is text, not a file: leave its file name out")
            files[name] = value
        else:
            if name not in TEXTS:  # it would be an address, and nothing is ever fetched
                raise Refused(
                    422, f"{name} is to be a file of the form, as curl -F {name}=@picture.png sends it"
                )
            texts[name] = value
    return texts, files


async def _status(request: Request, job_id: str, ask: Callable[[Store], dict | None] | None = None) -> dict:
    """Raises: HTTPException 404 if there is no such job."""
    status = await _with(request, ask or (lambda store: store.status(job_id)))
    if status is None:
        raise HTTPException(404, UNHEARD.format(job_id[:40]))
    return status


def _check_result_possible(status: dict) -> None:
    if status["status"] in ("failed", "canceled"):
        reason = f": {status['error']}" if status["error"] else ""
        raise HTTPException(410, f"the job is {status['status']}, so it has no result{reason}")


def _check_result_kept(status: dict) -> None:
    if status["status"] == "done":
        raise HTTPException(410, "the job is done, but its picture is gone from the store: submit it again")


async def _with(request: Request, ask: Callable[[Store], Any]) -> Any:
    """Asks the store, in a thread.

    Raises: HTTPException where it cannot answer, or takes no job.
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
            422, f"the result cannot be had as {form} ({why}): ask for format=png or tiff"
        ) from None


async def _look_after(jobs: Jobs, health: Health) -> None:
    """Sweeps old jobs, and keeps the metrics and what /readyz says up to date."""
    sweep_at, told = 0.0, None
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
        if problem != told:  # once, not every few seconds
            logger.warning("%s", problem) if problem else logger.info("restorations can be had again")
        told = problem
        await asyncio.sleep(REFRESH_EVERY if problem is None else min(1, REFRESH_EVERY))


def _look(store: Store) -> str | None:
    """Brings the metrics of the jobs up to date, and says what is wrong, if something is.

    A server that was started without workers, on a file that no other machine reaches, is not there to restore.

    Raises: StoreError if the store cannot be read or written.
    """
    store.check_writable()
    waiting, running = store.counts()
    workers = store.workers_alive()
    metrics.JOBS_WAITING.set(waiting)
    metrics.JOBS_RUNNING.set(running)
    metrics.WORKERS.set(workers)
    expected = int(os.environ.get(WORKERS, 0)) > 0 or is_redis(default_place())
    return None if workers or not expected else str(NoWorker())
