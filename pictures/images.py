"""Converts images in [-1, 1] to uint8 pixels, grids and PNG files. Does not import torch."""

import io

import numpy as np
from PIL import Image


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Scales images in [-1, 1] to pixels, rounded: -1 becomes 0, 1 becomes 255.

    Shape: float (B, 3, H, W) -> uint8 (B, H, W, 3).

    Raises:
        FloatingPointError: On NaN and infinities.
    """
    if broken := int((~np.isfinite(image)).any(axis=(1, 2, 3)).sum()):
        raise FloatingPointError(
            f"{broken} of {len(image)} generated images hold NaN or infinity: the weights have diverged, "
            f"use an earlier checkpoint"
        )
    pixels = np.rint((np.clip(image, -1, 1).astype(np.float32) + np.float32(1)) * np.float32(127.5))
    return np.ascontiguousarray(pixels.astype(np.uint8).transpose(0, 2, 3, 1))


def grid(images: np.ndarray, columns: int | None = None, gap: int = 2) -> np.ndarray:
    """Arranges images row by row on white, in a nearly square grid unless `columns` is given.

    Shape: uint8 (B, H, W, 3) -> uint8 (rows·(H + gap) + gap, columns·(W + gap) + gap, 3).
    """
    count, height, width, _ = images.shape
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top = gap + index // columns * (height + gap)
        left = gap + index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def atom_pictures(atoms: np.ndarray) -> np.ndarray:
    """Converts atoms to pictures: zero is mid-gray, and each atom is scaled by its largest magnitude.

    Shape: (C, 3, h, w) -> uint8 (C, h, w, 3).
    """
    peak = np.abs(atoms).max((1, 2, 3), keepdims=True)
    scaled = atoms / np.where(peak > 0, peak, 1)
    return np.rint(127.5 + 127.5 * scaled.transpose(0, 2, 3, 1)).astype(np.uint8)


def png(image: np.ndarray, scale: int = 1) -> bytes:
    """Encodes a uint8 image (H, W, 3) or (H, W) as PNG, with each pixel enlarged to scale x scale."""
    buffer = io.BytesIO()
    Image.fromarray(image.repeat(scale, 0).repeat(scale, 1)).save(buffer, "PNG")
    return buffer.getvalue()
