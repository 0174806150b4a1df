"""Restoration requests: their definition, checks, and submission as a job."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, ClassVar

from anyio import CapacityLimiter
from pydantic import Field, WithJsonSchema

from sparsegen.pictures.picture import MAX_PIXELS as LARGEST
from sparsegen.pictures.picture import MIN_SIDE, Picture, TooLarge
from sparsegen.restoration.damage import FACTORS
from sparsegen.restoration.kinds import KINDS, SERVED, check_damage, damage_note
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
from sparsegen.service.errors import Refused
from sparsegen.service.jobs.budget import check_budget, check_wait, expected_effort, measure_content
from sparsegen.service.jobs.decoding import DecodersBusy, decoders, patience
from sparsegen.service.jobs.store import FILES, MAX_WAITING, STORED_PIXELS, Status, Store
from sparsegen.service.requests import RequestModel, clip
from sparsegen.service.settings import ServiceSettings, variable
from sparsegen.zoo.noise import MAX_SEED

logger = logging.getLogger(__name__)

MAX_UPLOAD = 32 << 20
MAX_PIXELS = STORED_PIXELS  # of the result
TILED = f"{LARGEST / 1e6:g} million"  # pixels; the limit of the command line
LARGER = f"the command line allows up to {TILED}, in tiles"
TURN_SECONDS = 20.0  # maximum wait of an upload before it is read
# Seconds for a result in one request; BentoML's client waits for 30 by default.
DEFAULT_WAIT, MAX_WAIT = 25, 3600
STORE_SECONDS = 20.0  # upper bound for the job store, including the timeout of Redis


BINARY = {"type": "string", "format": "binary"}
Upload = Annotated[bytes, WithJsonSchema(BINARY)]


def _one_of(names: Iterable[object]) -> dict[str, Any]:
    """Adds names to a schema; `Task.of` checks them, and suggests similar ones."""
    return {"enum": list(names)}


class RestoreOptions(RequestModel):
    """The settings that all kinds of restorations have."""

    image: Upload = Field(description=f"An image file of up to {MAX_PIXELS:,} pixels.")
    preset: str = Field(
        Task.preset,
        json_schema_extra=_one_of(PRESETS),
        description="fast stops by itself; paper has the settings of the original; quick has no network, takes "
        "seconds, and only removes noise.",
    )
    regularizer: str = Field(
        Task.regularizer,
        json_schema_extra=_one_of(SPARSITIES),
        description="The constraint on the codes of the network.",
    )
    density: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of non-zeros in a code, for l0_inf and l0; by default that of the regularizer.",
    )
    loss: str = Field(
        Task.loss,
        json_schema_extra=_one_of(LOSSES),
        description="; ".join(f"{name}: {meaning}" for name, meaning in LOSSES.items()) + ".",
    )
    seed: int = Field(Task.seed, ge=0, le=MAX_SEED, description="Seed of the initialization and the noise.")
    iterations: int | None = Field(
        None,
        ge=1,
        le=MAX_ITERATIONS,
        description="The maximum number of iterations; by default that of the preset.",
    )
    ensemble_size: int | None = Field(
        None,
        ge=1,
        le=MAX_ENSEMBLE,
        description="Number of networks averaged; by default that of the preset.",
    )


Sigma = Annotated[
    float | None,
    Field(
        ge=0,
        le=MAX_SIGMA,
        description="Upper bound of the standard deviation of the noise in gray levels; by default estimated.",
    ),
]
Mask = Annotated[
    Upload, Field(description="An image of the same size, white in the holes and black elsewhere.")
]
GAUSSIAN: dict[str, Any] = {"type": "string", "pattern": "^gaussian:[0-9.]+$"}


class RestoreRequest(RestoreOptions):
    """A restoration of any kind, as a job."""

    old_names = OLD_NAMES
    kind: str = Field(
        Task.kind,
        json_schema_extra=_one_of(SERVED),
        description="; ".join(f"{name}: {kind.label.lower()}" for name, kind in SERVED.items()) + ".",
    )
    sigma: Sigma = None
    mask: Mask | None = None
    by: int | None = Field(None, json_schema_extra=_one_of(FACTORS), description="The factor of upscale.")
    kernel: Annotated[str | bytes, WithJsonSchema({"anyOf": [GAUSSIAN, BINARY]})] | None = Field(
        None, description="For deblur: gaussian:SIGMA as text, or an image file of the kernel."
    )


class MethodRequest(RestoreOptions):
    """A restoration of one kind that is answered with the picture."""

    kind: ClassVar[str]
    image: Upload = Field(
        description=f"An image file. The result has at most {ServiceSettings.sync_pixels:,} pixels by default."
    )
    max_seconds: float | None = Field(
        None,
        ge=1,
        le=MAX_WAIT,
        description=f"Seconds until the answer, by default {DEFAULT_WAIT:g}; a restoration that is expected to take "
        f"longer is refused at once. The server allows at most {ServiceSettings.sync_seconds:g} by default.",
    )

    @classmethod
    def model_json_schema(cls, *arguments: Any, **options: Any) -> dict[str, Any]:
        """The schema, with the fields of the kind after `image`: BentoML's clients take positional arguments."""
        made = super().model_json_schema(*arguments, **options)
        last = [name for name in MethodRequest.model_fields if name != "image"]
        made["properties"] = dict(sorted(made["properties"].items(), key=lambda part: part[0] in last))
        return made

    def wait(self, settings: ServiceSettings) -> float:
        """The seconds until the answer.

        Raises:
            Refused: With 422 above the limit of the settings.
        """
        longest = settings.sync_seconds
        if self.max_seconds is None:
            return min(DEFAULT_WAIT, longest)
        if self.max_seconds > longest:
            raise Refused(
                422,
                f"max_seconds is at most {longest:g}; got {self.max_seconds:g}: submit a job with POST /restore; the "
                f"operator can raise {variable('sync_seconds')}",
            )
        return self.max_seconds


class DenoiseRequest(MethodRequest):
    kind = "denoise"
    sigma: Sigma = None


class InpaintRequest(MethodRequest):
    kind = "inpaint"
    mask: Mask
    sigma: Sigma = None


class UpscaleRequest(MethodRequest):
    kind = "upscale"
    by: int = Field(FACTORS[0], json_schema_extra=_one_of(FACTORS), description="The factor.")


class DeblurRequest(MethodRequest):
    kind = "deblur"
    kernel: str = Field(json_schema_extra=GAUSSIAN, description="gaussian:SIGMA, the blur in pixels.")


METHODS: list[type[MethodRequest]] = [DenoiseRequest, InpaintRequest, UpscaleRequest, DeblurRequest]


class Turns:
    """Limits the uploads that are in memory and decoded: one per client, a few in total; others stay on the disk.

    So the pictures of one client, which may take long to decode, do not block the decoders for the others.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._all, self._quota = CapacityLimiter(settings.decoders), settings.jobs_per_client
        self._clients: Counter[str] = Counter()
        self._own: dict[str, asyncio.Lock] = {}

    @asynccontextmanager
    async def of(self, client: str) -> AsyncIterator[None]:
        """Waits for a turn.  Raises: DecodersBusy if too many wait (in total or per client), or after TURN_SECONDS."""
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
    """A checked request: its task, picture and notes, and the (height, width) of the result."""

    task: Task
    image: Picture
    notes: list[str]
    size: tuple[int, int]


def longest_submission() -> float:
    """Maximum seconds until POST /restore answers: the sum of the limits of its steps."""
    return TURN_SECONDS + len(FILES) * patience(ServiceSettings.from_environment()) + STORE_SECONDS


def check_room(store: Store, client: str) -> None:
    """Raises: Busy, NoWorker, StoreError if `order` would refuse any request of this client."""
    store.check_room(client=client, quota=ServiceSettings.from_environment().jobs_per_client)


def order(
    store: Store,
    given: Mapping[str, object],
    files: Mapping[str, bytes],
    client: str,
    waits: float | None = None,
) -> tuple[Status, Picture]:
    """Checks a request and submits it as a job; returns the status of the job, and the given picture.

    Args:
        given: The values of `RestoreRequest` that are not files; numbers may be texts.
        waits: Seconds that the client waits for the result; None if it does not wait.

    Raises:
        Refused: As `check`, and with 422 above the budget, or for a result that is not to be expected in time.
        Busy: As `Store.submit`, and if the result is not to be expected in time because of other jobs.
        StoreError: As `Store.submit`.
    """
    settings, checked = ServiceSettings.from_environment(), check(given, files)
    height, width = checked.size
    if waits is not None and height * width > settings.sync_pixels:
        raise Refused(
            422,
            f"the result has {width} x {height} pixels, and a result in one request has at most "
            f"{settings.sync_pixels:,}: submit a job with POST /restore",
        )
    effort = expected_effort(checked.task, height, width, *measure_content(checked.image.pixels))
    pace = store.pace()
    try:
        check_budget(checked.task, height, width, effort, pace, settings)
        if waits is not None:
            _, ahead = store.ahead()
            check_wait(checked.task.kind, effort, pace, ahead, waits, settings.sync_seconds)
    except ValueError as error:
        raise Refused(422, str(error)) from None
    status = store.submit(
        asdict(checked.task),
        files,
        checked.notes,
        effort=effort,
        client=client,
        quota=settings.jobs_per_client,
    )
    logger.info("job %s submitted: %s, %d x %d pixels", status["id"], checked.task.kind, width, height)
    return status, checked.image


def check(given: Mapping[str, object], files: Mapping[str, bytes]) -> Order:
    """Checks a request.

    Raises:
        Refused: With 400 or 415 for a picture that cannot be read, else with 422.
        DecodersBusy: If too many pictures wait to be read.
    """
    try:
        values, renamed = rename_settings(given)
    except ValueError as error:
        raise Refused(422, str(error)) from None
    request = RestoreRequest.parse({**values, **files})
    task = _task(request)
    _check_files(task, files)
    opened = {name: read_upload(name, content) for name, content in files.items()}
    image, scale = opened["image"], task.by or 1
    height, width = (side * scale for side in image.pixels.shape[:2])
    if height * width > MAX_PIXELS:
        raise Refused(
            422,
            f"enlarged by {scale}, the image has {width} x {height} pixels, and the limit over HTTP is {MAX_PIXELS:,}: "
            f"crop it, or use the command line, which allows up to {TILED} in tiles",
        )
    try:
        damage = check_damage(task, opened.get("mask"), opened.get("kernel"), image.pixels.shape[:2])
    except ValueError as error:
        raise Refused(422, str(error)) from None
    notes = renamed + [note for picture in opened.values() for note in picture.notes]
    notes += [note for note in (task.sigma_warning, damage_note(task, damage)) if note]
    return Order(task, image, notes, (height, width))


def _task(request: RestoreRequest) -> Task:
    values = {field.name: getattr(request, field.name) for field in fields(Task)}
    if isinstance(request.kernel, bytes):
        values["kernel"] = "file"
    if request.kind in KINDS and request.kind not in SERVED:
        raise Refused(422, f"{request.kind} is done on the command line: `sparsegen {request.kind}`")
    try:
        return Task.of(**values)
    except (TypeError, ValueError) as error:
        raise Refused(422, clip(str(error), 300)) from None


def _check_files(task: Task, files: Mapping[str, bytes]) -> None:
    wanted = {"image": True, "mask": task.kind == "inpaint", "kernel": task.kernel == "file"}
    for name, needed in wanted.items():
        if needed and name not in files:
            raise Refused(422, f"{name} is missing: {task.kind} needs it as a file of the form")
        if name in files and not needed:
            raise Refused(422, f"{task.kind} takes no {name}: omit it, or choose another kind")


def read_upload(
    name: str,
    content: bytes,
    larger: str = LARGER,
    max_pixels: int = MAX_PIXELS,
    reduce_to: int | None = None,
) -> Picture:
    """Reads a picture of a form in a decoder's process.

    Args:
        larger: What reads a larger picture, for the message.
        reduce_to: As in `Decoders.read`.

    Raises:
        Refused: With 400 or 415 if it cannot be read.
        DecodersBusy: If too many pictures wait to be read.
    """
    try:
        min_side = 1 if name == "kernel" else MIN_SIDE
        return decoders().read(content, f"the {name}", max_pixels, min_side, reduce_to=reduce_to)
    except ImportError as error:
        raise Refused(415, str(error)) from None
    except TooLarge as error:
        raise Refused(400, f"{error}; {larger}") from None
    except ValueError as error:
        raise Refused(400, str(error)) from None
