"""What the commands show: lines, bars and tables."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from math import isfinite
from time import monotonic
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from sparsegen.restoration.results import AnyProgress

out, err = Console(), Console(stderr=True)
LINE_EVERY = 10.0  # seconds


def say(console: Console, text: str) -> None:
    """Prints a line as it is: names of files may look like markup, or hold bytes that are no text."""
    console.print(Text(text.encode(errors="backslashreplace").decode()), soft_wrap=True)


class Rate(ProgressColumn):
    """Steps a second, averaged over the last of them."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.3g}/s" if task.speed else "")


@contextmanager
def progress(what: str, total: int | None, done: int = 0) -> Iterator:
    """Shows a bar with rate and time left; yields a function that takes what is done by now."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=err, disable=not err.is_terminal) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda now, description=what, total=total: bar.update(
            task, completed=now, description=description, total=total
        )


@contextmanager
def shown(name: str, total: int) -> "Iterator[Callable[[AnyProgress], None]]":
    """Shows how far a fit is: as a bar, or where there is no terminal as a line now and then."""
    if err.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(8),
            TextColumn("{task.fields[state]}"),
        )
        with Bar(*columns, console=err, transient=True) as bar:
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
    """The share that is done, and a line on it. A fit may stop early, so it has from one time left to another."""
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


def show_record(record: dict) -> None:
    table = Table(show_header=False, box=None)
    for name, value in record.items():
        table.add_row(name, Text(_text(value)))
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
