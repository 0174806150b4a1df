"""How near images come to themselves as sparse codes: PSNR against the density of the code, and against two baselines.

    pip install scikit-learn
    python -m benchmarks.encoding --data cifar10

For the best bundled model of each architecture, by its distance, `OnnxSampler.encode` finds the codes of its own
samples and of test images at several shares k/limit of non-zeros on all projected levels (for l0, of the whole code).
Models without a projection are left out. Compared with, on the same test images:

- z: the same descent on z in place of the code. It has only `z_dim` numbers.
- OMP: orthogonal matching pursuit of scikit-learn on the 16 patches of 8 x 8 pixels of an image, each with as many
  coefficients as the code Γ1 has per patch, and 512 atoms learned from patches of training images (mini-batch
  dictionary learning, also of scikit-learn). From 192 coefficients on, a patch of 192 values is exact.

Writes one line per model and density to records/encoding.jsonl; existing lines are skipped.
"""

from collections.abc import Iterator
from pathlib import Path
from time import process_time
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray

import sparsegen
from benchmarks.machine import circumstances
from sparsegen.cli.console import progress
from sparsegen.common.files import append_line, read_lines
from sparsegen.training.data import open_images
from sparsegen.zoo.bundled import MODELS
from sparsegen.zoo.checkpoint import read_config
from sparsegen.zoo.fitting import ITERATIONS
from sparsegen.zoo.generator import Generator

RECORDS = Path(__file__).parent / "records" / "encoding.jsonl"
DENSITIES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
PATCH, ATOMS, PATCHES = 8, 512, 20_000  # side in pixels; of the dictionary for OMP; to learn it from
KEY = ("model", "steps", "density", "count", "iterations")


def main(
    data: Annotated[
        str, typer.Option(help="A data set with the split test: a folder or a Hub id.")
    ] = "cifar10",
    densities: Annotated[str, typer.Option(help="Shares k/limit of non-zeros.")] = ",".join(
        map(str, DENSITIES)
    ),
    count: Annotated[int, typer.Option(help="Number of images.")] = 16,
    iterations: Annotated[int, typer.Option(help="Steps of a search.")] = ITERATIONS,
    threads: Annotated[int, typer.Option()] = 1,
    records: Annotated[Path, typer.Option()] = RECORDS,
) -> None:
    """Measures models and densities without a record."""
    torch.set_num_threads(threads)
    test = open_images(data, "test").pixels[:count].permute(0, 2, 3, 1).contiguous().numpy()
    pursuit = Pursuit(open_images(data).pixels)
    for name, steps in best_models():
        sampler = sparsegen.open_sampler(name, threads)
        own = sampler.sample(count, seed=0)
        of_z: dict[str, Any] | None = None
        for density in map(float, densities.split(",")):
            about = {
                "model": name, "steps": steps, "density": density, "count": count, "iterations": iterations,
            }  # fmt: skip
            if any(all(line[key] == about[key] for key in KEY) for line in read_lines(records)):
                continue
            k = [max(1, round(density * k_range.limit)) for k_range in sampler.k_ranges]
            with progress(f"{name} at {density:g}", 2 * count) as show:
                began = process_time()
                found = sampler.encode(test, k, iterations, progress=show)
                seconds = (process_time() - began) / count
                back = sampler.encode(own, k, iterations, progress=lambda done: show(count + done))
            of_z = of_z or invert(sparsegen.from_pretrained(name), test, iterations)
            entries = int(np.count_nonzero(found.codes[0])) / count
            record = about | {
                "k": k,
                "non_zeros": entries,
                "test": spread(found.psnr),
                "own": spread(back.psnr),
                "seconds": seconds,
                "omp": spread(pursuit(test, entries)),
                **of_z,
                **circumstances(),
            }
            append_line(records, record)


def best_models() -> Iterator[tuple[str, int]]:
    """The projected model of each architecture with the smallest distance, and its steps."""
    best: dict[str, tuple[float, str, int]] = {}
    for name in sparsegen.list_models():
        config = read_config(MODELS / name)
        if config["k"]:
            found = config["evaluation"]["distance"], name, config["training"]["steps"]
            best[config["architecture"]] = min(found, best.get(config["architecture"], found))
    return ((name, steps) for _, name, steps in best.values())


def spread(psnr: NDArray[np.float64]) -> dict[str, float]:
    """Mean and smallest of finite values, with an upper bound of 60 dB for exact images."""
    bounded = np.minimum(psnr, 60)
    return {"mean": round(float(bounded.mean()), 2), "least": round(float(bounded.min()), 2)}


def invert(generator: Generator, images: NDArray[np.uint8], iterations: int) -> dict[str, Any]:
    """The PSNR of images of the nearest z that was found, with the class of each image drawn from a seed."""
    labels = None
    if generator.classes:
        labels = np.random.default_rng(0).integers(0, generator.classes, len(images)).tolist()
    found = generator.encode(images, iterations=iterations, find_z=True, labels=labels)
    return {"z": spread(found.z_psnr), "z_dim": generator.z_dim}


class Pursuit:
    """Sparse coding of patches by scikit-learn.

    Args:
        pixels: Training images, uint8 (N, 3, H, W).
    """

    def __init__(self, pixels: torch.Tensor) -> None:
        from sklearn.decomposition import MiniBatchDictionaryLearning

        random = np.random.default_rng(0)
        chosen = np.sort(random.choice(len(pixels), PATCHES // 16, replace=False))
        images = pixels[torch.from_numpy(chosen)].permute(0, 2, 3, 1).numpy()
        patches = patches_of(images)
        learning = MiniBatchDictionaryLearning(
            ATOMS, alpha=0.1, max_iter=1, batch_size=256, random_state=0, transform_algorithm="omp"
        )
        self.atoms = learning.fit(patches - patches.mean(1, keepdims=True)).components_

    def __call__(self, images: NDArray[np.uint8], entries: float) -> NDArray[np.float64]:
        """The PSNR of each image, of whose patches each has its share of `entries` coefficients, one for the mean."""
        from sklearn.decomposition import sparse_encode

        patches = patches_of(images)
        each = int(entries * len(images) / len(patches))
        if each >= patches.shape[1]:
            return np.full(len(images), np.inf)
        mean = patches.mean(1, keepdims=True)
        codes = sparse_encode(patches - mean, self.atoms, algorithm="omp", n_nonzero_coefs=max(1, each - 1))
        made = np.rint(255 * np.clip(codes @ self.atoms + mean, 0, 1)) / 255
        errors = np.square(made - patches).mean(1).reshape(len(images), -1).mean(1)
        return -10 * np.log10(np.maximum(errors, 1e-12))


def patches_of(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The patches of images (B, H, W, 3), row by row, in [0, 1]. Shape: (B·patches, PATCH·PATCH·3)."""
    count, height, width, _ = images.shape
    blocks = images.reshape(count, height // PATCH, PATCH, width // PATCH, PATCH, 3).swapaxes(2, 3)
    return blocks.reshape(-1, PATCH * PATCH * 3) / 255


if __name__ == "__main__":
    typer.run(main)
