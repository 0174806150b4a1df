"""JPEG files: the cells of their coefficients, and the restoration that stays in them."""

import io
from collections.abc import Callable
from pathlib import Path

import jpeglib
import numpy as np
import pytest
from commands import assert_refused
from conftest import ROOT
from PIL import Image
from scipy.fft import dctn

import sparsegen
from sparsegen.pictures.jpeg import Cells, read_cells
from sparsegen.pictures.orientation import stored, upright
from sparsegen.pictures.reading import read_picture
from sparsegen.restoration.operators import Jpeg
from sparsegen.restoration.settings import Task

SET9 = ROOT.parent / "shared" / "data" / "set9"
FORMS = {
    "4:2:0": {},
    "4:2:2": {"subsampling": 1},
    "4:4:4": {"subsampling": 0},
    "progressive": {"progressive": True},
}


def picture(height: int = 45, width: int = 61, channels: int = 3) -> np.ndarray:
    """Waves with little noise: not a multiple of the blocks."""
    y, x = np.mgrid[:height, :width] / 9
    waves = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], -1)[..., :channels]
    noise = np.random.default_rng(0).normal(0, 6, waves.shape)
    return np.clip(np.rint(128 + 90 * waves + noise), 0, 255).astype(np.uint8).squeeze()


def encoded(pixels: np.ndarray, quality: int = 20, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, **options)
    return buffer.getvalue()


def luminance_coefficients(image: np.ndarray) -> np.ndarray:
    """The coefficients of the complete blocks of the luminance, by scipy."""
    gray = image[..., 0] if image.shape[2] == 1 else image @ np.array([0.299, 0.587, 0.114])
    rows, columns = (side // 8 for side in gray.shape)
    blocks = 255 * gray[: rows * 8, : columns * 8].reshape(rows, 8, columns, 8).swapaxes(1, 2) - 128
    return dctn(blocks, axes=(2, 3), norm="ortho")


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_original_is_in_the_cells_and_the_projection_of_any_picture_too(
    options: dict, channels: int
) -> None:
    pixels = picture(channels=channels)
    cells = read_cells(encoded(pixels, **options))
    assert cells.shape == (45, 61) and len(cells.components) == channels
    original = (pixels / 255).astype(np.float32).reshape(45, 61, channels)
    # Encoders round the colors and use integer transforms: an error of a few gray levels in a coefficient at a border.
    assert np.abs(cells.project(original) - original).max() < 3 / 255
    other = np.random.default_rng(1).random(original.shape, np.float32)
    moved = cells.project(other)
    whole = np.s_[:32, :48]  # blocks that the border does not cut
    assert np.abs(cells.project(moved) - moved)[whole].max() < 1e-5  # a projection
    middle = cells.project(other, width=1e-9)
    for near, share in ((moved, 0.5), (middle, 0.0)):
        found = luminance_coefficients(near)
        component = cells.components[0]
        rows, columns = found.shape[:2]
        steps = (found / component.table - component.coefficients[:rows, :columns])[:5, :7]
        assert np.abs(steps).max() <= share + 1e-3


def test_the_projection_is_the_nearest_picture_in_the_cells() -> None:
    """By the criterion of convex sets: no picture in the set lies in the direction that was removed."""
    rng = np.random.default_rng(2)
    cells = read_cells(encoded(picture(48, 64), subsampling=0))
    other = rng.random((48, 64, 3), np.float32)
    matrix = np.array(
        [[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]]
    )
    moved = cells.project(other) @ matrix.T  # nearest in YCbCr
    for _ in range(20):
        inside = cells.project(rng.random((48, 64, 3), np.float32)) @ matrix.T
        assert ((other @ matrix.T - moved) * (inside - moved)).sum() <= 1e-3


def test_the_coefficients_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "it.jpg").write_bytes(encoded(picture()))
    cells, found = read_cells(tmp_path / "it.jpg"), jpeglib.read_dct(str(tmp_path / "it.jpg"))
    for component, plane, table in zip(
        cells.components, (found.Y, found.Cb, found.Cr), (0, 1, 1), strict=True
    ):
        assert np.array_equal(component.coefficients, plane) and np.array_equal(
            component.table, found.qt[table]
        )
    assert [(each.down, each.across) for each in cells.components] == [(1, 1), (2, 2), (2, 2)]
    with Image.open(tmp_path / "it.jpg") as image:
        assert cells.components[0].table.ravel()[:3].tolist() == list(image.quantization[0])[:3]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_cells_are_those_of_the_upright_picture(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    pixels = picture()
    turned = read_picture(encoded(pixels, exif=exif), cells=True)
    plain = read_picture(encoded(pixels), cells=True)
    assert turned.cells is not None and plain.cells is not None
    assert turned.cells.shape == turned.pixels.shape[:2]
    np.testing.assert_array_equal(turned.pixels, upright(plain.pixels, orientation))
    np.testing.assert_array_equal(stored(turned.pixels, orientation), plain.pixels)
    other = np.random.default_rng(3).random(plain.pixels.shape, np.float32)
    moved = turned.cells.project(np.ascontiguousarray(upright(other, orientation)))
    np.testing.assert_array_equal(moved, upright(plain.cells.project(other), orientation))


@pytest.mark.skipif(not SET9.is_dir(), reason="needs the denoising pictures in ../shared")
@pytest.mark.parametrize("quality", [10, 40])
def test_a_picture_is_nearer_to_the_original_and_in_the_cells(quality: int) -> None:
    with Image.open(SET9 / "house.png") as image:
        pixels = np.asarray(image.convert("RGB"))[64:160, 64:160]
    file = encoded(pixels, quality)
    given = read_picture(file, cells=True)
    result = sparsegen.restore(
        np.rint(255 * given.pixels).astype(np.uint8), Jpeg(given.cells), preset="quick"
    )
    gained = psnr(result.image, pixels) - psnr(255 * given.pixels, pixels)
    assert gained > 0.7  # 0.9 and 1.2 dB were measured
    moved = given.cells.project((result.image / 255).astype(np.float32))
    assert np.abs(255 * moved - result.image).max() < 6  # clipped to [0, 255], rounded
    assert jumps(result.image) < 1.15 < jumps(255 * given.pixels)


def psnr(image: np.ndarray, other: np.ndarray) -> float:
    return float(-10 * np.log10(np.square(image / 255.0 - other / 255.0).mean()))


def jumps(image: np.ndarray) -> float:
    """The mean difference of neighbors across the borders of blocks, as a multiple of that within blocks."""
    steps = np.abs(np.diff(image.astype(float), axis=1)).mean((0, 2))
    across = np.arange(1, len(steps) + 1) % 8 == 0
    return float(steps[across].mean() / steps[~across].mean())


def test_files_without_usable_cells_are_refused_in_one_sentence(tmp_path: Path) -> None:
    good = encoded(picture())
    table = good.index(b"\xff\xdb") + 5
    zeros = good[:table] + bytes(64) + good[table + 64 :]
    for content, says in (
        (b"", "empty"),
        (b"\x89PNG" + bytes(99), "damaged"),
        (encoded_as(picture(), "PNG"), "is not a JPEG file"),
        (encoded_as(picture(), "JPEG", mode="CMYK"), "the colors CMYK: only gray and YCbCr"),
        (zeros, "steps of 0"),
        (good[: len(good) // 2], "truncated|damaged"),
    ):
        with pytest.raises(ValueError, match=says):
            read_picture(content, "it", cells=True)
    with pytest.raises(
        ValueError, match=r"the shape \(45, 61, 3\), that of the JPEG file; got \(45, 61, 1\)"
    ):
        read_cells(good).project(np.zeros((45, 61, 1), np.float32))
    with pytest.raises(ValueError, match="read with its cells"):
        sparsegen.restoration.restore.run(Task.of(kind="dejpeg", preset="quick"), read_picture(good))
    with pytest.raises(ValueError, match="dejpeg has no preset fast: use the preset quick"):
        Task.of(kind="dejpeg")


def encoded_as(pixels: np.ndarray, form: str, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, form)
    return buffer.getvalue()


def test_the_command_undoes_the_compression_of_files(sparsegen: Callable, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    (tmp_path / "photo.jpg").write_bytes(encoded(picture(), exif=exif))
    (tmp_path / "gray.jpg").write_bytes(encoded(picture(channels=1)))
    (tmp_path / "drawn.png").write_bytes(encoded_as(picture(), "PNG"))
    done = sparsegen(
        "dejpeg", tmp_path / "photo.jpg", tmp_path / "gray.jpg", "--out", tmp_path / "clean", "--compare"
    )
    assert done.returncode == 0, done.stderr
    assert "8 rounds are done" in done.stdout and "EXIF orientation 6: turned upright" in done.stdout
    made = [np.asarray(Image.open(tmp_path / "clean" / name)) for name in ("photo.jpg", "gray.jpg")]
    assert made[0].shape == (61, 45, 3) and made[1].shape == (45, 61)
    given = read_picture(tmp_path / "photo.jpg").pixels
    assert 0.5 < np.abs(made[0] - 255 * given).mean() < 20
    refused = sparsegen("dejpeg", tmp_path / "drawn.png", "--out", tmp_path / "x.png")
    assert_refused(refused, "is not a JPEG file: its compression cannot be undone; use denoise instead")
    for option in (("--preset", "fast"), ("--iterations", "5"), ("--regularizer", "l0")):
        refused = sparsegen("dejpeg", tmp_path / "gray.jpg", "--out", tmp_path / "x.png", *option)
        assert_refused(refused, "quick" if option[0] == "--preset" else "fits no network")


def test_a_set_of_cells_states_its_noise() -> None:
    sigmas = [read_cells(encoded(picture(), quality)).sigma for quality in (10, 20, 40)]
    assert sigmas == pytest.approx([28, 18.5, 12], abs=0.6)
    assert isinstance(read_cells(encoded(picture())), Cells)
