"""Time limits for the start of an answer, per address, in place of BentoML's single limit.

BentoML's limit includes the time in which a body arrives, and keeps a timer per request even after the client has
disconnected or the request has failed. It is satisfied by the first message of an answer. So `OwnTime` sends it a
message of our own, which `connections.PlainHead` drops before it reaches uvicorn.
"""

import asyncio
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sparsegen.service.errors import busy

UNTIMED: Message = {"type": "sparsegen.untimed"}
SECONDS = 30.0  # from the arrival of a request to the start of its answer
RETRY_AFTER = 10


class OwnTime:
    """Exempts requests from BentoML's time limit. The following middleware has its own limits."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await send(UNTIMED)
        await self.app(scope, receive, send)


class Deadline:
    """Cancels a request whose answer does not begin within `seconds`, and answers 504.

    `exceptions` are other limits in seconds by method and path. The rest of an answer, e.g. a stream of the page, has
    no limit.
    """

    def __init__(
        self,
        app: ASGIApp,
        seconds: float = SECONDS,
        exceptions: Mapping[tuple[str, str], float] | None = None,
    ) -> None:
        self.app, self.seconds, self.exceptions = app, seconds, exceptions or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        seconds = self.exceptions.get((scope["method"], scope["path"].rstrip("/")), self.seconds)

        async def send_noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                limit.reschedule(None)
            await send(message)

        try:
            async with asyncio.timeout(seconds) as limit:
                await self.app(scope, receive, send_noting)
        except TimeoutError:
            if not limit.expired():
                raise
            sentence = f"the server did not answer within {seconds:g} seconds: retry later"
            await busy(504, sentence, RETRY_AFTER)(scope, receive, send)
