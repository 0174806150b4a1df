"""The command line: all commands in one app, and what becomes of errors."""

import logging
import os
import sys
from typing import NoReturn

import typer
from rich.logging import RichHandler

from sparsegen.cli import models, paper, restoring, serving, training
from sparsegen.cli.console import err

FORESEEN = (ValueError, TypeError, OSError, ImportError, RuntimeError, FloatingPointError)

app = typer.Typer(
    help="Image generators whose inner representation is a sparse code.",
    add_completion=False,
    rich_markup_mode=None,
)
for group in (models, training, serving, paper, restoring):
    app.add_typer(group.app)


def main() -> None:
    """Runs the command line; whatever fails is told in one line, a traceback only on SPARSEGEN_TRACEBACK.

    Exit codes: 2 for bad input and what else is foreseen, 1 for a bug of ours, 130 for Ctrl-C.
    """
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=err, show_time=False, show_path=False)],
    )
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except typer.Abort:
        _fail("interrupted", 130)
    except typer.TyperException as error:
        _fail(error.format_message())
    except Exception as error:
        if os.environ.get("SPARSEGEN_TRACEBACK"):
            raise
        if isinstance(error, FORESEEN):
            _fail(str(error))
        bug = f"{type(error).__name__}: {error}"
        _fail(f"a bug of sparsegen ({bug}); with SPARSEGEN_TRACEBACK=1 it shows where", 1)
    if code == 130:  # as typer tells of Ctrl-C where no command was ready for it
        _fail("interrupted", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int = 2) -> NoReturn:
    print(f"sparsegen: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
