"""The BentoML service: GET /models, POST /sample, POST /restore and the page at /ui. Does not import torch.

The same model, seed, k and labels give the same pixels, bit for bit, over HTTP, on the page and from the ONNX file in
Python, for any count and load. `Generator.sample` of torch differs from them by at most one gray level in a few of a
million values. If the k-th and the next magnitude of a needle are equal up to rounding, it may keep the other entry.
"""

import asyncio
import base64
import io
import logging
import os
import tempfile
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import bentoml  # noqa: TID253 (this module defines the service)
import numpy as np
from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

import sparsegen
from sparsegen.common.hardware import processors
from sparsegen.pictures import images
from sparsegen.service import metrics
from sparsegen.service.errors import SENTENCES, JsonErrors, Refused, broken, busy
from sparsegen.service.http import arbiter, connections, restoration
from sparsegen.service.http.batching import Batcher, Overloaded
from sparsegen.service.http.deadline import Deadline, OwnTime
from sparsegen.service.http.guards import guards
from sparsegen.service.http.limits import MAX_BODY, BodyLimit
from sparsegen.service.http.orphans import end_with_parent
from sparsegen.service.http.readiness import Readiness
from sparsegen.service.jobs import orders
from sparsegen.service.logs import set_up_logs
from sparsegen.service.models import Model, models_folder, open_models
from sparsegen.service.page import inspector
from sparsegen.service.page.events import EVENTS, MAX_EVENT, PageRequests
from sparsegen.service.sampling import MAX_COUNT, SampleRequest, read_json, request_schema
from sparsegen.service.settings import ServiceSettings
from sparsegen.service.uploads import UPLOAD, Room

logger = logging.getLogger(__name__)

BatchKey = tuple[str, tuple[int, ...]]  # the name of a model, and its k per projected level

REFUSALS = {
    400: "The body is not JSON.",
    404: "The model is unknown.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    422: "A value is missing, unknown or out of range.",
    429: "The client has too many concurrent requests.",
    503: "The server is overloaded; Retry-After gives the seconds to wait.",
    504: "The server did not answer within its time limit.",
}
IMAGES = {
    "type": "object",
    "required": ["images"],
    "properties": {
        "images": {
            "type": "array",
            "items": {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png"},
        }
    },
}
DRAWN = {
    "description": "The images in the requested format.",
    "content": {
        "image/png": {"schema": restoration.BINARY},
        "application/json": {"schema": IMAGES},
        "application/octet-stream": {"schema": restoration.BINARY},
    },
}
LIMITS = {  # bytes of a body, where they differ from the default of BodyLimit
    ("POST", "/restore"): orders.MAX_UPLOAD,
    ("POST", UPLOAD): orders.MAX_UPLOAD + MAX_BODY,  # a file, and the rest of the form
    **{("POST", path): MAX_EVENT for path in EVENTS},
}
GRADIO_FOLDER = "GRADIO_TEMP_DIR"  # the environment variable with the folder where Gradio keeps dropped files
ICON = inspector.heat(np.array([[0, 0, 0, 0], [0, 5, 0, 0], [0, 0, 0, 3], [7, 0, 0, 0]]), 7)


class Application(FastAPI):
    """The web application; its `state.models` and `state.batcher` are set when the server starts."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, with the limits and names of the served models."""
        document = get_openapi(
            title=self.title, version=self.version, description=__doc__, routes=self.routes
        )
        content = {"application/json": {"schema": request_schema(self.state.models)}}
        document["paths"]["/sample"]["post"]["requestBody"] = {"required": True, "content": content}
        return document


def create_app() -> Application:
    """Makes the web application and its routes."""
    app = Application(title="sparsegen", version=sparsegen.__version__, docs_url=None, redoc_url=None)
    app.state.models = {}

    @app.exception_handler(Refused)
    async def refused(request: Request, refusal: Refused) -> Response:
        return JSONResponse({"error": str(refusal)}, refusal.status)

    @app.exception_handler(Overloaded)
    async def overloaded(request: Request, refusal: Overloaded) -> Response:
        return busy(503, str(refusal), refusal.seconds)

    @app.exception_handler(HTTPException)
    async def failed(request: Request, error: HTTPException) -> Response:
        status, sentence = error.status_code, error.detail
        if sentence == HTTPStatus(status).phrase and status in SENTENCES:  # without a more specific sentence
            sentence = SENTENCES[status].format(**request.scope)
        return JSONResponse({"error": sentence}, status, error.headers)

    app.exception_handler(Exception)(broken)

    @app.get("/", include_in_schema=False)
    async def front() -> Response:
        return RedirectResponse("ui/")

    # Starlette's own redirect contains the host and scheme that the proxy passed on, which may not be the browser's.
    @app.api_route("/ui", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> Response:
        return RedirectResponse("ui/")

    @app.get("/favicon.ico", include_in_schema=False)
    async def favicon() -> Response:
        return Response(images.png(ICON, 8), media_type="image/png")

    @app.get("/manifest.json", include_in_schema=False)  # Gradio's page requests it here, not below /ui
    async def manifest() -> JSONResponse:
        return JSONResponse({"name": "sparsegen", "start_url": "ui/", "display": "browser"})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title="sparsegen API",
            swagger_js_url="static_content/swagger-ui-bundle.js",
            swagger_css_url="static_content/swagger-ui.css",
            swagger_favicon_url="favicon.ico",
        )

    @app.get("/models", summary="Lists the models", responses={200: {"content": {"application/json": {}}}})
    async def list_models() -> JSONResponse:
        """Lists the models of this server: regularizer, ranges of k, classes, training and evaluation."""
        return JSONResponse({"models": [model.describe() for model in app.state.models.values()]})

    @app.post(
        "/sample",
        summary="Draws images",
        responses={
            200: DRAWN,
            **{
                status: restoration.described("application/json", restoration.ERROR, meaning)
                for status, meaning in REFUSALS.items()
            },
        },
        response_class=Response,
    )
    async def sample(request: Request) -> Response:
        """Draws `count` images from one model. The same request gives the same pixels, bit for bit."""
        app.state.batcher.check_room()  # before the body is read
        content, kind = await request.body(), request.headers.get("content-type", "")
        asked = await asyncio.to_thread(lambda: SampleRequest.of(read_json(content, kind), app.state.models))
        pixels = await app.state.batcher((asked.model.name, asked.k), asked.rows())
        return await asyncio.to_thread(encode, pixels, asked.format)

    @app.get("/metrics", include_in_schema=False)
    def show_metrics() -> Response:  # not async, so it runs in a thread
        content, media_type = metrics.exposition()
        return Response(content, media_type=media_type)

    app.include_router(restoration.router)
    return app


def encode(pixels: np.ndarray, form: str) -> Response:
    """Encodes images, uint8 (count, H, W, 3), in the requested format."""
    if form == "png":
        return JSONResponse({"images": [base64.b64encode(images.png(image)).decode() for image in pixels]})
    if form == "npy":
        buffer = io.BytesIO()
        np.save(buffer, pixels)
        headers = {"content-disposition": 'attachment; filename="samples.npy"'}
        return Response(buffer.getvalue(), media_type="application/octet-stream", headers=headers)
    return Response(images.png(images.grid(pixels)), media_type="image/png")


def create_batcher(models: Mapping[str, Model]) -> Batcher[BatchKey]:
    """Makes a batcher that merges requests with the same model and k, and reports batch sizes in /metrics."""

    def run(key: BatchKey, rows: np.ndarray) -> np.ndarray:
        name, k = key
        sampler = models[name].sampler
        labels = rows["label"] if sampler.classes else None
        image, _ = sampler.run(rows["z"], list(k) or None, codes=False, labels=labels)
        return images.to_uint8(image)

    return Batcher(
        run,
        MAX_COUNT,
        workers=processors(),
        observe=metrics.BATCH_IMAGES.observe,
        kind=lambda key: key[0],
    )


app = create_app()


class Server:
    """Images from generators whose inner representation is a sparse code."""

    def __init__(self) -> None:
        from sparsegen.service.page.app import mount

        set_up_logs()
        end_with_parent()
        # Gradio's default is a permanent folder that every user of the machine can read.
        self._uploads = (
            None if GRADIO_FOLDER in os.environ else tempfile.TemporaryDirectory(prefix="sparsegen-")
        )
        if self._uploads:
            os.environ[GRADIO_FOLDER] = self._uploads.name
        models, refused = open_models(models_folder())
        for warning in (*refused, *settings.direct_warnings()):
            logger.warning(warning)
        app.state.models, app.state.batcher = models, create_batcher(models)
        app.state.queued, app.state.handlers, app.state.sessions = mount(
            app, models, lambda: app.state.jobs(), lambda: room, asks_token=settings.token is not None
        )

    @bentoml.on_shutdown
    def close(self) -> None:
        app.state.batcher.close()
        if self._uploads:
            self._uploads.cleanup()


# Not decorators: type checkers would give `SparseGen` the type of the class.
SparseGen = bentoml.service(
    name="sparsegen",
    traffic={"timeout": 30},  # only for answers of the guards; see `deadline`
    threads=4,
    metrics={"enabled": False},  # both would show the ids of jobs; see `metrics`
    logging={"access": {"enabled": False}},
)(bentoml.asgi_app(app, path="/")(Server))
settings, own_routes = ServiceSettings.from_environment(), [*app.routes, *restoration.router.routes]
room = Room(settings.uploads_mb << 20)
arbiter.use()
connections.use(settings.proxy)
# The outermost first.
SparseGen.add_asgi_middleware(metrics.Traffic, routes=own_routes)
SparseGen.add_asgi_middleware(OwnTime)
# Also answers errors of the middleware.
SparseGen.add_asgi_middleware(ServerErrorMiddleware, handler=broken)
for guard, options in guards(settings, own_routes):
    SparseGen.add_asgi_middleware(guard, **options)
SparseGen.add_asgi_middleware(Readiness, health=lambda: app.state.health)
SparseGen.add_asgi_middleware(JsonErrors)
SparseGen.add_asgi_middleware(BodyLimit, exceptions=LIMITS, room=room)
SparseGen.add_asgi_middleware(Deadline, exceptions={("POST", "/restore"): orders.longest_submission()})
SparseGen.add_asgi_middleware(
    PageRequests,
    queued=lambda: app.state.queued(),
    handlers=lambda: app.state.handlers,
    sessions=lambda: app.state.sessions,
    limit=settings.client_events,
)
