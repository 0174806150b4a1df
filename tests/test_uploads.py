"""Limits of bodies: size, time, and the room of all uploads."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from sparsegen.service import uploads
from sparsegen.service.http import limits
from sparsegen.service.http.limits import IN_MEMORY, LEAST, PACE_BYTES, BodyLimit
from sparsegen.service.uploads import COPIES, SPARE, UPLOAD, Room, used

MIB = 1 << 20


class App:
    """An application behind the limits, whose handler can hold requests."""

    def __init__(self, room: Room, **options: object) -> None:
        self.open, self.inside = asyncio.Event(), 0
        self.open.set()
        app = Starlette(routes=[Route(path, self.handle, methods=["POST"]) for path in ("/any", UPLOAD)])
        self.limited = BodyLimit(app, room=room, **{"limit": 8 * MIB} | options)

    async def handle(self, request: Request) -> JSONResponse:
        self.inside += 1
        await self.open.wait()
        body = await request.body()
        return JSONResponse([len(body), body[:4].decode(), body[-4:].decode()])

    async def post(
        self,
        body: bytes | AsyncIterator[bytes],
        path: str = "/any",
        host: str = "192.0.2.1",
        length: int | None = None,
    ) -> httpx.Response:
        transport = httpx.ASGITransport(self.limited, client=(host, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            headers = {} if length is None else {"content-length": str(length)}
            return await client.post(path, content=body, headers=headers)


@pytest.fixture
def room(tmp_path: Path) -> Callable[[int], Room]:
    """Makes rooms of a given size with an empty folder of the page."""
    return lambda limit, share=1: Room(limit, lambda: tmp_path, share)


def files_of_this_process() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("size", [0, 1, IN_MEMORY - 1, IN_MEMORY, IN_MEMORY + 1, 300_000, 2 * MIB])
def test_a_body_reaches_the_app_unchanged(room, size):
    async def test() -> None:
        app = App(room(8 * MIB))
        body = (b"head" + bytes(size) + b"tail")[:size]
        for sent in (body, pieces(body, 1000)):
            response = await app.post(sent)
            assert response.json() == [size, body[:4].decode(), body[-4:].decode()]

    asyncio.run(test())


async def pieces(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


def test_concurrent_bodies_share_the_room_and_release_it(room):
    async def test() -> None:
        app = App(room(10 * MIB * COPIES))
        app.open.clear()
        held = [asyncio.create_task(app.post(bytes(MIB))) for _ in range(10)]
        while app.inside < 10:
            await asyncio.sleep(0.01)
        refused = await app.post(bytes(MIB))
        assert (refused.status_code, refused.headers["retry-after"]) == (507, "60")
        assert refused.json() == {
            "error": "the server has no room for another upload: retry in a few minutes"
        }
        small = asyncio.create_task(app.post(bytes(IN_MEMORY)))  # lies in memory
        app.open.set()
        assert (await small).status_code == 200
        assert {response.status_code for response in await asyncio.gather(*held)} == {200}
        assert (await app.post(bytes(8 * MIB))).status_code == 200
        assert app.limited.room._arriving == 0

    asyncio.run(test())


def test_of_two_concurrent_bodies_the_first_is_accepted_and_the_second_refused(room):
    async def test() -> None:
        app, started = App(room(3 * MIB)), asyncio.Event()

        async def slow(first: bool) -> AsyncIterator[bytes]:
            yield bytes(MIB // 2)
            if first:
                await started.wait()
            yield bytes(MIB // 2)

        first = asyncio.create_task(app.post(slow(True), length=MIB))
        while not app.limited.room._arriving:
            await asyncio.sleep(0.01)
        assert (await app.post(slow(False), length=MIB)).status_code == 507
        started.set()
        assert (await first).status_code == 200 and app.limited.room._arriving == 0

    asyncio.run(test())


def test_files_of_the_page_are_counted_in_whole_blocks_with_their_folders(room, tmp_path):
    async def test() -> None:
        app = App(room(MIB))
        assert (await app.post(b"small", UPLOAD)).status_code == 200
        for number in range(200):
            (tmp_path / str(number)).mkdir()
            (tmp_path / str(number) / "a").write_bytes(b"a")  # a byte that takes a block, in a folder
        assert used(tmp_path) >= MIB
        app.limited.room.give_back(0, stays=True)  # as their uploads did
        await asyncio.sleep(0)
        assert (await app.post(b"small", UPLOAD)).status_code == 507
        assert (await app.post(b"small")).status_code == 200  # of which nothing is kept

    asyncio.run(test())


def test_one_client_cannot_use_up_the_room(room, monkeypatch):
    async def test() -> None:
        monkeypatch.setattr(uploads, "KEEP_UPLOADS", 0.5)
        app = App(room(8 * MIB * COPIES, share=0.25))
        app.open.clear()
        held = [asyncio.create_task(app.post(bytes(MIB), UPLOAD)) for _ in range(2)]
        while app.inside < 2:
            await asyncio.sleep(0.01)
        app.open.set()
        assert {response.status_code for response in await asyncio.gather(*held)} == {200}
        refused = await app.post(bytes(MIB))  # kept files count as long as they exist
        assert refused.status_code == 507 and "your uploads would take 6 MB" in refused.json()["error"]
        assert (await app.post(bytes(MIB), host="192.0.2.2")).status_code == 200
        await asyncio.sleep(0.6)
        assert (await app.post(bytes(MIB))).status_code == 200
        assert not app.limited.room._clients

    asyncio.run(test())


def test_uploads_leave_space_on_the_disk_for_others(room, monkeypatch):
    async def test() -> None:
        app = App(room(1 << 40))
        free = SPARE + 2 * MIB * COPIES
        monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": free}))
        assert (await app.post(bytes(2 * MIB))).status_code == 200
        assert (await app.post(bytes(3 * MIB))).status_code == 507

    asyncio.run(test())


def test_a_full_disk_is_reported_without_its_path(room, monkeypatch, tmp_path, caplog):
    class Full(tempfile.SpooledTemporaryFile):
        def write(self, content: bytes) -> int:
            raise OSError(28, "No space left on device", str(tmp_path))

    async def test() -> None:
        monkeypatch.setattr(limits, "SpooledTemporaryFile", Full)
        response = await App(room(1 << 40)).post(bytes(2 * MIB))
        assert response.status_code == 507 and "retry" in response.json()["error"]
        assert str(tmp_path) not in response.text + caplog.text and "No space left" in caplog.text

    asyncio.run(test())


def test_a_body_beyond_the_limit_is_not_kept(room):
    async def test() -> None:
        app = App(room(1 << 40))
        before = files_of_this_process()
        response = await app.post(pieces(bytes(9 * MIB), MIB))
        assert (
            response.status_code == 413
            and "8,388,608 bytes; this one has 9,437,184" in response.json()["error"]
        )
        assert app.inside == 0 and files_of_this_process() == before and app.limited.room._arriving == 0
        app.limited.patience = 10 * MIB
        assert "more than" in (await app.post(pieces(bytes(20 * MIB), MIB))).json()["error"]

    asyncio.run(test())


def test_a_body_that_does_not_arrive_releases_its_room(room):
    async def test() -> None:
        app = App(room(1 << 40), seconds=0.2)

        async def stalls() -> AsyncIterator[bytes]:
            yield bytes(MIB)
            await asyncio.sleep(60)

        response = await app.post(stalls())
        assert response.status_code == 408 and "within 0.2 seconds" in response.json()["error"]
        assert app.limited.room._arriving == 0

    asyncio.run(test())


@pytest.mark.parametrize(
    ("size", "every", "status"), [(1000, 0.05, 408), (PACE_BYTES, 0.15, 200), (0, 1, 408)]
)
def test_a_slow_body_is_refused(room, size, every, status):
    async def test() -> None:
        app = App(room(1 << 40), pace_seconds=0.3)

        async def slow() -> AsyncIterator[bytes]:
            for _ in range(12):
                yield bytes(size)
                await asyncio.sleep(every)

        response = await app.post(slow())
        assert response.status_code == status
        if status == 408:
            assert "at least 256 kB of it in every 0.3" in response.json()["error"]

    asyncio.run(test())


def test_a_disconnected_client_releases_its_room(room):
    async def test() -> None:
        app = App(room(1 << 40))
        messages = iter(
            [{"type": "http.request", "body": bytes(MIB), "more_body": True}, {"type": "http.disconnect"}]
        )

        async def receive() -> dict:
            return next(messages)

        scope = {"type": "http", "method": "POST", "path": "/any", "headers": []}
        await app.limited(scope, receive, lambda message: pytest.fail("nobody is there to hear"))
        assert app.inside == 0 and app.limited.room._arriving == 0

    asyncio.run(test())


def test_small_uploads_of_one_client_do_not_use_up_the_room(room):
    """A file of one byte takes a disk block and a folder."""

    async def test() -> None:
        app = App(room(16 * COPIES * LEAST, 0.25))
        statuses = [(await app.post(b"x", UPLOAD)).status_code for _ in range(6)]
        assert statuses == [200] * 4 + [507] * 2
        assert (await app.post(b"x", UPLOAD, host="192.0.2.2")).status_code == 200

    asyncio.run(test())
