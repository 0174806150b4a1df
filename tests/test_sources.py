"""Parquet files, folders and Hub datasets are distinguished and read."""

import os
import socket
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hub import Handler, Hub, Refused
from PIL import Image

from pictures import folder_of, noise, parquet, png
from sparsegen.training.data import open_images
from sparsegen.training.sources import NoSplitError


@pytest.fixture(autouse=True)
def no_earlier_download(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))


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


def test_several_or_no_image_columns_are_refused_with_the_columns(tmp_path):
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
    with pytest.raises(NoSplitError, match="validation.*train"):
        open_images(folder, split="validation")


def test_a_single_file_is_read_whatever_its_name_and_the_split(tmp_path):
    path = parquet(tmp_path / "test[0].parquet", [png(0)])
    assert open_images(path).fingerprint == open_images(path, split="test").fingerprint


@pytest.mark.parametrize("labels", [[0, -1], [0, None]])
def test_hidden_labels_are_dropped_rather_than_trained_on(tmp_path, labels, caplog):
    images = open_images(parquet(tmp_path / "some.parquet", [png(0), png(1)], labels))
    assert images.labels is None and len(images) == 2
    assert "not used" in caplog.text


def test_an_empty_file_among_others_is_ignored(tmp_path):
    parquet(tmp_path / "train-0.parquet", [])
    parquet(tmp_path / "train-1.parquet", [png(0)])
    assert len(open_images(tmp_path)) == 1


@pytest.mark.parametrize("damage", ["no parquet", "truncated", "zeros in a page"])
def test_a_damaged_parquet_file_is_named(tmp_path, damage):
    path = parquet(tmp_path / "bad.parquet", [png(seed) for seed in range(3)])
    whole = path.read_bytes()
    half = len(whole) // 2
    damaged = {"truncated": whole[:half], "zeros in a page": whole[:4] + bytes(200) + whole[204:]}
    path.write_bytes(damaged.get(damage, b"PAR1 and then nothing"))
    with pytest.raises(ValueError, match="bad.parquet"):
        open_images(path)


def test_an_image_beside_its_row_is_read_and_a_missing_one_skipped(tmp_path):
    (tmp_path / "here.png").write_bytes(png(7))
    rows = [{"bytes": None, "path": str(tmp_path / name)} for name in ("here.png", "gone.png")]
    column = pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    pq.write_table(pa.table({"image": column}), tmp_path / "paths.parquet")
    images = open_images(tmp_path / "paths.parquet")
    np.testing.assert_array_equal(images.numpy(), noise(7)[None])
    assert len(images.skipped) == 1 and images.skipped[0].startswith(f"row 1 ({tmp_path}/gone.png)")


# ---- folders ----


def test_a_folder_is_read_recursively_in_order_and_other_files_are_ignored(tmp_path):
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


def test_class_folders_that_are_numbers_are_in_numerical_order(tmp_path):
    images = open_images(folder_of(tmp_path / "set", [f"{number}/{number}.png" for number in (1, 2, 10)]))
    assert images.classes == ("1", "2", "10") and images.labels.tolist() == [0, 2, 1]  # files go by text
    np.testing.assert_array_equal(images.numpy()[1], noise(2))  # the file of folder 10


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["cat/0.png", "cat/1.png"], "cat is the only class folder; at least two are needed"),
        (["cat/0.png", "dog/1.png", "stray.png"], "stray.png lies outside a class folder"),
        (["cat/0.png", "dog/old/1.png"], "dog/old/1.png lies deeper than a class folder"),
        (["train/0.png", "test/1.png"], "its folder train is read as a split"),
        (["0.png", "1.png"], ""),
        (["cat/0.png", "dog/1.png"], ""),
    ],
)
def test_folders_that_are_not_classes_are_reported_with_the_reason(tmp_path, names, why):
    folder = folder_of(tmp_path / "set", names)
    for images in (open_images(folder), open_images(folder)):  # decoded, and from the cache
        assert images.unlabeled == why and (images.labels is None) == (why != "" or names[0] == "0.png")


def test_images_that_are_not_read_are_reported(tmp_path, caplog):
    folder = folder_of(tmp_path / "set", ["cat/0.png", "dog/1.png"])
    (folder / "cat" / "2.heic").write_bytes(b"not read")
    assert len(open_images(folder)) == 2
    assert "1 image files of" in caplog.text and "2.heic: only .png .jpg" in caplog.text
    caplog.clear()
    parquet(folder / "cache.parquet", [png(0)])
    assert len(open_images(folder)) == 1
    assert "the .parquet files of" in caplog.text and "its 2 image files are ignored, e.g." in caplog.text


def test_split_folders_are_not_classes(tmp_path):
    folder = folder_of(tmp_path / "set", ["train/cat/0.png", "train/dog/1.png", "test/cat/2.png"])
    assert open_images(folder).labels.tolist() == [0, 1]
    np.testing.assert_array_equal(open_images(folder, split="test").numpy(), noise(2)[None])
    with pytest.raises(NoSplitError, match="no split 'test'"):
        open_images(folder / "train", split="test")


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX file names and links")
def test_unusual_names_and_links_are_read_and_non_files_are_ignored(tmp_path):
    folder = folder_of(tmp_path / "set [1]*", ["a [1]*?.png", "sub/b.png"])
    Path(os.fsdecode(os.fsencode(folder) + b"/c\xff.png")).write_bytes(png(2))
    Path(os.fsdecode(os.fsencode(folder) + b"/d\xff.png")).write_bytes(b"x")
    (folder / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "linked").symlink_to(folder_of(tmp_path / "other", ["e.png"]))
    os.mkfifo(folder / "pipe.png")  # reading it would never end
    images = open_images(folder)
    np.testing.assert_array_equal(images.numpy(), np.stack([noise(seed) for seed in (0, 2, 0, 1)]))
    assert [line.split(":")[0] for line in images.skipped] == ["d\udcff.png"]


def test_a_folder_without_images_is_refused_with_the_suffixes(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"no images in .*\.png"):
        open_images(tmp_path)


# ---- what is no source ----


@pytest.mark.parametrize(
    "source", ["./nothing", "/no/such/folder", "set/train.parquet", "a/b/c", Path("cifar10"), "~no/x"]
)
def test_a_missing_path_is_reported(source):
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        open_images(source)


@pytest.mark.parametrize("source", ["", " ", "two words", "https:cifar", "-x", "a" * 3000, "nul\0"])
def test_an_invalid_source_is_refused_with_the_accepted_ones(source):
    with pytest.raises(ValueError, match=r"Hub dataset id such as 'cifar10', a \.parquet file, or a folder"):
        open_images(source)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png(0))
    with pytest.raises(ValueError, match="neither a .parquet file nor a folder"):
        open_images(tmp_path / "a.png")


@pytest.mark.parametrize("source", ["cifar10", "uoft-cs/cifar10"])
def test_a_hub_id_offline_fails_at_once_with_the_remedy(source, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was opened"))
    with pytest.raises(ConnectionError, match=f"no file or folder '{source}'.*give a parquet file") as caught:
        open_images(source)
    assert len(str(caught.value)) < 300


def test_a_hub_that_does_not_answer_is_not_retried_for_long(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    addresses, connect = [], socket.socket.connect

    def spy(own, address):
        addresses.append(address)
        return connect(own, address)

    monkeypatch.setattr(socket.socket, "connect", spy)
    with pytest.raises(ConnectionError, match="cannot be reached.*HF_HUB_OFFLINE=1"):
        open_images("cifar10")
    assert addresses == [("127.0.0.1", 9)]


def test_an_unknown_dataset_is_reported_as_missing(monkeypatch):
    def unknown(hub, path, body, token):
        raise Refused(404, "RepoNotFound", "Repository not found")

    monkeypatch.setattr(Handler, "find", unknown)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with Hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        with pytest.raises(
            FileNotFoundError, match="'nobody/flowers' is not a file, a folder or an accessible Hub"
        ):
            open_images("nobody/flowers")


def test_a_hub_dataset_is_read_like_a_local_one(tmp_path, monkeypatch):
    """A local dataset replaces the download, which returns the same type."""
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


def test_a_missing_split_of_a_hub_dataset_has_its_own_error(tmp_path, monkeypatch):
    path, load = str(parquet(tmp_path / "train.parquet", [png(0)])), datasets.load_dataset
    monkeypatch.setattr(
        datasets, "load_dataset", lambda _, split: load("parquet", data_files={"train": path}, split=split)
    )
    assert len(open_images("somebody/flowers")) == 1
    with pytest.raises(NoSplitError, match="somebody/flowers.*'test'"):
        open_images("somebody/flowers", split="test")
    with pytest.raises(ValueError, match="cannot open") as other:
        open_images("somebody/flowers", split="train[")
    assert not isinstance(other.value, NoSplitError)
