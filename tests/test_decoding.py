"""Images of any kind are decoded to upright RGB squares."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pictures import encoded, noise, png
from sparsegen.pictures.squares import decode


def opened(stored, size=32):
    """The decoded pixels, (H, W, 3)."""
    return decode(stored, size)[0].transpose(1, 2, 0).astype(int)


def halves(left, right, mode, size=(32, 32)):
    image = Image.new(mode, size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def test_gray_and_bilevel_images_become_rgb() -> None:
    pixels = opened(encoded(halves(10, 200, "L")))
    assert (pixels[:, :16] == 10).all() and (pixels[:, 16:] == 200).all()
    pixels = opened(encoded(halves(0, 1, "1")))
    assert (pixels[:, :16] == 0).all() and (pixels[:, 16:] == 255).all()


def test_16_bit_gray_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 32).astype(np.uint16)[None].repeat(32, 0)
    for kind in "PNG", "TIFF":
        pixels = opened(encoded(Image.fromarray(ramp), kind))
        assert np.abs(pixels - ramp[..., None] / 257).max() <= 0.5 + 1e-9


def test_transparent_pixels_become_white_and_half_transparent_ones_half():
    image = halves((255, 0, 0, 0), (0, 0, 255, 128), "RGBA")
    for kind in "PNG", "WEBP":
        pixels = opened(encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
        assert (pixels[:, :16] == 255).all()
        assert np.abs(pixels[:, 16:] - [127, 127, 255]).max() <= 1
    pixels = opened(encoded(halves((0, 0), (50, 255), "LA")))
    assert (pixels[:, :16] == 255).all() and (pixels[:, 16:] == 50).all()


def test_palettes_become_their_colors_and_their_transparent_entry_white():
    image = halves(0, 1, "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    assert (opened(encoded(image))[0, [0, 31]] == [[10, 20, 30], [40, 50, 60]]).all()
    pixels = opened(encoded(image, transparency=0))
    assert (pixels[0, [0, 31]] == [[255, 255, 255], [40, 50, 60]]).all()


def test_cmyk_is_converted():
    image = halves((255, 0, 0, 0), (0, 0, 0, 255), "CMYK")  # cyan, black
    pixels = opened(encoded(image, "JPEG", quality=100))
    assert np.abs(pixels[:, 4:12] - [0, 255, 255]).max() <= 4 and pixels[:, 20:28].max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright_by_their_exif_orientation(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = np.zeros((32, 32, 3), np.uint8)
    upright[:16, :16] = 255, 0, 0  # red at the top left of the scene
    upright[:16, 16:] = 0, 255, 0
    turned = {  # how the camera stores the scene (EXIF 2.3, tag 274)
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    stored = encoded(
        Image.fromarray(np.ascontiguousarray(turned)), "JPEG", quality=100, subsampling=0, exif=exif
    )
    assert np.abs(opened(stored) - upright.astype(int)).max() <= 4


def test_an_image_with_a_damaged_exif_block_is_decoded() -> None:
    stored = encoded(
        Image.fromarray(noise(0)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(range(40))
    )
    assert opened(stored).shape == (32, 32, 3)


def test_the_first_frame_of_an_animation_is_decoded() -> None:
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "lime")]
    for kind in "GIF", "WEBP", "PNG":
        options = {"lossless": True} if kind == "WEBP" else {}
        stored = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert (opened(stored) == [255, 0, 0]).all()


def test_the_center_square_is_unchanged_if_the_shorter_side_fits() -> None:
    wide, tall = noise(0, 32, 50), noise(1, 50, 32)
    np.testing.assert_array_equal(opened(encoded(Image.fromarray(wide))), wide[:, 9:41])
    np.testing.assert_array_equal(opened(encoded(Image.fromarray(tall), "BMP")), tall[9:41])


def test_resizing_is_antialiased_and_keeps_proportions():
    stripes = np.zeros((256, 512, 3), np.uint8)
    stripes[:, ::2] = 255  # too fine for 32 pixels: the result is their mean, not a moiré of black and white
    assert np.abs(opened(encoded(Image.fromarray(stripes))) - 127.5).max() <= 4
    disc = np.hypot(*np.mgrid[-64:64, -128:128]) < 32
    pixels = opened(encoded(Image.fromarray(disc.astype(np.uint8) * 255)))[..., 0]
    across, down = pixels[16].sum(), pixels[:, 16].sum()
    assert abs(across - down) <= 0.05 * down, "a disc stays a disc"
    assert abs(pixels.sum() / 255 - np.pi * 8**2) < 0.03 * np.pi * 8**2
    flat = opened(encoded(Image.new("RGB", (5, 7), (1, 2, 3))), size=16)
    assert flat.shape == (16, 16, 3) and (flat == [1, 2, 3]).all()


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (1, 2**31 - 1)])
def test_decompression_bombs_are_refused_before_they_are_decoded(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in ((b"IHDR", header), (b"IDAT", b"\0"))
    ]
    with pytest.raises(ValueError, match="pixels.*bomb"):
        decode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks), 32)


def test_an_extremely_narrow_image_does_not_grow_when_its_short_side_is_resized(monkeypatch):
    stored = encoded(Image.new("L", (1, 50_000), 7))
    resize, sizes = Image.Image.resize, []

    def spy(image, size, *more):
        sizes.append(size)
        return resize(image, size, *more)

    monkeypatch.setattr(Image.Image, "resize", spy)
    assert (opened(stored, size=64) == 7).all()
    assert sizes == [(64, 64)]


def test_pixels_without_a_known_range_are_skipped():
    with pytest.raises(ValueError, match="floating-point"):
        opened(encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"))


@pytest.mark.parametrize(
    ("file", "why"),
    [
        (b"", "not an image"),
        (b"<html>404</html>", "not an image"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "not an image",
        ),  # Pillow would run Ghostscript
        (png(0)[:500], "runcated"),
        (encoded(Image.fromarray(noise(0)), "JPEG")[:300], "runcated"),
    ],
)
def test_the_error_for_an_undecodable_file_has_the_reason(file: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        decode(file, 32)
    assert "0x" not in str(caught.value), "no addresses of Python objects"
