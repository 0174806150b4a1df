"""Serves below a path of a proxy, e.g. /images.

The prefix is in the header X-Forwarded-Prefix: from a trusted proxy, or set by `OwnPrefix`. The guards see paths
without it. Only the application, which makes addresses from it, sees it as the `root_path` of ASGI.
"""

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

from sparsegen.service.prefix import HEADER, prefix_of


class OwnPrefix:
    """ASGI middleware for the setting `root_path`: removes the prefix from paths, and sets the header."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self.app, self.prefix = app, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            if path == self.prefix or path.startswith(f"{self.prefix}/"):  # the proxy passes it on
                path = path[len(self.prefix) :] or "/"
            scope = {**scope, "path": path}
            MutableHeaders(scope=scope)[HEADER] = self.prefix
        await self.app(scope, receive, send)


class Prefixed:
    """ASGI middleware, inside of the guards: makes the application use addresses with the prefix of the request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (prefix := prefix_of(Headers(scope=scope))):
            scope = {**scope, "path": prefix + scope["path"], "root_path": prefix}
        await self.app(scope, receive, send)
