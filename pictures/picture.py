"""The pictures that are restored: conversion from and to arrays, and writing of files. Does not import torch."""

import io
import math
import struct
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sparsegen.common.extras import install_command
from sparsegen.common.files import atomic_write

if TYPE_CHECKING:
    from sparsegen.pictures.jpeg import Cells

MAX_PIXELS = 12_000_000
MIN_SIDE = 16  # pixels, since the hourglass halves a picture several times
SHAPES = "(H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"


class TooLarge(ValueError):
    """A picture has more pixels than the limit."""


@dataclass(frozen=True)
class Limits:
    """The sizes of pictures that may be read."""

    max_pixels: int = MAX_PIXELS
    min_side: int = MIN_SIDE

    def check(self, name: str, width: int, height: int) -> None:
        """Raises: TooLarge above `max_pixels`; ValueError if a side is shorter than `min_side`."""
        if width * height > self.max_pixels:
            raise TooLarge(
                f"{name} has {width} x {height} = {width * height / 1e6:.4g} million pixels, "
                f"the limit is {self.max_pixels / 1e6:g} million: scale it down, or crop it"
            )
        if min(width, height) < self.min_side:
            raise ValueError(
                f"{name} has {width} x {height} pixels: each side must have at least {self.min_side}"
            )

    def allow_block(self, block: tuple[int, ...]) -> bool:
        """Whether a tile or strip of this shape may be decoded; it may exceed `max_pixels` 16 times, not more."""
        return math.prod(block) <= 16 * self.max_pixels


@dataclass(frozen=True)
class _Format:
    """What a file format supports, and Pillow's options to write it."""

    name: str
    max_side: int  # pixels
    alpha: bool = True
    sixteen_bits: bool = True
    options: dict[str, Any] = field(default_factory=dict)


PNG = _Format("PNG", 2**31 - 1)
TIFF = _Format("TIFF", 2**31 - 1, options={"compression": "tiff_adobe_deflate"})
JPEG = _Format("JPEG", 65500, False, False, {"quality": 95, "subsampling": 0})  # 4:4:4
WEBP = _Format("WebP", 16383, sixteen_bits=False, options={"lossless": True, "exact": True})
WRITABLE = {".png": PNG, ".tif": TIFF, ".tiff": TIFF, ".jpg": JPEG, ".jpeg": JPEG, ".webp": WEBP}


@dataclass(frozen=True, eq=False)
class Picture:
    """An upright picture, with the properties of its file that are needed to write it.

    Attributes:
        pixels: float32 (H, W, C) in [0, 1], C = 1 (gray) or 3 (RGB): the stored integers, scaled, without gamma.
        alpha: (H, W) with the dtype of the file, or None.
        depth: Bits per channel, 8 or 16. Choice: floats count as 16, the maximum of PNG.
        mode: Color mode of the file: gray, RGB, palette, 1-bit, CMYK, YCbCr, LAB or HSV.
        notes: Notes for the user, e.g. on conversions.
        icc: The color profile, if it describes `pixels`.
        cells: What a JPEG file says about the picture before compression, if it was read.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    depth: int = 8
    mode: str = "RGB"
    notes: tuple[str, ...] = ()
    icc: bytes | None = None
    cells: "Cells | None" = None

    def with_pixels(self, pixels: np.ndarray) -> "Picture":
        """Returns the picture with other pixels, clipped to [0, 1]; alpha is resized bicubically if H, W differ.

        Shape: float (H', W', C), the C of this picture.

        Raises:
            ValueError: On another C, NaN and infinities.
        """
        channels = self.pixels.shape[2]
        if pixels.ndim != 3 or pixels.shape[2] != channels or 0 in pixels.shape:
            raise ValueError(f"the pixels of this picture must be (H, W, {channels}); got {pixels.shape}")
        _check_finite(pixels, "the restored picture")
        pixels = np.clip(pixels, 0, 1).astype(np.float32)
        alpha = self.alpha
        if alpha is not None and alpha.shape != pixels.shape[:2]:
            alpha = _resized(alpha, *pixels.shape[:2])
        return replace(self, pixels=pixels, alpha=alpha)

    def reduced(self, max_pixels: int) -> "Picture":
        """Returns the picture with at most `max_pixels` pixels: means of squares, as small ones as possible."""
        factor = math.isqrt(math.ceil(self.pixels[..., 0].size / max_pixels) - 1) + 1
        while math.prod(math.ceil(side / factor) for side in self.pixels.shape[:2]) > max_pixels:
            factor += 1  # squares at the edge may be incomplete
        if factor == 1:
            return self
        if self.alpha is None:
            return replace(self, pixels=_means(self.pixels, factor))
        alpha = self.alpha.astype(np.float32)[..., None]
        mean = _means(alpha, factor)
        channels = np.split(self.pixels, self.pixels.shape[2], 2)
        sums = np.concatenate([_means(alpha * channel, factor) for channel in channels], 2)
        pixels = sums / np.where(mean > 0, mean, 1)  # hidden colors do not count
        integer = np.issubdtype(self.alpha.dtype, np.integer)
        kept = (np.rint(mean) if integer else mean)[..., 0].astype(self.alpha.dtype)
        return replace(self, pixels=pixels, alpha=kept)

    def encode(self, suffix: str = ".png") -> bytes:
        """Encodes the picture as a file with its depth, alpha and color profile.

        Choice: WebP is lossless. It does not support gray, so gray is written as RGB.

        Raises:
            ValueError, ImportError: As `check_suffix`.
        """
        kind = _format(suffix, self)
        samples = _join(self, np.dtype(np.uint8 if self.depth == 8 else np.uint16))
        if self.depth == 16:
            return (_encode_png16 if kind is PNG else _encode_tiff16)(samples, self.icc)
        buffer = io.BytesIO()
        Image.fromarray(samples).save(buffer, kind.name.upper(), icc_profile=self.icc, **kind.options)
        return buffer.getvalue()


def _means(array: np.ndarray, factor: int) -> np.ndarray:
    """Means of squares of factor x factor pixels; smaller ones at the lower and right edge.

    Shape: float32 (H, W, C) -> (⌈H / factor⌉, ⌈W / factor⌉, C).
    """
    channels = (np.asarray(Image.fromarray(channel).reduce(factor)) for channel in np.moveaxis(array, -1, 0))
    return np.stack(list(channels), -1)


def check_suffix(path: str | Path, picture: Picture) -> None:
    """Checks whether a picture can be written to this path.

    Raises:
        ValueError: With a suffix to use instead.
        ImportError: If the library for 16 bits is missing.
    """
    _format(path, picture)


def write_picture(path: str | Path, picture: Picture) -> None:
    """Writes a picture atomically; the suffix determines the format.

    Raises:
        ValueError, ImportError: As `check_suffix`.
        OSError: With the path.
    """
    check_suffix(path, picture)  # for the path in the error, since `encode` gets only the suffix
    content = picture.encode(f".{Path(path).name.rpartition('.')[2]}")
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def check_array(array: np.ndarray, name: str = "the array", max_pixels: int = MAX_PIXELS) -> None:
    """Checks that an array is a picture: channels last, uint8, uint16 or floats in [0, 1].

    Raises:
        ValueError: With the problem and the remedy.
    """
    if not isinstance(array, np.ndarray) or isinstance(array, np.matrix | np.ma.MaskedArray):
        raise ValueError(
            f"{name} must be a plain numpy array; got {type(array).__name__}: pass numpy.asarray of it"
            f"{', and its mask as a Mask' if isinstance(array, np.ma.MaskedArray) else ''}"
        )
    if array.dtype.newbyteorder("=") not in (np.uint8, np.uint16, np.float16, np.float32, np.float64):
        raise ValueError(
            f"{name} must hold uint8, uint16 or floats in [0, 1]; got {array.dtype}: "
            f"convert it, and scale it to the range of its new type"
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        hint = ": its channels come first, transpose it with array.transpose(1, 2, 0)" if first else ""
        raise ValueError(f"{name} must be {SHAPES}; got {array.shape}{hint}")
    Limits(max_pixels).check(name, array.shape[1], array.shape[0])
    if array.dtype.kind == "f":
        check_range(array, name, "divide by the value of white, 255 or 65535")


def from_array(array: np.ndarray, name: str = "the array", max_pixels: int = MAX_PIXELS) -> Picture:
    """Converts an array to a picture; a fourth channel is alpha.

    Shape: uint8, uint16 or float in [0, 1], (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).

    Raises:
        ValueError: As `check_array`.
    """
    check_array(array, name, max_pixels)
    pixels, alpha = split(array.astype(array.dtype.newbyteorder("="), copy=False))
    depth = 8 if array.dtype == np.uint8 else 16
    alpha = None if alpha is None else alpha.copy()
    return Picture(scaled(pixels), alpha, depth, "gray" if pixels.shape[2] == 1 else "RGB")


def to_array(picture: Picture, like: np.ndarray) -> np.ndarray:
    """Converts a picture to an array with the dtype and axes of `like`, and the height and width of the picture.

    Integers are rounded to the nearest.

    Raises:
        ValueError: If `like` has other channels than the picture.
    """
    array = _join(picture, like.dtype)
    if like.ndim == 3 and array.ndim == 2:
        array = array[..., None]
    if array.shape[2:] != like.shape[2:]:
        raise ValueError(
            f"the picture has the shape {array.shape}, which does not fit an array of {like.shape}"
        )
    return array


def _format(path: str | Path, picture: Picture) -> _Format:
    """Returns the format of a path, or raises the errors of `check_suffix`."""
    suffix = Path(f"_{Path(path).name}").suffix.lower()  # the underscore makes the name ".png" a suffix
    if suffix not in WRITABLE:
        raise ValueError(f"{path} ends in none of {', '.join(WRITABLE)}: name the output with one of them")
    kind = WRITABLE[suffix]
    if picture.alpha is not None and not kind.alpha:
        raise ValueError(f"{path}: {kind.name} holds no alpha, and the picture has some; write .png or .tif")
    if picture.depth == 16 and not kind.sixteen_bits:
        raise ValueError(f"{path}: {kind.name} holds 8 bits, and the picture has 16; write .png or .tif")
    height, width = picture.pixels.shape[:2]
    if max(height, width) > kind.max_side:
        raise ValueError(
            f"{path}: {kind.name} holds up to {kind.max_side} pixels per side; got {width} x {height}; write .png"
        )
    if picture.depth == 16:
        codecs()
    return kind


def split(array: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Splits an array into color and alpha.  Shape: (H, W) or (H, W, 1 to 4) -> (H, W, 1 or 3), (H, W) or None."""
    array = array[..., None] if array.ndim == 2 else array
    if array.shape[2] in (2, 4):
        return array[..., :-1], array[..., -1]
    return array, None


def scaled(array: np.ndarray) -> np.ndarray:
    """Scales stored values to float32 in [0, 1], contiguous."""
    scale = 1 if array.dtype.kind == "f" else np.iinfo(array.dtype).max
    return np.ascontiguousarray(array.astype(np.float32) / np.float32(scale))


def _join(picture: Picture, dtype: np.dtype) -> np.ndarray:
    """Joins color and alpha in an array of `dtype`.  Shape: (H, W) for gray without alpha, else (H, W, 2 to 4)."""
    pixels = _quantize(picture.pixels, dtype)
    if picture.alpha is None:
        return pixels[..., 0] if pixels.shape[2] == 1 else pixels
    alpha = picture.alpha
    if alpha.dtype != dtype:
        alpha = _quantize(alpha if alpha.dtype.kind == "f" else alpha / np.iinfo(alpha.dtype).max, dtype)
    return np.concatenate([pixels, alpha[..., None]], axis=2)


def _quantize(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Converts values in [0, 1] to `dtype`; for integers, scales and rounds to the nearest."""
    if dtype.kind == "f":
        return values.astype(dtype)
    white = np.iinfo(dtype).max
    return np.rint(values.astype(np.float64 if values.dtype == np.float64 else np.float32) * white).astype(
        dtype
    )


def _resized(alpha: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes alpha, bicubic and clipped.  Shape: (H, W) -> (height, width)."""
    plane = Image.fromarray(alpha.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    white = 1 if alpha.dtype.kind == "f" else np.iinfo(alpha.dtype).max
    values = np.clip(np.asarray(plane), 0, white)
    return (values if alpha.dtype.kind == "f" else np.rint(values)).astype(alpha.dtype)


def _encode_png16(samples: np.ndarray, icc: bytes | None) -> bytes:
    """A PNG of uint16 samples. The profile is inserted after the first chunk, since the encoder does not support it."""
    imagecodecs, _ = codecs()
    content: bytes = imagecodecs.png_encode(samples)
    if not icc:
        return content
    body = b"iCCP" + b"ICC Profile\0\0" + zlib.compress(icc)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return content[:33] + chunk + content[33:]  # 33: the signature and the header


def _encode_tiff16(samples: np.ndarray, icc: bytes | None) -> bytes:
    """A TIFF of uint16 samples."""
    _, tifffile = codecs()
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(
            samples,
            photometric="minisblack" if channels < 3 else "rgb",
            planarconfig="contig" if channels > 1 else None,
            extrasamples=["unassalpha"] if channels in (2, 4) else None,
            compression="zlib",
            predictor=True,
            iccprofile=icc,
            metadata=None,
            software=False,
        )
    return buffer.getvalue()


def codecs() -> tuple[ModuleType, ModuleType]:
    """Imports imagecodecs and tifffile, since Pillow does not support color with 16 bits.

    Raises:
        ImportError: With the pip command.
    """
    try:
        import imagecodecs
        import tifffile
    except ImportError as error:
        raise ImportError(
            f"pictures of 16 bits need imagecodecs and tifffile: {install_command('restore')}"
        ) from error
    return imagecodecs, tifffile


def _check_finite(array: np.ndarray, name: str) -> None:
    """Raises ValueError with the number of NaN and infinities of an array, if any."""
    if broken := int((~np.isfinite(array)).sum()):
        raise ValueError(f"{broken} of {array.size} values of {name} are NaN or infinite: replace them first")


def check_range(array: np.ndarray, name: str, remedy: str) -> None:
    """Raises ValueError unless floats are finite and in [0, 1]."""
    _check_finite(array, name)
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        raise ValueError(f"floats of {name} must be in [0, 1]; got {low:g} to {high:g}: {remedy}, and clip")
