"""The mask of inpainting and the kernel of deblurring. Does not import torch, since the service uses it too."""

import math
from collections.abc import Sequence
from dataclasses import replace
from numbers import Real

import numpy as np

from sparsegen.pictures.picture import Picture

MANY_HOLES = 0.5  # share of a picture
LEAST_KNOWN = 20  # pixels; the stopping rule holds out half of them
FACTORS = (2, 4)  # of upscale
MAX_BLUR = 10  # pixels, the standard deviation of a Gaussian
HOLE = 1 / 16  # of white; brighter pixels are holes, and JPEG leaves black pixels below it


def known_pixels(mask: Picture | None) -> np.ndarray:
    """The known pixels of a mask, black up to `HOLE` or transparent: bool (H, W).

    Choice: holes are white, the convention of image editors and OpenCV. The gray edge of a soft brush lies on
    pixels that are partly damaged; treated as known, they would remain visible as an outline.

    Raises:
        ValueError: If the mask is missing, has less than `LEAST_KNOWN` known pixels, or as `check_mask`.
    """
    if mask is None:
        raise ValueError("inpainting needs a mask: a picture that is white in the holes and black elsewhere")
    white = mask.pixels.mean(2)
    known: np.ndarray = (
        white if mask.alpha is None else white * (mask.alpha / mask.alpha.max(initial=1))
    ) <= HOLE
    check_mask(known)
    if (count := int(known.sum())) < LEAST_KNOWN:
        raise ValueError(
            f"the mask leaves {count} of {known.size} pixels known, and at least {LEAST_KNOWN} are "
            f"needed: give a mask that is black where the picture is intact"
        )
    return known


def mask_note(known: np.ndarray) -> str:
    """A note if most of the picture is a hole, since some programs mark the known pixels white; else empty."""
    share = 1 - float(known.mean())
    if share <= MANY_HOLES:
        return ""
    return (
        f"the mask marks {share:.0%} of the picture as holes, since holes are white: if white marks what is known, "
        f"invert the mask (--invert-mask on the command line)"
    )


def inverted(mask: Picture) -> Picture:
    """A mask whose holes are the other pixels."""
    return replace(mask, pixels=1 - mask.pixels)


def check_mask(known: np.ndarray, hole: str = "white", kept: str = "black") -> None:
    """Checks a mask, true where the image is known; the error calls false `hole` and true `kept`.

    Raises:
        ValueError: Unless it is boolean (H, W), with both true and false pixels.
    """
    if known.ndim != 2 or known.dtype != bool:
        raise ValueError(f"a mask must be boolean (H, W); got {known.dtype} {known.shape}")
    if known.all() or not known.any():
        what = (
            f"without a {hole} pixel, so every pixel is known and there is nothing to fill in"
            if known.any()
            else f"without a {kept} pixel, so no pixel is known"
        )
        raise ValueError(f"the mask is {what}: it must be {hole} in the holes and {kept} elsewhere")


def check_mask_size(mask: Sequence[int], image: Sequence[int]) -> None:
    """Raises: ValueError unless both have the same (height, width)."""
    if tuple(mask) != tuple(image):
        raise ValueError(
            f"the mask has {_pixels(mask)} pixels and the image {_pixels(image)}: give a mask of the same size"
        )


def kernel_sigma(kernel: object) -> float | None:
    """Returns SIGMA of "gaussian:SIGMA", and None for "file".

    Raises:
        ValueError: For anything else, or unless sigma is above 0 and at most `MAX_BLUR`.
    """
    if kernel == "file":
        return None
    name, _, number = str(kernel).partition(":")
    try:
        sigma = float(number)
    except ValueError:
        sigma = math.nan
    if name != "gaussian" or not 0 < sigma <= MAX_BLUR:
        raise ValueError(
            f"a kernel is gaussian:SIGMA, SIGMA above 0 and up to {MAX_BLUR} pixels, or a file; got {kernel!r}"
        )
    return sigma


def blur_kernel(kernel: str | None, picture: Picture | None = None) -> np.ndarray:
    """The kernel of a task, float (h, w): a Gaussian for "gaussian:SIGMA", the picture for "file".

    Raises:
        ValueError: If the picture is missing, or as `check_kernel`.
    """
    if (sigma := kernel_sigma(kernel)) is not None:
        return gaussian_kernel(sigma)
    if picture is None:
        raise ValueError("the picture of the kernel is missing: give it, or the kernel gaussian:SIGMA")
    weights: np.ndarray = picture.pixels.mean(2)
    check_kernel(weights)
    return weights


def gaussian_kernel(sigma: float) -> np.ndarray:
    """A Gaussian of standard deviation `sigma` pixels, truncated at 3 sigma; its sum is not 1.

    Raises:
        ValueError: Unless sigma is above 0 and at most `MAX_BLUR`.
    """
    if not isinstance(sigma, Real) or not 0 < sigma <= MAX_BLUR:
        raise ValueError(f"sigma of a Gaussian blur is above 0 and up to {MAX_BLUR} pixels; got {sigma!r}")
    radius = max(1, math.ceil(3 * sigma))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return np.outer(weights, weights)


def check_kernel(kernel: np.ndarray) -> None:
    """Raises: ValueError unless it is a matrix with odd sides, of finite numbers that can be scaled to the sum 1."""
    if kernel.ndim != 2:
        raise ValueError(f"a blur kernel must be a matrix (h, w); got {kernel.shape}")
    if not all(side % 2 for side in kernel.shape):
        raise ValueError(
            f"a blur kernel must have odd sides; got {_pixels(kernel.shape)}: "
            f"remove a row or column, or add one of zeros"
        )
    if not np.isfinite(kernel).all() or kernel.min() < 0 or not kernel.max() > 0:
        finite = kernel[np.isfinite(kernel)]
        broken = f"{kernel.size - finite.size} that are NaN or infinite, and " * (finite.size < kernel.size)
        span = f"from {finite.min():g} to {finite.max():g}" if finite.size else "no other"
        raise ValueError(
            f"a blur kernel must hold finite numbers of 0 or more, some above 0; got {broken}numbers {span}"
        )


def check_kernel_size(kernel: Sequence[int], image: Sequence[int]) -> None:
    """Raises: ValueError if the kernel is taller or wider than the image; both are (height, width)."""
    if any(own > side for own, side in zip(kernel, image, strict=True)):
        raise ValueError(
            f"the image of {_pixels(image)} pixels is smaller than the blur kernel of {_pixels(kernel)}: "
            f"give a smaller kernel, or a larger image"
        )


def _pixels(size: Sequence[int]) -> str:
    height, width = size
    return f"{width} x {height}"
