"""Filters the requests of the page before they reach Gradio.

Gradio opens paths in requests, in several forms. Here a request may refer to a file only by the path that this server
returned for an upload, and only the keys that the page needs are passed on.
"""

import json
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sparsegen.service.clients import client_of
from sparsegen.service.errors import Refused, busy
from sparsegen.service.uploads import KEEP_UPLOADS, upload_folder

API = "/ui/gradio_api"
JOIN, DATA = f"{API}/queue/join", f"{API}/queue/data"
EVENTS = [JOIN, *(f"{API}/{name}" for name in ("run/predict", "cancel", "reset"))]  # take JSON from the page
MAX_EVENTS = 48  # in the queue of the page, of all visitors: a few seconds of sampling
MAX_EVENT = 64 << 10  # bytes of an event; the page sends a few kilobytes
# Gradio's answer for an unknown session; Gradio would also log a traceback of 300 lines.
UNKNOWN_SESSION = {
    "msg": "unexpected_error",
    "message": "404: Not Found",
    "session_not_found": True,
    "success": False,
}
FILE = re.compile(rf"{API}/file=(.+)", re.DOTALL)


class PageRequests:
    """ASGI middleware that parses the JSON of the page, and passes on only known keys.

    A file is a path below the upload folder of this server. Other references to files (URLs, names, streams) are
    dropped, so that the server opens and fetches nothing else. An event is answered with 429 if its client has `limit`
    events in the queue, and with 503 if the queue is full. Of a query, only the ids are passed on.

    Args:
        queued: Returns the number of waiting and running events per client (`client_of`).
        handlers: Returns the numbers of the functions that an event may call.
        sessions: Returns the sessions for which Gradio has messages.
    """

    def __init__(
        self,
        app: ASGIApp,
        queued: Callable[[], Counter[str]],
        handlers: Callable[[], Collection[int]],
        sessions: Callable[[], Collection[str]],
        limit: int,
        folder: Callable[[], Path] = upload_folder,
    ) -> None:
        self.app, self.queued, self.handlers, self.sessions = app, queued, handlers, sessions
        self.limit, self.folder = limit, folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/ui"):
            await self.app(scope, receive, send)
            return
        if scope["path"] == JOIN and (refusal := self._no_room(client_of(HTTPConnection(scope)))):
            await refusal(scope, receive, send)
            return
        try:
            scope = {**scope, "query_string": ids(scope["query_string"])}
            if scope["path"] == DATA and not self._has_session(scope["query_string"]):
                answer = f"data: {json.dumps(UNKNOWN_SESSION)}\n\n"
                await Response(answer, media_type="text/event-stream")(scope, receive, send)
                return
            if named := FILE.fullmatch(scope["path"]):
                stored(named[1], self.folder())
            elif scope["path"] in EVENTS:
                event = clean(read_event(await _body(receive), self.handlers()), self.folder())
                scope, receive = _with_body(scope, receive, json.dumps(event).encode())
        except Refused as refusal:
            await JSONResponse({"error": str(refusal)}, refusal.status)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _has_session(self, query: bytes) -> bool:
        return dict(parse_qsl(query.decode())).get("session_hash", "") in self.sessions()

    def _no_room(self, client: str) -> Response | None:
        queued = self.queued()
        if queued[client] >= self.limit:
            sentence = f"one client may have at most {self.limit} events of the page in the queue: wait for an answer"
            return busy(429, sentence, 2)
        if queued.total() >= MAX_EVENTS:
            return busy(
                503, f"{MAX_EVENTS} events of the page are in the queue, the limit: retry in a moment", 5
            )
        return None


KEYS = {"data", "event_data", "event_id", "fn_index", "session_hash", "trigger_id"}  # of an event
MAX_DEPTH = 16  # levels of lists and objects in it
FILE_KEYS = {"path", "url", "meta", "orig_name", "mime_type", "is_stream"}


def read_event(body: bytes, handlers: Collection[int]) -> dict[str, Any]:
    """Decodes an event of the page.

    Args:
        handlers: The numbers of the functions that an event may call; for others, Gradio logs hundreds of lines.

    Raises:
        Refused: With 400 unless it is a JSON object of valid Unicode with short ids and, if any, a known function.
    """
    try:
        event = json.loads(body)
        # Fails for values that an answer cannot contain: single surrogates, infinity, NaN.
        json.dumps(event, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict):
        raise Refused(400, "the body must be a JSON object")
    for name in ("session_hash", "event_id"):  # Gradio stores them
        _check_id(name, event.get(name) or "")
    function = event.get("fn_index")
    if "fn_index" in event and (type(function) is not int or function not in handlers):
        raise Refused(400, f"the page has no function {str(function)[:40]}: reload it")
    return {key: value for key, value in event.items() if key in KEYS}


def ids(query: bytes) -> bytes:
    """The query of a request, reduced to its ids; Gradio would open the file in a `deep_link`.

    Raises:
        Refused: With 400 for an invalid id or too many parameters.
    """
    try:
        given = dict(parse_qsl(query.decode("latin-1"), max_num_fields=32))
    except ValueError:
        raise Refused(400, "a query may have at most 32 parameters") from None
    kept: dict[str, str] = {name: given[name] for name in ("session_hash", "upload_id") if name in given}
    for name, value in kept.items():
        _check_id(name, value)
    return urlencode(kept).encode()


def _check_id(name: str, value: object) -> None:
    if not re.fullmatch(r"[\w-]{0,64}", str(value), re.ASCII):
        raise Refused(400, f"{name} may have at most 64 letters and digits")


def clean(value: object, folder: Path, levels: int = MAX_DEPTH) -> object:
    """A copy of a JSON value in which each file is the path of an uploaded file.

    Raises:
        Refused: With 403 for any other file, with 400 if the value is nested more than `levels` deep.
    """
    if not isinstance(value, list | dict):
        return value
    if levels == 0:
        raise Refused(400, f"an event may be nested at most {MAX_DEPTH} levels deep")
    if isinstance(value, list):
        return [clean(item, folder, levels - 1) for item in value]
    if FILE_KEYS.isdisjoint(value):
        return {key: clean(item, folder, levels - 1) for key, item in value.items()}
    path = stored(value.get("path"), folder)
    return {"path": str(path), "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}


def stored(path: object, folder: Path) -> Path:
    """The path that Gradio returned for an upload: below `folder`, in a folder named by the hash of the file.

    Raises:
        Refused: With 403 for another path, a symbolic link, or a missing file.
    """
    try:
        if isinstance(path, str):
            below = Path(path).relative_to(folder)
            found = folder / below
            regular = stat.S_ISREG(os.lstat(found).st_mode)
            if regular and re.fullmatch(r"[0-9a-f]{64}/[^/]+", str(below)):
                if found.resolve() == folder.resolve() / below:
                    return found
    except (OSError, ValueError):  # missing, in another folder, or not a path
        pass
    raise Refused(
        403,
        f"the picture was removed: the server keeps uploads for {KEEP_UPLOADS // 60} minutes and opens no other file; "
        "drop or pick it again",
    )


async def _body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _with_body(scope: Scope, receive: Receive, body: bytes) -> tuple[Scope, Receive]:
    """The request with its body replaced by JSON."""
    scope = {**scope, "headers": list(scope["headers"])}
    headers = MutableHeaders(scope=scope)
    del headers["transfer-encoding"]
    headers["content-length"], headers["content-type"] = str(len(body)), "application/json"
    replay = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive_again() -> Message:
        return next(replay, None) or await receive()

    return scope, receive_again
