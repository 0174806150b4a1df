"""Restores picture files. Input is checked before torch is imported and before any work."""

import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from sparsegen.common.checks import check_integer
from sparsegen.common.devices import AUTO, check_name, find_device
from sparsegen.common.engines import Engine, InProcess, Needs
from sparsegen.common.extras import require
from sparsegen.common.files import check_writable
from sparsegen.common.hardware import processors
from sparsegen.pictures.picture import MIN_SIDE, WRITABLE, Picture, check_suffix
from sparsegen.pictures.reading import read_picture
from sparsegen.restoration.damage import check_kernel, inverted
from sparsegen.restoration.kinds import check_damage, check_size, damage_note, find_kind
from sparsegen.restoration.results import (
    Preview,
    enlarged,
    measures,
    save,
    write_history,
    write_side_by_side,
)
from sparsegen.restoration.settings import MAX_THREADS, MAX_TILE, MAX_WORKERS, SMALLEST, Task

if TYPE_CHECKING:
    from sparsegen.restoration.restore import Restoration
    from sparsegen.restoration.results import AnyProgress

# After these errors of one picture, the others are still restored.
PICTURE_ERRORS = (OSError, ValueError, RuntimeError, FloatingPointError, ImportError)


ASK_SECONDS = 600
QUICK_SECONDS = 1e-5  # per pixel, on one thread of an AMD EPYC


class Report(Protocol):
    """Receives the messages and the progress of a batch."""

    def note(self, text: str) -> None:
        """Shows a note during the work."""

    def result(self, text: str) -> None:
        """Shows the outcome of a picture."""

    def confirm(self, question: str) -> bool:
        """Asks whether to start long work; True if there is nobody to ask."""

    def progress(self, name: str, total: int) -> "AbstractContextManager[Callable[[AnyProgress], None]]":
        """Shows the progress of a fit of at most `total` iterations; `name` is the name of the picture."""


@dataclass(frozen=True)
class Options:
    """Output paths, additional outputs and parallelism of a batch.

    Attributes:
        out_path: A file, or a folder (required for several pictures).
        threads: Number of CPU threads of torch; for tiled pictures, of each worker.
        tile: Side of a tile in pixels.
        workers: Number of processes that restore tiles.
        clean: The clean picture, for PSNR and SSIM.
        preview, compare: Whether NAME.preview.png and NAME.compare.png are written.
        history: A .csv file, or a .png plot, of loss, statistic and density.
        overwrite: Whether existing files are replaced.
        skip_existing: Whether pictures whose result exists are skipped.
        yes: Whether work of more than `ASK_SECONDS` starts without a question.
        device: As in `common.devices.find_device`.

    Raises:
        TypeError, ValueError: If a number is out of range.
    """

    out_path: Path
    threads: int | None = None
    tile: int | None = None
    workers: int | None = None
    clean: Path | None = None
    preview: bool = False
    compare: bool = False
    history: Path | None = None
    overwrite: bool = False
    skip_existing: bool = False
    yes: bool = False
    device: str = AUTO

    def __post_init__(self) -> None:
        check_name(self.device)
        if self.overwrite and self.skip_existing:
            raise ValueError("existing results can be skipped or overwritten, and both are requested")
        for name, low, high, meaning in (
            ("threads", 1, MAX_THREADS, "the CPU threads of a fit"),
            ("tile", SMALLEST, MAX_TILE, "the side of a tile in pixels"),
            ("workers", 1, MAX_WORKERS, "the processes that restore tiles"),
        ):
            if (value := getattr(self, name)) is not None:
                check_integer(name, value, low, high, meaning)


@dataclass(frozen=True)
class Work:
    """The task of a batch.

    Attributes:
        damage: The result of `check_damage`.
        reads: The input files other than the pictures.
    """

    task: Task
    options: Options
    damage: np.ndarray | None = None
    clean: Picture | None = None
    reads: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Job:
    """One picture and its output paths.

    Attributes:
        shape: (H, W, C) of the picture; set by `check`.
        picture: Set if the file cannot be read again, e.g. a pipe.
    """

    source: Path
    out: Path
    preview: Path | None
    compare: Path | None
    history: Path | None
    shape: tuple[int, ...] = ()
    picture: Picture | None = None

    @property
    def targets(self) -> list[Path]:
        return [path for path in (self.out, self.preview, self.compare, self.history) if path]

    def within(self, folder: Path) -> "Job":
        """Returns the job with its relative paths in a folder."""
        names = ("source", "out", "preview", "compare", "history")
        return replace(
            self, **{name: folder / path for name in names if (path := getattr(self, name)) is not None}
        )


@dataclass(frozen=True)
class Batch:
    """The valid pictures among `total` given ones, and the paths of the invalid and failed ones."""

    work: Work
    total: int
    ready: Sequence[Job]
    failed: list[Path] = field(default_factory=list)

    @contextmanager
    def catch_errors(self, job: Job, report: Report) -> Iterator[None]:
        """Raises an error of a single picture; with several pictures it is reported and the others are restored."""
        try:
            yield
        except PICTURE_ERRORS as error:
            if self.total == 1:
                raise
            self.failed.append(job.source)
            prefix = "" if job.source.name in str(error) else f"{job.source}: "
            report.note(f"sparsegen: {prefix}{' '.join(str(error).split())}")


def prepare(
    inputs: Sequence[Path],
    task: Task,
    options: Options,
    report: Report,
    mask: Path | None = None,
    kernel: Path | None = None,
    invert_mask: bool = False,
) -> Batch:
    """Checks all input before any work.

    Args:
        mask: The mask of an inpainting task.
        kernel: The kernel of a deblurring task, if it is a file: a picture, or a .npy array.
        invert_mask: Whether the holes are black in the mask.

    Raises:
        OSError, ValueError, ImportError: Of one line, for an error that concerns all pictures or the only
            one.
    """
    holes = read_input("the mask", mask) if mask else None
    pictures = inverted(holes) if holes and invert_mask else holes, read_kernel(kernel) if kernel else None
    reads = tuple(path for path in (mask, kernel, options.clean) if path)
    check_extras(options)
    damage = check_damage(task, *pictures)
    if note := damage_note(task, damage):
        report.note(note)
    clean = read_input("the clean picture", options.clean) if options.clean else None
    work = Work(task, options, damage, clean, reads)
    jobs = plan(inputs, work)
    if options.skip_existing:
        jobs, given = [job for job in jobs if not job.out.exists()], len(jobs)
        if len(jobs) < given:
            report.note(f"{given - len(jobs)} of {given} pictures are skipped: their results exist")
    ready: list[Job] = []
    batch = Batch(work, len(inputs), ready)
    for job in jobs:
        with batch.catch_errors(job, report):
            ready.append(check(job, work, keep=len(inputs) == 1 or not job.source.is_file()))
    if ready:
        require("restore", "a restoration", "torch")
    return batch


def restore_all(
    batch: Batch,
    interrupted: Callable[[], bool],
    report: Report,
    engine: Engine | None = None,
    threads: int = 1,
    gpus: float = 0,
) -> bool:
    """Restores the pictures; returns False if it was interrupted, else True.

    Args:
        interrupted: Whether to stop; called in this process only.
        engine: Where they are restored; None: in this process, one after another.
        threads, gpus: Threads of torch and GPUs of a picture on other nodes.

    Raises:
        OSError, ValueError, RuntimeError: The error of a single picture.
        RuntimeError: For several pictures, at the end; it lists those that failed.
    """
    engine, work = engine or InProcess(), batch.work
    if engine.here:
        restore: Callable[[Job], Sequence[Line]] = partial(
            restore_here, work=work, interrupted=interrupted, report=report
        )
    else:
        restore = partial(restore_elsewhere, work, Path.cwd(), threads)
    folders = [job.out.parent for job in batch.ready]
    left = len(batch.ready)
    try:
        with engine:
            needs = partial(needs_of, work=work, threads=threads, gpus=gpus)
            for outcome in engine.map(restore, batch.ready, needs, folders):
                left -= 1
                with batch.catch_errors(outcome.argument, report):
                    _repeat(outcome.result(), report)
                if interrupted():
                    report.note(f"stopped by a signal{f', {left} more not started' if left else ''}")
                    return False
    except KeyboardInterrupt:
        if not engine.here:
            report.note(f"{left} of {len(batch.ready)} pictures are not restored: --skip-existing continues")
        raise
    if batch.failed:
        names = ", ".join(map(str, batch.failed))
        raise RuntimeError(
            f"{len(batch.failed)} of {batch.total} pictures were not restored completely: {names}"
        )
    return True


def check_extras(options: Options) -> None:
    """Checks that the packages that an option needs are installed.

    Raises:
        ImportError: With the pip command.
        ValueError: If the history is neither a .csv nor a .png file.
    """
    if options.clean:
        require("restore", "the comparison with a clean picture", "skimage")
    suffix = options.history.suffix.lower() if options.history else ".csv"
    if suffix not in (".csv", ".png"):
        raise ValueError(f"the history is a .csv file, or a .png file for a plot; got {options.history}")
    if suffix == ".png":
        require("plot", "the plot of the history (a .csv file needs no package)", "matplotlib")


def plan(inputs: Sequence[Path], work: Work) -> list[Job]:
    """Chooses the output paths, from names alone.

    Raises:
        ValueError: If two results have the same path, or a result would overwrite an input.
    """
    options, several = work.options, len(inputs) > 1
    for name, given in (("clean picture", options.clean), ("history", options.history)):
        if several and given:
            got = ", ".join(map(str, inputs[:3])) + (", …" if len(inputs) > 3 else "")
            raise ValueError(
                f"a {name} is allowed for one picture only; got {len(inputs)} pictures, {got}: restore them one by one"
            )
    folder = _is_folder(options.out_path, several)
    jobs = []
    for source in inputs:
        name = source.name if source.suffix.lower() in WRITABLE else f"{source.stem}.png"
        path = options.out_path / name if folder else options.out_path
        preview = path.with_name(f"{path.stem}.preview.png") if options.preview else None
        compare = path.with_name(f"{path.stem}.compare.png") if options.compare else None
        jobs.append(Job(source, path, preview, compare, options.history))
    _check_collisions(jobs, [*inputs, *work.reads])
    return jobs


def _is_folder(path: Path, several: bool) -> bool:
    if path.is_dir():
        return True
    suffix = Path(f"_{path.name}").suffix.lower()  # the underscore makes the name ".png" a suffix
    if several and (path.exists() or suffix in WRITABLE):
        raise ValueError(
            f"the results of several pictures need a folder, and {path} is a file: give a folder"
        )
    return several or not (path.exists() or suffix)


def _check_collisions(jobs: Sequence[Job], reads: Sequence[Path]) -> None:
    """Raises ValueError if two results have the same path, or one has the path of an input."""
    read = {_identity(path) for path in reads}
    written: dict[object, Path] = {}
    for job in jobs:
        for path in job.targets:
            identity = _identity(path)
            if identity in read:
                raise ValueError(f"{path} is an input and would be overwritten: give the result another name")
            if identity in written:
                both = " and ".join(dict.fromkeys(map(str, (written[identity], job.source))))
                raise ValueError(
                    f"two results, of {both}, would be written to {path}: rename one, or restore them separately"
                )
            written[identity] = job.source


def _identity(path: Path) -> object:
    """A value that is equal for two paths of the same file."""
    try:
        found = path.stat()
    except OSError:  # it does not exist, or is not accessible, which `check` reports
        return os.path.normcase(os.path.realpath(path))
    return found.st_dev, found.st_ino


def check(job: Job, work: Work, keep: bool) -> Job:
    """Checks a picture and the paths of its results before any work.

    Raises:
        OSError, ValueError, ImportError: Of one line.
    """
    if job.source.is_dir():
        raise ValueError(f"{job.source} is a folder: give the pictures in it, e.g. {job.source}/*.png")
    for path in job.targets:
        if path.is_dir():
            raise ValueError(f"{path} is a folder, but must be the path of a file: give another output path")
        if os.path.lexists(path) and not work.options.overwrite:
            raise ValueError(f"{path} exists already: give another output path, or allow to overwrite it")
        check_writable(path)
    picture = read_source(job.source, work.task)
    height, width, channels = picture.pixels.shape
    shape = (height * work.task.factor, width * work.task.factor, channels)
    result = replace(picture, pixels=np.broadcast_to(np.float32(0), shape))
    check_suffix(job.out, result)
    _check_room(job.out, result)
    check_size(work.task, work.damage, (height, width))
    if work.clean:
        _check_clean(work.clean, job.source, shape)
    return replace(job, shape=picture.pixels.shape, picture=picture if keep else None)


def _check_clean(clean: Picture, source: Path, shape: tuple[int, int, int]) -> None:
    """Raises ValueError unless the clean picture has the (H, W, C) of the result."""
    height, width, channels = clean.pixels.shape
    if (height, width) != shape[:2]:
        raise ValueError(
            f"the clean picture must have {shape[1]} x {shape[0]} pixels, the size of the result of {source}; "
            f"got {width} x {height}"
        )
    if channels != shape[2]:
        kinds = {1: "gray", 3: "RGB"}
        raise ValueError(
            f"the clean picture must be {kinds[shape[2]]} like {source}; got {kinds[channels]}: convert it"
        )


def _check_room(path: Path, picture: Picture) -> None:
    """Raises OSError if the free space on the disk is less than the uncompressed picture needs."""
    folder = next(parent for parent in Path(os.path.realpath(path)).parents if parent.exists())
    free = shutil.disk_usage(folder).free
    samples = picture.pixels.size + (0 if picture.alpha is None else picture.pixels[..., 0].size)
    if free < (needed := samples * picture.depth // 8):
        raise OSError(
            f"{path}: the disk has {free / 1e6:.3g} MB left, and the picture may need {needed / 1e6:.3g} MB: "
            f"free some space, or give another output path"
        )


def read_source(path: Path, task: Task) -> Picture:
    """Reads a picture, with the cells of its file if the task needs them."""
    return read_picture(path, cells=find_kind(task.kind).cells)


def read_input(name: str, path: Path, min_side: int = MIN_SIDE) -> Picture:
    if path.is_dir():
        raise ValueError(f"{name} must be a picture file; {path} is a folder")
    return read_picture(path, min_side=min_side)


def read_kernel(path: Path) -> Picture:
    """Reads a blur kernel, a picture or a .npy array, and returns it as a picture with the maximum 1.

    Raises:
        OSError, ValueError: With the path.
    """
    if path.suffix.lower() != ".npy":
        return read_input("the kernel", path, min_side=1)
    try:
        kernel = np.load(path, "r", allow_pickle=False)  # memory-mapped, since the header may claim terabytes
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a .npy array of numbers, or it is damaged: {error}") from error
    if not isinstance(kernel, np.ndarray) or kernel.ndim != 2 or kernel.dtype.kind not in "uif":
        got = f"{kernel.dtype} {kernel.shape}" if isinstance(kernel, np.ndarray) else "several arrays"
        raise ValueError(f"a kernel must be a matrix (h, w) of numbers; got {got} in {path}")
    kernel = np.asarray(kernel, np.float64)
    try:
        check_kernel(kernel)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Picture((kernel / kernel.max()).astype(np.float32)[..., None])


Line = tuple[str, str]  # a method of `Report` and its text, or "error" and a message


class Lines:
    """A report that is sent to another process."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def note(self, text: str) -> None:
        self.lines.append(("note", text))

    def result(self, text: str) -> None:
        self.lines.append(("result", text))

    def confirm(self, question: str) -> bool:
        return True

    @contextmanager
    def progress(self, name: str, total: int) -> "Iterator[Callable[[AnyProgress], None]]":
        yield lambda progress: None


def _repeat(lines: Sequence[Line], report: Report) -> None:
    """Reports lines. Raises: OSError for an error."""
    for kind, text in lines:
        if kind == "error":
            raise OSError(text)
        (report.note if kind == "note" else report.result)(text)


def restore_here(job: Job, work: Work, interrupted: Callable[[], bool], report: Report) -> Sequence[Line]:
    """Restores a picture as `restore_one`; returns no lines, since they are reported at once."""
    restore_one(job, work, interrupted, report)
    return ()


def restore_elsewhere(work: Work, folder: Path, threads: int, job: Job) -> Sequence[Line]:
    """Restores a picture in another process than that of the command; returns the lines to report.

    Args:
        folder: Working folder of the command, to which the paths are relative.
        threads: Number of threads of torch.
    """
    import torch

    torch.set_num_threads(threads)
    report = Lines()
    try:
        restore_one(job.within(folder), work, lambda: False, report)
    except PICTURE_ERRORS as error:
        if not report.lines:
            raise
        report.lines.append(("error", f"{error} (on node {platform.node()})"))
    return report.lines


def needs_of(job: Job, work: Work, threads: int, gpus: float) -> Needs:
    """What the restoration of a picture needs: the processors of its threads or workers, GPUs, and memory."""
    from sparsegen.restoration.tiles import TILE, is_tiled, peak_memory

    options, task = work.options, work.task
    height, width, _ = job.shape
    pixels, workers = height * width * task.factor**2, 1
    if is_tiled(task, job.shape, options.tile):
        pixels, workers, threads = (options.tile or TILE) ** 2, options.workers or 1, options.threads or 1
    return Needs(workers * threads, gpus, peak_memory(task, job.shape, pixels, workers, threads))


def restore_one(job: Job, work: Work, interrupted: Callable[[], bool], report: Report) -> None:
    """Restores a picture, writes the results and reports them.

    Raises:
        OSError: If tiles failed or a file could not be written; the message contains the path of the result.
    """
    from sparsegen.restoration.tiles import Unfinished  # here, since it imports torch

    picture = job.picture or read_source(job.source, work.task)
    failures: list[str] = []
    try:
        outcome = fit_one(job, work, picture, interrupted, report)
    except Unfinished as error:  # the finished tiles are kept
        outcome, failures = error.outcome, [str(error)]
    stopped = interrupted()  # before writing; a later signal does not concern the result
    place, problems = save(job.out, outcome.image)
    problems = failures + problems
    pair = (enlarged(picture, outcome.image), outcome.image, *([work.clean] if work.clean else []))
    with _collect_errors(problems):
        if job.history:
            write_history(job.history, outcome)
    with _collect_errors(problems):
        if job.compare:
            write_side_by_side(job.compare, pair)
    why = "incomplete" if failures else outcome.stopped_because
    why = "stopped by a signal, best result so far" if stopped else why
    measured = f"; {measures(*pair)}" if work.clean else ""
    report.result(
        f"{place}: {why}; iteration {outcome.best_iteration} of {outcome.iterations}, "
        f"{outcome.seconds:.1f} s{measured}"
    )
    for note in picture.notes:
        report.result(f"  {job.source.name}: {note}")
    if problems:
        raise OSError("; ".join(problems))


@contextmanager
def _collect_errors(problems: list[str]) -> Iterator[None]:
    """Appends the message of an OSError to `problems` instead of raising it."""
    try:
        yield
    except OSError as error:
        problems.append(str(error))


def fit_one(
    job: Job, work: Work, picture: Picture, interrupted: Callable[[], bool], report: Report
) -> "Restoration[Picture]":
    """Runs the task on a picture and shows the progress."""
    total = work.task.settings.iterations
    preview = Preview(job.preview, report.note) if job.preview else None
    try:
        with report.progress(job.source.name, total) as show:

            def follow(progress: "AnyProgress") -> bool:
                show(progress)
                if preview:
                    preview.show(progress)
                return interrupted()

            return run(work, picture, follow, report)
    finally:
        if preview:
            preview.remove()


def ask(task: Task, picture: Picture, seconds: float, report: Report) -> None:
    """Asks whether work of many minutes is to start, and names what is faster.

    Raises:
        ValueError: If the answer is no.
    """
    pixels = picture.pixels[..., 0].size
    faster = f"half of its width takes about {timedelta(seconds=round(seconds / 4))}"
    if "quick" in find_kind(task.kind).presets:
        faster = f"--preset quick takes about {timedelta(seconds=round(QUICK_SECONDS * pixels))}, {faster}"
    about = timedelta(seconds=round(seconds))
    if not report.confirm(f"This takes about {about} ({faster}; --yes omits this question). Start?"):
        raise ValueError(f"it was not started; {faster}")


def run(
    work: Work, picture: Picture, callback: "Callable[[AnyProgress], bool]", report: Report
) -> "Restoration[Picture]":
    """Runs the task on one picture, in tiles if it is large.

    Choice: one process per core, at most four by default, since each needs about 1 GB. The result of a tile depends on
    the number of threads of its worker: one by default, so that it does not depend on the number of cores. An
    accelerator is used by one process by default, since several would share its memory and time.
    """
    from sparsegen.restoration.tiles import OVERLAP, TILE, estimate, is_tiled, run_tiled

    options, device = work.options, find_device(work.options.device)
    damage = picture.cells if find_kind(work.task.kind).cells else work.damage
    threads = options.threads or 1
    abreast = max(1, min(4, processors() // threads)) if device.type == "cpu" else 1
    workers = options.workers or abreast
    overlap = min(OVERLAP, (options.tile or TILE) // 3)
    if is_tiled(work.task, picture.pixels.shape, options.tile):
        expected = estimate(work.task, picture, workers, damage, options.tile, overlap, threads, device)
        report.note(
            f"{expected.tiles} tiles: about {timedelta(seconds=round(expected.seconds))} and "
            f"{expected.memory_bytes / 1e9:.1f} GB with {workers} workers",
        )
        if expected.seconds > ASK_SECONDS and not options.yes:
            ask(work.task, picture, expected.seconds, report)
    return run_tiled(work.task, picture, damage, callback, workers, options.tile, overlap, threads, device)
