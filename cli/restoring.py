"""The commands that restore pictures. What is wrong with the input is found before torch is loaded, or any work."""

import inspect
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from sparsegen.cli.reporting import (
    Preview,
    enlarged,
    err,
    figures,
    out,
    save,
    say,
    shown,
    write_history,
    write_side_by_side,
)
from sparsegen.common.checks import check_integer
from sparsegen.common.files import check_writable
from sparsegen.common.hardware import processors
from sparsegen.common.interrupt import stop_on_interrupt
from sparsegen.pictures.picture import MIN_SIDE, WRITABLE, Picture, check_suffix
from sparsegen.pictures.reading import read_picture
from sparsegen.restoration.damage import check_damage, check_kernel
from sparsegen.restoration.settings import (
    MAX_THREADS,
    MAX_TILE,
    MAX_WORKERS,
    SMALLEST,
    Task,
    fair_threads,
)

if TYPE_CHECKING:
    from sparsegen.cli.reporting import AnyProgress
    from sparsegen.restoration.restore import Restoration

app = typer.Typer()
OF_A_PICTURE = (OSError, ValueError, RuntimeError, FloatingPointError, ImportError)  # others can go on

Inputs = Annotated[list[Path], typer.Argument(metavar="IN", help="Pictures; of several, each on its own.")]


@dataclass(frozen=True)
class Options:
    """What all of the commands take."""

    out_path: Annotated[
        Path,
        typer.Option(
            "--out", help="A .png, .tif, .jpg or .webp file; or a folder, which several pictures need."
        ),
    ]
    preset: Annotated[
        str,
        typer.Option(
            metavar="fast|paper", help="paper: the original's settings, which do not stop by themselves."
        ),
    ] = "fast"
    regularizer: Annotated[
        str, typer.Option(metavar="l0_inf|l0|l1|baseline", help="What is asked of the codes.")
    ] = "l0_inf"
    density: Annotated[
        float | None, typer.Option(help="Share of non-zeros in a code, in place of the regularizer's own.")
    ] = None
    loss: Annotated[
        str, typer.Option(metavar="mse|l1", help="l1 is for outliers, such as salt and pepper.")
    ] = "mse"
    seed: Annotated[int, typer.Option(help="Fixes all that is random: 0 to 2^64 - 1.")] = 0
    iterations: Annotated[
        int | None, typer.Option(help="The end, unless it stops before; the preset's by default.")
    ] = None
    members: Annotated[
        int | None,
        typer.Option(
            help="Hourglasses whose mean is the result; each takes its time. The preset's by default."
        ),
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(
            help="CPU threads of torch: half of the cores by default, or one an hourglass; of a worker, one."
        ),
    ] = None
    tile: Annotated[
        int | None,
        typer.Option(
            help="Side of a tile, 64 to 4096 pixels; by default results above 512 x 512 are cut into tiles of 256."
        ),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that restore tiles, by default up to 4; of one thread unless --threads is given."
        ),
    ] = None
    clean: Annotated[
        Path | None,
        typer.Option(metavar="REF", help="The true picture: reports PSNR and SSIM; changes nothing."),
    ] = None
    preview: Annotated[
        bool,
        typer.Option("--preview", help="Show the present picture in NAME.preview.png every few seconds."),
    ] = False
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Write NAME.compare.png: before, after and, if given, --clean."),
    ] = False
    history: Annotated[
        Path | None, typer.Option(help="Write what was watched: as .csv, or drawn as .png.")
    ] = None
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is there already; never a picture that is read.")
    ] = False

    def __post_init__(self) -> None:
        for name, low, high, meaning in (
            ("threads", 1, MAX_THREADS, "the CPU threads of a fit"),
            ("tile", SMALLEST, MAX_TILE, "the side of a tile in pixels"),
            ("workers", 1, MAX_WORKERS, "the processes that restore tiles"),
        ):
            if (value := getattr(self, name)) is not None:
                check_integer(f"--{name}", value, low, high, meaning)

    def task(self) -> dict[str, object]:
        """The settings of `Task.of` among them."""
        names = ("preset", "regularizer", "density", "loss", "seed", "iterations", "members")
        return {name: getattr(self, name) for name in names}


def command(example: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a command of a function that takes `options`: their fields become options of the command line."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own, shared = inspect.signature(function).parameters, inspect.signature(Options).parameters

        @wraps(function)
        def call(**given: object) -> None:
            options = Options(**{name: given.pop(name) for name in shared})
            function(**given, options=options)

        every = [*(own[name] for name in own if name != "options"), *shared.values()]
        keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in every]
        call.__signature__ = inspect.Signature(keywords)
        del call.__annotations__["options"]
        return app.command(epilog=f"Example: {example}")(call)

    return register


@command("sparsegen denoise noisy.png --sigma 25 --out clean.png")
def denoise(
    inputs: Inputs,
    options: Options,
    sigma: Annotated[
        float | None, typer.Option(help="Strength of the noise in gray levels of 255; estimated by default.")
    ] = None,
) -> None:
    """Removes noise from pictures.

    A network is fitted to each picture alone, which takes minutes; Ctrl-C ends it and writes the best so far.
    """
    task = Task.of(kind="denoise", sigma=sigma, **options.task())
    if task.idle_sigma:
        say(err, f"--{task.idle_sigma}")
    restore_all(inputs, Work(task, options))


@command("sparsegen inpaint scratched.png --mask scratches.png --out whole.png")
def inpaint(
    inputs: Inputs,
    options: Options,
    mask: Annotated[
        Path, typer.Option(help="A picture of the same size, black outside the holes to be filled.")
    ],
) -> None:
    """Fills holes in pictures, which a mask shows.

    A network is fitted to each picture alone, which takes minutes; Ctrl-C ends it and writes the best so far.
    """
    task = Task.of(kind="inpaint", **options.task())
    restore_all(inputs, Work(task, options, mask=_read("--mask", mask), reads=(mask,)))


@command("sparsegen upscale small.png --by 4 --out large.png")
def upscale(
    inputs: Inputs,
    options: Options,
    by: Annotated[int, typer.Option(metavar="2|4", help="How many times as wide and as high.")],
) -> None:
    """Enlarges pictures by 2 or 4.

    A network is fitted to each picture alone, which takes minutes; Ctrl-C ends it and writes the best so far.
    """
    restore_all(inputs, Work(Task.of(kind="upscale", by=by, **options.task()), options))


@command("sparsegen deblur soft.png --kernel gaussian:1.6 --out sharp.png")
def deblur(
    inputs: Inputs,
    options: Options,
    kernel: Annotated[
        str,
        typer.Option(
            metavar="gaussian:SIGMA|FILE",
            help="The blur: a Gaussian of SIGMA pixels; or a picture or .npy of it, with odd sides.",
        ),
    ],
) -> None:
    """Undoes a known blur of pictures.

    A network is fitted to each picture alone, which takes minutes; Ctrl-C ends it and writes the best so far.
    """
    if kernel.startswith("gaussian:"):
        task = Task.of(kind="deblur", kernel=kernel, **options.task())
        return restore_all(inputs, Work(task, options))
    task, path = Task.of(kind="deblur", kernel="file", **options.task()), Path(kernel)
    if not path.exists():
        raise FileNotFoundError(f"--kernel {kernel}: there is no such file, and a Gaussian is gaussian:1.6")
    restore_all(inputs, Work(task, options, kernel=_read_kernel(path), reads=(path,)))


@dataclass(frozen=True)
class Work:
    """What is to be done to every picture of a call; `reads` are the other files that it takes."""

    task: Task
    options: Options
    mask: Picture | None = None
    kernel: Picture | None = None
    clean: Picture | None = None
    reads: tuple[Path, ...] = ()

    @property
    def by(self) -> int:
        return self.task.by or 1


@dataclass(frozen=True)
class Job:
    """One picture and where its results go; `picture` is kept where it cannot be read again later."""

    source: Path
    out: Path
    preview: Path | None
    compare: Path | None
    history: Path | None
    picture: Picture | None = None

    @property
    def targets(self) -> list[Path]:
        return [path for path in (self.out, self.preview, self.compare, self.history) if path]


def restore_all(inputs: Sequence[Path], work: Work) -> None:
    """Restores one picture after the other. What fails with one of several is told, and the others are done.

    Raises: whatever is wrong with the only one; RuntimeError at the end that sums up several.
    """
    options = work.options
    check_extras(options)
    check_damage(work.task, work.mask, work.kernel)  # by itself, here; with each picture in `check`
    if options.clean:
        work = replace(work, clean=_read("--clean", options.clean), reads=(*work.reads, options.clean))
    jobs, failed = plan(inputs, work), []

    @contextmanager
    def told(job: Job) -> Iterator[None]:
        try:
            yield
        except OF_A_PICTURE as error:
            if len(inputs) == 1:
                raise
            failed.append(job.source)
            named = "" if job.source.name in str(error) else f"{job.source}: "
            say(err, f"sparsegen: {named}{' '.join(str(error).split())}")

    ready = []
    for job in jobs:
        with told(job):
            ready.append(check(job, work, keep=len(inputs) == 1 or not job.source.is_file()))
    if ready:
        _load_torch(options.threads, work.task.settings.members)
    with stop_on_interrupt(lambda: say(err, "stopping; Ctrl-C again stops at once")) as interrupted:
        for done, job in enumerate(ready, 1):
            with told(job):
                restore_one(job, work, interrupted)
            if interrupted():
                left = len(ready) - done
                say(err, f"stopped by a signal{f', {left} more not begun' if left else ''}")
                sys.exit(130)
    if failed:
        names = ", ".join(map(str, failed))
        raise RuntimeError(f"{len(failed)} of {len(inputs)} pictures were not restored as asked: {names}")


def check_extras(options: Options) -> None:
    """Finds out whether the libraries are there that an option needs.

    Raises: ImportError that names the extra; ValueError for a history of no kind.
    """
    if options.clean and not find_spec("skimage"):
        raise ImportError("--clean measures with scikit-image: pip install 'sparsegen[restore]'")
    suffix = options.history.suffix.lower() if options.history else ".csv"
    if suffix not in (".csv", ".png"):
        raise ValueError(f"--history takes .csv, or .png for a drawing; got {options.history}")
    if suffix == ".png" and not find_spec("matplotlib"):
        raise ImportError("--history draws with matplotlib: pip install 'sparsegen[plot]', or write a .csv")


def plan(inputs: Sequence[Path], work: Work) -> list[Job]:
    """Decides where the results go, by names alone.

    Raises: ValueError where two results would meet, or one would replace what is read.
    """
    options, several = work.options, len(inputs) > 1
    for name, given in (("--clean", options.clean), ("--history", options.history)):
        if several and given:
            got = ", ".join(map(str, inputs[:3])) + (", …" if len(inputs) > 3 else "")
            raise ValueError(f"{name} is of one picture; got {len(inputs)}, {got}: restore them one by one")
    folder = _is_folder(options.out_path, several)
    jobs = []
    for source in inputs:
        name = source.name if source.suffix.lower() in WRITABLE else f"{source.stem}.png"
        path = options.out_path / name if folder else options.out_path
        beside = {kind: path.with_name(f"{path.stem}.{kind}.png") for kind in ("preview", "compare")}
        preview, compare = (beside[kind] if getattr(options, kind) else None for kind in beside)
        jobs.append(Job(source, path, preview, compare, options.history))
    _check_apart(jobs, [*inputs, *work.reads])
    return jobs


def _is_folder(path: Path, several: bool) -> bool:
    if path.is_dir():
        return True
    suffix = Path(f"_{path.name}").suffix.lower()  # the underscore: a bare ".png" is a suffix, too
    if several and (path.exists() or suffix in WRITABLE):
        raise ValueError(f"--out takes a folder for several pictures; got the file {path}")
    return several or not (path.exists() or suffix)


def _check_apart(jobs: Sequence[Job], reads: Sequence[Path]) -> None:
    read = {_identity(path): path for path in reads}
    written = {}
    for job in jobs:
        for path in job.targets:
            identity = _identity(path)
            if identity in read:
                raise ValueError(f"{path} is read, and would be overwritten: give the result another name")
            if identity in written:
                both = " and ".join(dict.fromkeys(map(str, (written[identity], job.source))))
                raise ValueError(
                    f"two results, of {both}, would be written to {path}: give one another name, or restore them apart"
                )
            written[identity] = job.source


def _identity(path: Path) -> object:
    """What is the same for two names of one file."""
    try:
        found = path.stat()
    except OSError:  # not there yet, or out of reach, which `check` tells
        return os.path.normcase(os.path.realpath(path))
    return found.st_dev, found.st_ino


def check(job: Job, work: Work, keep: bool) -> Job:
    """Finds out before any work what is wrong with a picture, or with the places of its results.

    Raises: OSError, ValueError, ImportError of one line.
    """
    if job.source.is_dir():
        raise ValueError(f"{job.source} is a folder: name the pictures in it, as {job.source}/*.png")
    for path in job.targets:
        if path.is_dir():
            raise ValueError(f"{path} is a folder, and a file is to be written there: give another --out")
        if os.path.lexists(path) and not work.options.overwrite:
            raise ValueError(f"{path} is there already: give another --out, or --overwrite to replace it")
        check_writable(path)
    picture = read_picture(job.source)
    height, width, channels = picture.pixels.shape
    shape = (height * work.by, width * work.by, channels)
    result = replace(picture, pixels=np.broadcast_to(np.float32(0), shape))
    check_suffix(job.out, result)
    _check_room(job.out, result)
    check_damage(work.task, work.mask, work.kernel, (height, width))
    if work.clean:
        _check_clean(work.clean, job.source, shape)
    return replace(job, picture=picture if keep else None)


def _check_clean(clean: Picture, source: Path, shape: tuple[int, int, int]) -> None:
    """Raises ValueError unless the clean picture has the (H, W, C) of the result."""
    height, width, channels = clean.pixels.shape
    if (height, width) != shape[:2]:
        raise ValueError(
            f"--clean is to be {shape[1]} x {shape[0]} pixels, as {source} asks; got {width} x {height}"
        )
    if channels != shape[2]:
        kinds = {1: "gray", 3: "RGB"}
        raise ValueError(
            f"--clean is to be {kinds[shape[2]]}, as {source} is; got {kinds[channels]}: convert it"
        )


def _check_room(path: Path, picture: Picture) -> None:
    """Raises OSError if the disk has less room than the samples take, uncompressed."""
    folder = next(parent for parent in Path(os.path.realpath(path)).parents if parent.exists())
    free = shutil.disk_usage(folder).free
    samples = picture.pixels.size + (0 if picture.alpha is None else picture.pixels[..., 0].size)
    if free < (needed := samples * picture.depth // 8):
        raise OSError(
            f"{path}: the disk has {free / 1e6:.3g} MB left, the picture may take {needed / 1e6:.3g} MB: "
            f"make room, or give another --out"
        )


def _read(option: str, path: Path, min_side: int = MIN_SIDE) -> Picture:
    if path.is_dir():
        raise ValueError(f"{option} takes a picture; {path} is a folder")
    return read_picture(path, min_side=min_side)


def _read_kernel(path: Path) -> Picture:
    """A blur kernel as a picture whose values need not end at 1."""
    if path.suffix.lower() != ".npy":
        return _read("--kernel", path, min_side=1)
    try:
        kernel = np.load(path, "r", allow_pickle=False)  # mapped: the header may tell of terabytes
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no .npy array of numbers, or a damaged one: {error}") from error
    if not isinstance(kernel, np.ndarray) or kernel.ndim != 2 or kernel.dtype.kind not in "uif":
        got = f"{kernel.dtype} {kernel.shape}" if isinstance(kernel, np.ndarray) else "several arrays"
        raise ValueError(f"--kernel is a matrix (h, w) of numbers; got {got} in {path}")
    kernel = np.asarray(kernel, np.float64)
    try:
        check_kernel(kernel)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Picture((kernel / kernel.max()).astype(np.float32)[..., None])


def _load_torch(threads: int | None, members: int) -> None:
    """Takes seconds, so it is done before signals are caught: until then Ctrl-C ends all at once."""
    import torch

    if threads or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads or fair_threads(members))


def restore_one(job: Job, work: Work, interrupted: Callable[[], bool]) -> None:
    """Restores a picture, writes what was asked for, and reports.

    Raises: OSError if tiles failed, or something could not be written; then it says where the picture went instead.
    """
    from sparsegen.restoration.tiles import Unfinished

    picture, failures = job.picture or read_picture(job.source), []
    try:
        outcome = fit_one(job, work, picture, interrupted)
    except Unfinished as error:  # what is done is not to be lost
        outcome, failures = error.outcome, [str(error)]
    stopped = interrupted()  # now, since a signal may come while the result is written
    place, problems = save(job.out, outcome.image)
    problems = failures + problems
    pair = (enlarged(picture, outcome.image), outcome.image, *([work.clean] if work.clean else []))
    extras = (
        (job.history, lambda path: write_history(path, outcome)),
        (job.compare, lambda path: write_side_by_side(path, pair)),
    )
    for path, write in extras:
        try:
            if path:
                write(path)
        except OSError as error:
            problems.append(str(error))
    why = "not all of it" if failures else outcome.stopped_because
    why = "stopped by a signal, the best so far" if stopped else why
    measured = f"; {figures(*pair)}" if work.clean else ""
    say(
        out,
        f"{place}: {why}; iteration {outcome.best_iteration} of {outcome.iterations}, "
        f"{outcome.seconds:.1f} s{measured}",
    )
    for note in picture.notes:
        say(out, f"  {job.source.name}: {note}")
    if problems:
        raise OSError("; ".join(problems))


def fit_one(
    job: Job, work: Work, picture: Picture, interrupted: Callable[[], bool]
) -> "Restoration[Picture]":
    """Does the work, and shows how far it is."""
    total = work.task.settings.iterations
    preview = Preview(job.preview) if job.preview else None
    try:
        with shown(job.source.name, total) as show:

            def follow(progress: "AnyProgress") -> bool:
                show(progress)
                if preview:
                    preview.show(progress)
                return interrupted()

            return run(work, picture, follow)
    finally:
        if preview:
            preview.remove()


def run(work: Work, picture: Picture, callback: "Callable[[AnyProgress], bool]") -> "Restoration[Picture]":
    """Does the work on one picture, in tiles where it is large.

    Choice: a process per core, but no more than four by default, since each takes a gigabyte. What tiles become
    depends on the threads of a worker: one each, so that it does not depend on how many cores there are.
    """
    from sparsegen.restoration.tiles import OVERLAP, TILE, estimate, is_tiled, run_tiled

    options = work.options
    threads = options.threads or 1
    workers = options.workers or max(1, min(4, processors() // threads))
    overlap = min(OVERLAP, (options.tile or TILE) // 3)
    about = {"tile": options.tile, "overlap": overlap, "threads": threads}
    if is_tiled(work.task, picture, options.tile):
        will = estimate(work.task, picture, workers, work.mask, work.kernel, **about)
        say(
            err,
            f"{will.tiles} tiles: about {timedelta(seconds=round(will.seconds))} and "
            f"{will.memory_bytes / 1e9:.1f} GB with --workers {workers}",
        )
    return run_tiled(work.task, picture, work.mask, work.kernel, callback, workers, **about)
