"""EXIF orientations (tag 274): cameras store a picture as the sensor saw it, and how to turn it upright."""

from contextlib import suppress
from typing import Any

import numpy as np
from PIL import ExifTags, Image

TRANSPOSED, LEFT_RIGHT, UP_DOWN = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if it is missing or broken."""
    orientation = 1
    with suppress(Exception):  # the pixels may be valid even if EXIF is broken
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in range(1, 9) else 1


def orientation_note(orientation: Any) -> list[str]:
    """Returns a note if a picture was not upright; the orientation in a broken file may be of any type."""
    return [f"EXIF orientation {orientation}: turned upright"] if orientation in range(2, 9) else []


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Applies an EXIF orientation (tag 274) to an array.  Shape: (H, W, ...) -> (H, W, ...) or (W, H, ...)."""
    if orientation in TRANSPOSED:
        array = array.swapaxes(0, 1)
    if orientation in LEFT_RIGHT:
        array = array[:, ::-1]
    if orientation in UP_DOWN:
        array = array[::-1]
    return array


def stored(array: np.ndarray, orientation: int) -> np.ndarray:
    """The inverse of `upright`."""
    if orientation in UP_DOWN:
        array = array[::-1]
    if orientation in LEFT_RIGHT:
        array = array[:, ::-1]
    if orientation in TRANSPOSED:
        array = array.swapaxes(0, 1)
    return array
