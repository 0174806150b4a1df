"""Error answers, {"error": SENTENCE}, of our routes and of BentoML's own."""

import math

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SENTENCES = {
    404: "no such address: {path!r}; /docs lists the addresses of this server",
    405: "{path!r} does not allow {method}; /docs lists the methods of each address",
    500: "internal error; the log of the server has the details",
}


class Refused(ValueError):
    """A refused request: an HTTP status, and one sentence that gives the reason."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def busy(status: int, sentence: str, seconds: float) -> JSONResponse:
    """A temporary refusal; Retry-After gives the seconds to wait."""
    return JSONResponse({"error": sentence}, status, {"retry-after": str(max(1, math.ceil(seconds)))})


async def broken(request: Request, error: Exception) -> Response:
    """The answer to an unexpected error; the traceback is only in the log."""
    return JSONResponse({"error": SENTENCES[500]}, 500)


class JsonErrors:
    """ASGI middleware that replaces the plain-text errors of BentoML, which has no hook for them, by {"error": ...}.

    Choice: not a catch-all route in our app, which would hide BentoML's routes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        replaced = False

        async def send_json(message: Message) -> None:
            nonlocal replaced
            if message["type"] == "http.response.start" and message["status"] in SENTENCES:
                headers = Headers(raw=message["headers"])
                if headers.get("content-type", "").startswith("text/plain"):
                    replaced = True
                    sentence = SENTENCES[message["status"]].format(**scope)
                    kept = {name: value for name, value in headers.items() if name == "allow"}
                    await JSONResponse({"error": sentence}, message["status"], kept)(scope, receive, send)
            if not replaced:
                await send(message)

        await self.app(scope, receive, send_json)
