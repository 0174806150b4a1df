"""The commands that restore pictures."""

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsegen.cli.console import err, out, say, shown
from sparsegen.cli.options import Device
from sparsegen.common.devices import AUTO, find_device
from sparsegen.common.engines import HERE, ON_HELP, gpus_of, open_engine
from sparsegen.common.interrupt import stop_on_interrupt
from sparsegen.restoration import batch
from sparsegen.restoration.settings import Task, fair_threads

app = typer.Typer()

Inputs = Annotated[list[Path], typer.Argument(metavar="IN", help="Pictures; each is restored separately.")]


@dataclass(frozen=True)
class Options:
    """Options that all of the commands take."""

    out_path: Annotated[
        Path,
        typer.Option(
            "--out", help="A .png, .tif, .jpg or .webp file, or a folder (required for several pictures)."
        ),
    ]
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="fast|paper|quick",
            help="fast (default; quick for dejpeg); paper: the settings of the original, without early stopping; or "
            "quick: collaborative filtering without a network, in seconds, only to denoise and for dejpeg.",
        ),
    ] = None
    regularizer: Annotated[
        str, typer.Option(metavar="l0_inf|l0|l1|baseline", help="Sparsity constraint on the codes.")
    ] = "l0_inf"
    density: Annotated[
        float | None,
        typer.Option(help="Share of non-zeros in a code, above 0 to 1 (default: the regularizer's, 0.25)."),
    ] = None
    loss: Annotated[
        str, typer.Option(metavar="mse|l1", help="mse, or l1 for outliers such as salt-and-pepper noise.")
    ] = "mse"
    seed: Annotated[int, typer.Option(help="Random seed, 0 to 2^64 - 1.")] = 0
    iterations: Annotated[
        int | None, typer.Option(help="Maximum number of iterations, 1 to 100000 (default: 3000).")
    ] = None
    ensemble_size: Annotated[
        int | None,
        typer.Option(
            "--ensemble",
            help="Number of networks averaged, 1 to 8; run time grows linearly (default: 2 for fast, 1 for paper).",
        ),
    ] = None
    members: Annotated[int | None, typer.Option(hidden=True)] = None  # the old name of --ensemble
    threads: Annotated[
        int | None,
        typer.Option(
            help="CPU threads; with tiles, of each worker (default: half of the cores, at least one per network; with "
            "tiles, 1)."
        ),
    ] = None
    tile: Annotated[
        int | None,
        typer.Option(
            help="Side of a tile in pixels, 64 to 4096 (default: 256 for results above 512 x 512, else no tiles)."
        ),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that restore tiles, 1 to 61 (default: one per core, at most 4; on an accelerator or "
            "with --on, 1)."
        ),
    ] = None
    clean: Annotated[
        Path | None,
        typer.Option(
            metavar="REF", help="The clean picture; PSNR and SSIM are reported, the result is the same."
        ),
    ] = None
    preview: Annotated[
        bool,
        typer.Option("--preview", help="Write the current picture to NAME.preview.png every few seconds."),
    ] = False
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Write NAME.compare.png: before, after and, if given, the clean picture."
        ),
    ] = False
    history: Annotated[
        Path | None,
        typer.Option(help="Write loss, stopping statistic and density: a .csv file, or a .png plot."),
    ] = None
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Overwrite existing files, except pictures that are read.")
    ] = False
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Skip pictures whose result exists, to continue a folder.")
    ] = False
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask before work of more than ten minutes.")
    ] = False
    device: Device = AUTO
    on: Annotated[str, typer.Option(help=ON_HELP)] = HERE
    gpus: Annotated[
        float | None,
        typer.Option(
            help="GPUs of a picture for --on, e.g. 0.25 (default: 1 for --device cuda or xpu, else 0: the CPU)."
        ),
    ] = None

    def task(self, preset: str = Task.preset) -> dict[str, object]:
        """Returns the settings of `Task.of`; warns if the old name of an option is used.

        Args:
            preset: That of the command, if none is given.
        """
        names = ("regularizer", "density", "loss", "seed", "iterations")
        size = self.ensemble_size
        if self.members is not None:
            if size is not None:
                raise ValueError("--members is the old name of --ensemble: give --ensemble only")
            say(err, "--members is now called --ensemble; the old name will be removed in the next version")
            size = self.members
        own = {"preset": self.preset or preset, "ensemble_size": size}
        return {name: getattr(self, name) for name in names} | own

    def batch(self) -> batch.Options:
        """Returns the options of a batch."""
        return batch.Options(**{each.name: getattr(self, each.name) for each in fields(batch.Options)})


def command(example: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a function that takes `options` as a command; the fields of `Options` become its options."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own, shared = inspect.signature(function).parameters, inspect.signature(Options).parameters

        @wraps(function)
        def call(**given: Any) -> None:
            options = Options(**{name: given.pop(name) for name in shared})
            function(**given, options=options)

        every = [*(own[name] for name in own if name != "options"), *shared.values()]
        keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in every]
        call.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]  # PEP 362; not in typeshed
        del call.__annotations__["options"]
        return app.command(epilog=f"Example: {example}")(call)

    return register


@command("sparsegen denoise noisy.png --sigma 25 --out clean.png")
def denoise(
    inputs: Inputs,
    options: Options,
    sigma: Annotated[
        float | None,
        typer.Option(
            help="Upper bound of the noise's standard deviation in gray levels, 0 to 255 (default: estimated)."
        ),
    ] = None,
) -> None:
    """Removes noise from pictures.

    A network is fitted to each picture, which takes minutes; --preset quick takes seconds and has no network. Ctrl-C
    stops the work and writes the best result so far.
    """
    task = Task.of(kind="denoise", sigma=sigma, **options.task())
    if task.sigma_warning:
        say(err, f"--{task.sigma_warning}")
    restore(inputs, task, options)


@command("sparsegen inpaint scratched.png --mask scratches.png --out whole.png")
def inpaint(
    inputs: Inputs,
    options: Options,
    mask: Annotated[
        Path, typer.Option(help="A picture of the same size: white in the holes, black elsewhere.")
    ],
    invert_mask: Annotated[
        bool, typer.Option("--invert-mask", help="The holes of the mask are black, the rest is white.")
    ] = False,
) -> None:
    """Fills the holes of pictures that a mask marks.

    A network is fitted to each picture, which takes minutes. Ctrl-C stops the fit and writes the best result so far.
    """
    task = Task.of(kind="inpaint", **options.task())
    restore(inputs, task, options, mask=mask, invert_mask=invert_mask)


@command("sparsegen upscale small.png --by 4 --out large.png")
def upscale(
    inputs: Inputs,
    options: Options,
    by: Annotated[int, typer.Option(metavar="2|4", help="Factor by which width and height grow: 2 or 4.")],
) -> None:
    """Enlarges pictures 2 or 4 times (super-resolution).

    A network is fitted to each picture, which takes minutes. Ctrl-C stops the fit and writes the best result so far.
    """
    restore(inputs, Task.of(kind="upscale", by=by, **options.task()), options)


@command("sparsegen deblur soft.png --kernel gaussian:1.6 --out sharp.png")
def deblur(
    inputs: Inputs,
    options: Options,
    kernel: Annotated[
        str,
        typer.Option(
            metavar="gaussian:SIGMA|FILE",
            help="Blur kernel: a Gaussian of standard deviation SIGMA, above 0 to 10 pixels, or a picture or .npy "
            "file with odd sides.",
        ),
    ],
) -> None:
    """Removes a known blur from pictures.

    A network is fitted to each picture, which takes minutes. Ctrl-C stops the fit and writes the best result so far.
    """
    if kernel.startswith("gaussian:"):
        task = Task.of(kind="deblur", kernel=kernel, **options.task())
        return restore(inputs, task, options)
    task, path = Task.of(kind="deblur", kernel="file", **options.task()), Path(kernel)
    if not path.exists():
        raise FileNotFoundError(
            f"--kernel {kernel}: the file does not exist; a Gaussian is, e.g., gaussian:1.6"
        )
    restore(inputs, task, options, kernel=path)


@command("sparsegen dejpeg photo.jpg --out clean.png")
def dejpeg(inputs: Inputs, options: Options) -> None:
    """Undoes the compression of JPEG files: removes blocks and rings.

    The result is a picture that the file may have been made of: the file stores each coefficient of its blocks up to a
    rounding error. Takes seconds per megapixel and round, and has no network: the only preset is quick.
    """
    restore(inputs, Task.of(kind="dejpeg", **options.task("quick")), options)


class Report:
    """Shows a batch on the terminal."""

    progress = staticmethod(shown)

    def note(self, text: str) -> None:
        say(err, text)

    def result(self, text: str) -> None:
        say(out, text)

    def confirm(self, question: str) -> bool:
        return not sys.stdin.isatty() or typer.confirm(question, err=True)


def restore(
    inputs: Sequence[Path],
    task: Task,
    options: Options,
    mask: Path | None = None,
    kernel: Path | None = None,
    invert_mask: bool = False,
) -> None:
    """Restores pictures, shows the progress, and exits with code 130 if it was interrupted."""
    report, engine, given = Report(), open_engine(options.on), options.batch()
    device, gpus = gpus_of(options.device, options.gpus, engine.here)
    given = replace(given, device=device, workers=given.workers or (None if engine.here else 1))
    prepared = batch.prepare(inputs, task, given, report, mask, kernel, invert_mask)
    if not prepared.ready:
        batch.restore_all(prepared, lambda: False, report)
        return
    threads = _load_torch(options.threads, task.settings.ensemble_size)
    if not engine.here:  # Ctrl-C cancels the tasks
        batch.restore_all(prepared, lambda: False, report, engine, threads, gpus)
        return
    find_device(device)
    with stop_on_interrupt(lambda: say(err, "stopping; press Ctrl-C again to stop at once")) as interrupted:
        if not batch.restore_all(prepared, interrupted, report):
            sys.exit(130)


def _load_torch(threads: int | None, ensemble_size: int) -> int:
    """Imports torch, which takes seconds, before Ctrl-C is handled; during the import it exits at once.

    Returns: The number of its threads.
    """
    import torch

    if threads or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads or fair_threads(ensemble_size))
    return torch.get_num_threads()
