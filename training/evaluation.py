"""Measures a generator: its distance to real images, the density of its codes, its speed."""

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from sparsegen.training.cache import keep, kept
from sparsegen.training.features import FeatureNetwork, check_images
from sparsegen.training.metrics import Statistics, density, frechet_distance
from sparsegen.zoo import images as pixels
from sparsegen.zoo import noise
from sparsegen.zoo.files import cache_folder
from sparsegen.zoo.generator import Generator

FORMAT = "1"  # of a cache file; a change of how features are computed raises it
CHUNK = 500  # images between two calls of a progress callback
MAX_BATCH = 4096

Progress = Callable[[int, int], object]  # images done, images in all


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured, and under which conditions.

    Args:
        metric: Name of `distance`; only "fid" is an FID.
        distance: Squared Fréchet distance to the reference; lower is better.
        count: Images drawn.
        reference_count: Real images behind the reference.
        seed: The images are those of this seed, 0 to count - 1.
        density: Share of non-zeros of each code, Γ1 first.
        samples_per_second: Images a second of the generator alone, the median over its batches.
        batch: Images a batch; with `threads` and `device`, what the speed was measured on.
    """

    metric: str
    distance: float
    count: int
    reference_count: int
    seed: int
    density: tuple[float, ...]
    samples_per_second: float
    batch: int
    threads: int
    device: str


def evaluate(
    generator: Generator,
    reference: Statistics,
    features: FeatureNetwork,
    count: int = 10_000,
    seed: int = 0,
    batch: int = 64,
    progress: Progress | None = None,
) -> Evaluation:
    """Draws images 0 to count - 1 of a seed, as `generator.sample` does, and measures them.

    The generator runs in eval mode (batch norm uses its running statistics) and is left as it was.
    A distance is biased upwards by a small count: compare only distances over equal counts.

    Args:
        generator: From z to an image and its codes.
        reference: Of real images, by `reference_statistics` with the same `features`.
        count: 2 to 100,000.
        progress: Called after each batch with the images done and `count`.

    Raises:
        TypeError, ValueError: A number is out of range, or the reference is another network's.
        FloatingPointError: The generator makes NaN or infinite pixels.
    """
    count = noise.check_integer("count", count, 2, noise.MAX_COUNT, "the number of images to measure")
    batch = noise.check_integer("batch", batch, 1, MAX_BATCH, "the number of images drawn at once")
    seed = noise.check_seed(seed)
    if len(reference.mean) != features.dimension:
        raise ValueError(
            f"the reference has {len(reference.mean)} dimensions and {features.metric} has "
            f"{features.dimension}: compute it by reference_statistics with the same features"
        )
    found = np.empty((count, features.dimension), np.float32)
    densities, speeds = 0.0, []
    with _eval_mode(generator):
        for first, z in noise.batches(count, generator.z_dim, seed, batch=batch):
            size = len(z)
            labels = noise.labels(size, generator.classes, seed, names=generator.class_names, first=first)
            drawn, codes, seconds = _draw(generator, z, labels)
            found[first : first + size] = features(drawn)
            densities = densities + np.array([density(code) for code in codes]) * size
            speeds.append(size / seconds)
            if progress is not None:
                progress(first + size, count)
    return Evaluation(
        metric=features.metric,
        distance=frechet_distance(Statistics.of(found), reference),
        count=count,
        reference_count=reference.count,
        seed=seed,
        density=tuple((densities / count).tolist()),
        samples_per_second=median(speeds),
        batch=batch,
        threads=torch.get_num_threads(),
        device=str(next(generator.parameters()).device),
    )


@contextlib.contextmanager
def _eval_mode(generator: Generator) -> Iterator[None]:
    before = [(module, module.training) for module in generator.modules()]
    generator.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@torch.no_grad()
def _draw(
    generator: Generator, z: np.ndarray, labels: np.ndarray | None
) -> tuple[np.ndarray, tuple[torch.Tensor, ...], float]:
    """Runs one batch; returns its uint8 images, its codes and the seconds until the images are in memory."""
    given = [torch.from_numpy(part).to(generator.device) for part in (z, labels) if part is not None]
    start = time.perf_counter()
    image, codes = generator(*given)
    image = image.float().cpu()  # waits for an accelerator to finish
    seconds = time.perf_counter() - start
    return pixels.to_uint8(image.numpy()), codes, seconds


def reference_statistics(
    images: np.ndarray,
    fingerprint: str,
    features: FeatureNetwork,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """Computes the statistics of real images, or reads them if these images were measured before.

    Args:
        images: uint8 (N, H, W, 3), N >= 2.
        fingerprint: Names these images in the cache, such as a hash of them: letters, digits and . _ -
        cache_dir: None for reference/ in `cache_folder()`. A damaged file in it is computed again, and
            where it cannot be written the statistics still come; a warning says so.
        progress: Called with the images done and N; not at all if the cache has them.

    Raises: ValueError on other images or another fingerprint.
    """
    check_images(images, least=2)
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", fingerprint):
        raise ValueError(
            f"a fingerprint names a file: 1 to 100 letters, digits and . _ - ; got {fingerprint!r}"
        )
    folder = cache_folder() / "reference" if cache_dir is None else Path(cache_dir)
    path = folder / f"{features.metric}-{fingerprint}-{len(images)}.safetensors"
    if (cached := _read(path, features.dimension, len(images))) is not None:
        return cached
    found = np.empty((len(images), features.dimension), np.float32)
    for start in range(0, len(images), CHUNK):
        found[start : start + CHUNK] = features(images[start : start + CHUNK])
        if progress is not None:
            progress(min(start + CHUNK, len(images)), len(images))
    statistics = Statistics.of(found)
    _write(path, statistics)
    return statistics


def _write(path: Path, statistics: Statistics) -> None:
    tensors = {
        "mean": torch.from_numpy(statistics.mean),
        "covariance": torch.from_numpy(statistics.covariance),
    }
    keep(path, tensors, {"format": FORMAT, "count": str(statistics.count)})


def _read(path: Path, dimension: int, count: int) -> Statistics | None:
    """The statistics in a cache file, whose name says what they are of; None if they are not there."""
    tensors, about = kept(path) or ({}, {})
    if about.get("format") != FORMAT or tensors["mean"].shape != (dimension,):
        return None
    return Statistics(tensors["mean"].numpy(), tensors["covariance"].numpy(), count)
