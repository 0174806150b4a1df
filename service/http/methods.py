"""The methods that BentoML's clients see: `bentoml.SyncHTTPClient(url).sample(...)`, `.denoise(...)` and so on.

BentoML lists them in /schema.json, from which its clients take names, routes and types. Our app answers the requests:
BentoML's own reader would download the URLs in a form and turn every refusal into 400 or 500.
"""

from typing import Annotated, Any

import bentoml  # noqa: TID253 (this module defines the methods of the service)
import numpy as np
from bentoml import IODescriptor  # noqa: TID253
from bentoml.validators import DType  # noqa: TID253
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from sparsegen.service.requests import RequestModel, schema

Images = Annotated[np.ndarray, DType("uint8")]
Picture = Image.Image


class Forward(Response):
    """The answer of another application to the same request."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__()
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)
        if self.background is not None:
            await self.background()


class Unread:
    """The arguments of a method whose request is not read by BentoML: none."""

    model_fields: tuple[str, ...] = ()


def method(
    name: str, route: str, request: type[RequestModel], output: object, app: ASGIApp, about: str
) -> Any:
    """Declares a method of the service whose requests `app` answers.

    Args:
        request: Definition of the arguments.
        output: Type of what the client returns: `Images` or `Picture`.
    """

    class Arguments(IODescriptor):
        @classmethod
        def model_json_schema(cls, *arguments: Any, **options: Any) -> dict[str, Any]:
            return _for_clients(schema(request))

        @classmethod
        async def from_http_request(cls, request: Request, serde: object) -> Unread:
            return Unread()

    Arguments.__name__ = request.__name__

    async def forward(self: object) -> Response:
        return Forward(app)

    forward.__name__, forward.__doc__ = name, about
    forward.__annotations__["return"] = output
    return bentoml.api(forward, route=route, input_spec=Arguments)


def _for_clients(made: dict[str, Any]) -> dict[str, Any]:
    """Marks the files in a schema by BentoML's own type, so that its clients send forms."""
    for name, part in made["properties"].items():
        if part.get("format") == "binary":
            made["properties"][name] = {"type": "file", "description": part["description"]}
    return made
