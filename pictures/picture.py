"""Pictures at the borders of restoration: what one is, as a file to be written and as an array. Needs no torch."""

import io
import math
import struct
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from sparsegen.common.files import atomic_write

MAX_PIXELS = 12_000_000
MIN_SIDE = 16  # the hourglass halves a picture several times
SHAPES = "(H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"


class TooLarge(ValueError):
    """A picture has more pixels than whoever reads it takes."""


@dataclass(frozen=True)
class Limits:
    """The sizes of pictures that are read."""

    max_pixels: int = MAX_PIXELS
    min_side: int = MIN_SIDE

    def check(self, name: str, width: int, height: int) -> None:
        """Raises: TooLarge if there are too many pixels; ValueError unless both sides are long enough."""
        if width * height > self.max_pixels:
            raise TooLarge(
                f"{name} has {width} x {height} = {width * height / 1e6:.4g} million pixels, "
                f"the limit is {self.max_pixels / 1e6:g} million: scale it down, or cut a part out"
            )
        if min(width, height) < self.min_side:
            raise ValueError(
                f"{name} has {width} x {height} pixels: each side is to have {self.min_side} at least"
            )

    def hold(self, block: tuple[int, ...]) -> bool:
        """Whether a tile of a file of this shape may be decoded; one much larger than any picture is a bomb."""
        return math.prod(block) <= 16 * self.max_pixels


@dataclass(frozen=True)
class _Format:
    """What a file format can hold, and how Pillow is asked to write it."""

    name: str
    side: int  # the longest side in pixels
    rich: bool = True  # holds alpha
    deep: bool = True  # holds 16 bits
    options: dict[str, Any] = field(default_factory=dict)


PNG = _Format("PNG", side=2**31 - 1)
TIFF = _Format("TIFF", side=2**31 - 1, options={"compression": "tiff_adobe_deflate"})
JPEG = _Format("JPEG", side=65500, rich=False, deep=False, options={"quality": 95, "subsampling": 0})  # 4:4:4
WEBP = _Format("WebP", side=16383, deep=False, options={"lossless": True, "exact": True})
WRITABLE = {".png": PNG, ".tif": TIFF, ".tiff": TIFF, ".jpg": JPEG, ".jpeg": JPEG, ".webp": WEBP}


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture, upright, and what is needed to write it the way it came.

    Attributes:
        pixels: float32 (H, W, C) in [0, 1], C = 1 (gray) or 3 (RGB); the stored integers, scaled, no gamma.
        alpha: (H, W) as it was stored, or None.
        depth: bits of a channel, 8 or 16. Choice: floats count as 16, the deepest that PNG holds.
        mode: what the file held: gray, RGB, palette, 1-bit, CMYK, YCbCr, LAB or HSV.
        notes: what the user may want to know, a sentence each.
        icc: the color profile, where it describes `pixels`.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    depth: int = 8
    mode: str = "RGB"
    notes: tuple[str, ...] = ()
    icc: bytes | None = None

    def with_pixels(self, pixels: np.ndarray) -> "Picture":
        """The same picture with other pixels, clipped to [0, 1]; alpha is resized bicubically where H, W differ.

        Shape: float (H', W', C), the C of this picture.  Raises: ValueError on another C, NaN and infinities.
        """
        channels = self.pixels.shape[2]
        if pixels.ndim != 3 or pixels.shape[2] != channels or 0 in pixels.shape:
            raise ValueError(f"pixels of this picture are (H, W, {channels}); got {pixels.shape}")
        _check_finite(pixels, "the restored picture")
        pixels = np.clip(pixels, 0, 1).astype(np.float32)
        alpha = self.alpha
        if alpha is not None and alpha.shape != pixels.shape[:2]:
            alpha = _resized(alpha, *pixels.shape[:2])
        return replace(self, pixels=pixels, alpha=alpha)

    def encode(self, suffix: str = ".png") -> bytes:
        """The bytes of a file of this kind, in the picture's depth, with its alpha and color profile.

        Choice: WebP is written without loss; it has no gray, so there gray becomes equal red, green and blue.

        Raises: ValueError where the format cannot hold the picture (`check_suffix`).
        """
        kind = _format(suffix, self)
        samples = _joined(self, np.dtype(np.uint8 if self.depth == 8 else np.uint16))
        if self.depth == 16:
            return (_deep_png if kind is PNG else _deep_tiff)(samples, self.icc)
        buffer = io.BytesIO()
        Image.fromarray(samples).save(buffer, kind.name.upper(), icc_profile=self.icc, **kind.options)
        return buffer.getvalue()


def check_suffix(path: str | Path, picture: Picture) -> None:
    """Finds out before any work whether a picture can be written under this name.

    Raises: ValueError that says which suffix to take instead; ImportError where 16 bits lack their library.
    """
    _format(path, picture)


def write_picture(path: str | Path, picture: Picture) -> None:
    """Writes a picture, whole or not at all; the suffix says the format.

    Raises: ValueError as `check_suffix`; OSError that names the path.
    """
    check_suffix(path, picture)  # here as well, since `encode` sees but the suffix
    content = picture.encode(f".{Path(path).name.rpartition('.')[2]}")
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def check_array(array: np.ndarray, name: str = "the array", max_pixels: int = MAX_PIXELS) -> None:
    """Checks that an array is a picture: channels last, uint8, uint16 or floats in [0, 1].

    Raises: ValueError that says what is wrong and how to mend it.
    """
    if not isinstance(array, np.ndarray) or isinstance(array, np.matrix | np.ma.MaskedArray):
        raise ValueError(
            f"{name} is to be a plain numpy array; got {type(array).__name__}: pass numpy.asarray of it"
            f"{', and what it masks as a Mask' if isinstance(array, np.ma.MaskedArray) else ''}"
        )
    if array.dtype.newbyteorder("=") not in (np.uint8, np.uint16, np.float16, np.float32, np.float64):
        raise ValueError(
            f"{name} is to hold uint8, uint16 or floats in [0, 1]; got {array.dtype}: "
            f"convert it, and scale it to the range of its new type"
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        hint = ": its channels come first, transpose it with array.transpose(1, 2, 0)" if first else ""
        raise ValueError(f"{name} is to be {SHAPES}; got {array.shape}{hint}")
    Limits(max_pixels).check(name, array.shape[1], array.shape[0])
    if array.dtype.kind == "f":
        check_range(array, name, "divide by the value of white, 255 or 65535")


def from_array(array: np.ndarray, name: str = "the array", max_pixels: int = MAX_PIXELS) -> Picture:
    """Makes a picture of an array; a fourth channel is alpha.

    Shape: uint8, uint16 or float in [0, 1], (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
    Raises: ValueError as `check_array`.
    """
    check_array(array, name, max_pixels)
    pixels, alpha = split(array.astype(array.dtype.newbyteorder("="), copy=False))
    depth = 8 if array.dtype == np.uint8 else 16
    alpha = None if alpha is None else alpha.copy()
    return Picture(scaled(pixels), alpha, depth, "gray" if pixels.shape[2] == 1 else "RGB")


def to_array(picture: Picture, like: np.ndarray) -> np.ndarray:
    """The picture as an array of the dtype and the axes that `like` has, the array it was made of.

    Integers are rounded to the nearest; the height and width are those of the picture.

    Raises: ValueError if `like` has other channels than the picture.
    """
    array = _joined(picture, like.dtype)
    if like.ndim == 3 and array.ndim == 2:
        array = array[..., None]
    if array.shape[2:] != like.shape[2:]:
        raise ValueError(
            f"the picture is {array.shape}, channels included; the array it goes back to {like.shape}"
        )
    return array


def _format(path: str | Path, picture: Picture) -> _Format:
    """What `path` is to be written as, where that can hold the picture; else the errors of `check_suffix`."""
    suffix = Path(f"_{Path(path).name}").suffix.lower()  # the underscore: a bare ".png" is a suffix, too
    if suffix not in WRITABLE:
        raise ValueError(f"{path} ends in none of {', '.join(WRITABLE)}: name the output with one of them")
    kind = WRITABLE[suffix]
    if picture.alpha is not None and not kind.rich:
        raise ValueError(f"{path}: {kind.name} holds no alpha, and the picture has some; write .png or .tif")
    if picture.depth == 16 and not kind.deep:
        raise ValueError(f"{path}: {kind.name} holds 8 bits, and the picture has 16; write .png or .tif")
    height, width = picture.pixels.shape[:2]
    if max(height, width) > kind.side:
        raise ValueError(
            f"{path}: {kind.name} holds up to {kind.side} pixels a side; got {width} x {height}; write .png"
        )
    if picture.depth == 16:
        codecs()
    return kind


def split(array: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Color and alpha of an array.  Shape: (H, W) or (H, W, 1 to 4) -> (H, W, 1 or 3) and (H, W) or None."""
    array = array[..., None] if array.ndim == 2 else array
    if array.shape[2] in (2, 4):
        return array[..., :-1], array[..., -1]
    return array, None


def scaled(array: np.ndarray) -> np.ndarray:
    """Stored values as float32 in [0, 1], contiguous."""
    scale = 1 if array.dtype.kind == "f" else np.iinfo(array.dtype).max
    return np.ascontiguousarray(array.astype(np.float32) / np.float32(scale))


def _joined(picture: Picture, dtype: np.dtype) -> np.ndarray:
    """Color and alpha in one array of `dtype`.  Shape: (H, W) for gray without alpha, else (H, W, 2 to 4)."""
    pixels = _stored(picture.pixels, dtype)
    if picture.alpha is None:
        return pixels[..., 0] if pixels.shape[2] == 1 else pixels
    alpha = picture.alpha
    if alpha.dtype != dtype:
        alpha = _stored(alpha if alpha.dtype.kind == "f" else alpha / np.iinfo(alpha.dtype).max, dtype)
    return np.concatenate([pixels, alpha[..., None]], axis=2)


def _stored(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Values in [0, 1] as `dtype` stores them: integers scaled and rounded to the nearest."""
    if dtype.kind == "f":
        return values.astype(dtype)
    white = np.iinfo(dtype).max
    return np.rint(values.astype(np.float64 if values.dtype == np.float64 else np.float32) * white).astype(
        dtype
    )


def _resized(alpha: np.ndarray, height: int, width: int) -> np.ndarray:
    """Alpha of another size, bicubic, without the overshoot.  Shape: (H, W) -> (height, width)."""
    plane = Image.fromarray(alpha.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    white = 1 if alpha.dtype.kind == "f" else np.iinfo(alpha.dtype).max
    values = np.clip(np.asarray(plane), 0, white)
    return (values if alpha.dtype.kind == "f" else np.rint(values)).astype(alpha.dtype)


def _deep_png(samples: np.ndarray, icc: bytes | None) -> bytes:
    """A PNG of uint16 samples; the profile goes behind the first chunk, since the encoder takes none."""
    imagecodecs, _ = codecs()
    content = imagecodecs.png_encode(samples)
    if not icc:
        return content
    body = b"iCCP" + b"ICC Profile\0\0" + zlib.compress(icc)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return content[:33] + chunk + content[33:]  # 33: the signature and the header


def _deep_tiff(samples: np.ndarray, icc: bytes | None) -> bytes:
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
    """imagecodecs and tifffile: Pillow knows no color of 16 bits."""
    try:
        import imagecodecs
        import tifffile
    except ImportError as error:
        raise ImportError(
            "pictures of 16 bits need imagecodecs and tifffile: pip install 'sparsegen[restore]'"
        ) from error
    return imagecodecs, tifffile


def _check_finite(array: np.ndarray, name: str) -> None:
    """Raises ValueError that counts the NaN and infinities of an array, if any."""
    if broken := int((~np.isfinite(array)).sum()):
        raise ValueError(f"{broken} of {array.size} values of {name} are NaN or infinite: replace them first")


def check_range(array: np.ndarray, name: str, remedy: str) -> None:
    """Raises ValueError unless floats are finite and in [0, 1]."""
    _check_finite(array, name)
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        raise ValueError(f"floats of {name} are to be in [0, 1]; got {low:g} to {high:g}: {remedy}, and clip")
