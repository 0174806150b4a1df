"""Table 3 at the scale that a CPU affords, and what the blind stop loses: a resumable campaign of restorations.

    python -m benchmarks.table3 --images ../shared/data/set9 --preset paper --bf16 --size 128 --seeds 0,1,2
    python -m benchmarks.table3 --images ../shared/data/set9 --preset fast --size 256
    python -m benchmarks.table3 --images ../shared/data/set9 --noises poisson:30,salt-and-pepper:0.1,jpeg:10
    python -m benchmarks.table3 --print

Each cell is one fit to a central crop of one picture with noise of a fixed seed. Its record has the best PSNR of
one output ("single") and of the averaged output ("average"), as the paper takes them, with the clean picture;
and what the blind stop, which does not see it, gave back in the same run. The preset `paper` has no stop: it runs
until it is `--past` iterations beyond its best average, or the preset's end. A cell that has its record is skipped.
BM3D (--bm3d, for which install `bm3d`) stands beside it as a yardstick.
"""

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console

from benchmarks.machine import circumstances
from sparsegen.cli.console import progress
from sparsegen.common.files import append_line
from sparsegen.reproduce.tables import RECORDS, read_records, show_table3
from sparsegen.restoration.fit import Fit
from sparsegen.restoration.restore import make_fit
from sparsegen.restoration.settings import PRESETS, SPARSITIES, Preset, Task

KEY = ("image", "size", "noise", "preset", "settings", "regularizer", "density", "seed", "end", "know_sigma")
PAST = 200  # iterations that a run without a stop goes beyond its best average
FOLLOWED = 1.25  # times the best iteration, and 100 more: how far a run is followed after its blind stop


def poisson(clean: np.ndarray, peak: float, random: np.random.Generator) -> np.ndarray:
    """Photon noise: `peak` photons in a white pixel."""
    return random.poisson(clean * peak) / peak


def salt_and_pepper(clean: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """Makes that share of the pixels black or white."""
    hit = random.random(clean.shape[:2]) < share
    return np.where(hit[..., None], random.integers(0, 2, clean.shape[:2])[..., None], clean)


def gaussian(clean: np.ndarray, sigma: float, random: np.random.Generator) -> np.ndarray:
    """White noise of that many gray levels of 255."""
    return clean + sigma / 255 * random.standard_normal(clean.shape)


def jpeg(clean: np.ndarray, quality: float, random: np.random.Generator) -> np.ndarray:
    """What a JPEG file of that quality keeps."""
    file = io.BytesIO()
    Image.fromarray(np.rint(clean * 255).astype(np.uint8)).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file), np.float32) / 255


NOISES: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "gaussian": gaussian,
    "poisson": poisson,
    "salt-and-pepper": salt_and_pepper,
    "jpeg": jpeg,
}


@dataclass(frozen=True)
class Trace:
    """What is known of one iteration once the clean picture may be looked at; PSNR in dB."""

    iteration: int
    cpu: float
    single: float
    average: float
    statistic: float | None


def crop(path: Path, size: int) -> np.ndarray:
    """The central size x size pixels of a picture, (size, size, 3) in [0, 1]."""
    pixels = np.asarray(Image.open(path).convert("RGB"), np.float32) / 255
    if min(pixels.shape[:2]) < size:
        raise typer.BadParameter(
            f"{path} has {pixels.shape[1]} x {pixels.shape[0]} pixels, no {size} x {size} of them"
        )
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


def observe(clean: np.ndarray, noise: str, seed: int) -> np.ndarray:
    """Adds noise of a kind and a strength, as "gaussian:25", and clips to [0, 1]."""
    kind, _, strength = noise.partition(":")
    noisy = NOISES[kind](clean, float(strength), np.random.default_rng(seed))
    return noisy.clip(0, 1).astype(np.float32)


def psnr(image: torch.Tensor, clean: torch.Tensor) -> float:
    return float(-10 * torch.log10((image - clean).square().mean()))


def tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))[None]


def follow(fit: Fit, clean: torch.Tensor) -> Iterator[Trace]:
    """Runs a fit and measures each output; the CPU seconds are those of the fit alone."""
    spent, since = 0.0, process_time()
    for now in fit:
        spent += process_time() - since
        yield Trace(now.iteration, spent, psnr(now.output, clean), psnr(now.average, clean), now.statistic)
        since = process_time()


def measure(
    task: Task, clean: np.ndarray, noisy: np.ndarray, preset: Preset, show: Callable[[int, str], None]
) -> dict:
    """One cell: the oracle's best, and what the blind stop gave back.

    A run that stops by itself is followed beyond its stop, to see what would have come. `preset` is in place of the
    task's.
    """
    truth, observation = tensor(clean), tensor(noisy)
    fit = make_fit(task, observation, preset=preset)
    has_rule = fit.rule is not None
    fit.preset = replace(preset, stops=False)
    single, average, given = (-math.inf, 0), (-math.inf, 0), {}
    for trace in follow(fit, truth):
        single = max(single, (trace.single, -trace.iteration))
        average = max(average, (trace.average, -trace.iteration))
        if has_rule and not given and trace.iteration >= min(fit.best.patience_ends, fit.preset.iterations):
            given = {
                "stopped_at": trace.iteration,
                "stopped_cpu_seconds": round(trace.cpu, 2),
                "returned_iteration": fit.best.iteration,
                "returned": psnr(fit.image, truth),
            }
        show(trace.iteration, f"{trace.average:.2f} dB")
        enough = -average[1] * FOLLOWED + 100 if has_rule else -average[1] + PAST
        if trace.iteration >= enough and (given or not has_rule):
            break
    return {
        "noisy": psnr(observation, truth),
        "single": single[0],
        "single_iteration": -single[1],
        "average": average[0],
        "average_iteration": -average[1],
        "iterations": trace.iteration,
        "cpu_seconds": round(trace.cpu, 2),
        **given,
    }


def bm3d_psnr(clean: np.ndarray, noisy: np.ndarray, sigma: float) -> float:
    """What BM3D (Dabov et al., 2007) makes of the same observation, knowing sigma."""
    from bm3d import bm3d_rgb

    return psnr(tensor(bm3d_rgb(noisy, sigma / 255).clip(0, 1).astype(np.float32)), tensor(clean))


def main(
    images: Annotated[Path, typer.Option(help="Folder of clean pictures.")] = Path("../shared/data/set9"),
    only: Annotated[str, typer.Option(help="Names of some of them.")] = "",
    size: Annotated[int, typer.Option(help="Side of the central crop.")] = 128,
    noises: Annotated[str, typer.Option(help=f"kind:strength, of {', '.join(NOISES)}.")] = "gaussian:25",
    preset: Annotated[str, typer.Option()] = "fast",
    regularizers: Annotated[str, typer.Option()] = "baseline,l0_inf,l0",
    densities: Annotated[str, typer.Option(help="In place of the regularizers' own.")] = "",
    seeds: Annotated[str, typer.Option()] = "0,1,2",
    iterations: Annotated[int, typer.Option(help="The end of a run at the latest.")] = 3000,
    know_sigma: Annotated[bool, typer.Option(help="Tell the blind stop the noise level of gaussian.")] = True,
    threads: Annotated[int, typer.Option()] = 1,
    bf16: Annotated[
        bool, typer.Option(help="Compute the preset paper in bfloat16, too, in half of the time.")
    ] = False,
    ensemble: Annotated[
        int | None, typer.Option(help="Networks averaged, in place of the preset's number.")
    ] = None,
    bm3d: Annotated[bool, typer.Option(help="Also run BM3D on gaussian noise.")] = False,
    records: Annotated[Path, typer.Option()] = RECORDS / "table3.jsonl",
    only_print: Annotated[bool, typer.Option("--print", help="Print the tables of the records.")] = False,
) -> None:
    """Runs what is missing of the campaign, then prints the tables."""
    if not only_print:
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
        for cell in cells(images, only, size, noises, preset, regularizers, densities, seeds):
            cell |= about
            if key(cell) in map(key, read_records(records)):  # read anew: another process may work on others
                continue
            clean = crop(images / f"{cell['image']}.png", size)
            noisy = observe(clean, cell["noise"], cell["seed"])
            kind, _, strength = cell["noise"].partition(":")
            task = Task.of(
                preset=preset, regularizer=cell["regularizer"], density=cell["density"], seed=cell["seed"],
                sigma=float(strength) if kind == "gaussian" and know_sigma else None,
                loss="l1" if kind == "salt-and-pepper" else "mse",
            )  # fmt: skip
            with progress(f"{cell['image']} {cell['noise']} {cell['regularizer']}", iterations) as show:
                last = replace(own, iterations=iterations)
                record = {**cell, **measure(task, clean, noisy, last, show), **circumstances()}
            if bm3d and kind == "gaussian" and cell["regularizer"] == "baseline":
                record["bm3d"] = bm3d_psnr(clean, noisy, float(strength))
            records.parent.mkdir(parents=True, exist_ok=True)
            append_line(records, record)
    show_table3(Console(width=130), read_records(records))


def cells(
    images: Path,
    only: str,
    size: int,
    noises: str,
    preset: str,
    regularizers: str,
    densities: str,
    seeds: str,
) -> Iterator[dict]:
    """The cells of a campaign, seed by seed, so that a broken-off one has whole rows."""
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


def key(record: dict) -> tuple:
    return tuple(record[name] for name in KEY)


if __name__ == "__main__":
    typer.run(main)
