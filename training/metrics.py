"""Numbers that say how good and how sparse samples are: pure functions of arrays, no network and no data."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from torch import Tensor

CHUNK = 4096  # rows turned to float64 at a time, so that 50,000 x 2048 features need no second copy


@dataclass(frozen=True, eq=False)
class Statistics:
    """The Gaussian that stands for a set of features.

    Shape: mean (D,), covariance (D, D), both float64; `count` features behind them.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int

    @classmethod
    def of(cls, features: np.ndarray) -> Self:
        """Computes the sample mean and the unbiased covariance (divisor N - 1), in float64.

        Shape: features (N, D), N >= 2.  Raises: ValueError on another shape, or on NaN or infinite entries.
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
    """Refuses anything but finite features of equal dimension, (N, D), N >= `least`.

    Raises: ValueError saying what was given.
    """
    for features in sets:
        if features.ndim != 2 or len(features) < least or features.shape[1] < 1:
            raise ValueError(
                f"features are a matrix (N, D) of at least {least} rows, one per image; "
                f"got the shape {features.shape}"
            )
        if broken := int((~np.isfinite(features).all(axis=1)).sum()):
            raise ValueError(
                f"{broken} of {len(features)} features hold NaN or infinity, so no distance is defined: "
                f"look for NaN in the images they come from"
            )
    if len(dimensions := {features.shape[1] for features in sets}) > 1:
        raise ValueError(f"features that are compared have equal dimensions; got {sorted(dimensions)}")


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Computes the squared Fréchet distance of two Gaussians (Dowson & Landau 1982; Heusel et al. 2017).

        d² = |μa - μb|² + tr Σa + tr Σb - 2 tr (Σa Σb)^½

    It is 0 for equal Gaussians, and with Inception features it is the FID. It is biased upwards by small
    counts: compare only distances over the same counts.

    Choice: tr (Σa Σb)^½ is the sum of the singular values of Ra' Rb, where Ra Ra' = Σa. Fewer samples than
    dimensions make Σ singular; its null space is cut off before a square root can blow rounding noise of
    1e-16 up to 1e-8, which happens where the eigenvalues of Σa Σb are taken.

    Raises: ValueError if the two have different dimensions.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"both statistics come from one feature network; got {len(a.mean)} and {len(b.mean)} dimensions"
        )
    offset = a.mean - b.mean
    overlap = np.linalg.svd(_root(a.covariance).T @ _root(b.covariance), compute_uv=False).sum()
    squared = offset @ offset + np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap
    return max(float(squared), 0.0)  # rounding may leave -1e-13


def _root(covariance: np.ndarray) -> np.ndarray:
    """Returns R (D, rank) with R R' = covariance."""
    values, vectors = np.linalg.eigh(covariance)  # ascending
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])


def density(code: Tensor) -> float:
    """Computes the share of entries that are not exactly 0: |Γ|₀ over all entries, in [0, 1]."""
    if not code.numel():
        raise ValueError(f"a code without entries has no density; got the shape {tuple(code.shape)}")
    return int(code.count_nonzero()) / code.numel()
