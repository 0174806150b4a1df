"""How well Gaussian noise is removed: PSNR, SSIM and processor seconds of the presets and of BM3D.

    pip install bm3d
    python -m benchmarks.denoising --images FOLDER

Central crops of 128 x 128 pixels in color, with noise that is clipped to [0, 1], as a stored picture has it. All
methods know its standard deviation. Writes one line per picture, sigma and seed to records/denoising.jsonl; existing
lines are skipped.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

import sparsegen
from benchmarks.jpeg import Pixels, crop, figures
from benchmarks.machine import circumstances
from sparsegen.common.files import append_line, read_lines

RECORDS = Path(__file__).parent / "records" / "denoising.jsonl"
SIGMAS = "25,50,15"  # gray levels


def main(
    images: Annotated[Path, typer.Option(help="A folder of .png files.")],
    sigmas: Annotated[str, typer.Option(help="Standard deviations in gray levels.")] = SIGMAS,
    seeds: Annotated[str, typer.Option()] = "0",
    records: Annotated[Path, typer.Option()] = RECORDS,
) -> None:
    """Measures the pictures without a record."""
    torch.set_num_threads(1)
    for sigma in map(int, sigmas.split(",")):
        for seed in map(int, seeds.split(",")):
            for path in sorted(images.glob("*.png")):
                about = {"image": path.stem, "sigma": sigma, "seed": seed}
                if any(all(line[key] == about[key] for key in about) for line in read_lines(records)):
                    continue
                truth = crop(path) / np.float32(255)
                methods = dict(candidates(truth, sigma, seed))
                append_line(records, about | {"methods": methods} | circumstances())


def candidates(truth: Pixels, sigma: int, seed: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields the name of a method and its figures."""
    from bm3d import bm3d_rgb  # here, since the tables need no bm3d

    noise = np.random.default_rng(seed).normal(0, sigma / 255, truth.shape).astype(np.float32)
    noisy = np.clip(truth + noise, 0, 1)
    yield "noisy", figures(lambda: noisy, truth)
    yield "BM3D", figures(lambda: bm3d_rgb(noisy, sigma / 255), truth)
    sparsegen.restore(noisy, sigma=sigma, preset="quick")  # compiles
    for preset in ("quick", "fast"):
        yield (
            preset,
            figures(lambda p=preset: sparsegen.restore(noisy, sigma=sigma, seed=seed, preset=p).image, truth),
        )


if __name__ == "__main__":
    typer.run(main)
