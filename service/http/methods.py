"""The methods that BentoML's clients see: `bentoml.SyncHTTPClient(url).sample(...)`, `.denoise(...)` and so on.

BentoML lists them in /schema.json, from which its clients take names, routes and types. Our application answers the
requests: BentoML's own reader would download the URLs in a form and turn every refusal into 400 or 500.
"""

from collections.abc import Collection
from typing import Annotated, Any

import bentoml  # noqa: TID253 (this module defines the methods of the service)
import numpy as np
from bentoml import IODescriptor  # noqa: TID253
from bentoml.validators import DType  # noqa: TID253
from PIL import Image
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from sparsegen.service.requests import RequestModel, schema

Images = Annotated[np.ndarray, DType("uint8")]
Picture = Image.Image


class Direct:
    """ASGI middleware, the innermost: our application answers the requests of the methods, in place of BentoML."""

    def __init__(self, app: ASGIApp, own: ASGIApp, paths: Collection[str]) -> None:
        self.app, self.own, self.paths = app, own, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ours = scope["type"] == "http" and _route(scope) in self.paths
        await (self.own if ours else self.app)(scope, receive, send)


def method(name: str, route: str, request: type[RequestModel], output: object, about: str) -> Any:
    """Declares a method of the service, whose requests `Direct` passes to our application.

    Args:
        request: Definition of the arguments.
        output: Type of what the client returns: `Images` or `Picture`.
    """

    class Arguments(IODescriptor):
        @classmethod
        def model_json_schema(cls, *arguments: Any, **options: Any) -> dict[str, Any]:
            return _for_clients(schema(request))

        @classmethod
        async def from_http_request(cls, request: Request, serde: object) -> Any:
            raise NotImplementedError(f"{route} must be answered by the application")

    Arguments.__name__ = request.__name__

    async def declared(self: object) -> None:
        raise NotImplementedError(f"{route} must be answered by the application")

    declared.__name__, declared.__doc__ = name, about
    declared.__annotations__["return"] = output
    return bentoml.api(declared, route=route, input_spec=Arguments)


def _route(scope: Scope) -> str:
    """The path of a request without the prefix of a proxy."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _for_clients(made: dict[str, Any]) -> dict[str, Any]:
    """Marks the files in a schema by BentoML's own type, so that its clients send forms."""
    for name, part in made["properties"].items():
        kinds = [kind for kind in part.get("anyOf", [part]) if kind.get("type") != "null"]
        if all(kind.get("format") == "binary" for kind in kinds):
            kept = {
                key: value for key, value in (kinds[0] | part).items() if key in ("description", "default")
            }
            made["properties"][name] = {"type": "file"} | kept
    return made
