"""Table 3 at a small scale for CPUs, and the loss by the stopping rule: a resumable campaign of restorations.

    python -m benchmarks.table3 --images ../shared/data/set9 --preset paper --bf16 --size 128 --seeds 0,1,2
    python -m benchmarks.table3 --images ../shared/data/set9 --preset fast --size 256
    python -m benchmarks.table3 --images ../shared/data/set9 --noises poisson:30,salt-and-pepper:0.1,jpeg:10
    python -m benchmarks.table3 --images ../shared/data/set9 --on ray
    python -m benchmarks.table3 --print

Each cell is one fit to a central crop of one picture with noise of a fixed seed. Its record has the best PSNR of one
output ("single") and of the averaged output ("average"), selected with the clean picture as in the paper, and the PSNR
of the result that the stopping rule selects in the same run without the clean picture. The preset `paper` does not
stop: it runs until `PAST` iterations after its best average, or to the end of the preset. Cells with a record are
skipped. With --bm3d, BM3D (package `bm3d`) is measured for comparison.

`--on` runs the cells on a Ray cluster or as jobs of Slurm, see docs/reproducing.md.
"""

import io
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import process_time
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console

from benchmarks.campaign import run_campaign, start
from benchmarks.machine import circumstances
from sparsegen.cli.console import progress
from sparsegen.common.engines import HERE, ON_HELP, Needs, open_engine
from sparsegen.reproduce.tables import RECORDS, Record, read_records, show_table3
from sparsegen.restoration.fit import Fit
from sparsegen.restoration.restore import make_fit
from sparsegen.restoration.settings import PRESETS, SPARSITIES, Preset, Task

KEY = ("image", "size", "noise", "preset", "settings", "regularizer", "density", "seed", "end", "know_sigma")
PAST = 200  # iterations after the best average at which a run without a stopping rule ends
FOLLOWED = 1.25  # a run with a stopping rule continues to this multiple of the best iteration plus 100


def poisson(clean: np.ndarray, peak: float, random: np.random.Generator) -> np.ndarray:
    """Photon noise with `peak` photons in a white pixel."""
    return random.poisson(clean * peak) / peak


def salt_and_pepper(clean: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """Makes a share of the pixels black or white."""
    hit = random.random(clean.shape[:2]) < share
    return np.where(hit[..., None], random.integers(0, 2, clean.shape[:2])[..., None], clean)


def gaussian(clean: np.ndarray, sigma: float, random: np.random.Generator) -> np.ndarray:
    """White noise with a standard deviation of `sigma` gray levels of 255."""
    return clean + sigma / 255 * random.standard_normal(clean.shape)


def jpeg(clean: np.ndarray, quality: float, random: np.random.Generator) -> np.ndarray:
    """Compresses with JPEG of this quality."""
    file = io.BytesIO()
    Image.fromarray(np.rint(clean * 255).astype(np.uint8)).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file), np.float32) / 255


NOISES: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "gaussian": gaussian,
    "poisson": poisson,
    "salt-and-pepper": salt_and_pepper,
    "jpeg": jpeg,
}


class Cell(NamedTuple):
    """A restoration to measure: what identifies its record, its task, and the clean crop."""

    about: Record
    task: Task
    clean: np.ndarray

    @property
    def name(self) -> str:
        names = ("image", "noise", "preset", "regularizer", "density", "seed")
        return " ".join(str(self.about[name]) for name in names if self.about[name] is not None)


@dataclass(frozen=True)
class Trace:
    """Measurements of one iteration: CPU seconds, and the PSNR in dB of output, average and result so far."""

    iteration: int
    cpu: float
    single: float
    average: float
    returned: float


def crop(path: Path, size: int) -> np.ndarray:
    """The central size x size pixels of a picture, (size, size, 3) in [0, 1]."""
    pixels = np.asarray(Image.open(path).convert("RGB"), np.float32) / 255
    if min(pixels.shape[:2]) < size:
        raise typer.BadParameter(
            f"{path} has {pixels.shape[1]} x {pixels.shape[0]} pixels, less than {size} x {size}"
        )
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


def observe(clean: np.ndarray, noise: str, seed: int) -> np.ndarray:
    """Adds noise "kind:strength", e.g. "gaussian:25", and clips to [0, 1]."""
    kind, _, strength = noise.partition(":")
    noisy = NOISES[kind](clean, float(strength), np.random.default_rng(seed))
    return noisy.clip(0, 1).astype(np.float32)


def psnr(image: torch.Tensor, clean: torch.Tensor) -> float:
    return float(-10 * torch.log10((image - clean).square().mean()))


def tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))[None]


def follow(fit: Fit, clean: torch.Tensor) -> Iterator[Trace]:
    """Runs a fit and measures each output; the CPU seconds are those of the fit only."""
    spent, since = 0.0, process_time()
    for now in fit:
        spent += process_time() - since
        values = (psnr(image, clean) for image in (now.output, now.average, now.image))
        yield Trace(now.iteration, spent, *values)
        since = process_time()


def measure(
    task: Task, clean: np.ndarray, noisy: np.ndarray, preset: Preset, show: Callable[[int, str], None]
) -> Record:
    """Measures a cell: the best PSNR, and the PSNR of the result that the stopping rule selects.

    A run with a stopping rule continues after its stop, to find the best PSNR. `preset` replaces that of the task.
    """
    truth, observation = tensor(clean), tensor(noisy)
    fit = make_fit(task, observation, preset=preset)
    has_rule = fit.rule is not None
    fit.preset = replace(preset, stops=False)
    single, average = (-math.inf, 0), (-math.inf, 0)
    stopped: dict[str, float] = {}
    for trace in follow(fit, truth):
        single = max(single, (trace.single, -trace.iteration))
        average = max(average, (trace.average, -trace.iteration))
        if has_rule and not stopped and trace.iteration >= min(fit.best.patience_ends, fit.preset.iterations):
            stopped = {
                "stopped_at": trace.iteration,
                "stopped_cpu_seconds": round(trace.cpu, 2),
                "returned_iteration": fit.best.iteration,
                "returned": trace.returned,
            }
        show(trace.iteration, f"{trace.average:.2f} dB")
        enough = -average[1] * FOLLOWED + 100 if has_rule else -average[1] + PAST
        if trace.iteration >= enough and (stopped or not has_rule):
            break
    return {
        "noisy": psnr(observation, truth),
        "single": single[0],
        "single_iteration": -single[1],
        "average": average[0],
        "average_iteration": -average[1],
        "iterations": trace.iteration,
        "cpu_seconds": round(trace.cpu, 2),
        **stopped,
    }


def bm3d_psnr(clean: np.ndarray, noisy: np.ndarray, sigma: float) -> float:
    """The PSNR of BM3D (Dabov et al., 2007) for the same observation, with known sigma."""
    from bm3d import bm3d_rgb  # type: ignore[import-not-found]  # not a dependency

    return psnr(tensor(bm3d_rgb(noisy, sigma / 255).clip(0, 1).astype(np.float32)), tensor(clean))


def main(
    images: Annotated[Path, typer.Option(help="Folder of clean pictures.")] = Path("../shared/data/set9"),
    only: Annotated[
        str, typer.Option(help="Names of the pictures, separated by commas (default: all).")
    ] = "",
    size: Annotated[int, typer.Option(help="Side of the central crop in pixels.")] = 128,
    noises: Annotated[str, typer.Option(help=f"kind:strength; kinds: {', '.join(NOISES)}.")] = "gaussian:25",
    preset: Annotated[str, typer.Option()] = "fast",
    regularizers: Annotated[str, typer.Option()] = "baseline,l0_inf,l0",
    densities: Annotated[str, typer.Option(help="Densities (default: those of the regularizers).")] = "",
    seeds: Annotated[str, typer.Option()] = "0,1,2",
    iterations: Annotated[int, typer.Option(help="Maximum number of iterations.")] = 3000,
    know_sigma: Annotated[
        bool, typer.Option(help="Give the noise level of gaussian to the stopping rule.")
    ] = True,
    threads: Annotated[int, typer.Option(help="CPU threads of a cell.")] = 1,
    on: Annotated[str, typer.Option(help=ON_HELP)] = HERE,
    bf16: Annotated[
        bool, typer.Option(help="Also compute the preset paper in bfloat16, which halves its time.")
    ] = False,
    ensemble: Annotated[
        int | None, typer.Option(help="Number of networks averaged (default: that of the preset).")
    ] = None,
    bm3d: Annotated[bool, typer.Option(help="Also measure BM3D on gaussian noise.")] = False,
    records: Annotated[Path, typer.Option()] = RECORDS / "table3.jsonl",
    only_print: Annotated[bool, typer.Option("--print", help="Print the tables of the records.")] = False,
) -> None:
    """Runs the cells without a record, then prints the tables."""
    if only_print:
        return show_table3(Console(width=130), read_records(records))
    engine = open_engine(on)
    torch.set_num_threads(threads)
    own = PRESETS[preset]
    own = replace(
        own, mixed_precision=own.mixed_precision or bf16, ensemble_size=ensemble or own.ensemble_size
    )
    about = {
        "settings": repr(own),
        "ensemble_size": own.ensemble_size,
        "end": iterations,
        "know_sigma": know_sigma,
    }

    def todo() -> Iterator[Cell]:
        for cell in cells(images, only, size, noises, preset, regularizers, densities, seeds):
            cell |= about
            if key(cell) in map(
                key, read_records(records)
            ):  # read again, since another process may add records
                continue
            kind, _, strength = cell["noise"].partition(":")
            task = Task.of(
                preset=preset, regularizer=cell["regularizer"], density=cell["density"], seed=cell["seed"],
                sigma=float(strength) if kind == "gaussian" and know_sigma else None,
                loss="l1" if kind == "salt-and-pepper" else "mse",
            )  # fmt: skip
            yield Cell(cell, task, crop(images / f"{cell['image']}.png", size))

    memory = replace(Task.of(preset=preset), ensemble_size=own.ensemble_size).memory(size, size)
    needs = Needs(threads, memory=int(memory))
    run = partial(record, preset=replace(own, iterations=iterations), threads=threads, bm3d=bm3d)
    complete = run_campaign(engine, run, todo(), lambda _: needs, records, lambda cell: cell.name)
    show_table3(Console(width=130), read_records(records))
    if not complete:
        sys.exit(1)


def record(cell: Cell, preset: Preset, threads: int, bm3d: bool) -> Record:
    """Measures a cell, and returns its record.

    Args:
        preset: Replaces that of the task.
        bm3d: Whether BM3D is measured on cells of the baseline with gaussian noise.
    """
    torch.set_num_threads(threads)
    about = cell.about
    noisy = observe(cell.clean, about["noise"], about["seed"])
    with progress(f"{about['image']} {about['noise']} {about['regularizer']}", preset.iterations) as show:
        found = {**about, **measure(cell.task, cell.clean, noisy, preset, show), **circumstances()}
    kind, _, strength = about["noise"].partition(":")
    if bm3d and kind == "gaussian" and about["regularizer"] == "baseline":
        found["bm3d"] = bm3d_psnr(cell.clean, noisy, float(strength))
    return found


def cells(
    images: Path,
    only: str,
    size: int,
    noises: str,
    preset: str,
    regularizers: str,
    densities: str,
    seeds: str,
) -> Iterator[Record]:
    """The cells of a campaign, seed by seed, so that an interrupted one has complete rows."""
    names = only.split(",") if only else sorted(path.stem for path in images.glob("*.png"))
    if not names:
        raise typer.BadParameter(f"{images} holds no .png files")
    for seed in map(int, seeds.split(",")):
        for noise in noises.split(","):
            for name in names:
                for regularizer in regularizers.split(","):
                    own = SPARSITIES[regularizer]
                    for density in (
                        map(float, densities.split(",")) if densities and own.unit else [own.density]
                    ):
                        yield {
                            "image": name, "size": size, "noise": noise, "preset": preset,
                            "regularizer": regularizer, "density": density if own.unit else None, "seed": seed,
                        }  # fmt: skip


def key(record: Record) -> tuple[Any, ...]:
    return tuple(record[name] for name in KEY)


if __name__ == "__main__":
    start("benchmarks.table3")
