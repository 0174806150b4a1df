"""Runs the page by itself, as a Gradio Space of the Hugging Face Hub: without BentoML and the HTTP interface.

The page is at /, where the Hub and gradio_client look for it, and at /ui as on the server. The guards of the server
apply. Restorations run in a worker process. Only the temporary folder is written.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

import sparsegen
from sparsegen.service.http.serve import check_port, private_folder
from sparsegen.service.jobs.places import ENVIRONMENT as JOBS
from sparsegen.service.jobs.pool import WorkerPool
from sparsegen.service.jobs.worker import stop_signals
from sparsegen.service.models import Model, open_model, open_models
from sparsegen.service.settings import ServiceSettings, variable
from sparsegen.zoo import hub

logger = logging.getLogger(__name__)

PAGE = "/ui"
OWN = ("/livez", "/readyz", "/favicon.ico", "/manifest.json")  # addresses that are not below PAGE
HOST, PORT = "GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT"  # the variables of Gradio
SPACE, SPACE_HOSTS = "SPACE_ID", "SPACE_HOST"  # variables of the Hub: owner/name, and host names, with commas
SETTINGS = {  # of a public page on two cores, where they differ from those of `sparsegen serve`
    "allow_frame": "https://huggingface.co,https://*.hf.space",
    "job_hours": "0.5",
    "job_deadline_hours": "1",
    "jobs_per_client": "2",
    "client_events": "8",
    "results_mb": "512",
    "uploads_mb": "512",
    "decoders": "2",
}

# The Hub's proxy has a private address; it is the only way into a Space.
PROXIES = "127.0.0.1,::1,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16"


def main(models: Path, repo_ids: Sequence[str] = ()) -> None:
    """Runs the page until SIGINT or SIGTERM, and ends the process.

    Args:
        models: A folder of models, which may be missing.
        repo_ids: Models on the Hub, which are downloaded first.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with private_folder() as home, stop_signals() as stopped:
        set_environment(os.environ, home)
        try:
            serve(models, repo_ids, stopped)
        except (OSError, ValueError) as error:
            sys.exit(f"The Space cannot start: {error}")


def set_environment(environment: dict[str, str] | os._Environ[str], home: str) -> None:
    """Sets the variables that are not set: the settings of a Space, and places below the folder `home`."""
    for name, value in SETTINGS.items():
        environment.setdefault(variable(name), value)
    if SPACE in environment:
        environment.setdefault(variable("proxy"), PROXIES)
    if SPACE_HOSTS in environment:
        environment.setdefault(variable("allow_host"), environment[SPACE_HOSTS])
    environment.setdefault(JOBS, os.path.join(home, "jobs.sqlite"))
    environment.setdefault("GRADIO_TEMP_DIR", os.path.join(home, "gradio"))
    environment.setdefault("NUMBA_CACHE_DIR", os.path.join(home, "numba"))
    environment.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(home, "torch"))
    if not os.access(os.path.expanduser("~"), os.W_OK):
        environment.setdefault("HF_HOME", os.path.join(home, "hub"))
    # The workers and decoders are processes that import this package.
    package = str(Path(sparsegen.__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH")]))


def serve(models: Path, repo_ids: Sequence[str], stopped: list[int]) -> None:
    """Serves the page and runs the worker.

    Raises:
        OSError, ValueError: If there is no model, a setting is invalid or the port is taken.
    """
    from sparsegen.service.http import connections
    from sparsegen.service.logs import set_up_logs

    host, port = address(os.environ)
    settings = ServiceSettings.from_environment(host=host)
    check_port(host, port)
    app = create_app(settings, models, repo_ids)
    connections.use(settings.proxy)
    set_up_logs()
    logging.getLogger("uvicorn.error").addFilter(_is_no_canceled_stream)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host,
            port,
            log_config=None,  # the handlers of this process
            access_log=False,  # it would show the paths of files
            server_header=False,
            forwarded_allow_ips=list(settings.proxy),
            timeout_graceful_shutdown=3,  # an open page would keep its connection forever
        )
    )
    pool = WorkerPool(settings.workers)
    try:
        if not stopped:
            pool.start()
            logger.info("the page: http://%s:%d/", host, port)
            server.run()
    finally:
        pool.stop()


def _is_no_canceled_stream(record: logging.LogRecord) -> bool:
    """A server that stops cancels the streams of open pages; uvicorn would log a traceback for each of them."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def address(environment: dict[str, str] | os._Environ[str]) -> tuple[str, int]:
    """The host and port to listen on; in a Space, all addresses by default.

    Raises:
        ValueError: If the port is not one.
    """
    host = environment.get(HOST) or ("0.0.0.0" if SPACE in environment else "127.0.0.1")
    port = environment.get(PORT) or "7860"
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{PORT} must be a port from 1 to 65535; got {port[:40]!r}")
    return host, int(port)


def create_app(settings: ServiceSettings, models: Path, repo_ids: Sequence[str] = ()) -> ASGIApp:
    """Makes the application: the page, its jobs and the guards.

    Raises:
        OSError, ValueError: If there is no model that can be opened.
    """
    from sparsegen.service.http.protection import protection
    from sparsegen.service.http.restoration import lifespan
    from sparsegen.service.page import routes
    from sparsegen.service.page.app import mount
    from sparsegen.service.uploads import Room

    served, refused = find_models(models, repo_ids)
    for warning in refused:
        logger.warning(warning)

    app, room = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None), Room()

    @app.get("/livez")
    @app.get("/readyz")
    async def healthy() -> Response:
        return JSONResponse({})

    app.include_router(routes.router)
    own_routes = [*app.routes, *routes.router.routes]
    app.state.models = served
    app.state.queued, app.state.handlers, app.state.sessions = mount(
        app,
        served,
        lambda: app.state.jobs(),
        lambda: room,
        asks_token=settings.token is not None,
        http_api=False,
    )
    guarded: ASGIApp = app
    for middleware, options in reversed(protection(settings, own_routes, app.state, room)):
        guarded = middleware(guarded, **options)
    return AtRoot(guarded)


def find_models(folder: Path, repo_ids: Sequence[str]) -> tuple[dict[str, Model], list[str]]:
    """Opens the models in a folder and those of the Hub, which are named by their ids.

    Returns: The models by name, and a sentence per model that cannot be opened.

    Raises:
        OSError, ValueError: If there is no model.
    """
    models, refused = open_models(folder) if folder.is_dir() else ({}, [])
    for repo_id in repo_ids:
        try:
            models[repo_id] = replace(open_model(hub.download(repo_id)), name=repo_id)
        except (OSError, ValueError) as error:
            refused.append(f"{repo_id} is not served: {error}")
    if not models:
        raise ValueError(f"there is no model: {'; '.join(refused) or f'{folder} does not exist'}")
    return models, refused


class AtRoot:
    """ASGI middleware that answers / and all that is below it as PAGE, except for OWN and PAGE itself."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and path not in OWN and not f"{path}/".startswith(f"{PAGE}/"):
            raw = scope.get("raw_path") or path.encode()
            scope = {**scope, "path": PAGE + path, "raw_path": PAGE.encode() + raw}
        await self.app(scope, receive, send)
