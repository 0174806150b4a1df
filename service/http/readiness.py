"""GET /readyz: 200 while the server can do all that it is there for, else 503 with one sentence.

GET /livez and /healthz answer 200 as long as the process answers at all: a new process would not bring Redis back.
"""

import time
from collections.abc import Callable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

STALE = 30.0  # seconds after which what was seen last says nothing about now


class Health:
    """What hinders the server, as it was seen last."""

    def __init__(self) -> None:
        self._problem: str | None = "the server is starting: ask again in a moment"
        self._seen_at = time.monotonic()

    def see(self, problem: str | None) -> None:
        """Takes what hinders the server now, in one sentence; None if nothing does."""
        self._problem, self._seen_at = problem, time.monotonic()

    @property
    def problem(self) -> str | None:
        age = time.monotonic() - self._seen_at
        if age > STALE and self._problem is None:
            return f"the store of the jobs has not answered for {age:.0f} seconds"
        return self._problem


class Readiness:
    """ASGI middleware that answers /readyz while something hinders the server; else BentoML does."""

    def __init__(self, app: ASGIApp, health: Callable[[], Health]) -> None:
        self.app, self.health = app, health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/readyz" and (problem := self.health().problem):
            await JSONResponse({"error": problem}, 503, {"retry-after": "5"})(scope, receive, send)
            return
        await self.app(scope, receive, send)
