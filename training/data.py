"""Images to train on: any source becomes one uint8 tensor, decoded once; its batches follow from the step."""

import errno
import hashlib
import io
import json
import logging
import os
import re
import ssl
import struct
import tempfile
import urllib.error
import urllib.request
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsegen.zoo.files import atomic_write, cache_folder

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FORMATS = "PNG JPEG WEBP BMP GIF TIFF PPM".split()  # not EPS, for which Pillow runs Ghostscript
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation"}
MAX_PIXELS = 2**27  # 134 million: above what cameras make; decoded, this takes half a gigabyte
ACCEPTED = "a Hub dataset id such as 'cifar10', a .parquet file, or a folder of .parquet or image files"
CACHE_FORMAT = 1  # raise it when the same source would give other pixels
HUB_ID = re.compile(r"(?=.{1,96}$)(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
BLOCK = 256  # rows read at a time

# What Pillow's decoders raise on files that are not what they claim to be.
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, TypeError, AttributeError, EOFError, MemoryError, RuntimeError),
    *(LookupError, ArithmeticError, struct.error, zlib.error, Image.DecompressionBombError),
)

Cell = dict[str, Any] | bytes | None  # {"bytes", "path"}, or the path alone
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Images:
    """Decoded images.

    Attributes:
        pixels: uint8 (N, 3, size, size). May be a memory-mapped file: read it, do not write to it.
        labels: int64 (N,), all >= 0, or None.
        name: what was opened, for people.
        fingerprint: 16 hex digits of the SHA-256 of pixels and labels: equal data, equal on any machine.
        skipped: the rows or files left out and why, a line each.
    """

    pixels: Tensor
    labels: Tensor | None
    name: str
    fingerprint: str
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    def numpy(self) -> np.ndarray:
        """The pixels as other libraries want them: uint8 (N, H, W, 3), a view."""
        return self.pixels.permute(0, 2, 3, 1).numpy()


class Batches:
    """Batches as a pure function of (seed, step, rank), so that a resumed run needs no data state.

    An epoch is a permutation drawn from (seed, epoch), its incomplete last batch dropped; flips are drawn
    from (seed, step). Both are drawn for the global batch of batch_size * world_size images, of which each
    rank takes its slice: two ranks together see what one rank with twice the batch size sees.

    Raises: ValueError where the images do not fill one global batch, or an argument is out of range.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        seed: int,
        flip: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size is the images per step and process, at least 1; got {batch_size}")
        if seed < 0:
            raise ValueError(f"seed is an integer of at least 0; got {seed}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is 0 to world_size - 1; got rank {rank} of world_size {world_size}")
        self.whole = batch_size * world_size
        if len(images) < self.whole:
            raise ValueError(_too_few(images, batch_size, world_size))
        self.images, self.seed, self.flip = images, seed, flip
        self.mine = slice(rank * batch_size, (rank + 1) * batch_size)
        self.steps_per_epoch = len(images) // self.whole
        self._epoch = (-1, np.empty(0, np.int64))

    def at(self, step: int) -> tuple[Tensor, Tensor | None]:
        """The batch of one step, counted from 0.

        Shape: real float32 (B, 3, H, W) in [-1, 1], labels int64 (B,) or None.
        """
        epoch, index = divmod(step, self.steps_per_epoch)
        batch = self._order(epoch)[index * self.whole : (index + 1) * self.whole]
        rows = torch.from_numpy(batch[self.mine])
        pixels = self.images.pixels.index_select(0, rows)
        if self.flip:
            mirrored = torch.from_numpy(_draws(self.seed, step, stream=1).random(self.whole)[self.mine] < 0.5)
            pixels[mirrored] = pixels[mirrored].flip(-1)
        real = pixels.float().div_(127.5).sub_(1)
        return real, None if self.images.labels is None else self.images.labels[rows]

    def _order(self, epoch: int) -> np.ndarray:
        """The epoch's permutation, kept until another epoch is asked for."""
        known, order = self._epoch
        if known != epoch:
            order = _draws(self.seed, epoch, stream=0).permutation(len(self.images))
            self._epoch = (epoch, order)
        return order


def _draws(seed: int, count: int, stream: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([seed, count, stream]))


def _too_few(images: Images, batch_size: int, world_size: int) -> str:
    processes = "" if world_size == 1 else f" on each of {world_size} processes"
    largest = len(images) // world_size
    remedy = f"use --batch-size {largest} or smaller, or more images" if largest else "use more images"
    return (
        f"{images.name} has {len(images)} images, fewer than one batch of {batch_size}{processes}: {remedy}"
    )


def open_images(
    source: str | Path,
    split: str = "train",
    size: int = 32,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Images:
    """Opens a source of images and decodes all of them, so that no later step can fail on one.

    Whatever Pillow reads becomes RGB: EXIF orientation applied, alpha composited on white, 16-bit grey scaled
    to 8 bits, the first frame of an animation; then the centre square, resized to `size` (Lanczos,
    antialiased). What cannot be read is left out, logged and named in `skipped`. The pixels are cached in
    `cache_folder()`. JPEG decoders may differ in the last bit, and so fingerprints between Pillow versions.

    Args:
        source: a Hub dataset id ("cifar10"), a parquet file, or a folder of parquet or image files.
        split: of a dataset or folder. A folder of images without split folders, or of parquet files without
            split names, has only "train"; a single file has no splits, whatever is asked for.
        size: side of the square images, in pixels.
        limit: how many rows to read at most, None for all.
            Choice: labeled classes are taken in turn, because a prefix of sorted data is a single class.
        progress: called with (images done, images in all).

    Raises: FileNotFoundError, ConnectionError (a Hub id while offline), ValueError (no images, no split).
    """
    if size < 1 or (limit is not None and limit < 1):
        raise ValueError(f"size and limit are at least 1; got size {size}, limit {limit}")
    found = _find(source, split)
    key = json.dumps([CACHE_FORMAT, found.identity, split, size, limit])
    file = cache_folder() / "images" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    images = _read_cache(file, found.name)
    if images is None:
        with found.open() as rows:
            images, lasting = _decode_rows(rows, size, limit, progress)
        if lasting:
            _write_cache(file, images)
    for line in images.skipped[:10]:
        log.warning("skipped %s", line)
    if len(images.skipped) > 10:
        log.warning("skipped %d more; %d images are left", len(images.skipped) - 10, len(images))
    return images


# ---- sources ----


@dataclass(frozen=True)
class Rows:
    """An opened, still encoded source: a dataset and its columns."""

    dataset: "Dataset"
    image: str
    label: str | None
    name: str
    root: Path | None = None  # of an image folder: rows are named by their path below it


@dataclass(frozen=True)
class Source:
    """Images before any is read: a name for people, what tells them from others, and how to open them."""

    name: str
    identity: Any
    open: Callable[[], AbstractContextManager[Rows]]


def _find(source: str | Path, split: str) -> Source:
    """Tells a file, a folder and a Hub id apart.

    Choice: an existing path wins over a Hub id of the same name.
    """
    text = str(source)
    path = Path(os.path.expanduser(source))
    if not text.strip():
        raise ValueError(f"source is empty; give {ACCEPTED}")
    if os.path.isfile(path):  # False, not an error, for what no path can be
        if path.suffix.lower() != ".parquet":
            raise ValueError(f"{text} is neither a .parquet file nor a folder; give {ACCEPTED}")
        return Source(text, [_stamp(path)], partial(_parquet_rows, path, split))
    if os.path.isdir(path):
        if parquet := _files(path, (".parquet",)):
            return Source(text, [_stamp(file) for file in parquet], partial(_parquet_rows, path, split))
        root = _split_folder(path, split)
        files = _files(root, SUFFIXES)
        if not files:
            raise ValueError(
                f"no images in {root} or below it (looked for {' '.join(SUFFIXES)} and .parquet)"
            )
        return Source(text, [_stamp(file) for file in files], partial(_folder_rows, root, files))
    if isinstance(source, Path) or _looks_like_path(text):
        raise FileNotFoundError(f"no file or folder {text!r}; give {ACCEPTED}")
    if not HUB_ID.fullmatch(text):
        raise ValueError(f"{text!r} is neither a path nor a Hub dataset id; give {ACCEPTED}")
    dataset = _hub_dataset(text, split)
    return Source(text, ["hub", text, dataset._fingerprint], lambda: nullcontext(_columns(dataset, text)))


def _looks_like_path(text: str) -> bool:
    ends = (".parquet", "/", *SUFFIXES)
    return text[0] in "./~" or "\\" in text or text.count("/") > 1 or text.lower().endswith(ends)


@contextmanager
def _parquet_rows(path: Path, split: str) -> Iterator[Rows]:
    """Rows of a parquet file or a folder of them, where `datasets` tells splits by the names of the files.

    It first makes an Arrow copy, of no use once the pixels are cached: that goes to a folder of our own,
    which is deleted when the context ends.
    """
    import datasets

    literal = re.sub(r"([*?[])", r"[\1]", str(path.absolute()))  # `datasets` would read these as patterns
    chosen = {"data_files": {split: literal}} if path.is_file() else {"data_dir": literal}
    scratch = cache_folder()
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="reading-", dir=scratch, ignore_cleanup_errors=True) as folder:
        try:
            with _no_progress_bars():
                dataset = datasets.load_dataset(
                    "parquet", **chosen, split=split, cache_dir=folder, batch_size=BLOCK
                )
        except datasets.exceptions.DatasetGenerationError as error:
            if getattr(error.__cause__, "errno", None):  # a full disk, not a bad file
                reason = f"{error.__cause__.strerror} while {path} was copied to"
                raise OSError(error.__cause__.errno, reason, str(scratch)) from error
            raise ValueError(f"cannot read {path} as parquet: {error.__cause__ or error}") from error
        except ValueError as error:
            raise ValueError(f"cannot open {path}, split {split!r}: {error}") from error
        yield _columns(dataset, str(path))


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Copying a local file is quick, and the caller has `progress`."""
    import datasets

    shown = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


@contextmanager
def _folder_rows(root: Path, files: Sequence[Path]) -> Iterator[Rows]:
    """Rows of image files; labels are their folders, if all lie one level deep in two folders or more."""
    import datasets

    parts = [file.relative_to(root).parts for file in files]
    classes = sorted({part[0] for part in parts})
    columns = {"image": [os.fsencode(file) for file in files]}  # bytes: names need not be valid UTF-8
    label = None
    if len(classes) > 1 and all(len(part) == 2 for part in parts):
        label, columns["label"] = "label", [classes.index(part[0]) for part in parts]
    yield Rows(datasets.Dataset.from_dict(columns), "image", label, str(root), root)


def _split_folder(folder: Path, split: str) -> Path:
    """folder/train and so on, where all subfolders are named like splits; else the folder, as "train"."""
    inside = {child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")}
    if split in inside and inside <= SPLITS:
        return folder / split
    if split != "train":
        raise ValueError(f"no split {split!r} in {folder}: its images are the split 'train'")
    return folder


def _hub_dataset(source: str, split: str) -> "Dataset":
    import datasets

    try:
        with _offline_if_unreachable():
            return datasets.load_dataset(source, split=split)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"{source!r} is no file, no folder and no public Hub dataset: {error}"
        ) from error
    except ConnectionError as error:
        raise ConnectionError(
            f"no file or folder {source!r}, and the Hugging Face Hub, which may have such a dataset, is out "
            "of reach, with no earlier download cached: go online, or give a parquet file or a folder"
        ) from error
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"cannot open the Hub dataset {source!r}, split {split!r}: {error}") from error


@contextmanager
def _offline_if_unreachable() -> Iterator[None]:
    """Switches the Hub clients to their caches where the Hub does not answer: they would retry for 23 s."""
    import datasets
    import huggingface_hub

    switches = (huggingface_hub.constants, datasets.config)
    before = [module.HF_HUB_OFFLINE for module in switches]
    offline = any(before) or not _answers(huggingface_hub.constants.ENDPOINT)
    try:
        for module in switches:
            module.HF_HUB_OFFLINE = offline
        yield
    finally:
        for module, value in zip(switches, before, strict=True):
            module.HF_HUB_OFFLINE = value


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=5).close()
    except urllib.error.HTTPError as error:  # an answer, too
        error.close()
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # the Hub clients have certificates of their own
    except OSError:
        return False
    return True


def _columns(dataset: "Dataset", name: str) -> Rows:
    """Finds the image column by its type, the label column by type and name."""
    import datasets

    features = dataset.features
    encoded = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image) or kind == encoded]
    if len(images) != 1:
        listed = ", ".join(f"{key}: {kind}" for key, kind in features.items())
        what = f"{len(images)} image columns, {', '.join(images)}" if images else "no image column"
        raise ValueError(f"{name} has {what}; it must have exactly one, of type Image. Its columns: {listed}")
    if isinstance(features[images[0]], datasets.Image):
        dataset = dataset.cast_column(images[0], datasets.Image(decode=False))
    classes = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if isinstance(features.get("label"), datasets.Value) and "int" in features["label"].dtype:
        classes.append("label")
    classes.sort(key=lambda key: key != "label")
    if len(classes) > 1:
        log.info("%s has the label columns %s; using %s", name, ", ".join(classes), classes[0])
    return Rows(dataset, images[0], classes[0] if classes else None, name)


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files below a folder, by suffix, sorted; follows links, leaves out hidden files and folders."""

    def fail(error: OSError) -> None:
        raise error

    found, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(root)
        if real in seen:  # by a link, maybe an endless one
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(root, name) for name in names if name[0] != "." and name.lower().endswith(suffixes)]
    return sorted(found, key=lambda file: file.relative_to(folder).as_posix())


def _stamp(file: Path) -> tuple[str, int, int]:
    try:
        status = file.stat()
    except OSError:  # a dangling link: decoding will name it
        return str(file.absolute()), -1, -1
    return str(file.absolute()), status.st_size, status.st_mtime_ns


# ---- decoding ----


def _decode_rows(rows: Rows, size: int, limit: int | None, progress: Progress | None) -> tuple[Images, bool]:
    """Decodes the rows in order, leaving out what cannot be read.

    The second value says whether it would be the same next time: not if the system kept a file from us.

    Raises: ValueError where nothing is left.
    """
    labels = _read_labels(rows)
    order = _first(limit, len(rows.dataset), labels)
    dataset = rows.dataset.select(order)
    pixels = np.empty((len(order), 3, size, size), np.uint8)
    kept, skipped, lasting = [], [], True
    for start in range(0, len(order), BLOCK):
        block = dataset.with_format("arrow")[start : start + BLOCK][rows.image].to_pylist()
        for row, cell in zip(order[start:], block, strict=False):
            try:
                pixels[len(kept)] = decode(_encoded(cell), size)
                kept.append(row)
            except UNREADABLE as error:
                skipped.append(f"{_row_name(rows, row, cell)}: {_reason(error)}")
                lasting = lasting and getattr(error, "errno", None) is None and type(error) is not MemoryError
        if progress is not None:
            progress(min(start + BLOCK, len(order)), len(order))
    if not kept:
        reasons = f"; the first: {skipped[0]}" if skipped else ""
        raise ValueError(f"no readable image among the {len(order)} of {rows.name}{reasons}")
    pixels = torch.from_numpy(pixels[: len(kept)])
    labels = None if labels is None else torch.from_numpy(labels[kept])
    return Images(pixels, labels, rows.name, fingerprint(pixels, labels), tuple(skipped)), lasting


def _read_labels(rows: Rows) -> np.ndarray | None:
    if rows.label is None or not len(rows.dataset):
        return None
    column = rows.dataset.with_format("arrow").select_columns([rows.label])[:][rows.label]
    labels = None if column.null_count else column.to_numpy().astype(np.int64)
    if labels is None or labels.min() < 0:  # test sets hide theirs as -1 or null
        log.warning("the labels of %s are not used: some are missing or negative", rows.name)
        return None
    return labels


def _first(limit: int | None, count: int, labels: np.ndarray | None) -> list[int]:
    """The rows to read, in their order; within `limit`, classes are taken in turn."""
    if limit is None or limit >= count or labels is None:
        return list(range(count if limit is None else min(limit, count)))
    by_class = np.argsort(labels, kind="stable")
    starts = np.concatenate([[0], np.flatnonzero(np.diff(labels[by_class])) + 1])
    before = np.arange(count) - np.repeat(starts, np.diff([*starts, count]))  # of the same class
    return sorted(by_class[np.argsort(before, kind="stable")][:limit].tolist())


def _encoded(cell: Cell) -> bytes:
    if isinstance(cell, dict) and cell["bytes"] is not None:
        return cell["bytes"]
    path = os.fsdecode(cell) if isinstance(cell, bytes) else cell and cell["path"]
    if not path:
        raise ValueError("the cell is empty")
    if not os.path.isfile(path):  # a device or a pipe might never end
        raise FileNotFoundError(errno.ENOENT, "no such file", path)
    return Path(path).read_bytes()


def _row_name(rows: Rows, row: int, cell: Cell) -> str:
    """For people: the file's path in its folder, or the row's number and the file name it remembers."""
    if isinstance(cell, bytes):
        name = Path(os.fsdecode(cell)).relative_to(rows.root).as_posix()
        return name.encode("utf-8", "backslashreplace").decode()
    return f"row {row} ({cell['path']})" if cell and cell["path"] else f"row {row}"


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"not an image, or damaged, or none of {' '.join(FORMATS)}"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def decode(encoded: bytes, size: int) -> np.ndarray:
    """One image file as RGB pixels; `open_images` says how each kind is converted.

    Choice: CMYK by Pillow's plain formula, without color profiles; 32-bit grey is read as 16-bit, clipped.

    Shape: uint8 (3, size, size).  Raises: one of UNREADABLE.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, on files that are odd but readable
        Image.init()  # it loads WebP and TIFF only when nothing else fits, but `formats` must be loaded
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels; at most {MAX_PIXELS:,} are decoded")
            image.load()
            return np.asarray(_square(_to_rgb(_upright(image)), size)).transpose(2, 0, 1)


def _upright(image: Image.Image) -> Image.Image:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except UNREADABLE:  # the pixels are good, only the EXIF block is not
        pass
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.float64).clip(0, 65535) / 257
        return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _square(image: Image.Image, size: int) -> Image.Image:
    """The centre square, resized. Cropping comes first, or a 1x100,000,000 image would grow to gigabytes."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    if side == size:
        return image if image.size == (size, size) else image.crop(box)
    return image.resize((size, size), Image.Resampling.LANCZOS, box=box)


# ---- cache ----


def fingerprint(pixels: Tensor, labels: Tensor | None) -> str:
    """16 hex digits of the SHA-256 of shape, pixels and labels (little-endian int64)."""
    digest = hashlib.sha256(repr((tuple(pixels.shape), labels is not None)).encode())
    digest.update(pixels.contiguous().numpy())
    if labels is not None:
        digest.update(labels.numpy().astype("<i8"))
    return digest.hexdigest()[:16]


def _write_cache(file: Path, images: Images) -> None:
    tensors = {"pixels": images.pixels} | ({} if images.labels is None else {"labels": images.labels})
    about = {"fingerprint": images.fingerprint, "skipped": json.dumps(images.skipped)}
    try:
        with atomic_write(file) as temporary:
            save_file(tensors, temporary, metadata=about)
    except OSError as error:  # training can go on without
        log.warning("the decoded images are not cached: %s", error)


def _read_cache(file: Path, name: str) -> Images | None:
    """The cached images, memory-mapped, or None where there are none or the file is damaged."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            about = opened.metadata()
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        pixels, labels = tensors["pixels"], tensors.get("labels")
        if fingerprint(pixels, labels) == about["fingerprint"]:
            return Images(pixels, labels, name, about["fingerprint"], tuple(json.loads(about["skipped"])))
        reason = "its contents do not match its fingerprint"
    except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
        reason = error
    log.warning("%s is damaged (%s): decoding the images again", file, reason)
    return None
