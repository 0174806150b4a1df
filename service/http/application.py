"""The web application: its routes, its error answers, and its OpenAPI document. Does not import torch."""

from enum import Enum
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute

import sparsegen
from sparsegen.service import metrics
from sparsegen.service.errors import SENTENCES, Refused, broken, busy
from sparsegen.service.http import encoding, restoration, sampling, synchronous
from sparsegen.service.http.batching import Overloaded
from sparsegen.service.http.openapi import ERROR, described
from sparsegen.service.page import routes
from sparsegen.service.sampling import ArrayRequest, SampleRequest, request_schema

SERVER = "Server"  # the heading of the routes for operators and for BentoML
DOWN = {"503": described("application/json", ERROR, "No, for the given reason.")}
FOREIGN = {  # routes of BentoML: summary, and further answers
    "/livez": ("Whether the process answers", {}),
    "/healthz": ("Whether the process answers", {}),
    "/readyz": ("Whether all requests can be accepted", DOWN),
    "/schema.json": ("The methods, for BentoML's clients", {}),
}


class Application(FastAPI):
    """The web application; its `state.models` and `state.batcher` are set when the server starts."""

    own_routes: list[BaseRoute]  # `routes` has only a wrapper for those of an included router

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, with the limits and names of the served models."""
        document = get_openapi(
            title=self.title, version=self.version, description=self.description, routes=self.routes
        )
        for path, request in (("/sample", SampleRequest), ("/sample/array", ArrayRequest)):
            content = {"application/json": {"schema": request_schema(request, self.state.models)}}
            document["paths"][path]["post"]["requestBody"] = {"required": True, "content": content}
        document["paths"] |= {
            path: {
                "get": {
                    "tags": [SERVER],
                    "summary": summary,
                    "responses": {"200": {"description": "Yes."}} | down,
                }
            }
            for path, (summary, down) in FOREIGN.items()
        }
        document["servers"] = [{"url": "./"}]  # relative to this document, since a proxy may add a path
        return document


def create_app(description: str) -> Application:
    """Makes the web application; its description is Markdown."""
    app = Application(
        title="sparsegen",
        version=sparsegen.__version__,
        description=description,
        docs_url=None,
        redoc_url=None,
        root_path_in_servers=False,  # see `Application.openapi`
    )
    app.state.models = {}
    app.exception_handler(Refused)(_refused)
    app.exception_handler(Overloaded)(_overloaded)
    app.exception_handler(HTTPException)(_failed)
    app.exception_handler(Exception)(broken)
    routers: dict[str | Enum, APIRouter] = {
        "Sampling": sampling.router,
        "Encoding": encoding.router,
        "Restoration in one request": synchronous.router,
        "Restoration jobs": restoration.router,
        "Page": routes.router,
        SERVER: router,
    }
    for tag, part in routers.items():
        app.include_router(part, tags=[tag])
    app.own_routes = [*app.routes, *(route for part in routers.values() for route in part.routes)]
    return app


async def _refused(request: Request, refusal: Refused) -> Response:
    return JSONResponse({"error": str(refusal)}, refusal.status)


async def _overloaded(request: Request, refusal: Overloaded) -> Response:
    return busy(503, str(refusal), refusal.seconds)


async def _failed(request: Request, error: HTTPException) -> Response:
    status, sentence = error.status_code, error.detail
    if sentence == HTTPStatus(status).phrase and status in SENTENCES:  # without a more specific sentence
        sentence = SENTENCES[status].format(**request.scope)
    return JSONResponse({"error": sentence}, status, error.headers)


router = APIRouter()


@router.get("/", include_in_schema=False)
async def front() -> Response:
    return RedirectResponse("ui/")


@router.get("/docs", include_in_schema=False)
async def docs() -> HTMLResponse:
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title="sparsegen API",
        swagger_js_url="static_content/swagger-ui-bundle.js",
        swagger_css_url="static_content/swagger-ui.css",
        swagger_favicon_url="favicon.ico",
    )


@router.get(
    "/docs.json", include_in_schema=False
)  # in place of BentoML's, which would have a part of the routes
async def document(request: Request) -> JSONResponse:
    return JSONResponse(request.app.openapi())


@router.get(
    "/metrics",
    summary="Metrics in the text format of Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}},
)
def show_metrics() -> Response:  # not async, so it runs in a thread
    content, media_type = metrics.exposition()
    return Response(content, media_type=media_type)
