"""What is answered to a request that cannot be served, by our routes and by bentoml's own: one sentence."""

import math

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SENTENCES = {
    404: "there is nothing at {path!r}; the addresses of this server are at /docs",
    405: "{path!r} does not take {method}; what each address takes is at /docs",
    500: "something went wrong in the server; its log says what",
}


class Refused(ValueError):
    """A request that cannot be served: an HTTP status, and one sentence that says why."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def busy(status: int, sentence: str, seconds: float) -> JSONResponse:
    """A refusal for now, with when to ask again."""
    return JSONResponse({"error": sentence}, status, {"retry-after": str(max(1, math.ceil(seconds)))})


class JsonErrors:
    """ASGI middleware that answers {"error": ...} where bentoml, which has no handler to set, answers plain text.

    Choice: not a catch-all route in our app, since it would hide bentoml's routes behind it.
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
