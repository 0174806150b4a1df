"""Images are decoded once and cached; batches are a function of the step."""

import hashlib
import logging
import os
import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pictures import folder_of, noise, parquet, png
from sparsegen.common import files
from sparsegen.training import data
from sparsegen.training.data import ImageLoader, Images, open_images


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A separate cache for each test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SPARSEGEN_CACHE", str(folder))
    return folder


def tiny(count=20, labels=True):
    """Images that differ in every row and from their mirror images."""
    pixels = torch.from_numpy(np.stack([noise(seed, 4, 4) for seed in range(count)])).permute(0, 3, 1, 2)
    return Images(pixels.contiguous(), torch.arange(count) if labels else None, "tiny", "0" * 16)


# ---- batches ----


def test_an_epoch_shows_every_image_once_and_the_next_one_in_another_order():
    batches = ImageLoader(tiny(20), 5, seed=1)
    epochs = [
        [label for step in range(4) for label in batches.at(4 * epoch + step)[1].tolist()] for epoch in (0, 1)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(20))
    assert epochs[0] != epochs[1]


def test_an_epoch_drops_its_incomplete_last_batch_but_no_image_in_all_epochs():
    batches = ImageLoader(tiny(20), 6, seed=1)
    assert batches.steps_per_epoch == 3
    seen = Counter(label for step in range(3) for label in batches.at(step)[1].tolist())
    assert len(seen) == 18 and set(seen.values()) == {1}
    later = {label for step in range(30) for label in batches.at(step)[1].tolist()}
    assert later == set(range(20))


def test_pixels_are_scaled_to_minus_one_to_one():
    ramp = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16).contiguous()
    ramp = ramp.expand(2, -1, -1, -1).contiguous()
    real, labels = ImageLoader(Images(ramp, None, "ramp", ""), 2, seed=0, flip=False).at(0)
    assert labels is None
    assert real.dtype == torch.float32 and real.shape == (2, 3, 16, 16)
    torch.testing.assert_close(real[0, 1].flatten(), torch.linspace(-1, 1, 256))
    assert real.min() == -1 and real.max() == 1


def test_flips_are_exact_mirrors_of_about_half_and_of_whole_images():
    images = tiny(20)
    plain, flipped = ImageLoader(images, 10, seed=3, flip=False), ImageLoader(images, 10, seed=3)
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


def test_batches_do_not_change_the_images():
    images = tiny()
    before = images.pixels.clone()
    real, _ = ImageLoader(images, 20, seed=0).at(0)
    real.zero_()
    assert torch.equal(images.pixels, before)


def test_a_step_does_not_depend_on_earlier_steps():
    once = ImageLoader(tiny(), 4, seed=5)
    forward = [once.at(step) for step in range(17)]
    for step in (16, 3, 11, 0):
        again, labels = ImageLoader(tiny(), 4, seed=5).at(step)
        assert torch.equal(again, forward[step][0]) and torch.equal(labels, forward[step][1])
        assert torch.equal(once.at(step)[0], forward[step][0])


def test_global_random_state_is_neither_used_nor_changed():
    torch.manual_seed(1)
    np.random.seed(1)
    first = ImageLoader(tiny(), 4, seed=5).at(7)[0]
    drawn = torch.rand(1), np.random.rand()
    torch.manual_seed(1)
    np.random.seed(1)
    assert (torch.rand(1), np.random.rand()) == drawn
    assert torch.equal(first, ImageLoader(tiny(), 4, seed=5).at(7)[0])


def test_seeds_give_different_orders_and_flips():
    orders = {tuple(ImageLoader(tiny(), 20, seed).at(0)[1].tolist()) for seed in range(10)}
    assert len(orders) == 10
    flips = set()
    for seed in range(10):
        plain, flipped = (
            ImageLoader(tiny(), 20, seed, flip=False).at(0)[0],
            ImageLoader(tiny(), 20, seed).at(0)[0],
        )
        flips.add(tuple((plain != flipped).flatten(1).any(1).tolist()))
    assert len(flips) == 10


def test_ranks_split_the_batch_of_a_single_process_and_see_every_image_once():
    single = ImageLoader(tiny(24), 6, seed=2)
    ranks = [ImageLoader(tiny(24), 6, seed=2, rank=rank, world_size=3) for rank in range(3)]
    seen = []
    for step in range(4):
        parts = [rank.at(step) for rank in ranks]
        assert torch.equal(torch.cat([real for real, _ in parts]), single.at(step)[0])
        seen += [label for _, labels in parts for label in labels.tolist()]
    assert sorted(seen) == list(range(24))


def test_too_few_images_are_refused_with_the_numbers_and_the_remedy():
    with pytest.raises(
        ValueError, match=r"20 images, fewer than one batch of 21: use a batch size of 20 or smaller"
    ):
        ImageLoader(tiny(20), 21, seed=0)
    with pytest.raises(
        ValueError, match=r"batch of 24 for 3 processes: use a batch size of 18 or smaller, or more"
    ):
        ImageLoader(tiny(20), 24, seed=0, world_size=3)
    with pytest.raises(ValueError, match="2 images, .* for 3 processes: use more images or fewer processes"):
        ImageLoader(tiny(2), 2, seed=0, world_size=3)
    with pytest.raises(ValueError, match="multiple of their number; got 8: use 6 or 9"):
        ImageLoader(tiny(20), 8, seed=0, world_size=3)
    with pytest.raises(ValueError, match="got 20: use 18$"):
        ImageLoader(tiny(20), 20, seed=0, world_size=3)
    ImageLoader(tiny(20), 20, seed=0).at(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0, "seed": 0}, "batch_size .* at least 2.*; got 0"),
        ({"batch_size": 1, "seed": 0}, "because batch norm computes statistics over them; got 1"),
        ({"batch_size": 2, "seed": -1}, "seed"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageLoader(tiny(), **arguments)


# ---- opening ----


def test_unreadable_rows_and_their_labels_are_skipped_and_named(tmp_path, caplog):
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
    for line in images.skipped:
        assert line in caplog.text
    caplog.clear()
    assert open_images(path) is not images
    assert "row 1 (1.png)" in caplog.text, "named again when it comes from the cache"


def test_a_source_without_a_readable_image_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no readable image among the 2"):
        open_images(parquet(tmp_path / "bad.parquet", [b"x", b"y"]))
    with pytest.raises(ValueError, match="no readable image among the 0 of .*empty.parquet"):
        open_images(parquet(tmp_path / "empty.parquet", []))


def test_limit_takes_equal_numbers_of_each_class_or_the_first_unlabeled_rows(tmp_path):
    cells = [png(seed) for seed in range(9)]
    images = open_images(parquet(tmp_path / "sorted.parquet", cells, labels=[7] * 5 + [8] * 3 + [9]), limit=5)
    assert images.labels.tolist() == [7, 7, 8, 8, 9]
    np.testing.assert_array_equal(images.numpy(), np.stack([noise(seed) for seed in (0, 1, 5, 6, 8)]))
    path = parquet(tmp_path / "plain.parquet", cells)
    np.testing.assert_array_equal(open_images(path, limit=2).numpy(), np.stack([noise(0), noise(1)]))
    assert len(open_images(path, limit=100)) == 9
    with pytest.raises(ValueError, match="limit"):
        open_images(path, limit=0)


def test_a_part_takes_the_share_of_every_class_and_has_its_own_fingerprint():
    labels = torch.tensor([7] * 20 + [8] * 20)
    whole = replace(tiny(40), labels=labels)
    part = whole.part(0.1)
    assert part.labels.tolist() == [7, 7, 8, 8]
    assert torch.equal(part.pixels, whole.pixels[[0, 1, 20, 21]])
    assert part.fingerprint == data.fingerprint(part.pixels, part.labels) != whole.fingerprint
    assert (part.name, part.classes) == (whole.name, whole.classes)
    unlabeled = tiny(40, labels=False)
    assert torch.equal(unlabeled.part(0.25).pixels, unlabeled.pixels[:10])
    assert unlabeled.part(0.25).labels is None
    assert whole.part(1) is whole and len(whole.part(1e-9)) == 1


@pytest.mark.parametrize("share", [0, -0.5, 1.01, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match=f"above 0 and at most 1; got {share}"):
        tiny().part(share)


def test_progress_ends_at_the_number_of_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "BLOCK", 4)
    calls = []
    open_images(parquet(tmp_path / "a.parquet", [png(0)] * 10), progress=lambda *call: calls.append(call))
    assert calls == [(4, 10), (8, 10), (10, 10)]


def test_only_the_first_damaged_files_are_logged(tmp_path, caplog):
    images = open_images(parquet(tmp_path / "a.parquet", [png(0)] + [b"x"] * 100))
    assert len(images.skipped) == 100 and len(caplog.records) == 11
    assert "90 more; 1 images are left" in caplog.text


def test_damaged_files_are_skipped_and_named_by_their_path_in_the_folder(tmp_path, caplog):
    folder = folder_of(tmp_path / "set", ["cat/0.png", "dog/1.png"])
    (folder / "cat" / "broken.png").write_bytes(png(2)[:300])
    (folder / "dog" / "page.png").write_text("<html>404</html>")
    images = open_images(folder)
    assert images.labels.tolist() == [0, 1]
    assert [line.split(":")[0] for line in images.skipped] == ["cat/broken.png", "dog/page.png"]
    assert "cat/broken.png" in caplog.text


# ---- cache and fingerprint ----


def test_the_second_opening_reads_the_same_images_from_the_cache(tmp_path, monkeypatch, cache):
    path = parquet(tmp_path / "a.parquet", [png(0), b"x", png(2)], labels=[1, 2, 3])
    first = open_images(path)
    assert [file.suffix for file in cache.rglob("*") if file.is_file()] == [".safetensors"], (
        "no Arrow copy is left"
    )
    monkeypatch.setattr(data, "decode", None)
    second = open_images(path)
    assert torch.equal(first.pixels, second.pixels) and torch.equal(first.labels, second.labels)
    assert (first.fingerprint, first.skipped, first.name) == (second.fingerprint, second.skipped, second.name)


def test_changed_files_sizes_and_limits_are_decoded_again(tmp_path):
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


@pytest.mark.parametrize("damage", ["truncated", "flipped bit", "empty"])
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
    }
    file.unlink()
    file.write_bytes(whole[damage])
    again = open_images(path)
    assert torch.equal(again.pixels, first.pixels) and again.fingerprint == first.fingerprint
    assert "is damaged" in caplog.text
    caplog.clear()
    open_images(path)
    assert caplog.text == ""


def test_images_open_if_the_cache_cannot_be_written(tmp_path, monkeypatch, cache, caplog):
    folder = folder_of(tmp_path / "set", ["a.png"])

    def disk_full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", disk_full)
    assert len(open_images(folder)) == 1
    assert "not cached" in caplog.text and "No space left" in caplog.text
    assert [file for file in cache.rglob("*") if file.is_file()] == []


def test_a_file_without_read_permission_is_an_error_that_names_it(tmp_path, monkeypatch, cache):
    folder = folder_of(tmp_path / "set", ["a.png", "b.png"])

    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(PermissionError, match="a.png"):
        open_images(folder)
    assert not list(cache.rglob("*.safetensors"))


def test_the_fingerprint_depends_only_on_pixels_and_labels(tmp_path):
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
def test_cifar10_has_its_fifty_thousand_images_in_ten_equal_classes(cifar10, caplog):
    caplog.set_level(logging.WARNING)
    images = open_images(cifar10)
    assert images.pixels.shape == (50_000, 3, 32, 32) and images.skipped == ()
    assert torch.bincount(images.labels).tolist() == [5_000] * 10
    mean = images.pixels.float().mean((0, 2, 3)) / 255
    torch.testing.assert_close(
        mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=2e-3, rtol=0
    )  # of the original
    assert images.fingerprint == open_images(cifar10).fingerprint
    assert len(open_images(cifar10, split="test")) == 10_000
    assert torch.bincount(open_images(cifar10, limit=500).labels).tolist() == [50] * 10
    real, labels = ImageLoader(images, 64, seed=0).at(10**6)
    assert real.shape == (64, 3, 32, 32) and labels.shape == (64,)
