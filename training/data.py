"""Training images: a source is decoded once, to one uint8 tensor. Batches are functions of the step."""

import hashlib
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsegen.common.files import cache_folder
from sparsegen.common.progress import OnProgress
from sparsegen.pictures.squares import decode
from sparsegen.training.cache import keep, kept
from sparsegen.training.sources import BLOCK, Rows, find_source
from sparsegen.zoo.noise import check_seed

log = logging.getLogger(__name__)

CACHE_FORMAT = 3  # increase it when the same source would give other pixels or other class names


@dataclass(frozen=True)
class Images:
    """Decoded images.

    Attributes:
        pixels: uint8 (N, 3, size, size). May be a memory-mapped file: read it, do not write to it.
        labels: int64 (N,), all >= 0, or None.
        name: the source, for messages.
        fingerprint: 16 hex digits of the SHA-256 of pixels and labels, the same on every machine.
        skipped: the omitted rows or files with the reason, one line each.
        classes: the names of the labels 0, 1, …; empty if unknown.
        unlabeled: the reason why expected labels are missing; else empty.
        resized: number of images that were resized.
    """

    pixels: Tensor
    labels: Tensor | None
    name: str
    fingerprint: str
    skipped: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    unlabeled: str = ""
    resized: int = 0

    @property
    def size(self) -> int:
        """Side of the square images in pixels."""
        return self.pixels.shape[-1]

    @property
    def class_count(self) -> int:
        """Number of classes of the labels; 0 without labels."""
        return 0 if self.labels is None else max(len(self.classes), int(self.labels.max()) + 1)

    def __len__(self) -> int:
        return len(self.pixels)

    def require_labels(self) -> Tensor:
        """Returns the labels. Raises: ValueError with the reason if there are none."""
        if self.labels is None:
            why = f" ({self.unlabeled})" if self.unlabeled else ""
            raise ValueError(
                f"{self.name} has no labels{why}: give data with labels, e.g. one folder per class"
            )
        return self.labels

    def numpy(self) -> np.ndarray:
        """Returns a view of the pixels with channels last: uint8 (N, H, W, 3)."""
        return self.pixels.permute(0, 2, 3, 1).numpy()

    def part(self, share: float) -> "Images":
        """Returns a share of the images: the first of each class, the same number of each; without labels the first.

        Raises:
            ValueError: Unless the share is above 0 and at most 1.
        """
        if check_share(share) == 1:
            return self
        count, known = max(1, round(share * len(self))), None if self.labels is None else self.labels.numpy()
        rows = torch.tensor(_first(count, len(self), known))
        pixels, labels = self.pixels[rows], None if self.labels is None else self.labels[rows]
        return replace(self, pixels=pixels, labels=labels, fingerprint=fingerprint(pixels, labels))


def check_share(share: float) -> float:
    """Returns the share. Raises: ValueError unless it is above 0 and at most 1."""
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1; got {share!r}")
    return share


class ImageLoader:
    """Mini-batches of images as a pure function of (seed, step, rank), so that a resumed run needs no data state.

    An epoch is a permutation drawn from (seed, epoch), its incomplete last batch dropped; flips are drawn
    from (seed, step). Both are drawn for the global batch, and each process takes its rows: the images of a step do not
    depend on the number of processes.

    Args:
        batch_size: Images per step of all processes together.
        rank, world_size: Number of this process, from 0, and number of processes.

    Attributes:
        rows: The rows of this process in the global batch.

    Raises:
        ValueError: If there are fewer images than one batch, or an argument is out of range.
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
        if batch_size < 2:
            raise ValueError(
                f"batch_size is the number of images per step, at least 2 because batch norm computes statistics over "
                f"them; got {batch_size}"
            )
        if len(images) < max(batch_size, world_size):
            raise ValueError(_too_few(images, batch_size, world_size))
        if batch_size % world_size:
            below = batch_size // world_size * world_size
            sizes = [str(size) for size in (below, below + world_size) if 2 <= size <= len(images)]
            raise ValueError(
                f"batch_size is the number of images per step of all {world_size} processes, and must be a multiple "
                f"of their number; got {batch_size}: use {' or '.join(sizes)}"
            )
        self.batch_size = batch_size
        own = batch_size // world_size
        self.rows = slice(rank * own, (rank + 1) * own)
        self.images, self.seed, self.flip = images, check_seed(seed), flip
        self.steps_per_epoch = len(images) // batch_size
        self._epoch = (-1, np.empty(0, np.int64))

    def at(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Returns the batch of a step, counted from 0.

        Shape: real float32 (B, 3, H, W) in [-1, 1], labels int64 (B,) or None; B rows of this process.
        """
        epoch, index = divmod(step, self.steps_per_epoch)
        batch = self._order(epoch)[index * self.batch_size : (index + 1) * self.batch_size]
        rows = torch.from_numpy(batch[self.rows])
        pixels = self.images.pixels.index_select(0, rows)
        if self.flip:
            draws = _draws(self.seed, step, stream=1).random(self.batch_size)
            mirrored = torch.from_numpy(draws[self.rows] < 0.5)
            pixels[mirrored] = pixels[mirrored].flip(-1)
        real = pixels.float().div_(127.5).sub_(1)
        return real, None if self.images.labels is None else self.images.labels[rows]

    def _order(self, epoch: int) -> np.ndarray:
        """Returns the permutation of the epoch, cached until another epoch is requested."""
        known, order = self._epoch
        if known != epoch:
            order = _draws(self.seed, epoch, stream=0).permutation(len(self.images))
            self._epoch = (epoch, order)
        return order


def _draws(seed: int, count: int, stream: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([seed, count, stream]))


def _too_few(images: Images, batch_size: int, world_size: int) -> str:
    processes = "" if world_size == 1 else f" for {world_size} processes"
    largest = len(images) // world_size * world_size
    smaller = f"use a batch size of {largest}{' or smaller' if largest > 2 else ''}, or more images"
    fewer = "use more images" + (" or fewer processes" if world_size > 1 else "")
    return (
        f"{images.name} has {len(images)} images, fewer than one batch of {max(batch_size, world_size)}{processes}: "
        f"{smaller if largest >= 2 else fewer}"
    )


def open_images(
    source: str | Path,
    split: str = "train",
    size: int = 32,
    limit: int | None = None,
    progress: OnProgress | None = None,
) -> Images:
    """Opens a source of images and decodes all of them in advance, so that training cannot fail on an image.

    Images are converted to square RGB, see `decode`. Damaged images are omitted, logged and listed in `skipped`. The
    pixels are cached in `cache_folder()`. JPEG decoders may differ in the last bit, so fingerprints may differ between
    Pillow versions.

    Args:
        source: a Hub dataset id ("cifar10"), a parquet file, or a folder of parquet or image files.
        split: of a dataset or folder. A folder of images without split folders, or of parquet files without
            split names, has only "train"; a single file has no splits, and `split` is ignored.
        size: side of the square images, in pixels.
        limit: maximum number of rows to read, None for all.
            Choice: the same number is taken of each class, because a prefix of sorted data is a single class.
        progress: called with the images done and their total.

    Raises: FileNotFoundError, ConnectionError (a Hub id while offline), ValueError (no images), NoSplitError (a
        ValueError), OSError (a file cannot be read).
    """
    if size < 1 or (limit is not None and limit < 1):
        raise ValueError(f"size and limit must be at least 1; got size {size}, limit {limit}")
    found = find_source(source, split)
    key = json.dumps([CACHE_FORMAT, found.identity, split, size, limit])
    path = cache_folder() / "images" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    images = _read_cache(path, found.name)
    if images is None:
        images = _decode_rows(found.open(), found.name, size, limit, progress)
        _write_cache(path, images)
    for line in images.skipped[:10]:
        log.warning("skipped %s", line)
    if len(images.skipped) > 10:
        log.warning("skipped %d more; %d images are left", len(images.skipped) - 10, len(images))
    if images.resized:
        log.warning(
            "%d of the %d images of %s had other sizes: their center squares were resized to %d x %d pixels",
            *(images.resized, len(images), images.name, size, size),
        )
    return images


def _decode_rows(rows: Rows, name: str, size: int, limit: int | None, progress: OnProgress | None) -> Images:
    """Decodes the rows in order and omits damaged ones.

    Raises:
        ValueError: If no image is left.
    """
    order = _first(limit, rows.count, rows.labels)
    decoded = np.empty((len(order), 3, size, size), np.uint8)
    good: list[int] = []
    skipped, resized = [], 0
    for done, (row, (row_name, file)) in enumerate(zip(order, rows.read(order), strict=True), start=1):
        try:
            decoded[len(good)], other = decode(file, size)
            good.append(row)
            resized += other
        except ValueError as error:
            skipped.append(f"{row_name}: {error}")
        if progress is not None and (done % BLOCK == 0 or done == len(order)):
            progress(done, len(order))
    if not good:
        reason = f"; the first: {skipped[0]}" if skipped else ""
        raise ValueError(f"no readable image among the {len(order)} of {name}{reason}")
    pixels = torch.from_numpy(decoded[: len(good)])
    labels = None if rows.labels is None else torch.from_numpy(rows.labels[good])
    return Images(
        *(pixels, labels, name, fingerprint(pixels, labels)),
        *(tuple(skipped), rows.classes, rows.unlabeled, resized),
    )


def _first(limit: int | None, count: int, labels: np.ndarray | None) -> list[int]:
    """Returns the rows to read, in their order; with a `limit`, the same number of each class."""
    if limit is None or limit >= count:
        return list(range(count))
    if labels is None:
        return list(range(limit))
    turn = np.empty(count, int)  # number of rows of the same class before a row
    for label in np.unique(labels):
        turn[labels == label] = np.arange(np.count_nonzero(labels == label))
    return sorted(np.lexsort((labels, turn))[:limit].tolist())


def fingerprint(pixels: Tensor, labels: Tensor | None) -> str:
    """Returns 16 hex digits of the SHA-256 of shape, pixels and labels (little-endian int64)."""
    digest = hashlib.sha256(repr((tuple(pixels.shape), labels is not None)).encode())
    digest.update(pixels.contiguous().numpy().data)
    if labels is not None:
        digest.update(labels.numpy().astype("<i8").data)
    return digest.hexdigest()[:16]


def _write_cache(path: Path, images: Images) -> None:
    tensors = {"pixels": images.pixels} | ({} if images.labels is None else {"labels": images.labels})
    about = {name: json.dumps(getattr(images, name)) for name in ("skipped", "classes", "resized")}
    keep(path, tensors, {"fingerprint": images.fingerprint, "unlabeled": images.unlabeled, **about})


def _read_cache(path: Path, name: str) -> Images | None:
    """Returns the cached images; None if there are none or the file is damaged."""
    tensors, about = kept(path) or ({}, {})
    if "pixels" not in tensors:
        return None
    pixels, labels = tensors["pixels"], tensors.get("labels")
    if fingerprint(pixels, labels) != about["fingerprint"]:
        log.warning("%s is damaged and will be computed again: its fingerprint differs", path)
        return None
    skipped, classes = (tuple(json.loads(about[what])) for what in ("skipped", "classes"))
    resized = int(about.get("resized", 0))  # missing in older files
    return Images(pixels, labels, name, about["fingerprint"], skipped, classes, about["unlabeled"], resized)
