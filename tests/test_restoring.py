"""The commands that restore pictures: their output, files and errors."""
# ruff: noqa: F811, since pytest finds an imported fixture by the name of an argument

import csv
import errno
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import CLI, assert_refused
from conftest import ROOT
from PIL import Image
from rich.console import Console

from sparsegen.cli import console
from sparsegen.common.interrupt import stop_on_interrupt
from sparsegen.pictures.picture import Picture, from_array
from sparsegen.pictures.reading import read_picture
from sparsegen.restoration import batch, restore, results, tiles
from sparsegen.restoration.fit import Progress
from sparsegen.restoration.settings import Task, rename_settings
from sparsegen.restoration.tiles import TiledProgress, run_tiled

SIDE = 64
FEW = ("--iterations", 10)
WAVE = np.hypot(*np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j])[..., None] * (0.2, 0.5, 0.7)
NOISY = np.clip(WAVE + 0.1 * np.random.default_rng(0).standard_normal(WAVE.shape), 0, 1)
BOX = np.ones((3, 5), np.float32)


def save(path: Path, values: np.ndarray) -> Path:
    """Writes floats in [0, 1] with 8 bits."""
    Image.fromarray(np.rint(255 * values).astype(np.uint8)).save(path)
    return path


@pytest.fixture(autouse=True)
def no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disables lines of progress, which these few iterations may reach on a busy machine."""
    monkeypatch.setattr(console, "LINE_EVERY", np.inf)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A noisy picture with masks, kernels, and broken files."""
    folder = tmp_path / "given"
    folder.mkdir()
    save(folder / "noisy.png", NOISY)
    save(folder / "clean.png", WAVE)
    mask = np.zeros((SIDE, SIDE))
    mask[20:30, 20:50] = 1
    save(folder / "mask.png", mask)
    np.save(folder / "box.npy", BOX)
    save(folder / "box.png", np.pad(BOX, ((8, 8), (8, 8))))
    (folder / "broken.png").write_bytes((folder / "noisy.png").read_bytes()[:300])
    (folder / "words.txt").write_text("words")
    few = np.ones((SIDE, SIDE))
    few[:3, :3] = 0
    save(folder / "few.png", few)
    np.save(folder / "negative.npy", -BOX)
    header = {"descr": "<f4", "fortran_order": False, "shape": (999_999, 999_999)}
    with (folder / "terabytes.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def expected(folder: Path, *others: Picture | None, **task: object) -> Picture:
    return restore.run(Task.of(**task), read_picture(folder / "noisy.png"), *others).image


@pytest.mark.parametrize(
    ("command", "task"),
    [
        (("denoise", "--sigma", 25, "--seed", 3), {"sigma": 25, "seed": 3}),
        (("denoise", "--loss", "l1", "--regularizer", "l0", "--density", 0.5),
         {"loss": "l1", "regularizer": "l0", "density": 0.5}),
        (("inpaint", "--mask", "mask.png"), {"kind": "inpaint"}),
        (("upscale", "--by", 2), {"kind": "upscale", "by": 2}),
        (("deblur", "--kernel", "gaussian:1.6"), {"kind": "deblur", "kernel": "gaussian:1.6"}),
        (("deblur", "--kernel", "box.npy"), {"kind": "deblur", "kernel": "file"}),
        (("deblur", "--kernel", "box.png"), {"kind": "deblur", "kernel": "file"}),
    ],
)  # fmt: skip
def test_a_command_writes_the_result_of_python(
    sparsegen: CLI,
    folder: Path,
    tmp_path: Path,
    command: tuple,
    task: dict,
) -> None:
    given = [folder / part if str(part).endswith((".png", ".npy")) else part for part in command]
    done = sparsegen(*given, folder / "noisy.png", "--out", tmp_path / "out.png", *FEW)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(
        r"\S+/out\.png: all 10 iterations are done; iteration \d+ of 10, [\d.]+ s\n", done.stdout
    )
    mask = read_picture(folder / "mask.png") if command[0] == "inpaint" else None
    own = expected(folder, mask, Picture(BOX[..., None]), **task, iterations=10)
    restored = read_picture(tmp_path / "out.png")
    assert restored.pixels.shape == own.pixels.shape
    assert np.abs(restored.pixels - own.pixels).max() <= 0.51 / 255
    assert [path.name for path in tmp_path.iterdir() if path != folder] == ["out.png"]


def test_the_clean_picture_is_for_measurement_and_does_not_change_the_result(
    sparsegen: CLI,
    folder: Path,
    tmp_path: Path,
) -> None:
    command = ("denoise", folder / "noisy.png", "--iterations", 2, "--out")
    assert sparsegen(*command, tmp_path / "a.png").returncode == 0
    done = sparsegen(*command, tmp_path / "b.png", "--clean", folder / "clean.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    said = re.search(r"PSNR ([\d.]+) -> ([\d.]+) dB, SSIM ([\d.]+) -> ([\d.]+)", done.stdout).groups()
    clean, noisy, restored = (
        read_picture(path).pixels.astype(float)
        for path in (folder / "clean.png", folder / "noisy.png", tmp_path / "b.png")
    )
    for text, other in zip(said, (noisy, restored), strict=False):
        assert float(text) == pytest.approx(-10 * np.log10(np.mean((other - clean) ** 2)), abs=0.02)
    assert all(0 < float(text) < 1 for text in said[2:])


def test_a_tiled_picture_is_the_result_of_run_tiled(
    sparsegen: CLI,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(console, "LINE_EVERY", 0)
    wide = save(folder / "wide.png", np.hstack([NOISY, NOISY[:, :20]]))
    done = sparsegen("denoise", wide, "--out", folder / "o.png", "--tile", SIDE, "--workers", 1, "--preview",
                     "--history", folder / "h.csv", *FEW)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"wide.png: \d/2 tiles, iteration \d+ ", done.stderr)
    own = run_tiled(Task.of(iterations=10), read_picture(wide), tile=SIDE, overlap=SIDE // 3).image
    assert np.abs(read_picture(folder / "o.png").pixels - own.pixels).max() <= 0.51 / 255
    assert len((folder / "h.csv").read_text().splitlines()) == 3


def test_a_sigma_without_effect_gives_a_warning(
    sparsegen: CLI,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch, "restore_one", lambda *_: None)
    command = ("denoise", folder / "noisy.png", "--out", folder / "o.png", "--sigma", 25)
    assert sparsegen(*command).stderr == ""
    for more in (("--preset", "paper"), ("--loss", "l1")):
        assert sparsegen(*command, *more).stderr.startswith("--sigma has no effect here")


def test_the_old_name_of_ensemble_works_with_a_warning(
    sparsegen: CLI, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = []
    monkeypatch.setattr(batch, "restore_one", lambda job, work, *_: tasks.append(work.task))
    command = ("denoise", folder / "noisy.png", "--out", folder / "o.png")
    assert sparsegen(*command, "--ensemble", 3).stderr == ""
    assert sparsegen(*command, "--members", 3).stderr.startswith("--members is now called --ensemble; ")
    assert tasks == [Task.of(ensemble_size=3)] * 2
    assert_refused(sparsegen(*command, "--members", 3, "--ensemble", 3), "give --ensemble only")


def test_old_names_of_settings_are_replaced_with_a_warning() -> None:
    assert rename_settings({"ensemble_size": 3, "seed": 1}) == ({"ensemble_size": 3, "seed": 1}, [])
    settings, (warning,) = rename_settings({"members": 3, "seed": 1})
    assert settings == {"ensemble_size": 3, "seed": 1} and "members is now called ensemble_size" in warning
    with pytest.raises(ValueError, match="both are given"):
        rename_settings({"members": 3, "ensemble_size": 3})


def test_equal_pictures_have_an_infinite_psnr() -> None:
    picture = from_array(WAVE)
    assert results.measures(picture, picture, picture) == "PSNR inf -> inf dB, SSIM 1.000 -> 1.000"


BAD = [
    (("denoise", "nowhere.png"), "nowhere.png"),
    (("denoise", "broken.png"), "truncated or damaged"),
    (("denoise", "words.txt"), "is not an image"),
    (("denoise", "."), "is a folder: give the pictures in it"),
    (("denoise",), "IN"),
    (("denoise", "noisy.png", "--sigma", -1), "0 to 255; got -1"),
    (("denoise", "noisy.png", "--sigma", "nan"), "got nan"),
    (("denoise", "noisy.png", "--preset", "fats"), "got 'fats'"),
    (("denoise", "noisy.png", "--regularizer", "l2"), "got 'l2'"),
    (("denoise", "noisy.png", "--loss", "l3"), "got 'l3'"),
    (("denoise", "noisy.png", "--density", 2), "got 2"),
    (("denoise", "noisy.png", "--density", 0.5, "--regularizer", "l1"), "has no density"),
    (("denoise", "noisy.png", "--seed", -1), "got -1"),
    (("denoise", "noisy.png", "--iterations", 0), "got 0"),
    (("denoise", "noisy.png", "--ensemble", 9), "got 9"),
    (("denoise", "noisy.png", "--by", 2), "--by"),
    (("denoise", "noisy.png", "--tile", 8), "tile is the side of a tile"),
    (("denoise", "noisy.png", "--workers", 0), "workers is the"),
    (("denoise", "noisy.png", "--clean", "mask.png"), "the clean picture must be RGB"),
    (("denoise", "noisy.png", "--clean", "box.png"), "64 x 64 pixels"),
    (("denoise", "noisy.png", "--clean", "."), "the clean picture must be a picture file"),
    (("denoise", "noisy.png", "--history", "out/h.txt"), "the history is a .csv file"),
    (("denoise", "noisy.png", "--history", "out/out.png"), "two results"),
    (("denoise", "noisy.png", "clean.png", "--clean", "clean.png"), "allowed for one picture only; got 2"),
    (("denoise", "noisy.png", "--out", "noisy.png"), "is an input and would be overwritten"),
    (("denoise", "noisy.png", "--out", "noisy.png", "--overwrite"), "is an input and would be overwritten"),
    (("denoise", "noisy.png", "--out", "."), "is an input and would be overwritten"),
    (("denoise", "noisy.png", "--clean", "clean.png", "--out", "clean.png"), "is an input"),
    (("denoise", "noisy.png", "--out", "clean.png"), "exists already: give another output path"),
    (("denoise", "noisy.png", "--out", "out/x.gif"), "ends in none of .png"),
    (("denoise", "noisy.png", "--out", "/proc/nowhere/x.png"), "/proc"),
    (("denoise", "noisy.png", "--out", "words.txt/x.png"), "is a file, not a folder"),
    (("denoise", "noisy.png", "clean.png", "--out", "out/x.png"), "need a folder, and"),
    (("denoise", "noisy.png", "noisy.png"), "would be written to"),
    (("inpaint", "noisy.png"), "--mask"),
    (("inpaint", "noisy.png", "--mask", "nowhere.png"), "nowhere.png"),
    (("inpaint", "noisy.png", "--mask", "box.png"), "the mask has 21 x 19 pixels and the image 64 x 64"),
    (("inpaint", "box.png", "--mask", "box.png"), "no pixel is known"),
    (("inpaint", "noisy.png", "--mask", "few.png"), "the mask leaves 9 of 4096 pixels known"),
    (("denoise", "noisy.png", "--threads", 0), "from 1 to 1024; got 0"),
    (("denoise", "noisy.png", "--tile", 63), "from 64 to 4096; got 63"),
    (("denoise", "noisy.png", "--workers", 62), "from 1 to 61; got 62"),
    (("upscale", "noisy.png"), "--by"),
    (("upscale", "noisy.png", "--by", 3), "got 3"),
    (("upscale", "noisy.png", "--by", 2, "--clean", "clean.png"), "128 x 128 pixels"),
    (("deblur", "noisy.png"), "--kernel"),
    (("deblur", "noisy.png", "--kernel", "gauss"), "--kernel gauss: the file does not exist"),
    (("deblur", "noisy.png", "--kernel", "1.6"), "a Gaussian is, e.g., gaussian:1.6"),
    (("deblur", "noisy.png", "--kernel", "negative.npy"), "negative.npy: a blur kernel must hold"),
    (("deblur", "noisy.png", "--kernel", "terabytes.npy"), "terabytes.npy is not a .npy array"),
    (("deblur", "noisy.png", "--kernel", "gaussian:0"), "got 'gaussian:0'"),
    (("deblur", "noisy.png", "--kernel", "words.npy"), "words.npy"),
    (("deblur", "noisy.png", "--kernel", "mask.png"), "odd sides"),
    (("deblur", "box.png", "--kernel", "gaussian:9"), "smaller than the blur kernel of 55 x 55"),
]


@pytest.mark.parametrize(("arguments", "says"), BAD)
def test_bad_input_is_one_line_and_nothing_is_written(
    sparsegen: CLI,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple,
    says: str,
) -> None:
    if "no pixel" in says:
        save(folder / "box.png", np.ones((SIDE, SIDE)))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(batch, "restore_one", lambda *_: pytest.fail("the work began"))
    before = contents(folder)
    out = () if "--out" in arguments else ("--out", "out/out.png" if "out/out.png" in arguments else "out")
    assert_refused(sparsegen(*arguments, *out), says)
    assert contents(folder) == before
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("denoise", "broken.png"), "truncated or damaged"),
        (("inpaint", "noisy.png", "--mask", "black.png"), "the mask is without a white pixel"),
        (("deblur", "box.png", "--kernel", "gaussian:9"), "smaller than the blur kernel of 55 x 55"),
    ],
)
def test_bad_input_is_found_before_torch_is_loaded(folder: Path, arguments: tuple, says: str) -> None:
    save(folder / "black.png", np.zeros((SIDE, SIDE)))
    script = "import sys; sys.modules['torch'] = None; from sparsegen.__main__ import main; main()"
    given = [str(folder / part) if part.endswith(".png") else part for part in arguments]
    command = [sys.executable, "-c", script, *given, "--out", str(folder / "out.png")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert_refused(done, says)


def test_an_invalid_mask_is_reported_once_and_a_wrong_size_for_each_picture(
    sparsegen: CLI, folder: Path
) -> None:
    save(folder / "black.png", np.zeros((SIDE, SIDE)))
    command = ("inpaint", folder / "noisy.png", folder / "clean.png", "--out", folder / "out", "--mask")
    assert_refused(sparsegen(*command, folder / "black.png"), "the mask is without a white pixel")
    lines = sparsegen(*command, folder / "box.png").stderr.splitlines()
    assert len(lines) == 3
    for line, name in zip(lines, ("noisy.png", "clean.png"), strict=False):
        assert f"{name}: the mask has 21 x 19 pixels and the image 64 x 64: give a mask" in line


@pytest.mark.parametrize(
    ("module", "option", "extra"),
    [("skimage", ("--clean", "clean.png"), "restore"), ("matplotlib", ("--history", "h.png"), "plot")],
)
def test_a_missing_library_is_reported_before_the_work(
    sparsegen: CLI,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    option: tuple,
    extra: str,
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setitem(sys.modules, module, None)
    assert_refused(sparsegen("denoise", "noisy.png", "--out", "o.png", *option), f"[{extra}]'")


def test_the_depth_and_alpha_of_pictures_are_kept(
    sparsegen: CLI,
    folder: Path,
) -> None:
    deep = from_array(np.dstack([NOISY, WAVE[..., :1]]).astype(np.float32))
    (folder / "deep.png").write_bytes(deep.encode(".png"))
    for name, says in (("x.jpg", "JPEG holds no alpha"), ("x.webp", "WebP holds 8 bits")):
        assert_refused(sparsegen("denoise", folder / "deep.png", "--out", folder / name), says)
    done = sparsegen(
        "denoise", folder / "deep.png", "--out", folder / "x.png", "--preview", "--iterations", 1
    )
    assert done.returncode == 0, done.stderr
    assert "deep.png: 16-bit: the result has 16 bits per channel" in done.stdout
    restored = read_picture(folder / "x.png")
    assert restored.depth == 16
    assert np.array_equal(restored.alpha, read_picture(folder / "deep.png").alpha)


def test_the_result_is_written_if_tiles_fail(
    sparsegen: CLI, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = read_picture(folder / "clean.png")
    outcome = restore.Restoration(picture, np.zeros(0, restore.history_dtype(1)), "", 10, 10, 1.0)

    def fail(*_: object) -> None:
        raise tiles.Unfinished("1 of 4 tiles failed and are unchanged: no memory", outcome)

    monkeypatch.setattr(batch, "run", fail)
    done = sparsegen(
        "denoise", folder / "noisy.png", "--out", folder / "o.png", "--history", folder / "h.png"
    )
    assert done.returncode == 2 and "1 of 4 tiles failed" in done.stderr
    assert np.array_equal(read_picture(folder / "o.png").pixels, picture.pixels)
    assert (folder / "h.png").exists()


def test_bad_pictures_are_named_and_the_others_restored(
    sparsegen: CLI,
    folder: Path,
) -> None:
    save(folder / "third.bmp", NOISY[:, ::-1])
    names = ("noisy.png", "broken.png", "nowhere.png", "third.bmp")
    command = ("denoise", *(folder / name for name in names), "--out", folder / "out", "--iterations", 2)
    done = sparsegen(*command)
    assert done.returncode == 2
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["noisy.png", "third.png"]
    assert len(done.stdout.splitlines()) == 2
    broken, nowhere, summary = done.stderr.splitlines()
    assert "broken.png" in broken and "nowhere.png" in nowhere
    assert summary.startswith("sparsegen: 2 of 4 pictures were not restored completely: ")
    before = contents(folder)
    (folder / "out" / "noisy.png").unlink()
    again = sparsegen(*command)
    assert "third.png exists already" in again.stderr
    assert contents(folder) == before


def test_two_pictures_of_one_name_are_refused(
    sparsegen: CLI,
    folder: Path,
    tmp_path: Path,
) -> None:
    save(tmp_path / "noisy.png", NOISY)
    save(folder / "noisy.bmp", NOISY)
    for other in (tmp_path / "noisy.png", folder / "noisy.bmp"):
        done = sparsegen("denoise", folder / "noisy.png", other, "--out", tmp_path / "out")
        assert_refused(done, f"two results, of {folder / 'noisy.png'} and {other}")
    assert not (tmp_path / "out").exists()


def test_compare_history_and_preview_are_written_to_the_folder_of_the_picture(
    sparsegen: CLI,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen, write = [], results.write_picture

    def spy(path: Path, picture: Picture) -> None:
        write(path, picture)
        seen.append((path.name, read_picture(path).pixels.shape))

    monkeypatch.setattr(results, "write_picture", spy)
    monkeypatch.setattr(results, "PREVIEW_EVERY", 0)
    monkeypatch.setattr(results, "PREVIEW_SHARE", np.inf)
    monkeypatch.setattr(console, "LINE_EVERY", 0)
    done = sparsegen("denoise", folder / "noisy.png", "--out", folder / "out" / "a.tif", "--compare", "--preview",
                     "--clean", folder / "clean.png", "--history", folder / "h.csv", *FEW)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert seen == [*[("a.preview.png", (SIDE, SIDE, 3))] * 10, ("a.tif", (SIDE, SIDE, 3))]
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["a.compare.png", "a.tif"]
    line = r"noisy.png: \d+/10 statistic \S+ \(best: \d+\) \d\d:\d\d(-\d\d:\d\d)? left"
    assert len(done.stderr.splitlines()) == 10
    assert all(re.fullmatch(line, text) for text in done.stderr.splitlines())

    sheet = np.asarray(Image.open(folder / "out" / "a.compare.png"))[::6, ::6]
    for index, path in enumerate((folder / "noisy.png", folder / "out" / "a.tif", folder / "clean.png")):
        left = 2 + index * (SIDE + 2)
        assert np.array_equal(sheet[2 : SIDE + 2, left : left + SIDE], np.asarray(Image.open(path)))

    rows = list(csv.DictReader((folder / "h.csv").read_text().splitlines()))
    assert [row["iteration"] for row in rows] == ["1", "10"]
    best = min(rows, key=lambda row: float(row["statistic"]))["iteration"]
    assert f"iteration {best} of 10" in done.stdout
    assert all(float(row["loss"]) > 0 for row in rows)
    assert float(rows[-1]["density_1"]) == pytest.approx(0.25, abs=0.01)


def test_the_history_is_plotted_also_without_a_stopping_rule(
    sparsegen: CLI,
    folder: Path,
) -> None:
    history = np.array(
        [(1, 0.5, np.nan, (1.0,)), (10, 0.2, np.nan, (1.0,))],
        [("iteration", "i4"), ("loss", "f4"), ("statistic", "f4"), ("density", "f4", (1,))],
    )
    outcome = restore.Restoration(from_array(WAVE), history, "all 10 iterations are done", 10, 10, 1.0)
    results.write_history(folder / "unwatched.csv", outcome)
    assert (folder / "unwatched.csv").read_text().splitlines()[1] == "1,0.5,,1"
    results.write_history(folder / "unwatched.png", outcome)
    done = sparsegen(
        "denoise",
        folder / "noisy.png",
        "--out",
        folder / "o.png",
        "--history",
        folder / "h.png",
        "--iterations",
        2,
    )
    assert done.returncode == 0, done.stderr
    for name in ("unwatched.png", "h.png"):
        assert np.asarray(Image.open(folder / name).convert("L")).std() > 10


def test_an_enlarged_picture_is_compared_with_its_bicubic_enlargement(tmp_path: Path) -> None:
    small, large = from_array(WAVE[::2, ::2]), from_array(WAVE)
    before = results.enlarged(small, large)
    assert before.pixels.shape == large.pixels.shape
    assert np.abs(before.pixels - large.pixels).mean() < 0.02
    gray = from_array(WAVE[..., 0])
    assert results.enlarged(gray, gray) is gray
    results.write_side_by_side(tmp_path / "sheet.png", [gray, gray])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 1.9 * sheet.height


def test_on_a_terminal_there_is_a_bar_that_fits_into_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        console, "err", Console(file=screen, force_terminal=True, width=80, color_system=None)
    )
    now = Progress(2990, 0.1, None, None, None, 0.00992, 2980, (), 1495, 0.6, looked=True)
    with console.shown("a [bold]name[red] that is long.png", 3000) as show:
        show(now)
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", screen.getvalue()))
    bar = r"a \[bold\]name\S* [━╸╺ ]* 2990/3000 statistic 0.00992 \(best: 2980\) 00:01-00:05 left"
    assert any(re.fullmatch(bar, line.strip()) for line in lines), lines
    unwatched = replace(now, statistic=None, best_iteration=None, seconds_left=5.2)
    assert console.state_of(unwatched, 3000) == (2990 / 3000, "2990/3000 loss 0.1 00:05 left")
    tiled = TiledProgress(123, 1, 4, 0.00992, 30, 60, lambda: None)
    state = "1/4 tiles, iteration 123 statistic 0.00992 01:00 left"
    assert console.state_of(tiled, 3000) == (pytest.approx(1 / 3), state)


def test_ctrl_c_writes_the_best_so_far(folder: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "sparsegen",
        "denoise",
        *map(str, (folder / "noisy.png", folder / "clean.png")),
    ]
    command += ["--out", str(folder / "out"), "--preview"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (folder / "out" / "noisy.preview.png").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    reported, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "stopped by a signal, 1 more not started"
    assert "out/noisy.png: stopped by a signal, best result so far; iteration" in reported
    assert [path.name for path in (folder / "out").iterdir()] == ["noisy.png"]
    assert read_picture(folder / "out" / "noisy.png").pixels.shape == NOISY.shape


def _signalled(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """Sends signals while the first preview is written."""

    def write(path: Path, picture: Picture) -> None:
        original(path, picture)
        while pending and "preview" in path.name:
            signal.raise_signal(pending.pop())

    pending, original = list(numbers), results.write_picture
    monkeypatch.setattr(results, "write_picture", write)


def test_sigterm_acts_like_ctrl_c_and_a_second_one_ends_at_once(
    sparsegen: CLI,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ("denoise", folder / "noisy.png", "--preview", *FEW, "--out")
    with monkeypatch.context() as patched:
        _signalled(patched, signal.SIGTERM)
        done = sparsegen(*command, folder / "once.png")
    assert done.returncode == 130
    assert "best result so far; iteration 1 of 1, " in done.stdout
    assert read_picture(folder / "once.png").pixels.shape == NOISY.shape
    before = contents(folder)
    _signalled(monkeypatch, signal.SIGINT, signal.SIGINT)
    assert sparsegen(*command, folder / "twice.png").returncode == 130
    assert contents(folder) == before


def test_an_interrupt_is_recorded_and_the_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGINT)
    shown = []
    with stop_on_interrupt(lambda: shown.append("stopping")) as interrupted:
        assert not interrupted() and not shown
        signal.raise_signal(signal.SIGINT)
        assert interrupted() and shown == ["stopping"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Path], None]:
    """Returns a function that makes a folder full; the temporary folder of the system is elsewhere."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    move = os.replace

    def fill(folder: Path) -> None:
        def full(source: Path, target: Path) -> None:
            if Path(target).is_relative_to(folder):
                raise OSError(errno.ENOSPC, "No space left on device")
            move(source, target)

        monkeypatch.setattr(os, "replace", full)

    return fill


def test_a_result_that_does_not_fit_on_the_disk_is_kept_elsewhere(
    sparsegen: CLI,
    folder: Path,
    tmp_path: Path,
    full_disk: Callable[[Path], None],
) -> None:
    full_disk(tmp_path / "out")
    command = (
        "denoise",
        folder / "noisy.png",
        "--preview",
        "--compare",
        "--iterations",
        2,
        "--out",
        tmp_path / "out" / "a.jpg",
    )
    done = sparsegen(*command)
    assert done.returncode == 2
    [kept] = (tmp_path / "temporary").rglob("*.png")
    previews, failed = done.stderr.splitlines()
    assert "no more previews" in previews
    for text in ("No space left on device", f"the restored picture is kept in {kept}", "a.compare.png"):
        assert text in failed
    assert done.stdout.startswith(f"{kept}: ")
    own = expected(folder, iterations=2)
    assert np.abs(read_picture(kept).pixels - own.pixels).max() <= 0.51 / 255
    assert list((tmp_path / "out").iterdir()) == []
    full_disk(tmp_path)
    refused = sparsegen("denoise", folder / "noisy.png", "--iterations", 2, "--out", tmp_path / "b.png")
    assert_refused(refused, "b.png", "could not be kept in the system's temporary folder either")


def test_a_result_that_cannot_be_encoded_is_kept_as_an_array(
    full_disk: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(picture: Picture, suffix: str) -> bytes:
        raise ValueError("a bug of the encoder")

    monkeypatch.setattr(Picture, "encode", encode)
    place, [problem] = results.save(tmp_path / "a.png", from_array(WAVE))
    assert problem == f"a bug of the encoder; the restored picture is kept in {place}"
    assert np.array_equal(np.load(place), WAVE.astype(np.float32))
    assert place.is_relative_to(tmp_path / "temporary") and not (tmp_path / "a.png").exists()


def test_a_full_disk_is_reported_before_the_work(
    sparsegen: CLI,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = type("Usage", (), {"free": SIDE * SIDE * 3 * 4 - 1})
    monkeypatch.setattr(batch.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(batch, "restore_one", lambda *_: None)
    command = ("upscale", folder / "noisy.png", "--out", folder / "o.png", "--by", 2)
    assert_refused(sparsegen(*command), "the disk has 0.0492 MB left, and the picture may need 0.0492 MB")
    usage.free += 1
    assert sparsegen(*command).returncode == 0


@pytest.mark.parametrize("command", ["denoise", "inpaint", "upscale", "deblur"])
def test_every_command_has_help_with_an_example(
    sparsegen: CLI,
    command: str,
) -> None:
    done = sparsegen(command, "--help")
    assert done.returncode == 0
    assert f"Example: sparsegen {command}" in done.stdout


def test_a_mask_of_mostly_holes_is_noted_and_may_be_inverted(sparsegen: CLI, folder: Path) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :20] = 255
    Image.fromarray(mask).save(folder / "third.png")
    Image.fromarray(255 - mask).save(folder / "thirds.png")
    noisy, outs = folder / "noisy.png", [folder / f"o{number}.png" for number in range(3)]
    usual = sparsegen("inpaint", noisy, "--mask", folder / "third.png", "--out", outs[0], *FEW)
    wrong = sparsegen("inpaint", noisy, "--mask", folder / "thirds.png", "--out", outs[1], *FEW)
    right = sparsegen(
        "inpaint", noisy, "--mask", folder / "thirds.png", "--invert-mask", "--out", outs[2], *FEW
    )
    assert [done.returncode for done in (usual, wrong, right)] == [0, 0, 0], wrong.stderr
    says = "the mask marks 69% of the picture as holes, since holes are white"
    assert says in wrong.stderr and says not in usual.stderr + right.stderr
    assert outs[0].read_bytes() == outs[2].read_bytes() != outs[1].read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
@pytest.mark.parametrize(("answer", "arguments"), [("n", []), ("y", []), (None, ["--yes"])])
def test_long_work_starts_only_if_it_is_wanted(
    answer: str | None, arguments: list[str], tmp_path: Path
) -> None:
    """In a process with a terminal, as a person has it; every work counts as long."""
    import pty

    pixels = np.random.default_rng(0).integers(0, 256, (70, 130), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    program = (
        "import sys; from sparsegen.restoration import batch; batch.ASK_SECONDS = 0; "
        "from sparsegen.__main__ import main; sys.argv[0] = 'sparsegen'; sys.exit(main())"
    )
    given = [
        "denoise",
        tmp_path / "wide.png",
        "--out",
        tmp_path / "out.png",
        "--tile",
        "64",
        "--iterations",
        "3",
    ]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, given), "--workers", "1", *arguments],
        stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    os.write(ours, f"{answer}\n".encode())  # waits in the terminal until it is read
    said, _ = process.communicate(timeout=120)
    os.close(ours)
    os.close(theirs)
    assert ("Start? [y/N]" in said) == (answer is not None), said
    assert process.returncode == (2 if answer == "n" else 0) and (tmp_path / "out.png").exists() == (
        answer != "n"
    )
    if answer == "n":
        assert (
            "it was not started; --preset quick takes about 0:00:00, half of its width takes about 0:00:"
            in said
        )
