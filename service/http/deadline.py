"""How long an answer may take to begin: one limit for each address, in place of BentoML's single one.

BentoML's counts the time in which a body arrives, leaves a timer behind for every request, and waits for it even where
the client has left or something has broken. It is content with the first message of an answer. So `OwnTime` sends it
a message of our own, which `connections.PlainHead` drops before uvicorn would see it.
"""

import asyncio
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sparsegen.service.errors import busy

UNTIMED: Message = {"type": "sparsegen.untimed"}
SECONDS = 30.0  # from the arrival of a request to the start of its answer
RETRY_AFTER = 10


class OwnTime:
    """Takes requests out of BentoML's time limit. What each of the following takes, it limits itself."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await send(UNTIMED)
        await self.app(scope, receive, send)


class Deadline:
    """Answers 504 to a request whose answer does not begin within `seconds`, and cancels it.

    `exceptions` are limits of their own for the methods and paths that need one. An answer that has begun, as a stream
    of the page, may take any time.
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
            sentence = f"the server did not answer within {seconds:g} seconds: try again later"
            await busy(504, sentence, RETRY_AFTER)(scope, receive, send)
