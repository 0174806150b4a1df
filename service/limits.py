"""A bound on the bytes of a request, which bentoml and gradio do not set."""

from collections.abc import Mapping

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 1 << 20


class BodyLimit:
    """ASGI middleware that reads a body before the app does, and answers 413 once it exceeds `limit` bytes.

    `exceptions` are limits of their own for the methods and paths that need one.

    The bytes are counted as they arrive, so a chunked body without a content-length is bounded too. No more
    than the limit of them are kept; the others are read and dropped, up to `patience` in all, since a client
    that is still sending when the connection closes does not see the answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        limit: int = MAX_BODY,
        patience: int = 64 * MAX_BODY,
        exceptions: Mapping[tuple[str, str], int] | None = None,
    ) -> None:
        self.app, self.limit, self.patience, self.exceptions = app, limit, patience, exceptions or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self.exceptions.get((scope["method"], scope["path"].rstrip("/")), self.limit)
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            more = message.get("more_body", False)
            size += len(message.get("body", b""))
            if size <= limit:
                parts.append(message.get("body", b""))
            elif size > self.patience:
                break
        if size > limit:
            sentence = f"a request has at most {limit:,} bytes; this one has {'more than ' * more}{size:,}"
            await JSONResponse({"error": sentence}, 413, {"connection": "close"})(scope, receive, send)
            return
        replay = iter([{"type": "http.request", "body": b"".join(parts), "more_body": False}])

        async def receive_again() -> Message:
            return next(replay, None) or await receive()

        await self.app(scope, receive_again, send)
