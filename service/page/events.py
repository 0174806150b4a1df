"""What the page sends to Gradio, read and written anew before Gradio sees it.

Gradio opens paths that a request names, in several shapes. Here a file is named only by a path that this server gave
out for an upload, and only the keys that the page needs are passed on.
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
MAX_EVENTS = 48  # in the queue of the page, of all visitors: some seconds of drawing
MAX_EVENT = 64 << 10  # bytes of it; the page sends a few kilobytes
# What Gradio sends for a session that it does not have, and raises an error besides, of 300 lines in the log.
UNKNOWN_SESSION = {
    "msg": "unexpected_error",
    "message": "404: Not Found",
    "session_not_found": True,
    "success": False,
}
FILE = re.compile(rf"{API}/file=(.+)", re.DOTALL)


class PageRequests:
    """Reads the JSON that the page sends to Gradio, and passes on only what is known, written anew.

    A file is named only by a path below the upload folder of this server. All else that a file could be said to be
    (a URL, a name, a stream) is dropped, so that nothing which a client names is ever opened or fetched. An event
    is refused with 429 if its client has `limit` in the queue, so that nobody fills it alone, and with 503 if the
    queue is full. Of a query only the ids are passed on.

    Args:
        queued: Says how many events of each client, as `client_of` calls it, wait or run.
        handlers: Returns the numbers of the functions that an event may name.
        sessions: Returns the sessions to which Gradio has something to say.
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
            sentence = (
                f"one client has at most {self.limit} events of the page in the queue: wait for an answer"
            )
            return busy(429, sentence, 2)
        if queued.total() >= MAX_EVENTS:
            return busy(503, f"{MAX_EVENTS} events of the page are in the queue: try again in a moment", 5)
        return None


KEYS = {"data", "event_data", "event_id", "fn_index", "session_hash", "trigger_id"}  # of what the page sends
DEEPEST = 16  # levels of lists and objects in it
FILE_KEYS = {"path", "url", "meta", "orig_name", "mime_type", "is_stream"}


def read_event(body: bytes, handlers: Collection[int]) -> dict[str, Any]:
    """Decodes what the page sends when something on it is touched.

    Args:
        handlers: The numbers of the functions that an event may name; what Gradio does not know, it logs in hundreds
            of lines.

    Raises:
        Refused: With 400 unless it is a JSON object of Unicode text with short ids and a known function, if
            any.
    """
    try:
        event = json.loads(body)
        # Fails for what no answer can hold: half of a surrogate pair, infinity, and what is no number.
        json.dumps(event, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict):
        raise Refused(400, "the body is to be a JSON object, as the page sends it")
    for name in ("session_hash", "event_id"):  # Gradio keeps them
        _check_id(name, event.get(name) or "")
    function = event.get("fn_index")
    if "fn_index" in event and (type(function) is not int or function not in handlers):
        raise Refused(400, f"the page has no function {str(function)[:40]}: load it anew")
    return {key: value for key, value in event.items() if key in KEYS}


def ids(query: bytes) -> bytes:
    """The query of a request with nothing in it but the ids that Gradio keeps; it opens what its `deep_link` names.

    Raises:
        Refused: With 400 if an id is long, or there are very many parameters.
    """
    try:
        given = dict(parse_qsl(query.decode("latin-1"), max_num_fields=32))
    except ValueError:
        raise Refused(400, "a query has at most 32 parameters") from None
    kept: dict[str, str] = {name: given[name] for name in ("session_hash", "upload_id") if name in given}
    for name, value in kept.items():
        _check_id(name, value)
    return urlencode(kept).encode()


def _check_id(name: str, value: object) -> None:
    if not re.fullmatch(r"[\w-]{0,64}", str(value), re.ASCII):
        raise Refused(400, f"{name} has at most 64 letters and digits")


def clean(value: object, folder: Path, levels: int = DEEPEST) -> object:
    """A copy of a JSON value in which each file is one that was uploaded, and is nothing but its path.

    Raises:
        Refused: With 403 if a file is not, with 400 if the value has more than `levels`.
    """
    if not isinstance(value, list | dict):
        return value
    if levels == 0:
        raise Refused(400, f"what the page sends is nested at most {DEEPEST} levels deep")
    if isinstance(value, list):
        return [clean(item, folder, levels - 1) for item in value]
    if FILE_KEYS.isdisjoint(value):
        return {key: clean(item, folder, levels - 1) for key, item in value.items()}
    path = stored(value.get("path"), folder)
    return {"path": str(path), "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}


def stored(path: object, folder: Path) -> Path:
    """A path as Gradio gave it out for an upload: below `folder`, in a folder named after the file's hash.

    Raises:
        Refused: With 403 if it is another, or leads through a symbolic link, or no file is there.
    """
    try:
        if isinstance(path, str):
            below = Path(path).relative_to(folder)
            found = folder / below
            regular = stat.S_ISREG(os.lstat(found).st_mode)
            if regular and re.fullmatch(r"[0-9a-f]{64}/[^/]+", str(below)):
                if found.resolve() == folder.resolve() / below:
                    return found
    except (OSError, ValueError):  # nothing there, another folder, or not a path
        pass
    raise Refused(
        403,
        f"the picture is not here: the server keeps an uploaded file for {KEEP_UPLOADS // 60} minutes and opens no "
        "other; drop or pick it again",
    )


async def _body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _with_body(scope: Scope, receive: Receive, body: bytes) -> tuple[Scope, Receive]:
    """The request with another body, of JSON."""
    scope = {**scope, "headers": list(scope["headers"])}
    headers = MutableHeaders(scope=scope)
    del headers["transfer-encoding"]
    headers["content-length"], headers["content-type"] = str(len(body)), "application/json"
    replay = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive_again() -> Message:
        return next(replay, None) or await receive()

    return scope, receive_again
