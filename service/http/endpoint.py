"""The BentoML service: models, samples, restorations and the page at /ui. Does not import torch.

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
from typing import Any, TypeVar

import bentoml  # noqa: TID253 (this module defines the service)
import numpy as np
from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

import sparsegen
from sparsegen.common.hardware import processors
from sparsegen.pictures import images
from sparsegen.restoration.kinds import KINDS
from sparsegen.service import metrics
from sparsegen.service.errors import SENTENCES, Refused, broken, busy
from sparsegen.service.http import arbiter, connections, restoration, synchronous
from sparsegen.service.http.batching import Batcher, Overloaded
from sparsegen.service.http.deadline import OwnTime
from sparsegen.service.http.methods import Images, Picture, method
from sparsegen.service.http.orphans import end_with_parent
from sparsegen.service.http.prefix import OwnPrefix, Prefixed
from sparsegen.service.http.protection import protection
from sparsegen.service.jobs import orders
from sparsegen.service.jobs.pool import WorkerPool
from sparsegen.service.logs import set_up_logs
from sparsegen.service.models import Model, models_folder, open_models
from sparsegen.service.page import routes
from sparsegen.service.sampling import (
    MAX_COUNT,
    ArrayRequest,
    SampleOrder,
    SampleRequest,
    read_json,
    request_schema,
)
from sparsegen.service.settings import ServiceSettings
from sparsegen.service.uploads import Room

logger = logging.getLogger(__name__)

AnySample = TypeVar("AnySample", bound=ArrayRequest)
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
PIXELS: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 255}
for _ in ("channels", "columns", "rows", "images"):
    PIXELS = {"type": "array", "items": PIXELS}
DRAWN = {
    "description": "The images in the requested format.",
    "content": {
        "image/png": {"schema": restoration.BINARY},
        "application/json": {"schema": IMAGES},
        "application/octet-stream": {"schema": restoration.BINARY},
    },
}
DOWN = {"503": restoration.described("application/json", restoration.ERROR, "No, for the given reason.")}
FOREIGN = {  # routes of BentoML: summary, and further answers
    "/livez": ("Whether the process answers", {}),
    "/healthz": ("Whether the process answers", {}),
    "/readyz": ("Whether all requests can be accepted", DOWN),
    "/schema.json": ("The methods, for BentoML's clients", {}),
}
GRADIO_FOLDER = "GRADIO_TEMP_DIR"  # the environment variable with the folder where Gradio keeps dropped files


class Application(FastAPI):
    """The web application; its `state.models` and `state.batcher` are set when the server starts."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, with the limits and names of the served models."""
        document = get_openapi(
            title=self.title, version=self.version, description=__doc__, routes=self.routes
        )
        for path, request in (("/sample", SampleRequest), ("/sample/array", ArrayRequest)):
            content = {"application/json": {"schema": request_schema(request, self.state.models)}}
            document["paths"][path]["post"]["requestBody"] = {"required": True, "content": content}
        document["paths"] |= {
            path: {"get": {"summary": summary, "responses": {"200": {"description": "Yes."}} | down}}
            for path, (summary, down) in FOREIGN.items()
        }
        document["servers"] = [{"url": "./"}]  # relative to this document, since a proxy may add a path
        return document


def create_app() -> Application:
    """Makes the web application and its routes."""
    app = Application(
        title="sparsegen",
        version=sparsegen.__version__,
        docs_url=None,
        redoc_url=None,
        root_path_in_servers=False,  # see `openapi`
    )
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

    async def draw(request: Request, model: type[AnySample]) -> tuple[AnySample, np.ndarray]:
        """Reads a request, and draws its images: uint8 (count, H, W, 3)."""
        app.state.batcher.check_room()  # before the body is read
        content, kind = await request.body(), request.headers.get("content-type", "")

        def check() -> tuple[AnySample, SampleOrder]:
            asked = model.parse(read_json(content, kind))
            return asked, asked.resolve(app.state.models)

        asked, order = await asyncio.to_thread(check)
        metrics.note_model(request.scope, order.model.name)
        return asked, await app.state.batcher((order.model.name, order.k), order.rows())

    refusals: dict[int | str, dict[str, Any]] = {
        status: restoration.described("application/json", restoration.ERROR, meaning)
        for status, meaning in REFUSALS.items()
    }

    @app.post("/sample", summary="Draws images", responses={200: DRAWN, **refusals}, response_class=Response)
    async def sample(request: Request) -> Response:
        """Draws `count` images from one model. The same request gives the same pixels, bit for bit."""
        asked, pixels = await draw(request, SampleRequest)
        return await asyncio.to_thread(encode, pixels, asked.format)

    @app.post(
        "/sample/array",
        summary="Draws images as an array",
        responses={200: restoration.described("application/json", PIXELS, "The images."), **refusals},
        response_class=Response,
    )
    async def sample_array(request: Request) -> Response:
        """Draws the images of POST /sample as a JSON array (count, H, W, 3) of integers from 0 to 255."""
        _, pixels = await draw(request, ArrayRequest)
        return await asyncio.to_thread(lambda: JSONResponse(pixels.tolist()))

    @app.get(
        "/metrics",
        summary="Metrics in the text format of Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}},
    )
    def show_metrics() -> Response:  # not async, so it runs in a thread
        content, media_type = metrics.exposition()
        return Response(content, media_type=media_type)

    @app.get(
        "/docs.json", include_in_schema=False
    )  # in place of BentoML's, which would have a part of the routes
    async def document() -> JSONResponse:
        return JSONResponse(app.openapi())

    app.include_router(routes.router)
    app.include_router(synchronous.router)
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

    sample = method(
        "sample", "/sample/array", ArrayRequest, Images, app, "Draws images: uint8 (count, H, W, 3)."
    )
    denoise, inpaint, upscale, deblur = (
        method(
            model.kind,
            f"/{model.kind}",
            model,
            Picture,
            app,
            f"{KINDS[model.kind].label} in a small picture.",
        )
        for model in orders.METHODS
    )

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
        # One of several HTTP workers runs the restoration workers; without an index the service is not served.
        self._pool = WorkerPool(settings.workers if bentoml.server_context.worker_index == 1 else 0)
        app.state.queued, app.state.handlers, app.state.sessions = mount(
            app, models, lambda: app.state.jobs(), lambda: room, asks_token=settings.token is not None
        )

    @bentoml.on_startup
    def start_workers(self) -> None:
        self._pool.start()

    @bentoml.on_shutdown
    def close(self) -> None:
        self._pool.stop()
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
settings, own_routes = (
    ServiceSettings.from_environment(),
    [
        *app.routes,
        *routes.router.routes,
        *restoration.router.routes,
        *synchronous.router.routes,
    ],
)
room = Room(settings.uploads_mb << 20)
arbiter.use()
connections.use(settings.proxy)
# The outermost first.
if settings.root_path:
    SparseGen.add_asgi_middleware(OwnPrefix, prefix=settings.root_path)
SparseGen.add_asgi_middleware(metrics.Traffic, routes=own_routes)
SparseGen.add_asgi_middleware(OwnTime)
for middleware, options in protection(
    settings,
    own_routes,
    app.state,
    room,
    {("POST", path): orders.MAX_UPLOAD for path in ("/restore", *synchronous.PATHS)},
    {
        ("POST", "/restore"): orders.longest_submission(),
        **{("POST", path): synchronous.longest_wait() for path in synchronous.PATHS},
    },
):
    SparseGen.add_asgi_middleware(middleware, **options)
SparseGen.add_asgi_middleware(Prefixed)
