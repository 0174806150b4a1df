"""Connections: slow heads, unread answers, and bytes that break readers of headers and logs."""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from ipaddress import ip_network

import pytest
import uvicorn
from answers import sentence
from server import Server, free_port, running_server, small_models, until  # noqa: F401 (two are fixtures)
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from sparsegen.service.http import connections
from sparsegen.service.uploads import UPLOAD

HEAD = b"GET /models HTTP/1.1\r\nHost: localhost\r\n"


def exchange(server: Server, request: bytes) -> tuple[int, bytes]:
    """Sends these bytes; returns status and body of the answer, after which the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(request)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


@pytest.mark.parametrize(
    "name", [b"User-Agent", b"Traceparent", b"Cookie", b"Accept", b"Authorization", b"X-A"]
)
def test_a_header_that_is_not_ascii_is_accepted(server, name):
    request = HEAD + b"Connection: close\r\n" + name + b": \xff\xfe\\x0\x80\r\n\r\n"
    assert exchange(server, request)[0] == 200


def form(path: str, content_type: bytes) -> bytes:
    body = b'--b\r\nContent-Disposition: form-data; name="kind"\r\n\r\ndenoise\r\n--b--\r\n'
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Content-Type: " + content_type + b"\r\n\r\n" + body


@pytest.mark.parametrize("charset", [b"undefined", b"\xff", b'"rot13"', b"base64", b"utf-16", b"", b"mbcs"])
def test_a_form_of_any_character_set_is_read_as_utf_8(server, charset):
    content_type = b"multipart/form-data; charset=" + charset + b"; boundary=b"
    status, body = exchange(server, form("/restore", content_type))
    assert status in (422, 503) and sentence(body)  # not a picture; or no worker is running yet
    assert exchange(server, form(UPLOAD, content_type))[0] == 200


@pytest.mark.parametrize("path", ["/sample", "/restore"])
def test_a_content_type_that_is_not_utf_8_is_answered(server, path):
    before = len(server.log.read_text().splitlines())
    status, body = exchange(server, form(path, b"application/x\xff\xfe"))
    assert status in (415, 503) and sentence(body)
    assert len(server.log.read_text().splitlines()) - before < 5


def test_control_characters_of_a_path_do_not_reach_the_log(server):
    path = "/restore/a%0A2026-01-01%20forged%0Dentry%1B[31m%C2%85%E2%80%A8"
    status, body = exchange(
        server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    )
    assert status == 404 and sentence(body)
    assert server.ask("GET", "/models")[0] == 200
    log = server.log.read_text()
    assert "\x1b[31m" not in log and "\r" not in log
    assert not [line for line in log.splitlines() if line.startswith("2026-01-01 forged")]


@pytest.mark.parametrize(
    ("request_line", "expected"),
    [(b"OPTIONS *", 404), (b"GET ?a", 404), (b"GET models", 404), (b"CONNECT a:1", 404), (b"PRI *", 404)],
)
def test_a_request_with_an_invalid_path_is_answered(server, request_line, expected):
    head = request_line + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    status, body = exchange(server, head)
    assert status == expected and sentence(body)


CHUNKED = b"POST /sample HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED += b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"


def test_a_body_in_very_many_small_chunks_is_refused(server):
    few = b"1\r\n \r\n" * 1000 + b"400\r\n" + b" " * 1024 + b"\r\n0\r\n\r\n"
    status, body = exchange(server, CHUNKED + few)
    assert status == 400 and "empty" in sentence(body)
    status, body = exchange(server, CHUNKED + b"1\r\n \r\n" * (connections.SMALL_CHUNKS + 100))
    assert status == 400 and b"Invalid HTTP request" in body


def test_heads_are_limited_even_with_httptools_installed():
    assert issubclass(connections.Connection, H11Protocol)  # httptools takes heads of any size


async def serve(app: ASGIApp, tries: Callable[[int], Coroutine]) -> object:
    """Serves an application with our protocol, and returns the result of a function of its port."""
    port = free_port()
    config = uvicorn.Config(app, port=port, http=connections.Connection, lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        return await tries(port)
    finally:
        server.should_exit = True
        await task


def test_a_head_that_does_not_arrive_in_time_ends_its_connection(monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.4)

    async def app(scope, receive, send):
        await Request(scope, receive).body()
        await asyncio.sleep(0.8)  # a slow answer is not a slow head
        await PlainTextResponse("done")(scope, receive, send)

    async def closed(port: int, *parts: bytes, every: float = 0.1) -> bytes:
        """Sends the parts in sequence, and returns all bytes until the server closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for part in parts:
                writer.write(part)
                await asyncio.sleep(every)
            return await asyncio.wait_for(reader.read(), 5)
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async def tries(port: int) -> list[bytes]:
        trickle = [bytes([byte]) for byte in HEAD]
        silent = [closed(port), closed(port, HEAD), closed(port, *trickle), closed(port, b"GET")]
        twice = closed(port, HEAD + b"\r\n" + HEAD, every=1.5)
        return await asyncio.gather(*silent, twice, closed(port, HEAD + b"Connection: close\r\n\r\n"))

    *silent, twice, whole = asyncio.run(serve(app, tries))
    assert silent == [b""] * 4
    assert twice.count(b"200 OK") == 1 and whole.endswith(b"done")


def test_a_request_whose_answer_is_not_read_ends(monkeypatch):
    monkeypatch.setattr(connections, "READ_SECONDS", 1)
    content = b"a" * (16 << 20)

    async def app(scope, receive, send):
        await PlainTextResponse(content)(scope, receive, send)

    async def tries(port: int) -> tuple[int, int]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(HEAD + b"\r\n")
        await asyncio.sleep(3)
        held = sum(connections.Connection.held.values())
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + b"Connection: close\r\n\r\n")
        read = 0
        while part := await asyncio.wait_for(
            reader.read(2 << 20), 10
        ):  # slower than at once, for two seconds
            read += len(part)
            await asyncio.sleep(0.1)
        writer.close()
        return held, read

    held, read = asyncio.run(serve(app, tries))
    assert held == 0 and read > len(content)


@pytest.mark.parametrize(
    ("status", "proxies", "waits"), [(429, [], True), (429, ["127.0.0.0/8"], False), (503, [], False)]
)
@pytest.mark.parametrize("pipelined", [True, False])
def test_after_a_refusal_a_connection_is_not_read_for_a_while(monkeypatch, status, proxies, waits, pipelined):
    monkeypatch.setattr(connections, "PAUSE", 0.5 if waits else 60)
    monkeypatch.setattr(connections.Connection, "proxies", [ip_network(one) for one in proxies])
    arrived = []

    async def app(scope, receive, send):
        arrived.append(asyncio.get_running_loop().time())
        await PlainTextResponse("no", status if len(arrived) == 1 else 200)(scope, receive, send)

    async def tries(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        last = HEAD + b"Connection: close\r\n\r\n"
        writer.write(HEAD + b"\r\n" + pipelined * last)
        answer = await reader.readuntil(b"\r\n\r\nno")  # at once
        if not pipelined:
            writer.write(last)
        answer += await asyncio.wait_for(reader.read(), 20)
        writer.close()
        return answer

    answer = asyncio.run(serve(app, tries))
    assert answer.count(b"HTTP/1.1 ") == 2 and b" 200 OK" in answer
    first, second = arrived
    assert not waits or second - first >= 0.45
