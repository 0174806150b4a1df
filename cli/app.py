"""The command line: all commands in one app, and how errors are reported."""

import logging
import os
import sys
from typing import Annotated, NoReturn

import typer
from rich.logging import RichHandler

import sparsegen
from sparsegen.cli import encoding, models, paper, restoring, serving, training
from sparsegen.cli.console import EscapingFormatter, err, substitute_unencodable
from sparsegen.common.extras import explain
from sparsegen.common.text import escape_controls

EXPECTED = (ValueError, TypeError, OSError, ImportError, RuntimeError, FloatingPointError)

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"sparsegen {sparsegen.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Image generators whose inner representation is a sparse code."""


for group in (models, encoding, training, serving, paper, restoring):
    app.add_typer(group.app)


def _log_handler() -> logging.Handler:
    """Wraps messages on a terminal; in a file or a pipe, each is one line."""
    handler: logging.Handler
    if err.is_terminal:
        handler = RichHandler(console=err, show_time=False, show_path=False)
        handler.setFormatter(EscapingFormatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(EscapingFormatter("%(levelname)s %(message)s"))
    return handler


def main() -> None:
    """Runs the command line. An error is reported in one line; SPARSEGEN_TRACEBACK=1 shows its traceback.

    Exit codes: 2 for bad input and other expected errors, 1 for a bug in sparsegen, 130 for Ctrl-C.
    """
    substitute_unencodable(sys.stdout, sys.stderr)
    logging.basicConfig(level=logging.WARNING, handlers=[_log_handler()])
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except typer.Abort:
        _fail("interrupted", 130)
    except typer.TyperException as error:
        _fail(error.format_message())
    except Exception as error:
        if os.environ.get("SPARSEGEN_TRACEBACK"):
            raise
        if isinstance(error, EXPECTED):
            _fail(_sentence(error))
        bug = f"{type(error).__name__}: {error}"
        _fail(f"a bug in sparsegen ({bug}); set SPARSEGEN_TRACEBACK=1 to see the traceback", 1)
    if code == 130:  # typer returns it for a Ctrl-C that no command handled
        _fail("interrupted", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _sentence(error: Exception) -> str:
    """Returns the message of an error; that of the operating system without its number."""
    if isinstance(error, ModuleNotFoundError):
        return str(explain(error, "this command"))
    if isinstance(error, OSError) and error.strerror and error.filename and not error.filename2:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _fail(message: str, code: int = 2) -> NoReturn:
    print(f"sparsegen: {escape_controls(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(code)
