"""Arguments and options that several commands take, and what checks them."""

import os
from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str, typer.Argument(help="A bundled model, a checkpoint's folder, or owner/name on the Hub.")
]
Seed = Annotated[int, typer.Option(help="Fixes the noise: 0 to 2^64 - 1.")]
K = Annotated[
    str | None,
    typer.Option(help="Sparsity (k): non-zeros kept; one number, or one a level, Γ1 first, as 16,32."),
]


def _place(jobs: str | None) -> str | None:
    """Refuses a password as an argument."""
    from sparsegen.service.jobs.places import has_password, public

    if jobs and has_password(jobs) and jobs != os.environ.get("SPARSEGEN_JOBS"):
        raise typer.BadParameter(
            f"{public(jobs)} may hold a password, and every user of this machine can read arguments: set the "
            "environment variable SPARSEGEN_JOBS to the URL instead"
        )
    return jobs


Jobs = Annotated[
    str | None,
    typer.Option(
        envvar="SPARSEGEN_JOBS",
        callback=_place,
        help="Where restorations are kept: a file, or redis://… for several machines. A file of yours by default.",
    ),
]
Data = Annotated[str, typer.Option(help="Images: a Hub dataset id, a parquet file, or a folder of images.")]


def parse_labels(labels: str | None) -> str | list[str] | None:
    """One class or a list of them, each by its number or its name."""
    parts = [part.strip() for part in labels.split(",")] if labels is not None else []
    return parts if len(parts) > 1 else labels


def parse_k(k: str | None) -> int | list[int] | None:
    if k is None:
        return None
    try:
        values = [int(part) for part in k.split(",")]
    except ValueError:
        raise ValueError(f"--k is one number, or one a level as 16,32; got {k!r}") from None
    return values[0] if len(values) == 1 else values


def check_target(path: Path, *suffixes: str, folder: bool = False, option: str = "--out") -> str:
    """Checks before any work that `path` can be written; returns its suffix, in lower case, "" for a folder.

    A new folder may be called as a model, so that `serve` finds a dcgan.ml; another suffix is a mistake.
    """
    from sparsegen.common.files import check_writable
    from sparsegen.zoo.regularizers import REGULARIZERS

    check_writable(path)
    suffix = path.suffix.lower()
    if suffix in suffixes and not path.is_dir():
        return suffix
    named_as_one = suffix.removeprefix(".") in ("", *REGULARIZERS) and not path.is_file()
    if folder and (path.is_dir() or named_as_one):
        return ""
    or_folder = ", or a folder, its name without a dot or a model's" if folder else ""
    raise ValueError(f"{option} takes {' or '.join(suffixes)}{or_folder}; got {path}")
