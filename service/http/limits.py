"""Limits for the bodies of requests, which BentoML and Gradio do not have."""

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
MAX_FILES = 4  # per upload; the page sends one. Each takes a folder and a disk block, even if it is small
LEAST = MAX_FILES * (8 << 10)  # minimum bytes counted per upload: a disk block and a folder per file
MAX_BOUNDARY = 256  # bytes; the form parser fails on longer ones
IN_MEMORY = 64 << 10  # bytes of a body; larger ones are kept on the disk
CHUNK = 256 << 10
SECONDS = 300.0  # for a body to arrive: 32 MiB at one megabit per second
# PACE_BYTES must arrive per PACE_SECONDS, or the rest of the body: 0.2 megabits per second.
PACE_SECONDS, PACE_BYTES = 10.0, 256 << 10


class BodyLimit:
    """ASGI middleware that receives the whole body before the app, and refuses it if it exceeds a limit.

    - 413: The body has more than `limit` bytes, or an upload of the page more than MAX_FILES parts. Bytes are counted
      as they arrive, so a chunked body without a content-length is limited too. Bytes beyond the limit are read and
      dropped, up to `patience` in total, because a client that is still sending when the connection closes does not
      see the answer.
    - 507: `room` is exhausted, which limits the temporary files of bodies larger than IN_MEMORY, their parsed copies
      and the files of the page.
    - 408: The body takes longer than `seconds`, or fewer than PACE_BYTES arrive in `pace_seconds`.

    `exceptions` are other limits in bytes by method and path.
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
        # Parsed as in Gradio.
        boundary = parse_options_header(headers.get("content-type", ""))[1].get(b"boundary", b"")
        if len(boundary) > MAX_BOUNDARY:
            await _refusal(400, f"the boundary of a form may have at most {MAX_BOUNDARY} bytes")(
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
                    f"the body arrived too slowly: it must arrive within {self.seconds:g} seconds, and at least "
                    f"{PACE_BYTES >> 10} kB of it in every {self.pace_seconds:g} seconds",
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
        """Receives the body; returns the answer if it is refused. Every PACE_BYTES, `pace` is extended.

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
                refusal = _refusal(
                    413, f"an upload may have at most {MAX_FILES} files: send the others separately"
                )
            if size > limit or refusal is not None:
                body.close()
                continue
            try:
                await body.write(content)
            except NoRoom as error:
                refusal = _refusal(507, str(error))
            except OSError as error:
                logger.error("an upload cannot be written to the temporary folder: %s", error.strerror)
                refusal = _refusal(507, "the server cannot store uploads now: retry in a few minutes")
        if size > limit:
            sentence = (
                f"a request may have at most {limit:,} bytes; this one has {'more than ' * more}{size:,}"
            )
            return _refusal(413, sentence)
        return refusal


class Parts:
    """Counts the parts of a form by their delimiters, while the form arrives in pieces."""

    def __init__(self, boundary: bytes) -> None:
        self._delimiter, self._tail, self._found = b"--" + boundary, b"", 0

    def count(self, content: bytes) -> int:
        """The number of parts so far, including `content`; the delimiter at the end of the form is not counted."""
        content = self._tail + content
        self._found += content.count(self._delimiter)
        self._tail = content[
            max(len(content) - len(self._delimiter) + 1, 0) :
        ]  # may be the start of a delimiter
        return self._found - 1


class _Disconnected(Exception):
    """The client has disconnected."""


class _Body:
    """A received body, in memory or on the disk, and the room that it takes."""

    def __init__(self, room: Room, client: str, stays: bool) -> None:
        self._room, self._client, self._stays, self._taken, self._size = room, client, stays, 0, 0
        self._counts_from = 0 if stays else IN_MEMORY  # small files that remain on the disk count, too
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
        """Takes room for a body of this size, unless it is already taken.  Raises: NoRoom."""
        size = max(size, self._least)
        if size > max(self._counts_from, self._taken):
            await self._room.look()
            self._room.take(size - self._taken, self._client)
            self._taken = size

    async def write(self, content: bytes) -> None:
        """Raises: NoRoom; OSError if the disk is full."""
        self._size += len(content)
        await self.reserve(self._size)
        self._file.write(content)

    def replay(self, receive: Receive) -> Receive:
        """A `receive` that returns the body in pieces, and then the further messages."""
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
