"""Output of the commands: lines, progress bars and tables."""

import codecs
import io
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from math import isfinite
from time import monotonic
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from sparsegen.common.text import escape_controls

if TYPE_CHECKING:
    from sparsegen.restoration.results import AnyProgress

# Without markup and emoji: names of files and models are printed as they are, e.g. "grid[red].png".
out, err = (Console(stderr=stderr, markup=False, emoji=False, highlight=False) for stderr in (False, True))
LINE_EVERY = 10.0  # seconds


def say(console: Console, text: str) -> None:
    """Prints a line without wrapping it, and its control characters as escapes."""
    console.print(escape_controls(text, keep="\n\t"), soft_wrap=True)


class EscapingFormatter(logging.Formatter):
    """Prints control characters in log messages, e.g. of a downloaded model, as escapes."""

    def format(self, record: logging.LogRecord) -> str:
        return escape_controls(super().format(record), keep="\n\t")


PLAIN = {"Γ": "Gamma", "∞": "inf", "σ": "sigma", "…": "...", "→": "->", "±": "+-"}


def substitute_unencodable(*streams: TextIO) -> None:
    """Makes streams write a substitute for each character that their encoding lacks, instead of raising an error.

    Examples are Greek letters in a pipe that is not UTF-8, and bytes of file names that are not UTF-8.
    """
    codecs.register_error("sparsegen.substitute", _substitute)
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="sparsegen.substitute")


def _substitute(error: UnicodeError) -> tuple[str | bytes, int]:
    if isinstance(error, UnicodeEncodeError) and (text := PLAIN.get(error.object[error.start])):
        return text, error.start + 1
    return codecs.backslashreplace_errors(error)


class Rate(ProgressColumn):
    """Steps per second, averaged over the latest steps."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.3g}/s" if task.speed else "")


@contextmanager
def progress(
    what: str, total: int | None, done: int = 0, visible: bool = True
) -> Iterator[Callable[..., object]]:
    """Shows a bar with rate and remaining time, on a terminal and if it is visible.

    Yields: A function of the number of steps done and, optionally, a new description and total.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=not (visible and err.is_terminal)) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda now, description=what, total=total: bar.update(
            task, completed=now, description=description, total=total
        )


@contextmanager
def shown(name: str, total: int) -> "Iterator[Callable[[AnyProgress], None]]":
    """Shows the progress of a fit as a bar, or without a terminal as one line every `LINE_EVERY` seconds."""
    if err.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(8),
            TextColumn("{task.fields[state]}", markup=False),
        )
        with Progress(*columns, console=err, transient=True) as bar:
            task = bar.add_task(_short(name), total=1, state="")

            def move(progress: "AnyProgress") -> None:
                done, state = state_of(progress, total)
                bar.update(task, completed=done, state=state)

            yield move
        return
    due = monotonic() + LINE_EVERY

    def line(progress: "AnyProgress") -> None:
        nonlocal due
        if monotonic() >= due:
            due = monotonic() + LINE_EVERY
            say(err, f"{name}: {state_of(progress, total)[1]}")

    yield line


def state_of(progress: "AnyProgress", total: int) -> tuple[float, str]:
    """Returns the completed share, 0 to 1, and a status text.

    The remaining time is a range, because a fit may stop early.
    """
    from sparsegen.restoration.tiles import TiledProgress

    statistic = "" if progress.statistic is None else f" statistic {progress.statistic:.3g}"
    least = _clock(progress.seconds_left)
    if isinstance(progress, TiledProgress):
        state = f"{progress.finished}/{progress.tiles} tiles, iteration {progress.iteration}"
        return progress.fraction, f"{state}{statistic} {least} left"
    watched = f"{statistic} (best: {progress.best_iteration})" if statistic else f" loss {progress.loss:.3g}"
    most = _clock(progress.seconds / progress.iteration * (total - progress.iteration))
    left = least if least == most else f"{least}-{most}"
    return progress.iteration / total, f"{progress.iteration}/{total}{watched} {left} left"


def _clock(seconds: float) -> str:
    if not isfinite(seconds):
        return "?"
    return str(timedelta(seconds=round(max(0, seconds)))).removeprefix("0:")


def _short(name: str, limit: int = 14) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def show_record(record: Mapping[str, object]) -> None:
    """Prints names and values, one per line; control characters as escapes."""
    table = Table(show_header=False, box=None)
    for name, value in record.items():
        table.add_row(Text(escape_controls(name)), Text(escape_controls(_text(value))))
    out.print(table)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
