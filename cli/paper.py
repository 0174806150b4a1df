"""The commands that show tables and figures of the paper with our measurements."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sparsegen.cli.console import out, say
from sparsegen.cli.options import Seed, check_target
from sparsegen.common.extras import require
from sparsegen.common.hardware import use_threads

app = typer.Typer()


class TableName(StrEnum):
    table1 = "table1"
    table2 = "table2"
    table3 = "table3"


@app.command(epilog="Example: sparsegen reproduce table1")
def reproduce(table: Annotated[TableName, typer.Argument(help="Table of the paper.")]) -> None:
    """Prints a table of the paper with our measurements, which are at a smaller, stated scale."""
    from sparsegen.reproduce.tables import TABLES, read_records

    records, show = TABLES[table]
    show(Console(width=max(out.width, 118)), read_records(records))


class Picture(StrEnum):
    atoms = "atoms"
    density = "density"
    samples = "samples"
    tradeoff = "tradeoff"


@app.command(epilog="Example: sparsegen plot density dcgan.baseline dcgan.l0_inf --out density.png")
def plot(
    what: Annotated[
        Picture,
        typer.Argument(
            help="atoms: atoms of D1 and D1 D2 (fig. 5); density: density of Γ1's needles (fig. 3b); samples: images; "
            "tradeoff: density against distance of the runs of table 1 (figs. 3a and 6)."
        ),
    ],
    models: Annotated[
        list[str] | None,
        typer.Argument(help="One or more models; for tradeoff, architectures (default: all)."),
    ] = None,
    out_path: Annotated[Path | None, typer.Option("--out", help="The .png file (default: WHAT.png).")] = None,
    seed: Seed = 0,
) -> None:
    """Plots what a model has learned."""
    require("plot", f"the plot of {what}", "torch", *[] if what is Picture.samples else ["matplotlib"])
    from sparsegen.common.files import atomic_write
    from sparsegen.reproduce.plots import draw

    out_path, models = out_path or Path(f"{what}.png"), models or []
    check_target(out_path, ".png")
    use_threads()
    picture = draw(what, models, seed)
    with atomic_write(out_path) as file:
        file.write_bytes(picture)
    say(out, f"{what}{' of ' * bool(models)}{', '.join(models)} in {out_path}")
