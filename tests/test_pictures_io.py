"""Pictures are read from files and arrays of many kinds, and written in the same kind."""

import errno
import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageCms

from sparsegen.pictures import reading
from sparsegen.pictures.picture import (
    MAX_PIXELS,
    Picture,
    check_suffix,
    from_array,
    to_array,
    write_picture,
)
from sparsegen.pictures.reading import read_picture

H, W = 18, 21
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
QUICK = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
COLOR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}  # channels -> color type of PNG (ISO 15948, table 11.1)


def samples(channels: int = 3, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    """Random integers over the full range; (H, W) for one channel."""
    shape = (H, W) if channels == 1 else (H, W, channels)
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def encoded(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(array: np.ndarray, byteorder: str | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, byteorder=byteorder) as writer:
        writer.write(array, metadata=None, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def adam7(array: np.ndarray) -> list[np.ndarray]:
    """The seven reduced images of an interlaced PNG (ISO 15948, 8.2)."""
    starts = [
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ]
    return [array[y::down, x::right] for y, x, down, right in starts]


def handmade_png(
    array: np.ndarray, trns: bytes = b"", interlaced: bool = False, depth: int = 0, extra: bytes = b""
) -> bytes:
    """A PNG written by the standard: big-endian rows without a filter.  Shape: (H, W) or (H, W, C)."""
    height, width = array.shape[:2]
    channels = 1 if array.ndim == 2 else array.shape[2]
    depth = depth or 8 * array.itemsize
    rows = b""
    for part in adam7(array) if interlaced else [array]:
        for row in part:
            if depth < 8:  # the bits of each value, most significant first
                bits = np.unpackbits(row[:, None], axis=1)[:, 8 - depth :]
                rows += b"\0" + np.packbits(bits).tobytes()
            else:
                rows += b"\0" + row.astype(f">u{depth // 8}").tobytes()
    header = struct.pack(">IIBBBBB", width, height, depth, COLOR_TYPE[channels], 0, 0, interlaced)
    keyed = chunk(b"tRNS", trns) if trns else b""
    body = chunk(b"IHDR", header) + extra + keyed + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def handread_png(content: bytes) -> tuple[dict[bytes, bytes], np.ndarray]:
    """The chunks and the samples of a PNG that is not interlaced, read by the standard."""
    chunks, at = {}, 8
    while at < len(content):
        size, kind = struct.unpack(">I4s", content[at : at + 8])
        body = content[at + 8 : at + 8 + size]
        assert struct.unpack(">I", content[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + body)
        chunks[kind] = chunks.get(kind, b"") + body
        at += 12 + size
    width, height, depth, color = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    channels = {0: 1, 4: 2, 2: 3, 6: 4}[color]
    step, stride = channels * depth // 8, width * channels * depth // 8
    raw, above, rows = zlib.decompress(chunks[b"IDAT"]), [0] * stride, []
    for y in range(height):
        kind, *line = raw[y * (stride + 1) : (y + 1) * (stride + 1)]
        for i in range(stride):
            left, up, corner = (line[i - step], above[i], above[i - step]) if i >= step else (0, above[i], 0)
            guess = left + up - corner
            paeth = min((left, up, corner), key=lambda value, guess=guess: abs(guess - value))
            line[i] = (line[i] + (0, left, up, (left + up) // 2, paeth)[kind]) % 256
        rows.append(bytes(line))
        above = line
    return chunks, np.frombuffer(b"".join(rows), f">u{depth // 8}").reshape(height, width, channels)


def stored(picture: Picture) -> np.ndarray:
    """The integers of the color channels.  Shape: (H, W, C)."""
    return np.rint(picture.pixels * (255 if picture.depth == 8 else 65535)).astype(int)


def cube(array: np.ndarray) -> np.ndarray:
    return array[..., None] if array.ndim == 2 else array


# Reading: every kind


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_handmade_png_is_read_bit_for_bit(channels: int, dtype: type, interlaced: bool) -> None:
    array = samples(channels, dtype)
    picture = read_picture(handmade_png(array, interlaced=interlaced))
    color = 1 if channels < 3 else 3
    assert (stored(picture) == cube(array)[..., :color]).all()
    assert picture.pixels.dtype == np.float32 and picture.pixels.flags.c_contiguous
    assert (picture.depth, picture.mode) == (8 * array.itemsize, "gray" if color == 1 else "RGB")
    if channels in (2, 4):
        assert picture.alpha.dtype == array.dtype and (picture.alpha == array[..., -1]).all()
    else:
        assert picture.alpha is None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_transparent_color_of_a_png_becomes_alpha(channels: int, dtype: type) -> None:
    array = samples(channels, dtype)
    key = np.atleast_1d(array[2, 3]).astype(">u2")
    picture = read_picture(handmade_png(array, trns=key.tobytes()))
    opaque = (cube(array) != cube(array)[2, 3]).any(axis=2)
    assert (stored(picture) == cube(array)).all()
    assert (picture.alpha == np.where(opaque, np.iinfo(dtype).max, 0)).all() and not opaque.all()


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_transparent_gray_of_a_png_of_few_bits_becomes_alpha(depth: int) -> None:
    values = samples(1) >> (8 - depth)
    picture = read_picture(handmade_png(values, trns=b"\0\1", depth=depth))
    assert (stored(picture)[..., 0] == values.astype(int) * 255 // (2**depth - 1)).all()
    assert (picture.alpha == np.where(values == 1, 0, 255)).all()
    assert picture.mode == ("1-bit" if depth == 1 else "gray")


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_16_bit_tiff_is_read_bit_for_bit(channels: int, byteorder: str, compression: str | None) -> None:
    array = samples(channels, np.uint16)
    options = {"photometric": "rgb" if channels > 2 else "minisblack", "compression": compression}
    if channels in (2, 4):
        options |= {"extrasamples": ["unassalpha"], "planarconfig": "contig"}
    picture = read_picture(tiff(array, byteorder, **options))
    color = 1 if channels < 3 else 3
    assert (stored(picture) == cube(array)[..., :color]).all() and picture.depth == 16
    assert picture.alpha is None if channels in (1, 3) else (picture.alpha == array[..., -1]).all()
    assert any("16-bit" in note for note in picture.notes)


def test_unusual_tiffs_are_read_correctly() -> None:
    gray, color = samples(1, np.uint16), samples(3, np.uint16)
    assert (stored(read_picture(tiff(gray, photometric="miniswhite")))[..., 0] == 65535 - gray).all()
    assert (stored(read_picture(tiff(gray >> 8, photometric="minisblack")))[..., 0] == gray >> 8).all()
    planar = tiff(np.moveaxis(color, 2, 0), photometric="rgb", planarconfig="separate")
    assert (stored(read_picture(planar)) == color).all()
    tiled = tiff(color, photometric="rgb", tile=(16, 16))
    assert (stored(read_picture(tiled)) == color).all()
    nameless = read_picture(tiff(samples(4, np.uint16), photometric="rgb", extrasamples=["unspecified"]))
    assert nameless.alpha is None and "unknown meaning" in nameless.notes[0]
    broken = np.full((H, W, 4), np.inf, np.float32)
    refused(tiff(broken, photometric="rgb", extrasamples=["assocalpha"]), "NaN or infinite")
    alpha = np.full((H, W, 1), 32768, np.uint16)
    premultiplied = np.concatenate([color // 2, alpha], axis=2)
    picture = read_picture(tiff(premultiplied, photometric="rgb", extrasamples=["assocalpha"]))
    assert (picture.alpha == alpha[..., 0]).all() and np.abs(stored(picture) - color).max() <= 2
    assert "premultiplied alpha" in picture.notes[0]


def test_32_bit_integers_are_read_if_they_fit_into_16_bits() -> None:
    array = samples(1, np.uint16).astype(np.int32)
    assert (stored(read_picture(encoded(Image.fromarray(array), "TIFF")))[..., 0] == array).all()
    for beyond in (70000, -1):
        array[0, 0] = beyond
        with pytest.raises(
            ValueError, match=rf"^big.tif holds 32-bit integers.*{beyond}.*save it with 16 bits"
        ):
            read_picture(encoded(Image.fromarray(array), "TIFF"), "big.tif")
    pgm = b"P5 %d %d 65535\n" % (W, H) + samples(1, np.uint16).astype(">u2").tobytes()
    assert (stored(read_picture(pgm))[..., 0] == samples(1, np.uint16)).all()
    ppm = b"P6 %d %d 65535\n" % (W, H) + samples(3, np.uint16).astype(">u2").tobytes()
    assert read_picture(ppm).depth == 8 and "8 bits" in read_picture(ppm).notes[0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_floats_of_a_tiff_are_read_between_0_and_1(channels: int, dtype: type) -> None:
    array = (samples(channels) / 255).astype(dtype)
    photometric = "rgb" if channels == 3 else "minisblack"
    picture = read_picture(tiff(array, photometric=photometric))
    assert (picture.pixels == cube(array).astype(np.float32)).all() and picture.depth == 16
    array[3, 4] = 1.5
    with pytest.raises(ValueError, match=r"floats of x\.tif must be in \[0, 1\]; got 0 to 1\.5: divide"):
        read_picture(tiff(array, photometric=photometric), "x.tif")
    array[3, 4] = np.nan
    with pytest.raises(
        ValueError, match=rf"^{channels} of {array.size} values of x\.tif are NaN or infinite"
    ):
        read_picture(tiff(array, photometric=photometric), "x.tif")


def test_palettes_become_rgb_and_keep_their_transparency() -> None:
    palette = Image.fromarray(samples()).quantize(16)
    truth = np.asarray(palette.convert("RGB"))
    for content in (encoded(palette, "PNG"), encoded(palette, "GIF"), encoded(palette, "TIFF")):
        picture = read_picture(content)
        assert (stored(picture) == truth).all() and picture.alpha is None
        assert picture.mode in ("palette", "RGB")
    picture = read_picture(encoded(palette, "PNG", transparency=3))
    assert (picture.alpha == np.where(np.asarray(palette) == 3, 0, 255)).all()
    assert picture.mode == "palette" and "palette: the result is RGB" in picture.notes
    assert read_picture(encoded(palette, "GIF", transparency=3)).alpha is not None


def test_one_bit_becomes_gray() -> None:
    bits = samples(1) > 127
    for kind in ("PNG", "TIFF", "BMP", "PPM"):
        picture = read_picture(encoded(Image.fromarray(bits), kind))
        assert (stored(picture)[..., 0] == 255 * bits).all() and picture.pixels.shape == (H, W, 1)


def test_cmyk_becomes_rgb_with_and_without_a_profile() -> None:
    cmyk = Image.frombytes("CMYK", (W, H), samples(4).tobytes())
    for kind in ("JPEG", "TIFF"):
        picture = read_picture(encoded(cmyk, kind, icc_profile=SRGB))  # a profile that does not fit
        assert picture.mode == "CMYK" and picture.icc is None and picture.pixels.shape == (H, W, 3)
        assert "without a color profile" in picture.notes[0]
    assert (stored(read_picture(encoded(cmyk, "TIFF"))) == np.asarray(cmyk.convert("RGB"))).all()


def test_a_cmyk_profile_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no CMYK profile with a free license, so the color engine is replaced."""
    calls = []

    class Transform:
        def __init__(self, *arguments: object) -> None:
            calls.append(arguments)

        def apply(self, image: Image.Image) -> Image.Image:
            return Image.new("RGB", image.size, (1, 2, 3))

    monkeypatch.setattr(reading.ImageCms, "buildTransform", Transform)
    picture = read_picture(encoded(Image.new("CMYK", (W, H)), "TIFF", icc_profile=SRGB))
    assert [arguments[2:] for arguments in calls] == [("CMYK", "RGB")] and (
        stored(picture) == (1, 2, 3)
    ).all()
    assert "by its color profile" in picture.notes[0] and picture.icc is None


def test_other_color_spaces_become_rgb() -> None:
    lab = Image.frombytes("LAB", (W, H), bytes([128, 0, 0]) * (W * H))  # neutral, half the lightness of white
    picture = read_picture(encoded(lab, "TIFF"))
    assert picture.mode == "LAB" and np.ptp(stored(picture), axis=2).max() <= 2
    assert abs(stored(picture).mean() - 119) < 3, "L* = 50 is about 119 in sRGB"
    rgbx = Image.frombytes("RGBX", (W, H), samples(4).tobytes())
    picture = read_picture(encoded(rgbx, "TIFF"))
    assert picture.alpha is None and (stored(picture) == samples(4)[..., :3]).all()
    ycbcr = Image.fromarray(np.full((H, W, 3), (200, 100, 50), np.uint8)).convert("YCbCr")
    picture = read_picture(encoded(ycbcr, "TIFF", compression="jpeg", quality=95))
    assert picture.mode in ("YCbCr", "RGB") and np.abs(stored(picture) - (200, 100, 50)).max() <= 2


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_of_many_pictures_is_used_and_the_others_are_noted(kind: str) -> None:
    frames = [Image.new("RGB", (W, H), color) for color in ("red", "green", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    picture = read_picture(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert np.abs(stored(picture) - (255, 0, 0)).max() <= 1
    assert "with 3 " in picture.notes[0] and picture.notes[0].endswith("the first one is used")


SIDES = {  # the sides of the picture at row 0 and column 0 of the file (EXIF 2.3, tag 274)
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def as_stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels of a file with this orientation."""
    first_row, first_column = SIDES[orientation]
    height, width, *channels = upright.shape
    shape = (height, width) if first_row in ("top", "bottom") else (width, height)
    result = np.empty((*shape, *channels), upright.dtype)
    for row, column in np.ndindex(*shape):
        at = {first_row: row, first_column: column}
        y = at["top"] if "top" in at else height - 1 - at["bottom"]
        x = at["left"] if "left" in at else width - 1 - at["right"]
        result[row, column] = upright[y, x]
    return result


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_of_all_exif_orientations_are_turned_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    shallow, deep = as_stored(samples(4), orientation), as_stored(samples(4, np.uint16), orientation)
    tag = [(274, "H", 1, orientation, True)]
    alpha = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
    cases = [
        (encoded(shallow, "PNG", exif=exif), samples(4)),
        (encoded(shallow, "WEBP", lossless=True, exact=True, exif=exif), samples(4)),
        (encoded(shallow, "TIFF", exif=exif), samples(4)),
        (handmade_png(deep, extra=chunk(b"eXIf", exif.tobytes()[6:])), samples(4, np.uint16)),
        (tiff(deep, extratags=tag, **alpha), samples(4, np.uint16)),
    ]
    for content, truth in cases:
        picture = read_picture(content)
        assert (stored(picture) == truth[..., :3]).all() and (picture.alpha == truth[..., 3]).all()
        assert any("upright" in note for note in picture.notes) == (orientation > 1)
    ramp = np.add.outer(np.arange(32) * 5, np.arange(48) * 2).astype(np.uint8)
    picture = read_picture(encoded(as_stored(ramp, orientation), "JPEG", quality=95, exif=exif))
    assert np.abs(stored(picture)[..., 0] - ramp.astype(int)).max() < 12


# Refusals


def refused(source: object, *words: str, name: str | None = "holiday.png", **options: object) -> None:
    with pytest.raises(ValueError) as caught:
        read_picture(source, name, **options)
    message = str(caught.value)
    assert "\n" not in message and "0x" not in message
    assert ("the image" if name is None else " ".join(name.replace("\0", " ").split())) in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "AVIF", "JPEG2000", "PPM"])
def test_a_truncated_file_is_refused_or_complete(kind: str) -> None:
    """If the pixels are truncated, no decoder may fill the rest with gray; only trailers may be missing."""
    ramp = np.add.outer(np.arange(H) * 9, np.arange(W) * 3).astype(np.uint8)
    content = encoded(np.stack([ramp, ramp.T.reshape(H, W), 255 - ramp], -1), kind)
    whole = read_picture(content).pixels
    for size in range(1, len(content), max(1, len(content) // 70)):
        try:
            picture = read_picture(content[:size], "cut")
        except ValueError as error:
            assert str(error).startswith("cut ") and "\n" not in str(error)
            if size > 4 and kind not in ("AVIF", "JPEG2000", "PPM"):
                assert "cannot be decoded" in str(error) and "truncated" in str(error)
        else:
            assert np.array_equal(picture.pixels, whole), f"{kind} cut at {size} of {len(content)}"


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_truncated_16_bit_file_is_refused_or_complete(channels: int) -> None:
    picture = from_array(samples(3, np.uint16)) if channels == 3 else None
    picture = picture or read_picture(handmade_png(samples(channels, np.uint16)))
    for suffix in (".png", ".tif"):
        content = picture.encode(suffix)
        for size in range(1, len(content), max(1, len(content) // 40)):
            try:
                cut = read_picture(content[:size], "cut")
            except ValueError as error:
                assert str(error).startswith("cut ") and "\n" not in str(error)
            else:
                assert np.array_equal(cut.pixels, picture.pixels), f"{suffix} cut at {size} of {len(content)}"


def test_files_that_are_not_pictures_are_refused_by_name() -> None:
    refused(b"", "empty", "zero bytes")
    refused(b"hello, world" * 99, "not an image", "PNG, JPEG")
    refused(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", "not an image")
    refused(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image")
    refused(b"\x89PNG\r\n\x1a\n" + bytes(99), "cannot be decoded", "PNG")
    refused(b"junk" * 9, "a b c is not an image", name="a\nb\0c")
    refused(b"junk" * 9, "the image is not an image", name=None)


def test_small_and_large_pictures_are_refused() -> None:
    refused(encoded(np.zeros((1, 1, 3), np.uint8), "PNG"), "1 x 1", "16")
    refused(encoded(np.zeros((99, 15), np.uint8), "PNG"), "15 x 99", "16")
    refused(tiff(np.zeros((15, 99), np.uint16), photometric="minisblack"), "99 x 15", "16")
    assert read_picture(encoded(np.zeros((16, 16), np.uint8), "PNG")).pixels.shape == (16, 16, 1)
    refused(encoded(np.zeros((20, 51), np.uint8), "PNG"), "51 x 20", "limit", max_pixels=1000)
    assert MAX_PIXELS == 12_000_000


@pytest.mark.parametrize("side", [4000, 10_000, 60_000, 2**31 - 1])
@pytest.mark.parametrize("depth", [8, 16])
def test_a_bomb_is_refused_by_its_header(side: int, depth: int) -> None:
    """Pillow only warns from 90 to 179 million pixels, and raises a different error above."""
    header = struct.pack(">IIBBBBB", side, side, depth, 2, 0, 0, 0)
    content = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )
    refused(content, f"has {side} x {side} = ", "limit is 12 million", "scale it down")


def test_a_damaged_tiff_is_reported_in_one_line_and_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    content = bytearray(tiff(np.zeros((40, 40), np.uint16), photometric="minisblack"))
    refused(bytes(content[:-900]), "truncated or damaged")
    first = struct.unpack("<I", content[4:8])[0]
    content[first + 2 : first + 2 + 12 * 5] = b"\xff" * 60  # five tags, the size among them
    refused(bytes(content), "truncated or damaged")
    assert not caplog.records


@pytest.mark.parametrize("bits", [8, 16])
def test_color_of_jpeg_2000_with_16_bits_is_read_with_8_and_noted(bits: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 2**bits, (32, 32, 3)).astype(f"u{bits // 8}")
    picture = read_picture(imagecodecs.jpeg2k_encode(pixels, codecformat="jp2", level=0))
    assert picture.depth == 8
    assert picture.notes == (("RGB of more than 8 bits per channel is read with 8",) if bits == 16 else ())


@pytest.mark.parametrize("bits", [8, 10])
def test_avif_with_10_bits_is_read_with_8_and_noted(bits: int) -> None:
    pixels = (
        np.random.default_rng(0)
        .integers(0, 2**bits, (32, 32, 3))
        .astype(np.uint8 if bits == 8 else np.uint16)
    )
    picture = read_picture(imagecodecs.avif_encode(pixels, bitspersample=bits))
    assert picture.notes == (("RGB of more than 8 bits per channel is read with 8",) if bits == 10 else ())


def test_paths_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        read_picture(tmp_path / "missing.png")
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        read_picture(tmp_path)
    with pytest.raises(OSError):
        read_picture("a\0b.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match=r"empty\.png is empty"):
        read_picture(tmp_path / "empty.png")
    if os.geteuid():
        (tmp_path / "empty.png").chmod(0)
        with pytest.raises(PermissionError, match=r"empty\.png"):
            read_picture(tmp_path / "empty.png")


def test_a_pipe_is_read() -> None:
    script = (
        "import sys; from sparsegen.pictures.reading import read_picture; "
        "print(read_picture('/dev/stdin').pixels.shape, 'torch' in sys.modules, 'imagecodecs' in sys.modules)"
    )
    content = encoded(samples(), "PNG")
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], input=content, capture_output=True)
    assert done.stdout.decode().strip() == f"({H}, {W}, 3) False False", done.stderr.decode()


def test_the_error_for_a_missing_library_of_16_bits_has_the_pip_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = handmade_png(samples(3, np.uint16))
    picture = read_picture(content)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(ImportError, match=r"pip install .*\[restore\]"):
        read_picture(content)
    with pytest.raises(ImportError, match=r"pip install .*\[restore\]"):
        check_suffix("x.png", picture)
    assert read_picture(encoded(samples(), "PNG")).depth == 8


def test_parallel_threads_read_pictures_and_do_not_change_the_warnings() -> None:
    files = [encoded(samples(3, seed=seed), "PNG") for seed in range(32)]
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        for seed, picture in enumerate(pool.map(read_picture, files)):
            assert (stored(picture) == samples(3, seed=seed)).all()
    assert list(warnings.filters) == before


# Fuzz


def seeds() -> dict[str, bytes]:
    """A file of every kind that is read."""
    color = Image.fromarray(samples())
    kinds = ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "AVIF", "JPEG2000", "PPM", "TGA", "PCX", "SGI"]
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = samples(4, np.uint16)
    options = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
    return {kind: encoded(color, kind) for kind in kinds} | {
        "PNG 16": handmade_png(deep, interlaced=True),
        "PNG palette": encoded(color.quantize(8), "PNG", transparency=1, icc_profile=SRGB),
        "JPEG EXIF": encoded(color, "JPEG", exif=exif, progressive=True, icc_profile=SRGB),
        "JPEG CMYK": encoded(color.convert("CMYK"), "JPEG", icc_profile=SRGB),
        "GIF animated": encoded(color, "GIF", save_all=True, append_images=[color.rotate(90)]),
        "APNG": encoded(color, "PNG", save_all=True, append_images=[color.rotate(90)]),
        "TIFF 16": tiff(deep, **options),
        "TIFF zlib": tiff(deep, compression="zlib", predictor=True, tile=(16, 16), **options),
        "TIFF LZW": encoded(color, "TIFF", compression="tiff_lzw", exif=exif),
        "TIFF float": tiff((deep / 65535).astype(np.float32), **options),
    }


SEEDS = seeds()


def read_or_refused(content: bytes) -> None:
    try:
        picture = read_picture(content, "fuzz")
    except (ValueError, OSError) as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert picture.pixels.dtype == np.float32 and picture.pixels.shape[2] in (1, 3)
        assert picture.pixels.min() >= 0 and picture.pixels.max() <= 1
        assert picture.alpha is None or picture.alpha.shape == picture.pixels.shape[:2]
        assert picture.encode(".png")[:4] == b"\x89PNG"


@QUICK
@given(st.sampled_from([b"", *reading.MAGIC]), st.binary(max_size=300))
def test_random_bytes_are_refused(magic: bytes, tail: bytes) -> None:
    read_or_refused(magic + tail)


@settings(QUICK, max_examples=300)
@given(st.sampled_from(sorted(SEEDS)), st.data())
def test_a_damaged_file_is_read_or_refused(kind: str, data: st.DataObject) -> None:
    content = bytearray(SEEDS[kind])
    near = st.integers(0, min(len(content), 400) - 1) | st.integers(
        0, len(content) - 1
    )  # most errors are in headers
    for at in data.draw(st.lists(near, min_size=1, max_size=4)):
        content[at] = data.draw(st.integers(0, 255))
    read_or_refused(bytes(content))


@QUICK
@given(st.sampled_from(sorted(SEEDS)), st.data())
def test_a_file_with_missing_bytes_is_read_or_refused(kind: str, data: st.DataObject) -> None:
    content = SEEDS[kind]
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(content))] * 2)))
    read_or_refused(content[:start] + content[stop:])


# Writing


WITHOUT_LOSS = [
    (suffix, dtype, channels)
    for suffix in (".png", ".tif", ".TIFF")
    for dtype in (np.uint8, np.uint16)
    for channels in (1, 2, 3, 4)
]


@pytest.mark.parametrize("icc", [None, SRGB])
@pytest.mark.parametrize(
    ("suffix", "dtype", "channels"), [*WITHOUT_LOSS, (".webp", np.uint8, 3), (".webp", np.uint8, 4)]
)
def test_a_written_picture_is_read_bit_for_bit(
    tmp_path: Path, channels: int, dtype: type, suffix: str, icc: bytes | None
) -> None:
    gray = channels < 3
    icc = SRGB[:16] + b"GRAY" + SRGB[20:] if icc and gray else icc  # only its color space field is read
    array = cube(samples(channels, dtype))
    pixels = (array[..., : 1 if gray else 3] / np.iinfo(dtype).max).astype(np.float32)
    alpha = array[..., -1] if channels in (2, 4) else None
    picture = Picture(pixels, alpha, 8 * array.itemsize, "gray" if gray else "RGB", icc=icc)
    path = tmp_path / "new" / f"out{suffix}"
    write_picture(path, picture)
    back = read_picture(path)
    assert np.array_equal(back.pixels, pixels) and (back.depth, back.mode) == (picture.depth, picture.mode)
    assert (back.alpha is None) == (alpha is None) and np.array_equal(back.alpha, alpha)
    assert back.icc == icc
    assert [child.name for child in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_16_bit_png_follows_the_standard(channels: int) -> None:
    array = samples(channels, np.uint16)
    content = read_picture(handmade_png(array, extra=icc_chunk(channels))).encode(".png")
    chunks, back = handread_png(content)
    assert (back == cube(array)).all()
    assert zlib.decompress(chunks[b"iCCP"].split(b"\0", 2)[2]) == icc_for(channels)
    with Image.open(io.BytesIO(content)) as image:
        assert image.info["icc_profile"] == icc_for(channels)


def icc_for(channels: int) -> bytes:
    return SRGB[:16] + (b"GRAY" if channels < 3 else b"RGB ") + SRGB[20:]


def icc_chunk(channels: int) -> bytes:
    return chunk(b"iCCP", b"x\0\0" + zlib.compress(icc_for(channels)))


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_keeps_gray_and_full_color_resolution(tmp_path: Path, channels: int) -> None:
    ramp = np.add.outer(np.arange(64) * 2, np.arange(48) * 2).astype(np.uint8)
    array = ramp if channels == 1 else np.stack([ramp, 255 - ramp, ramp // 2], -1)
    write_picture(tmp_path / "x.jpg", from_array(array))
    with Image.open(tmp_path / "x.jpg") as image:
        assert image.mode == ("L" if channels == 1 else "RGB")
        if channels == 3:
            assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3, "4:4:4"
        assert np.abs(np.asarray(image).astype(int) - array).max() <= 4


def test_a_format_that_cannot_hold_the_picture_is_refused_before_the_work(tmp_path: Path) -> None:
    clear, deep = from_array(samples(4)), from_array(samples(3, np.uint16))
    with pytest.raises(ValueError, match=r"x\.jpg: JPEG holds no alpha.*write \.png"):
        check_suffix("x.jpg", clear)
    with pytest.raises(ValueError, match=r"x\.JPEG: JPEG holds 8 bits.*has 16; write \.png"):
        check_suffix("x.JPEG", deep)
    with pytest.raises(ValueError, match="WebP holds 8 bits"):
        deep.encode(".webp")
    for path in ("x", "x.gif", "folder.png/x", ".gif", ""):
        with pytest.raises(ValueError, match=r"ends in none of \.png, \.tif"):
            check_suffix(path, clear)
    with pytest.raises(ValueError, match=r"16383 pixels per side; got 20000 x 16"):
        check_suffix("x.webp", from_array(np.zeros((16, 20_000), np.uint8)))
    with pytest.raises(ValueError, match="no alpha"):
        write_picture(tmp_path / "x.jpg", clear)
    assert not list(tmp_path.iterdir())
    for path in ("x.png", Path("a/x.TIF"), "x.webp", ".png"):
        check_suffix(path, clear)


def test_a_full_disk_does_not_change_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "x.png").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"x\.png"):
        write_picture(tmp_path / "x.png", from_array(samples()))
    assert (tmp_path / "x.png").read_bytes() == b"old"


def test_a_profile_of_other_colors_is_dropped() -> None:
    gray = read_picture(encoded(samples(1), "PNG", icc_profile=SRGB))
    assert gray.icc is None
    assert read_picture(encoded(samples(3), "JPEG", icc_profile=SRGB)).icc == SRGB


# Restored pixels


def test_restored_pixels_replace_the_old_ones_and_alpha_is_kept() -> None:
    picture = read_picture(handmade_png(samples(4, np.uint16)))
    restored = picture.with_pixels(1 - picture.pixels)
    assert restored.alpha is picture.alpha and restored.depth == 16
    _, back = handread_png(restored.encode())
    assert np.array_equal(back[..., :3], 65535 - samples(4, np.uint16)[..., :3])
    assert np.array_equal(back[..., 3], samples(4, np.uint16)[..., 3])
    beyond = picture.with_pixels(np.full((H, W, 3), 1.25))
    assert beyond.pixels.dtype == np.float32 and beyond.pixels.max() == 1
    with pytest.raises(ValueError, match=r"\(H, W, 3\); got \(18, 21, 1\)"):
        picture.with_pixels(np.zeros((H, W, 1)))
    with pytest.raises(ValueError, match="2 of 1134 values of the restored picture are NaN"):
        broken = picture.pixels.copy()
        broken[0, 0, :2] = np.nan
        picture.with_pixels(broken)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_alpha_is_enlarged_with_the_picture(dtype: type) -> None:
    white = 1 if dtype is np.float32 else np.iinfo(dtype).max
    array = np.zeros((H, W, 4), dtype)
    array[:, W // 2 :, 3] = white
    grown = from_array(array).with_pixels(np.zeros((2 * H, 3 * W, 3), np.float32))
    assert grown.alpha.shape == (2 * H, 3 * W) and grown.alpha.dtype == dtype
    assert (grown.alpha[:, : W // 2 * 3 - 6] == 0).all() and (grown.alpha[:, W // 2 * 3 + 6 :] == white).all()
    assert read_picture(grown.encode()).alpha.shape == (2 * H, 3 * W)


# Arrays

DTYPES = [np.uint8, np.uint16, np.float16, np.float32, np.float64]


@QUICK
@given(st.data())
def test_an_array_is_converted_to_a_picture_and_back(data: st.DataObject) -> None:
    dtype = np.dtype(data.draw(st.sampled_from(DTYPES)))
    shape = data.draw(st.sampled_from([(16, 17), (17, 16, 1), (16, 16, 3), (18, 16, 4)]))
    elements = {"min_value": 0, "max_value": 1} if dtype.kind == "f" else None
    array = data.draw(hnp.arrays(dtype, shape, elements=elements))
    picture = from_array(array)
    back = to_array(picture, array)
    assert back.dtype == array.dtype and back.shape == array.shape
    exact = array.astype(np.float32).astype(dtype) if dtype == np.float64 else array
    assert np.array_equal(
        back[..., :3] if len(shape) == 3 else back, exact[..., :3] if len(shape) == 3 else exact
    )
    if len(shape) == 3 and shape[2] == 4:
        assert np.array_equal(back[..., 3], array[..., 3]) and picture.alpha.dtype == dtype
    assert picture.pixels.shape == (*shape[:2], 1 if len(shape) == 2 or shape[2] == 1 else 3)


def test_integers_are_rounded_to_the_nearest() -> None:
    array = np.full((16, 16, 3), 100, np.uint8)
    picture = from_array(array)
    assert (to_array(picture.with_pixels(np.full((32, 16, 3), 100.6 / 255)), array) == 101).all()
    with pytest.raises(ValueError, match=r"\(16, 16, 3\).*\(16, 16\)"):
        to_array(picture, array[..., 0])


def test_changes_of_the_picture_do_not_change_the_array() -> None:
    array = np.zeros((16, 16, 4), np.float32)
    picture = from_array(array)
    picture.pixels[:] = picture.alpha[:] = 1
    assert (array == 0).all()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 32, 32), np.uint8), ["(3, 32, 32)", "channels come first", "transpose(1, 2, 0)"]),
        (np.zeros((32, 32, 2), np.uint8), ["(H, W, 3)", "(32, 32, 2)"]),
        (np.zeros((1, 32, 32, 3), np.uint8), ["(H, W, 4)", "(1, 32, 32, 3)"]),
        (np.zeros(32, np.uint8), ["(32,)"]),
        (np.zeros((0, 0, 3), np.uint8), ["0 x 0", "16"]),
        (np.zeros((15, 32, 3), np.uint8), ["32 x 15", "16"]),
        (np.zeros((4000, 4000), np.uint8), ["16 million", "12 million"]),
        (np.zeros((32, 32), bool), ["bool", "uint8, uint16 or floats"]),
        (np.zeros((32, 32), np.int64), ["int64"]),
        (np.zeros((32, 32), complex), ["complex128"]),
        (np.zeros((32, 32), object), ["object"]),
        ([[0.5]], ["list", "numpy.asarray"]),
        (np.full((32, 32, 3), 255.0), ["got 255 to 255", "divide by", "255"]),
        (np.full((32, 32, 3), -1.0), ["got -1 to -1"]),
        (np.where(np.eye(32) > 0, np.nan, 0.5), ["32 of 1024 values", "NaN"]),
        (np.where(np.eye(32) > 0, np.inf, 0.5), ["32 of 1024 values", "infinite"]),
    ],
)
def test_an_array_that_is_not_a_picture_is_refused(array: np.ndarray, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        from_array(array, "img")
    assert "\n" not in str(caught.value)
    for word in ("img", *words):
        assert word in str(caught.value)
