"""The metrics of GET /metrics, and the access log.

BentoML's own metrics and access log are off (see `endpoint`): they contain the path of each request. Every job would
have its own time series, and its id, the only protection of its picture, would be public. Here each path is replaced
by the template of its route before it is counted or logged. All labels come from fixed sets.

The metrics are those of one process, in memory. BentoML would use memory-mapped files, one set per process; a write to
such a file kills the process (SIGBUS) when the disk is full.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from timeit import default_timer

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sparsegen.service.clients import client_of
from sparsegen.service.logs import identify, request_id

os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)  # read by the next import
import prometheus_client  # noqa: E402
from prometheus_client.core import CounterMetricFamily  # noqa: E402
from prometheus_client.registry import Collector  # noqa: E402

prometheus_client.disable_created_metrics()  # a second series for each of the others

logger = logging.getLogger("sparsegen.access")

METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
PROBES = frozenset({"/healthz", "/livez", "/readyz", "/metrics"})
FIXED = PROBES | {"/docs.json", "/schema.json"}  # of BentoML
FOLDERS = ("/ui", "/static_content")  # of Gradio and BentoML; each counts as one endpoint
OTHER = "other"
NOTES = "sparsegen.notes"  # the key of a scope with what handlers note about their request
GONE = 499  # the status of nginx for a client that disconnected before the answer

REQUESTS = prometheus_client.Counter(
    "sparsegen_requests_total", "Finished requests", ["method", "endpoint", "status"]
)
IN_PROGRESS = prometheus_client.Gauge("sparsegen_requests_in_progress", "Requests in progress", ["endpoint"])
SECONDS = prometheus_client.Histogram(
    "sparsegen_request_seconds",
    "Seconds from the first byte of a request to the last byte of its answer",
    ["method", "endpoint", "model"],
    buckets=[0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30],
)
BATCH_IMAGES = prometheus_client.Histogram(
    "sparsegen_batch_images", "Images per run of a network", buckets=[1, 2, 4, 8, 16, 32, 64]
)
JOBS_WAITING = prometheus_client.Gauge("sparsegen_jobs_waiting", "Restorations waiting")
OLDEST = prometheus_client.Gauge(
    "sparsegen_oldest_waiting_job_seconds",
    "Seconds since the oldest waiting restoration was submitted; 0: none",
)
JOBS_RUNNING = prometheus_client.Gauge("sparsegen_jobs_running", "Restorations running")
WORKERS = prometheus_client.Gauge("sparsegen_workers", "Workers with a recent heartbeat")

MODELS = prometheus_client.Gauge(
    "sparsegen_models", "Served models by the execution provider of onnxruntime", ["provider"]
)


class Outcomes(Collector):
    """The ended restorations by outcome, counted in the job store, i.e. by all servers and workers that share it."""

    def __init__(self) -> None:
        self.counts: Mapping[str, int] = {}

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily("sparsegen_jobs_ended", "Ended restorations", labels=["outcome"])
        for outcome, count in self.counts.items():
            family.add_metric([outcome], count)
        yield family


OUTCOMES = Outcomes()
prometheus_client.REGISTRY.register(OUTCOMES)


def note_model(scope: Scope, model: str) -> None:
    """Notes the model that a request uses, for the label of its duration. It must be the name of a served model."""
    if NOTES in scope:
        scope[NOTES]["model"] = model


def count_models(providers: Iterable[str]) -> None:
    """Notes the execution provider of each served model."""
    MODELS.clear()
    for provider in providers:
        MODELS.labels(provider).inc()


def exposition() -> tuple[bytes, str]:
    """All metrics of this process in the text format of Prometheus, and the content type."""
    return prometheus_client.generate_latest(), prometheus_client.CONTENT_TYPE_LATEST


class Traffic:
    """ASGI middleware that counts and logs each request by the template of its route, e.g. /restore/{job_id}.

    It gives each request an id, which its answer has in X-Request-ID and all of its log lines contain.

    Args:
        routes: Routes with their own endpoint label; other paths are counted as `other`.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self.app = app
        self.templates = [(route.path_regex, route.path) for route in routes if isinstance(route, Route)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in METHODS else OTHER
        endpoint, began, status = self.endpoint(scope["path"]), default_timer(), GONE
        name = identify(Headers(scope=scope).get("x-request-id"))
        request_id.set(name)
        notes: dict[str, str] = {}
        scope = {**scope, NOTES: notes}

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = name
            await send(message)

        try:
            with IN_PROGRESS.labels(endpoint).track_inprogress():
                await self.app(scope, receive, send_noting)
        except Exception:
            status = 500
            raise
        finally:
            seconds = default_timer() - began
            REQUESTS.labels(method, endpoint, status).inc()
            SECONDS.labels(method, endpoint, notes.get("model", "")).observe(seconds)
            if endpoint not in PROBES:
                client = client_of(HTTPConnection(scope))
                fields = {"client": client, "method": method, "endpoint": endpoint, "status": status, **notes}
                logger.info(
                    "%s %s %s %d %.0f ms",
                    *(client, method, endpoint, status, 1000 * seconds),
                    extra={"fields": {**fields, "seconds": round(seconds, 4)}},
                )

    def endpoint(self, path: str) -> str:
        """The route template that matches a path, or the folder that contains it, or `other`."""
        if path in FIXED:
            return path
        for pattern, template in self.templates:
            if pattern.fullmatch(path):
                return template
        return next((f for f in FOLDERS if path == f or path.startswith(f"{f}/")), OTHER)
