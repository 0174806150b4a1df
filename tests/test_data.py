"""Images are decoded once, whole and upright; batches are a function of the step."""

import hashlib
import io
import logging
import os
import struct
import time
import zlib
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from sparsegen.training import data
from sparsegen.training.data import Batches, Images, open_images
from sparsegen.zoo import files

CIFAR10 = Path(__file__).parents[2] / "shared" / "data" / "cifar10"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache of its own for each test, and no network."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SPARSEGEN_CACHE", str(folder))
    monkeypatch.setenv("HF_HOME", str(folder / "hf"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "hf" / "datasets"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return folder


def noise(seed, height=32, width=32):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(seed):
    return encoded(Image.fromarray(noise(seed)))


def parquet(path, cells, labels=None, **columns):
    """A file in the layout of CIFAR-10 on the Hub, without the Hub's own metadata."""
    rows = [None if cell is None else {"bytes": cell, "path": f"{row}.png"} for row, cell in enumerate(cells)]
    columns["img"] = pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def tiny(count=20, labels=True):
    """Images that can be told apart by any of their rows, and that no mirroring leaves as they were."""
    pixels = torch.from_numpy(np.stack([noise(seed, 4, 4) for seed in range(count)])).permute(0, 3, 1, 2)
    return Images(pixels.contiguous(), torch.arange(count) if labels else None, "tiny", "0" * 16)


# ---- batches ----


def test_an_epoch_shows_every_image_once_and_the_next_one_in_another_order():
    batches = Batches(tiny(20), 5, seed=1)
    epochs = [
        [label for step in range(4) for label in batches.at(4 * epoch + step)[1].tolist()] for epoch in (0, 1)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(20))
    assert epochs[0] != epochs[1]


def test_an_epoch_drops_its_incomplete_last_batch_and_no_image_for_good():
    batches = Batches(tiny(20), 6, seed=1)
    assert batches.steps_per_epoch == 3
    seen = Counter(label for step in range(3) for label in batches.at(step)[1].tolist())
    assert len(seen) == 18 and set(seen.values()) == {1}
    later = {label for step in range(30) for label in batches.at(step)[1].tolist()}
    assert later == set(range(20))


def test_pixels_go_from_minus_one_to_one():
    ramp = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16).contiguous()
    real, labels = Batches(Images(ramp, None, "ramp", ""), 1, seed=0, flip=False).at(0)
    assert labels is None
    assert real.dtype == torch.float32 and real.shape == (1, 3, 16, 16)
    torch.testing.assert_close(real[0, 1].flatten(), torch.linspace(-1, 1, 256))
    assert real.min() == -1 and real.max() == 1


def test_flips_are_exact_mirrors_of_about_half_and_of_whole_images():
    images = tiny(20)
    plain, flipped = Batches(images, 10, seed=3, flip=False), Batches(images, 10, seed=3)
    mirrored = []
    for step in range(200):
        (real, labels), (maybe, same) = plain.at(step), flipped.at(step)
        assert torch.equal(labels, same)
        for one, other in zip(real, maybe, strict=True):
            mirrored.append(torch.equal(other, one.flip(-1)))
            assert mirrored[-1] or torch.equal(other, one)
    assert abs(np.mean(mirrored) - 0.5) < 4 * 0.5 / np.sqrt(2000)  # four standard deviations
    assert len({tuple(mirrored[start : start + 10]) for start in range(0, 2000, 10)}) > 150, (
        "each step its own"
    )


def test_batches_leave_the_images_as_they_were():
    images = tiny()
    before = images.pixels.clone()
    real, _ = Batches(images, 20, seed=0).at(0)
    real.zero_()
    assert torch.equal(images.pixels, before)


def test_a_step_is_the_same_after_re_creation_and_in_any_order():
    once = Batches(tiny(), 4, seed=5)
    forward = [once.at(step) for step in range(17)]
    for step in (16, 3, 11, 0):
        again, labels = Batches(tiny(), 4, seed=5).at(step)
        assert torch.equal(again, forward[step][0]) and torch.equal(labels, forward[step][1])
        assert torch.equal(once.at(step)[0], forward[step][0])


def test_global_random_state_neither_matters_nor_changes():
    torch.manual_seed(1)
    np.random.seed(1)
    first = Batches(tiny(), 4, seed=5).at(7)[0]
    drawn = torch.rand(1), np.random.rand()
    torch.manual_seed(1)
    np.random.seed(1)
    assert (torch.rand(1), np.random.rand()) == drawn
    assert torch.equal(first, Batches(tiny(), 4, seed=5).at(7)[0])


def test_seeds_give_different_orders_and_flips():
    orders = {tuple(Batches(tiny(), 20, seed).at(0)[1].tolist()) for seed in range(10)}
    assert len(orders) == 10
    flips = set()
    for seed in range(10):
        plain, flipped = Batches(tiny(), 20, seed, flip=False).at(0)[0], Batches(tiny(), 20, seed).at(0)[0]
        flips.add(tuple((plain != flipped).flatten(1).any(1).tolist()))
    assert len(flips) == 10


def test_ranks_split_the_batch_of_a_single_process_and_see_every_image_once():
    single = Batches(tiny(24), 6, seed=2)
    ranks = [Batches(tiny(24), 2, seed=2, rank=rank, world_size=3) for rank in range(3)]
    seen = []
    for step in range(4):
        parts = [rank.at(step) for rank in ranks]
        assert torch.equal(torch.cat([real for real, _ in parts]), single.at(step)[0])
        seen += [label for _, labels in parts for label in labels.tolist()]
    assert sorted(seen) == list(range(24))


def test_too_few_images_are_refused_with_the_numbers_and_the_remedy():
    with pytest.raises(
        ValueError, match=r"20 images, fewer than one batch of 21: use --batch-size 20 or smaller"
    ):
        Batches(tiny(20), 21, seed=0)
    with pytest.raises(
        ValueError, match=r"batch of 8 on each of 3 processes: use --batch-size 6 or smaller, or more"
    ):
        Batches(tiny(20), 8, seed=0, world_size=3)
    with pytest.raises(ValueError, match="2 images, .*: use more images"):
        Batches(tiny(2), 1, seed=0, world_size=3)
    Batches(tiny(20), 20, seed=0).at(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0, "seed": 0}, "batch_size"),
        ({"batch_size": 2, "seed": -1}, "seed"),
        ({"batch_size": 2, "seed": 0, "rank": 2, "world_size": 2}, "rank 2"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Batches(tiny(), **arguments)


# ---- parquet ----


def test_a_parquet_file_gives_its_pixels_and_labels(tmp_path):
    path = parquet(tmp_path / "some.parquet", [png(seed) for seed in range(5)], labels=[3, 1, 4, 1, 5])
    images = open_images(str(path))
    assert len(images) == 5 and images.name == str(path) and images.skipped == ()
    assert images.pixels.dtype == torch.uint8 and images.pixels.shape == (5, 3, 32, 32)
    assert images.labels.dtype == torch.int64 and images.labels.tolist() == [3, 1, 4, 1, 5]
    expected = np.stack([noise(seed) for seed in range(5)])
    assert images.numpy().dtype == np.uint8
    np.testing.assert_array_equal(images.numpy(), expected)


def test_columns_are_found_by_type_as_the_hub_declares_them(tmp_path):
    features = datasets.Features(
        {
            "photo": datasets.Image(),
            "kind": datasets.ClassLabel(names=["cat", "dog"]),
            "size": datasets.Value("int64"),
        }
    )
    rows = {
        "photo": [Image.fromarray(noise(seed)) for seed in range(3)],
        "kind": [1, 0, 1],
        "size": [9, 9, 9],
    }
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "hub.parquet")
    images = open_images(tmp_path / "hub.parquet")
    assert images.labels.tolist() == [1, 0, 1]
    np.testing.assert_array_equal(images.numpy(), np.stack([noise(seed) for seed in range(3)]))


def test_several_image_columns_are_refused_by_name_and_none_lists_the_columns(tmp_path):
    two = pa.array([{"bytes": png(0), "path": None}], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    with pytest.raises(ValueError, match="2 image columns, mask, img"):
        open_images(parquet(tmp_path / "two.parquet", [png(1)], mask=two))
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="no image column.*text: Value"):
        open_images(tmp_path / "none.parquet")


def test_a_folder_of_parquet_files_is_read_split_by_split(tmp_path):
    folder = tmp_path / "set [1]*"  # `datasets` would take this name for a pattern
    parquet(folder / "train-00000-of-00002.parquet", [png(0), png(1)])
    parquet(folder / "train-00001-of-00002.parquet", [png(2)])
    parquet(folder / "test-00000-of-00001.parquet", [png(3)])
    np.testing.assert_array_equal(open_images(folder).numpy(), np.stack([noise(seed) for seed in range(3)]))
    np.testing.assert_array_equal(open_images(folder, split="test").numpy(), noise(3)[None])
    with pytest.raises(ValueError, match="validation.*train"):
        open_images(folder, split="validation")


def test_a_single_file_is_read_whatever_its_name_and_the_split(tmp_path):
    path = parquet(tmp_path / "test[0].parquet", [png(0)])
    assert open_images(path).fingerprint == open_images(path, split="test").fingerprint


def test_rows_that_cannot_be_read_are_skipped_named_and_lose_their_label(tmp_path, caplog):
    cells = [png(0), b"not an image", None, png(3)[:500], png(4), b""]
    path = parquet(tmp_path / "some.parquet", cells, labels=[0, 1, 2, 3, 4, 5])
    images = open_images(path)
    assert images.labels.tolist() == [0, 4]
    np.testing.assert_array_equal(images.numpy(), np.stack([noise(0), noise(4)]))
    assert [line.split(":")[0] for line in images.skipped] == [
        "row 1 (1.png)",
        "row 2",
        "row 3 (3.png)",
        "row 5 (5.png)",
    ]
    assert "0x" not in "".join(images.skipped), "no addresses of Python objects"
    for line in images.skipped:
        assert line in caplog.text
    caplog.clear()
    assert open_images(path) is not images
    assert "row 1 (1.png)" in caplog.text, "named again when it comes from the cache"


@pytest.mark.parametrize("labels", [[0, -1], [0, None]])
def test_hidden_labels_are_dropped_rather_than_trained_on(tmp_path, labels, caplog):
    images = open_images(parquet(tmp_path / "some.parquet", [png(0), png(1)], labels))
    assert images.labels is None and len(images) == 2
    assert "not used" in caplog.text


def test_a_source_without_a_readable_image_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no readable image among the 2"):
        open_images(parquet(tmp_path / "bad.parquet", [b"x", b"y"]))
    with pytest.raises(ValueError, match="empty.parquet.*no data"):
        open_images(parquet(tmp_path / "empty.parquet", []))


def test_an_empty_file_among_others_does_no_harm(tmp_path):
    parquet(tmp_path / "train-0.parquet", [])
    parquet(tmp_path / "train-1.parquet", [png(0)])
    assert len(open_images(tmp_path)) == 1


def test_a_disk_too_full_for_the_copy_is_named_not_the_parquet_file_blamed(tmp_path, cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    path = parquet(tmp_path / "a.parquet", [png(0), png(1)])
    monkeypatch.setattr("datasets.arrow_writer.ArrowWriter.write_table", full)
    with pytest.raises(OSError, match=f"No space left on device.*{cache}") as caught:
        open_images(path)
    assert caught.value.errno == 28
    assert [file for file in cache.rglob("*") if file.is_file()] == []


def test_a_damaged_parquet_file_is_named(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match="bad.parquet"):
        open_images(tmp_path / "bad.parquet")


def test_limit_takes_labeled_classes_in_turn_and_unlabeled_rows_in_order(tmp_path):
    cells = [png(seed) for seed in range(9)]
    images = open_images(parquet(tmp_path / "sorted.parquet", cells, labels=[7] * 5 + [8] * 3 + [9]), limit=5)
    assert images.labels.tolist() == [7, 7, 8, 8, 9]
    np.testing.assert_array_equal(images.numpy(), np.stack([noise(seed) for seed in (0, 1, 5, 6, 8)]))
    path = parquet(tmp_path / "plain.parquet", cells)
    np.testing.assert_array_equal(open_images(path, limit=2).numpy(), np.stack([noise(0), noise(1)]))
    assert len(open_images(path, limit=100)) == 9
    with pytest.raises(ValueError, match="limit"):
        open_images(path, limit=0)


def test_progress_ends_at_the_number_of_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "BLOCK", 4)
    calls = []
    open_images(parquet(tmp_path / "a.parquet", [png(0)] * 10), progress=lambda *call: calls.append(call))
    assert calls == [(4, 10), (8, 10), (10, 10)]


# ---- kinds of images ----


def only(tmp_path, name, content, size=32):
    """The pixels of a single file in a folder, (H, W, 3)."""
    folder = tmp_path / name
    folder.mkdir()
    (folder / name).write_bytes(content)
    return open_images(folder, size=size).numpy()[0].astype(int)


def halves(left, right, mode, size=(32, 32)):
    image = Image.new(mode, size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def test_grey_and_bilevel_images_become_rgb(tmp_path):
    pixels = only(tmp_path, "a.png", encoded(halves(10, 200, "L")))
    assert (pixels[:, :16] == 10).all() and (pixels[:, 16:] == 200).all()
    pixels = only(tmp_path, "b.png", encoded(halves(0, 1, "1")))
    assert (pixels[:, :16] == 0).all() and (pixels[:, 16:] == 255).all()


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 32).astype(np.uint16)[None].repeat(32, 0)
    for name, kind in ("a.png", "PNG"), ("b.tif", "TIFF"):
        pixels = only(tmp_path, name, encoded(Image.fromarray(ramp), kind))
        assert np.abs(pixels - ramp[..., None] / 257).max() <= 0.5 + 1e-9


def test_transparent_pixels_become_white_and_half_transparent_ones_half(tmp_path):
    image = halves((255, 0, 0, 0), (0, 0, 255, 128), "RGBA")
    for name, kind in ("a.png", "PNG"), ("b.webp", "WEBP"):
        pixels = only(tmp_path, name, encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
        assert (pixels[:, :16] == 255).all()
        assert np.abs(pixels[:, 16:] - [127, 127, 255]).max() <= 1
    pixels = only(tmp_path, "c.png", encoded(halves((0, 0), (50, 255), "LA")))
    assert (pixels[:, :16] == 255).all() and (pixels[:, 16:] == 50).all()


def test_palettes_become_their_colors_and_their_transparent_entry_white(tmp_path):
    image = halves(0, 1, "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    assert (only(tmp_path, "a.png", encoded(image))[0, [0, 31]] == [[10, 20, 30], [40, 50, 60]]).all()
    pixels = only(tmp_path, "b.png", encoded(image, transparency=0))
    assert (pixels[0, [0, 31]] == [[255, 255, 255], [40, 50, 60]]).all()


def test_cmyk_is_converted(tmp_path):
    image = halves((255, 0, 0, 0), (0, 0, 0, 255), "CMYK")  # cyan, black
    pixels = only(tmp_path, "a.jpg", encoded(image, "JPEG", quality=100))
    assert np.abs(pixels[:, 4:12] - [0, 255, 255]).max() <= 4 and pixels[:, 20:28].max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright_as_exif_says(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = np.zeros((32, 32, 3), np.uint8)
    upright[:16, :16] = 255, 0, 0  # red where the scene's top left is
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
    assert np.abs(only(tmp_path, "a.jpg", stored) - upright.astype(int)).max() <= 4


def test_a_damaged_exif_block_does_not_cost_the_image(tmp_path):
    stored = encoded(
        Image.fromarray(noise(0)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(range(40))
    )
    assert only(tmp_path, "a.jpg", stored).shape == (32, 32, 3)


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "lime")]
    for name, kind in ("a.gif", "GIF"), ("b.webp", "WEBP"), ("c.png", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        stored = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert (only(tmp_path, name, stored) == [255, 0, 0]).all()


def test_the_centre_square_is_kept_unchanged_where_the_shorter_side_fits(tmp_path):
    wide, tall = noise(0, 32, 50), noise(1, 50, 32)
    np.testing.assert_array_equal(only(tmp_path, "wide.png", encoded(Image.fromarray(wide))), wide[:, 9:41])
    np.testing.assert_array_equal(
        only(tmp_path, "tall.bmp", encoded(Image.fromarray(tall), "BMP")), tall[9:41]
    )


def test_resizing_is_antialiased_and_keeps_proportions(tmp_path):
    stripes = np.zeros((256, 512, 3), np.uint8)
    stripes[:, ::2] = 255  # too fine for 32 pixels: their mean is left, not a moiré of black and white
    assert np.abs(only(tmp_path, "a.png", encoded(Image.fromarray(stripes))) - 127.5).max() <= 4
    disc = np.hypot(*np.mgrid[-64:64, -128:128]) < 32
    pixels = only(tmp_path, "b.png", encoded(Image.fromarray(disc.astype(np.uint8) * 255)))[..., 0]
    across, down = pixels[16].sum(), pixels[:, 16].sum()
    assert abs(across - down) <= 0.05 * down, "a disc stays a disc"
    assert abs(pixels.sum() / 255 - np.pi * 8**2) < 0.03 * np.pi * 8**2
    flat = only(tmp_path, "c.png", encoded(Image.new("RGB", (5, 7), (1, 2, 3))), size=16)
    assert flat.shape == (16, 16, 3) and (flat == [1, 2, 3]).all()


def test_decompression_bombs_are_refused_before_they_are_decoded(tmp_path):
    def header(width, height):
        """A PNG that declares a size, without pixels."""
        chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b"\0")]
        body = b"".join(
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
            for kind, content in chunks
        )
        return b"\x89PNG\r\n\x1a\n" + body

    cells = [header(12_000, 12_000), header(60_000, 60_000), header(1, 2**31 - 1), png(3)]
    images = open_images(parquet(tmp_path / "bombs.parquet", cells))
    assert len(images) == 1 and len(images.skipped) == 3
    assert "12000x12000 pixels" in images.skipped[0]
    assert all("pixels" in line for line in images.skipped)


def test_an_extremely_narrow_image_does_not_grow_when_its_short_side_is_resized(tmp_path):
    stored = encoded(Image.new("L", (1, 50_000), 7))
    start = time.perf_counter()
    assert (only(tmp_path, "a.png", stored, size=64) == 7).all()
    assert time.perf_counter() - start < 5


def test_pixels_without_a_known_range_are_skipped(tmp_path):
    with pytest.raises(ValueError, match="floating-point"):
        only(tmp_path, "a.tif", encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"))


# ---- folders ----


def folder_of(root, names):
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(seed))
    return root


def test_a_folder_is_read_to_any_depth_in_order_without_what_is_no_image(tmp_path):
    folder = folder_of(
        tmp_path / "set", ["a.png", "b/c/d.PNG", "b/e.png", "test_1.png", "._a.png", ".x/f.png"]
    )
    (folder / "notes.txt").write_text("hello")
    images = open_images(folder)
    assert images.labels is None and images.skipped == ()
    np.testing.assert_array_equal(images.numpy(), np.stack([noise(seed) for seed in range(4)]))


def test_class_folders_give_labels_by_sorted_name(tmp_path):
    images = open_images(folder_of(tmp_path / "set", ["train/0.png", "bus/1.png", "bus/2.png"]))
    assert images.labels.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(images.numpy(), np.stack([noise(seed) for seed in (1, 2, 0)]))


def test_split_folders_are_told_from_classes(tmp_path):
    folder = folder_of(tmp_path / "set", ["train/cat/0.png", "train/dog/1.png", "test/cat/2.png"])
    assert open_images(folder).labels.tolist() == [0, 1]
    np.testing.assert_array_equal(open_images(folder, split="test").numpy(), noise(2)[None])
    with pytest.raises(ValueError, match="no split 'test'"):
        open_images(folder / "train", split="test")


def test_broken_files_are_skipped_and_named_by_their_path_in_the_folder(tmp_path, caplog):
    folder = folder_of(tmp_path / "set", ["cat/0.png", "dog/1.png"])
    (folder / "cat" / "broken.jpg").write_bytes(encoded(Image.fromarray(noise(2)), "JPEG")[:300])
    (folder / "dog" / "page.png").write_text("<html>404</html>")
    (folder / "dog" / "postscript.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    images = open_images(folder)
    assert images.labels.tolist() == [0, 1]
    assert [line.split(":")[0] for line in images.skipped] == [
        "cat/broken.jpg",
        "dog/page.png",
        "dog/postscript.png",
    ]
    assert "runcated" in images.skipped[0] and "not an image" in images.skipped[1]
    assert "cat/broken.jpg" in caplog.text


def test_many_broken_files_do_not_flood_the_log(tmp_path, caplog):
    images = open_images(parquet(tmp_path / "a.parquet", [png(0)] + [b"x"] * 100))
    assert len(images.skipped) == 100 and len(caplog.records) == 11
    assert "90 more; 1 images are left" in caplog.text


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX file names and links")
def test_odd_names_and_links_neither_stop_nor_loop_the_reading(tmp_path):
    folder = folder_of(tmp_path / "set", ["a [1]*?.png", "sub/b.png"])
    Path(os.fsdecode(os.fsencode(folder) + b"/c\xff.png")).write_bytes(png(2))
    Path(os.fsdecode(os.fsencode(folder) + b"/d\xff.png")).write_bytes(b"x")
    (folder / "sub" / "loop").symlink_to(folder)
    (folder / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "linked").symlink_to(folder_of(tmp_path / "other", ["e.png"]))
    os.mkfifo(folder / "pipe.png")  # reading it would never end
    images = open_images(folder)
    np.testing.assert_array_equal(images.numpy(), np.stack([noise(seed) for seed in (0, 2, 0, 1)]))
    assert [line.split(":")[0] for line in images.skipped] == ["dangling.png", r"d\udcff.png", "pipe.png"]


def test_a_folder_without_images_says_what_it_looked_for(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"no images in .*\.png"):
        open_images(tmp_path)


# ---- what is no source ----


@pytest.mark.parametrize(
    "source", ["./nothing", "/no/such/folder", "set/train.parquet", "a/b/c", Path("cifar10"), "~no/x"]
)
def test_a_missing_path_is_called_missing(source):
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        open_images(source)


@pytest.mark.parametrize("source", ["", " ", "two words", "https:cifar", "-x", "a" * 3000, "nul\0"])
def test_what_is_neither_path_nor_hub_id_is_refused_with_what_is_accepted(source):
    with pytest.raises(ValueError, match=r"Hub dataset id such as 'cifar10', a \.parquet file, or a folder"):
        open_images(source)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png(0))
    with pytest.raises(ValueError, match="neither a .parquet file nor a folder"):
        open_images(tmp_path / "a.png")


@pytest.mark.parametrize("source", ["cifar10", "uoft-cs/cifar10"])
def test_a_hub_id_offline_fails_at_once_and_says_what_to_do(source):
    start = time.perf_counter()
    with pytest.raises(ConnectionError, match=f"no file or folder '{source}'.*give a parquet file") as caught:
        open_images(source)
    assert len(str(caught.value)) < 300
    assert time.perf_counter() - start < 5


def test_a_hub_that_does_not_answer_is_not_retried_for_long(monkeypatch):
    """Nobody said that we are offline: the first refused connection does."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.perf_counter()
    with pytest.raises(ConnectionError, match="out of reach"):
        open_images("cifar10")
    assert time.perf_counter() - start < 5
    assert not huggingface_hub.constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE


def test_a_hub_dataset_is_read_like_a_local_one(tmp_path, monkeypatch):
    """A dataset that is here stands in for the download, which gives the same kind of object."""
    rows = {"image": [Image.fromarray(noise(seed)) for seed in range(3)], "label": [2, 0, 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=3)})
    dataset = datasets.Dataset.from_dict(rows, features=features)
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *args, **named: asked.append((args, named)) or dataset
    )
    images = open_images("somebody/flowers", split="test")
    assert asked == [(("somebody/flowers",), {"split": "test"})]
    assert images.name == "somebody/flowers" and images.labels.tolist() == [2, 0, 1]
    np.testing.assert_array_equal(images.numpy(), np.stack([noise(seed) for seed in range(3)]))


# ---- cache and fingerprint ----


def test_the_second_opening_reads_the_cache_and_gives_the_same(tmp_path, monkeypatch, cache):
    path = parquet(tmp_path / "a.parquet", [png(0), b"x", png(2)], labels=[1, 2, 3])
    first = open_images(path)
    assert [file.suffix for file in cache.rglob("*") if file.is_file()] == [".safetensors"], (
        "no Arrow copy is left"
    )
    monkeypatch.setattr(data, "decode", None)
    second = open_images(path)
    assert torch.equal(first.pixels, second.pixels) and torch.equal(first.labels, second.labels)
    assert (first.fingerprint, first.skipped, first.name) == (second.fingerprint, second.skipped, second.name)


def test_changed_files_sizes_and_limits_are_decoded_anew(tmp_path):
    path = parquet(tmp_path / "a.parquet", [png(0), png(1)])
    first = open_images(path)
    assert open_images(path, size=16).pixels.shape == (2, 3, 16, 16)
    assert len(open_images(path, limit=1)) == 1
    parquet(path, [png(2), png(3)])
    os.utime(path, ns=(1, 1))
    assert open_images(path).fingerprint != first.fingerprint
    folder = folder_of(tmp_path / "set", ["a.png"])
    assert len(open_images(folder)) == 1
    folder_of(folder, ["a.png", "b.png"])
    assert len(open_images(folder)) == 2


@pytest.mark.parametrize("damage", ["truncated", "flipped bit", "empty", "another file"])
def test_a_damaged_cache_file_is_rebuilt(tmp_path, cache, damage, caplog):
    path = parquet(tmp_path / "a.parquet", [png(0), png(1)], labels=[0, 1])
    first = open_images(path)
    (file,) = (cache / "images").iterdir()
    content = bytearray(file.read_bytes())
    content[-3000] ^= 1
    whole = {
        "truncated": content[:-100],
        "flipped bit": content,
        "empty": b"",
        "another file": b"\x02" + bytes(7) + b"{}",
    }
    file.unlink()
    file.write_bytes(whole[damage])
    again = open_images(path)
    assert torch.equal(again.pixels, first.pixels) and again.fingerprint == first.fingerprint
    assert "is damaged" in caplog.text
    caplog.clear()
    open_images(path)
    assert caplog.text == ""


def test_images_open_although_the_cache_cannot_be_written(tmp_path, monkeypatch, cache, caplog):
    folder = folder_of(tmp_path / "set", ["a.png"])

    def disk_full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", disk_full)
    assert len(open_images(folder)) == 1
    assert "not cached" in caplog.text and "No space left" in caplog.text
    assert [file for file in cache.rglob("*") if file.is_file()] == []


def test_what_the_system_refuses_to_read_is_not_remembered_as_broken(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "set", ["a.png", "b.png"])
    whole = Path.read_bytes

    def refused(path):
        if path.name == "b.png":
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    assert open_images(folder).skipped == ("b.png: Permission denied",)
    monkeypatch.undo()
    assert len(data.open_images(folder)) == 2


def test_the_fingerprint_follows_pixels_and_labels_only(tmp_path):
    cells = [png(0), png(1)]
    first = open_images(parquet(tmp_path / "a.parquet", cells, labels=[0, 1]))
    assert len(first.fingerprint) == 16 and int(first.fingerprint, 16) >= 0
    assert open_images(parquet(tmp_path / "b.parquet", cells, labels=[0, 1])).fingerprint == first.fingerprint
    others = [
        open_images(parquet(tmp_path / "c.parquet", cells, labels=[1, 0])),
        open_images(parquet(tmp_path / "d.parquet", cells)),
        open_images(parquet(tmp_path / "e.parquet", cells[::-1], labels=[0, 1])),
    ]
    assert len({first.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_the_fingerprint_is_the_same_on_every_machine():
    pixels = torch.arange(2 * 3 * 2 * 2, dtype=torch.uint8).reshape(2, 3, 2, 2)
    labels = struct.pack("<2q", 1, 2)  # little-endian, whatever this machine is
    expected = hashlib.sha256(b"((2, 3, 2, 2), True)" + bytes(range(24)) + labels).hexdigest()[:16]
    assert data.fingerprint(pixels, torch.tensor([1, 2])) == expected
    expected = hashlib.sha256(b"((2, 3, 2, 2), False)" + bytes(range(24))).hexdigest()[:16]
    assert data.fingerprint(pixels, None) == expected


# ---- the real thing ----


@pytest.mark.cifar10
@pytest.mark.skipif(not CIFAR10.is_dir(), reason=f"no CIFAR-10 files in {CIFAR10}")
def test_cifar10_has_its_fifty_thousand_images_in_ten_equal_classes(caplog):
    caplog.set_level(logging.WARNING)
    images = open_images(CIFAR10)
    assert images.pixels.shape == (50_000, 3, 32, 32) and images.skipped == ()
    assert torch.bincount(images.labels).tolist() == [5_000] * 10
    mean = images.pixels.float().mean((0, 2, 3)) / 255
    torch.testing.assert_close(
        mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=2e-3, rtol=0
    )  # of the original
    assert images.fingerprint == open_images(CIFAR10).fingerprint
    assert len(open_images(CIFAR10, split="test")) == 10_000
    assert torch.bincount(open_images(CIFAR10, limit=500).labels).tolist() == [50] * 10
    real, labels = Batches(images, 64, seed=0).at(10**6)
    assert real.shape == (64, 3, 32, 32) and labels.shape == (64,)
