"""Nearest neighbors among features: pure functions of arrays, computed in blocks that fit into memory."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from sparsegen.training.metrics import check_features

K = 3  # the radius of a ball of `coverage` is the distance to the K-th neighbor, as in the paper
PART = 2**25  # distances computed at a time: 128 MiB
ROUNDING = 2e-6  # bound of the squared distance of two equal rows in float32, relative to the variance

OnRows = Callable[[int], object]  # rows done


def nearest(
    queries: np.ndarray, references: np.ndarray, count: int = 1, progress: OnRows | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest references of each query, by Euclidean distance in float32.

    Distances far below the spread of the references are rounding errors: the distance of two equal rows may be a
    thousandth of the spread.

    Args:
        count: Neighbors of each query, 1 to M.
        progress: Called with the number of queries done.

    Shape: (N, D) and (M, D) -> distances float32 (N, count) and rows int64 (N, count), the nearest first.

    Raises:
        ValueError: On other shapes, NaN or infinities, and if there are fewer than `count` references.
    """
    if not 1 <= count <= len(references):
        raise ValueError(
            f"count, the neighbors of each query, must be from 1 to {len(references)}; got {count}"
        )
    parts = [part.topk(count, largest=False) for part in _squared_distances(queries, references, progress)]
    squared, rows = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    return np.sqrt(squared.clip(0)), rows


def coverage(points: np.ndarray, centers: np.ndarray, k: int = K, progress: OnRows | None = None) -> float:
    """Computes the share of points within a ball around any center; its radius is the distance to the center's k-th
    nearest neighbor.

    With generated points and real centers this is the precision of a generator, with real points and generated centers
    its recall (Kynkäänniemi et al., 2019, "Improved Precision and Recall Metric for Assessing Generative Models",
    eq. 1 and 2). Compare only values over equal counts.

    Args:
        progress: Called with the number of rows done, of N + M.

    Shape: points (N, D), centers (M, D).

    Raises:
        ValueError: On other shapes, NaN or infinities, and unless there are more than k centers.
    """
    if len(centers) <= k:
        raise ValueError(
            f"precision and recall use the {k} nearest neighbors of each image, so at least {k + 1} real and {k + 1} "
            f"generated images are needed; got {len(centers)}: use more images"
        )
    radii, _ = nearest(centers, centers, k + 1, progress)  # the nearest is the center itself
    reach = torch.from_numpy(radii[:, -1]).square() + ROUNDING * float(centers.var(axis=0).sum())
    after = progress and (lambda rows: progress(len(centers) + rows))
    return sum(
        int((part <= reach).any(dim=1).sum()) for part in _squared_distances(points, centers, after)
    ) / len(points)


def _squared_distances(a: np.ndarray, b: np.ndarray, progress: OnRows | None) -> Iterator[Tensor]:
    """Yields |a_i - b_j|² = |a_i|² + |b_j|² - 2 a_i b_j for blocks of rows of `a`. Shape: (n, M)."""
    check_features(a, b)
    mean = b.mean(axis=0, dtype=np.float64)  # subtracted, so that norms are not much larger than distances
    queries, centers = (
        torch.from_numpy(np.subtract(features, mean, dtype=np.float32)) for features in (a, b)
    )
    norms, done = centers.square().sum(dim=1), 0
    for rows in queries.split(max(1, PART // len(centers))):
        yield torch.addmm(norms, rows, centers.T, alpha=-2).add_(rows.square().sum(dim=1, keepdim=True))
        done += len(rows)
        if progress is not None:
            progress(done)
