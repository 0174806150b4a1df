"""The HTTP protocol of the server: time limits for heads and answers, limits per client, and cleaning of heads.

BentoML starts uvicorn with its default protocol, so `use` replaces that default.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any
from urllib.parse import quote

import h11
import uvicorn.config
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from sparsegen.service.clients import client_of
from sparsegen.service.http.deadline import UNTIMED
from sparsegen.service.prefix import HEADER

ANY = ("0.0.0.0/0", "::/0")
CLIENT_CONNECTIONS = 256  # concurrent ones per client; a process often has at most 1,024 in total
SMALL_CHUNKS = 1024  # chunks of a body that may be smaller than MIN_CHUNK
MIN_CHUNK = 64  # average bytes of the other chunks; each takes a few microseconds of the event loop
PAUSE = 2.0  # seconds without reading after an answer of 429, equal to its Retry-After
HEAD_SECONDS = 10.0  # from the start of a connection, or from the first byte of a later request
# A client must read READ_BYTES of a buffered answer per READ_SECONDS.
READ_SECONDS, READ_BYTES = 30.0, 32 << 10
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
NOT_ASCII = re.compile(rb"[^\t -~]")
CHARSET = re.compile(rb';\s*charset\s*=\s*("[^"]*"|[^;]*)', re.IGNORECASE)


def use(proxies: Iterable[str] = ()) -> None:
    """Makes uvicorn use `Connection`; `proxies` are addresses and networks without a limit of connections."""
    networks = [network for one in proxies for network in (ANY if one == "*" else [one])]
    Connection.proxies = [ip_network(network, strict=False) for network in networks]
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{Connection.__name__}"


class Chunks(h11.Connection):
    """Reads HTTP/1.1, but refuses a body in very many small chunks, which would block the event loop."""

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Raises: h11.RemoteProtocolError; uvicorn answers 400."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
        elif isinstance(event, h11.Data):
            self._chunks, self._bytes = self._chunks + event.chunk_end, self._bytes + len(event.data)
            if self._chunks > SMALL_CHUNKS + self._bytes / MIN_CHUNK:
                self._chunks = 0  # raise once
                raise h11.RemoteProtocolError("the chunks of the body are too small")
        return event


class Connection(H11Protocol):
    """uvicorn's protocol with limits, and without WebSockets.

    It closes a connection if the head does not arrive in time, if the answer is not read (its request would count
    against the limits forever), or if its client has too many connections. After an answer of 429 it does not read
    from the connection for PAUSE seconds, so that immediate retries do not block the event loop. Connections from
    `proxies` are shared by many clients; they are neither limited nor paused.

    Choice: h11, which limits the size of a head; httptools, the default of uvicorn, does not.
    """

    proxies: Sequence[IPv4Network | IPv6Network] = ()
    held: Counter[str] = Counter()  # connections per client

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = Chunks(h11.SERVER)
        self.app = PlainHead(self.app, self._note_status, self._from_proxy)
        self.ws_protocol_class = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None
        self._refused = self._paused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._client = client_of(HTTPConnection({"type": "http", "client": self.client}))
        self.held[self._client] += 1
        if self.held[self._client] > CLIENT_CONNECTIONS and not self._from_proxy():
            transport.abort()  # without an answer, which would cost more than the connection
        else:
            self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait_for_head()
        else:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        self._paused, self._refused = self._refused and not self._from_proxy(), False
        super().on_response_complete()
        if self._paused and not self.transport.is_closing():
            self.flow.pause_reading()
            self.loop.call_later(PAUSE, self._go_on)

    def handle_events(self) -> None:
        if not self._paused:  # the data already read may contain further requests
            super().handle_events()

    def _go_on(self) -> None:
        self._paused = False
        if not self.transport.is_closing():
            self.flow.resume_reading()
            self.handle_events()

    def _note_status(self, status: int) -> None:
        self._refused = status == 429

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_read_timer()

    def connection_lost(self, error: Exception | None) -> None:
        self._stop_waiting()
        self._stop_read_timer()
        self.held[self._client] -= 1
        if not self.held[self._client]:
            del self.held[self._client]
        super().connection_lost(error)

    def _from_proxy(self) -> bool:
        if self.client is None:
            return True  # a Unix socket; only a proxy connects to it
        address = ip_address(self.client[0])
        return any(address in network for network in self.proxies)

    def _wait_for_head(self) -> None:
        if self._head_timer is None:  # not restarted by further bytes
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _wait_for_reader(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._read_timer = self.loop.call_later(READ_SECONDS, self._check_reader, left)

    def _check_reader(self, before: int) -> None:
        if before - self.transport.get_write_buffer_size() < READ_BYTES:
            self.transport.abort()
        else:
            self._wait_for_reader()

    def _stop_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class PlainHead:
    """ASGI middleware that cleans the head of a request.

    In paths, control characters are percent-encoded; no route matches them. In headers, non-ASCII bytes become "?".
    The charset of a form is dropped, because the form parser would look it up by name. X-Forwarded-Prefix is dropped
    unless it comes from a trusted proxy.
    """

    def __init__(
        self, app: ASGIApp, note_status: Callable[[int], object], from_proxy: Callable[[], bool]
    ) -> None:
        """`note_status` is called with the status of each answer."""
        self.app, self.note_status, self.from_proxy = app, note_status, from_proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.note_status(message["status"])
            if message is not UNTIMED:
                await send(message)

        if scope["type"] == "http":
            path = CONTROL.sub(lambda found: quote(found[0]), scope["path"])
            dropped = set() if self.from_proxy() else {HEADER.encode()}
            headers = [(name, _plain(name, value)) for name, value in scope["headers"] if name not in dropped]
            scope = {**scope, "path": path, "headers": headers}
        await self.app(scope, receive, send_noting)


def _plain(name: bytes, value: bytes) -> bytes:
    value = NOT_ASCII.sub(b"?", value)
    return CHARSET.sub(b"", value) if name == b"content-type" and value.startswith(b"multipart/") else value
