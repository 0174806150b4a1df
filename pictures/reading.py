"""Reads image files of many formats as pictures. Does not import torch."""

import io
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageFile, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from sparsegen.pictures.jpeg import read_cells
from sparsegen.pictures.orientation import orientation_note, orientation_of, upright
from sparsegen.pictures.picture import (
    MAX_PIXELS,
    MIN_SIDE,
    Limits,
    Picture,
    check_range,
    codecs,
    scaled,
    split,
)

# Choice: neither EPS, for which Pillow runs Ghostscript, nor icons, whose header may have a wrong size.
READABLE = (
    "PNG",
    "JPEG",
    "TIFF",
    "WEBP",
    "GIF",
    "BMP",
    "AVIF",
    "JPEG2000",
    "PPM",
    "QOI",
    "TGA",
    "PCX",
    "SGI",
)
MAGIC = {
    b"\x89PNG": "PNG",
    b"\xff\xd8": "JPEG",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"RIFF": "WebP",
    b"BM": "BMP",
}
MODES = {  # mode of Pillow -> mode of the picture, and the mode of Pillow that it is converted to without alpha
    "1": ("1-bit", "L"),
    "L": ("gray", "L"),
    "LA": ("gray", "L"),
    "La": ("gray", "L"),
    "P": ("palette", "RGB"),
    "PA": ("palette", "RGB"),
    "RGB": ("RGB", "RGB"),
    "RGBA": ("RGB", "RGB"),
    "RGBa": ("RGB", "RGB"),
    "RGBX": ("RGB", "RGB"),
    "YCbCr": ("YCbCr", "RGB"),
    "HSV": ("HSV", "RGB"),
    "CMYK": ("CMYK", "RGB"),
    "LAB": ("LAB", "RGB"),
}
MAX_COUNTED = (
    1_000_000  # bytes of a GIF or TIFF up to which its frames are counted; a large one may have millions
)
DEPTHS = {  # a marker, the offset after it of a byte, and its bits that exceed 7 if the depth is above 8
    "JPEG2000": (b"\xff\x4f\xff\x51", 38, 0x7F),  # SIZ: ITU-T T.800, A.5.1
    "AVIF": (b"av1C", 2, 0x40),  # the box of that name: AV1 in ISO base media files, 2.3.3
}
_DECODE_LOCK = threading.Lock()  # `_decoding` changes settings of the whole process
_TIFFFILE = logging.getLogger("tifffile")


def read_picture(
    source: str | Path | bytes,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
    min_side: int = MIN_SIDE,
    cells: bool = False,
) -> Picture:
    """Reads the first picture of an image file, or of its bytes, and turns it upright.

    Choice: 32-bit integers are read if they fit into 16 bits, floats if they are in [0, 1], since such a file does not
    specify the value of white.

    Args:
        source: A path, or the content of a file.
        name: The name in errors; by default the path.
        max_pixels: Maximum number of pixels, checked in the header before decoding.
        min_side: Minimum height and width.
        cells: Whether the `Cells` of a JPEG file are read, too.

    Raises:
        ValueError: Of one line with the name, unless it is a complete picture within the limits.
        TooLarge: Above `max_pixels`.
        OSError: Of the file system.
        ImportError: If the library for 16 bits is missing.
    """
    if cells:
        content, name = _content(source, name)
        picture = read_picture(content, name, max_pixels, min_side)
        return replace(picture, cells=read_cells(content, name))
    if isinstance(source, bytes):
        return _read(io.BytesIO(source), _one_line(name or "the image"), Limits(max_pixels, min_side))
    name = _one_line(name or str(source))
    if "\0" in str(source):
        raise FileNotFoundError(f"{name!r} is not a path")
    with open(source, "rb") as file:
        # The format is found by seeking, which a pipe such as /dev/stdin does not support.
        return _read(file if file.seekable() else io.BytesIO(file.read()), name, Limits(max_pixels, min_side))


def _content(source: str | Path | bytes, name: str | None) -> tuple[bytes, str]:
    """The content of a file and its name in errors."""
    if isinstance(source, bytes):
        return source, _one_line(name or "the image")
    return Path(source).read_bytes(), _one_line(name or str(source))


def _read(file: IO[bytes], name: str, limits: Limits) -> Picture:
    """Identifies the format, checks the size, and decodes the file with the library that supports all of its bits."""
    start = file.read(32)
    if not start:
        raise ValueError(f"{name} is empty (zero bytes): is it still being written?")
    with _decoding(name, start):
        try:
            image = _open(file)
        except UnidentifiedImageError:
            if MAGIC.get(start[:4]) != "TIFF":
                raise
            image = None
    if image is None:
        return _read_tiff(file, name, limits, start)
    limits.check(name, *image.size)
    with _decoding(name, start):
        notes, deep = _frames_note(image, file), _is_deep(image, file)
        block = _block(image) if isinstance(image, TiffImageFile) else ()
    if not limits.allow_block(block):
        raise ValueError(
            f"{name} is a TIFF in blocks of {' x '.join(map(str, block))} values, much more than the limit: "
            f"save it again as a plain PNG"
        )
    if image.format == "TIFF" and deep and image.mode != "CMYK":
        return _read_tiff(file, name, limits, start, notes)
    if image.format == "PNG" and start[24] == 16:
        return _read_png16(image, file, name, start, notes)
    if deep and image.mode in MODES:
        notes.append(f"{MODES[image.mode][0]} of more than 8 bits per channel is read with 8")
    return _read_with_pillow(image, file, name, start, notes)


def _read_with_pillow(
    image: Image.Image, file: IO[bytes], name: str, start: bytes, notes: list[str]
) -> Picture:
    """Decodes pictures of 8 bits, and the few deeper ones that Pillow reads: gray PGM, PFM and JPEG 2000."""
    with _decoding(name, start):
        if isinstance(image, TiffImageFile):  # loading turns it and removes the tag
            notes = [*notes, *orientation_note(image.tag_v2.get(ExifTags.Base.Orientation, 1))]
        image.load()
        if image.format == "JPEG2000" and not _ends_jpeg2000(file):
            raise OSError("image file is truncated")
        orientation = orientation_of(image)
        icc = image.info.get("icc_profile")
        mode, plain = MODES.get(image.mode, ("gray", ""))
        if mode in ("CMYK", "LAB"):
            image, note = _to_srgb(image, icc)
            notes = [*notes, note]
            icc = None
        elif plain:
            _scale_transparency(image, start)
            image = image.convert({"L": "LA", "RGB": "RGBA"}[plain] if image.has_transparency_data else plain)
        array = np.asarray(image)
    return _picture(array, name, mode, icc, orientation, notes)


def _read_png16(image: Image.Image, file: IO[bytes], name: str, start: bytes, notes: list[str]) -> Picture:
    """Decodes a PNG with 16 bits per channel; Pillow would keep only 8."""
    imagecodecs, _ = codecs()
    with _decoding(name, start):
        orientation = orientation_of(image)
        icc = image.info.get("icc_profile")
        file.seek(0)
        array = imagecodecs.png_decode(file.read())  # tRNS has become alpha
    return _picture(
        array, name, "gray" if array.ndim == 2 or array.shape[2] == 2 else "RGB", icc, orientation, notes
    )


def _read_tiff(
    file: IO[bytes], name: str, limits: Limits, start: bytes, notes: list[str] | None = None
) -> Picture:
    """Decodes TIFFs that Pillow does not fully support: 16 bits, floats, gray with alpha."""
    _, tifffile = codecs()
    with _decoding(name, start):
        file.seek(0)
        page = tifffile.TiffFile(file).pages.first
        width, height, samples = int(page.imagewidth), int(page.imagelength), int(page.samplesperpixel)
        photometric, dtype, bits = int(page.photometric), page.dtype, int(page.bitspersample)
        axes, extras, block = page.axes, tuple(page.extrasamples), page.chunks
        orientation, icc = int(page.tags.valueof(274, 1)), page.iccprofile
    if 0 in (width, height):
        raise ValueError(f"{name} cannot be decoded: a TIFF file, truncated or damaged")
    limits.check(name, width, height)
    color = 3 if photometric == 2 else 1
    if (
        photometric not in (0, 1, 2)
        or axes not in ("YX", "YXS", "SYX")
        or not color <= samples <= color + 2
        or dtype not in ("uint8", "uint16", "uint32", "int32", "float16", "float32", "float64")
        or not limits.allow_block(block)
    ):
        raise ValueError(
            f"{name} is a TIFF of an unsupported kind ({samples} channels of {dtype}, photometric "
            f"{photometric}, axes {axes}): save it as gray or RGB of 8 or 16 bits"
        )
    with _decoding(name, start):
        array = page.asarray()
        array = array[..., None] if axes == "YX" else np.moveaxis(array, 0, -1) if axes == "SYX" else array
        array, more = _plain_tiff(array, color, photometric == 0, bits, extras)
    return _picture(array, name, "RGB" if color == 3 else "gray", icc, orientation, [*(notes or []), *more])


def _plain_tiff(
    array: np.ndarray, color: int, white_is_zero: bool, bits: int, extras: tuple[int, ...]
) -> tuple[np.ndarray, list[str]]:
    """Converts the variants of TIFF samples: other depths, inverted gray, premultiplied alpha, unknown channels.

    Shape: (H, W, S) -> (H, W, color) or, with alpha, (H, W, color + 1).
    """
    white = 1 if array.dtype.kind == "f" else 255 if array.dtype == np.uint8 else 65535
    if bits < 8 * array.dtype.itemsize:
        array = np.rint(array * (white / (2**bits - 1))).astype(array.dtype)
    pixels, rest = array[..., :color], array[..., color:]
    if white_is_zero:
        pixels = white - pixels
    if not rest.shape[2]:
        return pixels, []
    meaning = [int(extra) for extra in extras] or [2]  # an extra channel without a tag is alpha, as in Pillow
    found = next((i for i, extra in enumerate(meaning[: rest.shape[2]]) if extra in (1, 2)), None)
    if found is None:
        return pixels, [f"{rest.shape[2]} extra channel of unknown meaning: ignored"]
    alpha = rest[..., found : found + 1]
    if meaning[found] == 2:
        return np.concatenate([pixels, alpha], axis=2), []
    share = np.maximum(alpha.astype(np.float64) / white, 1e-9)
    divided = np.minimum(pixels / share, white)
    pixels = (divided if array.dtype.kind == "f" else np.rint(divided)).astype(array.dtype)
    note = "premultiplied alpha: the colors are divided by it, and it is written separately"
    return np.concatenate([pixels, alpha], axis=2), [note]


def _picture(
    array: np.ndarray, name: str, mode: str, icc: bytes | None, orientation: int, notes: list[str]
) -> Picture:
    """Scales decoded samples to [0, 1] and turns them upright.

    Shape: (H, W) or (H, W, 1 to 4).

    Raises:
        ValueError: For integers above 16 bits, and floats outside [0, 1].
    """
    notes = list(notes)
    if array.dtype in (np.int32, np.uint32):
        low, high = int(array.min()), int(array.max())
        if low < 0 or high > 65535:
            raise ValueError(
                f"{name} holds 32-bit integers from {low} to {high}, and only 0 to 65535 can be read: "
                f"save it with 16 bits per channel"
            )
        array = array.astype(np.uint16)
    if array.dtype.kind == "f":
        check_range(array, name, "divide by the value of white")
        notes.append("floats: the result has 16 bits per channel")
    elif array.dtype.itemsize == 2:
        notes.append("16-bit: the result has 16 bits per channel, too")
    if mode not in ("gray", "RGB", "CMYK", "LAB"):
        notes.append(f"{mode}: the result is {'gray' if mode == '1-bit' else 'RGB'}")
    notes += orientation_note(orientation)
    pixels, alpha = split(upright(array, orientation))
    alpha = None if alpha is None else np.ascontiguousarray(alpha, alpha.dtype.newbyteorder("="))
    if icc and icc[16:20] != (b"GRAY" if pixels.shape[2] == 1 else b"RGB "):
        icc = None  # it describes other colors
    return Picture(scaled(pixels), alpha, 8 * min(array.dtype.itemsize, 2), mode, tuple(notes), icc or None)


@contextmanager
def _decoding(name: str, start: bytes) -> Iterator[None]:
    """Converts the errors of decoders to a ValueError, and suppresses their warnings.

    Decoders raise many types (struct.error, SyntaxError, IndexError, zlib.error, ...), hence `Exception`.
    """
    with _DECODE_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _TIFFFILE.disabled = True  # it logs a line for each broken tag
        try:
            yield
        except ImportError:
            raise
        except MemoryError as error:
            raise ValueError(
                f"{name} needs more memory to decode than is available: save it again as a plain PNG"
            ) from error
        except Image.DecompressionBombError as error:
            limit = f"{2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} million"
            raise ValueError(f"{name} has too many pixels, more than {limit}: scale it down first") from error
        except Exception as error:
            kind = next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), None)
            if not isinstance(error, UnidentifiedImageError):
                reason = f" ({_one_line(str(error), 100) or type(error).__name__})"
                raise ValueError(f"{name} cannot be decoded: it is truncated or damaged{reason}") from error
            if kind:
                raise ValueError(f"{name} cannot be decoded: a {kind} file, truncated or damaged") from error
            raise ValueError(f"{name} is not an image that can be read: {', '.join(READABLE)}") from error
        finally:
            _TIFFFILE.disabled = False


def _open(file: IO[bytes]) -> ImageFile.ImageFile:
    """Opens a file without the size limit of Pillow, since `Limits` are checked next. Call it within `_decoding`."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        return Image.open(file, formats=READABLE)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _frames_note(image: ImageFile.ImageFile, file: IO[bytes]) -> list[str]:
    """Returns a note if there are several pictures. Selects the first one."""
    if not getattr(image, "is_animated", False):
        return []
    counted = image.format not in ("GIF", "TIFF") or file.seek(0, os.SEEK_END) <= MAX_COUNTED
    count = getattr(image, "n_frames", "several") if counted else "many"
    image.seek(0)
    if image.format == "TIFF":
        return [f"TIFF with {count} pages: the first one is used"]
    if image.format == "MPO":
        return [f"JPEG with {count} pictures: the first one is used"]
    return [f"animated {image.format} with {count} frames: the first one is used"]


def _is_deep(image: ImageFile.ImageFile, file: IO[bytes]) -> bool:
    """Whether the file has more than 8 bits per channel, even if Pillow's mode has 8."""
    if isinstance(image, TiffImageFile):
        return bool(np.max(image.tag_v2.get(258, 1)) > 8)
    options = image.tile[0].args if image.tile else ""
    if image.format == "PPM" and image.mode == "RGB":
        return isinstance(options, tuple) and options[1] > 255  # the value of white
    if image.format in DEPTHS:
        marker, place, bits = DEPTHS[image.format]
        file.seek(0)
        byte = file.read(MAX_COUNTED).partition(marker)[2][place : place + 1]
        return bool(byte) and byte[0] & bits > 7
    return image.mode[0] in "IF"


def _block(image: TiffImageFile) -> tuple[int, ...]:
    """Height, width and channels of a tile or strip of a TIFF, which is decoded at once."""
    tags, (width, height) = image.tag_v2, image.size
    rows = min(int(tags.get(278, height)), height)
    return int(tags.get(323, rows)), int(tags.get(322, width)), int(tags.get(277, 1))


def _to_srgb(image: Image.Image, icc: bytes | None) -> tuple[Image.Image, str]:
    """Converts CMYK, by its profile if that fits, or LAB to RGB; returns the image and a note."""
    srgb = ImageCms.createProfile("sRGB")
    if image.mode == "LAB":
        transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), srgb, "LAB", "RGB")
        return transform.apply(image), "LAB converted to RGB; the result is RGB"
    if icc:
        with suppress(ImageCms.PyCMSError, OSError):
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            transform = ImageCms.buildTransform(profile, srgb, "CMYK", "RGB")
            note = "CMYK converted to RGB by its color profile; the result is RGB (sRGB)"
            return transform.apply(image), note
    return image.convert("RGB"), "CMYK converted to RGB without a color profile; the result is RGB"


def _scale_transparency(image: Image.Image, start: bytes) -> None:
    """Scales the transparent gray of a PNG of less than 8 bits like its pixels, which Pillow does not do."""
    key = image.info.get("transparency")
    if image.format == "PNG" and image.mode == "L" and isinstance(key, int) and start[24] < 8:
        image.info["transparency"] = key * (255 // (2 ** start[24] - 1))


def _ends_jpeg2000(file: IO[bytes]) -> bool:
    """Whether the code stream has its end marker; the decoder does not report a truncated one."""
    file.seek(0)
    return b"\xff\xd9" in file.read()  # these two bytes do not occur elsewhere in the stream


def _one_line(text: str, limit: int = 300) -> str:
    """Makes a name or a reason safe for a message of one line, since the names of uploads are not trusted."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:limit]
