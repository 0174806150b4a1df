"""The commands that serve models and restorations."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from sparsegen.cli.console import err, out, say
from sparsegen.cli.options import Jobs
from sparsegen.common.extras import require

app = typer.Typer()


@app.command(epilog="Example: sparsegen serve --port 3000")
def serve(
    port: Annotated[int, typer.Option(min=1, max=65535, help="TCP port to listen on.")] = 3000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    models: Annotated[
        str | None,
        typer.Option(
            help="Models to serve beside the bundled ones: folders written by `export --out FOLDER`, folders of such "
            "folders, and owner/name[@revision] on the Hub, separated by commas."
        ),
    ] = None,
    bundled: Annotated[bool, typer.Option(help="Serve the bundled models, too.")] = True,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=61,
            help="Number of processes that restore pictures; 0: none (default: 1, without PyTorch 0).",
            show_default=False,
        ),
    ] = None,
    jobs: Jobs = None,
    token: Annotated[
        str | None,
        typer.Option(
            help="Token that clients must present, at least 16 characters (default: none). Other users of the machine "
            "can read arguments; SPARSEGEN_TOKEN and --token-file keep it secret.",
            show_default=False,
        ),
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="File that contains the token.")] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Host name that requests may use besides localhost and --host; * allows any."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Origin, such as https://example.org, whose pages may use the API; * allows any."),
    ] = None,
    allow_frame: Annotated[
        list[str] | None, typer.Option(help="Origin whose pages may embed the page in a frame; * allows any.")
    ] = None,
    proxy: Annotated[
        list[str] | None,
        typer.Option(
            help="Address or network of a proxy whose X-Forwarded-For, -Proto and -Prefix headers are trusted "
            "(default: this machine)."
        ),
    ] = None,
    root_path: Annotated[
        str, typer.Option(help="Path below which a proxy shows the server, such as /images (default: none).")
    ] = "",
) -> None:
    """Serves the bundled models or your own, and restorations, over HTTP; the page is at /ui.

    The options from --token on can also be set as environment variables: SPARSEGEN_TOKEN, SPARSEGEN_ALLOW_HOST, …
    """
    require(
        "serve", "the server",
        "bentoml", "fastapi", "gradio", "huey", "onnxruntime", "prometheus_client", "psutil", "python_multipart",
    )  # fmt: skip
    from sparsegen.service.http.serve import serve
    from sparsegen.service.models import BUNDLED, sources
    from sparsegen.service.settings import ServiceSettings

    if token and token_file:
        raise ValueError("--token and --token-file are both given: give one of them")
    settings = ServiceSettings.from_environment(
        host=host,
        workers=workers,
        token=read_token(token_file) if token_file else token,
        allow_host=tuple(allow_host or ()),
        allow_origin=tuple(allow_origin or ()),
        allow_frame=tuple(allow_frame or ()),
        proxy=tuple(proxy or ()),
        root_path=root_path or None,
    )
    os.environ.update(settings.environment())
    if models:
        os.environ["SPARSEGEN_MODELS"] = ",".join([BUNDLED] * bundled + sources(models))
    elif not bundled:
        raise ValueError("--no-bundled leaves no model to serve: give models with --models")
    sys.exit(serve(host, port, settings.workers, jobs))


def read_token(path: Path) -> str:
    """Reads the token in a file.

    Raises:
        ValueError: If the file cannot be read; the message shows nothing of its content.
    """
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ValueError(f"the token cannot be read from {path} ({why}): give a readable file") from None


@app.command(epilog="Example: sparsegen space --models dcgan.ml,dcgan.l0_inf --out space")
def space(
    out_path: Annotated[
        Path | None, typer.Option("--out", help="New folder to write the Space to.", show_default=False)
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(help="Space on the Hub to create or update: owner/name.", show_default=False),
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            help="Models, separated by commas: bundled names and folders, which are copied, or owner/name on the Hub, "
            "which the Space downloads (default: the 4 best bundled ones).",
            show_default=False,
        ),
    ] = None,
    title: Annotated[str, typer.Option(help="Title of the Space.")] = "sparsegen",
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public", help="Visibility (default: that of the Space, or the owner's default)."
        ),
    ] = None,
) -> None:
    """Writes a Gradio Space with the page and some models to a folder, or pushes it to the Hugging Face Hub.

    Such a folder runs anywhere: pip install -r requirements.txt, then python app.py.
    """
    require(
        "serve,restore", "a Space",
        "fastapi", "gradio", "huey", "imagecodecs", "numba", "onnxruntime", "prometheus_client", "psutil",
        "python_multipart", "tifffile", "torch", "uvicorn",
    )  # fmt: skip
    from sparsegen.service.space import folder
    from sparsegen.zoo import hub

    if out_path is None and push is None:
        raise ValueError("nothing to write: give --out FOLDER or --push owner/name")
    if out_path is not None:
        folder.check_folder(out_path)
    if push is not None:
        hub.check_space(push, private)
    chosen = folder.choose([name.strip() for name in models.split(",")] if models else None)
    with tempfile.TemporaryDirectory() as temporary:
        path = out_path or Path(temporary) / "space"
        folder.write_space(path, chosen, title, push)
        if out_path is not None:
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            say(out, f"{len(chosen)} models and the page in {path}, {size / 1e6:.1f} MB")
        if push is not None:
            with err.status(Text(f"pushing to {push}")):
                url = hub.push_space(path, push, private)
            say(out, url)


@app.command(epilog="Example: sparsegen worker --jobs redis://queue.example:6379")
def worker(
    jobs: Jobs = None,
    once: Annotated[
        bool, typer.Option("--once", help="Exit after one job, or at once if there is none.")
    ] = False,
) -> None:
    """Runs the restoration jobs of servers, one at a time, on this or another machine."""
    require("serve,restore", "the worker", "huey", "numba", "psutil", "torch")
    from sparsegen.service.jobs.worker import work
    from sparsegen.service.logs import set_up_logs

    set_up_logs()
    sys.exit(work(jobs, once=once))
