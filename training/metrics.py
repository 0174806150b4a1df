"""Fréchet distance, kernel distance, diversity and density: pure functions of arrays."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from torch import Tensor

CHUNK = 4096  # rows converted to float64 at a time, so that 50,000 x 2048 features are not copied at once


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and covariance of a set of `count` features.

    Shape: mean (D,), covariance (D, D), both float64.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int

    @classmethod
    def of(cls, features: np.ndarray) -> Self:
        """Computes the sample mean and the unbiased covariance (divisor N - 1), in float64.

        Shape: features (N, D), N >= 2.

        Raises:
            ValueError: On another shape, or on NaN or infinite entries.
        """
        features = np.asarray(features)
        check_features(features, least=2)
        mean = features.mean(axis=0, dtype=np.float64)
        scatter = np.zeros((len(mean), len(mean)))
        for start in range(0, len(features), CHUNK):
            centered = features[start : start + CHUNK] - mean
            scatter += centered.T @ centered
        return cls(mean, scatter / (len(features) - 1), len(features))


def check_features(*sets: np.ndarray, least: int = 1) -> None:
    """Checks that features are finite and of equal dimension, (N, D), N >= `least`.

    Raises:
        ValueError: Naming the given shape or the number of bad features.
    """
    for features in sets:
        if features.ndim != 2 or len(features) < least or features.shape[1] < 1:
            raise ValueError(
                f"features must be a matrix (N, D) of at least {least} rows, one per image; "
                f"got the shape {features.shape}"
            )
        if broken := int((~np.isfinite(features).all(axis=1)).sum()):
            raise ValueError(
                f"{broken} of {len(features)} features hold NaN or infinity: check the images for NaN"
            )
    if len(dimensions := {features.shape[1] for features in sets}) > 1:
        raise ValueError(f"compared features must have equal dimensions; got {sorted(dimensions)}")


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Computes the squared Fréchet distance of two Gaussians (Dowson & Landau 1982; Heusel et al. 2017).

        d² = |μa - μb|² + tr Σa + tr Σb - 2 tr (Σa Σb)^½

    It is 0 for equal Gaussians; with Inception features it is the FID. It is biased upwards by small counts: compare
    only distances of equal counts.

    Choice: tr (Σa Σb)^½ is the sum of the singular values of Ra' Rb, where Ra Ra' = Σa. With fewer samples than
    dimensions Σ is singular; its null space is removed before the square root, which would amplify rounding errors of
    1e-16 to 1e-8, as the eigenvalues of Σa Σb do.

    Raises:
        ValueError: If the two have different dimensions.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"both statistics must come from one feature network; got {len(a.mean)} and {len(b.mean)} dimensions"
        )
    offset = a.mean - b.mean
    overlap = np.linalg.svd(_root(a.covariance).T @ _root(b.covariance), compute_uv=False).sum()
    squared = offset @ offset + np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap
    return max(float(squared), 0.0)  # rounding may give -1e-13


def kernel_distance(generated: np.ndarray, real: np.ndarray) -> float:
    """Computes the unbiased squared maximum mean discrepancy of two sets of features (Bińkowski et al., 2018).

        mean k(x, x') + mean k(y, y') - 2 mean k(x, y),  x ≠ x', y ≠ y',  k(a, b) = (a·b / D + 1)³

    With Inception features it is the KID. Unlike the Fréchet distance it is not biased by small counts, so it suits
    few real images. It may be negative.

    Shape: features (N, D) and (M, D), N and M >= 2.

    Raises:
        ValueError: On other shapes, or on NaN or infinite entries.
    """
    check_features(generated, real, least=2)
    x, y = (np.asarray(features, np.float64) for features in (generated, real))

    def within(features: np.ndarray) -> float:
        values = _kernel(features, features)
        return float((values.sum() - values.trace()) / (len(features) * (len(features) - 1)))

    return within(x) + within(y) - 2 * float(_kernel(x, y).mean())


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Shape: (N, D), (M, D) -> (N, M)."""
    values: np.ndarray = (a @ b.T / a.shape[1] + 1) ** 3
    return values


def diversity(generated: Statistics, real: Statistics) -> float:
    """Computes the variance of generated features as a share of that of real ones, summed over the dimensions; >= 0.

    Raises:
        ValueError: If all real features are equal.
    """
    if not (whole := np.trace(real.covariance)) > 0:
        raise ValueError("all real images are equal: give different ones")
    return float(np.trace(generated.covariance) / whole)


def _root(covariance: np.ndarray) -> np.ndarray:
    """Returns R (D, rank) with R R' = covariance."""
    values, vectors = np.linalg.eigh(covariance)  # ascending
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])


def density(code: Tensor) -> float:
    """Computes the share of entries that are not exactly 0, in [0, 1]. Raises: ValueError if there are no entries."""
    if not code.numel():
        raise ValueError(
            f"the density of a code without entries is undefined; got the shape {tuple(code.shape)}"
        )
    return int(code.count_nonzero()) / code.numel()
