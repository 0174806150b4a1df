"""The commands that serve models and restorations."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from sparsegen.cli.options import Jobs
from sparsegen.common.extras import require

app = typer.Typer()


@app.command(epilog="Example: sparsegen serve --port 3000")
def serve(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where it listens.")] = 3000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    models: Annotated[
        Path | None, typer.Option(help="Folder of models, each as `export --out FOLDER` writes it.")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=0, max=61, help="Processes beside the server that restore pictures.")
    ] = 1,
    jobs: Jobs = None,
    token: Annotated[
        str | None,
        typer.Option(
            help="Token that clients have to present, 16 characters or more. Other users of this machine see "
            "arguments: SPARSEGEN_TOKEN or --token-file hide it.",
            show_default=False,
        ),
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="File that holds the token.")] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name that requests may address the server by, beside localhost and --host; * is any."
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Origin, such as https://example.org, whose pages may use the API; * is any."),
    ] = None,
    allow_frame: Annotated[
        list[str] | None, typer.Option(help="Origin whose pages may show the page in a frame; * is any.")
    ] = None,
    proxy: Annotated[
        list[str] | None,
        typer.Option(
            help="Address or network of a proxy whose X-Forwarded-For is believed (default: this machine)."
        ),
    ] = None,
) -> None:
    """Serves the bundled models, or your own, and restorations, over HTTP, with the page at /ui.

    The options from --token on may be given as variables, too: SPARSEGEN_TOKEN, SPARSEGEN_ALLOW_HOST, …
    """
    require(
        "serve", "the server",
        "bentoml", "fastapi", "gradio", "huey", "onnxruntime", "prometheus_client", "psutil", "python_multipart",
    )  # fmt: skip
    from sparsegen.service.exposure import Exposure
    from sparsegen.service.http.serve import serve

    if token and token_file:
        raise ValueError("--token and --token-file both give the token: leave one of them out")
    exposure = Exposure.from_environment(
        host=host,
        token=read_token(token_file) if token_file else token,
        hosts=tuple(allow_host or ()),
        origins=tuple(allow_origin or ()),
        frames=tuple(allow_frame or ()),
        proxies=tuple(proxy or ()),
    )
    os.environ.update(exposure.environment())
    if models:
        os.environ["SPARSEGEN_MODELS"] = str(models.resolve())
    sys.exit(serve(host, port, workers, jobs))


def read_token(path: Path) -> str:
    """Reads a token from the file that holds it.

    Raises: ValueError if the file cannot be read, which shows nothing of it.
    """
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ValueError(f"the token cannot be read from {path} ({why}): give a readable file") from None


@app.command(epilog="Example: sparsegen worker --jobs redis://queue.example:6379")
def worker(
    jobs: Jobs = None,
    once: Annotated[bool, typer.Option("--once", help="End after one job, or if there is none.")] = False,
) -> None:
    """Does the restorations that servers take on: one at a time, on this or any other machine."""
    require("serve", "the worker", "huey", "psutil")
    from sparsegen.service.jobs.worker import work
    from sparsegen.service.logs import set_up_logs

    set_up_logs()
    sys.exit(work(jobs, once=once))
