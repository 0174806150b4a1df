"""An answer must begin within the limit of its address; BentoML's own limit has no effect."""

import asyncio
from collections.abc import Callable

import httpx
import pytest
import uvicorn
from bentoml._internal.server.http.traffic import TimeoutMiddleware  # as BentoML's server has it
from server import free_port
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from sparsegen.service.http.connections import Connection
from sparsegen.service.http.deadline import Deadline, OwnTime
from sparsegen.service.jobs import orders
from sparsegen.service.jobs.decoding import Decoders
from sparsegen.service.settings import ServiceSettings

SLOW = 0.6
FAST = 0.2


class App:
    """Answers after SLOW seconds, or streams for as long; records canceled requests."""

    def __init__(self) -> None:
        self.ended = []
        routes = [Route("/wait", self.wait, methods=["GET", "POST"]), Route("/stream", self.stream)]
        self.routes = Starlette(routes=routes)

    async def wait(self, request: Request) -> PlainTextResponse:
        try:
            await asyncio.sleep(SLOW)
        except asyncio.CancelledError:
            self.ended.append(request.method)
            raise
        return PlainTextResponse("done")

    async def stream(self, request: Request) -> StreamingResponse:
        async def parts():
            yield "first "
            await asyncio.sleep(SLOW)
            yield "last"

        return StreamingResponse(parts())


def served(app: ASGIApp, ask: Callable[[httpx.AsyncClient], object]) -> object:
    """Serves an application with the middleware of the server, and sends it a request."""

    async def run() -> object:
        port = free_port()
        config = uvicorn.Config(app, port=port, http=Connection, lifespan="off", log_level="error")
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                return await ask(client)
        finally:
            server.should_exit = True
            await task

    return asyncio.run(run())


def test_a_late_answer_is_canceled_and_replaced_by_504():
    app = App()
    response = served(Deadline(app.routes, FAST), lambda client: client.get("/wait"))
    assert response.status_code == 504 and response.headers["retry-after"] == "10"
    assert response.json() == {"error": "the server did not answer within 0.2 seconds: retry later"}
    assert app.ended == ["GET"]


def test_limits_can_differ_by_method_and_address():
    app = App()
    limited = Deadline(app.routes, FAST, {("POST", "/wait"): 10})
    assert served(limited, lambda client: client.post("/wait/")).status_code in (200, 307)
    assert served(limited, lambda client: client.post("/wait")).text == "done"
    assert served(limited, lambda client: client.get("/wait")).status_code == 504


def test_an_answer_that_has_begun_has_no_limit():
    assert served(Deadline(App().routes, FAST), lambda client: client.get("/stream")).text == "first last"


def test_the_limit_of_bentoml_has_no_effect():
    app = App()
    limited = TimeoutMiddleware(OwnTime(app.routes), FAST)
    assert served(limited, lambda client: client.get("/wait")).text == "done"
    without = TimeoutMiddleware(app.routes, FAST)  # else this test would check nothing
    assert served(without, lambda client: client.get("/wait")).status_code == 504


def test_the_limit_of_a_submission_is_the_sum_of_its_steps(monkeypatch):
    monkeypatch.setenv("SPARSEGEN_DECODER_SECONDS", "7")
    options = ServiceSettings.from_environment()
    killed_after = Decoders(options)._settings.decoder_seconds * 3 + 10
    assert orders.longest_submission() >= orders.TURN_SECONDS + 3 * killed_after


def test_an_upload_waits_for_its_turn_for_a_limited_time(monkeypatch):
    monkeypatch.setattr(orders, "TURN_SECONDS", FAST)

    async def run() -> None:
        turns = orders.Turns(ServiceSettings(decoders=1))

        async def take(client: str) -> None:
            async with turns.of(client):
                pytest.fail("the only turn is taken")

        async with turns.of("first"):
            with pytest.raises(orders.DecodersBusy, match="no picture was read within 0.2 seconds") as busy:
                await asyncio.create_task(take("second"))
            assert busy.value.status == 503
        async with turns.of("second"):  # is free again
            assert list(turns._clients) == ["second"]
        assert not turns._clients and not turns._own

    asyncio.run(run())
