"""The BentoML service: models, samples, restorations and the page at /ui. Does not import torch.

On a CPU, the same model, seed, k and labels give the same pixels, bit for bit, over HTTP, on the page and from the ONNX
file in Python, for any count and load. `Generator.sample` of torch differs from them by at most one gray level in a few
of a million values. If the k-th and the next magnitude of a needle are equal up to rounding, it may keep the other
entry.
"""

import logging
import os
import tempfile

import bentoml  # noqa: TID253 (this module defines the service)

from sparsegen.restoration.kinds import KINDS
from sparsegen.service import metrics
from sparsegen.service.encoding import EncodeArguments
from sparsegen.service.http import arbiter, connections, encoding, synchronous
from sparsegen.service.http.application import create_app
from sparsegen.service.http.deadline import OwnTime
from sparsegen.service.http.methods import Direct, Images, Picture, method
from sparsegen.service.http.orphans import end_with_parent
from sparsegen.service.http.prefix import OwnPrefix, Prefixed
from sparsegen.service.http.protection import protection
from sparsegen.service.http.sampling import create_batcher
from sparsegen.service.jobs import orders
from sparsegen.service.jobs.pool import WorkerPool
from sparsegen.service.logs import set_up_logs
from sparsegen.service.models import open_models, sampling_device, sources
from sparsegen.service.sampling import ArrayRequest
from sparsegen.service.settings import ServiceSettings
from sparsegen.service.uploads import Room

logger = logging.getLogger(__name__)

ABOUT = """Images from generators whose inner representation is a sparse code, and restoration of single pictures.

On a CPU, the same model, seed, k and labels give the same pixels, bit for bit, over HTTP, on the [page](ui/), and from
the ONNX file in Python. Errors are JSON: `{"error": "one sentence"}`.
"""

ARRAY = "/sample/array"  # the route of the method `sample`
GRADIO_FOLDER = "GRADIO_TEMP_DIR"  # the environment variable with the folder where Gradio keeps dropped files

app = create_app(ABOUT)


class Server:
    """Images from generators whose inner representation is a sparse code."""

    sample = method("sample", ARRAY, ArrayRequest, Images, "Draws images: uint8 (count, H, W, 3).")
    encode = method("encode", encoding.PATH, EncodeArguments, dict, "Finds the sparse code of a picture.")
    denoise, inpaint, upscale, deblur = (
        method(
            model.kind,
            f"/{model.kind}",
            model,
            Picture,
            f"{KINDS[model.kind].label}: a small picture in one request.",
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
        models, refused = open_models(*sources(), device=sampling_device(settings.device))
        for warning in (*refused, *settings.direct_warnings()):
            logger.warning(warning)
        app.state.models, app.state.batcher = models, create_batcher(models)
        app.state.searches = encoding.Searches()
        metrics.count_models(model.sampler.provider for model in models.values())
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
settings = ServiceSettings.from_environment()
room = Room(settings.uploads_mb << 20)
arbiter.use()
connections.use(settings.proxy)
# The outermost first.
if settings.root_path:
    SparseGen.add_asgi_middleware(OwnPrefix, prefix=settings.root_path)
SparseGen.add_asgi_middleware(metrics.Traffic, routes=app.own_routes)
SparseGen.add_asgi_middleware(OwnTime)
for middleware, options in protection(
    settings,
    app.own_routes,
    app.state,
    room,
    {("POST", path): orders.MAX_UPLOAD for path in ("/restore", encoding.PATH, *synchronous.PATHS)},
    {
        ("POST", "/restore"): orders.longest_submission(),
        **{("POST", path): synchronous.longest_wait() for path in synchronous.PATHS},
    },
):
    SparseGen.add_asgi_middleware(middleware, **options)
SparseGen.add_asgi_middleware(Prefixed)
SparseGen.add_asgi_middleware(Direct, own=app, paths={ARRAY, encoding.PATH, *synchronous.PATHS})
