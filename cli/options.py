"""Arguments and options shared by several commands, and their checks."""

import os
from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str, typer.Argument(help="A bundled model, a checkpoint folder, or owner/name[@revision] on the Hub.")
]
Seed = Annotated[int, typer.Option(help="Random seed, 0 to 2^64 - 1.")]
K = Annotated[
    str | None,
    typer.Option(
        help="Sparsity (k), the non-zeros kept: one number, or one per level, Γ1 first, e.g. 16,32 (default: that of "
        "the model)."
    ),
]


def _check_jobs(jobs: str | None) -> str | None:
    """Rejects a URL that contains a password.

    Raises:
        typer.BadParameter: Since all users of a machine can read the arguments of its processes.
    """
    from sparsegen.service.jobs.places import has_password, public

    if jobs and has_password(jobs) and jobs != os.environ.get("SPARSEGEN_JOBS"):
        raise typer.BadParameter(
            f"{public(jobs)} may contain a password, and all users of this machine can read arguments: set the "
            "environment variable SPARSEGEN_JOBS to the URL instead"
        )
    return jobs


Jobs = Annotated[
    str | None,
    typer.Option(
        envvar="SPARSEGEN_JOBS",
        callback=_check_jobs,
        help="Storage of restoration jobs: a SQLite file, or redis://… for several machines (default: a file in "
        "the home folder).",
    ),
]
DEVICE_HELP = (
    "Device: auto, cpu, cuda, cuda:1, mps or xpu. auto is an accelerator if there is one, else the CPU."
)
Device = Annotated[str, typer.Option(help=DEVICE_HELP)]
ServiceDevice = Annotated[str, typer.Option(envvar="SPARSEGEN_DEVICE", help=DEVICE_HELP)]
Data = Annotated[
    str, typer.Option(help="Images: a dataset on the Hub, a parquet file, or a folder of images.")
]


def parse_labels(labels: str | None) -> str | list[str] | None:
    """Splits classes at commas; each is a number or a name. One class is returned as a string."""
    parts = [part.strip() for part in labels.split(",")] if labels is not None else []
    return parts if len(parts) > 1 else labels


def parse_k(k: str | None) -> int | list[int] | None:
    """Reads one integer, or several separated by commas. Raises: ValueError on other text."""
    if k is None:
        return None
    try:
        values = [int(part) for part in k.split(",")]
    except ValueError:
        raise ValueError(f"--k must be one integer, or one per level, e.g. 16,32; got {k!r}") from None
    return values[0] if len(values) == 1 else values


def check_target(path: Path, *suffixes: str, folder: bool = False, option: str = "--out") -> str:
    """Checks before any work that `path` can be written; returns its suffix in lower case, "" for a folder.

    The name of a new folder may end like a model name, e.g. dcgan.ml, so that `serve` finds it.

    Raises:
        OSError: If the path cannot be written.
        ValueError: For other suffixes.
    """
    from sparsegen.common.files import check_writable

    check_writable(path)
    suffix = path.suffix.lower()
    if suffix in suffixes and not path.is_dir():
        return suffix
    if folder and (path.is_dir() or (not path.is_file() and (not suffix or _ends_like_a_model(suffix)))):
        return ""
    or_folder = ", or be a folder whose name has no dot or is a model name" if folder else ""
    raise ValueError(f"{option} must end in {' or '.join(suffixes)}{or_folder}; got {path}")


def _ends_like_a_model(suffix: str) -> bool:
    from sparsegen.zoo.regularizers import REGULARIZERS  # here, because it needs torch

    return suffix[1:] in REGULARIZERS
