"""Connections before they are requests: how long a head may take, and which bytes of it are passed on.

BentoML starts uvicorn and leaves the protocol to it, so `use` puts this one in the place of uvicorn's default.
"""

import asyncio
import re
from urllib.parse import quote

import uvicorn.config
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEAD_SECONDS = 10.0  # from the start of a connection, or from the first byte of a further request
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
NOT_ASCII = re.compile(rb"[^\t -~]")
CHARSET = re.compile(rb';\s*charset\s*=\s*("[^"]*"|[^;]*)', re.IGNORECASE)


def use() -> None:
    """Makes uvicorn serve with `Connection`."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{Connection.__name__}"


class Connection(AutoHTTPProtocol):
    """uvicorn's protocol, which closes a connection whose head does not arrive in time, and takes no WebSockets."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)
        self.app = PlainHead(self.app)
        self.ws_protocol_class = None
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait_for_head()
        else:
            self._stop_waiting()

    def connection_lost(self, error: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(error)

    def _wait_for_head(self) -> None:
        if self._head_timer is None:  # else a byte now and then would keep it open
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class PlainHead:
    """Passes on what every reader can decode, and every log can hold.

    In a path, control characters become what they are percent-encoded, which is no path of ours. In headers, what is
    not ASCII becomes a question mark. Of a form the character set is dropped, since it is looked up by name.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = CONTROL.sub(lambda found: quote(found[0]), scope["path"])
            headers = [(name, _plain(name, value)) for name, value in scope["headers"]]
            scope = {**scope, "path": path, "headers": headers}
        await self.app(scope, receive, send)


def _plain(name: bytes, value: bytes) -> bytes:
    value = NOT_ASCII.sub(b"?", value)
    return CHARSET.sub(b"", value) if name == b"content-type" and value.startswith(b"multipart/") else value
