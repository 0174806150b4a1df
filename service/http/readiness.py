"""GET /readyz: 200 while the server can accept all requests, else 503 with one sentence.

GET /livez and /healthz answer 200 while the process responds: restarting it would not repair e.g. Redis.
"""

import time
from collections.abc import Callable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

STALE = 30.0  # seconds after which the last check is too old


class Health:
    """The result of the last check."""

    def __init__(self) -> None:
        self._problem: str | None = "the server is starting: retry in a moment"
        self._seen_at = time.monotonic()

    def see(self, problem: str | None) -> None:
        """Stores the result of a check: a sentence that states the problem, None if there is none."""
        self._problem, self._seen_at = problem, time.monotonic()

    @property
    def problem(self) -> str | None:
        age = time.monotonic() - self._seen_at
        if age > STALE and self._problem is None:
            return f"the job store has not answered for {age:.0f} seconds"
        return self._problem


class Readiness:
    """ASGI middleware that answers /readyz while there is a problem; otherwise BentoML answers it."""

    def __init__(self, app: ASGIApp, health: Callable[[], Health]) -> None:
        self.app, self.health = app, health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/readyz" and (problem := self.health().problem):
            await JSONResponse({"error": problem}, 503, {"retry-after": "5"})(scope, receive, send)
            return
        await self.app(scope, receive, send)
