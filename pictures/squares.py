"""Decodes an image file to a square of RGB pixels, for training.

Choice: not by `reading.read_picture`, which keeps 16 bits, alpha and profiles for restoration. It needs additional
libraries, converts CMYK by its profile, and decodes one file at a time. Other pixels would also change the fingerprint
of a data set, so that runs could not be resumed.
"""

import contextlib
import io
import struct
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

DECODED_FORMATS = "PNG JPEG WEBP BMP GIF TIFF PPM".split()  # not EPS, for which Pillow runs Ghostscript

# What Pillow raises on damaged files, found on half a million of them.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, TypeError, struct.error, Image.DecompressionBombError)


def decode(file: bytes, size: int) -> tuple[np.ndarray, bool]:
    """Decodes the center square of an image and resizes it (Lanczos, antialiased).

    The EXIF orientation is applied, alpha composited on white, and 16-bit gray scaled to 8 bits. Of an animation, the
    first frame is used.

    Choice: CMYK is converted by Pillow's formula, without color profiles; 32-bit gray is read as 16-bit, clipped.

    Returns: The pixels, and whether the image had another size or shape.
    Shape: uint8 (3, size, size).

    Raises:
        ValueError: With the reason why the file cannot be decoded.
    """
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(file), formats=DECODED_FORMATS) as image,
        ):
            image.load()
            with contextlib.suppress(*DECODE_ERRORS):  # the pixels may be valid even if EXIF is broken
                ImageOps.exif_transpose(image, in_place=True)
            return np.asarray(square(_rgb(image), size)).transpose(2, 0, 1), image.size != (size, size)
    except UnidentifiedImageError:
        raise ValueError(f"damaged, or not an image of the formats {' '.join(DECODED_FORMATS)}") from None
    except DECODE_ERRORS as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        gray = np.asarray(image).astype(np.float64).clip(0, 65535) / 257
        return Image.fromarray(gray.round().astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def square(
    image: Image.Image, size: int, resampling: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """Returns the center square, resized. `ImageOps.fit` would shift it by half a pixel if a margin is odd."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), resampling, box)
