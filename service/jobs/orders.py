"""Restoration requests: reading from a form, checks, and submission as a job."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, fields

from anyio import CapacityLimiter

from sparsegen.pictures.picture import MAX_PIXELS as LARGEST
from sparsegen.pictures.picture import MIN_SIDE, Picture, TooLarge
from sparsegen.restoration.kinds import check_damage
from sparsegen.restoration.settings import OLD_NAMES, Task, rename_settings
from sparsegen.service.errors import Refused
from sparsegen.service.jobs.budget import check_budget
from sparsegen.service.jobs.decoding import DecodersBusy, decoders, patience
from sparsegen.service.jobs.store import FILES, MAX_WAITING, STORED_PIXELS, Status, Store
from sparsegen.service.settings import ServiceSettings

MAX_UPLOAD = 32 << 20
MAX_PIXELS = STORED_PIXELS  # of the result
TILED = f"{LARGEST / 1e6:g} million"  # pixels; the limit of the command line
SCALARS = [field.name for field in fields(Task)]
TEXTS = {*SCALARS, *OLD_NAMES}
INTEGERS = ("seed", "iterations", "ensemble_size", "members", "by")
NUMBERS: dict[str, type[int] | type[float]] = {
    "density": float,
    "sigma": float,
    **dict.fromkeys(INTEGERS, int),
}
TURN_SECONDS = 20.0  # maximum wait of an upload before it is read
STORE_SECONDS = 20.0  # upper bound for the job store, including the timeout of Redis


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
    store: Store, given: Mapping[str, str], files: Mapping[str, bytes], client: str
) -> tuple[Status, Picture]:
    """Checks a request and submits it as a job; returns the status of the job, and the given picture.

    Raises:
        Refused: As `check`, and with 422 above the budget.
        Busy, StoreError: As `Store.submit`.
    """
    settings, checked = ServiceSettings.from_environment(), check(given, files)
    try:
        check_budget(checked.task, *checked.size, store.pace(), settings)
    except ValueError as error:
        raise Refused(422, str(error)) from None
    effort = checked.task.effort(*checked.size)
    status = store.submit(
        asdict(checked.task),
        files,
        checked.notes,
        effort=effort,
        client=client,
        quota=settings.jobs_per_client,
    )
    return status, checked.image


def check(given: Mapping[str, str], files: Mapping[str, bytes]) -> Order:
    """Checks a request.

    Raises:
        Refused: With 400 or 415 for a picture that cannot be read, else with 422.
        DecodersBusy: If too many pictures wait to be read.
    """
    values: dict[str, object] = {
        name: _number(name, text) if name in NUMBERS else text for name, text in given.items()
    }
    if "kernel" in files:
        values["kernel"] = "file"
    try:
        settings, renamed = rename_settings(values)
        task = Task.of(**settings)
    except (TypeError, ValueError) as error:
        raise Refused(422, str(error)[:300]) from None
    _check_files(task, files)
    opened = {name: _read(name, content) for name, content in files.items()}
    image, scale = opened["image"], task.by or 1
    height, width = (side * scale for side in image.pixels.shape[:2])
    if height * width > MAX_PIXELS:
        raise Refused(
            422,
            f"enlarged by {scale}, the image has {width} x {height} pixels, and the limit over HTTP is {MAX_PIXELS:,}: "
            f"crop it, or use the command line, which allows up to {TILED} in tiles",
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
            raise Refused(422, f"{name} is missing: {task.kind} needs it as a file of the form")
        if name in files and not needed:
            raise Refused(422, f"{task.kind} takes no {name}: omit it, or choose another kind")


def _read(name: str, content: bytes) -> Picture:
    try:
        return decoders().read(
            content, f"the {name}", MAX_PIXELS, min_side=1 if name == "kernel" else MIN_SIDE
        )
    except ImportError as error:
        raise Refused(415, str(error)) from None
    except TooLarge as error:
        raise Refused(400, f"{error}; the command line allows up to {TILED}, in tiles") from None
    except ValueError as error:
        raise Refused(400, str(error)) from None


def _number(name: str, text: str) -> int | float:
    kind = NUMBERS[name]
    pattern = r"-?\d{1,30}" if kind is int else r"-?\d{1,30}(\.\d{0,30})?([eE][+-]?\d{1,3})?"
    if not re.fullmatch(pattern, text, re.ASCII):
        what = "an integer" if kind is int else "a number"
        raise Refused(422, f"{name} must be {what}, or omitted for the default; got {text[:60]!r}")
    return kind(text)
