"""What the search for sparse codes has in common in torch and in onnxruntime. Imports no torch."""

import math
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = TypeVar("Array")

MAX_ITERATIONS = 100_000
ITERATIONS = 300
# Choice: an entry of a code is of the order of 1, because a norm and a ReLU precede it.
RATE, LAST_RATE = 0.1, 0.0005  # root mean square of a step at the start and at the end
MOMENTUM, POWER_DECAY = 0.8, 0.99


@dataclass(frozen=True)
class Encoding(Generic[Array]):
    """Images as sparse codes.

    Attributes:
        codes: Γ1 to Γ_L, tensors on the CPU or, in onnxruntime, arrays; `synthesize` gives the reconstruction.
        reconstruction: The images of the codes.
        psnr: Of each reconstruction in dB, over the pixels of the mask; infinite if they are equal.
        residuals: Given minus reconstructed pixels, in gray levels.
        z: Noise whose images are as near as found to the given ones; None unless it was asked for.
        z_psnr: Of the images of z, as `psnr`.

    Shape: codes[i] (B, C, H', W'); reconstruction uint8, residuals int16 (B, H, W, 3); psnr, z_psnr (B,);
        z (B, z_dim).
    """

    codes: tuple[Array, ...]
    reconstruction: NDArray[np.uint8]
    psnr: NDArray[np.float64]
    residuals: NDArray[np.int16]
    z: Array | None = None
    z_psnr: NDArray[np.float64] | None = None


def step_size(iteration: int, iterations: int) -> float:
    """Returns the root mean square of a step, which falls along a cosine; iteration 1 to `iterations`."""
    return LAST_RATE + (RATE - LAST_RATE) * (1 + math.cos(math.pi * iteration / iterations)) / 2


def check_images(images: object, mask: object, side: int) -> NDArray[np.bool_]:
    """Checks images, and a mask that is True where a pixel is known; None: all are.

    Shape: uint8 (B, side, side, 3), bool (side, side) or (B, side, side) -> (B, side, side).

    Raises:
        TypeError, ValueError: Naming the expected type or shape, or if an image has no known pixel.
    """
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        found = f"{images.dtype}" if isinstance(images, np.ndarray) else type(images).__name__
        raise TypeError(f"images must be a numpy array of uint8, as `sample` returns it; got {found}")
    if images.ndim != 4 or not len(images) or images.shape[1:] != (side, side, 3):
        raise ValueError(
            f"images must have the shape (B, {side}, {side}, 3) of the model; got {images.shape}"
        )
    if mask is None:
        return np.ones(images.shape[:3], np.bool_)
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        found = f"{mask.dtype}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise TypeError(f"mask must be a numpy array of bool, True where the pixel is known; got {found}")
    if mask.shape not in (images.shape[1:3], images.shape[:3]):
        raise ValueError(
            f"mask must have the shape {images.shape[1:3]} or {images.shape[:3]}; got {mask.shape}"
        )
    known = np.ascontiguousarray(np.broadcast_to(mask, images.shape[:3]))
    if not known.any((1, 2)).all():
        raise ValueError("mask has no known pixel in an image: mark the known pixels as True")
    return known


def psnr(
    images: NDArray[np.uint8], others: NDArray[np.uint8], known: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Returns the PSNR of each image over its known pixels, in dB."""
    errors = np.square(images.astype(np.float64) - others).mean(-1)
    mean = (errors * known).sum((1, 2)) / known.sum((1, 2))
    with np.errstate(divide="ignore"):
        found: NDArray[np.float64] = 10 * np.log10(255**2 / mean)
    return found
