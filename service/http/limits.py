"""Bounds on the bytes of requests, which bentoml and gradio do not set."""

import asyncio
import logging
from collections.abc import Mapping
from tempfile import SpooledTemporaryFile

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sparsegen.service.clients import client_of
from sparsegen.service.uploads import UPLOAD, NoRoom, Room

logger = logging.getLogger(__name__)

MAX_BODY = 1 << 20
MAX_FILES = (
    4  # of an upload; the page sends one. Each takes a folder and a block of the disk, however small it is
)
LEAST = MAX_FILES * (
    8 << 10
)  # bytes that an upload counts at least: a block and a folder for each of its files
MAX_BOUNDARY = 256  # bytes, beyond which the parser of forms fails
IN_MEMORY = 64 << 10  # bytes of a body; what is larger lies on the disk
CHUNK = 256 << 10
SECONDS = 300.0  # in which a body has to arrive: 32 MiB at a megabit per second
# In each PACE_SECONDS the rest of a body has to arrive, or PACE_BYTES of it: a fifth of that megabit per second.
PACE_SECONDS, PACE_BYTES = 10.0, 256 << 10


class BodyLimit:
    """ASGI middleware that receives a body before the app does, and answers 413 once it exceeds `limit` bytes.

    `exceptions` are limits of their own for the methods and paths that need one.

    The bytes are counted as they arrive, so a chunked body without a content-length is bounded too. Beyond
    IN_MEMORY they lie in an unnamed temporary file, so memory does not grow with the uploads; `room` bounds those
    files, the parsed copies and what the page keeps, and without room the answer is 507. An upload of the page that
    has more than MAX_FILES parts is answered with 413. Bytes beyond the limit
    are read and dropped, up to `patience` in all, since a client that is still sending when the connection closes
    does not see the answer. A body that takes longer than `seconds`, or of which fewer than PACE_BYTES arrive in
    `pace_seconds`, is answered with 408.
    """

    def __init__(
        self,
        app: ASGIApp,
        limit: int = MAX_BODY,
        patience: int = 64 * MAX_BODY,
        exceptions: Mapping[tuple[str, str], int] | None = None,
        room: Room | None = None,
        seconds: float = SECONDS,
        pace_seconds: float = PACE_SECONDS,
    ) -> None:
        self.app, self.limit, self.patience, self.exceptions = app, limit, patience, exceptions or {}
        self.room, self.seconds, self.pace_seconds = room or Room(), seconds, pace_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].rstrip("/")
        limit = self.exceptions.get((scope["method"], path), self.limit)
        headers = Headers(scope=scope)
        # As Gradio reads it.
        boundary = parse_options_header(headers.get("content-type", ""))[1].get(b"boundary", b"")
        if len(boundary) > MAX_BOUNDARY:
            await _refusal(400, f"the boundary of a form has at most {MAX_BOUNDARY} bytes")(
                scope, receive, send
            )
            return
        with _Body(self.room, client_of(HTTPConnection(scope)), stays=path == UPLOAD) as body:
            try:
                async with asyncio.timeout(self.seconds), asyncio.timeout(self.pace_seconds) as pace:
                    announced = headers.get("content-length", "")
                    parts = Parts(boundary) if path == UPLOAD else None
                    refusal = await self._receive(body, receive, limit, announced, parts, pace)
            except TimeoutError:
                refusal = _refusal(
                    408,
                    f"the body arrives too slowly: it may take {self.seconds:g} seconds, and {PACE_BYTES >> 10} kB of "
                    f"it, or the rest, have to arrive in every {self.pace_seconds:g}",
                )
            except _Disconnected:
                return
            if refusal is not None:
                await refusal(scope, receive, send)
                return
            await self.app(scope, body.replay(receive), send)

    async def _receive(
        self,
        body: "_Body",
        receive: Receive,
        limit: int,
        announced: str,
        parts: "Parts | None",
        pace: asyncio.Timeout,
    ) -> Response | None:
        """Takes the body in; returns the answer if it cannot be taken. `pace` is put off as PACE_BYTES arrive.

        Raises: _Disconnected.
        """
        refusal, size, more = None, 0, True
        try:
            if announced.isdecimal() and len(announced) < 12 and int(announced) <= limit:
                await body.reserve(int(announced))
        except NoRoom as error:
            refusal = _refusal(507, str(error))
        while more and size <= self.patience:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Disconnected
            more, content = message.get("more_body", False), message.get("body", b"")
            size += len(content)
            if size // PACE_BYTES > (size - len(content)) // PACE_BYTES:
                pace.reschedule(asyncio.get_running_loop().time() + self.pace_seconds)
            if parts is not None and parts.count(content) > MAX_FILES and refusal is None:
                refusal = _refusal(413, f"an upload has at most {MAX_FILES} files: send the others apart")
            if size > limit or refusal is not None:
                body.close()
                continue
            try:
                await body.write(content)
            except NoRoom as error:
                refusal = _refusal(507, str(error))
            except OSError as error:
                logger.error("an upload cannot be written to the temporary folder: %s", error.strerror)
                refusal = _refusal(507, "the server cannot store uploads now: try again in some minutes")
        if size > limit:
            sentence = f"a request has at most {limit:,} bytes; this one has {'more than ' * more}{size:,}"
            return _refusal(413, sentence)
        return refusal


class Parts:
    """Counts the parts of a form while it arrives in pieces, by the delimiters before them."""

    def __init__(self, boundary: bytes) -> None:
        self._delimiter, self._tail, self._found = b"--" + boundary, b"", 0

    def count(self, content: bytes) -> int:
        """The parts so far, with those that begin in `content`; the end of the form is a delimiter, too."""
        content = self._tail + content
        self._found += content.count(self._delimiter)
        self._tail = content[
            max(len(content) - len(self._delimiter) + 1, 0) :
        ]  # may be the first part of one
        return self._found - 1


class _Disconnected(Exception):
    """The client is gone."""


class _Body:
    """A body that has arrived, in memory or on the disk, and its part of the room."""

    def __init__(self, room: Room, client: str, stays: bool) -> None:
        self._room, self._client, self._stays, self._taken, self._size = room, client, stays, 0, 0
        self._counts_from = 0 if stays else IN_MEMORY  # small files that stay would fill the room as well
        self._least = LEAST if stays else 0
        self._file = SpooledTemporaryFile(IN_MEMORY)

    def __enter__(self) -> "_Body":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        if self._taken:
            self._room.give_back(self._taken, self._client, self._stays)
            self._taken = 0

    async def reserve(self, size: int) -> None:
        """Takes room for a body of this size, unless that is taken.  Raises: NoRoom."""
        size = max(size, self._least)
        if size > max(self._counts_from, self._taken):
            await self._room.look()
            self._room.take(size - self._taken, self._client)
            self._taken = size

    async def write(self, content: bytes) -> None:
        """Raises: NoRoom; OSError where the disk is full."""
        self._size += len(content)
        await self.reserve(self._size)
        self._file.write(content)

    def replay(self, receive: Receive) -> Receive:
        """What gives the body to the app in pieces, and then what else is received."""
        self._file.seek(0)
        left, done = self._size, False

        async def receive_again() -> Message:
            nonlocal left, done
            if done:
                return await receive()
            content = self._file.read(CHUNK)
            left -= len(content)
            done = left <= 0
            return {"type": "http.request", "body": content, "more_body": not done}

        return receive_again


def _refusal(status: int, sentence: str) -> JSONResponse:
    later = {"retry-after": "60"} if status == 507 else {}
    return JSONResponse({"error": sentence}, status, {"connection": "close"} | later)
