"""Samples images from a generator and measures their distance to real images, their codes' density and the speed."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from sparsegen.common.checks import check_integer
from sparsegen.common.devices import batch_size, full_precision, in_batches
from sparsegen.common.progress import OnProgress
from sparsegen.pictures import images as pixels
from sparsegen.training.features import FeatureNetwork
from sparsegen.training.metrics import Statistics, density, diversity, frechet_distance
from sparsegen.zoo import noise
from sparsegen.zoo.generator import Generator

MAX_BATCH = 4096


@dataclass(frozen=True, eq=False)
class Samples:
    """Images to be measured, with figures of their sampling (none for real images).

    Args:
        images: uint8 (N, H, W, 3).
        features: Features of the images (N, D), by the metric of the network.
        labels: int64 (N,), or None.
        class_names: Names of the labels 0, 1, …; empty if unknown.
        seed: Seed of the images 0 to N - 1.
        density: Share of non-zeros of each code, Γ1 first.
        samples_per_second: Images per second of the generator alone, the median over its batches.
        batch: Images per batch; with `threads` and `device`, the conditions of the speed.
    """

    images: np.ndarray
    features: Mapping[str, np.ndarray]
    labels: np.ndarray | None = None
    class_names: Sequence[str] = ()
    seed: int | None = None
    density: tuple[float, ...] = ()
    samples_per_second: float | None = None
    batch: int | None = None
    threads: int | None = None
    device: str | None = None

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Evaluation:
    """The results of `evaluate_samples` and their conditions.

    Args:
        metric: Name of `distance`, the headline figure; only "fid" is an FID.
        distance: Squared Fréchet distance to the reference; lower is better.
        distances: Distances of all metrics, including the headline's.
        count: Number of images measured.
        diversity: Variance of the features of the images as a share of that of the real ones, summed over all
            features; near 0 if the images are nearly equal.
        reference_count: Number of real images of the reference.
        seed, density, samples_per_second, batch, threads, device: As in `Samples`.
    """

    metric: str
    distance: float
    distances: dict[str, float]
    diversity: float
    count: int
    reference_count: int
    seed: int | None
    density: tuple[float, ...]
    samples_per_second: float | None
    batch: int | None
    threads: int | None
    device: str | None


def evaluate_samples(samples: Samples, references: Mapping[str, Statistics]) -> Evaluation:
    """Measures the distances of samples to real images.

    A smaller number of images raises the distance: compare only distances of equal numbers.

    Args:
        references: Statistics of real images by metric, the headline's first; `samples` must have the features of each.

    Raises:
        ValueError: If `samples` lacks the features of a reference.
    """
    if missing := [metric for metric in references if metric not in samples.features] or not references:
        raise ValueError(
            f"references must belong to the features of the samples, {', '.join(samples.features)}; got {missing}"
        )
    statistics = {metric: Statistics.of(samples.features[metric]) for metric in references}
    distances = {
        metric: frechet_distance(statistics[metric], reference) for metric, reference in references.items()
    }
    headline = next(iter(distances))
    return Evaluation(
        metric=headline,
        distance=distances[headline],
        distances=distances,
        diversity=diversity(statistics[headline], references[headline]),
        count=len(samples),
        reference_count=references[headline].count,
        seed=samples.seed,
        density=samples.density,
        samples_per_second=samples.samples_per_second,
        batch=samples.batch,
        threads=samples.threads,
        device=samples.device,
    )


def draw(
    generator: Generator,
    networks: Sequence[FeatureNetwork],
    count: int = 10_000,
    seed: int = 0,
    batch: int | None = None,
    progress: OnProgress | None = None,
) -> Samples:
    """Samples images 0 to count - 1 of a seed, as `generator.sample`, and computes their features in each network.

    The generator runs in eval mode (batch norm uses its running statistics); its mode is restored.

    Args:
        generator: Maps z to an image and its codes.
        count: 2 to 100,000.
        batch: Images at once, 1 to 4096; None: 64 on a CPU, on an accelerator up to 2048, by its free memory.
        progress: Called after each batch with the images done and `count`.

    Raises:
        TypeError, ValueError: A number is out of range.
        FloatingPointError: The generator returns NaN or infinite pixels.
        RuntimeError: The device has too little memory.
    """
    count = check_integer("count", count, 2, noise.MAX_COUNT, "the number of images to measure")
    if batch is None:
        batch = batch_size(generator.device, generator.image_bytes)
    batch = check_integer("batch", batch, 1, MAX_BATCH, "the number of images drawn at once")
    labels = noise.labels(count, generator.classes, noise.check_seed(seed), names=generator.class_names)
    features = {network.metric: np.empty((count, network.dimension), np.float32) for network in networks}
    images, densities, speeds = [], [], []

    def run(first: int, stop: int) -> tuple[np.ndarray, np.ndarray, float]:
        z = noise.z(stop - first, generator.z_dim, seed, first)
        drawn, codes, seconds = _draw(generator, z, None if labels is None else labels[first:stop])
        return drawn, np.array([density(code) for code in codes]) * len(z), len(z) / seconds

    done = 0
    with _eval_mode(generator), full_precision(generator.device):
        for drawn, shares, speed in in_batches(count, batch, run):
            for network in networks:
                features[network.metric][done : done + len(drawn)] = network(drawn)
            images.append(drawn)
            densities.append(shares)
            speeds.append(speed)
            done += len(drawn)
            if progress is not None:
                progress(done, count)
    return Samples(
        images=np.concatenate(images),
        features=features,
        labels=labels,
        class_names=generator.class_names,
        seed=seed,
        density=tuple((np.sum(densities, axis=0) / count).tolist()),
        samples_per_second=median(speeds),
        batch=len(images[0]) if len(images) > 1 else batch,
        threads=torch.get_num_threads(),
        device=str(generator.device),
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
    """Runs one batch; returns its uint8 images, its codes, and the seconds until the images are in memory."""
    given = [torch.from_numpy(part).to(generator.device) for part in (z, labels) if part is not None]
    start = time.perf_counter()
    image, codes = generator(*given)
    image = image.float().cpu()  # waits for an accelerator to finish
    seconds = time.perf_counter() - start
    return pixels.to_uint8(image.numpy()), codes, seconds
