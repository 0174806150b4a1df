"""Reads image files of any kind as pictures. Needs no torch."""

import io
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

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

# Choice: no EPS (Pillow runs Ghostscript on it) and no icons (their header may lie about the size inside).
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
MODES = {  # Pillow's word -> ours, and the mode that is read without alpha
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
COUNTED = (
    1_000_000  # bytes of a GIF or TIFF up to which its frames are counted: a large one could hold millions
)
DEPTHS = {  # a marker, how far behind it a byte tells the depth, and which of its bits exceed 7 if that is above 8
    "JPEG2000": (b"\xff\x4f\xff\x51", 38, 0x7F),  # SIZ: ITU-T T.800, A.5.1
    "AVIF": (b"av1C", 2, 0x40),  # the box of that name: AV1 in ISO base media files, 2.3.3
}
_ONE_AT_A_TIME = threading.Lock()  # what `_decoding` changes, it changes for the whole process
_TIFFFILE = logging.getLogger("tifffile")


def read_picture(
    source: str | Path | bytes,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
    min_side: int = MIN_SIDE,
) -> Picture:
    """Reads the first picture of an image file, or of its bytes, and turns it upright.

    Choice: 32-bit integers are read where they fit into 16 bits, floats where they are in [0, 1]: nothing in
    such a file says which value is white.

    Args:
        source: a path, or the content of a file.
        name: what errors call it; by default the path.
        max_pixels: the most that is decoded; read from the header, so that a bomb stays packed.
        min_side: the least height and width.

    Raises: ValueError of one line, naming the file, for anything that is no whole picture within the limits,
        TooLarge above `max_pixels`; OSError of the file system; ImportError where 16 bits lack their library.
    """
    if isinstance(source, bytes):
        return _read(io.BytesIO(source), _one_line(name or "the image"), Limits(max_pixels, min_side))
    name = _one_line(name or str(source))
    if "\0" in str(source):
        raise FileNotFoundError(f"{name!r} is no path")
    with open(source, "rb") as file:
        # A pipe (/dev/stdin) cannot be read twice, as finding the format needs.
        return _read(file if file.seekable() else io.BytesIO(file.read()), name, Limits(max_pixels, min_side))


def _read(file: IO[bytes], name: str, limits: Limits) -> Picture:
    """Finds out what the file is, checks its size and hands it to the library that reads its kind in full."""
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
        notes, deep = _frames(image, file), _is_deep(image, file)
        block = _block(image) if image.format == "TIFF" else ()
    if not limits.hold(block):
        raise ValueError(
            f"{name} is a TIFF in blocks of {' x '.join(map(str, block))} values, much larger than a picture may be: "
            f"save it anew, as a plain PNG"
        )
    if image.format == "TIFF" and deep and image.mode != "CMYK":
        return _read_tiff(file, name, limits, start, notes)
    if image.format == "PNG" and start[24] == 16:
        return _read_deep_png(image, file, name, start, notes)
    if deep and image.mode in MODES:
        notes.append(f"{MODES[image.mode][0]} of more than 8 bits a channel is read with 8")
    return _read_with_pillow(image, file, name, start, notes)


def _read_with_pillow(
    image: Image.Image, file: IO[bytes], name: str, start: bytes, notes: list[str]
) -> Picture:
    """Decodes what has 8 bits, and the few deeper pictures that Pillow reads: gray PGM, PFM and JPEG 2000."""
    with _decoding(name, start):
        if image.format == "TIFF":  # turned while it is loaded, and the tag is gone then
            notes = [*notes, *_turned(image.tag_v2.get(ExifTags.Base.Orientation, 1))]
        image.load()
        if image.format == "JPEG2000" and not _ends_jpeg2000(file):
            raise OSError("image file is truncated")
        orientation = _orientation(image)
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


def _read_deep_png(image: Image.Image, file: IO[bytes], name: str, start: bytes, notes: list[str]) -> Picture:
    """Decodes a PNG of 16 bits a channel, of which Pillow would keep 8."""
    imagecodecs, _ = codecs()
    with _decoding(name, start):
        orientation = _orientation(image)
        icc = image.info.get("icc_profile")
        file.seek(0)
        array = imagecodecs.png_decode(file.read())  # tRNS has become alpha
    return _picture(
        array, name, "gray" if array.ndim == 2 or array.shape[2] == 2 else "RGB", icc, orientation, notes
    )


def _read_tiff(
    file: IO[bytes], name: str, limits: Limits, start: bytes, notes: list[str] | None = None
) -> Picture:
    """Decodes the TIFFs that Pillow reads in part or not at all: 16 bits, floats, gray with alpha."""
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
        or not limits.hold(block)
    ):
        raise ValueError(
            f"{name} is a TIFF of a kind that is not read ({samples} channels of {dtype}, photometric "
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
    """Undoes what TIFF may do to samples: odd depths, inverted gray, alpha multiplied in, unknown channels.

    Shape: (H, W, S) -> (H, W, color) or, with alpha, (H, W, color + 1).
    """
    white = 1 if array.dtype.kind == "f" else 255 if array.dtype == np.uint8 else 65535
    if bits < 8 * array.dtype.itemsize:
        array = np.rint(array * (white / (2**bits - 1))).astype(array.dtype)
    pixels, rest, notes = array[..., :color], array[..., color:], []
    if white_is_zero:
        pixels = white - pixels
    if not rest.shape[2]:
        return pixels, notes
    meaning = [int(extra) for extra in extras] or [
        2
    ]  # one more channel without a word is alpha, as in Pillow
    found = next((i for i, extra in enumerate(meaning[: rest.shape[2]]) if extra in (1, 2)), None)
    if found is None:
        return pixels, [f"{rest.shape[2]} extra channel without a meaning: left out"]
    alpha = rest[..., found : found + 1]
    if meaning[found] == 1:  # colors were multiplied by it
        share = np.maximum(alpha.astype(np.float64) / white, 1e-9)
        divided = np.minimum(pixels / share, white)
        pixels = (divided if array.dtype.kind == "f" else np.rint(divided)).astype(array.dtype)
        notes = ["alpha was multiplied into the colors: divided out, and written apart"]
    return np.concatenate([pixels, alpha], axis=2), notes


def _picture(
    array: np.ndarray, name: str, mode: str, icc: bytes | None, orientation: int, notes: list[str]
) -> Picture:
    """Scales decoded samples to [0, 1] and turns them upright.

    Shape: (H, W) or (H, W, 1 to 4).  Raises: ValueError for integers beyond 16 bits, and floats beyond [0, 1].
    """
    notes = list(notes)
    if array.dtype in (np.int32, np.uint32):
        low, high = int(array.min()), int(array.max())
        if low < 0 or high > 65535:
            raise ValueError(
                f"{name} holds 32-bit integers from {low} to {high}, and only 0 to 65535 can be read: "
                f"save it with 16 bits a channel"
            )
        array = array.astype(np.uint16)
    if array.dtype.kind == "f":
        check_range(array, name, "divide by the value of white")
        notes.append("floats: the result has 16 bits a channel")
    elif array.dtype.itemsize == 2:
        notes.append("16-bit: the result has 16 bits a channel, too")
    if mode not in ("gray", "RGB", "CMYK", "LAB"):
        notes.append(f"{mode}: the result is {'gray' if mode == '1-bit' else 'RGB'}")
    notes += _turned(orientation)
    pixels, alpha = split(_upright(array, orientation))
    alpha = None if alpha is None else np.ascontiguousarray(alpha, alpha.dtype.newbyteorder("="))
    if icc and icc[16:20] != (b"GRAY" if pixels.shape[2] == 1 else b"RGB "):
        icc = None  # it describes colors that are gone
    return Picture(scaled(pixels), alpha, 8 * min(array.dtype.itemsize, 2), mode, tuple(notes), icc or None)


@contextmanager
def _decoding(name: str, start: bytes) -> Iterator[None]:
    """Makes one ValueError of whatever a decoder raises on a damaged file, and drops what else it says of it.

    Decoders raise nearly everything (struct.error, SyntaxError, IndexError, zlib.error, ...), hence `Exception`.
    """
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _TIFFFILE.disabled = True  # a line for each broken tag
        try:
            yield
        except ImportError:
            raise
        except MemoryError as error:
            raise ValueError(
                f"{name} takes more memory to decode than there is: save it anew, as a plain PNG"
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


def _open(file: IO[bytes]) -> Image.Image:
    """Opens whatever size the header tells, since ours is the limit that is checked next; inside of `_decoding`."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        return Image.open(file, formats=READABLE)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _frames(image: Image.Image, file: IO[bytes]) -> list[str]:
    """The note that there is more than one picture, if so. Leaves the image at the first."""
    if not getattr(image, "is_animated", False):
        return []
    counted = image.format not in ("GIF", "TIFF") or file.seek(0, os.SEEK_END) <= COUNTED
    count = image.n_frames if counted else "many"
    image.seek(0)
    if image.format == "TIFF":
        return [f"TIFF with {count} pages: the first one is used"]
    if image.format == "MPO":
        return [f"JPEG with {count} pictures: the first one is used"]
    return [f"animated {image.format} with {count} frames: the first one is used"]


def _is_deep(image: Image.Image, file: IO[bytes]) -> bool:
    """Whether the file has more than 8 bits a channel, also where Pillow's mode has 8."""
    if image.format == "TIFF":
        return max(np.atleast_1d(image.tag_v2.get(258, 1))) > 8
    options = image.tile[0].args if image.tile else ""
    if image.format == "PPM" and image.mode == "RGB":
        return isinstance(options, tuple) and options[1] > 255  # the value of white
    if image.format in DEPTHS:
        marker, place, bits = DEPTHS[image.format]
        file.seek(0)
        told = file.read(COUNTED).partition(marker)[2][place : place + 1]
        return bool(told) and told[0] & bits > 7
    return image.mode[0] in "IF"


def _block(image: Image.Image) -> tuple[int, ...]:
    """The values of a TIFF that are decoded at once: height, width and channels of a tile or strip."""
    tags, (width, height) = image.tag_v2, image.size
    rows = min(int(tags.get(278, height)), height)
    return int(tags.get(323, rows)), int(tags.get(322, width)), int(tags.get(277, 1))


def _orientation(image: Image.Image) -> int:
    """How EXIF says that a picture lies, 1 to 8; what cannot be read, or says nothing, is 1."""
    orientation = 1
    with suppress(Exception):  # broken EXIF is no reason to refuse the pixels
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in range(1, 9) else 1


def _turned(orientation: Any) -> list[str]:
    """The note on a picture that did not lie upright; broken files give any kind of orientation."""
    return [f"EXIF orientation {orientation}: turned upright"] if orientation in range(2, 9) else []


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turns an array the way EXIF says (table of tag 274).  Shape: (H, W, ...) -> (H, W, ...) or (W, H, ...)."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array


def _to_srgb(image: Image.Image, icc: bytes | None) -> tuple[Image.Image, str]:
    """CMYK and LAB as RGB, by the profile where there is one that fits, and what was done."""
    srgb = ImageCms.createProfile("sRGB")
    if image.mode == "LAB":
        return ImageCms.profileToProfile(image, ImageCms.createProfile("LAB"), srgb, outputMode="RGB"), (
            "LAB converted to RGB; the result is RGB"
        )
    if icc:
        with suppress(ImageCms.PyCMSError, OSError):
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            return ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB"), (
                "CMYK converted to RGB by its color profile; the result is RGB (sRGB)"
            )
    return image.convert("RGB"), "CMYK converted to RGB without a color profile; the result is RGB"


def _scale_transparency(image: Image.Image, start: bytes) -> None:
    """Scales the transparent gray of a PNG of 2 or 4 bits as Pillow scaled its pixels, which it forgets."""
    key = image.info.get("transparency")
    if image.format == "PNG" and image.mode == "L" and isinstance(key, int) and start[24] < 8:
        image.info["transparency"] = key * (255 // (2 ** start[24] - 1))


def _ends_jpeg2000(file: IO[bytes]) -> bool:
    """Whether the end of the code stream is there: its decoder takes a cut one for a blurred one."""
    file.seek(0)
    return b"\xff\xd9" in file.read()  # these two bytes stand nowhere else in the stream


def _one_line(text: str, limit: int = 300) -> str:
    """A name or a reason that cannot break a message of one line: uploads are named by strangers."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:limit]
