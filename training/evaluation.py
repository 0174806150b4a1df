"""Measures a generator: its distance to real images, the density of its codes, its speed."""

import contextlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sparsegen.training.features import FeatureNetwork, check_images
from sparsegen.training.metrics import Statistics, density, frechet_distance
from sparsegen.zoo import images as pixels
from sparsegen.zoo import noise
from sparsegen.zoo.files import atomic_write, cache_folder
from sparsegen.zoo.generator import Generator

FORMAT = "1"  # of a cache file; a change of how features are computed raises it
CHUNK = 500  # images between two calls of a progress callback
MAX_BATCH = 4096

Progress = Callable[[int, int], object]  # images done, images in all

log = logging.getLogger(__name__)


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

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


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
        for first in range(0, count, batch):
            size = min(batch, count - first)
            drawn, codes, seconds = _draw(generator, noise.z(size, generator.z_dim, seed, first))
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
def _draw(generator: Generator, z: np.ndarray) -> tuple[np.ndarray, tuple[torch.Tensor, ...], float]:
    """Runs one batch; returns its uint8 images, its codes and the seconds until the images are in memory."""
    z = torch.from_numpy(z).to(next(generator.parameters()).device)
    start = time.perf_counter()
    image, codes = generator(z)
    image = image.float().cpu()  # waits for an accelerator to finish
    seconds = time.perf_counter() - start
    if broken := int((~image.isfinite()).flatten(1).any(dim=1).sum()):
        raise FloatingPointError(
            f"{broken} of {len(image)} generated images hold NaN or infinity: the weights have diverged, "
            f"go back to an earlier checkpoint"
        )
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


def _read(path: Path, dimension: int, count: int) -> Statistics | None:
    """Returns the statistics in a cache file; None if there is none, or, with a warning, if it is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            mean, covariance = file.get_tensor("mean"), file.get_tensor("covariance")
    except (SafetensorError, OSError) as error:
        log.warning("%s is damaged (%s): computing it again", path, error)
        return None
    fits = mean.shape == (dimension,) and covariance.shape == (dimension, dimension)
    finite = fits and np.isfinite(mean).all() and np.isfinite(covariance).all()
    if not finite or header.get("format") != FORMAT or header.get("count") != str(count):
        log.warning("%s holds something else than its name says: computing it again", path)
        return None
    return Statistics(mean, covariance, count)


def _write(path: Path, statistics: Statistics) -> None:
    """Writes a cache file whole or not at all; where that fails, warns, since the numbers are still good."""
    header = {"format": FORMAT, "count": str(statistics.count)}
    try:
        with atomic_write(path) as part:
            save_file({"mean": statistics.mean, "covariance": statistics.covariance}, part, metadata=header)
    except (OSError, SafetensorError) as error:
        log.warning("cannot keep reference statistics at %s (%s): they will be computed again", path, error)
