"""Runs the cells of a table on an engine, and appends a record per finished cell."""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import typer

from sparsegen.cli.console import err, say
from sparsegen.common.engines import Engine, Needs, sentence
from sparsegen.common.files import append_line
from sparsegen.reproduce.tables import Record

Cell = TypeVar("Cell")


def run_campaign(
    engine: Engine,
    measure: Callable[[Cell], Record],
    cells: Iterable[Cell],
    needs: Callable[[Cell], Needs],
    records: Path,
    name: Callable[[Cell], str],
    folders: Sequence[Path] = (),
) -> bool:
    """Measures cells and appends their records; only this process writes them, one line per finished cell.

    A cell that fails is reported, and the others are measured; with SPARSEGEN_TRACEBACK=1, it ends the program. Ctrl-C
    ends the program with code 130.

    Args:
        name: The name of a cell in messages.
        folders: As in `Engine.map`.

    Returns: Whether all cells were measured.
    """
    failed = []
    records.parent.mkdir(parents=True, exist_ok=True)
    try:
        with engine:
            for outcome in engine.map(measure, cells, needs, folders):
                if outcome.error:
                    if os.environ.get("SPARSEGEN_TRACEBACK"):
                        raise outcome.error
                    failed.append(name(outcome.argument))
                    say(err, f"{failed[-1]}: {sentence(outcome.error)}")
                else:
                    append_line(records, outcome.result())
    except KeyboardInterrupt:
        say(err, "interrupted: the same command measures the cells that have no record yet")
        sys.exit(130)
    if failed:
        say(err, f"{len(failed)} cells have failed: {', '.join(failed)}; the same command repeats them")
    return not failed


def start(module: str) -> None:
    """Runs `main` of a module by its importable name, since other processes cannot import from `__main__`.

    An expected error is reported in one line.
    """
    try:
        typer.run(import_module(module).main)
    except (ValueError, OSError, ImportError) as error:
        say(err, " ".join(str(error).split()))
        sys.exit(2)
