"""One image file becomes one square of RGB pixels: how training reads its images.

Choice: not `reading.read_picture`, which keeps 16 bits, alpha and profiles for restoration: it needs libraries that
training does not, converts CMYK by its profile, and decodes one file at a time. Other pixels would give images that
were decoded before another fingerprint, and runs on them could not go on.
"""

import contextlib
import io
import struct
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

DECODED_FORMATS = "PNG JPEG WEBP BMP GIF TIFF PPM".split()  # not EPS, for which Pillow runs Ghostscript

# What Pillow raises on files that are not what they claim to be, as found on half a million damaged ones.
DAMAGED = (OSError, SyntaxError, ValueError, TypeError, struct.error, Image.DecompressionBombError)


def decode(file: bytes, size: int) -> tuple[np.ndarray, bool]:
    """Decodes an image: EXIF orientation applied, alpha composited on white, 16-bit gray scaled to 8 bits, the
    first frame of an animation; then the center square, resized (Lanczos, antialiased).

    Choice: CMYK by Pillow's plain formula, without color profiles; 32-bit gray is read as 16-bit, clipped.

    Returns: The pixels, and whether they had another size or shape before.
    Shape: uint8 (3, size, size).  Raises: ValueError that says why the file cannot be decoded.
    """
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(file), formats=DECODED_FORMATS) as image,
        ):
            image.load()
            with contextlib.suppress(*DAMAGED):  # the pixels may be good where the EXIF block is not
                ImageOps.exif_transpose(image, in_place=True)
            return np.asarray(_square(_rgb(image), size)).transpose(2, 0, 1), image.size != (size, size)
    except UnidentifiedImageError:
        raise ValueError(f"not an image, or damaged, or none of {' '.join(DECODED_FORMATS)}") from None
    except DAMAGED as error:
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


def _square(image: Image.Image, size: int) -> Image.Image:
    """The center square, resized. `ImageOps.fit` would shift it by half a pixel where a margin is odd."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.LANCZOS, box)
