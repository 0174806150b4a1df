"""Block matching and collaborative filtering (BM3D; Dabov, Foi, Katkovnik & Egiazarian, 2007).

Similar blocks of a picture are stacked to a group, whose 3-D transform is sparse: blocks are smooth, and they resemble
each other. Noise is removed by shrinkage of the coefficients. Each pixel is the weighted mean of its estimates in all
groups. There are two steps:

1. Blocks are matched in the observation, and small coefficients are zeroed. The result is the basic estimate.
2. Blocks are matched in the basic estimate, and coefficients are multiplied by its Wiener factors.

Color pictures are decorrelated first, and matched by their luminance (CBM3D; Dabov et al., "Color image denoising via
sparse 3D collaborative filtering with grouping constraint in luminance-chrominance space", 2007). The opponent colors
of that paper are, up to scale, the orthonormal DCT of the channels; so this module applies the DCT to any number of
channels, and the noise of each component keeps its standard deviation.

The loops are compiled by numba, which is imported with the first picture.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from sparsegen.common.checks import check_integer
from sparsegen.restoration.settings import MAX_THREADS

RADIUS = 19  # pixels between a block and the blocks that are compared with it
KAISER = 2.0  # β of the window of a block
MIN_SIDE = 16
STRIP = 16  # rows of blocks that a thread filters at a time; results do not depend on the number of threads
LEAST_SIGMA = 1e-3 / 255  # weights are divided by the variance of the noise
STRONG_SIGMA = 20 / 255  # of the luminance; above it, the parameters are those for strong noise


def dct(size: int) -> np.ndarray:
    """The orthonormal DCT-II.  Shape: float64 (size, size), one basis function per row."""
    frequency, place = np.mgrid[:size, :size]
    matrix = np.sqrt(2 / size) * np.cos(np.pi / size * frequency * (place + 0.5))
    matrix[0] /= np.sqrt(2)
    return matrix


def spline_wavelet(size: int) -> np.ndarray:
    """The biorthogonal wavelet transform bior1.5 of all levels, periodic, with rows of norm 1.

    The filters are those of Cohen, Daubechies & Feauveau (1992): the details are differences of neighbors, and the
    averages have ten taps.

    Args:
        size: A power of two.

    Shape: float64 (size, size), one basis function per row.
    """
    taps = np.array([3, -3, -22, 22, 128, 128, 22, -22, -3, 3]) / 256
    averages, rows = np.eye(size), []
    while len(averages) > 1:
        count = len(averages) // 2
        rows.append(averages[1::2] - averages[::2])
        places = (2 * np.arange(count)[:, None] + np.arange(-4, 6)) % (2 * count)
        averages = np.einsum("t,ctp->cp", taps, averages[places])
    matrix = np.concatenate([averages, *rows[::-1]])
    return np.asarray(matrix / np.linalg.norm(matrix, axis=1, keepdims=True))


@dataclass(frozen=True)
class Step:
    """The parameters of a step.

    Choice: those of Dabov et al. (2007, table 1), with exceptions that were measured on the nine crops of 128 x 128
    pixels, gray and color, with noise of 5 to 75 gray levels. A group of the first step has 32 blocks of any distance,
    since strong noise dominates the distances; the parameters of the paper for strong noise lost 0.3 dB to that. The
    Wiener factors assume 0.8 of the variance, since the basic estimate lacks fine structure, and weak noise has blocks
    of 6 x 6 pixels there; each gained 0.03 dB. A stride of 2 would gain 0.02 dB in twice the time.

    Attributes:
        transform: Makes the transform of the rows and columns of a block.
        size: Side of a block.
        stride: Pixels between two reference blocks along a side.
        members: Maximum number of blocks in a group.
        match: Maximum mean squared difference of a block of the group and its reference, in squared gray levels.
        threshold: Coefficients below this number of standard deviations are zeroed; 0: Wiener factors.
        share: The share of the variance of the noise that Wiener factors assume.
    """

    transform: Callable[[int], np.ndarray]
    size: int
    match: float = np.inf
    stride: int = 3
    members: int = 32
    threshold: float = 0.0
    share: float = 0.8


FIRST = Step(spline_wavelet, 8, threshold=2.8)
WEAK = FIRST, Step(dct, 6, match=800)
STRONG = FIRST, Step(dct, 8, match=1500)


@dataclass(frozen=True, eq=False)
class Estimate:
    """The state of a filter.

    Attributes:
        step: 1 or 2, the step at work.
        fraction: The share of finished work, 0 to 1.
        image: The latest complete estimate, (H, W) or (H, W, C): the observation in step 1, the basic estimate in
            step 2, and the result at the end.
    """

    step: int
    fraction: float
    image: np.ndarray


def denoise(picture: np.ndarray, sigma: float | np.ndarray, threads: int = 1) -> np.ndarray:
    """Removes white Gaussian noise; arguments and errors as `estimates`.  Shape: as the picture, float32."""
    *_, last = estimates(picture, sigma, threads)
    return last.image


def estimates(picture: np.ndarray, sigma: float | np.ndarray, threads: int = 1) -> Iterator[Estimate]:
    """Removes white Gaussian noise; yields the state several times per step, and the result at the end.

    The result is not clipped. It does not depend on the number of threads.

    Args:
        picture: (H, W) or (H, W, C), each side at least 16; black is 0 and white is 1, and other values are allowed.
        sigma: Standard deviation of the noise in units of the picture; one number, or one per pixel, of a shape that
            broadcasts to that of the picture. 0 returns the picture.
        threads: Maximum number of threads.

    Raises:
        ValueError: Before any work, if the picture is too small, a value is not finite or a sigma is negative.
        ImportError: If numba is not installed.
    """
    picture, levels = _check(picture, sigma)
    check_integer("threads", threads, 1, MAX_THREADS, "the maximum number of threads")
    return _estimates(picture, levels, threads)


def _check(picture: np.ndarray, sigma: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.asarray(picture, np.float32)
    if pixels.ndim not in (2, 3) or 0 in pixels.shape or min(pixels.shape[:2]) < MIN_SIDE:
        raise ValueError(
            f"a picture must be (H, W) or (H, W, C), H and W at least {MIN_SIDE}; got {pixels.shape}"
        )
    if broken := int((~np.isfinite(pixels)).sum()):
        raise ValueError(f"{broken} of {pixels.size} values of the picture are NaN or infinite")
    levels = np.asarray(sigma, np.float32)
    try:
        np.broadcast_to(levels, pixels.shape)
    except ValueError:
        raise ValueError(
            f"sigma must be one number or broadcast to the picture, {pixels.shape}; got {levels.shape}"
        ) from None
    if not (np.isfinite(levels).all() and (levels >= 0).all()):
        least = float(levels.min())
        raise ValueError(
            f"sigma is the standard deviation of the noise, at least 0 and finite; got {least:g}"
        )
    return pixels, levels


def _estimates(picture: np.ndarray, sigma: np.ndarray, threads: int) -> Iterator[Estimate]:
    if not sigma.any():
        yield Estimate(2, 1.0, picture)
        return
    planes = picture[..., None] if picture.ndim == 2 else picture
    colors = dct(planes.shape[2]).astype(np.float32)
    noisy = _mix(colors, planes)
    levels = np.broadcast_to(np.maximum(sigma, LEAST_SIGMA), picture.shape).reshape(planes.shape)
    variance = _mix(colors**2, levels**2)
    luminance = np.sqrt(variance[0].mean() / len(variance))
    steps = STRONG if luminance > STRONG_SIGMA else WEAK
    image, pilot = picture, noisy
    for number, step in enumerate(steps):
        filtering = _Filtering(step, noisy, pilot, variance)
        for fraction in filtering.run(threads):
            yield Estimate(number + 1, (number + fraction) / len(steps), image)
        pilot = filtering.result()
        image = np.moveaxis(_mix(colors.T, np.moveaxis(pilot, 0, 2)), 0, 2).reshape(picture.shape)
    yield Estimate(len(steps), 1.0, image)


def _mix(matrix: np.ndarray, planes: np.ndarray) -> np.ndarray:
    """Multiplies the channels of each pixel by a matrix.  Shape: (C, C), (H, W, C) -> (C, H, W)."""
    return np.ascontiguousarray(np.tensordot(matrix, planes, (1, 2)), np.float32)


class _Filtering:
    """A step at work: the sums of the weighted estimates of each pixel, and of their weights.

    Args:
        pilot: In which blocks are matched, and from which Wiener factors are computed.

    Shape: noisy, pilot, variance: float32 (C, H, W), decorrelated.
    """

    def __init__(self, step: Step, noisy: np.ndarray, pilot: np.ndarray, variance: np.ndarray) -> None:
        self.step, self.noisy, self.pilot, self.variance = step, noisy, pilot, variance
        self.guide = pilot[0] / np.float32(np.sqrt(len(pilot)))  # the mean of the channels
        self.sums, self.weights = np.zeros_like(noisy), np.zeros_like(noisy)

    def run(self, threads: int) -> Iterator[float]:
        """Filters all groups; yields the finished share, 0 to 1."""
        rows = _places(self.noisy.shape[1], self.step)
        strips = [rows[start : start + STRIP] for start in range(0, len(rows), STRIP)]
        with ThreadPoolExecutor(threads, "strip") as pool:
            try:
                yield 0.0
                for done, (start, sums, weights) in enumerate(pool.map(self._strip, strips), 1):
                    # In the order of the strips, since sums of floats depend on the order.
                    covered = slice(start, start + sums.shape[1])
                    self.sums[:, covered] += sums
                    self.weights[:, covered] += weights
                    yield done / len(strips)
            finally:
                pool.shutdown(cancel_futures=True)

    def _strip(self, tops: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
        """Filters the groups of some rows of blocks; returns the first covered row, the sums and the weights."""
        from sparsegen.restoration.block_kernels import (
            Planes,
            Rules,
            filter_rows,
        )  # here, since it imports numba

        step, (channels, height, width) = self.step, self.noisy.shape
        start = max(0, tops[0] - RADIUS)
        stop = min(height, tops[-1] + RADIUS + step.size)
        sums, weights = np.zeros((2, channels, stop - start, width), np.float32)
        forward, line = step.transform(step.size), _window(step.size)
        rules = Rules(
            forward.astype(np.float32), np.linalg.inv(forward).astype(np.float32), np.outer(line, line), step.members,
            RADIUS, *map(np.float32, (step.match / 255**2 * step.size**2, step.threshold, step.share)),
        )  # fmt: skip
        planes = Planes(self.guide, self.noisy, self.pilot, self.variance)
        filter_rows(planes, rules, tops, _places(width, step), start, sums, weights)
        return int(start), sums, weights

    def result(self) -> np.ndarray:
        """The weighted mean of the estimates of each pixel."""
        line, weights = _window(self.step.size), self.weights
        for axis in (1, 2):
            weights = _spread(weights, line, axis)
        return np.asarray(self.sums / weights)


def _places(length: int, step: Step) -> np.ndarray:
    """The first pixels of the reference blocks along a side; the last block ends with the side."""
    last = length - step.size
    return np.append(np.arange(0, last, step.stride), last)


def _window(size: int) -> np.ndarray:
    """The window of a block is the product of two of these lines."""
    return np.kaiser(size, KAISER).astype(np.float32)


def _spread(weights: np.ndarray, line: np.ndarray, axis: int) -> np.ndarray:
    """Spreads the weights at the first pixels of blocks over their pixels along an axis."""
    weights = np.moveaxis(weights, axis, -1)
    total = np.zeros_like(weights)
    for place, factor in enumerate(line):
        total[..., place:] += factor * weights[..., : weights.shape[-1] - place]
    return np.moveaxis(total, -1, axis)
